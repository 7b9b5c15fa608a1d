//! Which address a friend's node has in our subnet, over restarts.
//!
//! A node is its full JID: account and device. So it keeps its lease when it is renamed, and when a changed key of it is
//! accepted. A node that was installed anew is another device, and has another one.

use crate::config::FixedLease;
use crate::network::address::{choose_for, usable};
use crate::network::members::split_jid;
use dataplane::table::Prefix;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// A lease is kept for so long after the friendship ended, or after the friend withdrew the node.
pub const GRACE: Duration = Duration::from_secs(30 * 86_400);
/// Leases of one account: what a friend publishes must not fill our subnet. Nobody has so many machines.
pub const MAX_PER_ACCOUNT: usize = 32;
/// Leases of one network: more than there are peers, and the file is not endless.
pub const MAX_LEASES: usize = 32_768;
const CANDIDATE: &[u8] = b"ipop-fast lease candidate v1";

/// One node's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLease {
    /// Full JID.
    pub jid: String,
    /// Its address here.
    pub address: Ipv4Addr,
    /// When it got it, milliseconds since 1970.
    pub since: u64,
    /// Since when it is no node of a friend any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<u64>,
}

/// Leases of all social networks, by the networks' names. Serialises to JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FriendLeases {
    networks: BTreeMap<String, Book>,
}

impl FriendLeases {
    /// Those of one network.
    pub fn book(&mut self, network: &str) -> &mut Book {
        self.networks.entry(network.to_owned()).or_default()
    }

    /// Those of one network, if it has any.
    #[must_use]
    pub fn get(&self, network: &str) -> Option<&Book> {
        self.networks.get(network)
    }
}

/// Leases of one network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<NodeLease>", into = "Vec<NodeLease>")]
pub struct Book {
    nodes: HashMap<String, NodeLease>,
    by_address: HashMap<Ipv4Addr, String>,
    /// Full JIDs by bare JID.
    by_account: HashMap<String, BTreeSet<String>>,
}

impl From<Vec<NodeLease>> for Book {
    /// A file that somebody edited may say things twice, or too many: the first counts.
    fn from(leases: Vec<NodeLease>) -> Self {
        let mut book = Self::default();
        for lease in leases {
            if book.nodes.len() < MAX_LEASES && !book.nodes.contains_key(&lease.jid) && book.is_free(lease.address) {
                book.insert(lease);
            }
        }
        book
    }
}

impl From<Book> for Vec<NodeLease> {
    fn from(book: Book) -> Self {
        let mut leases: Self = book.nodes.into_values().collect();
        leases.sort_by(|a, b| a.jid.cmp(&b.jid));
        leases
    }
}

/// What leases depend on beside the nodes.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Our subnet.
    pub subnet: Prefix,
    /// Our own address: nobody else's.
    pub own: Option<Ipv4Addr>,
    /// What the configuration says.
    pub fixed: &'a [FixedLease],
}

/// What came of [`Book::settle`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// There is something to store.
    pub changed: bool,
    /// Leases that changed hands or were freed, for a log.
    pub news: Vec<String>,
    /// Full JIDs of nodes for which the subnet has no address left.
    pub without: Vec<String>,
    /// Full JIDs of nodes that are too many of one account.
    pub too_many: Vec<String>,
}

impl Book {
    /// The address of a node (full JID).
    #[must_use]
    pub fn get(&self, jid: &str) -> Option<Ipv4Addr> {
        self.nodes.get(jid).map(|l| l.address)
    }

    /// The node (full JID) that has an address.
    #[must_use]
    pub fn whose(&self, address: Ipv4Addr) -> Option<&str> {
        self.by_address.get(&address).map(String::as_str)
    }

    /// Whether nobody has an address.
    #[must_use]
    pub fn is_free(&self, address: Ipv4Addr) -> bool {
        !self.by_address.contains_key(&address)
    }

