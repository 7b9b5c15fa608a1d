//! The tunnel: identity and peers. Handshakes are in `answer`, timers in `timers`.

use super::cookie::CookieJar;
use super::entry::Entry;
use super::limiter::Limiter;
use super::limits::{MAX_OUTPUTS, MAX_PEERS};
use super::noise::{Entropy, Identity};
use super::{MacVerifier, Output, Peer, PresharedKey, PrivateKey, PublicKey, Rng, SessionTable, TunnelError};
use crate::crypto::Backend;
use crate::{Time, WallTime};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// One interface's handshakes and timers, sans I/O (the paper, sections 5 and 6).
///
/// Feed it messages ([`Self::handle`]), requests ([`Self::initiate`]) and time ([`Self::handle_timeout`], at
/// [`Self::poll_timeout`] or any time later); then take what it wants done ([`Self::poll_output`]).
pub struct Tunnel {
    pub(super) backend: Backend,
    pub(super) sessions: Arc<SessionTable>,
    pub(super) rng: Box<dyn Rng>,
    pub(super) identity: Option<Own>,
    pub(super) up: bool,
    /// By id, which is the order in which they were added.
    pub(super) peers: BTreeMap<u32, Entry>,
    by_key: HashMap<PublicKey, u32>,
    next_id: u32,
    /// Our initiations on their way: receiver index to peer id.
    pub(super) pending: HashMap<u32, u32>,
    pub(super) limiter: Limiter,
    outputs: VecDeque<Output>,
    /// New peers are taken for willing to have AES-256-GCM.
    aes: bool,
    /// The last turn of the timers, and the peer that it got to.
    pub(super) turn: Time,
    pub(super) cursor: u32,
}

/// Our identity and what is derived from it.
pub(super) struct Own {
    pub(super) keys: Identity,
    pub(super) macs: Arc<MacVerifier>,
    pub(super) cookies: CookieJar,
}

impl Tunnel {
    /// A tunnel without identity and peers, up. `sessions` is shared with the shards; no other tunnel uses it.
    #[must_use]
    pub fn new(backend: Backend, sessions: Arc<SessionTable>, rng: Box<dyn Rng>) -> Self {
        Self {
            backend,
            sessions,
            rng,
            identity: None,
            up: true,
            peers: BTreeMap::new(),
            by_key: HashMap::new(),
            next_id: 0,
            pending: HashMap::new(),
            limiter: Limiter::default(),
            outputs: VecDeque::new(),
            aes: false,
            turn: Time::ZERO,
            cursor: 0,
        }
    }

    /// Whether peers that are added from now on are taken for willing to have AES-256-GCM ([`Peer::set_aes`]).
    pub const fn set_aes(&mut self, aes: bool) {
        self.aes = aes;
    }

    /// Takes on an identity, or none. Sessions and handshakes of the one before end. A peer whose key is our
    /// own from now on is removed and returned, so that the caller removes its routes. Setting the same key
    /// again changes nothing.
    pub fn set_private_key(&mut self, key: Option<PrivateKey>) -> Option<Arc<Peer>> {
        if let (Some(old), Some(new)) = (self.private_key(), &key)
            && bool::from(old.bytes().ct_eq(new.bytes()))
        {
            return None;
        }
        self.clear_sessions();
        self.identity = key.map(|private| {
            let keys = Identity::new(private);
            let macs = Arc::new(MacVerifier::new(&keys.public));
            Own { macs, cookies: CookieJar::new(&keys.public), keys }
        });
        let own = self.identity.as_ref()?.keys.public;
        for entry in self.peers.values_mut() {
            entry.peer.set_yields(own < entry.peer.public_key);
            entry.keepalive_now = entry.peer.persistent_keepalive() > 0;
        }
        self.remove_peer(&own)
    }

    /// Our private key.
    #[must_use]
    pub fn private_key(&self) -> Option<&PrivateKey> {
        self.identity.as_ref().map(|own| &own.keys.private)
    }

    /// What checks MAC1 of messages to us; another one after each [`Self::set_private_key`].
    #[must_use]
    pub fn mac_verifier(&self) -> Option<Arc<MacVerifier>> {
        self.identity.as_ref().map(|own| own.macs.clone())
    }

    /// Adds a peer, or returns the one that has the key already.
    ///
    /// # Errors
    /// The key is our own, or there is no room.
    pub fn add_peer(&mut self, key: PublicKey) -> Result<Arc<Peer>, TunnelError> {
        if let Some(peer) = self.peer(&key) {
            return Ok(peer);
        }
        let own = self.identity.as_ref().map(|own| own.keys.public);
        if own == Some(key) {
            return Err(TunnelError::OwnKey);
        }
        if self.peers.len() >= MAX_PEERS {
            return Err(TunnelError::TooManyPeers);
        }
        let id = self.next_id;
        self.next_id = id.checked_add(1).ok_or(TunnelError::TooManyPeers)?;
        let entry = Entry::new(id, key, self.sessions.clone());
        let peer = entry.peer.clone();
        peer.set_yields(own.is_some_and(|own| own < key));
        peer.set_aes(self.aes);
        peer.activity.set_jitter(self.jitter());
        self.peers.insert(id, entry);
        self.by_key.insert(key, id);
        Ok(peer)
    }

