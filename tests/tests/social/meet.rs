//! Friends with clashing subnets and the same own address reach each other.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use ipop_tests::cast::FIND;
use ipop_tests::internet::Gateway;
use ipop_tests::node::{INTERFACE, Node, first_ping};
use ipop_tests::process::{self, output, run, wait_for};
use ipop_tests::scene::Share;
use nix::sys::signal::Signal;

use crate::cast::{Cast, OWN, SUBNET, Xmpp, befriend, carries, friend, friends, lease, list, options, reach, scene};

#[test]
fn friends_who_call_themselves_the_same_carry_every_byte_both_ways() {
    scene(Share::Shared, Xmpp::Prosody, || {
        let mut cast = Cast::without_groups(Xmpp::Prosody, &[Gateway::Public, Gateway::PortRestricted])?;
        cast.start(vec![options(0), options(1)])?;
        befriend(&cast, 0, 1)?;
        for (a, b) in [(0, 1), (1, 0)] {
            let lease = lease(&cast, a, b)?;
            ensure!(lease.to_string() != OWN, "its own address");
            reach(&cast, a, b)?;
            carries(&cast, a, b)?;
            let peer = cast.nodes[a].peer(&cast.nodes[b])?;
            ensure!(peer.calls_itself.as_deref() == Some(OWN) && peer.pin == "pinned", "{peer:?}");
        }
        let network = cast.nodes[0].network()?;
        ensure!((network.kind.as_str(), network.network.as_str()) == ("social", "social:social"), "{network:?}");
        ensure!(network.subnet.as_deref() == Some(SUBNET) && network.warnings.is_empty(), "{network:?}");
        let bob = friend(&cast.nodes[0], &cast.nodes[1].jid)?;
        ensure!(bob.online && bob.nodes.len() == 1 && bob.networks == ["social:social"], "{bob:?}");
        ensure!(bob.nodes[0].address == Some(lease(&cast, 0, 1)?.to_string()), "{bob:?}");
        let (_, text) = friends(&cast.nodes[0], &["list"])?;
        ensure!(text.contains(&cast.nodes[1].jid) && text.contains("friend"), "{text}");
        let text = run(&mut cast.nodes[0].status_command()?)?;
        ensure!(text.contains("social:social on ipop0") && text.contains(SUBNET), "{text}");
        cast.alive()
    });
}

#[test]
fn of_three_users_only_friends_know_each_other_and_two_friends_may_call_themselves_the_same() {
    scene(Share::Shared, Xmpp::Prosody, || {
        let mut cast = Cast::without_groups(Xmpp::Prosody, &[Gateway::Public; 3])?;
        // The third's subnet lies within the others', and holds their addresses.
        let mut third = options(2);
        third.members = ipop_tests::node::Members::Friends("172.31.0.0/24".into());
        cast.start(vec![options(0), options(1), third])?;
        befriend(&cast, 0, 1)?;
        befriend(&cast, 2, 0)?;
        ensure!(lease(&cast, 0, 1)? != lease(&cast, 0, 2)?, "one address for two");
        for (a, b) in [(0, 1), (1, 0), (0, 2), (2, 0)] {
            reach(&cast, a, b)?;
            carries(&cast, a, b)?;
        }
        for (a, b) in [(1, 2), (2, 1)] {
            ensure!(cast.nodes[a].peer(&cast.nodes[b]).is_err(), "{a} knows {b}, who is no friend");
            ensure!(list(&cast.nodes[a])?.len() == 1, "{a} knows more than one friend");
        }
        cast.alive()
    });
}

