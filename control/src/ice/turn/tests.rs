use super::{Account, Turn, TurnEvent};
use crate::ice::route::Transmit;
use crate::ice::stun::{Class, Key, View, Writer, attr, method};
use dataplane::Path;
use proptest::prelude::*;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

const SERVER: &str = "203.0.113.1:3478";
const RELAYED: &str = "203.0.113.1:50000";
const MAPPED: &str = "198.18.0.1:1000";

fn a(s: &str) -> SocketAddr {
    s.parse().expect("address")
}

fn ip(s: &str) -> IpAddr {
    s.parse().expect("ip")
}

/// A server as RFC 8656 has it, in memory.
struct Server {
    password: &'static str,
    nonce: u32,
    allocated: bool,
    forbidden: Option<IpAddr>,
    silent: bool,
    sign: bool,
    channels: HashMap<u16, SocketAddr>,
    requests: usize,
    allocations: usize,
    /// Answers everything but Allocate with this.
    amnesia: Option<u16>,
    refuse_channels: Option<u16>,
    /// As ejabberd's counts: those that are permitted and those that are asked for have to be fewer.
    max_permissions: usize,
    permissions: std::collections::HashSet<IpAddr>,
}

impl Server {
    fn new() -> Self {
        Self {
            password: "secret",
            nonce: 1,
            allocated: false,
            forbidden: None,
            silent: false,
            sign: true,
            channels: HashMap::new(),
            requests: 0,
            allocations: 0,
            amnesia: None,
            refuse_channels: None,
            max_permissions: usize::MAX,
            permissions: Default::default(),
        }
    }

    fn restart(&mut self) {
        self.allocated = false;
        self.nonce += 100;
        self.channels.clear();
    }

    fn answer(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let v = View::parse(bytes).expect("well-formed");
        if v.class() != Class::Request || self.silent {
            return None;
        }
        self.requests += 1;
        let (m, tid) = (v.method(), v.tid());
        let nonce = format!("nonce{}", self.nonce);
        let error = |code, phrase: &str| {
            let w = Writer::new(Class::Error, m, &tid).error(code, phrase);
            Some(w.attr(attr::REALM, b"tests").attr(attr::NONCE, nonce.as_bytes()).finish())
        };
        let ok = Writer::new(Class::Success, m, &tid);
        if m == method::BINDING {
            return Some(ok.xor_address(attr::XOR_MAPPED_ADDRESS, a(MAPPED)).finish());
        }
        let key = Key::long("user", "tests", self.password);
        match v.text(attr::NONCE) {
            None => return error(401, "Unauthorized"),
            Some(n) if n != nonce => return error(438, "Stale Nonce"),
            Some(_) if !v.signed_by(&key) => return error(401, "Unauthorized"),
            Some(_) => {}
        }
        let w = match m {
            method::ALLOCATE => {
                if std::mem::replace(&mut self.allocated, true) {
                    return error(437, "Allocation Mismatch");
                }
                self.allocations += 1;
                ok.xor_address(attr::XOR_RELAYED_ADDRESS, a(RELAYED)).xor_address(attr::XOR_MAPPED_ADDRESS, a(MAPPED))
            }
            method::REFRESH if v.u32(attr::LIFETIME) == Some(0) => {
                self.allocated = false;
                ok
            }
            _ if self.amnesia.is_some() => return error(self.amnesia.unwrap_or(0), "Forgotten"),
            _ if !self.allocated => return error(437, "Allocation Mismatch"),
            method::REFRESH => ok.u32(attr::LIFETIME, 600),
            method::CREATE_PERMISSION => {
                let asked = v.peers();
                if self.forbidden.is_some_and(|f| asked.contains(&f)) {
                    return error(403, "Forbidden");
                }
                if self.permissions.len() + asked.len() >= self.max_permissions {
                    return error(508, "Insufficient Capacity");
                }
                self.permissions.extend(asked);
                ok
            }
            method::CHANNEL_BIND if self.refuse_channels.is_some() => {
                return error(self.refuse_channels.unwrap_or(0), "No");
            }
            method::CHANNEL_BIND => {
                let number = (v.u32(attr::CHANNEL_NUMBER).expect("a number") >> 16) as u16;
                let peer = v.xor_address(attr::XOR_PEER_ADDRESS).expect("a peer");
                let other = self.channels.iter().any(|(n, p)| (*n == number) != (*p == peer));
                if other {
                    return error(400, "Bad Request");
                }
                self.channels.insert(number, peer);
                ok
            }
            _ => return error(400, "Bad Request"),
        };
        Some(if self.sign { w.sign(&key).finish() } else { w.finish() })
    }
}

