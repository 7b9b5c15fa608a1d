//! The handshake itself: Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s (WireGuard paper, sections 5.4.1 to 5.4.5),
//! computed by `snow`.

mod resolver;
#[cfg(test)]
mod tests;

use super::mac::MAC_LEN;
use super::message::index_at;
use super::timestamp::{TIMESTAMP_LEN, Timestamp};
use super::{PresharedKey, PrivateKey, PublicKey};
use crate::crypto::RawKey;
use ipop_ebpf::{INITIATION_LEN, RESPONSE_LEN};
use resolver::Primitives;
use snow::params::NoiseParams;
use snow::{Builder, HandshakeState};
use std::ops::Range;
use zeroize::{Zeroize, Zeroizing};

const CONSTRUCTION: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
const PSK_POSITION: usize = 2;

/// The Noise part of an initiation: ephemeral, static and timestamp, the latter two with a tag.
const INITIATION_NOISE: Range<usize> = 8..INITIATION_LEN - 2 * MAC_LEN;
/// The Noise part of a response: ephemeral and a tag.
const RESPONSE_NOISE: Range<usize> = 12..RESPONSE_LEN - 2 * MAC_LEN;

/// 32 random bytes: all that one side of a handshake needs.
pub(super) type Entropy = Zeroizing<[u8; 32]>;

/// Our own keys.
pub(super) struct Identity {
    pub(super) private: PrivateKey,
    pub(super) public: PublicKey,
}

/// The transport keys as a handshake yields them.
pub(super) struct RawKeys {
    pub(super) send: RawKey,
    pub(super) recv: RawKey,
}

impl Identity {
    pub(super) fn new(private: PrivateKey) -> Self {
        Self { public: private.public(), private }
    }

    fn builder(&self, entropy: Entropy) -> Option<Builder<'_>> {
        let params: NoiseParams = CONSTRUCTION.parse().ok()?;
        let builder = Builder::with_resolver(params, Box::new(Primitives::new(self.public, entropy)));
        builder.prologue(IDENTIFIER).ok()?.local_private_key(self.private.bytes()).ok()
    }
}

/// A handshake that we started and that waits for its response.
pub(super) struct Initiator {
    // Boxed: a state that is not moved leaves no copies of its keys behind.
    noise: Box<HandshakeState>,
}

impl Initiator {
    /// Starts a handshake. The message still lacks its MACs. `None` if the peer's key is a degenerate point.
    pub(super) fn start(
        us: &Identity,
        peer: &PublicKey,
        local_index: u32,
        timestamp: &Timestamp,
        entropy: Entropy,
    ) -> Option<(Self, [u8; INITIATION_LEN])> {
        let builder = us.builder(entropy)?;
        let mut noise = Box::new(builder.remote_public_key(&peer.0).ok()?.build_initiator().ok()?);
        let mut out = [0; INITIATION_LEN];
        out[0] = 1;
        out[4..8].copy_from_slice(&local_index.to_le_bytes());
        noise.write_message(timestamp, &mut out[INITIATION_NOISE]).ok()?;
        Some((Self { noise }, out))
    }

    /// Reads the response. `None` if it is forged or the preshared keys differ: then the handshake goes on
    /// waiting as if nothing had come.
    pub(super) fn finish(&mut self, psk: &PresharedKey, response: &[u8]) -> Option<RawKeys> {
        self.noise.set_psk(PSK_POSITION, &psk.0).ok()?;
        let read = self.noise.read_message(response.get(RESPONSE_NOISE)?, &mut []);
        let wiped = self.noise.set_psk(PSK_POSITION, &[0; 32]);
        (read.ok()? == 0 && wiped.is_ok() && self.noise.is_handshake_finished()).then_some(())?;
        let [send, recv] = split(&mut self.noise);
        Some(RawKeys { send, recv })
    }
}

/// An initiation that was read: all of it is authentic.
pub(super) struct Initiation {
    noise: Box<HandshakeState>,
    pub(super) peer: PublicKey,
    pub(super) remote_index: u32,
    pub(super) timestamp: Timestamp,
}

impl Initiation {
    /// Reads an initiation to us. `None` if its sender does not own the static key inside, or if it was
    /// damaged.
    pub(super) fn read(us: &Identity, message: &[u8], entropy: Entropy) -> Option<Self> {
        let builder = us.builder(entropy)?;
        let mut noise = Box::new(builder.build_responder().ok()?);
        let mut timestamp = [0; TIMESTAMP_LEN];
        let len = noise.read_message(message.get(INITIATION_NOISE)?, &mut timestamp).ok()?;
        let peer = PublicKey(noise.get_remote_static()?.try_into().ok()?);
        let remote_index = index_at(message, 4)?;
        (len == TIMESTAMP_LEN).then_some(Self { noise, peer, remote_index, timestamp })
    }

    /// Makes the response, still without its MACs.
    pub(super) fn respond(mut self, psk: &PresharedKey, local_index: u32) -> Option<([u8; RESPONSE_LEN], RawKeys)> {
        let mut out = [0; RESPONSE_LEN];
        out[0] = 2;
        out[4..8].copy_from_slice(&local_index.to_le_bytes());
        out[8..12].copy_from_slice(&self.remote_index.to_le_bytes());
        self.noise.set_psk(PSK_POSITION, &psk.0).ok()?;
        let written = self.noise.write_message(&[], &mut out[RESPONSE_NOISE]);
        let wiped = self.noise.set_psk(PSK_POSITION, &[0; 32]);
        (written.is_ok() && wiped.is_ok() && self.noise.is_handshake_finished()).then_some(())?;
        let [recv, send] = split(&mut self.noise);
        Some((out, RawKeys { send, recv }))
    }
}

/// The keys from initiator to responder and back (section 5.4.5).
fn split(noise: &mut HandshakeState) -> [RawKey; 2] {
    let (mut forth, mut back) = noise.dangerously_get_raw_split();
    let keys = [Zeroizing::new(forth), Zeroizing::new(back)];
    forth.zeroize();
    back.zeroize();
    keys
}
