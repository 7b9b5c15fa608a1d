//! Which nodes are there, and what they say about themselves.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use tokio_xmpp::jid::BareJid;

use super::members::Members;
use crate::identity::Descriptor;
use crate::xmpp::Event;

/// Nodes of one account.
const MAX_DEVICES: usize = 256;
/// Descriptors of one account are not asked for more often when it appears without one.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// A node: account and resource.
pub(super) type Node = (BareJid, String);

/// Where something was learned: the room, or `None` for roster and PEP.
pub(super) type Source = Option<BareJid>;

/// What outlives a connection.
#[derive(Debug, Default)]
pub(in crate::xmpp) struct Known {
    descriptors: BTreeMap<Node, Entry>,
    /// Who asks to be a friend: not every server says it again at each login.
    pub(super) requests: BTreeSet<BareJid>,
}

#[derive(Clone, Debug)]
struct Entry {
    said: Descriptor,
    /// Without the networks that are none of its account's business.
    told: Option<Descriptor>,
    /// It is an item of the account's PEP node (rooms forget).
    kept: bool,
}

pub(super) struct Nodes {
    descriptors: BTreeMap<Node, Entry>,
    present: BTreeMap<Node, BTreeSet<Source>>,
    /// Accounts to be asked for their descriptors.
    queue: VecDeque<BareJid>,
    asked: BTreeMap<BareJid, Instant>,
    pub(super) asking: usize,
}

impl Nodes {
    pub(super) fn new(known: Known) -> Self {
        Self {
            descriptors: known.descriptors,
            present: BTreeMap::new(),
            queue: VecDeque::new(),
            asked: BTreeMap::new(),
            asking: 0,
        }
    }

    pub(super) fn known(self, requests: BTreeSet<BareJid>) -> Known {
        Known { descriptors: self.descriptors, requests }
    }

    /// A node came, or is still there.
    pub(super) fn came(&mut self, node: &Node, source: Source) -> Option<Event> {
        let new = !self.present.contains_key(node);
        if new && devices(&self.present, &node.0) >= MAX_DEVICES {
            return None;
        }
        self.present.entry(node.clone()).or_default().insert(source);
        new.then(|| presence(node, true))
    }

    /// A node went, as far as one source says.
    pub(super) fn went(&mut self, node: &Node, source: &Source) -> Option<Event> {
        let sources = self.present.get_mut(node)?;
        sources.remove(source);
        if !sources.is_empty() {
            return None;
        }
        self.present.remove(node);
        Some(presence(node, false))
    }

    /// All that one source said is void.
    pub(super) fn lost(&mut self, source: &Source) -> Vec<Event> {
        let nodes: Vec<Node> = self.present.keys().cloned().collect();
        nodes.iter().filter_map(|n| self.went(n, source)).collect()
    }

    /// A node's descriptor.
    pub(super) fn said(&mut self, node: Node, said: Descriptor, kept: bool, members: &Members) -> Option<Event> {
        let new = !self.descriptors.contains_key(&node);
        if new && devices(&self.descriptors, &node.0) >= MAX_DEVICES {
            return None;
        }
        let entry = self.descriptors.entry(node.clone()).or_insert(Entry { said: said.clone(), told: None, kept });
        entry.kept |= kept;
        entry.said = said;
        tell(&node, entry, members)
    }

    /// A node withdrew its descriptor.
    pub(super) fn withdrew(&mut self, node: &Node) -> Option<Event> {
        self.descriptors.remove(node).and_then(|e| e.told).map(|_| gone(node))
    }

    /// An account keeps no descriptors any more.
    pub(super) fn withdrew_all(&mut self, account: &BareJid) -> Vec<Event> {
        let kept = self.descriptors.iter().filter(|((a, _), e)| a == account && e.kept);
        let over: Vec<Node> = kept.map(|(n, _)| n.clone()).collect();
        over.iter().filter_map(|n| self.withdrew(n)).collect()
    }

    /// The members have changed: forgets who is none any more, and says anew what concerns whom.
    pub(super) fn recheck(&mut self, members: &Members) -> Vec<Event> {
        let mut events = Vec::new();
        let absent: Vec<Node> = self.present.keys().filter(|n| !members.is_member(&n.0)).cloned().collect();
        for n in absent {
            self.present.remove(&n);
            events.push(presence(&n, false));
        }
        if members.complete() {
            let out: Vec<Node> = self.descriptors.keys().filter(|n| !members.is_member(&n.0)).cloned().collect();
            events.extend(out.iter().filter_map(|n| self.withdrew(n)));
        }
        events.extend(self.descriptors.iter_mut().filter_map(|(n, e)| tell(n, e, members)));
        events
    }

    /// Whether any node of an account said something about itself.
    pub(super) fn has_any(&self, account: &BareJid) -> bool {
        devices(&self.descriptors, account) > 0
    }

    pub(super) fn has_descriptor(&self, node: &Node) -> bool {
        self.descriptors.contains_key(node)
    }

    /// Notes that an account is to be asked, unless it was just now.
    pub(super) fn ask(&mut self, account: &BareJid, now: Instant) {
        let lately = self.asked.get(account).is_some_and(|t| now.duration_since(*t) < ASK_AGAIN);
        if !lately && !self.queue.contains(account) {
            self.queue.push_back(account.clone());
        }
    }

    /// Notes that an account is to be asked.
    pub(super) fn ask_anew(&mut self, account: &BareJid) {
        self.asked.remove(account);
        if !self.queue.contains(account) {
            self.queue.push_back(account.clone());
        }
    }

    /// Accounts with nodes that are there, or only with those that are there and say nothing about themselves.
    pub(super) fn present_accounts(&self, silent: bool) -> BTreeSet<BareJid> {
        let wanted = |n: &&Node| !silent || !self.descriptors.contains_key(*n);
        self.present.keys().filter(wanted).map(|(a, _)| a.clone()).collect()
    }

    /// The next account to be asked.
    pub(super) fn next_to_ask(&mut self, now: Instant) -> Option<BareJid> {
        let account = self.queue.pop_front()?;
        self.asked.retain(|_, t| now.duration_since(*t) < ASK_AGAIN);
        self.asked.insert(account.clone(), now);
        Some(account)
    }
}

fn devices<T>(map: &BTreeMap<Node, T>, account: &BareJid) -> usize {
    map.range((account.clone(), String::new())..).take_while(|((a, _), _)| a == account).count()
}

fn presence(node: &Node, available: bool) -> Event {
    Event::Presence { jid: format!("{}/{}", node.0, node.1), available }
}

fn gone(node: &Node) -> Event {
    Event::DescriptorGone { account: node.0.to_string(), device: node.1.clone() }
}

/// The event for what a node says, if that differs from what was told before.
fn tell(node: &Node, entry: &mut Entry, members: &Members) -> Option<Event> {
    let mut now = entry.said.clone();
    // Of a network that is not known yet in this connection, what was told before goes on.
    let before = |network: &str| entry.told.as_ref().is_some_and(|t| t.networks.iter().any(|n| n.network == network));
    now.networks.retain(|n| {
        members.is_member_of(&node.0, &n.network) || (members.is_unknown(&n.network) && before(&n.network))
    });
    if !members.is_member(&node.0) && now.networks.is_empty() {
        return None;
    }
    if entry.told.as_ref() == Some(&now) {
        return None;
    }
    entry.told = Some(now.clone());
    Some(Event::Descriptor { account: node.0.to_string(), device: node.1.clone(), descriptor: now })
}
