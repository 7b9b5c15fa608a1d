//! The node's loop.

use super::event::{Event, LinkId, Progress, Servers};
use super::names::Names;
use super::network::{Network, hands};
use super::peer::Hands;
use super::{servers, view};
use crate::Error;
use crate::admin::{self, Request, Response};
use crate::cli::UpArgs;
use crate::config::NodeConfig;
use crate::host::Host;
use crate::ice::IceEvent;
use crate::identity::{self, Descriptor, Keys, StateLock};
use crate::link::{Input, Link, State};
use crate::network::{FriendLeases, Leases, Pins, Store};
use crate::xmpp::{self, Friends, Signal, SignalRequest, Verdict, Xmpp};
use dataplane::crypto::Speeds;
use dataplane::table::Prefix;
use dataplane::{Engine, Path};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

/// Events that wait. Whoever has more waits with them.
const EVENTS: usize = 1024;
/// How often the data plane is asked how the peers are.
const LOOK: Duration = Duration::from_secs(1);
/// The same while a tunnel is being opened.
const LOOK_CLOSELY: Duration = Duration::from_millis(40);
/// Descriptors come in bursts: the plan is made once for each.
const SETTLE: Duration = Duration::from_millis(50);
/// After the login, whoever was present before and has not been heard of since is away.
const SWEEP: Duration = Duration::from_secs(3);
/// After the login, an own address is chosen when the others' are known.
const CHOOSE: Duration = Duration::from_millis(1500);
/// Last words to peers have this long to get out.
const LAST_WORDS: Duration = Duration::from_millis(50);

pub(super) const PINS: &str = "pins.json";
pub(super) const LEASES: &str = "leases.json";
/// Leases of friends' nodes.
pub(super) const FRIENDS: &str = "friends.json";
/// Leases end with time alone, and a new route that overlaps a subnet is no change that the host tells: the plan is made
/// again so often.
pub(super) const TEND: Duration = Duration::from_secs(60);

/// How the XMPP connection is.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) online: bool,
    pub(super) detail: String,
    pub(super) since: Instant,
}

/// A node.
pub(super) struct Node {
    pub(super) args: UpArgs,
    pub(super) config: NodeConfig,
    pub(super) host: Host,
    pub(super) xmpp: Xmpp,
    pub(super) store: Store,
    pub(super) pins: Pins,
    pub(super) leases: Leases,
    pub(super) friend_leases: FriendLeases,
    /// What XMPP knows of friends.
    pub(super) friends: Friends,
    pub(super) networks: Vec<Network>,
    pub(super) names: Names,
    /// Of the ciphers, as measured at the start.
    pub(super) speeds: Speeds,
    pub(super) started: Instant,
    /// Our full JID, as the server knows it.
    pub(super) jid: Option<String>,
    pub(super) connection: Connection,
    /// Bare JIDs by network name.
    pub(super) members: HashMap<String, BTreeSet<String>>,
    /// By full JID.
    pub(super) descriptors: BTreeMap<String, Descriptor>,
    /// Full JIDs.
    pub(super) present: HashSet<String>,
    pub(super) servers: Servers,
    /// Where the XMPP server is, as it was reached last.
    pub(super) xmpp_server: Option<IpAddr>,
    pub(super) servers_problem: Option<String>,
    /// What this machine reaches by itself, and over which interface, as it was last seen; `None`: not known.
    pub(super) underlay: Option<Vec<(Prefix, Option<String>)>>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) finding_servers: Option<AbortHandle>,
    /// Something changed that the plan depends on.
    pub(super) dirty: Option<Instant>,
    pub(super) sweep_at: Option<Instant>,
    pub(super) choose_at: Option<Instant>,
    pub(super) look_at: Instant,
    pub(super) tend_at: Instant,
}

