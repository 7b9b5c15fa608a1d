//! The checks of one negotiation (RFC 8445), without sockets and clocks.
//!
//! A local candidate is either the port itself or an allocation on a TURN server; each remote candidate is paired with
//! each of them. Differences from the RFC, which come from having one port and one component: reflexive local candidates
//! are signalled but not paired (section 6.1.2.4 prunes them anyway), foundations do not freeze pairs, and of the
//! pairs that work one with fewer relays always wins, for which the controlling side waits a little.

mod incoming;
mod pair;
#[cfg(test)]
mod tests;
mod verdict;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::candidate::{Candidate, CandidateKind, Credentials};
use super::route::{Route, is_sendable, may_relay};
use super::stun::{Class, Key, Tid, Writer, attr, method, random};
use incoming::Early;
use pair::{Channel, Pair, PairState, Sent};

pub(crate) use verdict::Chosen;

/// Pause between two checks of one negotiation (RFC 8445, section 14: at least 5 ms, 50 ms recommended).
const PACE: Duration = Duration::from_millis(20);
/// From the peer's credentials to a path.
const DEADLINE: Duration = Duration::from_secs(10);
/// From our offer to the peer's credentials.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// Candidates of the peer, signalled or seen.
const MAX_REMOTE: usize = 24;
const MAX_PAIRS: usize = 72;
/// Allocations used for one negotiation.
const MAX_RELAYS: usize = 4;

/// Which side decides (RFC 8445, section 5.1.1): the one that initiated the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Nominates.
    Controlling,
    /// Takes what is nominated.
    Controlled,
}

/// What the checker wants done.
#[derive(Debug)]
pub(crate) enum Output {
    Send(Route, Vec<u8>),
    /// Responses with this id are for us.
    Expect(Tid),
    Permit {
        server: SocketAddr,
        ip: IpAddr,
    },
    Bind {
        server: SocketAddr,
        peer: SocketAddr,
    },
    /// A channel that was bound for a pair which is not taken.
    Release {
        server: SocketAddr,
        channel: u16,
    },
    Done(Result<Chosen, String>),
}

/// An allocation that may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Relay {
    pub(crate) server: SocketAddr,
    pub(crate) relayed: SocketAddr,
}

struct Remote {
    key: Key,
    /// `theirs:ours`, in our requests.
    username: String,
}

/// RFC 8445, section 5.1.2.1, for component 1.
pub(crate) fn priority(kind: CandidateKind, local_preference: u16) -> u32 {
    let preference: u32 = match kind {
        CandidateKind::Host => 126,
        CandidateKind::PeerReflexive => 110,
        CandidateKind::ServerReflexive => 100,
        CandidateKind::Relayed => 0,
    };
    (preference << 24) | (u32::from(local_preference) << 8) | 255
}

/// IPv6 before IPv4 (RFC 8421), everything else alike.
pub(crate) const fn preference(a: SocketAddr) -> u16 {
    if a.is_ipv6() { 60_000 } else { 50_000 }
}

/// One negotiation.
pub(crate) struct Checker {
    role: Role,
    tie_breaker: u64,
    credentials: Credentials,
    key: Key,
    remote: Option<Remote>,
    relay_private: bool,
    relays: Vec<Relay>,
    /// Which families the port can send: IPv4, IPv6.
    families: (bool, bool),
    /// Our candidates, to name what the peer sees.
    locals: Vec<(SocketAddr, CandidateKind)>,
    local_done: bool,
    remotes: Vec<(SocketAddr, CandidateKind, u32)>,
    remote_done: bool,
    pairs: Vec<Pair>,
    /// Pairs to check before all others (RFC 8445, section 6.1.4.1).
    triggered: VecDeque<usize>,
    early: Vec<Early>,
    deadline: Instant,
    pace_at: Instant,
    first_valid: Option<Instant>,
    decide_at: Option<Instant>,
    /// The pair that is being nominated or prepared for it.
    nominee: Option<usize>,
    finished: bool,
    outputs: Vec<Output>,
}

impl Checker {
    pub(crate) fn new(role: Role, credentials: Credentials, relay_private: bool, now: Instant) -> Self {
        Self {
            role,
            tie_breaker: u64::from_be_bytes(random()),
            key: Key::short(&credentials.password),
            credentials,
            remote: None,
            relay_private,
            relays: Vec::new(),
            families: (true, true),
            locals: Vec::new(),
            local_done: false,
            remotes: Vec::new(),
            remote_done: false,
            pairs: Vec::new(),
            triggered: VecDeque::new(),
            early: Vec::new(),
            deadline: now + ANSWER_DEADLINE,
            pace_at: now,
            first_valid: None,
            decide_at: None,
            nominee: None,
            finished: false,
            outputs: Vec::new(),
        }
    }

