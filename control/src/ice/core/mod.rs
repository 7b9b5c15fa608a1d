//! Servers, negotiations and answers over the one port, without sockets and clocks.

mod local;
mod receive;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use dataplane::Path;
use dataplane::path::canonical;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use super::binding::{Binding, BindingEvent};
use super::candidate::{Candidate, CandidateKind, Credentials};
use super::checker::{Checker, Output, Role};
use super::route::{Route, Transmit};
use super::stun::{Key, Tid};
use super::turn::{Account, Turn, TurnEvent};
use super::types::{Failed, Found, IceEvent, ProbeError, ServerKind, ServerState, TurnServer};

/// Negotiations at once.
pub(crate) const MAX_AGENTS: usize = 512;
/// Links whose probes are answered.
const MAX_ANSWERS: usize = 4096;
/// Probes at once.
const MAX_PROBES: usize = 1024;
/// Servers of each kind.
const MAX_SERVERS: usize = 8;
/// How long a closed negotiation still answers: the peer may not have got our last answer.
const LINGER: Duration = Duration::from_secs(10);
/// A negotiation waits this long for servers before it says that it has told all its candidates.
const GATHERING: Duration = Duration::from_secs(3);
/// Rounds of events that cause events.
const MAX_ROUNDS: usize = 16;

/// Pauses after each sending of a probe.
const PROBE_PAUSES_MS: [u64; 4] = [200, 400, 600, 800];

pub(crate) type AgentId = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Agent(AgentId),
    Probe(u64),
}

struct Agent {
    checker: Checker,
    ufrag: String,
    key: Key,
    /// `None` when all candidates have been told.
    candidates: Option<mpsc::UnboundedSender<Vec<Candidate>>>,
    told: Vec<(SocketAddr, CandidateKind)>,
    gathering_until: Instant,
    outcome: Option<oneshot::Sender<Result<Found, Failed>>>,
}

struct Answer {
    key: Key,
    /// `None`: until told otherwise.
    until: Option<Instant>,
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

pub(crate) struct Core {
    port: u16,
    relay_private: bool,
    hosts: Vec<IpAddr>,
    stun: Vec<Binding>,
    turn: Vec<Turn>,
    agents: HashMap<AgentId, Agent>,
    ufrags: HashMap<String, AgentId>,
    answers: HashMap<String, Answer>,
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
            let account = Account { username: t.username, password: Zeroizing::new(t.password) };
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

    pub(crate) fn set_hosts(&mut self, mut hosts: Vec<IpAddr>, now: Instant) {
        for h in &mut hosts {
            *h = h.to_canonical();
        }
        hosts.dedup();
        let same = hosts.len() == self.hosts.len() && hosts.iter().all(|h| self.hosts.contains(h));
        if same {
            return;
        }
        let first = self.hosts.is_empty();
        self.hosts = hosts;
        self.stun.iter_mut().for_each(|s| s.restart(now));
        self.turn.iter_mut().for_each(|t| t.look(now));
        if !first {
            self.events.push(IceEvent::Changed { why: "the addresses of this machine changed".into() });
        }
        self.refresh_agents(now);
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
        role: Role,
        credentials: Credentials,
        candidates: mpsc::UnboundedSender<Vec<Candidate>>,
        outcome: oneshot::Sender<Result<Found, Failed>>,
        now: Instant,
    ) -> Option<AgentId> {
        if self.agents.len() >= MAX_AGENTS {
            return None;
        }
        let id = self.number();
        self.ufrags.insert(credentials.ufrag.clone(), id);
        let agent = Agent {
            ufrag: credentials.ufrag.clone(),
            key: Key::short(&credentials.password),
            checker: Checker::new(role, credentials, self.relay_private, now),
            candidates: Some(candidates),
            told: Vec::new(),
            gathering_until: now + GATHERING,
            outcome: Some(outcome),
        };
        self.agents.insert(id, agent);
        self.refresh_agents(now);
        Some(id)
    }

    pub(crate) fn set_remote(&mut self, id: AgentId, c: &Credentials, now: Instant) {
        if let Some(a) = self.agents.get_mut(&id) {
            a.checker.set_remote(c, now);
        }
    }

    pub(crate) fn add_remote(&mut self, id: AgentId, candidates: &[Candidate]) {
        if let Some(a) = self.agents.get_mut(&id) {
            a.checker.add_remote(candidates);
        }
    }

