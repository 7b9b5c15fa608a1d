//! A trie over the bytes of addresses, as flat vectors.
//!
//! A node stands for the prefixes that share its first `depth` bits, a multiple of 8. Those up to 7 bits
//! longer are in the node itself: bit `1 << n | the n bits` of a 256-bit set, and a list of routes in the
//! order of the bits. For what is longer, a second set has a bit for every value of the next byte, and a
//! second list the children in that order: a node, or, alone in its place, a route. A node other than the
//! root holds two things or more, so bytes in which nothing differs have no node.

use super::blocks::{Block, Blocks};
use std::ops::{BitXor, Shl, Shr};

/// An address as a number.
pub(super) trait Key:
    Copy + Eq + BitXor<Output = Self> + Shl<u32, Output = Self> + Shr<u32, Output = Self>
{
    const BITS: u32;
    const ZERO: Self;
    fn leading_zeros(self) -> u32;
    /// The low byte.
    fn low(self) -> u8;
}

macro_rules! key {
    ($($t:ty)+) => {$(
        impl Key for $t {
            const BITS: u32 = Self::BITS;
            const ZERO: Self = 0;
            #[inline]
            fn leading_zeros(self) -> u32 {
                self.leading_zeros()
            }
            #[inline]
            fn low(self) -> u8 {
                self as u8
            }
        }
    )+};
}

key!(u32 u128);

/// The byte of `key` after `depth` bits.
#[inline]
fn byte<K: Key>(key: K, depth: u32) -> u8 {
    (key >> (K::BITS - 8 - depth)).low()
}

/// `key` with all bits after the first `depth` cleared. `depth` is below the number of bits.
fn mask<K: Key>(key: K, depth: u32) -> K {
    if depth == 0 { K::ZERO } else { key >> (K::BITS - depth) << (K::BITS - depth) }
}

/// A set of bytes.
#[derive(Clone, Copy, Debug)]
struct Set([u64; 4]);

/// How many members of a [`Set`] are below each of its words.
#[derive(Clone, Copy, Debug)]
struct Before([u8; 4]);

impl Set {
    const EMPTY: Self = Self([0; 4]);

    #[inline]
    fn has(&self, bit: u8) -> bool {
        self.0[usize::from(bit >> 6)] >> (bit & 63) & 1 != 0
    }

    /// Members below `bit`.
    #[inline]
    fn rank(&self, before: Before, bit: u8) -> usize {
        let word = usize::from(bit >> 6);
        let below = self.0[word] & ((1 << (bit & 63)) - 1);
        usize::from(before.0[word]) + below.count_ones() as usize
    }

    fn flip(&mut self, before: &mut Before, bit: u8) {
        self.0[usize::from(bit >> 6)] ^= 1 << (bit & 63);
        for i in 1..4 {
            // At most 192.
            before.0[i] = before.0[i - 1] + self.0[i - 1].count_ones() as u8;
        }
    }

    fn len(&self) -> usize {
        self.0.iter().map(|w| w.count_ones() as usize).sum()
    }
}

/// A child: a route's number, or a node's with this bit.
const NODE: u32 = 1 << 31;

/// One cache line, for either version. The set of the node's own prefixes, which most nodes have none of, is
/// in a vector of its own.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Node<K> {
    /// The next bytes.
    bytes: Set,
    /// Its first `depth` bits, then zeros.
    key: K,
    depth: u32,
    before: Before,
    /// What is behind the next bytes, in their order.
    children: Block,
    /// The routes of the node's own prefixes, in the order of their bits.
    routes: Block,
}

/// The bits of a node's own prefixes.
#[derive(Clone, Copy, Debug)]
struct Own {
    prefixes: Set,
    before: Before,
}

const _: () = assert!(size_of::<Node<u32>>() == 64 && size_of::<Node<u128>>() == 64);

#[derive(Clone, Debug)]
struct Route<K, T> {
    key: K,
    len: u32,
    value: T,
}

#[derive(Clone, Debug)]
pub(super) struct Trie<K, T> {
    /// The first is the root.
    nodes: Vec<Node<K>>,
    /// One for each node.
    own: Vec<Own>,
    free_nodes: Vec<u32>,
    routes: Vec<Option<Route<K, T>>>,
    free_routes: Vec<u32>,
    lists: Blocks,
}

/// The bit of a prefix that is `extra` bits (0..=7) longer than its node, which `byte` follows.
#[inline]
fn own_bit(byte: u8, extra: u32) -> u8 {
    (1 << extra) | (u32::from(byte) >> (8 - extra)) as u8
}

