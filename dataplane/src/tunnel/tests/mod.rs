//! Tunnels against tunnels, in virtual time.

mod cipher;
mod cookies;
mod handshakes;
mod nonces;
mod simulation;
mod timers;

use super::*;
use crate::crypto::{self, Backend, Job};
use crate::stats::Drop;
use crate::{Time, WallTime};
use ipop_ebpf::{DATA_HEADER_LEN, KEEPALIVE_LEN, Kind, TAG_LEN, classify};
use std::time::Duration;

/// Repeatable randomness (SplitMix64).
pub(super) struct Seeded(pub(super) u64);

impl Seeded {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

impl Rng for Seeded {
    fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

const START: Time = Time::from_nanos(1_000_000_000_000);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A wall clock that goes with `now`.
fn wall(now: Time) -> WallTime {
    WallTime(secs(1_700_000_000) + Duration::from_nanos(now.as_nanos()))
}

fn key(n: u8) -> PrivateKey {
    PrivateKey::new([n; 32])
}

fn address(n: u8) -> Path {
    Path::Direct(std::net::SocketAddr::from(([10, 0, 0, n], 51820)))
}

/// What happened to a datagram.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    Handshake,
    Keepalive,
    Data(Vec<u8>),
}

/// A tunnel with what a shard does around it.
struct Node {
    n: u8,
    tunnel: Tunnel,
    table: Arc<SessionTable>,
    now: Time,
    established: usize,
    gave_up: usize,
    promoted: usize,
    under_load: bool,
}

impl Node {
    fn new(n: u8, seed: u64) -> Self {
        let table = Arc::new(SessionTable::default());
        let mut tunnel = Tunnel::new(Backend::Portable, table.clone(), Box::new(Seeded(seed)));
        assert!(tunnel.set_private_key(Some(key(n))).is_none());
        Self { n, tunnel, table, now: START, established: 0, gave_up: 0, promoted: 0, under_load: false }
    }

    fn public(&self) -> PublicKey {
        key(self.n).public()
    }

    /// Makes `other` a peer that is reached at its address.
    fn knows(&mut self, other: u8) -> Arc<Peer> {
        let peer = self.tunnel.add_peer(key(other).public()).expect("room");
        peer.set_path(address(other));
        peer
    }

    fn initiate(&mut self, peer: &Arc<Peer>) {
        self.tunnel.initiate(self.now, wall(self.now), peer);
    }

    /// Moves time, serving timers on the way; returns what was sent and when.
    fn run_until(&mut self, end: Time) -> Vec<(Time, Vec<u8>)> {
        let mut sent = Vec::new();
        while let Some(t) = self.tunnel.poll_timeout(self.now).filter(|t| *t <= end) {
            self.now = self.now.max(t);
            self.timeout();
            sent.extend(self.sent().into_iter().map(|m| (self.now, m)));
        }
        self.now = end;
        sent
    }

    fn timeout(&mut self) {
        self.tunnel.handle_timeout(self.now, wall(self.now));
        check_no_busy_loop(&mut self.tunnel, self.now);
    }

    /// Everything that the tunnel wants sent.
    fn sent(&mut self) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        while let Some(o) = self.tunnel.poll_output() {
            match o {
                Output::Send { message, peer, .. } => {
                    if let Some(p) = peer {
                        p.add_tx_bytes(message.as_ref().len() as u64);
                    }
                    out.push(message.as_ref().to_vec());
                }
                Output::Established { .. } => self.established += 1,
                Output::GaveUp { .. } => self.gave_up += 1,
            }
        }
        out
    }

    /// The one message that the tunnel wants sent.
    fn sent_one(&mut self) -> Vec<u8> {
        let mut all = self.sent();
        assert_eq!(all.len(), 1, "messages sent");
        all.remove(0)
    }

    /// Seals `data` to `peer` if there is a session; asks for one if it is time.
    fn seal(&mut self, peer: &Arc<Peer>, data: &[u8]) -> Option<Vec<u8>> {
        let usable = peer.current().filter(|s| !s.expired(self.now));
        let Some((s, counter)) = usable.and_then(|s| s.reserve(1).map(|c| (s, c))) else {
            self.request(peer);
            return None;
        };
        assert!(s.live());
        let mut m = data_header(s.remote_index, counter).to_vec();
        m.extend_from_slice(data);
        m.extend_from_slice(&[0; TAG_LEN]);
        crypto::seal(&mut [Job::new(s.send_key(), counter, &mut m[DATA_HEADER_LEN..])]);
        if peer.note_sent(self.now, &s, m.len() as u64, !data.is_empty()) {
            self.request(peer);
        }
        Some(m)
    }

