//! The state of a link, what comes in and what goes out.

use super::attempt::{Attempt, Purpose};
use super::backoff::{Admission, Rng};
use super::liveness::Liveness;
use super::{Input, LinkConfig, Output, State, timing};
use crate::admin::status::LinkStatus;
use crate::xmpp::Reason;
use dataplane::{Path, Time};
use std::collections::VecDeque;
use std::time::Duration;

/// The path in use.
#[derive(Clone, Debug)]
pub(super) struct Current {
    pub(super) path: Path,
    pub(super) relayed: bool,
    /// When it was chosen.
    pub(super) since: Time,
    /// Something authentic came over it, or over the one before it which was alive.
    pub(super) session: bool,
    /// The session that found it; none if the peer came to us.
    pub(super) sid: Option<String>,
}

/// What people see; a difference is told by [`Output::Changed`].
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shown {
    pub(super) state: State,
    pub(super) path: Option<Path>,
    pub(super) relayed: bool,
    pub(super) why: String,
}

/// The link to one peer. See the module's description.
#[derive(Clone, Debug)]
pub struct Link {
    pub(super) config: LinkConfig,
    pub(super) rng: Rng,
    outputs: VecDeque<Output>,
    pub(super) closed: bool,
    pub(super) signaling: bool,
    pub(super) online: bool,
    /// The last packet that found no path.
    pub(super) wanted_at: Option<Time>,
    /// The peer closed the link: a proactive one waits for a reason.
    pub(super) suppressed: bool,
    /// At most [`timing::ATTEMPTS`], at most one of them searching.
    pub(super) attempts: Vec<Attempt>,
    pub(super) current: Option<Current>,
    pub(super) liveness: Liveness,
    /// In a row.
    pub(super) failures: u32,
    /// No attempt before this.
    pub(super) retry_at: Time,
    /// Since when there are signalling and the peer at once.
    pub(super) able_at: Time,
    /// It is the link's turn, while [`Input::Turn`] is handled.
    turn: bool,
    pub(super) reset_at: Option<Time>,
    /// Attempts that did not replace the dead path.
    pub(super) dead_tries: u32,
    /// The network changed: an attempt is due then.
    pub(super) renegotiate_at: Option<Time>,
    pub(super) network_at: Option<Time>,
    /// When a relayed path is to be tried direct, and how often it was.
    pub(super) direct_at: Option<Time>,
    pub(super) direct_tries: u32,
    /// When path and session were last taken from the data plane.
    pub(super) forgotten_at: Option<Time>,
    pub(super) session_at: Option<Time>,
    pub(super) data_at: Time,
    pub(super) seen: VecDeque<String>,
    pub(super) admission: Admission,
    pub(super) shown: Shown,
    pub(super) since: Time,
    pub(super) setup_from: Option<Time>,
    pub(super) setup: Option<Duration>,
    pub(super) rtt: Option<Duration>,
    /// When that was measured.
    pub(super) rtt_at: Time,
    /// Of the last failure, or of being idle.
    pub(super) why: String,
}

impl Link {
    /// A link in [`State::Idle`]; the peer counts as offline and signalling as down until told otherwise. `seed`
    /// must differ between links and between runs: session ids are made from it.
    #[must_use]
    pub fn new(config: LinkConfig, seed: u64) -> Self {
        let why = "not needed so far".to_owned();
        Self {
            config,
            rng: Rng::new(seed),
            outputs: VecDeque::new(),
            closed: false,
            signaling: false,
            online: false,
            wanted_at: None,
            suppressed: false,
            attempts: Vec::with_capacity(timing::ATTEMPTS),
            current: None,
            liveness: Liveness::new(Time::ZERO),
            failures: 0,
            retry_at: Time::ZERO,
            able_at: Time::ZERO,
            turn: false,
            reset_at: None,
            dead_tries: 0,
            renegotiate_at: None,
            network_at: None,
            direct_at: None,
            direct_tries: 0,
            forgotten_at: None,
            session_at: None,
            data_at: Time::ZERO,
            seen: VecDeque::with_capacity(timing::SEEN),
            admission: Admission::new(),
            shown: Shown { state: State::Idle, path: None, relayed: false, why: why.clone() },
            since: Time::ZERO,
            setup_from: None,
            setup: None,
            rtt: None,
            rtt_at: Time::ZERO,
            why,
        }
    }

