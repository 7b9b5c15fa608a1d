//! One link, step by step.

use super::super::{Input, Link, LinkConfig, Output, Role, State, Verdict};
use super::world::ms;
use crate::xmpp::Reason;
use dataplane::{Path, Time};

struct Alone {
    link: Link,
    now: Time,
    /// It gets its turn when it asks for it.
    turns: bool,
}

fn path(port: u16) -> Path {
    Path::Direct(([192, 0, 2, 1], port).into())
}

impl Alone {
    fn new(proactive: bool) -> Self {
        let (our_jid, peer_jid) = ("a@x/1".to_owned(), "b@x/2".to_owned());
        let config = LinkConfig { proactive, idle_timeout: ms(60_000), our_jid, peer_jid };
        Self { link: Link::new(config, 3), now: Time::ZERO + ms(500_000), turns: true }
    }

    /// The other end's link.
    fn other(proactive: bool) -> Self {
        let (our_jid, peer_jid) = ("b@x/2".to_owned(), "a@x/1".to_owned());
        let config = LinkConfig { proactive, idle_timeout: ms(60_000), our_jid, peer_jid };
        Self { link: Link::new(config, 4), ..Self::new(proactive) }
    }

    fn ready(proactive: bool) -> Self {
        let mut a = Self::new(proactive);
        a.put(Input::SignalingUp);
        a.put(Input::PeerOnline);
        a
    }

    /// What it does about it, without [`Output::Changed`].
    fn put(&mut self, input: Input) -> Vec<Output> {
        self.link.handle(self.now, input);
        if self.turn_at().is_some_and(|t| t <= self.now) {
            self.link.handle(self.now, Input::Turn);
        }
        self.outputs()
    }