struct Scene {
    turn: Turn,
    server: Server,
    now: Instant,
    out: Vec<Transmit>,
    events: Vec<TurnEvent>,
    /// Pseudo-random loss of one in four; 0: none.
    lose: u64,
}

fn account(password: &str) -> Account {
    Account { username: "user".into(), password: password.to_owned().into() }
}

impl Scene {
    fn new() -> Self {
        let now = Instant::now();
        let turn = Turn::new(a(SERVER), account("secret"), now);
        Self { turn, server: Server::new(), now, out: Vec::new(), events: Vec::new(), lose: 0 }
    }

    fn up() -> Self {
        let mut s = Self::new();
        s.run(Duration::from_secs(1));
        assert_eq!(s.take(), [TurnEvent::Up]);
        s
    }

    fn lost(&mut self) -> bool {
        self.lose = self.lose.wrapping_mul(6_364_136_223_846_793_005);
        self.lose != 0 && (self.lose >> 33).is_multiple_of(4)
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            self.turn.poll(self.now, &mut self.out);
            while let Some(t) = self.out.pop() {
                if self.lost() || t.path != Path::Direct(a(SERVER)) {
                    continue;
                }
                if let Some(answer) = self.server.answer(&t.bytes).filter(|_| !self.lost()) {
                    let v = View::parse(&answer).expect("well-formed");
                    self.turn.handle(&v, self.now, &mut self.out);
                }
            }
            self.events.extend(self.turn.take_events());
            let next = self.turn.next().max(self.now);
            if next > until {
                self.now = until;
                return;
            }
            // A step that stands still would be a loop without end in the daemon.
            self.now = next.max(self.now + Duration::from_micros(1));
        }
    }

    fn take(&mut self) -> Vec<TurnEvent> {
        std::mem::take(&mut self.events)
    }

    /// Binds and says the number.
    fn bound(&mut self, peer: &str) -> u16 {
        match self.bind(peer)[..] {
            [TurnEvent::Bound(to, Ok(number))] if to == a(peer) => number,
            ref other => panic!("{other:?}"),
        }
    }

    fn bind(&mut self, peer: &str) -> Vec<TurnEvent> {
        self.turn.bind(a(peer), self.now, &mut self.out);
        self.run(Duration::from_millis(1));
        self.take()
    }
}

#[test]
fn an_allocation_is_made_and_outlives_its_lifetime_and_its_nonces() {
    let mut s = Scene::up();
    assert_eq!((s.turn.relayed, s.turn.mapped), (Some(a(RELAYED)), Some(a(MAPPED))));
    for _ in 0..30 {
        s.server.nonce += 1;
        s.run(Duration::from_secs(120));
    }
    assert!(s.take().is_empty() && s.server.allocated);
    assert!(s.server.requests < 900, "{} requests in an hour", s.server.requests);
}