    fn request(&mut self, peer: &Arc<Peer>) {
        if peer.request_handshake() {
            self.initiate(peer);
        }
    }

    /// What shard and keeper do with a datagram.
    fn receive(&mut self, from: Path, datagram: &[u8]) -> Result<Got, Drop> {
        if classify(datagram) != Kind::Data {
            let handled = self.tunnel.handle(self.now, wall(self.now), from, datagram, self.under_load);
            return handled.map(|()| Got::Handshake);
        }
        let index = u32::from_le_bytes(datagram[4..8].try_into().expect("length checked"));
        let counter = u64::from_le_bytes(datagram[8..16].try_into().expect("length checked"));
        let s = self.table.get(index).filter(|s| s.live()).ok_or(Drop::UnknownReceiver)?;
        if s.expired(self.now) {
            return Err(Drop::SessionExpired);
        }
        let mut m = datagram.to_vec();
        let mut jobs = [Job::new(s.recv_key(), counter, &mut m[DATA_HEADER_LEN..])];
        crypto::open(&mut jobs);
        if !jobs[0].ok {
            return Err(Drop::Forged);
        }
        if !s.replay().check_and_update(counter) {
            return Err(Drop::Replayed);
        }
        let peer = s.peer().clone();
        peer.roam(from);
        if peer.confirm(&s) {
            self.promoted += 1;
        }
        let data = datagram.len() > KEEPALIVE_LEN;
        if peer.note_received(self.now, &s, datagram.len() as u64, data) {
            self.request(&peer);
        }
        let text = m[DATA_HEADER_LEN..m.len() - TAG_LEN].to_vec();
        Ok(if data { Got::Data(text) } else { Got::Keepalive })
    }
}

/// After `handle_timeout(now)` nothing is due any more, unless there were more peers than one turn serves.
fn check_no_busy_loop(tunnel: &mut Tunnel, now: Time) {
    let next = tunnel.poll_timeout(now);
    assert!(next.is_none_or(|t| t > now), "{next:?} at {now:?}");
    let due = |e: &entry::Entry| e.deadline(tunnel.up && tunnel.identity.is_some()).is_some_and(|d| d <= now);
    let all = tunnel.peers.len() <= limits::MAX_PEERS_PER_TURN;
    assert!(!all || !tunnel.peers.values().any(due), "still due after it was served");
}

/// Two nodes that know each other, nothing sent yet.
fn pair() -> (Node, Arc<Peer>, Node, Arc<Peer>) {
    let (mut a, mut b) = (Node::new(1, 1), Node::new(2, 2));
    let (to_b, to_a) = (a.knows(2), b.knows(1));
    (a, to_b, b, to_a)
}

/// Carries everything between two nodes until nothing moves.
fn exchange(a: &mut Node, b: &mut Node) {
    loop {
        let (from_a, from_b) = (a.sent(), b.sent());
        if from_a.is_empty() && from_b.is_empty() {
            return;
        }
        for m in from_a {
            b.receive(address(a.n), &m).expect("accepted");
        }
        for m in from_b {
            a.receive(address(b.n), &m).expect("accepted");
        }
    }
}

/// Two nodes with a session that the first one initiated.
fn joined() -> (Node, Arc<Peer>, Node, Arc<Peer>) {
    let (mut a, to_b, mut b, to_a) = pair();
    a.initiate(&to_b);
    exchange(&mut a, &mut b);
    assert!(to_b.current().is_some() && to_a.current().is_some());
    (a, to_b, b, to_a)
}

/// Sends `data` and expects it to arrive.
fn carry(from: &mut Node, peer: &Arc<Peer>, to: &mut Node, data: &[u8]) {
    let m = from.seal(peer, data).expect("a session");
    assert_eq!(to.receive(address(from.n), &m), Ok(Got::Data(data.to_vec())));
}
