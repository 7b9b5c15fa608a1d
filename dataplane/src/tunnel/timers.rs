//! Everything that happens because time passed (the paper, section 6).

use super::agreement::Sign;
use super::engine::Tunnel;
use super::entry::{Entry, Pending};
use super::limits::{MAX_PEERS_PER_TURN, REKEY_JITTER, REKEY_TIMEOUT, TURN_PAUSE};
use super::message::{Message, data_header};
use super::noise::Initiator;
use super::{Output, Session};
use crate::crypto::{self, Job};
use crate::{Time, WallTime};
use ipop_ebpf::{DATA_HEADER_LEN, KEEPALIVE_LEN};
use std::sync::Arc;
use std::time::Duration;

impl Tunnel {
    /// Does what is due at `now`. Right whenever it is called, if late then late.
    pub fn handle_timeout(&mut self, now: Time, wall: WallTime) {
        // From where the last turn ended, or peers that come first would be served again and again.
        let up = self.is_active();
        let due = |(id, e): (&u32, &Entry)| e.deadline(up).is_some_and(|d| d <= now).then_some(*id);
        let rest = self.peers.range(..self.cursor);
        let due: Vec<u32> =
            self.peers.range(self.cursor..).chain(rest).filter_map(due).take(MAX_PEERS_PER_TURN).collect();
        if let Some(last) = due.last() {
            self.cursor = last.wrapping_add(1);
        }
        for id in due {
            self.serve(now, wall, id);
        }
        self.turn = now;
    }

    /// When to call [`Self::handle_timeout`] next. Shards move deadlines behind the tunnel's back, mostly
    /// further away but also from none to 10 s ahead: ask again at least each second while there are
    /// sessions. After `handle_timeout(now)` always later than `now`.
    pub fn poll_timeout(&mut self, _now: Time) -> Option<Time> {
        let up = self.is_active();
        let first = self.peers.values().filter_map(|e| e.deadline(up)).min()?;
        Some(first.max(self.turn + TURN_PAUSE))
    }

    /// Between 0 and [`REKEY_JITTER`].
    pub(super) fn jitter(&mut self) -> Duration {
        let most = u64::try_from(REKEY_JITTER.as_nanos()).unwrap_or(0);
        Duration::from_nanos((u64::from(self.random()) * most) >> 32)
    }

    const fn is_active(&self) -> bool {
        self.up && self.identity.is_some()
    }

    fn serve(&mut self, now: Time, wall: WallTime, id: u32) {
        let up = self.is_active();
        let Some(entry) = self.peers.get_mut(&id) else { return };
        if entry.wipe_due().is_some_and(|t| t <= now) {
            entry.last_session = None;
            entry.peer.retire_all();
            entry.peer.activity.keepalive_done();
            entry.peer.activity.unanswered_done();
        }
        if !up {
            return;
        }
        self.serve_attempt(now, wall, id);
        self.serve_activity(now, wall, id);
    }

    fn serve_attempt(&mut self, now: Time, wall: WallTime, id: u32) {
        let Some(entry) = self.peers.get_mut(&id) else { return };
        let Some(attempt) = &entry.attempt else { return };
        if entry.satisfied(now) {
            self.end_attempt(id);
        } else if now >= attempt.ends() {
            let peer = entry.peer.clone();
            tracing::debug!(peer = %peer.public_key, "no answer to handshakes, giving up");
            self.end_attempt(id);
            self.push(Output::GaveUp { peer });
        } else if now >= attempt.next {
            self.send_initiation(now, wall, id);
        }
    }

    fn serve_activity(&mut self, now: Time, wall: WallTime, id: u32) {
        let due = |t: Option<Time>| t.is_some_and(|t| t <= now);
        let Some(entry) = self.peers.get(&id) else { return };
        let peer = entry.peer.clone();
        if entry.attempt.is_none() && peer.requested() {
            self.initiate(now, wall, &peer);
        }
        if due(peer.activity.unanswered_due()) {
            peer.activity.unanswered_done();
            let jitter = self.jitter();
            peer.activity.set_jitter(jitter);
            self.want_session(now, wall, id);
        }
        if due(peer.activity.keepalive_due()) {
            peer.activity.keepalive_done();
            self.send_keepalive(now, wall, id);
        }
        let Some(entry) = self.peers.get_mut(&id) else { return };
        if due(entry.persistent_due()) {
            entry.keepalive_now = false;
            peer.activity.touch(now);
            if !self.send_keepalive(now, wall, id) {
                self.want_session(now, wall, id);
            }
        }
    }

    /// Starts a handshake unless one is under way, however young the current session is.
    fn want_session(&mut self, now: Time, wall: WallTime, id: u32) {
        let Some(entry) = self.peers.get_mut(&id) else { return };
        if entry.attempt.is_none() {
            entry.want_session(now);
            self.send_initiation(now, wall, id);
        }
    }

    /// Sends the initiation of an attempt, or puts it off: never two within [`REKEY_TIMEOUT`].
    pub(super) fn send_initiation(&mut self, now: Time, wall: WallTime, id: u32) {
        let retry = now + REKEY_TIMEOUT + self.jitter();
        let (random, entropy) = (self.random(), self.entropy());
        let (Some(entry), Some(own)) = (self.peers.get_mut(&id), &self.identity) else { return };
        let Some(attempt) = &mut entry.attempt else { return };
        if let Some(last) = entry.last_sent
            && now.since(last) < REKEY_TIMEOUT
        {
            attempt.next = last + REKEY_TIMEOUT;
            return;
        }
        attempt.next = retry;
        if let Some(p) = attempt.pending.take() {
            self.pending.remove(&p.index);
            self.sessions.free(p.index);
        }
        let Some(path) = entry.peer.path() else { return };
        let Some(index) = self.sessions.reserve(random, id) else { return };
        let aes = entry.peer.aes();
        let timestamp = entry.clock.next(wall, aes);
        let Some((handshake, mut message)) =
            Initiator::start(&own.keys, &entry.peer.public_key, index, &timestamp, entropy)
        else {
            self.sessions.free(index);
            return;
        };
        let aes = aes.then(|| Sign::of(&message));
        attempt.pending = Some(Pending { index, handshake, aes });
        self.pending.insert(index, id);
        entry.seal(now, &mut message);
        let peer = entry.peer.clone();
        tracing::debug!(peer = %peer.public_key, %path, "sending handshake initiation");
        self.push(Output::Send { path, message: Message::new(&message), peer: Some(peer) });
    }

    /// Sends a keepalive on the current session. False if there is none to send on.
    pub(super) fn send_keepalive(&mut self, now: Time, wall: WallTime, id: u32) -> bool {
        let Some(entry) = self.peers.get(&id) else { return false };
        let peer = entry.peer.clone();
        let (Some(session), Some(path)) = (peer.current().filter(|s| !s.expired(now)), peer.path()) else {
            return false;
        };
        let Some(message) = keepalive(&session) else { return false };
        let renew = peer.note_sent(now, &session, 0, false);
        self.push(Output::Send { path, message, peer: Some(peer) });
        if renew {
            self.want_session(now, wall, id);
        }
        true
    }
}

/// An empty transport message; `None` if the session has no counters left.
fn keepalive(session: &Arc<Session>) -> Option<Message> {
    let counter = session.reserve(1)?;
    let mut bytes = [0; KEEPALIVE_LEN];
    let (header, tag) = bytes.split_at_mut(DATA_HEADER_LEN);
    header.copy_from_slice(&data_header(session.remote_index, counter));
    crypto::seal(&mut [Job::new(session.send_key(), counter, tag)]);
    Some(Message::new(&bytes))
}
