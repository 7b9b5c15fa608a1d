//! A group's secret as preshared keys: the XMPP server, which could hand out wrong public keys, never sees it.

use dataplane::tunnel::{PresharedKey, PublicKey};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroize;

const LABEL: &[u8] = b"ipop-fast preshared key v1";

/// The preshared key of two nodes: HMAC-SHA256 (RFC 2104) under the group's secret over a label, the network's name with
/// its length, and both public keys, the smaller first; so both sides get the same.
#[must_use]
pub fn psk(secret: &[u8], network: &str, a: &PublicKey, b: &PublicKey) -> PresharedKey {
    let mut mac = match Hmac::<Sha256>::new_from_slice(secret) {
        Ok(mac) => mac,
        Err(_) => unreachable!("HMAC takes keys of every length"),
    };
    mac.update(LABEL);
    mac.update(&u64::try_from(network.len()).unwrap_or(u64::MAX).to_be_bytes());
    mac.update(network.as_bytes());
    mac.update(&a.min(b).0);
    mac.update(&a.max(b).0);
    let mut bytes: [u8; 32] = mac.finalize().into_bytes().into();
    let key = PresharedKey(bytes);
    bytes.zeroize();
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_sides_get_the_same_key_and_nobody_else_does(
            secret in proptest::collection::vec(any::<u8>(), 0..80), a: [u8; 32], b: [u8; 32], c: [u8; 32]
        ) {
            prop_assume!(a != b && b != c && a != c);
            let key = |s: &[u8], n: &str, x, y| psk(s, n, &PublicKey(x), &PublicKey(y));
            let ours = key(&secret, "group:g", a, b);
            prop_assert!(ours == key(&secret, "group:g", b, a));
            prop_assert!(ours != key(&secret, "group:g", a, c));
            prop_assert!(ours != key(&secret, "group:h", a, b));
            // HMAC pads a short secret with zeros (RFC 2104, section 2): another byte has to be another one.
            let other = [secret.as_slice(), &[1]].concat();
            prop_assert!(ours != key(&other, "group:g", a, b));
        }
    }
}
