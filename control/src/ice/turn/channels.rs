//! Channels of an allocation (RFC 8656, section 12).

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::route::Transmit;
use super::super::stun::random;
use super::requests::Kind;
use super::{PERMISSION, State, Turn, TurnEvent};

/// Channel numbers (RFC 8656, section 12).
pub(super) const FIRST: u16 = 0x4000;
pub(super) const LAST: u16 = 0x4fff;
/// Channels at once, those that cool down included. Fewer than there are numbers, so that one is always free.
const MAX_CHANNELS: usize = 2048;
/// A binding lives 600 s, the permission that it makes only 300 s: it is refreshed for the latter.
const REFRESH: Duration = Duration::from_secs(240);
const BINDING: Duration = Duration::from_secs(600);
/// After a refresh that failed.
const RETRY: Duration = Duration::from_secs(10);
/// A number or a peer cannot be bound anew for five minutes after a binding ended.
const COOL_DOWN: Duration = Duration::from_secs(300);

/// The uses of one binding: as many as there are leases. A lease names its binding by being a part of it, so it can end
/// no use but its own: not another user's, not one of the same number at a later time or on a newer allocation.
#[derive(Debug, Default)]
pub(crate) struct Uses(Arc<()>);

impl Uses {
    pub(crate) fn lease(&self, number: u16) -> Lease {
        Lease { number, part: self.0.clone() }
    }

    pub(crate) fn count(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
}

/// One use of a channel, from a successful bind until the last clone is dropped. While there is one, the channel is
/// refreshed.
#[derive(Clone)]
pub(crate) struct Lease {
    number: u16,
    part: Arc<()>,
}

impl Lease {
    pub(crate) const fn number(&self) -> u16 {
        self.number
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({:#x})", self.number)
    }
}

impl PartialEq for Lease {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.part, &other.part)
    }
}

impl Eq for Lease {}

/// A random one, so that what is still under way to a number of an earlier allocation meets no channel of the next.
pub(super) fn first_number() -> u16 {
    FIRST + u16::from_be_bytes(random()) % (LAST - FIRST + 1)
}

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) number: u16,
    uses: Uses,
    /// When the server said so last; `None` if never, or if what that gave has lapsed.
    bound_at: Option<Instant>,
    /// When to refresh.
    refresh_at: Instant,
    /// When the server has forgotten the number for sure.
    ends: Instant,
}

impl Channel {
    /// Data gets through as long as the permission that came with the binding lives.
    fn is_alive(&self, now: Instant) -> bool {
        self.bound_at.is_some_and(|t| now < t + PERMISSION)
    }
}

impl Turn {
    /// Binds a channel to `peer`, or finds the one there is; [`TurnEvent::Bound`] answers, and then [`Self::lease`] gives
    /// each user its use.
    pub(crate) fn bind(&mut self, peer: SocketAddr, now: Instant, out: &mut Vec<Transmit>) {
        if !matches!(self.state, State::Ready { .. }) {
            return self.events.push(TurnEvent::Bound(peer, Err("there is no allocation".into())));
        }
        if let Some(c) = self.channels.get(&peer) {
            if c.is_alive(now) && now < c.refresh_at {
                return self.events.push(TurnEvent::Bound(peer, Ok(c.number)));
            }
        } else {
            let Some(number) = self.free_number() else {
                return self.events.push(TurnEvent::Bound(peer, Err("too many channels".into())));
            };
            self.numbers.insert(number, peer);
            let uses = Uses::default();
            let c = Channel { number, uses, bound_at: None, refresh_at: now + REFRESH, ends: now + BINDING };
            self.channels.insert(peer, c);
        }
        self.request_bind(peer, now, out);
    }

    /// One use of the channel to `peer`; `None` if none is bound.
    pub(crate) fn lease(&self, peer: SocketAddr) -> Option<Lease> {
        self.channels.get(&peer).filter(|c| c.bound_at.is_some()).map(|c| c.uses.lease(c.number))
    }

    fn is_binding(&self, peer: SocketAddr) -> bool {
        self.requests.iter().any(|r| r.kind == Kind::Bind(peer))
    }

    fn request_bind(&mut self, peer: SocketAddr, now: Instant, out: &mut Vec<Transmit>) {
        if !self.is_binding(peer) {
            self.start(Kind::Bind(peer), now, out);
        }
    }

    fn free_number(&mut self) -> Option<u16> {
        if self.channels.len() >= MAX_CHANNELS {
            return None;
        }
        for _ in FIRST..=LAST {
            let n = self.next_number;
            self.next_number = if n == LAST { FIRST } else { n + 1 };
            if !self.numbers.contains_key(&n) {
                return Some(n);
            }
        }
        None
    }

    /// Whose data comes in over a channel.
    pub(crate) fn peer_of(&self, number: u16) -> Option<SocketAddr> {
        self.numbers.get(&number).copied()
    }

    pub(crate) fn bound_number(&self, peer: SocketAddr) -> Option<u16> {
        self.channels.get(&peer).filter(|c| c.bound_at.is_some() && c.uses.count() > 0).map(|c| c.number)
    }

    /// Channels in use.
    pub(crate) fn channels_in_use(&self) -> usize {
        self.channels.values().filter(|c| c.uses.count() > 0).count()
    }

    pub(super) fn bind_succeeded(&mut self, peer: SocketAddr, now: Instant) {
        let Some(c) = self.channels.get_mut(&peer) else { return };
        (c.bound_at, c.refresh_at, c.ends) = (Some(now), now + REFRESH, now + BINDING);
        self.events.push(TurnEvent::Bound(peer, Ok(c.number)));
    }

    pub(super) fn bind_failed(&mut self, peer: SocketAddr, why: String, now: Instant) {
        let Some(c) = self.channels.get_mut(&peer) else { return };
        // Those who use it still want it.
        c.refresh_at = now + RETRY;
        let r = if c.is_alive(now) {
            Ok(c.number)
        } else {
            c.bound_at = None;
            // Whether the server has bound the number or not is unknown: it cools down like a bound one.
            c.ends = now + BINDING;
            Err(why)
        };
        self.events.push(TurnEvent::Bound(peer, r));
    }

    pub(super) fn channels_next(&self) -> Option<Instant> {
        self.channels.values().filter(|c| c.uses.count() > 0).map(|c| c.refresh_at).min()
    }

    pub(super) fn poll_channels(&mut self, now: Instant, out: &mut Vec<Transmit>) {
        let mut due = Vec::new();
        for (peer, c) in &mut self.channels {
            c.bound_at = c.bound_at.filter(|t| now < *t + PERMISSION);
            if c.uses.count() > 0 && c.refresh_at <= now {
                c.refresh_at = now + REFRESH;
                due.push(*peer);
            }
        }
        for peer in due {
            self.request_bind(peer, now, out);
        }
    }

    pub(super) fn forget_channels(&mut self, now: Instant) {
        let old = |c: &Channel| c.uses.count() == 0 && c.ends + COOL_DOWN <= now;
        let old: Vec<SocketAddr> = self.channels.iter().filter(|(_, c)| old(c)).map(|(p, _)| *p).collect();
        for peer in old {
            if !self.is_binding(peer)
                && let Some(c) = self.channels.remove(&peer)
            {
                self.numbers.remove(&c.number);
            }
        }
    }
}
