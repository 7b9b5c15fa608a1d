//! What happens around the attempts: presence, signalling, traffic, changed networks, the end.

use super::liveness::Act;
use super::machine::{Current, Link, Shown};
use super::{Output, State, timing};
use crate::xmpp::Reason;
use dataplane::{Path, Time};
use std::time::Duration;

impl Link {
    pub(super) fn wanted(&mut self, now: Time) {
        let usable = self.current.as_ref().is_some_and(|c| c.session) && !self.liveness.dead();
        if usable {
            return;
        }
        let quiet = self.wanted_at.is_none_or(|at| now.since(at) >= timing::QUIET);
        // A path that is on trial was asked for already.
        if quiet && self.current.is_none() && self.shown.state == State::Idle {
            self.failures = 0;
            self.retry_at = self.retry_at.min(now);
        }
        self.wanted_at = Some(now);
    }

    /// News that make success likelier: the back-off starts again.
    fn reset_backoff(&mut self, now: Time, spread: Duration) {
        if self.reset_at.is_some_and(|at| now.since(at) < timing::RESET) {
            return;
        }
        self.reset_at = Some(now);
        self.failures = 0;
        self.retry_at = self.retry_at.min(now + self.rng.up_to(spread));
    }

    pub(super) fn peer_online(&mut self, now: Time) {
        let was = std::mem::replace(&mut self.online, true);
        self.reset_backoff(now, Duration::ZERO);
        if !was {
            self.able_at = now;
            self.suppressed = false;
            // It may have been restarted and know nothing of us.
            self.liveness.ask(now);
        }
    }

    pub(super) fn peer_offline(&mut self, now: Time) {
        self.online = false;
        if !self.signaling {
            return;
        }
        self.drop_searching();
        if self.current.is_some() && self.liveness.dead() {
            self.end_all(None);
            self.forget(now, "the peer is offline");
        }
    }

    pub(super) fn signaling_up(&mut self, now: Time) {
        if !std::mem::replace(&mut self.signaling, true) {
            self.able_at = now;
            self.suppressed = false;
            self.renegotiate_at = self.renegotiate_at.map(|at| at.max(now + self.rng.up_to(timing::SPREAD)));
            self.reset_backoff(now, timing::SPREAD);
        }
    }

    pub(super) fn signaling_down(&mut self, now: Time) {
        self.signaling = false;
        self.drop_unanswered(now);
    }

    pub(super) fn network_changed(&mut self, now: Time) {
        if self.current.is_none() && self.attempts.is_empty() && !self.wants() {
            return;
        }
        self.reset_backoff(now, timing::SPREAD);
        self.direct_tries = 0;
        self.liveness.ask(now);
        if self.renegotiate_at.is_none() {
            let soon = now + self.rng.up_to(timing::SPREAD);
            let earliest = self.network_at.map_or(soon, |at| at + timing::NETWORK_AGAIN);
            self.renegotiate_at = Some(soon.max(earliest));
        }
    }

    pub(super) fn session(&mut self, now: Time, at: Time) {
        if self.session_at.is_some_and(|known| known >= at) {
            return;
        }
        self.session_at = Some(at);
        let Some(c) = &self.current else { return };
        // The controlled end knows of the path first: its handshake may be over before our agent says that it has one,
        // and be told after that. The tunnel will make no second one so soon.
        let found_by = self.attempts.iter().find(|a| c.sid.as_ref() == Some(&a.sid));
        if at >= found_by.map_or(c.since, |a| a.started.min(c.since)) {
            self.prove(now);
            self.revived(now, |l| l.liveness.proof(at));
        }
    }

