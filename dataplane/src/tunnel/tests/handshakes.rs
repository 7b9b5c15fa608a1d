use super::*;
use proptest::prelude::*;

#[test]
fn two_nodes_join_and_carry_data_both_ways() {
    let (mut a, to_b, mut b, to_a) = joined();
    assert_eq!((a.established, b.established, b.promoted), (1, 0, 1));
    for i in 0..100u8 {
        carry(&mut a, &to_b, &mut b, &[i; 40]);
        carry(&mut b, &to_a, &mut a, &[i; 1400]);
    }
    let (s, t) = (to_b.current().expect("session"), to_a.current().expect("session"));
    assert!(s.initiator() && !t.initiator() && s.confirmed() && t.confirmed());
    assert_eq!((s.local_index, s.remote_index), (t.remote_index, t.local_index));
    assert_eq!(to_b.last_handshake(), Some(wall(START)));
    assert_eq!(to_a.last_handshake(), Some(wall(START)));
    assert_eq!(to_b.tx_bytes(), to_a.rx_bytes());
    assert_eq!(to_a.tx_bytes(), to_b.rx_bytes());
    assert_eq!(to_b.tx_bytes(), 148 + 32 + 100 * 72);
    assert_eq!((a.table.in_use(), b.table.in_use()), (1, 1));
    assert!(format!("{s:?} {to_b:?} {:?} {:?}", a.tunnel, a.table).contains("Session"));
}

#[test]
fn a_preshared_key_has_to_be_the_same_on_both_ends() {
    for (ours, theirs, joins) in [(7, 7, true), (7, 8, false), (7, 0, false), (0, 0, true)] {
        let (mut a, to_b, mut b, to_a) = pair();
        assert!(a.tunnel.set_preshared_key(&b.public(), PresharedKey([ours; 32])));
        assert!(b.tunnel.set_preshared_key(&a.public(), PresharedKey([theirs; 32])));
        a.initiate(&to_b);
        assert_eq!(b.receive(address(1), &a.sent_one()), Ok(Got::Handshake));
        let answer = a.receive(address(2), &b.sent_one());
        assert_eq!(answer.is_ok(), joins);
        assert_eq!(to_b.current().is_some(), joins);
        assert!(to_a.current().is_none(), "not confirmed yet");
        if joins {
            carry(&mut a, &to_b, &mut b, b"hello");
        }
    }
}

#[test]
fn the_responder_may_be_sent_to_at_once_but_sends_only_after_it_heard() {
    let (mut a, to_b, mut b, to_a) = pair();
    a.initiate(&to_b);
    b.receive(address(1), &a.sent_one()).expect("accepted");
    assert!(b.seal(&to_a, b"early").is_none());
    assert_eq!(b.sent().len(), 1, "the response, and no initiation on top of it");
    let (mut a, to_b, mut b, to_a) = joined();
    carry(&mut a, &to_b, &mut b, b"first");
    carry(&mut b, &to_a, &mut a, b"second");
}

#[test]
fn replayed_and_older_initiations_are_refused() {
    let (mut a, to_b, mut b, to_a) = pair();
    a.initiate(&to_b);
    let first = a.sent_one();
    let second = a.run_until(START + secs(6)).remove(0).1;
    b.now = a.now;
    assert_eq!(b.receive(address(1), &second), Ok(Got::Handshake));
    b.sent();
    b.now += secs(10);
    assert_eq!(b.receive(address(9), &second), Err(Drop::HandshakeRefused));
    assert_eq!(b.receive(address(9), &first), Err(Drop::HandshakeRefused));
    assert_eq!(to_a.path(), Some(address(1)), "a replay does not move the peer");
    assert!(b.sent().is_empty());
}

#[test]
fn timestamps_increase_when_the_wall_clock_steps_back() {
    let (mut a, to_b, mut b, _) = pair();
    a.initiate(&to_b);
    b.receive(address(1), &a.sent_one()).expect("accepted");
    for _ in 0..5 {
        a.now += secs(6);
        b.now = a.now;
        a.tunnel.handle_timeout(a.now, WallTime(secs(5)));
        assert_eq!(b.receive(address(1), &a.sent_one()), Ok(Got::Handshake));
    }
}

#[test]
fn initiations_of_one_peer_are_limited_in_rate() {
    let (mut a, to_b, mut b, _) = pair();
    let mut initiations = Vec::new();
    for _ in 0..3 {
        a.initiate(&to_b);
        initiations.push(a.sent_one());
        a.now += secs(6);
        a.tunnel.clear_sessions();
    }
    b.receive(address(1), &initiations[0]).expect("accepted");
    b.now += ms(19);
    assert_eq!(b.receive(address(1), &initiations[1]), Err(Drop::HandshakeRateLimited));
    b.now += ms(1);
    assert_eq!(b.receive(address(1), &initiations[2]), Ok(Got::Handshake));
}

