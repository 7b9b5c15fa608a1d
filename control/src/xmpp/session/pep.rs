//! Descriptors as items of a PEP node (XEP-0163) that only contacts can read.
//!
//! One node for all devices of an account, the item's id is the device. So it must hold many items, be kept, and not be
//! open. Create and configure, whatever the answers; `publish` then demands the access model, so that a node that somebody
//! opened does not get our descriptor.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio_xmpp::jid::{BareJid, Jid};
use tokio_xmpp::minidom::Element;
use tokio_xmpp::parsers::ns;

use super::{Purpose, RETRY, SOON, Session, Timer};
use crate::xmpp::RESOURCE_PREFIX;
use crate::xmpp::xml::{Build, NODE, children, descriptor, element};

/// Accounts that are asked for their descriptors at once.
const MAX_ASKING: usize = 32;
/// When descriptors are looked for once more: what was published after we asked and before the server had understood
/// that we want to be told is told to us by nobody.
pub(super) const FIRST_LOOK: Duration = Duration::from_secs(2);
/// The same after a new member: the server may not let us read its node before it has told both of us.
pub(super) const QUICK_LOOK: Duration = Duration::from_millis(500);
/// Tries to read an account's node that the server does not let us read.
const MOST_TRIES: u32 = 6;
const LAST_LOOK: Duration = Duration::from_secs(64);
const NODE_CONFIG: &str = "http://jabber.org/protocol/pubsub#node_config";
const PUBLISH_OPTIONS: &str = "http://jabber.org/protocol/pubsub#publish-options";
/// As many devices as the server lets an account have; where it does not know the word, what every server grants.
const MAX_ITEMS: [&str; 2] = ["max", "10"];

/// A step of publishing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Create,
    /// With which of [`MAX_ITEMS`].
    Configure(usize),
    Publish,
}

fn form(kind: &str, fields: &[(&str, &str)]) -> Element {
    let field = |name: &str, value: &str| {
        element("field", ns::DATA_FORMS).with("var", name).child(element("value", ns::DATA_FORMS).words(value))
    };
    let first = field("FORM_TYPE", kind).with("type", "hidden");
    let form = element("x", ns::DATA_FORMS).with("type", "submit").child(first);
    fields.iter().fold(form, |f, (name, value)| f.child(field(name, value)))
}

fn configuration(max_items: &str) -> Element {
    let fields = [
        ("pubsub#access_model", "presence"),
        ("pubsub#persist_items", "1"),
        ("pubsub#max_items", max_items),
        ("pubsub#notify_retract", "1"),
        ("pubsub#deliver_payloads", "1"),
        ("pubsub#send_last_published_item", "on_sub_and_presence"),
    ];
    let configure = element("configure", ns::PUBSUB_OWNER).with("node", NODE).child(form(NODE_CONFIG, &fields));
    element("pubsub", ns::PUBSUB_OWNER).child(configure)
}

impl Session {
    /// The descriptor, or a new one.
    pub(in crate::xmpp) fn publish(&mut self, d: Option<crate::identity::Descriptor>, now: Instant) {
        self.descriptor = d;
        if self.present {
            self.publish_now(now);
            self.update_rooms();
        }
    }

    pub(super) fn publish_now(&mut self, now: Instant) {
        let Some(d) = &self.descriptor else { return };
        if !self.groups.use_roster() {
            return;
        }
        let item = element("item", ns::PUBSUB).with("id", self.me.resource().as_str()).child(self.descriptor_out(d));
        let publish = element("publish", ns::PUBSUB).with("node", NODE).child(item);
        let options = form(PUBLISH_OPTIONS, &[("pubsub#access_model", "presence")]);
        let options = element("publish-options", ns::PUBSUB).child(options);
        let publish = element("pubsub", ns::PUBSUB).child(publish).child(options);
        if !self.pep_configured {
            self.pep_configured = true;
            let create = element("pubsub", ns::PUBSUB).child(element("create", ns::PUBSUB).with("node", NODE));
            self.ask("set", None, create, Purpose::Pep(Step::Create), now);
            self.ask("set", None, configuration(MAX_ITEMS[0]), Purpose::Pep(Step::Configure(0)), now);
        }
        self.ask("set", None, publish, Purpose::Pep(Step::Publish), now);
    }

    pub(super) fn pep_refused(&mut self, step: Step, condition: &str, now: Instant) {
        tracing::debug!("the server refused to {step:?} the descriptors' PEP node: {condition}");
        match step {
            // It is there already.
            Step::Create => {}
            Step::Configure(i) => match MAX_ITEMS.get(i + 1) {
                Some(fewer) => {
                    self.ask("set", None, configuration(fewer), Purpose::Pep(Step::Configure(i + 1)), now);
                }
                None => tracing::warn!("the server does not let the descriptors' PEP node be configured: {condition}"),
            },
            Step::Publish => {
                // ejabberd 23.01 refuses when several accounts make their first node at the same moment, so soon again,
                // and not all at once.
                tracing::debug!("the server did not take our descriptor ({condition}): trying again");
                self.pep_configured = false;
                let wait = self.again_after(self.pep_tries);
                self.pep_tries += 1;
                self.timers.insert(Timer::Publish, now + wait);
            }
        }
    }

