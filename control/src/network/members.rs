//! Who is a peer, and what it may carry: from what members say about themselves to what is configured.

use super::address::{self, host_prefix, is_host, ula, ula_prefix, usable};
use super::pins::{PinVerdict, Pins};
use super::routes::{self, Offer};
use super::{Claim, psk};
use crate::identity::{Descriptor, NetworkDescriptor};
use dataplane::Translation;
use dataplane::table::Prefix;
use dataplane::tunnel::{PresharedKey, PublicKey};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

/// More peers than this are refused.
pub const MAX_PEERS: usize = 4096;
/// Overlay addresses of one node that are looked at, beside the one that is computed.
pub const MAX_ADDRESSES: usize = 8;
/// Warnings for people: more are only counted.
pub const MAX_WARNINGS: usize = 64;

/// One node as XMPP knows it.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// Full JID: account and device. Stamped by the server, never taken from the descriptor.
    pub jid: &'a str,
    /// What it published.
    pub descriptor: &'a Descriptor,
}

/// Ourselves in the network.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    /// Our bare JID.
    pub account: &'a str,
    /// Our key.
    pub public_key: PublicKey,
    /// Our overlay addresses (not the computed one).
    pub addresses: &'a [IpAddr],
    /// Since when.
    pub since: u64,
    /// Routes that we offer: nobody else's of the same name are taken.
    pub routes: &'a [Prefix],
}

/// All that the peers depend on.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The network's name (`group:NAME`, `muc:ROOM`).
    pub network: &'a str,
    /// Ourselves.
    pub own: Own<'a>,
    /// The network's subnets: overlay addresses outside are refused.
    pub subnets: &'a [Prefix],
    /// The group's secret.
    pub secret: Option<&'a [u8]>,
    /// Take the others' routes.
    pub accept_routes: bool,
    /// We have AES-256-GCM.
    pub aes: bool,
    /// What must not be routed into this network: local routes (without default routes), STUN and TURN servers, where
    /// members' datagrams go, other networks and what is reached through them.
    pub underlay: &'a [Prefix],
    /// Bare JIDs of the members.
    pub members: &'a HashSet<String>,
    /// All nodes that published something.
    pub nodes: &'a [Node<'a>],
    /// Full JIDs that are there now.
    pub online: &'a HashSet<String>,
    /// Keys that were seen before.
    pub pins: &'a Pins,
}

/// Who might be a peer, in a network of any kind.
#[derive(Clone, Copy, Debug)]
pub struct Roll<'a> {
    /// The network's name.
    pub network: &'a str,
    /// Our key.
    pub public_key: PublicKey,
    /// We have AES-256-GCM.
    pub aes: bool,
    /// Bare JIDs of the members.
    pub members: &'a HashSet<String>,
    /// All nodes that published something.
    pub nodes: &'a [Node<'a>],
    /// Keys that were seen before.
    pub pins: &'a Pins,
}

impl<'a> Inputs<'a> {
    const fn roll(&self) -> Roll<'a> {
        let Self { network, aes, members, nodes, pins, .. } = *self;
        Roll { network, public_key: self.own.public_key, aes, members, nodes, pins }
    }
}

/// One peer to configure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedPeer {
    /// Full JID.
    pub jid: String,
    /// Its name for people.
    pub name: String,
    /// Its key. To be pinned ([`Pins::note`]).
    pub public_key: PublicKey,
    /// From the group's secret.
    pub psk: Option<PresharedKey>,
    /// Overlay addresses: the computed one and those that it may have.
    pub addresses: Vec<Prefix>,
    /// Its routes that are taken.
    pub routes: Vec<Prefix>,
    /// Both, for the data plane.
    pub allowed_ips: Vec<Prefix>,
    /// How its addresses are translated; in groups, not at all.
    pub translation: Option<Translation>,
    /// It has AES-256-GCM, and so have we.
    pub aes: bool,
}

