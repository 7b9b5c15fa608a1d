//! A network in memory: two nodes behind NATs, each perhaps with an allocation on a server of its own.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::super::candidate::{Candidate, CandidateKind, Credentials};
use super::super::super::route::Route;
use super::super::super::stun::{Class, View, Writer, attr, method};
use super::super::super::turn::Uses;
use super::super::{Chosen, Finder, Relay, Role, Wire, priority};

/// One way through the network.
pub(super) const LATENCY: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nat {
    None,
    /// One mapping; lets in only who was sent to.
    Cone,
    /// One mapping; lets in everybody once something was sent.
    FullCone,
    /// A mapping for each destination; lets in only who was sent to.
    Symmetric,
    /// Nothing direct comes in.
    Deaf,
}

pub(super) struct Node {
    number: u8,
    pub(super) nat: Nat,
    pub(super) relay: Option<Relay>,
    credentials: Credentials,
    finder: OnceLock<Mutex<Option<Finder>>>,
    /// Mappings made (destination) and holes: own port, remote.
    mappings: Mutex<Vec<SocketAddr>>,
    holes: Mutex<HashSet<(u16, SocketAddr)>>,
    pub(super) permitted: Mutex<HashSet<IpAddr>>,
    /// When relays were wanted.
    pub(super) wanted: Mutex<Vec<Instant>>,
    pub(super) bound: Mutex<Vec<Uses>>,
    pub(super) sent: Mutex<Vec<Route>>,
    outcome: Mutex<Option<oneshot::Sender<Result<Chosen, String>>>>,
    world: Weak<World>,
}

pub(super) struct World {
    nodes: [Arc<Node>; 2],
    /// Of 100.
    pub(super) loss: u64,
    dice: Mutex<u64>,
    pub(super) refuse_channels: bool,
}

/// Answers every STUN request, as servers and meddling boxes do, and signs nothing.
pub(super) const ECHO: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 99)), 3478);

const BASE: u16 = 5000;

impl Node {
    fn public(&self, port: u16) -> SocketAddr {
        SocketAddr::from(([198, 51, 100, self.number], port))
    }

    pub(super) fn private(&self) -> SocketAddr {
        SocketAddr::from(([10, 0, self.number, 2], BASE))
    }

    /// Its address in the tunnel, which leads to the other node.
    pub(super) fn inside(&self) -> SocketAddr {
        SocketAddr::from(([172, 16, 10, self.number], BASE))
    }

    /// What others see.
    pub(super) fn mapped(&self) -> SocketAddr {
        self.public(BASE)
    }

    /// Sends from here: makes a mapping and a hole.
    fn source(&self, to: SocketAddr) -> SocketAddr {
        let port = if self.nat == Nat::Symmetric {
            let mut m = self.mappings.lock().expect("lock");
            let i = m.iter().position(|d| *d == to).unwrap_or_else(|| {
                m.push(to);
                m.len() - 1
            });
            BASE + 1 + i as u16
        } else {
            BASE
        };
        self.holes.lock().expect("lock").insert((port, to));
        self.public(port)
    }

    fn lets_in(&self, from: SocketAddr, port: u16) -> bool {
        let holes = self.holes.lock().expect("lock");
        match self.nat {
            Nat::None => port == BASE,
            Nat::FullCone => port == BASE && !holes.is_empty(),
            Nat::Cone | Nat::Symmetric => holes.contains(&(port, from)),
            Nat::Deaf => false,
        }
    }

    pub(super) fn with<R>(self: &Arc<Self>, f: impl FnOnce(&mut Finder) -> R) -> Option<R> {
        let mut finder = self.finder.get()?.lock().expect("lock");
        let finder = finder.as_mut()?;
        let r = f(finder);
        for (server, ip) in finder.take_permits() {
            let node = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(LATENCY * 2).await;
                node.permit(server, ip);
            });
        }
        Some(r)
    }

    fn permit(&self, server: SocketAddr, ip: IpAddr) {
        self.permitted.lock().expect("lock").insert(ip);
        if let Some(f) = self.finder.get().expect("started").lock().expect("lock").as_mut() {
            f.permitted(server, ip, true);
        }
    }

    /// Nothing will be told any more: the finder is gone.
    pub(super) fn hang_up(&self) {
        *self.outcome.lock().expect("lock") = None;
    }

    pub(super) fn close(&self) {
        *self.finder.get().expect("started").lock().expect("lock") = None;
    }

    /// What it tells the peer.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let of = |kind, address| Candidate {
            foundation: "f".into(),
            priority: priority(kind, 50_000),
            address,
            kind,
            related: None,
        };
        let mut list = vec![of(CandidateKind::Host, self.private())];
        if self.nat == Nat::None {
            list[0].address = self.mapped();
        } else {
            list.push(of(CandidateKind::ServerReflexive, self.mapped()));
        }
        list.extend(self.relay.map(|r| of(CandidateKind::Relayed, r.relayed)));
        list
    }

    fn locals(&self) -> Vec<(SocketAddr, CandidateKind)> {
        self.candidates().iter().map(|c| (c.address, c.kind)).collect()
    }
}

struct NodeWire(Arc<Node>);

