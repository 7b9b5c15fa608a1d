//! One way that is being checked.

use std::time::{Duration, Instant};

use super::super::candidate::CandidateKind;
use super::super::route::Route;
use super::super::stun::Tid;

/// Pauses after each sending of a check; after the last one it has failed. The first ones are short because a hole in a
/// NAT opens only when both sides have sent: 5.5 seconds in all.
const PAUSES_MS: [u64; 9] = [100, 200, 400, 800, 800, 800, 800, 800, 800];
/// The nominating check is repeated faster and more often, three seconds in all: the way answered a moment ago, and a
/// nomination that is given up after the peer has heard it leaves the two sides with different paths.
const NOMINATION_PAUSE: Duration = Duration::from_millis(200);
const NOMINATION_TRIES: usize = 15;

/// RFC 8445, section 6.1.2.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PairState {
    /// The relay has not said yet whether it may be used.
    Frozen,
    Waiting,
    InProgress,
    Succeeded,
    Failed,
}

/// A check on its way.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) tid: Tid,
    pub(super) bytes: Vec<u8>,
    tries: usize,
    last: Instant,
    ambiguous: bool,
    /// When to repeat it.
    pub(super) next: Instant,
    /// With USE-CANDIDATE.
    pub(super) nominates: bool,
}

impl Sent {
    pub(super) fn new(tid: Tid, bytes: Vec<u8>, nominates: bool, now: Instant) -> Self {
        Self { tid, bytes, tries: 0, last: now, ambiguous: false, next: now, nominates }
    }

    /// Sent once more because the peer was heard, which is not a try without an answer.
    pub(super) fn sent_between(&mut self, now: Instant) {
        self.last = now;
        self.ambiguous = true;
    }

    /// The round-trip time if the answer comes now; `None` if it may be the answer to an earlier sending.
    pub(super) fn rtt(&self, now: Instant) -> Option<Duration> {
        (!self.ambiguous).then(|| now.saturating_duration_since(self.last))
    }

    /// Counts one more sending; false if there have been enough.
    pub(super) fn again(&mut self, now: Instant) -> bool {
        let pause = if self.nominates {
            (self.tries < NOMINATION_TRIES).then_some(NOMINATION_PAUSE)
        } else {
            PAUSES_MS.get(self.tries).copied().map(Duration::from_millis)
        };
        let Some(pause) = pause else { return false };
        self.ambiguous |= self.tries > 0;
        self.tries += 1;
        (self.last, self.next) = (now, now + pause);
        true
    }
}

/// What is known of the channel that a relayed way needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    None,
    Asked,
    Bound(u16),
}

#[derive(Debug)]
pub(super) struct Pair {
    pub(super) route: Route,
    pub(super) remote_kind: CandidateKind,
    pub(super) remote_priority: u32,
    /// RFC 8445, section 6.1.2.3.
    pub(super) priority: u64,
    pub(super) state: PairState,
    pub(super) check: Option<Sent>,
    pub(super) first_sent: Option<Instant>,
    pub(super) answered: bool,
    pub(super) rtt: Option<Duration>,
    /// How the peer sees us over it.
    pub(super) mapped: Option<std::net::SocketAddr>,
    /// The peer wants this one.
    pub(super) nominated: bool,
    /// Checks of the peer that set it going again after it had failed.
    pub(super) revived: u8,
    pub(super) channel: Channel,
    /// The answer to a nomination, kept back until the channel is bound: what the peer sends after it would come in
    /// without one and be lost.
    pub(super) answer: Option<Vec<u8>>,
}

impl Pair {
    pub(super) fn new(route: Route, remote_kind: CandidateKind, remote_priority: u32) -> Self {
        Self {
            route,
            remote_kind,
            remote_priority,
            priority: 0,
            state: if route.is_relay() { PairState::Frozen } else { PairState::Waiting },
            check: None,
            first_sent: None,
            answered: false,
            rtt: None,
            mapped: None,
            nominated: false,
            revived: 0,
            channel: Channel::None,
            answer: None,
        }
    }

    /// Relays on the way: 0, 1 or 2.
    pub(super) fn hops(&self) -> u8 {
        u8::from(self.route.is_relay()) + u8::from(self.remote_kind == CandidateKind::Relayed)
    }

    /// Fewest relays first, then by priority.
    pub(super) fn rank(&self) -> (u8, std::cmp::Reverse<u64>) {
        (self.hops(), std::cmp::Reverse(self.priority))
    }

    /// Whether it may still be answered.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, PairState::Frozen | PairState::Waiting | PairState::InProgress)
    }

    /// Whether everything on our side is ready for data.
    pub(super) fn is_usable(&self) -> bool {
        self.state == PairState::Succeeded && (!self.route.is_relay() || matches!(self.channel, Channel::Bound(_)))
    }

    pub(super) fn rank_priority(&mut self, local: u32, controlling: bool) {
        let (g, d) = if controlling { (local, self.remote_priority) } else { (self.remote_priority, local) };
        let (g, d) = (u64::from(g), u64::from(d));
        self.priority = (g.min(d) << 32) + 2 * g.max(d) + u64::from(g > d);
    }
}