    /// Something happened at `now`. Fetch the outputs afterwards.
    pub fn handle(&mut self, now: Time, input: Input) {
        if self.closed {
            if let Input::Initiated { sid } = input {
                self.answer(sid, super::Verdict::UnknownSession);
            }
            return;
        }
        match input {
            Input::Wanted => self.wanted(now),
            Input::Turn => self.turn = true,
            Input::PeerOnline => self.peer_online(now),
            Input::PeerOffline => self.peer_offline(now),
            Input::SignalingUp => self.signaling_up(now),
            Input::SignalingDown => self.signaling_down(now),
            Input::Initiated { sid } => self.initiated(now, sid),
            Input::Accepted { sid } => self.accepted(&sid),
            Input::Terminated { sid, reason } => self.terminated(now, &sid, reason),
            Input::SignalFailed { sid, why, tie_break, gone } => self.signal_failed(now, &sid, &why, tie_break, gone),
            Input::AgentFound { sid, path, relayed } => self.found(now, &sid, path, relayed),
            Input::AgentFailed { sid, why } => self.agent_failed(now, &sid, &why),
            Input::Session { at } => self.session(now, at.min(now)),
            Input::Activity { last_received, last_sent, path } => self.activity(now, last_received, last_sent, path),
            Input::ProbeAnswered { rtt } => self.probe_answered(now, rtt),
            Input::Heard => self.heard(now),
            Input::ProbeFailed => self.probe_failed(now),
            Input::NetworkChanged => self.network_changed(now),
            Input::Close { reason } => self.close(now, reason),
        }
        self.advance(now);
        self.turn = false;
    }

    /// [`Self::poll_timeout`] has come (or not: then nothing happens).
    pub fn handle_timeout(&mut self, now: Time) {
        if !self.closed {
            self.advance(now);
        }
    }

