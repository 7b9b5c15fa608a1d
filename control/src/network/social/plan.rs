//! From what friends say about themselves to what is configured.

use super::leases::{Book, MAX_PER_ACCOUNT, Terms};
use crate::config::values::unicast;
use crate::network::address::{host_prefix, is_host, ula};
use crate::network::members::{Candidate, Plan, PlannedPeer, Roll, all_candidates, shorten, split_jid};
use dataplane::Translation;
use dataplane::table::Prefix;
use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};

/// JIDs that one warning names.
const MAX_NAMED: usize = 3;

/// All that the peers depend on, but for the leases.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Friends, their nodes and keys.
    pub roll: Roll<'a>,
    /// Our subnet, our own address in it, and fixed leases.
    pub terms: Terms<'a>,
    /// Take part in multicast and broadcast.
    pub multicast: bool,
}

/// What to configure, and what is to be stored and told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Social {
    /// Peers and warnings.
    pub plan: Plan,
    /// Leases changed.
    pub changed: bool,
    /// What happened to leases, for a log.
    pub news: Vec<String>,
}

/// Works out the peers at `now` (milliseconds since 1970), and gives those that need one a lease.
pub fn plan(inputs: &Inputs<'_>, leases: &mut Book, now: u64) -> Social {
    let mut plan = Plan::default();
    let candidates = all_candidates(&inputs.roll, &mut plan);
    doubles(&candidates, &mut plan);
    let claims: Vec<(&Candidate<'_>, Option<Ipv4Addr>)> =
        candidates.iter().map(|c| (c, own_address(c, &mut plan.warnings))).collect();
    let named: Vec<(&str, &str)> = claims.iter().filter(|(_, a)| a.is_some()).map(|(c, _)| (c.jid, c.name)).collect();
    let outcome = leases.settle(&inputs.terms, &named, now);
    let subnet = inputs.terms.subnet;
    if let Some(who) = named_few(&outcome.without) {
        plan.warnings.push(format!(
            "{subnet} is full: {who} can be reached over IPv6 only. Give this network a larger subnet; leases of former \
             friends end after 30 days"
        ));
    }
    if let Some(who) = named_few(&outcome.too_many) {
        plan.warnings.push(format!(
            "an account has addresses for {MAX_PER_ACCOUNT} nodes here: {who} can be reached over IPv6 only"
        ));
    }
    for (c, theirs) in claims {
        let key = c.said.public_key;
        let mut addresses = vec![host_prefix(IpAddr::V6(ula(inputs.roll.network, &key)))];
        let lease = theirs.and_then(|peer| Some((peer, leases.get(c.jid)?, inputs.terms.own?)));
        let translation = lease.map(|(peer, lease, own)| {
            addresses.push(host_prefix(IpAddr::V4(lease)));
            let theirs = c.said.subnet.and_then(|s| broadcast(&s, peer));
            let ours = broadcast(&subnet, own);
            Translation { peer, lease, own, broadcast: theirs.zip(ours).filter(|_| inputs.multicast) }
        });
        plan.peers.push(PlannedPeer {
            jid: c.jid.to_owned(),
            name: c.name.to_owned(),
            public_key: key,
            psk: None,
            allowed_ips: addresses.clone(),
            addresses,
            routes: Vec::new(),
            translation,
            aes: c.aes,
        });
    }
    shorten(&mut plan.warnings);
    Social { plan, changed: outcome.changed, news: outcome.news }
}

/// What a node calls itself, if that is an address: the first one.
fn own_address(c: &Candidate<'_>, warnings: &mut Vec<String>) -> Option<Ipv4Addr> {
    let said = c.said.addresses.iter().find(|p| p.address().is_ipv4())?;
    match said.address() {
        IpAddr::V4(a) if is_host(said) && !a.is_unspecified() && unicast(IpAddr::V4(a)).is_ok() => Some(a),
        _ => {
            warnings.push(format!("{} calls itself {said}, which no machine can have: ignored", c.jid));
            None
        }
    }
}

/// The broadcast address of the subnet of `address`; `None` if it has none.
pub fn broadcast(subnet: &Prefix, address: Ipv4Addr) -> Option<Ipv4Addr> {
    let IpAddr::V4(network) = subnet.address() else { return None };
    let has_one = (1..=30).contains(&subnet.len()) && subnet.contains(IpAddr::V4(address));
    let last = Ipv4Addr::from_bits(network.to_bits() | (u32::MAX >> subnet.len().min(31)));
    (has_one && last != address && last.to_bits() >> 28 < 0xe).then_some(last)
}

/// A node that was installed anew has the name that it had, and is another device: people should know why there are two.
fn doubles(candidates: &[Candidate<'_>], plan: &mut Plan) {
    let mut devices: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for c in candidates {
        let (account, device) = split_jid(c.jid);
        devices.entry((account, c.name)).or_default().push(device);
    }
    for ((account, name), devices) in devices.into_iter().filter(|(_, d)| d.len() > 1) {
        let shown: HashSet<&str> = devices.iter().copied().take(MAX_NAMED).collect();
        let mut shown: Vec<&str> = shown.into_iter().collect();
        shown.sort_unstable();
        plan.warnings.push(format!(
            "{account} has {} nodes called {name} ({}), each with its own key and address. If {name} was installed anew \
             or lost its state, one is what it was before",
            devices.len(),
            shown.join(", ")
        ));
    }
}

/// Some JIDs and how many others.
fn named_few(jids: &[String]) -> Option<String> {
    let first = jids.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
    match jids.len() {
        0 => None,
        n if n <= MAX_NAMED => Some(first),
        n => Some(format!("{first} and {} more", n - MAX_NAMED)),
    }
}
