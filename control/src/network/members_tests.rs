//! What members can and cannot make of us.

use super::address::{OwnAddress, Settlement, settle, ula};
use super::members::{MAX_PEERS, claims};
use super::{Inputs, Node, Own, Pins, Plan, overlap, plan};
use crate::identity::{Descriptor, NetworkDescriptor};
use dataplane::table::Prefix;
use dataplane::tunnel::PublicKey;
use proptest::prelude::*;
use std::collections::HashSet;
use std::net::IpAddr;

const NETWORK: &str = "group:g";

fn key(n: u16) -> PublicKey {
    let mut k = [1; 32];
    k[..2].copy_from_slice(&n.to_be_bytes());
    PublicKey(k)
}

fn prefixes(list: &[&str]) -> Vec<Prefix> {
    list.iter().map(|p| p.parse().expect("prefix")).collect()
}

fn node(k: PublicKey, since: u64, addresses: &[&str], routes: &[&str]) -> Descriptor {
    let network = NetworkDescriptor {
        network: NETWORK.to_owned(),
        public_key: k,
        addresses: prefixes(addresses),
        routes: prefixes(routes),
        subnet: None,
        since,
    };
    Descriptor { name: "n".to_owned(), version: String::new(), capabilities: Vec::new(), networks: vec![network] }
}

struct World {
    nodes: Vec<(String, Descriptor)>,
    members: HashSet<String>,
    pins: Pins,
    accept_routes: bool,
    aes: bool,
    own: Vec<IpAddr>,
    online: HashSet<String>,
}

impl World {
    fn new(nodes: Vec<(&str, Descriptor)>) -> Self {
        let members = nodes.iter().map(|(j, _)| j.split('/').next().unwrap_or_default().to_owned()).collect();
        let online = nodes.iter().map(|(j, _)| (*j).to_owned()).collect();
        let nodes = nodes.into_iter().map(|(j, d)| (j.to_owned(), d)).collect();
        let own = vec!["10.0.0.1".parse().expect("address")];
        Self { nodes, members, pins: Pins::default(), accept_routes: true, aes: true, own, online }
    }

