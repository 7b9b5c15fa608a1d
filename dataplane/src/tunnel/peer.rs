//! A peer as all threads see it.

use super::PublicKey;
use super::activity::Activity;
use super::limits::REKEY_TIMEOUT;
use super::session::Session;
use super::sessions::SessionTable;
use crate::packet::Translation;
use crate::{Path, Time, WallTime};
use arc_swap::ArcSwapOption;
use std::fmt;
use std::sync::atomic::Ordering::Release;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A node at the other end of the tunnel, shared by keeper and shards.
pub struct Peer {
    /// Its number, never used again for another peer.
    pub id: u32,
    /// Its identity.
    pub public_key: PublicKey,
    table: Arc<SessionTable>,
    /// The session to send with. Changed only with `others` locked.
    current: ArcSwapOption<Session>,
    others: Mutex<Others>,
    path: ArcSwapOption<Path>,
    translation: ArcSwapOption<Translation>,
    /// There is one: most peers have none, and learn that by one load.
    translated: AtomicBool,
    pub(super) activity: Activity,
    persistent_keepalive: AtomicU16,
    last_handshake: AtomicU64,
    requested: AtomicBool,
    /// Packets wait for a path, which somebody can find ([`Demand`]).
    demand: AtomicU8,
    removed: AtomicBool,
    /// Of two sessions opened at the same time from both ends, ours is the one that is given up.
    yields: AtomicBool,
    /// We would take AES-256-GCM.
    aes: AtomicBool,
}

/// What becomes of packets while a peer has no path.
#[repr(u8)]
enum Demand {
    /// They are refused.
    None,
    /// They wait, and whoever finds paths is told.
    Tell,
    /// It was told.
    Told,
}

/// Sessions that are only received on.
#[derive(Default)]
struct Others {
    /// The one before `current`.
    previous: Option<Arc<Session>>,
    /// Made by the peer's initiation and not yet used by the peer.
    next: Option<Arc<Session>>,
}

impl Peer {
    pub(super) fn new(id: u32, public_key: PublicKey, table: Arc<SessionTable>) -> Self {
        Self {
            id,
            public_key,
            table,
            current: ArcSwapOption::empty(),
            others: Mutex::default(),
            path: ArcSwapOption::empty(),
            translation: ArcSwapOption::empty(),
            translated: AtomicBool::new(false),
            activity: Activity::default(),
            persistent_keepalive: AtomicU16::new(0),
            last_handshake: AtomicU64::new(0),
            requested: AtomicBool::new(false),
            demand: AtomicU8::new(Demand::None as u8),
            removed: AtomicBool::new(false),
            yields: AtomicBool::new(false),
            aes: AtomicBool::new(false),
        }
    }

    /// The session to send with. It may have expired: the caller checks [`Session::expired`].
    #[must_use]
    pub fn current(&self) -> Option<Arc<Session>> {
        self.current.load_full()
    }

    /// Where its datagrams go.
    #[must_use]
    pub fn path(&self) -> Option<Path> {
        self.path.load().as_deref().copied()
    }

    /// Sets where its datagrams go.
    pub fn set_path(&self, path: Path) {
        self.found();
        self.path.store(Some(Arc::new(path)));
    }

    /// How its IPv4 packets are translated on arrival; `None`: they are taken as they are.
    #[must_use]
    pub fn translation(&self) -> Option<Translation> {
        if self.translated.load(Acquire) { self.translation.load().as_deref().copied() } else { None }
    }

    /// Sets how its IPv4 packets are translated, from the next batch on.
    pub fn set_translation(&self, translation: Option<Translation>) {
        self.translation.store(translation.map(Arc::new));
        self.translated.store(translation.is_some(), Release);
    }

    /// Whether packets wait while there is no path, for somebody who finds one.
    pub fn set_on_demand(&self, on: bool) {
        self.demand.store(if on { Demand::Tell } else { Demand::None } as u8, Relaxed);
    }

    /// Whether packets wait while there is no path.
    #[must_use]
    pub fn on_demand(&self) -> bool {
        self.demand.load(Relaxed) != Demand::None as u8
    }

