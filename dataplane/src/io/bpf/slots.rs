//! The map of slots as memory: which receiver indices are in use, and whose they are.

use crate::tunnel::{IndexWatch, limits::MAX_SESSIONS};
use ipop_ebpf::{SLOTS, slot_of, slot_word};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::Release};

const _: () = assert!(MAX_SESSIONS == SLOTS as usize, "every slot of the table of sessions has an entry");

const BYTES: usize = SLOTS as usize * size_of::<u64>();

/// The map, mapped. A store is seen by programs at once, on every core.
pub(super) struct Slots {
    words: NonNull<AtomicU64>,
    shards: u32,
}

// SAFETY: it is shared memory that is used through atomics only.
unsafe impl Send for Slots {}
// SAFETY: as above.
unsafe impl Sync for Slots {}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slots({} shards)", self.shards)
    }
}

impl Slots {
    /// Maps `map`, an array of [`SLOTS`] words, for `shards` shards.
    pub(super) fn new(map: BorrowedFd<'_>, shards: usize) -> io::Result<Self> {
        // SAFETY: no address is asked for, so nothing that is mapped is replaced.
        let p = unsafe {
            let both = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), BYTES, both, libc::MAP_SHARED, map.as_raw_fd(), 0)
        };
        if p == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = NonNull::new(p.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self { words, shards: u32::try_from(shards).unwrap_or(u32::MAX).max(1) })
    }

    fn store(&self, index: u32, word: u64) {
        // SAFETY: a slot is less than SLOTS, for which the mapping has room as long as `self` lives.
        let slot = unsafe { self.words.add(slot_of(index) as usize).as_ref() };
        slot.store(word, Release);
    }
}

impl IndexWatch for Slots {
    fn reserved(&self, index: u32, peer: u32) {
        self.store(index, slot_word(index, peer % self.shards));
    }

    fn freed(&self, index: u32) {
        self.store(index, 0);
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nobody has a reference into it.
        unsafe { libc::munmap(self.words.as_ptr().cast(), BYTES) };
    }
}
