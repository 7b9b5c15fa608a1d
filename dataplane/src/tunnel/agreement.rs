//! How the two ends of a handshake agree on a cipher, in messages that any WireGuard implementation takes.
//!
//! The initiator says with its timestamp whether it would take AES-256-GCM ([`super::timestamp::wants_aes`]), the
//! responder decides, and its own receiver index tells: its random bits are a hash of the initiation if and only if it
//! takes it. What an end said in this handshake counts, not what it is told meanwhile, so both always come to one answer.
//!
//! Nobody in between chooses: the timestamp is authenticated and encrypted by Noise. The index is not, but it is what
//! data is sent to: changing it alone makes the two ends differ, so that no packet is ever authentic. Whoever can do
//! that can as well drop the datagrams; neither cipher can be forced on both ends, and none is weaker than WireGuard's.
//!
//! A peer that knows nothing of this is recognised by its timestamp when it initiates. When it responds, its random
//! index is our hash once in 2^14: such a session carries nothing, and the handshake that follows after
//! [`limits::UNANSWERED_TIMEOUT`](super::limits::UNANSWERED_TIMEOUT) replaces it. That can happen only if a peer is
//! taken for willing that is not, as where AES-256-GCM is forced at one end.

use super::mac::MAC_LEN;
use super::sessions::RANDOM_BITS;
use blake2::Blake2s256;
use blake2::digest::{FixedOutput, Update};

const LABEL: &[u8] = b"ipop-fast AES-256-GCM v1 index";

// Which bits are random follows from our limit of sessions, and both ends have to mean the same ones: others are another
// protocol, with another label.
const _: () = assert!(RANDOM_BITS == 0xfffc_0000, "these bits are part of the protocol");

/// The random bits of the index with which an initiation is answered if the session is to have AES-256-GCM. As hard to
/// guess as any for whoever has not seen the initiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sign(u32);

impl Sign {
    /// Of an initiation, with or without its MACs.
    pub(super) fn of(initiation: &[u8]) -> Self {
        let covered = initiation.len().saturating_sub(2 * MAC_LEN);
        let mut h = Blake2s256::default();
        h.update(LABEL);
        h.update(&initiation[..covered]);
        let hash: [u8; 32] = h.finalize_fixed().into();
        let [a, b, c, d, ..] = hash;
        Self(u32::from_le_bytes([a, b, c, d]) & RANDOM_BITS)
    }

    /// The random bits for our index: this sign, or anything else.
    pub(super) const fn index(self, random: u32, aes: bool) -> u32 {
        if aes {
            self.0
        } else if random & RANDOM_BITS == self.0 {
            !random
        } else {
            random
        }
    }

    /// Whether the responder's index says AES-256-GCM.
    pub(super) const fn is_in(self, index: u32) -> bool {
        index & RANDOM_BITS == self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_is_the_same_in_every_version() {
        // BLAKE2s-256(label || the first 116 bytes), its first 32 bits in little endian, by Python's hashlib.
        let message: [u8; 148] = std::array::from_fn(|i| i as u8);
        assert_eq!(Sign::of(&message), Sign(0xcf84_0000));
    }

    #[test]
    fn an_index_says_what_was_decided_whatever_is_random() {
        for n in 0..200u8 {
            let mut message = [n; 148];
            let sign = Sign::of(&message);
            for random in [0, u32::MAX, sign.0, sign.0 | !RANDOM_BITS, u32::from(n) << 20] {
                assert!(sign.is_in(sign.index(random, true)) && !sign.is_in(sign.index(random, false)));
            }
            message[116..].fill(0xff);
            assert_eq!(Sign::of(&message), sign, "MACs come later");
            message[115] ^= 1;
            assert_ne!(Sign::of(&message), sign, "all before them counts");
        }
        let all: std::collections::HashSet<u32> = (0..200u8).map(|n| Sign::of(&[n; 148]).0).collect();
        assert!(all.len() > 180, "signs differ from handshake to handshake");
    }
}
