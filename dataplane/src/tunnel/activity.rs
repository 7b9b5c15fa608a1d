//! What a peer's timers start from: a few atomics that shards write once a batch and the keeper reads.
//!
//! Instead of arming and disarming timers behind the keeper's back, shards only note when things happened.
//! Every deadline is a pure function of these notes (WireGuard paper, sections 6.4 and 6.5).

use super::limits::{KEEPALIVE_TIMEOUT, UNANSWERED_TIMEOUT};
use crate::Time;
use crossbeam::utils::CachePadded;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A point in time that may not be set.
#[derive(Default)]
pub(super) struct Stamp(AtomicU64);

impl Stamp {
    pub(super) fn get(&self) -> Option<Time> {
        match self.0.load(Relaxed) {
            0 => None,
            nanos => Some(Time::from_nanos(nanos)),
        }
    }

    pub(super) fn set(&self, now: Time) {
        self.0.store(now.as_nanos().max(1), Relaxed);
    }

    pub(super) fn set_first(&self, now: Time) {
        if self.0.load(Relaxed) == 0 {
            // Whoever loses saw the same moment.
            let _ = self.0.compare_exchange(0, now.as_nanos().max(1), Relaxed, Relaxed);
        }
    }

    /// Reads before it writes, to leave the cache line shared in the usual case.
    pub(super) fn clear(&self) {
        if self.0.load(Relaxed) != 0 {
            self.0.store(0, Relaxed);
        }
    }
}

/// One direction's notes, on a cache line of their own.
#[derive(Default)]
struct Direction {
    bytes: AtomicU64,
    /// The last authentic datagram.
    last: Stamp,
    /// The first data since the other direction's last datagram.
    waiting: Stamp,
}

/// Both directions' notes.
#[derive(Default)]
pub(super) struct Activity {
    tx: CachePadded<Direction>,
    rx: CachePadded<Direction>,
    /// Nanoseconds added to the 15 s of [`UNANSWERED_TIMEOUT`], drawn by the keeper.
    jitter: AtomicU32,
}

impl Activity {
    pub(super) fn sent(&self, now: Time, bytes: u64, data: bool) {
        Self::passed(&self.tx, &self.rx, now, bytes, data);
    }

    pub(super) fn received(&self, now: Time, bytes: u64, data: bool) {
        Self::passed(&self.rx, &self.tx, now, bytes, data);
    }

    fn passed(this: &Direction, other: &Direction, now: Time, bytes: u64, data: bool) {
        if bytes > 0 {
            this.bytes.fetch_add(bytes, Relaxed);
        }
        this.last.set(now);
        other.waiting.clear();
        if data {
            this.waiting.set_first(now);
        }
    }

    pub(super) fn tx_bytes(&self) -> u64 {
        self.tx.bytes.load(Relaxed)
    }

    pub(super) fn rx_bytes(&self) -> u64 {
        self.rx.bytes.load(Relaxed)
    }

    pub(super) fn add_tx_bytes(&self, bytes: u64) {
        self.tx.bytes.fetch_add(bytes, Relaxed);
    }

    /// When the last authentic datagram came.
    pub(super) fn last_received(&self) -> Option<Time> {
        self.rx.last.get()
    }

    /// When the last datagram was sent.
    pub(super) fn last_sent(&self) -> Option<Time> {
        self.tx.last.get()
    }

    /// Data was received and nothing sent since: when a keepalive has to be.
    pub(super) fn keepalive_due(&self) -> Option<Time> {
        Some(self.rx.waiting.get()? + KEEPALIVE_TIMEOUT)
    }

    /// Data was sent and nothing received since: when to try a new handshake.
    pub(super) fn unanswered_due(&self) -> Option<Time> {
        let jitter = Duration::from_nanos(u64::from(self.jitter.load(Relaxed)));
        Some(self.tx.waiting.get()? + UNANSWERED_TIMEOUT + jitter)
    }

    /// When nothing will have passed either way for `interval`; `None` while nothing ever has.
    pub(super) fn idle_due(&self, interval: Duration) -> Option<Time> {
        Some(self.tx.last.get().max(self.rx.last.get())? + interval)
    }

    pub(super) fn keepalive_done(&self) {
        self.rx.waiting.clear();
    }

    pub(super) fn unanswered_done(&self) {
        self.tx.waiting.clear();
    }

    /// Counts as traffic for [`Self::idle_due`] only.
    pub(super) fn touch(&self, now: Time) {
        self.tx.last.set(now);
    }

    /// Forgets everything but the byte counts.
    pub(super) fn reset(&self) {
        for d in [&self.tx, &self.rx] {
            d.last.clear();
            d.waiting.clear();
        }
    }

    pub(super) fn set_jitter(&self, jitter: Duration) {
        self.jitter.store(jitter.subsec_nanos(), Relaxed);
    }
}
