//! One network at work: its interface, its engine, its ICE side and the links to its members.

use super::event::{Event, LinkId, NetworkId};
use super::pace::Pace;
use super::peer::{Hands, Peer};
use super::port::{EnginePort, Ferry};
use crate::Error;
use crate::cli::UpArgs;
use crate::config::{GroupConfig, LinkPolicy, NetworkConfig};
use crate::host::Host;
use crate::ice::{self, IceNode, IceOptions};
use crate::identity::{Keys, NetworkDescriptor};
use crate::link::{Input, Link, LinkConfig};
use crate::network::address::{host_prefix, ula, ula_prefix};
use crate::network::social::broadcast;
use crate::network::{Plan, PlannedPeer};
use crate::xmpp::{Reason, Xmpp};
use dataplane::table::Prefix;
use dataplane::tunnel::PublicKey;
use dataplane::{Engine, PeerUpdate, Time, Tun, Update};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use tokio::sync::mpsc;

/// What a peer's link works with: the parts of a network that are not its peers.
macro_rules! hands {
    ($network:expr, $xmpp:expr, $events:expr) => {
        Hands { engine: &$network.engine, ice: &$network.ice, xmpp: $xmpp, events: $events, network: &$network.name }
    };
}
pub(super) use hands;

/// Length of the prefix of stable IPv6 addresses.
const ULA_LEN: u8 = 64;

/// What a network's plan is carried out with.
pub(super) struct Around<'a> {
    /// Full JIDs that are there.
    pub(super) online: &'a HashSet<String>,
    pub(super) our_jid: Option<&'a str>,
    /// We are logged in.
    pub(super) signaling: bool,
    pub(super) host: &'a Host,
    pub(super) xmpp: &'a Xmpp,
    pub(super) events: &'a mpsc::Sender<Event>,
    /// Why a node (full JID) is no peer any more.
    pub(super) why_gone: &'a dyn Fn(&str) -> &'static str,
}

/// Of one link; must differ from all others'.
fn seed() -> u64 {
    let mut seed = [0; 8];
    // The kernel has given some for the keys, and gives more. Links work without, as sessions are matched by sender.
    if getrandom::fill(&mut seed).is_err() {
        tracing::error!("the system gives no random bytes: session ids may be guessed");
    }
    u64::from_le_bytes(seed)
}

/// One network.
pub(super) struct Network {
    id: NetworkId,
    pub(super) config: NetworkConfig,
    /// Its name in descriptors and signals.
    pub(super) name: String,
    pub(super) engine: Engine,
    pub(super) ice: IceNode,
    pub(super) public_key: PublicKey,
    pub(super) ula: Ipv6Addr,
    /// Own address and since when (milliseconds since 1970); `None` until one is chosen.
    pub(super) address: Option<(IpAddr, u64)>,
    pub(super) port: u16,
    pub(super) peers: HashMap<String, Peer>,
    by_key: HashMap<PublicKey, String>,
    routed: BTreeSet<Prefix>,
    /// Keys that were refused because another one is pinned.
    pub(super) refused: Vec<crate::network::Refused>,
    /// What is wrong with our own address.
    pub(super) conflict: Option<String>,
    /// Of the last plan, and of what the host refused.
    pub(super) warnings: Vec<String>,
    /// Underlay addresses; `None` until they were looked at.
    pub(super) host_addresses: Option<Vec<IpAddr>>,
    /// Routes that the kernel did not take, until this machine's own change.
    pub(super) refused_routes: BTreeSet<Prefix>,
    pub(super) pace: Pace,
    _ferry: Ferry,
}

