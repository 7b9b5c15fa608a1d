//! Servers, negotiations and answers over the one port, without sockets and clocks.

mod local;
mod pump;
mod receive;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use dataplane::Path;
use dataplane::path::canonical;
use dataplane::table::Prefix;
use tokio::sync::{mpsc, oneshot};

use super::binding::Binding;
use super::candidate::{Candidate, CandidateKind, Credentials};
use super::finder::{Finder, Taken};
use super::route::{Route, Transmit, is_sendable};
use super::stun::{Key, Tid};
use super::turn::{Account, Turn};
use super::types::{Failed, Found, IceEvent, ProbeError, ServerKind, ServerState, TurnServer};

/// Negotiations at once.
pub(crate) const MAX_AGENTS: usize = 512;
/// Links whose probes are answered.
const MAX_ANSWERS: usize = 4096;
/// Closed negotiations that still answer.
const MAX_LINGERING: usize = 1024;
/// Probes at once.
const MAX_PROBES: usize = 1024;
/// Servers of each kind.
const MAX_SERVERS: usize = 8;
/// Checks of one negotiation whose answers are known by their ids.
const MAX_CHECKS: usize = 512;
/// A sign of life of one link is told once in this time.
const HEARD_PAUSE: Duration = Duration::from_millis(500);
/// Prefixes of the overlay: subnets and routes of all members.
const MAX_OVERLAY: usize = 4096;
/// Host addresses kept, and told to a peer.
const MAX_HOSTS: usize = 10;
/// How long a closed negotiation still answers: the peer may not have got our last answer.
const LINGER: Duration = Duration::from_secs(10);
/// A negotiation waits this long for servers before it says that it has told all its candidates.
const GATHERING: Duration = Duration::from_secs(3);

/// Pauses after each sending of a probe.
const PROBE_PAUSES_MS: [u64; 4] = [200, 400, 600, 800];

pub(crate) type AgentId = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Agent(AgentId),
    Probe(u64),
}

struct Agent {
    finder: Finder,
    /// Checks under way, oldest first.
    checks: VecDeque<Tid>,
    ufrag: String,
    key: Key,
    /// `None` when all candidates have been told.
    candidates: Option<mpsc::UnboundedSender<Vec<Candidate>>>,
    told: Vec<(SocketAddr, CandidateKind)>,
    gathering_until: Instant,
    outcome: Option<oneshot::Sender<Result<Found, Failed>>>,
}

/// A link whose probes are answered.
struct Answer {
    key: Key,
    /// When the peer's last sign of life was told.
    heard: Option<Instant>,
}

struct Probe {
    route: Route,
    path: Path,
    key: Key,
    tid: Tid,
    bytes: Vec<u8>,
    tries: usize,
    sent: Instant,
    next: Instant,
    outcome: oneshot::Sender<Result<Duration, ProbeError>>,
}

/// What came in and was of no use, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// Not STUN, not ChannelData of one of our servers, or malformed.
    pub malformed: u64,
    /// A request for a negotiation that is not ours, or a response that nobody waits for.
    pub unknown: u64,
    /// The signature is wrong.
    pub forged: u64,
}

impl Drops {
    fn note(&mut self, taken: Taken) {
        match taken {
            Taken::Yes => {}
            Taken::Forged => self.forged += 1,
            Taken::No => self.unknown += 1,
        }
    }
}

pub(crate) struct Core {
    port: u16,
    relay_private: bool,
    hosts: Vec<IpAddr>,
    stun: Vec<Binding>,
    turn: Vec<Turn>,
    agents: HashMap<AgentId, Agent>,
    ufrags: HashMap<String, AgentId>,
    /// Links whose probes are answered.
    answers: HashMap<String, Answer>,
    /// Closed negotiations that still answer, and until when.
    lingering: HashMap<String, (Key, Instant)>,
    /// What is reached through the tunnel itself.
    overlay: Vec<Prefix>,
    closed: bool,
    tids: HashMap<Tid, Owner>,
    probes: HashMap<u64, Probe>,
    /// Who waits for a channel.
    binders: HashMap<(SocketAddr, SocketAddr), Vec<AgentId>>,
    serial: u64,
    out: Vec<Transmit>,
    events: Vec<IceEvent>,
    pub(crate) drops: Drops,
    /// When the caller will call [`Self::poll`] by itself.
    pub(crate) wakes_at: Option<Instant>,
}

impl Core {
    pub(crate) fn new(port: u16, relay_private: bool) -> Self {
        Self {
            port,
            relay_private,
            hosts: Vec::new(),
            stun: Vec::new(),
            turn: Vec::new(),
            agents: HashMap::new(),
            ufrags: HashMap::new(),
            answers: HashMap::new(),
            lingering: HashMap::new(),
            overlay: Vec::new(),
            closed: false,
            tids: HashMap::new(),
            probes: HashMap::new(),
            binders: HashMap::new(),
            serial: 0,
            out: Vec::new(),
            events: Vec::new(),
            drops: Drops::default(),
            wakes_at: None,
        }
    }