    /// Whether any node of an account (bare JID) has one.
    #[must_use]
    pub fn has_account(&self, account: &str) -> bool {
        self.by_account.contains_key(account)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &NodeLease> {
        self.nodes.values()
    }

    fn insert(&mut self, lease: NodeLease) {
        self.by_address.insert(lease.address, lease.jid.clone());
        self.by_account.entry(split_jid(&lease.jid).0.to_owned()).or_default().insert(lease.jid.clone());
        self.nodes.insert(lease.jid.clone(), lease);
    }

    fn remove(&mut self, jid: &str) -> Option<NodeLease> {
        let lease = self.nodes.remove(jid)?;
        self.by_address.remove(&lease.address);
        let account = split_jid(jid).0;
        if let Some(all) = self.by_account.get_mut(account) {
            all.remove(jid);
            if all.is_empty() {
                self.by_account.remove(account);
            }
        }
        Some(lease)
    }

    /// Notes at `now` whose nodes are none of a friend's any more. `seen` are the nodes (full JIDs) that are known; with
    /// `all_seen` these are all that friends have. Returns whether there is something to store.
    pub fn observe(
        &mut self,
        is_friend: impl Fn(&str) -> bool,
        seen: &HashSet<&str>,
        all_seen: bool,
        now: u64,
    ) -> bool {
        let mut changed = false;
        for lease in self.nodes.values_mut() {
            let (friend, here) = (is_friend(split_jid(&lease.jid).0), seen.contains(lease.jid.as_str()));
            let ended = match lease.ended {
                Some(_) if friend && here => None,
                None if !friend || (all_seen && !here) => Some(now),
                same => same,
            };
            changed |= ended != lease.ended;
            lease.ended = ended;
        }
        changed
    }

    /// Gives every node in `nodes` (full JID and name) an address: the one that it had, else the configured one, else one
    /// by the hash of its JID that nobody has. Frees what ended [`GRACE`] before `now` (milliseconds since 1970).
    pub fn settle(&mut self, terms: &Terms<'_>, nodes: &[(&str, &str)], now: u64) -> Outcome {
        let mut outcome = Outcome::default();
        self.free(now, &mut outcome);
        let fixed = self.fixed(terms, nodes);
        let reserved: HashMap<Ipv4Addr, &FixedLease> = terms.fixed.iter().map(|l| (l.address, l)).collect();
        let had = self.evict(terms, &fixed, &reserved, &mut outcome);
        for (jid, address) in &fixed {
            if self.get(jid) != Some(*address) {
                let since = self.remove(jid).map_or(now, |l| l.since);
                self.insert(NodeLease { jid: (*jid).to_owned(), address: *address, since, ended: None });
                outcome.changed = true;
                outcome.news.push(format!("{jid} has {address} here, as the configuration says"));
            }
        }
        let mut new: Vec<&str> = nodes.iter().map(|n| n.0).filter(|jid| !self.nodes.contains_key(*jid)).collect();
        new.sort_unstable();
        new.dedup();
        for jid in new {
            let of_account = self.by_account.get(split_jid(jid).0).map_or(0, BTreeSet::len);
            if of_account >= MAX_PER_ACCOUNT {
                outcome.too_many.push(jid.to_owned());
                continue;
            }
            let taken = |a: &IpAddr| match a {
                IpAddr::V4(a) => !self.is_free(*a) || reserved.contains_key(a) || terms.own == Some(*a),
                IpAddr::V6(_) => true,
            };
            let count = self.nodes.len() + reserved.len() + 1;
            let found = choose_for(&terms.subnet, &[CANDIDATE, jid.as_bytes()], count, taken);
            let Some(IpAddr::V4(address)) = found.filter(|_| self.nodes.len() < MAX_LEASES) else {
                outcome.without.push(jid.to_owned());
                continue;
            };
            if let Some(old) = had.get(jid) {
                outcome.news.push(format!("{jid} had {old} here and has {address} from now on"));
            }
            self.insert(NodeLease { jid: jid.to_owned(), address, since: now, ended: None });
            outcome.changed = true;
        }
        outcome
    }

    fn free(&mut self, now: u64, outcome: &mut Outcome) {
        let grace = u64::try_from(GRACE.as_millis()).unwrap_or(u64::MAX);
        let over = |l: &&NodeLease| l.ended.is_some_and(|e| now.saturating_sub(e) >= grace);
        let mut over: Vec<String> = self.nodes.values().filter(over).map(|l| l.jid.clone()).collect();
        over.sort();
        for jid in over {
            if let Some(lease) = self.remove(&jid) {
                outcome.changed = true;
                let days = GRACE.as_secs() / 86_400;
                outcome.news.push(format!("{} is free: {jid} is no friend's node for {days} days", lease.address));
            }
        }
    }

    /// Takes leases away that cannot stay, and tells what they were.
    fn evict(
        &mut self,
        terms: &Terms<'_>,
        fixed: &BTreeMap<&str, Ipv4Addr>,
        reserved: &HashMap<Ipv4Addr, &FixedLease>,
        outcome: &mut Outcome,
    ) -> HashMap<String, Ipv4Addr> {
        let bad = |l: &&NodeLease| {
            let outside = !usable(&terms.subnet, IpAddr::V4(l.address)) || terms.own == Some(l.address);
            let anothers = reserved.contains_key(&l.address) && fixed.get(l.jid.as_str()) != Some(&l.address);
            // A node that is not known now may still be the one that the configuration means.
            let maybe_its = reserved.get(&l.address).is_some_and(|f| may_mean(f, &l.jid));
            let held = fixed.values().any(|a| *a == l.address);
            outside || (anothers && (held || !maybe_its))
        };
        let bad: Vec<String> = self.nodes.values().filter(bad).map(|l| l.jid.clone()).collect();
        let mut had = HashMap::new();
        for jid in bad {
            if let Some(lease) = self.remove(&jid) {
                outcome.changed = true;
                had.insert(jid, lease.address);
            }
        }
        had
    }

    /// The configured addresses of nodes that are known. A device's own line goes before one of its name, and that before
    /// one of the account.
    fn fixed<'n>(&self, terms: &Terms<'_>, nodes: &[(&'n str, &str)]) -> BTreeMap<&'n str, Ipv4Addr> {
        let mut given = BTreeMap::new();
        if terms.fixed.is_empty() {
            return given;
        }
        let mut by_account: HashMap<&str, Vec<(&'n str, &str)>> = HashMap::new();
        for (jid, name) in nodes {
            by_account.entry(split_jid(jid).0).or_default().push((jid, name));
        }
        for rank in 0..3 {
            for line in terms.fixed {
                let matches = |(jid, name): &&(&'n str, &str)| match (&line.node, rank) {
                    (Some(n), 0) => split_jid(jid).1 == n,
                    (Some(n), 1) => name == n,
                    (None, 2) => true,
                    _ => false,
                };
                let fits = usable(&terms.subnet, IpAddr::V4(line.address)) && terms.own != Some(line.address);
                if !fits || given.values().any(|a| *a == line.address) {
                    continue;
                }
                let of_account = by_account.get(line.account.as_str()).into_iter().flatten();
                let free = of_account.filter(matches).filter(|(jid, _)| !given.contains_key(jid));
                // Who has it keeps it; else who was known first.
                let best = free.min_by_key(|(jid, _)| {
                    let lease = self.nodes.get(*jid);
                    let has = lease.is_some_and(|l| l.address == line.address);
                    (!has, lease.map_or(u64::MAX, |l| l.since), *jid)
                });
                if let Some((jid, _)) = best {
                    given.insert(*jid, line.address);
                }
            }
        }
        given
    }
}

/// Whether a line can mean this node, whatever its name is.
fn may_mean(line: &FixedLease, jid: &str) -> bool {
    split_jid(jid).0 == line.account
}
