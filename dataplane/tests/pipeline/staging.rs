//! Packets that wait for a session.

use crate::world::*;
use crate::{MSS, bulk, packets, udp};
use dataplane::stats::Drop;
use std::time::Duration;

#[test]
fn packets_wait_for_the_handshake_and_leave_in_order() {
    let (mut a, mut b) = strangers(OFFLOADS);
    let reads: Vec<_> = (0..5).map(|n| bulk(n, 3 * MSS)).chain((0..5).map(|n| udp(n, 9))).collect();
    reads.iter().for_each(|r| a.read(r.clone()));
    a.run();
    a.assert_balanced(20);
    assert_eq!(a.keeper_sent.len(), 1, "one initiation for all of them");
    settle(&mut a, &mut b);
    assert_eq!(packets(&b.written()), packets(&reads));
    a.stop();
    b.stop();
}

#[test]
fn what_comes_after_the_session_does_not_overtake_what_waited() {
    let (mut a, mut b) = strangers(OFFLOADS);
    let reads: Vec<_> = (0..6).map(|n| bulk(n, 2 * MSS)).collect();
    reads[..3].iter().for_each(|r| a.read(r.clone()));
    a.run();
    carry(&mut a, &mut b);
    // The response arrives and the keeper makes the session; the shard reads TUN before its letter box.
    let response = b.sent();
    a.receive_all(address(2), response.into_iter().map(|(_, d)| d));
    a.turn();
    a.keep();
    reads[3..].iter().for_each(|r| a.read(r.clone()));
    a.run();
    let sent: Vec<_> = a.sent().into_iter().map(|(_, d)| d).collect();
    b.receive_all(address(1), sent);
    b.run();
    assert_eq!(packets(&b.written()), packets(&reads));
    a.stop();
}

#[test]
fn packets_wait_for_a_path_on_demand_and_whoever_finds_one_is_told_once() {
    let (mut a, mut b) = strangers(OFFLOADS);
    let (key, address_b) = (public(2), address(2));
    a.tunnel.remove_peer(&key).expect("a peer");
    let peer = a.tunnel.add_peer(key).expect("room");
    let mut routes = dataplane::table::Routes::new();
    routes.insert("10.0.0.2/32".parse().expect("a prefix"), peer.clone());
    a.shared.routes.store(std::sync::Arc::new(routes));
    peer.set_on_demand(true);
    let reads: Vec<_> = (0..3).map(|n| bulk(n, 2 * MSS)).collect();
    reads.iter().for_each(|r| a.read(r.clone()));
    a.run();
    assert!(a.sent().is_empty() && a.keeper_sent.is_empty() && a.written().is_empty());
    assert_eq!(a.queues.wanted.try_iter().collect::<Vec<_>>(), [key]);
    // A path was found: what waited leaves over it.
    peer.set_path(dataplane::Path::Direct(address_b));
    a.shared.request_handshake(&peer);
    settle(&mut a, &mut b);
    assert_eq!(packets(&b.written()), packets(&reads));
    a.assert_drops(&[]);
    // Nobody looks for paths any more: packets are refused.
    peer.set_on_demand(false);
    a.stop();
    b.stop();
}

#[test]
fn a_peer_has_room_for_128_reads() {
    let (mut a, _b) = strangers(OFFLOADS);
    for n in 0..150 {
        a.read(udp(n, 9));
    }
    a.read(bulk(0, 10 * MSS));
    a.run();
    a.assert_drops(&[(Drop::StagingFull, 32)]);
    a.assert_balanced(128);
    a.stop();
    a.assert_drops(&[(Drop::StagingFull, 32), (Drop::StagingExpired, 128)]);
}

#[test]
fn a_shard_has_room_for_4_mib() {
    let (mut a, _b) = strangers(OFFLOADS);
    for n in 0..80 {
        a.read(bulk(n, 64_000));
    }
    a.run();
    let segments = 64_000usize.div_ceil(MSS) as u64;
    let dropped = a.dropped(Drop::StagingFull);
    assert_eq!(dropped, 15 * segments, "65 super-packets of 64,062 bytes are 4 MiB");
    a.assert_balanced(65 * segments);
    a.stop();
}

#[test]
fn a_peer_that_does_not_answer_is_given_up_and_what_waits_for_it_is_dropped() {
    let (mut a, _b) = strangers(OFFLOADS);
    for n in 0..7 {
        a.read(udp(n, 9));
    }
    a.run();
    a.wait(Duration::from_secs(80));
    a.assert_balanced(7);
    a.wait(Duration::from_secs(20));
    assert_eq!(a.gave_up, 1);
    a.assert_drops(&[(Drop::StagingExpired, 7)]);
    a.assert_balanced(0);
    // It is tried again when there is something to send.
    a.sent();
    a.read(udp(8, 9));
    a.run();
    assert_eq!(a.sent().len(), 1);
}

#[test]
fn a_removed_peer_takes_what_waits_with_it() {
    let (mut a, _b) = strangers(OFFLOADS);
    a.read(bulk(0, 4 * MSS));
    a.run();
    let peer = a.tunnel.remove_peer(&public(2)).expect("a peer");
    a.shared.post_all(|| dataplane::shared::ToShard::Discard(peer.clone()));
    a.run();
    a.assert_drops(&[(Drop::StagingExpired, 4)]);
    a.assert_balanced(0);
}
