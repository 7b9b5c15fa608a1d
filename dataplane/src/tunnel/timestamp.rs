//! The timestamp in an initiation, which keeps initiations from being replayed (WireGuard paper, section 5.1).

use super::limits::INITIATION_INTERVAL;
use crate::WallTime;
use std::time::Duration;

/// Length of a TAI64N label in bytes.
pub(super) const TIMESTAMP_LEN: usize = 12;

/// A TAI64N label: big-endian seconds and nanoseconds, so that later ones compare greater byte by byte.
pub(super) type Timestamp = [u8; TIMESTAMP_LEN];

/// Label of the Unix epoch: 2^62 and the 10 seconds between TAI and UTC at its time.
const EPOCH: u64 = (1 << 62) + 10;

/// Makes strictly increasing timestamps even if the wall clock stands still or steps back.
#[derive(Clone, Copy, Default)]
pub(super) struct Clock(Duration);

impl Clock {
    /// The next timestamp at `wall`. Rounded down, so that it tells nothing about our exact clock
    /// (section 5.4.2 allows for it); the peer accepts no two initiations within that grain anyway.
    pub(super) fn next(&mut self, wall: WallTime) -> Timestamp {
        let grain = INITIATION_INTERVAL.as_nanos();
        let spare = Duration::from_nanos((u128::from(wall.0.subsec_nanos()) % grain) as u64);
        let rounded = wall.0.saturating_sub(spare);
        self.0 = rounded.max(self.0.saturating_add(Duration::from_nanos(1)));
        let mut out = [0; TIMESTAMP_LEN];
        out[..8].copy_from_slice(&EPOCH.saturating_add(self.0.as_secs()).to_be_bytes());
        out[8..].copy_from_slice(&self.0.subsec_nanos().to_be_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_tai64n_and_rounded() {
        let mut c = Clock::default();
        let t = c.next(WallTime(Duration::new(1, 39_999_999)));
        assert_eq!(t, [0x40, 0, 0, 0, 0, 0, 0, 11, 0x01, 0x31, 0x2d, 0x00]);
    }

    #[test]
    fn labels_increase_whatever_the_wall_clock_does() {
        let mut c = Clock::default();
        let mut last = [0; TIMESTAMP_LEN];
        for secs in [5, 5, 4, 1_700_000_000, 0, 1_700_000_000, 1_700_000_001, 0] {
            let t = c.next(WallTime(Duration::from_secs(secs)));
            assert!(t > last, "{secs}");
            last = t;
        }
        c.next(WallTime(Duration::MAX));
        c.next(WallTime(Duration::MAX));
    }
}
