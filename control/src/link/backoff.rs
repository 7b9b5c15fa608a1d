//! Waits that grow, random numbers that scatter them, and a limit on what a peer can make us do.

use super::timing;
use dataplane::Time;
use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators"). Scatters timers and makes session
/// ids, which are no secrets.
#[derive(Clone, Debug)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A duration in `0..=most`, in steps of a microsecond.
    pub(super) fn up_to(&mut self, most: Duration) -> Duration {
        let micros = u64::try_from(most.as_micros()).unwrap_or(u64::MAX - 1);
        Duration::from_micros(self.next() % (micros.saturating_add(1)))
    }

    /// `d` plus or minus a quarter.
    pub(super) fn jitter(&mut self, d: Duration) -> Duration {
        d - d / 4 + self.up_to(d / 2)
    }

    /// A session id: 128 bits in hexadecimal.
    pub(super) fn sid(&mut self) -> String {
        format!("{:016x}{:016x}", self.next(), self.next())
    }
}

/// `first` doubled `times` times, at most `most`.
pub(super) fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(1u32.checked_shl(times.min(31)).unwrap_or(u32::MAX)).min(most)
}

/// A token bucket for remote initiates.
#[derive(Clone, Debug)]
pub(super) struct Admission {
    tokens: u32,
    filled: Time,
}

impl Admission {
    pub(super) const fn new() -> Self {
        Self { tokens: timing::ADMIT_BURST, filled: Time::ZERO }
    }

    pub(super) fn admit(&mut self, now: Time) -> bool {
        let passed = now.since(self.filled).as_nanos() / timing::ADMIT_EACH.as_nanos();
        let new = u32::try_from(passed).unwrap_or(u32::MAX);
        if new > 0 {
            self.tokens = self.tokens.saturating_add(new).min(timing::ADMIT_BURST);
            self.filled += timing::ADMIT_EACH.saturating_mul(new);
            // Time that passed while the bucket was full is no credit.
            if self.tokens == timing::ADMIT_BURST {
                self.filled = now;
            }
        }
        let admitted = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_their_limit_and_scatter_by_a_quarter() {
        let (first, most) = (timing::RETRY_FIRST, timing::RETRY_MOST);
        let waits: Vec<_> = (0..8).map(|n| doubled(first, n, most).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(doubled(first, u32::MAX, most), most);
        let mut rng = Rng::new(7);
        let mut seen = (Duration::MAX, Duration::ZERO);
        for _ in 0..1000 {
            let d = rng.jitter(Duration::from_secs(4));
            assert!((Duration::from_secs(3)..=Duration::from_secs(5)).contains(&d), "{d:?}");
            seen = (seen.0.min(d), seen.1.max(d));
        }
        assert!(seen.0 < Duration::from_millis(3100) && seen.1 > Duration::from_millis(4900), "{seen:?}");
    }

    #[test]
    fn a_burst_is_admitted_and_then_one_each_interval() {
        let mut admission = Admission::new();
        let start = Time::ZERO + Duration::from_secs(1000);
        let burst = (0..100).filter(|_| admission.admit(start)).count();
        assert_eq!(burst, timing::ADMIT_BURST as usize);
        let later = |n: u32| start + timing::ADMIT_EACH * n;
        assert!(admission.admit(later(1)) && !admission.admit(later(1)));
        assert!(admission.admit(later(3)) && admission.admit(later(3)) && !admission.admit(later(3)));
    }
}
