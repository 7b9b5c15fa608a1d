//! Which cipher a session gets, whoever wants what and whenever that changes.

use super::*;
use crate::crypto::{Cipher, aes_key};
use crate::tunnel::agreement::Sign;
use crate::tunnel::sessions::RANDOM_BITS;
use std::collections::HashSet;

pub(super) const AES: Cipher = Cipher::Aes256Gcm;
pub(super) const CHACHA: Cipher = Cipher::ChaCha20Poly1305;

/// A pair of nodes that may be willing, nothing sent yet.
pub(super) fn willing(a_aes: bool, b_aes: bool) -> (Node, Arc<Peer>, Node, Arc<Peer>) {
    let (a, to_b, b, to_a) = pair();
    to_b.set_aes(a_aes);
    to_a.set_aes(b_aes);
    (a, to_b, b, to_a)
}

/// The one cipher of both ends.
fn agreed(to_b: &Arc<Peer>, to_a: &Arc<Peer>) -> Cipher {
    let [a, b] = [to_b, to_a].map(|p| p.current().expect("a session").cipher());
    assert_eq!(a, b, "the ends differ");
    a
}

fn both_ways(a: &mut Node, to_b: &Arc<Peer>, b: &mut Node, to_a: &Arc<Peer>) {
    for len in [0, 1, 40, 1400] {
        carry(a, to_b, b, &vec![3; len + 1]);
        carry(b, to_a, a, &vec![4; len + 1]);
    }
}

#[test]
fn a_session_has_aes_if_both_ends_are_willing_whoever_begins() {
    for (a_aes, b_aes) in [(false, false), (true, false), (false, true), (true, true)] {
        for a_begins in [true, false] {
            let (mut a, to_b, mut b, to_a) = willing(a_aes, b_aes);
            if a_begins {
                a.initiate(&to_b)
            } else {
                b.initiate(&to_a)
            }
            exchange(&mut a, &mut b);
            assert_eq!(agreed(&to_b, &to_a), if a_aes && b_aes { AES } else { CHACHA });
            both_ways(&mut a, &to_b, &mut b, &to_a);
        }
    }
}

#[test]
fn what_was_said_in_the_handshake_counts_and_not_what_changes_meanwhile() {
    // The initiator changes its mind before the response comes, or the responder after it was sent.
    for (of_a, before) in [(true, true), (true, false), (false, true), (false, false)] {
        let (mut a, to_b, mut b, to_a) = willing(!of_a || before, of_a || before);
        a.initiate(&to_b);
        if of_a {
            to_b.set_aes(!before);
        }
        b.receive(address(1), &a.sent_one()).expect("accepted");
        if !of_a {
            to_a.set_aes(!before);
        }
        exchange(&mut a, &mut b);
        assert_eq!(agreed(&to_b, &to_a), if before { AES } else { CHACHA });
        both_ways(&mut a, &to_b, &mut b, &to_a);
    }
}

#[test]
fn a_change_holds_from_the_next_handshake_on() {
    let (mut a, to_b, mut b, to_a) = willing(true, true);
    a.initiate(&to_b);
    exchange(&mut a, &mut b);
    for (a_aes, b_aes) in [(false, true), (true, true), (true, false), (true, true)] {
        let before = agreed(&to_b, &to_a);
        to_b.set_aes(a_aes);
        to_a.set_aes(b_aes);
        both_ways(&mut a, &to_b, &mut b, &to_a);
        assert_eq!(agreed(&to_b, &to_a), before);
        a.now += secs(121);
        b.now = a.now;
        // The session is renewed, and what is on its way on the old one still arrives.
        let late = b.seal(&to_a, b"late").expect("a session");
        carry(&mut a, &to_b, &mut b, b"x");
        exchange(&mut a, &mut b);
        assert_eq!(a.receive(address(2), &late), Ok(Got::Data(b"late".to_vec())));
        assert_eq!(agreed(&to_b, &to_a), if a_aes && b_aes { AES } else { CHACHA });
    }
}

#[test]
fn crossing_handshakes_may_have_different_ciphers() {
    for a_changes in [true, false] {
        let (mut a, to_b, mut b, to_a) = willing(true, true);
        a.initiate(&to_b);
        b.initiate(&to_a);
        let (to, from_a, from_b) = (if a_changes { &to_b } else { &to_a }, a.sent_one(), b.sent_one());
        // One handshake is about to be answered by a node that was willing when it sent its own.
        to.set_aes(false);
        b.receive(address(1), &from_a).expect("accepted");
        a.receive(address(2), &from_b).expect("accepted");
        exchange(&mut a, &mut b);
        for _ in 0..3 {
            both_ways(&mut a, &to_b, &mut b, &to_a);
        }
    }
}

