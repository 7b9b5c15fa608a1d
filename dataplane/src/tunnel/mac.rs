//! The MACs at the end of handshake messages (WireGuard paper, section 5.4.4). A handshake message ends in
//! MAC1 (proof that the sender knows whom it talks to) and MAC2 (proof that it owns its address, asked for
//! under load).

use super::PublicKey;
use blake2::digest::consts::{U16, U32};
use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s, Blake2sMac};
use std::fmt;
use subtle::ConstantTimeEq;

/// Length of a MAC and of a cookie in bytes.
pub(super) const MAC_LEN: usize = 16;

/// A MAC, or a cookie: the MAC over somebody's address.
pub(super) type Mac = [u8; MAC_LEN];

/// BLAKE2s over a label and a public key.
pub(super) fn labelled(label: &[u8; 8], key: &PublicKey) -> [u8; 32] {
    let mut h = Blake2s::<U32>::default();
    Update::update(&mut h, label);
    Update::update(&mut h, &key.0);
    h.finalize_fixed().into()
}

/// BLAKE2s with a 16-byte result, keyed by at most 32 bytes.
pub(super) fn mac(key: &[u8], message: &[u8]) -> Mac {
    match Blake2sMac::<U16>::new_from_slice(key) {
        Ok(m) => m.chain(message).finalize_fixed().into(),
        // Only for keys above 32 bytes, which nobody here has. A constant no peer would accept.
        Err(_) => [0; MAC_LEN],
    }
}

/// Where MAC1 starts in a handshake message.
fn mac1_at(message: &[u8]) -> Option<usize> {
    message.len().checked_sub(2 * MAC_LEN)
}

/// The MAC1 of a handshake message; `None` if it is too short for one.
pub(super) fn mac1_of(message: &[u8]) -> Option<Mac> {
    message.get(mac1_at(message)?..)?.first_chunk().copied()
}

/// Checks the MAC1 of what is sent to us, so that what was not meant for us costs one hash only. Any thread
/// may.
#[derive(Clone)]
pub struct MacVerifier {
    key: [u8; 32],
}

impl MacVerifier {
    /// For messages to the owner of `own`.
    #[must_use]
    pub fn new(own: &PublicKey) -> Self {
        Self { key: labelled(b"mac1----", own) }
    }

    /// The key of MAC1, which whoever knows the owner's public key can make.
    #[must_use]
    pub const fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// Whether the handshake message (148 or 92 bytes) was made by someone who knows our public key.
    #[must_use]
    pub fn verify_mac1(&self, message: &[u8]) -> bool {
        let Some(at) = mac1_at(message) else { return false };
        let (covered, rest) = message.split_at(at);
        mac(&self.key, covered).ct_eq(&rest[..MAC_LEN]).into()
    }

    /// Sets MAC1 and MAC2 of a message to the owner of the key. Without a cookie MAC2 is zero.
    pub(super) fn seal(&self, message: &mut [u8], cookie: Option<&Mac>) {
        let Some(at) = mac1_at(message) else { return };
        let mac1 = mac(&self.key, &message[..at]);
        message[at..at + MAC_LEN].copy_from_slice(&mac1);
        let mac2 = cookie.map_or([0; MAC_LEN], |c| mac(c, &message[..at + MAC_LEN]));
        message[at + MAC_LEN..].copy_from_slice(&mac2);
    }
}

impl fmt::Debug for MacVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacVerifier")
    }
}

/// Whether the MAC2 of `message` was made with `cookie`.
pub(super) fn verify_mac2(message: &[u8], cookie: &Mac) -> bool {
    let Some((covered, mac2)) = message.split_last_chunk::<MAC_LEN>() else { return false };
    mac(cookie, covered).ct_eq(mac2).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_cover_every_byte_and_short_messages_are_refused() {
        let v = MacVerifier::new(&PublicKey([3; 32]));
        let mut m = vec![7u8; 148];
        v.seal(&mut m, Some(&[9; 16]));
        assert!(v.verify_mac1(&m) && verify_mac2(&m, &[9; 16]));
        for i in 0..132 {
            m[i] ^= 1;
            assert!(!v.verify_mac1(&m), "byte {i}");
            m[i] ^= 1;
        }
        for i in 0..148 {
            m[i] ^= 0x80;
            assert!(!verify_mac2(&m, &[9; 16]), "byte {i}");
            m[i] ^= 0x80;
        }
        assert!(!MacVerifier::new(&PublicKey([4; 32])).verify_mac1(&m));
        for len in 0..32 {
            assert!(!v.verify_mac1(&m[..len]));
        }
        assert!(!verify_mac2(&m[..15], &[9; 16]));
        v.seal(&mut m[..31], None);
    }

    /// The kernel programs have a BLAKE2s of their own.
    #[test]
    fn mac1_in_the_kernel_is_the_same() {
        use ipop_ebpf::blake2s;
        for n in 0..64u8 {
            let v = MacVerifier::new(&PublicKey([n; 32]));
            for (len, blocks) in [(116, 2), (60, 1)] {
                let message: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(n | 1) ^ n).collect();
                let mut state = blake2s::keyed(v.key());
                let mut words = message.chunks_exact(4).map(|w| u32::from_le_bytes(w.try_into().expect("four bytes")));
                for at in 1..=blocks {
                    let block = std::array::from_fn(|_| words.next().unwrap_or(0));
                    let so_far = 64 + len.min(64 * at) as u32;
                    let change = blake2s::compress(&state, &block, so_far, at == blocks);
                    state.iter_mut().zip(change).for_each(|(s, c)| *s ^= c);
                }
                let sum: Vec<u8> = state[..4].iter().flat_map(|w| w.to_le_bytes()).collect();
                assert_eq!(sum, mac(v.key(), &message));
            }
        }
    }

    #[test]
    fn the_keyed_hash_is_that_of_the_blake2_test_vectors() {
        // BLAKE2s-256 of "abc" (RFC 7693 appendix B).
        let mut h = Blake2s::<U32>::default();
        Update::update(&mut h, b"abc");
        let sum: [u8; 32] = h.finalize_fixed().into();
        assert_eq!(sum[..8], [0x50, 0x8c, 0x5e, 0x8c, 0x32, 0x7c, 0x14, 0xe2]);
        // The length of key and result are part of the hash: 16 bytes are no prefix of 32.
        assert_ne!(mac(&[0; 32], b""), mac(&[0; 16], b""));
    }
}
