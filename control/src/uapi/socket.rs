//! The socket file: made, told from a stale one, watched and removed.

use crate::Error;
use rustix::fs::{Mode, inotify};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::unix::pipe;

/// Where `wg` looks for sockets.
pub const DIRECTORY: &str = "/var/run/wireguard";

/// How often the file is looked at when inotify is not to be had (its instances are limited per user).
const POLL: Duration = Duration::from_secs(1);

/// The path of `interface`'s socket in `directory`.
#[must_use]
pub fn path(directory: &Path, interface: &str) -> PathBuf {
    directory.join(format!("{interface}.sock"))
}

/// Binds `interface`'s socket: directory 0700 if it is new, socket 0600. A socket that nobody answers is
/// replaced. Changes the umask for a moment: call it before threads are started.
///
/// # Errors
/// [`Error::SocketInUse`] if a process answers; [`Error::Io`].
pub fn listen(directory: &Path, interface: &str) -> Result<UnixListener, Error> {
    let path = path(directory, interface);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|e| Error::io(format!("create {}", directory.display()), e))?;
    let failed = |e| Error::io(format!("listen on {}", path.display()), e);
    match bind_private(&path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
        done => return done.map_err(failed),
    }
    match UnixStream::connect(&path) {
        Ok(peer) => {
            let pid = rustix::net::sockopt::socket_peercred(&peer).ok().map(|c| c.pid.as_raw_nonzero().get());
            return Err(Error::SocketInUse { name: interface.to_owned(), path, pid });
        }
        // A socket without a process. A plain file refuses connections as well, but is not ours to delete.
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused && is_socket(&path) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
    }
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    bind_private(&path).map_err(failed)
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket())
}

/// Binds a socket that listens from the moment it has its name: `wg` deletes one that refuses it, as a socket does between
/// `bind` and `listen`. So it is bound under another name, and given its own by a link, which fails where there is a file.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let unnamed = unnamed(path);
    let _ = fs::remove_file(&unnamed);
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(&unnamed);
    rustix::process::umask(before);
    let named = listener.and_then(|l| match fs::hard_link(&unnamed, path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(io::ErrorKind::AddrInUse.into()),
        done => done.map(|()| l),
    });
    let _ = fs::remove_file(&unnamed);
    named
}

/// The name of a socket before it listens. `wg` takes what ends in `.sock` for an interface's.
fn unnamed(path: &Path) -> PathBuf {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", std::process::id()))
}

/// Where the socket of `interface` is that was bound at `bound`: there, unless it was by [`listen`].
#[must_use]
pub fn named(bound: &Path, interface: &str) -> PathBuf {
    let ours =
        |name: &str| name.strip_prefix('.').is_some_and(|n| n.rsplit_once('.').is_some_and(|(n, _)| n == interface));
    match bound.file_name() {
        Some(name) if ours(&name.to_string_lossy()) => bound.with_file_name(format!("{interface}.sock")),
        _ => bound.to_owned(),
    }
}

/// Our socket file. Removes it when dropped, unless another one has taken its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    id: Option<(u64, u64)>,
}

impl SocketFile {
    /// Takes charge of the socket file at `path`, if there is one: a socket given by `WG_UAPI_FD` may have none.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        let id = identity(&path);
        Self { path, id }
    }

    fn is_there(&self) -> bool {
        identity(&self.path) == self.id
    }

    /// Returns once the file has been deleted or replaced by somebody else; never if there was none.
    pub async fn gone(&self) {
        if self.id.is_none() {
            return std::future::pending().await;
        }
        let watch = watch(&self.path);
        while self.is_there() {
            match &watch {
                Ok(watch) => next_event(watch).await,
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.id.is_some() && self.is_there() {
            // Nothing to be done if it fails: the next start replaces a stale socket.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

fn watch(path: &Path) -> io::Result<pipe::Receiver> {
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let flags = inotify::WatchFlags::DELETE
        | inotify::WatchFlags::MOVED_FROM
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::DELETE_SELF
        | inotify::WatchFlags::MOVE_SELF;
    inotify::add_watch(&fd, directory, flags)?;
    // An inotify descriptor is waited for and read like a pipe.
    pipe::Receiver::from_owned_fd_unchecked(fd)
}

/// Waits for anything to happen; what it was is read from the file itself.
async fn next_event(watch: &pipe::Receiver) {
    let mut events = [0; 4096];
    let read = watch.readable().await.and_then(|()| watch.try_read(&mut events));
    if read.is_err_and(|e| e.kind() != io::ErrorKind::WouldBlock) {
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn nobody_ever_finds_a_socket_that_refuses() {
        use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
        let dir = tempfile::tempdir().expect("a directory");
        let file = path(dir.path(), "wg0");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let looks = scope.spawn(|| {
                let mut met = 0;
                while !done.load(Relaxed) {
                    match UnixStream::connect(&file) {
                        Ok(_) => met += 1,
                        Err(e) => assert_eq!(e.kind(), io::ErrorKind::NotFound),
                    }
                }
                met
            });
            for _ in 0..2000 {
                let listener = listen(dir.path(), "wg0").expect("it listens");
                let bound = listener.local_addr().expect("an address");
                assert_eq!(named(bound.as_pathname().expect("a path"), "wg0"), file);
                fs::remove_file(&file).expect("it has its name");
            }
            done.store(true, Relaxed);
            assert!(looks.join().expect("no refusal") > 0);
        });
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 0, "other names are left");
    }

    #[test]
    fn a_socket_bound_elsewhere_keeps_its_name() {
        for (bound, there) in [("/a/b.sock", "/a/b.sock"), ("/a/.wg0.12", "/a/wg0.sock"), ("/a/.wg1.12", "/a/.wg1.12")]
        {
            assert_eq!(named(Path::new(bound), "wg0"), Path::new(there));
        }
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_refused() {
        let dir = tempfile::tempdir().expect("directory");
        let dir = dir.path().join("wireguard");
        let first = listen(&dir, "wg0").expect("first");
        let mode = |p: &Path| fs::metadata(p).expect("metadata").permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&path(&dir, "wg0"))), (0o700, 0o600));
        let refused = listen(&dir, "wg0").expect_err("in use");
        assert!(matches!(&refused, Error::SocketInUse { pid: Some(_), .. }), "{refused}");
        drop(first);
        let second = listen(&dir, "wg0").expect("stale");
        drop(SocketFile::new(path(&dir, "wg0")));
        assert!(!path(&dir, "wg0").exists());
        drop(second);
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(path(dir.path(), "wg0"), "precious").expect("write");
        assert!(matches!(listen(dir.path(), "wg0"), Err(Error::Io { .. })));
        assert_eq!(fs::read_to_string(path(dir.path(), "wg0")).expect("kept"), "precious");
    }

    #[test]
    fn a_deleted_or_replaced_file_is_noticed_and_not_removed_again() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let dir = tempfile::tempdir().expect("directory");
        let p = path(dir.path(), "wg0");
        let _listener = listen(dir.path(), "wg0").expect("listen");
        let file = SocketFile::new(p.clone());
        runtime.block_on(async {
            let gone = file.gone();
            tokio::pin!(gone);
            tokio::select! {
                biased;
                () = &mut gone => panic!("it is there"),
                () = tokio::task::yield_now() => {}
            }
            fs::remove_file(&p).expect("remove");
            tokio::time::timeout(Duration::from_secs(10), gone).await.expect("noticed");
        });
        fs::write(&p, "another's").expect("write");
        drop(file);
        assert!(p.exists());
    }
}
