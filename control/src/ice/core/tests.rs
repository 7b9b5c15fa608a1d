use super::Core;
use crate::ice::finder::{Chosen, Finder, Role, Wire};
use crate::ice::route::Route;
use crate::ice::stun::{Class, Key, View, Writer, attr, method};
use crate::ice::types::{IceEvent, TurnServer};
use crate::ice::{Credentials, ProbeError};
use dataplane::Path;
use proptest::prelude::*;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

const TURN: &str = "203.0.113.1:3478";

fn a(s: &str) -> SocketAddr {
    s.parse().expect("address")
}

fn credentials() -> Credentials {
    Credentials { ufrag: "ours".into(), password: "our-password".to_owned().into() }
}

fn core(now: Instant) -> Core {
    let mut c = Core::new(1000, false);
    c.set_hosts(vec!["198.18.0.1".parse().expect("ip")], now);
    let server = TurnServer { address: a(TURN), username: "u".into(), password: "p".to_owned().into() };
    c.set_servers(vec![a("203.0.113.2:3478")], vec![server], now);
    c.poll(now);
    c
}

fn request(username: &str, password: &str) -> Vec<u8> {
    Writer::new(Class::Request, method::BINDING, &[7; 12])
        .attr(attr::USERNAME, username.as_bytes())
        .u32(attr::PRIORITY, 1)
        .sign(&Key::short(password))
        .fingerprint()
        .finish()
}

proptest! {
    /// From anyone, also from our servers, inside of ChannelData, inside of Data indications.
    #[test]
    fn no_datagram_panics_or_is_answered_without_a_signature(
        body in proptest::collection::vec(any::<u8>(), 0..120),
        wrap in 0u8..5,
        from_server: bool,
        kind: u16,
    ) {
        let now = Instant::now();
        let mut c = core(now);
        c.answer_probes(&credentials());
        c.take_transmits();
        let from = if from_server { a(TURN) } else { a("198.51.100.1:9") };
        let bytes = match wrap {
            0 => body,
            1 => Writer::new(Class::Request, kind & 0xfff, &[1; 12]).attr(kind, &body).finish(),
            2 => Writer::new(Class::Success, method::ALLOCATE, &[1; 12]).attr(kind, &body).finish(),
            3 => Writer::new(Class::Indication, method::DATA, &[1; 12])
                .xor_address(attr::XOR_PEER_ADDRESS, a("1.2.3.4:5"))
                .attr(attr::DATA, &request("ours:x", "wrong"))
                .attr(kind, &body)
                .finish(),
            _ => [&[0x40, 1, 0, body.len() as u8][..], &body].concat(),
        };
        c.receive(from, &bytes, now);
        prop_assert!(c.take_transmits().is_empty());
        prop_assert_eq!(c.drops.malformed + c.drops.unknown + c.drops.forged, 1);
    }
}

#[test]
fn probes_are_answered_while_the_link_lives_and_only_with_the_right_password() {
    let now = Instant::now();
    let mut c = core(now);
    c.take_transmits();
    let from = a("198.51.100.1:9");
    c.receive(from, &request("ours:theirs", "our-password"), now);
    assert_eq!((c.take_transmits().len(), c.drops.unknown), (0, 1), "nobody's");
    c.answer_probes(&credentials());
    c.receive(from, &request("ours:theirs", "guess"), now);
    assert_eq!((c.take_transmits().len(), c.drops.forged), (0, 1));
    c.receive(from, &request("ours:theirs", "our-password"), now);
    let out = c.take_transmits();
    assert_eq!(out.len(), 1);
    assert_eq!(out[0].path, Path::Direct(from));
    let v = View::parse(&out[0].bytes).expect("ours");
    assert!(v.class() == Class::Success && v.signed_by(&Key::short("our-password")) && v.mapped() == Some(from));
    c.forget("ours");
    c.receive(from, &request("ours:theirs", "our-password"), now);
    assert!(c.take_transmits().is_empty());
}