    fn with<T>(&self, f: impl FnOnce(&Inputs<'_>) -> T) -> T {
        let nodes: Vec<_> = self.nodes.iter().map(|(jid, descriptor)| Node { jid, descriptor }).collect();
        let routes = prefixes(&["10.77.0.0/16"]);
        let own = Own { account: "me@x", public_key: key(0), addresses: &self.own, since: 100, routes: &routes };
        f(&Inputs {
            network: NETWORK,
            own,
            subnets: &prefixes(&["10.0.0.0/24"]),
            secret: Some(b"s"),
            accept_routes: self.accept_routes,
            aes: self.aes,
            underlay: &prefixes(&["192.168.1.0/24", "198.51.100.7/32"]),
            members: &self.members,
            nodes: &nodes,
            online: &self.online,
            pins: &self.pins,
        })
    }

    fn plan(&self) -> Plan {
        self.with(plan)
    }
}

fn allowed(plan: &Plan, jid: &str) -> Vec<String> {
    let peer = plan.peers.iter().find(|p| p.jid == jid).unwrap_or_else(|| panic!("no {jid}: {plan:?}"));
    peer.allowed_ips.iter().map(Prefix::to_string).collect()
}

fn stable(k: PublicKey) -> String {
    format!("{}/128", ula(NETWORK, &k))
}

#[test]
fn a_member_gets_its_addresses_its_routes_and_a_key_of_the_groups_secret() {
    let w = World::new(vec![("a@x/d", node(key(1), 1, &["10.0.0.2/32"], &["10.1.0.0/16"]))]);
    let p = w.plan();
    assert_eq!(allowed(&p, "a@x/d"), [stable(key(1)), "10.0.0.2/32".into(), "10.1.0.0/16".into()]);
    assert_eq!(p.peers[0].psk, Some(super::psk(b"s", NETWORK, &key(1), &key(0))));
    assert!(p.warnings.is_empty() && p.refused.is_empty(), "{p:?}");
    let w = World { accept_routes: false, ..w };
    assert_eq!(allowed(&w.plan(), "a@x/d"), [stable(key(1)), "10.0.0.2/32".into()]);
}

#[test]
fn aes_is_for_nodes_that_say_that_they_have_it_if_we_have_it() {
    let mut has = node(key(1), 1, &["10.0.0.2/32"], &[]);
    has.capabilities = vec!["other".to_owned(), "aes256gcm".to_owned()];
    let mut w = World::new(vec![("a@x/d", has), ("b@x/d", node(key(2), 1, &["10.0.0.3/32"], &[]))]);
    let aes = |w: &World| w.plan().peers.iter().map(|p| p.aes).collect::<Vec<_>>();
    assert_eq!(aes(&w), [true, false]);
    w.nodes[1].1.capabilities = vec!["AES256GCM".to_owned()];
    w.aes = false;
    assert_eq!(aes(&w), [false, false]);
    w.aes = true;
    w.nodes[1].1.capabilities = vec!["aes256gcm".to_owned()];
    assert_eq!(aes(&w), [true, true], "a changed descriptor changes the plan");
}

#[test]
fn strangers_and_nodes_of_other_networks_are_nothing_to_us() {
    let mut other = node(key(2), 1, &["10.0.0.3/32"], &[]);
    other.networks[0].network = "group:h".to_owned();
    let mut w = World::new(vec![("a@x/d", node(key(1), 1, &[], &[])), ("b@x/d", other)]);
    w.members.remove("a@x");
    assert_eq!(w.plan(), Plan::default());
}

#[test]
fn keys_are_unique_pinned_and_never_ours() {
    let mut w = World::new(vec![
        ("a@x/d", node(key(1), 1, &[], &[])),
        ("b@x/d", node(key(1), 0, &[], &[])),
        ("c@x/d", node(key(0), 0, &[], &[])),
        ("d@x/d", node(key(4), 0, &[], &[])),
    ]);
    let jids = |p: &Plan| p.peers.iter().map(|p| p.jid.clone()).collect::<Vec<_>>();
    assert_eq!(jids(&w.plan()), ["a@x/d", "d@x/d"]);
    assert_eq!(w.plan().warnings.len(), 2);
    w.pins.note("b@x", "d", NETWORK, &key(1));
    w.pins.note("a@x", "d", NETWORK, &key(1));
    w.pins.note("d@x", "d", NETWORK, &key(5));
    let p = w.plan();
    assert_eq!(jids(&p), ["b@x/d"], "pinned first");
    let changed = p.refused.iter().find(|r| r.jid == "d@x/d").expect("refused");
    assert_eq!((changed.public_key, changed.pinned), (key(4), Some(key(5))));
    assert!(p.warnings.iter().any(|w| w.contains("pins accept d@x/d")), "{p:?}");
    w.pins.note("d@x", "d", NETWORK, &key(4));
    w.pins.accept("d@x/d");
    assert_eq!(jids(&w.plan()), ["b@x/d", "d@x/d"]);
}

#[test]
fn addresses_that_are_not_theirs_are_not_routed() {
    let foreign = ["10.0.1.2/32", "10.0.0.0/24", "10.0.0.0/32", "10.0.0.255/32", "fd00::1/128", "0.0.0.0/0", "::/0"];
    let stolen = stable(key(7));
    let own = stable(key(0));
    for claim in foreign.iter().copied().chain([stolen.as_str(), own.as_str()]) {
        let p = World::new(vec![("a@x/d", node(key(1), 1, &[claim], &[]))]).plan();
        assert_eq!(allowed(&p, "a@x/d"), [stable(key(1))], "{claim}");
        assert_eq!(p.warnings.len(), 1, "{claim}: {p:?}");
    }
    let p = World::new(vec![("a@x/d", node(key(1), 1, &[&stable(key(1))], &[]))]).plan();
    assert!(p.warnings.is_empty(), "its own computed address is no surprise: {p:?}");
}

#[test]
fn of_two_with_one_address_the_earlier_is_routed_and_ours_never() {
    let w = World::new(vec![
        ("a@x/d", node(key(1), 9, &["10.0.0.9/32", "10.0.0.1/32"], &[])),
        ("b@x/d", node(key(2), 8, &["10.0.0.9/32"], &[])),
        ("c@x/d", node(key(3), 200, &["10.0.0.1/32"], &[])),
    ]);
    let p = w.plan();
    assert_eq!(allowed(&p, "a@x/d"), [stable(key(1))]);
    assert_eq!(allowed(&p, "b@x/d"), [stable(key(2)), "10.0.0.9/32".into()]);
    assert_eq!(allowed(&p, "c@x/d"), [stable(key(3))]);
    assert!(p.warnings.iter().any(|w| w.contains("a@x/d") && w.contains("had it first")), "{p:?}");
    // We have to move.
    let own = OwnAddress { address: w.own[0], key: key(0), since: 100, fixed: false };
    let claims = w.with(claims);
    assert!(matches!(settle(&own, &prefixes(&["10.0.0.0/24"])[0], &claims), Settlement::Move(_)));
}

#[test]
fn a_machine_that_was_installed_anew_has_its_address_from_its_old_device() {
    let claim = ["10.0.0.9/32"];
    let mut w = World::new(vec![
        ("a@x/new", node(key(1), 9, &claim, &[])),
        ("a@x/old", node(key(2), 8, &claim, &[])),
        ("b@x/d", node(key(3), 10, &claim, &[])),
    ]);
    assert_eq!(allowed(&w.plan(), "a@x/old").len(), 2, "while both are there, the earlier has it");
    w.online.remove("a@x/old");
    let p = w.plan();
    assert_eq!(allowed(&p, "a@x/new"), [stable(key(1)), claim[0].to_owned()]);
    assert_eq!(allowed(&p, "a@x/old"), [stable(key(2))]);
    // Another account's device that is away keeps its own.
    w.online.remove("a@x/new");
    assert_eq!(allowed(&w.plan(), "a@x/old"), [stable(key(2)), claim[0].to_owned()]);
    assert_eq!(allowed(&w.plan(), "b@x/d"), [stable(key(3))]);
    // The same for ourselves.
    let mut w = World::new(vec![("me@x/old", node(key(2), 1, &["10.0.0.1/32"], &[]))]);
    assert_eq!(w.with(claims).len(), 1);
    w.online.clear();
    assert_eq!(w.with(claims), []);
}

#[test]
fn refused_keys_have_no_say_about_our_address() {
    let mut w = World::new(vec![("a@x/d", node(key(1), 0, &["10.0.0.1/32"], &[]))]);
    assert_eq!(w.with(claims).len(), 1);
    w.pins.note("a@x", "d", NETWORK, &key(7));
    assert_eq!(w.with(claims), []);
}

#[test]
fn nobody_is_let_in_whose_key_cannot_be_remembered() {
    let mut w = World::new(vec![("a@x/d", node(key(1), 0, &[], &[]))]);
    for n in 0..super::pins::MAX_OF_ACCOUNT {
        w.pins.note("a@x", &format!("other{n}"), NETWORK, &key(2));
    }
    let p = w.plan();
    assert!(p.peers.is_empty() && p.warnings.iter().any(|w| w.contains("pins forget a@x")), "{p:?}");
}

#[test]
fn routes_that_would_take_over_the_machine_are_refused() {
    let bad = [
        "0.0.0.0/0",
        "::/0",
        "0.0.0.0/1",
        "128.0.0.0/1",
        "10.0.0.0/8",
        "10.0.0.128/25",
        "192.168.0.0/16",
        "192.168.1.128/25",
        "198.51.100.0/24",
        "10.77.1.0/24",
        "127.0.0.0/8",
        "224.0.0.0/8",
        "fe80::/64",
        "2000::/3",
        "169.254.169.254/32",
    ];
    for route in bad {
        let p = World::new(vec![("a@x/d", node(key(1), 1, &[], &[route]))]).plan();
        assert_eq!(allowed(&p, "a@x/d"), [stable(key(1))], "{route}");
        assert_eq!(p.warnings.len(), 1, "{route}: {p:?}");
    }
    let p = World::new(vec![
        ("a@x/d", node(key(1), 2, &[], &["10.1.0.0/16", "10.2.0.0/16", "2001:db8::/32"])),
        ("b@x/d", node(key(2), 1, &[], &["10.1.0.0/16", "10.1.2.0/24"])),
    ])
    .plan();
    assert_eq!(allowed(&p, "a@x/d")[1..], ["10.2.0.0/16", "2001:db8::/32"]);
    assert_eq!(allowed(&p, "b@x/d")[1..], ["10.1.0.0/16", "10.1.2.0/24"]);
    assert_eq!(p.warnings.len(), 1, "{p:?}");
}

#[test]
fn limits_hold() {
    let many: Vec<String> = (0..300).map(|n| format!("10.{}.{}.0/24", 100 + n / 256, n % 256)).collect();
    let routes: Vec<&str> = many.iter().map(String::as_str).collect();
    let p = World::new(vec![("a@x/d", node(key(1), 1, &[], &routes))]).plan();
    assert_eq!(p.peers[0].routes.len(), 256);
    let jids: Vec<String> = (0..5000).map(|n| format!("a{n:05}@x/d")).collect();
    let nodes = jids.iter().zip(1u16..).map(|(j, n)| (j.as_str(), node(key(n), 1, &["0.0.0.0/0"], &[]))).collect();
    let mut w = World::new(nodes);
    w.pins.note("a04999@x", "d", NETWORK, &key(5000));
    let p = w.plan();
    assert_eq!(p.peers.len(), MAX_PEERS);
    assert!(p.peers.iter().any(|p| p.jid == "a04999@x/d"), "whoever was known before stays");
    assert!(p.warnings.len() < 100);
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    let v4 = (prop_oneof![Just(10u32 << 24), any::<u32>()], 0u32..1024, 0u8..=32);
    prop_oneof![
        v4.prop_map(|(a, low, len)| Prefix::new(IpAddr::V4((a | low).into()), len).expect("length")),
        (any::<u128>(), 0u8..=128).prop_map(|(a, len)| Prefix::new(IpAddr::V6(a.into()), len).expect("length")),
        (0u8..8).prop_map(|n| Prefix::new(IpAddr::V4([10, 0, 0, n].into()), 32).expect("length")),
    ]
}

proptest! {
    #[test]
    fn whatever_members_say_nobody_gets_what_is_not_theirs(
        said in proptest::collection::vec(
            (0u16..6, 0u64..4, proptest::collection::vec(any_prefix(), 0..5), proptest::collection::vec(any_prefix(), 0..5)),
            0..8),
        shuffle: u64,
    ) {
        let jids: Vec<String> = (0..said.len()).map(|n| format!("a{n}@x/d")).collect();
        let mut nodes = Vec::new();
        for (jid, (k, since, addresses, routes)) in jids.iter().zip(&said) {
            let mut d = node(key(*k), *since, &[], &[]);
            d.networks[0].addresses.clone_from(addresses);
            d.networks[0].routes.clone_from(routes);
            nodes.push((jid.as_str(), d));
        }
        let mut w = World::new(nodes);
        let p = w.plan();
        let mut seen = HashSet::new();
        for peer in &p.peers {
            prop_assert!(peer.public_key != key(0));
            prop_assert!(peer.addresses.contains(&stable(peer.public_key).parse().expect("prefix")));
            for ip in &peer.allowed_ips {
                prop_assert!(seen.insert(*ip), "{} twice", ip);
                prop_assert!(!ip.contains(w.own[0]) && !ip.contains("192.168.1.1".parse().expect("address")));
                prop_assert!(!ip.contains(IpAddr::V6(ula(NETWORK, &key(0)))));
            }
            for r in &peer.routes {
                prop_assert!(!overlap(r, &prefixes(&["10.0.0.0/24"])[0]) && r.len() >= 8);
            }
        }
        // The order in which they are heard of does not matter.
        if !w.nodes.is_empty() {
            let n = w.nodes.len();
            w.nodes.rotate_left(usize::try_from(shuffle).unwrap_or(0) % n);
            w.nodes.reverse();
        }
        prop_assert_eq!(w.plan(), p);
    }
}
