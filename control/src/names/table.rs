//! From nodes to names.
//!
//! A name is `NODE.GROUP.ipop`, or `NODE.ACCOUNT.NETWORK.ipop` in a social network, where it says whose node it is. Every
//! part is a label made of what somebody called it; two that come out the same are told apart, always in the same way:
//!
//! - *Networks* are ours to name. The plain label is for the network that is called just so, then for the first by name
//!   (`group:` before `muc:` before `social`).
//! - *Accounts* of a social network: the plain label is for our own account, then for the one that was known first, by the
//!   order in which keys were pinned. The next one gets its domain as well: `bob`, `bob-b-example`.
//! - *Nodes*: this node goes before others of our account, and these before all others, which go by the order in which
//!   their keys were pinned. So nobody who comes later takes a name away from somebody, by calling itself the same.
//!
//! Whoever has to give way gets digits of a hash of account and device, so that its name stays as others come and go. What
//! it is called is therefore a matter of who asks: each node has its own view, as it has its own pins.

use super::label::{distinct, joined, label};
use super::reverse::{self, Asked};
use super::{DOMAIN, label};
use dataplane::table::Prefix;
use hickory_proto::rr::{LowerName, Name};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

/// Names at most: of all networks of a node, with all their peers.
pub(super) const MAX_NAMES: usize = crate::config::MAX_NETWORKS * (crate::network::members::MAX_PEERS + 1);
/// Addresses of one name that are told: more than a peer may have.
pub(super) const MAX_ADDRESSES: usize = 2 * crate::network::members::MAX_ADDRESSES;
/// Longest name in text, without the dot at the end (RFC 1035, section 2.3.4: 255 on the wire, with a length for each label
/// and a zero).
const MAX_NAME: usize = 253;
// Node, account and network.
const _: () = assert!(3 * (label::MAX_LABEL + 1) + DOMAIN.len() <= MAX_NAME);

/// Who goes first if two would have the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// This very node.
    This,
    /// Another node of our own account.
    Own,
    /// A node whose key is pinned, and its position in the order of pinning.
    Known(u64),
    /// A node that is not pinned.
    New,
}

/// One node in one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it calls itself. Not trusted.
    pub node: String,
    /// Bare JID, as the server stamped it.
    pub account: String,
    /// The resource.
    pub device: String,
    /// `group:NAME`, `muc:ROOM`, `social` or `social:NAME`.
    pub network: String,
    /// Addresses as this node sees them.
    pub addresses: Vec<IpAddr>,
    /// Who goes first.
    pub standing: Standing,
}

/// An entry's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Without a dot at the end.
    pub name: String,
    /// What has it.
    pub entry: Entry,
}

/// What is at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// No such name.
    Nothing,
    /// It exists, for the sake of others below it.
    Empty,
    /// The start of a zone.
    Apex,
    /// A node.
    Addresses(&'a [IpAddr]),
    /// The name of an address.
    Pointer(&'a Name),
}

/// All names, ready to be asked for.
#[derive(Clone, Debug)]
pub struct Table {
    named: Vec<Named>,
    forward: HashMap<LowerName, Vec<IpAddr>>,
    /// Names that exist because there are names below them.
    inner: HashSet<LowerName>,
    /// Sorted, for what lies in a prefix.
    pointers: BTreeMap<IpAddr, Name>,
    subnets: Vec<Prefix>,
    apex: Name,
    server: Name,
    serial: u32,
}

impl Table {
    /// Makes names for `entries`. `subnets` are the overlay's: addresses in them are answered for, whether or not somebody
    /// has them. `serial` is the version, for SOA records. The same in another order gives the same names.
    #[must_use]
    pub fn new(entries: Vec<Entry>, subnets: &[Prefix], serial: u32) -> Self {
        let apex = Name::from_ascii(format!("{DOMAIN}.")).unwrap_or_else(|_| Name::root());
        let mut table = Self {
            named: named(entries),
            forward: HashMap::new(),
            inner: HashSet::new(),
            pointers: BTreeMap::new(),
            subnets: subnets.to_vec(),
            server: apex.clone(),
            apex,
            serial,
        };
        for n in &table.named {
            // Of valid labels, and not too long.
            let Ok(name) = Name::from_ascii(format!("{}.", n.name)) else { continue };
            let mut above = name.base_name();
            while above != table.apex && !above.is_root() {
                table.inner.insert(LowerName::from(&above));
                above = above.base_name();
            }
            for a in &n.entry.addresses {
                table.pointers.entry(*a).or_insert_with(|| name.clone());
            }
            table.forward.insert(LowerName::from(&name), n.entry.addresses.clone());
        }
        let own = table.named.iter().find(|n| n.entry.standing == Standing::This);
        if let Some(name) = own.and_then(|n| Name::from_ascii(format!("{}.", n.name)).ok()) {
            table.server = name;
        }
        table
    }

    /// All names, sorted by network, and in it this node first.
    #[must_use]
    pub fn named(&self) -> &[Named] {
        &self.named
    }

    /// The zone in which `name` lies and what is there; `None` if we have no say.
    pub(super) fn find(&self, name: &LowerName) -> Option<(Name, Found<'_>)> {
        if self.apex.zone_of(name) {
            return Some((self.apex.clone(), self.forward(name)));
        }
        let asked = reverse::read(name)?;
        let own = self.subnets.iter().find_map(|s| reverse::zone_in(s, &asked.prefix));
        // An address that somebody has outside of all subnets is a zone of its own.
        let lone = || self.pointers.contains_key(&asked.prefix.address()).then_some(asked.prefix);
        let whole = Asked { more: false, ..asked }.address().is_some();
        let zone = own.or_else(|| if whole { lone() } else { None })?;
        Some((reverse::name(&zone)?, self.reverse(&zone, &asked)))
    }

    fn forward(&self, name: &LowerName) -> Found<'_> {
        match self.forward.get(name) {
            Some(addresses) => Found::Addresses(addresses),
            None if **name == self.apex => Found::Apex,
            None if self.inner.contains(name) => Found::Empty,
            None => Found::Nothing,
        }
    }

    fn reverse(&self, zone: &Prefix, asked: &Asked) -> Found<'_> {
        if let Some(name) = asked.address().and_then(|a| self.pointers.get(&a)) {
            return Found::Pointer(name);
        }
        let within = |p: &Prefix| self.pointers.range(p.address()..).next().is_some_and(|(a, _)| p.contains(*a));
        if asked.more {
            Found::Nothing
        } else if asked.prefix == *zone {
            Found::Apex
        } else if within(&asked.prefix) {
            Found::Empty
        } else {
            Found::Nothing
        }
    }

    /// The name of the server: ours.
    pub(super) const fn server(&self) -> &Name {
        &self.server
    }

    /// The version.
    #[must_use]
    pub const fn serial(&self) -> u32 {
        self.serial
    }
}

