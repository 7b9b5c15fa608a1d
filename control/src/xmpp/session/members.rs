//! Who is a member of which network.

use std::collections::{BTreeMap, BTreeSet};

use tokio_xmpp::jid::BareJid;
use tokio_xmpp::minidom::Element;
use tokio_xmpp::parsers::ns;

use crate::config::GroupSource;
use crate::xmpp::Groups;
use crate::xmpp::xml::{Malformed, children, malformed};

/// Members of one network.
const MAX_MEMBERS: usize = 4096;

/// Members of all networks. Our own account is a member of each, and not in the sets.
pub(super) struct Members {
    account: BareJid,
    /// By the network's name; `None`: not known yet in this connection.
    networks: BTreeMap<String, Option<BTreeSet<BareJid>>>,
    roster_groups: BTreeSet<String>,
    /// What was told of it.
    told: BTreeMap<String, BTreeSet<BareJid>>,
    /// Roster: which of our groups a contact is in.
    roster: BTreeMap<BareJid, BTreeSet<String>>,
}

impl Members {
    pub(super) fn new(account: BareJid, groups: &Groups) -> Self {
        let rosters = groups.roster.iter().map(|g| GroupSource::Roster(g.clone()).network());
        let rooms = groups.rooms.iter().map(room_network);
        Self {
            account,
            networks: rosters.chain(rooms).map(|n| (n, None)).collect(),
            roster_groups: groups.roster.clone(),
            told: BTreeMap::new(),
            roster: BTreeMap::new(),
        }
    }

    /// The whole roster, or (`push`) a change of it.
    pub(super) fn roster(&mut self, query: &Element, push: bool) -> Result<(), Malformed> {
        if !query.is("query", ns::ROSTER) {
            return malformed("no roster");
        }
        if !push {
            self.roster.clear();
        }
        for item in children(query, "item", ns::ROSTER) {
            let Some(jid) = item.attr("jid").and_then(|j| BareJid::new(j).ok()) else { continue };
            // Only who sees us and whom we see: a name in our own list alone proves nothing.
            let both = item.attr("subscription") == Some("both");
            let groups: BTreeSet<String> = children(item, "group", ns::ROSTER)
                .map(Element::text)
                .filter(|g| both && self.roster_groups.contains(g))
                .collect();
            if groups.is_empty() || jid == self.account {
                self.roster.remove(&jid);
            } else if self.roster.len() < MAX_MEMBERS || self.roster.contains_key(&jid) {
                self.roster.insert(jid, groups);
            }
        }
        for group in &self.roster_groups {
            let members = self.roster.iter().filter(|(_, g)| g.contains(group)).map(|(j, _)| j.clone()).collect();
            self.networks.insert(GroupSource::Roster(group.clone()).network(), Some(members));
        }
        Ok(())
    }

    /// The members of a room.
    pub(super) fn room(&mut self, room: &BareJid, members: BTreeSet<BareJid>) {
        let members = members.into_iter().filter(|m| *m != self.account).take(MAX_MEMBERS).collect();
        self.networks.insert(room_network(room), Some(members));
    }

    /// The members of a room are not known now: those that were told stay.
    pub(super) fn room_unknown(&mut self, room: &BareJid) {
        self.networks.insert(room_network(room), None);
    }

    /// Every network whose members are not as told before, in this connection.
    pub(super) fn changes(&mut self) -> Vec<(String, BTreeSet<String>)> {
        let mut changes = Vec::new();
        for (network, members) in &self.networks {
            let Some(members) = members else { continue };
            if self.told.get(network) != Some(members) {
                self.told.insert(network.clone(), members.clone());
                changes.push((network.clone(), members.iter().map(ToString::to_string).collect()));
            }
        }
        changes
    }

    /// Whether all networks are known.
    pub(super) fn complete(&self) -> bool {
        self.networks.values().all(Option::is_some)
    }

    /// Whether an account is a member of any network, or our own.
    pub(super) fn is_member(&self, account: &BareJid) -> bool {
        *account == self.account || self.networks.values().flatten().any(|m| m.contains(account))
    }

    /// Whether an account is a member of one network, or our own.
    pub(super) fn is_member_of(&self, account: &BareJid, network: &str) -> bool {
        let Some(members) = self.networks.get(network) else { return false };
        *account == self.account || members.as_ref().is_some_and(|m| m.contains(account))
    }

    /// Whether a network is not known yet.
    pub(super) fn is_unknown(&self, network: &str) -> bool {
        matches!(self.networks.get(network), Some(None))
    }

    /// All members of all networks, some of them more than once.
    pub(super) fn accounts(&self) -> impl Iterator<Item = &BareJid> {
        self.networks.values().flatten().flatten()
    }
}

fn room_network(room: &BareJid) -> String {
    GroupSource::Muc(room.to_string()).network()
}
