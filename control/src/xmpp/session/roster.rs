//! The account's contacts (RFC 6121, section 2), and whom it blocks (XEP-0191).

use std::collections::{BTreeMap, BTreeSet};

use tokio_xmpp::jid::{BareJid, Jid};
use tokio_xmpp::minidom::Element;
use tokio_xmpp::parsers::ns;

use crate::xmpp::Subscription;
use crate::xmpp::xml::{Malformed, children, malformed};

/// Contacts that are remembered. Nobody has so many friends, and no network takes more than a quarter of it.
const MAX_CONTACTS: usize = 16_384;
/// Entries of a block list that are remembered.
const MAX_BLOCKED: usize = 16_384;
/// Bytes of the name that the account's owner gave to a contact.
const MAX_NAME: usize = 256;

/// What the roster says of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contact {
    pub(super) subscription: Subscription,
    /// We asked for its presence, and it has not answered.
    pub(super) asked: bool,
    /// What the account's owner calls it.
    pub(super) name: Option<String>,
    /// Those of our groups that it is in.
    pub(super) groups: BTreeSet<String>,
}

impl Contact {
    /// Whether it sees us and we see it: a name in our own list alone proves nothing.
    pub(super) fn is_friend(&self) -> bool {
        self.subscription == Subscription::Both
    }
}

/// What is known of whom the account blocks.
#[derive(Debug)]
pub(super) enum Blocks {
    /// All of them.
    All(BTreeSet<Jid>),
    /// The server has no block lists, or does not tell.
    Unknown,
    /// These as well.
    Block(BTreeSet<Jid>),
    /// These no longer; without any, nobody.
    Unblock(BTreeSet<Jid>),
}

/// Contacts and blocks of one account, as this connection knows them.
#[derive(Debug, Default)]
pub(super) struct Roster {
    pub(super) known: bool,
    contacts: BTreeMap<BareJid, Contact>,
    blocked: Option<BTreeSet<Jid>>,
}

impl Roster {
    /// The whole roster, or (`push`) a change of it. `ours` are the groups that matter; contacts in none of them are kept
    /// if `every` one is wanted. Gives those that were mentioned.
    pub(super) fn take(
        &mut self,
        query: &Element,
        push: bool,
        account: &BareJid,
        ours: impl Fn(&str) -> bool,
        every: bool,
    ) -> Result<Vec<BareJid>, Malformed> {
        if !query.is("query", ns::ROSTER) {
            return malformed("no roster");
        }
        let mut touched = Vec::new();
        if !push {
            touched.extend(std::mem::take(&mut self.contacts).into_keys());
        }
        self.known = true;
        for item in children(query, "item", ns::ROSTER) {
            let Some(jid) = item.attr("jid").and_then(|j| BareJid::new(j).ok()).filter(|j| j != account) else {
                continue;
            };
            let contact = contact(item, &ours).filter(|c| every || (c.is_friend() && !c.groups.is_empty()));
            match contact {
                None => drop(self.contacts.remove(&jid)),
                Some(c) if self.contacts.len() < MAX_CONTACTS || self.contacts.contains_key(&jid) => {
                    self.contacts.insert(jid.clone(), c);
                }
                Some(_) => {}
            }
            touched.push(jid);
        }
        Ok(touched)
    }

    /// What became known of blocks. Gives the contacts that it may concern.
    pub(super) fn block(&mut self, change: Blocks) -> Vec<BareJid> {
        let blocked = self.blocked.get_or_insert_default();
        match change {
            Blocks::All(all) => *blocked = all,
            Blocks::Unknown => {}
            Blocks::Block(more) => blocked.extend(more),
            Blocks::Unblock(all) if all.is_empty() => blocked.clear(),
            Blocks::Unblock(some) => blocked.retain(|b| !some.contains(b)),
        }
        while blocked.len() > MAX_BLOCKED {
            blocked.pop_last();
        }
        self.contacts.keys().cloned().collect()
    }

    /// Whether it is known whom the account blocks, as far as the server tells.
    pub(super) const fn blocks_known(&self) -> bool {
        self.blocked.is_some()
    }

    /// By itself, or with its whole domain (XEP-0191, section 3.1).
    pub(super) fn is_blocked(&self, account: &BareJid) -> bool {
        let domain = Jid::from(BareJid::from_parts(None, account.domain()));
        self.blocked.as_ref().is_some_and(|b| b.contains(&Jid::from(account.clone())) || b.contains(&domain))
    }

    pub(super) fn contacts(&self) -> impl Iterator<Item = (&BareJid, &Contact)> {
        self.contacts.iter()
    }

    pub(super) fn contact(&self, account: &BareJid) -> Option<&Contact> {
        self.contacts.get(account)
    }
}

/// `None`: it was removed.
fn contact(item: &Element, ours: impl Fn(&str) -> bool) -> Option<Contact> {
    let subscription = match item.attr("subscription") {
        Some("both") => Subscription::Both,
        Some("to") => Subscription::To,
        Some("from") => Subscription::From,
        Some("remove") => return None,
        _ => Subscription::None,
    };
    Some(Contact {
        subscription,
        asked: item.attr("ask") == Some("subscribe"),
        name: item.attr("name").filter(|n| !n.is_empty() && n.len() <= MAX_NAME).map(str::to_owned),
        groups: children(item, "group", ns::ROSTER).map(Element::text).filter(|g| ours(g)).collect(),
    })
}

/// The JIDs of a block list, or of a change of it.
pub(super) fn jids(list: &Element) -> BTreeSet<Jid> {
    let items = children(list, "item", ns::BLOCKING).filter_map(|i| i.attr("jid").and_then(|j| Jid::new(j).ok()));
    items.take(MAX_BLOCKED).collect()
}
