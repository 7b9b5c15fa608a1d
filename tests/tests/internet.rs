//! The internet that the group tests live in is what it claims to be: each gateway is probed from inside.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use ipop_tests::internet::probe::{Behaviour, Depends, arrives, probe, reaches};
use ipop_tests::internet::{Gateway, Internet, Server, Site};
use ipop_tests::process::output;
use ipop_tests::require::Need;
use ipop_tests::scene::{Share, play};
use ipop_tests::traffic::socket;

fn scene(body: impl FnOnce(&Internet, &Server, [Ipv4Addr; 2]) -> Result<()>) {
    let needs =
        [Need::Root, Need::Program("ip"), Need::Program("nft"), Need::Program("conntrack"), Need::Program("ping")];
    play(Share::Shared, &needs, || {
        let internet = Internet::new()?;
        let server = internet.server("server")?;
        let addresses = [server.address, server.add_address(210)?];
        body(&internet, &server, addresses)
    });
}

fn behaves(gateway: Gateway, mapping: Depends, filtering: Depends) {
    scene(|internet, server, addresses| {
        let site = internet.site("site", gateway, 2)?;
        for host in 0..site.hosts.len() {
            let found = probe(&site.hosts[host].ns, &server.ns, addresses)?;
            let want =
                Behaviour { mapped: SocketAddr::new(site.seen(host).into(), found.mapped.port()), mapping, filtering };
            ensure!(found == want, "host {host}: {found:?}, not {want:?}");
        }
        Ok(())
    });
}

#[test]
fn a_public_site_has_no_nat_and_no_filter() {
    behaves(Gateway::Public, Depends::OnNothing, Depends::OnNothing);
}

#[test]
fn an_endpoint_independent_nat_maps_and_filters_independently_of_the_endpoint() {
    behaves(Gateway::EndpointIndependent, Depends::OnNothing, Depends::OnNothing);
}

#[test]
fn a_port_restricted_nat_maps_independently_and_filters_by_address_and_port() {
    behaves(Gateway::PortRestricted, Depends::OnNothing, Depends::OnAddressAndPort);
}

#[test]
fn a_symmetric_nat_maps_and_filters_by_address_and_port() {
    behaves(Gateway::Symmetric, Depends::OnAddressAndPort, Depends::OnAddressAndPort);
}

fn pings(site: &Site, host: usize, to: Ipv4Addr) -> bool {
    let mut ping = site.hosts[host].ns.command("ping");
    output(ping.args(["-n", "-q", "-c1", "-W1", &to.to_string()])).is_ok_and(|o| o.status.success())
}

#[test]
fn a_firewalled_site_reaches_the_servers_and_its_own_lan_and_nobody_else() {
    scene(|internet, server, addresses| {
        let (shut, open) = (internet.site("shut", Gateway::ServerOnly, 2)?, internet.site("open", Gateway::Public, 1)?);
        ensure!(addresses.iter().all(|a| pings(&shut, 0, *a)), "a server is out of reach");
        ensure!(pings(&shut, 0, shut.hosts[1].address), "the LAN is out of reach");
        ensure!(pings(&open, 0, server.address), "the open site is cut off, too");
        ensure!(!pings(&shut, 0, open.hosts[0].address), "the firewall lets pings out");
        ensure!(!pings(&open, 0, shut.hosts[0].address), "the firewall lets pings in");
        Ok(())
    });
}

/// Whether two hosts that know each other's mapping towards a server find a way, as ICE does it: each sends, again and
/// again, to where the other was last heard from.
fn hole(server: &Server, a: &Site, b: &Site) -> Result<bool> {
    let meet = socket(&server.ns, SocketAddr::new(server.address.into(), 0))?;
    let at = meet.local_addr()?;
    meet.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mapped = |site: &Site| -> Result<(UdpSocket, SocketAddr)> {
        let s = socket(&site.hosts[0].ns, SocketAddr::from(([0, 0, 0, 0], 0)))?;
        s.send_to(b"?", at)?;
        let (_, seen) = meet.recv_from(&mut [0; 16])?;
        Ok((s, seen))
    };
    let ((sa, mut to_a), (sb, mut to_b)) = (mapped(a)?, mapped(b)?);
    let (mut there, mut back) = (false, false);
    for _ in 0..2 {
        if let Some(source) = arrives(&sa, to_b, &sb)? {
            (there, to_a) = (true, source);
        }
        if let Some(source) = arrives(&sb, to_a, &sa)? {
            (back, to_b) = (true, source);
        }
    }
    Ok(there && back)
}

#[test]
fn holes_are_punched_where_the_table_of_direct_paths_says_so_and_nowhere_else() {
    scene(|internet, server, _| {
        let n = Gateway::ALL.len();
        let site = |(i, g): (usize, Gateway)| internet.site(&format!("s{i}"), g, 1);
        let sites = Gateway::ALL.into_iter().chain(Gateway::ALL).enumerate().map(site).collect::<Result<Vec<_>>>()?;
        for a in &sites[..n] {
            for b in &sites[n..] {
                let found = hole(server, a, b)?;
                ensure!(found == a.kind.direct(b.kind), "{:?} to {:?}: {found}", a.kind, b.kind);
            }
        }
        Ok(())
    });
}

#[test]
fn a_rebooted_nat_gives_out_another_port() {
    scene(|internet, server, [address, _]| {
        let mut site = internet.site("site", Gateway::PortRestricted, 1)?;
        let meet = socket(&server.ns, SocketAddr::new(address.into(), 0))?;
        let inside = socket(&site.hosts[0].ns, SocketAddr::from(([0, 0, 0, 0], 0)))?;
        let seen = || -> Result<SocketAddr> {
            inside.send_to(b"?", meet.local_addr()?)?;
            Ok(meet.recv_from(&mut [0; 16])?.1)
        };
        let (first, again) = (seen()?, seen()?);
        site.reboot()?;
        let after = seen()?;
        ensure!(first == again && first.ip() == after.ip(), "{first}, {again}, {after}");
        ensure!(first.port() != after.port(), "the mapping {first} outlived the reboot");
        ensure!(!reaches(&meet, first, &inside)?, "the old mapping still leads inside");
        Ok(())
    });
}

#[test]
fn cables_are_pulled_and_plugged_in_again_and_hosts_move() {
    scene(|internet, server, _| {
        for gateway in [Gateway::Public, Gateway::PortRestricted] {
            let mut site = internet.site("site", gateway, 2)?;
            let answered = |site: &Site, host| pings(site, host, server.address);
            ensure!(answered(&site, 0), "not reachable to begin with");
            for connected in [false, true] {
                site.set_connected(connected)?;
                ensure!(answered(&site, 0) == connected, "uplink: {connected}");
                ensure!(pings(&site, 0, site.hosts[1].address), "the LAN goes on");
            }
            for connected in [false, true] {
                site.set_host_connected(0, connected)?;
                ensure!(answered(&site, 0) == connected && answered(&site, 1), "host: {connected}");
            }
            for connected in [false, true] {
                server.set_connected(connected)?;
                ensure!(answered(&site, 0) == connected, "server: {connected}");
            }
            let before = site.hosts[0].address;
            let now = site.move_host(0)?;
            ensure!(now != before && answered(&site, 0), "moved from {before} to {now}");
            ensure!(!pings(&site, 1, before), "{before} still answers");
        }
        Ok(())
    });
}
