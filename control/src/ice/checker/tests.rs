use super::{Checker, Chosen, Output, Relay, Role};
use crate::ice::candidate::{Candidate, CandidateKind, Credentials};
use crate::ice::route::Route;
use crate::ice::stun::{Class, View};
use proptest::prelude::*;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);

fn a(s: &str) -> SocketAddr {
    s.parse().expect("address")
}

fn candidate(address: &str, kind: CandidateKind) -> Candidate {
    let address = a(address);
    let priority = super::priority(kind, super::preference(address));
    Candidate { foundation: "f".into(), priority, address, kind, related: None }
}

fn credentials(n: usize) -> Credentials {
    Credentials { ufrag: format!("ufrag{n}"), password: format!("password-password-{n}") }
}

/// A simulated pair: which (sender, route) gets through and as which route it comes in on the other side.
struct World {
    now: Instant,
    ends: [Checker; 2],
    outcome: [Option<Result<Chosen, String>>; 2],
    /// In flight: when, to whom, as which route, what.
    wire: Vec<(Instant, usize, Route, Vec<u8>)>,
    /// Sends of end i over route r come in at the other end as route s, after a delay.
    links: Vec<(usize, Route, Route, Duration)>,
    channels: i32,
    /// State of a small generator; one in six datagrams is lost. 0: none.
    lose: u64,
}

impl World {
    fn new(roles: [Role; 2], candidates: [&[Candidate]; 2], relays: [Vec<Relay>; 2]) -> Self {
        let now = Instant::now();
        let mut ends = [0, 1].map(|i| Checker::new(roles[i], credentials(i), false, now));
        for i in 0..2 {
            let locals = candidates[i].iter().map(|c| (c.address, c.kind)).collect();
            ends[i].set_local((true, true), locals, relays[i].clone(), true);
        }
        for i in 0..2 {
            ends[i].add_remote(candidates[1 - i]);
            ends[i].add_remote(&[]);
            ends[i].set_remote(&credentials(1 - i), now);
        }
        let (wire, links) = (Vec::new(), Vec::new());
        Self { now, ends, outcome: [None, None], wire, links, channels: 0, lose: 0 }
    }

    /// Both ways between two routes.
    fn link(&mut self, from0: Route, from1: Route, delay: Duration) {
        // What end 0 sends to `from0` is seen by end 1 as coming from `from1`, and the other way round.
        self.links.push((0, from0, from1, delay));
        self.links.push((1, from1, from0, delay));
    }

    fn outputs(&mut self) {
        for i in 0..2 {
            loop {
                let list = self.ends[i].take_outputs();
                if list.is_empty() {
                    break;
                }
                for o in list {
                    match o {
                        Output::Send(route, bytes) => {
                            self.lose = self.lose.wrapping_mul(6_364_136_223_846_793_005);
                            if self.lose != 0 && (self.lose >> 33).is_multiple_of(6) {
                                continue;
                            }
                            if let Some(l) = self.links.iter().find(|l| l.0 == i && l.1 == route) {
                                self.wire.push((self.now + l.3, 1 - i, l.2, bytes));
                            }
                        }
                        Output::Expect(_) => {}
                        Output::Permit { server, ip } => self.ends[i].permitted(server, ip, true),
                        Output::Bind { server, peer } => {
                            self.channels += 1;
                            assert!(self.ends[i].bound(server, peer, &Ok(0x4000)));
                        }
                        Output::Release { .. } => self.channels -= 1,
                        Output::Done(r) => assert!(self.outcome[i].replace(r).is_none(), "ended twice"),
                    }
                }
            }
        }
    }

    fn run(&mut self, limit: Duration) -> Duration {
        let start = self.now;
        for _ in 0..100_000 {
            self.outputs();
            if self.outcome.iter().all(Option::is_some) && self.wire.is_empty() || self.now - start > limit {
                break;
            }
            let timers = self.ends.iter().filter_map(Checker::next);
            let Some(next) = timers.chain(self.wire.iter().map(|w| w.0)).min() else { break };
            self.now = self.now.max(next);
            let (due, rest) = std::mem::take(&mut self.wire).into_iter().partition(|w| w.0 <= self.now);
            self.wire = rest;
            let due: Vec<(Instant, usize, Route, Vec<u8>)> = due;
            for (_, to, route, bytes) in due {
                let v = View::parse(&bytes).expect("ours");
                if v.class() == Class::Request {
                    assert!(self.ends[to].request(route, &v));
                } else {
                    self.ends[to].response(v.tid(), route, &v, self.now);
                }
            }
            for e in &mut self.ends {
                e.poll(self.now);
            }
        }
        self.now - start
    }

