//! What happens because a handshake message came (the paper, section 5.4).

use super::agreement::Sign;
use super::engine::Tunnel;
use super::limits::INITIATION_INTERVAL;
use super::message::{Message, index_at};
use super::noise::Initiation;
use super::session::{Keys, Origin};
use super::timestamp::wants_aes;
use super::{Output, Peer, Session};
use crate::crypto::Cipher;
use crate::stats::Drop;
use crate::{Path, Time, WallTime};
use ipop_ebpf::{Kind, classify};
use std::sync::Arc;

impl Tunnel {
    /// Takes an initiation, a response or a cookie reply that came from `from`. Under load its sender first
    /// has to prove its address, and is limited in rate.
    ///
    /// # Errors
    /// The reason why the message was dropped: `BadMac`, `HandshakeRefused`, `HandshakeRateLimited`,
    /// `CookieSent`; `UnknownDatagram` if it is none of the three.
    pub fn handle(
        &mut self,
        now: Time,
        wall: WallTime,
        from: Path,
        message: &[u8],
        under_load: bool,
    ) -> Result<(), Drop> {
        let kind = classify(message);
        if !matches!(kind, Kind::Initiation | Kind::Response | Kind::CookieReply) {
            return Err(Drop::UnknownDatagram);
        }
        if !self.up {
            return Err(Drop::HandshakeRefused);
        }
        if kind == Kind::CookieReply {
            return self.cookie_reply(now, message).ok_or(Drop::HandshakeRefused);
        }
        let own = self.identity.as_ref().ok_or(Drop::HandshakeRefused)?;
        if !own.macs.verify_mac1(message) {
            return Err(Drop::BadMac);
        }
        if under_load {
            self.admit(now, &from, message)?;
        }
        match kind {
            Kind::Initiation => self.initiation(now, wall, from, message),
            _ => self.response(now, wall, from, message).ok_or(Drop::HandshakeRefused),
        }
    }

    /// Under load: lets pass who proved its address and is not too fast.
    fn admit(&mut self, now: Time, from: &Path, message: &[u8]) -> Result<(), Drop> {
        let own = self.identity.as_mut().ok_or(Drop::HandshakeRefused)?;
        if !own.cookies.verify(now, from, message) {
            let reply = own.cookies.reply(now, from, message, &mut *self.rng).ok_or(Drop::HandshakeRefused)?;
            self.push(Output::Send { path: *from, message: reply, peer: None });
            return Err(Drop::CookieSent);
        }
        if self.limiter.allow(now, from) { Ok(()) } else { Err(Drop::HandshakeRateLimited) }
    }

    fn initiation(&mut self, now: Time, wall: WallTime, from: Path, message: &[u8]) -> Result<(), Drop> {
        const REFUSED: Drop = Drop::HandshakeRefused;
        let (random, entropy) = (self.random(), self.entropy());
        let own = self.identity.as_ref().ok_or(REFUSED)?;
        let initiation = Initiation::read(&own.keys, message, entropy).ok_or(REFUSED)?;
        let id = self.id_of(&initiation.peer).ok_or(REFUSED)?;
        let entry = self.peers.get_mut(&id).ok_or(REFUSED)?;
        if let Some((timestamp, at)) = entry.accepted {
            if initiation.timestamp <= timestamp {
                return Err(REFUSED);
            }
            if now.since(at) < INITIATION_INTERVAL {
                return Err(Drop::HandshakeRateLimited);
            }
        }
        let remote_index = initiation.remote_index;
        let timestamp = initiation.timestamp;
        // It says whether it would; whether we do is in our index.
        let aes = wants_aes(&timestamp) && entry.peer.aes();
        let index = self.sessions.reserve(Sign::of(message).index(random, aes), id).ok_or(REFUSED)?;
        let Some((mut response, keys)) = initiation.respond(&entry.psk, index) else {
            self.sessions.free(index);
            return Err(REFUSED);
        };
        entry.accepted = Some((timestamp, now));
        entry.last_session = Some(now);
        let peer = entry.peer.clone();
        let cipher = if aes { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 };
        let keys = Keys::new(cipher, self.backend, keys);
        let origin = Origin { now, wall, initiator: false };
        let session = Arc::new(Session::new(peer.clone(), index, remote_index, keys, origin));
        // Published before the response can be answered.
        self.sessions.publish(session.clone());
        self.sessions.heard(&session, from);
        peer.install_answered(&session);
        peer.activity.received(now, message.len() as u64, false);
        peer.roam(from);
        entry.seal(now, &mut response);
        tracing::debug!(peer = %peer.public_key, path = %from, %cipher, "answering handshake initiation");
        self.push(Output::Send { path: from, message: Message::new(&response), peer: Some(peer) });
        Ok(())
    }

    fn response(&mut self, now: Time, wall: WallTime, from: Path, message: &[u8]) -> Option<()> {
        let remote_index = index_at(message, 4)?;
        let local_index = index_at(message, 8)?;
        let id = *self.pending.get(&local_index)?;
        let entry = self.peers.get_mut(&id)?;
        let pending = entry.attempt.as_mut()?.pending.as_mut()?;
        let keys = pending.handshake.finish(&entry.psk, message)?;
        let aes = pending.aes.is_some_and(|sign| sign.is_in(remote_index));

        // The index goes from the handshake to the session.
        entry.attempt = None;
        entry.last_session = Some(now);
        let peer = entry.peer.clone();
        self.pending.remove(&local_index);
        let cipher = if aes { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 };
        let keys = Keys::new(cipher, self.backend, keys);
        let origin = Origin { now, wall, initiator: true };
        let session = Arc::new(Session::new(peer.clone(), local_index, remote_index, keys, origin));
        self.sessions.publish(session.clone());
        self.sessions.heard(&session, from);
        peer.install_initiated(&session);
        peer.activity.received(now, message.len() as u64, false);
        peer.roam(from);
        peer.request_done();
        tracing::debug!(peer = %peer.public_key, path = %from, %cipher, "handshake complete");
        // The responder may not send until it has heard from us (section 5.4.6).
        self.send_keepalive(now, wall, id);
        self.push(Output::Established { peer });
        Some(())
    }

    /// A cookie reply refers to our last initiation or response by the index that it carried.
    fn cookie_reply(&mut self, now: Time, message: &[u8]) -> Option<()> {
        let index = index_at(message, 4)?;
        let of_session = |s: Arc<Session>| s.peer().id;
        let id = self.pending.get(&index).copied().or_else(|| self.sessions.get(index).map(of_session))?;
        self.peers.get_mut(&id)?.take_cookie(now, message).then_some(())
    }
}

#[allow(dead_code, reason = "states what threads share")]
const fn shared_between_threads() {
    const fn check<T: Send + Sync>() {}
    check::<Peer>();
    check::<Session>();
    check::<super::SessionTable>();
    check::<super::MacVerifier>();
    const fn send<T: Send>() {}
    send::<Tunnel>();
}
