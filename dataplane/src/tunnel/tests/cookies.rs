use super::*;
use limits::{COOKIE_LIFETIME, SOURCE_BURST};

/// Two nodes, the second under load, after the first was sent a cookie that it has not got yet.
fn challenged() -> (Node, Arc<Peer>, Node, Vec<u8>) {
    let (mut a, to_b, mut b, _) = pair();
    b.under_load = true;
    a.initiate(&to_b);
    assert_eq!(b.receive(address(1), &a.sent_one()), Err(Drop::CookieSent));
    let reply = b.sent_one();
    assert_eq!(classify(&reply), Kind::CookieReply);
    (a, to_b, b, reply)
}

fn retry(a: &mut Node, b: &mut Node) -> Vec<u8> {
    let end = a.now + ms(5_334);
    let mut sent = a.run_until(end);
    b.now = a.now;
    assert_eq!(sent.len(), 1);
    sent.remove(0).1
}

#[test]
fn a_cookie_lets_the_next_attempt_pass_from_its_own_address_only() {
    let (mut a, _, mut b, reply) = challenged();
    assert_eq!(a.receive(address(2), &reply), Ok(Got::Handshake));
    let second = retry(&mut a, &mut b);
    assert_ne!(second[132..], [0; 16]);
    assert_eq!(b.receive(address(3), &second), Err(Drop::CookieSent));
    let mut other_port = second.clone();
    other_port[140] ^= 1;
    assert_eq!(b.receive(address(1), &other_port), Err(Drop::CookieSent));
    b.sent();
    assert_eq!(b.receive(address(1), &second), Ok(Got::Handshake));
    assert_eq!(a.receive(address(2), &b.sent_one()), Ok(Got::Handshake));
}

#[test]
fn without_the_cookie_every_attempt_is_challenged() {
    let (mut a, _, mut b, _) = challenged();
    for _ in 0..3 {
        let m = retry(&mut a, &mut b);
        assert_eq!(m[132..], [0; 16]);
        assert_eq!(b.receive(address(1), &m), Err(Drop::CookieSent));
    }
}

#[test]
fn forged_replayed_and_misdirected_cookie_replies_are_refused() {
    let (mut a, _, mut b, reply) = challenged();
    for i in 4..reply.len() {
        let mut f = reply.clone();
        f[i] ^= 1;
        assert_eq!(a.receive(address(2), &f), Err(Drop::HandshakeRefused), "byte {i}");
    }
    assert_eq!(a.receive(address(2), &reply), Ok(Got::Handshake));
    assert_eq!(a.receive(address(2), &reply), Err(Drop::HandshakeRefused), "one cookie per message");
    retry(&mut a, &mut b);
    assert_eq!(a.receive(address(2), &reply), Err(Drop::HandshakeRefused), "made for another message");
}

#[test]
fn cookies_expire_on_both_sides() {
    let (mut a, to_b, mut b, reply) = challenged();
    a.receive(address(2), &reply).expect("a cookie");
    // The maker's secret is replaced 120 s after it was drawn.
    a.now += COOKIE_LIFETIME - ms(1);
    a.tunnel.clear_sessions();
    a.initiate(&to_b);
    let last = a.sent_one();
    assert_ne!(last[132..], [0; 16]);
    b.now = START + COOKIE_LIFETIME;
    assert_eq!(b.receive(address(1), &last), Err(Drop::CookieSent));
    // The holder does not show it any longer.
    a.now += secs(6);
    a.tunnel.clear_sessions();
    a.initiate(&to_b);
    assert_eq!(a.sent_one()[132..], [0; 16]);
}

#[test]
fn a_response_may_be_challenged_too() {
    let (mut a, to_b, mut b, _) = pair();
    a.initiate(&to_b);
    a.under_load = true;
    b.receive(address(1), &a.sent_one()).expect("accepted");
    assert_eq!(a.receive(address(2), &b.sent_one()), Err(Drop::CookieSent));
    assert_eq!(b.receive(address(1), &a.sent_one()), Ok(Got::Handshake));
    let again = retry(&mut a, &mut b);
    b.receive(address(1), &again).expect("accepted");
    assert_eq!(a.receive(address(2), &b.sent_one()), Ok(Got::Handshake));
}

#[test]
fn one_source_is_limited_even_with_a_good_cookie() {
    let (mut a, _, mut b, reply) = challenged();
    a.receive(address(2), &reply).expect("a cookie");
    let m = retry(&mut a, &mut b);
    assert_eq!(b.receive(address(1), &m), Ok(Got::Handshake));
    for _ in 1..SOURCE_BURST {
        assert_eq!(b.receive(address(1), &m), Err(Drop::HandshakeRefused), "replayed");
    }
    assert_eq!(b.receive(address(1), &m), Err(Drop::HandshakeRateLimited));
}

#[test]
fn junk_gets_no_cookie() {
    let (mut a, to_b, mut b, _) = pair();
    b.under_load = true;
    a.initiate(&to_b);
    let mut m = a.sent_one();
    m[20] ^= 1;
    assert_eq!(b.receive(address(1), &m), Err(Drop::BadMac));
    assert!(b.sent().is_empty());
}