#[test]
fn a_probe_of_the_peer_is_a_sign_of_life() {
    let now = Instant::now();
    let mut c = core(now);
    c.answer_probes(&credentials());
    c.take_events();
    let from = a("198.51.100.1:9");
    c.receive(from, &request("ours:theirs", "guess"), now);
    assert_eq!(c.take_events(), []);
    let heard = [IceEvent::Heard { ufrag: "ours".into() }];
    assert!(!c.receive(from, &request("ours:theirs", "our-password"), now), "nothing follows but the answer");
    assert_eq!((c.take_events(), c.take_transmits().len()), (heard.to_vec(), 3));
    // However many come.
    for _ in 0..100 {
        c.receive(from, &request("ours:theirs", "our-password"), now + Duration::from_millis(100));
    }
    assert_eq!(c.take_events(), []);
    c.receive(from, &request("ours:theirs", "our-password"), now + Duration::from_secs(1));
    assert_eq!(c.take_events(), heard);
}

#[test]
fn what_comes_through_the_tunnel_is_not_answered() {
    let now = Instant::now();
    let mut c = core(now);
    c.answer_probes(&credentials());
    c.set_overlay(vec!["172.16.10.0/24".parse().expect("prefix")], now);
    c.take_transmits();
    c.receive(a("172.16.10.3:9"), &request("ours:theirs", "our-password"), now);
    assert_eq!((c.take_transmits().len(), c.take_events(), c.drops.unknown), (0, vec![], 1));
    c.set_hosts(vec!["198.18.0.1".parse().expect("ip"), "172.16.10.2".parse().expect("ip")], now);
    assert!(c.local_candidates().iter().all(|c| c.address == a("198.18.0.1:1000")), "{:?}", c.local_candidates());
}

/// Answers what was asked of STUN servers.
fn answer_bindings(c: &mut Core, mapped: &str, now: Instant) {
    for t in c.take_transmits() {
        let v = View::parse(&t.bytes).expect("ours");
        if let (Path::Direct(server), method::BINDING) = (t.path, v.method()) {
            let answer = Writer::new(Class::Success, method::BINDING, &v.tid());
            c.receive(server, &answer.xor_address(attr::XOR_MAPPED_ADDRESS, a(mapped)).finish(), now);
        }
    }
}

#[test]
fn a_rebooted_nat_is_one_event_however_many_servers_see_it() {
    let mut now = Instant::now();
    let mut c = Core::new(1000, false);
    c.set_hosts(vec!["10.0.0.1".parse().expect("ip")], now);
    c.set_servers(["203.0.113.2:3478", "203.0.113.3:3478", "203.0.113.4:3478"].map(a).to_vec(), vec![], now);
    let mut see = |mapped: &str| {
        let until = now + Duration::from_secs(25);
        while now < until {
            c.poll(now);
            answer_bindings(&mut c, mapped, now);
            now = c.next().expect("servers are asked").max(now + Duration::from_millis(1));
        }
        c.take_events().len()
    };
    assert_eq!(see("198.18.0.1:5"), 0, "the first address is no change");
    assert_eq!(see("198.18.0.1:6"), 1);
    assert_eq!(see("198.18.0.1:6"), 0);
    assert_eq!(see("198.18.0.1:7"), 1);
}

#[test]
fn only_addresses_that_a_path_can_begin_at_are_a_change() {
    let now = Instant::now();
    let mut c = Core::new(1000, false);
    let mut set = |list: &[&str]| {
        c.set_hosts(list.iter().map(|x| x.parse().expect("ip")).collect(), now);
        c.take_events().len()
    };
    assert_eq!(set(&["10.0.0.1", "2001:db8::1"]), 0, "the first ones are no change");
    assert_eq!(set(&["2001:db8::1", "10.0.0.1", "fe80::1", "::ffff:10.0.0.1", "2001:db8::1"]), 0);
    assert_eq!(set(&["10.0.0.1", "2001:db8::1", "fe80::2"]), 0);
    assert_eq!(set(&["10.0.0.1"]), 1, "one went");
    assert_eq!(set(&["10.0.0.1", "10.7.0.1"]), 1, "one came");
}

struct Nowhere;

impl Wire for Nowhere {
    fn send(&self, _: Route, _: &[u8]) {}
    fn want_relays(&self) {}
    fn bind(&self, _: SocketAddr, _: SocketAddr) {}
    fn done(&self, _: Result<Chosen, String>) {}
}

#[tokio::test]
async fn a_negotiation_that_is_given_up_answers_nobody() {
    let now = Instant::now();
    let mut c = Core::new(1000, false);
    let (tx, _candidates) = mpsc::unbounded_channel();
    let (otx, _outcome) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let start =
        |_, private| Finder::new(&runtime, Role::Controlled, credentials(), private, std::sync::Arc::new(Nowhere));
    let id = c.negotiate(&credentials(), tx, otx, start, now).expect("room");
    c.close_agent(id, false, now);
    c.receive(a("198.51.100.1:9"), &request("ours:theirs", "our-password"), now);
    assert_eq!((c.take_transmits().len(), c.drops.unknown, c.next()), (0, 1, None));
}

