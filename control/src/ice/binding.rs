//! Asking a server how it sees our port: STUN Binding, repeated so that the NAT keeps the mapping and a changed one is
//! noticed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use dataplane::Path;

use super::route::Transmit;
use super::stun::{Class, Tid, View, Writer, method, random};

/// Pauses after each sending; the last one is the wait before giving up. Sums up to four seconds.
pub(crate) const RETRIES: [Duration; 4] =
    [Duration::from_millis(250), Duration::from_millis(500), Duration::from_millis(1000), Duration::from_millis(2250)];
/// NATs forget UDP mappings after 30 s at the earliest (RFC 4787 asks for 120). With links, a NAT that was rebooted
/// should be noticed much sooner.
const INTERVAL_IDLE: Duration = Duration::from_secs(20);
const INTERVAL_BUSY: Duration = Duration::from_secs(5);
/// Longest pause between attempts, seconds, without and with links that may need the server.
pub(crate) const BACKOFF_IDLE: u64 = 30;
pub(crate) const BACKOFF_BUSY: u64 = 4;

/// The pause before the next attempt after `failures` in a row.
pub(crate) fn backoff(failures: u32, longest: u64) -> Duration {
    Duration::from_secs((1u64 << failures.saturating_sub(1).min(10)).min(longest))
}

/// What came of a message or of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BindingEvent {
    /// First answer, first after an outage, or another address than before (`was`).
    Mapped { was: Option<SocketAddr> },
    /// No answer.
    Silent,
}

/// One STUN server.
#[derive(Debug)]
pub(crate) struct Binding {
    server: SocketAddr,
    /// How the server sees the port; `None` while it does not answer.
    pub(crate) mapped: Option<SocketAddr>,
    pub(crate) error: Option<String>,
    /// The last address known, to tell a change across an outage.
    last: Option<SocketAddr>,
    request: Option<(Tid, usize)>,
    failures: u32,
    busy: bool,
    at: Instant,
}

impl Binding {
    pub(crate) fn new(server: SocketAddr, now: Instant) -> Self {
        Self { server, mapped: None, error: None, last: None, request: None, failures: 0, busy: false, at: now }
    }

    pub(crate) const fn server(&self) -> SocketAddr {
        self.server
    }

    /// Whether the server has answered or not answered since the start.
    pub(crate) const fn is_settled(&self) -> bool {
        self.mapped.is_some() || self.error.is_some()
    }

    /// Whether there are links that a changed address concerns.
    pub(crate) fn set_busy(&mut self, busy: bool, now: Instant) {
        if busy && !self.busy && self.request.is_none() {
            self.at = self.at.min(now + Duration::from_secs(BACKOFF_BUSY));
        }
        self.busy = busy;
    }

    /// Asks now, as if for the first time: addresses of this machine changed, and what was known is not true any more.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.request = None;
        (self.mapped, self.last, self.error) = (None, None, None);
        self.at = now;
    }

    pub(crate) const fn next(&self) -> Instant {
        self.at
    }

    pub(crate) fn poll(&mut self, now: Instant, out: &mut Vec<Transmit>) -> Option<BindingEvent> {
        if now < self.at {
            return None;
        }
        let (tid, tries) = self.request.unwrap_or_else(|| (random(), 0));
        let Some(pause) = RETRIES.get(tries) else { return Some(self.fail("does not answer", now)) };
        self.request = Some((tid, tries + 1));
        self.at = now + *pause;
        let bytes = Writer::new(Class::Request, method::BINDING, &tid).fingerprint().finish();
        out.push(Transmit { path: Path::Direct(self.server), bytes });
        None
    }

    /// No answer will come.
    pub(crate) fn fail(&mut self, why: &str, now: Instant) -> BindingEvent {
        self.request = None;
        self.failures = self.failures.saturating_add(1);
        self.mapped = None;
        self.error = Some(format!("STUN server {} {why}", self.server));
        self.at = now + backoff(self.failures, if self.busy { BACKOFF_BUSY } else { BACKOFF_IDLE });
        BindingEvent::Silent
    }

    /// Takes a response; `None` for `Err` if it is not ours.
    pub(crate) fn handle(&mut self, v: &View<'_>, now: Instant) -> Result<Option<BindingEvent>, ()> {
        match self.request {
            Some((tid, _)) if tid == v.tid() && v.method() == method::BINDING => {}
            _ => return Err(()),
        }
        self.request = None;
        self.at = now + if self.busy { INTERVAL_BUSY } else { INTERVAL_IDLE };
        self.failures = 0;
        let Some(mapped) = v.mapped().filter(|_| v.class() == Class::Success) else {
            let (code, phrase) = v.error().unwrap_or((0, "a response without an address".into()));
            self.error = Some(format!("STUN server {}: {code} {phrase}", self.server));
            return Ok(Some(BindingEvent::Silent));
        };
        self.error = None;
        let known = self.mapped.replace(mapped) == Some(mapped);
        let was = self.last.replace(mapped);
        Ok((!known).then_some(BindingEvent::Mapped { was }))
    }
}
