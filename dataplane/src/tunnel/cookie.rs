//! Cookies: under load a sender has to show first that it receives what is sent to its address
//! (WireGuard paper, section 5.4.7).

use super::limits::COOKIE_LIFETIME;
use super::mac::{MAC_LEN, Mac, labelled, mac, mac1_of, verify_mac2};
use super::message::Message;
use super::{PublicKey, Rng};
use crate::{Path, Time};
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305};
use ipop_ebpf::COOKIE_REPLY_LEN;
use std::net::IpAddr;
use zeroize::Zeroizing;

const NONCE: std::ops::Range<usize> = 8..32;
const COOKIE: std::ops::Range<usize> = 32..48;
const TAG: std::ops::Range<usize> = 48..64;

/// The key under which cookies of the owner of `key` travel.
pub(super) fn cookie_key(key: &PublicKey) -> [u8; 32] {
    labelled(b"cookie--", key)
}

/// Makes and checks our cookies.
pub(super) struct CookieJar {
    /// Sources' addresses are hashed under it; it is replaced every [`COOKIE_LIFETIME`].
    secret: Option<(Zeroizing<[u8; 32]>, Time)>,
    cipher: XChaCha20Poly1305,
}

impl CookieJar {
    pub(super) fn new(own: &PublicKey) -> Self {
        Self { secret: None, cipher: XChaCha20Poly1305::new(&cookie_key(own).into()) }
    }

    /// Whether `message` has a MAC2 with a cookie that we made for `from` and that still counts.
    pub(super) fn verify(&self, now: Time, from: &Path, message: &[u8]) -> bool {
        match &self.secret {
            Some((secret, made)) if now.since(*made) < COOKIE_LIFETIME => {
                verify_mac2(message, &cookie_for(secret, from))
            }
            _ => false,
        }
    }

    /// The cookie reply to `message`, or `None` if it is no handshake message.
    pub(super) fn reply(&mut self, now: Time, from: &Path, message: &[u8], rng: &mut dyn Rng) -> Option<Message> {
        let mac1 = mac1_of(message)?;
        if self.secret.as_ref().is_none_or(|(_, made)| now.since(*made) >= COOKIE_LIFETIME) {
            let mut secret = Zeroizing::new([0; 32]);
            rng.fill(&mut *secret);
            self.secret = Some((secret, now));
        }
        let (secret, _) = self.secret.as_ref()?;
        let mut nonce = [0u8; 24];
        rng.fill(&mut nonce);
        let mut cookie = cookie_for(secret, from);
        let tag = self.cipher.encrypt_inout_detached(&nonce.into(), &mac1, (&mut cookie[..]).into()).ok()?;

        let mut out = [0u8; COOKIE_REPLY_LEN];
        out[0] = 3;
        out[4..8].copy_from_slice(message.get(4..8)?);
        out[NONCE].copy_from_slice(&nonce);
        out[COOKIE].copy_from_slice(&cookie);
        out[TAG].copy_from_slice(&tag);
        Some(Message::new(&out))
    }
}

/// Opens a cookie reply from the owner of `key` to the message of ours whose MAC1 was `mac1`.
pub(super) fn open(key: &[u8; 32], mac1: &Mac, reply: &[u8]) -> Option<Mac> {
    let nonce: [u8; 24] = reply.get(NONCE)?.try_into().ok()?;
    let mut cookie: Mac = reply.get(COOKIE)?.try_into().ok()?;
    let tag: [u8; 16] = reply.get(TAG)?.try_into().ok()?;
    let cipher = XChaCha20Poly1305::new(key.into());
    cipher.decrypt_inout_detached(&nonce.into(), mac1, (&mut cookie[..]).into(), &Tag::from(tag)).ok()?;
    Some(cookie)
}

/// The MAC over a source: address, port, and the relay channel if any.
fn cookie_for(secret: &[u8; 32], from: &Path) -> Mac {
    let (address, channel) = match from {
        Path::Direct(a) => (a, 0),
        Path::Relay { server, channel } => (server, *channel),
    };
    let mut source = [0u8; MAC_LEN + 4];
    match address.ip() {
        IpAddr::V4(ip) => source[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => source[..16].copy_from_slice(&ip.octets()),
    }
    source[16..18].copy_from_slice(&address.port().to_be_bytes());
    source[18..].copy_from_slice(&channel.to_be_bytes());
    mac(secret, &source)
}