    /// A packet waits for a path. True for the first who says so since there was one.
    #[must_use]
    pub fn want_path(&self) -> bool {
        self.demand.compare_exchange(Demand::Tell as u8, Demand::Told as u8, Relaxed, Relaxed).is_ok()
    }

    /// Whoever finds paths could not be told, or there is one: the next packet without one tells again.
    pub fn found(&self) {
        let _ = self.demand.compare_exchange(Demand::Told as u8, Demand::Tell as u8, Relaxed, Relaxed);
    }

    /// Whether sessions with it may have AES-256-GCM. They do if it says the same: a peer that is not known to have it
    /// should not be taken for willing (see `agreement`).
    pub fn set_aes(&self, aes: bool) {
        self.aes.store(aes, Relaxed);
    }

    /// Whether sessions with it may have AES-256-GCM, from the next handshake on.
    #[must_use]
    pub fn aes(&self) -> bool {
        self.aes.load(Relaxed)
    }

    /// When an authentic datagram last came from it.
    #[must_use]
    pub fn last_received(&self) -> Option<Time> {
        self.activity.last_received()
    }

    /// When a datagram was last sent to it.
    #[must_use]
    pub fn last_sent(&self) -> Option<Time> {
        self.activity.last_sent()
    }

    /// An authentic datagram came by `path`: that is where answers go (WireGuard paper, section 2.1). True
    /// if it differs from the path so far.
    pub fn roam(&self, path: Path) -> bool {
        let changed = self.path.load().as_deref() != Some(&path);
        if changed {
            self.set_path(path);
        }
        changed
    }

    /// An authentic datagram was received on `session`. The first one on a session that the peer initiated
    /// proves that the peer has the keys, and makes it the session to send with. True if that happened now:
    /// whatever was staged can be sent.
    pub fn confirm(&self, session: &Arc<Session>) -> bool {
        if session.confirmed() {
            return false;
        }
        let mut others = self.lock();
        if session.confirmed() {
            return false;
        }
        if others.next.as_ref().is_some_and(|n| Arc::ptr_eq(n, session)) {
            others.next = None;
            session.set_confirmed();
            let before = self.current.swap(Some(session.clone()));
            if before.as_ref().is_some_and(|ours| crossed(ours, session, 2 * REKEY_TIMEOUT)) {
                session.set_renews(!self.yields.load(Relaxed));
            }
            self.retire(std::mem::replace(&mut others.previous, before));
            self.note_handshake(session);
            return true;
        }
        if others.previous.as_ref().is_some_and(|p| Arc::ptr_eq(p, session)) {
            // Both ends initiated at once and both handshakes were completed.
            session.set_confirmed();
            if let Some(ours) = self.current.load().as_ref() {
                self.settle(ours, session);
            }
        }
        false
    }

    /// Notes datagrams of `bytes` bytes that were sent on `session`, once a batch. `data`: there was
    /// something in them. True: the session is to be renewed.
    pub fn note_sent(&self, now: Time, session: &Session, bytes: u64, data: bool) -> bool {
        self.activity.sent(now, bytes, data);
        session.renew_on_send(now)
    }

    /// Notes authentic datagrams of `bytes` bytes that were received on `session`, once a batch. `data`:
    /// there was something in them. True: the session is to be renewed.
    pub fn note_received(&self, now: Time, session: &Session, bytes: u64, data: bool) -> bool {
        self.activity.received(now, bytes, data);
        session.renew_on_receive(now)
    }

    /// Asks the keeper for a handshake. True for the first who asks; false until that handshake was
    /// completed or given up. The keeper finds the request at its next `handle_timeout` even if nobody
    /// tells it.
    pub fn request_handshake(&self) -> bool {
        !self.requested.load(Relaxed) && !self.requested.swap(true, AcqRel)
    }

    /// UDP payload bytes sent to it.
    #[must_use]
    pub fn tx_bytes(&self) -> u64 {
        self.activity.tx_bytes()
    }

    /// Authentic UDP payload bytes received from it.
    #[must_use]
    pub fn rx_bytes(&self) -> u64 {
        self.activity.rx_bytes()
    }

