//! How a node begins: its state is read, its networks are opened, and everything that can happen comes to its loop.

use super::event::{Event, Servers};
use super::friends;
use super::names::Names;
use super::network::Network;
use super::run::{Connection, FRIENDS, LEASES, Node, PINS, TEND};
use crate::Error;
use crate::cli::UpArgs;
use crate::config::NodeConfig;
use crate::host::Host;
use crate::ice::IceEvent;
use crate::identity::Keys;
use crate::link_watch::LinkWatch;
use crate::network::{FriendLeases, Leases, Pins, Store};
use crate::xmpp::{self, FriendSource, Friends};
use dataplane::crypto::Backend;
use dataplane::{Closed, probe};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;
use tokio::sync::mpsc;

impl Node {
    /// Opens the networks, connects to the kernel and begins to log in.
    ///
    /// # Errors
    /// What the user has to mend: state, interfaces, subnets.
    pub(super) async fn start(
        args: &UpArgs,
        config: NodeConfig,
        keys: &Keys,
        events: &mpsc::Sender<Event>,
    ) -> Result<Self, Error> {
        let store = Store::open(&config.state_dir)?;
        let pins = store.read::<Pins>(PINS)?.unwrap_or_default().sorted();
        let leases = store.read::<Leases>(LEASES)?.unwrap_or_default();
        let friend_leases = store.read::<FriendLeases>(FRIENDS)?.unwrap_or_default();
        let host = Host::new()?;
        friends::refuse_overlaps(&config, &host).await?;
        let mut networks = Vec::new();
        for (id, network) in config.networks.iter().enumerate() {
            let relay_private = config.ice.relay_private;
            let network = Network::open(id, network.clone(), keys, args, relay_private, events)?;
            networks.push(network);
        }
        let social = config.networks.iter().filter_map(crate::config::NetworkConfig::social);
        let settings = xmpp::Settings {
            account: config.xmpp.clone(),
            resource: keys.node_resource(),
            groups: config.networks.iter().filter_map(|n| n.group().map(|g| g.source.clone())).collect(),
            friends: social.map(|s| FriendSource { network: s.network(), allow: s.allow.clone() }).collect(),
        };
        let (xmpp, mut from_xmpp) = xmpp::start(settings).map_err(|e| Error::State(e.to_string()))?;
        let forward = events.clone();
        tokio::spawn(async move {
            while let Some(e) = from_xmpp.recv().await {
                if forward.send(Event::Xmpp(e)).await.is_err() {
                    return;
                }
            }
        });
        let interfaces: Vec<String> = config.networks.iter().map(|n| n.interface.clone()).collect();
        let mut changes = host.watch(interfaces).await?;
        let forward = events.clone();
        tokio::spawn(async move {
            while changes.recv().await.is_some() {
                if forward.send(Event::Host).await.is_err() {
                    return;
                }
            }
        });
        let names = Names::new(config.names.enabled);
        let speeds = probe::ciphers(args.engine.aead.0.unwrap_or_else(Backend::detect));
        let mut node = Self {
            args: args.clone(),
            config,
            host,
            xmpp,
            store,
            pins,
            leases,
            friend_leases,
            friends: Friends::default(),
            networks,
            names,
            speeds,
            started: Instant::now(),
            jid: None,
            connection: Connection { online: false, detail: "connecting".into(), since: Instant::now() },
            members: HashMap::new(),
            descriptors: BTreeMap::new(),
            present: HashSet::new(),
            servers: Servers::default(),
            xmpp_server: None,
            servers_problem: None,
            underlay: None,
            events: events.clone(),
            finding_servers: None,
            dirty: None,
            sweep_at: None,
            choose_at: None,
            look_at: Instant::now(),
            tend_at: Instant::now() + TEND,
        };
        for id in 0..node.networks.len() {
            node.choose_address(id, false);
            node.networks[id].set_up(&node.host).await?;
            node.attend(id)?;
        }
        node.host_changed().await;
        node.publish();
        node.tell_cipher();
        for n in &node.networks {
            let addresses: Vec<String> = n.interface_addresses().iter().map(|(a, len)| format!("{a}/{len}")).collect();
            tracing::info!(
                "{}: interface {} with {}, UDP port {}, key {}",
                n.name,
                n.config.interface,
                addresses.join(" and "),
                n.port,
                n.public_key
            );
        }
        Ok(node)
    }

    /// Says which cipher links get, and why.
    pub(super) fn tell_cipher(&self) {
        let (choice, speeds) = (self.config.cipher.name(), &self.speeds);
        let links = if self.offers_aes() { "AES-256-GCM to nodes that have it too" } else { "ChaCha20-Poly1305" };
        tracing::info!("{speeds} a core; cipher = \"{choice}\": links get {links}");
        if self.offers_aes() && !speeds.has_aes {
            tracing::warn!("this CPU has no AES instructions: with cipher = \"auto\" links would be faster");
        }
    }

    /// Listens to what a network's parts have to say.
    fn attend(&self, id: usize) -> Result<(), Error> {
        let n = &self.networks[id];
        let (events, mut ice) = (self.events.clone(), n.ice.events());
        tokio::spawn(async move {
            use tokio::sync::broadcast::error::RecvError;
            loop {
                let event = match ice.recv().await {
                    Ok(event) => event,
                    // Whatever was missed, something changed.
                    Err(RecvError::Lagged(_)) => IceEvent::Changed { why: "much at once".into() },
                    Err(RecvError::Closed) => return,
                };
                if events.send(Event::Ice(id, event)).await.is_err() {
                    return;
                }
            }
        });
        let failed = |e| Error::io("start a thread", e);
        let closed = crate::run::closed(n.engine.clone()).map_err(failed)?;
        let (events, interface) = (self.events.clone(), n.config.interface.clone());
        tokio::spawn(async move {
            let why = match closed.await {
                Ok(Closed::DeviceGone) => format!("interface {interface} was deleted"),
                Ok(Closed::Failed(e)) => format!("the data plane of {interface} stopped: {e}"),
                Ok(Closed::Shutdown) | Err(_) => return,
            };
            let _ = events.send(Event::Closed(why)).await;
        });
        let links = LinkWatch::new(&n.config.interface)?;
        let (engine, interface) = (n.engine.clone(), n.config.interface.clone());
        tokio::spawn(async move { crate::run::follow(&interface, links, &engine).await });
        Ok(())
    }
}
