//! A group and friends at once, several of each.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use control::admin::status::NetworkStatus;
use ipop_tests::cast::{FIND, GROUP};
use ipop_tests::internet::Gateway;
use ipop_tests::node::{Node, first_ping};
use ipop_tests::process::wait_for;
use ipop_tests::scene::Share;
use ipop_tests::traffic::{Seen, tcp_transfer};

use crate::cast::{Cast, Xmpp, scene};

const GROUP_LINES: &str = "\n[[network]]\nkind = \"social\"\ninterface = \"soc0\"\nsubnet = \"172.31.0.0/16\"\n\
    address = \"172.31.0.100\"\n[[network]]\nkind = \"social\"\nname = \"work\"\ninterface = \"soc1\"\n\
    subnet = \"10.77.0.0/24\"\n";

fn network(node: &Node, name: &str) -> Result<NetworkStatus> {
    let all = node.status()?.networks;
    all.into_iter().find(|n| n.network == name).with_context(|| format!("no network {name}"))
}

/// What `from` calls `to` in a network.
fn address(from: &Node, to: &Node, name: &str) -> Result<IpAddr> {
    let n = network(from, name)?;
    let peer = n.peers.iter().find(|p| p.name == to.options.name).with_context(|| format!("{name}: {:?}", n.peers))?;
    ensure!(peer.online, "{peer:?}");
    let four = peer.addresses.iter().filter_map(|a| a.parse().ok()).find(IpAddr::is_ipv4);
    four.with_context(|| format!("{peer:?}"))
}

fn own(node: &Node, name: &str) -> Result<IpAddr> {
    let addresses = network(node, name)?.addresses;
    let four = addresses.iter().filter_map(|a| a.split('/').next()?.parse().ok()).find(IpAddr::is_ipv4);
    four.with_context(|| format!("{name} has {addresses:?}"))
}

#[test]
fn a_node_is_in_a_group_and_in_two_networks_of_friends_at_once() {
    scene(Share::Shared, Xmpp::Prosody, || {
        // Whoever is in a shared roster group is a contact of all others in it: a friend.
        let mut cast = Cast::at_sites(Xmpp::Prosody, &[Gateway::Public; 2])?;
        let all = (0..2).map(|n| {
            let mut o = cast.options(n);
            o.network_lines = GROUP_LINES.into();
            o
        });
        let all = all.collect();
        cast.start(all)?;
        let names = [format!("group:{GROUP}"), "social:social".to_owned(), "social:work".to_owned()];
        for name in &names {
            for (a, b) in [(0, 1), (1, 0)] {
                let (from, to) = (&cast.nodes[a], &cast.nodes[b]);
                wait_for(&format!("{name}, from {a} to {b}"), FIND, || address(from, to, name).map(|_| true))?;
                let seen = Seen { there: own(to, name)?, here: address(from, to, name)? };
                first_ping(cast.ns(a), seen.here, FIND).with_context(|| name.clone())?;
                tcp_transfer(cast.ns(a), cast.ns(b), seen, 2_000_000, FIND).with_context(|| name.clone())?;
            }
        }
        let keys: std::collections::BTreeSet<String> =
            cast.nodes[0].status()?.networks.into_iter().map(|n| n.public_key).collect();
        ensure!(keys.len() == 3, "a key for each network");
        cast.alive()
    });
}
