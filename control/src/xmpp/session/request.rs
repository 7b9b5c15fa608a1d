//! What others send, and who may.

use std::time::Instant;

use tokio_xmpp::jid::{BareJid, Jid};
use tokio_xmpp::minidom::Element;
use tokio_xmpp::parsers::ns;

use super::{Pending, Purpose, RETRY, Session, Standing, Timer, caps, pep, reply};
use crate::xmpp::signal::Signal;
use crate::xmpp::xml::jingle::{self, JINGLE, NotASignal};
use crate::xmpp::xml::services;
use crate::xmpp::{Event, FriendError, RESOURCE_PREFIX, SignalError, SignalRequest};

/// Bytes of an IQ's id that we are willing to give back.
const MAX_ID: usize = 1024;

impl Session {
    pub(super) fn iq(&mut self, e: &Element, from: Option<&Jid>, now: Instant) {
        match e.attr("type") {
            Some("result" | "error") => self.iq_answer(e, from, now),
            Some("get" | "set") => self.iq_question(e, from, now),
            _ => {}
        }
    }

    /// Matches on id *and* sender: ids can be guessed.
    fn iq_answer(&mut self, e: &Element, from: Option<&Jid>, now: Instant) {
        let Some(id) = e.attr("id").and_then(|i| i.parse::<u64>().ok()) else { return };
        let right = |p: &Pending| match &p.from {
            // Prosody leaves the address out where it is our account's own.
            Some(asked) => from == Some(asked) || (from.is_none() && asked.as_str() == self.account.as_str()),
            None => from.is_none_or(|f| f.to_bare() == self.account || f.as_str() == self.account.domain().as_str()),
        };
        match self.pending.get(&id) {
            Some(p) if right(p) => {}
            _ => return self.stranger(),
        }
        let Some(p) = self.pending.remove(&id) else { return };
        let error = e.attr("type") == Some("error");
        match p.purpose {
            Purpose::Roster if error => self.unanswered(Purpose::Roster, now),
            Purpose::Roster => self.roster(e, false, now),
            Purpose::Blocks => self.blocks(Some(e), now),
            Purpose::Friend(wish) => self.wished(wish, e, now),
            Purpose::Pep(step) if error => self.pep_refused(step, reply::condition(e), now),
            Purpose::Pep(_) | Purpose::Ping => {}
            Purpose::Items(account) => self.fetched(&account, Some(e), now),
            Purpose::Affiliations(room, affiliation) => self.affiliations(&room, affiliation, e, now),
            Purpose::Room(room) => self.room_info(&room, e, now),
            Purpose::Signal(answer) => drop(answer.send(if error { Err(reply::signal_error(e)) } else { Ok(()) })),
            Purpose::Services(answer) => {
                let list = e.children().next().map(services::read);
                drop(answer.send(match list {
                    _ if error => Err(reply::signal_error(e)),
                    Some(Ok(list)) => Ok(list),
                    _ => Err(SignalError::Refused("an answer that is no list of services".into())),
                }));
            }
        }
    }

    /// Nobody answered in time.
    pub(super) fn unanswered(&mut self, purpose: Purpose, now: Instant) {
        match purpose {
            Purpose::Roster => {
                tracing::warn!("the server did not give us the roster: trying again");
                self.timers.insert(Timer::Roster, now + RETRY);
            }
            Purpose::Blocks => self.blocks(None, now),
            Purpose::Friend(wish) => wish.fail(FriendError::Timeout),
            Purpose::Pep(step) => self.pep_refused(step, "no answer", now),
            Purpose::Items(account) => self.fetched(&account, None, now),
            Purpose::Signal(answer) => drop(answer.send(Err(SignalError::Timeout))),
            Purpose::Services(answer) => drop(answer.send(Err(SignalError::Timeout))),
            // The stream itself notices a server that is gone; a room is asked again by its timer.
            Purpose::Affiliations(..) | Purpose::Room(_) | Purpose::Ping => {}
        }
    }

    fn iq_question(&mut self, e: &Element, from: Option<&Jid>, now: Instant) {
        let standing = self.standing(from);
        let (Some(id), Some(payload)) = (e.attr("id").filter(|i| i.len() <= MAX_ID), e.children().next()) else {
            return self.stranger();
        };
        let to = from.map(Jid::as_str);
        let set = e.attr("type") == Some("set");
        let roster = set && payload.is("query", ns::ROSTER);
        let block = set && (payload.is("block", ns::BLOCKING) || payload.is("unblock", ns::BLOCKING));
        let disco = !set && payload.is("query", ns::DISCO_INFO);
        match standing {
            Standing::Stranger => self.stranger(),
            _ if disco && caps::is_ours(payload.attr("node")) => {
                self.out.push(reply::result(to, id, Some(caps::answer(payload.attr("node")))));
            }
            Standing::MembersServer => self.stranger(),
            _ if !set && payload.is("ping", ns::PING) => self.out.push(reply::result(to, id, None)),
            Standing::Member if set && payload.is("jingle", JINGLE) => {
                if let Some(from) = from {
                    self.jingle(from, id, payload, now);
                }
            }
            // RFC 6121, section 2.1.6: only from our own account.
            Standing::Server if roster && from.is_none_or(|f| f.as_str() == self.account.as_str()) => {
                self.out.push(reply::result(to, id, None));
                self.roster(e, true, now);
            }
            // XEP-0191, section 3.2: the same.
            Standing::Server
                if block
                    && !self.groups.social.is_empty()
                    && from.is_none_or(|f| f.as_str() == self.account.as_str()) =>
            {
                self.out.push(reply::result(to, id, None));
                self.block_push(payload, now);
            }
            _ => self.out.push(reply::error(to, id, "cancel", "service-unavailable", None)),
        }
    }

