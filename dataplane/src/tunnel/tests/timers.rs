use super::*;
use limits::*;

fn kinds(sent: &[(Time, Vec<u8>)]) -> Vec<Kind> {
    sent.iter().map(|(_, m)| classify(m)).collect()
}

#[test]
fn initiations_are_repeated_each_5_s_with_jitter_and_given_up_after_90_s() {
    let (mut a, to_b, _, _) = pair();
    assert!(to_b.request_handshake() && !to_b.request_handshake());
    a.initiate(&to_b);
    assert_eq!(classify(&a.sent_one()), Kind::Initiation);
    let sent = a.run_until(START + (REKEY_ATTEMPT_TIME - ms(1)));
    assert_eq!(a.gave_up, 0);
    let mut last = START;
    for (t, m) in &sent {
        assert_eq!(classify(m), Kind::Initiation);
        assert!((REKEY_TIMEOUT..=REKEY_TIMEOUT + REKEY_JITTER).contains(&t.since(last)), "{:?}", t.since(last));
        last = *t;
    }
    assert!((16..=17).contains(&sent.len()), "{}", sent.len());
    assert!(!to_b.request_handshake(), "one is under way");
    assert!(a.run_until(START + REKEY_ATTEMPT_TIME).is_empty());
    assert_eq!(a.gave_up, 1);
    assert_eq!(a.tunnel.poll_timeout(a.now), None);
    assert_eq!(a.table.in_use(), 0);
    assert!(a.run_until(START + secs(3600)).is_empty());
    assert!(a.seal(&to_b, b"new data").is_none());
    assert_eq!(a.sent().len(), 1);
}

#[test]
fn asking_again_soon_waits_for_the_5_s_and_a_stale_request_is_nothing() {
    let (mut a, to_b, mut b, _) = joined();
    a.now += secs(1);
    a.initiate(&to_b);
    assert!(a.sent().is_empty() && a.tunnel.poll_timeout(a.now) == Some(START + ZERO_KEYS_AFTER));
    a.tunnel.clear_sessions();
    a.initiate(&to_b);
    assert!(a.sent().is_empty());
    let sent = a.run_until(START + secs(6));
    assert_eq!(sent.iter().map(|s| s.0).collect::<Vec<_>>(), [START + REKEY_TIMEOUT]);
    b.now = a.now;
    assert_eq!(b.receive(address(1), &sent[0].1), Ok(Got::Handshake));
}

#[test]
fn the_initiator_renews_on_sending_at_120_s_and_the_responder_does_not() {
    let (mut a, to_b, mut b, to_a) = joined();
    for node in [&mut a, &mut b] {
        node.now = START + (REKEY_AFTER_TIME - ms(1));
    }
    carry(&mut a, &to_b, &mut b, b"x");
    carry(&mut b, &to_a, &mut a, b"x");
    assert!(a.sent().is_empty());
    for node in [&mut a, &mut b] {
        node.now = START + REKEY_AFTER_TIME;
    }
    carry(&mut b, &to_a, &mut a, b"x");
    carry(&mut a, &to_b, &mut b, b"x");
    assert!(b.sent().is_empty());
    assert_eq!(classify(&a.sent_one()), Kind::Initiation);
}

#[test]
fn the_initiator_renews_on_receiving_at_165_s_and_the_responder_does_not() {
    let (mut a, to_b, mut b, to_a) = joined();
    a.now = START + (REKEY_ON_RECEIVE_AFTER - ms(1));
    b.now = a.now;
    carry(&mut b, &to_a, &mut a, b"x");
    assert!(a.sent().is_empty());
    a.now += ms(1);
    b.now = a.now;
    carry(&mut a, &to_b, &mut b, b"x");
    a.tunnel.clear_sessions();
    let (mut a, _, mut b, to_a) = joined();
    a.now = START + REKEY_ON_RECEIVE_AFTER;
    b.now = a.now;
    carry(&mut b, &to_a, &mut a, b"x");
    assert_eq!(classify(&a.sent_one()), Kind::Initiation);
    assert!(b.sent().is_empty());
}

