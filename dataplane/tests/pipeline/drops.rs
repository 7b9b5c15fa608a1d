//! Input that is refused, each under its own reason.

use crate::testing::Packet;
use crate::world::*;
use crate::{bulk, packets, plain, udp};
use dataplane::Path;
use dataplane::stats::Drop;
use dataplane::tunnel::data_header;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Datagrams of node 1 to node 2, one for each read.
fn datagrams(a: &mut Node, reads: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    reads.into_iter().for_each(|r| a.read(r));
    a.run();
    a.sent().into_iter().map(|(_, d)| d).collect()
}

#[test]
fn replayed_datagrams_are_refused_once_seen_in_the_same_or_another_batch() {
    let (mut a, mut b) = joined(OFFLOADS);
    let sent = datagrams(&mut a, [udp(1, 10), udp(2, 10)]);
    for d in [0, 1, 0, 0] {
        b.receive(address(1), sent[d].clone());
    }
    b.run();
    b.receive(address(1), sent[1].clone());
    b.run();
    assert_eq!(packets(&b.written()), packets(&[udp(1, 10), udp(2, 10)]));
    b.assert_drops(&[(Drop::Replayed, 3)]);
    b.stop();
}

#[test]
fn a_datagram_behind_the_window_is_refused() {
    let (mut a, mut b) = joined(OFFLOADS);
    let old = datagrams(&mut a, [udp(1, 10)]);
    a.tunnel.peer(&public(2)).and_then(|p| p.current()).expect("a session").reserve(9000);
    let new = datagrams(&mut a, [udp(2, 10)]);
    b.receive_all(address(1), new.into_iter().chain(old));
    b.run();
    assert_eq!(packets(&b.written()), packets(&[udp(2, 10)]));
    b.assert_drops(&[(Drop::Replayed, 1)]);
    b.stop();
}

#[test]
fn forged_and_truncated_datagrams_do_not_harm_their_neighbours() {
    let (mut a, mut b) = joined(OFFLOADS);
    let mut sent = datagrams(&mut a, (0..6).map(|n| udp(n, 300)));
    sent[1][40] ^= 1;
    let last = sent[2].len() - 1;
    sent[2][last] ^= 0x80;
    // Another counter than the one that it was sealed with.
    sent[3][8] ^= 0x40;
    sent[4].truncate(100);
    b.receive_all(address(1), sent);
    b.run();
    assert_eq!(packets(&b.written()), packets(&[udp(0, 300), udp(5, 300)]));
    b.assert_drops(&[(Drop::Forged, 4)]);
    // What was forged does not count as received: the true ones may still come.
    b.stop();
}

#[test]
fn what_the_kernel_cut_off_is_counted_as_truncated() {
    let (mut a, mut b) = joined(OFFLOADS);
    let sent = datagrams(&mut a, (0..3).map(|n| udp(n, 300)));
    b.receive_all(address(1), sent);
    b.shard.driver().arrivals[0].truncated = true;
    b.run();
    b.assert_drops(&[(Drop::Truncated, 3)]);
    b.stop();
}

#[test]
fn unknown_datagrams_and_receivers_are_counted() {
    let (mut a, mut b) = joined(OFFLOADS);
    let mut sent = datagrams(&mut a, [udp(0, 10)]);
    sent[0][4] ^= 1;
    for d in [vec![], vec![4], vec![0; 40], vec![4, 0, 0, 0, 1, 2, 3], vec![1, 0, 0, 0], vec![9; 148]] {
        b.receive(address(1), d);
    }
    b.receive(address(1), sent.remove(0));
    b.receive(address(7), [&data_header(77, 0)[..], &[0; 16]].concat());
    b.run();
    b.assert_drops(&[(Drop::UnknownDatagram, 6), (Drop::UnknownReceiver, 2)]);
    b.stop();
}

#[test]
fn handshakes_without_our_mac_are_dropped_and_those_with_it_reach_the_keeper() {
    let (mut a, mut b) = strangers(OFFLOADS);
    a.read(udp(0, 10));
    a.run();
    let initiation = a.sent().remove(0).1;
    let mut bad = initiation.clone();
    bad[120] ^= 1;
    b.receive(address(1), bad);
    b.receive(address(1), [&[2, 0, 0, 0], &[7; 88][..]].concat());
    b.run();
    b.assert_drops(&[(Drop::BadMac, 2)]);
    b.receive(address(1), initiation.clone());
    b.run();
    assert_eq!(b.sent().len(), 1, "a response");
    b.receive(address(1), initiation);
    b.run();
    b.assert_drops(&[(Drop::BadMac, 2), (Drop::HandshakeRefused, 1)]);
    assert_eq!(b.counters().handshakes_in.load(Relaxed), 2);
    b.stop();
}

#[test]
fn a_full_keeper_queue_is_counted() {
    let (mut a, mut b) = strangers(OFFLOADS);
    a.read(udp(0, 10));
    a.run();
    let initiation = a.sent().remove(0).1;
    let many = dataplane::shared::KEEPER_QUEUE + 10;
    for _ in 0..many {
        b.receive(address(1), initiation.clone());
    }
    while !b.shard.driver().arrivals.is_empty() {
        b.turn();
    }
    b.assert_drops(&[(Drop::HandshakeQueueFull, 10)]);
    b.assert_balanced(0);
}

