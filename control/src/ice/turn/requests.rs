//! Requests to a TURN server: signed, repeated, answered.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use dataplane::Path;
use dataplane::path::canonical;

use super::super::binding::RETRIES;
use super::super::route::Transmit;
use super::super::stun::{Class, Key, Tid, View, Writer, attr, method, random};
use super::{BATCH, LIFETIME, MAPPING, PERMISSION, Permission, REFUSED, State, Turn, TurnEvent};

/// Nonces may go stale in a row this often before it counts as a refusal.
const MAX_STALE: u8 = 4;
/// UDP, in REQUESTED-TRANSPORT.
const UDP: u32 = 17 << 24;
/// An allocation in doubt is asked after this often.
const DOUBT: Duration = Duration::from_secs(1);
/// Lifetimes that are believed, seconds: others are a server's mistake.
const LIFETIMES: (u32, u32) = (60, 3600);
/// Longest nonce and realm (RFC 8489, sections 14.9 and 14.10: 763 bytes).
const MAX_TEXT: usize = 763;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Allocate,
    Refresh,
    /// Refresh with lifetime 0.
    Release,
    Permission(Vec<IpAddr>),
    Bind(SocketAddr),
    Binding,
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) kind: Kind,
    tid: Tid,
    bytes: Vec<u8>,
    /// How often it was sent.
    tries: usize,
    /// When to send again or give up.
    pub(super) at: Instant,
    stale: u8,
    signed: bool,
}

impl Turn {
    pub(super) fn start(&mut self, kind: Kind, now: Instant, out: &mut Vec<Transmit>) {
        self.start_again(kind, 0, now, out);
    }

    fn start_again(&mut self, kind: Kind, stale: u8, now: Instant, out: &mut Vec<Transmit>) {
        let tid = random();
        let bytes = self.build(&kind, &tid);
        out.push(Transmit { path: Path::Direct(self.server), bytes: bytes.clone() });
        let signed = self.key.is_some();
        self.requests.push(Request { kind, tid, bytes, tries: 1, at: now + RETRIES[0], stale, signed });
    }

    fn build(&self, kind: &Kind, tid: &Tid) -> Vec<u8> {
        let number = match kind {
            Kind::Allocate => method::ALLOCATE,
            Kind::Refresh | Kind::Release => method::REFRESH,
            Kind::Permission(_) => method::CREATE_PERMISSION,
            Kind::Bind(_) => method::CHANNEL_BIND,
            Kind::Binding => method::BINDING,
        };
        let mut w = Writer::new(Class::Request, number, tid);
        w = match kind {
            Kind::Allocate => {
                let w = w.u32(attr::REQUESTED_TRANSPORT, UDP).u32(attr::LIFETIME, LIFETIME);
                if self.server.is_ipv6() && !self.no_family {
                    w.u32(attr::REQUESTED_ADDRESS_FAMILY, 2 << 24)
                } else {
                    w
                }
            }
            Kind::Refresh => w.u32(attr::LIFETIME, LIFETIME),
            Kind::Release => w.u32(attr::LIFETIME, 0),
            Kind::Permission(ips) => {
                ips.iter().fold(w, |w, ip| w.xor_address(attr::XOR_PEER_ADDRESS, SocketAddr::new(*ip, 0)))
            }
            Kind::Bind(peer) => {
                let number = self.channels.get(peer).map_or(0, |c| c.number);
                w.u32(attr::CHANNEL_NUMBER, u32::from(number) << 16).xor_address(attr::XOR_PEER_ADDRESS, *peer)
            }
            Kind::Binding => return w.fingerprint().finish(),
        };
        if let Some(key) = &self.key {
            w = w
                .attr(attr::USERNAME, self.account.username.as_bytes())
                .attr(attr::REALM, self.realm.as_bytes())
                .attr(attr::NONCE, &self.nonce)
                .sign(key);
        }
        w.fingerprint().finish()
    }

