//! Whose address is whose, and what friends can and cannot make of us.

use super::leases::{NodeLease, Outcome};
use super::*;
use crate::config::FixedLease;
use crate::identity::{Descriptor, NetworkDescriptor};
use crate::network::address::{host_prefix, ula, usable};
use crate::network::members::Plan;
use crate::network::{Node, Pins, Roll};
use dataplane::Translation;
use dataplane::table::Prefix;
use dataplane::tunnel::PublicKey;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};

const NETWORK: &str = "social:social";
const DAY: u64 = 86_400_000;

fn subnet(s: &str) -> Prefix {
    s.parse().expect("prefix")
}

fn address(s: &str) -> Ipv4Addr {
    s.parse().expect("address")
}

fn terms(net: &str) -> Terms<'static> {
    Terms { subnet: subnet(net), own: Some(first(net)), fixed: &[] }
}

/// The first usable address.
fn first(net: &str) -> Ipv4Addr {
    let IpAddr::V4(a) = subnet(net).address() else { panic!("IPv4") };
    Ipv4Addr::from_bits(a.to_bits() + 1)
}

fn fixed(who: &str, a: &str) -> FixedLease {
    let (account, node) = who.split_once('/').map_or((who, None), |(a, n)| (a, Some(n.to_owned())));
    FixedLease { account: account.to_owned(), node, address: address(a) }
}

fn settle(book: &mut Book, terms: &Terms<'_>, nodes: &[&str], now: u64) -> Outcome {
    let nodes: Vec<(&str, &str)> = nodes.iter().map(|j| (*j, "laptop")).collect();
    book.settle(terms, &nodes, now)
}

fn friends(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("friend{i}@example.org/ipop-{i:016x}")).collect()
}

#[test]
fn a_lease_outlives_restarts_new_friends_and_new_names() {
    let (mut book, terms) = (Book::default(), terms("172.31.0.0/16"));
    let bob = "bob@x/ipop-1";
    assert!(settle(&mut book, &terms, &[bob], 1).changed);
    let lease = book.get(bob).expect("a lease");
    assert!(usable(&terms.subnet, lease.into()) && book.whose(lease) == Some(bob));
    let text = serde_json::to_string(&book).expect("JSON");
    let mut book: Book = serde_json::from_str(&text).expect("JSON");
    let other = book.settle(&terms, &[("carol@x/ipop-2", "laptop"), (bob, "renamed")], 2);
    assert!(other.changed && other.news.is_empty(), "{other:?}");
    assert_eq!(book.get(bob), Some(lease));
    assert_eq!(settle(&mut book, &terms, &["carol@x/ipop-2"], 3), Outcome::default(), "who is away keeps it");
    assert_eq!(book.get(bob), Some(lease));
}

#[test]
fn another_order_gives_the_same_addresses_to_nearly_all() {
    let (all, terms) = (friends(500), terms("172.31.0.0/16"));
    let (mut one, mut other) = (Book::default(), Book::default());
    for jid in &all {
        settle(&mut one, &terms, &[jid], 1);
    }
    for jid in all.iter().rev() {
        settle(&mut other, &terms, &[jid], 1);
    }
    let same = all.iter().filter(|j| one.get(j) == other.get(j)).count();
    // Two of 500 in 65,534 want the same address about twice.
    assert!(same >= 490, "{same}");
}

#[test]
fn the_whole_subnet_is_used_and_when_it_is_full_those_who_have_an_address_keep_it() {
    let (all, net) = (friends(2_000), "10.9.0.0/24");
    let terms = terms(net);
    let mut book = Book::default();
    let jids: Vec<&str> = all.iter().map(String::as_str).collect();
    let before = settle(&mut book, &terms, &jids[..253], 1);
    assert!(before.without.is_empty() && book.len() == 253, "254 without our own: {before:?}");
    assert!(book.iter().all(|l| usable(&terms.subnet, l.address.into()) && l.address != first(net)));
    let had: BTreeMap<String, Ipv4Addr> = book.iter().map(|l| (l.jid.clone(), l.address)).collect();
    let full = settle(&mut book, &terms, &jids, 2);
    assert_eq!((full.without.len(), full.changed, book.len()), (1_747, false, 253));
    assert!(had.iter().all(|(j, a)| book.get(j) == Some(*a)));
}

