//! Channels of an allocation (RFC 8656, section 12).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::super::route::Transmit;
use super::requests::Kind;
use super::{State, Turn, TurnEvent};

/// Channel numbers (RFC 8656, section 12).
pub(super) const FIRST: u16 = 0x4000;
const LAST: u16 = 0x4fff;
/// Channels at once, those that cool down included. Fewer than there are numbers, so that one is always free.
const MAX_CHANNELS: usize = 2048;
/// A binding lives 600 s, the permission that it makes only 300 s: it is refreshed for the latter.
const REFRESH: Duration = Duration::from_secs(240);
const BINDING: Duration = Duration::from_secs(600);
/// A number or a peer cannot be bound anew for five minutes after a binding ended.
const COOL_DOWN: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) number: u16,
    /// How many paths use it.
    pub(super) users: u32,
    bound: bool,
    /// When to refresh.
    refresh_at: Instant,
    /// When the server forgets it unless refreshed.
    ends: Instant,
}

impl Turn {
    /// Binds a channel to `peer`, or takes the one there is, for one more user; [`TurnEvent::Bound`] answers.
    pub(crate) fn bind(&mut self, peer: SocketAddr, now: Instant, out: &mut Vec<Transmit>) {
        if !matches!(self.state, State::Ready { .. }) {
            return self.events.push(TurnEvent::Bound(peer, Err("there is no allocation".into())));
        }
        if let Some(c) = self.channels.get_mut(&peer) {
            c.users += 1;
            if c.bound && c.ends > now + super::PERMISSION {
                return self.events.push(TurnEvent::Bound(peer, Ok(c.number)));
            }
        } else {
            let Some(number) = self.free_number() else {
                return self.events.push(TurnEvent::Bound(peer, Err("too many channels".into())));
            };
            self.numbers.insert(number, peer);
            let c = Channel { number, users: 1, bound: false, refresh_at: now + REFRESH, ends: now + BINDING };
            self.channels.insert(peer, c);
        }
        self.request_bind(peer, now, out);
    }

    fn request_bind(&mut self, peer: SocketAddr, now: Instant, out: &mut Vec<Transmit>) {
        if !self.requests.iter().any(|r| r.kind == Kind::Bind(peer)) {
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

    /// One user less. Without users it is not refreshed any more.
    pub(crate) fn release(&mut self, number: u16) {
        if let Some(c) = self.numbers.get(&number).and_then(|p| self.channels.get_mut(p)) {
            c.users = c.users.saturating_sub(1);
        }
    }

    /// Whose data comes in over a channel.
    pub(crate) fn peer_of(&self, number: u16) -> Option<SocketAddr> {
        self.numbers.get(&number).copied()
    }

    pub(crate) fn bound_number(&self, peer: SocketAddr) -> Option<u16> {
        self.channels.get(&peer).filter(|c| c.bound && c.users > 0).map(|c| c.number)
    }

    /// Channels in use.
    pub(crate) fn channels_in_use(&self) -> usize {
        self.channels.values().filter(|c| c.users > 0).count()
    }

    pub(super) fn bind_succeeded(&mut self, peer: SocketAddr, now: Instant) {
        let Some(c) = self.channels.get_mut(&peer) else { return };
        (c.refresh_at, c.ends) = (now + REFRESH, now + BINDING);
        if !std::mem::replace(&mut c.bound, true) || c.users > 0 {
            self.events.push(TurnEvent::Bound(peer, Ok(c.number)));
        }
    }

    pub(super) fn bind_failed(&mut self, peer: SocketAddr, why: String, now: Instant) {
        let Some(c) = self.channels.get_mut(&peer) else { return };
        if c.bound && c.ends > now {
            // A refresh failed: there is time for another.
            c.refresh_at = now + Duration::from_secs(10);
            return self.events.push(TurnEvent::Bound(peer, Ok(c.number)));
        }
        c.users = 0;
        // Whether the server has bound the number or not is unknown: it cools down like a bound one.
        c.ends = now + BINDING;
        self.events.push(TurnEvent::Bound(peer, Err(why)));
    }

    pub(super) fn channels_next(&self) -> Option<Instant> {
        self.channels.values().filter(|c| c.users > 0).map(|c| c.refresh_at).min()
    }

    pub(super) fn poll_channels(&mut self, now: Instant, out: &mut Vec<Transmit>) {
        let due: Vec<SocketAddr> =
            self.channels.iter().filter(|(_, c)| c.users > 0 && c.refresh_at <= now).map(|(p, _)| *p).collect();
        for peer in due {
            if let Some(c) = self.channels.get_mut(&peer) {
                c.refresh_at = now + REFRESH;
            }
            self.request_bind(peer, now, out);
        }
    }

    pub(super) fn forget_channels(&mut self, now: Instant) {
        let numbers = &mut self.numbers;
        self.channels.retain(|_, c| {
            let keep = c.users > 0 || c.ends + COOL_DOWN > now;
            if !keep {
                numbers.remove(&c.number);
            }
            keep
        });
    }
}
