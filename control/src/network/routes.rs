//! Subnets that members offer: which ones are taken.

use super::{Claim, overlap};
use dataplane::table::Prefix;
use dataplane::tunnel::PublicKey;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Routes of one node that are looked at.
pub(super) const MAX_ROUTES: usize = 256;
/// Routes of all nodes that are taken.
pub(super) const MAX_ALL_ROUTES: usize = 16_384;
/// A shorter prefix is a default route in pieces: `0.0.0.0/1` and `128.0.0.0/1` are all of IPv4.
const SHORTEST_V4: u8 = 8;
/// The same for IPv6: providers have `/32` at most, and `fd00::/8` is everybody's.
const SHORTEST_V6: u8 = 16;

/// What one node offers.
pub(super) struct Offer<'a> {
    pub(super) jid: &'a str,
    pub(super) claim: Claim,
    pub(super) routes: &'a [Prefix],
}

/// The routes to take, by the key of the node that carries them. `guarded` are the network's own prefixes, `underlay`
/// the machine's.
pub(super) fn take<'a>(
    guarded: &[Prefix],
    underlay: &[Prefix],
    offers: impl Iterator<Item = Offer<'a>>,
    warnings: &mut Vec<String>,
) -> HashMap<PublicKey, Vec<Prefix>> {
    let mut best: BTreeMap<Prefix, (Claim, &str)> = BTreeMap::new();
    for offer in offers {
        let jid = offer.jid;
        if offer.routes.len() > MAX_ROUTES {
            warnings.push(format!("{jid} offers more than {MAX_ROUTES} routes: the rest is ignored"));
        }
        for route in offer.routes.iter().take(MAX_ROUTES) {
            if let Some(why) = refusal(route, guarded, underlay) {
                warnings.push(format!("the route {route} of {jid} is not taken: {why}"));
                continue;
            }
            let new = (offer.claim, jid);
            let Some(old) = best.get(route).copied() else {
                best.insert(*route, new);
                continue;
            };
            if old.1 == jid {
                continue;
            }
            let (winner, loser) = if new < old { (new, old) } else { (old, new) };
            warnings.push(format!("the route {route} of {} is not taken: {} offers it too", loser.1, winner.1));
            best.insert(*route, winner);
        }
    }
    if best.len() > MAX_ALL_ROUTES {
        warnings.push(format!("{} routes are offered: only {MAX_ALL_ROUTES} are taken", best.len()));
    }
    let mut taken: HashMap<PublicKey, Vec<Prefix>> = HashMap::new();
    for (route, ((_, key), _)) in best.into_iter().take(MAX_ALL_ROUTES) {
        taken.entry(key).or_default().push(route);
    }
    taken
}

fn refusal(route: &Prefix, guarded: &[Prefix], underlay: &[Prefix]) -> Option<String> {
    let shortest = if route.address().is_ipv4() { SHORTEST_V4 } else { SHORTEST_V6 };
    if route.len() < shortest {
        return Some("it is as good as a default route".to_owned());
    }
    if SPECIAL.iter().filter_map(|(a, len)| Prefix::new(*a, *len)).any(|s| overlap(&s, route)) {
        return Some("such addresses are not routed".to_owned());
    }
    if let Some(own) = guarded.iter().find(|g| overlap(g, route)) {
        return Some(format!("it overlaps {own} of this network or node"));
    }
    underlay
        .iter()
        .find(|u| overlap(u, route))
        .map(|u| format!("it overlaps {u}, which this machine reaches otherwise"))
}

/// Special-purpose address blocks that no gateway carries (RFC 6890).
const SPECIAL: [(IpAddr, u8); 8] = [
    (IpAddr::V4(Ipv4Addr::new(0, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 3),
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 16),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
    (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
    (IpAddr::V6(Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0)), 10),
];
