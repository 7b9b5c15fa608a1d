//! One negotiation: a Jingle session and its agent.

use super::{Role, timing};
use dataplane::{Path, Time};

/// Why an attempt was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// There is no path.
    First,
    /// The path is dead.
    Dead,
    /// Our network changed.
    Network,
    /// The path is relayed; perhaps there is a direct one by now.
    Direct,
    /// The peer asked.
    Remote,
}

/// What became of a found path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// In use, nothing authentic came over it yet.
    Trying,
    /// In use and proven.
    Proven,
    /// Kept aside: the path in use is as good, and alive.
    Held,
}

/// A path that an agent found.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) path: Path,
    pub(super) relayed: bool,
    pub(super) at: Time,
    pub(super) state: Use,
    /// When to ask for a handshake (again), while [`Use::Trying`].
    pub(super) handshake_at: Time,
    /// The path that it replaced, if that was alive.
    pub(super) prior: Option<Prior>,
}

/// A path to go back to.
#[derive(Clone, Debug)]
pub(super) struct Prior {
    pub(super) path: Path,
    pub(super) relayed: bool,
    pub(super) sid: Option<String>,
}

/// One negotiation.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) sid: String,
    pub(super) role: Role,
    pub(super) purpose: Purpose,
    pub(super) started: Time,
    /// The agent has the peer's credentials: it can go on without signalling.
    pub(super) answered: bool,
    pub(super) found: Option<Found>,
}

impl Attempt {
    /// Looking for a path.
    pub(super) const fn searching(&self) -> bool {
        self.found.is_none()
    }

    /// Its path is in use and not proven.
    pub(super) fn trying(&self) -> bool {
        self.found.as_ref().is_some_and(|f| f.state == Use::Trying)
    }

    /// When it has to have ended.
    pub(super) fn deadline(&self) -> Time {
        match &self.found {
            None => self.started + timing::NEGOTIATION,
            Some(f) if f.state == Use::Trying => f.at + timing::HANDSHAKE,
            Some(f) => f.at + timing::LINGER,
        }
    }

    /// When something is to be done about it.
    pub(super) fn timeout(&self) -> Time {
        match &self.found {
            Some(f) if f.state == Use::Trying => self.deadline().min(f.handshake_at),
            _ => self.deadline(),
        }
    }
}