    pub(super) fn activity(&mut self, now: Time, received: Option<Time>, sent: Option<Time>, path: Option<Path>) {
        let received = received.map(|at| at.min(now));
        let sent = sent.map(|at| at.min(now));
        self.data_at = [Some(self.data_at), received, sent].into_iter().flatten().max().unwrap_or(self.data_at);
        match (&self.current, path) {
            (None, Some(path)) => {
                let fresh = |at: Option<Time>| at.is_some_and(|at| self.forgotten_at.is_none_or(|f| at > f));
                if fresh(received) || fresh(self.session_at) {
                    self.reached(now, path);
                }
            }
            (Some(c), Some(path)) if received.is_some_and(|at| at > c.since) => {
                if c.path == path {
                    self.prove(now);
                } else {
                    self.roamed(now, path);
                }
            }
            _ => {}
        }
        if self.current.as_ref().is_some_and(|c| c.session) {
            self.revived(now, |l| l.liveness.look(now, sent, received));
            self.measure(now);
        }
    }

    /// A busy path needs no proof, and would have no round trip time.
    fn measure(&mut self, now: Time) {
        let can = self.current.as_ref().is_some_and(|c| c.sid.is_some());
        let busy = now.since(self.data_at) < timing::UNANSWERED * 2;
        if can && busy && !self.liveness.dead() && now.since(self.rtt_at) >= timing::RTT_AGAIN {
            self.rtt_at = now;
            self.liveness.ask(now);
        }
    }

    /// The peer's handshake came to us by itself: over a path that only it knows, or that an agent is still to confirm.
    fn reached(&mut self, now: Time, path: Path) {
        let relayed = matches!(path, Path::Relay { .. });
        self.current = Some(Current { path, relayed, since: now, session: false, sid: None });
        self.prove(now);
    }

    /// The tunnel follows the peer to where its last authentic packet came from.
    fn roamed(&mut self, now: Time, path: Path) {
        let known = self.attempts.iter().find_map(|a| {
            let f = a.found.as_ref()?;
            let prior = f.prior.as_ref().filter(|p| p.path == path);
            let own = (f.path == path).then(|| (f.relayed, Some(a.sid.clone())));
            own.or_else(|| prior.map(|p| (p.relayed, p.sid.clone())))
        });
        let Some(c) = &mut self.current else { return };
        let (relayed, sid) = known.unwrap_or_else(|| (matches!(path, Path::Relay { .. }), c.sid.clone()));
        *c = Current { path, relayed, since: now, session: c.session, sid };
        self.rtt = None;
        self.prove(now);
    }

    /// Counts a proof; a path that was dead is not looked for any more.
    fn revived(&mut self, now: Time, proof: impl FnOnce(&mut Self) -> bool) {
        if proof(self) {
            self.dead_tries = 0;
            self.failures = 0;
            self.retry_at = now;
        }
    }

    pub(super) fn probe_answered(&mut self, now: Time, rtt: Duration) {
        if self.current.as_ref().is_some_and(|c| c.session) {
            (self.rtt, self.rtt_at) = (Some(rtt), now);
            self.revived(now, |l| l.liveness.proof(now));
        }
    }

    /// The peer's probe proves the path as well as an answer to ours, but for the round trip time: that is measured by both
    /// ends, if less often.
    pub(super) fn heard(&mut self, now: Time) {
        let measured = self.rtt.is_some() && now.since(self.rtt_at) < timing::RTT_AGAIN;
        if measured && self.current.as_ref().is_some_and(|c| c.session) {
            self.revived(now, |l| l.liveness.proof(now));
        }
    }

    pub(super) fn probe_failed(&mut self, now: Time) {
        if let Some(act) = self.liveness.failed(now) {
            self.act(now, act);
        }
    }

    /// Looks whether the path is alive.
    pub(super) fn watch(&mut self, now: Time) {
        while self.current.as_ref().is_some_and(|c| c.session) {
            let Some(act) = self.liveness.tick(now) else { break };
            self.act(now, act);
        }
    }

    fn act(&mut self, now: Time, act: Act) {
        match act {
            Act::Probe => self.out(Output::Probe),
            Act::Died if self.signaling && !self.online => {
                self.end_all(None);
                self.forget(now, "the peer is offline");
            }
            Act::Died => {
                self.dead_tries = 0;
                self.because("the path died: the peer does not answer over it any more");
                if self.failures == 0 {
                    self.retry_at = now;
                }
            }
        }
    }

