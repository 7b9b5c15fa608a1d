//! The sockets: UDP and TCP on port 53 of every overlay address of this node.

use super::answer::{Asker, MAX_QUERY, Transport, answer};
use super::resolved::{self, Link};
use super::table::Table;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

/// Where resolvers expect a server.
pub const PORT: u16 = 53;
/// Between attempts to get a port that another process has, or to use an address that is not there yet.
const RETRY: Duration = Duration::from_secs(5);
/// Connections on one address at once; a further one waits in the kernel's backlog.
pub(super) const MAX_CONNECTIONS: usize = 16;
/// A connection that says nothing for so long is closed. Resolvers keep none open for names that they asked for.
const IDLE: Duration = Duration::from_secs(5);
/// A connection ends after so long, whatever it does.
const LIFETIME: Duration = Duration::from_secs(30);
/// Queries on one connection.
const MAX_QUERIES: usize = 128;
/// Between attempts to accept when file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is answered, and to whom.
#[derive(Clone, Debug)]
pub struct View {
    /// The names.
    pub table: Arc<Table>,
    /// Addresses of this machine: who asks from one of them, or over loopback, is answered.
    pub own: HashSet<IpAddr>,
}

/// One of our interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Our addresses on it.
    pub addresses: Vec<IpAddr>,
    /// Names of the zones of its subnets' addresses.
    pub zones: Vec<String>,
}

/// How it is with one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Sockets are being made.
    Starting,
    /// Queries are answered.
    Answering,
    /// They are not. Why, for people.
    Failed(String),
}

type States = Arc<watch::Sender<BTreeMap<IpAddr, State>>>;

/// What the tasks share.
#[derive(Clone, Debug)]
struct Shared {
    view: watch::Receiver<Arc<View>>,
    states: States,
    refused: Arc<AtomicU64>,
    port: u16,
    retry: Duration,
}

/// The server. Ends when it is dropped.
#[derive(Debug)]
pub struct Service {
    view: watch::Sender<Arc<View>>,
    interfaces: watch::Sender<Vec<Interface>>,
    listeners: BTreeMap<IpAddr, AbortHandle>,
    shared: Shared,
    resolved: watch::Receiver<resolved::State>,
    resolved_task: AbortHandle,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.resolved_task.abort();
        for task in self.listeners.values() {
            task.abort();
        }
    }
}

impl Service {
    /// Starts one that answers `view` on no address yet. Needs a tokio runtime.
    #[must_use]
    pub fn start(view: View) -> Self {
        Self::start_at(view, PORT, RETRY, resolved::Place::of_system())
    }

    pub(super) fn start_at(view: View, port: u16, retry: Duration, place: resolved::Place) -> Self {
        let (view, seen) = watch::channel(Arc::new(view));
        let (interfaces, all) = watch::channel(Vec::new());
        let (states, changes) = watch::channel(BTreeMap::new());
        let (told, resolved) = watch::channel(resolved::State::Absent);
        let task = tokio::spawn(tell_resolved(place, all, changes, told));
        let states = Arc::new(states);
        let shared = Shared { view: seen, states, refused: Arc::default(), port, retry };
        let listeners = BTreeMap::new();
        Self { view, interfaces, listeners, shared, resolved, resolved_task: task.abort_handle() }
    }

    /// Answers this from now on.
    pub fn set_view(&self, view: View) {
        self.view.send_replace(Arc::new(view));
    }

    /// Answers on these interfaces' addresses, and on no others.
    pub fn set_interfaces(&mut self, interfaces: Vec<Interface>) {
        let wanted: HashSet<IpAddr> = interfaces.iter().flat_map(|i| i.addresses.iter().copied()).collect();
        self.listeners.retain(|a, task| {
            let keep = wanted.contains(a);
            if !keep {
                task.abort();
            }
            keep
        });
        self.shared.states.send_if_modified(|s| {
            let before = s.len();
            s.retain(|a, _| wanted.contains(a));
            s.len() != before
        });
        for a in wanted {
            let shared = &self.shared;
            self.listeners.entry(a).or_insert_with(|| tokio::spawn(keep(a, shared.clone())).abort_handle());
        }
        self.interfaces.send_if_modified(|old| {
            let new = *old != interfaces;
            *old = interfaces;
            new
        });
    }

    /// How it is with each address.
    #[must_use]
    pub fn states(&self) -> BTreeMap<IpAddr, State> {
        self.shared.states.borrow().clone()
    }

    /// Whether systemd-resolved knows of it.
    #[must_use]
    pub fn resolved(&self) -> resolved::State {
        self.resolved.borrow().clone()
    }

    /// Queries and connections of others that were refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// Notes a state; true if it is another one than before.
    fn note(&self, address: IpAddr, state: State) -> bool {
        self.states.send_if_modified(|all| all.insert(address, state.clone()) != Some(state))
    }

    fn is_own(&self, from: IpAddr) -> bool {
        from.is_loopback() || self.view.borrow().own.contains(&from)
    }

