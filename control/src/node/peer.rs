//! One other node in one network: its link, its negotiations, its entry in the data plane.

use super::event::{Event, LinkId, Remote};
use super::negotiation::{self, Running, Subject};
use super::rates::Rates;
use crate::admin::status::LinkStatus;
use crate::ice::{self, Credentials, IceNode, ProbeError};
use crate::link::{self, Input, Link, Output, State};
use crate::network::PlannedPeer;
use crate::xmpp::{self, Negotiation, Signal, SignalRequest, Xmpp};
use dataplane::{Engine, Path, PeerState, PeerUpdate, Time, Update, WallTime};
use std::collections::HashMap;
use tokio::sync::mpsc;

/// What the links of one network work with.
pub(super) struct Hands<'a> {
    pub(super) engine: &'a Engine,
    pub(super) ice: &'a IceNode,
    pub(super) xmpp: &'a Xmpp,
    pub(super) events: &'a mpsc::Sender<Event>,
    /// The network's name in signals.
    pub(super) network: &'a str,
}

/// What a negotiation found, and what its checks were signed with: probes of the path are, too.
struct Known {
    found: ice::Found,
    local: Credentials,
    remote: Credentials,
}

/// Another node.
pub(super) struct Peer {
    id: LinkId,
    pub(super) planned: PlannedPeer,
    pub(super) link: Link,
    pub(super) online: bool,
    running: HashMap<String, Running>,
    /// Offers whose acceptance is being decided.
    offered: HashMap<String, (Option<SignalRequest>, Negotiation)>,
    known: HashMap<String, Known>,
    rates: Rates,
    tunnel: Option<PeerState>,
    /// The state that was logged last.
    told: State,
}

impl Peer {
    pub(super) fn new(id: LinkId, planned: PlannedPeer, link: Link) -> Self {
        Self {
            id,
            planned,
            link,
            online: false,
            running: HashMap::new(),
            offered: HashMap::new(),
            known: HashMap::new(),
            rates: Rates::default(),
            tunnel: None,
            told: State::Idle,
        }
    }

    /// The change that makes the data plane know the peer as it is planned.
    pub(super) fn entry(&self) -> PeerUpdate {
        PeerUpdate {
            preshared_key: Some(self.planned.psk.clone().unwrap_or_default()),
            replace_allowed_ips: true,
            allowed_ips: self.planned.allowed_ips.iter().map(|p| (*p, true)).collect(),
            on_demand: Some(self.online),
            translation: Some(self.planned.translation),
            aes: Some(self.planned.aes),
            ..PeerUpdate::new(self.planned.public_key)
        }
    }

    /// Something happened to the link.
    pub(super) fn handle(&mut self, input: Input, hands: &Hands<'_>) {
        let again = matches!(input, Input::SignalingUp);
        self.link.handle(Engine::now(), input);
        self.pump(hands);
        // Packets that asked for a path while none could be looked for ask once more.
        if again && self.online && self.link.path().is_none() && !self.link.wants() {
            self.demand(hands);
        }
    }

    /// Whether packets wait for a path, or are refused.
    pub(super) fn set_online(&mut self, online: bool, hands: &Hands<'_>) {
        if self.online != online {
            self.online = online;
            let word = if online { "online" } else { "offline" };
            tracing::info!("{}: {} ({}) is {word}", hands.network, self.id.jid, self.planned.name);
            self.demand(hands);
        }
        self.handle(if online { Input::PeerOnline } else { Input::PeerOffline }, hands);
    }

    /// The peer's `session-initiate`. The link decides, and the answer is sent.
    pub(super) fn offer(&mut self, request: SignalRequest, sid: String, offer: Negotiation, hands: &Hands<'_>) {
        self.offered.insert(sid.clone(), (Some(request), offer));
        self.handle(Input::Initiated { sid: sid.clone() }, hands);
        // Whatever became of it: a repetition of a live session is accepted without a new agent that would take it.
        self.offered.remove(&sid);
    }

    /// The peer's `session-accept`. False: there is no such session.
    pub(super) fn accepted(&mut self, sid: &str, answer: Negotiation, hands: &Hands<'_>) -> bool {
        let Some(running) = self.running.get(sid) else { return false };
        running.tell(Remote::Description { credentials: answer.credentials, candidates: answer.candidates });
        self.handle(Input::Accepted { sid: sid.to_owned() }, hands);
        true
    }

    /// More candidates of the peer. False: there is no such session.
    pub(super) fn candidates(&self, sid: &str, candidates: Vec<ice::Candidate>) -> bool {
        let running = self.running.get(sid);
        if let Some(r) = running {
            r.tell(Remote::Candidates(candidates));
        }
        running.is_some()
    }

    /// The peer's `session-terminate`. False: there is no such session.
    pub(super) fn terminated(&mut self, sid: &str, reason: xmpp::Reason, hands: &Hands<'_>) -> bool {
        let known = self.running.contains_key(sid) || self.link.sid() == Some(sid);
        self.handle(Input::Terminated { sid: sid.to_owned(), reason }, hands);
        known
    }

