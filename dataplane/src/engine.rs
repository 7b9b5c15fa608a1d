//! The handle that others use: start, configure, read statistics, take and give STUN datagrams.

use crate::config::{Config, EbpfChoice, IoChoice, State, Update};
use crate::crypto::{Backend, Cipher};
use crate::io::{bpf, clock, event::Bell, mmsg::Mmsg, udp, uring::Uring};
use crate::keeper::{self, Core, SharedCore, SystemRng, UpdateError, lock};
use crate::path::Path;
use crate::shard::{Next, Shard, TunFormat};
use crate::shared::{Mailbox, Shared, SideDatagram, ToKeeper, ToShard};
use crate::stats::Stats;
use crate::time::Time;
use crate::tunnel::{PublicKey, Tunnel};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

pub use crate::io::tun::Tun;

/// More shards than this are refused: each is a thread with its own TUN queue, and the kernel's limit of
/// queues is 256.
pub const MAX_SHARDS: usize = 64;

/// What can go wrong at the engine's boundary.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The kernel refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// An update could not be applied.
    #[error(transparent)]
    Update(#[from] UpdateError),
}

impl EngineError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// The `errno` behind it, as the configuration protocol reports it.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Io { source, .. } | Self::Update(UpdateError::Socket { source, .. }) => {
                source.raw_os_error().unwrap_or(libc::EIO)
            }
            Self::Update(UpdateError::Tunnel(_)) => libc::ENOSPC,
        }
    }
}

/// What was probed and chosen at start.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// `io_uring` or `mmsg`.
    pub io: &'static str,
    /// Why it is not the other one, if that was wanted.
    pub io_note: Option<String>,
    /// Back end of ChaCha20-Poly1305.
    pub aead: &'static str,
    /// Peers are taken for willing to have AES-256-GCM ([`Config::aes`]).
    pub aes: bool,
    /// Number of shards.
    pub shards: usize,
    /// Whether shards are pinned to cores.
    pub pinned: bool,
    /// TUN reads and writes carry a virtio header.
    pub tun_vnet: bool,
    /// TCP super-packets on TUN.
    pub tun_tso: bool,
    /// UDP super-packets on TUN.
    pub tun_uso: bool,
    /// `UDP_SEGMENT`.
    pub udp_gso: bool,
    /// `UDP_GRO`.
    pub udp_gro: bool,
    /// Kernel programs steer and sieve datagrams at the sockets.
    pub ebpf: bool,
    /// What they do, or why there are none; `None`: they were not wanted.
    pub ebpf_note: Option<String>,
    /// Receive buffer of each socket in bytes, as granted.
    pub receive_buffer: usize,
    /// Send buffer of each socket in bytes, as granted.
    pub send_buffer: usize,
}

impl Capabilities {
    /// What kernel programs do here, or why there are none, in a few words.
    #[must_use]
    pub fn ebpf_text(&self) -> &str {
        self.ebpf_note.as_deref().unwrap_or("off")
    }
}

/// Why an engine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The TUN device was deleted.
    DeviceGone,
    /// A shard could not go on.
    Failed(String),
    /// [`Engine::shutdown`] was called.
    Shutdown,
}

/// A running engine. Clones are handles to the same one.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Engine({} shards)", self.0.shared.mailboxes.len())
    }
}

struct Inner {
    core: SharedCore,
    shared: Arc<Shared>,
    side: Receiver<SideDatagram>,
    wanted: Receiver<PublicKey>,
    keeper: Sender<ToKeeper>,
    capabilities: Mutex<Capabilities>,
    closed: Arc<(Mutex<Option<Closed>>, Condvar)>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    closing: AtomicBool,
}

/// What a shard's thread is started with.
struct Seat {
    number: usize,
    core: Option<usize>,
    tun: OwnedFd,
    socket: Arc<udp::Socket>,
    bell: Arc<Bell>,
    commands: Receiver<ToShard>,
    format: TunFormat,
    io: IoChoice,
}

