//! A TURN client (RFC 8656) without sockets and clocks: one allocation on one server, shared by all peers.
//!
//! Permissions last as long as checks need them; a channel is bound for a chosen path only and left to lapse when no path
//! uses it any more ([`Lease`]). While there are links, the allocation is looked after every few seconds, because a
//! server that was restarted has forgotten it and says so only when asked.

mod channels;
mod requests;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use dataplane::Path;
use zeroize::Zeroizing;

use super::binding::{BACKOFF_BUSY, BACKOFF_IDLE, backoff};
use super::route::Transmit;
use super::stun::{Class, Key, View, Writer, attr, method, random};
use channels::Channel;
pub(crate) use channels::Lease;
#[cfg(test)]
pub(crate) use channels::Uses;
use requests::{Kind, Request};

/// Asked for at allocation and refresh; servers cap it (RFC 8656, section 3.2: 10 minutes is the default).
const LIFETIME: u32 = 600;
/// How often an allocation is looked after with links, and without.
const WATCH_BUSY: Duration = Duration::from_secs(4);
const WATCH_IDLE: Duration = Duration::from_secs(15);
/// How often the mapped address is looked at.
const MAPPING: Duration = Duration::from_secs(20);
/// A permission lives 300 s (RFC 8656, section 9); one with less than this left is asked for again.
const PERMISSION: Duration = Duration::from_secs(300);
const PERMISSION_MARGIN: Duration = Duration::from_secs(60);
/// A refused permission is not asked for again for this long.
const DENIED: Duration = Duration::from_secs(30);
/// Permissions kept in mind for one server.
const MAX_PERMISSIONS: usize = 1024;
/// Addresses in one CreatePermission. ejabberd's server refuses requests that could take it over `turn_max_permissions` (10
/// for an allocation), and counts addresses that it already permits once more.
const BATCH: usize = 8;
/// Pause after a refusal that waiting does not heal (wrong password, quota).
const REFUSED: Duration = Duration::from_secs(30);

/// What happened to the allocation or to something asked of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TurnEvent {
    /// There is an allocation.
    Up,
    /// The allocation is gone, with all channels and permissions.
    Lost(String),
    /// Whether the allocation is still there is not known.
    Doubtful,
    /// The allocation was in doubt and is still there.
    Confirmed,
    /// An attempt to get an allocation failed; [`Turn::error`] says why.
    Failed,
    /// The server sees our port at another address than before.
    Remapped { was: SocketAddr },
    /// Whether data may be relayed to this address.
    Permitted(IpAddr, bool),
    /// A channel to this peer, or why not; [`Turn::lease`] gives its uses.
    Bound(SocketAddr, Result<u16, String>),
}

/// Who we are at a server.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) username: String,
    pub(crate) password: Zeroizing<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Down { retry_at: Instant },
    Allocating,
    Ready { watch_at: Instant },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Permission {
    Pending,
    Granted(Instant),
    Denied(Instant),
}

/// One TURN server.
pub(crate) struct Turn {
    server: SocketAddr,
    account: Account,
    /// Renewed credentials, for the next allocation: an allocation belongs to the name that made it.
    renewed: Option<Account>,
    state: State,
    realm: String,
    nonce: Vec<u8>,
    key: Option<Key>,
    /// Whether the server refused to be asked for a family (440): older servers know IPv4 only.
    no_family: bool,
    /// Whether a left-over allocation was given back in this attempt.
    cleared: bool,
    pub(crate) relayed: Option<SocketAddr>,
    pub(crate) mapped: Option<SocketAddr>,
    pub(crate) error: Option<String>,
    mapping_at: Instant,
    /// When the server forgets the allocation unless it is refreshed.
    expires_at: Instant,
    /// In a row, the successes of Allocate itself not counted.
    failures: u32,
    busy: bool,
    /// This machine's addresses changed, and the server has not said yet whether the allocation is still ours.
    in_doubt: bool,
    /// The last attempt was refused for a reason that waiting does not heal.
    refused: bool,
    requests: Vec<Request>,
    permissions: HashMap<IpAddr, Permission>,
    wanted: Vec<IpAddr>,
    wanted_at: Instant,
    /// How many are asked for at once: fewer after a 508.
    batch: usize,
    /// The server permits no more addresses (508): until when it is not asked for more, and what it said.
    full: Option<(Instant, String)>,
    channels: HashMap<SocketAddr, Channel>,
    numbers: HashMap<u16, SocketAddr>,
    next_number: u16,
    events: Vec<TurnEvent>,
}