    /// When an on-demand link has carried nothing for long enough.
    pub(super) fn idle_at(&self) -> Option<Time> {
        let busy = self.attempts.iter().any(|a| a.searching() || a.trying());
        let current = self.current.as_ref().filter(|_| !self.config.proactive && !busy)?;
        Some(self.data_at.max(current.since) + self.config.idle_timeout)
    }

    /// Closes the link and tells the peer.
    pub(super) fn leave(&mut self, now: Time, reason: Reason, why: &str) {
        let sid = self.sid().map(str::to_owned);
        let told = self.attempts.iter().any(|a| Some(&a.sid) == sid.as_ref() && (a.searching() || a.trying()));
        self.end_all(Some(reason));
        if let Some(sid) = sid
            && self.signaling
            && !told
        {
            self.out(Output::Terminate { sid, reason });
        }
        self.forget(now, why);
    }

    /// Takes the path away, and with it the reasons to have another one.
    pub(super) fn forget(&mut self, now: Time, why: &str) {
        self.forget_path(now);
        self.failures = 0;
        self.retry_at = now;
        self.renegotiate_at = None;
        self.because(why);
    }

    /// Takes path and session from the data plane.
    pub(super) fn forget_path(&mut self, now: Time) {
        if self.current.take().is_some() {
            self.out(Output::Unpath);
        }
        self.forgotten_at = Some(now);
        self.direct_at = None;
        self.direct_tries = 0;
        self.dead_tries = 0;
        self.rtt = None;
        self.liveness.moved();
    }

    /// Works out what people see.
    pub(super) fn show(&mut self, now: Time) {
        let state = self.derive();
        let shown = Shown {
            state,
            path: self.current.as_ref().map(|c| c.path),
            relayed: self.current.as_ref().is_some_and(|c| c.relayed),
            why: self.explain(state),
        };
        if matches!(state, State::Idle) {
            self.setup_from = None;
        }
        if shown != self.shown {
            if shown.state != self.shown.state {
                self.since = now;
            }
            self.shown = shown;
            self.out(Output::Changed);
        }
    }

    fn derive(&self) -> State {
        match &self.current {
            Some(c) if c.session && !self.liveness.dead() => State::Up,
            _ if self.attempts.iter().any(super::attempt::Attempt::trying) => State::Handshaking,
            _ if self.attempts.iter().any(super::attempt::Attempt::searching) => State::Negotiating,
            Some(_) => State::Failing,
            None if self.failures > 0 && self.next_attempt().is_some() => State::Failing,
            None => State::Idle,
        }
    }

    fn explain(&self, state: State) -> String {
        let blocked = if !self.signaling {
            Some("the XMPP connection is down")
        } else if !self.online {
            Some("the peer is offline")
        } else {
            None
        };
        match (state, &self.current) {
            (State::Up, Some(c)) if c.relayed => "relayed because no direct path was found".to_owned(),
            (State::Up, Some(c)) if c.sid.is_none() => "reached by the peer".to_owned(),
            (State::Up, _) => "direct".to_owned(),
            (State::Negotiating, Some(_)) => format!("{}; looking for another one", self.why),
            (State::Negotiating, None) if self.failures > 0 => format!("looking for a path; before: {}", self.why),
            (State::Negotiating, None) => "looking for a path".to_owned(),
            (State::Handshaking, _) => "a path was found; waiting for the peer's tunnel".to_owned(),
            (State::Idle, _) if self.wants() && !self.closed => {
                blocked.unwrap_or("about to look for a path").to_owned()
            }
            (State::Failing, _) => match blocked {
                Some(b) => format!("{}; {b}", self.why),
                None => self.why.clone(),
            },
            (State::Idle, _) => self.why.clone(),
        }
    }
}
