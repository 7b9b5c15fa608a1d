//! Packets for groups and for everybody.

use crate::testing::{Packet, super_packet};
use crate::world::*;
use crate::{packets, plain};
use dataplane::Translation;
use dataplane::stats::Drop;
use std::net::Ipv4Addr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

const MDNS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
/// Our subnet's directed broadcast; that of the others ends in 255 too, but is in 10.9.0.0/16.
const OURS: Ipv4Addr = Ipv4Addr::new(172, 31, 255, 255);
const THEIRS: Ipv4Addr = Ipv4Addr::new(10, 9, 255, 255);
/// The node that sends.
const HUB: u8 = 250;
/// What the others call themselves, and the hub.
const OTHERS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const HUB_LEASE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 9);

/// A UDP packet of the hub.
fn udp(to: Ipv4Addr) -> Packet {
    Packet::tcp4().udp().with(|p| (p.source, p.destination) = (OWN.into(), to.into()))
}

/// The same as the others get it.
fn got(to: Ipv4Addr) -> Packet {
    udp(to).with(|p| p.source = HUB_LEASE.into())
}

/// The hub with multicast on, and `n` others that it is linked with.
fn crowd(n: u8) -> (Node, Vec<Node>) {
    let mut hub = Node::new(HUB, OFFLOADS);
    hub.shared.set_multicast(Some(OURS));
    let others = (1..=n).map(|i| {
        let mut other = Node::new(i, OFFLOADS);
        let peer = hub.befriend(i, Translation { peer: OTHERS, broadcast: Some((THEIRS, OURS)), ..friend(i) });
        other.befriend(HUB, Translation { peer: OWN, lease: HUB_LEASE, own: OTHERS, broadcast: Some((OURS, THEIRS)) });
        hub.shared.request_handshake(&peer);
        settle(&mut hub, &mut other);
        other
    });
    let others = others.collect();
    (hub, others)
}

/// Gives what the hub sent to whom it is for; what each of them wrote to TUN.
fn spread(hub: &mut Node, others: &mut [Node]) -> Vec<Vec<Vec<u8>>> {
    let sent = hub.sent();
    let one = |other: &mut Node| {
        let to = other.address();
        other.receive_all(address(HUB), sent.iter().filter(|(a, _)| *a == to).map(|(_, d)| d.clone()));
        other.run();
        other.written()
    };
    others.iter_mut().map(one).collect()
}

#[test]
fn a_packet_for_a_group_or_for_everybody_goes_to_every_linked_peer() {
    let (mut hub, mut others) = crowd(4);
    for (to, arrives_at) in [(MDNS, MDNS), (Ipv4Addr::BROADCAST, Ipv4Addr::BROADCAST), (OURS, THEIRS)] {
        hub.read(plain(&udp(to)));
        hub.run();
        for written in spread(&mut hub, &mut others) {
            assert_eq!(packets(&written), packets(&[plain(&got(arrives_at))]), "{to}");
        }
    }
    assert_eq!(hub.counters().multicast_copies.load(Relaxed), 3 * 3);
    hub.assert_drops(&[]);
    hub.stop();
}

#[test]
fn it_waits_for_nobody_and_asks_for_no_path_and_no_handshake() {
    let (mut hub, mut others) = crowd(2);
    // A friend without a path, one with a path and no session, one whose session has ended, and a peer that is none.
    let wanted = hub.tunnel.add_peer(public(20)).expect("room");
    wanted.set_on_demand(true);
    wanted.set_translation(Some(friend(20)));
    hub.befriend(21, friend(21));
    let mut plain_peer = Node::new(23, OFFLOADS);
    plain_peer.knows(HUB, &["172.31.0.100/32"]);
    let peer = hub.knows(23, &["172.31.7.23/32"]);
    hub.shared.request_handshake(&peer);
    settle(&mut hub, &mut plain_peer);
    assert!(peer.current().is_some());
    hub.sent();
    let audience = hub.tunnel.peers().filter(|p| p.translation().is_some()).cloned().collect();
    hub.shared.audience.store(std::sync::Arc::new(audience));

    hub.read(plain(&udp(MDNS)));
    hub.run();
    assert_eq!(hub.sent().iter().map(|(to, _)| *to).collect::<Vec<_>>(), [address(1), address(2)]);
    assert!(hub.queues.wanted.is_empty() && hub.keeper_sent.is_empty());
    hub.assert_balanced(0);

    // All sessions are past their end.
    hub.now += Duration::from_secs(181);
    hub.read(plain(&udp(MDNS)));
    hub.turn();
    assert!(spread(&mut hub, &mut others).iter().all(Vec::is_empty));
    assert!(hub.queues.keeper.is_empty(), "nobody is asked for a handshake");
    hub.assert_drops(&[(Drop::MulticastNobody, 1)]);
    hub.stop();
}