/// A node that is not configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Full JID.
    pub jid: String,
    /// Its name for people.
    pub name: String,
    /// The key that it published. To be noted ([`Pins::note`]), so that a person can accept it.
    pub public_key: PublicKey,
    /// The key that is pinned, if it is refused for having changed.
    pub pinned: Option<PublicKey>,
}

/// What to configure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order of their JIDs.
    pub peers: Vec<PlannedPeer>,
    /// Nodes whose key is refused.
    pub refused: Vec<Refused>,
    /// For people, sorted.
    pub warnings: Vec<String>,
}

/// The account and the device of a full JID.
#[must_use]
pub fn split_jid(jid: &str) -> (&str, &str) {
    jid.split_once('/').unwrap_or((jid, ""))
}

/// A node that may become a peer.
pub(super) struct Candidate<'a> {
    pub(super) jid: &'a str,
    pub(super) name: &'a str,
    pub(super) said: &'a NetworkDescriptor,
    /// It has AES-256-GCM, and so have we.
    pub(super) aes: bool,
    /// Pinned before, and when.
    pinned: Option<u64>,
}

impl Candidate<'_> {
    const fn claim(&self) -> Claim {
        (self.said.since, self.said.public_key)
    }
}

/// Works out the peers. The same inputs in another order give the same plan.
#[must_use]
pub fn plan(inputs: &Inputs<'_>) -> Plan {
    let mut plan = Plan::default();
    let candidates = all_candidates(&inputs.roll(), &mut plan);
    let mut addresses = addresses(inputs, &candidates, &mut plan);
    let mut routes = routes(inputs, &candidates, &mut plan);
    for c in &candidates {
        let key = c.said.public_key;
        let addresses = addresses.remove(&key).unwrap_or_default();
        let routes = routes.remove(&key).unwrap_or_default();
        let allowed_ips = addresses.iter().chain(&routes).copied().collect();
        let psk = inputs.secret.map(|s| psk::psk(s, inputs.network, &inputs.own.public_key, &key));
        let (jid, name) = (c.jid.to_owned(), c.name.to_owned());
        let (translation, aes) = (None, c.aes);
        plan.peers.push(PlannedPeer {
            jid,
            name,
            public_key: key,
            psk,
            addresses,
            routes,
            allowed_ips,
            translation,
            aes,
        });
    }
    shorten(&mut plan.warnings);
    plan
}

/// Brings warnings into order, and at most [`MAX_WARNINGS`] of them.
pub(super) fn shorten(warnings: &mut Vec<String>) {
    warnings.sort();
    warnings.dedup();
    if warnings.len() > MAX_WARNINGS {
        let more = warnings.len() - MAX_WARNINGS;
        warnings.truncate(MAX_WARNINGS);
        warnings.push(format!("and {more} more warnings"));
    }
}

/// Those that become peers, in the order of their JIDs: at most [`MAX_PEERS`].
pub(super) fn all_candidates<'a>(roll: &Roll<'a>, plan: &mut Plan) -> Vec<Candidate<'a>> {
    let mut candidates = candidates(roll, plan);
    unique_keys(&mut candidates, plan);
    candidates.sort_by_key(|c| c.jid);
    if candidates.len() > MAX_PEERS {
        plan.warnings.push(format!("{} nodes are more than the {MAX_PEERS} that can be peers", candidates.len()));
        // Those that were known before stay.
        candidates.sort_by_key(|c| (c.pinned.unwrap_or(u64::MAX), c.jid));
        candidates.truncate(MAX_PEERS);
        candidates.sort_by_key(|c| c.jid);
    }
    candidates
}