    fn turn_at(&self) -> Option<Time> {
        self.link.turn_at().filter(|_| self.turns)
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.link.poll_output()).filter(|o| *o != Output::Changed).collect()
    }

    fn wait(&mut self, n: u64) -> Vec<Output> {
        let end = self.now + ms(n);
        let mut all = Vec::new();
        let due = |a: &Self| a.link.poll_timeout().into_iter().chain(a.turn_at()).min();
        while let Some(t) = due(self).filter(|t| *t <= end) {
            assert!(t >= self.now || self.now == end);
            self.now = self.now.max(t);
            self.link.handle_timeout(self.now);
            all.extend(self.outputs());
            if self.turn_at().is_some_and(|t| t <= self.now) {
                all.extend(self.put(Input::Turn));
            }
        }
        self.now = end;
        all
    }

    fn start(&mut self) -> String {
        let out = [self.put(Input::Wanted), self.wait(600)].concat();
        match out.as_slice() {
            [Output::Start { sid, role: Role::Controlling }] => sid.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn up(relayed: bool) -> (Self, String) {
        let mut a = Self::ready(false);
        let sid = a.start();
        a.put(Input::Accepted { sid: sid.clone() });
        let out = a.put(Input::AgentFound { sid: sid.clone(), path: path(1), relayed });
        assert_eq!(out, [Output::UsePath { path: path(1) }]);
        assert_eq!(a.link.state(), State::Handshaking);
        assert_eq!(a.wait(300), [Output::Handshake]);
        a.put(Input::Session { at: a.now });
        assert_eq!(a.link.state(), State::Up);
        assert_eq!(a.wait(2_000), [Output::Stop { sid: sid.clone() }]);
        (a, sid)
    }

    fn data(&mut self) -> Vec<Output> {
        let now = Some(self.now);
        let path = self.link.path().map(|p| p.0);
        self.put(Input::Activity { last_received: now, last_sent: now, path })
    }
}

#[test]
fn nothing_starts_without_xmpp_or_peer_and_status_says_so() {
    let mut a = Alone::new(false);
    assert_eq!([a.put(Input::Wanted), a.wait(5_000)].concat(), []);
    assert!(a.link.why().contains("XMPP"), "{}", a.link.why());
    a.put(Input::SignalingUp);
    assert!(a.link.why().contains("offline"), "{}", a.link.why());
    let out = [a.put(Input::PeerOnline), a.wait(600)].concat();
    assert!(matches!(out.as_slice(), [Output::Start { role: Role::Controlling, .. }]), "{out:?}");
    assert_eq!(a.link.state(), State::Negotiating);
}

#[test]
fn what_nobody_waits_for_waits_for_its_turn_and_the_larger_jid_lets_the_other_begin() {
    let mut a = Alone::new(true);
    a.turns = false;
    let out = [a.put(Input::SignalingUp), a.put(Input::PeerOnline), a.wait(100_000)].concat();
    assert_eq!((out, a.link.state()), (vec![], State::Idle));
    assert!(a.link.why().contains("about to"), "{}", a.link.why());
    let out = a.put(Input::Turn);
    assert!(matches!(out.as_slice(), [Output::Start { .. }]), "{out:?}");
    assert_eq!(a.link.turn_at(), None);

    let mut b = Alone::other(true);
    let out = [b.put(Input::SignalingUp), b.put(Input::PeerOnline), b.wait(1_900)].concat();
    assert_eq!(out, []);
    let out = b.wait(700);
    assert!(matches!(out.as_slice(), [Output::Start { .. }]), "{out:?}");
    // A packet cedes to nobody.
    let mut b = Alone::other(true);
    b.turns = false;
    let out = [b.put(Input::SignalingUp), b.put(Input::PeerOnline), b.put(Input::Wanted), b.wait(600)].concat();
    assert!(matches!(out.as_slice(), [Output::Start { .. }]), "{out:?}");
}

#[test]
fn the_set_up_time_and_the_state_are_shown() {
    let (mut a, sid) = Alone::up(true);
    assert_eq!((a.link.sid(), a.link.path()), (Some(sid.as_str()), Some((path(1), true))));
    let setup = a.link.setup_time().expect("set up");
    assert!((ms(290)..ms(1_000)).contains(&setup), "{setup:?}");
    a.put(Input::ProbeAnswered { rtt: ms(12) });
    let status = a.link.status(a.now + ms(4_000));
    assert_eq!((status.state.as_str(), status.path.as_deref()), ("up", Some("relayed")));
    assert_eq!((status.rtt_ms, status.for_s), (Some(12.0), 6));
    assert!(status.why.contains("relayed because"));
}

#[test]
fn the_peers_handshake_may_be_over_before_our_agent_has_a_path_and_be_told_after_that() {
    let mut a = Alone::ready(false);
    let sid = a.start();
    a.put(Input::Accepted { sid: sid.clone() });
    let before = a.now;
    a.wait(100);
    let shaken = a.now;
    a.wait(5);
    a.put(Input::AgentFound { sid: sid.clone(), path: path(1), relayed: false });
    a.wait(30);
    a.put(Input::Session { at: Time::from_nanos(before.as_nanos() - 10_000_000_000) });
    assert_eq!(a.link.state(), State::Handshaking, "one of before the attempt proves nothing");
    a.put(Input::Session { at: shaken });
    assert_eq!(a.link.state(), State::Up);
    assert_eq!(a.wait(2_000), [Output::Stop { sid }]);
}

#[test]
fn unknown_sessions_and_repetitions_change_nothing() {
    let (mut a, sid) = Alone::up(false);
    let x = || "x".to_owned();
    let nothing = [
        Input::Wanted,
        Input::PeerOnline,
        Input::SignalingUp,
        Input::Accepted { sid: sid.clone() },
        Input::Accepted { sid: x() },
        Input::Terminated { sid: x(), reason: Reason::Gone },
        Input::SignalFailed { sid: sid.clone(), why: x(), tie_break: true, gone: true },
        Input::AgentFound { sid: sid.clone(), path: path(2), relayed: true },
        Input::AgentFound { sid: x(), path: path(2), relayed: true },
        Input::AgentFailed { sid, why: x() },
        Input::Session { at: a.now },
        Input::ProbeFailed,
    ];
    for input in nothing {
        assert_eq!(a.put(input.clone()), [], "{input:?}");
    }
    assert_eq!((a.link.state(), a.link.path()), (State::Up, Some((path(1), false))));
}

#[test]
fn the_lower_session_id_wins_a_tie_and_a_repeated_initiate_is_answered_again() {
    let mut a = Alone::ready(false);
    let mine = a.start();
    let (low, high) = ("0".to_owned(), "z".to_owned());
    let tie = Output::Answer { sid: high.clone(), verdict: Verdict::TieBreak };
    assert_eq!(a.put(Input::Initiated { sid: high }), [tie]);
    let accept = Output::Answer { sid: low.clone(), verdict: Verdict::Accept };
    let start = Output::Start { sid: low.clone(), role: Role::Controlled };
    assert_eq!(a.put(Input::Initiated { sid: low.clone() }), [Output::Stop { sid: mine }, accept.clone(), start]);
    assert_eq!(a.put(Input::Initiated { sid: low.clone() }), [accept]);
    a.put(Input::AgentFailed { sid: low.clone(), why: "x".to_owned() });
    let over = Output::Answer { sid: low.clone(), verdict: Verdict::UnknownSession };
    assert_eq!(a.put(Input::Initiated { sid: low }), [over]);
}

#[test]
fn a_flood_of_initiates_is_busy() {
    let mut a = Alone::ready(false);
    let verdicts: Vec<_> = (0..100).flat_map(|n| a.put(Input::Initiated { sid: format!("s{n}") })).collect();
    let busy = verdicts.iter().filter(|o| matches!(o, Output::Answer { verdict: Verdict::Busy, .. })).count();
    let starts = verdicts.iter().filter(|o| matches!(o, Output::Start { .. })).count();
    assert_eq!((busy, starts), (92, 8));
}

#[test]
fn failures_back_off_and_good_news_end_that() {
    let mut a = Alone::ready(true);
    a.wait(600);
    let mut starts = Vec::new();
    for _ in 0..3000 {
        let out = a.wait(100);
        if out.iter().any(|o| matches!(o, Output::Start { .. })) {
            starts.push(a.now);
        }
    }
    let gaps: Vec<u64> = starts.windows(2).map(|w| w[1].since(w[0]).as_secs() - 12).collect();
    assert!(gaps.windows(2).all(|g| g[1] >= g[0] || g[0] >= 45) && gaps.iter().all(|g| *g <= 75), "{gaps:?}");
    assert!(*gaps.last().expect("gaps") >= 30, "{gaps:?}");
    a.wait(13_000);
    while a.link.state() != State::Failing {
        a.wait(100);
    }
    assert!(a.link.why().contains("did not answer"), "{}", a.link.why());
    let out = a.put(Input::PeerOnline);
    assert!(matches!(out.as_slice(), [Output::Start { .. }]), "{out:?}");
}

#[test]
fn a_path_that_needs_no_proof_is_probed_once_a_minute_for_its_round_trip() {
    let (mut a, _) = Alone::up(false);
    let mut probes = 0;
    for _ in 0..300 {
        let out = [a.put(Input::Heard), a.wait(1_000), a.data()].concat();
        if out.contains(&Output::Probe) {
            probes += 1;
            a.wait(3);
            a.put(Input::ProbeAnswered { rtt: ms(3) });
        }
    }
    assert!((4..=6).contains(&probes), "{probes} in five minutes");
    let (mut a, _) = Alone::up(false);
    let probes = |out: Vec<Output>| out.iter().filter(|o| **o == Output::Probe).count();
    assert_eq!(probes(a.wait(13_200)), 1, "a quiet path is asked");
    a.put(Input::ProbeAnswered { rtt: ms(3) });
    let heard: usize = (0..5).map(|_| probes([a.wait(10_000), a.put(Input::Heard)].concat())).sum();
    assert_eq!(heard, 0);
}

#[test]
fn a_dead_path_of_a_peer_that_is_offline_ends_the_link() {
    let (mut a, _) = Alone::up(false);
    assert_eq!(a.put(Input::PeerOffline), []);
    assert_eq!(a.link.state(), State::Up, "presence is not liveness");
    let out = a.wait(20_000);
    assert_eq!(out.iter().filter(|o| **o == Output::Probe).count(), 4);
    assert_eq!(out.last(), Some(&Output::Unpath));
    assert_eq!((a.link.state(), a.link.why()), (State::Idle, "the peer is offline"));
}

#[test]
fn a_peer_that_comes_back_is_asked_at_once() {
    let (mut a, _) = Alone::up(false);
    a.put(Input::PeerOffline);
    assert_eq!(a.put(Input::PeerOnline), [Output::Probe]);
    assert_eq!(a.put(Input::PeerOnline), []);
}

#[test]
fn a_changed_network_is_renegotiated_beside_the_path_in_use() {
    let (mut a, _) = Alone::up(false);
    a.data();
    let out = [a.put(Input::NetworkChanged), a.wait(500)].concat();
    let sid = out.iter().find_map(|o| match o {
        Output::Start { sid, .. } => Some(sid.clone()),
        _ => None,
    });
    let sid = sid.expect("a start");
    assert_eq!((a.link.state(), a.link.path()), (State::Up, Some((path(1), false))));
    a.wait(100);
    a.data();
    let out = a.put(Input::AgentFound { sid: sid.clone(), path: path(2), relayed: false });
    assert_eq!(out, [Output::UsePath { path: path(2) }]);
    // The tunnel does not answer over the new one, the old one is taken again if it was alive.
    let out = a.wait(7_000);
    assert!(out.contains(&Output::UsePath { path: path(1) }), "{out:?}");
    assert!(!out.contains(&Output::Unpath) && a.link.path() == Some((path(1), false)), "{out:?}");
    assert_eq!(a.put(Input::AgentFound { sid, path: path(3), relayed: false }), []);
}

#[test]
fn a_changed_network_that_also_cuts_signalling_is_seen_to_when_that_is_back() {
    let (mut a, _) = Alone::up(true);
    let starts = |out: &[Output]| out.iter().filter(|o| matches!(o, Output::Start { .. })).count();
    a.data();
    let out = [a.put(Input::NetworkChanged), a.wait(600)].concat();
    assert_eq!(starts(&out), 1, "{out:?}");
    let out = [a.put(Input::SignalingDown), a.wait(400)].concat();
    assert!(starts(&out) == 0 && out.iter().any(|o| matches!(o, Output::Stop { .. })), "{out:?}");
    let out = [a.put(Input::SignalingUp), a.wait(600)].concat();
    assert_eq!(starts(&out), 1, "{out:?}");
}

#[test]
fn the_peers_own_handshake_brings_a_link_up_and_a_farewell_down() {
    let mut a = Alone::ready(false);
    a.put(Input::Session { at: a.now });
    let now = Some(a.now);
    assert_eq!(a.put(Input::Activity { last_received: now, last_sent: None, path: Some(path(7)) }), []);
    assert_eq!((a.link.state(), a.link.why()), (State::Up, "reached by the peer"));
    let out = a.put(Input::Close { reason: Reason::Gone });
    assert_eq!(out, [Output::Unpath]);
    assert_eq!((a.link.poll_timeout(), a.link.state()), (None, State::Idle));
    let over = Output::Answer { sid: "s".to_owned(), verdict: Verdict::UnknownSession };
    assert_eq!(a.put(Input::Initiated { sid: "s".to_owned() }), [over]);

    let (mut a, sid) = Alone::up(false);
    assert_eq!(a.put(Input::Terminated { sid, reason: Reason::Gone }), [Output::Unpath]);
    assert_eq!(a.wait(100_000), []);
    // A look at the tunnel that is late by a moment does not revive it.
    a.put(Input::Activity { last_received: Some(a.now), last_sent: None, path: None });
    assert_eq!(a.link.state(), State::Idle);
}
