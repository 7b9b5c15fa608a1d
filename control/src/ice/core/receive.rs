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
use super::super::types::ProbeError;
use super::{Core, MAX_PROBES, Owner, PROBE_PAUSES_MS, Probe};

impl Core {
    /// One datagram from the port.
    pub(crate) fn receive(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) {
        let from = canonical(from);
        let relay = self.turn.iter().find(|t| t.server() == from);
        if let (Some(t), [0x40..=0x4f, ..]) = (relay, bytes) {
            let inner = channel_data(bytes).and_then(|(n, inner)| Some((t.peer_of(n)?, inner)));
            match inner.filter(|(_, inner)| looks_like_stun(inner)) {
                Some((peer, inner)) => self.stun_message(Route::Relay { server: from, peer }, inner, now),
                None => self.drops.malformed += 1,
            }
        } else {
            self.stun_message(Route::Direct(from), bytes, now);
        }
        self.pump(now);
    }

    fn stun_message(&mut self, route: Route, bytes: &[u8], now: Instant) {
        let Some(v) = View::parse(bytes) else {
            self.drops.malformed += 1;
            return;
        };
        match (v.class(), v.method(), route) {
            (Class::Indication, method::DATA, Route::Direct(server)) => {
                let ours = self.turn.iter().any(|t| t.server() == server);
                match Turn::unwrap(&v).filter(|_| ours) {
                    // What comes through a relay is not unwrapped again: a Data indication inside falls through below.
                    Some((peer, inner)) if looks_like_stun(inner) => {
                        self.stun_message(Route::Relay { server, peer: canonical(peer) }, inner, now);
                    }
                    Some(_) => self.drops.unknown += 1,
                    None => self.drops.malformed += 1,
                }
            }
            (Class::Request, method::BINDING, _) => self.request(route, &v),
            (Class::Success | Class::Error, _, _) => self.response(route, &v, now),
            _ => self.drops.unknown += 1,
        }
    }

    fn request(&mut self, route: Route, v: &View<'_>) {
        let ufrag = v.text(attr::USERNAME).and_then(|u| u.split(':').next()).unwrap_or_default();
        let agent = self.ufrags.get(ufrag).and_then(|id| self.agents.get(id));
        if let Some(a) = agent.filter(|a| a.finder.has_failed() || !a.finder.is_finished()) {
            return self.drops.note(a.finder.incoming(route, v));
        }
        let Some(key) = agent
            .map(|a| &a.key)
            .or_else(|| self.answers.get(ufrag))
            .or_else(|| self.lingering.get(ufrag).map(|l| &l.0))
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
    }

    fn response(&mut self, route: Route, v: &View<'_>, now: Instant) {
        if let Route::Direct(from) = route {
            if let Some(s) = self.stun.iter_mut().find(|s| s.server() == from)
                && let Ok(event) = s.handle(v, now)
            {
                if let Some(e) = event {
                    self.stun_event(from, &e, now);
                }
                return;
            }
            let out = &mut self.out;
            if self.turn.iter_mut().any(|t| t.server() == from && t.handle(v, now, out)) {
                return;
            }
        }
        match self.tids.get(&v.tid()) {
            Some(Owner::Agent(id)) => {
                let taken = self.agents.get(id).map_or(Taken::No, |a| a.finder.incoming(route, v));
                self.drops.note(taken);
            }
            Some(Owner::Probe(id)) => {
                let id = *id;
                let genuine = self.probes.get(&id).is_some_and(|p| p.route == route && v.signed_by(&p.key));
                if !genuine {
                    self.drops.forged += 1;
                } else if let Some(p) = self.probes.remove(&id) {
                    self.tids.remove(&p.tid);
                    let r = match v.class() {
                        Class::Success => Ok(now.saturating_duration_since(p.sent)),
                        _ => Err(ProbeError::Refused),
                    };
                    // The caller may have gone away.
                    let _ = p.outcome.send(r);
                }
            }
            None => self.drops.unknown += 1,
        }
    }

    /// Starts one authenticated Binding request over a path in use.
    pub(crate) fn probe(
        &mut self,
        path: Path,
        local: &Credentials,
        remote: &Credentials,
        outcome: oneshot::Sender<Result<Duration, ProbeError>>,
        now: Instant,
    ) {
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
            return;
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
        self.poll_probes(now);
    }

    pub(super) fn poll_probes(&mut self, now: Instant) {
        let due: Vec<u64> = self.probes.iter().filter(|(_, p)| p.next <= now).map(|(id, _)| *id).collect();
        for id in due {
            let Some(p) = self.probes.get_mut(&id) else { continue };
            let pause = PROBE_PAUSES_MS.get(p.tries).filter(|_| !p.outcome.is_closed());
            if let Some(pause) = pause {
                p.tries += 1;
                (p.sent, p.next) = (now, now + Duration::from_millis(*pause));
                self.out.push(Transmit { path: p.path, bytes: p.bytes.clone() });
            } else if let Some(p) = self.probes.remove(&id) {
                self.tids.remove(&p.tid);
                let _ = p.outcome.send(Err(ProbeError::NoAnswer));
            }
        }
    }
}

/// Channel number and content (RFC 8656, section 12.4).
fn channel_data(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
    Some((u16::from_be_bytes([head[0], head[1]]), rest.get(..len)?))
}