    /// Asks all members for their descriptors.
    pub(super) fn fetch_all(&mut self, now: Instant) {
        if !self.groups.use_roster() {
            return;
        }
        let mut all: BTreeSet<BareJid> = self.members.accounts().cloned().collect();
        all.insert(self.account.clone());
        for account in all {
            if self.nodes.has_any(&account) {
                self.nodes.ask(&account, now);
            } else {
                // It may have been asked a moment ago, before it was removed and let in again.
                self.nodes.ask_anew(&account);
            }
        }
        self.fetch_some(now);
    }

    /// Asks those who are there; after the first time, only those of whom we know nothing.
    pub(super) fn look_again(&mut self, wait: Duration, now: Instant) {
        if !self.groups.use_roster() {
            return;
        }
        for account in self.nodes.present_accounts(wait != FIRST_LOOK) {
            self.nodes.ask_anew(&account);
        }
        self.fetch_some(now);
        let next = (2 * wait).min(LAST_LOOK);
        self.timers.insert(Timer::Look(next), now + next);
    }

    /// Asks one account, soon.
    pub(super) fn fetch(&mut self, account: &BareJid, now: Instant) {
        if self.groups.use_roster() {
            self.nodes.ask(account, now);
            self.fetch_some(now);
        }
    }

    pub(super) fn fetch_some(&mut self, now: Instant) {
        while self.present && self.nodes.asking < MAX_ASKING {
            let Some(account) = self.nodes.next_to_ask(now) else { return };
            self.nodes.asking += 1;
            let items = element("pubsub", ns::PUBSUB).child(element("items", ns::PUBSUB).with("node", NODE));
            self.ask("get", Some(Jid::from(account.clone())), items, Purpose::Items(account), now);
        }
    }

    /// The answer to [`Self::fetch`]; `None`: none came.
    pub(super) fn fetched(&mut self, account: &BareJid, iq: Option<&Element>, now: Instant) {
        self.nodes.asking = self.nodes.asking.saturating_sub(1);
        self.fetch_some(now);
        let answer = iq.filter(|i| i.attr("type") != Some("error"));
        let Some(iq) = answer else {
            // Also if there is no such node: a server that lost it in a crash says nothing about who is a member. One
            // that has just made us members of a group may not let us read it yet, and one of another domain may take
            // its time to be reached.
            let tries = self.refused.entry(account.clone()).or_default();
            *tries += 1;
            let tries = *tries;
            if tries <= MOST_TRIES {
                self.timers.insert(Timer::Fetch(account.clone()), now + self.again_after(tries));
            }
            return;
        };
        self.refused.remove(account);
        let items = iq.get_child("pubsub", ns::PUBSUB).and_then(|p| p.get_child("items", ns::PUBSUB));
        let Some(items) = items.filter(|i| i.attr("node") == Some(NODE)) else { return };
        self.items(account, items, ns::PUBSUB, now);
    }

    /// A message of a PEP node (XEP-0060, section 7.1.2).
    pub(super) fn pep_event(&mut self, account: &BareJid, event: &Element, now: Instant) {
        for part in event.children().filter(|c| c.has_ns(ns::PUBSUB_EVENT) && c.attr("node") == Some(NODE)) {
            match part.name() {
                "items" => {
                    for r in children(part, "retract", ns::PUBSUB_EVENT) {
                        let Some(device) = r.attr("id") else { continue };
                        self.events.extend(self.nodes.withdrew(&(account.clone(), device.to_owned())));
                    }
                    self.items(account, part, ns::PUBSUB_EVENT, now);
                }
                "purge" | "delete" => {
                    let events = self.nodes.withdrew_all(account);
                    self.events.extend(events);
                }
                _ => {}
            }
        }
    }

    /// Reads items.
    fn items(&mut self, account: &BareJid, items: &Element, namespace: &str, now: Instant) {
        for item in children(items, "item", namespace) {
            let Some(device) = item.attr("id").filter(|d| d.starts_with(RESOURCE_PREFIX)) else { continue };
            let node = (account.clone(), device.to_owned());
            if *account == self.account && device == self.me.resource().as_str() {
                continue;
            }
            let said = item.get_child("node", NODE);
            if said.is_some_and(|e| !is_of(e, account)) {
                // Seen of an ejabberd that was killed: it mixed up the PEP nodes of two accounts.
                self.malformed(&format!("{account}/{device}"), "a descriptor of another account", now);
                continue;
            }
            match said.map(descriptor::read) {
                Some(Ok(d)) => {
                    self.events.extend(self.nodes.said(node, d, true, &self.members));
                }
                Some(Err(why)) => self.malformed(&format!("{account}/{device}"), &why.to_string(), now),
                // A notice without its content: get it.
                None => self.fetch(account, now),
            }
        }
    }

    /// Our descriptor with the account that it is of.
    pub(super) fn descriptor_out(&self, d: &crate::identity::Descriptor) -> Element {
        descriptor::write(d).with("account", self.account.as_str())
    }

    /// How long to wait before the next try of something that failed `tries` times. Differs between nodes.
    pub(super) fn again_after(&self, tries: u32) -> Duration {
        let spread = self.me.resource().as_str().bytes().fold(0u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
        let base = SOON.saturating_mul(1 << tries.min(8)).min(RETRY);
        base + base.mul_f64((spread % 1000) as f64 / 1000.0)
    }
}

/// Whether a descriptor names this account, or none.
pub(super) fn is_of(e: &Element, account: &BareJid) -> bool {
    e.attr("account").is_none_or(|a| a == account.as_str())
}
