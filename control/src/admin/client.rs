//! A person's side of the control socket: blocking, with a deadline.

use super::{MAX_RESPONSE, Request, Response};
use crate::Error;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A node has to answer within this time: a little more than it takes itself ([`super::server::ANSWER_LIMIT`]).
const LIMIT: Duration = Duration::from_secs(12);

/// Asks the node behind `socket`.
///
/// # Errors
/// [`Error::Client`] if nobody answers, and with the node's own words if it refuses.
pub fn ask(socket: &Path, request: &Request) -> Result<Response, Error> {
    let answer = exchange(socket, request).map_err(|e| {
        let shown = socket.display();
        Error::Client(match e.kind() {
            io::ErrorKind::NotFound => format!("no such node runs: there is no {shown}"),
            io::ErrorKind::ConnectionRefused => format!("no node runs behind {shown}: its process was killed"),
            io::ErrorKind::PermissionDenied => format!("{shown} may be used by root only"),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!("the node behind {shown} does not answer within {} s", LIMIT.as_secs())
            }
            _ => format!("the node behind {shown} does not answer: {e}"),
        })
    })?;
    match serde_json::from_slice(&answer) {
        Ok(Response::Error { message }) => Err(Error::Client(message)),
        Ok(response) => Ok(response),
        Err(e) => Err(Error::Client(format!(
            "the answer of the node behind {} is not understood: {e}. Is it of another version than this program?",
            socket.display()
        ))),
    }
}

fn exchange(socket: &Path, request: &Request) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + LIMIT;
    let mut stream = connect(socket)?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let (mut answer, mut chunk) = (Vec::new(), [0; 16 << 10]);
    while answer.last() != Some(&b'\n') {
        if answer.len() > MAX_RESPONSE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer has no end"));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk)? {
            0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up")),
            n => answer.extend_from_slice(&chunk[..n]),
        }
    }
    Ok(answer)
}

/// A blocking connect to a node that accepts nothing would never return once its backlog is full.
fn connect(socket: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&fd, &SocketAddrUnix::new(socket)?) {
        Err(Errno::AGAIN) => Err(io::Error::new(io::ErrorKind::WouldBlock, "it has too many other clients")),
        done => {
            done?;
            let stream = UnixStream::from(fd);
            stream.set_nonblocking(false)?;
            Ok(stream)
        }
    }
}

/// The control sockets in `directory`, by name.
#[must_use]
pub fn sockets(directory: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(directory).into_iter().flatten().filter_map(|f| Some(f.ok()?.path()));
    let mut sockets: Vec<PathBuf> = files.filter(|p| p.extension().is_some_and(|e| e == "sock")).collect();
    sockets.sort();
    sockets
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn told(socket: &Path) -> String {
        ask(socket, &Request::Status).expect_err("nobody answers").to_string()
    }

    #[test]
    fn nodes_that_do_not_answer_are_told() {
        let dir = tempfile::tempdir().expect("directory");
        assert!(told(&dir.path().join("none.sock")).contains("no such node runs"));
        let dead = dir.path().join("dead.sock");
        drop(UnixListener::bind(&dead).expect("bind"));
        assert!(told(&dead).contains("was killed"));
        for (answer, words) in [(&b""[..], "hung up"), (b"{}\n", "not understood"), (b"hello\n", "not understood")] {
            let path = dir.path().join("odd.sock");
            let listener = UnixListener::bind(&path).expect("bind");
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().expect("accept");
                let mut request = [0; 100];
                let n = stream.read(&mut request).expect("request");
                stream.write_all(answer).expect("answer");
                request[..n].to_vec()
            });
            assert!(told(&path).contains(words), "{words}: {}", told(&path));
            assert_eq!(server.join().expect("server"), b"{\"request\":\"status\"}\n");
            std::fs::remove_file(path).expect("remove");
        }
        assert_eq!(sockets(dir.path()), [dead]);
        assert!(sockets(Path::new("/nonexistent")).is_empty());
    }
}