#[test]
fn while_it_is_off_such_packets_have_no_route() {
    let (mut hub, _others) = crowd(2);
    hub.shared.set_multicast(None);
    for to in [MDNS, Ipv4Addr::BROADCAST, OURS] {
        hub.read(plain(&udp(to)));
    }
    hub.run();
    hub.assert_drops(&[(Drop::NoRoute, 3)]);
    hub.stop();
}

#[test]
fn super_packets_are_copied_segment_by_segment() {
    let (mut hub, mut others) = crowd(5);
    let read = |p: Packet| super_packet(&p.with(|p| p.payload = (0..40_000).map(|i| i as u8).collect()), 1000);
    hub.read(read(udp(MDNS)));
    hub.run();
    for written in spread(&mut hub, &mut others) {
        assert_eq!(packets(&written), packets(&[read(got(MDNS))]));
        assert_eq!(written.len(), 1, "one super-packet");
    }
    assert_eq!(hub.counters().multicast_copies.load(Relaxed), 4 * 40);
    hub.stop();
}

#[test]
fn beyond_the_rate_packets_are_dropped_once_each_and_unicast_is_not() {
    let (mut hub, mut others) = crowd(4);
    let read = || super_packet(&udp(MDNS).with(|p| p.payload = vec![7; 64_000]), 1000);
    for _ in 0..80 {
        hub.read(read());
    }
    hub.run();
    // A burst is 64 datagrams to 256 peers, or 64 such super-packets to four; then 5,000 copies a second.
    hub.assert_drops(&[(Drop::MulticastRate, 16 * 64)]);
    assert_eq!(packets(&spread(&mut hub, &mut others)[0]).len(), 64 * 64);
    hub.read(plain(&udp(lease(1))));
    hub.run();
    assert_eq!(spread(&mut hub, &mut others)[0].len(), 1);
    hub.now += Duration::from_secs(1);
    (0..2000).for_each(|_| hub.read(plain(&udp(MDNS))));
    hub.run();
    assert_eq!(hub.dropped(Drop::MulticastRate) - 16 * 64, 2000 - 5000 / 4);
    hub.stop();
}

#[test]
fn copies_that_find_the_socket_full_are_dropped_and_the_first_waits() {
    let (mut hub, mut others) = crowd(100);
    // The arena takes fewer runs than there are peers, so that the first are sent while the last are placed.
    hub.shard.driver().send_fault = Some(Box::new(|_| Some(libc::EAGAIN)));
    hub.read(plain(&udp(MDNS)));
    hub.run();
    let full = hub.dropped(Drop::SendBufferFull);
    assert!((30..50).contains(&full), "{full} copies dropped");
    // While it is full, the next one waits in the device or here, and none is copied.
    hub.read(plain(&udp(MDNS)));
    hub.turn();
    assert_eq!(hub.counters().multicast_copies.load(Relaxed), 99);
    hub.shard.driver().send_fault = None;
    hub.now += Duration::from_millis(10);
    hub.run();
    let written = spread(&mut hub, &mut others);
    assert_eq!(written.iter().map(|w| packets(w).len()).sum::<usize>() as u64, 200 - full);
    hub.assert_drops(&[(Drop::SendBufferFull, full)]);
    hub.stop();
}

#[test]
fn a_flood_for_nobody_is_held_off_too() {
    let mut hub = Node::new(HUB, OFFLOADS);
    hub.shared.set_multicast(Some(OURS));
    let friends = 2560u32;
    for n in 0..friends {
        let mut key = [7; 32];
        key[8..12].copy_from_slice(&n.to_be_bytes());
        hub.tunnel.add_peer(dataplane::tunnel::PublicKey(key)).expect("room").set_translation(Some(friend(1)));
    }
    hub.shared.audience.store(std::sync::Arc::new(hub.tunnel.peers().cloned().collect()));
    (0..3000).for_each(|_| hub.read(plain(&udp(MDNS))));
    hub.run();
    // Each costs a copy, and one for every 256 friends who are looked at.
    let looked = 64 * 256 / (1 + u64::from(friends) / 256);
    hub.assert_drops(&[(Drop::MulticastNobody, looked), (Drop::MulticastRate, 3000 - looked)]);
    hub.stop();
}
