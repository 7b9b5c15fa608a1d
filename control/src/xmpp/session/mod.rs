//! What is said over one connection, without I/O: elements in, elements and events out, time passed in.
//!
//! Order of a login: the roster (and whom the account blocks) first, then presence and the rooms. So the members are known
//! before anyone has a reason to write to us.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio_xmpp::jid::{BareJid, FullJid, Jid};
use tokio_xmpp::minidom::Element;
use tokio_xmpp::parsers::ns;

use super::signal::Signal;
use super::xml::{Build, CLIENT, element, jid_of, jingle, services};
use super::{ANSWER_LIMIT, Counters, Event, ExternalService, FriendError, Groups, SignalError, SignalRequest, Verdict};
use crate::identity::Descriptor;

mod caps;
mod friends;
#[cfg(test)]
mod friends_tests;
mod members;
mod nodes;
mod pep;
mod reply;
mod request;
mod room;
mod roster;
#[cfg(test)]
mod tests;

pub(super) use nodes::Known;

/// Questions that wait for an answer.
const MAX_PENDING: usize = 1024;
/// Before something that the server refused is tried again for the first time ...
const SOON: Duration = Duration::from_millis(500);
/// ... and after many times.
const RETRY: Duration = Duration::from_secs(30);
/// Warnings about what others send are no more frequent.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// What an answer is for.
#[derive(Debug)]
enum Purpose {
    Roster,
    Blocks,
    Friend(friends::Wish),
    Pep(pep::Step),
    Items(BareJid),
    Affiliations(BareJid, &'static str),
    Room(BareJid),
    Signal(oneshot::Sender<Result<(), SignalError>>),
    Services(oneshot::Sender<Result<Vec<ExternalService>, SignalError>>),
    Ping,
}

#[derive(Debug)]
struct Pending {
    /// Who may answer; `None`: our own server.
    from: Option<Jid>,
    deadline: Instant,
    purpose: Purpose,
}

/// Things to do later.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Roster,
    Blocks,
    /// Tell what is known of friends.
    Friends,
    Publish,
    Join(BareJid),
    Affiliations(BareJid),
    /// Ask an account for its descriptors.
    Fetch(BareJid),
    /// Look once more for descriptors, and after how long again.
    Look(Duration),
}

/// Who somebody is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Our own server, speaking for our account.
    Server,
    /// A member of one of our groups, or another client of our own account.
    Member,
    /// The server of a member.
    MembersServer,
    /// A room of ours.
    Room,
    /// Gets no answer.
    Stranger,
}

/// One connection's conversation.
pub(super) struct Session {
    me: FullJid,
    account: BareJid,
    connection: u64,
    groups: Groups,
    counters: Arc<Counters>,
    members: members::Members,
    nodes: nodes::Nodes,
    rooms: BTreeMap<BareJid, room::Room>,
    descriptor: Option<Descriptor>,
    /// Presence was sent: publishing is possible.
    present: bool,
    pep_configured: bool,
    /// Failed tries to publish, in a row.
    pep_tries: u32,
    /// Accounts whose descriptors we may not read, or that have none, and how often we tried.
    refused: BTreeMap<BareJid, u32>,
    /// Who asks to be a friend.
    requests: BTreeSet<BareJid>,
    /// Requests of ours that did not arrive, and why.
    problems: BTreeMap<BareJid, String>,
    pending: BTreeMap<u64, Pending>,
    next_id: u64,
    timers: BTreeMap<Timer, Instant>,
    warned: Option<Instant>,
    /// When requests were written about last.
    said: Option<Instant>,
    out: Vec<Element>,
    /// To be taken by whoever runs this.
    pub(super) events: VecDeque<Event>,
}