#[test]
fn two_thousand_friends_have_two_thousand_addresses() {
    let (all, terms) = (friends(2_000), terms("172.31.0.0/21"));
    let jids: Vec<&str> = all.iter().map(String::as_str).collect();
    let mut book = Book::default();
    let start = std::time::Instant::now();
    let outcome = settle(&mut book, &terms, &jids, 1);
    assert!(outcome.without.is_empty() && outcome.too_many.is_empty(), "{outcome:?}");
    assert_eq!(settle(&mut book, &terms, &jids, 2), Outcome::default());
    // Milliseconds; a walk through all for each would take minutes.
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    let unique: HashSet<Ipv4Addr> = jids.iter().filter_map(|j| book.get(j)).collect();
    assert_eq!(unique.len(), 2_000);
}

#[test]
fn a_lease_is_freed_thirty_days_after_the_friendship_ended_and_not_before() {
    let (mut book, terms, bob) = (Book::default(), terms("172.31.0.0/16"), "bob@x/ipop-1");
    settle(&mut book, &terms, &[bob], 0);
    let lease = book.get(bob).expect("a lease");
    let seen: HashSet<&str> = [bob].into();
    assert!(!book.observe(|_| true, &seen, true, DAY), "nothing ended");
    assert!(book.observe(|a| a != "bob@x", &HashSet::new(), false, 10 * DAY));
    assert!(!book.observe(|a| a != "bob@x", &HashSet::new(), false, 20 * DAY), "it is known since when");
    assert!(!settle(&mut book, &terms, &[], 40 * DAY - 1).changed);
    let mut again = book.clone();
    assert_eq!(settle(&mut book, &terms, &[], 40 * DAY).news.len(), 1);
    assert!(book.get(bob).is_none() && book.is_free(lease) && !book.has_account("bob@x"));
    // Friends again before that, it has what it had, and the days start anew.
    assert!(again.observe(|_| true, &seen, false, 40 * DAY - 1));
    assert_eq!(settle(&mut again, &terms, &[bob], 40 * DAY), Outcome::default());
    assert_eq!(again.get(bob), Some(lease));
}

#[test]
fn a_node_that_its_owner_withdrew_gives_its_address_back_only_if_that_is_certain() {
    let (mut book, terms) = (Book::default(), terms("172.31.0.0/16"));
    settle(&mut book, &terms, &["bob@x/ipop-1", "bob@x/ipop-2"], 0);
    let seen: HashSet<&str> = ["bob@x/ipop-2"].into();
    assert!(!book.observe(|_| true, &seen, false, DAY), "its server may be away");
    assert!(book.observe(|_| true, &seen, true, DAY));
    assert!(!book.observe(|_| true, &HashSet::new(), false, 2 * DAY), "after a restart nobody has been seen yet");
    settle(&mut book, &terms, &["bob@x/ipop-2"], 31 * DAY);
    assert!(book.get("bob@x/ipop-1").is_none() && book.get("bob@x/ipop-2").is_some());
}

#[test]
fn fixed_leases_win_and_whoever_had_the_address_moves() {
    let (net, bob, carol) = ("172.31.0.0/24", "bob@x/ipop-1", "carol@x/ipop-2");
    let mut book = Book::default();
    settle(&mut book, &terms(net), &[bob, carol], 1);
    let carols = book.get(carol).expect("a lease");
    let lines = [fixed("bob@x/laptop", &carols.to_string()), fixed("dave@x", "172.31.0.77")];
    let with = Terms { fixed: &lines, ..terms(net) };
    let outcome = settle(&mut book, &with, &[bob, carol], 2);
    assert_eq!(book.get(bob), Some(carols));
    assert!(book.get(carol).is_some_and(|a| a != carols && a != address("172.31.0.77")));
    assert_eq!(outcome.news.len(), 2, "{outcome:?}");
    assert_eq!(settle(&mut book, &with, &[bob, carol], 3), Outcome::default());
    // Nobody else has the address of a friend who is not there yet.
    let all = friends(300);
    let jids: Vec<&str> = all.iter().map(String::as_str).collect();
    settle(&mut book, &with, &jids, 4);
    assert!(book.is_free(address("172.31.0.77")) && book.len() == 252);
    settle(&mut book, &with, &["dave@x/ipop-3"], 5);
    assert_eq!(book.get("dave@x/ipop-3"), Some(address("172.31.0.77")));
}