    fn jingle(&mut self, from: &Jid, id: &str, payload: &Element, now: Instant) {
        let account = from.to_bare();
        let Some(node) = node_of(from) else { return self.stranger() };
        match jingle::read(payload) {
            Ok(Signal::Initiate { offer: n, .. } | Signal::Accept { answer: n, .. })
                if !self.members.is_member_of(&account, &n.network) =>
            {
                // To this network, it is a stranger.
                self.stranger();
            }
            Ok(signal) => self.events.push_back(Event::Signal(SignalRequest {
                from: from.to_string(),
                signal,
                id: id.to_owned(),
                connection: self.connection,
            })),
            Err(NotASignal::Unsupported(action)) => {
                tracing::debug!("{from} sent a Jingle action that is not ours: {action}");
                let error = reply::error(
                    Some(from.as_str()),
                    id,
                    "modify",
                    "feature-not-implemented",
                    Some("unsupported-info"),
                );
                self.out.push(error);
            }
            Err(NotASignal::Malformed(why)) => {
                self.malformed(&format!("{}/{}", node.0, node.1), &why.to_string(), now);
                self.out.push(reply::error(Some(from.as_str()), id, "modify", "bad-request", None));
            }
        }
    }

    fn roster(&mut self, iq: &Element, push: bool, now: Instant) {
        let query = iq.get_child("query", ns::ROSTER);
        let friends = |s: &Self| s.members.friends();
        let before = friends(self);
        let new = match query.map(|q| self.members.roster(q, push)) {
            Some(Ok(new)) => new,
            Some(Err(why)) => {
                self.malformed("the server", &why.to_string(), now);
                Vec::new()
            }
            None => Vec::new(),
        };
        self.tidy_requests();
        if friends(self) < before {
            // Before it is told that somebody is no member: then it can be said why.
            self.tell_friends();
        }
        self.recheck();
        self.note_friends(now);
        if push {
            let social = |a: &BareJid| !self.members.social_of(a).is_empty();
            let friends = new.into_iter().filter(social).collect();
            self.welcome(friends, now);
            self.new_members(now);
        } else if self.members.is_settled() {
            self.appear(now);
        }
    }

    /// There may be new members, and they have descriptors already.
    pub(super) fn new_members(&mut self, now: Instant) {
        self.refused.clear();
        self.fetch_all(now);
        self.timers.insert(Timer::Look(pep::QUICK_LOOK), now + pep::QUICK_LOOK);
    }

    /// The members may have changed.
    pub(super) fn recheck(&mut self) {
        for (network, accounts) in self.members.changes() {
            self.events.push_back(Event::Members { network, accounts });
        }
        let events = self.nodes.recheck(&self.members);
        self.events.extend(events);
    }

    pub(super) fn presence(&mut self, e: &Element, from: Option<&Jid>, now: Instant) {
        let Some(from) = from else { return };
        let account = from.to_bare();
        if self.rooms.contains_key(&account) {
            return self.room_presence(&account, e, from, now);
        }
        let kind = e.attr("type");
        if let Some(kind @ ("subscribe" | "subscribed" | "unsubscribe" | "unsubscribed")) = kind
            && !self.groups.social.is_empty()
            && account != self.account
        {
            return self.subscription(kind, &account, now);
        }
        if kind == Some("error") && !self.groups.social.is_empty() {
            self.request_failed(&account, e, now);
        }
        if self.standing(Some(from)) != Standing::Member {
            if account != self.account {
                self.stranger();
            }
            return;
        }
        let Some(node) = node_of(from).filter(|_| from.as_str() != self.me.as_str()) else { return };
        let event = match kind {
            None => {
                if !self.nodes.has_descriptor(&node) {
                    self.fetch(&account, now);
                }
                self.nodes.came(&node, None)
            }
            Some("unavailable") => self.nodes.went(&node, &None),
            _ => None,
        };
        self.events.extend(event);
    }

    pub(super) fn message(&mut self, e: &Element, from: Option<&Jid>, now: Instant) {
        let standing = self.standing(from);
        let account: BareJid = from.map_or_else(|| self.account.clone(), Jid::to_bare);
        match standing {
            Standing::Stranger | Standing::MembersServer => self.stranger(),
            Standing::Room => self.room_message(&account, e, from, now),
            Standing::Member | Standing::Server if e.attr("type") != Some("error") => {
                // The server writes in the account's name; a resource would be a client that does.
                let by_server = from.is_none_or(Jid::is_bare) && account.node().is_some();
                if let Some(event) = e.get_child("event", ns::PUBSUB_EVENT).filter(|_| by_server) {
                    self.pep_event(&account, event, now);
                }
            }
            _ => {}
        }
    }
}

/// The node that a full JID names, if it names one.
pub(super) fn node_of(jid: &Jid) -> Option<super::nodes::Node> {
    let resource = jid.resource().map(|r| r.as_str()).filter(|r| r.starts_with(RESOURCE_PREFIX))?;
    Some((jid.to_bare(), resource.to_owned()))
}
