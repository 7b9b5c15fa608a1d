//! The ICE side of a running node: handles, one task for time, the port.

use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dataplane::table::Prefix;
use dataplane::{Path, SideDatagram};
use tokio::runtime::Handle as Runtime;
use tokio::sync::{Notify, broadcast, mpsc, oneshot};
use zeroize::Zeroizing;

use super::agent::Agent;
use super::candidate::Credentials;
use super::core::{Core, Drops};
use super::finder::{Finder, Role};
use super::stun::random;
use super::types::{Failed, IceEvent, Port, ProbeError, ServerState, TurnServer};
use super::wire::AgentWire;

/// Events kept for a slow listener: signs of life of a thousand links, and what is important among them.
const EVENTS: usize = 2048;
/// A datagram that only causes others may not do so for ever.
const MAX_FLUSHES: usize = 4;

/// What can be chosen at start.
#[derive(Clone, Copy, Debug, Default)]
pub struct IceOptions {
    /// Ask TURN servers to relay to private addresses, too. Some close the whole allocation when asked.
    pub relay_private: bool,
}

/// A handle. Everything ends when the last one is dropped.
#[derive(Clone)]
pub struct IceNode(Arc<Handle>);

impl fmt::Debug for IceNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IceNode(port {})", self.0.shared.port.local_port())
    }
}

struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

pub(super) struct Shared {
    core: Mutex<Core>,
    port: Arc<dyn Port>,
    runtime: Runtime,
    wake: Notify,
    events: broadcast::Sender<IceEvent>,
    stopped: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something, then does what follows from it.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut Core, Instant) -> R) -> R {
        let mut core = self.lock();
        let now = Instant::now();
        let r = f(&mut core, now);
        core.poll(now);
        self.flush(core, true);
        r
    }

    /// Only sends something: nothing follows from that, nor is anything due sooner.
    pub(super) fn send<R>(&self, f: impl FnOnce(&mut Core, Instant) -> R) -> R {
        let mut core = self.lock();
        let r = f(&mut core, Instant::now());
        self.flush(core, false);
        r
    }

    /// Sends what is to be sent. The lock is not held meanwhile: the port has its own.
    fn flush<'a>(&'a self, mut core: MutexGuard<'a, Core>, mut changed: bool) {
        for _ in 0..MAX_FLUSHES {
            let (transmits, events) = (core.take_transmits(), core.take_events());
            let sooner = changed
                && match (core.next(), core.wakes_at) {
                    (Some(next), Some(at)) => next < at,
                    (next, None) => next.is_some(),
                    (None, _) => false,
                };
            drop(core);
            if sooner {
                self.wake.notify_one();
            }
            for e in events {
                // Fails if nobody listens.
                let _ = self.events.send(e);
            }
            let unreachable: Vec<SocketAddr> = transmits
                .into_iter()
                .filter_map(|t| match self.port.send(t.path, &t.bytes) {
                    Err(e) if is_hopeless(e.kind()) => Some(t.path.address()),
                    Err(e) => {
                        tracing::debug!(path = %t.path, "not sent: {e}");
                        None
                    }
                    Ok(()) => None,
                })
                .collect();
            if unreachable.is_empty() {
                return;
            }
            core = self.lock();
            let now = Instant::now();
            for a in unreachable {
                core.unreachable(a, now);
            }
            core.poll(now);
            changed = true;
        }
    }

    fn stop(&self) {
        if !self.stopped.swap(true, Ordering::AcqRel) {
            self.with(|core, now| core.close(now));
            self.wake.notify_one();
        }
    }
}

/// Errors that say something about the address, not about the moment.
fn is_hopeless(kind: ErrorKind) -> bool {
    use ErrorKind::{AddrNotAvailable, HostUnreachable, InvalidInput, NetworkUnreachable};
    matches!(kind, NetworkUnreachable | HostUnreachable | AddrNotAvailable | InvalidInput)
}

/// Starts the ICE side of a node over `port`, on the current tokio runtime.
#[must_use]
pub fn start(port: Arc<dyn Port>, options: IceOptions) -> IceNode {
    let core = Mutex::new(Core::new(port.local_port(), options.relay_private));
    let shared = Arc::new(Shared {
        core,
        port,
        runtime: Runtime::current(),
        wake: Notify::new(),
        events: broadcast::Sender::new(EVENTS),
        stopped: AtomicBool::new(false),
    });
    tokio::spawn(keep_time(shared.clone()));
    IceNode(Arc::new(Handle { shared }))
}

/// The one task: sleeps until something is due.
async fn keep_time(shared: Arc<Shared>) {
    while !shared.stopped.load(Ordering::Acquire) {
        let next = {
            let mut core = shared.lock();
            core.wakes_at = core.next();
            core.wakes_at
        };
        let sleep = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep => shared.with(|_, _| ()),
            () = shared.wake.notified() => {}
        }
    }
}

