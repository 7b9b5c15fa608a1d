//! Friends: who asks to be one, who was asked, and what a person wants to be done about it.
//!
//! A friend is a contact whose presence we see and who sees ours (RFC 6121, section 3): two requests, one each way.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio_xmpp::jid::{BareJid, Jid};
use tokio_xmpp::minidom::Element;
use tokio_xmpp::parsers::ns;

use super::roster::{self, Blocks};
use super::{MAX_PENDING, Purpose, RETRY, Session, Timer, reply};
use crate::xmpp::xml::{Build, CLIENT, element};
use crate::xmpp::{Befriend, Event, FriendContact, FriendError, Friends, Subscription};

/// Requests of strangers that are remembered: anyone with an account anywhere can make one.
pub(super) const MAX_REQUESTS: usize = 128;
/// What anyone can make us write into the log is no more frequent.
const SAY_EVERY: Duration = Duration::from_secs(1);
/// Changes come in bursts: what is known of friends is told once for each.
const GATHER: Duration = Duration::from_millis(50);

/// A person's wish that waits for the server's answer.
#[derive(Debug)]
pub(super) struct Wish {
    what: Befriend,
    jid: BareJid,
    reply: oneshot::Sender<Result<String, FriendError>>,
}

impl Wish {
    pub(super) fn fail(self, why: FriendError) {
        // Whoever asked may have gone.
        let _ = self.reply.send(Err(why));
    }
}

impl Session {
    /// What a person wants to be done about friends.
    pub(in crate::xmpp) fn befriend(
        &mut self,
        what: Befriend,
        jid: &str,
        reply: oneshot::Sender<Result<String, FriendError>>,
        now: Instant,
    ) {
        let done = match BareJid::new(jid) {
            _ if self.groups.social.is_empty() => unfit("this node has no network of kind social"),
            Ok(jid) if jid == self.account => unfit("that is this node's own account: its devices meet without that"),
            Ok(jid) if jid.node().is_none() => unfit(format!("{jid} is no account: write it as bob@example.org")),
            Ok(_) if !self.members.is_settled() => Err(FriendError::Unsettled),
            Ok(_) if self.pending.len() >= MAX_PENDING => unfit("too much is going on: try again"),
            Ok(jid) => match what {
                Befriend::Add => self.add_friend(&jid),
                Befriend::Accept => self.accept_friend(&jid),
                Befriend::Remove => self.remove_friend(&jid),
            }
            .map(|(said, item)| (said, item.map(|i| (i, jid)))),
            Err(why) => unfit(format!("{jid} is no account ({why}): write it as bob@example.org")),
        };
        self.note_friends(now);
        match done {
            Ok((_, Some((item, jid)))) => {
                let query = element("query", ns::ROSTER).child(item);
                self.ask("set", None, query, Purpose::Friend(Wish { what, jid, reply }), now);
            }
            Ok((said, None)) => drop(reply.send(Ok(said))),
            Err(why) => drop(reply.send(Err(why))),
        }
    }

    /// What was done, or the roster item that is to be set before.
    fn add_friend(&mut self, jid: &BareJid) -> Result<(String, Option<Element>), FriendError> {
        if self.members.is_blocked(jid) {
            return unfit(format!("{jid} is on the account's block list: take it off there, with any XMPP client"));
        }
        let contact = self.members.contact(jid);
        if contact.is_some_and(roster::Contact::is_friend) {
            return Ok((format!("{jid} is a friend already"), None));
        }
        // Of one that is there it would overwrite name and groups.
        let new = contact.is_none().then(|| element("item", ns::ROSTER).with("jid", jid.as_str()));
        if new.is_none() {
            self.subscribe(jid);
        }
        Ok((asked(jid, self.requests.remove(jid)), new))
    }

    fn accept_friend(&mut self, jid: &BareJid) -> Result<(String, Option<Element>), FriendError> {
        if !self.requests.contains(jid) {
            return unfit(format!("{jid} does not ask to be a friend. To ask, say: ipop-fast friends add {jid}"));
        }
        self.add_friend(jid)
    }