#[test]
fn a_restarted_server_is_noticed_soon_while_there_are_links() {
    let mut s = Scene::up();
    s.turn.set_busy(true, s.now);
    s.bound("198.18.0.9:9");
    let old = s.turn.lease(a("198.18.0.9:9")).expect("bound");
    s.server.restart();
    s.run(Duration::from_secs(5));
    let events = s.take();
    assert!(matches!(events[..], [TurnEvent::Lost(_), TurnEvent::Up]), "{events:?}");
    assert_eq!(s.turn.channels_in_use(), 0);
    s.bound("198.18.0.9:9");
    let new = s.turn.lease(a("198.18.0.9:9")).expect("bound");
    // One of the time before ends nothing of now.
    drop(old);
    assert_eq!(s.turn.channels_in_use(), 1);
    drop(new);
    assert_eq!(s.turn.channels_in_use(), 0);
}

#[test]
fn an_allocation_in_doubt_is_not_offered_until_the_server_confirms_it() {
    let mut s = Scene::up();
    s.turn.look(s.now);
    assert_eq!((s.turn.offered(), s.turn.is_settled()), (None, false));
    s.run(Duration::from_millis(1));
    assert_eq!(s.take(), [TurnEvent::Confirmed]);
    assert_eq!((s.turn.offered(), s.turn.is_settled()), (Some(a(RELAYED)), true));
}

#[test]
fn silence_puts_an_allocation_in_doubt_and_the_first_answer_ends_that() {
    let mut s = Scene::up();
    s.turn.set_busy(true, s.now);
    let number = s.bound("198.18.0.9:9");
    let _lease = s.turn.lease(a("198.18.0.9:9"));
    s.server.silent = true;
    for _ in 0..10 {
        s.run(Duration::from_secs(20));
        // As if nothing had happened, but that people see it.
        assert_eq!(s.turn.offered(), Some(a(RELAYED)));
        assert_eq!(s.turn.wrap(a("198.18.0.9:9"), vec![1; 4]).path, Path::Relay { server: a(SERVER), channel: number });
        assert!(s.turn.error.as_ref().is_some_and(|e| e.contains("does not answer")));
    }
    assert_eq!(s.take(), [TurnEvent::Doubtful]);
    s.server.silent = false;
    s.run(Duration::from_millis(1100));
    assert_eq!((s.take(), &s.turn.error), (vec![TurnEvent::Confirmed], &None));
}

#[test]
fn a_server_without_a_route_puts_the_allocation_in_doubt_too() {
    let mut s = Scene::up();
    s.turn.unreachable(s.now);
    assert_eq!((s.turn.offered(), s.turn.take_events()), (Some(a(RELAYED)), vec![TurnEvent::Doubtful]));
    s.run(Duration::from_secs(20));
    assert_eq!(s.take(), [TurnEvent::Confirmed]);
}

#[test]
fn a_restart_after_silence_is_noticed_within_two_seconds() {
    let mut s = Scene::up();
    s.turn.set_busy(true, s.now);
    s.server.silent = true;
    s.run(Duration::from_secs(100));
    s.server.silent = false;
    s.server.restart();
    s.take();
    s.run(Duration::from_secs(2));
    assert!(matches!(s.take()[..], [TurnEvent::Lost(_), TurnEvent::Up]));
}

#[test]
fn an_error_that_says_nothing_of_the_allocation_does_not_end_it() {
    let mut s = Scene::up();
    s.server.amnesia = Some(500);
    s.run(Duration::from_secs(60));
    assert_eq!((s.take(), s.server.allocations), (vec![TurnEvent::Doubtful], 1));
    s.server.amnesia = None;
    s.run(Duration::from_millis(1100));
    assert_eq!(s.take(), [TurnEvent::Confirmed]);
}

#[test]
fn a_server_that_allocates_and_then_knows_nothing_of_it_is_not_hammered() {
    for code in [401, 437, 441] {
        let mut s = Scene::up();
        s.server.amnesia = Some(code);
        for i in 0..200u8 {
            s.turn.permit(ip(&format!("198.18.0.{i}")), s.now);
            s.run(Duration::from_secs(1));
        }
        // 1, 2, 4, 8, 16 and then every 30 s.
        assert!(s.server.allocations < 14, "{code}: {} allocations in 200 s", s.server.allocations);
        s.server.amnesia = None;
        s.run(Duration::from_secs(45));
        assert!(s.turn.relayed.is_some());
    }
}

