//! The node's one secret, and all that is derived from it.

use super::base64;
use crate::Error;
use dataplane::tunnel::{PrivateKey, PublicKey};
use hmac::{Hmac, KeyInit, Mac};
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The secret's file in the state directory: 44 characters of base64.
const FILE: &str = "node.key";
/// Longest file taken, in bytes: the key and a line end.
const MAX_FILE: u64 = 64;
/// Domains of what is derived (the key is the same for all).
const ID_DOMAIN: &[u8] = b"ipop-fast node id v1";
const NETWORK_DOMAIN: &[u8] = b"ipop-fast network key v1";

/// The node's secret key. Zeroized when dropped, never shown.
#[derive(Clone)]
pub struct Keys(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.node_resource())
    }
}

impl Keys {
    /// The key in `state_dir`; the first start makes directory (0700) and key (0600). Processes that start at once
    /// get the same key.
    ///
    /// # Errors
    /// [`Error::State`] if others may read or write there, or if the file holds no key; [`Error::Io`].
    pub fn load_or_create(state_dir: &Path) -> Result<Self, Error> {
        prepare(state_dir)?;
        let path = state_dir.join(FILE);
        if let Some(keys) = load(&path)? {
            return Ok(keys);
        }
        create(state_dir, &path).map_err(|e| Error::io(format!("make a key in {}", state_dir.display()), e))?;
        load(&path)?.ok_or_else(|| Error::State(format!("{} was deleted while it was made", path.display())))
    }

    /// The node's public name: a Curve25519 key that is used for nothing else.
    #[must_use]
    pub fn node_id(&self) -> PublicKey {
        self.derive(ID_DOMAIN, b"").public()
    }

    /// The node's XMPP resource: `ipop-` and 16 hexadecimal digits of the SHA-256 of [`Self::node_id`].
    #[must_use]
    pub fn node_resource(&self) -> String {
        let digest = Sha256::digest(self.node_id().0);
        digest.iter().take(8).fold("ipop-".to_owned(), |s, b| s + &format!("{b:02x}"))
    }

    /// The node's WireGuard key in `network` (as `group:NAME`). Each network has its own, so that members of one
    /// cannot tell the node in another.
    #[must_use]
    pub fn network_key(&self, network: &str) -> PrivateKey {
        self.derive(NETWORK_DOMAIN, network.as_bytes())
    }

    fn derive(&self, domain: &[u8], name: &[u8]) -> PrivateKey {
        // HMAC takes keys of any length; an all-zero key could be guessed, so it would be no answer to an error.
        let mac = Hmac::<Sha256>::new_from_slice(self.0.as_slice());
        let mut mac = mac.expect("HMAC takes keys of any length");
        mac.update(domain);
        mac.update(name);
        let mut bytes = Zeroizing::new([0; 32]);
        bytes.copy_from_slice(&mac.finalize().into_bytes());
        PrivateKey::new(*bytes)
    }
}

/// Makes the state directory if it is new, else looks whether others may change what is in it.
///
/// # Errors
/// [`Error::State`], [`Error::Io`].
pub(super) fn prepare(state_dir: &Path) -> Result<(), Error> {
    let shown = state_dir.display();
    if !state_dir.exists() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(state_dir);
        // Whatever the umask is.
        made.and_then(|()| fs::set_permissions(state_dir, Permissions::from_mode(0o700)))
            .map_err(|e| Error::io(format!("create the state directory {shown}"), e))?;
    }
    let about = fs::metadata(state_dir).map_err(|e| Error::io(format!("look at {shown}"), e))?;
    owned(&about, state_dir)?;
    if about.mode() & 0o022 != 0 {
        return Err(Error::State(format!("others may write to the state directory {shown}: chmod 700 {shown}")));
    }
    Ok(())
}

/// Whether a file is this user's or root's.
fn owned(about: &fs::Metadata, path: &Path) -> Result<(), Error> {
    let me = rustix::process::geteuid().as_raw();
    if about.uid() == me || about.uid() == 0 {
        return Ok(());
    }
    let shown = path.display();
    Err(Error::State(format!("{shown} belongs to user {}, not to user {me}: chown {me} {shown}", about.uid())))
}

fn load(path: &Path) -> Result<Option<Keys>, Error> {
    let shown = path.display();
    let failed = |e: io::Error| Error::io(format!("read the node's key {shown}"), e);
    // No symbolic link to where others may write, no waiting for a pipe.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() {
        return Err(Error::State(format!("{shown} is no regular file: move it away")));
    }
    owned(&about, path)?;
    if about.mode() & 0o077 != 0 {
        return Err(Error::State(format!(
            "{shown} is the node's secret key but has mode {:04o}, open to others: chmod 600 {shown}. If others may \
             have read it, delete it instead: the node then is a new one to the others",
            about.mode() & 0o7777
        )));
    }
    let mut text = Zeroizing::new(String::with_capacity(MAX_FILE as usize + 1));
    let read = file.take(MAX_FILE + 1).read_to_string(&mut text);
    let garbage = || {
        Error::State(format!(
            "{shown} holds no key (44 characters of base64): restore it from a backup, or delete it: the node then is \
             a new one to the others, who have to accept it (ipop-fast pins accept)"
        ))
    };
    match read {
        Err(e) if e.kind() == ErrorKind::InvalidData => return Err(garbage()),
        read => read.map_err(failed)?,
    };
    let key = base64::decode(text.trim_end()).filter(|k| k.iter().any(|b| *b != 0)).ok_or_else(garbage)?;
    Ok(Some(Keys(key)))
}