    pub(crate) fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// What this side has: families that it can send, its candidates, its allocations, and whether more may come.
    pub(crate) fn set_local(
        &mut self,
        families: (bool, bool),
        locals: Vec<(SocketAddr, CandidateKind)>,
        relays: Vec<Relay>,
        done: bool,
    ) {
        (self.families, self.locals, self.local_done) = (families, locals, done);
        self.relays = relays;
        self.relays.truncate(MAX_RELAYS);
        for i in 0..self.remotes.len() {
            self.pair_up(i);
        }
    }

    /// The peer's credentials. Only the first ones count: new ones are a new negotiation.
    pub(crate) fn set_remote(&mut self, c: &Credentials, now: Instant) {
        if self.remote.is_some() || self.finished {
            return;
        }
        let username = format!("{}:{}", c.ufrag, self.credentials.ufrag);
        self.remote = Some(Remote { key: Key::short(&c.password), username });
        self.deadline = now + DEADLINE;
        self.pace_at = now;
        for early in std::mem::take(&mut self.early) {
            self.heard(early);
        }
    }

    /// Candidates of the peer; none means that there are no more.
    pub(crate) fn add_remote(&mut self, candidates: &[Candidate]) {
        self.remote_done |= candidates.is_empty();
        for c in candidates {
            self.learn(dataplane::path::canonical(c.address), c.kind, c.priority);
        }
    }

    fn learn(&mut self, address: SocketAddr, kind: CandidateKind, priority: u32) {
        if !is_sendable(address) {
            return;
        }
        if let Some(r) = self.remotes.iter_mut().find(|r| r.0 == address) {
            // Met by its checks before it was signalled: the signal knows better.
            if r.1 == CandidateKind::PeerReflexive && kind != r.1 {
                (r.1, r.2) = (kind, priority);
                let (role, controlling) = (r.0, self.role == Role::Controlling);
                for p in self.pairs.iter_mut().filter(|p| p.route.peer() == role) {
                    (p.remote_kind, p.remote_priority) = (kind, priority);
                    p.rank_priority(local_priority(&p.route), controlling);
                }
            }
            return;
        }
        if self.remotes.len() < MAX_REMOTE {
            self.remotes.push((address, kind, priority));
            self.pair_up(self.remotes.len() - 1);
        }
    }

    /// Makes the pairs of one remote candidate that are not there yet.
    fn pair_up(&mut self, remote: usize) {
        let (address, kind, priority) = self.remotes[remote];
        let can = if address.is_ipv4() { self.families.0 } else { self.families.1 };
        // Loopback is for those who are on it: nobody else's candidate makes us talk to local services.
        let foreign = address.ip().is_loopback() && !self.locals.iter().any(|(a, _)| a.ip().is_loopback());
        if can && !foreign {
            self.add_pair(Route::direct(address), kind, priority);
        }
        for Relay { server, relayed } in self.relays.clone() {
            if address != relayed && may_relay(server, relayed, address, self.relay_private) {
                let route = Route::Relay { server, peer: address };
                if self.add_pair(route, kind, priority).is_some_and(|new| new) {
                    self.outputs.push(Output::Permit { server, ip: address.ip() });
                }
            }
        }
    }

    /// `Some(true)` if it is new, `None` if there are too many.
    fn add_pair(&mut self, route: Route, kind: CandidateKind, priority: u32) -> Option<bool> {
        if self.find(&route).is_some() {
            return Some(false);
        }
        if self.pairs.len() >= MAX_PAIRS {
            return None;
        }
        let mut p = Pair::new(route, kind, priority);
        p.rank_priority(local_priority(&route), self.role == Role::Controlling);
        self.pairs.push(p);
        Some(true)
    }

    fn find(&self, route: &Route) -> Option<usize> {
        self.pairs.iter().position(|p| p.route == *route)
    }

    /// The server's answer to [`Output::Permit`].
    pub(crate) fn permitted(&mut self, server: SocketAddr, ip: IpAddr, yes: bool) {
        for p in &mut self.pairs {
            let Route::Relay { server: s, peer } = p.route else { continue };
            if s == server && peer.ip() == ip && p.state == PairState::Frozen {
                p.state = if yes { PairState::Waiting } else { PairState::Failed };
            }
        }
    }

    /// An allocation is gone.
    pub(crate) fn relay_lost(&mut self, server: SocketAddr) {
        self.relays.retain(|r| r.server != server);
        for i in 0..self.pairs.len() {
            if matches!(self.pairs[i].route, Route::Relay { server: s, .. } if s == server) {
                self.fail(i);
                self.pairs[i].channel = Channel::None;
            }
        }
    }

