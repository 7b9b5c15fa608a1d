//! What a node offers to be reached at (RFC 8445, section 5.1), as Jingle ICE-UDP carries it (XEP-0176).

use std::fmt;
use std::net::SocketAddr;

use zeroize::Zeroizing;

/// Where a candidate was learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CandidateKind {
    /// An address of an own interface.
    Host,
    /// How a STUN server sees us.
    ServerReflexive,
    /// How a peer sees us.
    PeerReflexive,
    /// An address of a TURN server that is ours for now.
    Relayed,
}

impl CandidateKind {
    /// The name in XEP-0176 and in candidate lines: `host`, `srflx`, `prflx`, `relay`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::ServerReflexive => "srflx",
            Self::PeerReflexive => "prflx",
            Self::Relayed => "relay",
        }
    }

    /// By its name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        [Self::Host, Self::ServerReflexive, Self::PeerReflexive, Self::Relayed].into_iter().find(|k| k.name() == name)
    }
}

impl fmt::Display for CandidateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One address that a node offers. Component 1, UDP.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// Same for candidates of one kind, base and server (RFC 8445, section 5.1.1.3).
    pub foundation: String,
    /// RFC 8445, section 5.1.2.1.
    pub priority: u32,
    /// Where to send.
    pub address: SocketAddr,
    /// Where it was learned.
    pub kind: CandidateKind,
    /// The base of a reflexive or relayed candidate.
    pub related: Option<SocketAddr>,
}

/// What the checks of one side of one negotiation are signed with (RFC 8445, section 5.3).
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User fragment.
    pub ufrag: String,
    /// Password.
    pub password: Zeroizing<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({}, ...)", self.ufrag)
    }
}
