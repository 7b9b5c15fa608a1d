//! Members-only rooms (XEP-0045) as groups: who has an affiliation is a member, who is inside is there.
//!
//! A room says who its occupants really are (it must be non-anonymous), and carries our descriptor in presence. So it is
//! looked at before we enter: one that is open would show us to everybody, and one that does not exist would be made by
//! whoever enters first. The member lists, where we may see them, also name those who are not inside.
//!
//! Being outside says nothing about who the members are: rooms go and come back with their server. Only a room that tells
//! us that we are no member any more has none for us.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio_xmpp::jid::{BareJid, Jid};
use tokio_xmpp::minidom::Element;
use tokio_xmpp::parsers::ns;

use super::nodes::Node;
use super::pep::is_of;
use super::request::node_of;
use super::{Purpose, RETRY, Session, Timer, caps, reply};
use crate::identity::Descriptor;
use crate::xmpp::xml::{Build, CLIENT, NODE, children, descriptor, element};

/// Affiliations that make a member.
const MEMBERS: [&str; 3] = ["member", "admin", "owner"];
const MUC_ADMIN: &str = "http://jabber.org/protocol/muc#admin";
/// The lists are asked for anew so often: a change that concerns nobody inside is not told by every server.
const LOOK_AGAIN: Duration = Duration::from_secs(120);
/// After a hint that they changed.
const LOOK_SOON: Duration = Duration::from_millis(100);
/// Features that a room must have (XEP-0045, section 6.4).
const NEEDED: [(&str, &str); 2] = [("muc_membersonly", "members-only"), ("muc_nonanonymous", "non-anonymous")];
/// We were banned, or are no member any more (XEP-0045, section 15.6.2).
const PUT_OUT: [&str; 3] = ["301", "321", "322"];
/// The room was made just now, by our entering it.
const CREATED: &str = "201";
/// Our own ghost, from a connection that the server has not given up yet, may have our nickname.
const GHOST: Duration = Duration::from_secs(3);

/// A room, as seen over one connection.
#[derive(Default)]
pub(super) struct Room {
    joined: bool,
    /// The descriptor that the room has of us, or will have once we are inside.
    told: Option<Descriptor>,
    /// How often we were kept or put out, in a row.
    tries: u32,
    /// How often somebody else had our nickname.
    conflicts: u32,
    /// By nickname.
    occupants: BTreeMap<String, Occupant>,
    /// By affiliation, where the room lets us see it.
    lists: BTreeMap<&'static str, BTreeSet<BareJid>>,
}

struct Occupant {
    account: BareJid,
    node: Option<Node>,
}

impl Room {
    fn members(&self) -> BTreeSet<BareJid> {
        let inside = self.occupants.values().map(|o| o.account.clone());
        self.lists.values().flatten().cloned().chain(inside).collect()
    }
}

impl Session {
    /// Looks at a room, to enter it if it is one of ours to enter.
    pub(super) fn join(&mut self, room: &BareJid, now: Instant) {
        // Until the answer: a join without one is tried again.
        self.timers.insert(Timer::Join(room.clone()), now + RETRY);
        let question = element("query", ns::DISCO_INFO);
        self.ask("get", Some(Jid::from(room.clone())), question, Purpose::Room(room.clone()), now);
    }

    /// What a room says of itself.
    pub(super) fn room_info(&mut self, room: &BareJid, iq: &Element, now: Instant) {
        let again = self.again_after(self.room_tries(room));
        let Some(query) = iq.get_child("query", ns::DISCO_INFO).filter(|_| iq.attr("type") == Some("result")) else {
            return self.left(room, reply::condition(iq), false, again, now);
        };
        let has = |feature: &str| children(query, "feature", ns::DISCO_INFO).any(|f| f.attr("var") == Some(feature));
        let lacks: Vec<&str> = NEEDED.iter().filter(|(f, _)| !has(f)).map(|(_, name)| *name).collect();
        if !lacks.is_empty() {
            let why = format!("it is not {}: make it so, or nobody is kept out", lacks.join(" and not "));
            return self.left(room, &why, true, RETRY, now);
        }
        self.enter(room, now);
    }

    fn enter(&mut self, room: &BareJid, now: Instant) {
        self.timers.insert(Timer::Join(room.clone()), now + RETRY);
        let history = element("history", ns::MUC).with("maxstanzas", "0");
        let join = self.room_presence_out(room).child(element("x", ns::MUC).child(history));
        self.out.push(join);
    }