#[test]
fn simultaneous_initiations_converge_and_only_one_end_renews() {
    let (mut a, to_b, mut b, to_a) = pair();
    a.initiate(&to_b);
    b.initiate(&to_a);
    exchange(&mut a, &mut b);
    for _ in 0..3 {
        carry(&mut a, &to_b, &mut b, b"x");
        carry(&mut b, &to_a, &mut a, b"y");
    }
    assert!(a.table.in_use() <= 3 && b.table.in_use() <= 3);
    a.now += secs(121);
    b.now = a.now;
    carry(&mut a, &to_b, &mut b, b"x");
    carry(&mut b, &to_a, &mut a, b"y");
    let (from_a, from_b) = (a.sent(), b.sent());
    assert_eq!(from_a.len() + from_b.len(), 1, "one renews");
    for m in from_a {
        b.receive(address(1), &m).expect("accepted");
    }
    for m in from_b {
        a.receive(address(2), &m).expect("accepted");
    }
    exchange(&mut a, &mut b);
    let (s, t) = (to_b.current().expect("session"), to_a.current().expect("session"));
    assert_eq!((s.local_index, s.established_at()), (t.remote_index, a.now));
}

/// All orders in which the four messages of two crossing handshakes can arrive.
#[test]
fn crossing_handshakes_leave_both_ends_able_to_talk_in_any_order() {
    for order in 0..64u64 {
        let (mut a, to_b, mut b, to_a) = pair();
        a.initiate(&to_b);
        b.initiate(&to_a);
        let (mut for_a, mut for_b) = (b.sent(), a.sent());
        let mut pick = order;
        while !for_a.is_empty() || !for_b.is_empty() {
            if for_b.is_empty() || (pick & 1 == 1 && !for_a.is_empty()) {
                a.receive(address(2), &for_a.remove(0)).expect("accepted");
            } else {
                b.receive(address(1), &for_b.remove(0)).expect("accepted");
            }
            pick >>= 1;
            for_a.extend(b.sent());
            for_b.extend(a.sent());
        }
        for _ in 0..2 {
            carry(&mut a, &to_b, &mut b, b"x");
            carry(&mut b, &to_a, &mut a, b"y");
        }
        a.now += secs(121);
        b.now = a.now;
        carry(&mut a, &to_b, &mut b, b"x");
        carry(&mut b, &to_a, &mut a, b"y");
        assert_eq!(a.sent().len() + b.sent().len(), 1, "one renews, order {order}");
    }
}

#[test]
fn a_peer_moves_with_its_authentic_handshakes() {
    let (mut a, to_b, mut b, to_a) = pair();
    a.initiate(&to_b);
    b.receive(address(77), &a.sent_one()).expect("accepted");
    assert_eq!(to_a.path(), Some(address(77)));
    let relay = Path::Relay { server: "10.9.9.9:3478".parse().expect("address"), channel: 0x4001 };
    a.receive(relay, &b.sent_one()).expect("accepted");
    assert_eq!(to_b.path(), Some(relay));
}

#[test]
fn strangers_and_removed_peers_are_refused() {
    let (mut a, to_b, mut b, to_a) = joined();
    let mut c = Node::new(3, 3);
    let b_at_c = c.knows(2);
    c.initiate(&b_at_c);
    assert_eq!(b.receive(address(3), &c.sent_one()), Err(Drop::HandshakeRefused));
    let session = to_a.current().expect("session");
    let m = a.seal(&to_b, b"late").expect("session");
    let a_key = a.public();
    assert!(b.tunnel.remove_peer(&a_key).is_some());
    assert!(b.tunnel.remove_peer(&a_key).is_none());
    assert!(to_a.is_removed() && to_a.current().is_none() && !session.live());
    assert_eq!(b.receive(address(1), &m), Err(Drop::UnknownReceiver));
    assert!(!to_a.confirm(&session));
    b.initiate(&to_a);
    assert!(b.sent().is_empty());
    assert_eq!(b.table.in_use(), 0);
    let again = b.knows(1);
    assert_ne!(again.id, to_a.id);
}

#[test]
fn peers_are_bounded_unique_ordered_and_never_ourselves() {
    let mut a = Node::new(1, 1);
    let ids: Vec<u32> = [5, 3, 9].map(|n| a.knows(n).id).to_vec();
    assert_eq!(a.knows(3).id, ids[1]);
    assert_eq!(a.tunnel.peers().map(|p| p.id).collect::<Vec<_>>(), ids);
    let own = a.public();
    assert!(matches!(a.tunnel.add_peer(own), Err(TunnelError::OwnKey)));
    let removed = a.tunnel.set_private_key(Some(key(9))).expect("peer 9 is us now");
    assert_eq!(removed.id, ids[2]);
    assert!(a.tunnel.peer(&key(9).public()).is_none());
}