impl Turn {
    pub(crate) fn new(server: SocketAddr, account: Account, now: Instant) -> Self {
        Self {
            server,
            account,
            renewed: None,
            state: State::Down { retry_at: now },
            realm: String::new(),
            nonce: Vec::new(),
            key: None,
            no_family: false,
            cleared: false,
            relayed: None,
            mapped: None,
            error: None,
            mapping_at: now,
            expires_at: now,
            failures: 0,
            busy: false,
            in_doubt: false,
            refused: false,
            requests: Vec::new(),
            permissions: HashMap::new(),
            wanted: Vec::new(),
            wanted_at: now,
            batch: BATCH,
            full: None,
            channels: HashMap::new(),
            numbers: HashMap::new(),
            next_number: channels::first_number(),
            events: Vec::new(),
        }
    }

    pub(crate) const fn server(&self) -> SocketAddr {
        self.server
    }

    /// Whether there is an allocation, or an attempt has failed since the start.
    pub(crate) const fn is_settled(&self) -> bool {
        self.error.is_some() || (self.relayed.is_some() && !self.in_doubt)
    }

    /// The allocation's address, unless this machine's own address may have changed below it. Silence of the server alone
    /// takes nothing away.
    pub(crate) fn offered(&self) -> Option<SocketAddr> {
        self.relayed.filter(|_| !self.in_doubt)
    }

    /// Takes the credentials of now. The allocation stays; they are used for the next one.
    pub(crate) fn renew(&mut self, account: Account, now: Instant) {
        if account == self.account {
            self.renewed = None;
            return;
        }
        self.renewed = Some(account);
        if let State::Down { retry_at } = &mut self.state {
            *retry_at = now;
        }
    }

    /// Whether there are links that may need a relay: then an outage is not waited out for long.
    pub(crate) fn set_busy(&mut self, busy: bool, now: Instant) {
        if let (true, false, false, State::Down { retry_at }) = (busy, self.busy, self.refused, &mut self.state) {
            *retry_at = (*retry_at).min(now + Duration::from_secs(BACKOFF_BUSY));
        }
        if let (true, State::Ready { watch_at }) = (busy, &mut self.state) {
            *watch_at = (*watch_at).min(now + WATCH_BUSY);
        }
        self.busy = busy;
    }

    /// Looks whether the allocation is still there: addresses of this machine changed. Until that is known, it is not
    /// offered.
    pub(crate) fn look(&mut self, now: Instant) {
        self.mapping_at = now;
        self.mapped = None;
        self.in_doubt = self.relayed.is_some();
        match &mut self.state {
            State::Down { retry_at: at } | State::Ready { watch_at: at } => *at = now,
            State::Allocating => {}
        }
    }

    pub(crate) fn take_events(&mut self) -> Vec<TurnEvent> {
        std::mem::take(&mut self.events)
    }

    /// When to poll next.
    pub(crate) fn next(&self) -> Instant {
        let at = match self.state {
            State::Down { retry_at } => return retry_at,
            State::Allocating => self.requests.iter().map(|r| r.at).min().unwrap_or(self.mapping_at),
            State::Ready { watch_at } => {
                let at = watch_at.min(self.mapping_at).min(self.expires_at);
                at.min(self.channels_next().unwrap_or(at))
            }
        };
        let at = if self.may_ask() { at.min(self.wanted_at) } else { at };
        self.requests.iter().map(|r| r.at).fold(at, Instant::min)
    }

    pub(crate) fn poll(&mut self, now: Instant, out: &mut Vec<Transmit>) {
        self.poll_requests(now, out);
        match self.state {
            State::Down { retry_at } if retry_at <= now => {
                if let Some(a) = self.renewed.take() {
                    self.account = a;
                    self.key = None;
                }
                (self.cleared, self.refused) = (false, false);
                self.state = State::Allocating;
                self.start(Kind::Allocate, now, out);
            }
            State::Ready { .. } if self.expires_at <= now => {
                let pause = self.failure_pause();
                self.down("it has not answered for as long as the allocation lives".into(), pause, now);
            }
            State::Ready { watch_at } => {
                if watch_at <= now {
                    self.state = State::Ready { watch_at: now + self.watch_interval() };
                    self.forget_old(now);
                    if !self.requests.iter().any(|r| matches!(r.kind, Kind::Refresh)) {
                        self.start(Kind::Refresh, now, out);
                    }
                }
                if self.mapping_at <= now {
                    self.mapping_at = now + MAPPING;
                    self.start(Kind::Binding, now, out);
                }
                while self.may_ask() {
                    let rest = self.wanted.split_off(self.wanted.len().min(self.batch));
                    let batch = std::mem::replace(&mut self.wanted, rest);
                    self.start(Kind::Permission(batch), now, out);
                }
                self.poll_channels(now, out);
            }
            State::Down { .. } | State::Allocating => {}
        }
    }

    /// Whether there are permissions to ask for. One request at a time while it is found out how many are given.
    fn may_ask(&self) -> bool {
        let asking = || self.requests.iter().any(|r| matches!(r.kind, Kind::Permission(_)));
        !self.wanted.is_empty() && (self.batch == BATCH || !asking())
    }