#[test]
fn silence_longer_than_the_lifetime_is_an_outage_and_ends_with_it() {
    let mut s = Scene::up();
    s.turn.set_busy(true, s.now);
    s.server.silent = true;
    s.run(Duration::from_secs(590));
    assert_eq!(s.take(), [TurnEvent::Doubtful]);
    s.run(Duration::from_secs(20));
    assert!(matches!(s.take()[0], TurnEvent::Lost(_)));
    s.run(Duration::from_secs(3600));
    s.take();
    (s.server.silent, s.server.allocated) = (false, false);
    s.run(Duration::from_secs(9));
    assert!(s.take().contains(&TurnEvent::Up), "back within ten seconds, however long it was away");
}

#[test]
fn an_allocation_of_an_earlier_run_is_given_back_first() {
    let mut s = Scene::new();
    s.server.allocated = true;
    s.run(Duration::from_secs(1));
    assert_eq!(s.take(), [TurnEvent::Up]);
}

#[test]
fn a_wrong_password_is_told_and_not_tried_again_at_once_but_a_renewed_one_is() {
    let mut s = Scene::new();
    s.server.password = "other";
    s.run(Duration::from_secs(25));
    assert_eq!(s.take(), [TurnEvent::Failed]);
    let error = s.turn.error.clone().expect("an error");
    assert!(error.contains("401") && error.contains("password"), "{error}");
    assert_eq!(s.server.requests, 2);
    s.turn.renew(account("other"), s.now);
    s.run(Duration::from_secs(1));
    assert_eq!(s.take(), [TurnEvent::Up]);
    // Renewed while it works: the allocation stays as it is.
    s.turn.renew(account("third"), s.now);
    s.run(Duration::from_secs(60));
    assert!(s.take().is_empty() && s.server.allocated);
}

#[test]
fn a_forbidden_address_does_not_take_the_others_with_it() {
    let mut s = Scene::up();
    s.server.forbidden = Some(ip("198.18.0.66"));
    for x in ["198.18.0.5", "198.18.0.66", "198.18.0.7"] {
        s.turn.permit(ip(x), s.now);
    }
    s.run(Duration::from_secs(1));
    let mut events = s.take();
    events.sort_by_key(|e| format!("{e:?}"));
    let permitted = |x, yes| TurnEvent::Permitted(ip(x), yes);
    assert_eq!(events, [permitted("198.18.0.5", true), permitted("198.18.0.66", false), permitted("198.18.0.7", true)]);
    // Known by now: no request.
    let before = s.server.requests;
    s.turn.permit(ip("198.18.0.5"), s.now);
    s.turn.permit(ip("198.18.0.66"), s.now);
    assert_eq!(s.turn.take_events(), [permitted("198.18.0.5", true), permitted("198.18.0.66", false)]);
    assert_eq!(s.server.requests, before);
}

#[test]
fn a_server_that_permits_few_addresses_is_not_hammered_and_gives_what_it_has() {
    let mut s = Scene::up();
    s.server.max_permissions = 10;
    let before = s.server.requests;
    for i in 0..30 {
        s.turn.permit(ip(&format!("198.18.0.{i}")), s.now);
    }
    s.run(Duration::from_secs(1));
    let events = s.take();
    let granted = events.iter().filter(|e| matches!(e, TurnEvent::Permitted(_, true))).count();
    assert_eq!((granted, events.len()), (9, 30), "{events:?}");
    assert!(s.server.requests - before < 12, "{} requests", s.server.requests - before);
    let why = s.turn.trouble().expect("a reason").to_owned();
    assert!(why.contains("508") && why.contains("permits no more"), "{why}");
    // More are refused without asking, and what is permitted stays so.
    let before = s.server.requests;
    for i in 0..30 {
        s.turn.permit(ip(&format!("198.18.1.{i}")), s.now);
    }
    s.turn.permit(ip("198.18.0.0"), s.now);
    assert_eq!(s.take().len() + s.turn.take_events().len(), 31);
    s.run(Duration::from_secs(1));
    assert_eq!(s.server.requests, before);
    // Permissions lapse, and the next ones are given.
    s.run(Duration::from_secs(310));
    s.server.permissions.clear();
    s.turn.permit(ip("198.18.1.9"), s.now);
    s.run(Duration::from_secs(1));
    assert_eq!((s.take(), s.turn.trouble()), (vec![TurnEvent::Permitted(ip("198.18.1.9"), true)], None));
}