impl Network {
    /// Makes the interface and starts the engine.
    ///
    /// # Errors
    /// No interface, no engine, no thread.
    pub(super) fn open(
        id: NetworkId,
        config: NetworkConfig,
        keys: &Keys,
        args: &UpArgs,
        relay_private: bool,
        events: &mpsc::Sender<Event>,
    ) -> Result<Self, Error> {
        let name = config.network();
        let interface = config.interface.clone();
        let tun = Tun::create(&interface, args.engine.queues(), !args.engine.no_tun_offload)
            .map_err(|e| crate::daemon::tun_error(&interface, e))?;
        tun.set_mtu(config.mtu).map_err(|e| Error::io(format!("set the MTU of {interface} to {}", config.mtu), e))?;
        let engine = Engine::start(tun, args.engine.config()).map_err(Error::Engine)?;
        let key = keys.network_key(&name);
        let public_key = key.public();
        engine.configure(Update { private_key: Some(Some(key)), ..Update::default() }).map_err(Error::Engine)?;
        if let Some(port) = config.listen_port {
            let update = Update { listen_port: Some(port), ..Update::default() };
            engine.configure(update).map_err(Error::Engine)?;
        }
        // Any other port is new at each start: a TURN server gives a port no second allocation (437) as long as it knows
        // the one of a process that was killed.
        let port = engine.state().listen_port;
        let ice = ice::start(Arc::new(EnginePort { engine: engine.clone(), port }), IceOptions { relay_private });
        let ferry =
            Ferry::start(id, &engine, ice.clone(), events.clone()).map_err(|e| Error::io("start a thread", e))?;
        Ok(Self {
            id,
            ula: ula(&name, &public_key),
            name,
            engine,
            ice,
            public_key,
            address: None,
            port,
            peers: HashMap::new(),
            by_key: HashMap::new(),
            routed: BTreeSet::new(),
            refused: Vec::new(),
            conflict: None,
            warnings: Vec::new(),
            host_addresses: None,
            refused_routes: BTreeSet::new(),
            pace: Pace::default(),
            config,
            _ferry: ferry,
        })
    }

    /// The prefixes of which members have addresses.
    pub(super) fn subnets(&self) -> Vec<Prefix> {
        self.subnet().into_iter().chain([ula_prefix(&self.name)]).collect()
    }

    /// The subnet of which our own address is.
    pub(super) fn subnet(&self) -> Option<Prefix> {
        self.config.subnet()
    }

    /// Subnets behind this node that are offered.
    pub(super) fn routes(&self) -> &[Prefix] {
        self.config.group().map_or(&[], |g: &GroupConfig| &g.routes)
    }

    /// Whether multicast and broadcast reach every friend that is linked.
    pub(super) fn is_multicast(&self) -> bool {
        self.config.social().is_some_and(|s| s.multicast)
    }

    /// What the interface has: own address and the stable IPv6 one.
    pub(super) fn interface_addresses(&self) -> Vec<(IpAddr, u8)> {
        let len = self.subnet().map_or(32, |p| p.len());
        let own = self.address.map(|(a, _)| (a, len));
        own.into_iter().chain([(IpAddr::V6(self.ula), ULA_LEN)]).collect()
    }

    /// Gives the interface its addresses.
    ///
    /// # Errors
    /// What the kernel refused.
    pub(super) async fn set_up(&self, host: &Host) -> Result<(), Error> {
        host.setup_interface(&self.config.interface, &self.interface_addresses(), self.config.mtu).await?;
        self.engine.set_link_up(true);
        self.set_multicast();
        Ok(())
    }

    /// Tells the data plane whether multicast is carried, and which address is our subnet's broadcast address.
    pub(super) fn set_multicast(&self) {
        let own = match self.address {
            Some((IpAddr::V4(a), _)) if self.is_multicast() => Some(a),
            _ => None,
        };
        let broadcast = own.zip(self.subnet()).and_then(|(own, subnet)| broadcast(&subnet, own));
        if let Err(e) = self.engine.configure(Update { multicast: Some(broadcast), ..Update::default() }) {
            tracing::error!("{}: {e}", self.name);
        }
    }

    /// What others are told of us.
    pub(super) fn descriptor(&self) -> NetworkDescriptor {
        let own = self.address.map(|(a, _)| a);
        NetworkDescriptor {
            network: self.name.clone(),
            public_key: self.public_key,
            addresses: own.into_iter().chain([IpAddr::V6(self.ula)]).map(host_prefix).collect(),
            routes: self.routes().to_vec(),
            subnet: self.subnet().filter(|_| self.is_multicast()),
            since: self.address.map_or(0, |(_, since)| since),
        }
    }

