//! Nodes in memory: a shard over [`Memory`], a tunnel, and what the keeper does between them, in virtual time.

use dataplane::crypto::{Backend, Cipher};
use dataplane::io::event::Bell;
use dataplane::io::memory::{Arrival, Memory};
use dataplane::shard::{Next, Shard, TunFormat};
use dataplane::shared::{Mailbox, Queues, Shared, ToKeeper, ToShard};
use dataplane::stats::{Counters, Drop};
use dataplane::table::Routes;
use dataplane::tunnel::{Output, Peer, PrivateKey, PublicKey, Rng, Tunnel};
use dataplane::{Path, Time, Translation, WallTime};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Repeatable randomness (SplitMix64).
pub(crate) struct Seeded(pub(crate) u64);

impl Seeded {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Fisher-Yates.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
    }
}

impl Rng for Seeded {
    fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Reasons for which packets from TUN are dropped; all others concern datagrams.
const OUTBOUND: &[Drop] = &[
    Drop::Malformed,
    Drop::NoRoute,
    Drop::NoPath,
    Drop::StagingFull,
    Drop::StagingExpired,
    Drop::SendFailed,
    Drop::TooBig,
    Drop::SendBufferFull,
    Drop::CounterExhausted,
    Drop::MulticastNobody,
    Drop::MulticastRate,
    Drop::MulticastFanout,
];

/// The interface's MTU.
pub(crate) const MTU: u16 = 1420;

/// A TUN queue with all offloads.
pub(crate) const OFFLOADS: TunFormat = TunFormat { vnet: true, tso: true, uso: true };

/// Address and payload of a datagram.
pub(crate) type Sent = (SocketAddr, Vec<u8>);

/// One engine.
pub(crate) struct Node {
    n: u8,
    pub(crate) shard: Shard<Memory>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) queues: Queues,
    pub(crate) tunnel: Tunnel,
    routes: Routes<Arc<Peer>>,
    pub(crate) now: Time,
    /// What the keeper sent.
    pub(crate) keeper_sent: Vec<Sent>,
    /// Keepalives among it.
    pub(crate) keepalives: usize,
    /// Peers given up.
    pub(crate) gave_up: usize,
}

