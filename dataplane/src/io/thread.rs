//! Where a shard's thread runs.

/// Pins this thread to `core`. A core that this process may not use is no error: the thread stays free.
pub fn pin(core: usize) {
    // SAFETY: an all-zero set is empty; CPU_SET writes within it, because `core` is below its size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if core < libc::CPU_SETSIZE as usize {
            libc::CPU_SET(core, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
        }
    }
}
