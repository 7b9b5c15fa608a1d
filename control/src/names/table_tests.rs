use super::table::{Entry, Standing, Table};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

pub(super) fn entry(node: &str, jid: &str, network: &str, standing: Standing, addresses: &[&str]) -> Entry {
    let (account, device) = jid.split_once('/').unwrap_or((jid, "ipop-0"));
    Entry {
        node: node.to_owned(),
        account: account.to_owned(),
        device: device.to_owned(),
        network: network.to_owned(),
        addresses: addresses.iter().map(|a| a.parse().expect("address")).collect(),
        standing,
    }
}

fn names(entries: &[Entry]) -> Vec<String> {
    Table::new(entries.to_vec(), &[], 1).named().iter().map(|n| n.name.clone()).collect()
}

/// Names by account, device and network.
fn by_node(entries: &[Entry]) -> HashMap<(String, String, String), String> {
    let table = Table::new(entries.to_vec(), &[], 1);
    let key = |e: &Entry| (e.account.clone(), e.device.clone(), e.network.clone());
    table.named().iter().map(|n| (key(&n.entry), n.name.clone())).collect()
}

#[test]
fn nodes_are_called_as_documented() {
    use Standing::{Known, Own, This};
    let group = "group:my_pragma_group_1";
    let all = [
        entry("vm1", "vm1@a", group, This, &["172.16.10.2"]),
        entry("vm2", "vm2@a", group, Known(0), &["172.16.10.3"]),
        entry("vm3", "vm3@a", "muc:Room1@conference.a", Known(1), &[]),
        entry("desktop", "alice@a", "social", Own, &[]),
        entry("laptop", "bob@a", "social", Known(4), &[]),
        entry("laptop", "bob@a", "social:Work", Known(5), &[]),
    ];
    let expected = [
        "vm1.my_pragma_group_1.ipop",
        "vm2.my_pragma_group_1.ipop",
        "vm3.room1.ipop",
        "desktop.alice.social.ipop",
        "laptop.bob.social.ipop",
        "laptop.bob.work.ipop",
    ];
    assert_eq!(names(&all), expected);
}

#[test]
fn of_two_nodes_with_one_name_the_one_known_first_has_it_and_the_other_keeps_its_suffix() {
    let (a, b) = (
        entry("vm", "a@x/1", "group:g", Standing::Known(7), &[]),
        entry("VM", "b@x/1", "group:g", Standing::Known(3), &[]),
    );
    let first = names(&[a.clone(), b.clone()]);
    assert_eq!(first[0], "vm.g.ipop");
    assert!(first[1].starts_with("vm-") && first[1].len() == "vm-0123.g.ipop".len(), "{first:?}");
    let of = |all: &[Entry], jid: &str| by_node(all)[&(jid.to_owned(), "1".to_owned(), "group:g".to_owned())].clone();
    assert_eq!(of(&[a.clone(), b.clone()], "b@x"), "vm.g.ipop");
    // A third one changes nothing for the second.
    let c = entry("vm", "c@x/1", "group:g", Standing::New, &[]);
    assert_eq!(of(&[a.clone(), b.clone(), c.clone()], "a@x"), first[1]);
    // Our own are ours whoever was there before, and this node before them.
    let own = entry("vm", "me@x/2", "group:g", Standing::Own, &[]);
    let this = entry("vm", "me@x/1", "group:g", Standing::This, &[]);
    assert_eq!(of(&[a, b.clone(), c, own, this], "me@x"), "vm.g.ipop");
    assert_eq!(of(&[b], "b@x"), "vm.g.ipop");
}

#[test]
fn accounts_with_one_local_part_are_told_apart_by_their_domains() {
    let all = [
        entry("laptop", "bob@b.example", "social", Standing::Known(9), &[]),
        entry("phone", "bob@b.example/2", "social", Standing::New, &[]),
        entry("laptop", "bob@a.example", "social", Standing::Known(1), &[]),
        entry("laptop", "example.org", "social", Standing::Known(2), &[]),
    ];
    let expected = [
        "laptop.bob.social.ipop",
        "laptop.example-org.social.ipop",
        "laptop.bob-b-example.social.ipop",
        "phone.bob-b-example.social.ipop",
    ];
    assert_eq!(names(&all), expected);
}