    fn chosen(&self, i: usize) -> &Chosen {
        self.outcome[i].as_ref().expect("ended").as_ref().expect("a path")
    }
}

const ROLES: [Role; 2] = [Role::Controlling, Role::Controlled];
const H0: &str = "192.168.1.10:1000";
const H1: &str = "192.168.2.10:2000";
const S0: &str = "198.18.0.1:1000";
const S1: &str = "198.18.0.2:2000";
const SERVER: &str = "203.0.113.1:3478";
const R0: &str = "203.0.113.1:50000";
const R1: &str = "203.0.113.1:50001";

fn everything() -> [Vec<Candidate>; 2] {
    use CandidateKind::{Host, Relayed, ServerReflexive};
    let all = |h, s, r| vec![candidate(h, Host), candidate(s, ServerReflexive), candidate(r, Relayed)];
    [all(H0, S0, R0), all(H1, S1, R1)]
}

fn relays() -> [Vec<Relay>; 2] {
    [R0, R1].map(|r| vec![Relay { server: a(SERVER), relayed: a(r) }])
}

fn via(peer: &str) -> Route {
    Route::Relay { server: a(SERVER), peer: a(peer) }
}

fn full() -> World {
    let c = everything();
    World::new(ROLES, [&c[0], &c[1]], relays())
}

#[test]
fn cone_nats_meet_directly_though_the_relay_answers_first() {
    let mut w = full();
    w.link(Route::Direct(a(S1)), Route::Direct(a(S0)), 80 * MS);
    w.link(via(S1), Route::Direct(a(R0)), MS);
    w.link(Route::Direct(a(R1)), via(S0), MS);
    w.link(via(R1), via(R0), MS);
    let took = w.run(10_000 * MS);
    for i in 0..2 {
        assert_eq!(w.chosen(i).remote_kind, CandidateKind::ServerReflexive, "{:?}", w.chosen(i));
        assert_eq!(w.chosen(i).local_kind, CandidateKind::ServerReflexive);
        assert!(w.chosen(i).why.starts_with("direct"), "{}", w.chosen(i).why);
    }
    assert!(took < 1000 * MS, "{took:?}");
    assert_eq!(w.channels, 0, "channels that were bound for nothing are given back");
}

#[test]
fn a_lan_is_preferred_to_a_hairpin() {
    let mut w = full();
    w.link(Route::Direct(a(S1)), Route::Direct(a(S0)), MS);
    w.link(Route::Direct(a(H1)), Route::Direct(a(H0)), 5 * MS);
    w.run(10_000 * MS);
    assert_eq!(w.chosen(0).route, Route::Direct(a(H1)));
    assert_eq!(w.chosen(1).route, Route::Direct(a(H0)));
}

#[test]
fn one_relay_is_preferred_to_two_and_the_reason_is_told() {
    let mut w = full();
    w.link(via(R1), via(R0), 5 * MS);
    // End 1 is behind a symmetric NAT: its port towards the relay was never signalled.
    w.link(via("198.18.0.2:7777"), Route::Direct(a(R0)), 20 * MS);
    let took = w.run(10_000 * MS);
    assert_eq!(w.chosen(0).route, via("198.18.0.2:7777"));
    assert_eq!(w.chosen(1).route, Route::Direct(a(R0)));
    assert_eq!(w.chosen(1).remote_kind, CandidateKind::Relayed);
    assert_eq!(w.chosen(0).channel, Some(0x4000));
    assert!(w.chosen(0).why.contains("none of 2 direct checks was answered"), "{}", w.chosen(0).why);
    assert!(took < 2000 * MS, "{took:?}");
    assert_eq!(w.channels, 1);
}

#[test]
fn two_relays_do_when_nothing_else_does() {
    let mut w = full();
    w.link(via(R1), via(R0), 5 * MS);
    let took = w.run(10_000 * MS);
    assert_eq!((w.chosen(0).route, w.chosen(1).route), (via(R1), via(R0)));
    assert!(took < 2000 * MS && w.channels == 2, "{took:?}");
}

