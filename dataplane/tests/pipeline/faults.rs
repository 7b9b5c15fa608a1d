//! What the kernel may say to a send or a write: afterwards every packet is somewhere or counted.

use crate::testing::{Packet, super_packet};
use crate::world::*;
use crate::{MSS, bulk, packets, plain, udp};
use dataplane::io::memory::Fault;
use dataplane::stats::Drop;
use proptest::prelude::*;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Fails with `errno` the calls whose number counted from now is in `which`.
fn fail(errno: i32, which: std::ops::Range<u64>) -> Option<Fault> {
    let mut n = 0;
    Some(Box::new(move |_| {
        n += 1;
        which.contains(&(n - 1)).then_some(errno)
    }))
}

/// Sends three super-packets of 20 segments through a socket with this fault; what arrives at the other end.
fn through(fault: Option<Fault>) -> (Node, Node, Vec<Vec<u8>>) {
    let (mut a, b) = joined(OFFLOADS);
    a.shard.driver().send_fault = fault;
    let reads: Vec<_> = (0..3).map(|n| bulk(n, 20 * MSS)).collect();
    reads.iter().for_each(|r| a.read(r.clone()));
    a.run();
    (a, b, reads)
}

#[test]
fn a_socket_that_is_full_for_a_moment_loses_nothing() {
    for from in 0..3 {
        let (mut a, mut b, reads) = through(fail(libc::EAGAIN, from..from + 3));
        for _ in 0..5 {
            a.now += Duration::from_millis(10);
            a.run();
        }
        carry(&mut a, &mut b);
        assert_eq!(packets(&b.written()), packets(&reads));
        a.assert_drops(&[]);
        a.stop();
        b.stop();
    }
}

#[test]
fn a_socket_that_stays_full_costs_what_was_sealed_and_holds_the_rest_back() {
    let (mut a, _b, _) = through(fail(libc::EAGAIN, 0..u64::MAX));
    a.run();
    a.assert_drops(&[]);
    // More comes in; it waits in the device, not here.
    for n in 3..100 {
        a.read(bulk(n, 20 * MSS));
    }
    for _ in 0..3 {
        a.turn();
    }
    assert_eq!(a.shard.driver().packets.len(), 97);
    a.now += Duration::from_millis(101);
    a.turn();
    a.assert_drops(&[(Drop::SendBufferFull, 60)]);
    // And goes on when the socket takes datagrams again.
    a.shard.driver().send_fault = None;
    a.run();
    assert_eq!(a.sent().len(), 97 * 20);
    a.stop();
}

#[test]
fn packets_that_waited_for_a_session_survive_a_full_socket() {
    let (mut a, mut b) = strangers(OFFLOADS);
    // So many that they do not fit into one round of sealing.
    let reads: Vec<_> = (0..20).map(|n| bulk(n, 45 * MSS)).collect();
    reads.iter().for_each(|r| a.read(r.clone()));
    a.run();
    a.shard.driver().send_fault = fail(libc::EAGAIN, 0..4);
    settle(&mut a, &mut b);
    for _ in 0..8 {
        a.now += Duration::from_millis(10);
        settle(&mut a, &mut b);
    }
    a.assert_drops(&[]);
    assert_eq!(packets(&b.written()), packets(&reads));
    a.stop();
}

#[test]
fn a_session_that_comes_while_the_socket_is_full_loses_nothing() {
    let (mut a, mut b) = joined(OFFLOADS);
    a.knows(3, &["10.0.0.3/32"]);
    let mut c = Node::new(3, OFFLOADS);
    c.knows(1, &["10.0.0.1/32"]);
    let to_c = |n: u16| plain(&Packet::tcp4().udp().with(|p| p.destination = [10, 0, 0, 3].into()).with(|p| p.id = n));
    (0..5).for_each(|n| a.read(to_c(n)));
    a.run();
    carry(&mut a, &mut c);
    let response = c.sent().remove(0).1;
    // The socket fills up with other traffic just when the session is made.
    a.shard.driver().send_fault = fail(libc::EAGAIN, 0..2);
    a.read(bulk(0, 20 * MSS));
    a.receive(address(3), response);
    a.turn();
    a.keep();
    for _ in 0..6 {
        a.now += Duration::from_millis(10);
        a.run();
    }
    let sent = a.sent();
    for (to, d) in sent {
        if to == address(3) { c.receive(address(1), d) } else { b.receive(address(1), d) }
    }
    b.run();
    c.run();
    assert_eq!(packets(&b.written()), packets(&[bulk(0, 20 * MSS)]));
    assert_eq!(packets(&c.written()).len(), 5);
    a.assert_drops(&[]);
    a.stop();
}

