use super::stun::{Class, Key, View, Writer, attr, method, random};
use proptest::prelude::*;
use std::net::SocketAddr;
use stun_types::attribute::{Fingerprint, Username, XorMappedAddress};
use stun_types::message::{
    BINDING, IntegrityAlgorithm, Message, MessageIntegrityCredentials, MessageWriteVec, ShortTermCredentials,
};
use stun_types::prelude::*;

fn addresses() -> impl Strategy<Value = SocketAddr> {
    let v4 = any::<(u32, u16)>().prop_map(|(a, p)| SocketAddr::new(std::net::Ipv4Addr::from(a).into(), p));
    let v6 = any::<(u128, u16)>().prop_map(|(a, p)| SocketAddr::new(std::net::Ipv6Addr::from(a).into(), p));
    prop_oneof![v4, v6]
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_a_message_or_not_but_never_a_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200), shape in any::<bool>()
    ) {
        if shape && bytes.len() >= 20 {
            let len = bytes.len() / 4 * 4;
            bytes.truncate(len);
            bytes[0] &= 0x3f;
            bytes[2..4].copy_from_slice(&((len - 20) as u16).to_be_bytes());
            bytes[4..8].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
        }
        if let Some(v) = View::parse(&bytes) {
            let _ = (v.class(), v.method(), v.mapped(), v.error(), v.text(attr::USERNAME), v.u32(attr::PRIORITY));
            let _ = v.xor_address(attr::XOR_PEER_ADDRESS);
            prop_assert!(!v.signed_by(&Key::short("k")));
        }
    }

    #[test]
    fn what_we_write_another_library_reads(a in addresses(), user in "[a-z]{1,20}:[a-z]{1,9}", tid: [u8; 12]) {
        let key = Key::short("secret");
        let bytes = Writer::new(Class::Request, method::BINDING, &tid)
            .attr(attr::USERNAME, user.as_bytes())
            .xor_address(attr::XOR_MAPPED_ADDRESS, a)
            .sign(&key)
            .fingerprint()
            .finish();
        let m = Message::from_bytes(&bytes).expect("parses");
        let creds: MessageIntegrityCredentials = ShortTermCredentials::new("secret".into()).into();
        prop_assert!(m.validate_integrity(&creds).is_ok());
        prop_assert!(m.attribute::<Fingerprint>().is_ok());
        let username = m.attribute::<Username>().expect("username");
        prop_assert_eq!(username.username(), user.as_str());
        prop_assert_eq!(m.attribute::<XorMappedAddress>().expect("address").addr(m.transaction_id()), a);
        let v = View::parse(&bytes).expect("ours");
        prop_assert!(v.signed_by(&key) && !v.signed_by(&Key::short("Secret")));
        prop_assert_eq!((v.class(), v.method(), v.tid()), (Class::Request, method::BINDING, tid));
        prop_assert_eq!(v.xor_address(attr::XOR_MAPPED_ADDRESS), Some(a));
    }

    #[test]
    fn what_another_library_writes_we_read(a in addresses(), user in "[a-z]{1,20}") {
        let mut m = Message::builder_request(BINDING, MessageWriteVec::new());
        let creds: MessageIntegrityCredentials = ShortTermCredentials::new("pw".into()).into();
        m.add_attribute(&Username::new(&user).expect("name")).expect("fits");
        let tid = m.transaction_id();
        m.add_attribute(&XorMappedAddress::new(a, tid)).expect("fits");
        m.add_message_integrity(&creds, IntegrityAlgorithm::Sha1).expect("fits");
        m.add_fingerprint().expect("fits");
        let bytes = m.finish();
        let v = View::parse(&bytes).expect("parses");
        prop_assert!(v.signed_by(&Key::short("pw")));
        prop_assert_eq!(v.text(attr::USERNAME), Some(user.as_str()));
        prop_assert_eq!(v.xor_address(attr::XOR_MAPPED_ADDRESS), Some(a));
    }

    #[test]
    fn one_changed_bit_before_the_signature_spoils_it(at in 0usize..400, tid: [u8; 12]) {
        let key = Key::long("u", "r", "p");
        let mut bytes = Writer::new(Class::Success, method::REFRESH, &tid).u32(attr::LIFETIME, 600).sign(&key).finish();
        let at = at % (bytes.len() * 8);
        bytes[at / 8] ^= 1 << (at % 8);
        prop_assert!(!View::parse(&bytes).is_some_and(|v| v.signed_by(&key)));
    }
}

#[test]
fn what_follows_the_signature_is_not_looked_at() {
    let key = Key::short("k");
    let mut bytes = Writer::new(Class::Request, method::BINDING, &random()).sign(&key).finish();
    bytes.extend_from_slice(&[0, 0x25, 0, 0]);
    let len = (bytes.len() - 20) as u16;
    bytes[2..4].copy_from_slice(&len.to_be_bytes());
    let v = View::parse(&bytes).expect("well-formed");
    assert!(v.signed_by(&key) && !v.has(attr::USE_CANDIDATE));
}

#[test]
fn error_codes_are_read_and_written() {
    let bytes = Writer::new(Class::Error, method::BINDING, &[1; 12]).error(487, "Role Conflict").finish();
    assert_eq!(View::parse(&bytes).and_then(|v| v.error()), Some((487, "Role Conflict".to_owned())));
}