/// Makes the file. It appears whole or not at all; one that appears meanwhile stays.
fn create(state_dir: &Path, path: &Path) -> io::Result<()> {
    let mut bytes = Zeroizing::new([0; 32]);
    let mut mark = [0; 8];
    getrandom::fill(bytes.as_mut_slice()).map_err(io::Error::other)?;
    getrandom::fill(&mut mark).map_err(io::Error::other)?;
    let draft = Draft(state_dir.join(format!(".{FILE}.{:016x}", u64::from_ne_bytes(mark))));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft.0)?;
    let text = base64::encode(&bytes);
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    // Unlike rename, link never replaces: of two processes one makes the key and both read it.
    match fs::hard_link(&draft.0, path) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
        _ => File::open(state_dir)?.sync_all(),
    }
}

/// A file that goes when it is dropped.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        // A draft that stays holds a key that nobody uses.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(p: &Path) -> u32 {
        fs::metadata(p).expect("metadata").permissions().mode() & 0o777
    }

    fn fixed(text: &str) -> Keys {
        Keys(base64::decode(text).expect("key"))
    }

    #[test]
    fn a_key_is_made_once_and_only_for_the_owner() {
        let dir = tempfile::tempdir().expect("directory");
        let state = dir.path().join("a/state");
        let first = Keys::load_or_create(&state).expect("made");
        assert_eq!((mode(&state), mode(&state.join(FILE))), (0o700, 0o600));
        let again = Keys::load_or_create(&state).expect("read");
        assert_eq!(*first.0, *again.0);
        let other = Keys::load_or_create(&dir.path().join("b")).expect("made");
        assert_ne!(*first.0, *other.0);
        let names: Vec<_> = fs::read_dir(&state).expect("list").map(|f| f.expect("file").file_name()).collect();
        assert_eq!(names, [FILE], "no draft stays");
    }

    #[test]
    fn processes_that_start_at_once_agree() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().expect("directory");
            let start = std::sync::Barrier::new(8);
            let resources: Vec<String> = std::thread::scope(|s| {
                let one = || {
                    start.wait();
                    Keys::load_or_create(dir.path()).expect("key").node_resource()
                };
                let all: Vec<_> = (0..8).map(|_| s.spawn(one)).collect();
                all.into_iter().map(|t| t.join().expect("thread")).collect()
            });
            assert!(resources.iter().all(|r| *r == resources[0]), "{resources:?}");
        }
    }

    #[test]
    fn what_others_may_touch_or_is_no_key_is_refused() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join(FILE);
        let told = || Keys::load_or_create(dir.path()).expect_err("refused").to_string();
        Keys::load_or_create(dir.path()).expect("made");
        fs::set_permissions(&file, Permissions::from_mode(0o640)).expect("mode");
        assert!(told().contains("mode 0640") && told().contains("chmod 600"), "{}", told());
        fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("mode");
        for garbage in [&b""[..], b"x", b"\xff\xfe", &[b'A'; 4096], b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"] {
            fs::write(&file, garbage).expect("write");
            assert!(told().contains("holds no key"), "{}", told());
        }
        fs::remove_file(&file).expect("remove");
        std::os::unix::fs::symlink("/dev/null", &file).expect("link");
        assert!(matches!(Keys::load_or_create(dir.path()), Err(Error::Io { .. })));
        fs::remove_file(&file).expect("remove");
        fs::create_dir(&file).expect("directory");
        assert!(told().contains("no regular file"));
        fs::set_permissions(dir.path(), Permissions::from_mode(0o770)).expect("mode");
        assert!(told().contains("chmod 700"));
    }

    #[test]
    fn derived_keys_stay_what_they_are() {
        // These are stored by other nodes as pins: a change here makes every node a stranger.
        let keys = fixed("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
        let key = |network: &str| base64::encode(keys.network_key(network).bytes()).to_string();
        assert_eq!(keys.node_resource(), RESOURCE);
        assert_eq!(key("group:a"), GROUP_A);
        assert_ne!(key("group:a"), key("group:b"));
        assert_ne!(key("group:a"), key("muc:a"));
        assert_eq!(format!("{keys:?}"), format!("Keys({RESOURCE})"));
    }

    /// Computed with the `hmac` of Python and `wg pubkey`.
    const RESOURCE: &str = "ipop-307675d0be000ce2";
    const GROUP_A: &str = "QBpiOyQ9JInxcokMrRHh63e4eyaTaZHBk+/doGsf6FQ=";
}