/// Runs a node until it is told to end.
pub(super) async fn run(args: &UpArgs, config: NodeConfig) -> Result<(), Error> {
    let failed = |e| Error::io("handle signals", e);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    let _lock = StateLock::take(&config.state_dir)?;
    let keys = Keys::load_or_create(&config.state_dir)?;
    let socket = admin::listen(&config.control_socket)?;
    let (events, mut queue) = mpsc::channel(EVENTS);
    let mut node = Node::start(args, config, &keys, &events).await?;
    let asked = events.clone();
    let admin = admin::serve(socket, move |request| {
        let events = asked.clone();
        async move { ask(events, request).await }
    });
    tokio::pin!(admin);
    notify(&[sd_notify::NotifyState::Ready]);
    let result = loop {
        let wait = tokio::time::sleep(node.next_wait());
        tokio::select! {
            biased;
            _ = terminate.recv() => break Ok("SIGTERM came"),
            _ = interrupt.recv() => break Ok("SIGINT came"),
            _ = hangup.recv() => {
                let said = node.reload().await;
                tracing::info!("SIGHUP: {said}");
            }
            ended = &mut admin => match ended {
                Ok(never) => match never {},
                Err(e) => break Err(e),
            },
            event = queue.recv() => match event {
                Some(event) => if let Err(e) = node.take(event).await { break Err(e) },
                None => break Ok("nothing can happen any more"),
            },
            () = wait => {}
        }
        node.tick().await;
    };
    notify(&[sd_notify::NotifyState::Stopping]);
    node.leave().await;
    let why = result?;
    tracing::info!("ends because {why}");
    Ok(())
}

async fn ask(events: mpsc::Sender<Event>, request: Request) -> Response {
    let (reply, answer) = oneshot::channel();
    let ending = || Response::Error { message: "the node is about to end".to_owned() };
    if events.send(Event::Admin(request, reply)).await.is_err() {
        return ending();
    }
    answer.await.unwrap_or_else(|_| ending())
}

/// Tells systemd, if it started us.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        tracing::debug!("sd_notify: {e}");
    }
}

impl Node {
    /// How long nothing has to be done.
    fn next_wait(&self) -> Duration {
        let now = Engine::now();
        let links = self.networks.iter().filter_map(Network::next_timeout).min().map(|t| t.since(now));
        let own = [Some(self.look_at), self.dirty, self.sweep_at, self.choose_at];
        let own = own.into_iter().flatten().min().map(|t| t.saturating_duration_since(Instant::now()));
        links.into_iter().chain(own).min().unwrap_or(LOOK)
    }

    /// Does what is due.
    async fn tick(&mut self) {
        let now = Instant::now();
        let due = |t: &mut Option<Instant>| t.is_some_and(|t| t <= now) && t.take().is_some();
        if due(&mut self.choose_at) {
            for id in 0..self.networks.len() {
                self.readdress(id, true).await;
            }
        }
        if self.tend_at <= now {
            self.tend_at = now + TEND;
            self.stir();
        }
        if due(&mut self.dirty) {
            self.refresh().await;
        }
        if due(&mut self.sweep_at) {
            self.sweep();
        }
        if self.look_at <= now {
            self.look_at = now + LOOK;
            for n in &mut self.networks {
                n.look(&self.xmpp, &self.events);
            }
        }
        for n in &mut self.networks {
            n.handle_timeouts(Engine::now(), &self.xmpp, &self.events);
        }
        if self.networks.iter().any(Network::is_shaking_hands) {
            self.look_at = self.look_at.min(now + LOOK_CLOSELY);
        }
    }

    /// The plan is to be made again soon.
    pub(super) fn stir(&mut self) {
        self.dirty.get_or_insert(Instant::now() + SETTLE);
    }