/// Members of this network with a key that may be theirs.
fn candidates<'a>(roll: &Roll<'a>, plan: &mut Plan) -> Vec<Candidate<'a>> {
    let mut candidates: BTreeMap<&str, Candidate<'_>> = BTreeMap::new();
    for node in roll.nodes {
        let (account, device) = split_jid(node.jid);
        let networks = &node.descriptor.networks;
        let said = networks.iter().find(|n| n.network == roll.network);
        let Some(said) = said.filter(|_| roll.members.contains(account)) else { continue };
        let (jid, name, key) = (node.jid, node.descriptor.name.as_str(), said.public_key);
        if key == roll.public_key {
            plan.warnings.push(format!("{jid} says that it has our own key: it is refused"));
            continue;
        }
        let pinned = match roll.pins.check(account, device, roll.network, &key) {
            PinVerdict::First => None,
            PinVerdict::Full => {
                let most = super::pins::MAX_OF_ACCOUNT;
                plan.warnings.push(format!(
                    "{jid} ({name}) is refused: no more keys can be remembered, or {most} of its account. Forget old ones \
                     with: ipop-fast pins forget {account}"
                ));
                continue;
            }
            PinVerdict::Same { order } => Some(order),
            PinVerdict::Changed { pinned } => {
                plan.warnings.push(format!(
                    "the key of {jid} ({name}) changed: it is refused. If that is right, say: ipop-fast pins accept {jid}"
                ));
                let (jid, name) = (jid.to_owned(), name.to_owned());
                plan.refused.push(Refused { jid, name, public_key: key, pinned: Some(pinned) });
                continue;
            }
        };
        let aes = roll.aes && node.descriptor.has_aes();
        candidates.insert(jid, Candidate { jid, name, said, aes, pinned });
    }
    plan.refused.sort_by(|a, b| a.jid.cmp(&b.jid));
    candidates.into_values().collect()
}

/// Of several nodes with one key the one that was pinned first has it, then the one with the smallest JID.
fn unique_keys(candidates: &mut Vec<Candidate<'_>>, plan: &mut Plan) {
    candidates.sort_by_key(|c| (c.pinned.unwrap_or(u64::MAX), c.jid));
    let mut owner: HashMap<PublicKey, &str> = HashMap::new();
    candidates.retain(|c| {
        let first = *owner.entry(c.said.public_key).or_insert(c.jid);
        if first != c.jid {
            plan.warnings.push(format!("{} says that it has the key of {first}: it is refused", c.jid));
            plan.refused.push(Refused {
                jid: c.jid.to_owned(),
                name: c.name.to_owned(),
                public_key: c.said.public_key,
                pinned: None,
            });
        }
        first == c.jid
    });
}

/// Account and address of those that are there. A device that is away gives way to another one of its account with the
/// same address: that machine was installed anew, and its old key will not come back.
fn present<'a>(inputs: &Inputs<'a>, candidates: &[Candidate<'a>]) -> HashSet<(&'a str, IpAddr)> {
    let own = inputs.own.addresses.iter().map(|a| (inputs.own.account, *a));
    let there = candidates.iter().filter(|c| inputs.online.contains(c.jid));
    let said = there.flat_map(|c| claimed(c).map(|p| (split_jid(c.jid).0, p.address())));
    own.chain(said).collect()
}

fn gives_way(inputs: &Inputs<'_>, present: &HashSet<(&str, IpAddr)>, c: &Candidate<'_>, a: IpAddr) -> bool {
    !inputs.online.contains(c.jid) && present.contains(&(split_jid(c.jid).0, a))
}

/// The addresses that are looked at, the computed one perhaps among them.
fn claimed<'a>(c: &Candidate<'a>) -> impl Iterator<Item = &'a Prefix> + use<'a> {
    c.said.addresses.iter().take(MAX_ADDRESSES + 1)
}