#[test]
fn aes_keys_are_others_than_those_of_chacha_and_differ_between_directions() {
    let keys = |aes: bool| {
        let (mut a, to_b, mut b, to_a) = willing(aes, aes);
        a.initiate(&to_b);
        exchange(&mut a, &mut b);
        let [ours, theirs] = [&to_b, &to_a].map(|p| *p.current().expect("a session").raw_keys());
        assert_eq!(ours, [theirs[1], theirs[0]]);
        ours
    };
    // The same randomness gives the same transport keys.
    let (chacha, aes) = (keys(false), keys(true));
    assert_eq!(aes, chacha.map(|k| *aes_key(&k.into())));
    assert_eq!(HashSet::from([chacha[0], chacha[1], aes[0], aes[1]]).len(), 4);
}

#[test]
fn a_session_with_aes_ends_sooner() {
    let (mut a, to_b, mut b, to_a) = willing(true, true);
    a.initiate(&to_b);
    exchange(&mut a, &mut b);
    a.now += secs(10);
    b.now = a.now;
    let s = to_a.current().expect("a session");
    s.set_counter(limits::AES_REKEY_AFTER_MESSAGES - 1);
    carry(&mut b, &to_a, &mut a, b"x");
    assert_eq!(classify(&b.sent_one()), Kind::Initiation, "either end renews it");
    s.set_counter(limits::AES_REJECT_AFTER_MESSAGES - 10);
    assert_eq!(s.reserve(11), None);
    assert_eq!(s.reserve(10), Some(limits::AES_REJECT_AFTER_MESSAGES - 10));
    assert_eq!((s.reserve(1), s.reserve(u64::MAX)), (None, None));
    // Whoever goes on nevertheless is not followed.
    for (counter, got) in [(0, Err(Drop::Replayed)), (1, Ok(Got::Keepalive))] {
        let counter = limits::AES_REJECT_AFTER_MESSAGES - counter;
        let mut m = [&data_header(s.remote_index, counter)[..], &[0; TAG_LEN]].concat();
        crypto::seal(&mut [Job::new(s.send_key(), counter, &mut m[DATA_HEADER_LEN..])]);
        assert_eq!(a.receive(address(2), &m), got, "counter {counter}");
    }
}

/// A plain peer's index that looks like "yes" by chance; or somebody in between who rewrites it.
#[test]
fn an_index_that_lies_makes_no_session_that_carries_and_the_next_handshake_mends_it() {
    for b_aes in [false, true] {
        let (mut a, to_b, mut b, to_a) = willing(true, b_aes);
        a.initiate(&to_b);
        let initiation = a.sent_one();
        b.receive(address(1), &initiation).expect("accepted");
        let mut response = b.sent_one();
        let index = u32::from_le_bytes(response[4..8].try_into().expect("four bytes"));
        let lie = Sign::of(&initiation).index(index, !b_aes) & RANDOM_BITS | index & !RANDOM_BITS;
        response[4..8].copy_from_slice(&lie.to_le_bytes());
        a.tunnel.mac_verifier().expect("identity").seal(&mut response, None);
        a.receive(address(2), &response).expect("Noise does not cover it");
        a.sent();
        let mut lost = a.seal(&to_b, b"lost").expect("a session");
        assert_eq!(b.receive(address(1), &lost), Err(Drop::UnknownReceiver));
        lost[4..8].copy_from_slice(&index.to_le_bytes());
        assert_eq!(b.receive(address(1), &lost), Err(Drop::Forged), "also not if all is rewritten");
        let again = a.run_until(START + secs(20));
        b.now = a.now;
        let again =
            again.into_iter().map(|m| m.1).find(|m| classify(m) == Kind::Initiation).expect("another handshake");
        b.receive(address(1), &again).expect("accepted");
        exchange(&mut a, &mut b);
        assert_eq!(agreed(&to_b, &to_a), if b_aes { AES } else { CHACHA });
        both_ways(&mut a, &to_b, &mut b, &to_a);
    }
}

#[test]
fn an_initiation_whose_index_was_changed_leads_nowhere() {
    let (mut a, to_b, mut b, to_a) = willing(true, true);
    a.initiate(&to_b);
    let mut initiation = a.sent_one();
    let index = initiation[4..8].to_vec();
    initiation[7] ^= 1;
    b.tunnel.mac_verifier().expect("identity").seal(&mut initiation, None);
    b.receive(address(1), &initiation).expect("Noise does not cover it");
    let mut response = b.sent_one();
    assert_eq!(a.receive(address(2), &response), Err(Drop::HandshakeRefused));
    response[8..12].copy_from_slice(&index);
    a.tunnel.mac_verifier().expect("identity").seal(&mut response, None);
    a.receive(address(2), &response).expect("Noise does not cover it");
    assert_eq!(to_b.current().map(|s| s.cipher()), Some(CHACHA), "the answer is to another initiation");
    for m in a.sent() {
        assert_eq!(b.receive(address(1), &m), Err(Drop::Forged));
    }
    assert!(to_a.current().is_none());
}
