use super::answer::{Asker, MAX_QUERY, Transport, answer};
use super::table::{Entry, Standing, Table};
use super::table_tests::entry;
use super::{TTL, reverse};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use proptest::prelude::*;
use std::net::IpAddr;

const OWN: Asker = Asker { own: true, transport: Transport::Udp };
const TCP: Asker = Asker { own: true, transport: Transport::Tcp };
/// A node with so many addresses that they do not fit into 512 bytes.
const MANY: &str = "a-name-of-a-node-that-is-long-enough-for-its-answer";
const STRANGER: Asker = Asker { own: false, transport: Transport::Udp };

fn entries() -> Vec<Entry> {
    let group = "group:my_group";
    let many: Vec<String> = (0..16).map(|n| format!("fd00::1:{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    vec![
        entry("vm1", "vm1@x", group, Standing::This, &["172.16.10.2", "fd00::2"]),
        entry("vm2", "vm2@x", group, Standing::Known(0), &["172.16.10.3", "fd00::3"]),
        entry("laptop", "bob@x", "social", Standing::Known(1), &["172.31.0.7", "fd77::7"]),
        entry(MANY, "many@x", group, Standing::Known(2), &many),
    ]
}

fn table() -> Table {
    let subnets = ["172.16.10.0/24", "fd00::/64", "172.31.0.0/20"];
    Table::new(entries(), &subnets.map(|s| s.parse().expect("prefix")), 77)
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut m = Message::query();
    m.metadata.recursion_desired = true;
    m.add_query(Query::query(Name::from_ascii(name).expect("name"), kind));
    m
}

fn send(m: &Message, asker: Asker) -> Message {
    let bytes = answer(&m.to_vec().expect("encodes"), asker, &table()).expect("an answer");
    let reply = Message::from_vec(&bytes).expect("decodes");
    assert_eq!((reply.id, reply.message_type, reply.op_code), (m.id, MessageType::Response, m.op_code));
    assert!(!reply.recursion_available && !reply.authentic_data);
    assert_eq!(reply.recursion_desired, m.recursion_desired);
    reply
}

fn ask(name: &str, kind: RecordType) -> Message {
    let reply = send(&query(name, kind), OWN);
    assert_eq!(reply.queries.len(), 1);
    reply
}

/// Code, and what the answer section has.
fn told(name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    let reply = ask(name, kind);
    let authoritative = reply.response_code != ResponseCode::Refused;
    assert_eq!(reply.authoritative, authoritative, "{name} {kind}");
    // RFC 2308: whoever is told of nothing is told for how long.
    let soa = reply.authorities.iter().any(|r| r.record_type() == RecordType::SOA && r.ttl == TTL);
    assert_eq!(soa, authoritative && reply.answers.is_empty(), "{name} {kind}");
    assert!(reply.answers.iter().all(|r| r.ttl == TTL && r.dns_class == DNSClass::IN));
    (reply.response_code, reply.answers.iter().map(|r| r.data.to_string()).collect())
}

fn found(what: &[&str]) -> (ResponseCode, Vec<String>) {
    (ResponseCode::NoError, what.iter().map(|s| (*s).to_owned()).collect())
}

fn code(c: ResponseCode) -> (ResponseCode, Vec<String>) {
    (c, Vec::new())
}

#[test]
fn addresses_and_names_of_nodes_are_told() {
    assert_eq!(told("vm2.my_group.ipop.", RecordType::A), found(&["172.16.10.3"]));
    assert_eq!(told("vm2.my_group.ipop.", RecordType::AAAA), found(&["fd00::3"]));
    assert_eq!(told("laptop.bob.social.ipop.", RecordType::A), found(&["172.31.0.7"]));
    assert_eq!(told("3.10.16.172.in-addr.arpa.", RecordType::PTR), found(&["vm2.my_group.ipop."]));
    let v6 = reverse::name(&"fd00::3/128".parse().expect("prefix")).expect("name").to_ascii();
    assert_eq!(told(&v6, RecordType::PTR), found(&["vm2.my_group.ipop."]));
    // Of a /20 there are sixteen zones.
    assert_eq!(told("7.0.31.172.in-addr.arpa.", RecordType::PTR), found(&["laptop.bob.social.ipop."]));
    // In no subnet, but somebody's.
    let lone = reverse::name(&"fd77::7/128".parse().expect("prefix")).expect("name").to_ascii();
    assert_eq!(told(&lone, RecordType::PTR), found(&["laptop.bob.social.ipop."]));
}

#[test]
fn no_such_name_is_another_thing_than_no_such_record() {
    let (none, nothing) = (found(&[]), code(ResponseCode::NXDomain));
    for exists in ["vm2.my_group.ipop.", "my_group.ipop.", "bob.social.ipop.", "social.ipop.", "ipop."] {
        assert_eq!(told(exists, RecordType::TXT), none, "{exists}");
    }
    assert_eq!(told("my_group.ipop.", RecordType::A), none);
    for missing in ["vm9.my_group.ipop.", "a.vm2.my_group.ipop.", "group.ipop.", "laptop.social.ipop."] {
        assert_eq!(told(missing, RecordType::A), nothing, "{missing}");
    }
    // Addresses: of nobody, of a part of the subnet with and without somebody in it, and odd ones.
    assert_eq!(told("9.10.16.172.in-addr.arpa.", RecordType::PTR), nothing);
    assert_eq!(told("3.10.16.172.in-addr.arpa.", RecordType::A), none);
    assert_eq!(told("10.16.172.in-addr.arpa.", RecordType::PTR), none);
    assert_eq!(told("x.10.16.172.in-addr.arpa.", RecordType::PTR), nothing);
    assert_eq!(told("x.3.10.16.172.in-addr.arpa.", RecordType::PTR), nothing);
    assert_eq!(told("03.10.16.172.in-addr.arpa.", RecordType::PTR), nothing);
    let fd00 = "0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.";
    assert_eq!(told(&format!("0.{fd00}"), RecordType::PTR), none);
    assert_eq!(told(&format!("1.{fd00}"), RecordType::PTR), nothing);
    assert_eq!(told(&fd00[2..], RecordType::PTR), code(ResponseCode::Refused));
    assert_eq!(told(&format!("0.0.0.{fd00}"), RecordType::PTR), none, "there is something below");
    assert_eq!(told(&format!("7.0.0.{fd00}"), RecordType::PTR), nothing);
}

#[test]
fn what_is_none_of_our_business_is_refused() {
    let refused = code(ResponseCode::Refused);
    for name in [
        ".",
        "example.org.",
        "xipop.",
        "vm2.my_group.ipop.example.org.",
        "arpa.",
        "in-addr.arpa.",
        "16.172.in-addr.arpa.",
        "3.11.16.172.in-addr.arpa.",
        "8.0.0.d.f.ip6.arpa.",
        "1.16.31.172.in-addr.arpa.",
        "version.bind.",
    ] {
        for kind in [RecordType::A, RecordType::PTR, RecordType::SOA, RecordType::ANY] {
            assert_eq!(told(name, kind), refused, "{name} {kind}");
        }
    }
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        assert_eq!(ask("ipop.", kind).response_code, ResponseCode::Refused);
    }
    let mut chaos = query("vm2.my_group.ipop.", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(send(&chaos, OWN).response_code, ResponseCode::Refused);
}

#[test]
fn zones_have_a_start() {
    for zone in ["ipop.", "10.16.172.in-addr.arpa.", "0.31.172.in-addr.arpa."] {
        assert_eq!(told(zone, RecordType::NS), found(&["vm1.my_group.ipop."]));
        let reply = ask(zone, RecordType::SOA);
        let RData::SOA(soa) = &reply.answers[0].data else { panic!("{reply:?}") };
        assert_eq!((soa.serial, soa.minimum, soa.mname.to_ascii().as_str()), (77, TTL, "vm1.my_group.ipop."));
    }
    let negative = ask("nobody.my_group.ipop.", RecordType::A);
    assert_eq!(negative.authorities[0].name.to_ascii(), "ipop.");
    let negative = ask("9.10.16.172.in-addr.arpa.", RecordType::PTR);
    assert_eq!(negative.authorities[0].name.to_ascii(), "10.16.172.in-addr.arpa.");
    assert_eq!(told("vm2.my_group.ipop.", RecordType::NS), found(&[]));
}

#[test]
fn a_question_comes_back_as_it_was_written() {
    let reply = ask("Vm2.mY_gROUP.iPoP.", RecordType::A);
    assert_eq!(reply.answers[0].data.to_string(), "172.16.10.3");
    for name in [reply.queries[0].name(), &reply.answers[0].name] {
        assert!(name.eq_case(&Name::from_ascii("Vm2.mY_gROUP.iPoP.").expect("name")), "{name}");
    }
    assert_eq!(told("3.10.16.172.IN-addr.ARPA.", RecordType::PTR), found(&["vm2.my_group.ipop."]));
}

#[test]
fn any_is_answered_with_next_to_nothing() {
    for name in ["vm2.my_group.ipop.", "ipop.", "3.10.16.172.in-addr.arpa."] {
        let reply = ask(name, RecordType::ANY);
        let [one] = reply.answers.as_slice() else { panic!("{reply:?}") };
        assert!(one.record_type() == RecordType::HINFO && one.data.to_string().contains("RFC8482"), "{one:?}");
    }
    assert_eq!(told("nobody.ipop.", RecordType::ANY), code(ResponseCode::NXDomain));
}

#[test]
fn edns_is_spoken_with_those_who_speak_it() {
    let mut m = query("vm2.my_group.ipop.", RecordType::A);
    assert!(send(&m, OWN).edns.is_none());
    let mut edns = Edns::new();
    edns.set_max_payload(4096).set_dnssec_ok(true);
    m.set_edns(edns.clone());
    let reply = send(&m, OWN);
    let told = reply.edns.expect("EDNS");
    assert!(told.version() == 0 && told.max_payload() == 1232 && told.flags().dnssec_ok, "{told:?}");
    assert_eq!(reply.answers.len(), 1);
    edns.set_version(1);
    m.set_edns(edns);
    let reply = send(&m, OWN);
    // 16 is BADVERS here, and BADSIG elsewhere (RFC 6895, section 2.3).
    assert!(u16::from(reply.response_code) == 16 && reply.answers.is_empty(), "{reply:?}");
    assert_eq!(reply.edns.map(|e| e.version()), Some(0));
    // RFC 6891, section 6.1.1: more than one is an error.
    let mut bytes = m.to_vec().expect("encodes");
    let opt = bytes[bytes.len() - 11..].to_vec();
    bytes.extend(opt);
    bytes[11] = 2;
    let reply = Message::from_vec(&answer(&bytes, OWN, &table()).expect("an answer")).expect("decodes");
    assert_eq!(reply.response_code, ResponseCode::FormErr);
}

#[test]
fn what_does_not_fit_is_cut_over_udp_and_whole_over_tcp() {
    let mut m = query(&format!("{MANY}.my_group.ipop."), RecordType::AAAA);
    let size = |m: &Message, asker| answer(&m.to_vec().expect("encodes"), asker, &table()).expect("an answer").len();
    assert_eq!(send(&m, TCP).answers.len(), 16);
    let small = send(&m, OWN);
    assert!(small.truncation && small.answers.is_empty() && small.response_code == ResponseCode::NoError, "{small:?}");
    assert!(size(&m, TCP) > 512 && size(&m, OWN) <= 512);
    for (payload, cut) in [(0, true), (512, true), (1232, false), (65535, false)] {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        m.set_edns(edns);
        let reply = send(&m, OWN);
        assert_eq!((reply.truncation, reply.answers.is_empty()), (cut, cut), "{payload}");
        assert!(reply.edns.is_some());
    }
}

#[test]
fn what_is_no_query_is_told_so_or_passed_over() {
    let good = query("vm2.my_group.ipop.", RecordType::A).to_vec().expect("encodes");
    let code =
        |bytes: &[u8]| answer(bytes, OWN, &table()).map(|b| Message::from_vec(&b).expect("decodes").response_code);
    assert_eq!(code(&good), Some(ResponseCode::NoError));
    for end in 0..good.len() {
        let expected = if end < 12 { None } else { Some(ResponseCode::FormErr) };
        assert_eq!(code(&good[..end]), expected, "{end} bytes");
    }
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        code(&bytes)
    };
    assert_eq!(changed(2, 0x80), None, "answers are not answered: two servers would go on for ever");
    assert_eq!(changed(5, 0), Some(ResponseCode::FormErr), "no question");
    assert_eq!(changed(5, 2), Some(ResponseCode::FormErr), "two questions (RFC 9619)");
    assert_eq!(changed(7, 1), Some(ResponseCode::FormErr), "an answer in a query");
    assert_eq!(changed(10, 255), Some(ResponseCode::FormErr), "65,280 records more");
    assert_eq!(code(&[good.as_slice(), b"x"].concat()), Some(ResponseCode::FormErr), "more behind it");
    for op in [1, 2, 4, 5, 6, 15] {
        assert_eq!(changed(2, op << 3), Some(ResponseCode::NotImp), "{op}");
    }
}

