//! Multicast and broadcast on their way out: a copy for every linked peer that has a translation.

use super::Shard;
use super::outbound::{Room, Taken};
use crate::Time;
use crate::io::Driver;
use crate::packet::{Split, translate};
use crate::path::Path;
use crate::stats::{Drop, add};
use crate::tunnel::{Peer, Session};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

/// Peers that one packet goes to. With more linked ones it is another part of them each time.
pub(super) const FANOUT: usize = 256;
/// One copy in this time on average, 5,000 a second: to ten peers 500 packets a second, to 256 still 20, of which mDNS
/// and SSDP need one or two. At full size that is 57 Mbit/s, so that a program that talks to a group cannot fill an uplink
/// by the number of friends.
const INTERVAL: Duration = Duration::from_micros(200);
/// Copies at once: the largest UDP super-packet of most kernels (64 segments) for all peers of a fan-out.
const BURST: u32 = 64 * FANOUT as u32;

/// What one shard knows of its multicast.
pub(super) struct Multicast {
    /// A bucket as a time: it is empty now if this is [`BURST`] intervals ahead.
    full: Time,
    /// Where in the audience the next packet's peers begin.
    start: usize,
    /// Whom the packet goes to. Empty between packets, so that no session is kept.
    linked: Vec<(Arc<Session>, Path)>,
}

impl Default for Multicast {
    fn default() -> Self {
        Self { full: Time::ZERO, start: 0, linked: Vec::with_capacity(FANOUT) }
    }
}

impl Multicast {
    /// Whether so many copies may go out now. What is more than a whole bucket needs a full one.
    fn allowed(&mut self, now: Time, copies: usize) -> bool {
        let copies = u32::try_from(copies).map_or(BURST, |c| c.min(BURST));
        let next = self.full.max(now) + INTERVAL * copies;
        let allowed = next.since(now) <= INTERVAL * BURST;
        if allowed {
            self.full = next;
        }
        allowed
    }

    /// Finds the peers of `audience` that are linked, at most [`FANOUT`]. Gives how many more there are.
    fn gather(&mut self, audience: &[Arc<Peer>], now: Time) -> usize {
        self.linked.clear();
        let start = if self.start < audience.len() { self.start } else { 0 };
        let (before, after) = audience.split_at(start);
        let (mut more, mut next) = (0, start);
        for (i, peer) in after.iter().chain(before).enumerate() {
            let Some(link) = link(peer, now) else { continue };
            if self.linked.len() < FANOUT {
                self.linked.push(link);
                next = start + i + 1;
            } else {
                more += 1;
            }
        }
        self.start = if more == 0 { 0 } else { next % audience.len() };
        more
    }
}

/// The session and the path of a peer that has both.
fn link(peer: &Peer, now: Time) -> Option<(Arc<Session>, Path)> {
    let session = peer.current().filter(|s| !s.expired(now))?;
    Some((session, peer.path()?))
}

/// Whether a packet for `destination` is for several peers; `broadcast` is our subnet's directed broadcast.
pub(super) fn is_for_many(destination: IpAddr, broadcast: Ipv4Addr) -> bool {
    matches!(destination, IpAddr::V4(a) if translate::is_for_many(a) || a == broadcast)
}