    /// Tells the rooms that have another descriptor of us. One that is just being entered is told when we are inside: if it
    /// keeps us out, presence would be one more try to enter.
    pub(super) fn update_rooms(&mut self) {
        let behind = |r: &Room| r.joined && r.told != self.descriptor;
        let rooms: Vec<BareJid> = self.rooms.iter().filter(|(_, r)| behind(r)).map(|(j, _)| j.clone()).collect();
        for room in rooms {
            let presence = self.room_presence_out(&room);
            self.out.push(presence);
        }
    }

    fn room_tries(&self, room: &BareJid) -> u32 {
        self.rooms.get(room).map_or(0, |r| r.tries)
    }

    /// Who we are does not hang on the nickname: whoever else takes ours shall not keep us out.
    fn nickname(&self, room: &BareJid) -> String {
        match self.rooms.get(room).map_or(0, |r| r.conflicts) {
            0 => self.me.resource().to_string(),
            n => format!("{}-{n}", self.me.resource()),
        }
    }

    pub(super) fn room_address(&self, room: &BareJid) -> String {
        format!("{room}/{}", self.nickname(room))
    }

    fn room_presence_out(&mut self, room: &BareJid) -> Element {
        if let Some(state) = self.rooms.get_mut(room) {
            state.told.clone_from(&self.descriptor);
        }
        let presence = element("presence", CLIENT).with("to", self.room_address(room)).child(caps::presence());
        self.descriptor.iter().map(|d| self.descriptor_out(d)).fold(presence, Element::child)
    }

    pub(super) fn room_presence(&mut self, room: &BareJid, e: &Element, from: &Jid, now: Instant) {
        let me = self.nickname(room);
        let nick = from.resource().map(|r| r.as_str().to_owned()).unwrap_or_default();
        let x = e.get_child("x", ns::MUC_USER);
        let has =
            |code: &str| x.is_some_and(|x| children(x, "status", ns::MUC_USER).any(|s| s.attr("code") == Some(code)));
        let own = has("110");
        match e.attr("type") {
            None if own && has(CREATED) => {
                // Between the look and the entrance it was gone. Who comes into a room of ours is nobody's member.
                let leave = element("presence", CLIENT).with("type", "unavailable").with("to", self.room_address(room));
                self.out.push(leave);
                self.left(room, "it did not exist", false, RETRY, now);
            }
            None => self.occupant(room, &nick, x, own, e, now),
            Some("unavailable") if own || nick == me => {
                let wait = self.again_after(self.room_tries(room));
                if PUT_OUT.iter().any(|code| has(code)) {
                    self.left(room, "we are no member of it any more", true, wait, now);
                } else {
                    self.left(room, "we were put out of it", false, wait, now);
                }
            }
            Some("unavailable") => self.occupant_left(room, &nick, x, now),
            Some("error") if nick == me || nick.is_empty() => {
                let condition = reply::condition(e).to_owned();
                let conflict = condition == "conflict";
                let wait = if conflict { GHOST } else { self.again_after(self.room_tries(room)) };
                let out = ["forbidden", "registration-required", "not-allowed"].contains(&condition.as_str());
                self.left(room, &condition, out, wait, now);
                if conflict && let Some(state) = self.rooms.get_mut(room) {
                    state.conflicts += 1;
                }
            }
            _ => {}
        }
    }

    fn occupant(&mut self, room: &BareJid, nick: &str, x: Option<&Element>, own: bool, e: &Element, now: Instant) {
        if own && let Some(state) = self.rooms.get_mut(room) {
            if !state.joined {
                (state.joined, state.tries) = (true, 0);
                self.timers.remove(&Timer::Join(room.clone()));
                self.ask_affiliations(room, now);
                // Also if nobody else is inside and the lists are not for us: then we know that.
                self.room_changed(room);
                // It may have changed since we asked to be let in.
                self.update_rooms();
            }
            return;
        }
        let item = x.and_then(|x| x.get_child("item", ns::MUC_USER));
        let Some(jid) = item.and_then(|i| i.attr("jid")).and_then(|j| Jid::new(j).ok()) else {
            tracing::debug!("{room} does not say who {nick} is: the room must be non-anonymous");
            return;
        };
        if !item.and_then(|i| i.attr("affiliation")).is_some_and(|a| MEMBERS.contains(&a)) {
            return self.occupant_left(room, nick, x, now);
        }
        let occupant =
            Occupant { account: jid.to_bare(), node: node_of(&jid).filter(|_| jid.as_str() != self.me.as_str()) };
        let node = occupant.node.clone();
        let Some(state) = self.rooms.get_mut(room) else { return };
        if let Some(before) = state.occupants.insert(nick.to_owned(), occupant)
            && before.node != node
            && let Some(n) = before.node
        {
            self.events.extend(self.nodes.went(&n, &Some(room.clone())));
        }
        self.room_changed(room);
        let Some(node) = node else { return };
        self.events.extend(self.nodes.came(&node, Some(room.clone())));
        match e.get_child("node", NODE).filter(|e| is_of(e, &node.0)).map(descriptor::read) {
            Some(Ok(d)) => self.events.extend(self.nodes.said(node, d, false, &self.members)),
            Some(Err(why)) => self.malformed(jid.as_str(), &why.to_string(), now),
            None => {}
        }
    }