impl Session {
    /// A conversation that has not begun; `known` is what the one before learned.
    pub(super) fn new(me: FullJid, groups: Groups, connection: u64, mut known: Known, counters: Arc<Counters>) -> Self {
        let account = me.to_bare();
        let rooms = groups.rooms.iter().map(|r| (r.clone(), room::Room::default())).collect();
        let mut events = VecDeque::new();
        events.push_back(Event::Online { jid: me.to_string() });
        Self {
            members: members::Members::new(account.clone(), &groups),
            requests: std::mem::take(&mut known.requests),
            problems: BTreeMap::new(),
            nodes: nodes::Nodes::new(known),
            me,
            account,
            connection,
            groups,
            counters,
            rooms,
            descriptor: None,
            present: false,
            pep_configured: false,
            pep_tries: 0,
            refused: BTreeMap::new(),
            pending: BTreeMap::new(),
            next_id: 0,
            timers: BTreeMap::new(),
            warned: None,
            said: None,
            out: Vec::new(),
            events,
        }
    }

    /// Begins.
    pub(super) fn login(&mut self, now: Instant) {
        if !self.groups.use_roster() {
            return self.appear(now);
        }
        self.ask_roster(now);
        if !self.groups.social.is_empty() {
            self.ask_blocks(now);
        }
    }

    fn ask_roster(&mut self, now: Instant) {
        self.ask("get", None, element("query", ns::ROSTER), Purpose::Roster, now);
    }

    /// Shows ourselves: after the members are known.
    fn appear(&mut self, now: Instant) {
        if self.present {
            return;
        }
        self.present = true;
        self.out.push(self.presence_out());
        for room in self.groups.rooms.clone() {
            self.join(&room, now);
        }
        self.publish_now(now);
        self.fetch_all(now);
        self.timers.insert(Timer::Look(pep::FIRST_LOOK), now + pep::FIRST_LOOK);
    }

    /// Our presence. Its priority is negative: nothing that is sent to the account comes here, only what is sent to this
    /// node.
    fn presence_out(&self) -> Element {
        element("presence", CLIENT).child(element("priority", CLIENT).words("-1")).child(caps::presence())
    }

    /// What to send, in order.
    pub(super) fn take_out(&mut self) -> Vec<Element> {
        std::mem::take(&mut self.out)
    }

