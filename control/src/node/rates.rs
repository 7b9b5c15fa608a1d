//! Bytes and rates of a peer, over the lives of its entries in the data plane.

use dataplane::Time;
use std::time::Duration;

/// Rates are averages over about this long.
const WINDOW: Duration = Duration::from_secs(4);

/// What went to a peer and came from it. The data plane counts from zero each time a peer is added; this goes on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rates {
    /// Of earlier lives.
    before: [u64; 2],
    /// Of this life.
    now: [u64; 2],
    /// Bit/s.
    rates: [f64; 2],
    looked: Option<Time>,
}

impl Rates {
    /// The data plane's counters at `at`: to the peer, from the peer.
    pub(super) fn look(&mut self, at: Time, counters: [u64; 2]) {
        let took = self.looked.map(|t| at.since(t).as_secs_f64()).filter(|t| *t > 0.0);
        for ((now, rate), counter) in self.now.iter_mut().zip(&mut self.rates).zip(counters) {
            let more = counter.saturating_sub(*now);
            *now = counter;
            if let Some(took) = took {
                // Exponential forgetting: independent of how often one looks.
                let keep = (-took / WINDOW.as_secs_f64()).exp();
                *rate = *rate * keep + more as f64 * 8.0 / took * (1.0 - keep);
            }
        }
        self.looked = Some(at);
    }

    /// The peer is about to be taken out of the data plane.
    pub(super) fn restart(&mut self) {
        for (before, now) in self.before.iter_mut().zip(&mut self.now) {
            *before += std::mem::take(now);
        }
    }

    /// Bytes to the peer, from the peer.
    pub(super) fn bytes(&self) -> [u64; 2] {
        [self.before[0] + self.now[0], self.before[1] + self.now[1]]
    }

    /// Bit/s to the peer, from the peer; nothing below one is shown.
    pub(super) fn rates(&self) -> [f64; 2] {
        self.rates.map(|r| if r < 1.0 { 0.0 } else { r })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn a_steady_stream_is_seen_at_its_rate_and_fades() {
        let mut r = Rates::default();
        for s in 0..60 {
            r.look(at(s * 1000), [s * 1_000_000, s * 10]);
        }
        let [out, back] = r.rates();
        assert!((out / 8e6 - 1.0).abs() < 0.01 && (back / 80.0 - 1.0).abs() < 0.01, "{out} {back}");
        for s in 60..200 {
            r.look(at(s * 1000), [59_000_000, 590]);
        }
        assert_eq!((r.rates(), r.bytes()), ([0.0, 0.0], [59_000_000, 590]));
    }

    #[test]
    fn bytes_go_on_over_lives() {
        let mut r = Rates::default();
        r.look(at(0), [5, 6]);
        r.restart();
        r.look(at(10), [1, 1]);
        assert_eq!(r.bytes(), [6, 7]);
        // A counter that went back is no traffic.
        r.look(at(20), [0, 3]);
        assert_eq!(r.bytes(), [5, 9]);
    }
}