impl<K: Key, T> Trie<K, T> {
    pub(super) fn new() -> Self {
        Self {
            nodes: vec![Node::new(K::ZERO, 0)],
            own: vec![Own::NONE],
            free_nodes: Vec::new(),
            routes: Vec::new(),
            free_routes: Vec::new(),
            lists: Blocks::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.routes.len() - self.free_routes.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (K, u8, &T)> {
        self.routes.iter().flatten().map(|r| (r.key, r.len as u8, &r.value))
    }

    #[inline]
    pub(super) fn lookup(&self, key: K) -> Option<&T> {
        let mut at = 0;
        let mut best = None;
        loop {
            let node = &self.nodes[at];
            let next = byte(key, node.depth);
            if !node.routes.is_empty()
                && let Some(bit) = self.own[at].longest(next)
            {
                best = Some((at, bit));
            }
            if !node.bytes.has(next) {
                break;
            }
            let child = self.lists.get(node.children, node.bytes.rank(node.before, next));
            if child & NODE == 0 {
                match &self.routes[child as usize] {
                    Some(r) if (key ^ r.key) >> (K::BITS - r.len) == K::ZERO => return Some(&r.value),
                    _ => break,
                }
            }
            at = (child & !NODE) as usize;
            let node = &self.nodes[at];
            if (key ^ node.key) >> (K::BITS - node.depth) != K::ZERO {
                break;
            }
        }
        let (at, bit) = best?;
        self.routes[self.own_route(at, bit)? as usize].as_ref().map(|r| &r.value)
    }

    /// The route of a node's own prefix.
    fn own_route(&self, at: usize, bit: u8) -> Option<u32> {
        let own = &self.own[at];
        own.prefixes.has(bit).then(|| self.lists.get(self.nodes[at].routes, own.prefixes.rank(own.before, bit)))
    }

    /// What is behind the next byte.
    fn child(&self, at: usize, next: u8) -> Option<u32> {
        let node = &self.nodes[at];
        node.bytes.has(next).then(|| self.lists.get(node.children, node.bytes.rank(node.before, next)))
    }

    pub(super) fn insert(&mut self, key: K, len: u8, value: T) -> Option<T> {
        let len = u32::from(len);
        let mut at = 0;
        loop {
            let node = &self.nodes[at];
            let next = byte(key, node.depth);
            let extra = len - node.depth;
            if extra < 8
                && let Some(route) = self.own_route(at, own_bit(next, extra))
            {
                return self.replace(route, value);
            }
            let (8.., Some(child)) = (extra, self.child(at, next)) else {
                let route = self.add_route(Route { key, len, value });
                self.attach(at, route);
                return None;
            };
            let (child_key, child_len) = self.extent(child);
            let common = (key ^ child_key).leading_zeros().min(len).min(child_len);
            if child & NODE == 0 && common == len && common == child_len {
                return self.replace(child, value);
            }
            if child & NODE != 0 && common == child_len {
                at = (child & !NODE) as usize;
                continue;
            }
            // A node between, at the last byte that both share. It is below this one: they share `next`.
            let between = self.add_node(Node::new(mask(key, common & !7), common & !7));
            self.set_child(at, next, between | NODE);
            self.attach(between as usize, child);
            at = between as usize;
        }
    }

    pub(super) fn remove(&mut self, key: K, len: u8) -> Option<T> {
        let len = u32::from(len);
        let (mut parent, mut at) = (None, 0);
        loop {
            let depth = self.nodes[at].depth;
            let next = byte(key, depth);
            if len - depth < 8 {
                let route = self.own_route(at, own_bit(next, len - depth))?;
                return self.cut(parent, at, route);
            }
            let child = self.child(at, next)?;
            if child & NODE == 0 {
                return if self.extent(child) == (key, len) { self.cut(parent, at, child) } else { None };
            }
            parent = Some((at, next));
            at = (child & !NODE) as usize;
            let below = &self.nodes[at];
            if len < below.depth || mask(key, below.depth) != below.key {
                return None;
            }
        }
    }

    /// Removes a route that node `at` holds.
    fn cut(&mut self, parent: Option<(usize, u8)>, at: usize, route: u32) -> Option<T> {
        self.detach(at, route);
        if let Some((parent, next)) = parent {
            self.dissolve(parent, next, at);
        }
        self.free_routes.push(route);
        self.routes[route as usize].take().map(|r| r.value)
    }

    /// Puts what is left of node `at`, if it is one thing, in its place under `parent`.
    fn dissolve(&mut self, parent: usize, next: u8, at: usize) {
        let (node, own) = (&mut self.nodes[at], &self.own[at]);
        let left = match (own.prefixes.len(), node.bytes.len()) {
            (1, 0) => self.lists.remove(&mut node.routes, 1, 0),
            (0, 1) => self.lists.remove(&mut node.children, 1, 0),
            _ => return,
        };
        self.free_nodes.push(at as u32);
        self.set_child(parent, next, left);
    }

    /// Key and length of what `child` stands for.
    fn extent(&self, child: u32) -> (K, u32) {
        if child & NODE != 0 {
            let n = &self.nodes[(child & !NODE) as usize];
            return (n.key, n.depth);
        }
        self.routes[child as usize].as_ref().map_or((K::ZERO, 0), |r| (r.key, r.len))
    }

    /// Enters `child`, which node `at` has no place for yet: in its own routes or below.
    fn attach(&mut self, at: usize, child: u32) {
        let (own, bit) = self.place(at, child);
        let node = &mut self.nodes[at];
        let (list, set, before) = node.parts(own.then_some(&mut self.own[at]));
        self.lists.insert(list, set.len(), set.rank(*before, bit), child);
        set.flip(before, bit);
    }

    /// Undoes [`Trie::attach`].
    fn detach(&mut self, at: usize, child: u32) {
        let (own, bit) = self.place(at, child);
        let node = &mut self.nodes[at];
        let (list, set, before) = node.parts(own.then_some(&mut self.own[at]));
        self.lists.remove(list, set.len(), set.rank(*before, bit));
        set.flip(before, bit);
    }

    /// Where in node `at` `child` belongs: whether with the node's own prefixes, and the bit.
    fn place(&self, at: usize, child: u32) -> (bool, u8) {
        let (key, len) = self.extent(child);
        let depth = self.nodes[at].depth;
        let next = byte(key, depth);
        if child & NODE == 0 && len - depth < 8 { (true, own_bit(next, len - depth)) } else { (false, next) }
    }

    fn set_child(&mut self, at: usize, next: u8, child: u32) {
        let node = &self.nodes[at];
        self.lists.set(node.children, node.bytes.rank(node.before, next), child);
    }

    fn replace(&mut self, route: u32, value: T) -> Option<T> {
        self.routes[route as usize].as_mut().map(|r| std::mem::replace(&mut r.value, value))
    }

    fn add_route(&mut self, route: Route<K, T>) -> u32 {
        if let Some(free) = self.free_routes.pop() {
            self.routes[free as usize] = Some(route);
            return free;
        }
        self.routes.push(Some(route));
        (self.routes.len() - 1) as u32
    }

    fn add_node(&mut self, node: Node<K>) -> u32 {
        if let Some(free) = self.free_nodes.pop() {
            self.nodes[free as usize] = node;
            self.own[free as usize] = Own::NONE;
            return free;
        }
        self.nodes.push(node);
        self.own.push(Own::NONE);
        (self.nodes.len() - 1) as u32
    }

    /// Sizes of all vectors.
    #[cfg(test)]
    pub(super) fn allocated(&self) -> [usize; 3] {
        [self.nodes.len(), self.routes.len(), self.lists.allocated()]
    }
}

impl<K> Node<K> {
    const fn new(key: K, depth: u32) -> Self {
        Self { bytes: Set::EMPTY, key, depth, before: Before([0; 4]), children: Block::EMPTY, routes: Block::EMPTY }
    }

    /// A list, and the set that it is in the order of: of the node's own prefixes if they are given, else of
    /// its children.
    fn parts<'a>(&'a mut self, own: Option<&'a mut Own>) -> (&'a mut Block, &'a mut Set, &'a mut Before) {
        match own {
            Some(own) => (&mut self.routes, &mut own.prefixes, &mut own.before),
            None => (&mut self.children, &mut self.bytes, &mut self.before),
        }
    }
}

impl Own {
    const NONE: Self = Self { prefixes: Set::EMPTY, before: Before([0; 4]) };

    /// The bit of the node's longest own prefix that `next` is in.
    #[inline]
    fn longest(&self, next: u8) -> Option<u8> {
        // Prefixes of 7 bits are in the upper two words, those of 6 in the second, the rest in the first.
        for extra in [7, 6] {
            if self.prefixes.has(own_bit(next, extra)) {
                return Some(own_bit(next, extra));
            }
        }
        let matching = self.prefixes.0[0] & SHORT[usize::from(next >> 3)];
        (matching != 0).then(|| 63 - matching.leading_zeros() as u8)
    }
}

/// For the upper 5 bits of a byte, the bits of the prefixes of 0 to 5 bits that it is in.
const SHORT: [u64; 32] = {
    let mut table = [0; 32];
    let mut i = 0;
    while i < 32 {
        let mut extra = 0;
        while extra <= 5 {
            table[i] |= 1 << ((1 << extra) | (i >> (5 - extra)));
            extra += 1;
        }
        i += 1;
    }
    table
};
