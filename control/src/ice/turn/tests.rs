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
                ok.xor_address(attr::XOR_RELAYED_ADDRESS, a(RELAYED)).xor_address(attr::XOR_MAPPED_ADDRESS, a(MAPPED))
            }
            _ if !self.allocated => return error(437, "Allocation Mismatch"),
            method::REFRESH => {
                self.allocated = v.u32(attr::LIFETIME) != Some(0);
                ok.u32(attr::LIFETIME, 600)
            }
            method::CREATE_PERMISSION => {
                // Only the first address can be read by our view; a batch is known by its length.
                let batch = bytes.windows(4).filter(|w| w[..2] == [0, 0x12] && w[2..] == [0, 8]).count() > 1;
                let first = v.xor_address(attr::XOR_PEER_ADDRESS).map(|p| p.ip());
                if self.forbidden.is_some() && (batch || first == self.forbidden) {
                    return error(403, "Forbidden");
                }
                ok
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
    assert_eq!(s.bind("198.18.0.9:9"), [TurnEvent::Bound(a("198.18.0.9:9"), Ok(0x4000))]);
    s.server.restart();
    s.run(Duration::from_secs(5));
    let events = s.take();
    assert!(matches!(events[..], [TurnEvent::Lost(_), TurnEvent::Up]), "{events:?}");
    assert_eq!(s.turn.channels_in_use(), 0);
    assert_eq!(s.bind("198.18.0.9:9"), [TurnEvent::Bound(a("198.18.0.9:9"), Ok(0x4001))]);
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
fn silence_is_an_outage_after_seconds_and_ends_with_it() {
    let mut s = Scene::up();
    s.turn.set_busy(true, s.now);
    s.server.silent = true;
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
    assert_eq!(s.bind(x), [TurnEvent::Bound(a(x), Ok(0x4000))]);
    assert_eq!(s.bind(x), [TurnEvent::Bound(a(x), Ok(0x4000))], "shared");
    let t = s.turn.wrap(a(x), vec![1; 4]);
    assert_eq!(t.path, Path::Relay { server: a(SERVER), channel: 0x4000 });
    let t = s.turn.wrap(a(y), vec![1; 4]);
    assert_eq!(t.path, Path::Direct(a(SERVER)));
    assert_eq!(View::parse(&t.bytes).and_then(|v| v.xor_address(attr::XOR_PEER_ADDRESS)), Some(a(y)));
    s.turn.release(0x4000);
    assert_eq!(s.turn.channels_in_use(), 1);
    s.turn.release(0x4000);
    s.turn.release(0x4000);
    assert_eq!((s.turn.channels_in_use(), s.turn.peer_of(0x4000)), (0, Some(a(x))));
    s.take();
    s.run(Duration::from_secs(300));
    assert_eq!(s.bind(y), [TurnEvent::Bound(a(y), Ok(0x4001))]);
    assert_eq!(s.bind(x), [TurnEvent::Bound(a(x), Ok(0x4000))], "the same number for the same peer");
    s.turn.release(0x4000);
    s.run(Duration::from_secs(1000));
    assert_eq!(s.turn.peer_of(0x4000), None, "forgotten when nobody can mistake it any more");
    assert_eq!(s.turn.peer_of(0x4001), Some(a(y)), "still in use, still refreshed");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

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
                _ => s.turn.release(0x4000 + seconds as u16),
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
