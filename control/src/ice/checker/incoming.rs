//! What the peer's messages do.

use std::net::SocketAddr;
use std::time::Instant;

use super::super::candidate::CandidateKind;
use super::super::route::Route;
use super::super::stun::{Class, Tid, View, Writer, attr, method};
use super::pair::{Channel, PairState};
use super::{Checker, Output, Role};

/// Requests kept until the peer's credentials are there.
const MAX_EARLY: usize = 16;
/// How often a pair that failed may be set going again by the peer's checks.
const MAX_REVIVED: u8 = 8;

/// An authenticated request.
#[derive(Clone, Debug)]
pub(super) struct Early {
    route: Route,
    priority: u32,
    nominates: bool,
    answer: Option<Vec<u8>>,
}

impl Checker {
    /// A request with our ufrag in it. False if it is not signed with our password.
    pub(crate) fn request(&mut self, route: Route, v: &View<'_>) -> bool {
        if !v.signed_by(&self.key) {
            return false;
        }
        if self.is_role_conflict(v) {
            let w = Writer::new(Class::Error, method::BINDING, &v.tid()).error(487, "Role Conflict");
            self.outputs.push(Output::Send(route, w.sign(&self.key).fingerprint().finish()));
            return true;
        }
        let answer = Writer::new(Class::Success, method::BINDING, &v.tid())
            .xor_address(attr::XOR_MAPPED_ADDRESS, route.peer())
            .sign(&self.key)
            .fingerprint()
            .finish();
        let nominates = v.has(attr::USE_CANDIDATE) && self.role == Role::Controlled;
        let keep_back = nominates && route.is_relay();
        if !keep_back {
            self.outputs.push(Output::Send(route, answer.clone()));
        }
        let priority = v.u32(attr::PRIORITY).unwrap_or(0);
        let heard = Early { route, priority, nominates, answer: keep_back.then_some(answer) };
        if self.finished {
            self.answer_late(heard);
        } else if self.remote.is_some() {
            self.heard(heard);
        } else if self.early.len() < MAX_EARLY {
            self.early.push(heard);
        }
        true
    }

    /// The path is chosen: whoever repeats the nomination has not got our answer.
    fn answer_late(&mut self, e: Early) {
        if let Some(answer) = e.answer {
            self.outputs.push(Output::Send(e.route, answer));
        }
    }

    /// RFC 8445, section 7.3.1.1. True if the peer has to change its role, otherwise we have changed ours if needed.
    fn is_role_conflict(&mut self, v: &View<'_>) -> bool {
        let (theirs, wins_stays) = match self.role {
            Role::Controlling => (v.u64(attr::ICE_CONTROLLING), true),
            Role::Controlled => (v.u64(attr::ICE_CONTROLLED), false),
        };
        let Some(theirs) = theirs else { return false };
        if (self.tie_breaker >= theirs) == wins_stays {
            return true;
        }
        self.switch_role();
        false
    }

    fn switch_role(&mut self) {
        self.role = match self.role {
            Role::Controlling => Role::Controlled,
            Role::Controlled => Role::Controlling,
        };
        self.nominee = None;
        let controlling = self.role == Role::Controlling;
        for p in &mut self.pairs {
            p.rank_priority(super::local_priority(&p.route), controlling);
            p.nominated = false;
            if p.check.take().is_some() && p.state == PairState::InProgress {
                p.state = PairState::Waiting;
            }
        }
    }

    /// What a check of the peer says about a way (RFC 8445, sections 7.3.1.3 to 7.3.1.5).
    pub(super) fn heard(&mut self, e: Early) {
        let i = match self.find(&e.route) {
            Some(i) => i,
            None => {
                // A candidate that was not signalled (yet). The type preference of a relayed one is 0 from our kind.
                let known = self.remotes.iter().find(|r| r.0 == e.route.peer()).map(|r| (r.1, r.2));
                let kind = if e.priority >> 24 == 0 { CandidateKind::Relayed } else { CandidateKind::PeerReflexive };
                let (kind, priority) = known.unwrap_or((kind, e.priority));
                if known.is_none() && self.remotes.len() < super::MAX_REMOTE {
                    self.remotes.push((e.route.peer(), kind, priority));
                }
                if self.add_pair(e.route, kind, priority).is_none() {
                    return;
                }
                self.pairs.len() - 1
            }
        };
        let p = &mut self.pairs[i];
        match p.state {
            PairState::Succeeded => {}
            PairState::Failed if p.revived >= MAX_REVIVED => return,
            state => {
                p.revived += u8::from(state == PairState::Failed);
                // It came through the relay, so the relay lets us answer.
                if state != PairState::InProgress {
                    p.state = PairState::Waiting;
                }
                if !self.triggered.contains(&i) && p.check.as_ref().is_none_or(|c| !c.nominates) {
                    self.triggered.push_back(i);
                }
            }
        }
        if e.nominates {
            p.nominated = true;
            if e.answer.is_some() {
                p.answer = e.answer;
            }
            self.want_channel(i);
            self.flush_answer(i);
        }
    }

    /// Asks for the channel of a relayed pair.
    pub(super) fn want_channel(&mut self, i: usize) {
        let p = &mut self.pairs[i];
        if let (Route::Relay { server, peer }, Channel::None) = (p.route, p.channel) {
            p.channel = Channel::Asked;
            self.outputs.push(Output::Bind { server, peer });
        }
    }

    fn flush_answer(&mut self, i: usize) {
        let p = &mut self.pairs[i];
        if matches!(p.channel, Channel::Bound(_))
            && let Some(answer) = p.answer.take()
        {
            self.outputs.push(Output::Send(p.route, answer));
        }
    }

    /// The server's answer to [`Output::Bind`]; false if nobody waits for the channel.
    pub(crate) fn bound(&mut self, server: SocketAddr, peer: SocketAddr, channel: &Result<u16, String>) -> bool {
        let Some(i) = self.find(&Route::Relay { server, peer }) else { return false };
        if self.finished || self.pairs[i].channel != Channel::Asked {
            return false;
        }
        match channel {
            Ok(n) => {
                self.pairs[i].channel = Channel::Bound(*n);
                self.flush_answer(i);
            }
            Err(_) => {
                self.pairs[i].channel = Channel::None;
                self.fail(i);
            }
        }
        true
    }

    /// A response to one of our checks.
    pub(crate) fn response(&mut self, tid: Tid, route: Route, v: &View<'_>, now: Instant) {
        let Some(remote) = &self.remote else { return };
        let Some(i) = self.pairs.iter().position(|p| p.check.as_ref().is_some_and(|c| c.tid == tid)) else { return };
        if self.finished || !v.signed_by(&remote.key) {
            return;
        }
        if v.class() == Class::Error {
            match v.error() {
                Some((487, _)) => {
                    self.switch_role();
                    self.triggered.push_back(i);
                }
                _ => self.fail(i),
            }
            return;
        }
        // RFC 8445, section 7.2.5.2.1: an answer that comes another way proves nothing.
        if route != self.pairs[i].route {
            return self.fail(i);
        }
        let p = &mut self.pairs[i];
        let Some(check) = p.check.take() else { return };
        p.state = PairState::Succeeded;
        p.answered = true;
        p.rtt = check.rtt(now).or(p.rtt);
        p.mapped = v.mapped();
        self.first_valid.get_or_insert(now);
        if check.nominates {
            p.nominated = true;
        }
        self.decide(now);
    }
}