fn addresses(inputs: &Inputs<'_>, candidates: &[Candidate<'_>], plan: &mut Plan) -> HashMap<PublicKey, Vec<Prefix>> {
    let present = present(inputs, candidates);
    let stable = ula_prefix(inputs.network);
    let mut owners: HashMap<IpAddr, Claim> = HashMap::new();
    for a in inputs.own.addresses {
        owners.insert(*a, (inputs.own.since, inputs.own.public_key));
    }
    // The computed addresses are nobody's to claim.
    owners.insert(ula(inputs.network, &inputs.own.public_key).into(), (0, inputs.own.public_key));
    let mut wanted: Vec<(&Candidate<'_>, Vec<IpAddr>)> = Vec::new();
    for c in candidates {
        let mut list = vec![IpAddr::V6(ula(inputs.network, &c.said.public_key))];
        if c.said.addresses.len() > MAX_ADDRESSES + 1 {
            plan.warnings.push(format!("{} claims more than {MAX_ADDRESSES} addresses: the rest is ignored", c.jid));
        }
        for p in claimed(c) {
            let a = p.address();
            if list.contains(&a) || gives_way(inputs, &present, c, a) {
                continue;
            }
            if !is_host(p) || stable.contains(a) || !inputs.subnets.iter().any(|s| usable(s, a)) {
                plan.warnings.push(format!("{} claims {p}, which is no address of this network: ignored", c.jid));
                continue;
            }
            list.push(a);
        }
        for a in &list {
            let claim = if stable.contains(*a) { (0, c.said.public_key) } else { c.claim() };
            let owner = owners.entry(*a).or_insert(claim);
            *owner = claim.min(*owner);
        }
        wanted.push((c, list));
    }
    let mut given: HashMap<PublicKey, Vec<Prefix>> = HashMap::new();
    let own = inputs.own.public_key;
    for (c, list) in wanted {
        let key = c.said.public_key;
        for a in list {
            let owner = owners.get(&a).map_or(key, |o| o.1);
            // An address of our interface cannot be a peer's, whoever has the better right.
            let ours = inputs.own.addresses.contains(&a);
            if owner == key && !ours {
                given.entry(key).or_default().push(host_prefix(a));
            } else if ours && owner != own {
                plan.warnings.push(format!("{} ({}) has our address {a}, and had it first", c.jid, c.name));
            } else {
                let whose = candidates.iter().find(|o| o.said.public_key == owner).map_or("this node", |o| o.jid);
                plan.warnings.push(format!("{} ({}) claims {a}, which {whose} has: not routed", c.jid, c.name));
            }
        }
    }
    given
}

fn routes(inputs: &Inputs<'_>, candidates: &[Candidate<'_>], plan: &mut Plan) -> HashMap<PublicKey, Vec<Prefix>> {
    if !inputs.accept_routes {
        return HashMap::new();
    }
    let stable = ula_prefix(inputs.network);
    let own = inputs.own.addresses.iter().map(|a| host_prefix(*a));
    let guarded: Vec<Prefix> =
        inputs.subnets.iter().copied().chain([stable]).chain(own).chain(inputs.own.routes.iter().copied()).collect();
    let offers = candidates.iter().map(|c| Offer { jid: c.jid, claim: c.claim(), routes: &c.said.routes });
    routes::take(&guarded, inputs.underlay, offers, &mut plan.warnings)
}

/// The addresses of other members as [`address::settle`] wants them.
#[must_use]
pub fn claims(inputs: &Inputs<'_>) -> Vec<(PublicKey, u64, IpAddr)> {
    let mut ignored = Plan::default();
    let mut candidates = candidates(&inputs.roll(), &mut ignored);
    unique_keys(&mut candidates, &mut ignored);
    let present = present(inputs, &candidates);
    let hosts = candidates.iter().flat_map(|c| {
        let hosts = claimed(c).filter(|p| is_host(p) && !gives_way(inputs, &present, c, p.address()));
        hosts.map(|p| (c.said.public_key, c.said.since, p.address()))
    });
    hosts.filter(|(_, _, a)| inputs.subnets.iter().any(|s| address::usable(s, *a))).collect()
}
