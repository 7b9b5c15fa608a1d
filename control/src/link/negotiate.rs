//! Attempts: who starts one, what comes of it.

use super::attempt::{Attempt, Found, Prior, Purpose, Use};
use super::backoff::doubled;
use super::liveness::Liveness;
use super::machine::{Current, Link};
use super::{Output, Role, Verdict, timing};
use crate::xmpp::Reason;
use dataplane::{Path, Time};
use std::time::Duration;

/// How an attempt ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The peer knows, or does not need to.
    Quiet,
    /// The peer is told.
    Tell(Reason),
}

impl Link {
    fn searching(&self) -> Option<usize> {
        self.attempts.iter().position(Attempt::searching)
    }

    fn index(&self, sid: &str) -> Option<usize> {
        self.attempts.iter().position(|a| a.sid == sid)
    }

    /// Takes an attempt away. The path in use stays.
    fn end(&mut self, index: usize, end: End) -> Attempt {
        let attempt = self.attempts.remove(index);
        self.out(Output::Stop { sid: attempt.sid.clone() });
        if let End::Tell(reason) = end
            && self.signaling
        {
            self.out(Output::Terminate { sid: attempt.sid.clone(), reason });
        }
        attempt
    }

    /// Ends everything without failing: attempts that only linger are no news for the peer.
    pub(super) fn end_all(&mut self, reason: Option<Reason>) {
        while let Some(a) = self.attempts.last() {
            let lingers = !a.searching() && !a.trying();
            let end = reason.filter(|_| !lingers).map_or(End::Quiet, End::Tell);
            self.end(self.attempts.len() - 1, end);
        }
    }

    /// Ends the attempt that searches, for a reason that is not its fault.
    pub(super) fn drop_searching(&mut self) {
        if let Some(i) = self.searching() {
            self.end(i, End::Quiet);
        }
    }

    /// Signalling is gone: an attempt that still needs it cannot go on. What changed in our network is to be seen to all
    /// the same, once signalling is back: most often it was the change that cut the connection.
    pub(super) fn drop_unanswered(&mut self, now: Time) {
        if let Some(i) = self.searching().filter(|i| !self.attempts[*i].answered)
            && self.end(i, End::Quiet).purpose == Purpose::Network
        {
            self.renegotiate_at = Some(now);
        }
    }

    /// At most one attempt besides the new one.
    fn make_room(&mut self) {
        while self.attempts.len() >= timing::ATTEMPTS {
            self.end(0, End::Quiet);
        }
    }

    fn push(&mut self, now: Time, sid: String, role: Role, purpose: Purpose) {
        self.make_room();
        self.out(Output::Start { sid: sid.clone(), role });
        let answered = role == Role::Controlled;
        if matches!(purpose, Purpose::Direct | Purpose::Remote) {
            self.direct_tries = self.direct_tries.saturating_add(1);
        }
        self.attempts.push(Attempt { sid, role, purpose, started: now, answered, found: None });
        if self.current.is_none() && self.setup_from.is_none() {
            self.setup_from = Some(now);
        }
        // When this ends it will be known whether the path in use is worth keeping.
        self.liveness.ask(now);
        self.direct_later(now);
    }

    /// An attempt of our own.
    pub(super) fn start(&mut self, now: Time, purpose: Purpose) {
        if purpose == Purpose::Network {
            self.renegotiate_at = None;
            self.network_at = Some(now);
            if let Some(i) = self.searching() {
                self.end(i, End::Tell(Reason::GeneralError));
            }
        }
        let sid = self.rng.sid();
        self.push(now, sid, Role::Controlling, purpose);
    }

    pub(super) fn initiated(&mut self, now: Time, sid: String) {
        // Presence may be later than the first stanza.
        self.online = true;
        if self.seen.contains(&sid) {
            let live = self.index(&sid).is_some_and(|i| self.attempts[i].role == Role::Controlled);
            return self.answer(sid, if live { Verdict::Accept } else { Verdict::UnknownSession });
        }
        if !self.admission.admit(now) {
            return self.answer(sid, Verdict::Busy);
        }
        if self.seen.len() >= timing::SEEN {
            self.seen.pop_front();
        }
        self.seen.push_back(sid.clone());
        if let Some(i) = self.searching() {
            let mine = &self.attempts[i];
            let pending = mine.role == Role::Controlling && !mine.answered;
            // XEP-0166, section 7.2.16: the lower session id wins, then the lower JID.
            if pending && (&mine.sid, &self.config.our_jid) < (&sid, &self.config.peer_jid) {
                return self.answer(sid, Verdict::TieBreak);
            }
            // The loser of a tie is refused by the peer. A session that the peer should know and seems to have
            // forgotten is ended expressly, in case it has not.
            let forgotten = mine.role == Role::Controlling && !pending;
            self.end(i, if forgotten { End::Tell(Reason::GeneralError) } else { End::Quiet });
        }
        self.renegotiate_at = None;
        self.suppressed = false;
        self.answer(sid.clone(), Verdict::Accept);
        self.push(now, sid, Role::Controlled, Purpose::Remote);
    }