#[tokio::test]
async fn a_closed_negotiation_answers_for_a_moment_and_leaves_nothing() {
    let mut now = Instant::now();
    let mut c = Core::new(1000, false);
    let (tx, mut candidates) = mpsc::unbounded_channel();
    let (otx, mut outcome) = oneshot::channel();
    c.set_hosts(vec!["198.18.0.1".parse().expect("ip")], now);
    let runtime = tokio::runtime::Handle::current();
    let start =
        |_, private| Finder::new(&runtime, Role::Controlled, credentials(), private, std::sync::Arc::new(Nowhere));
    let id = c.negotiate(&credentials(), tx, otx, start, now).expect("room");
    assert_eq!(candidates.try_recv().expect("host").len(), 1);
    assert!(candidates.try_recv().is_err() && candidates.is_closed(), "without servers that is all");
    let from = a("198.51.100.1:9");
    c.close_agent(id, true, now);
    assert!(outcome.try_recv().expect("told").is_err());
    c.receive(from, &request("ours:theirs", "our-password"), now);
    assert_eq!(c.take_transmits().len(), 1);
    now = c.next().expect("the end of that");
    c.poll(now);
    c.receive(from, &request("ours:theirs", "our-password"), now);
    assert_eq!((c.take_transmits().len(), c.next()), (0, None), "nothing is waited for any more");
    assert!(c.agents.is_empty() && c.ufrags.is_empty() && c.tids.is_empty() && c.lingering.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_negotiation_that_failed_answers_nobody() {
    let now = Instant::now();
    let mut c = Core::new(1000, false);
    let (tx, _candidates) = mpsc::unbounded_channel();
    let (otx, _outcome) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let start =
        |_, private| Finder::new(&runtime, Role::Controlled, credentials(), private, std::sync::Arc::new(Nowhere));
    let id = c.negotiate(&credentials(), tx, otx, start, now).expect("room");
    // The peer's credentials do not come.
    tokio::time::sleep(Duration::from_secs(31)).await;
    c.receive(a("198.51.100.1:9"), &request("ours:theirs", "our-password"), now);
    assert_eq!((c.take_transmits().len(), c.drops.unknown), (0, 1));
    c.close_agent(id, true, now);
    c.receive(a("198.51.100.1:9"), &request("ours:theirs", "our-password"), now);
    assert_eq!((c.take_transmits().len(), c.drops.unknown), (0, 2));
}

#[test]
fn a_probe_without_an_answer_ends() {
    let mut now = Instant::now();
    let mut c = Core::new(1000, false);
    let (tx, mut rx) = oneshot::channel();
    let id = c.probe(Path::Direct(a("198.51.100.1:9")), &credentials(), &credentials(), tx, now).expect("room");
    let start = now;
    let mut sent = c.take_transmits().len();
    assert_eq!(c.next(), None, "nobody else is woken");
    while let Some(next) = c.probe_next(id) {
        now = next;
        c.poll_probe(id, now);
        sent += c.take_transmits().len();
    }
    assert_eq!(rx.try_recv(), Ok(Err(ProbeError::NoAnswer)));
    assert_eq!((sent, now - start), (4, Duration::from_secs(2)));
    assert!(c.tids.is_empty());
    let (tx, mut rx) = oneshot::channel();
    c.probe(Path::Relay { server: a(TURN), channel: 0x4000 }, &credentials(), &credentials(), tx, now);
    assert_eq!(rx.try_recv(), Ok(Err(ProbeError::NoSuchChannel)));
}

#[test]
fn a_server_that_is_silent_is_asked_again_for_ever_but_seldom() {
    let start = Instant::now();
    let mut c = core(start);
    let mut sent = c.take_transmits().len();
    let mut now = start;
    while now < start + Duration::from_secs(3600) {
        now = c.next().expect("servers are asked again");
        c.poll(now);
        sent += c.take_transmits().len();
    }
    assert!(
        c.servers().iter().all(|s| s.error.as_ref().is_some_and(|e| e.contains("not answer"))),
        "{:?}",
        c.servers()
    );
    assert!((500..1200).contains(&sent), "{sent} requests to two servers in an hour");
}
