//! Between the agent and the wire.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dataplane::table::Prefix;
use tokio::sync::{Mutex as AsyncMutex, Notify, mpsc};
use tokio::time::Instant;
use webrtc_ice::udp_mux::UDPMux;
use webrtc_util::{Conn, Error};

use super::super::candidate::{CandidateKind, Credentials};
use super::super::route::{Route, is_sendable};
use super::super::stun::{Class, Key, Tid, View, attr};
use super::super::turn::Lease;
use super::plan::Way;
use super::space::Space;
use super::{Role, Wire};

/// Messages for the agent that wait; those of a peer that starts before we have its credentials, too.
const QUEUE: usize = 64;
/// Longer ones are no checks.
const LONGEST: usize = 1280;
/// Ways of one negotiation, signalled or seen.
const MAX_WAYS: usize = 96;
/// Of these, such that only the peer's checks told.
const MAX_SEEN: usize = 16;
/// A source that was not signalled is held back for this long: its candidate may be on the way, and tell that it is a
/// relay's.
const SIGNAL_PATIENCE: Duration = Duration::from_millis(250);
/// A channel is not asked for before shorter ways had this long, by the number of relays on the way. Of ways with one
/// relay, those over the peer's need no channel of ours, and come a moment later.
const BIND_AFTER: [Duration; 3] = [Duration::ZERO, Duration::from_millis(450), Duration::from_millis(700)];
/// The agent checks every way at every tick. The first so many checks of a way go out, then only one in each pause,
/// unless the peer is heard over it.
const EAGER_CHECKS: u32 = 10;
const CHECK_PAUSE: Duration = Duration::from_millis(190);
/// How long a way counts as heard.
const HEARD: Duration = Duration::from_secs(1);
/// Checks under way whose time of sending is kept, for each way.
const TIMES: usize = 8;

/// What became of a message for the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Yes,
    /// It is not signed by whom it should be.
    Forged,
    /// There are too many, the agent is closed, or it is nothing that an agent looks at.
    No,
}

/// A message for the agent that was read, and is signed by whom it should be.
struct Message {
    route: Route,
    bytes: Box<[u8]>,
    tid: Tid,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    /// With USE-CANDIDATE or without.
    Request { nominates: bool },
    /// An answer, with how the peer sees us.
    Success { mapped: Option<SocketAddr> },
}

/// What is known of the channel that a relayed way needs.
#[derive(Debug)]
enum Channel {
    None,
    Asked,
    Bound(Lease),
    /// The server's words.
    Refused(String),
}

/// One way, as the negotiation sees it.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) kind: CandidateKind,
    /// For the agent: what it is added with.
    pub(super) rank: u32,
    heard: Option<Instant>,
    pub(super) requests: u32,
    last_sent: Option<Instant>,
    times: Vec<(Tid, Instant)>,
    pub(super) rtt: Option<Duration>,
    /// How the peer sees us over it.
    pub(super) mapped: Option<SocketAddr>,
    channel: Channel,
    pub(super) dead: bool,
}

impl Known {
    fn new(route: &Route, kind: CandidateKind, priority: u32) -> Self {
        let mut way = Self {
            kind,
            rank: 0,
            heard: None,
            requests: 0,
            last_sent: None,
            times: Vec::new(),
            rtt: None,
            mapped: None,
            channel: Channel::None,
            dead: false,
        };
        // Direct before relayed, whatever the peer says; peer-reflexive ones (110, from the agent) are in between.
        let class: u32 = match (way.hops(route), kind, route.is_relay()) {
            (0, CandidateKind::Host, _) => 126,
            (0, ..) => 120,
            (1, _, false) => 30,
            (1, _, true) => 20,
            _ => 10,
        };
        way.rank = (class << 24) | (priority & 0x00ff_ffff);
        way
    }

    /// Relays on the way: 0, 1 or 2.
    pub(super) fn hops(&self, route: &Route) -> u8 {
        u8::from(route.is_relay()) + u8::from(self.kind == CandidateKind::Relayed)
    }

    /// Why there is no channel, if a server refused it.
    pub(super) fn refusal(&self) -> Option<&str> {
        match &self.channel {
            Channel::Refused(why) => Some(why),
            _ => None,
        }
    }

    pub(super) fn take_channel(&mut self) -> Option<Lease> {
        match std::mem::replace(&mut self.channel, Channel::None) {
            Channel::Bound(lease) => Some(lease),
            _ => None,
        }
    }
}

