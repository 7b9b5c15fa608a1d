//! The state directory: small JSON files, replaced as a whole or not at all.

use crate::Error;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// A file that is longer was not written by us: 16,384 pins are 5 MB.
const MAX_FILE: u64 = 16 << 20;

/// A directory of ours.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// Makes the directory (mode 0700) unless it is there.
    ///
    /// # Errors
    /// [`Error::Io`]: it cannot be made.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| Error::io(format!("make the state directory {}", dir.display()), e))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Where a file is.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The bytes of a file, wiped when dropped; `None`: there is none.
    ///
    /// # Errors
    /// [`Error::Io`]: it cannot be read or is larger than any of ours.
    pub fn read_bytes(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        let path = self.path(name);
        let failed = |e| Error::io(format!("read {}", path.display()), e);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(failed(std::io::Error::other(format!("it is larger than {MAX_FILE} bytes"))));
        }
        Ok(Some(bytes))
    }

    /// What a JSON file holds; `None`: there is none.
    ///
    /// # Errors
    /// [`Error::Io`]: it cannot be read, or is not what we write. It is left as it is: pins must not vanish silently.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let Some(bytes) = self.read_bytes(name)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            let path = self.path(name);
            Error::io(format!("understand {} (repair it or move it away)", path.display()), std::io::Error::other(e))
        })
    }

    /// Replaces a file, mode 0600. After a crash it is the old or the new one.
    ///
    /// # Errors
    /// [`Error::Io`]: the old one is still there then.
    pub fn write_bytes(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path(name);
        let temporary = self.path(&format!(".{name}.new"));
        let replaced = replace(&temporary, &path, bytes).and_then(|()| File::open(&self.dir)?.sync_all());
        if replaced.is_err() {
            // What is left of it would be overwritten by the next attempt anyway.
            let _ = fs::remove_file(&temporary);
        }
        replaced.map_err(|e| Error::io(format!("write {}", path.display()), e))
    }

    /// Replaces a JSON file.
    ///
    /// # Errors
    /// As [`Self::write_bytes`].
    pub fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), Error> {
        let mut bytes = serde_json::to_vec_pretty(value)
            .map_err(|e| Error::io(format!("write {}", self.path(name).display()), std::io::Error::other(e)))?;
        bytes.push(b'\n');
        self.write_bytes(name, &bytes)
    }
}

fn replace(temporary: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    // Left over from a crash; it may have another mode.
    match fs::remove_file(temporary) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_private_replaced_as_a_whole_and_leave_nothing_behind() {
        let dir = tempfile::tempdir().expect("directory");
        let store = Store::open(&dir.path().join("a/b")).expect("store");
        assert_eq!(store.read::<Vec<u32>>("x.json").expect("none"), None);
        store.write("x.json", &vec![1, 2]).expect("write");
        // Left over from a crash, and readable by all.
        fs::write(store.path(".x.json.new"), b"half").expect("write");
        store.write("x.json", &vec![3]).expect("write");
        assert_eq!(store.read::<Vec<u32>>("x.json").expect("read"), Some(vec![3]));
        let mode = fs::metadata(store.path("x.json")).expect("file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mode = fs::metadata(dir.path().join("a/b")).expect("directory").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert_eq!(fs::read_dir(dir.path().join("a/b")).expect("directory").count(), 1);
    }

    #[test]
    fn a_broken_file_is_named_and_kept() {
        let dir = tempfile::tempdir().expect("directory");
        let store = Store::open(dir.path()).expect("store");
        store.write_bytes("pins.json", b"{").expect("write");
        let e = store.read::<Vec<u32>>("pins.json").expect_err("broken").to_string();
        assert!(e.contains("pins.json") && e.contains("repair"), "{e}");
        assert_eq!(store.read_bytes("pins.json").expect("read").expect("there").as_slice(), b"{");
        assert!(store.write_bytes("no/such/dir", b"").is_err());
    }
}
