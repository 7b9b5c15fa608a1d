//! The timestamp in an initiation, which keeps initiations from being replayed (WireGuard paper, section 5.1).

use super::limits::INITIATION_INTERVAL;
use crate::WallTime;
use std::ops::Range;
use std::time::Duration;

/// Length of a TAI64N label in bytes.
pub(super) const TIMESTAMP_LEN: usize = 12;

/// A TAI64N label: big-endian seconds and nanoseconds, so that later ones compare greater byte by byte.
pub(super) type Timestamp = [u8; TIMESTAMP_LEN];

/// Label of the Unix epoch: 2^62 and the 10 seconds between TAI and UTC at its time.
const EPOCH: u64 = (1 << 62) + 10;

/// A timestamp is a multiple of this, and what is added to keep timestamps apart or to mark them.
const GRAIN: u64 = INITIATION_INTERVAL.as_nanos() as u64;

/// The nanoseconds behind a multiple of [`GRAIN`] that say "we would take AES-256-GCM" (see `agreement`). They are
/// inside of what Noise authenticates and encrypts, and to everybody else they are a time. Others do not get there:
/// Linux and wireguard-go round to multiples of 2^24 ns, none of which is in here; of those that do not round, one
/// timestamp in 1,250,000 is.
const AES: Range<u64> = 0xae5000..0xae5010;

// Both ends have to count from multiples of the same grain, whatever an end accepts at which rate.
const _: () = assert!(GRAIN == 20_000_000, "the grain is part of the protocol");

/// Makes strictly increasing timestamps even if the wall clock stands still or steps back.
#[derive(Clone, Copy, Default)]
pub(super) struct Clock(Duration);

impl Clock {
    /// The next timestamp at `wall`, marked or not. Rounded down, so that it tells nothing about our exact clock
    /// (section 5.4.2 allows for it); the peer accepts no two initiations within that grain anyway.
    pub(super) fn next(&mut self, wall: WallTime, aes: bool) -> Timestamp {
        let mark = if aes { AES.start } else { 0 };
        let rounded = wall.0.saturating_sub(spare(wall.0)).saturating_add(Duration::from_nanos(mark));
        let after = self.0.saturating_add(Duration::from_nanos(1));
        // Where the clock stood still or stepped back, the next one that is marked as wanted.
        let behind = spare(after).as_nanos() as u64;
        let skip = match (aes, AES.contains(&behind)) {
            (true, false) if behind < AES.start => AES.start - behind,
            (true, false) => AES.start + GRAIN - behind,
            (false, true) => AES.end - behind,
            _ => 0,
        };
        self.0 = rounded.max(after.saturating_add(Duration::from_nanos(skip)));
        let mut out = [0; TIMESTAMP_LEN];
        out[..8].copy_from_slice(&EPOCH.saturating_add(self.0.as_secs()).to_be_bytes());
        out[8..].copy_from_slice(&self.0.subsec_nanos().to_be_bytes());
        out
    }
}

/// Whether the sender of an initiation would take AES-256-GCM.
pub(super) fn wants_aes(timestamp: &Timestamp) -> bool {
    let [.., a, b, c, d] = *timestamp;
    AES.contains(&(u64::from(u32::from_be_bytes([a, b, c, d])) % GRAIN))
}

/// What is above a multiple of [`GRAIN`], of which a second has a whole number.
fn spare(t: Duration) -> Duration {
    Duration::from_nanos(u64::from(t.subsec_nanos()) % GRAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_tai64n_and_rounded() {
        let mut c = Clock::default();
        let t = c.next(WallTime(Duration::new(1, 39_999_999)), false);
        assert_eq!(t, [0x40, 0, 0, 0, 0, 0, 0, 11, 0x01, 0x31, 0x2d, 0x00]);
    }

    #[test]
    fn labels_increase_and_are_marked_as_wanted_whatever_the_wall_clock_does() {
        let mut c = Clock::default();
        let mut last = [0; TIMESTAMP_LEN];
        for secs in [5, 5, 4, 1_700_000_000, 0, 1_700_000_000, 1_700_000_001, 0] {
            // Twenty are more than there are marked ones in a row.
            for aes in [false, true, true, false, false].into_iter().chain([true; 20]).chain([false; 20]) {
                let t = c.next(WallTime(Duration::from_secs(secs)), aes);
                assert!(t > last, "{secs}");
                assert_eq!(wants_aes(&t), aes);
                last = t;
            }
        }
        for aes in [true, false, true] {
            c.next(WallTime(Duration::MAX), aes);
        }
    }

    #[test]
    fn a_mark_moves_a_label_by_less_than_the_grain_and_nobody_else_makes_one() {
        let at = |aes| Clock::default().next(WallTime(Duration::new(1, 999_999_999)), aes);
        let nanos = |t: Timestamp| u64::from(u32::from_be_bytes([t[8], t[9], t[10], t[11]]));
        assert_eq!((nanos(at(false)), nanos(at(true))), (980_000_000, 980_000_000 + AES.start));
        const { assert!(AES.end < GRAIN && 1_000_000_000 % GRAIN == 0) };
        // Linux (net: noise.c, tai64n_now) and wireguard-go (tai64n.Now).
        assert!((0..60u64).all(|n| !AES.contains(&((n << 24) % GRAIN))));
    }
}
