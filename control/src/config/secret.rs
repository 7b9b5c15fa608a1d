//! Files that hold a secret.

use rustix::fs::OFlags;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use zeroize::Zeroizing;

/// Longest secret, in bytes.
const MAX_SECRET: u64 = 4096;
/// What others than the owner may not do: write, and (the world) read. Its group may read it.
const FORBIDDEN: u32 = 0o037;

/// Reads a secret without the line end behind it.
///
/// # Errors
/// Why not, and what to do, as it stands behind a key's name.
pub fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let shown = path.display();
    let failed = |e: std::io::Error| match e.kind() {
        ErrorKind::NotFound => format!("there is no file {shown}"),
        ErrorKind::PermissionDenied => format!("{shown} may not be read by this user"),
        _ => format!("cannot read {shown}: {e}"),
    };
    // A named pipe would be waited for without end.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() {
        return Err(format!("{shown} is no regular file"));
    }
    if about.mode() & FORBIDDEN != 0 {
        return Err(format!(
            "{shown} holds a secret but has mode {:04o}, open to others: chmod 600 {shown}",
            about.mode() & 0o7777
        ));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET as usize + 1));
    file.take(MAX_SECRET + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_SECRET {
        return Err(format!("{shown} is longer than {MAX_SECRET} bytes: this is no secret"));
    }
    while bytes.last().is_some_and(|b| matches!(b, b'\n' | b'\r')) {
        bytes.pop();
    }
    if bytes.is_empty() {
        return Err(format!("{shown} is empty: write the secret into it"));
    }
    Ok(bytes)
}

/// Reads a password: one line of text.
///
/// # Errors
/// As [`read_secret`].
pub(super) fn read_password(path: &Path) -> Result<Zeroizing<String>, String> {
    let bytes = read_secret(path)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) if !text.contains(['\n', '\r', '\0']) => Ok(Zeroizing::new(text.to_owned())),
        Ok(_) => Err(format!("{} has more than one line: only the password belongs into it", path.display())),
        Err(_) => Err(format!("{} is no text (UTF-8)", path.display())),
    }
}
