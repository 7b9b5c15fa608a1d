//! Whose is this datagram?

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use dataplane::Path;
use dataplane::path::canonical;
use tokio::sync::oneshot;

use super::super::candidate::CandidateKind;
use super::super::candidate::Credentials;
use super::super::finder::{Taken, preference, priority};
use super::super::route::{Route, Transmit};
use super::super::stun::{Class, Key, View, Writer, attr, looks_like_stun, method, random};
use super::super::turn::Turn;
use super::super::types::{IceEvent, ProbeError};
use super::{Core, HEARD_PAUSE, MAX_PROBES, Owner, PROBE_PAUSES_MS, Probe};

impl Core {
    /// One datagram from the port. Whether something may follow from it that [`Self::poll`] does; not so for requests of peers
    /// and answers to negotiations and probes, which are most.
    pub(crate) fn receive(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) -> bool {
        let from = canonical(from);
        let relay = self.turn.iter().find(|t| t.server() == from);
        if let (Some(t), [0x40..=0x4f, ..]) = (relay, bytes) {
            let inner = channel_data(bytes).and_then(|(n, inner)| Some((t.peer_of(n)?, inner)));
            match inner.filter(|(_, inner)| looks_like_stun(inner)) {
                Some((peer, inner)) => self.stun_message(Route::Relay { server: from, peer }, inner, now),
                None => {
                    self.drops.malformed += 1;
                    false
                }
            }
        } else {
            self.stun_message(Route::Direct(from), bytes, now)
        }
    }

    fn stun_message(&mut self, route: Route, bytes: &[u8], now: Instant) -> bool {
        let Some(v) = View::parse(bytes) else {
            self.drops.malformed += 1;
            return false;
        };
        match (v.class(), v.method(), route) {
            (Class::Indication, method::DATA, Route::Direct(server)) => {
                let ours = self.turn.iter().any(|t| t.server() == server);
                match Turn::unwrap(&v).filter(|_| ours) {
                    // What comes through a relay is not unwrapped again: a Data indication inside falls through below.
                    Some((peer, inner)) if looks_like_stun(inner) => {
                        return self.stun_message(Route::Relay { server, peer: canonical(peer) }, inner, now);
                    }
                    Some(_) => self.drops.unknown += 1,
                    None => self.drops.malformed += 1,
                }
            }
            (Class::Request, method::BINDING, _) => self.request(route, &v, now),
            (Class::Success | Class::Error, _, _) => return self.response(route, &v, now),
            _ => self.drops.unknown += 1,
        }
        false
    }

    fn request(&mut self, route: Route, v: &View<'_>, now: Instant) {
        let ufrag = v.text(attr::USERNAME).and_then(|u| u.split(':').next()).unwrap_or_default();
        if self.is_overlay(route.peer().ip()) {
            // It came through the tunnel, so it is no proof of any path below it.
            self.drops.unknown += 1;
            return;
        }
        let agent = self.ufrags.get(ufrag).and_then(|id| self.agents.get(id));
        if let Some(a) = agent.filter(|a| a.finder.has_failed() || !a.finder.is_finished()) {
            let taken = a.finder.incoming(route, v);
            self.drops.note(taken);
            if taken == Taken::Yes {
                self.heard(v, now);
            }
            return;
        }
        // Through a relay data comes in from where a channel leads. A permission alone lets a probe through, also from a
        // port to which none leads, as after a change of the peer's address: to answer it would be to say that data come.
        let carries = match route {
            Route::Direct(_) => true,
            Route::Relay { server, peer } => {
                self.turn.iter().any(|t| t.server() == server && t.bound_number(peer).is_some())
            }
        };
        let Some(key) = agent
            .map(|a| &a.key)
            .or_else(|| self.answers.get(ufrag).map(|a| &a.key))
            .or_else(|| self.lingering.get(ufrag).map(|l| &l.0))
            .filter(|_| carries)
        else {
            self.drops.unknown += 1;
            return;
        };
        if !v.signed_by(key) {
            self.drops.forged += 1;
            return;
        }
        let bytes = Writer::new(Class::Success, method::BINDING, &v.tid())
            .xor_address(attr::XOR_MAPPED_ADDRESS, route.peer())
            .sign(key)
            .fingerprint()
            .finish();
        self.send(route, bytes);
        self.heard(v, now);
    }

