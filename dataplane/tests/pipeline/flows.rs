//! Traffic that arrives.

use crate::testing::{Packet, super_packet};
use crate::world::*;
use crate::{MSS, bulk, packets, plain, udp};
use dataplane::crypto::Cipher;
use dataplane::shard::TunFormat;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Sends `reads` from node 1 to node 2 and returns what node 2 wrote; nothing may be dropped.
#[track_caller]
fn through(reads: &[Vec<u8>]) -> Vec<Vec<u8>> {
    through_by(reads, Cipher::ChaCha20Poly1305)
}

#[track_caller]
fn through_by(reads: &[Vec<u8>], cipher: Cipher) -> Vec<Vec<u8>> {
    let (mut a, mut b) = joined_by(OFFLOADS, cipher);
    for r in reads {
        a.read(r.clone());
    }
    a.run();
    carry(&mut a, &mut b);
    a.assert_drops(&[]);
    b.assert_drops(&[]);
    a.stop();
    b.stop();
    b.written()
}

#[test]
fn tcp_super_packets_arrive_as_super_packets_with_every_byte() {
    let reads: Vec<_> = (0..20).map(|n| bulk(n, 45 * MSS + 100)).collect();
    let written = through(&reads);
    assert_eq!(packets(&written), packets(&reads));
    assert!(written.len() <= 25, "{} writes for 20 super-packets", written.len());
}

#[test]
fn what_is_sealed_by_either_cipher_arrives_the_same() {
    let mut reads: Vec<_> = (0..20).map(|n| bulk(n, 45 * MSS + 100)).collect();
    reads.extend((0..60).map(|n| udp(n, n * 20)));
    let [chacha, aes] = Cipher::ALL.map(|c| through_by(&reads, c));
    assert_eq!(packets(&aes), packets(&reads));
    assert_eq!(chacha, aes);
}

#[test]
fn tcp_over_ipv6_arrives() {
    let reads: Vec<_> = (0..4)
        .map(|n| {
            let p = Packet::tcp6().with(|p| {
                p.seq += 30_000 * n;
                p.payload = vec![n as u8; 30_000];
            });
            super_packet(&p, MSS - 20)
        })
        .collect();
    let written = through(&reads);
    assert_eq!(packets(&written), packets(&reads));
    assert!(written.len() <= 6, "{} writes", written.len());
}

#[test]
fn udp_datagrams_and_udp_super_packets_arrive() {
    let mut reads: Vec<_> = (0..60).map(|n| udp(n, n * 20)).collect();
    reads.push(super_packet(&Packet::tcp4().udp().with(|p| p.payload = vec![3; 20_000]), 1200));
    reads.push(super_packet(&Packet::tcp6().udp().with(|p| p.payload = vec![4; 9000]), 1000));
    assert_eq!(packets(&through(&reads)).len(), packets(&reads).len());
    for r in reads {
        assert_eq!(packets(&through(std::slice::from_ref(&r))), packets(&[r]));
    }
}

#[test]
fn pure_acks_of_one_flow_stay_apart_and_in_order() {
    let reads: Vec<_> = (0..50)
        .map(|n| {
            plain(&Packet::tcp4().with(|p| {
                p.payload.clear();
                p.ack += n * 1448;
                p.id += n as u16;
            }))
        })
        .collect();
    let written = through(&reads);
    assert_eq!(packets(&written), packets(&reads));
}

#[test]
fn a_device_without_offloads_gets_plain_packets() {
    let tun = TunFormat { vnet: false, tso: false, uso: false };
    let (mut a, mut b) = joined(tun);
    let all: Vec<_> = (0..200).map(|n| Packet::tcp4().after(n, 100).bytes()).collect();
    for p in &all {
        a.read(p.clone());
    }
    a.run();
    carry(&mut a, &mut b);
    assert_eq!(b.written(), all);
    a.stop();
    b.stop();
}

#[test]
fn text_is_padded_to_16_but_not_beyond_the_mtu() {
    let (mut a, mut b) = joined(OFFLOADS);
    for (payload, text) in [(0, 32), (4, 32), (5, 48), (1372, 1408), (1381, 1420), (1392, 1420)] {
        a.read(udp(0, payload));
        a.run();
        let sent = a.sent();
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].1.len(), 16 + text + 16, "{payload} bytes of UDP payload");
        b.receive(address(1), sent[0].1.clone());
    }
    // The interface's MTU may shrink under a packet on its way: it is sent as it is.
    a.read(udp(0, 1472));
    a.run();
    assert_eq!(a.sent()[0].1.len(), 16 + 1500 + 16);
    b.run();
    let lens: Vec<_> = b.written().iter().map(|w| w.len() - 10).collect();
    assert_eq!(lens, [28, 32, 33, 1400, 1409, 1420], "padding does not reach TUN");
}

