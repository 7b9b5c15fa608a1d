//! Many short lists in one vector.

/// Lists of up to 256 numbers. A list has room for a power of two; room that is given up is used again.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks {
    items: Vec<u32>,
    /// Free blocks by the logarithm of their room.
    free: [Vec<u32>; 9],
}

/// Where a list is. Its length is known to the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block(u32);

impl Block {
    /// No list yet.
    pub(super) const EMPTY: Self = Self(u32::MAX);

    /// Whether there are no items.
    pub(super) const fn is_empty(self) -> bool {
        self.0 == Self::EMPTY.0
    }
}

impl Blocks {
    #[inline]
    pub(super) fn get(&self, block: Block, i: usize) -> u32 {
        self.items[block.0 as usize + i]
    }

    pub(super) fn set(&mut self, block: Block, i: usize, item: u32) {
        self.items[block.0 as usize + i] = item;
    }

    /// Puts `item` before the `i`th of `len` items.
    pub(super) fn insert(&mut self, block: &mut Block, len: usize, i: usize, item: u32) {
        if len == 0 {
            *block = self.take(1);
        } else if len.is_power_of_two() {
            let new = self.take(len * 2);
            let (from, to) = (block.0 as usize, new.0 as usize);
            self.items.copy_within(from..from + len, to);
            self.give(*block, len);
            *block = new;
        }
        let from = block.0 as usize;
        self.items.copy_within(from + i..from + len, from + i + 1);
        self.items[from + i] = item;
    }

    /// Takes the `i`th of `len` items out.
    pub(super) fn remove(&mut self, block: &mut Block, len: usize, i: usize) -> u32 {
        let from = block.0 as usize;
        let item = self.items[from + i];
        self.items.copy_within(from + i + 1..from + len, from + i);
        let left = len - 1;
        if left == 0 {
            self.give(*block, 1);
            *block = Block::EMPTY;
        } else if left.is_power_of_two() {
            let new = self.take(left);
            self.items.copy_within(from..from + left, new.0 as usize);
            self.give(*block, left * 2);
            *block = new;
        }
        item
    }

    fn take(&mut self, room: usize) -> Block {
        if let Some(at) = self.free[room.ilog2() as usize].pop() {
            return Block(at);
        }
        let at = self.items.len() as u32;
        self.items.resize(self.items.len() + room, 0);
        Block(at)
    }

    fn give(&mut self, block: Block, room: usize) {
        self.free[room.ilog2() as usize].push(block.0);
    }

    /// Numbers that there is room for.
    #[cfg(test)]
    pub(super) fn allocated(&self) -> usize {
        self.items.len()
    }
}