#[test]
fn of_several_lines_the_most_exact_one_counts_and_of_several_nodes_the_first() {
    let lines = [fixed("bob@x", "10.0.0.10"), fixed("bob@x/laptop", "10.0.0.11"), fixed("bob@x/ipop-c", "10.0.0.12")];
    let terms = Terms { fixed: &lines, ..terms("10.0.0.0/24") };
    let mut book = Book::default();
    book.settle(&terms, &[("bob@x/ipop-b", "desk"), ("bob@x/ipop-a", "laptop")], 1);
    book.settle(&terms, &[("bob@x/ipop-a", "laptop"), ("bob@x/ipop-c", "laptop"), ("bob@x/ipop-b", "desk")], 2);
    let got = ["ipop-a", "ipop-b", "ipop-c"].map(|d| book.get(&format!("bob@x/{d}")));
    assert_eq!(got, ["10.0.0.11", "10.0.0.10", "10.0.0.12"].map(|a| Some(address(a))));
    // A line for the account is for one node of it.
    let only = [fixed("bob@x", "10.0.0.10")];
    let terms = Terms { fixed: &only, ..terms };
    let mut book = Book::default();
    settle(&mut book, &terms, &["bob@x/ipop-b"], 1);
    settle(&mut book, &terms, &["bob@x/ipop-a", "bob@x/ipop-b"], 2);
    assert_eq!(book.whose(address("10.0.0.10")), Some("bob@x/ipop-b"));
}

#[test]
fn another_subnet_or_own_address_moves_those_who_are_in_the_way() {
    let (mut book, bob) = (Book::default(), "bob@x/ipop-1");
    settle(&mut book, &terms("10.0.0.0/24"), &[bob], 1);
    let old = book.get(bob).expect("a lease");
    let own = Terms { own: Some(old), ..terms("10.0.0.0/24") };
    let outcome = settle(&mut book, &own, &[bob], 2);
    assert!(outcome.changed && outcome.news.len() == 1 && book.get(bob) != Some(old), "{outcome:?}");
    settle(&mut book, &terms("10.1.0.0/24"), &[bob], 3);
    assert!(book.get(bob).is_some_and(|a| a.octets()[1] == 1));
    settle(&mut book, &terms("10.2.0.0/24"), &[], 4);
    assert!(book.is_empty());
}

#[test]
fn one_friend_cannot_fill_the_subnet() {
    let mut book = Book::default();
    let many: Vec<String> = (0..200).map(|i| format!("bob@x/ipop-{i:03}")).collect();
    let jids: Vec<&str> = many.iter().map(String::as_str).chain(["carol@x/ipop-1"]).collect();
    let outcome = settle(&mut book, &terms("10.0.0.0/24"), &jids, 1);
    assert_eq!((outcome.too_many.len(), book.len()), (200 - MAX_PER_ACCOUNT, MAX_PER_ACCOUNT + 1));
    assert!(book.get("carol@x/ipop-1").is_some());
}

