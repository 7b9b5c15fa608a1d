//! The WireGuard protocol without I/O: time, wall clock and randomness are arguments.
//!
//! [`Tunnel`] is the slow path and belongs to the keeper: handshakes, cookies, timers. What packets need is
//! shared with the shards: [`SessionTable`] finds a [`Session`] by receiver index, a session has keys,
//! counters and the replay window, and a [`Peer`] knows its current session and its path. "The paper" is
//! Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel", <https://www.wireguard.com/papers/wireguard.pdf>.

mod activity;
mod agreement;
mod answer;
mod cookie;
mod engine;
mod entry;
pub mod keys;
mod limiter;
pub mod limits;
mod mac;
mod message;
mod noise;
mod peer;
mod replay;
mod session;
mod sessions;
#[cfg(test)]
mod tests;
mod timers;
mod timestamp;

pub use engine::Tunnel;
pub use keys::{PresharedKey, PrivateKey, PublicKey};
pub use mac::MacVerifier;
pub use message::{Message, data_header};
pub use peer::Peer;
pub use replay::ReplayWindow;
pub use session::Session;
pub use sessions::{IndexWatch, SessionTable};

use crate::Path;
use std::sync::Arc;

/// Where the tunnel gets its randomness. It has to be fit for keys.
pub trait Rng: Send {
    /// Fills `out` with random bytes.
    fn fill(&mut self, out: &mut [u8]);
}

/// What the tunnel wants done.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send a message.
    Send {
        /// Where to.
        path: Path,
        /// The datagram's payload.
        message: Message,
        /// Whose bytes it counts as ([`Peer::add_tx_bytes`]); `None`: a cookie reply to somebody.
        peer: Option<Arc<Peer>>,
    },
    /// A handshake that we started is complete: what is staged for the peer can be sent.
    Established {
        /// Which peer.
        peer: Arc<Peer>,
    },
    /// No handshake came about (for 90 s, or there is no private key): what is staged for the peer is to
    /// be dropped.
    GaveUp {
        /// Which peer.
        peer: Arc<Peer>,
    },
}

/// Why a peer was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TunnelError {
    /// There are [`limits::MAX_PEERS`] already.
    #[error("an interface has at most {} peers", limits::MAX_PEERS)]
    TooManyPeers,
    /// The key is our own.
    #[error("the peer's public key is that of this interface itself")]
    OwnKey,
}
