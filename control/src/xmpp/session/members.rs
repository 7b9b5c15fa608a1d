//! Who is a member of which network.

use std::collections::{BTreeMap, BTreeSet};

use tokio_xmpp::jid::BareJid;
use tokio_xmpp::minidom::Element;

use super::roster::{Contact, Roster};
use crate::config::{Allow, GroupSource};
use crate::xmpp::Groups;
use crate::xmpp::xml::Malformed;

/// Members of one network.
const MAX_MEMBERS: usize = 4096;

/// Members of all networks. Our own account is a member of each, and not in the sets.
pub(super) struct Members {
    account: BareJid,
    /// By the network's name; `None`: not known yet in this connection.
    networks: BTreeMap<String, Option<BTreeSet<BareJid>>>,
    roster_groups: BTreeSet<String>,
    /// Networks of friends.
    social: BTreeMap<String, Allow>,
    /// What was told of it.
    told: BTreeMap<String, BTreeSet<BareJid>>,
    /// Contacts, and whom the account blocks.
    roster: Roster,
}

impl Members {
    pub(super) fn new(account: BareJid, groups: &Groups) -> Self {
        let rosters = groups.roster.iter().map(|g| GroupSource::Roster(g.clone()).network());
        let rooms = groups.rooms.iter().map(room_network);
        let social = groups.social.keys().cloned();
        Self {
            account,
            networks: rosters.chain(rooms).chain(social).map(|n| (n, None)).collect(),
            roster_groups: groups.roster.clone(),
            social: groups.social.clone(),
            told: BTreeMap::new(),
            roster: Roster::default(),
        }
    }

    /// The whole roster, or (`push`) a change of it. Gives the accounts that became members by it.
    pub(super) fn roster(&mut self, query: &Element, push: bool) -> Result<Vec<BareJid>, Malformed> {
        let every = !self.social.is_empty();
        let touched =
            self.roster.take(query, push, &self.account, |group| self.roster_groups.contains(group), every)?;
        Ok(self.settle(touched))
    }

    /// Whom the account blocks.
    pub(super) fn blocked(&mut self, change: super::roster::Blocks) -> Vec<BareJid> {
        let touched = self.roster.block(change);
        self.settle(touched)
    }

    /// Works out the members of roster groups and of networks of friends. Gives those among `touched` that became some.
    fn settle(&mut self, touched: Vec<BareJid>) -> Vec<BareJid> {
        let new: Vec<BareJid> = touched.into_iter().filter(|j| !self.is_member(j)).collect();
        if !self.roster.known {
            return Vec::new();
        }
        let both = || self.roster.contacts().filter(|(_, c)| c.is_friend());
        for group in &self.roster_groups {
            let of_group = both().filter(|(_, c)| c.groups.contains(group)).map(|(j, _)| j.clone());
            let members = of_group.take(MAX_MEMBERS).collect();
            self.networks.insert(GroupSource::Roster(group.clone()).network(), Some(members));
        }
        // Whom the account blocks is known as well, so that nobody is let in for a moment.
        if self.roster.blocks_known() {
            for (network, allow) in &self.social {
                let friends = both().filter(|(j, _)| allow.lets_in(j.as_str()) && !self.roster.is_blocked(j));
                let friends = friends.map(|(j, _)| j.clone()).take(MAX_MEMBERS).collect();
                self.networks.insert(network.clone(), Some(friends));
            }
        }
        new.into_iter().filter(|j| self.is_member(j)).collect()
    }

    /// Whether all is known that is told before anyone has a reason to write to us.
    pub(super) fn is_settled(&self) -> bool {
        self.roster.known && (self.social.is_empty() || self.roster.blocks_known())
    }

    /// How many are in networks of friends.
    pub(super) fn friends(&self) -> usize {
        self.social.keys().filter_map(|n| self.networks.get(n)).flatten().map(BTreeSet::len).sum()
    }

    /// Contacts of the account, where there are networks of friends.
    pub(super) fn contacts(&self) -> impl Iterator<Item = (&BareJid, &Contact)> {
        self.roster.contacts()
    }

    /// A contact.
    pub(super) fn contact(&self, account: &BareJid) -> Option<&Contact> {
        self.roster.contact(account)
    }

    /// Whether the account blocks somebody.
    pub(super) fn is_blocked(&self, account: &BareJid) -> bool {
        self.roster.is_blocked(account)
    }

    /// The networks of friends in which an account is.
    pub(super) fn social_of(&self, account: &BareJid) -> Vec<String> {
        self.social.keys().filter(|n| self.is_member_of(account, n)).cloned().collect()
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
