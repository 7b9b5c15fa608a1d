//! How fast reads come in, to know when gathering them pays.

use crate::Time;
use std::time::Duration;

/// The rate is taken over at least this long.
const WINDOW: Duration = Duration::from_millis(1);
/// Reads a second from which on [`crate::io::Want::gather`] pays: 20 us apart, they come in one by one and each
/// costs a wake-up. Bulk TCP stays below, its reads are super-packets (13,000 a second at 6.7 Gbit/s), and so do
/// request and answer, whose latency would suffer.
const FAST: u64 = 50_000;

/// Measures reads a second.
#[derive(Debug, Default)]
pub(super) struct Pace {
    since: Time,
    reads: u64,
    fast: bool,
}

impl Pace {
    /// `reads` came in just now.
    pub(super) fn note(&mut self, now: Time, reads: usize) {
        self.reads += reads as u64;
        let passed = now.since(self.since);
        if passed >= WINDOW {
            self.fast = u128::from(self.reads) * 1_000_000_000 >= u128::from(FAST) * passed.as_nanos();
            self.since = now;
            self.reads = 0;
        }
    }

    /// Reads come in fast.
    pub(super) const fn is_fast(&self) -> bool {
        self.fast
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_fast_and_a_trickle_after_it_is_not() {
        let (mut p, mut now) = (Pace::default(), Time::ZERO);
        for _ in 0..300 {
            now += Duration::from_micros(10);
            p.note(now, 1);
        }
        assert!(p.is_fast());
        for _ in 0..3 {
            now += Duration::from_millis(2);
            p.note(now, 1);
        }
        assert!(!p.is_fast());
    }
}
