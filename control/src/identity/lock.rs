//! One node, one state directory.

use super::keys::prepare;
use crate::Error;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const FILE: &str = "lock";

/// The right to use a state directory, until it is dropped or the process ends.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateLock {
    /// Takes it, and makes the directory if it is new. The file stays when the lock goes: to delete it would let
    /// two processes hold two files of that name.
    ///
    /// # Errors
    /// [`Error::State`] with the process that has it; [`Error::Io`].
    pub fn take(state_dir: &Path) -> Result<Self, Error> {
        prepare(state_dir)?;
        let path = state_dir.join(FILE);
        let failed = |e: std::io::Error| Error::io(format!("lock {}", path.display()), e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // What it says is a help only.
                let _ = file.take(16).read_to_string(&mut pid);
                let pid = pid.trim().parse::<u32>().map_or_else(|_| String::new(), |p| format!(" (pid {p})"));
                return Err(Error::State(format!(
                    "the state directory {} is in use by another node{pid}: end that one, or give this one a state_dir \
                     of its own",
                    state_dir.display()
                )));
            }
            done => done.map_err(|e| failed(e.into()))?,
        }
        let pid = format!("{}\n", std::process::id());
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(pid.as_bytes())).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_node_is_told_who_has_the_directory() {
        let dir = tempfile::tempdir().expect("directory");
        let state = dir.path().join("state");
        let first = StateLock::take(&state).expect("first");
        let refused = StateLock::take(&state).expect_err("second").to_string();
        assert!(refused.contains(&format!("(pid {})", std::process::id())), "{refused}");
        drop(first);
        let _again = StateLock::take(&state).expect("after the first has gone");
    }
}
