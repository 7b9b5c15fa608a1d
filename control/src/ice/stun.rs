//! STUN messages (RFC 8489) by the `stun-types` crate, as a view and a writer that know the attributes of ICE and TURN, too.

use std::net::SocketAddr;

use stun_types::attribute::{Attribute as _, AttributeType, ErrorCode, MappedSocketAddr, RawAttribute, XorSocketAddr};
use stun_types::message::{
    IntegrityAlgorithm, IntegrityKey, LongTermKeyCredentials, Message, MessageAttributesIter, MessageType,
    MessageWrite as _, MessageWriteExt as _, MessageWriteVec, Method, ShortTermCredentials, TransactionId,
};

/// RFC 8489, section 5.
const COOKIE: u32 = 0x2112_A442;
const HEADER: usize = 20;
/// More attributes than this are nobody's honest message.
const MAX_ATTRIBUTES: usize = 40;

/// Transaction id.
pub(crate) type Tid = [u8; 12];

/// Method numbers.
pub(crate) mod method {
    pub(crate) const BINDING: u16 = 1;
    pub(crate) const ALLOCATE: u16 = 3;
    pub(crate) const REFRESH: u16 = 4;
    pub(crate) const SEND: u16 = 6;
    pub(crate) const DATA: u16 = 7;
    pub(crate) const CREATE_PERMISSION: u16 = 8;
    pub(crate) const CHANNEL_BIND: u16 = 9;
}

/// Attribute numbers.
pub(crate) mod attr {
    pub(crate) const MAPPED_ADDRESS: u16 = 0x0001;
    pub(crate) const USERNAME: u16 = 0x0006;
    pub(crate) const CHANNEL_NUMBER: u16 = 0x000C;
    pub(crate) const LIFETIME: u16 = 0x000D;
    pub(crate) const XOR_PEER_ADDRESS: u16 = 0x0012;
    pub(crate) const DATA: u16 = 0x0013;
    pub(crate) const REALM: u16 = 0x0014;
    pub(crate) const NONCE: u16 = 0x0015;
    pub(crate) const XOR_RELAYED_ADDRESS: u16 = 0x0016;
    pub(crate) const REQUESTED_ADDRESS_FAMILY: u16 = 0x0017;
    pub(crate) const REQUESTED_TRANSPORT: u16 = 0x0019;
    pub(crate) const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    pub(crate) const PRIORITY: u16 = 0x0024;
    pub(crate) const USE_CANDIDATE: u16 = 0x0025;
}

pub(crate) use stun_types::message::MessageClass as Class;

/// Random bytes for ids, tie-breakers and passwords.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    #[allow(clippy::expect_used)]
    // Fails only where there is no getrandom(2): nothing that needs keys can go on there.
    getrandom::fill(&mut out).expect("the kernel gives random bytes");
    out
}

/// What messages are signed with.
#[derive(Clone)]
pub(crate) struct Key(IntegrityKey);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(...)")
    }
}

impl Key {
    /// Of a password alone: ICE checks.
    pub(crate) fn short(password: &str) -> Self {
        Self(ShortTermCredentials::new(password.to_owned()).make_key())
    }

    /// Of an account at a server: TURN.
    pub(crate) fn long(username: &str, realm: &str, password: &str) -> Self {
        let c = LongTermKeyCredentials::new(username.to_owned(), password.to_owned(), realm.to_owned());
        Self(c.make_key(IntegrityAlgorithm::Sha1))
    }
}

/// Whether the bytes claim to be STUN: what the data plane goes by, too.
pub(crate) fn looks_like_stun(bytes: &[u8]) -> bool {
    bytes.len() >= HEADER && bytes[0] < 0x40 && bytes[4..8] == COOKIE.to_be_bytes()
}

/// A well-formed message: every attribute lies inside, and the fingerprint is right if there is one.
#[derive(Clone)]
pub(crate) struct View<'a> {
    bytes: &'a [u8],
    message: Message<'a>,
}

