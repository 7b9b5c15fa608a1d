//! Everything that can happen to a node, as its loop sees it.

use crate::admin;
use crate::ice::{self, Candidate, Credentials};
use crate::xmpp;
use dataplane::Path;
use dataplane::tunnel::PublicKey;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::oneshot;

/// Number of a network in the configuration.
pub(super) type NetworkId = usize;

/// Where a link goes: which network, whose full JID.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct LinkId {
    pub(super) network: NetworkId,
    pub(super) jid: String,
}

/// STUN and TURN servers.
#[derive(Clone, Debug, Default)]
pub(super) struct Servers {
    pub(super) stun: Vec<SocketAddr>,
    pub(super) turn: Vec<ice::TurnServer>,
}

/// Something happened.
#[derive(Debug)]
pub(super) enum Event {
    /// On the XMPP connection.
    Xmpp(xmpp::Event),
    /// Packets wait for a path to this peer.
    Wanted(NetworkId, PublicKey),
    /// STUN or TURN changed.
    Ice(NetworkId, ice::IceEvent),
    /// In a negotiation.
    Negotiation { link: LinkId, sid: String, what: Progress },
    /// A probe of a link was answered, or not.
    Probe { link: LinkId, path: Path, rtt: Option<Duration> },
    /// Addresses or routes of this machine changed.
    Host,
    /// STUN and TURN servers, resolved; they hold for `lifetime`.
    Servers {
        servers: Servers,
        /// All of them are there: others than these are used no more.
        complete: bool,
        problem: Option<String>,
        lifetime: Option<Duration>,
    },
    /// A person asks.
    Admin(admin::Request, oneshot::Sender<admin::Response>),
    /// A network's engine ended.
    Closed(String),
}

/// What one negotiation came to.
#[derive(Debug)]
pub(super) enum Progress {
    /// The other side did not take our signal.
    Refused { why: String, tie_break: bool, gone: bool },
    /// A path was found.
    Found { found: ice::Found, local: Credentials, remote: Credentials },
    /// No path.
    Failed { why: String },
}

/// What a negotiation's task is told.
#[derive(Debug)]
pub(super) enum Remote {
    /// The peer's offer or answer.
    Description { credentials: Credentials, candidates: Vec<Candidate> },
    /// More candidates.
    Candidates(Vec<Candidate>),
}