    async fn take(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Xmpp(e) => self.take_xmpp(e)?,
            Event::Wanted(id, key) => {
                let n = &mut self.networks[id];
                let jid = n.jid_of(&key).map(str::to_owned);
                let hands = hands!(n, &self.xmpp, &self.events);
                if let Some(p) = jid.and_then(|jid| n.peers.get_mut(&jid)) {
                    p.handle(Input::Wanted, &hands);
                }
            }
            Event::Ice(id, event) => self.take_ice(id, &event),
            Event::Negotiation { link, sid, what } => self.take_progress(&link, sid, what),
            Event::Probe { link, path, rtt } => self.probed(&link, path, rtt),
            Event::Host => self.host_changed().await,
            Event::Servers { servers, complete, problem, lifetime } => {
                if let Some(p) = problem.as_ref().filter(|p| self.servers_problem.as_ref() != Some(*p)) {
                    tracing::warn!("{p}");
                }
                self.servers_problem = problem;
                self.servers = self.servers.after(servers, complete);
                for n in &self.networks {
                    n.ice.set_servers(self.servers.stun.clone(), self.servers.turn.clone());
                }
                self.find_servers(lifetime);
                // No member's route may lead to them.
                self.stir();
            }
            Event::Admin(request, reply) => {
                let response = match request {
                    Request::Status => {
                        for n in &mut self.networks {
                            n.look(&self.xmpp, &self.events);
                        }
                        Response::Status(Box::new(view::status(self)))
                    }
                    Request::Names => Response::Names(Box::new(self.names_shown())),
                    Request::AcceptPin { jid } => self.accept_pin(&jid),
                    Request::ForgetPins { jid } => self.forget_pins(&jid),
                    Request::Friends => self.friend_list(),
                    Request::Befriend { action, jid } => {
                        self.befriend(action, jid, reply);
                        return Ok(());
                    }
                    Request::Reload => Response::Done { message: self.reload().await },
                };
                // Whoever asked may have gone.
                let _ = reply.send(response);
            }
            Event::Closed(why) => return Err(Error::EngineFailed(why)),
        }
        Ok(())
    }

    /// A probe came back, or will not.
    fn probed(&mut self, link: &LinkId, path: Path, rtt: Option<Duration>) {
        let n = &mut self.networks[link.network];
        let hands = hands!(n, &self.xmpp, &self.events);
        // Of a path that is in use no more it says nothing.
        if let Some(p) = n.peers.get_mut(&link.jid).filter(|p| p.probes(path)) {
            p.handle(rtt.map_or(Input::ProbeFailed, |rtt| Input::ProbeAnswered { rtt }), &hands);
        }
    }

    fn take_xmpp(&mut self, event: xmpp::Event) -> Result<(), Error> {
        match event {
            xmpp::Event::Reached { address } => {
                self.xmpp_server = Some(address);
                // No member's route may lead there.
                self.stir();
            }
            xmpp::Event::Online { jid } => {
                tracing::info!("XMPP: logged in as {jid}");
                notify(&[sd_notify::NotifyState::Status(&format!("online as {jid}"))]);
                self.connection = Connection { online: true, detail: "logged in".into(), since: Instant::now() };
                self.jid = Some(jid);
                self.present.clear();
                self.sweep_at = Some(Instant::now() + SWEEP);
                self.choose_at = Some(Instant::now() + CHOOSE);
                self.find_servers(Some(Duration::ZERO));
                for n in &mut self.networks {
                    n.handle_all(&Input::SignalingUp, &self.xmpp, &self.events);
                }
            }
            xmpp::Event::Offline { why } => {
                tracing::warn!("XMPP: {why}; links go on, and the login is tried again");
                notify(&[sd_notify::NotifyState::Status("offline: links go on")]);
                self.connection = Connection { online: false, detail: why, since: Instant::now() };
                self.sweep_at = None;
                for n in &mut self.networks {
                    n.handle_all(&Input::SignalingDown, &self.xmpp, &self.events);
                }
            }
            xmpp::Event::Refused { why } => {
                return Err(Error::State(format!(
                    "the XMPP server refuses the account {}: {why}",
                    self.config.xmpp.jid
                )));
            }
            xmpp::Event::Members { network, accounts } => {
                self.members.insert(network, accounts);
                // Whoever was removed is kept out at once.
                self.dirty = Some(Instant::now());
            }
            xmpp::Event::Presence { jid, available } => self.presence(jid, available),
            xmpp::Event::Descriptor { account, device, descriptor } => {
                self.descriptors.insert(format!("{account}/{device}"), descriptor);
                self.stir();
            }
            xmpp::Event::DescriptorGone { account, device } => {
                self.descriptors.remove(&format!("{account}/{device}"));
                self.stir();
            }
            xmpp::Event::Friends(friends) => {
                // Who asks to be a friend is nothing that peers depend on.
                if friends.contacts != self.friends.contacts {
                    self.stir();
                }
                self.friends = friends;
            }
            xmpp::Event::Signal(request) => self.take_signal(request),
        }
        Ok(())
    }

    fn presence(&mut self, jid: String, available: bool) {
        if Some(&jid) == self.jid.as_ref() {
            return;
        }
        for n in &mut self.networks {
            let hands = hands!(n, &self.xmpp, &self.events);
            if let Some(p) = n.peers.get_mut(&jid) {
                p.set_online(available, &hands);
            }
        }
        if available {
            self.present.insert(jid)
        } else {
            self.present.remove(&jid)
        };
    }

    /// Whoever was not announced since the login is away.
    fn sweep(&mut self) {
        for n in &mut self.networks {
            let hands = hands!(n, &self.xmpp, &self.events);
            for (_, p) in n.peers.iter_mut().filter(|(jid, p)| p.online && !self.present.contains(*jid)) {
                p.set_online(false, &hands);
            }
        }
    }

    fn take_signal(&mut self, request: SignalRequest) {
        let sid = request.signal.sid().to_owned();
        let from = request.from.clone();
        if let Signal::Initiate { offer, .. } = &request.signal {
            let offer = offer.clone();
            for n in self.networks.iter_mut().filter(|n| n.name == offer.network) {
                let hands = hands!(n, &self.xmpp, &self.events);
                if let Some(p) = n.peers.get_mut(&from) {
                    return p.offer(request, sid, offer, &hands);
                }
            }
            // No member of that network, or its key is refused.
            tracing::debug!("{from} wants a link in {}, of which it is no member for us", offer.network);
            return self.xmpp.answer(request, Verdict::NotAcceptable);
        }
        let mut known = false;
        for n in &mut self.networks {
            let hands = hands!(n, &self.xmpp, &self.events);
            let Some(p) = n.peers.get_mut(&from) else { continue };
            known |= match &request.signal {
                Signal::Accept { answer, .. } => answer.network == n.name && p.accepted(&sid, answer.clone(), &hands),
                Signal::Candidates { candidates, .. } => p.candidates(&sid, candidates.clone()),
                Signal::Terminate { reason, .. } => p.terminated(&sid, *reason, &hands),
                Signal::Initiate { .. } => false,
            };
        }
        self.xmpp.answer(request, if known { Verdict::Ok } else { Verdict::UnknownSession });
    }

    fn take_progress(&mut self, link: &LinkId, sid: String, what: Progress) {
        let n = &mut self.networks[link.network];
        let hands = hands!(n, &self.xmpp, &self.events);
        match what {
            Progress::Refused { unanswered: true, .. } => n.pace.unanswered(),
            Progress::Found { took, .. } => n.pace.found(took),
            _ => {}
        }
        let Some(p) = n.peers.get_mut(&link.jid) else { return };
        match what {
            Progress::Refused { why, tie_break, gone, .. } => {
                p.handle(Input::SignalFailed { sid, why, tie_break, gone }, &hands);
            }
            Progress::Found { found, local, remote, .. } => p.found(&sid, found, local, remote, &hands),
            Progress::Failed { why } => p.handle(Input::AgentFailed { sid, why }, &hands),
        }
    }

    fn take_ice(&mut self, id: usize, event: &IceEvent) {
        let n = &mut self.networks[id];
        if let IceEvent::Heard { ufrag } = event {
            let hands = hands!(n, &self.xmpp, &self.events);
            if let Some(p) = n.peers.values_mut().find(|p| p.is_known_as(ufrag)) {
                p.handle(Input::Heard, &hands);
            }
            return;
        }
        let concerns = |link: &Link| match (event, link.path().map(|(path, _)| path)) {
            (IceEvent::Changed { .. }, _) => true,
            // Also for a negotiation under way: it has told its candidates, and there was no relay among them.
            (IceEvent::RelayUp { .. }, _) => link.state() != State::Up,
            (IceEvent::RelayLost { server, .. }, Some(Path::Relay { server: used, .. })) => *server == used,
            _ => false,
        };
        tracing::debug!("{}: {event:?}", n.name);
        let hands = hands!(n, &self.xmpp, &self.events);
        for p in n.peers.values_mut().filter(|p| concerns(&p.link)) {
            p.handle(Input::NetworkChanged, &hands);
        }
    }

    pub(super) async fn host_changed(&mut self) {
        let interfaces: Vec<String> = self.config.networks.iter().map(|n| n.interface.clone()).collect();
        match self.host.underlay_addresses(&interfaces).await {
            Ok(addresses) => {
                let known = |n: &Network| n.host_addresses.as_ref() == Some(&addresses);
                if self.networks.iter().any(|n| n.host_addresses.is_some() && !known(n)) {
                    self.xmpp.check();
                }
                for n in self.networks.iter_mut().filter(|n| !known(n)) {
                    let first = n.host_addresses.replace(addresses.clone()).is_none();
                    n.ice.set_host_addresses(addresses.clone());
                    if !first {
                        tracing::info!("{}: this machine's addresses are now {addresses:?}", n.name);
                        n.handle_all(&Input::NetworkChanged, &self.xmpp, &self.events);
                    }
                }
            }
            Err(e) => tracing::warn!("{e}"),
        }
        for n in &mut self.networks {
            n.refused_routes.clear();
        }
        match self.host.addresses().await {
            Ok(all) => self.names.set_host(all),
            Err(e) => tracing::warn!("{e}"),
        }
        self.stir();
    }

    /// Looks for STUN and TURN servers after a while; not at all if there is no need to.
    fn find_servers(&mut self, after: Option<Duration>) {
        if let Some(old) = self.finding_servers.take() {
            old.abort();
        }
        let Some(after) = after else { return };
        let (config, xmpp, events) = (self.config.ice.clone(), self.xmpp.clone(), self.events.clone());
        let task = tokio::spawn(async move {
            tokio::time::sleep(after).await;
            servers::find(config, xmpp, events).await;
        });
        self.finding_servers = Some(task.abort_handle());
    }

    /// Looks for the servers of a new configuration.
    pub(super) fn new_servers(&mut self) {
        self.find_servers(Some(Duration::ZERO));
    }

    /// Whether links to nodes that have AES-256-GCM get it.
    pub(super) fn offers_aes(&self) -> bool {
        self.config.cipher.offers_aes(&self.speeds)
    }

    /// What members are told of us.
    pub(super) fn publish(&self) {
        self.xmpp.publish(Descriptor {
            name: self.config.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: self.offers_aes().then(|| identity::AES.to_owned()).into_iter().collect(),
            networks: self.networks.iter().map(Network::descriptor).collect(),
        });
    }

    /// Tells peers and server, and ends.
    async fn leave(mut self) {
        for n in &mut self.networks {
            n.close(&self.xmpp, &self.events);
        }
        tokio::time::sleep(LAST_WORDS).await;
        self.xmpp.clone().close().await;
        for n in &self.networks {
            n.engine.shutdown();
        }
    }
}
