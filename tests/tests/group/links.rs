//! What a link carries, and when it is there.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use control::admin::status::LinkStatus;
use ipop_tests::internet::Gateway;
use ipop_tests::process::wait_for;
use ipop_tests::scene::Share;
use ipop_tests::traffic::{tcp_transfer, udp_echo};

use crate::cast::{Cast, FIND, Xmpp, group_scene, wait_path};

const TRANSFER: Duration = Duration::from_secs(60);
const DIRECT_AGAIN: Duration = Duration::from_secs(75);

fn carries(cast: &Cast, from: usize, to: usize) -> Result<()> {
    let address = cast.nodes[to].address()?;
    tcp_transfer(cast.ns(from), cast.ns(to), address, 20_000_000, TRANSFER)?;
    udp_echo(cast.ns(from), cast.ns(to), address, [0, 1, 100, 1_000, 1_200])
}

/// The first answer may be there before the node has looked.
fn wait_up(cast: &Cast, from: usize, to: usize) -> Result<()> {
    wait_for("the link to be up", FIND, || {
        let link = cast.link(from, to)?;
        ensure!(link.state == "up", "{link:?}");
        Ok(true)
    })
}

#[test]
fn direct_and_relayed_links_carry_every_byte_both_ways() {
    group_scene(Share::Shared, Xmpp::Ejabberd, || {
        let gateways = [Gateway::PortRestricted, Gateway::Public, Gateway::Symmetric];
        let mut cast = Cast::at_sites(Xmpp::Ejabberd, &gateways)?;
        cast.start_all()?;
        for (a, b, path) in [(0, 1, "direct"), (1, 2, "direct"), (0, 2, "relayed")] {
            cast.reach(a, b)?;
            wait_path(&cast, a, b, path)?;
            carries(&cast, a, b).with_context(|| format!("{a} to {b}, {path}"))?;
            carries(&cast, b, a).with_context(|| format!("{b} to {a}, {path}"))?;
        }
        cast.alive()
    });
}

#[test]
fn every_node_also_has_a_stable_ipv6_address_that_answers() {
    group_scene(Share::Shared, Xmpp::ProsodyAndCoturn, || {
        let mut cast = Cast::at_sites(Xmpp::ProsodyAndCoturn, &[Gateway::PortRestricted, Gateway::Public])?;
        cast.start_all()?;
        let six = |cast: &Cast| -> Result<IpAddr> {
            let all = cast.nodes[1].network()?.addresses;
            let found = all.iter().filter_map(|a| a.split('/').next()?.parse::<IpAddr>().ok()).find(IpAddr::is_ipv6);
            found.with_context(|| format!("none among {all:?}"))
        };
        let address = six(&cast)?;
        ipop_tests::node::first_ping(cast.ns(0), address, FIND)?;
        cast.nodes[1].leave()?;
        cast.nodes[1].start_again()?;
        ensure!(six(&cast)? == address, "it changed from {address}");
        cast.alive()
    });
}

#[test]
fn nodes_with_nothing_but_ipv6_between_them_meet_directly() {
    group_scene(Share::Shared, Xmpp::Prosody, || {
        let mut cast = Cast::on_ipv6(2)?;
        cast.start_all()?;
        cast.reach(0, 1)?;
        let link = wait_path(&cast, 0, 1, "direct")?;
        let theirs = cast.nodes[1].network()?;
        let address: std::net::SocketAddr = link.address.as_deref().context("no address")?.parse()?;
        let hosts = &theirs.host_addresses;
        ensure!(hosts.len() == 1 && hosts[0].starts_with("2001:db8:3:"), "{hosts:?}");
        ensure!(address.ip().to_string() == hosts[0] && address.port() == theirs.listen_port, "{link:?} to {hosts:?}");
        carries(&cast, 0, 1)?;
        carries(&cast, 1, 0)?;
        cast.alive()
    });
}

#[test]
fn on_demand_links_are_not_made_before_a_packet_and_proactive_ones_are() {
    group_scene(Share::Shared, Xmpp::ProsodyAndCoturn, || {
        let mut cast = Cast::at_sites(Xmpp::ProsodyAndCoturn, &[Gateway::Public; 3])?;
        let (a, b, c) = (cast.options(0), cast.options(1), cast.options(2).proactive());
        cast.start(vec![a, b, c])?;
        cast.wait_known(2)?;
        wait_for("the proactive node's links", FIND, || {
            let links: Vec<LinkStatus> = [0, 1].map(|n| cast.link(2, n)).into_iter().collect::<Result<_>>()?;
            ensure!(links.iter().all(|l| l.state == "up"), "{links:?}");
            Ok(true)
        })?;
        let idle = cast.link(0, 1)?;
        ensure!(idle.state == "idle", "nobody asked for it: {idle:?}");
        cast.reach(0, 1)?;
        wait_up(&cast, 0, 1)?;
        Ok(())
    });
}

