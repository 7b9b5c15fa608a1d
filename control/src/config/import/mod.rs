//! `ipop-fast import`: from the configuration of an IPOP controller to ours.
//!
//! Known are the flat form of the first controllers (`xmpp_username`, `ip4`, `stun`, `turn`), the module form
//! (`CFx`, `XmppClient`, `BaseTopologyManager`, `LinkManager`, `VirtualNetworkInitializer` or `Tincan` with `Vnets`)
//! and its successor with overlays (`Signal`, `Topology`, `BridgeController`).

mod convert;
mod keys;
mod source;
#[cfg(test)]
mod tests;

pub use convert::{Imported, Secret, convert};

use super::{PASSWORD_VARIABLE, load};
use crate::Error;
use crate::cli::ImportArgs;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Longest file, in bytes: IPOP's have two thousand.
const MAX_FILE: usize = 64 << 10;
/// Where passwords are expected if the result is printed only.
const PRINTED_BASE: &str = "/etc/ipop-fast/node";

/// Converts a file. What is not carried over is told on standard error.
///
/// # Errors
/// If it cannot be read or understood, or if a file is in the way of the result.
pub fn main(args: &ImportArgs) -> Result<ExitCode, Error> {
    let shown = args.file.display();
    let text = read(&args.file).map_err(|e| Error::io(format!("read {shown}"), e))?;
    // Passwords are named in full, so that the file may be moved.
    let base = match &args.output {
        Some(out) => std::path::absolute(out.with_extension("")).map_err(|e| Error::io("find this directory", e))?,
        None => PathBuf::from(PRINTED_BASE),
    };
    let imported = convert(&text, &base, args.group.as_deref())
        .map_err(|wrong| Error::Client(wrong.iter().map(|w| format!("{shown}: {w}")).collect::<Vec<_>>().join("\n")))?;
    for note in &imported.notes {
        eprintln!("{note}");
    }
    let Some(out) = &args.output else {
        for secret in &imported.secrets {
            eprintln!("{} goes into {} (chmod 600), or is written there with -o", secret.what, secret.path.display());
        }
        return crate::admin::view::print(imported.toml.as_bytes());
    };
    for secret in &imported.secrets {
        write_new(&secret.path, &secret.value, 0o600)?;
        eprintln!("{} was written to {}", secret.what, secret.path.display());
    }
    write_new(out, imported.toml.trim_end(), 0o644)?;
    eprintln!("{} was written; {PASSWORD_VARIABLE} may take the place of the password file", out.display());
    // The last word has the same check that `up` makes.
    load(out)?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE as u64 + 1).read_to_string(&mut text)?;
    if text.len() > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than a configuration can be"));
    }
    Ok(text)
}

/// Never over a file that is there: it may hold the only copy of something.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut f| f.write_all(text.as_bytes()).and_then(|()| f.write_all(b"\n")).and_then(|()| f.sync_all()))
        .map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => {
                Error::Client(format!("{} is there already: remove it, or choose another name with -o", path.display()))
            }
            _ => Error::io(format!("write {}", path.display()), e),
        })
}
