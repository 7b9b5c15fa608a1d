//! A peer as the keeper sees it: what only handshakes and timers need.

use super::agreement::Sign;
use super::cookie::cookie_key;
use super::limits::{COOKIE_LIFETIME, REKEY_ATTEMPT_TIME, REKEY_TIMEOUT, ZERO_KEYS_AFTER};
use super::mac::{Mac, MacVerifier};
use super::noise::Initiator;
use super::peer::Peer;
use super::timestamp::{Clock, Timestamp};
use super::{PresharedKey, PublicKey, SessionTable};
use crate::Time;
use std::sync::Arc;
use std::time::Duration;

/// A peer and the state of its handshakes.
pub(super) struct Entry {
    pub(super) peer: Arc<Peer>,
    pub(super) psk: PresharedKey,
    pub(super) attempt: Option<Attempt>,
    /// When we last sent it an initiation or a response.
    pub(super) last_sent: Option<Time>,
    /// When the youngest session was made: its keys are wiped some time later.
    pub(super) last_session: Option<Time>,
    /// The greatest timestamp accepted from it, and when.
    pub(super) accepted: Option<(Timestamp, Time)>,
    pub(super) clock: Clock,
    /// A persistent keepalive is due at once: it was just switched on.
    pub(super) keepalive_now: bool,
    /// Makes the MACs of what we send it.
    pub(super) macs: MacVerifier,
    cookie_key: [u8; 32],
    cookie: Option<(Mac, Time)>,
    /// MAC1 of the last handshake message sent: a cookie reply refers to it.
    last_mac1: Option<Mac>,
}

/// The wish for a session, until there is one or time is up.
pub(super) struct Attempt {
    pub(super) started: Time,
    /// A session made from here on is the one wished for.
    since: Time,
    /// When to send the next initiation.
    pub(super) next: Time,
    pub(super) pending: Option<Pending>,
}

/// An initiation on its way.
pub(super) struct Pending {
    pub(super) index: u32,
    pub(super) handshake: Initiator,
    /// It said that we would take AES-256-GCM: how the index of an answer looks that takes it.
    pub(super) aes: Option<Sign>,
}

impl Attempt {
    /// Time at which it is given up.
    pub(super) fn ends(&self) -> Time {
        self.started + REKEY_ATTEMPT_TIME
    }
}

impl Entry {
    /// Wishes for a session from `now` on, if that is not wished for already. A handshake message that we
    /// sent less than [`REKEY_TIMEOUT`] ago may still lead to it.
    pub(super) fn want_session(&mut self, now: Time) {
        let recent = self.last_sent.filter(|sent| now.since(*sent) < REKEY_TIMEOUT);
        let since = recent.unwrap_or(now);
        self.attempt.get_or_insert(Attempt { started: now, since, next: now, pending: None });
    }

    /// There is the session that was wished for: the peer's own handshake came first.
    pub(super) fn satisfied(&self, now: Time) -> bool {
        let (Some(attempt), Some(session)) = (&self.attempt, self.peer.current()) else { return false };
        session.established_at() >= attempt.since && !session.expired(now)
    }

    /// The last handshake message that we sent, a moment ago, led to the current session: a request for a
    /// handshake is older than that.
    pub(super) fn just_established(&self, now: Time) -> bool {
        let (Some(sent), Some(session)) = (self.last_sent, self.peer.current()) else { return false };
        now.since(sent) < REKEY_TIMEOUT && session.established_at() >= sent && !session.expired(now)
    }

    pub(super) fn new(id: u32, key: PublicKey, table: Arc<SessionTable>) -> Self {
        Self {
            peer: Arc::new(Peer::new(id, key, table)),
            psk: PresharedKey::default(),
            attempt: None,
            last_sent: None,
            last_session: None,
            accepted: None,
            clock: Clock::default(),
            keepalive_now: false,
            macs: MacVerifier::new(&key),
            cookie_key: cookie_key(&key),
            cookie: None,
            last_mac1: None,
        }
    }

    /// Puts the MACs on a handshake message that is about to be sent.
    pub(super) fn seal(&mut self, now: Time, message: &mut [u8]) {
        let cookie = self.cookie.filter(|(_, got)| now.since(*got) < COOKIE_LIFETIME).map(|(c, _)| c);
        self.macs.seal(message, cookie.as_ref());
        self.last_mac1 = super::mac::mac1_of(message);
        self.last_sent = Some(now);
        self.peer.activity.sent(now, 0, false);
    }

    /// Takes the cookie out of a cookie reply. One reply per message of ours is accepted.
    pub(super) fn take_cookie(&mut self, now: Time, reply: &[u8]) -> bool {
        let Some(mac1) = self.last_mac1 else { return false };
        let Some(cookie) = super::cookie::open(&self.cookie_key, &mac1, reply) else { return false };
        self.cookie = Some((cookie, now));
        self.last_mac1 = None;
        true
    }

    /// Time between persistent keepalives, if they are on.
    pub(super) fn keepalive_interval(&self) -> Option<Duration> {
        match self.peer.persistent_keepalive() {
            0 => None,
            seconds => Some(Duration::from_secs(seconds.into())),
        }
    }

    /// When a persistent keepalive is due.
    pub(super) fn persistent_due(&self) -> Option<Time> {
        let interval = self.keepalive_interval()?;
        if self.keepalive_now { Some(Time::ZERO) } else { self.peer.activity.idle_due(interval) }
    }

    /// When to wipe its keys (the paper, section 6.3).
    pub(super) fn wipe_due(&self) -> Option<Time> {
        Some(self.last_session? + ZERO_KEYS_AFTER)
    }

    /// When anything at all is due. While nobody asks for handshakes (`up` is false) only wiping is.
    pub(super) fn deadline(&self, up: bool) -> Option<Time> {
        if !up {
            return self.wipe_due();
        }
        let attempt = self.attempt.as_ref();
        let requested = attempt.is_none() && self.peer.requested();
        [
            self.wipe_due(),
            attempt.map(|a| a.next.min(a.ends())),
            requested.then_some(Time::ZERO),
            self.peer.activity.keepalive_due(),
            self.peer.activity.unanswered_due(),
            self.persistent_due(),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