impl<D: Driver> Shard<D> {
    /// Sends a copy to every linked peer that has a translation. Nothing waits for a session or a path, and once the
    /// first copy is placed nothing waits for the socket either: copies that find it full are dropped.
    pub(super) fn send_to_many(&mut self, split: &Split<'_>, now: Time) -> io::Result<Taken> {
        let segments = split.count();
        let drop = |s: &Self, reason, copies| s.counters.count_drop(reason, (copies * segments) as u64);
        if self.make_room(split, now)? == Room::NotYet {
            return Ok(Taken::NotYet);
        }
        let audience = self.shared.audience.load();
        // Looking for the linked ones has its price too, a copy's for 256 peers: a flood for nobody is held off as well.
        if !self.multicast.allowed(now, segments + audience.len() / FANOUT) {
            drop(self, Drop::MulticastRate, 1);
            return Ok(Taken::Yes);
        }
        let more = self.multicast.gather(&audience, now);
        let mut linked = std::mem::take(&mut self.multicast.linked);
        let copies = linked.len();
        if copies == 0 {
            drop(self, Drop::MulticastNobody, 1);
        } else if !self.multicast.allowed(now, (copies - 1) * segments) {
            drop(self, Drop::MulticastRate, 1);
        } else {
            add(&self.counters.multicast_copies, ((copies + more - 1) * segments) as u64);
            drop(self, Drop::MulticastFanout, more);
            for (session, path) in &linked {
                match self.make_room(split, now)? {
                    Room::Enough => self.place_all(split, session, *path),
                    Room::NotYet => drop(self, Drop::SendBufferFull, 1),
                    Room::Never => drop(self, Drop::TooBig, 1),
                }
            }
        }
        linked.clear();
        self.multicast.linked = linked;
        Ok(Taken::Yes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WallTime;
    use crate::crypto::Backend;
    use crate::keeper::SystemRng;
    use crate::tunnel::{Output, PrivateKey, SessionTable, Tunnel};

    fn tunnel(key: [u8; 32]) -> Tunnel {
        let mut t = Tunnel::new(Backend::Portable, Arc::new(SessionTable::default()), Box::new(SystemRng));
        t.set_private_key(Some(PrivateKey::new(key)));
        t
    }

    /// The next message that `t` sends.
    fn message(t: &mut Tunnel) -> Vec<u8> {
        loop {
            if let Output::Send { message, .. } = t.poll_output().expect("a message") {
                return message.as_ref().to_vec();
            }
        }
    }

    #[test]
    fn with_more_linked_peers_than_a_packet_goes_to_everyone_gets_one_in_turn() {
        let now = Time::ZERO + Duration::from_secs(5);
        let wall = WallTime(Duration::from_secs(1_700_000_000));
        let path = Path::Direct(([192, 0, 2, 1], 51820).into());
        let hub_key = PrivateKey::new([1; 32]);
        let mut hub = tunnel([1; 32]);
        let mut audience = Vec::new();
        for n in 0..FANOUT as u16 + 44 {
            let key = [&[9; 14][..], &n.to_be_bytes(), &[9; 16]].concat().try_into().expect("32 bytes");
            let peer = hub.add_peer(PrivateKey::new(key).public()).expect("room");
            peer.set_path(path);
            audience.push(peer.clone());
            // Every seventh is not linked and counts for nothing.
            let stranger = (n % 7 == 0).then(|| hub.add_peer(PrivateKey::new([n as u8 ^ 0x80; 32]).public()));
            audience.extend(stranger.and_then(Result::ok));
            let mut other = tunnel(key);
            other.add_peer(hub_key.public()).expect("room").set_path(path);
            hub.initiate(now, wall, &peer);
            other.handle(now, wall, path, &message(&mut hub), false).expect("taken");
            hub.handle(now, wall, path, &message(&mut other), false).expect("taken");
            while hub.poll_output().is_some() {}
        }
        let mut m = Multicast::default();
        let mut served = std::collections::HashMap::<u32, u32>::new();
        for _ in 0..FANOUT + 44 {
            assert_eq!(m.gather(&audience, now), 44);
            assert_eq!(m.linked.len(), FANOUT);
            m.linked.iter().for_each(|(s, _)| *served.entry(s.peer().id).or_default() += 1);
        }
        // As many packets as peers: each peer got as many of them as a packet goes to peers.
        assert_eq!(served.len(), FANOUT + 44);
        assert!(served.values().all(|n| *n == FANOUT as u32), "{served:?}");
        let (few, _) = audience.split_at(100);
        let linked = few.iter().filter(|p| p.current().is_some()).count();
        assert_eq!((m.gather(few, now), m.linked.len()), (0, linked));
        assert_eq!((m.gather(&[], now), m.linked.len()), (0, 0));
        m.gather(few, now + Duration::from_secs(181));
        assert!(m.linked.is_empty(), "sessions past their end");
    }

    #[test]
    fn a_burst_then_five_thousand_copies_a_second() {
        let mut m = Multicast::default();
        let mut now = Time::ZERO + Duration::from_secs(5);
        assert!(m.allowed(now, usize::MAX), "more than a bucket needs a full one");
        assert!(!m.allowed(now, 1));
        let mut sent = 0;
        for _ in 0..1000 {
            now += Duration::from_millis(1);
            sent += if m.allowed(now, 10) { 10 } else { 0 };
        }
        assert!((4990..=5000).contains(&sent), "{sent} in a second");
    }
}