impl<'a> View<'a> {
    /// `None` if the bytes are no STUN message.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        if !looks_like_stun(bytes) {
            return None;
        }
        let len = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        let message =
            Message::from_bytes(bytes).ok().filter(|_| len + HEADER == bytes.len() && len.is_multiple_of(4))?;
        (message.iter_attributes().take(MAX_ATTRIBUTES + 1).count() <= MAX_ATTRIBUTES)
            .then_some(Self { bytes, message })
    }

    pub(crate) const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub(crate) fn class(&self) -> Class {
        self.message.class()
    }

    pub(crate) fn method(&self) -> u16 {
        self.message.method().value()
    }

    pub(crate) fn tid(&self) -> Tid {
        let mut tid = [0; 12];
        tid.copy_from_slice(&self.bytes[8..HEADER]);
        tid
    }

    fn raw(&self, number: u16) -> Option<(usize, RawAttribute<'a>)> {
        MessageAttributesIter::new(self.bytes).find(|(_, a)| a.get_type() == AttributeType::new(number))
    }

    /// The first attribute of that number before MESSAGE-INTEGRITY.
    pub(crate) fn find(&self, number: u16) -> Option<&'a [u8]> {
        let (at, a) = self.raw(number)?;
        self.bytes.get(at + 4..at + 4 + usize::from(a.length()))
    }

    pub(crate) fn has(&self, number: u16) -> bool {
        self.raw(number).is_some()
    }

    pub(crate) fn u32(&self, number: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.find(number)?.try_into().ok()?))
    }

    pub(crate) fn text(&self, number: u16) -> Option<&'a str> {
        std::str::from_utf8(self.find(number)?).ok()
    }

    /// An address in its XOR form.
    pub(crate) fn xor_address(&self, number: u16) -> Option<SocketAddr> {
        let (_, raw) = self.raw(number)?;
        XorSocketAddr::from_raw(&raw).ok().map(|a| a.addr(self.message.transaction_id()))
    }

    /// All addresses in XOR-PEER-ADDRESS: a request may name several.
    #[cfg(test)]
    pub(crate) fn peers(&self) -> Vec<std::net::IpAddr> {
        let peers = self.message.iter_attributes().filter(|(_, a)| a.get_type().value() == attr::XOR_PEER_ADDRESS);
        let address = |a: &RawAttribute<'_>| XorSocketAddr::from_raw(a).ok();
        peers.filter_map(|(_, a)| address(&a)).map(|a| a.addr(self.message.transaction_id()).ip()).collect()
    }

    /// How the other side sees us; servers older than RFC 5389 do not XOR.
    pub(crate) fn mapped(&self) -> Option<SocketAddr> {
        self.xor_address(attr::XOR_MAPPED_ADDRESS)
            .or_else(|| {
                let (_, raw) = self.raw(attr::MAPPED_ADDRESS)?;
                MappedSocketAddr::from_raw(&raw).ok().map(|a| a.addr())
            })
            .map(dataplane::path::canonical)
    }

    /// Number and phrase of an error response.
    pub(crate) fn error(&self) -> Option<(u16, String)> {
        let e = self.message.attribute::<ErrorCode>().ok()?;
        Some((e.code(), e.reason().to_owned()))
    }

    /// Whether it is signed, with that key.
    pub(crate) fn signed_by(&self, key: &Key) -> bool {
        self.message.validate_integrity_with_key(&key.0).is_ok()
    }
}

/// Writes one message.
#[derive(Debug)]
pub(crate) struct Writer {
    tid: TransactionId,
    message: MessageWriteVec,
}

impl Writer {
    pub(crate) fn new(class: Class, method: u16, tid: &Tid) -> Self {
        let mut id = [0; 16];
        id[4..].copy_from_slice(tid);
        let tid = TransactionId::from(u128::from_be_bytes(id));
        let kind = MessageType::from_class_method(class, Method::new(method));
        Self { tid, message: Message::builder(kind, tid, MessageWriteVec::with_capacity(160)) }
    }

    /// Values longer than a datagram are cut by nobody: all are ours or were in a datagram.
    pub(crate) fn attr(mut self, number: u16, value: &[u8]) -> Self {
        self.message.push_attribute_unchecked(&RawAttribute::new(AttributeType::new(number), value));
        self
    }

    pub(crate) fn u32(self, number: u16, value: u32) -> Self {
        self.attr(number, &value.to_be_bytes())
    }

    pub(crate) fn xor_address(mut self, number: u16, a: SocketAddr) -> Self {
        let a = XorSocketAddr::new(a, self.tid);
        self.message.push_attribute_unchecked(&a.to_raw(AttributeType::new(number)));
        self
    }

    #[cfg(test)]
    pub(crate) fn error(mut self, code: u16, phrase: &str) -> Self {
        let e = ErrorCode::new(code, phrase).expect("a code of an error");
        self.message.push_attribute_unchecked(&e);
        self
    }

    pub(crate) fn sign(mut self, key: &Key) -> Self {
        // Fails only if there is a signature already; a message without would only be ignored by its receiver.
        let _ = self.message.add_message_integrity_with_key(&key.0, IntegrityAlgorithm::Sha1);
        self
    }

    pub(crate) fn fingerprint(mut self) -> Self {
        // Fails only if there is one already.
        let _ = self.message.add_fingerprint();
        self
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.message.finish()
    }
}
