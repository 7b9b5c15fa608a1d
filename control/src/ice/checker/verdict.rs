//! When to be content, with what, and why.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::super::candidate::CandidateKind;
use super::super::route::Route;
use super::pair::{Channel, Pair, PairState};
use super::{Checker, Output, Role};

/// How long a check without a relay has before a relayed way is taken instead.
const DIRECT_PATIENCE: Duration = Duration::from_millis(700);
/// The same for one relay instead of two.
const RELAY_PATIENCE: Duration = Duration::from_millis(300);
/// How long a better direct way has when another direct one works.
const BETTER_PATIENCE: Duration = Duration::from_millis(60);
/// How long candidates that were announced but did not come yet are waited for.
const TRICKLE_PATIENCE: Duration = Duration::from_millis(500);
/// Whatever else is open: no longer than this from the first way that works.
const LONGEST_PATIENCE: Duration = Duration::from_millis(2000);
/// How often to look while being patient.
const TICK: Duration = Duration::from_millis(20);
/// Without any pair, the peer may still reach us for this long after both sides said all they know.
const NOTHING_TO_TRY: Duration = Duration::from_secs(5);

/// A way that works and is taken by both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) route: Route,
    /// Bound, if the way goes through an allocation of ours.
    pub(crate) channel: Option<u16>,
    pub(crate) local_kind: CandidateKind,
    pub(crate) remote_kind: CandidateKind,
    pub(crate) rtt: Option<Duration>,
    pub(crate) why: String,
}

impl Checker {
    /// Looks whether there is something to nominate, to take, or to give up.
    pub(super) fn decide(&mut self, now: Instant) {
        if self.finished {
            return;
        }
        let taken = self.pairs.iter().position(|p| p.nominated && p.is_usable());
        if let Some(i) = taken {
            return self.take(i);
        }
        if now >= self.deadline || self.is_hopeless(now) {
            let why = self.failure();
            return self.finish(Err(why));
        }
        // Only an empty list waits for nothing but time.
        let give_up = self.deadline - (super::DEADLINE - NOTHING_TO_TRY);
        self.decide_at = (self.is_told() && self.pairs.is_empty() && give_up > now).then_some(give_up);
        if self.role == Role::Controlling {
            self.nominate(now);
        }
    }

    /// Whether both sides said all they know.
    fn is_told(&self) -> bool {
        self.remote.is_some() && self.remote_done && self.local_done
    }

    fn nominate(&mut self, now: Instant) {
        let best = self.pairs.iter().enumerate().filter(|(_, p)| p.state == PairState::Succeeded);
        let Some(best) = best.min_by_key(|(_, p)| p.rank()).map(|(i, _)| i) else { return };
        let under_way = |p: &Pair| p.check.as_ref().is_some_and(|c| c.nominates);
        if let Some(i) = self.nominee
            && under_way(&self.pairs[i])
        {
            return;
        }
        if self.nominee.is_some_and(|i| i != best) {
            self.nominee = None;
        }
        self.decide_at = Some(now + TICK);
        // The channel is bound while there is time; it is given back if the way is not taken.
        self.want_channel(best);
        if self.is_worth_waiting(best, now) {
            return;
        }
        self.nominee = Some(best);
        if self.pairs[best].is_usable() {
            self.decide_at = None;
            self.send_check(best, true, now);
        }
    }

    /// Whether something better than `best` may still be answered.
    fn is_worth_waiting(&self, best: usize, now: Instant) -> bool {
        let best = &self.pairs[best];
        let since = |t: Instant| now.saturating_duration_since(t);
        let valid_for = self.first_valid.map_or(Duration::ZERO, since);
        if valid_for >= LONGEST_PATIENCE {
            return false;
        }
        if best.hops() > 0 && !(self.remote_done && self.local_done) && valid_for < TRICKLE_PATIENCE {
            return true;
        }
        self.pairs.iter().any(|p| {
            let patience = match (best.hops(), p.hops()) {
                (0, 0) => BETTER_PATIENCE,
                (1.., 0) => DIRECT_PATIENCE,
                (2.., 1) => RELAY_PATIENCE,
                _ => return false,
            };
            p.is_open() && p.rank() < best.rank() && p.first_sent.is_none_or(|t| since(t) < patience)
        })
    }

