//! The internet that the group tests live in is what it claims to be: each gateway is probed from inside.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use ipop_tests::internet::probe::{Behaviour, Depends, probe, reaches};
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

/// Whether two hosts that know each other's mapping (by a server) can reach each other.
fn hole(server: &Server, a: &Site, b: &Site) -> Result<bool> {
    let meet = socket(&server.ns, SocketAddr::new(server.address.into(), 0))?;
    let at = meet.local_addr()?;
    meet.set_read_timeout(Some(std::time::Duration::from_secs(2)))?;
    let mut ends = Vec::new();
    for site in [a, b] {
        let s = socket(&site.hosts[0].ns, SocketAddr::from(([0, 0, 0, 0], 0)))?;
        s.send_to(b"?", at)?;
        let (_, mapped) = meet.recv_from(&mut [0; 16])?;
        ends.push((s, mapped));
    }
    let [(sa, ma), (sb, mb)] = &ends[..] else { unreachable!() };
    // The first one opens the own filter, the later ones come through the other's.
    reaches(sa, *mb, sb)?;
    let answered = reaches(sb, *ma, sa)?;
    let asked = reaches(sa, *mb, sb)?;
    Ok(asked && answered)
}

#[test]
fn holes_are_punched_where_the_table_says_so_and_nowhere_else() {
    // Knowing only the mapping towards the server, as two ends without ICE's peer-reflexive candidates do.
    let plain = |a: Gateway, b: Gateway| a.direct(b) && a != Gateway::Symmetric && b != Gateway::Symmetric;
    scene(|internet, server, _| {
        let both = |g: Gateway, n: usize| internet.site(&format!("s{n}"), g, 1);
        let left = Gateway::ALL.iter().enumerate().map(|(n, g)| both(*g, n)).collect::<Result<Vec<_>>>()?;
        let right = Gateway::ALL.iter().enumerate().map(|(n, g)| both(*g, n + 5)).collect::<Result<Vec<_>>>()?;
        for a in &left {
            for b in &right {
                let found = hole(server, a, b)?;
                ensure!(found == plain(a.kind, b.kind), "{:?} to {:?}: {found}", a.kind, b.kind);
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