    fn answer(&self, query: &[u8], from: IpAddr, transport: Transport) -> Option<Vec<u8>> {
        let asker = Asker { own: self.is_own(from), transport };
        if !asker.own {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        let view = self.view.borrow().clone();
        answer(query, asker, &view.table)
    }
}

/// Answers on one address for ever.
async fn keep(address: IpAddr, shared: Shared) {
    shared.note(address, State::Starting);
    let at = SocketAddr::new(address, shared.port);
    loop {
        let served = async {
            let udp = UdpSocket::bind(at).await?;
            let tcp = TcpListener::bind(at).await?;
            if shared.note(address, State::Answering) {
                tracing::info!("names are answered on {at}");
            }
            tokio::select! {
                failed = datagrams(&udp, &shared) => failed,
                () = connections(&tcp, &shared) => Ok(()),
            }
        };
        if let Err(e) = served.await {
            let why = explain(at, &e);
            if shared.note(address, State::Failed(why.clone())) {
                tracing::warn!("{why}; it is tried again");
            }
        }
        sleep(shared.retry).await;
    }
}

/// Why there is no server, and what to do.
fn explain(at: SocketAddr, e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::AddrInUse => format!(
            "names are not answered on {at}: another process has that port (ss -lnup 'sport = {}' tells which). Let it \
             listen on other addresses only, or say enabled = false below [names]",
            at.port()
        ),
        io::ErrorKind::PermissionDenied => {
            format!("names are not answered on {at}: ports under 1024 need CAP_NET_BIND_SERVICE")
        }
        _ => format!("names are not answered on {at}: {e}"),
    }
}

async fn datagrams(socket: &UdpSocket, shared: &Shared) -> io::Result<()> {
    // One byte more: what is too long is no valid query when it is cut.
    let mut buffer = vec![0; MAX_QUERY + 1];
    loop {
        let (n, from) = socket.recv_from(&mut buffer).await?;
        if let Some(reply) = shared.answer(&buffer[..n], from.ip(), Transport::Udp)
            && let Err(e) = socket.send_to(&reply, from).await
        {
            tracing::debug!("an answer to {from}: {e}");
        }
    }
}

async fn connections(listener: &TcpListener, shared: &Shared) {
    // Ends them when it is dropped itself.
    let mut running = JoinSet::new();
    loop {
        while running.try_join_next().is_some() {}
        if running.len() >= MAX_CONNECTIONS {
            running.join_next().await;
            continue;
        }
        match listener.accept().await {
            Ok((_, from)) if !shared.is_own(from.ip()) => {
                shared.refused.fetch_add(1, Ordering::Relaxed);
            }
            Ok((stream, from)) => {
                let shared = shared.clone();
                running.spawn(async move {
                    let served = timeout(LIFETIME, connection(stream, from.ip(), &shared)).await;
                    if let Ok(Err(e)) = served {
                        tracing::debug!("a connection from {from}: {e}");
                    }
                });
            }
            Err(e) => {
                tracing::debug!("cannot accept: {e}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Messages with their length in two bytes before them (RFC 1035, section 4.2.2), one after the other (RFC 7766).
async fn connection(mut stream: TcpStream, from: IpAddr, shared: &Shared) -> io::Result<()> {
    let mut query = Vec::new();
    for _ in 0..MAX_QUERIES {
        let len = match timeout(IDLE, stream.read_u16()).await {
            Ok(Ok(len)) => usize::from(len),
            // It has said all that it wanted to say.
            Ok(Err(_)) | Err(_) => return Ok(()),
        };
        if len > MAX_QUERY {
            return Ok(());
        }
        query.resize(len, 0);
        timeout(IDLE, stream.read_exact(&mut query)).await??;
        let Some(reply) = shared.answer(&query, from, Transport::Tcp) else { return Ok(()) };
        let Ok(len) = u16::try_from(reply.len()) else { return Ok(()) };
        let mut message = len.to_be_bytes().to_vec();
        message.extend_from_slice(&reply);
        timeout(IDLE, stream.write_all(&message)).await??;
    }
    Ok(())
}

/// Keeps systemd-resolved informed of the addresses that answer.
async fn tell_resolved(
    place: resolved::Place,
    mut interfaces: watch::Receiver<Vec<Interface>>,
    mut states: watch::Receiver<BTreeMap<IpAddr, State>>,
    told: watch::Sender<resolved::State>,
) {
    let mut known: BTreeMap<String, Link> = BTreeMap::new();
    loop {
        let wanted = links(&interfaces.borrow_and_update(), &states.borrow_and_update());
        let state = resolved::bring(&place, &mut known, &wanted).await;
        told.send_if_modified(|old| {
            let new = *old != state;
            if let (true, resolved::State::Failed(why)) = (new, &state) {
                tracing::warn!("systemd-resolved does not take our names: {why}");
            }
            *old = state.clone();
            new
        });
        let again = async {
            if state == resolved::State::Told { std::future::pending().await } else { sleep(resolved::AGAIN).await }
        };
        tokio::select! {
            changed = interfaces.changed() => if changed.is_err() { return },
            changed = states.changed() => if changed.is_err() { return },
            () = again => {}
        }
    }
}

/// What systemd-resolved is to know.
fn links(interfaces: &[Interface], states: &BTreeMap<IpAddr, State>) -> BTreeMap<String, Link> {
    let answers = |a: &&IpAddr| states.get(*a) == Some(&State::Answering);
    let mut links = BTreeMap::new();
    for i in interfaces {
        let servers: Vec<IpAddr> = i.addresses.iter().filter(answers).copied().collect();
        if !servers.is_empty() {
            links.insert(i.name.clone(), Link { servers, zones: i.zones.clone() });
        }
    }
    links
}