#[test]
fn a_refused_run_is_counted_by_its_reason() {
    for (errno, reason) in [
        (libc::ENOBUFS, Drop::SendBufferFull),
        (libc::ENOMEM, Drop::SendBufferFull),
        (libc::ENETUNREACH, Drop::SendFailed),
        (libc::EHOSTUNREACH, Drop::SendFailed),
        (libc::ENETDOWN, Drop::SendFailed),
        (libc::EPERM, Drop::SendFailed),
    ] {
        let (mut a, mut b, reads) = through(fail(errno, 0..1));
        carry(&mut a, &mut b);
        let (sent, lost) = (a.counters().udp_out.load(Relaxed), a.dropped(reason));
        assert!(lost >= 20 && lost + sent == 60, "errno {errno}: {lost} lost, {sent} sent");
        assert_eq!(packets(&b.written()), packets(&reads)[lost as usize..]);
        a.assert_drops(&[(reason, lost)]);
        // A single refusal is no reason to stop: the next ones arrive.
        a.read(udp(1, 10));
        a.run();
        carry(&mut a, &mut b);
        assert_eq!(packets(&b.written()), packets(&[udp(1, 10)]));
        a.stop();
        b.stop();
    }
}

#[test]
fn a_run_that_cannot_be_segmented_is_sent_singly_and_eio_switches_segmentation_off() {
    for (errno, still_on) in [(libc::EIO, false), (libc::EINVAL, true), (libc::EMSGSIZE, true)] {
        let (mut a, mut b, reads) = through(fail(errno, 0..1));
        a.assert_drops(&[]);
        assert_eq!(a.shared.udp_gso.load(Relaxed), still_on);
        let sent = a.sent();
        assert_eq!(sent.len(), 60, "nothing is lost");
        b.receive_all(address(1), sent.into_iter().map(|(_, d)| d));
        b.run();
        assert_eq!(packets(&b.written()), packets(&reads));
        let before = a.counters().udp_writes.load(Relaxed);
        a.read(bulk(3, 20 * MSS));
        a.run();
        let runs = a.counters().udp_writes.load(Relaxed) - before;
        assert_eq!(runs, if still_on { 1 } else { 20 });
        a.stop();
        b.stop();
    }
}

#[test]
fn a_datagram_that_the_path_does_not_take_even_alone_is_counted() {
    // The run, and the fourth of its datagrams.
    let (mut a, _b, _) = through(Some(Box::new(|n| matches!(n, 0 | 4).then_some(libc::EMSGSIZE))));
    assert_eq!(a.sent().len(), 59);
    a.assert_drops(&[(Drop::TooBig, 1)]);
    a.stop();
}

#[test]
fn a_socket_that_fills_up_while_a_run_is_sent_singly_loses_nothing() {
    let mut n = 0;
    let (mut a, mut b, reads) = through(Some(Box::new(move |_| {
        n += 1;
        match n {
            1 => Some(libc::EIO),
            10..=12 => Some(libc::EAGAIN),
            _ => None,
        }
    })));
    for _ in 0..8 {
        a.now += Duration::from_millis(10);
        a.run();
    }
    a.assert_drops(&[]);
    carry(&mut a, &mut b);
    assert_eq!(packets(&b.written()), packets(&reads));
    a.stop();
}

#[test]
fn writes_that_tun_refuses_are_counted_and_einval_switches_coalescing_off() {
    for (errno, reason, still_on) in [
        (libc::EIO, Drop::TunDown, true),
        (libc::EINVAL, Drop::TunWriteFailed, false),
        (libc::ENOBUFS, Drop::TunWriteFailed, true),
        (libc::EFAULT, Drop::TunWriteFailed, true),
    ] {
        let (mut a, mut b, _) = through(None);
        b.shard.driver().write_fault = fail(errno, 0..1);
        carry(&mut a, &mut b);
        let lost = b.dropped(reason);
        assert!(lost > 1, "a super-packet was refused");
        assert_eq!(packets(&b.written()).len() as u64 + lost, 60);
        b.assert_drops(&[(reason, lost)]);
        assert_eq!(b.shared.tun_gso.load(Relaxed), still_on);
        a.read(bulk(3, 20 * MSS));
        a.run();
        carry(&mut a, &mut b);
        let written = b.written();
        assert_eq!(packets(&written), packets(&[bulk(3, 20 * MSS)]));
        assert_eq!(written.len() == 20, !still_on, "{} writes", written.len());
        b.stop();
    }
}

/// One step of a random life.
#[derive(Clone, Debug)]
enum Step {
    Bulk {
        segments: usize,
        from_b: bool,
    },
    Udp {
        len: usize,
        from_b: bool,
    },
    /// A packet or a super-packet for a group.
    Group {
        segments: usize,
        from_b: bool,
    },
    Junk(Vec<u8>),
    /// Reads of any bytes.
    Garbage(Vec<u8>),
    /// The next calls fail.
    Fault {
        errno: i32,
        count: u64,
        write: bool,
    },
    Replay,
    Corrupt {
        at: usize,
    },
    Relay(bool),
    Wait(u64),
    Carry,
}

