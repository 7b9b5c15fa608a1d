//! A bell that wakes a shard.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

/// An `eventfd`. Ringing a bell that rings already does nothing.
#[derive(Debug)]
pub struct Bell(File);

impl Bell {
    /// A silent bell.
    ///
    /// # Errors
    /// The process has no more file descriptors.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; a non-negative result is a descriptor that nobody else owns.
        unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(File::from_raw_fd(fd)))
        }
    }

    /// Wakes whoever waits on the descriptor.
    pub fn ring(&self) {
        // Fails only when the counter is full: then it rings already.
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }

    /// Silences the bell.
    pub fn silence(&self) {
        let _ = (&self.0).read(&mut [0; 8]);
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
