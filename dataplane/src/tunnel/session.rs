//! A session: one pair of transport keys.

use super::limits::{AES_REJECT_AFTER_MESSAGES, AES_REKEY_AFTER_MESSAGES};
use super::limits::{REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES};
use super::limits::{REKEY_AFTER_TIME, REKEY_ON_RECEIVE_AFTER};
use super::noise::RawKeys;
use super::peer::Peer;
use super::replay::ReplayWindow;
use crate::crypto::{Backend, Cipher, Key};
use crate::{Time, WallTime};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One pair of transport keys with one peer, made by one handshake (WireGuard paper, section 5.4.5).
/// Shared by all threads; keys are wiped when the last reference goes.
pub struct Session {
    /// The receiver index that the peer puts into its data to us.
    pub local_index: u32,
    /// The receiver index that we put into our data to the peer.
    pub remote_index: u32,
    keys: Keys,
    counter: AtomicU64,
    replay: Mutex<ReplayWindow>,
    established_at: Time,
    established_wall: WallTime,
    initiator: bool,
    confirmed: AtomicBool,
    live: AtomicBool,
    /// It is ours to renew. The initiator's task, unless both ends initiated at the same time.
    renews: AtomicBool,
    /// What stands for where its authentic data came from last ([`IndexWatch::mark`](super::IndexWatch::mark)).
    mark: AtomicU32,
    peer: Arc<Peer>,
}

/// The expanded keys of both directions, for one cipher.
pub(super) struct Keys {
    send: Key,
    recv: Key,
    cipher: Cipher,
    /// What was expanded: which key a packet was sealed with.
    #[cfg(test)]
    pub(super) raw: [[u8; 32]; 2],
}

impl Keys {
    /// Of the keys that a handshake made; those end here.
    pub(super) fn new(cipher: Cipher, backend: Backend, made: RawKeys) -> Self {
        Self {
            send: cipher.key(backend, &made.send),
            recv: cipher.key(backend, &made.recv),
            cipher,
            #[cfg(test)]
            raw: [made.send, made.recv].map(|k| match cipher {
                Cipher::ChaCha20Poly1305 => *k,
                Cipher::Aes256Gcm => *crate::crypto::aes_key(&k),
            }),
        }
    }
}

/// The counter that a session with this cipher ends before, in both directions.
const fn end(cipher: Cipher) -> u64 {
    match cipher {
        Cipher::ChaCha20Poly1305 => REJECT_AFTER_MESSAGES,
        Cipher::Aes256Gcm => AES_REJECT_AFTER_MESSAGES,
    }
}

/// When and by whom a session was made.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    pub(super) now: Time,
    pub(super) wall: WallTime,
    pub(super) initiator: bool,
}

impl Session {
    pub(super) fn new(peer: Arc<Peer>, local_index: u32, remote_index: u32, keys: Keys, origin: Origin) -> Self {
        Self {
            local_index,
            remote_index,
            counter: AtomicU64::new(0),
            replay: Mutex::new(ReplayWindow::until(end(keys.cipher))),
            keys,
            established_at: origin.now,
            established_wall: origin.wall,
            initiator: origin.initiator,
            confirmed: AtomicBool::new(origin.initiator),
            live: AtomicBool::new(true),
            renews: AtomicBool::new(origin.initiator),
            mark: AtomicU32::new(0),
            peer,
        }
    }

    /// Takes the next `n` send counters and returns the first; `None` once the session has not that many
    /// left, however often it is asked.
    pub fn reserve(&self, n: u64) -> Option<u64> {
        // Not a plain `fetch_add`: refused calls must not creep towards 2^64, where counters would repeat.
        let mut first = self.counter.load(Relaxed);
        loop {
            let next = first.checked_add(n).filter(|next| *next <= end(self.keys.cipher))?;
            match self.counter.compare_exchange_weak(first, next, Relaxed, Relaxed) {
                Ok(_) => return Some(first),
                Err(now) => first = now,
            }
        }
    }

    /// The cipher of both directions.
    #[must_use]
    pub const fn cipher(&self) -> Cipher {
        self.keys.cipher
    }

    /// The key for what we send.
    #[must_use]
    pub const fn send_key(&self) -> &Key {
        &self.keys.send
    }

    /// The key for what we receive.
    #[must_use]
    pub const fn recv_key(&self) -> &Key {
        &self.keys.recv
    }

    /// The replay window, to be locked once a batch.
    pub fn replay(&self) -> MutexGuard<'_, ReplayWindow> {
        // Whoever panicked with the lock held left a valid window: every update of it is a single step.
        self.replay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Too old to send or receive with.
    #[must_use]
    pub fn expired(&self, now: Time) -> bool {
        now.since(self.established_at) >= REJECT_AFTER_TIME
    }

    /// False once the session was taken out of use (replaced, wiped, peer removed).
    #[must_use]
    pub fn live(&self) -> bool {
        self.live.load(Relaxed)
    }

    /// Sets the mark; true if it was another.
    pub(super) fn remark(&self, mark: u32) -> bool {
        // Reading comes first: it is nearly always the same, and a line of memory that all cores read stays shared.
        self.mark.load(Relaxed) != mark && self.mark.swap(mark, Relaxed) != mark
    }

    /// The peer at the other end.
    #[must_use]
    pub const fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// When the handshake was completed, on our side.
    #[must_use]
    pub const fn established_at(&self) -> Time {
        self.established_at
    }

    /// We started the handshake.
    #[must_use]
    pub const fn initiator(&self) -> bool {
        self.initiator
    }

    /// The peer has proved that it holds the keys. For the initiator the response was the proof.
    #[must_use]
    pub fn confirmed(&self) -> bool {
        self.confirmed.load(Relaxed)
    }

    /// Something is to be sent on it: is it time to renew it (section 6.2)?
    pub(super) fn renew_on_send(&self, now: Time) -> bool {
        let messages = match self.keys.cipher {
            Cipher::ChaCha20Poly1305 => REKEY_AFTER_MESSAGES,
            Cipher::Aes256Gcm => AES_REKEY_AFTER_MESSAGES,
        };
        self.counter.load(Relaxed) >= messages || self.renew_at(now, REKEY_AFTER_TIME)
    }

    /// Something was received on it: is it time to renew it (section 6.2)?
    pub(super) fn renew_on_receive(&self, now: Time) -> bool {
        self.renew_at(now, REKEY_ON_RECEIVE_AFTER)
    }

    fn renew_at(&self, now: Time, age: std::time::Duration) -> bool {
        self.renews.load(Relaxed) && now.since(self.established_at) >= age
    }

    pub(super) const fn established_wall(&self) -> WallTime {
        self.established_wall
    }

    pub(super) fn set_confirmed(&self) {
        self.confirmed.store(true, Relaxed);
    }

    pub(super) fn set_renews(&self, renews: bool) {
        self.renews.store(renews, Relaxed);
    }

    pub(super) fn kill(&self) {
        self.live.store(false, Relaxed);
    }

    #[cfg(test)]
    pub(super) const fn raw_keys(&self) -> &[[u8; 32]; 2] {
        &self.keys.raw
    }

    #[cfg(test)]
    pub(super) fn set_counter(&self, counter: u64) {
        self.counter.store(counter, Relaxed);
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("peer", &self.peer.public_key)
            .field("local_index", &self.local_index)
            .field("remote_index", &self.remote_index)
            .field("initiator", &self.initiator)
            .field("cipher", &self.keys.cipher)
            .field("live", &self.live())
            .finish_non_exhaustive()
    }
}