    /// Ends a negotiation. Its ufrag is answered for a moment longer.
    pub(crate) fn close_agent(&mut self, id: AgentId, now: Instant) {
        if let Some(a) = self.agents.get_mut(&id) {
            a.checker.abandon();
        }
        self.pump(now);
        let Some(a) = self.agents.remove(&id) else { return };
        self.ufrags.remove(&a.ufrag);
        self.tids.retain(|_, o| *o != Owner::Agent(id));
        if !self.answers.contains_key(&a.ufrag) {
            self.answer(a.ufrag, a.key, Some(now + LINGER), now);
        }
    }

    fn answer(&mut self, ufrag: String, key: Key, until: Option<Instant>, now: Instant) {
        if self.answers.len() >= MAX_ANSWERS {
            self.answers.retain(|_, a| a.until.is_none_or(|u| u > now));
        }
        if self.answers.len() < MAX_ANSWERS || self.answers.contains_key(&ufrag) {
            self.answers.insert(ufrag, Answer { key, until });
        } else {
            tracing::warn!("more than {MAX_ANSWERS} links: probes of one more are not answered");
        }
    }

    pub(crate) fn answer_probes(&mut self, c: &Credentials, now: Instant) {
        self.answer(c.ufrag.clone(), Key::short(&c.password), None, now);
    }

    pub(crate) fn forget(&mut self, ufrag: &str) {
        self.answers.remove(ufrag);
    }

    /// A relayed path is not used any more.
    pub(crate) fn release(&mut self, path: Path) {
        if let Path::Relay { server, channel } = path {
            if let Some(t) = self.turn_of(server) {
                t.release(channel);
            }
        }
    }

    pub(crate) fn close(&mut self, now: Instant) {
        for t in &mut self.turn {
            t.close(now, &mut self.out);
        }
        self.stun.clear();
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
            a.checker.unreachable(&Route::direct(to));
        }
        self.refresh_agents(now);
    }

    /// What time asks for.
    pub(crate) fn poll(&mut self, now: Instant) {
        let mut changed = false;
        for i in 0..self.stun.len() {
            let event = self.stun[i].poll(now, &mut self.out);
            changed |= event.is_some();
        }
        for t in &mut self.turn {
            t.poll(now, &mut self.out);
        }
        for a in self.agents.values_mut() {
            a.checker.poll(now);
            changed |= a.candidates.is_some() && a.gathering_until <= now;
        }
        self.poll_probes(now);
        self.answers.retain(|_, a| a.until.is_none_or(|u| u > now));
        if changed {
            self.refresh_agents(now);
        }
        self.pump(now);
    }

    /// When to poll next; `None` if nothing depends on time.
    pub(crate) fn next(&self) -> Option<Instant> {
        let servers = self.stun.iter().map(Binding::next).chain(self.turn.iter().map(Turn::next));
        let agents = self.agents.values().filter_map(|a| a.checker.next());
        let gathering = self.agents.values().filter(|a| a.candidates.is_some()).map(|a| a.gathering_until);
        let probes = self.probes.values().map(|p| p.next);
        let answers = self.answers.values().filter_map(|a| a.until);
        servers.chain(agents).chain(gathering).chain(probes).chain(answers).min()
    }

    /// Carries events and wishes between servers and negotiations until nothing moves.
    fn pump(&mut self, now: Instant) {
        for _ in 0..MAX_ROUNDS {
            let mut moved = false;
            for i in 0..self.turn.len() {
                for e in self.turn[i].take_events() {
                    moved = true;
                    self.turn_event(self.turn[i].server(), e, now);
                }
            }
            let mut wishes = Vec::new();
            for (id, a) in &mut self.agents {
                wishes.extend(a.checker.take_outputs().into_iter().map(|o| (*id, o)));
            }
            for (id, o) in wishes {
                moved = true;
                self.wish(id, o, now);
            }
            if !moved {
                return;
            }
            for t in &mut self.turn {
                t.poll(now, &mut self.out);
            }
            for a in self.agents.values_mut() {
                a.checker.poll(now);
            }
        }
    }

