//! How many negotiations that nobody waits for are made at once.
//!
//! Server, peers and this machine may each be the bottleneck, and all of them show it in the same way: negotiations get
//! slow, then fail for want of an answer, and what was spent on them is lost. So the number follows what comes of them, as
//! a congestion window does (RFC 5681): one more for each that was quick, half for one that was not answered.

use std::time::Duration;

/// To begin with: hundreds of nodes may have logged in at this moment.
const FIRST: f64 = 2.0;
/// A hundred members are linked in seconds with it, and more at once is little gain: most of the time is waiting.
const MOST: f64 = 16.0;
/// A path is found in a quarter of a second if it is direct, in one second if it is relayed.
const QUICK: Duration = Duration::from_millis(1_500);

/// The number, and how it grows.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    window: f64,
    /// Above it, growth is slow.
    threshold: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { window: FIRST, threshold: MOST }
    }
}

impl Pace {
    /// So many at once.
    pub(super) fn at_once(&self) -> usize {
        // At most MOST, at least one.
        self.window as usize
    }

    /// One led to a path, in this time.
    pub(super) fn found(&mut self, took: Duration) {
        if took > QUICK {
            self.threshold = self.window;
        } else if self.window < self.threshold {
            self.window = (self.window + 1.0).min(MOST);
        } else {
            self.window = (self.window + 1.0 / self.window).min(MOST);
        }
    }

    /// One was not answered: by the server, or by a peer that has too much to do.
    pub(super) fn unanswered(&mut self) {
        self.window = (self.window / 2.0).max(1.0);
        self.threshold = self.window;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_with_quick_ones_stays_with_slow_ones_and_shrinks_without_answers() {
        let (quick, slow) = (Duration::from_millis(200), Duration::from_secs(3));
        let mut p = Pace::default();
        assert_eq!(p.at_once(), 2);
        (0..5).for_each(|_| p.found(quick));
        assert_eq!(p.at_once(), 7);
        (0..50).for_each(|_| p.found(slow));
        assert_eq!(p.at_once(), 7);
        p.found(quick);
        assert_eq!(p.at_once(), 7, "slowly, from where it was slow");
        (0..7).for_each(|_| p.found(quick));
        assert_eq!(p.at_once(), 8);
        (0..1000).for_each(|_| p.found(quick));
        assert_eq!(p.at_once(), 16);
        p.unanswered();
        assert_eq!(p.at_once(), 8);
        (0..10).for_each(|_| p.unanswered());
        assert_eq!(p.at_once(), 1, "never none");
        (0..3).for_each(|_| p.found(quick));
        assert_eq!(p.at_once(), 2);
    }
}