impl Wire for NodeWire {
    fn send(&self, route: Route, bytes: &[u8]) {
        self.0.sent.lock().expect("lock").push(route);
        let Some(world) = self.0.world.upgrade() else { return };
        let (from, to) = match route {
            Route::Direct(to) if world.nodes.iter().any(|n| n.inside() == to) => (self.0.inside(), to),
            Route::Direct(to) => (self.0.source(to), to),
            Route::Relay { server, peer } => {
                let relay = self.0.relay.filter(|r| r.server == server).expect("a relay of ours");
                assert!(self.0.permitted.lock().expect("lock").contains(&peer.ip()), "sent without permission");
                (relay.relayed, peer)
            }
        };
        let bytes = bytes.to_vec();
        tokio::spawn(async move {
            tokio::time::sleep(LATENCY).await;
            world.deliver(from, to, &bytes);
            if let Some(answer) = View::parse(&bytes).filter(|_| to == ECHO) {
                let answer = Writer::new(Class::Success, method::BINDING, &answer.tid());
                let answer = answer.xor_address(attr::XOR_MAPPED_ADDRESS, from).finish();
                tokio::time::sleep(LATENCY).await;
                world.deliver(ECHO, from, &answer);
            }
        });
    }

    fn want_relays(&self) {
        self.0.wanted.lock().expect("lock").push(Instant::now());
        self.0.with(Finder::want_relays);
    }

    fn bind(&self, server: SocketAddr, peer: SocketAddr) {
        let node = self.0.clone();
        let refuse = node.world.upgrade().is_some_and(|w| w.refuse_channels);
        tokio::spawn(async move {
            tokio::time::sleep(LATENCY * 2).await;
            let n = 0x4000 + node.bound.lock().expect("lock").len() as u16;
            let uses = Uses::default();
            let answer = if refuse { Err("403 Forbidden".to_owned()) } else { Ok(uses.lease(n)) };
            node.bound.lock().expect("lock").push(uses);
            node.with(|f| f.bound(server, peer, answer));
        });
    }

    fn done(&self, outcome: Result<Chosen, String>) {
        let tx = self.0.outcome.lock().expect("lock").take().expect("done once");
        let _ = tx.send(outcome);
    }
}

impl World {
    pub(super) fn new(nats: [Nat; 2], relays: [bool; 2]) -> Arc<Self> {
        Self::with(nats, relays, 0, false)
    }

    pub(super) fn with(nats: [Nat; 2], relays: [bool; 2], loss: u64, refuse_channels: bool) -> Arc<Self> {
        Arc::new_cyclic(|world| {
            let node = |i: usize| {
                let number = i as u8 + 1;
                let relay = Relay {
                    server: SocketAddr::from(([203, 0, 113, number], 3478)),
                    relayed: SocketAddr::from(([203, 0, 113, number], 49_000)),
                };
                Arc::new(Node {
                    number,
                    nat: nats[i],
                    relay: relays[i].then_some(relay),
                    credentials: Credentials {
                        ufrag: format!("frag{i}"),
                        password: format!("password-of-node-number-{i}").into(),
                    },
                    finder: OnceLock::new(),
                    mappings: Mutex::default(),
                    holes: Mutex::default(),
                    permitted: Mutex::default(),
                    wanted: Mutex::default(),
                    bound: Mutex::default(),
                    sent: Mutex::default(),
                    outcome: Mutex::default(),
                    world: world.clone(),
                })
            };
            Self { nodes: [node(0), node(1)], loss, dice: Mutex::new(1), refuse_channels }
        })
    }

    pub(super) fn node(&self, i: usize) -> &Arc<Node> {
        &self.nodes[i]
    }

    fn is_lost(&self) -> bool {
        let mut d = self.dice.lock().expect("lock");
        *d = d.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*d >> 33) % 100 < self.loss
    }

    fn deliver(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        if self.is_lost() {
            return;
        }
        for n in &self.nodes {
            let route = match n.relay {
                Some(r) if r.relayed == to => {
                    let may = n.permitted.lock().expect("lock").contains(&from.ip());
                    may.then_some(Route::Relay { server: r.server, peer: from })
                }
                _ if to == n.inside() => Some(Route::Direct(from)),
                _ => (to.ip() == n.mapped().ip() && n.lets_in(from, to.port())).then_some(Route::Direct(from)),
            };
            if let Some(route) = route {
                let v = View::parse(bytes).expect("agents speak STUN");
                n.with(|f| f.incoming(route, &v));
            }
        }
    }

    /// Starts node `i`'s finder; it tells nothing to the other yet.
    pub(super) fn start(&self, i: usize) -> oneshot::Receiver<Result<Chosen, String>> {
        let n = &self.nodes[i];
        let (tx, rx) = oneshot::channel();
        *n.outcome.lock().expect("lock") = Some(tx);
        let role = if i == 0 { Role::Controlling } else { Role::Controlled };
        let wire = Arc::new(NodeWire(n.clone()));
        let finder = Finder::new(&Handle::current(), role, n.credentials.clone(), false, wire);
        assert!(n.finder.set(Mutex::new(Some(finder))).is_ok(), "started once");
        n.with(|f| f.set_local((true, true), n.locals(), n.relay.into_iter().collect(), true));
        rx
    }

    /// Gives what node `from` says to the other.
    pub(super) fn signal(&self, from: usize, candidates: &[Candidate], all: bool) {
        let c = self.nodes[from].credentials.clone();
        self.nodes[1 - from].with(|f| {
            f.set_remote(&c);
            f.add_remote(candidates);
            if all {
                f.add_remote(&[]);
            }
        });
    }

    /// Both sides, all at once.
    pub(super) async fn negotiate(&self) -> [Result<Chosen, String>; 2] {
        let (a, b) = (self.start(0), self.start(1));
        self.signal(0, &self.nodes[0].candidates(), true);
        tokio::time::sleep(LATENCY).await;
        self.signal(1, &self.nodes[1].candidates(), true);
        let (a, b) = tokio::join!(a, b);
        [a.expect("an outcome"), b.expect("an outcome")]
    }
}