    /// What is wrong, for people: the allocation is in doubt or not there, or it is full.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.error.as_deref().or(self.full.as_ref().map(|(_, why)| why.as_str()))
    }

    fn watch_interval(&self) -> Duration {
        if self.busy { WATCH_BUSY } else { WATCH_IDLE }
    }

    /// Asks that data may be relayed to `ip`; [`TurnEvent::Permitted`] answers, at once if it is known.
    pub(crate) fn permit(&mut self, ip: IpAddr, now: Instant) {
        self.full = self.full.take().filter(|(until, _)| *until > now);
        let known = self.permissions.get(&ip).copied();
        if self.full.is_some() && !matches!(known, Some(Permission::Pending)) {
            let granted = matches!(known, Some(Permission::Granted(until)) if until > now);
            return self.events.push(TurnEvent::Permitted(ip, granted));
        }
        match known {
            Some(Permission::Pending) => return,
            Some(Permission::Granted(until)) if until > now + PERMISSION_MARGIN => {
                return self.events.push(TurnEvent::Permitted(ip, true));
            }
            Some(Permission::Denied(until)) if until > now => {
                return self.events.push(TurnEvent::Permitted(ip, false));
            }
            _ => {}
        }
        let full = known.is_none() && self.permissions.len() >= MAX_PERMISSIONS;
        if full || !matches!(self.state, State::Ready { .. }) {
            return self.events.push(TurnEvent::Permitted(ip, false));
        }
        self.permissions.insert(ip, Permission::Pending);
        self.wanted.push(ip);
        self.wanted_at = now;
    }

    fn forget_old(&mut self, now: Instant) {
        self.full = self.full.take().filter(|(until, _)| *until > now);
        self.permissions.retain(|_, p| match p {
            Permission::Pending => true,
            Permission::Granted(until) | Permission::Denied(until) => *until > now,
        });
        self.forget_channels(now);
    }

    /// The allocation is gone or not to be had; tried again after a pause.
    fn down(&mut self, why: String, pause: Duration, now: Instant) {
        self.in_doubt = false;
        let was_up = self.relayed.take().is_some();
        self.requests.clear();
        self.permissions.clear();
        self.wanted.clear();
        (self.batch, self.full) = (BATCH, None);
        self.channels.clear();
        self.numbers.clear();
        self.next_number = channels::first_number();
        self.mapped = self.mapped.filter(|_| was_up);
        self.state = State::Down { retry_at: now + pause };
        self.error = Some(format!("TURN server {}: {why}", self.server));
        self.events.push(if was_up { TurnEvent::Lost(why) } else { TurnEvent::Failed });
    }

    /// The kernel has no route to the server.
    pub(crate) fn unreachable(&mut self, now: Instant) {
        match self.state {
            State::Down { .. } => {}
            // Networks come back, and the allocation lives on meanwhile.
            State::Ready { .. } => self.doubt("there is no route to it"),
            State::Allocating => {
                let pause = self.failure_pause();
                self.down("there is no route to it".into(), pause, now);
            }
        }
    }

    fn failure_pause(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        backoff(self.failures, if self.busy { BACKOFF_BUSY } else { BACKOFF_IDLE })
    }

    fn saw_mapped(&mut self, mapped: SocketAddr) {
        match self.mapped.replace(mapped) {
            Some(was) if was != mapped => self.events.push(TurnEvent::Remapped { was }),
            _ => {}
        }
    }

    /// Wraps `bytes` for `peer`: ChannelData if there is a channel, else a Send indication. The caller has the
    /// permission.
    pub(crate) fn wrap(&self, peer: SocketAddr, bytes: Vec<u8>) -> Transmit {
        if let Some(channel) = self.bound_number(peer) {
            return Transmit { path: Path::Relay { server: self.server, channel }, bytes };
        }
        let bytes = Writer::new(Class::Indication, method::SEND, &random())
            .xor_address(attr::XOR_PEER_ADDRESS, peer)
            .attr(attr::DATA, &bytes)
            .finish();
        Transmit { path: Path::Direct(self.server), bytes }
    }

    /// The peer and content of a Data indication.
    pub(crate) fn unwrap<'a>(v: &View<'a>) -> Option<(SocketAddr, &'a [u8])> {
        Some((v.xor_address(attr::XOR_PEER_ADDRESS)?, v.find(attr::DATA)?))
    }

    /// Gives the allocation back. Sent once: a server that does not hear it forgets the allocation by itself.
    pub(crate) fn close(&mut self, now: Instant, out: &mut Vec<Transmit>) {
        if self.relayed.is_some() {
            self.start(Kind::Release, now, out);
            self.requests.clear();
            self.relayed = None;
        }
        self.state = State::Down { retry_at: now + Duration::from_secs(1 << 30) };
    }
}
