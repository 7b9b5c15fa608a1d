//! STUN messages (RFC 8489) as a checked view and a writer, with the attributes that ICE and TURN add.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use stun_types::attribute::{Fingerprint, MessageIntegrity};
use stun_types::message::{IntegrityAlgorithm, IntegrityKey, LongTermKeyCredentials, ShortTermCredentials};

/// RFC 8489, section 5.
const COOKIE: u32 = 0x2112_A442;
const HEADER: usize = 20;
/// MESSAGE-INTEGRITY with its header.
const INTEGRITY: usize = 24;
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
    pub(crate) const MESSAGE_INTEGRITY: u16 = 0x0008;
    pub(crate) const ERROR_CODE: u16 = 0x0009;
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
    pub(crate) const FINGERPRINT: u16 = 0x8028;
    pub(crate) const ICE_CONTROLLED: u16 = 0x8029;
    pub(crate) const ICE_CONTROLLING: u16 = 0x802A;
}

/// What kind of message (RFC 8489, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Request,
    Indication,
    Success,
    Error,
}

impl Class {
    const fn bits(self) -> u16 {
        match self {
            Self::Request => 0x000,
            Self::Indication => 0x010,
            Self::Success => 0x100,
            Self::Error => 0x110,
        }
    }
}

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

/// A well-formed message: every attribute lies inside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    bytes: &'a [u8],
    /// Where MESSAGE-INTEGRITY begins. What follows it is not signed and is not looked at.
    integrity: Option<usize>,
}

impl<'a> View<'a> {
    /// `None` if the bytes are no STUN message.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        if !looks_like_stun(bytes)
            || usize::from(be16(bytes, 2)) + HEADER != bytes.len()
            || !bytes.len().is_multiple_of(4)
        {
            return None;
        }
        let mut integrity = None;
        let mut at = HEADER;
        for _ in 0..MAX_ATTRIBUTES {
            if at == bytes.len() {
                return Some(Self { bytes, integrity });
            }
            let header = bytes.get(at..at + 4)?;
            let len = usize::from(be16(header, 2));
            if be16(header, 0) == attr::MESSAGE_INTEGRITY && integrity.is_none() {
                if len != INTEGRITY - 4 {
                    return None;
                }
                integrity = Some(at);
            }
            at += 4 + len.next_multiple_of(4);
            if at > bytes.len() {
                return None;
            }
        }
        None
    }

    pub(crate) fn class(&self) -> Class {
        match be16(self.bytes, 0) & 0x110 {
            0x000 => Class::Request,
            0x010 => Class::Indication,
            0x100 => Class::Success,
            _ => Class::Error,
        }
    }

    pub(crate) fn method(&self) -> u16 {
        let t = be16(self.bytes, 0);
        (t & 0x000f) | ((t & 0x00e0) >> 1) | ((t & 0x3e00) >> 2)
    }

    pub(crate) fn tid(&self) -> Tid {
        let mut tid = [0; 12];
        tid.copy_from_slice(&self.bytes[8..HEADER]);
        tid
    }

    /// The first attribute of that number before MESSAGE-INTEGRITY.
    pub(crate) fn find(&self, number: u16) -> Option<&'a [u8]> {
        let end = self.integrity.unwrap_or(self.bytes.len());
        let mut at = HEADER;
        while at < end {
            let len = usize::from(be16(self.bytes, at + 2));
            if be16(self.bytes, at) == number {
                return self.bytes.get(at + 4..at + 4 + len);
            }
            at += 4 + len.next_multiple_of(4);
        }
        None
    }

    pub(crate) fn has(&self, number: u16) -> bool {
        self.find(number).is_some()
    }

    pub(crate) fn u32(&self, number: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.find(number)?.try_into().ok()?))
    }

    pub(crate) fn u64(&self, number: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.find(number)?.try_into().ok()?))
    }

    pub(crate) fn text(&self, number: u16) -> Option<&'a str> {
        std::str::from_utf8(self.find(number)?).ok()
    }

    /// An address in its XOR form.
    pub(crate) fn xor_address(&self, number: u16) -> Option<SocketAddr> {
        address(self.find(number)?).map(|a| xor(a, &self.tid()))
    }

    /// How the other side sees us; servers older than RFC 5389 do not XOR.
    pub(crate) fn mapped(&self) -> Option<SocketAddr> {
        self.xor_address(attr::XOR_MAPPED_ADDRESS)
            .or_else(|| address(self.find(attr::MAPPED_ADDRESS)?))
            .map(dataplane::path::canonical)
    }

    /// Number and phrase of an error response.
    pub(crate) fn error(&self) -> Option<(u16, &'a str)> {
        let v = self.find(attr::ERROR_CODE)?;
        let head = v.get(..4)?;
        let code = u16::from(head[2] & 7) * 100 + u16::from(head[3] % 100);
        Some((code, std::str::from_utf8(&v[4..]).unwrap_or_default()))
    }

    /// Whether it is signed, with that key.
    pub(crate) fn signed_by(&self, key: &Key) -> bool {
        let Some(at) = self.integrity else { return false };
        let Ok(expected) = <[u8; 20]>::try_from(&self.bytes[at + 4..at + INTEGRITY]) else { return false };
        // The length that was signed ends with MESSAGE-INTEGRITY (RFC 8489, section 14.5).
        let len = (at + INTEGRITY - HEADER) as u16;
        let parts = [&self.bytes[..2], &len.to_be_bytes(), &self.bytes[4..at]];
        // stun-types wants the parts as a stream; it hashes them one after the other.
        MessageIntegrity::verify(&parts, &key.0, &expected)
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn address(v: &[u8]) -> Option<SocketAddr> {
    let port = be16(v.get(..4)?, 2);
    let ip = match (v[1], v.len()) {
        (1, 8) => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(&v[4..]).ok()?)),
        (2, 20) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&v[4..]).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Its own inverse (RFC 8489, section 14.2).
