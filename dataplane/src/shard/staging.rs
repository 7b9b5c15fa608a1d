//! Packets that wait for a session.

use super::Shard;
use super::outbound::{Origin, Taken};
use crate::Time;
use crate::io::Driver;
use crate::stats::{Counters, Drop};
use crate::tunnel::Peer;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;

/// Reads from TUN that wait for one peer.
pub(super) const PEER_PACKETS: usize = 128;
/// Bytes that wait in one shard.
pub(super) const SHARD_BYTES: usize = 4 << 20;

/// What TUN gave, and how many packets that is.
type Read = (Box<[u8]>, u32);

/// The packets that wait, by peer.
#[derive(Debug, Default)]
pub(super) struct Staging {
    peers: HashMap<u32, VecDeque<Read>>,
    bytes: usize,
    /// Peers whose packets were on their way out when the socket buffer filled up.
    interrupted: VecDeque<Arc<Peer>>,
}

impl Staging {
    /// Keeps a copy of a TUN read of `count` packets; false if there is no room.
    pub(super) fn push(&mut self, peer: &Peer, read: &[u8], count: u32) -> bool {
        if self.bytes + read.len() > SHARD_BYTES {
            return false;
        }
        let q = self.peers.entry(peer.id).or_default();
        if q.len() >= PEER_PACKETS {
            return false;
        }
        self.bytes += read.len();
        q.push_back((read.into(), count));
        true
    }

    /// How many reads wait for `peer`.
    pub(super) fn len(&self, peer: &Peer) -> usize {
        // Nearly always nothing waits, and that is known without a hash.
        if self.peers.is_empty() { 0 } else { self.peers.get(&peer.id).map_or(0, VecDeque::len) }
    }

    /// Takes out the oldest read that waits for `peer`.
    fn pop(&mut self, peer: &Peer) -> Option<Read> {
        let q = self.peers.get_mut(&peer.id)?;
        let read = q.pop_front();
        if q.is_empty() {
            self.peers.remove(&peer.id);
        }
        self.bytes -= read.as_ref().map_or(0, |(r, _)| r.len());
        read
    }

    /// Puts back what [`Self::pop`] gave.
    fn unpop(&mut self, peer: &Peer, read: Read) {
        self.bytes += read.0.len();
        self.peers.entry(peer.id).or_default().push_front(read);
    }

    /// Takes out what waits for `peer`, oldest first.
    fn take(&mut self, peer: &Peer) -> VecDeque<Read> {
        let packets = self.peers.remove(&peer.id).unwrap_or_default();
        self.bytes -= packets.iter().map(|(p, _)| p.len()).sum::<usize>();
        packets
    }

    /// Drops everything.
    pub(super) fn discard_all(&mut self, counters: &Counters) {
        for (_, q) in self.peers.drain() {
            let n: u32 = q.iter().map(|(_, n)| n).sum();
            counters.count_drop(Drop::StagingExpired, u64::from(n));
        }
        self.interrupted.clear();
        self.bytes = 0;
    }
}

impl<D: Driver> Shard<D> {
    pub(super) fn discard_staged(&mut self, peer: &Arc<Peer>) {
        let n: u32 = self.staging.take(peer).iter().map(|(_, n)| n).sum();
        self.counters.count_drop(Drop::StagingExpired, u64::from(n));
    }

    /// Sends what waits for `peer`; what a full socket buffer does not take goes on waiting.
    pub(super) fn flush_staged(&mut self, peer: &Arc<Peer>, now: Time) -> io::Result<()> {
        // A read whose session ended just now is staged again: hence no loop until nothing waits.
        for _ in 0..self.staging.len(peer) {
            if self.outbox.is_blocked() {
                break;
            }
            let Some((mut read, count)) = self.staging.pop(peer) else { break };
            if self.send_read(&mut read, now, Origin::Staged)? == Taken::NotYet {
                self.staging.unpop(peer, (read, count));
            }
        }
        self.flush(now)?;
        let waits = self.outbox.is_blocked() && self.staging.len(peer) > 0;
        if waits && !self.staging.interrupted.iter().any(|p| p.id == peer.id) {
            self.staging.interrupted.push_back(peer.clone());
        }
        Ok(())
    }

    /// Goes on where a full socket buffer interrupted [`Self::flush_staged`].
    pub(super) fn resume_staged(&mut self, now: Time) -> io::Result<()> {
        while !self.outbox.is_blocked() {
            let Some(peer) = self.staging.interrupted.pop_front() else { break };
            self.flush_staged(&peer, now)?;
        }
        Ok(())
    }
}
