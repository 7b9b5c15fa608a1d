//! The node's side of the control socket.

use super::{MAX_REQUEST, Request, Response};
use crate::Error;
use crate::uapi::socket::SocketFile;
use futures::future::Either;
use futures::stream::{FuturesUnordered, StreamExt};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// Connections served at once; a further one waits in the kernel's backlog.
pub const MAX_CONNECTIONS: usize = 8;
/// A client that does not send its request or take its answer for so long is left.
pub const CLIENT_LIMIT: Duration = Duration::from_secs(5);
/// The node answers within this time, or says that it does not.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const BACKLOG: i32 = 16;
/// Between attempts to accept when file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listening socket. Its file goes when it is dropped.
#[derive(Debug)]
pub struct AdminSocket {
    listener: std::os::unix::net::UnixListener,
    _file: SocketFile,
}

/// Makes the socket (0600) and its directory (0755, if it is new). A socket that a killed process left is replaced.
///
/// # Errors
/// [`Error::State`] if a process answers there; [`Error::Io`].
pub fn listen(path: &Path) -> Result<AdminSocket, Error> {
    let failed = |e: io::Error| Error::io(format!("listen on the control socket {}", path.display()), e);
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty() && !d.exists()) {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
        made.and_then(|()| fs::set_permissions(directory, Permissions::from_mode(0o755))).map_err(failed)?;
    }
    let listener = match bind(path) {
        Err(Errno::ADDRINUSE) => {
            remove_stale(path, failed)?;
            bind(path)
        }
        done => done,
    };
    let listener = listener.map_err(|e| failed(e.into()))?.into();
    Ok(AdminSocket { listener, _file: SocketFile::new(path.to_owned()) })
}

fn bind(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // bind gives the file the mode of the socket less the umask (unix_bind_bsd in net/unix/af_unix.c), so that the
    // file is never open to others, and the umask, which all threads share, stays.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Removes a socket that nobody serves; refuses if somebody does, or if it is no socket.
fn remove_stale(path: &Path, failed: impl Fn(io::Error) -> Error) -> Result<(), Error> {
    match StdStream::connect(path) {
        Ok(peer) => {
            let pid = rustix::net::sockopt::socket_peercred(&peer).map(|c| c.pid.as_raw_nonzero().get());
            let pid = pid.map_or_else(|_| String::new(), |p| format!(" (pid {p})"));
            return Err(Error::State(format!(
                "a node{pid} already serves {}: end it, or give this one another [node] name or control_socket",
                path.display()
            )));
        }
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    }
    // A plain file refuses connections as well, but is not ours to delete.
    if !fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        return Err(failed(io::Error::from(io::ErrorKind::AlreadyExists)));
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(e)),
        _ => Ok(()),
    }
}

/// Answers requests with `handle` until the future is dropped; returns only if the socket cannot be served at all.
/// Nothing is spawned, so `handle` may borrow and need not be `Send`.
///
/// # Errors
/// [`Error::Io`] without a tokio runtime.
pub async fn serve<F: Future<Output = Response>>(
    socket: AdminSocket,
    handle: impl Fn(Request) -> F,
) -> Result<std::convert::Infallible, Error> {
    serve_within(socket, handle, CLIENT_LIMIT, ANSWER_LIMIT).await
}

