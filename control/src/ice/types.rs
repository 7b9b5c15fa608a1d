//! What goes in and out of the ICE side of a node.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use dataplane::Path;
use zeroize::Zeroizing;

use super::candidate::CandidateKind;
use super::turn::Lease;

/// The tunnel's UDP port, as seen from here.
pub trait Port: Send + Sync + 'static {
    /// Sends one datagram.
    ///
    /// # Errors
    /// What the socket says; `WouldBlock` if its buffer is full.
    fn send(&self, path: Path, bytes: &[u8]) -> io::Result<()>;
    /// Its number.
    fn local_port(&self) -> u16;
    /// The TURN servers whose ChannelData is taken.
    fn set_relays(&self, servers: Vec<SocketAddr>);
}

/// A TURN server and who we are there.
#[derive(Clone, PartialEq, Eq)]
pub struct TurnServer {
    /// UDP.
    pub address: SocketAddr,
    /// User name of the long-term credential (RFC 8489, section 9.2).
    pub username: String,
    /// Its password.
    pub password: Zeroizing<String>,
}

impl fmt::Debug for TurnServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TurnServer({}, {}, ...)", self.address, self.username)
    }
}

/// What a server is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerKind {
    /// Tells how it sees us.
    Stun,
    /// Relays.
    Turn,
}

/// A server as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerState {
    /// What for.
    pub kind: ServerKind,
    /// Where.
    pub address: SocketAddr,
    /// How it sees our port.
    pub mapped: Option<SocketAddr>,
    /// Our allocation on it.
    pub relayed: Option<SocketAddr>,
    /// Channels in use.
    pub channels: usize,
    /// Why it is of no use now.
    pub error: Option<String>,
}

/// Something that links want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IceEvent {
    /// Own or mapped addresses are others than before: direct paths may be dead, better ones possible.
    Changed {
        /// What changed.
        why: String,
    },
    /// The allocation on this server is gone: paths over it are dead.
    RelayLost {
        /// Which.
        server: SocketAddr,
        /// Why.
        why: String,
    },
    /// The peer has probed a link in use, signed with the credentials of ours with this user fragment: it lives, it hears us,
    /// and the link need not be probed from here. At most twice a second for each link.
    Heard {
        /// Which.
        ufrag: String,
    },
    /// There is an allocation on this server, for the first time or again.
    RelayUp {
        /// Which.
        server: SocketAddr,
    },
}

/// A path that both sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// For the data plane. If it is relayed, its channel is kept alive for as long as this or a clone of it exists.
    pub path: Path,
    /// What the peer sees us as.
    pub local_kind: CandidateKind,
    /// What the peer is reached at.
    pub remote_kind: CandidateKind,
    /// Round-trip time of the last check.
    pub rtt: Option<Duration>,
    /// For people: direct, or relayed because of what.
    pub why: String,
    /// The use of the channel of a relayed path.
    pub(super) lease: Option<Lease>,
}

impl Found {
    /// Whether a TURN server, ours or the peer's, is on the way.
    #[must_use]
    pub fn is_relayed(&self) -> bool {
        self.local_kind == CandidateKind::Relayed || self.remote_kind == CandidateKind::Relayed
    }
}

/// Why no path was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Failed {
    /// A sentence for people.
    pub why: String,
}

/// Why a path could not be probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Nothing came back in two seconds.
    #[error("the peer did not answer over this path")]
    NoAnswer,
    /// An authentic error response.
    #[error("the peer refuses the probe")]
    Refused,
    /// The allocation with this channel is gone.
    #[error("the relay channel is gone")]
    NoSuchChannel,
    /// More probes at once than are kept.
    #[error("too many probes at once")]
    TooMany,
    /// The node was closed.
    #[error("the node is closed")]
    Closed,
}
