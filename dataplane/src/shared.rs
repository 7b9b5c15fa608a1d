//! What shards and the keeper share: read by shards once a batch, changed by the keeper.

use crate::io::event::Bell;
use crate::path::Path;
use crate::stats::Counters;
use crate::table::Routes;
use crate::tunnel::{MacVerifier, Peer, PublicKey, SessionTable};
use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Handshake messages and requests that wait for the keeper. At 6,000 handshakes a second (a responder, one core)
/// this is a sixth of a second of work; more would be answered too late to be of use.
pub const KEEPER_QUEUE: usize = 1024;
/// STUN and ChannelData datagrams that wait for the engine's user.
pub const SIDE_QUEUE: usize = 1024;
/// Peers that wait for a path. Each is in the queue once at most; for one that finds it full, its next packet asks.
pub const WANTED_QUEUE: usize = 1024;
/// Commands that wait for one shard. The keeper sends a few per handshake.
pub const COMMAND_QUEUE: usize = 4096;

/// The largest message that the keeper takes: a handshake initiation.
const MESSAGE_MAX: usize = ipop_ebpf::INITIATION_LEN;

/// The bit that tells multicast to 0.0.0.0 from none.
const MULTICAST_ON: u64 = 1 << 32;

/// What shards tell the keeper.
#[derive(Debug)]
pub enum ToKeeper {
    /// A handshake message with a right MAC1, or a cookie reply.
    Handshake {
        /// Where it came from.
        from: Path,
        /// Its bytes, of which `len` count.
        message: [u8; MESSAGE_MAX],
        /// Length in bytes.
        len: u8,
    },
    /// A packet waits for a session, or a session should be renewed.
    Initiate(Arc<Peer>),
    /// Stop.
    Stop,
}

/// What shards are told.
#[derive(Debug)]
pub enum ToShard {
    /// The peer has a session: send what is staged for it.
    Flush(Arc<Peer>),
    /// The peer cannot be reached or is gone: drop what is staged for it.
    Discard(Arc<Peer>),
    /// Go over to another socket.
    Socket(Arc<crate::io::udp::Socket>),
    /// Stop.
    Stop,
}

/// A datagram that is not the tunnel's: STUN, or ChannelData without a tunnel message inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideDatagram {
    /// Who sent it.
    pub from: SocketAddr,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// A shard's letter box.
#[derive(Debug)]
pub struct Mailbox {
    sender: Sender<ToShard>,
    /// Rung after posting.
    pub bell: Arc<Bell>,
}

impl Mailbox {
    /// A letter box and the end that its shard reads.
    #[must_use]
    pub fn new(bell: Arc<Bell>) -> (Self, Receiver<ToShard>) {
        let (sender, receiver) = bounded(COMMAND_QUEUE);
        (Self { sender, bell }, receiver)
    }

    /// Posts `command` and wakes the shard. A full box loses it: [`ToShard::Flush`] and
    /// [`ToShard::Discard`] are hints that save waiting, a shard looks over what it has staged every second.
    pub fn post(&self, command: ToShard) {
        let _ = self.sender.try_send(command);
        self.bell.ring();
    }

    /// Posts `command` and waits, at most a second, for room in a full box. False: the shard has ended or hangs.
    pub fn post_surely(&self, command: ToShard) -> bool {
        self.bell.ring();
        let posted = self.sender.send_timeout(command, Duration::from_secs(1)).is_ok();
        self.bell.ring();
        posted
    }
}