impl Node {
    pub(crate) fn new(n: u8, tun: TunFormat) -> Self {
        let (mailbox, commands) = Mailbox::new(Arc::new(Bell::new().expect("an eventfd")));
        let (shared, queues) = Shared::new(vec![mailbox], MTU);
        let shared = Arc::new(shared);
        let mut tunnel = Tunnel::new(Backend::AwsLc, shared.sessions.clone(), Box::new(Seeded(u64::from(n))));
        assert!(tunnel.set_private_key(Some(key(n))).is_none());
        shared.mac.store(tunnel.mac_verifier());
        Self {
            n,
            shard: Shard::new(0, Memory::new(), shared.clone(), commands, tun),
            shared,
            queues,
            tunnel,
            routes: Routes::new(),
            now: Time::ZERO + Duration::from_secs(1000),
            keeper_sent: Vec::new(),
            keepalives: 0,
            gave_up: 0,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        address(self.n)
    }

    /// Makes node `other` a peer with these allowed IPs, reached at its address.
    pub(crate) fn knows(&mut self, other: u8, allowed: &[&str]) -> Arc<Peer> {
        let peer = self.tunnel.add_peer(public(other)).expect("room");
        peer.set_path(Path::Direct(address(other)));
        for a in allowed {
            self.routes.insert(a.parse().expect("a prefix"), peer.clone());
        }
        self.shared.routes.store(Arc::new(self.routes.clone()));
        peer
    }

    /// Translates what comes from node `other`, which was made known, as the keeper does it when it is told so.
    pub(crate) fn befriend(&mut self, other: u8, translation: Translation) -> Arc<Peer> {
        let peer = self.knows(other, &[&format!("{}/32", translation.lease)]);
        peer.set_translation(Some(translation));
        let audience = self.tunnel.peers().filter(|p| p.translation().is_some()).cloned().collect();
        self.shared.audience.store(Arc::new(audience));
        peer
    }

    /// Gives the shard a read from TUN.
    pub(crate) fn read(&mut self, packet: Vec<u8>) {
        self.shard.driver().packets.push_back(packet);
    }

    /// Gives the shard one datagram.
    pub(crate) fn receive(&mut self, from: SocketAddr, bytes: Vec<u8>) {
        let segment = bytes.len().max(1);
        self.shard.driver().arrivals.push_back(Arrival { from, bytes, segment, truncated: false });
    }

    /// Gives the shard datagrams of one sender, put together as GRO does it.
    pub(crate) fn receive_all(&mut self, from: SocketAddr, datagrams: impl IntoIterator<Item = Vec<u8>>) {
        let mut run: Option<Arrival> = None;
        for d in datagrams {
            if let Some(r) = &mut run
                && r.bytes.len() % r.segment == 0
                && !d.is_empty()
                && d.len() <= r.segment
                && r.bytes.len() + d.len() <= 65_000
            {
                r.bytes.extend(d);
                continue;
            }
            let segment = d.len().max(1);
            let done = run.replace(Arrival { from, bytes: d, segment, truncated: false });
            self.shard.driver().arrivals.extend(done);
        }
        self.shard.driver().arrivals.extend(run);
    }

    /// One turn of the shard.
    pub(crate) fn turn(&mut self) -> Next {
        let now = self.now;
        self.shard.turn(None, || now).expect("the shard goes on")
    }

    /// Turns until there is no input and nothing to be retried, and the keeper's work.
    pub(crate) fn run(&mut self) {
        loop {
            self.turn();
            self.keep();
            let d = self.shard.driver();
            if d.packets.is_empty() && d.arrivals.is_empty() {
                break;
            }
        }
        // Once more for what the keeper told the shard.
        self.turn();
    }

    /// What the keeper does in one round.
    pub(crate) fn keep(&mut self) {
        let wall = WallTime(Duration::from_secs(1_700_000_000) + self.now.since(Time::ZERO));
        while let Ok(m) = self.queues.keeper.try_recv() {
            match m {
                ToKeeper::Handshake { from, message, len } => {
                    let message = &message[..usize::from(len)];
                    if let Err(reason) = self.tunnel.handle(self.now, wall, from, message, false) {
                        self.shared.counters[1].count_drop(reason, 1);
                    }
                }
                ToKeeper::Initiate(peer) => self.tunnel.initiate(self.now, wall, &peer),
                ToKeeper::Stop => {}
            }
        }
        self.tunnel.handle_timeout(self.now, wall);
        while let Some(output) = self.tunnel.poll_output() {
            match output {
                Output::Send { path, message, .. } => {
                    let m = message.as_ref();
                    self.keepalives += usize::from(m[0] == 4);
                    let framed = match path {
                        Path::Direct(_) => m.to_vec(),
                        Path::Relay { channel, .. } => channel_data(channel, m),
                    };
                    self.keeper_sent.push((path.address(), framed));
                }
                Output::Established { peer } => self.shared.post_all(|| ToShard::Flush(peer.clone())),
                Output::GaveUp { peer } => {
                    self.gave_up += 1;
                    self.shared.post_all(|| ToShard::Discard(peer.clone()));
                }
            }
        }
    }

    /// Moves time on, serving timers on the way.
    pub(crate) fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(t) = self.tunnel.poll_timeout(self.now).filter(|t| *t < end) {
            self.now = self.now.max(t);
            self.keep();
        }
        self.now = end;
        self.run();
    }

    /// Takes what was sent to the network.
    pub(crate) fn sent(&mut self) -> Vec<Sent> {
        let mut all = std::mem::take(&mut self.keeper_sent);
        all.append(&mut self.shard.driver().sent);
        all
    }