#[test]
fn a_packet_from_an_address_that_is_not_the_peers_is_refused() {
    let (mut a, mut b) = joined(OFFLOADS);
    // A prefix of node 1, less one address in it that is node 3's: longest match decides.
    b.knows(1, &["10.9.0.0/16", "fd09::/32"]);
    b.knows(3, &["10.9.0.5/32", "fd09::5/128"]);
    let from = |source: &str, v6: bool| {
        let p = if v6 { Packet::tcp6() } else { Packet::tcp4() };
        plain(&p.with(|p| p.source = source.parse().expect("an address")))
    };
    let good = [from("10.9.0.4", false), from("10.9.0.6", false), from("fd09::4", true)];
    let bad = [from("10.9.0.5", false), from("fd09::5", true), from("10.8.0.1", false), from("::1", true)];
    let sent = datagrams(&mut a, good.iter().chain(&bad).cloned());
    b.receive_all(address(1), sent);
    b.run();
    assert_eq!(packets(&b.written()), packets(&good));
    b.assert_drops(&[(Drop::WrongSource, 4)]);
    b.stop();
}

#[test]
fn authentic_bytes_that_are_no_packet_are_refused() {
    let (a, mut b) = joined(OFFLOADS);
    let session = a.tunnel.peer(&public(2)).and_then(|p| p.current()).expect("a session");
    let good = Packet::tcp4().bytes();
    let mut long = good.clone();
    long[2] = 0x7f;
    for text in [vec![0; 16], vec![0x45; 19], vec![0x60; 32], long, vec![0xff; 64]] {
        let counter = session.reserve(1).expect("a counter");
        let mut d = [&data_header(session.remote_index, counter)[..], &text, &[0; 16]].concat();
        dataplane::crypto::seal(&mut [dataplane::crypto::Job::new(session.send_key(), counter, &mut d[16..])]);
        b.receive(address(1), d);
    }
    b.run();
    assert!(b.written().is_empty());
    b.assert_drops(&[(Drop::InnerMalformed, 5)]);
    b.stop();
}

#[test]
fn an_expired_session_neither_sends_nor_receives() {
    let (mut a, mut b) = joined(OFFLOADS);
    let late = datagrams(&mut a, [udp(0, 10), udp(1, 10)]);
    // Time passes while both machines are suspended: no timer was served.
    a.now += Duration::from_secs(181);
    b.now = a.now;
    b.receive_all(address(1), late);
    b.turn();
    b.assert_drops(&[(Drop::SessionExpired, 2)]);
    a.read(udp(2, 10));
    a.turn();
    assert!(a.sent().is_empty(), "it waits for a new session");
    a.assert_balanced(1);
    settle(&mut a, &mut b);
    assert_eq!(packets(&b.written()), packets(&[udp(2, 10)]));
    a.stop();
    b.stop();
}

#[test]
fn reads_without_route_or_path_or_sense_are_counted_by_segment() {
    let (mut a, _b) = joined(OFFLOADS);
    let peer = a.knows(4, &["10.0.4.0/24"]);
    a.read(plain(&Packet::tcp4().with(|p| p.destination = [10, 0, 5, 1].into())));
    a.read(vec![0; 10]);
    a.read(vec![0; 3]);
    a.read([&[0; 10][..], &[0x45; 12]].concat());
    a.run();
    a.assert_drops(&[(Drop::NoRoute, 1), (Drop::Malformed, 3)]);
    let told = a.written();
    assert_eq!(told.len(), 1, "the sender is told of the packet without a route, in the name of its destination");
    assert_eq!((&told[0][10 + 12..10 + 16], &told[0][10 + 20..10 + 22]), (&[10, 0, 5, 1][..], &[3, 1][..]));
    assert_eq!(dataplane::Stats::sum(a.shared.counters.iter().map(|c| &**c)).get("unreachables_out"), 1);
    // A session that is used up.
    let session = a.tunnel.peer(&public(2)).and_then(|p| p.current()).expect("a session");
    session.reserve(u64::MAX - (1 << 13) - 10).expect("counters");
    a.read(bulk(0, 30_000));
    a.run();
    a.assert_drops(&[(Drop::NoRoute, 1), (Drop::Malformed, 3), (Drop::CounterExhausted, 22)]);
    drop(peer);
    let unreachable = a.tunnel.add_peer(public(5)).expect("room");
    let mut routes = dataplane::table::Routes::new();
    routes.insert("10.0.0.2/32".parse().expect("a prefix"), unreachable);
    a.shared.routes.store(std::sync::Arc::new(routes));
    a.read(bulk(0, 30_000));
    a.run();
    assert_eq!(a.dropped(Drop::NoPath), 22);
    a.stop();
}

#[test]
fn the_path_follows_authentic_datagrams_only() {
    let (mut a, mut b) = joined(OFFLOADS);
    let back = b.tunnel.peer(&public(1)).expect("a peer");
    let sent = datagrams(&mut a, (0..3).map(|n| udp(n, 10)));
    let mut forged = sent[0].clone();
    forged[20] ^= 1;
    b.receive(address(66), forged);
    b.run();
    assert_eq!(back.path(), Some(Path::Direct(address(1))));
    b.receive(address(77), sent[1].clone());
    b.run();
    assert_eq!(back.path(), Some(Path::Direct(address(77))));
    // A replay from elsewhere changes nothing.
    b.receive(address(88), sent[1].clone());
    b.run();
    assert_eq!(back.path(), Some(Path::Direct(address(77))));
    b.stop();
}