#[test]
fn a_file_that_somebody_edited_is_taken_as_far_as_it_makes_sense() {
    let lease = |jid: &str, a: &str| NodeLease { jid: jid.to_owned(), address: address(a), since: 1, ended: None };
    let twice = vec![lease("a@x/d", "10.0.0.2"), lease("a@x/d", "10.0.0.3"), lease("b@x/d", "10.0.0.2")];
    let book = Book::from(twice);
    assert_eq!((book.len(), book.get("a@x/d"), book.get("b@x/d")), (1, Some(address("10.0.0.2")), None));
    let text = "{\"networks\":{\"social:social\":[{\"jid\":\"a@x/d\",\"address\":\"10.0.0.2\",\"since\":1}]}}";
    let all: FriendLeases = serde_json::from_str(text).expect("JSON");
    assert_eq!(all.get(NETWORK).and_then(|b| b.get("a@x/d")), Some(address("10.0.0.2")));
    for bad in ["{}", "[]", "{\"networks\":{\"a\":[{\"jid\":\"a\",\"address\":\"10.0.0\",\"since\":1}]}}"] {
        assert!(serde_json::from_str::<FriendLeases>(bad).is_err(), "{bad}");
    }
}

fn key(n: u8) -> PublicKey {
    PublicKey([n; 32])
}

fn node(name: &str, n: u8, addresses: &[&str], net: Option<&str>) -> Descriptor {
    let network = NetworkDescriptor {
        network: NETWORK.to_owned(),
        public_key: key(n),
        addresses: addresses.iter().map(|a| a.parse().expect("prefix")).collect(),
        routes: vec![subnet("192.168.0.0/16")],
        subnet: net.map(subnet),
        since: 1,
    };
    Descriptor { name: name.to_owned(), version: String::new(), capabilities: Vec::new(), networks: vec![network] }
}

struct World {
    nodes: Vec<(String, Descriptor)>,
    members: HashSet<String>,
    pins: Pins,
    book: Book,
    multicast: bool,
}

impl World {
    fn new(nodes: Vec<(&str, Descriptor)>) -> Self {
        let members = nodes.iter().map(|(j, _)| j.split('/').next().unwrap_or_default().to_owned()).collect();
        let nodes = nodes.into_iter().map(|(j, d)| (j.to_owned(), d)).collect();
        Self { nodes, members, pins: Pins::default(), book: Book::default(), multicast: true }
    }

    fn plan(&mut self) -> Plan {
        let nodes: Vec<_> = self.nodes.iter().map(|(jid, descriptor)| Node { jid, descriptor }).collect();
        let roll = Roll {
            network: NETWORK,
            public_key: key(0),
            aes: true,
            members: &self.members,
            nodes: &nodes,
            pins: &self.pins,
        };
        let inputs = Inputs { roll, terms: terms("172.31.0.0/24"), multicast: self.multicast };
        plan(&inputs, &mut self.book, 1).plan
    }
}

#[test]
fn a_friends_node_is_translated_to_its_lease_and_may_use_nothing_else() {
    let mut w = World::new(vec![("bob@x/ipop-b", node("laptop", 1, &["172.31.0.1/32"], None))]);
    let p = w.plan();
    let lease = w.book.get("bob@x/ipop-b").expect("a lease");
    let [peer] = p.peers.as_slice() else { panic!("{p:?}") };
    let stable = host_prefix(ula(NETWORK, &key(1)).into());
    assert_eq!(peer.allowed_ips, [stable, host_prefix(lease.into())]);
    assert!(peer.routes.is_empty() && peer.psk.is_none() && p.warnings.is_empty());
    let own = first("172.31.0.0/24");
    let expected = Translation { peer: address("172.31.0.1"), lease, own, broadcast: None };
    assert_eq!(peer.translation, Some(expected), "that it calls itself what we call ourselves is no matter");
    // It moves: the same lease.
    w.nodes[0].1 = node("laptop", 1, &["10.7.7.7/32"], None);
    assert_eq!(w.plan().peers[0].translation, Some(Translation { peer: address("10.7.7.7"), ..expected }));
}