fn xor(a: SocketAddr, tid: &Tid) -> SocketAddr {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&COOKIE.to_be_bytes());
    mask[4..].copy_from_slice(tid);
    let ip = match a.ip() {
        IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() ^ COOKIE).into()),
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() ^ u128::from_be_bytes(mask)).into()),
    };
    SocketAddr::new(ip, a.port() ^ (COOKIE >> 16) as u16)
}

/// Writes one message.
#[derive(Debug)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(class: Class, method: u16, tid: &Tid) -> Self {
        let t = (method & 0xf) | ((method & 0x70) << 1) | ((method & 0xf80) << 2) | class.bits();
        let mut bytes = Vec::with_capacity(160);
        bytes.extend_from_slice(&t.to_be_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&COOKIE.to_be_bytes());
        bytes.extend_from_slice(tid);
        Self { bytes }
    }

    /// Values longer than a datagram are cut by nobody: all are ours or were in a datagram.
    pub(crate) fn attr(mut self, number: u16, value: &[u8]) -> Self {
        self.bytes.extend_from_slice(&number.to_be_bytes());
        self.bytes.extend_from_slice(&(value.len() as u16).to_be_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn u32(self, number: u16, value: u32) -> Self {
        self.attr(number, &value.to_be_bytes())
    }

    pub(crate) fn u64(self, number: u16, value: u64) -> Self {
        self.attr(number, &value.to_be_bytes())
    }

    pub(crate) fn xor_address(self, number: u16, a: SocketAddr) -> Self {
        let mut tid = [0; 12];
        tid.copy_from_slice(&self.bytes[8..HEADER]);
        let a = xor(a, &tid);
        let mut v = vec![0, if a.is_ipv4() { 1 } else { 2 }];
        v.extend_from_slice(&a.port().to_be_bytes());
        match a.ip() {
            IpAddr::V4(ip) => v.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => v.extend_from_slice(&ip.octets()),
        }
        self.attr(number, &v)
    }

    pub(crate) fn error(self, code: u16, phrase: &str) -> Self {
        let mut v = vec![0, 0, (code / 100) as u8, (code % 100) as u8];
        v.extend_from_slice(phrase.as_bytes());
        self.attr(attr::ERROR_CODE, &v)
    }

    pub(crate) fn sign(mut self, key: &Key) -> Self {
        self.set_len(INTEGRITY);
        // Cannot fail with this version of stun-types; an unsigned message would only be ignored by its receiver.
        let hmac = MessageIntegrity::compute(&[&self.bytes[..]], &key.0).unwrap_or_default();
        self.attr(attr::MESSAGE_INTEGRITY, &hmac)
    }

    pub(crate) fn fingerprint(mut self) -> Self {
        self.set_len(8);
        let crc = u32::from_be_bytes(Fingerprint::compute(&[&self.bytes[..]])) ^ 0x5354_554e;
        self.u32(attr::FINGERPRINT, crc)
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.set_len(0);
        self.bytes
    }

    fn set_len(&mut self, more: usize) {
        let len = (self.bytes.len() - HEADER + more) as u16;
        self.bytes[2..4].copy_from_slice(&len.to_be_bytes());
    }
}