    fn turn_event(&mut self, server: SocketAddr, e: TurnEvent, now: Instant) {
        tracing::debug!(%server, ?e, "TURN");
        match e {
            TurnEvent::Up => {
                self.events.push(IceEvent::RelayUp { server });
                self.refresh_agents(now);
            }
            TurnEvent::Failed => self.refresh_agents(now),
            TurnEvent::Lost(why) => {
                self.relay_lost(server, &why);
                self.refresh_agents(now);
            }
            TurnEvent::Remapped { was } => {
                self.events.push(IceEvent::Changed { why: format!("{server} saw us at {was} until now") });
                self.refresh_agents(now);
            }
            TurnEvent::Permitted(ip, yes) => {
                for a in self.agents.values_mut() {
                    a.checker.permitted(server, ip, yes);
                }
            }
            TurnEvent::Bound(peer, r) => {
                for id in self.binders.remove(&(server, peer)).unwrap_or_default() {
                    let used = self.agents.get_mut(&id).is_some_and(|a| a.checker.bound(server, peer, &r));
                    if let (false, Ok(channel)) = (used, &r) {
                        self.release(Path::Relay { server, channel: *channel });
                    }
                }
            }
        }
    }

    fn relay_lost(&mut self, server: SocketAddr, why: &str) {
        tracing::info!(%server, why, "the relay is lost");
        self.events.push(IceEvent::RelayLost { server, why: why.to_owned() });
        self.binders.retain(|(s, _), _| *s != server);
        for a in self.agents.values_mut() {
            a.checker.relay_lost(server);
        }
    }

    fn stun_event(&mut self, server: SocketAddr, e: &BindingEvent, now: Instant) {
        if let BindingEvent::Mapped { was: Some(was) } = e {
            let mapped = self.stun.iter().find(|s| s.server() == server).and_then(|s| s.mapped);
            if mapped.is_some_and(|m| m != *was) {
                self.events.push(IceEvent::Changed { why: format!("{server} saw us at {was} until now") });
            }
        }
        self.refresh_agents(now);
    }

    /// Does what a negotiation wants.
    fn wish(&mut self, id: AgentId, o: Output, now: Instant) {
        match o {
            Output::Send(route, bytes) => self.send(route, bytes),
            Output::Expect(tid) => {
                self.tids.insert(tid, Owner::Agent(id));
            }
            Output::Permit { server, ip } => match self.turn_of(server) {
                Some(t) => t.permit(ip, now),
                None => {
                    if let Some(a) = self.agents.get_mut(&id) {
                        a.checker.permitted(server, ip, false);
                    }
                }
            },
            Output::Bind { server, peer } => {
                self.binders.entry((server, peer)).or_default().push(id);
                let out = &mut self.out;
                match self.turn.iter_mut().find(|t| t.server() == server) {
                    Some(t) => t.bind(peer, now, out),
                    None => self.turn_event(server, TurnEvent::Bound(peer, Err("no such server".into())), now),
                }
            }
            Output::Release { server, channel } => self.release(Path::Relay { server, channel }),
            Output::Done(r) => self.done(id, r),
        }
    }

    fn send(&mut self, route: Route, bytes: Vec<u8>) {
        let t = match route {
            Route::Direct(a) => Transmit { path: Path::Direct(a), bytes },
            Route::Relay { server, peer } => match self.turn.iter().find(|t| t.server() == server) {
                Some(t) if t.relayed.is_some() => t.wrap(peer, bytes),
                _ => return,
            },
        };
        self.out.push(t);
    }

    fn done(&mut self, id: AgentId, r: Result<super::checker::Chosen, String>) {
        let troubles = self.troubles();
        let Some(a) = self.agents.get_mut(&id) else { return };
        let outcome = match r {
            Ok(c) => {
                let path = match (c.route, c.channel) {
                    (Route::Relay { server, .. }, Some(channel)) => Path::Relay { server, channel },
                    (route, _) => Path::Direct(route.peer()),
                };
                let (local_kind, remote_kind) = (c.local_kind, c.remote_kind);
                Ok(Found { path, local_kind, remote_kind, rtt: c.rtt, why: c.why })
            }
            Err(why) => Err(Failed { why: format!("{why}{troubles}") }),
        };
        tracing::debug!(id, ?outcome, "negotiation ended");
        let undelivered = a.outcome.take().and_then(|tx| tx.send(outcome).err());
        if let Some(Ok(found)) = undelivered {
            self.release(found.path);
        }
    }

    fn troubles(&self) -> String {
        let errors = self.stun.iter().filter_map(|s| s.error.as_ref());
        errors.chain(self.turn.iter().filter_map(|t| t.error.as_ref())).map(|e| format!("; {e}")).collect()
    }
}
