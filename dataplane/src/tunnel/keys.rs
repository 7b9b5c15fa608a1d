//! Curve25519 keys and preshared keys. Secrets are zeroized when dropped and never shown by `Debug`.

use std::fmt;
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A Curve25519 public key: the identity of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// The first four bytes in hexadecimal: enough to tell peers apart in a log.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for b in &self.0[..4] {
            write!(f, "{b:02x}")?;
        }
        f.write_str("…")
    }
}

/// A Curve25519 private key, clamped (RFC 7748 section 5).
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; 32]);

impl PrivateKey {
    /// Clamps `bytes` into a private key.
    #[must_use]
    pub fn new(mut bytes: [u8; 32]) -> Self {
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        let key = Self(bytes);
        bytes.zeroize();
        key
    }

    /// The public key that belongs to it.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(*x25519_dalek::PublicKey::from(&StaticSecret::from(self.0)).as_bytes())
    }

    /// The raw bytes: for the configuration protocol, which reports them, and for the handshake.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

/// A key that both sides know beforehand, mixed into every handshake; all zeros means none
/// (WireGuard paper, section 5.2).
#[derive(Clone, Default, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey(pub [u8; 32]);

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_key_matches_the_wg_tool_and_secrets_are_not_shown() {
        let hex = |s: &str| -> [u8; 32] {
            std::array::from_fn(|i| u8::from_str_radix(&s[2 * i..2 * i + 2], 16).expect("hex"))
        };
        let private = PrivateKey::new(hex("f88cb45a1a7ac93e4dc2d91fac239dc738b73172be4c1992681016cf6799544f"));
        let public = hex("f6d6be2da1e9a978e015379e9db492650ad54d1c12c7469edc9ff75c62ec567f");
        assert_eq!(private.public(), PublicKey(public));
        assert_eq!(PrivateKey::new([0xff; 32]).bytes()[0], 0xf8);
        assert_eq!(PrivateKey::new([0xff; 32]).bytes()[31], 0x7f);
        assert_eq!(format!("{private:?} {:?}", PresharedKey([7; 32])), "PrivateKey(…) PresharedKey(…)");
    }
}
