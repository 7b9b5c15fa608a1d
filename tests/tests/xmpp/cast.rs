//! Nodes, servers and what is usual about them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use control::config::{GroupSource, XmppConfig};
use control::ice::{Candidate, CandidateKind, Credentials};
use control::identity::{Descriptor, NetworkDescriptor};
use control::xmpp::{Event, Negotiation, Settings, Signal, SignalRequest, Verdict, Xmpp};
use dataplane::tunnel::PublicKey;
use ipop_tests::ns::Namespace;
use ipop_tests::scene::{Share, play};
use ipop_tests::servers::{Ca, Ejabberd, Prosody, Server, Setup, ejabberd_needs, prosody_needs};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

pub(crate) const GROUP: &str = "my group & <co>";
pub(crate) const NETWORK: &str = "group:my group & <co>";
/// For whatever should happen at once, on a machine that does other things too.
pub(crate) const SOON: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Prosody,
    Ejabberd,
}

pub(crate) struct Stage {
    pub server: Box<dyn Server + Send>,
    pub ca: Ca,
}

/// Accounts a, b (in the group and the room) and c (in neither); every password is `secret-USER`.
pub(crate) fn scene<F: Future<Output = Result<()>>>(kind: Kind, body: impl FnOnce(Stage) -> F + Send) {
    let needs = if kind == Kind::Prosody { prosody_needs() } else { ejabberd_needs() };
    if let Some(level) = control::logging::asked_level(None) {
        control::logging::start(Some(level));
    }
    play(Share::Shared, &needs, || {
        let (ns, ca) = (Namespace::new("xmpp")?, Ca::new()?);
        let setup = Setup::new("xmpp.test", IpAddr::V4(Ipv4Addr::LOCALHOST))
            .users(&[("a", "secret-a"), ("b", "secret-b"), ("c", "secret-c")])
            .group(GROUP, &["a", "b"])
            .room("room", &["a", "b"]);
        let server: Box<dyn Server + Send> = match kind {
            Kind::Prosody => Box::new(Prosody::start(&ns, &ca, &setup)?),
            Kind::Ejabberd => Box::new(Ejabberd::start(&ns, &ca, &setup)?),
        };
        let stage = Stage { server, ca };
        // The runtime's threads are made in the namespace, and so are their sockets.
        ns.run(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let result = runtime.block_on(body(stage));
            runtime.shutdown_timeout(Duration::from_secs(1));
            result
        })
    });
}

impl Stage {
    pub(crate) fn settings(&self, user: &str, device: &str) -> Settings {
        let address = self.server.address();
        let account = XmppConfig {
            jid: self.server.jid(user),
            password: Zeroizing::new(format!("secret-{user}")),
            server: Some((address.ip().to_string(), address.port())),
            direct_tls: false,
            ca_file: Some(self.ca.pem()),
        };
        let groups = vec![GroupSource::Roster(GROUP.into())];
        Settings { account, resource: format!("ipop-{device}"), groups, friends: vec![] }
    }

    pub(crate) fn node(&self, user: &str, device: &str) -> Result<Node> {
        Node::start(self.settings(user, device))
    }

    pub(crate) fn room_node(&self, user: &str, device: &str) -> Result<Node> {
        let groups = vec![GroupSource::Muc(self.server.room("room"))];
        Node::start(Settings { groups, ..self.settings(user, device) })
    }

    pub(crate) fn full(&self, user: &str, device: &str) -> String {
        format!("{}/ipop-{device}", self.server.jid(user))
    }

    /// Something with the server that blocks.
    pub(crate) fn with<T>(&mut self, f: impl FnOnce(&mut dyn Server) -> Result<T>) -> Result<T> {
        tokio::task::block_in_place(|| f(&mut *self.server))
    }
}

/// A node and what it has been told so far.
pub(crate) struct Node {
    pub xmpp: Xmpp,
    events: mpsc::Receiver<Event>,
    pub online: usize,
    pub offline: Vec<String>,
    pub refused: Option<String>,
    pub members: BTreeMap<String, BTreeSet<String>>,
    pub present: BTreeSet<String>,
    pub descriptors: BTreeMap<String, Descriptor>,
    pub signals: Vec<SignalRequest>,
}