#[test]
fn a_success_that_is_not_signed_is_no_success() {
    let mut s = Scene::new();
    s.server.sign = false;
    s.run(Duration::from_secs(10));
    assert!(s.turn.relayed.is_none() && !s.take().contains(&TurnEvent::Up));
}

#[test]
fn a_channel_lives_while_it_has_users_and_its_number_cools_down() {
    let (x, y) = ("198.18.0.9:9", "198.18.0.8:8");
    let mut s = Scene::up();
    let number = s.bound(x);
    assert_eq!((s.turn.channels_in_use(), s.turn.lease(a(y))), (0, None), "bound, but not used yet");
    let first = s.turn.lease(a(x));
    assert_eq!(s.bound(x), number, "shared");
    let second = s.turn.lease(a(x));
    let t = s.turn.wrap(a(x), vec![1; 4]);
    assert_eq!(t.path, Path::Relay { server: a(SERVER), channel: number });
    let t = s.turn.wrap(a(y), vec![1; 4]);
    assert_eq!(t.path, Path::Direct(a(SERVER)));
    assert_eq!(View::parse(&t.bytes).and_then(|v| v.xor_address(attr::XOR_PEER_ADDRESS)), Some(a(y)));
    let clone = first.clone();
    drop(first);
    assert_eq!(s.turn.channels_in_use(), 1);
    drop(second);
    assert_eq!(s.turn.channels_in_use(), 1, "the clone's");
    drop(clone);
    assert_eq!((s.turn.channels_in_use(), s.turn.peer_of(number)), (0, Some(a(x))));
    s.run(Duration::from_secs(300));
    let other = s.bound(y);
    let _other = s.turn.lease(a(y));
    assert_ne!(other, number);
    assert_eq!(s.bound(x), number, "the same number for the same peer");
    s.run(Duration::from_secs(1000));
    assert_eq!(s.turn.peer_of(number), None, "forgotten when nobody can mistake it any more");
    assert_eq!(s.turn.peer_of(other), Some(a(y)), "still in use, still refreshed");
    assert!(s.server.channels.contains_key(&other));
}

#[test]
fn a_lapsed_channel_is_bound_only_when_the_server_says_so_again() {
    let x = "198.18.0.9:9";
    let mut s = Scene::up();
    let number = s.bound(x);
    let lease = s.turn.lease(a(x));
    // The server does not bind any more; the channel is refreshed in vain until its permission lapses.
    s.server.refuse_channels = Some(508);
    s.run(Duration::from_secs(290));
    s.take();
    assert_eq!(s.bind(x), [TurnEvent::Bound(a(x), Ok(number))], "still alive");
    s.run(Duration::from_secs(20));
    s.take();
    for _ in 0..3 {
        assert!(matches!(s.bind(x)[..], [TurnEvent::Bound(_, Err(_))]));
        assert_eq!(s.turn.lease(a(x)), None);
    }
    assert_eq!(s.turn.wrap(a(x), vec![1; 4]).path, Path::Direct(a(SERVER)), "an indication");
    let asked = s.server.requests;
    s.run(Duration::from_secs(60));
    assert!(s.server.requests - asked < 20, "not hammered");
    s.server.refuse_channels = None;
    s.take();
    s.run(Duration::from_secs(11));
    assert_eq!(s.take(), [TurnEvent::Bound(a(x), Ok(number))], "who uses it has it again");
    assert_eq!((s.turn.channels_in_use(), s.turn.lease(a(x)) == lease), (1, true));
}