    pub(super) fn accepted(&mut self, sid: &str) {
        if let Some(a) = self.attempts.iter_mut().find(|a| a.sid == sid && a.role == Role::Controlling) {
            a.answered = true;
        }
    }

    pub(super) fn terminated(&mut self, now: Time, sid: &str, reason: Reason) {
        let current = self.sid() == Some(sid);
        if let Some(i) = self.index(sid) {
            let attempt = &self.attempts[i];
            if !attempt.searching() && !attempt.trying() {
                // The peer is done with it, and so are we.
                self.end(i, End::Quiet);
            } else if reason != Reason::Gone {
                let why = format!("the peer ended the negotiation: {}", describe(reason));
                self.fail(now, i, End::Quiet, &why);
            } else if !current {
                self.fail(now, i, End::Quiet, "the peer left during the negotiation");
            }
        }
        if current && reason == Reason::Gone {
            // Not answered: the peer has closed its side already.
            if let Some(i) = self.index(sid) {
                self.end(i, End::Quiet);
            }
            self.suppressed = true;
            self.wanted_at = None;
            self.forget(now, "the peer closed the link");
        }
    }

    pub(super) fn signal_failed(&mut self, now: Time, sid: &str, why: &str, tie_break: bool, gone: bool) {
        let Some(i) = self.index(sid).filter(|i| self.attempts[*i].searching()) else { return };
        if tie_break {
            self.end(i, End::Quiet);
            self.retry_at = now + timing::TIE_GRACE + self.rng.up_to(timing::SPREAD);
            return;
        }
        // Not the same as presence: a presence that is still to come must not leave the link idle for ever.
        let why = if gone { "the peer cannot be reached over XMPP".to_owned() } else { format!("signalling: {why}") };
        self.fail(now, i, End::Quiet, &why);
    }

    pub(super) fn agent_failed(&mut self, now: Time, sid: &str, why: &str) {
        let Some(i) = self.index(sid) else { return };
        if self.attempts[i].searching() {
            self.fail(now, i, End::Tell(Reason::ConnectivityError), why);
        } else if !self.attempts[i].trying() {
            self.end(i, End::Quiet);
        }
    }

    pub(super) fn found(&mut self, now: Time, sid: &str, path: Path, relayed: bool) {
        let Some(i) = self.index(sid).filter(|i| self.attempts[*i].searching()) else { return };
        let (started, role) = (self.attempts[i].started, self.attempts[i].role);
        let alive = self.current.as_ref().filter(|c| c.session && self.liveness.proven_since(started));
        let keep = alive.is_some_and(|c| c.path == path || relayed);
        let second = if role == Role::Controlling { timing::HANDSHAKE_SECOND } else { Duration::ZERO };
        let state = if keep { Use::Held } else { Use::Trying };
        let prior = alive.map(|c| Prior { path: c.path, relayed: c.relayed, sid: c.sid.clone() });
        let session = prior.is_some();
        for a in &mut self.attempts {
            if let Some(f) = a.found.as_mut().filter(|f| !keep && f.state == Use::Trying) {
                f.state = Use::Held;
            }
        }
        self.attempts[i].answered = true;
        self.attempts[i].found = Some(Found { path, relayed, at: now, state, handshake_at: now + second, prior });
        if keep {
            if let Some(c) = self.current.as_mut().filter(|c| c.path == path) {
                c.relayed = relayed;
                c.sid.get_or_insert_with(|| sid.to_owned());
            }
            return;
        }
        // The peer may have been quicker: it was heard before our agent was ready.
        let heard = !session && self.session_at.is_some_and(|at| at > started);
        self.current = Some(Current { path, relayed, since: now, session, sid: Some(sid.to_owned()) });
        self.liveness.moved();
        self.rtt = None;
        self.out(Output::UsePath { path });
        if heard {
            self.prove(now);
        }
    }

