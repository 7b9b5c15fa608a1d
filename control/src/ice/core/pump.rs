//! Carries what servers say to negotiations, and what those want to servers and to the port.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use dataplane::Path;

use super::super::binding::BindingEvent;
use super::super::finder::Chosen;
use super::super::route::{Route, Transmit};
use super::super::stun::{Class, View};
use super::super::turn::{Turn, TurnEvent};
use super::super::types::{Failed, Found, IceEvent};
use super::{Agent, AgentId, Core, MAX_CHECKS, Owner};

/// Rounds of events that cause events.
const MAX_ROUNDS: usize = 16;

impl Core {
    /// Carries events and wishes between servers and negotiations until nothing moves.
    pub(super) fn pump(&mut self, now: Instant) {
        for _ in 0..MAX_ROUNDS {
            let mut moved = false;
            for i in 0..self.turn.len() {
                for e in self.turn[i].take_events() {
                    moved = true;
                    self.turn_event(self.turn[i].server(), e, now);
                }
            }
            for (id, server, ip) in self.permits() {
                moved = true;
                self.permit(id, server, ip, now);
            }
            if !moved {
                return;
            }
            for t in &mut self.turn {
                t.poll(now, &mut self.out);
            }
        }
    }

    fn permits(&mut self) -> Vec<(AgentId, SocketAddr, IpAddr)> {
        let of = |(id, a): (&AgentId, &mut Agent)| {
            let id = *id;
            a.finder.take_permits().into_iter().map(move |(server, ip)| (id, server, ip)).collect::<Vec<_>>()
        };
        self.agents.iter_mut().flat_map(of).collect()
    }

    fn permit(&mut self, id: AgentId, server: SocketAddr, ip: IpAddr, now: Instant) {
        match self.turn_of(server) {
            Some(t) => t.permit(ip, now),
            None => {
                if let Some(a) = self.agents.get_mut(&id) {
                    a.finder.permitted(server, ip, false);
                }
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
            TurnEvent::Failed | TurnEvent::Doubtful | TurnEvent::Confirmed => self.refresh_agents(now),
            TurnEvent::Lost(why) => {
                self.relay_lost(server, &why);
                self.refresh_agents(now);
            }
            TurnEvent::Remapped { was } => {
                let mapped = self.turn.iter().find(|t| t.server() == server).and_then(|t| t.mapped);
                self.moved(server, was, mapped);
                self.refresh_agents(now);
            }
            TurnEvent::Permitted(ip, yes) => {
                for a in self.agents.values_mut() {
                    a.finder.permitted(server, ip, yes);
                }
            }
            TurnEvent::Bound(peer, r) => {
                for id in self.binders.remove(&(server, peer)).unwrap_or_default() {
                    // One use for each who waits; whoever does not wait any more drops it.
                    let lease = || self.turn.iter().find(|t| t.server() == server)?.lease(peer);
                    let r = r.clone().and_then(|_| lease().ok_or_else(|| "the channel has lapsed".to_owned()));
                    if let Some(a) = self.agents.get(&id) {
                        a.finder.bound(server, peer, r);
                    }
                }
            }
        }
    }

    pub(super) fn relay_lost(&mut self, server: SocketAddr, why: &str) {
        tracing::info!(%server, why, "the relay is lost");
        self.events.push(IceEvent::RelayLost { server, why: why.to_owned() });
        self.binders.retain(|(s, _), _| *s != server);
        for a in self.agents.values_mut() {
            a.finder.relay_lost(server);
        }
    }

    /// A server sees us at another address than before. One NAT that was rebooted is one event: the first server to see the
    /// new address tells, others that see the same follow.
    fn moved(&mut self, server: SocketAddr, was: SocketAddr, mapped: Option<SocketAddr>) {
        let all = self.stun.iter().map(|s| s.mapped).chain(self.turn.iter().map(|t| t.mapped));
        if mapped.is_some_and(|m| m != was) && all.filter(|m| *m == mapped).count() < 2 {
            self.events.push(IceEvent::Changed { why: format!("{server} saw us at {was} until now") });
        }
    }

    pub(super) fn stun_event(&mut self, server: SocketAddr, e: &BindingEvent, now: Instant) {
        if let BindingEvent::Mapped { was: Some(was) } = e {
            let mapped = self.stun.iter().find(|s| s.server() == server).and_then(|s| s.mapped);
            self.moved(server, *was, mapped);
        }
        self.refresh_agents(now);
    }

    /// A negotiation finds no direct way: it asks for permissions from now on.
    pub(crate) fn want_relays(&mut self, id: AgentId) {
        if let Some(a) = self.agents.get_mut(&id) {
            a.finder.want_relays();
        }
    }

    /// A negotiation needs a channel.
    pub(crate) fn bind(&mut self, id: AgentId, server: SocketAddr, peer: SocketAddr, now: Instant) {
        self.binders.entry((server, peer)).or_default().push(id);
        let out = &mut self.out;
        match self.turn.iter_mut().find(|t| t.server() == server) {
            Some(t) => t.bind(peer, now, out),
            None => self.turn_event(server, TurnEvent::Bound(peer, Err("no such server".into())), now),
        }
    }

    /// A negotiation sends: the answers to its checks are known by their ids.
    pub(crate) fn send_check(&mut self, id: AgentId, route: Route, bytes: Vec<u8>) {
        let Some(a) = self.agents.get_mut(&id) else { return };
        if let Some(v) = View::parse(&bytes).filter(|v| v.class() == Class::Request) {
            if a.checks.len() >= MAX_CHECKS
                && let Some(oldest) = a.checks.pop_front()
            {
                self.tids.remove(&oldest);
            }
            a.checks.push_back(v.tid());
            self.tids.insert(v.tid(), Owner::Agent(id));
        }
        self.send(route, bytes);
    }

    pub(super) fn send(&mut self, route: Route, bytes: Vec<u8>) {
        let t = match route {
            Route::Direct(a) => Transmit { path: Path::Direct(a), bytes },
            Route::Relay { server, peer } => match self.turn.iter().find(|t| t.server() == server) {
                Some(t) if t.relayed.is_some() => t.wrap(peer, bytes),
                _ => return,
            },
        };
        self.out.push(t);
    }

    pub(crate) fn done(&mut self, id: AgentId, r: Result<Chosen, String>) {
        let troubles = self.troubles();
        let outcome = match r {
            Ok(c) => {
                let path = match (c.route, &c.channel) {
                    (Route::Relay { server, .. }, Some(lease)) => Path::Relay { server, channel: lease.number() },
                    (route, _) => Path::Direct(route.peer()),
                };
                let (local_kind, remote_kind) = (c.local_kind, c.remote_kind);
                Ok(Found { path, local_kind, remote_kind, rtt: c.rtt, why: c.why, lease: c.channel })
            }
            Err(why) => Err(Failed { why: format!("{why}{troubles}") }),
        };
        tracing::debug!(id, ?outcome, "negotiation ended");
        if let Some(tx) = self.agents.get_mut(&id).and_then(|a| a.outcome.take()) {
            // Nobody listens any more: then nobody uses the path, either.
            let _ = tx.send(outcome);
        }
    }

    fn troubles(&self) -> String {
        let errors = self.stun.iter().filter_map(|s| s.error.as_ref());
        let errors = errors.map(String::as_str);
        errors.chain(self.turn.iter().filter_map(Turn::trouble)).map(|e| format!("; {e}")).collect()
    }
}