#[test]
fn who_is_asked_by_the_one_that_it_asked_is_a_friend_without_a_question() {
    scene(Share::Shared, Xmpp::Prosody, || {
        let mut cast = Cast::without_groups(Xmpp::Prosody, &[Gateway::Public; 2])?;
        cast.start(vec![options(0), options(1)])?;
        wait_for("both to be online", FIND, || {
            Ok(cast.nodes[0].status()?.xmpp.online && cast.nodes[1].status()?.xmpp.online)
        })?;
        for (from, to) in [(0, 1), (1, 0)] {
            wait_for("the wish to be taken", FIND, || {
                let (done, said) = friends(&cast.nodes[from], &["add", &cast.nodes[to].jid])?;
                ensure!(done, "{said}");
                Ok(true)
            })?;
        }
        crate::cast::wait_friends(&cast, 0, 1)?;
        reach(&cast, 0, 1)?;
        ensure!(cast.nodes.iter().all(|n| n.status().is_ok_and(|s| s.requests.is_empty())), "a question is left");
        cast.alive()
    });
}

#[test]
fn two_devices_of_one_account_meet_without_being_friends() {
    scene(Share::Shared, Xmpp::Prosody, || {
        let mut cast = Cast::without_groups(Xmpp::Prosody, &[Gateway::Public; 2])?;
        let mut second = options(0);
        second.name = "second".into();
        cast.start(vec![options(0), second])?;
        wait_for("each other's address", FIND, || Ok(lease(&cast, 0, 1).is_ok() && lease(&cast, 1, 0).is_ok()))?;
        reach(&cast, 0, 1)?;
        carries(&cast, 1, 0)?;
        cast.alive()
    });
}

#[test]
fn friends_have_stable_ipv6_addresses_as_well() {
    scene(Share::Shared, Xmpp::Prosody, || {
        let mut cast = Cast::without_groups(Xmpp::Prosody, &[Gateway::Public; 2])?;
        cast.start(vec![options(0), options(1)])?;
        befriend(&cast, 0, 1)?;
        let all = cast.nodes[1].network()?.addresses;
        let six = all.iter().filter_map(|a| a.split('/').next()?.parse::<IpAddr>().ok()).find(IpAddr::is_ipv6);
        first_ping(cast.ns(0), six.context("no IPv6 address")?, FIND)?;
        cast.alive()
    });
}

#[test]
fn a_subnet_that_hides_what_the_machine_reaches_is_refused_with_the_route() {
    scene(Share::Shared, Xmpp::Prosody, || {
        let cast = Cast::without_groups(Xmpp::Prosody, &[Gateway::Public])?;
        cast.ns(0).ip("route add 172.31.5.0/24 dev eth0")?;
        let said = match Node::start(cast.ns(0), cast.xmpp.as_ref(), &cast.ca(), options(0)) {
            Ok(_) => anyhow::bail!("it started"),
            Err(e) => format!("{e:#}"),
        };
        ensure!(said.contains("172.31.0.0/16 overlaps 172.31.5.0/24") && said.contains("eth0"), "{said}");
        ensure!(!cast.ns(0).has_link(INTERFACE), "it left its interface behind");
        // `check` says so as well, before; and without the route nothing is in the way.
        cast.ns(0).ip("route del 172.31.5.0/24 dev eth0")?;
        let node = Node::start(cast.ns(0), cast.xmpp.as_ref(), &cast.ca(), options(0))?;
        cast.ns(0).ip("route add 172.31.5.0/24 dev eth0")?;
        // It would look within a minute.
        process::signal(node.pid(), Signal::SIGHUP)?;
        wait_for("the new route to be noticed", FIND, || {
            Ok(node.network()?.warnings.iter().any(|w| w.contains("172.31.5.0/24")))
        })?;
        let check = checked(&cast, &node)?;
        ensure!(check.contains("overlaps 172.31.5.0/24") && check.contains("note"), "{check}");
        Ok(())
    });
}

/// What `ipop-fast check` says on the node's machine.
fn checked(cast: &Cast, node: &Node) -> Result<String> {
    let binary = ipop_tests::daemon::Implementation::under_test().binary()?;
    let mut check = cast.ns(0).command(binary);
    let out = output(check.args(["check", "-c"]).arg(node.dir().join("node.toml")))?;
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
