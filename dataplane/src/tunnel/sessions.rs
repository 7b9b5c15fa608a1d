//! From receiver index to session, without locks for those who look up.

use super::limits::MAX_SESSIONS;
use super::session::Session;
use crate::path::Path;
use arc_swap::ArcSwapOption;
use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

const CHUNK: usize = 1024;
const CHUNKS: usize = MAX_SESSIONS.div_ceil(CHUNK);
const SLOT_BITS: u32 = MAX_SESSIONS.next_power_of_two().trailing_zeros();
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;
/// The bits of an index that are random, 14 of them.
pub(super) const RANDOM_BITS: u32 = !SLOT_MASK;

/// Told which receiver indices are in use. Before a peer can learn of one, and until it is given back.
pub trait IndexWatch: fmt::Debug + Send + Sync {
    /// `index` is in use for the peer of that number ([`Peer::id`](super::Peer::id)).
    fn reserved(&self, index: u32, peer: u32);
    /// What stands for an address, never 0.
    fn mark(&self, from: SocketAddr) -> u32;
    /// Authentic data for `index` comes from there, by [`Self::mark`], and not from where it came before.
    fn heard(&self, index: u32, mark: u32);
    /// `index` is not in use any more.
    fn freed(&self, index: u32);
}

type Chunk = Box<[ArcSwapOption<Session>]>;

/// All sessions by receiver index. An index is a slot number below random bits, so that looking up is one
/// load and a guessed or outdated index misses. Slots come in chunks made when first needed.
pub struct SessionTable {
    chunks: [OnceLock<Chunk>; CHUNKS],
    allocator: Mutex<Allocator>,
    watch: OnceLock<Arc<dyn IndexWatch>>,
}

#[derive(Default)]
struct Allocator {
    /// Per slot ever used: the index that it was last given out under, if it is in use.
    taken: Vec<Option<u32>>,
    /// Slots free again, oldest first: a slot rests as long as possible.
    free: VecDeque<u32>,
}

impl Default for SessionTable {
    fn default() -> Self {
        Self { chunks: [const { OnceLock::new() }; CHUNKS], allocator: Mutex::default(), watch: OnceLock::new() }
    }
}

impl fmt::Debug for SessionTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionTable({} indices in use)", self.in_use())
    }
}

impl SessionTable {
    /// Has `watch` told of every index from now on. The second one is not.
    pub fn set_watch(&self, watch: Arc<dyn IndexWatch>) {
        let _ = self.watch.set(watch);
    }

    /// The session that goes by `index`, all 32 bits of it.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<Arc<Session>> {
        let slot = self.slot(index)?.load();
        slot.as_ref().filter(|s| s.local_index == index).cloned()
    }

    /// Indices reserved or with a session.
    #[must_use]
    pub fn in_use(&self) -> usize {
        let a = self.lock();
        a.taken.len() - a.free.len()
    }

    /// Takes an unused index, for a handshake with `peer` and the session that it may become. `random` makes it hard to
    /// guess. `None` if all are in use.
    pub(super) fn reserve(&self, random: u32, peer: u32) -> Option<u32> {
        let mut a = self.lock();
        let slot = match a.free.pop_front() {
            Some(slot) => slot,
            None if a.taken.len() < MAX_SESSIONS => {
                a.taken.push(None);
                u32::try_from(a.taken.len() - 1).ok()?
            }
            None => return None,
        };
        let index = (random & RANDOM_BITS) | slot;
        *a.taken.get_mut(slot as usize)? = Some(index);
        if let Some(w) = self.watch.get() {
            w.reserved(index, peer);
        }
        Some(index)
    }

    /// Something authentic for `session` came by `path`. Called for every batch.
    pub fn heard(&self, session: &Session, path: Path) {
        let (Some(watch), Path::Direct(from)) = (self.watch.get(), path) else { return };
        let mark = watch.mark(from);
        if session.remark(mark) {
            watch.heard(session.local_index, mark);
        }
    }

    /// Makes `session` visible under its local index, which was reserved before.
    pub(super) fn publish(&self, session: Arc<Session>) {
        let chunk = self.chunks.get(slot_of(session.local_index) / CHUNK);
        let Some(chunk) = chunk.map(|c| c.get_or_init(|| (0..CHUNK).map(|_| ArcSwapOption::empty()).collect())) else {
            return;
        };
        if let Some(slot) = chunk.get(slot_of(session.local_index) % CHUNK) {
            slot.store(Some(session));
        }
    }

    /// Gives an index back, along with its session. An index that is not in use is left alone.
    pub(super) fn free(&self, index: u32) {
        let mut a = self.lock();
        let Some(taken) = a.taken.get_mut(slot_of(index)).filter(|t| **t == Some(index)) else { return };
        *taken = None;
        if let Some(slot) = self.slot(index) {
            slot.store(None);
        }
        if let Some(w) = self.watch.get() {
            w.freed(index);
        }
        a.free.push_back(index & SLOT_MASK);
    }

    fn slot(&self, index: u32) -> Option<&ArcSwapOption<Session>> {
        self.chunks.get(slot_of(index) / CHUNK)?.get()?.get(slot_of(index) % CHUNK)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Allocator> {
        // A panic between two steps could at worst lose a slot.
        self.allocator.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const fn slot_of(index: u32) -> usize {
    (index & SLOT_MASK) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_unique_until_freed_and_its_slot_comes_back_under_another() {
        let t = SessionTable::default();
        let a = t.reserve(0xffff_ffff, 0).expect("room");
        let b = t.reserve(0xffff_ffff, 0).expect("room");
        assert_ne!(a, b);
        assert!(t.get(a).is_none());
        t.free(a ^ 0x8000_0000);
        assert_eq!(t.in_use(), 2);
        t.free(a);
        t.free(a);
        assert_eq!(t.in_use(), 1);
        let c = t.reserve(0, 0).expect("room");
        assert_eq!(c & SLOT_MASK, a & SLOT_MASK);
        assert_ne!(c, a);
    }

    #[test]
    fn the_table_is_bounded_and_any_index_may_be_looked_up() {
        let t = SessionTable::default();
        let all: Vec<u32> = (0..MAX_SESSIONS).map(|_| t.reserve(0, 0).expect("room")).collect();
        assert!(t.reserve(0, 0).is_none());
        t.free(all[7]);
        assert_eq!(t.reserve(0, 0), Some(all[7]));
        for index in [0, 1, u32::MAX, SLOT_MASK, 1 << 31] {
            assert!(t.get(index).is_none());
        }
    }
}
