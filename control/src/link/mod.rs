//! One link, one peer: a state machine without sockets and clocks.
//!
//! [`Link`] decides when to negotiate (Jingle and ICE), when to shake hands (WireGuard), whether the path in use is
//! alive, and when to close. Whoever drives it carries [`Input`]s to it, calls [`Link::handle_timeout`] when
//! [`Link::poll_timeout`] has come, and carries its [`Output`]s out, in order, until there are none. Attempts that nobody
//! waits for (of a proactive link, or for a better path) begin only when it is the link's turn ([`Link::turn_at`],
//! [`Input::Turn`]): a node with a hundred peers negotiates with a few of them at a time.
//!
//! A negotiation is an *attempt*: one Jingle session (`sid`), one short-lived ICE agent. While the link is up an
//! attempt runs beside the path in use, which is replaced only by one that was found. A path counts as the peer's only
//! after something authentic came over it.

mod attempt;
mod backoff;
mod liveness;
mod machine;
mod negotiate;
mod supervise;
#[cfg(test)]
mod tests;
mod timing;

pub use machine::Link;

use crate::xmpp::Reason;
use dataplane::{Path, Time};
use std::time::Duration;

/// What a link is told once.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Keep a link to the peer whenever it is online, instead of only while there are packets.
    pub proactive: bool,
    /// An on-demand link without data for so long is closed.
    pub idle_timeout: Duration,
    /// Our full JID: breaks a tie of two equal session ids.
    pub our_jid: String,
    /// The peer's full JID.
    pub peer_jid: String,
}

/// Where a link is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Nothing to do, or nothing that can be done: nobody sends, the peer is offline, or XMPP is down.
    Idle,
    /// An agent looks for a path; there is none that works.
    Negotiating,
    /// A path was found, nothing authentic came over it yet.
    Handshaking,
    /// A path is in use, and watched. Attempts may run beside it.
    Up,
    /// The last attempt failed; the next one is due later.
    Failing,
}

impl State {
    /// Its name in `status`: `idle`, `negotiating`, `handshaking`, `up`, `failing`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Negotiating => "negotiating",
            Self::Handshaking => "handshaking",
            Self::Up => "up",
            Self::Failing => "failing",
        }
    }
}

/// Our side of an attempt. The initiator is the controlling agent (RFC 8445, section 6.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// We sent the `session-initiate`.
    Controlling,
    /// The peer did.
    Controlled,
}

/// The answer to a remote `session-initiate` (XEP-0166, section 7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Acknowledge. A [`Output::Start`] as controlled agent follows, unless this is a repetition.
    Accept,
    /// `conflict` with `tie-break`: our own initiate wins.
    TieBreak,
    /// `resource-constraint`: too many of them.
    Busy,
    /// `item-not-found` with `unknown-session`: this session is over.
    UnknownSession,
}

/// What happens to a link. Everything may come twice, late, or never; unknown sessions are ignored.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A packet waits for a path to the peer. Not needed for a proactive link.
    Wanted,
    /// The link may do now what nobody waits for; see [`Link::turn_at`].
    Turn,
    /// The peer's full JID is available. A new link counts its peer as offline.
    PeerOnline,
    /// The peer's full JID is unavailable. Not to be told merely because our own connection is down.
    PeerOffline,
    /// We are logged in. A new link counts signalling as down.
    SignalingUp,
    /// We are not.
    SignalingDown,
    /// The peer's `session-initiate`, authorised. Answered by exactly one [`Output::Answer`].
    Initiated {
        /// Session.
        sid: String,
    },
    /// The peer's `session-accept`.
    Accepted {
        /// Session.
        sid: String,
    },
    /// The peer's `session-terminate`.
    Terminated {
        /// Session.
        sid: String,
        /// Why.
        reason: Reason,
    },
    /// What we sent for this session was refused or never answered.
    SignalFailed {
        /// Session.
        sid: String,
        /// For people.
        why: String,
        /// Refused with `tie-break`: the peer's own initiate wins.
        tie_break: bool,
        /// The peer's resource is not there.
        gone: bool,
    },
    /// The agent chose a path.
    AgentFound {
        /// Session.
        sid: String,
        /// Where to send.
        path: Path,
        /// One of both candidates is relayed.
        relayed: bool,
    },
    /// The agent gave up.
    AgentFailed {
        /// Session.
        sid: String,
        /// For people.
        why: String,
    },
    /// A WireGuard handshake with the peer was completed.
    Session {
        /// When.
        at: Time,
    },
    /// What the tunnel knows of the peer, about once a second while there is a session.
    Activity {
        /// When the last authentic data came from it.
        last_received: Option<Time>,
        /// When the last data went to it.
        last_sent: Option<Time>,
        /// Where its datagrams go now: the peer may have roamed.
        path: Option<Path>,
    },
    /// The peer answered a probe.
    ProbeAnswered {
        /// There and back.
        rtt: Duration,
    },
    /// The peer sent a probe of its own over the path in use, signed.
    Heard,
    /// A probe could not be sent, or was refused. One that is merely not answered need not be told: the link waits 700 ms.
    ProbeFailed,
    /// Our addresses, default route or mapped address changed.
    NetworkChanged,
    /// The peer was removed, or we leave. Nothing is done after this.
    Close {
        /// For the peer.
        reason: Reason,
    },
}

/// What a link wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Make an agent. As [`Role::Controlling`] send `session-initiate`, as [`Role::Controlled`] `session-accept`.
    Start {
        /// Session.
        sid: String,
        /// Our side.
        role: Role,
    },
    /// Answer the peer's `session-initiate`.
    Answer {
        /// Session.
        sid: String,
        /// How.
        verdict: Verdict,
    },
    /// Drop the agent.
    Stop {
        /// Session.
        sid: String,
    },
    /// Send `session-terminate`.
    Terminate {
        /// Session.
        sid: String,
        /// Why.
        reason: Reason,
    },
    /// Give this path to the data plane.
    UsePath {
        /// Where to send.
        path: Path,
    },
    /// Make the tunnel shake hands now.
    Handshake,
    /// Take path and session from the data plane.
    Unpath,
    /// Send one authenticated STUN probe over the path in use.
    Probe,
    /// What people see changed.
    Changed,
}