    pub(super) fn poll_requests(&mut self, now: Instant, out: &mut Vec<Transmit>) {
        let mut silent = Vec::new();
        self.requests.retain_mut(|r| {
            if r.at > now {
                return true;
            }
            let pause = RETRIES.get(r.tries).copied();
            if pause.is_none() {
                silent.push(r.kind.clone());
            }
            // Silence says nothing of an allocation: it is asked after until there is an answer or its life is over.
            let Some(pause) = pause.or((r.kind == Kind::Refresh).then_some(DOUBT)) else { return false };
            out.push(Transmit { path: Path::Direct(self.server), bytes: r.bytes.clone() });
            r.tries = r.tries.saturating_add(1);
            r.at = now + pause;
            true
        });
        for kind in silent {
            self.unanswered(kind, now);
        }
    }

    fn unanswered(&mut self, kind: Kind, now: Instant) {
        if matches!(self.state, State::Down { .. }) {
            return;
        }
        match kind {
            Kind::Release if self.state != State::Allocating => {}
            Kind::Allocate | Kind::Release => {
                let pause = self.failure_pause();
                self.down("it does not answer".into(), pause, now);
            }
            Kind::Refresh => self.doubt("it does not answer"),
            Kind::Binding => {}
            Kind::Permission(ips) => {
                for ip in ips {
                    self.permissions.remove(&ip);
                    self.events.push(TurnEvent::Permitted(ip, false));
                }
            }
            Kind::Bind(peer) => self.bind_failed(peer, "the server does not answer".into(), now),
        }
    }

    /// Whether the allocation is still there is not known; it is used as before.
    pub(super) fn doubt(&mut self, why: &str) {
        if self.error.is_none() {
            self.error = Some(format!("TURN server {}: {why}", self.server));
            self.events.push(TurnEvent::Doubtful);
        }
    }

    fn lives_until(&mut self, v: &View<'_>, now: Instant) {
        let seconds = v.u32(attr::LIFETIME).unwrap_or(LIFETIME).clamp(LIFETIMES.0, LIFETIMES.1);
        self.expires_at = now + Duration::from_secs(seconds.into());
    }

    fn denied(&mut self, ips: &[IpAddr], now: Instant) {
        for ip in ips {
            self.permissions.insert(*ip, Permission::Denied(now + super::DENIED));
            self.events.push(TurnEvent::Permitted(*ip, false));
        }
    }

    /// Takes a response from the server; false if nothing waits for it.
    pub(crate) fn handle(&mut self, v: &View<'_>, now: Instant, out: &mut Vec<Transmit>) -> bool {
        let tid = v.tid();
        let Some(i) = self.requests.iter().position(|r| r.tid == tid) else { return false };
        let signed = self.key.as_ref().is_some_and(|k| v.signed_by(k));
        // A success that was not signed by the server may come from anyone on the way. Binding is never signed.
        if v.class() == Class::Success && !signed && self.requests[i].kind != Kind::Binding {
            return false;
        }
        let r = self.requests.swap_remove(i);
        match v.class() {
            Class::Success => self.succeeded(r.kind, v, now, out),
            _ => self.refused(r, v, now, out),
        }
        true
    }

    fn succeeded(&mut self, kind: Kind, v: &View<'_>, now: Instant, out: &mut Vec<Transmit>) {
        if matches!(kind, Kind::Refresh | Kind::Permission(_) | Kind::Bind(_)) {
            // Not by Allocate: a server may allocate again and again and then know nothing of it.
            self.failures = 0;
        }
        match kind {
            Kind::Allocate => {
                let Some(relayed) = v.xor_address(attr::XOR_RELAYED_ADDRESS) else {
                    let pause = self.failure_pause();
                    return self.down("it allocated no address".into(), pause, now);
                };
                self.relayed = Some(canonical(relayed));
                if let Some(mapped) = v.mapped() {
                    self.saw_mapped(mapped);
                }
                self.lives_until(v, now);
                self.error = None;
                self.state = State::Ready { watch_at: now + self.watch_interval() };
                self.mapping_at = now + MAPPING;
                self.events.push(TurnEvent::Up);
            }
            Kind::Refresh => {
                self.lives_until(v, now);
                if std::mem::replace(&mut self.in_doubt, false) | self.error.take().is_some() {
                    self.events.push(TurnEvent::Confirmed);
                }
            }
            Kind::Release => {
                if self.state == State::Allocating {
                    self.start(Kind::Allocate, now, out);
                }
            }
            Kind::Permission(ips) => {
                self.batch = (self.batch * 2).min(BATCH);
                for ip in ips {
                    self.permissions.insert(ip, Permission::Granted(now + PERMISSION));
                    self.events.push(TurnEvent::Permitted(ip, true));
                }
            }
            Kind::Bind(peer) => self.bind_succeeded(peer, now),
            Kind::Binding => {
                if let Some(mapped) = v.mapped() {
                    self.saw_mapped(mapped);
                }
            }
        }
    }

