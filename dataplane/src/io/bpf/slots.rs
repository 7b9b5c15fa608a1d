//! The map of slots as memory: which receiver indices are in use, whose they are, and where their data comes from.

use crate::tunnel::{IndexWatch, limits::MAX_SESSIONS};
use ipop_ebpf::{BUCKETS, SLOTS, Slot, mark_of, slot_at, slot_of, slot_word};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::Release};

const _: () = assert!(MAX_SESSIONS == SLOTS as usize, "every slot of the table of sessions has an entry");

/// A map of words, mapped. A store is seen by programs at once, on every core.
struct Words {
    base: NonNull<AtomicU64>,
    len: u32,
}

// SAFETY: it is shared memory that is used through atomics only.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// Maps `map`, an array of `len` words.
    fn new(map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        // SAFETY: no address is asked for, so nothing that is mapped is replaced.
        let p = unsafe {
            let both = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), Self::bytes(len), both, libc::MAP_SHARED, map.as_raw_fd(), 0)
        };
        if p == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(p.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self { base, len })
    }

    const fn bytes(len: u32) -> usize {
        len as usize * size_of::<u64>()
    }

    fn at(&self, i: u32) -> &AtomicU64 {
        // SAFETY: less than `len` words, for which the mapping has room as long as `self` lives.
        unsafe { self.base.add((i % self.len) as usize).as_ref() }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nobody has a reference into it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), Self::bytes(self.len)) };
    }
}

/// What programs know of sessions.
pub(super) struct Slots {
    words: Words,
    /// Of data from elsewhere.
    buckets: Words,
    seed: u64,
    shards: u32,
}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slots({} shards)", self.shards)
    }
}

impl Slots {
    /// By the maps of slots and of buckets, for `shards` shards; `seed` is for marks.
    pub(super) fn new(slots: BorrowedFd<'_>, buckets: BorrowedFd<'_>, seed: u64, shards: usize) -> io::Result<Self> {
        let (words, buckets) = (Words::new(slots, SLOTS)?, Words::new(buckets, BUCKETS)?);
        Ok(Self { words, buckets, seed, shards: u32::try_from(shards).unwrap_or(u32::MAX).max(1) })
    }
}

impl IndexWatch for Slots {
    fn reserved(&self, index: u32, peer: u32) {
        let slot = Slot { shard: peer % self.shards, mark: 0 };
        self.buckets.at(slot_of(index)).store(0, Relaxed);
        self.words.at(slot_of(index)).store(slot_word(index, slot), Release);
    }

    fn mark(&self, from: SocketAddr) -> u32 {
        mark_of(&super::endpoint(&from), self.seed)
    }

    fn heard(&self, index: u32, mark: u32) {
        let marked = |word| slot_at(word, index).map(|slot| slot_word(index, Slot { mark, ..slot }));
        // Not a plain store: an index given back meanwhile must not come to life again.
        if self.words.at(slot_of(index)).fetch_update(Release, Relaxed, marked).is_ok() {
            self.buckets.at(slot_of(index)).store(0, Relaxed);
        }
    }

    fn freed(&self, index: u32) {
        self.words.at(slot_of(index)).store(0, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};

    /// Memory in the place of a map.
    fn memory(words: u32) -> OwnedFd {
        // SAFETY: a name that ends in zero; the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"map".as_ptr(), libc::MFD_CLOEXEC)) };
        // SAFETY: no memory is passed.
        assert_eq!(unsafe { libc::ftruncate(fd.as_raw_fd(), Words::bytes(words) as i64) }, 0);
        fd
    }

    #[test]
    fn a_mark_is_kept_for_an_index_in_use_and_brings_no_other_to_life() {
        let (words, buckets) = (memory(SLOTS), memory(BUCKETS));
        let slots = Slots::new(words.as_fd(), buckets.as_fd(), 7, 2).expect("mapped");
        let (index, other) = (0x8000_0005, 0x4000_0005);
        let now = |i: u32| slot_at(slots.words.at(slot_of(i)).load(Relaxed), i);
        let bucket = || slots.buckets.at(slot_of(index)).load(Relaxed);
        slots.heard(index, 9);
        assert_eq!(now(index), None);
        slots.reserved(index, 3);
        assert_eq!(now(index), Some(Slot { shard: 1, mark: 0 }));
        slots.buckets.at(slot_of(index)).store(1234, Relaxed);
        slots.heard(other, 9);
        assert_eq!((now(index), bucket()), (Some(Slot { shard: 1, mark: 0 }), 1234));
        slots.heard(index, 9);
        assert_eq!((now(index), bucket()), (Some(Slot { shard: 1, mark: 9 }), 0));
        slots.freed(index);
        slots.heard(index, 9);
        assert_eq!(now(index), None);
        let (four, mapped) = ("10.0.0.1:5".parse().expect("v4"), "[::ffff:10.0.0.1]:5".parse().expect("v6"));
        assert_eq!(slots.mark(four), slots.mark(mapped));
    }
}