    /// Something authentic came over the path in use.
    pub(super) fn prove(&mut self, now: Time) {
        let Some(current) = &mut self.current else { return };
        let mut news = false;
        if !current.session {
            news = true;
            current.session = true;
            self.liveness = Liveness::new(now);
            self.data_at = now;
        }
        for a in self.attempts.iter_mut().filter(|a| current.sid.as_ref() == Some(&a.sid)) {
            if let Some(f) = a.found.as_mut().filter(|f| f.state == Use::Trying) {
                f.state = Use::Proven;
                news = true;
            }
        }
        if !news {
            return;
        }
        if let Some(from) = self.setup_from.take() {
            self.setup = Some(now.since(from));
        }
        self.failures = 0;
        self.dead_tries = 0;
        self.retry_at = now;
        self.wanted_at = None;
        self.suppressed = false;
        self.direct_later(now);
    }

    /// When to try a relayed path direct next. Every attempt puts it off, so that one side's is enough; the side that
    /// did not start the last one waits longer.
    fn direct_later(&mut self, now: Time) {
        let Some(current) = self.current.as_ref().filter(|c| c.relayed) else {
            self.direct_at = None;
            self.direct_tries = 0;
            return;
        };
        let ours = self.attempts.iter().all(|a| current.sid.as_ref() != Some(&a.sid) || a.role == Role::Controlling);
        let wait = doubled(timing::DIRECT_FIRST, self.direct_tries, timing::DIRECT_MOST);
        let wait = if ours { wait } else { wait * 3 / 2 };
        self.direct_at = Some(now + self.rng.jitter(wait));
    }

    /// What is over: attempts past their deadline, agents that lingered long enough.
    pub(super) fn expire(&mut self, now: Time) {
        let mut i = 0;
        while i < self.attempts.len() {
            let attempt = &mut self.attempts[i];
            let over = attempt.deadline() <= now;
            match &mut attempt.found {
                None if over => {
                    let why =
                        if attempt.answered { "no path was found in time" } else { "the peer did not answer in time" };
                    self.fail(now, i, End::Tell(Reason::Timeout), why);
                }
                Some(f) if over && f.state == Use::Trying => {
                    let why = "a path was found, but the peer's tunnel did not answer over it";
                    self.fail(now, i, End::Tell(Reason::Timeout), why);
                }
                Some(_) if over => {
                    self.end(i, End::Quiet);
                }
                Some(f) if f.state == Use::Trying && f.handshake_at <= now => {
                    f.handshake_at = now + timing::HANDSHAKE_AGAIN;
                    self.out(Output::Handshake);
                    i += 1;
                }
                _ => i += 1,
            }
        }
    }

    /// An attempt failed.
    fn fail(&mut self, now: Time, index: usize, end: End, why: &str) {
        let attempt = self.end(index, end);
        let mine = self.current.as_ref().filter(|c| c.sid.as_ref() == Some(&attempt.sid) && attempt.trying());
        let recent = now.since(self.data_at) < timing::WANT;
        match (mine.map(|c| c.session), attempt.found.and_then(|f| f.prior)) {
            (Some(_), Some(prior)) => self.go_back(now, prior),
            (Some(false), None) => self.forget_path(now),
            _ => {}
        }
        if self.current.is_some() && !self.liveness.dead() {
            // Another path is in use and well: nothing is lost.
            return self.direct_later(now);
        }
        self.because(why);
        self.retry_at = now + self.rng.jitter(doubled(timing::RETRY_FIRST, self.failures, timing::RETRY_MOST));
        self.failures = self.failures.saturating_add(1);
        if self.current.is_some() {
            self.dead_tries += 1;
            if self.dead_tries < timing::DEAD_TRIES {
                return;
            }
            self.forget_path(now);
            self.because(&format!("the path died, and there is no other: {why}"));
        }
        // Packets that went into the path that is no more are why the link goes on trying.
        if recent && self.wanted_at.is_none() {
            self.wanted_at = Some(now);
        }
    }

    /// The new path does not work for the tunnel; the old one did.
    fn go_back(&mut self, now: Time, prior: Prior) {
        let Prior { path, relayed, sid } = prior;
        self.current = Some(Current { path, relayed, since: now, session: true, sid });
        self.rtt = None;
        self.liveness.moved();
        self.liveness.ask(now);
        self.out(Output::UsePath { path });
    }
}

const fn describe(reason: Reason) -> &'static str {
    match reason {
        Reason::Success => "it has found what it needs",
        Reason::Gone => "it leaves",
        Reason::ConnectivityError => "no pair of addresses worked",
        Reason::Decline => "it declines links with us in this network",
        Reason::Busy => "it is busy",
        Reason::Timeout => "it took too long",
        Reason::GeneralError => "general error",
    }
}
