//! Broadcast and multicast reach linked friends under their own terms.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipop_tests::cast::FIND;
use ipop_tests::internet::Gateway;
use ipop_tests::node::Members;
use ipop_tests::ns::Namespace;
use ipop_tests::process::wait_for;
use ipop_tests::scene::Share;

use crate::cast::{Cast, Xmpp, befriend, lease, options, reach, scene};

const PORT: u16 = 40_000;
const DISCOVERY: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);

/// A socket that hears what is sent to everybody.
fn ear(ns: &Namespace, own: Ipv4Addr) -> Result<UdpSocket> {
    ns.run(|| {
        let s = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
        s.join_multicast_v4(&DISCOVERY, &own).context("joining")?;
        s.set_read_timeout(Some(Duration::from_millis(200)))?;
        Ok(s)
    })
}

/// Sends to `to` until the ear hears it; gives who it seems to be from.
fn heard(from: &Namespace, own: Ipv4Addr, to: Ipv4Addr, ear: &UdpSocket, what: &[u8]) -> Result<SocketAddr> {
    let mouth = from.run(|| {
        let s = UdpSocket::bind((own, 0))?;
        s.set_broadcast(true)?;
        Ok(s)
    })?;
    let mut sender = None;
    wait_for(&format!("a datagram to {to}"), FIND, || {
        mouth.send_to(what, (to, PORT)).with_context(|| to.to_string())?;
        let mut buffer = [0; 100];
        loop {
            match ear.recv_from(&mut buffer) {
                Ok((n, who)) if &buffer[..n] == what => sender = Some(who),
                Ok(_) => continue,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(e) => return Err(e.into()),
            }
            return Ok(sender.is_some());
        }
    })?;
    sender.context("nobody")
}

#[test]
fn broadcast_and_multicast_reach_a_linked_friend_with_another_subnet_if_both_want_that() {
    scene(Share::Shared, Xmpp::Prosody, || {
        let mut cast = Cast::without_groups(Xmpp::Prosody, &[Gateway::Public; 2])?;
        let (mut a, mut b) = (options(0), options(1));
        a.network_lines = "multicast = true\n".into();
        b.network_lines = "multicast = true\n".into();
        b.members = Members::Friends("10.9.0.0/24".into());
        b.address = "10.9.0.5".parse().ok();
        cast.start(vec![a, b])?;
        befriend(&cast, 0, 1)?;
        reach(&cast, 0, 1)?;
        let own = [Ipv4Addr::new(172, 31, 0, 100), Ipv4Addr::new(10, 9, 0, 5)];
        let everybody = [Ipv4Addr::new(172, 31, 255, 255), Ipv4Addr::new(10, 9, 0, 255)];
        for (from, to) in [(0, 1), (1, 0)] {
            let ear = ear(cast.ns(to), own[to])?;
            let known: IpAddr = lease(&cast, to, from)?;
            for (target, what) in [(everybody[from], &b"broadcast"[..]), (DISCOVERY, b"multicast")] {
                cast.ns(from).ip(&format!("route replace {DISCOVERY}/32 dev {}", ipop_tests::node::INTERFACE))?;
                let who = heard(cast.ns(from), own[from], target, &ear, what)?;
                ensure!(who.ip() == known, "{target} of {from} came from {who}, which {to} calls {known}");
            }
        }
        cast.alive()
    });
}
