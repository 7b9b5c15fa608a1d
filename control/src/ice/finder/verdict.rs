//! What was found, in words.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use super::super::candidate::CandidateKind;
use super::super::route::Route;
use super::super::turn::Lease;
use super::seam::State;

/// A way that works and is taken by both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) route: Route,
    /// Bound, if the way goes through an allocation of ours.
    pub(crate) channel: Option<Lease>,
    pub(crate) local_kind: CandidateKind,
    pub(crate) remote_kind: CandidateKind,
    pub(crate) rtt: Option<Duration>,
    pub(crate) why: String,
}

impl State {
    /// Takes a way: its channel is the caller's from now on.
    pub(super) fn take(&mut self, route: Route) -> Result<Chosen, String> {
        let Some(way) = self.ways.get_mut(&route) else {
            return Err(format!("the agent chose {route:?}, which is no way"));
        };
        if way.dead {
            return Err("no path: the relay of the agreed path is gone".into());
        }
        let channel = way.take_channel();
        if route.is_relay() && channel.is_none() {
            return Err("no path: the agreed path has no channel on its relay".into());
        }
        let (remote_kind, rtt, mapped) = (way.kind, way.rtt, way.mapped);
        let local_kind = if route.is_relay() { CandidateKind::Relayed } else { self.local_kind(route, mapped) };
        let why = self.reason(route, local_kind, remote_kind);
        Ok(Chosen { route, channel, local_kind, remote_kind, rtt, why })
    }

    /// What the peer sees us as over a direct way.
    fn local_kind(&self, route: Route, mapped: Option<SocketAddr>) -> CandidateKind {
        let by_address = mapped.and_then(|m| self.locals.iter().find(|(a, _)| *a == m)).map(|(_, k)| *k);
        by_address.unwrap_or_else(|| {
            // Over its relay, the peer says a way's address instead of ours: then what others see is told.
            let family =
                |k: CandidateKind| self.locals.iter().any(|(a, l)| *l == k && a.is_ipv4() == route.peer().is_ipv4());
            match self.ways.get(&route).map(|w| w.kind) {
                Some(CandidateKind::Relayed) if family(CandidateKind::ServerReflexive) => {
                    CandidateKind::ServerReflexive
                }
                Some(CandidateKind::Relayed) => CandidateKind::Host,
                _ => CandidateKind::PeerReflexive,
            }
        })
    }

    fn reason(&self, route: Route, local: CandidateKind, remote: CandidateKind) -> String {
        let over = match (route, remote) {
            (Route::Relay { server, .. }, CandidateKind::Relayed) => format!("our relay {server} and the peer's"),
            (Route::Relay { server, .. }, _) => format!("our relay {server}"),
            (Route::Direct(a), CandidateKind::Relayed) => format!("the peer's relay {a}"),
            (Route::Direct(_), _) => return format!("direct ({local} to {remote})"),
        };
        let because = match self.ways.iter().filter(|(r, w)| w.hops(r) == 0).count() {
            0 => "the peer has no address that can be tried directly".into(),
            1 => "the direct check was not answered".into(),
            n => format!("none of {n} direct checks was answered"),
        };
        format!("relayed over {over} because {because}")
    }

    /// Why there is nothing to take.
    pub(super) fn failure(&self) -> String {
        if self.remote.is_none() {
            return "no path: the peer did not answer the offer".into();
        }
        let of = |kinds: &[CandidateKind]| {
            let mut text = String::new();
            for kind in [CandidateKind::Host, CandidateKind::ServerReflexive, CandidateKind::Relayed] {
                let n = kinds.iter().filter(|k| **k == kind).count();
                let _ = write!(text, "{}{n} {kind}", if text.is_empty() { "" } else { ", " });
            }
            text
        };
        let ours: Vec<_> = self.locals.iter().map(|(_, k)| *k).collect();
        let mut theirs: Vec<_> = self.ways.iter().map(|(r, w)| (r.peer(), w.kind)).collect();
        theirs.sort_unstable();
        theirs.dedup();
        let theirs: Vec<_> = theirs.into_iter().map(|(_, k)| k).collect();
        let answered = self.ways.values().filter(|w| w.rtt.is_some()).count();
        let tried = self.ways.values().filter(|w| w.requests > 0).count();
        let what = match (tried, answered) {
            (0, _) => "there was nothing to try".to_owned(),
            (n, 0) => format!("none of {n} checks was answered"),
            (n, a) => format!("{a} of {n} checks were answered, but none was agreed on"),
        };
        let refused = self.ways.values().find_map(|w| w.refusal());
        let refused = refused.map(|why| format!("; a relay refused a channel: {why}")).unwrap_or_default();
        format!("no path: {what} (ours: {}; the peer's: {}){refused}", of(&ours), of(&theirs))
    }
}