#[test]
fn sessions_end_at_180_s() {
    let (mut a, to_b, mut b, _) = joined();
    a.now = START + (REJECT_AFTER_TIME - ms(1));
    b.now = a.now;
    carry(&mut a, &to_b, &mut b, b"x");
    let late = a.seal(&to_b, b"late").expect("session");
    a.now += ms(1);
    b.now = a.now;
    assert!(a.seal(&to_b, b"x").is_none());
    assert_eq!(b.receive(address(1), &late), Err(Drop::SessionExpired));
}

#[test]
fn received_data_is_answered_by_a_keepalive_after_10_s() {
    let (mut a, to_b, mut b, _) = joined();
    carry(&mut a, &to_b, &mut b, b"x");
    b.now += secs(3);
    a.now = b.now;
    carry(&mut a, &to_b, &mut b, b"y");
    let sent = b.run_until(START + secs(60));
    assert_eq!(kinds(&sent), [Kind::Data]);
    assert_eq!((sent[0].0, sent[0].1.len()), (START + KEEPALIVE_TIMEOUT, KEEPALIVE_LEN));
    assert_eq!(a.receive(address(2), &sent[0].1), Ok(Got::Keepalive));
    assert_eq!(kinds(&a.run_until(START + secs(120))), [], "answered, and keepalives are not answered");
}

#[test]
fn anything_sent_in_time_saves_the_keepalive() {
    let (mut a, to_b, mut b, to_a) = joined();
    carry(&mut a, &to_b, &mut b, b"x");
    b.now += secs(9);
    carry(&mut b, &to_a, &mut a, b"y");
    assert!(b.run_until(START + secs(14)).is_empty());
}

#[test]
fn unanswered_data_asks_for_a_handshake_15_s_after_the_first() {
    let (mut a, to_b, _, _) = joined();
    a.now += secs(1);
    a.seal(&to_b, b"first").expect("session");
    a.now += secs(10);
    a.seal(&to_b, b"second").expect("session");
    let sent = a.run_until(START + secs(17));
    assert_eq!(kinds(&sent), [Kind::Initiation]);
    let after = sent[0].0.since(START + secs(1));
    assert!((UNANSWERED_TIMEOUT..=UNANSWERED_TIMEOUT + REKEY_JITTER).contains(&after), "{after:?}");
}

#[test]
fn an_unanswered_handshake_is_repeated_although_the_session_is_not_over() {
    let (mut a, to_b, _, _) = joined();
    a.seal(&to_b, b"into the void").expect("session");
    let sent = a.run_until(START + secs(60));
    assert!(sent.len() >= 8 && kinds(&sent).iter().all(|k| *k == Kind::Initiation), "{}", sent.len());
    a.run_until(START + secs(15 + 91));
    assert_eq!(a.gave_up, 1);
}

#[test]
fn persistent_keepalives_start_at_once_and_any_traffic_puts_them_off() {
    let (mut a, to_b, mut b, _) = pair();
    let b_key = b.public();
    assert!(a.tunnel.set_persistent_keepalive(a.now, &b_key, 25));
    assert_eq!(to_b.persistent_keepalive(), 25);
    a.now += TURN_PAUSE;
    a.timeout();
    let initiation = a.sent_one();
    b.receive(address(1), &initiation).expect("accepted");
    a.receive(address(2), &b.sent_one()).expect("accepted");
    assert_eq!(a.sent_one().len(), KEEPALIVE_LEN);
    let joined_at = a.now;
    let sent = a.run_until(joined_at + secs(60));
    assert_eq!(sent.iter().map(|s| s.0).collect::<Vec<_>>(), [joined_at + secs(25), joined_at + secs(50)]);
    assert_eq!(kinds(&sent), [Kind::Data; 2]);
    a.seal(&to_b, b"").expect("session");
    assert_eq!(a.run_until(joined_at + secs(85))[0].0, joined_at + secs(85));
    assert!(a.tunnel.set_persistent_keepalive(a.now, &b_key, 0));
    assert!(a.run_until(joined_at + secs(500)).is_empty());
}