pub(super) struct State {
    space: Space,
    pub(super) ways: HashMap<Route, Known>,
    seen: HashMap<Route, Instant>,
    /// For the agent.
    fresh: Vec<Route>,
    pub(super) remote: Option<Credentials>,
    pub(super) locals: Vec<(SocketAddr, CandidateKind)>,
    /// Both sides said all they know.
    pub(super) told: bool,
    remote_done: bool,
    pub(super) overlay: Vec<Prefix>,
    /// When the agent began to check.
    pub(super) began: Option<Instant>,
    queue: Option<mpsc::Sender<Message>>,
    closed: bool,
    /// Something that ends the negotiation.
    pub(super) broken: Option<String>,
}

/// The agent's only connection, and what turns its addresses into ways.
pub(super) struct Seam {
    pub(super) role: Role,
    pub(super) credentials: Credentials,
    key: Key,
    /// Of the peer's password.
    peer_key: OnceLock<Key>,
    pub(super) wire: Arc<dyn Wire>,
    state: Mutex<State>,
    incoming: AsyncMutex<mpsc::Receiver<Message>>,
    /// There is something new in the state.
    pub(super) news: Notify,
}

impl Seam {
    pub(super) fn new(role: Role, credentials: Credentials, wire: Arc<dyn Wire>) -> Arc<Self> {
        let (queue, incoming) = mpsc::channel(QUEUE);
        let state = State {
            space: Space::default(),
            ways: HashMap::new(),
            seen: HashMap::new(),
            fresh: Vec::new(),
            remote: None,
            locals: Vec::new(),
            told: false,
            remote_done: false,
            overlay: Vec::new(),
            began: None,
            queue: Some(queue),
            closed: false,
            broken: None,
        };
        let key = Key::short(&credentials.password);
        let (state, incoming) = (Mutex::new(state), AsyncMutex::new(incoming));
        Arc::new(Self { role, credentials, key, peer_key: OnceLock::new(), wire, state, incoming, news: Notify::new() })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Verifies a message and queues it: requests are signed with our password, answers with the peer's. What is not
    /// signed changes nothing: any host on the way to any address that was signalled may answer STUN.
    pub(super) fn push(&self, route: Route, v: &View<'_>) -> Taken {
        let (key, what) = match v.class() {
            Class::Request => (Some(&self.key), What::Request { nominates: v.has(attr::USE_CANDIDATE) }),
            Class::Success => (self.peer_key.get(), What::Success { mapped: v.mapped() }),
            _ => return Taken::No,
        };
        let queue = {
            let state = self.lock();
            let fits = |q: &mpsc::Sender<Message>| q.capacity() > 0 && v.bytes().len() <= LONGEST;
            let loops = state.overlay.iter().any(|p| p.contains(route.peer().ip()));
            state.queue.clone().filter(|q| fits(q) && !loops)
        };
        let (Some(key), Some(queue)) = (key, queue) else { return Taken::No };
        if !v.signed_by(key) {
            return Taken::Forged;
        }
        match queue.try_send(Message { route, bytes: v.bytes().into(), tid: v.tid(), what }) {
            Ok(()) => Taken::Yes,
            Err(_) => Taken::No,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(super) fn tell(&self, ways: &[Way], told: bool, remote_done: bool, locals: &[(SocketAddr, CandidateKind)]) {
        let mut state = self.lock();
        (state.told, state.remote_done) = (told, remote_done);
        state.locals = locals.to_vec();
        for w in ways {
            state.add(w.route, w.kind, w.priority);
        }
        drop(state);
        self.news.notify_one();
    }

    pub(super) fn set_remote(&self, c: &Credentials) {
        self.lock().remote.get_or_insert_with(|| c.clone());
        self.peer_key.get_or_init(|| Key::short(&c.password));
        self.news.notify_one();
    }

    pub(super) fn bound(&self, server: SocketAddr, peer: SocketAddr, channel: Result<Lease, String>) {
        let mut state = self.lock();
        let closed = state.closed;
        let Some(way) = state.ways.get_mut(&Route::Relay { server, peer }) else { return };
        if !closed && matches!(way.channel, Channel::Asked) {
            way.channel = channel.map_or_else(Channel::Refused, Channel::Bound);
        }
    }

    pub(super) fn relay_lost(&self, server: SocketAddr) {
        let mut state = self.lock();
        for (route, way) in &mut state.ways {
            if matches!(route, Route::Relay { server: s, .. } if *s == server) {
                (way.dead, way.channel) = (true, Channel::Refused("the allocation is gone".into()));
            }
        }
    }

    pub(super) fn unreachable(&self, route: &Route) {
        if let Some(way) = self.lock().ways.get_mut(route) {
            way.dead = way.heard.is_none();
        }
    }

    /// Ways that the agent does not know yet.
    pub(super) fn take_fresh(&self) -> Vec<(Route, SocketAddr, CandidateKind, u32)> {
        let mut state = self.lock();
        let fresh = std::mem::take(&mut state.fresh);
        let State { space, ways, .. } = &mut *state;
        fresh
            .into_iter()
            .filter_map(|r| {
                let way = ways.get(&r)?;
                Some((r, space.address(&r)?, way.kind, way.rank))
            })
            .collect()
    }

    /// Nothing goes in or out any more; channels that nobody took are not used any more.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        (state.closed, state.queue) = (true, None);
        for way in state.ways.values_mut() {
            way.channel = Channel::None;
        }
    }

    /// The way of an address of the agent's.
    pub(super) fn route(&self, address: SocketAddr) -> Option<Route> {
        self.lock().space.route(address)
    }

    /// Looks at a message for the agent. Its address for the agent, or `None` if it has to wait for being repeated or is
    /// no good.
    fn admit(&self, m: &Message) -> Option<SocketAddr> {
        let route = m.route;
        let mut state = self.lock();
        let ask = match m.what {
            What::Request { nominates } => self.request(&mut state, route, nominates)?,
            What::Success { mapped } => self.success(&mut state, route, m.tid, mapped)?,
        };
        let address = state.space.address(&route);
        drop(state);
        match (ask, route) {
            (true, Route::Relay { server, peer }) => {
                self.wire.bind(server, peer);
                None
            }
            _ => address,
        }
    }

    /// `Some(true)`: a channel has to be asked for first. `None`: not now.
    fn request(&self, state: &mut State, route: Route, nominates: bool) -> Option<bool> {
        let now = Instant::now();
        if !state.ways.contains_key(&route) {
            let full = state.seen.len() >= MAX_SEEN && !state.seen.contains_key(&route);
            if full || !is_sendable(route.peer()) {
                return None;
            }
            let since = *state.seen.entry(route).or_insert(now);
            if route.is_relay() {
                // The agent would rank it as a direct one; it is told before it is heard.
                state.add(route, CandidateKind::PeerReflexive, 0);
                self.news.notify_one();
                return None;
            }
            if !state.remote_done && now - since < SIGNAL_PATIENCE {
                return None;
            }
            let way = Known::new(&route, CandidateKind::PeerReflexive, 0);
            state.ways.insert(route, way);
        }
        let way = state.ways.get_mut(&route)?;
        way.heard = Some(now);
        way.dead &= route.is_relay();
        let nominates = self.role == Role::Controlled && nominates;
        if !route.is_relay() || !nominates || matches!(way.channel, Channel::Bound(_)) {
            return Some(false);
        }
        // What the peer sends after our answer would come in without a channel and be lost.
        match &way.channel {
            Channel::None => {
                way.channel = Channel::Asked;
                return Some(true);
            }
            Channel::Refused(why) => {
                let what = "no path: the relay refuses a channel for the path that the peer chose";
                state.broken = Some(format!("{what}: {why}"));
                self.news.notify_one();
            }
            Channel::Asked | Channel::Bound(_) => {}
        }
        None
    }

    fn success(&self, state: &mut State, route: Route, tid: Tid, mapped: Option<SocketAddr>) -> Option<bool> {
        let now = Instant::now();
        let began = state.began?;
        let way = state.ways.get_mut(&route)?;
        if let Some(i) = way.times.iter().position(|(t, _)| *t == tid) {
            way.rtt = Some(now - way.times[i].1);
        }
        way.mapped = mapped.or(way.mapped);
        if !route.is_relay() || self.role == Role::Controlled || matches!(way.channel, Channel::Bound(_)) {
            return Some(false);
        }
        // To the agent a relayed way works when its channel is bound. One is bound if nothing better works.
        let (rank, hops, free) = (way.rank, way.hops(&route), matches!(way.channel, Channel::None));
        let patience = BIND_AFTER.get(usize::from(hops)).copied().unwrap_or_default();
        let better = |w: &Known| {
            let works = w.rtt.is_some() || matches!(w.channel, Channel::Asked | Channel::Bound(_));
            works && !w.dead && !matches!(w.channel, Channel::Refused(_)) && w.rank > rank
        };
        if !free || now - began < patience || state.ways.values().any(better) {
            return None;
        }
        state.ways.get_mut(&route)?.channel = Channel::Asked;
        Some(true)
    }

    /// Sends what the agent says.
    fn outgoing(&self, address: SocketAddr, bytes: &[u8]) {
        let mut state = self.lock();
        let Some(route) = state.space.route(address) else { return };
        if state.closed || !state.goes_out(route, bytes) {
            return;
        }
        drop(state);
        self.wire.send(route, bytes);
    }
}

impl State {
    fn add(&mut self, route: Route, kind: CandidateKind, priority: u32) {
        if let Some(way) = self.ways.get_mut(&route) {
            // Met by its checks before it was signalled: the signal knows better. An allocation may be there again.
            if way.kind == CandidateKind::PeerReflexive {
                way.kind = kind;
            }
            if std::mem::replace(&mut way.dead, false) {
                way.channel = Channel::None;
            }
        } else if self.ways.len() < MAX_WAYS && self.space.address(&route).is_some() {
            self.ways.insert(route, Known::new(&route, kind, priority));
            self.fresh.push(route);
        }
    }

    /// Whether a way without a relay works.
    pub(super) fn has_direct(&self) -> bool {
        self.ways.iter().any(|(r, w)| w.hops(r) == 0 && w.rtt.is_some() && !w.dead)
    }

    /// Whether this message is sent. Responses always are.
    fn goes_out(&mut self, route: Route, bytes: &[u8]) -> bool {
        let Some(way) = self.ways.get_mut(&route).filter(|w| !w.dead) else { return false };
        let (Some(head), Some(tid)) = (bytes.first_chunk::<2>(), bytes.get(8..20)) else { return false };
        if u16::from_be_bytes(*head) & 0x0110 != 0 {
            return true;
        }
        let now = Instant::now();
        let heard = way.heard.is_some_and(|t| now - t < HEARD);
        let due = way.last_sent.is_none_or(|t| now - t >= CHECK_PAUSE);
        if !heard && !due && way.requests >= EAGER_CHECKS {
            return false;
        }
        way.requests += 1;
        way.last_sent = Some(now);
        if let Ok(tid) = tid.try_into() {
            way.times.truncate(TIMES - 1);
            way.times.insert(0, (tid, now));
        }
        true
    }
}

/// What `webrtc-ice` asks for the agent's connection.
pub(super) struct Mux(pub(super) Arc<Seam>);

#[async_trait]
impl UDPMux for Mux {
    async fn close(&self) -> Result<(), Error> {
        self.0.close();
        Ok(())
    }

    async fn get_conn(self: Arc<Self>, _ufrag: &str) -> Result<Arc<dyn Conn + Send + Sync>, Error> {
        Ok(Arc::new(Line(self.0.clone())))
    }

    async fn remove_conn_by_ufrag(&self, _ufrag: &str) {
        self.0.close();
    }
}

struct Line(Arc<Seam>);

fn refused(why: &str) -> Error {
    io::Error::new(io::ErrorKind::Unsupported, why).into()
}

#[async_trait]
impl Conn for Line {
    async fn connect(&self, _addr: SocketAddr) -> Result<(), Error> {
        Err(refused("one line for all ways"))
    }

    async fn recv(&self, buf: &mut [u8]) -> Result<usize, Error> {
        self.recv_from(buf).await.map(|(n, _)| n)
    }

    async fn recv_from(&self, buf: &mut [u8]) -> Result<(usize, SocketAddr), Error> {
        let mut incoming = self.0.incoming.lock().await;
        loop {
            let Some(m) = incoming.recv().await else { return Err(refused("closed")) };
            let address = self.0.admit(&m);
            if let (Some(address), Some(to)) = (address, buf.get_mut(..m.bytes.len())) {
                to.copy_from_slice(&m.bytes);
                return Ok((m.bytes.len(), address));
            }
        }
    }

    async fn send(&self, _buf: &[u8]) -> Result<usize, Error> {
        Err(refused("one line for all ways"))
    }

    async fn send_to(&self, buf: &[u8], target: SocketAddr) -> Result<usize, Error> {
        self.0.outgoing(target, buf);
        Ok(buf.len())
    }

    fn local_addr(&self) -> Result<SocketAddr, Error> {
        Ok(super::run::LOCAL)
    }

    fn remote_addr(&self) -> Option<SocketAddr> {
        None
    }

    async fn close(&self) -> Result<(), Error> {
        self.0.close();
        Ok(())
    }

    fn as_any(&self) -> &(dyn std::any::Any + Send + Sync) {
        self
    }
}