    fn remove_friend(&mut self, jid: &BareJid) -> Result<(String, Option<Element>), FriendError> {
        let request = self.requests.remove(jid);
        if request {
            self.out.push(subscription("unsubscribed", jid));
        }
        let item = element("item", ns::ROSTER).with("jid", jid.as_str()).with("subscription", "remove");
        match self.members.contact(jid) {
            Some(_) => Ok((String::new(), Some(item))),
            None if request => Ok((format!("the request of {jid} is declined"), None)),
            None => unfit(format!("{jid} is neither a friend nor asks to be one")),
        }
    }

    /// Asks for an account's presence, and lets it have ours: now if it asks, or as soon as it does (RFC 6121, section
    /// 3.4). Some servers tell a node like this one nothing of requests that came while it was away.
    fn subscribe(&mut self, jid: &BareJid) {
        self.problems.remove(jid);
        self.out.extend(["subscribed", "subscribe"].map(|kind| subscription(kind, jid)));
    }

    /// The server's answer to a wish.
    pub(super) fn wished(&mut self, wish: Wish, iq: &Element, now: Instant) {
        if iq.attr("type") == Some("error") {
            return wish.fail(FriendError::Refused(reply::condition(iq).to_owned()));
        }
        let Wish { what, jid, reply } = wish;
        let said = if what == Befriend::Remove {
            format!("{jid} is no friend any more")
        } else {
            self.subscribe(&jid);
            asked(&jid, what == Befriend::Accept)
        };
        self.note_friends(now);
        let _ = reply.send(Ok(said));
    }

    /// A request, an answer to one, or the end of a friendship.
    pub(super) fn subscription(&mut self, kind: &str, account: &BareJid, now: Instant) {
        let contact = self.members.contact(account);
        let (asked, subscribed) = contact.map_or((false, Subscription::None), |c| (c.asked, c.subscription));
        match kind {
            // The server answers by itself.
            "subscribe" if matches!(subscribed, Subscription::From | Subscription::Both) => {}
            "subscribe" if self.members.is_blocked(account) => self.stranger(),
            "subscribe" if asked || subscribed == Subscription::To => {
                self.say(&format!("{account}, who was asked to be a friend, asks the same: accepted"), now);
                self.out.push(subscription("subscribed", account));
            }
            "subscribe" if self.requests.contains(account) => {}
            "subscribe" if self.requests.len() < MAX_REQUESTS => {
                self.requests.insert(account.clone());
                let hint = format!("To accept, say: ipop-fast friends accept {account}");
                self.say(&format!("{account} asks to be a friend. {hint}"), now);
                self.note_friends(now);
            }
            "unsubscribe" if self.requests.remove(account) => {
                self.say(&format!("{account} does not ask to be a friend any more"), now);
                self.note_friends(now);
            }
            "unsubscribed" if asked => self.say(&format!("{account} does not want to be a friend"), now),
            // The roster tells.
            "subscribed" | "unsubscribe" | "unsubscribed" if contact.is_some() => {}
            _ => self.stranger(),
        }
    }

    /// Something for the log that anyone can make us say: not often.
    fn say(&mut self, what: &str, now: Instant) {
        if self.said.is_none_or(|t| now.duration_since(t) >= SAY_EVERY) {
            self.said = Some(now);
            tracing::info!("{what}");
        } else {
            tracing::debug!("{what}");
        }
    }

    /// The other server's answer to a request that cannot be delivered.
    pub(super) fn request_failed(&mut self, account: &BareJid, e: &Element, now: Instant) {
        let why: String = reply::condition(e).chars().take(64).collect();
        let asked = self.members.contact(account).is_some_and(|c| c.asked);
        if asked && self.problems.get(account) != Some(&why) {
            self.say(&format!("the request to {account} did not arrive: {why}"), now);
            self.problems.insert(account.clone(), why);
            self.note_friends(now);
        }
    }

    /// Asks whom the account blocks.
    pub(super) fn ask_blocks(&mut self, now: Instant) {
        self.ask("get", None, element("blocklist", ns::BLOCKING), Purpose::Blocks, now);
    }