    /// Takes what was written to TUN.
    pub(crate) fn written(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.shard.driver().written)
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.shared.counters[0]
    }

    pub(crate) fn dropped(&self, reason: Drop) -> u64 {
        self.shared.counters.iter().map(|c| c.dropped(reason)).sum()
    }

    /// Asserts that exactly these drops were counted by shard and keeper.
    #[track_caller]
    pub(crate) fn assert_drops(&self, expected: &[(Drop, u64)]) {
        for reason in Drop::ALL {
            let want = expected.iter().find(|(r, _)| r == reason).map_or(0, |(_, n)| *n);
            assert_eq!(self.dropped(*reason), want, "{}", reason.name());
        }
    }

    /// Packets in = packets out + drops + `waiting`, in both directions.
    #[track_caller]
    pub(crate) fn assert_balanced(&self, waiting: u64) {
        let c = self.counters();
        let get = |c: &AtomicU64| c.load(Relaxed);
        let drops = |out: bool| -> u64 {
            Drop::ALL.iter().filter(|d| OUTBOUND.contains(d) == out).map(|d| c.dropped(*d)).sum()
        };
        let read = get(&c.tun_in) + get(&c.multicast_copies);
        assert_eq!(read, get(&c.udp_out) + drops(true) + waiting, "outbound {c:?}");
        let taken = get(&c.tun_out) + get(&c.keepalives_in) + get(&c.handshakes_in) + get(&c.side_in);
        assert_eq!(get(&c.udp_in), taken + drops(false), "inbound {c:?}");
    }

    /// Ends the shard; nothing waits any more.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        self.shared.post_all(|| ToShard::Stop);
        while self.turn() == Next::Go {}
        self.assert_balanced(0);
    }
}

pub(crate) fn key(n: u8) -> PrivateKey {
    PrivateKey::new([n; 32])
}

pub(crate) fn public(n: u8) -> PublicKey {
    key(n).public()
}

/// Node `n`'s address on the network.
pub(crate) fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 51820))
}

/// `message` as TURN ChannelData.
pub(crate) fn channel_data(channel: u16, message: &[u8]) -> Vec<u8> {
    [&channel.to_be_bytes()[..], &(message.len() as u16).to_be_bytes(), message].concat()
}

/// Carries what one node sent to the other; what is for somebody else is lost.
pub(crate) fn carry(from: &mut Node, to: &mut Node) {
    let target = to.address();
    let datagrams: Vec<_> = from.sent().into_iter().filter(|(to, _)| *to == target).map(|(_, d)| d).collect();
    to.receive_all(from.address(), datagrams);
    to.run();
}

/// Runs both until neither has anything to say.
pub(crate) fn settle(a: &mut Node, b: &mut Node) {
    a.run();
    b.run();
    for _ in 0..10 {
        carry(a, b);
        carry(b, a);
    }
}

/// Two nodes that know each other: 10.0.0.1 and fd00::1 are node 1's, 10.0.0.2 and fd00::2 are node 2's.
pub(crate) fn strangers(tun: TunFormat) -> (Node, Node) {
    let (mut a, mut b) = (Node::new(1, tun), Node::new(2, tun));
    a.knows(2, &["10.0.0.2/32", "fd00::2/128"]);
    b.knows(1, &["10.0.0.1/32", "fd00::1/128"]);
    (a, b)
}

/// The same two nodes with a session that both send on.
pub(crate) fn joined(tun: TunFormat) -> (Node, Node) {
    joined_by(tun, Cipher::ChaCha20Poly1305)
}

/// The same with this cipher.
pub(crate) fn joined_by(tun: TunFormat, cipher: Cipher) -> (Node, Node) {
    let (mut a, mut b) = strangers(tun);
    let peer = a.tunnel.peer(&public(2)).expect("a peer");
    let back = b.tunnel.peer(&public(1)).expect("a peer");
    for p in [&peer, &back] {
        p.set_aes(cipher == Cipher::Aes256Gcm);
    }
    a.shared.request_handshake(&peer);
    settle(&mut a, &mut b);
    for p in [peer, back] {
        assert_eq!(p.current().map(|s| s.cipher()), Some(cipher), "both have a session");
    }
    (a, b)
}

/// What every node of [`friends`] calls itself.
pub(crate) const OWN: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 100);

/// What a node of [`friends`] calls node `n`.
pub(crate) const fn lease(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 31, 7, n)
}

/// How node `n` is translated by any other node of [`friends`].
pub(crate) const fn friend(n: u8) -> Translation {
    Translation { peer: OWN, lease: lease(n), own: OWN, broadcast: None }
}

/// Two nodes with a session whose subnets clash: both call themselves [`OWN`]. Multicast is off.
pub(crate) fn friends(tun: TunFormat) -> (Node, Node) {
    let (mut a, mut b) = joined(tun);
    a.befriend(2, friend(2));
    b.befriend(1, friend(1));
    (a, b)
}