    /// A path was found.
    pub(super) fn found(
        &mut self,
        sid: &str,
        found: ice::Found,
        local: Credentials,
        remote: Credentials,
        hands: &Hands<'_>,
    ) {
        if !self.running.contains_key(sid) {
            return;
        }
        let (path, relayed) = (found.path, found.is_relayed());
        hands.ice.answer_probes(&local);
        self.known.insert(sid.to_owned(), Known { found, local, remote });
        self.handle(Input::AgentFound { sid: sid.to_owned(), path, relayed }, hands);
    }

    /// What the data plane knows of the peer.
    pub(super) fn look(&mut self, now: Time, tunnel: PeerState, hands: &Hands<'_>) {
        self.rates.look(now, [tunnel.tx_bytes, tunnel.rx_bytes]);
        let before = self.tunnel.as_ref().and_then(|t| t.last_handshake);
        let input = Input::Activity {
            // Before there was a session, what came were handshakes, which anyone with our public key can begin.
            last_received: tunnel.last_received.filter(|_| tunnel.last_handshake.is_some()),
            last_sent: tunnel.last_sent,
            path: tunnel.path,
        };
        let fresh = tunnel.last_handshake.filter(|h| Some(*h) != before);
        self.tunnel = Some(tunnel);
        if let Some(at) = fresh {
            // The handshake's time is of the wall clock; it happened since the last look.
            let ago = dataplane_wall().0.saturating_sub(at.0);
            let at = Time::from_nanos(now.as_nanos().saturating_sub(u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX)));
            self.handle(Input::Session { at }, hands);
        }
        self.handle(input, hands);
    }

    /// Does what the link wants done.
    pub(super) fn pump(&mut self, hands: &Hands<'_>) {
        while let Some(output) = self.link.poll_output() {
            self.carry_out(output, hands);
        }
        self.tidy(hands);
    }

    fn carry_out(&mut self, output: Output, hands: &Hands<'_>) {
        let key = &self.planned.public_key;
        match output {
            Output::Start { sid, role } => self.start(sid, role, hands),
            Output::Answer { sid, verdict } => {
                // Of an accepted offer the description goes to the agent, which the link starts next.
                let Some((request, _)) = self.offered.get_mut(&sid) else { return };
                let answer = match verdict {
                    link::Verdict::Accept => xmpp::Verdict::Ok,
                    link::Verdict::TieBreak => xmpp::Verdict::TieBreak,
                    link::Verdict::Busy => xmpp::Verdict::Busy,
                    link::Verdict::UnknownSession => xmpp::Verdict::UnknownSession,
                };
                if let Some(request) = request.take() {
                    hands.xmpp.answer(request, answer);
                }
                if verdict != link::Verdict::Accept {
                    self.offered.remove(&sid);
                }
            }
            Output::Stop { sid } => {
                self.running.remove(&sid);
            }
            Output::Terminate { sid, reason } => {
                let (xmpp, jid) = (hands.xmpp.clone(), self.id.jid.clone());
                tokio::spawn(async move {
                    // The peer finds out by itself, if it must.
                    if let Err(e) = xmpp.signal(&jid, Signal::Terminate { sid, reason }).await {
                        tracing::debug!("{jid} was not told of the end of a negotiation: {e}");
                    }
                });
            }
            Output::UsePath { path } => {
                hands.engine.set_path(key, path);
            }
            Output::Handshake => {
                hands.engine.handshake(key);
            }
            Output::Unpath => {
                self.rates.restart();
                self.tunnel = None;
                let gone = PeerUpdate { remove: true, ..PeerUpdate::new(*key) };
                let update = Update { peers: vec![gone, self.entry()], ..Update::default() };
                if let Err(e) = hands.engine.configure(update) {
                    tracing::error!("{}: {e}", self.id.jid);
                }
            }
            Output::Probe => self.probe(hands),
            Output::Changed => self.changed(hands),
        }
    }

    fn start(&mut self, sid: String, role: link::Role, hands: &Hands<'_>) {
        let role = match role {
            link::Role::Controlling => ice::Role::Controlling,
            link::Role::Controlled => ice::Role::Controlled,
        };
        tracing::debug!("{}: negotiation {sid} begins, {role:?}", self.id.jid);
        let subject = Subject { link: self.id.clone(), sid: sid.clone(), role, network: hands.network.to_owned() };
        let running = negotiation::start(subject, hands.ice, hands.xmpp, hands.events.clone());
        if let Some((_, offer)) = self.offered.remove(&sid) {
            running.tell(Remote::Description { credentials: offer.credentials, candidates: offer.candidates });
        }
        self.running.insert(sid, running);
    }

    /// Asks the peer for a sign of life over the path in use.
    fn probe(&self, hands: &Hands<'_>) {
        let known = self.link.sid().and_then(|sid| self.known.get(sid));
        let (Some(path), Some(known)) = (self.probed_path(), known) else {
            // The peer came by itself, there were no checks: the tunnel's own handshake asks as well.
            hands.engine.handshake(&self.planned.public_key);
            return;
        };
        let (ice, events, link) = (hands.ice.clone(), hands.events.clone(), self.id.clone());
        let (local, remote) = (known.local.clone(), known.remote.clone());
        tokio::spawn(async move {
            let rtt = match ice.probe(path, &local, &remote).await {
                Ok(rtt) => Some(rtt),
                // It comes two seconds after the question, and the link counts one as lost much sooner.
                Err(ProbeError::NoAnswer) => return,
                Err(_) => None,
            };
            let _ = events.send(Event::Probe { link, path, rtt }).await;
        });
    }

    /// The path that is asked for a sign of life: the one that the tunnel uses, as the peer may have roamed.
    fn probed_path(&self) -> Option<Path> {
        let roamed = self.tunnel.as_ref().and_then(|t| t.path);
        roamed.or(self.link.path().map(|(path, _)| path))
    }

    /// Whether a probe of `path` says something about the path in use.
    pub(super) fn probes(&self, path: Path) -> bool {
        self.probed_path() == Some(path)
    }

    fn changed(&mut self, hands: &Hands<'_>) {
        let state = self.link.state();
        if state == self.told {
            return;
        }
        let (jid, why) = (&self.id.jid, self.link.why());
        match (state, self.link.path()) {
            (State::Up, Some((path, _))) => tracing::info!("{jid}: up, {why}: {path}"),
            (State::Failing, _) => tracing::warn!("{jid}: failing: {why}"),
            _ => tracing::debug!("{jid}: {}: {why}", state.name()),
        }
        self.told = state;
        if matches!(state, State::Idle | State::Failing) && self.link.path().is_none() {
            self.demand(hands);
        }
    }

    /// Packets for an offline peer are refused; those for an online one wait and ask for a path, once more.
    fn demand(&self, hands: &Hands<'_>) {
        let set =
            |on| PeerUpdate { update_only: true, on_demand: Some(on), ..PeerUpdate::new(self.planned.public_key) };
        let mut peers = vec![set(false)];
        if self.online {
            peers.push(set(true));
        }
        if let Err(e) = hands.engine.configure(Update { peers, ..Update::default() }) {
            tracing::error!("{}: {e}", self.id.jid);
        }
    }

    /// Forgets what no agent and no path needs any more.
    fn tidy(&mut self, hands: &Hands<'_>) {
        let over = |sid: &String| !self.running.contains_key(sid) && !self.link.needs(sid);
        let over: Vec<String> = self.known.keys().filter(|sid| over(sid)).cloned().collect();
        for sid in over {
            let Some(known) = self.known.remove(&sid) else { continue };
            // And with it goes its use of a relay's channel.
            hands.ice.forget(&known.local.ufrag);
        }
    }

    /// The peer is removed: what it holds outside goes.
    pub(super) fn close(&mut self, reason: xmpp::Reason, hands: &Hands<'_>) {
        self.handle(Input::Close { reason }, hands);
        self.running.clear();
        for (_, known) in self.known.drain() {
            hands.ice.forget(&known.local.ufrag);
        }
    }

    /// Whether this is our user fragment of the path in use.
    pub(super) fn is_known_as(&self, ufrag: &str) -> bool {
        let known = self.link.sid().and_then(|sid| self.known.get(sid));
        known.is_some_and(|k| k.local.ufrag == ufrag)
    }

    /// Its link for people.
    pub(super) fn status(&self, now: Time) -> LinkStatus {
        let known = self.link.sid().and_then(|sid| self.known.get(sid));
        let path: Option<Path> = self.tunnel.as_ref().and_then(|t| t.path).filter(|_| self.link.path().is_some());
        let [tx_bytes, rx_bytes] = self.rates.bytes();
        let [tx_bps, rx_bps] = self.rates.rates();
        let handshake = self.tunnel.as_ref().and_then(|t| t.last_handshake);
        let cipher = self.tunnel.as_ref().and_then(|t| t.cipher).filter(|_| self.link.path().is_some());
        let mut status = self.link.status(now);
        if let (State::Up, Some(known)) = (self.link.state(), known) {
            status.pair = Some(format!("{}-{}", known.found.local_kind, known.found.remote_kind));
            status.why.clone_from(&known.found.why);
        }
        if let Some(path) = path {
            status.address = Some(path.to_string());
        }
        LinkStatus {
            cipher: cipher.map(|c| c.name().to_owned()),
            tx_bytes,
            rx_bytes,
            tx_bps,
            rx_bps,
            last_handshake_s: handshake.map(|h| dataplane_wall().0.saturating_sub(h.0).as_secs()),
            ..status
        }
    }
}

/// The wall clock, as handshakes are stamped.
fn dataplane_wall() -> WallTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    WallTime(since.unwrap_or_default())
}
