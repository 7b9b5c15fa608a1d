//! Which candidates this node has.

use std::net::SocketAddr;
use std::time::Instant;

use super::super::candidate::{Candidate, CandidateKind};
use super::super::finder::{Relay, preference, priority};
use super::Core;

/// Reflexive and relayed candidates told to a peer, each.
const MAX_REFLEXIVE: usize = 6;

impl Core {
    /// All candidates that there are now, best first.
    pub(super) fn local_candidates(&self) -> Vec<Candidate> {
        let mut list: Vec<Candidate> = Vec::new();
        for (i, ip) in self.hosts.iter().enumerate() {
            let address = SocketAddr::new(*ip, self.port);
            push(&mut list, CandidateKind::Host, address, None, i, format!("h{i}"));
        }
        let base = |a: &SocketAddr| self.hosts.iter().find(|h| h.is_ipv4() == a.is_ipv4()).copied();
        let mapped = self.stun.iter().filter_map(|s| s.mapped.map(|m| (s.server(), m)));
        let mapped = mapped.chain(self.turn.iter().filter_map(|t| t.mapped.map(|m| (t.server(), m))));
        let mapped = mapped.filter(|(_, m)| !self.is_overlay(m.ip()));
        for (i, (server, address)) in mapped.enumerate() {
            if list.iter().filter(|c| c.kind == CandidateKind::ServerReflexive).count() < MAX_REFLEXIVE {
                let related = base(&address).map(|ip| SocketAddr::new(ip, self.port));
                push(&mut list, CandidateKind::ServerReflexive, address, related, i, foundation('s', server));
            }
        }
        for (i, t) in self.turn.iter().enumerate() {
            if let Some(address) = t.offered() {
                push(&mut list, CandidateKind::Relayed, address, t.mapped, i, foundation('r', t.server()));
            }
        }
        list
    }

    fn families(&self) -> (bool, bool) {
        let all = self.hosts.is_empty();
        (all || self.hosts.iter().any(|h| h.is_ipv4()), all || self.hosts.iter().any(|h| h.is_ipv6()))
    }

    /// Tells the negotiations what is new, and when it is all.
    pub(super) fn refresh_agents(&mut self, now: Instant) {
        if self.agents.is_empty() {
            return;
        }
        let candidates = self.local_candidates();
        let settled = self.stun.iter().all(|s| s.is_settled()) && self.turn.iter().all(|t| t.is_settled());
        let families = self.families();
        let relays: Vec<Relay> =
            self.turn.iter().filter_map(|t| Some(Relay { server: t.server(), relayed: t.offered()? })).collect();
        for a in self.agents.values_mut() {
            let done = settled || a.gathering_until <= now;
            let locals = candidates.iter().map(|c| (c.address, c.kind)).collect();
            a.finder.set_local(families, locals, relays.clone(), done);
            let new: Vec<Candidate> =
                candidates.iter().filter(|c| !a.told.contains(&(c.address, c.kind))).cloned().collect();
            a.told.extend(new.iter().map(|c| (c.address, c.kind)));
            if let Some(tx) = &a.candidates {
                // Nobody listens any more if this fails: the agent is about to be closed.
                if !new.is_empty() {
                    let _ = tx.send(new);
                }
                if done {
                    a.candidates = None;
                }
            }
        }
    }
}

fn push(
    list: &mut Vec<Candidate>,
    kind: CandidateKind,
    address: SocketAddr,
    related: Option<SocketAddr>,
    nth: usize,
    foundation: String,
) {
    // A mapped address that is an own one (no NAT) is told once, as what it is.
    if list.iter().any(|c| c.address == address) {
        return;
    }
    let preference = preference(address).saturating_sub(nth as u16);
    list.push(Candidate { foundation, priority: priority(kind, preference), address, kind, related });
}

/// Alphanumeric, as RFC 8839 wants it.
fn foundation(kind: char, server: SocketAddr) -> String {
    let mut text = String::from(kind);
    text.extend(server.to_string().chars().filter(char::is_ascii_alphanumeric));
    text.truncate(32);
    text
}