#[test]
fn numbers_begin_anywhere() {
    let numbers: std::collections::HashSet<u16> = (0..8).map(|_| Scene::up().bound("198.18.0.9:9")).collect();
    assert!(numbers.len() > 1, "{numbers:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is bound, used, dropped and lost: a lease of now is of the channel to its peer, and one of the past of none.
    #[test]
    fn uses_are_of_their_channel_and_end_once(steps in proptest::collection::vec((0u8..6, 0u8..4), 0..80)) {
        let mut s = Scene::up();
        s.turn.set_busy(true, s.now);
        let mut held: Vec<(u8, u32, super::Lease)> = Vec::new();
        let mut generation = 0;
        for (step, who) in steps {
            let peer = format!("198.18.1.{who}:7");
            match step {
                0 | 1 => {
                    if let [TurnEvent::Bound(_, Ok(n))] = s.bind(&peer)[..] {
                        let lease = s.turn.lease(a(&peer)).expect("bound");
                        prop_assert_eq!(lease.number(), n);
                        held.push((who, generation, lease));
                    }
                }
                2 | 3 => {
                    if !held.is_empty() {
                        held.swap_remove(usize::from(who) % held.len());
                    }
                }
                4 => {
                    s.run(Duration::from_secs(700));
                    // Those that the client has forgotten are older than the server's.
                    s.server.channels.retain(|n, _| s.turn.peer_of(*n).is_some());
                }
                _ => {
                    s.server.restart();
                    generation += 1;
                    s.run(Duration::from_secs(10));
                }
            }
            s.take();
            let mut used: Vec<u8> = held.iter().filter(|(_, g, _)| *g == generation).map(|(w, ..)| *w).collect();
            used.sort_unstable();
            used.dedup();
            prop_assert_eq!(s.turn.channels_in_use(), used.len());
            for (who, g, lease) in &held {
                if *g == generation {
                    prop_assert_eq!(s.turn.peer_of(lease.number()), Some(a(&format!("198.18.1.{who}:7"))));
                    prop_assert!(s.server.channels.contains_key(&lease.number()));
                }
            }
        }
    }

    /// Whatever happens to the server, with loss: when it is well again, so is the allocation; and every wish is answered.
    #[test]
    fn it_recovers_from_everything(steps in proptest::collection::vec((0u8..7, 0u64..40), 0..30), seed: u32) {
        let mut s = Scene::new();
        s.turn.set_busy(true, s.now);
        s.lose = u64::from(seed) * 2 + 1;
        let mut wishes = 0;
        for (step, seconds) in steps {
            match step {
                0 => s.server.restart(),
                1 => s.server.silent = true,
                2 => s.server.silent = false,
                3 => s.server.nonce += 1,
                4 => {
                    wishes += 1;
                    s.turn.bind(a(&format!("198.18.1.{seconds}:7")), s.now, &mut s.out);
                }
                5 => s.turn.permit(ip(&format!("198.18.2.{seconds}")), s.now),
                _ => {
                    let _ = s.turn.lease(a(&format!("198.18.1.{seconds}:7")));
                }
            }
            s.run(Duration::from_secs(seconds));
        }
        (s.server.silent, s.lose) = (false, 0);
        s.run(Duration::from_secs(60));
        prop_assert_eq!(s.turn.relayed, Some(a(RELAYED)));
        let events = s.take();
        let bound = events.iter().filter(|e| matches!(e, TurnEvent::Bound(..))).count();
        let lost = events.iter().filter(|e| matches!(e, TurnEvent::Lost(_))).count();
        prop_assert!(lost > 0 || bound >= wishes, "{} wishes, {} answers", wishes, bound);
    }
}
