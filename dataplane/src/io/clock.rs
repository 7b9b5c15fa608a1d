//! The clocks.

use crate::{Time, WallTime};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Now, on `CLOCK_BOOTTIME`: it counts the time that the machine was suspended.
#[must_use]
pub fn now() -> Time {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a valid timespec to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut t) };
    Time::from_nanos(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

/// Now, since the Unix epoch.
#[must_use]
pub fn wall() -> WallTime {
    WallTime(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
}
