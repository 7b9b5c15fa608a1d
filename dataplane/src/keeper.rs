//! The slow path: handshakes, timers, table changes. One thread; shards never wait for it.

use crate::config::{PeerState, State, Update};
use crate::crypto::Cipher;
use crate::io::{bpf, clock, udp};
use crate::path::Path;
use crate::shared::{KEEPER_QUEUE, Shared, ToKeeper, ToShard};
use crate::stats::{Counters, Drop, add};
use crate::table::{Prefix, Routes};
use crate::tunnel::{Output, Peer, PresharedKey, PublicKey, Rng, Tunnel, TunnelError};
use crate::{Time, WallTime};
use crossbeam::channel::{Receiver, RecvTimeoutError};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Shards start the 10 s and 15 s timers without telling the keeper, which so looks at least this often
/// while there are peers.
const TICK: Duration = Duration::from_secs(1);
/// A look at the timers goes over all peers: while messages come in, this long apart at least.
const SCAN_PAUSE: Duration = Duration::from_millis(5);
/// A queue of handshakes longer than this means load: cookies are asked for (WireGuard paper, section 5.3).
const UNDER_LOAD_QUEUE: usize = KEEPER_QUEUE / 8;
/// Load is over this long after the queue was last that long.
const UNDER_LOAD_TIME: Duration = Duration::from_secs(1);
/// Messages handled before the lock is given to others.
const MESSAGES_PER_TURN: usize = 64;

/// Randomness from the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRng;

impl Rng for SystemRng {
    fn fill(&mut self, out: &mut [u8]) {
        // Fails only where there is no getrandom(2): nothing that needs keys can go on there.
        getrandom::fill(out).expect("the kernel gives random bytes");
    }
}

/// The slow path's state: what is configured, and the tunnel.
pub struct Core {
    tunnel: Tunnel,
    /// Allowed IPs as configured; shards get snapshots.
    routes: Routes<Arc<Peer>>,
    prefixes: HashMap<u32, Vec<Prefix>>,
    sockets: Vec<Arc<udp::Socket>>,
    options: udp::Options,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    loaded_until: Time,
    up: bool,
    programs: Option<bpf::Programs>,
}

/// The keeper's state, shared between its thread and whoever configures.
pub type SharedCore = Arc<Mutex<Core>>;

/// Locks `core`, also after a panic elsewhere: the tunnel's state is consistent between calls.
pub fn lock(core: &Mutex<Core>) -> MutexGuard<'_, Core> {
    core.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What can be wrong with an [`Update`].
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The new port or mark cannot be had.
    #[error("cannot use UDP port {port}: {source}")]
    Socket {
        /// The port asked for.
        port: u16,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Too many peers.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
}