#[test]
fn equal_datagrams_leave_in_runs() {
    let (mut a, _b) = joined(OFFLOADS);
    let before = a.counters().udp_writes.load(Relaxed);
    a.read(bulk(0, 40 * MSS));
    a.run();
    assert_eq!(a.sent().len(), 40);
    assert_eq!(a.counters().udp_writes.load(Relaxed) - before, 1);
    a.shared.udp_gso.store(false, Relaxed);
    a.read(bulk(1, 40 * MSS));
    a.run();
    assert_eq!(a.sent().len(), 40);
    assert_eq!(a.counters().udp_writes.load(Relaxed) - before, 41, "segmentation offload is off");
}

#[test]
fn a_batch_that_arrives_shuffled_leaves_in_order() {
    let (mut a, mut b) = joined(OFFLOADS);
    let reads: Vec<_> = (0..3).map(|n| bulk(n, 20 * MSS)).collect();
    for r in &reads {
        a.read(r.clone());
    }
    a.run();
    let mut sent = a.sent();
    Seeded(5).shuffle(&mut sent);
    for (_, d) in sent {
        b.receive(address(1), d);
    }
    b.run();
    let written = b.written();
    assert_eq!(packets(&written), packets(&reads));
    assert!(written.len() <= 4, "put together all the same: {} writes", written.len());
    b.stop();
}

/// Datagrams of two peers alternate, so that no two neighbours belong to one session.
#[test]
fn alternating_sessions_are_put_in_order_too() {
    let (mut b, mut nodes) = (Node::new(9, OFFLOADS), [Node::new(1, OFFLOADS), Node::new(2, OFFLOADS)]);
    let mut sent = Vec::new();
    let mut reads = Vec::new();
    for (n, node) in (1u8..).zip(&mut nodes) {
        b.knows(n, &[&format!("10.0.0.{n}/32")]);
        node.knows(9, &["10.0.0.9/32"]);
        let flow: Vec<_> = (0..8usize)
            .map(|i| {
                plain(&Packet::tcp4().after(i, 500).with(|p| {
                    p.source = [10, 0, 0, n].into();
                    p.destination = [10, 0, 0, 9].into();
                    p.payload = vec![i as u8; 500];
                }))
            })
            .collect();
        flow.iter().for_each(|p| node.read(p.clone()));
        settle(node, &mut b);
        // Those made the handshake; now the same packets in a session.
        b.written();
        flow.iter().for_each(|p| node.read(p.clone()));
        node.run();
        sent.push(node.sent());
        reads.push(flow);
    }
    // Each flow's datagrams in pairs that changed places, and the flows in turns.
    for i in 0..8 {
        for (n, s) in (1u8..).zip(&sent) {
            b.receive(address(n), s[i ^ 1].1.clone());
        }
    }
    b.run();
    let written = packets(&b.written());
    for (n, flow) in (1u8..).zip(&reads) {
        let of_flow: Vec<_> = written.iter().filter(|p| p.0[12..16] == [10, 0, 0, n]).cloned().collect();
        assert_eq!(of_flow, packets(flow), "flow of node {n}");
    }
    b.stop();
}

#[test]
fn keepalives_are_counted_and_go_nowhere() {
    let (mut a, mut b) = joined(OFFLOADS);
    let before = b.counters().keepalives_in.load(Relaxed);
    let peer = a.tunnel.peer(&public(2)).expect("a peer");
    a.tunnel.set_persistent_keepalive(a.now, &peer.public_key, 25);
    for _ in 0..4 {
        a.wait(Duration::from_secs(25));
        b.wait(Duration::from_secs(25));
        carry(&mut a, &mut b);
    }
    let got = b.counters().keepalives_in.load(Relaxed) - before;
    assert!((3..=5).contains(&got), "{got} keepalives in 100 s");
    assert!(b.written().is_empty());
    b.assert_drops(&[]);
    b.stop();
}

#[test]
fn traffic_goes_on_over_a_renewed_session() {
    let (mut a, mut b) = joined(OFFLOADS);
    let first = a.tunnel.peer(&public(2)).and_then(|p| p.current()).expect("a session").local_index;
    for n in 0..60 {
        a.wait(Duration::from_secs(10));
        b.wait(Duration::from_secs(10));
        a.read(udp(n, 100));
        settle(&mut a, &mut b);
        assert_eq!(packets(&b.written()), packets(&[udp(n, 100)]), "after {n} times 10 s");
    }
    let last = a.tunnel.peer(&public(2)).and_then(|p| p.current()).expect("a session").local_index;
    assert_ne!(first, last, "ten minutes need several sessions");
    a.assert_drops(&[]);
    b.assert_drops(&[]);
}