    /// A request that is signed with credentials of a link in use: the peer lives.
    fn heard(&mut self, v: &View<'_>, now: Instant) {
        let ufrag = v.text(attr::USERNAME).and_then(|u| u.split(':').next()).unwrap_or_default();
        if let Some(a) = self.answers.get_mut(ufrag)
            && a.heard.is_none_or(|t| now.saturating_duration_since(t) >= HEARD_PAUSE)
        {
            a.heard = Some(now);
            self.events.push(IceEvent::Heard { ufrag: ufrag.to_owned() });
        }
    }

    fn response(&mut self, route: Route, v: &View<'_>, now: Instant) -> bool {
        if let Route::Direct(from) = route {
            if let Some(s) = self.stun.iter_mut().find(|s| s.server() == from)
                && let Ok(event) = s.handle(v, now)
            {
                if let Some(e) = event {
                    self.stun_event(from, &e, now);
                }
                return true;
            }
            let out = &mut self.out;
            if self.turn.iter_mut().any(|t| t.server() == from && t.handle(v, now, out)) {
                return true;
            }
        }
        match self.tids.get(&v.tid()) {
            Some(Owner::Agent(id)) => {
                let taken = self.agents.get(id).map_or(Taken::No, |a| a.finder.incoming(route, v));
                self.drops.note(taken);
            }
            Some(Owner::Probe(id)) => {
                let id = *id;
                let genuine = self.probes.get(&id).filter(|p| p.route == route && v.signed_by(&p.key));
                match genuine.map(|p| now.saturating_duration_since(p.sent)) {
                    None => self.drops.forged += 1,
                    Some(rtt) if v.class() == Class::Success => self.end_probe(id, Ok(rtt)),
                    Some(_) => self.end_probe(id, Err(ProbeError::Refused)),
                }
            }
            None => self.drops.unknown += 1,
        }
        false
    }

    /// Starts one authenticated Binding request over a path in use. It is repeated by [`Self::poll_probe`], when
    /// [`Self::probe_next`] says; until then nobody has to be woken for it.
    pub(crate) fn probe(
        &mut self,
        path: Path,
        local: &Credentials,
        remote: &Credentials,
        outcome: oneshot::Sender<Result<Duration, ProbeError>>,
        now: Instant,
    ) -> Option<u64> {
        let route = match path {
            Path::Direct(a) => Some(Route::direct(a)),
            Path::Relay { server, channel } => {
                let peer = self.turn_of(server).and_then(|t| t.peer_of(channel));
                peer.map(|peer| Route::Relay { server, peer })
            }
        };
        let Some(route) = route.filter(|_| self.probes.len() < MAX_PROBES) else {
            let why = if route.is_none() { ProbeError::NoSuchChannel } else { ProbeError::TooMany };
            let _ = outcome.send(Err(why));
            return None;
        };
        let key = Key::short(&remote.password);
        let tid = random();
        let bytes = Writer::new(Class::Request, method::BINDING, &tid)
            .attr(attr::USERNAME, format!("{}:{}", remote.ufrag, local.ufrag).as_bytes())
            .u32(attr::PRIORITY, priority(CandidateKind::PeerReflexive, preference(route.peer())))
            .sign(&key)
            .fingerprint()
            .finish();
        let id = self.number();
        self.tids.insert(tid, Owner::Probe(id));
        self.probes.insert(id, Probe { route, path, key, tid, bytes, tries: 0, sent: now, next: now, outcome });
        self.poll_probe(id, now);
        Some(id)
    }

    /// When the probe is repeated or given up; `None` if it has ended.
    pub(crate) fn probe_next(&self, id: u64) -> Option<Instant> {
        self.probes.get(&id).map(|p| p.next)
    }

    /// Repeats the probe, or gives it up, if it is time for that.
    pub(crate) fn poll_probe(&mut self, id: u64, now: Instant) {
        let Some(p) = self.probes.get_mut(&id).filter(|p| p.next <= now) else { return };
        if let Some(pause) = PROBE_PAUSES_MS.get(p.tries) {
            p.tries += 1;
            (p.sent, p.next) = (now, now + Duration::from_millis(*pause));
            self.out.push(Transmit { path: p.path, bytes: p.bytes.clone() });
        } else {
            self.end_probe(id, Err(ProbeError::NoAnswer));
        }
    }

    /// Ends the probe, if it has not ended yet.
    pub(crate) fn end_probe(&mut self, id: u64, r: Result<Duration, ProbeError>) {
        if let Some(p) = self.probes.remove(&id) {
            self.tids.remove(&p.tid);
            // The caller may have gone away.
            let _ = p.outcome.send(r);
        }
    }
}

/// Channel number and content (RFC 8656, section 12.4).
fn channel_data(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
    Some((u16::from_be_bytes([head[0], head[1]]), rest.get(..len)?))
}