#[test]
fn an_on_demand_link_is_closed_when_idle_and_opens_again() {
    group_scene(Share::Shared, Xmpp::ProsodyAndCoturn, || {
        let mut cast = Cast::at_sites(Xmpp::ProsodyAndCoturn, &[Gateway::Public; 2])?;
        let all = (0..2).map(|n| {
            let mut o = cast.options(n);
            o.network_lines = "idle_timeout = \"10s\"\n".into();
            o
        });
        let all = all.collect();
        cast.start(all)?;
        cast.wait_known(1)?;
        cast.reach(0, 1)?;
        wait_up(&cast, 0, 1)?;
        wait_for("the link to be closed", Duration::from_secs(25), || Ok(cast.link(0, 1)?.state == "idle"))?;
        cast.reach(1, 0)?;
        cast.alive()
    });
}

#[test]
fn a_packet_to_an_address_without_a_member_is_answered_with_unreachable() {
    group_scene(Share::Shared, Xmpp::ProsodyAndCoturn, || {
        let mut cast = Cast::at_sites(Xmpp::ProsodyAndCoturn, &[Gateway::Public; 2])?;
        cast.start_all()?;
        let mut ping = cast.ns(0).command("ping");
        let out = ipop_tests::process::output(ping.args(["-n", "-c2", "-W2", "172.16.10.99"]))?;
        let text = String::from_utf8_lossy(&out.stdout);
        ensure!(text.to_lowercase().contains("unreachable"), "ping says {text}");
        Ok(())
    });
}

#[test]
fn a_relayed_link_becomes_direct_by_itself_when_the_way_is_free() {
    group_scene(Share::Shared, Xmpp::ProsodyAndCoturn, || {
        let mut cast = Cast::at_sites(Xmpp::ProsodyAndCoturn, &[Gateway::PortRestricted, Gateway::Symmetric])?;
        cast.start_all()?;
        let heart = cast.heartbeat(0, 1)?;
        let link = wait_path(&cast, 0, 1, "relayed")?;
        ensure!(link.why.contains("relayed over") && link.why.contains("because"), "{link:?}");
        cast.sites[1].replace_gateway(Gateway::PortRestricted)?;
        let opened = Instant::now();
        // Direct again is tried after 30 s, give or take a quarter, by one side; by the other after 45.
        wait_for("a direct link", DIRECT_AGAIN, || {
            let link = cast.link(0, 1)?;
            ensure!(link.path.as_deref() == Some("direct"), "{link:?}");
            Ok(true)
        })?;
        let found = Instant::now();
        heart.wait_after(found, FIND)?;
        eprintln!("direct {:.1} s after the way was free", (found - opened).as_secs_f64());
        cast.alive()
    });
}

#[test]
fn the_views_tell_what_a_link_carries() {
    group_scene(Share::Shared, Xmpp::ProsodyAndCoturn, || {
        let mut cast = Cast::at_sites(Xmpp::ProsodyAndCoturn, &[Gateway::PortRestricted, Gateway::Public])?;
        cast.start_all()?;
        cast.reach(0, 1)?;
        let address = cast.nodes[1].address()?;
        tcp_transfer(cast.ns(0), cast.ns(1), address, 20_000_000, TRANSFER)?;
        let link = cast.link(0, 1)?;
        let network = cast.nodes[1].network()?;
        let theirs = cast.sites[1].seen(0);
        ensure!(link.address == Some(format!("{theirs}:{}", network.listen_port)), "{link:?} to port {network:?}");
        ensure!(link.tx_bytes >= 20_000_000 && link.tx_bps > 0.0, "{link:?}");
        ensure!(
            link.last_handshake_s.is_some_and(|s| s < 30) && link.setup_ms.is_some_and(|ms| ms < 15_000.0),
            "{link:?}"
        );
        ensure!(network.traffic.get("tun_packets_out").is_some_and(|n| *n > 10_000), "{:?}", network.traffic);
        let peer = cast.nodes[0].peer(&cast.nodes[1])?;
        ensure!(peer.pin == "pinned" && peer.public_key == network.public_key, "{peer:?}");
        // A quiet path is asked for a sign of life, and that is where the round trip comes from.
        wait_for("a round trip time", Duration::from_secs(25), || {
            let ends = [cast.link(0, 1)?, cast.link(1, 0)?];
            ensure!(ends.iter().any(|l| l.rtt_ms.is_some_and(|ms| ms > 0.0 && ms < 500.0)), "{ends:?}");
            Ok(true)
        })?;
        cast.alive()
    });
}
