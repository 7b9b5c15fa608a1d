//! Where a shard's thread runs.

/// Sleeps for a moment, precisely: the kernel's default slack of 50 us would double it.
pub(super) fn nap(time: std::time::Duration) {
    let t = libc::timespec { tv_sec: 0, tv_nsec: i64::from(time.subsec_nanos()) };
    // SAFETY: `t` is a valid timespec; the rest of the interrupted time is not asked for.
    unsafe {
        // Per thread, and a cheap call: it writes one field of the task.
        libc::prctl(libc::PR_SET_TIMERSLACK, 1_000);
        libc::clock_nanosleep(libc::CLOCK_MONOTONIC, 0, &raw const t, std::ptr::null_mut());
    }
}

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