#[test]
fn without_any_way_both_fail_in_time_and_say_what_was_tried() {
    let mut w = full();
    let took = w.run(20_000 * MS);
    for o in &w.outcome {
        let why = o.as_ref().expect("ended").as_ref().expect_err("no path");
        assert!(why.contains("1 host, 1 srflx, 1 relay"), "{why}");
    }
    assert!(took <= 10_100 * MS && w.channels == 0, "{took:?}");
}

#[test]
fn a_role_conflict_is_resolved() {
    for role in [Role::Controlling, Role::Controlled] {
        let c = everything();
        let mut w = World::new([role; 2], [&c[0], &c[1]], relays());
        w.link(Route::Direct(a(S1)), Route::Direct(a(S0)), 10 * MS);
        w.run(10_000 * MS);
        assert_eq!(w.chosen(0).route, Route::Direct(a(S1)));
        assert_eq!(w.chosen(1).route, Route::Direct(a(S0)));
    }
}

#[test]
fn requests_before_the_answer_are_not_lost() {
    let c = everything();
    let now = Instant::now();
    let mut early = Checker::new(Role::Controlling, credentials(0), false, now);
    early.set_local((true, true), Vec::new(), Vec::new(), true);
    let mut other = Checker::new(Role::Controlled, credentials(1), false, now);
    other.set_remote(&credentials(0), now);
    other.add_remote(&c[0]);
    other.poll(now);
    let check = other.take_outputs().into_iter().find_map(|o| match o {
        Output::Send(Route::Direct(_), bytes) => Some(bytes),
        _ => None,
    });
    let bytes = check.expect("a check");
    let v = View::parse(&bytes).expect("ours");
    assert!(early.request(Route::Direct(a("198.18.9.9:99")), &v));
    early.set_remote(&credentials(1), now);
    early.poll(now);
    let to: Vec<Route> = early
        .take_outputs()
        .into_iter()
        .filter_map(|o| match o {
            Output::Send(r, _) => Some(r),
            _ => None,
        })
        .collect();
    assert_eq!(to, [Route::Direct(a("198.18.9.9:99")); 2], "an answer, then a check of its own");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever of the ways works, with loss: both sides end, agree, and take the one with the fewest relays.
    #[test]
    fn both_sides_agree(works in proptest::collection::vec(any::<bool>(), 5), delays in proptest::collection::vec(1u64..120, 5), lose in prop_oneof![Just(0u64), any::<u32>().prop_map(|s| u64::from(s) * 2 + 1)]) {
        let mut w = full();
        w.lose = lose;
        let ways = [
            (Route::Direct(a(H1)), Route::Direct(a(H0)), 0),
            (Route::Direct(a(S1)), Route::Direct(a(S0)), 0),
            (via(S1), Route::Direct(a(R0)), 1),
            (Route::Direct(a(R1)), via(S0), 1),
            (via(R1), via(R0), 2),
        ];
        let mut possible = HashSet::new();
        for (i, (x, y, hops)) in ways.iter().enumerate() {
            if works[i] {
                w.link(*x, *y, Duration::from_millis(delays[i]));
                possible.insert(*hops);
            }
        }
        let took = w.run(Duration::from_secs(15));
        prop_assert!(w.outcome.iter().all(Option::is_some), "no end");
        prop_assert!(took < Duration::from_millis(10_200));
        if possible.is_empty() {
            prop_assert!(w.outcome.iter().all(|o| matches!(o, Some(Err(_)))));
            prop_assert_eq!(w.channels, 0);
        } else {
            prop_assert!(w.outcome.iter().all(|o| matches!(o, Some(Ok(_)))), "{:?}", w.outcome);
            let (x, y) = (w.chosen(0), w.chosen(1));
            let way = ways.iter().find(|v| v.0 == x.route && v.1 == y.route);
            prop_assert!(way.is_some(), "{:?} and {:?} are not the same way", x.route, y.route);
            let hops = way.map_or(9, |v| v.2);
            let best = possible.iter().min().copied().unwrap_or(9);
            if lose == 0 {
                prop_assert_eq!(hops, best);
            }
            prop_assert_eq!(w.channels, hops);
        }
    }
}