    /// Counts bytes sent apart from [`Self::note_sent`]: handshake messages and keepalives of
    /// [`Output::Send`](super::Output::Send), which the tunnel itself does not count.
    pub fn add_tx_bytes(&self, bytes: u64) {
        self.activity.add_tx_bytes(bytes);
    }

    /// When the last handshake was completed.
    #[must_use]
    pub fn last_handshake(&self) -> Option<WallTime> {
        match self.last_handshake.load(Relaxed) {
            0 => None,
            nanos => Some(WallTime(Duration::from_nanos(nanos))),
        }
    }

    /// Seconds between persistent keepalives; 0: off.
    #[must_use]
    pub fn persistent_keepalive(&self) -> u16 {
        self.persistent_keepalive.load(Relaxed)
    }

    /// The peer was removed: it has no session and will get none.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed.load(Acquire)
    }

    /// Our initiation was answered: `session` is the one to send with from now on.
    pub(super) fn install_initiated(&self, session: &Arc<Session>) {
        let mut others = self.lock();
        let before = self.current.swap(Some(session.clone()));
        let next = others.next.take();
        // Nothing ever came on `next`. If something came on the others long after it was made, the peer never
        // got our response, and what is on its way comes on the session that was current.
        let unused = |n: &Session| self.activity.last_received() > Some(n.established_at() + REKEY_TIMEOUT);
        let (stale, next) = next.map_or((None, None), |n| if unused(&n) { (Some(n), None) } else { (None, Some(n)) });
        self.retire(stale);
        if let Some(next) = next {
            // Both ends initiated at once. The peer may already be using the session that it initiated.
            self.retire(others.previous.replace(next));
            self.retire(before);
        } else {
            if let Some(theirs) = &before {
                self.settle(session, theirs);
            }
            self.retire(std::mem::replace(&mut others.previous, before));
        }
        self.note_handshake(session);
    }

    /// We answered the peer's initiation: `session` waits for [`Self::confirm`].
    pub(super) fn install_answered(&self, session: &Arc<Session>) {
        let before = self.lock().next.replace(session.clone());
        self.retire(before);
    }

    /// `ours` is current, and the peer is known to use `theirs`. If they crossed and both ends renewed theirs,
    /// handshakes would cross again each time: so only the end with the greater public key renews, whichever
    /// session it ends up with ([`Self::confirm`] with twice the tolerance, as the ends see different times).
    fn settle(&self, ours: &Session, theirs: &Session) {
        if self.yields.load(Relaxed) && theirs.confirmed() && crossed(ours, theirs, REKEY_TIMEOUT) {
            ours.set_renews(false);
        }
    }

    /// Takes all sessions out of use.
    pub(super) fn retire_all(&self) {
        let mut others = self.lock();
        self.retire(self.current.swap(None));
        self.retire(others.previous.take());
        self.retire(others.next.take());
    }

    pub(super) fn set_removed(&self) {
        self.removed.store(true, Release);
        self.retire_all();
    }

    pub(super) fn set_yields(&self, yields: bool) {
        self.yields.store(yields, Relaxed);
    }

    pub(super) fn set_persistent_keepalive(&self, seconds: u16) {
        self.persistent_keepalive.store(seconds, Relaxed);
    }

    pub(super) fn requested(&self) -> bool {
        self.requested.load(Acquire)
    }

    pub(super) fn request_done(&self) {
        self.requested.store(false, Release);
    }

    fn note_handshake(&self, session: &Session) {
        let nanos = u64::try_from(session.established_wall().0.as_nanos()).unwrap_or(u64::MAX);
        self.last_handshake.store(nanos.max(1), Relaxed);
    }

    fn retire(&self, session: Option<Arc<Session>>) {
        if let Some(s) = session {
            s.kill();
            self.table.free(s.local_index);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Others> {
        // Every step under the lock leaves a valid set of sessions.
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Both ends initiated a session at the same time, and both were made.
fn crossed(ours: &Session, theirs: &Session, tolerance: Duration) -> bool {
    let (a, b) = (ours.established_at(), theirs.established_at());
    ours.initiator() && !theirs.initiator() && a.since(b).max(b.since(a)) < tolerance
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({} {})", self.id, self.public_key)
    }
}