    pub(crate) fn take_transmits(&mut self) -> Vec<Transmit> {
        std::mem::take(&mut self.out)
    }

    pub(crate) fn take_events(&mut self) -> Vec<IceEvent> {
        std::mem::take(&mut self.events)
    }

    fn number(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// The servers from now on; those that stay keep what they gave.
    pub(crate) fn set_servers(&mut self, stun: Vec<SocketAddr>, turn: Vec<TurnServer>, now: Instant) {
        let mut old = std::mem::take(&mut self.stun);
        for a in stun.into_iter().map(canonical) {
            if self.stun.len() < MAX_SERVERS && !self.stun.iter().any(|s| s.server() == a) {
                let kept = old.iter().position(|s| s.server() == a).map(|i| old.swap_remove(i));
                self.stun.push(kept.unwrap_or_else(|| Binding::new(a, now)));
            }
        }
        let mut old = std::mem::take(&mut self.turn);
        for t in turn {
            let a = canonical(t.address);
            if self.turn.len() >= MAX_SERVERS || self.turn.iter().any(|s| s.server() == a) {
                continue;
            }
            let account = Account { username: t.username, password: t.password };
            match old.iter().position(|s| s.server() == a) {
                Some(i) => {
                    let mut kept = old.swap_remove(i);
                    kept.renew(account, now);
                    self.turn.push(kept);
                }
                None => self.turn.push(Turn::new(a, account, now)),
            }
        }
        for mut gone in old {
            gone.close(now, &mut self.out);
            self.relay_lost(gone.server(), "it is not configured any more");
        }
        self.refresh_agents(now);
    }

    /// The TURN servers' addresses.
    pub(crate) fn relays(&self) -> Vec<SocketAddr> {
        self.turn.iter().map(Turn::server).collect()
    }

    /// The addresses of this machine. Only those count that a path can begin at, in any order: a change is one if such an
    /// address went, as a path may have begun there (which one the kernel takes is not known here), or came, as a better
    /// path may begin there.
    pub(crate) fn set_hosts(&mut self, hosts: Vec<IpAddr>, now: Instant) {
        let mut bases: Vec<IpAddr> = Vec::new();
        for h in hosts.into_iter().map(|h| h.to_canonical()) {
            let is_base = is_sendable(SocketAddr::new(h, self.port)) && !self.is_overlay(h);
            if is_base && bases.len() < MAX_HOSTS && !bases.contains(&h) {
                bases.push(h);
            }
        }
        let same = bases.len() == self.hosts.len() && bases.iter().all(|h| self.hosts.contains(h));
        if same {
            return;
        }
        let first = self.hosts.is_empty();
        self.hosts = bases;
        self.stun.iter_mut().for_each(|s| s.restart(now));
        self.turn.iter_mut().for_each(|t| t.look(now));
        if !first {
            self.events.push(IceEvent::Changed { why: "the addresses of this machine changed".into() });
        }
        self.refresh_agents(now);
    }

    /// Prefixes that are reached through the tunnel: nothing there is a candidate.
    pub(crate) fn set_overlay(&mut self, mut prefixes: Vec<Prefix>, now: Instant) {
        if prefixes.len() > MAX_OVERLAY {
            tracing::warn!("more than {MAX_OVERLAY} prefixes in the overlay: paths through the rest are not refused");
            prefixes.truncate(MAX_OVERLAY);
        }
        for a in self.agents.values_mut() {
            a.finder.set_overlay(&prefixes);
        }
        self.overlay = prefixes;
        let hosts = self.hosts.clone();
        self.set_hosts(hosts, now);
    }

    pub(super) fn is_overlay(&self, ip: IpAddr) -> bool {
        self.overlay.iter().any(|p| p.contains(ip))
    }

    pub(crate) fn servers(&self) -> Vec<ServerState> {
        let stun = self.stun.iter().map(|s| ServerState {
            kind: ServerKind::Stun,
            address: s.server(),
            mapped: s.mapped,
            relayed: None,
            channels: 0,
            error: s.error.clone(),
        });
        let turn = self.turn.iter().map(|t| ServerState {
            kind: ServerKind::Turn,
            address: t.server(),
            mapped: t.mapped,
            relayed: t.relayed,
            channels: t.channels_in_use(),
            error: t.error.clone(),
        });
        stun.chain(turn).collect()
    }

    /// Starts a negotiation; `None` if there are too many.
    pub(crate) fn negotiate(
        &mut self,
        credentials: &Credentials,
        candidates: mpsc::UnboundedSender<Vec<Candidate>>,
        outcome: oneshot::Sender<Result<Found, Failed>>,
        start: impl FnOnce(AgentId, bool) -> Finder,
        now: Instant,
    ) -> Option<AgentId> {
        if self.closed || self.agents.len() >= MAX_AGENTS {
            return None;
        }
        let id = self.number();
        let mut finder = start(id, self.relay_private);
        finder.set_overlay(&self.overlay);
        self.ufrags.insert(credentials.ufrag.clone(), id);
        let agent = Agent {
            ufrag: credentials.ufrag.clone(),
            key: Key::short(&credentials.password),
            finder,
            checks: VecDeque::new(),
            candidates: Some(candidates),
            told: Vec::new(),
            gathering_until: now + GATHERING,
            outcome: Some(outcome),
        };
        self.agents.insert(id, agent);
        self.refresh_agents(now);
        Some(id)
    }

    pub(crate) fn set_remote(&mut self, id: AgentId, c: &Credentials) {
        if let Some(a) = self.agents.get_mut(&id) {
            a.finder.set_remote(c);
        }
    }

    pub(crate) fn add_remote(&mut self, id: AgentId, candidates: &[Candidate]) {
        if let Some(a) = self.agents.get_mut(&id) {
            a.finder.add_remote(candidates);
        }
    }

    /// Ends a negotiation. Its checks are answered for a moment longer if it gave a path that is `used`; a peer must not
    /// believe in a path of one that was given up, because it lost a tie or another took its place.
    pub(crate) fn close_agent(&mut self, id: AgentId, used: bool, now: Instant) {
        self.done(id, Err("no path: the negotiation was given up".into()));
        let Some(a) = self.agents.remove(&id) else { return };
        self.ufrags.remove(&a.ufrag);
        for tid in &a.checks {
            self.tids.remove(tid);
        }
        if used && self.lingering.len() < MAX_LINGERING && !a.finder.has_failed() {
            self.lingering.insert(a.ufrag, (a.key, now + LINGER));
        }
    }

    pub(crate) fn answer_probes(&mut self, c: &Credentials) {
        if self.answers.len() < MAX_ANSWERS || self.answers.contains_key(&c.ufrag) {
            self.answers.insert(c.ufrag.clone(), Answer { key: Key::short(&c.password), heard: None });
        } else {
            tracing::warn!("more than {MAX_ANSWERS} links: probes of one more are not answered");
        }
    }

    pub(crate) fn forget(&mut self, ufrag: &str) {
        self.answers.remove(ufrag);
        self.lingering.remove(ufrag);
    }

    pub(crate) fn close(&mut self, now: Instant) {
        for t in &mut self.turn {
            t.close(now, &mut self.out);
        }
        self.stun.clear();
        self.closed = true;
        self.probes.clear();
        let agents: Vec<AgentId> = self.agents.keys().copied().collect();
        for id in agents {
            self.done(id, Err("no path: the node was closed".into()));
            self.close_agent(id, false, now);
        }
    }

    fn turn_of(&mut self, server: SocketAddr) -> Option<&mut Turn> {
        self.turn.iter_mut().find(|t| t.server() == server)
    }

    /// The kernel has no route to an address that was sent to.
    pub(crate) fn unreachable(&mut self, to: SocketAddr, now: Instant) {
        for s in self.stun.iter_mut().filter(|s| s.server() == to) {
            let _ = s.fail("cannot be reached: there is no route to it", now);
        }
        for t in self.turn.iter_mut().filter(|t| t.server() == to) {
            t.unreachable(now);
        }
        for a in self.agents.values_mut() {
            a.finder.unreachable(&Route::direct(to));
        }
        self.refresh_agents(now);
    }

    /// What time asks for.
    pub(crate) fn poll(&mut self, now: Instant) {
        let mut changed = false;
        let busy = !(self.agents.is_empty() && self.answers.is_empty());
        self.stun.iter_mut().for_each(|s| s.set_busy(busy, now));
        self.turn.iter_mut().for_each(|t| t.set_busy(busy, now));
        for i in 0..self.stun.len() {
            let event = self.stun[i].poll(now, &mut self.out);
            changed |= event.is_some();
        }
        for t in &mut self.turn {
            t.poll(now, &mut self.out);
        }
        for a in self.agents.values_mut() {
            changed |= a.candidates.is_some() && a.gathering_until <= now;
        }
        self.lingering.retain(|_, (_, until)| *until > now);
        if changed {
            self.refresh_agents(now);
        }
        self.pump(now);
    }

    /// When to poll next; `None` if nothing depends on time. Probes are their callers' to repeat.
    pub(crate) fn next(&self) -> Option<Instant> {
        let servers = self.stun.iter().map(Binding::next).chain(self.turn.iter().map(Turn::next));
        let gathering = self.agents.values().filter(|a| a.candidates.is_some()).map(|a| a.gathering_until);
        let lingering = self.lingering.values().map(|l| l.1);
        servers.chain(gathering).chain(lingering).min()
    }
}