#[test]
fn another_private_key_ends_sessions_and_the_same_key_does_not() {
    let (mut a, to_b, mut b, _) = joined();
    assert!(a.tunnel.set_private_key(Some(key(1))).is_none());
    assert!(to_b.current().is_some());
    a.tunnel.set_private_key(None);
    assert!(to_b.current().is_none() && a.tunnel.mac_verifier().is_none());
    assert_eq!(a.table.in_use(), 0);
    a.initiate(&to_b);
    assert!(a.sent().is_empty());
    assert_eq!(a.gave_up, 1);
    assert!(to_b.request_handshake(), "the flag was cleared");
    assert_eq!(a.receive(address(2), &[0u8; 10]), Err(Drop::UnknownDatagram));
    a.tunnel.set_private_key(Some(key(3)));
    a.now += secs(10);
    b.now = a.now;
    a.initiate(&to_b);
    assert_eq!(b.receive(address(1), &a.sent_one()), Err(Drop::HandshakeRefused));
}

#[test]
fn without_a_path_nothing_is_sent_until_there_is_one() {
    let mut a = Node::new(1, 1);
    let b = a.tunnel.add_peer(key(2).public()).expect("room");
    a.initiate(&b);
    assert!(a.sent().is_empty());
    b.set_path(address(2));
    a.initiate(&b);
    assert_eq!(a.sent().len(), 1);
}

#[test]
fn send_counters_end_and_do_not_come_again() {
    let (_a, to_b, _b, _) = joined();
    let s = to_b.current().expect("session");
    assert_eq!((s.reserve(5), s.reserve(1)), (Some(1), Some(6)), "0 went to the keepalive");
    s.set_counter(limits::REJECT_AFTER_MESSAGES - 10);
    assert_eq!(s.reserve(11), None);
    assert_eq!(s.reserve(10), Some(limits::REJECT_AFTER_MESSAGES - 10));
    for n in [1, 1000, u64::MAX, 1] {
        assert_eq!(s.reserve(n), None);
    }
}

#[test]
fn a_session_is_renewed_when_its_counters_run_out_by_either_end() {
    let (mut a, _, mut b, to_a) = joined();
    b.now += secs(10);
    a.now = b.now;
    to_a.current().expect("session").set_counter(limits::REKEY_AFTER_MESSAGES);
    carry(&mut b, &to_a, &mut a, b"x");
    assert_eq!(classify(&b.sent_one()), Kind::Initiation);
}

#[test]
fn any_byte_changed_in_any_handshake_message_is_refused() {
    let (mut a, to_b, mut b, to_a) = pair();
    a.initiate(&to_b);
    let initiation = a.sent_one();
    let flips = |m: &[u8], covered: usize| -> Vec<Vec<u8>> {
        (0..covered)
            .map(|i| {
                let mut f = m.to_vec();
                f[i] ^= 1 << (i % 8);
                f
            })
            .collect()
    };
    // MAC2 is not looked at unless under load: the last 16 bytes may be anything.
    for f in flips(&initiation, 132) {
        assert!(b.receive(address(1), &f).is_err());
    }
    // With MAC1 made right again, what is inside decides. Bytes 4..8, the index, are not covered by it.
    let macs = b.tunnel.mac_verifier().expect("identity");
    for mut f in flips(&initiation, 116).split_off(8) {
        macs.seal(&mut f, None);
        assert_eq!(b.receive(address(1), &f), Err(Drop::HandshakeRefused));
    }
    assert!(b.sent().is_empty() && to_a.rx_bytes() == 0);
    assert_eq!(b.receive(address(1), &initiation), Ok(Got::Handshake));

    let response = b.sent_one();
    for f in flips(&response, 76) {
        assert!(a.receive(address(2), &f).is_err());
    }
    let macs = a.tunnel.mac_verifier().expect("identity");
    for mut f in flips(&response, 60).split_off(8) {
        macs.seal(&mut f, None);
        assert_eq!(a.receive(address(2), &f), Err(Drop::HandshakeRefused));
    }
    assert_eq!(a.receive(address(2), &response), Ok(Got::Handshake), "forgeries did not disturb the handshake");
    assert_eq!(a.receive(address(2), &response), Err(Drop::HandshakeRefused), "once");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn arbitrary_bytes_never_panic(
        kind in 0u8..6,
        len in prop_oneof![Just(148usize), Just(92), Just(64), 0usize..200],
        fill in any::<u64>(),
        sealed in any::<bool>(),
        load in any::<bool>(),
    ) {
        let (mut a, to_b, _, _) = pair();
        a.initiate(&to_b);
        a.sent();
        let mut m = vec![0u8; len];
        crate::tunnel::Rng::fill(&mut Seeded(fill), &mut m);
        if len >= 4 {
            m[..4].copy_from_slice(&[kind, 0, 0, 0]);
        }
        if sealed {
            a.tunnel.mac_verifier().expect("identity").seal(&mut m, None);
        }
        let got = a.tunnel.handle(a.now, wall(a.now), address(2), &m, load);
        prop_assert!(got.is_err());
        prop_assert!(a.sent().len() <= 1);
    }
}

#[test]
fn a_tunnel_that_ends_leaves_no_session_and_no_key_behind() {
    let (a, to_b, _b, _to_a) = joined();
    let session = Arc::downgrade(&to_b.current().expect("a session"));
    drop(a);
    assert!(to_b.current().is_none());
    assert!(session.upgrade().is_none(), "nobody holds the session");
}