impl Core {
    /// The state of an interface without keys and peers. `counters` are the keeper's own.
    pub fn new(
        tunnel: Tunnel,
        sockets: Vec<Arc<udp::Socket>>,
        options: udp::Options,
        shared: Arc<Shared>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            tunnel,
            routes: Routes::new(),
            prefixes: HashMap::new(),
            sockets,
            options,
            shared,
            counters,
            loaded_until: Time::ZERO,
            up: true,
            programs: None,
        }
    }

    /// Kernel programs that are attached to the sockets.
    pub fn set_programs(&mut self, programs: Option<bpf::Programs>) {
        self.programs = programs;
    }

    /// Whether kernel programs are (still) in use.
    #[must_use]
    pub const fn has_programs(&self) -> bool {
        self.programs.is_some()
    }

    /// What kernel programs dropped, by reason.
    #[must_use]
    pub fn kernel_drops(&self) -> Vec<(&'static str, u64)> {
        self.programs.as_ref().map(bpf::Programs::drops).unwrap_or_default()
    }

    /// The TURN servers whose ChannelData is taken, in canonical form.
    pub fn set_relays(&mut self, servers: Vec<SocketAddr>) {
        let result = self.programs.as_mut().map_or(Ok(()), |p| p.set_relays(&servers));
        self.shared.relays.store(Arc::new(servers));
        self.check_programs(result);
    }

    /// Does without kernel programs if they fail: what they do not know of, they would drop.
    fn check_programs(&mut self, result: Result<(), bpf::BpfError>) {
        if let Err(e) = result {
            tracing::warn!("{e}: going on without kernel programs");
            self.programs = None;
            for s in &self.sockets {
                s.detach_programs();
            }
        }
    }

    /// Applies `update`. What was applied before an error stays.
    ///
    /// # Errors
    /// The port is taken, or there are too many peers.
    pub fn configure(&mut self, update: Update, now: Time, wall: WallTime) -> Result<(), UpdateError> {
        let (mut routes_changed, mut audience_changed) = (false, false);
        if let Some(key) = update.private_key {
            if let Some(own) = self.tunnel.set_private_key(key) {
                self.forget(&own);
                (routes_changed, audience_changed) = (true, true);
            }
            let mac = self.tunnel.mac_verifier();
            let result = self.programs.as_mut().map_or(Ok(()), |p| p.set_mac(mac.as_deref()));
            self.shared.mac.store(mac);
            self.check_programs(result);
        }
        if let Some(mark) = update.fwmark {
            self.set_mark(mark)?;
        }
        if let Some(port) = update.listen_port {
            self.set_port(port)?;
        }
        if let Some(broadcast) = update.multicast {
            self.shared.set_multicast(broadcast);
        }
        if update.replace_peers {
            audience_changed = true;
            let all: Vec<PublicKey> = self.tunnel.peers().map(|p| p.public_key).collect();
            for key in all {
                routes_changed |= self.remove_peer(&key);
            }
        }
        let own = self.tunnel.private_key().map(crate::tunnel::PrivateKey::public);
        let mut result = Ok(());
        for u in update.peers {
            if u.remove {
                routes_changed |= self.remove_peer(&u.public_key);
                audience_changed = true;
                continue;
            }
            // A node is not its own peer; as wireguard-go does, this is no error.
            if Some(u.public_key) == own || (u.update_only && self.tunnel.peer(&u.public_key).is_none()) {
                continue;
            }
            let peer = match self.tunnel.add_peer(u.public_key) {
                Ok(p) => p,
                Err(e) => {
                    result = Err(e.into());
                    break;
                }
            };
            if let Some(psk) = u.preshared_key {
                self.tunnel.set_preshared_key(&u.public_key, psk);
            }
            if let Some(path) = u.path {
                peer.set_path(path);
            }
            if let Some(on) = u.on_demand {
                peer.set_on_demand(on);
                if !on && peer.path().is_none() {
                    self.shared.post_all(|| ToShard::Discard(peer.clone()));
                }
            }
            if let Some(translation) = u.translation {
                audience_changed |= translation.is_some() != peer.translation().is_some();
                peer.set_translation(translation);
            }
            if let Some(aes) = u.aes {
                peer.set_aes(aes);
            }
            if u.replace_allowed_ips {
                routes_changed |= self.clear_prefixes(&peer);
            }
            for (prefix, add) in u.allowed_ips {
                routes_changed |= self.change_prefix(&peer, prefix, add);
            }
            if let Some(seconds) = u.persistent_keepalive {
                self.tunnel.set_persistent_keepalive(now, &u.public_key, seconds);
            }
        }
        if routes_changed {
            self.shared.routes.store(Arc::new(self.routes.clone()));
        }
        if audience_changed {
            let audience = self.tunnel.peers().filter(|p| p.translation().is_some()).cloned().collect();
            self.shared.audience.store(Arc::new(audience));
        }
        self.tunnel.handle_timeout(now, wall);
        self.pump();
        result
    }

    fn change_prefix(&mut self, peer: &Arc<Peer>, prefix: Prefix, add: bool) -> bool {
        if !add {
            let ours = self.prefixes.get(&peer.id).is_some_and(|p| p.contains(&prefix));
            if ours {
                self.routes.remove(&prefix);
                self.forget_prefix(peer.id, prefix);
            }
            return ours;
        }
        match self.routes.insert(prefix, peer.clone()) {
            Some(before) if before.id == peer.id => return false,
            Some(before) => self.forget_prefix(before.id, prefix),
            None => {}
        }
        self.prefixes.entry(peer.id).or_default().push(prefix);
        true
    }

    fn forget_prefix(&mut self, peer: u32, prefix: Prefix) {
        if let Some(p) = self.prefixes.get_mut(&peer) {
            p.retain(|p| *p != prefix);
        }
    }

    fn clear_prefixes(&mut self, peer: &Peer) -> bool {
        let all = self.prefixes.remove(&peer.id).unwrap_or_default();
        for p in &all {
            self.routes.remove(p);
        }
        !all.is_empty()
    }

    fn remove_peer(&mut self, key: &PublicKey) -> bool {
        let Some(peer) = self.tunnel.remove_peer(key) else { return false };
        self.forget(&peer)
    }

    fn forget(&mut self, peer: &Arc<Peer>) -> bool {
        self.shared.post_all(|| ToShard::Discard(peer.clone()));
        self.clear_prefixes(peer)
    }

    fn set_mark(&mut self, mark: u32) -> Result<(), UpdateError> {
        let port = self.options.port;
        for s in &self.sockets {
            s.set_mark(mark).map_err(|source| UpdateError::Socket { port, source })?;
        }
        self.options.fwmark = mark;
        Ok(())
    }

    fn set_port(&mut self, port: u16) -> Result<(), UpdateError> {
        if port != 0 && port == self.listen_port() {
            return Ok(());
        }
        let options = udp::Options { port, ..self.options };
        let sockets =
            udp::Socket::open(self.sockets.len(), options).map_err(|source| UpdateError::Socket { port, source })?;
        for (m, s) in self.shared.mailboxes.iter().zip(&sockets) {
            m.post_surely(ToShard::Socket(s.clone()));
        }
        self.sockets = sockets;
        self.options = options;
        let result = self.programs.as_mut().map_or(Ok(()), |p| p.attach(&self.sockets));
        self.check_programs(result);
        Ok(())
    }

    fn listen_port(&self) -> u16 {
        self.sockets.first().and_then(|s| s.port().ok()).unwrap_or(0)
    }

    /// The interface as it is.
    #[must_use]
    pub fn state(&self) -> State {
        let now = clock::now();
        let peer = |p: &Arc<Peer>| PeerState {
            public_key: p.public_key,
            preshared_key: self.tunnel.preshared_key(&p.public_key).cloned().unwrap_or_else(PresharedKey::default),
            path: p.path(),
            cipher: cipher_of(p, now),
            last_handshake: p.last_handshake(),
            last_sent: p.last_sent(),
            last_received: p.last_received(),
            tx_bytes: p.tx_bytes(),
            rx_bytes: p.rx_bytes(),
            persistent_keepalive: p.persistent_keepalive(),
            allowed_ips: {
                let mut v = self.prefixes.get(&p.id).cloned().unwrap_or_default();
                v.sort_unstable();
                v
            },
        };
        State {
            private_key: self.tunnel.private_key().cloned(),
            listen_port: self.listen_port(),
            fwmark: self.options.fwmark,
            peers: self.tunnel.peers().map(peer).collect(),
        }
    }

    /// How many peers have a session with each cipher.
    #[must_use]
    pub fn sessions(&self, now: Time) -> [(Cipher, usize); 2] {
        Cipher::ALL.map(|c| (c, self.tunnel.peers().filter(|p| cipher_of(p, now) == Some(c)).count()))
    }

    /// Sends peer `key`'s datagrams over `path` from now on; false if there is no such peer.
    pub fn set_path(&self, key: &PublicKey, path: Path) -> bool {
        self.tunnel.peer(key).map(|p| p.set_path(path)).is_some()
    }

    /// Starts a handshake with peer `key` now, unless one was just completed; false if there is no such peer.
    pub fn handshake(&mut self, key: &PublicKey, now: Time, wall: WallTime) -> bool {
        let Some(peer) = self.tunnel.peer(key) else { return false };
        peer.request_handshake();
        self.tunnel.initiate(now, wall, &peer);
        self.pump();
        true
    }

    /// The interface went up or down. Down ends all sessions, as with other implementations; up starts
    /// handshakes with persistent peers.
    pub fn set_link_up(&mut self, up: bool, now: Time, wall: WallTime) {
        self.tunnel.set_up(up);
        self.up = up;
        self.tunnel.handle_timeout(now, wall);
        self.pump();
    }

    fn handle(&mut self, message: ToKeeper, now: Time, wall: WallTime, queued: usize) {
        match message {
            ToKeeper::Handshake { from, message, len } => {
                if queued >= UNDER_LOAD_QUEUE {
                    self.loaded_until = now + UNDER_LOAD_TIME;
                }
                let under_load = now < self.loaded_until;
                if !self.up {
                    self.counters.count_drop(Drop::HandshakeRefused, 1);
                } else if let Err(reason) =
                    self.tunnel.handle(now, wall, from, &message[..usize::from(len)], under_load)
                {
                    self.counters.count_drop(reason, 1);
                }
            }
            ToKeeper::Initiate(peer) => {
                if self.up {
                    self.tunnel.initiate(now, wall, &peer);
                }
            }
            ToKeeper::Stop => {}
        }
    }

    /// Does what the tunnel asks for.
    fn pump(&mut self) {
        while let Some(output) = self.tunnel.poll_output() {
            match output {
                Output::Send { path, message, peer } => self.send(path, message.as_ref(), peer.as_ref()),
                Output::Established { peer } => self.shared.post_all(|| ToShard::Flush(peer.clone())),
                Output::GaveUp { peer } => self.shared.post_all(|| ToShard::Discard(peer.clone())),
            }
        }
    }

    fn send(&self, path: Path, message: &[u8], peer: Option<&Arc<Peer>>) {
        match self.send_raw(path, message) {
            Ok(sent) => {
                add(&self.counters.udp_out, 1);
                add(&self.counters.udp_writes, 1);
                if message.first() == Some(&4) {
                    add(&self.counters.keepalives_out, 1);
                }
                if let Some(p) = peer {
                    p.add_tx_bytes(sent as u64);
                }
            }
            Err(e) => {
                self.counters.count_drop(Drop::SendFailed, 1);
                tracing::debug!("cannot send {} bytes to {path}: {e}", message.len());
            }
        }
    }

    /// Sends one datagram from the tunnel's port, framed as the path needs it. Returns the bytes sent.
    ///
    /// # Errors
    /// What the socket says.
    pub fn send_raw(&self, path: Path, message: &[u8]) -> std::io::Result<usize> {
        let Some(socket) = self.sockets.first() else { return Err(std::io::ErrorKind::NotConnected.into()) };
        match path {
            Path::Direct(to) => socket.send_to(message, to).map(|()| message.len()),
            Path::Relay { server, channel } => {
                let len =
                    u16::try_from(message.len()).map_err(|_| std::io::Error::from_raw_os_error(libc::EMSGSIZE))?;
                let mut framed = Vec::with_capacity(message.len() + 4);
                framed.extend_from_slice(&channel.to_be_bytes());
                framed.extend_from_slice(&len.to_be_bytes());
                framed.extend_from_slice(message);
                socket.send_to(&framed, server).map(|()| framed.len())
            }
        }
    }
}

/// The cipher of the session in use.
fn cipher_of(peer: &Peer, now: Time) -> Option<Cipher> {
    peer.current().filter(|s| !s.expired(now)).map(|s| s.cipher())
}

/// The keeper's loop; returns when told to stop.
pub fn run(core: &Mutex<Core>, queue: &Receiver<ToKeeper>) {
    let mut next_scan = Time::ZERO;
    loop {
        let first = match queue.recv_timeout(next_scan.since(clock::now()).clamp(SCAN_PAUSE / 5, TICK)) {
            Ok(m) => Some(m),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let (now, wall) = (clock::now(), clock::wall());
        let mut core = lock(core);
        for message in first.into_iter().chain(queue.try_iter().take(MESSAGES_PER_TURN)) {
            if matches!(message, ToKeeper::Stop) {
                return;
            }
            core.handle(message, now, wall, queue.len());
        }
        core.pump();
        if now >= next_scan {
            core.tunnel.handle_timeout(now, wall);
            core.pump();
            next_scan = core.tunnel.poll_timeout(now).map_or(now + TICK, |t| t.min(now + TICK));
        } else {
            // What was just handled may have started a timer.
            next_scan = next_scan.min(now + SCAN_PAUSE);
        }
    }
}