#[test]
fn strangers_are_refused_whatever_they_ask() {
    let ask = |m: &Message| send(m, STRANGER);
    for (name, kind) in
        [("vm2.my_group.ipop.", RecordType::A), ("ipop.", RecordType::ANY), ("nobody.ipop.", RecordType::A)]
    {
        let reply = ask(&query(name, kind));
        assert_eq!(reply.response_code, ResponseCode::Refused);
        assert!(reply.answers.is_empty() && reply.authorities.is_empty() && !reply.authoritative, "{reply:?}");
    }
    let mut update = query("ipop.", RecordType::SOA);
    update.metadata.op_code = OpCode::Update;
    assert_eq!(ask(&update).response_code, ResponseCode::NotImp);
}

fn kinds() -> impl Strategy<Value = RecordType> {
    any::<u16>().prop_map(RecordType::from)
}

proptest! {
    #[test]
    fn every_address_is_found_by_its_name_and_every_name_by_its_address(i in 0usize..4) {
        let table = table();
        let named = &table.named()[i];
        for a in &named.entry.addresses {
            let kind = if a.is_ipv4() { RecordType::A } else { RecordType::AAAA };
            let mut m = query(&format!("{}.", named.name), kind);
            m.set_edns(Edns::new().set_max_payload(1232).clone());
            let told: Vec<IpAddr> = send(&m, OWN).answers.iter().filter_map(|r| r.data.ip_addr()).collect();
            prop_assert!(told.contains(a), "{told:?}");
            let back = ask(&Name::from(*a).to_ascii(), RecordType::PTR);
            prop_assert_eq!(back.answers[0].data.to_string(), format!("{}.", named.name));
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), own: bool, tcp: bool) {
        check(&bytes, own, tcp)?;
    }

    #[test]
    fn no_damage_to_a_query_makes_it_panic(
        kind in kinds(),
        name in prop_oneof![Just("vm2.my_group.ipop."), Just("3.10.16.172.in-addr.arpa."), Just("ipop."), Just(".")],
        edns: bool,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        tail in proptest::collection::vec(any::<u8>(), 0..40),
        own: bool,
        tcp: bool,
    ) {
        let mut m = query(name, kind);
        if edns {
            m.set_edns(Edns::new());
        }
        let mut bytes = m.to_vec().expect("encodes");
        for (at, to) in damage {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        bytes.extend(tail);
        check(&bytes, own, tcp)?;
    }
}

/// Whatever it says, it says to whoever asked, in well-formed messages of the right size.
fn check(bytes: &[u8], own: bool, tcp: bool) -> Result<(), TestCaseError> {
    prop_assert!(bytes.len() <= MAX_QUERY);
    let asker = Asker { own, transport: if tcp { Transport::Tcp } else { Transport::Udp } };
    let reply = answer(bytes, asker, &table());
    prop_assert_eq!(reply.is_none(), bytes.len() < 12 || bytes[2] & 0x80 != 0);
    if let Some(reply) = reply {
        prop_assert!(tcp || reply.len() <= 1232);
        let m = Message::from_vec(&reply).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert!(m.id.to_be_bytes() == bytes[..2] && m.message_type == MessageType::Response);
        prop_assert!(own || m.answers.is_empty());
    }
    Ok(())
}
