//! Whether the path in use still carries packets.
//!
//! Anything authentic from the peer proves it. Without proof for a second after data went out, or for fifteen in any
//! case, the peer is asked (one STUN probe); four questions in a row without an answer: the path is dead.

use super::timing;
use dataplane::Time;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Send a probe.
    Probe,
    /// The path has just been found dead.
    Died,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Liveness {
    /// The last proof.
    alive_at: Time,
    /// Data went out at this time or later, and nothing came since.
    unanswered: Option<Time>,
    /// When the tunnel was last looked at.
    looked: Time,
    /// A probe is on its way.
    sent: Option<Time>,
    /// Unanswered ones in a row.
    failures: u32,
    /// When the next one is due, after a failed one or when somebody asks for one.
    next: Option<Time>,
    dead: bool,
}

impl Liveness {
    /// Of a path that was proven at `now`.
    pub(super) const fn new(now: Time) -> Self {
        Self { alive_at: now, unanswered: None, looked: now, sent: None, failures: 0, next: None, dead: false }
    }

    pub(super) const fn dead(&self) -> bool {
        self.dead
    }

    /// Whether something authentic came after `t`.
    pub(super) fn proven_since(&self, t: Time) -> bool {
        !self.dead && self.alive_at > t
    }

    /// Something authentic came at `at`. Returns whether a dead path came back to life.
    pub(super) fn proof(&mut self, at: Time) -> bool {
        if at <= self.alive_at {
            return false;
        }
        let died = self.dead;
        *self = Self { looked: self.looked, ..Self::new(at) };
        died
    }

    /// A look at the tunnel. Returns whether a dead path came back to life.
    pub(super) fn look(&mut self, now: Time, last_sent: Option<Time>, last_received: Option<Time>) -> bool {
        let revived = last_received.is_some_and(|at| self.proof(at.min(now)));
        if self.unanswered.is_none() && last_sent.is_some_and(|s| s > self.alive_at) {
            // Sending began after the last look at the earliest: then it was answered or had not begun.
            self.unanswered = Some(self.alive_at.max(self.looked));
        }
        self.looked = self.looked.max(now);
        revived
    }

    /// Ask at once.
    pub(super) fn ask(&mut self, now: Time) {
        if self.sent.is_none() {
            self.next = Some(self.next.map_or(now, |n| n.min(now)));
        }
    }

    /// The path changed: what is on its way says nothing about it.
    pub(super) const fn moved(&mut self) {
        self.sent = None;
        self.failures = 0;
        self.next = None;
        self.unanswered = None;
        self.dead = false;
    }

    /// A probe failed. Without one on its way this is the late news of an earlier one.
    pub(super) fn failed(&mut self, now: Time) -> Option<Act> {
        let sent = self.sent.take()?;
        let wait = match usize::try_from(self.failures).ok().and_then(|n| timing::PROBE_AGAIN.get(n)) {
            Some(wait) if !self.dead => *wait,
            _ if self.failures < timing::PROBE_DEAD_MANY => timing::PROBE_DEAD,
            _ => timing::PROBE_DEAD_SLOW,
        };
        self.failures = self.failures.saturating_add(1);
        self.next = Some((sent + wait).max(now));
        let enough = usize::try_from(self.failures).unwrap_or(usize::MAX) > timing::PROBE_AGAIN.len();
        if enough && !self.dead {
            self.dead = true;
            return Some(Act::Died);
        }
        None
    }

    /// When [`Self::tick`] has something to do.
    pub(super) fn timeout(&self) -> Time {
        if let Some(sent) = self.sent {
            return sent + timing::PROBE_LOST;
        }
        let quiet = self.alive_at + timing::QUIET_PATH;
        let unanswered = self.unanswered.map_or(Time::MAX, |t| t + timing::UNANSWERED);
        // After failures only their schedule counts.
        self.next.unwrap_or_else(|| quiet.min(unanswered))
    }

    /// What is due now; to be asked until there is nothing.
    pub(super) fn tick(&mut self, now: Time) -> Option<Act> {
        if now < self.timeout() {
            return None;
        }
        if self.sent.is_some() {
            return self.failed(now);
        }
        self.next = None;
        self.sent = Some(now);
        Some(Act::Probe)
    }
}

/// The longest time from the death of a path with traffic to [`Act::Died`], if the tunnel is looked at each second.
#[cfg(test)]
pub(super) const SLOWEST: std::time::Duration = std::time::Duration::from_millis(4_500);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Time {
        Time::from_nanos(ms * 1_000_000)
    }

    /// Runs until the path is declared dead; packets go out each 50 ms, the last one came at `death`.
    fn death(death: u64, look_offset: u64, reported: bool) -> (u64, Vec<u64>) {
        let mut l = Liveness::new(at(0));
        let mut probes = Vec::new();
        for t in 0..60_000 {
            let now = at(t);
            let received = t.min(death) / 50 * 50;
            if t % 1000 == look_offset {
                l.look(now, Some(at(t / 50 * 50)), Some(at(received)));
            }
            let mut acts = Vec::new();
            if reported && probes.last().is_some_and(|p| p + 500 == t) {
                if t > death {
                    acts.extend(l.failed(now));
                } else {
                    l.proof(now);
                }
            }
            while let Some(a) = l.tick(now) {
                acts.push(a);
            }
            probes.extend(acts.iter().filter(|a| **a == Act::Probe).map(|_| t));
            if acts.contains(&Act::Died) {
                return (t - death, probes);
            }
        }
        panic!("never");
    }

    proptest! {
        #[test]
        fn with_traffic_a_dead_path_is_found_in_time(d in 3_000u64..20_000, look in 0u64..1000, reported: bool) {
            let (took, probes) = death(d, look, reported);
            prop_assert!(took <= SLOWEST.as_millis() as u64, "took {took} ms, probes {probes:?}");
            prop_assert!(took >= 2_500, "too hasty: {took} ms, probes {probes:?}");
            prop_assert!(probes.iter().filter(|p| **p > d).count() == 4, "{probes:?}");
        }
    }

    #[test]
    fn a_quiet_path_is_asked_each_fifteen_seconds_and_stays_alive() {
        let mut l = Liveness::new(at(0));
        let mut probes = Vec::new();
        for t in (0..100_000).step_by(10) {
            if probes.last().is_some_and(|p| p + 40 == t) {
                l.proof(at(t));
            }
            if l.tick(at(t)).is_some() {
                probes.push(t);
            }
        }
        assert_eq!(probes.len(), 6, "{probes:?}");
        assert!(!l.dead());
    }

    #[test]
    fn a_dead_path_is_asked_further_and_comes_back() {
        let mut l = Liveness::new(at(0));
        let mut probes = 0;
        for t in (0..600_000).step_by(10) {
            probes += usize::from(l.tick(at(t)) == Some(Act::Probe));
        }
        assert!(l.dead() && (50..120).contains(&probes), "{probes}");
        assert!(l.proof(at(600_000)));
        assert!(!l.dead());
    }
}
