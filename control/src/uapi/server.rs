//! Serves the configuration socket.

use super::{Decoder, Error, Request, errno, write_state};
use dataplane::{Engine, State, Update};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use zeroize::{Zeroize, Zeroizing};

/// Connections served at once; a further one waits in the kernel's backlog.
pub const MAX_CONNECTIONS: usize = 16;
/// A connection that sends nothing for so long, or does not take its answer, is closed: it holds one of the places.
pub const IDLE: Duration = Duration::from_secs(30);
const CHUNK: usize = 16 << 10;
/// Between attempts to accept when file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the protocol configures. All methods may block for a short while.
pub trait Device: Clone + Send + Sync + 'static {
    /// Applies a change as a whole.
    ///
    /// # Errors
    /// The errno to answer with.
    fn configure(&self, update: Update) -> Result<(), Error>;
    /// The state to report.
    fn state(&self) -> State;
    /// One line of JSON for `stats=1`.
    fn stats_json(&self) -> String;
}

/// An engine under the name of its interface.
#[derive(Clone, Debug)]
pub struct Served {
    /// The interface.
    pub name: Arc<str>,
    /// Its engine.
    pub engine: Engine,
}

impl Device for Served {
    fn configure(&self, update: Update) -> Result<(), Error> {
        self.engine.configure(update).map_err(|e| Error::new(e.errno().saturating_abs().max(1), e.to_string()))
    }

    fn state(&self) -> State {
        self.engine.state()
    }

    fn stats_json(&self) -> String {
        crate::stats::to_json(&self.name, &self.engine.capabilities(), &self.engine.stats(), self.engine.sessions())
    }
}

/// Accepts and serves connections until the future is dropped.
pub async fn serve<D: Device>(listener: UnixListener, device: D) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let place = Arc::clone(&places).acquire_owned().await.ok();
        match listener.accept().await {
            Ok((stream, _)) => {
                let device = device.clone();
                tokio::spawn(async move {
                    if let Err(e) = connection(stream, device).await {
                        tracing::debug!("configuration socket: {e}");
                    }
                    drop(place);
                });
            }
            Err(e) => {
                tracing::warn!("cannot accept on the configuration socket: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection<D: Device>(mut stream: UnixStream, device: D) -> std::io::Result<()> {
    let mut decoder = Decoder::new(scope_of);
    let mut chunk = Zeroizing::new(vec![0; CHUNK]);
    loop {
        let n = timeout(IDLE, stream.read(&mut chunk)).await??;
        if n == 0 {
            return Ok(());
        }
        let mut input = &chunk[..n];
        loop {
            let request = match decoder.advance(&mut input) {
                Ok(Some(r)) => r,
                Ok(None) => break,
                Err(fatal) => {
                    tracing::error!("configuration socket: {fatal}");
                    let answer = format!("errno={}\n\n", -fatal.errno());
                    return timeout(IDLE, stream.write_all(answer.as_bytes())).await?;
                }
            };
            let device = device.clone();
            // The engine takes locks: not on the thread that also handles signals.
            let answer = tokio::task::spawn_blocking(move || answer(&device, request)).await?;
            timeout(IDLE, stream.write_all(answer.as_bytes())).await??;
        }
        chunk[..n].zeroize();
    }
}

fn answer<D: Device>(device: &D, request: Request) -> Zeroizing<String> {
    let (body, result) = match request {
        Request::Stats => return Zeroizing::new(device.stats_json() + "\n\n"),
        Request::Get(Ok(())) => (write_state(&device.state()), Ok(())),
        Request::Get(Err(e)) => (Zeroizing::default(), Err(e)),
        Request::Set(update) => (Zeroizing::default(), update.and_then(|u| device.configure(u))),
    };
    finish(body, result)
}

fn finish(mut body: Zeroizing<String>, result: Result<(), Error>) -> Zeroizing<String> {
    let errno = match result {
        Ok(()) => 0,
        Err(e) => {
            tracing::error!("configuration refused: {e}");
            // `wg` negates what it reads, and shows the text of the result.
            -e.errno
        }
    };
    body.push_str(&format!("errno={errno}\n\n"));
    body
}

impl super::Fatal {
    /// The positive errno to answer with before closing.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::UnknownOperation => errno::EINVAL,
            Self::TooLong => errno::EMSGSIZE,
        }
    }
}

/// The index of the interface `name` in this network namespace.
#[must_use]
pub fn scope_of(name: &str) -> Option<u32> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice::name_to_index, socket_with};
    let any = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok()?;
    name_to_index(any, name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<Vec<Update>>>);

    impl Device for Fake {
        fn configure(&self, update: Update) -> Result<(), Error> {
            if update.listen_port == Some(53) {
                return Err(Error::new(98, "listen port 53 is in use"));
            }
            self.0.lock().expect("lock").push(update);
            Ok(())
        }

        fn state(&self) -> State {
            State { private_key: None, listen_port: 7, fwmark: 0, peers: Vec::new() }
        }

        fn stats_json(&self) -> String {
            "{}".to_owned()
        }
    }

    /// What comes back when `pieces` are sent one after the other and the connection is shut down.
    fn talk(pieces: &[&[u8]]) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let (mut here, there) = UnixStream::pair().expect("pair");
            let served = tokio::spawn(connection(there, Fake::default()));
            for piece in pieces {
                let _ = here.write_all(piece).await;
                tokio::task::yield_now().await;
            }
            let _ = here.shutdown().await;
            let mut out = String::new();
            timeout(Duration::from_secs(10), here.read_to_string(&mut out)).await.expect("in time").expect("read");
            let _ = served.await.expect("no panic");
            out
        })
    }

    #[test]
    fn several_requests_on_one_connection_are_answered_in_order() {
        let out = talk(&[b"get=1\n\nset=1\nlisten_po", b"rt=53\n\nset=1\nlisten_port=5\n\n", b"stats=1\n\nget=1\n\n"]);
        assert_eq!(out, "listen_port=7\nerrno=0\n\nerrno=-98\n\nerrno=0\n\n{}\n\nlisten_port=7\nerrno=0\n\n");
    }

    #[test]
    fn an_unknown_operation_ends_the_connection() {
        assert_eq!(talk(&[b"get=2\n\nget=1\n\n"]), "errno=-22\n\n");
        assert_eq!(talk(&[b"set=1\nlisten_port=x\n\nget=1\n\n"]), "errno=-22\n\nlisten_port=7\nerrno=0\n\n");
    }

    #[test]
    fn an_unfinished_request_changes_nothing() {
        assert_eq!(talk(&[b"set=1\nlisten_port=5\n"]), "");
    }
}
