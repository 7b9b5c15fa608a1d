//! The sliding window that tells fresh counters from replayed ones.

use super::limits::REJECT_AFTER_MESSAGES;

const WORD: u64 = u64::BITS as u64;
const WORDS: usize = 128;

/// How far behind the greatest counter one may be: the word being filled is never part of it.
const WINDOW: u64 = (WORDS as u64 - 1) * WORD;

/// Which counters of one session were received (WireGuard paper, section 5.4.6; the ring of words that
/// moves by whole words is the idea of RFC 6479).
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// Bit `c % 64` of word `c / 64 % WORDS`: counter `c` was seen.
    seen: [u64; WORDS],
    /// One more than the greatest counter seen; 0: none was.
    next: u64,
    /// Counters from this one on are beyond the end of the session.
    end: u64,
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self::until(REJECT_AFTER_MESSAGES)
    }
}

impl ReplayWindow {
    /// The window of a session that ends before counter `end`.
    #[must_use]
    pub const fn until(end: u64) -> Self {
        Self { seen: [0; WORDS], next: 0, end }
    }

    /// Whether `counter` is neither seen before, nor too old to tell, nor beyond the end of the session.
    #[must_use]
    pub const fn check(&self, counter: u64) -> bool {
        if counter >= self.end {
            return false;
        }
        if counter >= self.next {
            return true;
        }
        let (word, bit) = Self::place(counter);
        self.next - counter <= WINDOW && self.seen[word] & bit == 0
    }

    /// Like [`Self::check`], and marks a good `counter` as seen. Only for counters whose tag was right:
    /// a forged one would move the window.
    pub fn check_and_update(&mut self, counter: u64) -> bool {
        if !self.check(counter) {
            return false;
        }
        if counter >= self.next {
            // Words between the last one in use and the one of `counter` are reused: forget what they held.
            let (from, to) = (self.next.div_ceil(WORD), counter / WORD);
            for word in (from..=to).rev().take(WORDS) {
                self.seen[(word % WORDS as u64) as usize] = 0;
            }
            self.next = counter + 1;
        }
        let (word, bit) = Self::place(counter);
        self.seen[word] |= bit;
        true
    }

    const fn place(counter: u64) -> (usize, u64) {
        ((counter / WORD % WORDS as u64) as usize, 1 << (counter % WORD))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn each_counter_is_accepted_once_within_the_window() {
        let mut w = ReplayWindow::default();
        assert!(w.check_and_update(0));
        assert!(!w.check_and_update(0));
        assert!(w.check_and_update(WINDOW));
        assert!(w.check(1));
        assert!(w.check_and_update(1));
        assert!(!w.check_and_update(1));
        assert!(w.check_and_update(WINDOW + 2));
        assert!(!w.check(2), "fell out of the window unseen");
        assert!(w.check(3));
    }

    #[test]
    fn the_last_counters_are_refused_and_the_ones_before_are_not() {
        let mut w = ReplayWindow::default();
        assert!(w.check_and_update(REJECT_AFTER_MESSAGES - 1));
        assert!(!w.check_and_update(REJECT_AFTER_MESSAGES));
        assert!(!w.check_and_update(u64::MAX));
        assert!(w.check_and_update(REJECT_AFTER_MESSAGES - WINDOW));
        assert!(!w.check_and_update(REJECT_AFTER_MESSAGES - WINDOW - 1));
    }

    /// A step: mostly small moves around the head, sometimes leaps.
    fn step() -> impl Strategy<Value = i64> {
        prop_oneof![
            8 => -70i64..70,
            2 => -9000i64..9000,
            1 => 8000i64..200_000,
            1 => Just(WINDOW as i64),
            1 => Just(-(WINDOW as i64)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn it_agrees_with_a_set_of_everything_seen(steps in prop::collection::vec(step(), 1..400), start in 0u64..200_000) {
            let mut w = ReplayWindow::default();
            let mut seen = HashSet::new();
            let mut greatest: Option<u64> = None;
            let mut at = start;
            for s in steps {
                at = at.saturating_add_signed(s);
                let fresh = !seen.contains(&at) && greatest.is_none_or(|g| at > g || g - at < WINDOW);
                prop_assert_eq!(w.check(at), fresh);
                prop_assert_eq!(w.check_and_update(at), fresh);
                if fresh {
                    seen.insert(at);
                    greatest = greatest.max(Some(at));
                }
            }
        }
    }
}
