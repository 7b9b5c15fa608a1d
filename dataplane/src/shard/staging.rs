//! Packets that wait for a session.

use crate::stats::{Counters, Drop};
use crate::tunnel::Peer;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Reads from TUN that wait for one peer.
pub(super) const PEER_PACKETS: usize = 128;
/// Bytes that wait in one shard.
pub(super) const SHARD_BYTES: usize = 4 << 20;

#[derive(Debug)]
struct Queue {
    /// What TUN gave, and how many packets that is.
    packets: VecDeque<(Box<[u8]>, u32)>,
}

/// The packets that wait, by peer.
#[derive(Debug, Default)]
pub(super) struct Staging {
    peers: HashMap<u32, Queue>,
    bytes: usize,
}

impl Staging {
    /// Keeps a copy of a TUN read of `count` packets; false if there is no room.
    pub(super) fn push(&mut self, peer: &Peer, read: &[u8], count: u32) -> bool {
        if self.bytes + read.len() > SHARD_BYTES {
            return false;
        }
        let q = self.peers.entry(peer.id).or_insert_with(|| Queue { packets: VecDeque::new() });
        if q.packets.len() >= PEER_PACKETS {
            return false;
        }
        self.bytes += read.len();
        q.packets.push_back((read.into(), count));
        true
    }

    /// Takes out what waits for `peer`, oldest first.
    pub(super) fn take(&mut self, peer: &Peer) -> VecDeque<(Box<[u8]>, u32)> {
        let packets = self.peers.remove(&peer.id).map(|q| q.packets).unwrap_or_default();
        self.bytes -= packets.iter().map(|(p, _)| p.len()).sum::<usize>();
        packets
    }

    /// Drops everything.
    pub(super) fn discard_all(&mut self, counters: &Counters) {
        for (_, q) in self.peers.drain() {
            let n: u32 = q.packets.iter().map(|(_, n)| n).sum();
            counters.count_drop(Drop::StagingExpired, u64::from(n));
        }
        self.bytes = 0;
    }
}

impl<D: crate::io::Driver> super::Shard<D> {
    pub(super) fn discard_staged(&mut self, peer: &Arc<Peer>) {
        let n: u32 = self.staging.take(peer).iter().map(|(_, n)| n).sum();
        self.counters.count_drop(Drop::StagingExpired, u64::from(n));
    }

    pub(super) fn flush_staged(&mut self, peer: &Arc<Peer>, now: crate::Time) -> std::io::Result<()> {
        for (mut read, _) in self.staging.take(peer) {
            self.send_read(&mut read, now, super::outbound::Origin::Staged)?;
        }
        self.flush(now)
    }
}