    fn occupant_left(&mut self, room: &BareJid, nick: &str, x: Option<&Element>, now: Instant) {
        let Some(state) = self.rooms.get_mut(room) else { return };
        let gone = state.occupants.remove(nick);
        let item = x.and_then(|x| x.get_child("item", ns::MUC_USER));
        let affiliation = item.and_then(|i| i.attr("affiliation")).unwrap_or("none");
        if let Some(o) = gone {
            if let Some(n) = o.node {
                self.events.extend(self.nodes.went(&n, &Some(room.clone())));
            }
            if MEMBERS.contains(&affiliation) {
                // Went, but is a member still: also where no list says so.
                state.lists.entry("member").or_default().insert(o.account);
            } else {
                for list in state.lists.values_mut() {
                    list.remove(&o.account);
                }
            }
        }
        self.timers.insert(Timer::Affiliations(room.clone()), now + LOOK_SOON);
        self.room_changed(room);
    }

    /// We are not inside (any more): who else is there is not known. `out`: and it has no members for us.
    fn left(&mut self, room: &BareJid, why: &str, out: bool, wait: Duration, now: Instant) {
        tracing::warn!("not in room {room} ({why}): trying again in {wait:?}");
        if let Some(state) = self.rooms.get_mut(room) {
            let (tries, conflicts) = (state.tries.saturating_add(1), state.conflicts);
            *state = Room { tries, conflicts, ..Room::default() };
        }
        self.timers.remove(&Timer::Affiliations(room.clone()));
        self.timers.insert(Timer::Join(room.clone()), now + wait);
        let events = self.nodes.lost(&Some(room.clone()));
        self.events.extend(events);
        if out {
            self.room_changed(room);
        } else {
            self.members.room_unknown(room);
        }
    }

    fn room_changed(&mut self, room: &BareJid) {
        if let Some(state) = self.rooms.get(room) {
            self.members.room(room, state.members());
            self.recheck();
        }
    }

    pub(super) fn ask_affiliations(&mut self, room: &BareJid, now: Instant) {
        if !self.rooms.get(room).is_some_and(|r| r.joined) {
            return;
        }
        self.timers.insert(Timer::Affiliations(room.clone()), now + LOOK_AGAIN);
        for affiliation in MEMBERS {
            let item = element("item", MUC_ADMIN).with("affiliation", affiliation);
            let query = element("query", MUC_ADMIN).child(item);
            let purpose = Purpose::Affiliations(room.clone(), affiliation);
            self.ask("get", Some(Jid::from(room.clone())), query, purpose, now);
        }
    }

    pub(super) fn affiliations(&mut self, room: &BareJid, affiliation: &'static str, iq: &Element, _: Instant) {
        let Some(query) = iq.get_child("query", MUC_ADMIN) else { return };
        if iq.attr("type") == Some("error") {
            return;
        }
        let list: BTreeSet<BareJid> = children(query, "item", MUC_ADMIN)
            .filter(|i| i.attr("affiliation") == Some(affiliation))
            .filter_map(|i| i.attr("jid").and_then(|j| Jid::new(j).ok()).map(Jid::into_bare))
            .collect();
        if let Some(state) = self.rooms.get_mut(room).filter(|r| r.joined) {
            state.lists.insert(affiliation, list);
            self.room_changed(room);
        }
    }

    /// The room itself writes when the affiliation of somebody outside changes (XEP-0045, section 9.3).
    pub(super) fn room_message(&mut self, room: &BareJid, e: &Element, from: Option<&Jid>, now: Instant) {
        let Some(x) = e.get_child("x", ns::MUC_USER).filter(|_| from.is_some_and(Jid::is_bare)) else { return };
        if let Some(state) = self.rooms.get_mut(room) {
            for item in children(x, "item", ns::MUC_USER) {
                let account = item.attr("jid").and_then(|j| Jid::new(j).ok()).map(Jid::into_bare);
                let member = item.attr("affiliation").is_none_or(|a| MEMBERS.contains(&a));
                if let Some(account) = account.filter(|_| !member) {
                    for list in state.lists.values_mut() {
                        list.remove(&account);
                    }
                }
            }
            self.room_changed(room);
            self.timers.insert(Timer::Affiliations(room.clone()), now + LOOK_SOON);
        }
    }
}
