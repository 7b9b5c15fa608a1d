//! The coalescer's table of flows: open addressing, forgotten in one step.

/// Places that a flow can have. What finds all of them taken is left alone, so that a sender of colliding
/// flows costs no more than anybody.
const MAX_PROBES: usize = 8;

/// A flow's place, good until the next `clear`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(usize);

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// The batch that it belongs to; any other makes it free.
    batch: u32,
    hash: u32,
    /// The flow's latest group.
    group: u32,
}

#[derive(Debug)]
pub(super) struct Flows {
    entries: Box<[Entry]>,
    batch: u32,
}

impl Flows {
    /// Room for `capacity` flows, half of it left free to keep searches short.
    pub(super) fn new(capacity: usize) -> Self {
        let len = capacity.max(MAX_PROBES).next_power_of_two() * 2;
        Self { entries: vec![Entry::default(); len].into(), batch: 1 }
    }

    /// Forgets all flows.
    pub(super) fn clear(&mut self) {
        self.batch = self.batch.wrapping_add(1);
        if self.batch == 0 {
            self.entries.fill(Entry::default());
            self.batch = 1;
        }
    }

    /// The flow with this hash whose latest group is `same`, or the free place that it gets; the caller
    /// fills that by [`Flows::set`]. `None`: no place is left for it.
    #[inline]
    pub(super) fn find(&mut self, hash: u32, same: impl Fn(u32) -> bool) -> Option<(Slot, Option<u32>)> {
        let mask = self.entries.len() - 1;
        for probe in 0..MAX_PROBES {
            let at = (hash as usize + probe) & mask;
            let entry = &mut self.entries[at];
            if entry.batch != self.batch {
                *entry = Entry { batch: self.batch, hash, group: 0 };
                return Some((Slot(at), None));
            }
            if entry.hash == hash && same(entry.group) {
                return Some((Slot(at), Some(entry.group)));
            }
        }
        None
    }

    /// The latest group of the flow at `slot`.
    pub(super) fn latest(&self, slot: Slot) -> u32 {
        self.entries[slot.0].group
    }

    /// Makes `group` the latest of the flow at `slot`.
    pub(super) fn set(&mut self, slot: Slot, group: u32) {
        self.entries[slot.0].group = group;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_found_until_the_table_is_cleared() {
        let mut f = Flows::new(4);
        let (slot, group) = f.find(9, |_| true).expect("place");
        assert_eq!(group, None);
        f.set(slot, 5);
        assert_eq!(f.find(9, |g| g == 5), Some((slot, Some(5))));
        f.batch = u32::MAX;
        f.clear();
        assert_eq!(f.find(9, |_| true).expect("place").1, None);
    }

    #[test]
    fn colliding_flows_are_given_up_after_a_few() {
        let mut f = Flows::new(1000);
        for group in 0..MAX_PROBES as u32 {
            let (slot, _) = f.find(7, |_| false).expect("place");
            f.set(slot, group);
        }
        assert_eq!(f.find(7, |_| false), None);
    }
}