#[test]
fn networks_that_would_be_called_the_same_are_told_apart() {
    let one = |network: &str| entry("vm", "a@x", network, Standing::Known(0), &[]);
    // Called just so, before the first by name.
    let all = names(&[one("group:A.b"), one("group:a-b"), one("muc:a-b@rooms.x")]);
    assert_eq!(all.iter().filter(|n| *n == "vm.a-b.ipop").count(), 1);
    assert!(
        by_node(&[one("group:A.b"), one("group:a-b")]).iter().any(|(k, n)| k.2 == "group:a-b" && n == "vm.a-b.ipop")
    );
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), 3);
    assert_eq!(names(&[one("group:日本")]), ["vm.network.ipop"]);
}

#[test]
fn a_node_without_a_usable_name_is_called_by_its_device() {
    let all = names(&[entry("日本", "a@x/ipop-0123456789abcdef", "group:g", Standing::New, &[])]);
    assert_eq!(all, ["ipop-0123456789abcdef.g.ipop"]);
    assert_eq!(names(&[entry("", "a@x/", "group:g", Standing::New, &[])]), ["node.g.ipop"]);
}

fn standing() -> impl Strategy<Value = Standing> {
    prop_oneof![Just(Standing::Own), (0u64..9).prop_map(Standing::Known)]
}

/// Few different values, so that they collide, and odd ones.
fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let node = prop_oneof![Just("vm".to_owned()), "[vV][mM]?[.-]?(vm)?", any::<String>(), "[a-z]{60,70}"];
    let account = prop_oneof!["[ab]@[xy]", "a[.]?b?@x", any::<String>(), "[a-z]{63}@[a-z]{63}"];
    let network =
        prop_oneof!["group:[gG][.]?", "muc:g@[xy]", Just("social".to_owned()), "social:[gs]", any::<String>()];
    let one = (node, account, "[0-3]", network, standing()).prop_map(|(node, account, device, network, standing)| {
        Entry { node, account, device, network, addresses: Vec::new(), standing }
    });
    proptest::collection::vec(one, 0..40).prop_map(|mut all| {
        let mut seen = HashSet::new();
        all.retain(|e| seen.insert((e.account.clone(), e.device.clone(), e.network.clone())));
        all
    })
}

proptest! {
    #[test]
    fn names_are_valid_and_unique(all in entries()) {
        let made = names(&all);
        prop_assert_eq!(made.len(), all.len());
        for n in &made {
            let parts: Vec<&str> = n.split('.').collect();
            prop_assert!(n.len() <= 253 && (3..=4).contains(&parts.len()) && parts.last() == Some(&"ipop"), "{}", n);
            for p in parts {
                let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
                prop_assert!((1..=63).contains(&p.len()) && p.chars().all(fine), "{}", n);
                prop_assert!(p.starts_with(|c: char| c.is_ascii_alphanumeric()) && !p.ends_with('-'), "{}", n);
            }
        }
        prop_assert_eq!(made.iter().collect::<HashSet<_>>().len(), made.len());
    }

    #[test]
    fn names_do_not_depend_on_the_order(all in entries(), seed: u64) {
        let mut other = all.clone();
        // Any permutation will do.
        other.sort_by_key(|e| {
            use std::hash::{Hash, Hasher};
            let mut h = std::hash::DefaultHasher::new();
            (seed, &e.account, &e.device, &e.network).hash(&mut h);
            h.finish()
        });
        prop_assert_eq!(by_node(&all), by_node(&other));
    }

    #[test]
    fn who_comes_later_changes_nobodys_name(
        all in entries(), node in prop_oneof![Just("vm".to_owned()), "[vV]?[mM]?[.-]?(vm)?"], which: prop::sample::Index,
        account in prop_oneof!["[ab]@[xyz]", "[ab]-[xyz]@x"],
    ) {
        prop_assume!(!all.is_empty());
        let network = which.get(&all).network.clone();
        let new = Entry { node, account, device: "new".to_owned(), network, addresses: Vec::new(), standing: Standing::New };
        let before = by_node(&all);
        let mut more = all.clone();
        more.push(new);
        let after = by_node(&more);
        for (who, name) in before {
            prop_assert_eq!(after.get(&who), Some(&name));
        }
    }
}
