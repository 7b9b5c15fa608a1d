//! Which ways are tried: each candidate of the peer directly, and through each allocation that may relay to it.

use std::net::{IpAddr, SocketAddr};

use dataplane::table::Prefix;

use super::super::candidate::{Candidate, CandidateKind};
use super::super::route::{Route, is_sendable, may_relay};

/// Candidates of the peer that were signalled.
pub(super) const MAX_REMOTE: usize = 24;
/// Allocations used for one negotiation.
const MAX_RELAYS: usize = 4;

/// An allocation that may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Relay {
    pub(crate) server: SocketAddr,
    pub(crate) relayed: SocketAddr,
}

/// A way to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) route: Route,
    pub(super) kind: CandidateKind,
    /// As the peer signalled it.
    pub(super) priority: u32,
}

/// What is known of both sides.
#[derive(Debug)]
pub(super) struct Plan {
    relay_private: bool,
    overlay: Vec<Prefix>,
    relays: Vec<Relay>,
    /// Which families the port can send: IPv4, IPv6.
    families: (bool, bool),
    pub(super) locals: Vec<(SocketAddr, CandidateKind)>,
    pub(super) local_done: bool,
    pub(super) remotes: Vec<(SocketAddr, CandidateKind, u32)>,
    pub(super) remote_done: bool,
    /// Made already.
    made: Vec<Route>,
    /// Ways whose relay has not said yet whether it may be used.
    frozen: Vec<Way>,
    permits: Vec<(SocketAddr, IpAddr)>,
    /// Direct ways had their time. Servers permit few addresses: none is asked for that is not needed.
    relays_wanted: bool,
}

impl Plan {
    pub(super) fn new(relay_private: bool) -> Self {
        Self {
            relay_private,
            overlay: Vec::new(),
            relays: Vec::new(),
            families: (true, true),
            locals: Vec::new(),
            local_done: false,
            remotes: Vec::new(),
            remote_done: false,
            made: Vec::new(),
            frozen: Vec::new(),
            permits: Vec::new(),
            relays_wanted: false,
        }
    }

    pub(super) fn set_overlay(&mut self, prefixes: &[Prefix]) {
        self.overlay = prefixes.to_vec();
    }

    /// What this side has: families that it can send, its candidates, its allocations, and whether more may come.
    /// Returns ways that can be tried at once.
    pub(super) fn set_local(
        &mut self,
        families: (bool, bool),
        locals: Vec<(SocketAddr, CandidateKind)>,
        relays: Vec<Relay>,
        done: bool,
    ) -> Vec<Way> {
        (self.families, self.locals, self.local_done) = (families, locals, done);
        self.relays = relays;
        self.relays.truncate(MAX_RELAYS);
        self.remotes.clone().into_iter().flat_map(|r| self.pair_up(r)).collect()
    }

    /// Candidates of the peer; none means that there are no more.
    pub(super) fn add_remote(&mut self, candidates: &[Candidate]) -> Vec<Way> {
        self.remote_done |= candidates.is_empty();
        let mut ways = Vec::new();
        for c in candidates {
            let address = dataplane::path::canonical(c.address);
            let known = self.remotes.iter().any(|r| r.0 == address);
            let loops = self.overlay.iter().any(|p| p.contains(address.ip()));
            if is_sendable(address) && !loops && !known && self.remotes.len() < MAX_REMOTE {
                let remote = (address, c.kind, c.priority);
                self.remotes.push(remote);
                ways.extend(self.pair_up(remote));
            }
        }
        ways
    }

    fn pair_up(&mut self, (address, kind, priority): (SocketAddr, CandidateKind, u32)) -> Vec<Way> {
        let mut ways = Vec::new();
        let can = if address.is_ipv4() { self.families.0 } else { self.families.1 };
        // Loopback is for those who are on it: nobody else's candidate makes us talk to local services.
        let foreign = address.ip().is_loopback() && !self.locals.iter().any(|(a, _)| a.ip().is_loopback());
        let direct = Route::direct(address);
        if can && !foreign && !self.made.contains(&direct) {
            self.made.push(direct);
            ways.push(Way { route: direct, kind, priority });
        }
        for Relay { server, relayed } in self.relays.clone() {
            let route = Route::Relay { server, peer: address };
            let may = address != relayed && may_relay(server, relayed, address, self.relay_private);
            if may && !self.made.contains(&route) {
                self.made.push(route);
                self.frozen.push(Way { route, kind, priority });
                self.permits.push((server, address.ip()));
            }
        }
        ways
    }

    pub(super) const fn want_relays(&mut self) {
        self.relays_wanted = true;
    }

    /// Permissions to ask for since the last call: server and address. None before relays are wanted.
    pub(super) fn take_permits(&mut self) -> Vec<(SocketAddr, IpAddr)> {
        if self.relays_wanted { std::mem::take(&mut self.permits) } else { Vec::new() }
    }

    /// A server's answer. Returns the ways that can be tried now.
    pub(super) fn permitted(&mut self, server: SocketAddr, ip: IpAddr, yes: bool) -> Vec<Way> {
        let of = |w: &Way| matches!(w.route, Route::Relay { server: s, peer } if s == server && peer.ip() == ip);
        let (mut now, later): (Vec<Way>, Vec<Way>) = self.frozen.drain(..).partition(of);
        self.frozen = later;
        if !yes {
            now.clear();
        }
        now
    }

    /// An allocation is gone. With a new one on that server, its ways are made again.
    pub(super) fn relay_lost(&mut self, server: SocketAddr) {
        let on = |r: &Route| matches!(r, Route::Relay { server: s, .. } if *s == server);
        self.relays.retain(|r| r.server != server);
        self.made.retain(|r| !on(r));
        self.frozen.retain(|w| !on(&w.route));
        self.permits.retain(|(s, _)| *s != server);
    }

    /// Whether both sides said all they know.
    pub(super) const fn is_told(&self) -> bool {
        self.remote_done && self.local_done
    }
}