impl IceNode {
    /// Takes one datagram that came in on the port and is not the tunnel's. Handled at once, on the caller's thread: a
    /// few microseconds, no queue.
    pub fn receive(&self, d: &SideDatagram) {
        let shared = &self.0.shared;
        let mut core = shared.lock();
        let now = Instant::now();
        let changed = core.receive(d.from, &d.bytes, now);
        if changed {
            core.poll(now);
        }
        shared.flush(core, changed);
    }

    /// The servers from now on, at most eight of a kind. Those that were there before keep their allocation; renewed
    /// credentials are used for the next one.
    pub fn set_servers(&self, stun: Vec<SocketAddr>, turn: Vec<TurnServer>) {
        let relays = self.0.shared.with(|core, now| {
            core.set_servers(stun, turn, now);
            core.relays()
        });
        self.0.shared.port.set_relays(relays);
    }

    /// The addresses of this machine that peers may know. Changed ones have the servers asked again.
    pub fn set_host_addresses(&self, addresses: Vec<IpAddr>) {
        self.0.shared.with(|core, now| core.set_hosts(addresses, now));
    }

    /// Prefixes that are reached through the tunnel itself, all of them, whenever they change: the subnet, members'
    /// addresses and accepted routes. A peer's candidates in there are refused, and so are checks and probes that come from
    /// there: they came through the tunnel, and the path they tell of would lead through itself. At most 4096.
    pub fn set_overlay(&self, prefixes: Vec<Prefix>) {
        self.0.shared.with(|core, now| core.set_overlay(prefixes, now));
    }

    /// All servers as they are now.
    #[must_use]
    pub fn servers(&self) -> Vec<ServerState> {
        self.0.shared.lock().servers()
    }

    /// What was dropped so far.
    #[must_use]
    pub fn drops(&self) -> Drops {
        self.0.shared.lock().drops
    }

    /// Events from now on. Who is slow misses the oldest.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<IceEvent> {
        self.0.shared.events.subscribe()
    }

    /// Starts a negotiation. If there are too many already, it has failed from the start.
    #[must_use]
    pub fn negotiate(&self, role: Role) -> Agent {
        let credentials = new_credentials();
        let (candidates_in, candidates) = mpsc::unbounded_channel();
        let (outcome_in, outcome) = oneshot::channel();
        let shared = &self.0.shared;
        let start = |id, relay_private| {
            let wire = Arc::new(AgentWire::new(shared, id));
            Finder::new(&shared.runtime, role, credentials.clone(), relay_private, wire)
        };
        let id = shared.with(|core, now| core.negotiate(&credentials, candidates_in, outcome_in, start, now));
        Agent::new(self.0.shared.clone(), id, credentials, candidates, outcome)
    }

    /// One authenticated Binding request over a path in use (as RFC 7675 does): the peer's data port answers, if it
    /// still knows the link.
    ///
    /// # Errors
    /// Nothing came back within two seconds, or the path is gone.
    pub async fn probe(&self, path: Path, local: &Credentials, remote: &Credentials) -> Result<Duration, ProbeError> {
        let shared = &self.0.shared;
        let (tx, mut rx) = oneshot::channel();
        let started = shared.send(|core, now| core.probe(path, local, remote, tx, now));
        // Ends it when this is dropped.
        let probe = started.map(|id| Probing { shared, id });
        loop {
            let next = probe.as_ref().and_then(|p| shared.lock().probe_next(p.id));
            let Some(next) = next else { return rx.await.unwrap_or(Err(ProbeError::Closed)) };
            tokio::select! {
                r = &mut rx => return r.unwrap_or(Err(ProbeError::Closed)),
                () = tokio::time::sleep_until(next.into()) => {
                    if let Some(p) = &probe {
                        shared.send(|core, now| core.poll_probe(p.id, now));
                    }
                }
            }
        }
    }

    /// Answers probes that are signed with these credentials of ours until [`Self::forget`].
    pub fn answer_probes(&self, local: &Credentials) {
        self.0.shared.with(|core, _| core.answer_probes(local));
    }

    /// The link with this ufrag of ours is gone.
    pub fn forget(&self, ufrag: &str) {
        self.0.shared.with(|core, _| core.forget(ufrag));
    }

    /// Gives allocations back and stops. Also done when the last handle is dropped.
    pub fn close(&self) {
        self.0.shared.stop();
    }
}

/// A probe whose answer is waited for.
struct Probing<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Probing<'_> {
    fn drop(&mut self) {
        self.shared.lock().end_probe(self.id, Err(ProbeError::Closed));
    }
}

/// RFC 8445, section 5.3: at least 24 and 128 random bits.
fn new_credentials() -> Credentials {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let text = |bytes: &[u8]| bytes.iter().map(|b| char::from(ALPHABET[usize::from(b % 64)])).collect();
    Credentials { ufrag: text(&random::<8>()), password: Zeroizing::new(text(&random::<24>())) }
}

/// What a negotiation has that was refused.
pub(super) fn too_many() -> Failed {
    Failed { why: format!("no path: more than {} negotiations at once", super::core::MAX_AGENTS) }
}