    /// The kernel has no route there.
    pub(crate) fn unreachable(&mut self, route: &Route) {
        if let Some(i) = self.find(route).filter(|i| self.pairs[*i].state == PairState::InProgress) {
            self.fail(i);
        }
    }

    fn fail(&mut self, i: usize) {
        let p = &mut self.pairs[i];
        p.state = PairState::Failed;
        (p.check, p.answer) = (None, None);
        if self.nominee == Some(i) {
            self.nominee = None;
        }
        self.give_channel_back(i);
    }

    fn give_channel_back(&mut self, i: usize) {
        let p = &mut self.pairs[i];
        if let (Route::Relay { server, .. }, Channel::Bound(channel)) = (p.route, p.channel) {
            p.channel = Channel::None;
            self.outputs.push(Output::Release { server, channel });
        }
    }

    /// What time asks for.
    pub(crate) fn poll(&mut self, now: Instant) {
        if self.finished {
            return;
        }
        if self.remote.is_some() && self.pace_at <= now && self.send_one(now) {
            self.pace_at = now + PACE;
        }
        self.decide(now);
    }

    /// When to poll next.
    pub(crate) fn next(&self) -> Option<Instant> {
        if self.finished {
            return None;
        }
        let mut at = self.deadline;
        if let Some(d) = self.decide_at {
            at = at.min(d);
        }
        if self.remote.is_some() {
            let waiting = !self.triggered.is_empty() || self.pairs.iter().any(|p| p.state == PairState::Waiting);
            let repeat = self.pairs.iter().filter_map(|p| p.check.as_ref()).map(|c| c.next).min();
            let due = if waiting { Some(self.pace_at) } else { repeat.map(|r| r.max(self.pace_at)) };
            at = due.map_or(at, |d| at.min(d));
        }
        Some(at)
    }

    /// Sends the most urgent check there is: triggered ones, then repetitions, then new ones by rank.
    fn send_one(&mut self, now: Instant) -> bool {
        while let Some(i) = self.triggered.pop_front() {
            let p = &mut self.pairs[i];
            match (p.state, &mut p.check) {
                (PairState::Waiting, _) => return self.send_check(i, false, now),
                // The same transaction once more: a new one would disown an answer that is on its way.
                (PairState::InProgress, Some(check)) => {
                    check.sent_between(now);
                    self.outputs.push(Output::Send(p.route, check.bytes.clone()));
                    return true;
                }
                _ => {}
            }
        }
        loop {
            let due = self.pairs.iter().enumerate().filter(|(_, p)| p.check.as_ref().is_some_and(|c| c.next <= now));
            let Some(i) = due.min_by_key(|(_, p)| p.check.as_ref().map(|c| c.next)).map(|(i, _)| i) else { break };
            if self.repeat(i, now) {
                return true;
            }
        }
        let waiting = self.pairs.iter().enumerate().filter(|(_, p)| p.state == PairState::Waiting);
        let Some(i) = waiting.min_by_key(|(_, p)| p.rank()).map(|(i, _)| i) else { return false };
        self.send_check(i, false, now)
    }

    fn repeat(&mut self, i: usize, now: Instant) -> bool {
        let p = &mut self.pairs[i];
        let Some(check) = &mut p.check else { return false };
        if check.again(now) {
            self.outputs.push(Output::Send(p.route, check.bytes.clone()));
            return true;
        }
        self.fail(i);
        false
    }

    fn send_check(&mut self, i: usize, nominates: bool, now: Instant) -> bool {
        let Some(remote) = &self.remote else { return false };
        let p = &mut self.pairs[i];
        let tid = random();
        // The priority that the peer gives us if it has not heard of this candidate. A relayed one keeps its low rank
        // there, so that the peer does not take this way for a direct one.
        let kind = if p.route.is_relay() { CandidateKind::Relayed } else { CandidateKind::PeerReflexive };
        let role = match self.role {
            Role::Controlling => attr::ICE_CONTROLLING,
            Role::Controlled => attr::ICE_CONTROLLED,
        };
        let mut w = Writer::new(Class::Request, method::BINDING, &tid)
            .attr(attr::USERNAME, remote.username.as_bytes())
            .u32(attr::PRIORITY, priority(kind, preference(p.route.peer())))
            .u64(role, self.tie_breaker);
        if nominates {
            w = w.attr(attr::USE_CANDIDATE, &[]);
        } else {
            p.state = PairState::InProgress;
        }
        p.first_sent.get_or_insert(now);
        p.check = Some(Sent::new(tid, w.sign(&remote.key).fingerprint().finish(), nominates, now));
        self.outputs.push(Output::Expect(tid));
        self.repeat(i, now)
    }
}

fn local_priority(route: &Route) -> u32 {
    let kind = if route.is_relay() { CandidateKind::Relayed } else { CandidateKind::Host };
    priority(kind, preference(route.peer()))
}