    fn is_hopeless(&self, now: Instant) -> bool {
        let tried = if self.pairs.is_empty() {
            // The deadline is set when the credentials come, so this is the time since then.
            self.deadline.saturating_duration_since(now) + NOTHING_TO_TRY <= super::DEADLINE
        } else {
            self.pairs.iter().all(|p| p.state == PairState::Failed)
        };
        self.is_told() && tried
    }

    fn take(&mut self, i: usize) {
        let p = &self.pairs[i];
        let channel = match p.channel {
            Channel::Bound(n) => Some(n),
            Channel::None | Channel::Asked => None,
        };
        let local_kind = if p.route.is_relay() {
            CandidateKind::Relayed
        } else {
            let seen = p.mapped.and_then(|m| self.locals.iter().find(|(a, _)| *a == m)).map(|(_, k)| *k);
            seen.unwrap_or(CandidateKind::PeerReflexive)
        };
        let chosen = Chosen {
            route: p.route,
            channel,
            local_kind,
            remote_kind: p.remote_kind,
            rtt: p.rtt,
            why: self.reason(p, local_kind),
        };
        self.pairs[i].channel = Channel::None;
        self.finish(Ok(chosen));
    }

    /// Ends without a path: the agent was closed. Channels bound for nothing are given back.
    pub(crate) fn abandon(&mut self) {
        if !self.finished {
            self.finish(Err("the negotiation was given up".into()));
        }
    }

    fn finish(&mut self, r: Result<Chosen, String>) {
        self.finished = true;
        for i in 0..self.pairs.len() {
            self.pairs[i].check = None;
            self.give_channel_back(i);
        }
        self.outputs.push(Output::Done(r));
    }

    fn reason(&self, p: &Pair, local: CandidateKind) -> String {
        if p.hops() == 0 {
            return format!("direct ({local} to {})", p.remote_kind);
        }
        let over = match (p.route, p.remote_kind) {
            (Route::Relay { server, .. }, CandidateKind::Relayed) => format!("our relay {server} and the peer's"),
            (Route::Relay { server, .. }, _) => format!("our relay {server}"),
            (Route::Direct(a), _) => format!("the peer's relay {a}"),
        };
        let direct = self.pairs.iter().filter(|p| p.hops() == 0).count();
        let because = match direct {
            0 => "the peer has no address that can be tried directly".into(),
            1 => "the direct check was not answered".into(),
            n => format!("none of {n} direct checks was answered"),
        };
        format!("relayed over {over} because {because}")
    }

    fn failure(&self) -> String {
        let of = |list: &mut dyn Iterator<Item = CandidateKind>| {
            let kinds: Vec<CandidateKind> = list.collect();
            let mut text = String::new();
            for kind in [CandidateKind::Host, CandidateKind::ServerReflexive, CandidateKind::Relayed] {
                let n = kinds.iter().filter(|k| **k == kind).count();
                let _ = write!(text, "{}{n} {kind}", if text.is_empty() { "" } else { ", " });
            }
            text
        };
        let ours = of(&mut self.locals.iter().map(|(_, k)| *k));
        let theirs = of(&mut self.remotes.iter().map(|r| r.1));
        if self.remote.is_none() {
            return "no path: the peer did not answer the offer".into();
        }
        let answered = self.pairs.iter().filter(|p| p.answered).count();
        let tried = self.pairs.iter().filter(|p| p.first_sent.is_some()).count();
        let what = match (tried, answered) {
            (0, _) => "there was nothing to try".to_owned(),
            (n, 0) => format!("none of {n} checks was answered"),
            (n, a) => format!("{a} of {n} checks were answered, but none was agreed on"),
        };
        format!("no path: {what} (ours: {ours}; the peer's: {theirs})")
    }
}