/// Whether accounts are a part of the names in a network, and what it is called.
fn kind(network: &str) -> (bool, &str) {
    match network.split_once(':') {
        Some(("social", name)) => (true, name),
        Some(("muc", room)) => (false, room.split_once('@').map_or(room, |(local, _)| local)),
        Some((_, name)) => (false, name),
        None => (network == "social", network),
    }
}

/// Names for entries, sorted.
fn named(mut entries: Vec<Entry>) -> Vec<Named> {
    let identity = |e: &Entry| (e.network.clone(), e.standing, e.account.clone(), e.device.clone(), e.node.clone());
    entries.sort_by_cached_key(identity);
    // A device is one node in a network.
    entries.dedup_by(|b, a| (&a.network, &a.account, &a.device) == (&b.network, &b.account, &b.device));
    entries.truncate(MAX_NAMES);
    let zones = zones(&entries);
    let mut taken: HashMap<String, HashSet<String>> = HashMap::new();
    let mut named = Vec::with_capacity(entries.len());
    for mut entry in entries {
        let zone = zones.get(&(entry.network.clone(), social_account(&entry))).cloned().unwrap_or_default();
        let taken = taken.entry(zone.clone()).or_default();
        let own = label(&entry.node).or_else(|| label(&entry.device)).unwrap_or_else(|| "node".to_owned());
        let own = distinct(&[own], &[&entry.account, &entry.device], taken);
        entry.addresses.truncate(MAX_ADDRESSES);
        named.push(Named { name: format!("{own}.{zone}"), entry });
    }
    named
}

/// The account, where it is a part of the name.
fn social_account(e: &Entry) -> Option<String> {
    kind(&e.network).0.then(|| e.account.clone())
}

/// What comes behind the nodes' own labels, by network and (where it counts) account. `entries` are sorted.
fn zones(entries: &[Entry]) -> HashMap<(String, Option<String>), String> {
    let networks: BTreeSet<&str> = entries.iter().map(|e| e.network.as_str()).collect();
    let plain = |network: &str| label(kind(network).1).unwrap_or_else(|| "network".to_owned());
    let mut networks: Vec<&str> = networks.into_iter().collect();
    networks.sort_by_key(|n| (plain(n) != kind(n).1, *n));
    let mut taken = HashSet::new();
    let label_of: HashMap<&str, String> =
        networks.iter().map(|n| (*n, distinct(&[plain(n)], &[n], &mut taken))).collect();
    let mut zones = HashMap::new();
    let mut accounts: HashMap<&str, HashSet<String>> = HashMap::new();
    let mut by_account: Vec<&Entry> = entries.iter().collect();
    by_account.sort_by_key(|e| (&e.network, standing_of_account(e), &e.account));
    for e in by_account {
        let network = label_of.get(e.network.as_str()).cloned().unwrap_or_default();
        let key = (e.network.clone(), social_account(e));
        if zones.contains_key(&key) {
            continue;
        }
        let zone = match &key.1 {
            None => format!("{network}.{DOMAIN}"),
            Some(account) => {
                let taken = accounts.entry(&e.network).or_default();
                let account = distinct(&account_labels(account), &[account], taken);
                format!("{account}.{network}.{DOMAIN}")
            }
        };
        zones.insert(key, zone);
    }
    zones
}

/// This node and others of our account are of one account.
const fn standing_of_account(e: &Entry) -> Standing {
    match e.standing {
        Standing::This => Standing::Own,
        other => other,
    }
}

/// What an account may be called: by its local part, else with its domain.
fn account_labels(jid: &str) -> Vec<String> {
    let (local, domain) = jid.split_once('@').unwrap_or(("", jid));
    match (label(local), label(domain)) {
        (Some(l), Some(d)) => vec![l.clone(), joined(&l, &d)],
        (Some(l), None) => vec![l],
        (None, Some(d)) => vec![d],
        (None, None) => vec!["account".to_owned()],
    }
}