impl Node {
    pub(crate) fn start(settings: Settings) -> Result<Self> {
        let (xmpp, events) = control::xmpp::start(settings)?;
        Ok(Self {
            xmpp,
            events,
            online: 0,
            offline: Vec::new(),
            refused: None,
            members: BTreeMap::new(),
            present: BTreeSet::new(),
            descriptors: BTreeMap::new(),
            signals: Vec::new(),
        })
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Reached { .. } => {}
            Event::Online { .. } => {
                self.online += 1;
                self.present.clear();
            }
            Event::Offline { why } => self.offline.push(why),
            Event::Refused { why } => self.refused = Some(why),
            Event::Members { network, accounts } => drop(self.members.insert(network, accounts)),
            Event::Presence { jid, available: true } => drop(self.present.insert(jid)),
            Event::Presence { jid, available: false } => drop(self.present.remove(&jid)),
            Event::Descriptor { account, device, descriptor } => {
                self.descriptors.insert(format!("{account}/{device}"), descriptor);
            }
            Event::DescriptorGone { account, device } => {
                self.descriptors.remove(&format!("{account}/{device}"));
            }
            Event::Signal(s) => self.signals.push(s),
            // What is said of friends is tried with whole nodes (tests/social).
            Event::Friends(_) => {}
        }
    }

    /// Takes events until the condition holds.
    pub(crate) async fn until(&mut self, what: &str, limit: Duration, holds: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = tokio::time::Instant::now() + limit;
        while !holds(self) {
            match tokio::time::timeout_at(deadline, self.events.recv()).await {
                Ok(Some(event)) => self.note(event),
                Ok(None) => bail!("the connection ended, waiting for {what}: {self}"),
                Err(_) => bail!("waited {limit:?} for {what}: {self}"),
            }
        }
        Ok(())
    }

    /// Takes the events of a while in which nothing should happen.
    pub(crate) async fn during<T>(&mut self, other: impl Future<Output = T>) -> T {
        tokio::pin!(other);
        loop {
            tokio::select! {
                done = &mut other => return done,
                Some(event) = self.events.recv() => self.note(event),
            }
        }
    }

    pub(crate) async fn knows_group(&mut self, network: &str, members: &[String]) -> Result<()> {
        let members: BTreeSet<String> = members.iter().cloned().collect();
        self.until("members", SOON, |n| n.members.get(network) == Some(&members)).await
    }

    /// Takes a signal in and answers it.
    pub(crate) async fn answer_one(&mut self, verdict: Verdict) -> Result<(String, Signal)> {
        self.until("a signal", SOON, |n| !n.signals.is_empty()).await?;
        let request = self.signals.remove(0);
        let said = (request.from.clone(), request.signal.clone());
        self.xmpp.answer(request, verdict);
        Ok(said)
    }

    /// Sends a signal to a node that answers with a verdict; gives what the sender was told.
    pub(crate) async fn signals(
        &mut self,
        peer: &mut Self,
        to: &str,
        signal: &Signal,
        verdict: Verdict,
    ) -> Result<Result<(), control::xmpp::SignalError>> {
        let xmpp = self.xmpp.clone();
        let (told, got) = tokio::join!(xmpp.signal(to, signal.clone()), peer.answer_one(verdict));
        let (_, got) = got.context("at the receiver")?;
        ensure!(got == *signal, "sent {signal:?}, arrived {got:?}");
        Ok(told)
    }
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "online {}, offline {:?}, refused {:?}, members {:?}, present {:?}, descriptors of {:?}, {} signals",
            self.online,
            self.offline,
            self.refused,
            self.members,
            self.present,
            self.descriptors.keys().collect::<Vec<_>>(),
            self.signals.len()
        )
    }
}

pub(crate) fn descriptor(name: &str, network: &str) -> Descriptor {
    let networks = vec![NetworkDescriptor {
        network: network.into(),
        public_key: PublicKey([name.len().try_into().unwrap_or(0); 32]),
        addresses: vec!["172.16.10.2/32".parse().expect("a constant"), "fd00::1/128".parse().expect("a constant")],
        routes: vec!["10.1.0.0/16".parse().expect("a constant")],
        subnet: None,
        since: 1_750_000_000_000,
    }];
    Descriptor { name: name.into(), version: "0.1.0".into(), capabilities: vec!["x".into()], networks }
}

pub(crate) fn negotiation(network: &str) -> Negotiation {
    let candidate = |kind, address: &str, related: Option<&str>| Candidate {
        foundation: "1".into(),
        priority: 2_130_706_431,
        address: address.parse().expect("a constant"),
        kind,
        related: related.map(|r| r.parse().expect("a constant")),
    };
    Negotiation {
        network: network.into(),
        credentials: Credentials {
            ufrag: "abcdefgh".into(),
            password: "0123456789abcdef0123456789abcdef".to_owned().into(),
        },
        candidates: vec![
            candidate(CandidateKind::Host, "192.0.2.1:51820", None),
            candidate(CandidateKind::ServerReflexive, "203.0.113.7:40000", Some("192.0.2.1:51820")),
            candidate(CandidateKind::Relayed, "[2001:db8::1]:50000", Some("203.0.113.7:40000")),
        ],
    }
}
