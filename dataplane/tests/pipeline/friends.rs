//! Translated peers: two nodes that both call themselves 172.31.0.100.

use crate::testing::{Packet, super_packet};
use crate::world::*;
use crate::{MSS, Plain, packets, plain};
use dataplane::stats::Drop;
use std::net::Ipv4Addr;

/// A TCP packet with these addresses.
fn between(source: Ipv4Addr, destination: Ipv4Addr) -> Packet {
    Packet::tcp4().with(|p| (p.source, p.destination) = (source.into(), destination.into()))
}

/// Carries `sent` from `from` to `to` and asserts that `expected` is written, with all checksums right.
#[track_caller]
fn arrives(from: &mut Node, to: &mut Node, sent: &[Vec<u8>], expected: &[Vec<u8>]) -> Vec<Vec<u8>> {
    sent.iter().for_each(|r| from.read(r.clone()));
    from.run();
    carry(from, to);
    let written = to.written();
    assert_eq!(packets(&written), packets(expected));
    written
}

#[test]
fn nodes_of_clashing_subnets_reach_each_other_under_the_addresses_they_gave() {
    let (mut a, mut b) = friends(OFFLOADS);
    for udp in [false, true] {
        let p = |source, destination, n: usize| {
            let p = between(source, destination).with(|p| {
                p.seq += (n * 40 * MSS) as u32;
                p.payload = (0..40 * MSS).map(|i| (i + n) as u8).collect();
            });
            super_packet(&if udp { p.udp() } else { p }, MSS)
        };
        let all = |source, destination| (0..4).map(|n| p(source, destination, n)).collect::<Vec<_>>();
        let there = arrives(&mut a, &mut b, &all(OWN, lease(2)), &all(lease(1), OWN));
        assert!(there.len() <= 6, "{} writes for 4 super-packets", there.len());
        // And the answer, to the address that the packet came from.
        arrives(&mut b, &mut a, &all(OWN, lease(1)), &all(lease(2), OWN));
    }
    a.assert_drops(&[]);
    b.assert_drops(&[]);
    a.stop();
    b.stop();
}

/// RFC 1071 word by word.
fn sum(bytes: &[u8]) -> [u8; 2] {
    let mut s: u32 = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0))).sum();
    while s > 0xffff {
        s = (s & 0xffff) + (s >> 16);
    }
    (!s as u16).to_be_bytes()
}

/// "Port unreachable" in an IPv4 packet, about `quote`.
fn unreachable(source: Ipv4Addr, destination: Ipv4Addr, quote: &[u8]) -> Vec<u8> {
    let mut icmp = [&[3, 3, 0, 0, 0, 0, 0, 0], quote].concat();
    let s = sum(&icmp);
    icmp[2..4].copy_from_slice(&s);
    let len = (20 + icmp.len()) as u16;
    let mut ip = [&[0x45, 0xc0], &len.to_be_bytes()[..], &[0, 1, 0, 0, 64, 1, 0, 0]].concat();
    ip.extend(source.octets().into_iter().chain(destination.octets()));
    let s = sum(&ip);
    ip[10..12].copy_from_slice(&s);
    [&[0; 10], &ip[..], &icmp].concat()
}

#[test]
fn an_icmp_error_names_the_address_that_was_asked() {
    let (mut a, mut b) = friends(OFFLOADS);
    let asked = between(OWN, lease(2)).udp();
    a.read(plain(&asked));
    a.run();
    carry(&mut a, &mut b);
    let got = b.written().remove(0);
    b.read(unreachable(OWN, lease(1), &got[10..]));
    b.run();
    carry(&mut b, &mut a);
    let expected = unreachable(lease(2), OWN, &asked.bytes());
    assert_eq!(a.written().into_iter().map(Plain).collect::<Vec<_>>(), [Plain(expected)]);
    a.stop();
    b.stop();
}