impl Engine {
    /// Starts the threads on `tun`, without keys and peers.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn start(tun: Tun, config: Config) -> Result<Self, EngineError> {
        let count = tun.queues();
        let backend = config.aead.unwrap_or_else(Backend::detect);
        let options = udp::Options {
            port: 0,
            fwmark: 0,
            gro: config.udp_gro,
            receive_buffer: config.receive_buffer.unwrap_or(udp::RECEIVE_BUFFER),
        };
        let sockets = udp::Socket::open(count, options).map_err(EngineError::io("cannot open UDP sockets"))?;
        let (programs, ebpf_note) = programs(&config, &sockets)?;
        let mtu = tun.mtu().map_err(EngineError::io(format!("cannot read the MTU of {}", tun.name())))?;
        let format = TunFormat { vnet: tun.vnet, tso: tun.tso && config.tun_gso, uso: tun.uso && config.tun_gso };
        let mut capabilities = Capabilities {
            io: "mmsg",
            io_note: tun.queue_note().map(Into::into),
            aead: backend.name(),
            aes: config.aes,
            shards: count,
            pinned: config.pin.unwrap_or(false),
            tun_vnet: format.vnet,
            tun_tso: format.tso,
            tun_uso: format.uso,
            udp_gso: config.udp_gso,
            udp_gro: sockets.iter().all(|s| s.gro),
            ebpf: programs.is_some(),
            ebpf_note,
            receive_buffer: sockets[0].buffers().0,
            send_buffer: sockets[0].buffers().1,
        };

        let mut mailboxes = Vec::new();
        let mut boxes = Vec::new();
        for _ in 0..count {
            let bell = Arc::new(Bell::new().map_err(EngineError::io("cannot make an eventfd"))?);
            let (mailbox, commands) = Mailbox::new(bell.clone());
            mailboxes.push(mailbox);
            boxes.push((bell, commands));
        }
        let (shared, queues) = Shared::new(mailboxes, mtu);
        shared.udp_gso.store(config.udp_gso, Relaxed);
        shared.tun_gso.store(config.tun_gso, Relaxed);
        let shared = Arc::new(shared);
        let mut tunnel = Tunnel::new(backend, shared.sessions.clone(), Box::new(SystemRng));
        tunnel.set_aes(config.aes);
        if let Some(p) = &programs {
            shared.sessions.set_watch(p.watch());
        }
        let keeper_counters = shared.counters[count].clone();
        let mut core = Core::new(tunnel, sockets.clone(), options, shared.clone(), keeper_counters);
        core.set_programs(programs);
        let core = Arc::new(Mutex::new(core));
        let closed = Arc::new((Mutex::new(None), Condvar::new()));

        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut threads = Vec::new();
        let (ready_in, ready) = bounded(count);
        for (number, ((tun, socket), (bell, commands))) in
            tun.into_queues().into_iter().zip(sockets).zip(boxes).enumerate()
        {
            let core = capabilities.pinned.then_some(number % cores);
            let seat = Seat { number, core, tun, socket, bell, commands, format, io: config.io };
            let (shared, closed, ready) = (shared.clone(), closed.clone(), ready_in.clone());
            let body = move || sit(seat, &shared, &ready, &closed);
            let t = std::thread::Builder::new().name(format!("shard-{number}")).spawn(body);
            threads.push(t.map_err(EngineError::io("cannot start a thread"))?);
        }
        let (keeper_core, keeper_queue) = (core.clone(), queues.keeper);
        let t =
            std::thread::Builder::new().name("keeper".into()).spawn(move || keeper::run(&keeper_core, &keeper_queue));
        threads.push(t.map_err(EngineError::io("cannot start a thread"))?);

