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

fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    listener
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
