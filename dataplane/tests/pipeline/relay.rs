//! STUN and TURN beside the tunnel.

use crate::world::*;
use crate::{MSS, bulk, packets, udp};
use dataplane::stats::Drop;
use dataplane::{Path, SideDatagram};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

const CHANNEL: u16 = 0x4001;

fn server() -> SocketAddr {
    address(200)
}

fn stun() -> Vec<u8> {
    [&[1, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat()
}

#[test]
fn stun_and_channel_data_of_a_known_server_reach_the_side_queue() {
    let (_, mut b) = joined(OFFLOADS);
    b.shared.relays.store(Arc::new(vec![server()]));
    let data = channel_data(CHANNEL, b"hello");
    let nested = channel_data(CHANNEL, &channel_data(CHANNEL, b"no"));
    for (from, d) in [(address(7), stun()), (server(), data.clone()), (server(), nested.clone())] {
        b.receive(from, d);
    }
    b.run();
    let got: Vec<SideDatagram> = b.queues.side.try_iter().collect();
    let side = |from, bytes| SideDatagram { from, bytes };
    assert_eq!(got, [side(address(7), stun()), side(server(), data), side(server(), nested)]);
    b.assert_drops(&[]);
    b.stop();
}

#[test]
fn channel_data_of_strangers_or_with_a_wrong_length_is_counted() {
    let (_, mut b) = joined(OFFLOADS);
    b.shared.relays.store(Arc::new(vec![server()]));
    b.receive(address(7), channel_data(CHANNEL, b"hello"));
    let mut long = channel_data(CHANNEL, b"hello");
    long[3] = 6;
    b.receive(server(), long);
    b.run();
    b.assert_drops(&[(Drop::UnknownDatagram, 2)]);
    assert!(b.queues.side.is_empty());
    b.stop();
}

#[test]
fn a_full_side_queue_is_counted() {
    let (_, mut b) = joined(OFFLOADS);
    for _ in 0..dataplane::shared::SIDE_QUEUE + 5 {
        b.receive(address(7), stun());
    }
    b.run();
    b.assert_drops(&[(Drop::SideQueueFull, 5)]);
    b.stop();
}

/// Takes what `from` sent to the relay and gives it to `to`, as a server does that has bound both channels.
fn relayed(from: &mut Node, to: &mut Node, channel: u16) -> usize {
    let sent = from.sent();
    assert!(sent.iter().all(|(to, _)| *to == server()), "everything goes through the server");
    for (_, d) in &sent {
        assert_eq!(d[..2], CHANNEL.to_be_bytes());
        assert_eq!(usize::from(u16::from_be_bytes([d[2], d[3]])), d.len() - 4);
    }
    let count = sent.len();
    to.receive_all(server(), sent.into_iter().map(|(_, d)| channel_data(channel, &d[4..])));
    to.run();
    count
}

#[test]
fn a_relayed_path_carries_handshake_and_runs_in_both_directions() {
    let (mut a, mut b) = strangers(OFFLOADS);
    for node in [&a, &b] {
        node.shared.relays.store(Arc::new(vec![server()]));
    }
    // Node 1 sends through the relay, node 2 learns from what arrives where to answer.
    let to_b = a.tunnel.peer(&public(2)).expect("a peer");
    to_b.set_path(Path::Relay { server: server(), channel: CHANNEL });
    let reads: Vec<_> = (0..3).map(|n| bulk(n, 40 * MSS + 7)).collect();
    reads.iter().for_each(|r| a.read(r.clone()));
    a.run();
    for _ in 0..3 {
        relayed(&mut a, &mut b, CHANNEL);
        relayed(&mut b, &mut a, CHANNEL);
    }
    assert_eq!(packets(&b.written()), packets(&reads));
    let back = b.tunnel.peer(&public(1)).expect("a peer");
    assert_eq!(back.path(), Some(Path::Relay { server: server(), channel: CHANNEL }));

    let writes = a.counters().udp_writes.load(Relaxed);
    a.read(bulk(3, 40 * MSS));
    a.run();
    assert_eq!(a.counters().udp_writes.load(Relaxed) - writes, 1, "one run with a prefix before each datagram");
    assert_eq!(relayed(&mut a, &mut b, CHANNEL), 40);
    assert_eq!(packets(&b.written()), packets(&[bulk(3, 40 * MSS)]));
    // Another channel of the same server is another path.
    a.read(udp(1, 10));
    a.run();
    relayed(&mut a, &mut b, CHANNEL + 1);
    assert_eq!(back.path(), Some(Path::Relay { server: server(), channel: CHANNEL + 1 }));
    // And a direct datagram is one again.
    a.read(udp(2, 10));
    a.run();
    let direct: Vec<_> = a.sent().into_iter().map(|(_, d)| d[4..].to_vec()).collect();
    b.receive_all(address(1), direct);
    b.run();
    assert_eq!(back.path(), Some(Path::Direct(address(1))));
    a.assert_drops(&[]);
    b.assert_drops(&[]);
    a.stop();
    b.stop();
}