async fn serve_within<F: Future<Output = Response>>(
    socket: AdminSocket,
    handle: impl Fn(Request) -> F,
    client_limit: Duration,
    answer_limit: Duration,
) -> Result<std::convert::Infallible, Error> {
    let AdminSocket { listener, _file } = socket;
    let listener = UnixListener::from_std(listener).map_err(|e| Error::io("serve the control socket", e))?;
    let mut connections = FuturesUnordered::new();
    let mut pause = false;
    loop {
        let place = connections.len() < MAX_CONNECTIONS;
        let accept = async {
            if std::mem::take(&mut pause) {
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            if place { Either::Left(listener.accept().await) } else { Either::Right(std::future::pending().await) }
        };
        tokio::select! {
            Some(done) = connections.next() => {
                if let Err::<(), io::Error>(e) = done {
                    tracing::debug!("control socket: {e}");
                }
            }
            accepted = accept => {
                let (Either::Left(accepted) | Either::Right(accepted)) = accepted;
                match accepted {
                    Ok((stream, _)) => connections.push(connection(stream, &handle, client_limit, answer_limit)),
                    Err(e) => {
                        tracing::warn!("cannot accept on the control socket: {e}");
                        pause = true;
                    }
                }
            }
        }
    }
}

async fn connection<F: Future<Output = Response>>(
    mut stream: UnixStream,
    handle: &impl Fn(Request) -> F,
    client_limit: Duration,
    answer_limit: Duration,
) -> io::Result<()> {
    let response = match timeout(client_limit, request(&mut stream)).await?? {
        None => return Ok(()),
        Some(Ok(request)) => match timeout(answer_limit, handle(request)).await {
            Ok(response) => response,
            Err(_) => Response::Error { message: format!("the node did not answer within {answer_limit:?}") },
        },
        Some(Err(message)) => Response::Error { message },
    };
    let mut line = serde_json::to_vec(&response)?;
    line.push(b'\n');
    timeout(client_limit, stream.write_all(&line)).await?
}

/// The request line; `None` if the client left.
async fn request(stream: &mut UnixStream) -> io::Result<Option<Result<Request, String>>> {
    let mut line = Vec::new();
    let mut chunk = [0; 1024];
    while !line.contains(&b'\n') {
        if line.len() > MAX_REQUEST {
            return Ok(Some(Err(format!("the request is longer than {MAX_REQUEST} bytes"))));
        }
        match stream.read(&mut chunk).await? {
            0 => return Ok(None),
            n => line.extend_from_slice(&chunk[..n]),
        }
    }
    let end = line.iter().position(|b| *b == b'\n').unwrap_or(line.len());
    Ok(Some(serde_json::from_slice(&line[..end]).map_err(|e| format!("the request is not understood: {e}"))))
}

#[cfg(test)]
mod tests {
    use super::super::client::ask;
    use super::*;
    use crate::admin::Status;
    use std::io::{Read, Write};

    fn mode(p: &Path) -> u32 {
        fs::metadata(p).expect("metadata").permissions().mode() & 0o777
    }

    async fn answer(request: Request) -> Response {
        match request {
            Request::Status => Response::Status(Box::new(Status { name: "vm1".to_owned(), ..Status::default() })),
            Request::AcceptPin { jid } | Request::ForgetPins { jid } => {
                Response::Error { message: format!("nobody is called {jid}") }
            }
            Request::Names => Response::Names(Box::default()),
            Request::Reload => std::future::pending().await,
            Request::Friends | Request::Befriend { .. } => Response::Friends { friends: Vec::new() },
        }
    }

    const LIMIT: Duration = Duration::from_millis(300);

    /// Serves `path` while `client` runs on another thread.
    fn serving<T: Send>(path: &Path, client: impl FnOnce() -> T + Send) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let socket = listen(path).expect("listen");
        std::thread::scope(|s| {
            let client = s.spawn(client);
            runtime.block_on(async {
                let finished = async {
                    while !client.is_finished() {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                tokio::select! {
                    _ = serve_within(socket, answer, LIMIT, 2 * LIMIT) => panic!("it serves for ever"),
                    () = finished => {}
                }
            });
            client.join().expect("client")
        })
    }

    fn raw(path: &Path, text: &[u8]) -> String {
        let mut stream = StdStream::connect(path).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
        // The node may have left already.
        let _ = stream.write_all(text);
        let mut got = String::new();
        let _ = stream.read_to_string(&mut got);
        got
    }

    #[test]
    fn requests_are_answered() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("run/vm1.sock");
        serving(&path, || {
            assert_eq!((mode(&dir.path().join("run")), mode(&path)), (0o755, 0o600));
            let Ok(Response::Status(status)) = ask(&path, &Request::Status) else { panic!("no status") };
            assert_eq!(status.name, "vm1");
            let refused = ask(&path, &Request::AcceptPin { jid: "a@b".to_owned() }).expect_err("refused");
            assert_eq!(refused.to_string(), "nobody is called a@b");
        });
        assert!(!path.exists(), "the file goes with the server");
    }

    #[test]
    fn nonsense_and_floods_are_refused() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("vm1.sock");
        serving(&path, || {
            for bad in [&b"\n"[..], b"{}\n", b"status\n", b"{\"request\":\"accept-pin\"}\n", b"\xff\n"] {
                assert!(raw(&path, bad).contains("not understood"), "{bad:?}: {}", raw(&path, bad));
            }
            assert!(raw(&path, &[b'['; MAX_REQUEST + 2000]).contains("longer than"));
            let deep = [vec![b'['; MAX_REQUEST - 100], b"\n".to_vec()].concat();
            assert!(raw(&path, &deep).contains("not understood"));
            // As many idle connections as places: they are left after a while, then a request gets through.
            let idle: Vec<_> = (0..MAX_CONNECTIONS).map(|_| StdStream::connect(&path).expect("connect")).collect();
            assert!(raw(&path, b"{\"request\":\"status\"}\n").contains("vm1"));
            drop(idle);
            // A request that is never answered is given up, and holds up no other.
            let slow =
                StdStream::connect(&path).and_then(|mut s| s.write_all(b"{\"request\":\"reload\"}\n").map(|()| s));
            assert!(raw(&path, b"{\"request\":\"status\"}\n").contains("vm1"));
            let mut got = String::new();
            slow.expect("sent").read_to_string(&mut got).expect("answer");
            assert!(got.contains("did not answer within 600ms"), "{got}");
        });
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_refused() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("vm1.sock");
        let live = listen(&path).expect("first");
        let refused = listen(&path).expect_err("live").to_string();
        assert!(refused.contains(&format!("(pid {})", std::process::id())), "{refused}");
        // What a killed process leaves.
        let stale = dir.path().join("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).expect("bind"));
        assert!(stale.exists());
        let replaced = listen(&stale).expect("stale");
        assert!(StdStream::connect(&stale).is_ok());
        drop((live, replaced));
        let file = dir.path().join("file.sock");
        fs::write(&file, "precious").expect("write");
        assert!(matches!(listen(&file), Err(Error::Io { .. })));
        assert_eq!(fs::read_to_string(&file).expect("kept"), "precious");
    }
}