#[test]
fn persistent_keepalives_try_for_ever_to_get_a_session() {
    let (mut a, _, b, _) = pair();
    a.tunnel.set_persistent_keepalive(a.now, &b.public(), 25);
    a.now += TURN_PAUSE;
    a.timeout();
    a.sent();
    let sent = a.run_until(START + secs(3600));
    assert!(sent.len() > 500, "{}", sent.len());
    assert!(a.gave_up > 20);
    assert!(sent.windows(2).all(|w| w[1].0.since(w[0].0) >= REKEY_TIMEOUT));
}

#[test]
fn keys_are_wiped_540_s_after_the_last_handshake_and_nothing_is_sent_more() {
    let (mut a, to_b, mut b, to_a) = joined();
    let weak = Arc::downgrade(&to_b.current().expect("session"));
    carry(&mut a, &to_b, &mut b, b"x");
    carry(&mut b, &to_a, &mut a, b"x");
    a.run_until(START + (ZERO_KEYS_AFTER - ms(1)));
    assert!(weak.upgrade().is_some());
    assert!(a.run_until(START + ZERO_KEYS_AFTER).is_empty());
    assert!(weak.upgrade().is_none() && to_b.current().is_none());
    assert_eq!((a.table.in_use(), a.tunnel.poll_timeout(a.now)), (0, None));
    assert!(a.run_until(START + secs(36_000)).is_empty());
}

#[test]
fn a_request_that_nobody_passed_on_is_found() {
    let (mut a, to_b, _, _) = pair();
    assert!(to_b.request_handshake());
    assert!(a.tunnel.poll_timeout(a.now).is_some());
    a.timeout();
    assert_eq!(classify(&a.sent_one()), Kind::Initiation);
}

#[test]
fn a_peers_own_handshake_ends_the_wish_for_one() {
    let (mut a, to_b, mut b, to_a) = pair();
    a.initiate(&to_b);
    let lost = a.sent_one();
    a.now += secs(1);
    b.now = a.now;
    b.initiate(&to_a);
    exchange(&mut b, &mut a);
    assert_eq!(a.promoted, 1);
    a.run_until(START + secs(9));
    assert_eq!(a.gave_up, 0);
    assert!(a.tunnel.pending.is_empty() && to_b.request_handshake());
    assert_eq!(a.table.in_use(), 1);
    drop(lost);
}

#[test]
fn down_is_silent_and_up_wakes_persistent_keepalives() {
    let (mut a, to_b, mut b, to_a) = joined();
    a.tunnel.set_persistent_keepalive(a.now, &b.public(), 10);
    a.tunnel.set_up(false);
    assert!(to_b.current().is_none());
    assert!(a.run_until(START + secs(100)).is_empty());
    a.initiate(&to_b);
    assert!(a.sent().is_empty());
    b.now = a.now;
    b.tunnel.clear_sessions();
    b.initiate(&to_a);
    assert_eq!(a.receive(address(2), &b.sent_one()), Err(Drop::HandshakeRefused));
    a.tunnel.set_up(true);
    let now = a.now;
    assert_eq!(kinds(&a.run_until(now + secs(1))), [Kind::Initiation]);
}

#[test]
fn many_peers_due_at_once_are_served_in_turns() {
    let mut a = Node::new(1, 1);
    for n in 0..200u8 {
        let mut k = [n; 32];
        k[0] = 9;
        let peer = a.tunnel.add_peer(PublicKey(k)).expect("room");
        peer.set_path(address(2));
        a.tunnel.set_persistent_keepalive(a.now, &PublicKey(k), 100);
    }
    a.timeout();
    assert_eq!(a.sent().len(), MAX_PEERS_PER_TURN);
    let sent = a.run_until(START + ms(10));
    assert_eq!(sent.len() + MAX_PEERS_PER_TURN, 200);
    assert!(a.tunnel.poll_timeout(a.now).is_some_and(|t| t >= START + REKEY_TIMEOUT));
}