#[test]
fn aes_is_for_friends_nodes_that_say_that_they_have_it() {
    let mut has = node("laptop", 1, &[], None);
    has.capabilities = vec!["aes256gcm".to_owned()];
    let mut w = World::new(vec![("bob@x/ipop-b", has), ("carol@y/ipop-c", node("laptop", 2, &[], None))]);
    assert_eq!(w.plan().peers.iter().map(|p| p.aes).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn two_friends_with_one_address_are_no_matter() {
    let same = |n| node("laptop", n, &["172.31.0.100/32"], None);
    let mut w = World::new(vec![("bob@x/ipop-b", same(1)), ("carol@y/ipop-c", same(2))]);
    let p = w.plan();
    let leases: HashSet<_> = p.peers.iter().filter_map(|p| p.translation.map(|t| t.lease)).collect();
    assert!(leases.len() == 2 && p.warnings.is_empty(), "{p:?}");
}

#[test]
fn without_an_address_of_its_own_or_with_an_impossible_one_there_is_ipv6_only() {
    let bad = ["127.0.0.1/32", "224.0.0.1/32", "0.0.0.0/32", "255.255.255.255/32", "169.254.1.1/32"];
    for addresses in bad.iter().map(|b| vec![*b]).chain([vec![], vec!["fd00::1/128"]]) {
        let mut w = World::new(vec![("bob@x/ipop-b", node("laptop", 1, &addresses, None))]);
        let p = w.plan();
        let stable = host_prefix(ula(NETWORK, &key(1)).into());
        assert_eq!((p.peers[0].allowed_ips.as_slice(), p.peers[0].translation), (&[stable][..], None), "{addresses:?}");
        assert_eq!(p.warnings.len(), usize::from(addresses.first().is_some_and(|a| !a.contains(':'))), "{p:?}");
        assert!(w.book.is_empty());
    }
}

#[test]
fn broadcast_is_translated_if_both_take_part_and_the_friends_subnet_makes_sense() {
    let with = |net| World::new(vec![("bob@x/ipop-b", node("laptop", 1, &["10.1.2.3/32"], net))]);
    let seen = |mut w: World| w.plan().peers[0].translation.and_then(|t| t.broadcast);
    let ours = address("172.31.0.255");
    assert_eq!(seen(with(Some("10.1.0.0/16"))), Some((address("10.1.255.255"), ours)));
    assert_eq!(seen(World { multicast: false, ..with(Some("10.1.0.0/16")) }), None);
    for odd in
        [None, Some("10.2.0.0/16"), Some("10.1.2.3/32"), Some("fd00::/64"), Some("0.0.0.0/0"), Some("10.1.2.0/31")]
    {
        assert_eq!(seen(with(odd)), None, "{odd:?}");
    }
    assert_eq!(broadcast(&subnet("10.1.2.0/30"), address("10.1.2.3")), None, "the broadcast address itself");
}

#[test]
fn changed_keys_are_refused_and_keep_the_lease_and_doubles_are_told() {
    let mut w = World::new(vec![
        ("bob@x/ipop-b", node("laptop", 1, &["10.0.0.1/32"], None)),
        ("bob@x/ipop-c", node("laptop", 2, &["10.0.0.2/32"], None)),
        ("eve@x/ipop-e", node("laptop", 0, &["10.0.0.2/32"], None)),
    ]);
    let p = w.plan();
    assert_eq!(p.peers.len(), 2);
    assert!(p.warnings.iter().any(|w| w.contains("bob@x has 2 nodes called laptop (ipop-b, ipop-c)")), "{p:?}");
    assert!(p.warnings.iter().any(|w| w.contains("our own key")), "{p:?}");
    let lease = w.book.get("bob@x/ipop-b");
    w.pins.note("bob@x", "ipop-b", NETWORK, &key(1));
    w.nodes[0].1 = node("laptop", 9, &["10.0.0.1/32"], None);
    let p = w.plan();
    assert_eq!((p.refused.len(), p.peers.len()), (1, 1));
    w.pins.note("bob@x", "ipop-b", NETWORK, &key(9));
    w.pins.accept("bob@x");
    let p = w.plan();
    assert_eq!(p.peers.iter().find_map(|p| p.translation.map(|t| t.lease)), lease);
}

#[test]
fn a_full_subnet_is_told_once_and_clearly() {
    let all = friends(300);
    let said: Vec<(&str, Descriptor)> = all
        .iter()
        .enumerate()
        .map(|(i, j)| {
            let mut d = node("n", 1, &["10.0.0.1/32"], None);
            d.networks[0].public_key.0[..2].copy_from_slice(&u16::try_from(i + 1000).expect("small").to_be_bytes());
            (j.as_str(), d)
        })
        .collect();
    let mut w = World::new(said);
    let p = w.plan();
    let told: Vec<&String> = p.warnings.iter().filter(|w| w.contains("is full")).collect();
    assert!(told.len() == 1 && told[0].contains("and 44 more") && told[0].contains("larger subnet"), "{told:?}");
    let six_only = p.peers.iter().filter(|p| p.translation.is_none()).count();
    assert_eq!((p.peers.len(), six_only), (300, 47));
}

proptest! {
    #[test]
    fn leases_are_unique_usable_and_stay_whatever_happens(
        len in 24u8..=30,
        steps in prop::collection::vec((prop::collection::vec((0u8..12, 0u8..6), 0..12), 0u8..40), 1..12),
        lines in prop::collection::vec((0u8..12, 1u32..200), 0..4),
    ) {
        let net = Prefix::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), len).expect("length");
        let size = (1u32 << (32 - len)) - 2;
        let mut taken = HashSet::new();
        let fixed: Vec<FixedLease> = lines
            .iter()
            .map(|(a, n)| FixedLease {
                account: format!("a{a}@x"),
                node: None,
                address: Ipv4Addr::from_bits(0x0a00_0000 + 1 + n % size),
            })
            .filter(|l| taken.insert(l.address) && l.address != Ipv4Addr::new(10, 0, 0, 1))
            .collect();
        let terms = Terms { subnet: net, own: Some(Ipv4Addr::new(10, 0, 0, 1)), fixed: &fixed };
        let (mut book, mut now) = (Book::default(), 0);
        for (nodes, days) in steps {
            now += u64::from(days) * DAY;
            let jids: Vec<String> = nodes.iter().map(|(a, d)| format!("a{a}@x/ipop-{d}")).collect();
            let jids: Vec<&str> = jids.iter().map(String::as_str).collect();
            let seen: HashSet<&str> = jids.iter().copied().collect();
            let before: Vec<NodeLease> = book.clone().into();
            book.observe(|a| jids.iter().any(|j| j.starts_with(&format!("{a}/"))), &seen, false, now);
            let outcome = settle(&mut book, &terms, &jids, now);
            let mut addresses = HashSet::new();
            for l in book.iter() {
                prop_assert!(usable(&net, l.address.into()) && terms.own != Some(l.address) && addresses.insert(l.address));
                prop_assert_eq!(book.whose(l.address), Some(l.jid.as_str()));
                if let Some(line) = fixed.iter().find(|f| f.address == l.address) {
                    let its = l.jid.split('/').next() == Some(line.account.as_str());
                    prop_assert!(its);
                }
            }
            for j in &jids {
                prop_assert_eq!(book.get(j).is_none(), outcome.without.iter().any(|w| w == j), "{}", j);
            }
            for old in before {
                // Only what a line of the configuration says, or a month of absence, takes an address away.
                let same = book.get(&old.jid) == Some(old.address);
                let line = fixed.iter().any(|f| f.address == old.address || old.jid.starts_with(&format!("{}/", f.account)));
                prop_assert!(same || line || (old.ended.is_some() && !seen.contains(old.jid.as_str())), "{:?}", old);
            }
            if !outcome.without.is_empty() {
                let free = (1..=size).map(|n| Ipv4Addr::from_bits(0x0a00_0000 + n));
                let free = free.filter(|a| book.is_free(*a) && terms.own != Some(*a) && fixed.iter().all(|f| f.address != *a));
                prop_assert_eq!(free.count(), 0);
            }
            let text = serde_json::to_string(&book).expect("JSON");
            prop_assert_eq!(serde_json::from_str::<Book>(&text).expect("JSON"), book.clone());
            prop_assert!(!settle(&mut book, &terms, &jids, now).changed, "settled twice");
        }
    }
}