    /// The answer; `None`: none came.
    pub(super) fn blocks(&mut self, iq: Option<&Element>, now: Instant) {
        let list = iq.filter(|i| i.attr("type") == Some("result")).and_then(|i| i.get_child("blocklist", ns::BLOCKING));
        if list.is_none() {
            tracing::debug!("the server does not tell whom the account blocks");
        }
        if iq.is_none() {
            self.timers.insert(Timer::Blocks, now + RETRY);
        }
        let change = list.map_or(Blocks::Unknown, |l| Blocks::All(roster::jids(l)));
        self.blocks_changed(change, now);
        if self.members.is_settled() {
            self.appear(now);
        }
    }

    /// The account blocks somebody, or does not any more, with whatever client.
    pub(super) fn block_push(&mut self, change: &Element, now: Instant) {
        let jids = roster::jids(change);
        let names: Vec<&str> = jids.iter().map(Jid::as_str).take(8).collect();
        tracing::info!("the account's owner says: {} {}", change.name(), names.join(", "));
        let change = if change.name() == "block" { Blocks::Block(jids) } else { Blocks::Unblock(jids) };
        self.blocks_changed(change, now);
    }

    fn blocks_changed(&mut self, change: Blocks, now: Instant) {
        let new = self.members.blocked(change);
        let known: Vec<BareJid> = self.requests.iter().filter(|r| self.members.is_blocked(r)).cloned().collect();
        for r in known {
            self.requests.remove(&r);
        }
        if self.members.is_settled() {
            // Before it is told that somebody is no member: then it can be said why.
            self.tell_friends();
        }
        self.recheck();
        self.welcome(new, now);
    }

    /// These became members while we are here. Their servers may have told us of their nodes before that counted, and
    /// theirs asked ours before it answered: both once more.
    pub(super) fn welcome(&mut self, accounts: Vec<BareJid>, now: Instant) {
        if !self.present {
            return;
        }
        for account in &accounts {
            let to = account.as_str();
            self.out.push(self.presence_out().with("to", to));
            self.out.push(element("presence", CLIENT).with("type", "probe").with("to", to));
        }
        if !accounts.is_empty() {
            self.new_members(now);
        }
    }

    /// The roster changed: who is a friend does not ask to be one.
    pub(super) fn tidy_requests(&mut self) {
        let members = &self.members;
        let subscription = |j: &BareJid| members.contact(j).map(|c| c.subscription);
        self.requests.retain(|j| !matches!(subscription(j), Some(Subscription::From | Subscription::Both)));
        self.problems.retain(|j, _| members.contact(j).is_some_and(|c| c.asked));
    }

    /// What is known of friends is to be told soon.
    pub(super) fn note_friends(&mut self, now: Instant) {
        if !self.groups.social.is_empty() && self.members.is_settled() {
            self.timers.entry(Timer::Friends).or_insert(now + GATHER);
        }
    }

    pub(super) fn tell_friends(&mut self) {
        let contacts = self.members.contacts().filter(|(_, c)| c.asked || c.subscription != Subscription::None);
        let contacts = contacts.map(|(jid, c)| FriendContact {
            jid: jid.to_string(),
            name: c.name.clone(),
            subscription: c.subscription,
            asked: c.asked,
            blocked: self.members.is_blocked(jid),
            networks: self.members.social_of(jid),
            problem: self.problems.get(jid).cloned(),
        });
        let friends =
            Friends { contacts: contacts.collect(), requests: self.requests.iter().map(ToString::to_string).collect() };
        self.events.push_back(Event::Friends(friends));
    }
}

fn unfit<T>(why: impl Into<String>) -> Result<T, FriendError> {
    Err(FriendError::Unfit(why.into()))
}

fn asked(jid: &BareJid, did_ask: bool) -> String {
    if did_ask {
        format!("the request of {jid} is accepted, and {jid} was asked for the same")
    } else {
        format!("{jid} was asked: as soon as it accepts, it is a friend")
    }
}

fn subscription(kind: &str, to: &BareJid) -> Element {
    element("presence", CLIENT).with("type", kind).with("to", to.as_str())
}