    /// The peer that has the key.
    #[must_use]
    pub fn peer(&self, key: &PublicKey) -> Option<Arc<Peer>> {
        self.entry(key).map(|e| e.peer.clone())
    }

    /// Removes a peer with its sessions.
    pub fn remove_peer(&mut self, key: &PublicKey) -> Option<Arc<Peer>> {
        let id = self.by_key.remove(key)?;
        self.end_attempt(id);
        let entry = self.peers.remove(&id)?;
        entry.peer.set_removed();
        Some(entry.peer)
    }

    /// Every peer, in the order in which they were added.
    pub fn peers(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.peers.values().map(|e| &e.peer)
    }

    /// The preshared key with a peer: zeros if there is none.
    #[must_use]
    pub fn preshared_key(&self, key: &PublicKey) -> Option<&PresharedKey> {
        self.entry(key).map(|e| &e.psk)
    }

    /// Sets the preshared key with a peer, for handshakes that complete from now on. False: no such peer.
    pub fn set_preshared_key(&mut self, key: &PublicKey, psk: PresharedKey) -> bool {
        let Some(entry) = self.entry_mut(key) else { return false };
        entry.psk = psk;
        true
    }

    /// Sends a peer something each `seconds` at least; 0: off. Switching it on makes the first one due at
    /// once. False: no such peer.
    pub fn set_persistent_keepalive(&mut self, now: Time, key: &PublicKey, seconds: u16) -> bool {
        let Some(entry) = self.entry_mut(key) else { return false };
        entry.keepalive_now = seconds > 0 && (entry.keepalive_now || entry.peer.persistent_keepalive() == 0);
        entry.peer.set_persistent_keepalive(seconds);
        entry.peer.activity.touch(now);
        true
    }

    /// The interface went up or down. Down: [`Self::clear_sessions`], and no handshake is started or
    /// answered. Up: persistent keepalives are due at once.
    pub fn set_up(&mut self, up: bool) {
        if self.up == up {
            return;
        }
        self.up = up;
        if !up {
            self.clear_sessions();
        }
        for entry in self.peers.values_mut() {
            entry.keepalive_now = entry.peer.persistent_keepalive() > 0;
        }
    }

    /// Ends all sessions and handshakes, and forgets what the timers waited for.
    pub fn clear_sessions(&mut self) {
        let ids: Vec<u32> = self.peers.keys().copied().collect();
        for id in ids {
            self.end_attempt(id);
        }
        for entry in self.peers.values_mut() {
            entry.peer.retire_all();
            entry.peer.activity.reset();
            entry.last_session = None;
        }
    }

    /// Asks for a session with `peer`: none is there, or it is to be renewed. Nothing happens if that is
    /// under way, and it waits for 5 s after the last handshake message to the peer.
    pub fn initiate(&mut self, now: Time, wall: WallTime, peer: &Arc<Peer>) {
        let Some(entry) = self.peers.get_mut(&peer.id) else {
            peer.request_done();
            return;
        };
        if self.identity.is_none() || !self.up {
            entry.peer.request_done();
            self.push(Output::GaveUp { peer: peer.clone() });
            return;
        }
        match &entry.attempt {
            Some(a) if a.pending.is_some() || a.next > now && entry.peer.path().is_none() => return,
            Some(_) => {}
            None if entry.just_established(now) => {
                entry.peer.request_done();
                return;
            }
            None => entry.want_session(now),
        }
        self.send_initiation(now, wall, peer.id);
    }

    /// What is to be done next, until `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(super) fn push(&mut self, output: Output) {
        // Events are bounded by the number of peers; nobody would send them again.
        if self.outputs.len() < MAX_OUTPUTS || !matches!(output, Output::Send { .. }) {
            self.outputs.push_back(output);
        }
    }

    pub(super) fn entropy(&mut self) -> Entropy {
        let mut e = Zeroizing::new([0; 32]);
        self.rng.fill(&mut *e);
        e
    }

    pub(super) fn random(&mut self) -> u32 {
        let mut r = [0; 4];
        self.rng.fill(&mut r);
        u32::from_le_bytes(r)
    }

    pub(super) fn id_of(&self, key: &PublicKey) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// Ends the wish for a session, for whatever reason.
    pub(super) fn end_attempt(&mut self, id: u32) {
        let Some(entry) = self.peers.get_mut(&id) else { return };
        if let Some(p) = entry.attempt.take().and_then(|a| a.pending) {
            self.pending.remove(&p.index);
            self.sessions.free(p.index);
        }
        entry.peer.request_done();
    }

    fn entry(&self, key: &PublicKey) -> Option<&Entry> {
        self.peers.get(self.by_key.get(key)?)
    }

    fn entry_mut(&mut self, key: &PublicKey) -> Option<&mut Entry> {
        self.peers.get_mut(self.by_key.get(key)?)
    }
}

impl Drop for Tunnel {
    /// A peer and its sessions hold each other: unless they are parted, keys would never be wiped.
    fn drop(&mut self) {
        self.clear_sessions();
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tunnel({} peers, {} handshakes under way)", self.peers.len(), self.pending.len())
    }
}
