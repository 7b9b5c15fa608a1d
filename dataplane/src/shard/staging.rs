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
use std::time::Duration;

/// Reads from TUN that wait for one peer.
const PEER_READS: usize = 128;
/// Bytes that wait in one shard.
const SHARD_BYTES: usize = 4 << 20;
/// Reads wait at most this long: handshakes are given up after 90 s (REKEY_ATTEMPT_TIME), and the keeper says so;
/// this is for when its word was lost.
const LIMIT: Duration = Duration::from_secs(95);
/// While something waits, the shard looks over it this often.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// A TUN read and the number of packets in it.
struct Read {
    bytes: Box<[u8]>,
    count: u32,
}

struct Queue {
    peer: Arc<Peer>,
    /// When the oldest came.
    since: Time,
    reads: VecDeque<Read>,
}

/// The packets that wait, by peer.
#[derive(Default)]
pub(super) struct Staging {
    peers: HashMap<u32, Queue>,
    bytes: usize,
    looked: Time,
    /// Peers whose reads were on their way out when the socket buffer filled up.
    interrupted: VecDeque<Arc<Peer>>,
}

impl Staging {
    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Keeps a copy of a TUN read of `count` packets; false if there is no room.
    pub(super) fn push(&mut self, peer: &Arc<Peer>, bytes: &[u8], count: u32, now: Time) -> bool {
        if self.bytes + bytes.len() > SHARD_BYTES {
            return false;
        }
        let new = || Queue { peer: peer.clone(), since: now, reads: VecDeque::new() };
        let q = self.peers.entry(peer.id).or_insert_with(new);
        if q.reads.len() >= PEER_READS {
            return false;
        }
        self.bytes += bytes.len();
        q.reads.push_back(Read { bytes: bytes.into(), count });
        true
    }

    /// How many reads wait for `peer`.
    pub(super) fn len(&self, peer: &Peer) -> usize {
        // Nearly always nothing waits, and that is known without a hash.
        if self.peers.is_empty() { 0 } else { self.peers.get(&peer.id).map_or(0, |q| q.reads.len()) }
    }

    /// Takes out the oldest read that waits for `peer`; the queue stays until [`Self::tidy`].
    fn pop(&mut self, peer: &Peer) -> Option<Read> {
        let read = self.peers.get_mut(&peer.id)?.reads.pop_front()?;
        self.bytes -= read.bytes.len();
        Some(read)
    }

    /// Puts back what [`Self::pop`] gave.
    fn unpop(&mut self, peer: &Peer, read: Read) {
        if let Some(q) = self.peers.get_mut(&peer.id) {
            self.bytes += read.bytes.len();
            q.reads.push_front(read);
        }
    }

    /// Forgets `peer` if nothing waits for it any more.
    fn tidy(&mut self, peer: &Peer) {
        if self.peers.get(&peer.id).is_some_and(|q| q.reads.is_empty()) {
            self.peers.remove(&peer.id);
        }
    }

    /// Takes out what waits for `peer`, oldest first.
    fn take(&mut self, peer: &Peer) -> VecDeque<Read> {
        let reads = self.peers.remove(&peer.id).map(|q| q.reads).unwrap_or_default();
        self.bytes -= reads.iter().map(|r| r.bytes.len()).sum::<usize>();
        reads
    }

    /// Drops everything.
    pub(super) fn discard_all(&mut self, counters: &Counters) {
        for (_, q) in self.peers.drain() {
            count(counters, Drop::StagingExpired, &q.reads);
        }
        self.interrupted.clear();
        self.bytes = 0;
    }
}

fn count(counters: &Counters, reason: Drop, reads: &VecDeque<Read>) {
    counters.count_drop(reason, reads.iter().map(|r| u64::from(r.count)).sum());
}

impl<D: Driver> Shard<D> {
    pub(super) fn discard_staged(&mut self, peer: &Peer) {
        count(&self.counters, Drop::StagingExpired, &self.staging.take(peer));
    }

    /// Sends what waits for `peer`; what a full socket buffer does not take goes on waiting.
    pub(super) fn flush_staged(&mut self, peer: &Arc<Peer>, now: Time) -> io::Result<()> {
        // A read whose session ended just now is staged again: hence no loop until nothing waits.
        for _ in 0..self.staging.len(peer) {
            if self.outbox.is_blocked() {
                break;
            }
            let Some(mut read) = self.staging.pop(peer) else { break };
            if self.send_read(&mut read.bytes, now, Origin::Staged)? == Taken::NotYet {
                self.staging.unpop(peer, read);
            }
        }
        self.staging.tidy(peer);
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

    /// Deals with what no command came for: sends to peers that have a session, drops what waits for peers that
    /// are gone or do not answer.
    pub(super) fn look_over_staged(&mut self, now: Time) -> io::Result<()> {
        if self.staging.is_empty() || now.since(self.staging.looked) < LOOK {
            return Ok(());
        }
        self.staging.looked = now;
        let waiting: Vec<(Arc<Peer>, Time)> = self.staging.peers.values().map(|q| (q.peer.clone(), q.since)).collect();
        for (peer, since) in waiting {
            if peer.is_removed() || now.since(since) > LIMIT {
                self.discard_staged(&peer);
            } else if peer.current().is_some_and(|s| !s.expired(now)) {
                self.flush_staged(&peer, now)?;
            }
        }
        Ok(())
    }
}