    /// Own addresses.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        self.address.map(|(a, _)| a).into_iter().chain([IpAddr::V6(self.ula)]).collect()
    }

    /// Makes peers, the data plane and the host's routes what `plan` says.
    pub(super) async fn apply(&mut self, plan: Plan, around: &Around<'_>) {
        let Around { online, our_jid, signaling, host, xmpp, events, why_gone } = *around;
        let Plan { peers: planned, warnings, .. } = plan;
        let keep: HashMap<&str, &PlannedPeer> = planned.iter().map(|p| (p.jid.as_str(), p)).collect();
        let gone: Vec<String> = self
            .peers
            .iter()
            .filter(|(jid, p)| keep.get(jid.as_str()).is_none_or(|k| k.public_key != p.planned.public_key))
            .map(|(jid, _)| jid.clone())
            .collect();
        let mut update = Update::default();
        for jid in gone {
            let Some(mut peer) = self.peers.remove(&jid) else { continue };
            let why = if keep.contains_key(jid.as_str()) { "has another key" } else { why_gone(&jid) };
            tracing::info!("{}: {jid} ({}) {why}: its link is closed", self.name, peer.planned.name);
            peer.close(Reason::Gone, &hands!(self, xmpp, events));
            self.by_key.remove(&peer.planned.public_key);
            update.peers.push(PeerUpdate { remove: true, ..PeerUpdate::new(peer.planned.public_key) });
        }
        let mut fresh = Vec::new();
        for p in planned {
            if let Some(known) = self.peers.get_mut(&p.jid) {
                if known.planned != p {
                    if known.planned.name != p.name {
                        let (jid, before) = (&p.jid, &known.planned.name);
                        tracing::info!("{}: {jid} is called {} now and was {before}", self.name, p.name);
                    }
                    known.planned = p;
                    update.peers.push(known.entry());
                }
                continue;
            }
            let config = LinkConfig {
                proactive: self.config.links == LinkPolicy::Proactive,
                idle_timeout: self.config.idle_timeout,
                our_jid: our_jid.unwrap_or_default().to_owned(),
                peer_jid: p.jid.clone(),
            };
            let id = LinkId { network: self.id, jid: p.jid.clone() };
            let what = if self.config.social().is_some() { "a friend's node" } else { "a member" };
            tracing::info!("{}: {} ({}) is {what}, key {}", self.name, p.jid, p.name, p.public_key);
            self.by_key.insert(p.public_key, p.jid.clone());
            fresh.push(p.jid.clone());
            let peer = Peer::new(id, p, Link::new(config, seed()));
            update.peers.push(peer.entry());
            self.peers.insert(peer.planned.jid.clone(), peer);
        }
        if !update.peers.is_empty()
            && let Err(e) = self.engine.configure(update)
        {
            tracing::error!("{}: {e}", self.name);
        }
        for jid in fresh {
            let hands = hands!(self, xmpp, events);
            let Some(peer) = self.peers.get_mut(&jid) else { continue };
            if signaling {
                peer.handle(Input::SignalingUp, &hands);
            }
            if online.contains(&jid) {
                peer.set_online(true, &hands);
            }
        }
        self.warnings = warnings;
        self.route(host).await;
    }

    /// Routes the members' subnets to the interface.
    async fn route(&mut self, host: &Host) {
        let wanted: BTreeSet<Prefix> = self.peers.values().flat_map(|p| p.planned.routes.iter().copied()).collect();
        self.refused_routes.retain(|p| wanted.contains(p));
        let old: Vec<Prefix> = self.routed.difference(&wanted).copied().collect();
        let new: Vec<Prefix> =
            wanted.difference(&self.routed).filter(|p| !self.refused_routes.contains(p)).copied().collect();
        if !old.is_empty() || !new.is_empty() {
            let refused = match host.change_routes(&self.config.interface, &old, &new).await {
                Ok(refused) => refused,
                Err(e) => {
                    // The interface is on its way out, or netlink hangs: the next plan tries again.
                    tracing::warn!("{}: {e}", self.name);
                    return;
                }
            };
            for p in old {
                self.routed.remove(&p);
            }
            self.routed.extend(new.into_iter().filter(|p| !refused.iter().any(|(r, _)| r == p)));
            for (prefix, why) in refused {
                tracing::warn!("{}: the route {prefix} is not taken: {why}", self.name);
                self.refused_routes.insert(prefix);
            }
        }
        let more = self.refused_routes.iter().map(|p| format!("the route {p} is not taken: the kernel refuses it"));
        self.warnings.extend(more);
    }

    /// What is carried by this network's tunnel.
    pub(super) fn carries(&self) -> impl Iterator<Item = Prefix> {
        self.subnets().into_iter().chain(self.routed.iter().copied())
    }

    /// What it carries and what lies behind us: nothing of it may be routed into another network.
    pub(super) fn reaches(&self) -> impl Iterator<Item = Prefix> {
        self.carries().chain(self.routes().iter().copied())
    }

    /// Where datagrams for members go: a route that covers such an address would send them into the tunnel that they
    /// carry.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = IpAddr> {
        self.peers.values().filter_map(|p| p.link.path()).map(|(path, _)| path.address().ip())
    }

    /// The peer with this key.
    pub(super) fn jid_of(&self, key: &PublicKey) -> Option<&str> {
        self.by_key.get(key).map(String::as_str)
    }

    /// Something for every link.
    pub(super) fn handle_all(&mut self, input: &Input, xmpp: &Xmpp, events: &mpsc::Sender<Event>) {
        let hands = hands!(self, xmpp, events);
        for peer in self.peers.values_mut() {
            peer.handle(input.clone(), &hands);
        }
    }

    /// Runs timers, and lets links take turns.
    pub(super) fn handle_timeouts(&mut self, now: Time, xmpp: &Xmpp, events: &mpsc::Sender<Event>) {
        let hands = hands!(self, xmpp, events);
        for peer in self.peers.values_mut() {
            if peer.link.poll_timeout().is_some_and(|t| t <= now) {
                peer.link.handle_timeout(now);
                peer.pump(&hands);
            }
        }
        let free = self.pace.at_once().saturating_sub(self.searching());
        let mut waiting: Vec<_> = self.peers.values_mut().filter_map(|p| Some((p.link.turn_at()?, p))).collect();
        waiting.retain(|(at, _)| *at <= now);
        waiting.sort_by_key(|(at, _)| *at);
        for (_, peer) in waiting.into_iter().take(free) {
            peer.handle(Input::Turn, &hands);
        }
    }

    fn searching(&self) -> usize {
        self.peers.values().filter(|p| p.link.is_searching()).count()
    }

    /// When the first timer ends.
    pub(super) fn next_timeout(&self) -> Option<Time> {
        let timers = self.peers.values().filter_map(|p| p.link.poll_timeout()).min();
        // With none free, the end of an attempt is the next chance.
        let turns = if self.searching() < self.pace.at_once() {
            self.peers.values().filter_map(|p| p.link.turn_at()).min()
        } else {
            None
        };
        timers.into_iter().chain(turns).min()
    }

    /// Tells the links what the data plane knows.
    pub(super) fn look(&mut self, xmpp: &Xmpp, events: &mpsc::Sender<Event>) {
        if self.peers.is_empty() {
            return;
        }
        let now = Engine::now();
        let state = self.engine.state();
        let hands = hands!(self, xmpp, events);
        for tunnel in state.peers {
            let jid = self.by_key.get(&tunnel.public_key);
            if let Some(peer) = jid.and_then(|jid| self.peers.get_mut(jid)) {
                peer.look(now, tunnel, &hands);
            }
        }
    }

    /// Whether a link waits for its tunnel: then the data plane is looked at often.
    pub(super) fn is_shaking_hands(&self) -> bool {
        self.peers.values().any(|p| p.link.state() == crate::link::State::Handshaking)
    }

    /// Ends links, ICE and engine. The routes go with the interface.
    pub(super) fn close(&mut self, xmpp: &Xmpp, events: &mpsc::Sender<Event>) {
        let hands = hands!(self, xmpp, events);
        for peer in self.peers.values_mut() {
            peer.close(Reason::Gone, &hands);
        }
        self.ice.close();
    }
}
