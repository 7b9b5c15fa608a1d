//! Subnets behind a node, and what can change while a node runs.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use control::admin::status::PeerStatus;
use ipop_tests::internet::Gateway;
use ipop_tests::node::{INTERFACE, first_ping};
use ipop_tests::ns::{Namespace, link};
use ipop_tests::process::{self, run, wait_for};
use ipop_tests::scene::Share;
use nix::sys::signal::Signal;

use crate::cast::{Cast, FIND, SILENCE, Xmpp, group_scene};

/// An attempt that must fail is given so long.
const TRY: Duration = Duration::from_secs(3);
const SUBNET: &str = "10.99.0.0/24";
/// A subnet that is also a LAN of somebody else.
const ALSO: &str = "10.98.0.0/24";
const BEHIND: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 2));

/// A machine behind node `n`, which forwards for it.
fn behind(cast: &Cast, n: usize) -> Result<Namespace> {
    let machine = Namespace::new("behind")?;
    link((cast.ns(n), "inside", &["10.99.0.1/24"]), (&machine, "eth0", &["10.99.0.2/24"]))?;
    machine.ip("route add default via 10.99.0.1")?;
    run(cast.ns(n).command("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]))?;
    Ok(machine)
}

/// What node `from` says of node `to`, as soon as it has these routes of it.
fn wait_routes(cast: &Cast, from: usize, to: usize, routes: &[&str]) -> Result<PeerStatus> {
    wait_for(&format!("node {from} to have routes {routes:?} to {to}"), FIND, || {
        let peer = cast.nodes[from].peer(&cast.nodes[to])?;
        ensure!(peer.routes == routes, "{peer:?}");
        Ok(true)
    })?;
    cast.nodes[from].peer(&cast.nodes[to])
}

/// Whether the kernel of node `n` routes a subnet into the overlay.
fn routed(cast: &Cast, n: usize, subnet: &str) -> Result<bool> {
    Ok(!cast.ns(n).ip(&format!("route show {subnet} dev {INTERFACE}"))?.trim().is_empty())
}

#[test]
fn a_subnet_behind_a_member_is_reached_by_who_accepts_routes_and_no_other() {
    group_scene(Share::Shared, Xmpp::ProsodyAndCoturn, || {
        let gateways = [Gateway::PortRestricted, Gateway::Public, Gateway::Public];
        let mut cast = Cast::at_sites(Xmpp::ProsodyAndCoturn, &gateways)?;
        let _machine = behind(&cast, 1)?;
        // Node 0 has a LAN of the same addresses as one that node 1 offers.
        cast.ns(0).ip("addr add 10.98.0.7/24 dev eth0")?;
        let (mut a, mut b, mut c) = (cast.options(0), cast.options(1), cast.options(2));
        a.network_lines = "accept_routes = true\n".into();
        b.network_lines = format!("routes = [\"{SUBNET}\", \"{ALSO}\"]\n");
        c.network_lines = "accept_routes = false\n".into();
        cast.start(vec![a, b, c])?;
        cast.wait_known(2)?;
        ensure!(cast.nodes[1].network()?.routes == [SUBNET, ALSO], "{:?}", cast.nodes[1].network()?);
        wait_routes(&cast, 0, 1, &[SUBNET])?;
        first_ping(cast.ns(0), BEHIND, FIND).with_context(|| format!("{:?}", cast.link(0, 1)))?;
        let network = cast.nodes[0].network()?;
        let refused = |w: &&String| w.contains(ALSO) && w.contains("not taken") && w.contains("overlaps");
        ensure!(network.warnings.iter().find(refused).is_some(), "{:?}", network.warnings);
        ensure!(!routed(&cast, 0, ALSO)?, "its own LAN is routed into the overlay");
        ensure!(routed(&cast, 0, SUBNET)?);

        // Who does not accept has no route, and does not send there even if somebody else makes one.
        wait_routes(&cast, 2, 1, &[])?;
        cast.reach(2, 1)?;
        ensure!(!routed(&cast, 2, SUBNET)?);
        ensure!(first_ping(cast.ns(2), BEHIND, TRY).is_err(), "reached without accepting");
        cast.ns(2).ip(&format!("route add {SUBNET} dev {INTERFACE}"))?;
        ensure!(first_ping(cast.ns(2), BEHIND, TRY).is_err(), "reached without accepting");

        // A LAN that comes later takes precedence as well; when it goes, the subnet is back.
        cast.ns(0).ip("addr add 10.99.0.130/25 dev eth0")?;
        wait_routes(&cast, 0, 1, &[])?;
        ensure!(!routed(&cast, 0, SUBNET)?);
        cast.ns(0).ip("addr del 10.99.0.130/25 dev eth0")?;
        wait_routes(&cast, 0, 1, &[SUBNET])?;
        first_ping(cast.ns(0), BEHIND, FIND).with_context(|| format!("{:?}", cast.link(0, 1)))?;

        // A node that leaves takes its routes along.
        cast.nodes[0].leave()?;
        ensure!(cast.ns(0).ip(&format!("route show {SUBNET}"))?.trim().is_empty(), "a route was left behind");
        cast.nodes[1].alive()
    });
}

/// Changes the configuration of node `n` and has it read again; gives what the node logged about it.
fn reconfigure(cast: &Cast, n: usize, change: impl FnOnce(String) -> String) -> Result<String> {
    let node = &cast.nodes[n];
    let path = node.dir().join("node.toml");
    let before = node.log().len();
    std::fs::write(&path, change(std::fs::read_to_string(&path)?))?;
    process::signal(node.pid(), Signal::SIGHUP)?;
    let news = || node.log().get(before..).unwrap_or_default().to_owned();
    wait_for("an answer to SIGHUP", FIND, || Ok(news().contains("SIGHUP: ") && news().ends_with('\n')))?;
    Ok(news())
}

#[test]
fn sighup_takes_new_routes_and_refuses_what_it_cannot_change() {
    group_scene(Share::Alone, Xmpp::ProsodyAndCoturn, || {
        let mut cast = Cast::at_sites(Xmpp::ProsodyAndCoturn, &[Gateway::Public, Gateway::PortRestricted])?;
        let _machine = behind(&cast, 1)?;
        let (mut a, mut b) = (cast.options(0), cast.options(1));
        a.network_lines = "accept_routes = true\n".into();
        b.network_lines = "routes = []\n".into();
        cast.start(vec![a, b])?;
        cast.wait_known(1)?;
        let heart = cast.heartbeat(0, 1)?;
        let start = Instant::now();
        wait_routes(&cast, 0, 1, &[])?;
        ensure!(first_ping(cast.ns(0), BEHIND, TRY).is_err(), "reached before it was offered");

        let offered = format!("routes = [\"{SUBNET}\"]");
        let said = reconfigure(&cast, 1, |t| t.replace("routes = []", &offered))?;
        ensure!(said.contains("was read again"), "{said}");
        wait_routes(&cast, 0, 1, &[SUBNET])?;
        first_ping(cast.ns(0), BEHIND, FIND)?;

        // All or nothing: the routes beside a changed address are not taken either.
        let before = (cast.nodes[1].network()?.addresses, cast.nodes[1].network()?.routes);
        let said = reconfigure(&cast, 1, |t| {
            t.replace("172.16.10.3/24", "172.16.10.33/24").replace(&offered, "routes = [\"10.97.0.0/24\"]")
        })?;
        ensure!(said.contains("nothing was changed") && said.contains("address"), "{said}");
        let after = (cast.nodes[1].network()?.addresses, cast.nodes[1].network()?.routes);
        ensure!(before == after, "{before:?} became {after:?}");
        wait_routes(&cast, 0, 1, &[SUBNET])?;

        let good = std::fs::read_to_string(cast.nodes[1].dir().join("node.toml"))?;
        for broken in ["[[network\n", "", "[xmpp]\njid = 7\n"] {
            let said = reconfigure(&cast, 1, |_| broken.into())?;
            ensure!(said.contains("is not taken"), "{said}");
        }
        std::fs::remove_file(cast.nodes[1].dir().join("node.toml"))?;
        process::signal(cast.nodes[1].pid(), Signal::SIGHUP)?;
        first_ping(cast.ns(0), BEHIND, FIND)?;

        std::fs::write(cast.nodes[1].dir().join("node.toml"), good)?;
        let said = reconfigure(&cast, 1, |t| {
            t.replace("172.16.10.33/24", "172.16.10.3/24").replace("routes = [\"10.97.0.0/24\"]", "routes = []")
        })?;
        ensure!(said.contains("was read again"), "{said}");
        wait_routes(&cast, 0, 1, &[])?;
        ensure!(!routed(&cast, 0, SUBNET)?, "the route stayed");

        // The other side of it: who accepts may change, too.
        reconfigure(&cast, 1, |t| t.replace("routes = []", &offered))?;
        wait_routes(&cast, 0, 1, &[SUBNET])?;
        reconfigure(&cast, 0, |t| t.replace("accept_routes = true", "accept_routes = false"))?;
        wait_routes(&cast, 0, 1, &[])?;
        ensure!(!routed(&cast, 0, SUBNET)?, "the route stayed");
        ensure!(first_ping(cast.ns(0), BEHIND, TRY).is_err(), "reached without accepting");

        let silence = heart.longest_silence(start)?;
        ensure!(silence < SILENCE, "the link fell silent for {silence:?}");
        cast.alive()
    });
}
