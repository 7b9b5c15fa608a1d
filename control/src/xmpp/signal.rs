//! What two nodes tell each other about one negotiation: Jingle (XEP-0166) with ICE-UDP (XEP-0176), in our terms.

use crate::ice::{Candidate, Credentials};

/// Why a negotiation ended (XEP-0166, section 7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The path was found; the session is not needed any more.
    Success,
    /// The node leaves or the link is idle.
    Gone,
    /// No candidate pair worked.
    ConnectivityError,
    /// Not with you, or not in this network.
    Decline,
    /// Too many negotiations at once: later.
    Busy,
    /// It took too long.
    Timeout,
    /// Anything else.
    GeneralError,
}

/// The offer or answer: whose checks, over which addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiation {
    /// The network whose link this is about, as the descriptor names it (`group:my_pragma_group_1`).
    pub network: String,
    /// Signs the checks.
    pub credentials: Credentials,
    /// What is known already; more may follow.
    pub candidates: Vec<Candidate>,
}

/// One Jingle action of one session. `sid` is chosen by the initiator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// `session-initiate`: the sender is the controlling agent.
    Initiate {
        /// Session.
        sid: String,
        /// Offer.
        offer: Negotiation,
    },
    /// `session-accept`.
    Accept {
        /// Session.
        sid: String,
        /// Answer.
        answer: Negotiation,
    },
    /// `transport-info`: more candidates (trickle). Empty: there are no more.
    Candidates {
        /// Session.
        sid: String,
        /// More of the sender's candidates.
        candidates: Vec<Candidate>,
        /// The sender's user fragment, by which a candidate of an earlier negotiation is recognised.
        ufrag: String,
    },
    /// `session-terminate`.
    Terminate {
        /// Session.
        sid: String,
        /// Why.
        reason: Reason,
    },
}

impl Signal {
    /// The session.
    #[must_use]
    pub fn sid(&self) -> &str {
        match self {
            Self::Initiate { sid, .. }
            | Self::Accept { sid, .. }
            | Self::Candidates { sid, .. }
            | Self::Terminate { sid, .. } => sid,
        }
    }
}