fn step() -> impl Strategy<Value = Step> {
    let errno = proptest::sample::select(vec![
        libc::EAGAIN,
        libc::EAGAIN,
        libc::ENOBUFS,
        libc::EMSGSIZE,
        libc::EIO,
        libc::EINVAL,
        libc::ENETUNREACH,
        libc::EPERM,
    ]);
    prop_oneof![
        4 => (1usize..60, any::<bool>()).prop_map(|(segments, from_b)| Step::Bulk { segments, from_b }),
        3 => (0usize..1392, any::<bool>()).prop_map(|(len, from_b)| Step::Udp { len, from_b }),
        2 => (1usize..60, any::<bool>()).prop_map(|(segments, from_b)| Step::Group { segments, from_b }),
        1 => proptest::collection::vec(any::<u8>(), 0..200).prop_map(Step::Junk),
        1 => proptest::collection::vec(any::<u8>(), 0..200).prop_map(Step::Garbage),
        3 => (errno, 1u64..8, any::<bool>()).prop_map(|(errno, count, write)| Step::Fault { errno, count, write }),
        1 => Just(Step::Replay),
        1 => any::<usize>().prop_map(|at| Step::Corrupt { at }),
        1 => any::<bool>().prop_map(Step::Relay),
        2 => proptest::sample::select(vec![1u64, 30, 120, 5000, 61_000, 200_000]).prop_map(Step::Wait),
        6 => Just(Step::Carry),
    ]
}

/// Turns a packet from node 1 to node 2 around.
fn back(mut p: Packet) -> Packet {
    std::mem::swap(&mut p.source, &mut p.destination);
    p
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes and whatever fails, packets in = packets out + counted drops at both ends.
    #[test]
    fn packets_are_conserved_in_any_life(
        steps in proptest::collection::vec(step(), 1..60), met in any::<bool>(), translated in any::<bool>(),
    ) {
        let (mut a, mut b) = if met { joined(OFFLOADS) } else { strangers(OFFLOADS) };
        if translated {
            // By the addresses that they have anyhow, so that the steps mean the same.
            let (one, two) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
            let everybody = std::net::Ipv4Addr::new(10, 0, 0, 255);
            let broadcast = Some((everybody, everybody));
            a.befriend(2, dataplane::Translation { peer: two, lease: two, own: one, broadcast });
            b.befriend(1, dataplane::Translation { peer: one, lease: one, own: two, broadcast });
            a.shared.set_multicast(Some(everybody));
            b.shared.set_multicast(Some(everybody));
        }
        let server = address(200);
        for n in [&a, &b] {
            n.shared.relays.store(std::sync::Arc::new(vec![server]));
        }
        let mut wire: Vec<Vec<u8>> = Vec::new();
        for s in steps {
            match s {
                Step::Bulk { segments, from_b } => {
                    let p = Packet::tcp4().with(|p| p.payload = vec![1; segments * 1000]);
                    let p = if from_b { back(p) } else { p };
                    let node = if from_b { &mut b } else { &mut a };
                    node.read(crate::testing::super_packet(&p, 1000));
                }
                Step::Udp { len, from_b } => {
                    let p = Packet::tcp4().udp().with(|p| p.payload = vec![2; len]);
                    if from_b { b.read(plain(&back(p))) } else { a.read(plain(&p)) }
                }
                Step::Group { segments, from_b } => {
                    let p = Packet::tcp4().udp().with(|p| p.payload = vec![3; segments * 900]);
                    let p = if from_b { back(p) } else { p }.with(|p| p.destination = [224, 0, 0, 251].into());
                    if from_b { b.read(super_packet(&p, 900)) } else { a.read(super_packet(&p, 900)) }
                }
                Step::Junk(bytes) => b.receive(if bytes.len() % 2 == 0 { server } else { address(1) }, bytes),
                Step::Garbage(bytes) => a.read(bytes),
                Step::Fault { errno, count, write } => {
                    for d in [a.shard.driver(), b.shard.driver()] {
                        let slot = if write { &mut d.write_fault } else { &mut d.send_fault };
                        *slot = fail(errno, 0..count);
                    }
                }
                Step::Replay => wire.iter().for_each(|d| b.receive(address(1), d.clone())),
                Step::Corrupt { at } => {
                    if let Some(d) = wire.last_mut().filter(|d| !d.is_empty()) {
                        let at = at % d.len();
                        d[at] ^= 0x10;
                        b.receive(address(1), d.clone());
                    }
                }
                Step::Relay(on) => {
                    let path = dataplane::Path::Relay { server, channel: 0x4000 };
                    let path = if on { path } else { address(2).into() };
                    a.tunnel.peer(&public(2)).expect("a peer").set_path(path);
                }
                Step::Wait(ms) => {
                    a.wait(Duration::from_millis(ms));
                    b.wait(Duration::from_millis(ms));
                }
                Step::Carry => {
                    a.run();
                    let sent = a.sent();
                    wire = sent.iter().take(80).map(|(_, d)| d.clone()).collect();
                    for (to, d) in sent {
                        b.receive(if to == server { server } else { address(1) }, d);
                    }
                    b.run();
                    let sent = b.sent();
                    for (to, d) in sent {
                        a.receive(if to == server { server } else { address(2) }, d);
                    }
                    a.run();
                }
            }
        }
        for n in [&mut a, &mut b] {
            n.run();
            n.stop();
            let kept = n.shard.driver().sent.len() as u64;
            prop_assert!(n.counters().udp_out.load(Relaxed) >= kept);
        }
    }
}