#[test]
fn sources_that_are_not_the_peers_own_are_dropped_and_counted() {
    let (mut a, mut b) = friends(OFFLOADS);
    // A third party's address, our own lease for the peer, one that would be our own but for a bit, and nobody's.
    let spoofed = [lease(3), lease(1), Ipv4Addr::new(172, 31, 0, 101), Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST];
    for source in spoofed {
        a.read(plain(&between(source, lease(2))));
    }
    arrives(&mut a, &mut b, &[plain(&between(OWN, lease(2)))], &[plain(&between(lease(1), OWN))]);
    b.assert_drops(&[(Drop::Spoofed, spoofed.len() as u64)]);
    b.stop();
}

#[test]
fn ipv6_is_filtered_as_ever_and_not_translated() {
    let (mut a, mut b) = friends(OFFLOADS);
    let good = super_packet(&Packet::tcp6().with(|p| p.payload = vec![6; 20 * 1300]), 1300);
    a.read(plain(&Packet::tcp6().with(|p| p.source = [0xfd00, 0, 0, 0, 0, 0, 0, 3].into())));
    arrives(&mut a, &mut b, std::slice::from_ref(&good), std::slice::from_ref(&good));
    b.assert_drops(&[(Drop::WrongSource, 1)]);
    b.stop();
}

#[test]
fn multicast_while_it_is_off_and_what_cannot_be_translated_are_counted() {
    let (mut a, mut b) = friends(OFFLOADS);
    // Whatever the destination, node 1 is made to send it to node 2.
    a.knows(2, &["0.0.0.0/0"]);
    a.read(plain(&between(OWN, Ipv4Addr::new(224, 0, 0, 251)).udp()));
    a.read(plain(&between(OWN, Ipv4Addr::BROADCAST).udp()));
    a.read(plain(&between(OWN, lease(2)).with(|p| p.ip_options = vec![131, 3, 4, 0])));
    let mut cut = between(OWN, lease(2)).bytes();
    cut.truncate(30);
    cut[3] = 30;
    a.read([&[0; 10], &cut[..]].concat());
    a.run();
    carry(&mut a, &mut b);
    assert!(b.written().is_empty());
    b.assert_drops(&[(Drop::MulticastOff, 2), (Drop::Untranslatable, 2)]);
    b.stop();
}

#[test]
fn a_lease_that_is_another_peers_does_not_pass() {
    let (mut a, mut b) = friends(OFFLOADS);
    b.knows(3, &[&format!("{}/32", lease(1))]);
    a.read(plain(&between(OWN, lease(2))));
    a.run();
    carry(&mut a, &mut b);
    b.assert_drops(&[(Drop::WrongSource, 1)]);
    b.stop();
}

#[test]
fn a_translation_that_changes_holds_from_the_next_batch_on() {
    let (mut a, mut b) = friends(OFFLOADS);
    let sent = [plain(&between(OWN, lease(2)))];
    arrives(&mut a, &mut b, &sent, &[plain(&between(lease(1), OWN))]);
    b.befriend(1, dataplane::Translation { lease: lease(9), ..friend(1) });
    arrives(&mut a, &mut b, &sent, &[plain(&between(lease(9), OWN))]);
    b.tunnel.peer(&public(1)).expect("a peer").set_translation(None);
    a.read(sent[0].clone());
    a.run();
    carry(&mut a, &mut b);
    b.assert_drops(&[(Drop::WrongSource, 1)]);
    b.stop();
}

#[test]
fn a_message_that_grows_harms_no_neighbour_in_the_same_buffer() {
    let (mut a, mut b) = friends(OFFLOADS);
    let long = dataplane::Translation {
        peer: Ipv4Addr::new(1, 1, 1, 1),
        lease: Ipv4Addr::new(172, 231, 107, 111),
        ..friend(1)
    };
    b.befriend(1, long);
    for pad in 0..32 {
        let p = |source: Ipv4Addr, to, host: Ipv4Addr| {
            let text = format!("HTTP/1.1 200 OK\r\nX: {}\r\nLOCATION: http://{host}:49152/\r\n\r\n", "x".repeat(pad));
            plain(&between(source, to).udp().with(|p| {
                p.ports[0] = 1900;
                p.payload = text.into_bytes();
            }))
        };
        let sent = vec![p(long.peer, lease(2), long.peer); 9];
        arrives(&mut a, &mut b, &sent, &vec![p(long.lease, OWN, long.lease); 9]);
    }
    b.assert_drops(&[]);
    b.stop();
}