    /// When [`Self::timeout`] is to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.pending.values().map(|p| p.deadline).chain(self.timers.values().copied()).min()
    }

    /// Does what is due.
    pub(super) fn timeout(&mut self, now: Instant) {
        let late: Vec<u64> = self.pending.iter().filter(|(_, p)| p.deadline <= now).map(|(id, _)| *id).collect();
        for p in late.into_iter().filter_map(|id| self.pending.remove(&id)).collect::<Vec<_>>() {
            self.unanswered(p.purpose, now);
        }
        let due: Vec<Timer> = self.timers.iter().filter(|(_, t)| **t <= now).map(|(t, _)| t.clone()).collect();
        for t in due {
            self.timers.remove(&t);
            match t {
                Timer::Roster => self.ask_roster(now),
                Timer::Blocks => self.ask_blocks(now),
                Timer::Friends => self.tell_friends(),
                Timer::Publish => self.publish_now(now),
                Timer::Join(room) => self.join(&room, now),
                Timer::Affiliations(room) => self.ask_affiliations(&room, now),
                Timer::Fetch(account) => {
                    if self.members.is_member(&account) {
                        self.nodes.ask_anew(&account);
                        self.fetch_some(now);
                    }
                }
                Timer::Look(wait) => self.look_again(wait, now),
            }
        }
    }

    /// An element of the stream.
    pub(super) fn input(&mut self, e: &Element, now: Instant) {
        if !e.has_ns(CLIENT) {
            return;
        }
        let Ok(from) = jid_of(e, "from") else { return self.stranger() };
        match e.name() {
            "iq" => self.iq(e, from.as_ref(), now),
            "presence" => self.presence(e, from.as_ref(), now),
            "message" => self.message(e, from.as_ref(), now),
            _ => {}
        }
    }

    /// A stanza that was thrown away while it was read.
    pub(super) fn too_large(&mut self, name: &str, from: &str, now: Instant) {
        match Jid::new(from).map(|j| self.standing(Some(&j))) {
            Ok(Standing::Stranger) | Err(_) if !from.is_empty() => self.stranger(),
            _ => self.malformed(from, &format!("a {name} of absurd size"), now),
        }
    }

    /// Whether the server is still there: its answer, whatever it is, is a sign of life.
    pub(super) fn ping(&mut self, now: Instant) {
        self.ask("get", None, element("ping", ns::PING), Purpose::Ping, now);
    }

    /// Sends a signal.
    pub(super) fn signal(
        &mut self,
        to: &str,
        signal: &Signal,
        reply: oneshot::Sender<Result<(), SignalError>>,
        now: Instant,
    ) {
        let to = match FullJid::new(to) {
            Ok(to) => Jid::from(to),
            Err(why) => return drop(reply.send(Err(SignalError::Invalid(format!("{to} is no full JID: {why}"))))),
        };
        if self.pending.len() >= MAX_PENDING {
            return drop(reply.send(Err(SignalError::Busy)));
        }
        let payload = jingle::write(signal, self.me.as_str());
        self.ask("set", Some(to), payload, Purpose::Signal(reply), now);
    }

    /// Asks for STUN and TURN servers.
    pub(super) fn services(&mut self, reply: oneshot::Sender<Result<Vec<ExternalService>, SignalError>>, now: Instant) {
        // By the domain: asked without an address, the question would be for the account.
        let domain = Jid::from(BareJid::from_parts(None, self.account.domain()));
        self.ask("get", Some(domain), services::question(), Purpose::Services(reply), now);
    }

    /// Answers a signal.
    pub(super) fn answer(&mut self, request: &SignalRequest, verdict: Verdict) {
        if request.connection == self.connection {
            self.out.push(reply::verdict(&request.from, &request.id, verdict));
        }
    }

    /// Leaves rooms, and then all.
    pub(super) fn goodbye(&mut self) {
        for room in self.rooms.keys() {
            self.out.push(element("presence", CLIENT).with("type", "unavailable").with("to", self.room_address(room)));
        }
        self.out.push(element("presence", CLIENT).with("type", "unavailable"));
    }

    /// The connection is gone: what waits for an answer gets none. Gives what was learned, and the events that nobody
    /// took yet.
    pub(super) fn end(mut self) -> (Known, VecDeque<Event>) {
        for p in std::mem::take(&mut self.pending).into_values() {
            match p.purpose {
                Purpose::Signal(reply) => drop(reply.send(Err(SignalError::Offline))),
                Purpose::Services(reply) => drop(reply.send(Err(SignalError::Offline))),
                Purpose::Friend(wish) => wish.fail(FriendError::Offline),
                _ => {}
            }
        }
        (self.nodes.known(self.requests), self.events)
    }

    fn ask(&mut self, kind: &str, to: Option<Jid>, payload: Element, purpose: Purpose, now: Instant) {
        self.next_id += 1;
        let mut iq = element("iq", CLIENT).with("type", kind).with("id", self.next_id.to_string());
        if let Some(to) = &to {
            iq = iq.with("to", to.as_str());
        }
        self.out.push(iq.child(payload));
        self.pending.insert(self.next_id, Pending { from: to, deadline: now + ANSWER_LIMIT, purpose });
    }

    fn standing(&self, from: Option<&Jid>) -> Standing {
        let Some(from) = from else { return Standing::Server };
        let bare = from.to_bare();
        if bare == self.account {
            return if from.is_bare() { Standing::Server } else { Standing::Member };
        }
        if self.members.is_member(&bare) {
            return Standing::Member;
        }
        if from.is_bare() && from.node().is_none() {
            if from.domain() == self.account.domain() {
                return Standing::Server;
            }
            if self.members.accounts().any(|a| a.domain() == from.domain()) {
                return Standing::MembersServer;
            }
        }
        if self.rooms.contains_key(&bare) { Standing::Room } else { Standing::Stranger }
    }

    fn stranger(&mut self) {
        self.counters.strangers.fetch_add(1, Ordering::Relaxed);
    }

    fn malformed(&mut self, from: &str, what: &str, now: Instant) {
        self.counters.malformed.fetch_add(1, Ordering::Relaxed);
        if self.warned.is_none_or(|w| now.duration_since(w) >= WARN_EVERY) {
            self.warned = Some(now);
            tracing::warn!("{from} sent something malformed, which was dropped: {what}");
        }
    }
}