    fn refused(&mut self, r: Request, v: &View<'_>, now: Instant, out: &mut Vec<Transmit>) {
        let (code, phrase) = v.error().unwrap_or((0, "error without a code".into()));
        let text = format!("{code} {}", phrase.chars().take(60).collect::<String>());
        let may_sign = code == 438 || (code == 401 && !r.signed);
        if may_sign && r.stale < MAX_STALE && self.take_nonce(v) {
            return self.start_again(r.kind, r.stale + 1, now, out);
        }
        match (r.kind, code) {
            (Kind::Allocate, 440) if !self.no_family => {
                self.no_family = true;
                self.start(Kind::Allocate, now, out);
            }
            // Of an earlier run from the same port, or of the time before a NAT was rebooted.
            (Kind::Allocate, 437) if !self.cleared => {
                self.cleared = true;
                self.start(Kind::Release, now, out);
            }
            (Kind::Allocate, 401 | 441) => {
                (self.key, self.refused) = (None, true);
                self.down(format!("{text}: it refuses the user name or the password"), REFUSED, now);
            }
            (Kind::Allocate, _) => {
                let pause = self.failure_pause().max(if code == 437 { Duration::ZERO } else { REFUSED / 3 });
                self.down(text, pause, now);
            }
            (Kind::Refresh | Kind::Permission(_) | Kind::Bind(_), 401 | 437 | 441) | (Kind::Refresh, 403) => {
                // Most likely the server was restarted: a new allocation is a matter of two round trips. If that is
                // refused the same way, it was not.
                let first = self.failures == 0;
                let pause = self.failure_pause();
                let pause = if first { Duration::ZERO } else { pause };
                self.down(format!("the allocation is gone ({text})"), pause, now);
            }
            (Kind::Refresh, _) => {
                self.doubt(&text);
                if let State::Ready { watch_at } = &mut self.state {
                    *watch_at = now + DOUBT;
                }
            }
            (Kind::Release, _) => {
                if self.state == State::Allocating {
                    self.start(Kind::Allocate, now, out);
                }
            }
            (Kind::Permission(ips), 508) => self.full(ips, &text, now),
            (Kind::Permission(ips), _) if ips.len() > 1 => {
                // One of them is refused: find out which.
                for ip in ips {
                    self.start(Kind::Permission(vec![ip]), now, out);
                }
            }
            (Kind::Permission(ips), _) => self.denied(&ips, now),
            (Kind::Bind(peer), _) => self.bind_failed(peer, text, now),
            (Kind::Binding, _) => {}
        }
    }

    /// The server permits no more, or not as many at once: fewer are asked for, and after one alone none for a while.
    fn full(&mut self, mut ips: Vec<IpAddr>, text: &str, now: Instant) {
        self.batch = (ips.len() / 2).max(1);
        if ips.len() > 1 {
            ips.append(&mut self.wanted);
            self.wanted = ips;
            return;
        }
        let why = format!("TURN server {}: {text}: it permits no more addresses for now", self.server);
        tracing::warn!("{why}");
        self.full = Some((now + super::DENIED, why));
        ips.append(&mut self.wanted);
        for ip in ips {
            self.permissions.remove(&ip);
            self.events.push(TurnEvent::Permitted(ip, false));
        }
    }

    /// Realm and nonce of a 401 or 438; false if they are missing.
    fn take_nonce(&mut self, v: &View<'_>) -> bool {
        let Some(nonce) = v.find(attr::NONCE).filter(|n| n.len() <= MAX_TEXT) else { return false };
        let realm = v.text(attr::REALM).filter(|r| r.len() <= MAX_TEXT).unwrap_or(&self.realm).to_owned();
        self.nonce = nonce.to_vec();
        if self.key.is_none() || realm != self.realm {
            self.key = Some(Key::long(&self.account.username, &realm, &self.account.password));
            self.realm = realm;
        }
        true
    }
}
