//! Two nodes in memory: handshakes between their tunnels, and shards without a kernel.

use crate::Noise;
use dataplane::crypto::Backend;
use dataplane::io::event::Bell;
use dataplane::io::memory::{Arrival, Memory};
use dataplane::shard::{Shard, TunFormat};
use dataplane::shared::{Mailbox, Queues, Shared};
use dataplane::stats::Stats;
use dataplane::table::Routes;
use dataplane::tunnel::limits::REKEY_TIMEOUT;
use dataplane::tunnel::{Output, Peer, PrivateKey, Rng, SessionTable, Tunnel};
use dataplane::{Path, Time, Translation, WallTime};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

struct Seeded(Noise);

impl Rng for Seeded {
    fn fill(&mut self, out: &mut [u8]) {
        out.copy_from_slice(&self.0.bytes(out.len()));
    }
}

/// A tunnel and its one peer.
pub struct Node {
    /// Where it is.
    pub address: SocketAddr,
    /// Its slow path.
    pub tunnel: Tunnel,
    sessions: Arc<SessionTable>,
    /// The other node.
    pub peer: Arc<Peer>,
}

/// Two nodes that know each other, and a clock.
pub struct Pair {
    /// The one that starts handshakes.
    pub a: Node,
    /// The other one.
    pub b: Node,
    /// The time at both.
    pub now: Time,
}

impl Node {
    fn new(me: u8, other: u8, backend: Backend) -> Self {
        let address = |n: u8| SocketAddr::from(([192, 0, 2, n], 51820));
        let key = |n: u8| PrivateKey::new([n; 32]);
        let sessions = Arc::new(SessionTable::default());
        let mut tunnel = Tunnel::new(backend, sessions.clone(), Box::new(Seeded(Noise::new(u64::from(me)))));
        tunnel.set_private_key(Some(key(me)));
        let peer = tunnel.add_peer(key(other).public()).expect("the first peer");
        peer.set_path(Path::Direct(address(other)));
        Self { address: address(me), tunnel, sessions, peer }
    }

    /// The one message that the tunnel wants sent.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn message(&mut self) -> Vec<u8> {
        loop {
            if let Output::Send { message, .. } = self.tunnel.poll_output().expect("a message") {
                while self.tunnel.poll_output().is_some() {}
                return message.as_ref().to_vec();
            }
        }
    }
}

impl Pair {
    /// Two nodes without a session.
    #[must_use]
    pub fn new(backend: Backend) -> Self {
        Self { a: Node::new(1, 2, backend), b: Node::new(2, 1, backend), now: Time::from_nanos(1_000_000_000_000) }
    }

    /// The wall clock.
    #[must_use]
    pub fn wall(&self) -> WallTime {
        WallTime(Duration::from_nanos(self.now.as_nanos()))
    }

    /// Some time later, when another handshake may be started: the first node's initiation.
    pub fn initiation(&mut self) -> Vec<u8> {
        self.now += REKEY_TIMEOUT + Duration::from_secs(1);
        self.a.tunnel.initiate(self.now, self.wall(), &self.a.peer);
        self.a.message()
    }

    /// The second node's answer.
    ///
    /// # Panics
    /// If the initiation is refused.
    pub fn response(&mut self, initiation: &[u8]) -> Vec<u8> {
        let wall = self.wall();
        self.b.tunnel.handle(self.now, wall, Path::Direct(self.a.address), initiation, false).expect("accepted");
        self.b.message()
    }

    /// The first node takes the answer, and confirms it by a keepalive.
    ///
    /// # Panics
    /// If the response is refused.
    pub fn confirmation(&mut self, response: &[u8]) -> Vec<u8> {
        let wall = self.wall();
        self.a.tunnel.handle(self.now, wall, Path::Direct(self.b.address), response, false).expect("accepted");
        self.a.message()
    }

    /// Two shards with a session, both ways.
    ///
    /// # Panics
    /// If the handshake fails.
    #[must_use]
    pub fn stations(mut self) -> [Station; 2] {
        let initiation = self.initiation();
        let response = self.response(&initiation);
        let confirmation = self.confirmation(&response);
        let (a, b) = (Station::new(&self.a, self.now), Station::new(&self.b, self.now));
        let mut stations = [a, b];
        stations[1].arrive(self.a.address, confirmation.clone(), confirmation.len());
        stations[1].turn();
        assert!(self.b.peer.current().is_some(), "a session");
        // A tunnel that is dropped ends its sessions: it stays with its shard.
        let [a, b] = &mut stations;
        (a.node, b.node) = (Some(self.a), Some(self.b));
        stations
    }
}

/// A shard with all that it needs around it.
pub struct Station {
    /// The shard.
    pub shard: Shard<Memory>,
    /// Its tunnel, kept alive.
    node: Option<Node>,
    address: SocketAddr,
    shared: Arc<Shared>,
    now: Time,
    _queues: Queues,
}

impl Station {
    fn new(node: &Node, now: Time) -> Self {
        let (mailbox, commands) = Mailbox::new(Arc::new(Bell::new().expect("an eventfd")));
        let mut routes = Routes::new();
        for all in ["0.0.0.0/0", "::/0"] {
            routes.insert(all.parse().expect("a prefix"), node.peer.clone());
        }
        let (mut shared, queues) = Shared::new(vec![mailbox], crate::packets::MTU as u16);
        shared.routes.store(Arc::new(routes));
        shared.sessions = node.sessions.clone();
        shared.mac.store(node.tunnel.mac_verifier());
        let shared = Arc::new(shared);
        let format = TunFormat { vnet: true, tso: true, uso: true };
        let shard = Shard::new(0, Memory::default(), shared.clone(), commands, format);
        Self { node: None, shard, address: node.address, shared, now, _queues: queues }
    }

    /// Puts datagrams of `segment` bytes each, back to back, into the socket.
    pub fn arrive(&mut self, from: SocketAddr, bytes: Vec<u8>, segment: usize) {
        self.shard.driver().arrivals.push_back(Arrival { from, bytes, segment, truncated: false });
    }

    /// Deals with what is there.
    ///
    /// # Panics
    /// If the shard fails.
    pub fn turn(&mut self) {
        self.shard.turn(Some(Duration::ZERO), || self.now).expect("the shard goes on");
    }

    /// Seals TUN reads for `to`, whose socket gets each of them as one run, as GRO does.
    pub fn send(&mut self, reads: &[Vec<u8>], to: &mut Self) {
        self.shard.driver().keep = true;
        for read in reads {
            self.shard.driver().packets.push_back(read.clone());
            self.turn();
            let sent = std::mem::take(&mut self.shard.driver().sent);
            let segment = sent.first().map_or(1, |(_, d)| d.len());
            to.arrive(self.address, sent.into_iter().flat_map(|(_, d)| d).collect(), segment);
        }
    }

    /// Translates what comes from the peer.
    ///
    /// # Panics
    /// On a station that has no tunnel: none of [`Pair::stations`].
    pub fn translate(&self, translation: Translation) {
        self.node.as_ref().expect("a tunnel").peer.set_translation(Some(translation));
    }

    /// Packets that were dropped so far, whatever for.
    #[must_use]
    pub fn drops(&self) -> u64 {
        Stats::sum(self.shared.counters.iter().map(|c| &**c)).drops.iter().map(|(_, n)| n).sum()
    }

    /// A counter by name.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        Stats::sum(self.shared.counters.iter().map(|c| &**c)).get(name)
    }
}
