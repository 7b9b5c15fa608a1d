//! Every kind of gateway against every other.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipop_tests::internet::Gateway;
use ipop_tests::process::wait_for;
use ipop_tests::scene::Share;

use crate::cast::{Cast, FIND, Xmpp, group_scene, wait_path};

/// Rounds of a measurement; its median counts.
const ROUNDS: usize = 5;

/// Two sites of every kind, so that every kind meets itself, too.
fn matrix(xmpp: Xmpp) {
    group_scene(Share::Shared, xmpp, || {
        let kinds = [Gateway::ALL, Gateway::ALL].concat();
        let mut cast = Cast::at_sites(xmpp, &kinds)?;
        cast.start_all()?;
        let (mut wrong, n) = (Vec::new(), Gateway::ALL.len());
        for from in 0..n {
            for to in n..2 * n {
                if let Err(e) = meet(&cast, from, to) {
                    wrong.push(format!("{} to {}: {e:#}", kinds[from].name(), kinds[to].name()));
                }
            }
        }
        ensure!(wrong.is_empty(), "{} of {} pairs:\n{}", wrong.len(), n * n, wrong.join("\n"));
        cast.alive()
    });
}

/// A pair meets on the path that is possible, and a direct one joins the two data ports.
fn meet(cast: &Cast, a: usize, b: usize) -> Result<()> {
    cast.reach(a, b)?;
    let direct = cast.sites[a].kind.direct(cast.sites[b].kind);
    for (from, to) in [(a, b), (b, a)] {
        let link = wait_path(cast, from, to, if direct { "direct" } else { "relayed" })?;
        ensure!(direct || link.why.contains("because"), "no reason is given for {link:?}");
        if direct {
            is_data_port(cast, link.address.as_deref(), to)?;
        }
    }
    Ok(())
}

/// Where datagrams to node `to` go is its own listen port, as its gateway maps it.
fn is_data_port(cast: &Cast, address: Option<&str>, to: usize) -> Result<()> {
    let address: SocketAddr = address.context("no address")?.parse()?;
    let (site, host) = cast.place(to);
    let listen = cast.nodes[to].network()?.listen_port;
    let seen = cast.sites[site].seen(host);
    ensure!(address.ip() == seen, "{address} is not at {seen}");
    let mut ports = cast.sites[site].mappings(host, listen)?;
    if ports.is_empty() {
        ports.push(listen);
    }
    ensure!(ports.contains(&address.port()), "{address} is not port {listen}, which is mapped to {ports:?}");
    Ok(())
}

#[test]
fn every_pair_of_gateways_meets_on_the_best_path_with_ejabberd() {
    matrix(Xmpp::Ejabberd);
}

#[test]
fn every_pair_of_gateways_meets_on_the_best_path_with_prosody_and_coturn() {
    matrix(Xmpp::ProsodyAndCoturn);
}

#[test]
fn two_nodes_behind_one_nat_meet_on_their_lan() {
    for kind in [Gateway::PortRestricted, Gateway::Symmetric, Gateway::ServerOnly] {
        group_scene(Share::Shared, Xmpp::ProsodyAndCoturn, || {
            let mut cast = Cast::on_a_lan_behind(Xmpp::ProsodyAndCoturn, kind, 2)?;
            cast.start_all()?;
            cast.reach(0, 1)?;
            let link = wait_path(&cast, 0, 1, "direct")?;
            let there: SocketAddr = link.address.as_deref().context("no address")?.parse()?;
            ensure!(there.ip() == cast.sites[0].hosts[1].address, "{kind:?}: {link:?}");
            Ok(())
        });
    }
}

/// The median over [`ROUNDS`] of the time from the start of the program to the first answered ping.
fn from_up_to_ping(xmpp: Xmpp, kinds: [Gateway; 2], path: &str, limit: Duration) {
    group_scene(Share::Alone, xmpp, || {
        let mut cast = Cast::at_sites(xmpp, &kinds)?;
        cast.start_all()?;
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            cast.nodes[0].leave()?;
            cast.nodes[0].start_again()?;
            cast.reach(0, 1)?;
            times.push(cast.nodes[0].started().elapsed());
            wait_path(&cast, 0, 1, path)?;
        }
        times.sort();
        eprintln!("{kinds:?}: {times:?}");
        ensure!(times[ROUNDS / 2] <= limit, "{path}: {times:?}");
        Ok(())
    });
}

#[test]
fn a_direct_ping_is_answered_two_seconds_after_the_start() {
    let kinds = [Gateway::PortRestricted, Gateway::PortRestricted];
    from_up_to_ping(Xmpp::ProsodyAndCoturn, kinds, "direct", Duration::from_secs(2));
}

#[test]
fn a_relayed_ping_is_answered_four_seconds_after_the_start() {
    let kinds = [Gateway::PortRestricted, Gateway::Symmetric];
    from_up_to_ping(Xmpp::ProsodyAndCoturn, kinds, "relayed", Duration::from_secs(4));
}

#[test]
fn so_it_is_over_ejabberds_relay_and_out_of_a_firewall_that_lets_only_the_servers_through() {
    from_up_to_ping(Xmpp::Ejabberd, [Gateway::Symmetric, Gateway::ServerOnly], "relayed", Duration::from_secs(4));
}

#[test]
fn a_pair_without_any_path_says_why() {
    group_scene(Share::Shared, Xmpp::ProsodyAndCoturn, || {
        let mut cast = Cast::at_sites(Xmpp::ProsodyAndCoturn, &[Gateway::PortRestricted, Gateway::Symmetric])?;
        // STUN only: the nodes are not told of a relay.
        let at = cast.server_address();
        let all = (0..2).map(|n| {
            let mut o = cast.options(n);
            o.ice_lines = format!("stun = [\"{at}:3478\"]\n");
            o
        });
        let all = all.collect();
        cast.start(all)?;
        cast.wait_known(1)?;
        ensure!(cast.reach(0, 1).is_err(), "there should be no path");
        wait_for("a reason", FIND, || {
            let link = cast.link(0, 1)?;
            // In our words, or in those of the peer, which gave up a moment before.
            let said = ["no path", "no pair of addresses worked"].iter().any(|w| link.why.contains(w));
            ensure!(link.path.is_none() && said, "{link:?}");
            Ok(true)
        })?;
        cast.alive()
    });
}