    /// The next thing to do, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.closed {
            return None;
        }
        let attempts = self.attempts.iter().map(Attempt::timeout);
        let liveness = self.current.as_ref().filter(|c| c.session).map(|_| self.liveness.timeout());
        let start = self.next_start().map(|(at, _)| at);
        let want = self.wanted_at.map(|at| at + timing::WANT);
        attempts.chain(liveness).chain(start).chain(want).chain(self.idle_at()).min()
    }

    /// From when on the link waits for its turn to do what nobody waits for. [`Input::Turn`] before is no use.
    #[must_use]
    pub fn turn_at(&self) -> Option<Time> {
        let (at, purpose) = self.next_attempt()?;
        self.in_background(purpose).then_some(at)
    }

    /// Whether what a session found is still needed: for the path in use, or to go back to if the new one does not work.
    #[must_use]
    pub fn needs(&self, sid: &str) -> bool {
        let prior = |a: &Attempt| a.found.as_ref()?.prior.as_ref()?.sid.clone();
        self.sid() == Some(sid) || self.attempts.iter().filter(|a| a.trying()).filter_map(prior).any(|s| s == sid)
    }

    /// Whether it looks for a path.
    #[must_use]
    pub fn is_searching(&self) -> bool {
        self.attempts.iter().any(Attempt::searching)
    }

    /// Where the link is in its life.
    #[must_use]
    pub const fn state(&self) -> State {
        self.shown.state
    }

    /// Why this path, or why none, for people.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.shown.why
    }

    /// When [`Self::state`] was entered.
    #[must_use]
    pub const fn since(&self) -> Time {
        self.since
    }

    /// The path in use, if any, and whether it is relayed.
    #[must_use]
    pub fn path(&self) -> Option<(Path, bool)> {
        self.current.as_ref().map(|c| (c.path, c.relayed))
    }

    /// The Jingle session that found the path in use; `None` also if the peer came to us by itself.
    #[must_use]
    pub fn sid(&self) -> Option<&str> {
        self.current.as_ref()?.sid.as_deref()
    }

    /// The last round trip of a probe over the path in use.
    #[must_use]
    pub const fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// From the start of the first attempt to the session.
    #[must_use]
    pub const fn setup_time(&self) -> Option<Duration> {
        self.setup
    }

    /// The part of [`LinkStatus`] that the link knows: state, path, address, why, RTT, for how long, setup time.
    #[must_use]
    pub fn status(&self, now: Time) -> LinkStatus {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        LinkStatus {
            state: self.state().name().to_owned(),
            path: self.path().map(|(_, relayed)| if relayed { "relayed" } else { "direct" }.to_owned()),
            address: self.path().map(|(path, _)| path.to_string()),
            why: self.why().to_owned(),
            rtt_ms: self.rtt.map(ms),
            for_s: now.since(self.since).as_secs(),
            setup_ms: self.setup.map(ms),
            ..LinkStatus::default()
        }
    }

    pub(super) fn out(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    pub(super) fn answer(&mut self, sid: String, verdict: super::Verdict) {
        self.out(Output::Answer { sid, verdict });
    }

    /// Remembers a reason for people.
    pub(super) fn because(&mut self, why: &str) {
        self.why = why.chars().take(timing::WHY).collect();
    }

    fn close(&mut self, now: Time, reason: Reason) {
        self.leave(now, reason, "the link was closed");
        self.closed = true;
        self.wanted_at = None;
        self.show(now);
    }

    /// Everything that is due, until there is nothing: each step takes its own cause away.
    fn advance(&mut self, now: Time) {
        if self.closed {
            return;
        }
        self.expire(now);
        self.watch(now);
        if self.idle_at().is_some_and(|at| at <= now) {
            let why = format!("idle: no data for {} s", self.config.idle_timeout.as_secs());
            self.leave(now, Reason::Gone, &why);
        }
        if self.wanted_at.is_some_and(|at| at + timing::WANT <= now) {
            self.wanted_at = None;
        }
        if let Some((_, purpose)) = self.next_start().filter(|(at, _)| *at <= now) {
            self.start(now, purpose);
            // An attempt beside a path asks whether that is alive.
            self.watch(now);
        }
        self.show(now);
    }

    /// Whether somebody needs the link.
    #[must_use]
    pub const fn wants(&self) -> bool {
        (self.config.proactive && !self.suppressed) || self.wanted_at.is_some()
    }

    /// Whether nobody waits for an attempt.
    const fn in_background(&self, purpose: Purpose) -> bool {
        match purpose {
            Purpose::First => self.wanted_at.is_none(),
            Purpose::Direct => true,
            Purpose::Dead | Purpose::Network | Purpose::Remote => false,
        }
    }

    /// When and why an attempt of our own is due, as far as it need not wait for its turn.
    fn next_start(&self) -> Option<(Time, Purpose)> {
        self.next_attempt().filter(|(_, purpose)| self.turn || !self.in_background(*purpose))
    }

    /// When and why an attempt of our own is due.
    pub(super) fn next_attempt(&self) -> Option<(Time, Purpose)> {
        if self.closed || !self.signaling || !self.online {
            return None;
        }
        if let Some(at) = self.renegotiate_at {
            return Some((at, Purpose::Network));
        }
        if self.attempts.iter().any(|a| a.searching() || a.trying()) {
            return None;
        }
        match &self.current {
            None if self.wanted_at.is_some() => Some((self.retry_at, Purpose::First)),
            None => self.wants().then(|| (self.retry_at.max(self.able_at) + self.cede(), Purpose::First)),
            Some(_) if self.liveness.dead() => Some((self.retry_at, Purpose::Dead)),
            Some(c) if c.relayed && c.session => self.direct_at.map(|at| (at, Purpose::Direct)),
            Some(_) => None,
        }
    }

    /// Two proactive ends hear of each other at the same moment: one of them lets the other begin.
    fn cede(&self) -> Duration {
        if self.config.our_jid > self.config.peer_jid { timing::CEDE } else { Duration::ZERO }
    }
}
