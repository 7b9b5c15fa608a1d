//! The checks of one negotiation, by an agent of the `webrtc-ice` crate (RFC 8445).
//!
//! An agent lives from the start of a negotiation until shortly after a way is chosen. It gets one local candidate and,
//! as remote candidates, the addresses of ways ([`space`]): the port itself to each candidate of the peer, and each of
//! our allocations to it. What it sends and gets passes [`seam`], which turns addresses into ways again, binds channels
//! before a relayed way is agreed on, and thins out the agent's checks.

mod plan;
mod run;
mod seam;
mod space;
#[cfg(test)]
mod tests;
mod verdict;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use dataplane::table::Prefix;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::candidate::{Candidate, CandidateKind, Credentials};
use super::route::Route;
use super::stun::View;
use super::turn::Lease;
use plan::{Plan, Way};
use seam::Seam;

pub(crate) use plan::Relay;
pub(crate) use seam::Taken;
pub(crate) use verdict::Chosen;

/// From the peer's credentials to a path.
const DEADLINE: Duration = Duration::from_secs(10);
/// From our offer to the peer's credentials.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// Without any way to try, the peer may still reach us for this long after both sides said all they know.
const NOTHING_TO_TRY: Duration = Duration::from_secs(5);

/// Which side decides (RFC 8445, section 5.1.1): the one that initiated the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Nominates.
    Controlling,
    /// Takes what is nominated.
    Controlled,
}

/// What a negotiation stands on. Called without any lock of the finder.
pub(crate) trait Wire: Send + Sync + 'static {
    /// Sends one datagram, or drops it.
    fn send(&self, route: Route, bytes: &[u8]);
    /// No direct way works so far: [`Finder::want_relays`] is to be called.
    fn want_relays(&self);
    /// Asks for a channel; [`Finder::bound`] answers.
    fn bind(&self, server: SocketAddr, peer: SocketAddr);
    /// The end, once.
    fn done(&self, outcome: Result<Chosen, String>);
}

/// One negotiation. Closed when dropped.
pub(crate) struct Finder {
    plan: Plan,
    seam: Arc<Seam>,
    /// Dropped with this.
    _alive: oneshot::Sender<()>,
}

impl Finder {
    /// Starts one on `runtime`.
    pub(crate) fn new(
        runtime: &Handle,
        role: Role,
        credentials: Credentials,
        relay_private: bool,
        wire: Arc<dyn Wire>,
    ) -> Self {
        let (alive, gone) = oneshot::channel();
        let seam = Seam::new(role, credentials, wire);
        runtime.spawn(run::run(seam.clone(), gone));
        Self { plan: Plan::new(relay_private), seam, _alive: alive }
    }

    /// What this side has: families that it can send, its candidates, its allocations, and whether more may come.
    pub(crate) fn set_local(
        &mut self,
        families: (bool, bool),
        locals: Vec<(SocketAddr, CandidateKind)>,
        relays: Vec<Relay>,
        done: bool,
    ) {
        let ways = self.plan.set_local(families, locals, relays, done);
        self.tell(&ways);
    }

    /// Prefixes that are reached through the tunnel itself: what is there is no candidate, and no check that comes from
    /// there counts, as the path would lead through itself.
    pub(crate) fn set_overlay(&mut self, prefixes: &[Prefix]) {
        self.plan.set_overlay(prefixes);
        self.seam.lock().overlay = prefixes.to_vec();
    }

    /// The peer's credentials. Only the first ones count: new ones are a new negotiation.
    pub(crate) fn set_remote(&mut self, c: &Credentials) {
        self.seam.set_remote(c);
    }

    /// Candidates of the peer; none means that there are no more.
    pub(crate) fn add_remote(&mut self, candidates: &[Candidate]) {
        let ways = self.plan.add_remote(candidates);
        self.tell(&ways);
    }

    /// Relayed ways are made ready from now on.
    pub(crate) const fn want_relays(&mut self) {
        self.plan.want_relays();
    }

    /// Permissions to ask for since the last call; [`Self::permitted`] answers.
    pub(crate) fn take_permits(&mut self) -> Vec<(SocketAddr, IpAddr)> {
        self.plan.take_permits()
    }

    /// Whether data may be relayed to this address.
    pub(crate) fn permitted(&mut self, server: SocketAddr, ip: IpAddr, yes: bool) {
        let ways = self.plan.permitted(server, ip, yes);
        self.tell(&ways);
    }

    /// The answer to [`Wire::bind`]. If nobody waits for the channel any more, its use ends here.
    pub(crate) fn bound(&self, server: SocketAddr, peer: SocketAddr, channel: Result<Lease, String>) {
        self.seam.bound(server, peer, channel);
    }

    /// An allocation is gone.
    pub(crate) fn relay_lost(&mut self, server: SocketAddr) {
        self.plan.relay_lost(server);
        self.seam.relay_lost(server);
    }

    /// The kernel has no route there.
    pub(crate) fn unreachable(&self, route: &Route) {
        self.seam.unreachable(route);
    }

    /// A STUN message for this negotiation: a request with its ufrag, or a response to a request of its.
    pub(crate) fn incoming(&self, route: Route, v: &View<'_>) -> Taken {
        self.seam.push(route, v)
    }

    /// Whether it ended without a path: the peer must not believe that there is one.
    pub(crate) fn has_failed(&self) -> bool {
        self.seam.lock().broken.is_some()
    }

    /// Whether the agent is closed.
    pub(crate) fn is_finished(&self) -> bool {
        self.seam.is_closed()
    }

    fn tell(&self, ways: &[Way]) {
        self.seam.tell(ways, self.plan.is_told(), self.plan.remote_done, &self.plan.locals);
    }
}

impl Drop for Finder {
    fn drop(&mut self) {
        // Now, and not when its task comes to it: what it has bound is in use until then.
        self.seam.close();
    }
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