/// The shared state of one engine.
#[derive(Debug)]
pub struct Shared {
    /// Allowed IPs.
    pub routes: ArcSwap<Routes<Arc<Peer>>>,
    /// Receiver index to session.
    pub sessions: Arc<SessionTable>,
    /// Tells handshakes that know our public key from junk.
    pub mac: ArcSwapOption<MacVerifier>,
    /// TURN servers that we have allocations on: only their ChannelData is taken.
    pub relays: ArcSwap<Vec<SocketAddr>>,
    /// The interface's MTU in bytes.
    pub mtu: AtomicU16,
    /// `UDP_SEGMENT` works (so far).
    pub udp_gso: AtomicBool,
    /// TUN takes super-packets (so far).
    pub tun_gso: AtomicBool,
    /// Peers that have a translation: multicast goes to those of them that are linked.
    pub audience: ArcSwap<Vec<Arc<Peer>>>,
    /// See [`Self::multicast`]: zero is off, else the address below [`MULTICAST_ON`].
    multicast: AtomicU64,
    /// To the keeper.
    pub keeper: Sender<ToKeeper>,
    /// To the engine's user.
    pub side: Sender<SideDatagram>,
    /// Peers that packets wait for and that have no path.
    pub wanted: Sender<PublicKey>,
    /// One per shard.
    pub mailboxes: Vec<Mailbox>,
    /// One per shard, and the keeper's last.
    pub counters: Vec<Arc<Counters>>,
}

/// The reading ends of an engine's queues.
#[derive(Debug)]
pub struct Queues {
    /// What shards tell the keeper.
    pub keeper: Receiver<ToKeeper>,
    /// STUN and ChannelData.
    pub side: Receiver<SideDatagram>,
    /// Peers that need a path.
    pub wanted: Receiver<PublicKey>,
}

impl Shared {
    /// The state of an engine with a shard for each of `mailboxes`, all offloads on, without keys and peers.
    #[must_use]
    pub fn new(mailboxes: Vec<Mailbox>, mtu: u16) -> (Self, Queues) {
        let (keeper, keeper_end) = bounded(KEEPER_QUEUE);
        let (side, side_end) = bounded(SIDE_QUEUE);
        let (wanted, wanted_end) = bounded(WANTED_QUEUE);
        let shared = Self {
            routes: ArcSwap::from_pointee(Routes::new()),
            sessions: Arc::new(SessionTable::default()),
            mac: ArcSwapOption::empty(),
            relays: ArcSwap::from_pointee(Vec::new()),
            mtu: AtomicU16::new(mtu),
            udp_gso: AtomicBool::new(true),
            tun_gso: AtomicBool::new(true),
            audience: ArcSwap::from_pointee(Vec::new()),
            multicast: AtomicU64::new(0),
            keeper,
            side,
            wanted,
            counters: (0..=mailboxes.len()).map(|_| Arc::new(Counters::default())).collect(),
            mailboxes,
        };
        (shared, Queues { keeper: keeper_end, side: side_end, wanted: wanted_end })
    }

    /// Tells every shard.
    pub fn post_all(&self, command: impl Fn() -> ToShard) {
        for m in &self.mailboxes {
            m.post(command());
        }
    }

    /// Asks the keeper for a handshake with `peer`, once until it has been dealt with.
    pub fn request_handshake(&self, peer: &Arc<Peer>) {
        if peer.request_handshake() {
            // If the queue is full of handshakes, the keeper finds the request when it looks at its timers.
            let _ = self.keeper.try_send(ToKeeper::Initiate(peer.clone()));
        }
    }

    /// Tells the engine's user that packets wait for a path to `peer`, once until there was one.
    pub fn want_path(&self, peer: &Peer) {
        if peer.want_path() && self.wanted.try_send(peer.public_key).is_err() {
            peer.found();
        }
    }

    /// Whether multicast is carried; then our subnet's directed broadcast address.
    #[must_use]
    pub fn multicast(&self) -> Option<Ipv4Addr> {
        let word = self.multicast.load(Relaxed);
        (word & MULTICAST_ON != 0).then(|| Ipv4Addr::from_bits(word as u32))
    }

    /// Switches multicast on, with our subnet's directed broadcast address, or off.
    pub fn set_multicast(&self, broadcast: Option<Ipv4Addr>) {
        self.multicast.store(broadcast.map_or(0, |b| MULTICAST_ON | u64::from(b.to_bits())), Relaxed);
    }

    /// The interface's MTU in bytes.
    #[must_use]
    pub fn mtu(&self) -> usize {
        usize::from(self.mtu.load(Relaxed))
    }
}