        let engine = Self(Arc::new(Inner {
            core,
            keeper: shared.keeper.clone(),
            shared,
            side: queues.side,
            wanted: queues.wanted,
            capabilities: Mutex::new(capabilities.clone()),
            closed,
            threads: Mutex::new(threads),
            closing: AtomicBool::new(false),
        }));
        for _ in 0..count {
            match ready.recv() {
                Ok(Ok((io, note))) => {
                    capabilities.io = io;
                    capabilities.io_note = note.or(capabilities.io_note);
                }
                failed => {
                    engine.shutdown();
                    let source =
                        failed.ok().and_then(Result::err).unwrap_or_else(|| io::Error::other("the thread ended"));
                    return Err(EngineError::Io { what: "cannot start a shard".into(), source });
                }
            }
        }
        *engine.0.capabilities.lock().unwrap_or_else(PoisonError::into_inner) = capabilities;
        Ok(engine)
    }

    /// Number of shards for a machine like this: one a core.
    #[must_use]
    pub fn default_shards() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from).min(MAX_SHARDS)
    }

    /// Changes the configuration.
    ///
    /// # Errors
    /// The port is taken, or there are too many peers; what was applied before stays.
    pub fn configure(&self, update: Update) -> Result<(), EngineError> {
        Ok(lock(&self.0.core).configure(update, clock::now(), clock::wall())?)
    }

    /// The interface as it is.
    #[must_use]
    pub fn state(&self) -> State {
        lock(&self.0.core).state()
    }

    /// How many peers have a session with each cipher.
    #[must_use]
    pub fn sessions(&self) -> [(Cipher, usize); 2] {
        lock(&self.0.core).sessions(clock::now())
    }

    /// All counters, summed over shards and keeper, and those of kernel programs.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::sum(self.0.shared.counters.iter().map(|c| &**c));
        stats.kernel_drops = lock(&self.0.core).kernel_drops();
        stats
    }

    /// The MTU of the interface changed.
    pub fn set_mtu(&self, mtu: u16) {
        self.0.shared.mtu.store(mtu, Relaxed);
    }

    /// The interface went up or down.
    pub fn set_link_up(&self, up: bool) {
        lock(&self.0.core).set_link_up(up, clock::now(), clock::wall());
    }

    /// Sends a peer's datagrams over `path` from now on (until it is heard from elsewhere); false if there
    /// is no such peer.
    pub fn set_path(&self, peer: &PublicKey, path: Path) -> bool {
        lock(&self.0.core).set_path(peer, path)
    }

    /// Starts a handshake with a peer now, over its path; false if there is no such peer.
    pub fn handshake(&self, peer: &PublicKey) -> bool {
        lock(&self.0.core).handshake(peer, clock::now(), clock::wall())
    }

    /// Peers that packets wait for and that have no path, each once until it got one
    /// ([`PeerUpdate::on_demand`](crate::PeerUpdate::on_demand)).
    #[must_use]
    pub fn wanted(&self) -> Receiver<PublicKey> {
        self.0.wanted.clone()
    }

    /// The clock that [`PeerState`](crate::PeerState)'s times are of.
    #[must_use]
    pub fn now() -> Time {
        clock::now()
    }

    /// The TURN servers whose ChannelData is taken.
    pub fn set_relays(&self, servers: Vec<SocketAddr>) {
        lock(&self.0.core).set_relays(servers.into_iter().map(crate::path::canonical).collect());
    }

    /// STUN and ChannelData datagrams that came in on the tunnel's port. Bounded: what nobody takes in time
    /// is dropped and counted.
    #[must_use]
    pub fn side_datagrams(&self) -> Receiver<SideDatagram> {
        self.0.side.clone()
    }

    /// Sends one datagram from the tunnel's port.
    ///
    /// # Errors
    /// What the socket says; `WouldBlock` if its buffer is full.
    pub fn send_raw(&self, path: Path, bytes: &[u8]) -> io::Result<()> {
        lock(&self.0.core).send_raw(path, bytes).map(drop)
    }

    /// What was probed and chosen, with offloads that were switched off since.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        let mut c = self.0.capabilities.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if c.ebpf && !lock(&self.0.core).has_programs() {
            (c.ebpf, c.ebpf_note) = (false, Some("given up after an error, which the log has".into()));
        }
        c.udp_gso &= self.0.shared.udp_gso.load(Relaxed);
        c.tun_tso &= self.0.shared.tun_gso.load(Relaxed);
        c.tun_uso &= self.0.shared.tun_gso.load(Relaxed);
        c
    }

    /// Waits until the engine has ended, at most `timeout`.
    #[must_use]
    pub fn wait_closed(&self, timeout: Duration) -> Option<Closed> {
        let (closed, changed) = &*self.0.closed;
        let guard = closed.lock().unwrap_or_else(PoisonError::into_inner);
        let (guard, _) =
            changed.wait_timeout_while(guard, timeout, |c| c.is_none()).unwrap_or_else(PoisonError::into_inner);
        guard.clone()
    }

    /// Stops and joins all threads and closes all descriptors. The second call does nothing.
    pub fn shutdown(&self) {
        if self.0.closing.swap(true, Relaxed) {
            return;
        }
        close(&self.0.closed, Closed::Shutdown);
        for m in &self.0.shared.mailboxes {
            m.post_surely(ToShard::Stop);
        }
        let _ = self.0.keeper.send_timeout(ToKeeper::Stop, Duration::from_secs(1));
        let threads = std::mem::take(&mut *self.0.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for t in threads {
            let _ = t.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for m in &self.shared.mailboxes {
            m.post(ToShard::Stop);
        }
        let _ = self.keeper.try_send(ToKeeper::Stop);
    }
}

/// Kernel programs at `sockets`, or why there are none.
fn programs(
    config: &Config,
    sockets: &[Arc<udp::Socket>],
) -> Result<(Option<bpf::Programs>, Option<String>), EngineError> {
    let choice = config.ebpf;
    if choice == EbpfChoice::Off {
        return Ok((None, config.xdp.as_ref().map(|_| "off, and the guard with them".into())));
    }
    let load = |guarded| bpf::Programs::load(sockets.len(), guarded).and_then(|mut p| p.attach(sockets).map(|()| p));
    let tried = load(config.xdp.is_some()).map(|mut p| match config.xdp.as_ref().map(|x| p.guard(x)) {
        // A tunnel without a guard is one: whoever starts it at boot wants it.
        Some(Err(e)) => {
            let text = format!("{}; {e}", p.text());
            (p, text)
        }
        _ => {
            let text = p.text();
            (p, text)
        }
    });
    match tried {
        Ok((p, text)) => Ok((Some(p), Some(text))),
        Err(e) if choice == EbpfChoice::On => {
            let source = io::Error::other(format!("{e}: take --ebpf auto; `ipop-fast doctor` says more"));
            Err(EngineError::Io { what: "kernel programs cannot be used here".into(), source })
        }
        Err(e) => Ok((None, Some(e.to_string()))),
    }
}

fn close(closed: &(Mutex<Option<Closed>>, Condvar), why: Closed) {
    let mut c = closed.0.lock().unwrap_or_else(PoisonError::into_inner);
    c.get_or_insert(why);
    closed.1.notify_all();
}

type Ready = Sender<Result<(&'static str, Option<String>), io::Error>>;

/// The body of a shard's thread. The driver is made here: io_uring wants one thread for all its calls.
fn sit(seat: Seat, shared: &Arc<Shared>, ready: &Ready, closed: &(Mutex<Option<Closed>>, Condvar)) {
    if let Some(core) = seat.core {
        crate::io::thread::pin(core);
    }
    let Seat { number, tun, socket, bell, commands, format, io, .. } = seat;
    let (tun, note) = match io {
        IoChoice::Mmsg => (tun, None),
        IoChoice::Auto | IoChoice::Uring => match Uring::new(tun, socket.clone(), bell.clone()) {
            Ok(driver) => {
                let _ = ready.send(Ok(("io_uring", None)));
                return drive(Shard::new(number, driver, shared.clone(), commands, format), closed);
            }
            Err((e, _)) if io == IoChoice::Uring => {
                let text = format!("io_uring cannot be used here ({e}): take --io auto; `ipop-fast doctor` says more");
                let _ = ready.send(Err(io::Error::new(e.kind(), text)));
                return;
            }
            Err((e, tun)) => (tun, Some(format!("io_uring cannot be used here ({e})"))),
        },
    };
    match Mmsg::new(tun, socket, bell) {
        Ok(driver) => {
            let _ = ready.send(Ok(("mmsg", note)));
            drive(Shard::new(number, driver, shared.clone(), commands, format), closed);
        }
        Err(e) => {
            let _ = ready.send(Err(e));
        }
    }
}

fn drive<D: crate::io::Driver>(mut shard: Shard<D>, closed: &(Mutex<Option<Closed>>, Condvar)) {
    loop {
        match shard.turn(None, clock::now) {
            Ok(Next::Go) => {}
            Ok(Next::Stop) => return,
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return close(closed, Closed::DeviceGone),
            Err(e) => return close(closed, Closed::Failed(e.to_string())),
        }
    }
}
