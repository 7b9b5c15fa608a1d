//! Whatever happens: no storm, no stuck state, no agent left over, and in the end a link.

use super::super::{Input, Output, State};
use super::world::{World, ms};
use proptest::prelude::*;
use std::time::Duration;

#[derive(Clone, Debug)]
enum Trouble {
    Wait(u64),
    Xmpp(usize, bool),
    Restart(usize, bool),
    BreakPaths,
    Direct(bool),
    Relay(bool),
    NetworkChanged(usize, bool),
    Traffic(usize, bool),
    Signals { loss: u64, repeats: u64, delay: u64 },
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let end = 0usize..2;
    prop_oneof![
        4 => (0u64..8_000).prop_map(Trouble::Wait),
        2 => (0u64..300).prop_map(Trouble::Wait),
        1 => (20_000u64..100_000).prop_map(Trouble::Wait),
        2 => (end.clone(), any::<bool>()).prop_map(|(i, b)| Trouble::Xmpp(i, b)),
        1 => (end.clone(), any::<bool>()).prop_map(|(i, b)| Trouble::Restart(i, b)),
        1 => Just(Trouble::BreakPaths),
        1 => any::<bool>().prop_map(Trouble::Direct),
        1 => any::<bool>().prop_map(Trouble::Relay),
        1 => (end.clone(), any::<bool>()).prop_map(|(i, b)| Trouble::NetworkChanged(i, b)),
        1 => (end, any::<bool>()).prop_map(|(i, b)| Trouble::Traffic(i, b)),
        1 => (0u64..60, 0u64..60, 1u64..3_000).prop_map(|(loss, repeats, delay)| Trouble::Signals { loss, repeats, delay }),
    ]
}

fn suffer(w: &mut World, t: &Trouble) {
    match *t {
        Trouble::Wait(n) => w.run(ms(n)),
        Trouble::Xmpp(i, up) => w.xmpp(i, up),
        Trouble::Restart(i, noticed) => w.restart(i, noticed),
        Trouble::BreakPaths => w.break_paths(),
        Trouble::Direct(on) => w.weather.direct = on,
        Trouble::Relay(on) => w.weather.relay = on,
        Trouble::NetworkChanged(i, breaks) => {
            if breaks {
                w.break_paths();
            }
            w.input(i, Input::NetworkChanged);
        }
        Trouble::Traffic(i, on) => w.ends[i].traffic = on,
        Trouble::Signals { loss, repeats, delay } => {
            (w.weather.loss, w.weather.repeats, w.weather.delay) = (loss, repeats, delay);
        }
    }
}

/// The longest back-off, and one attempt that fails because of what was still on its way.
const HEALED: Duration = ms_const(110_000);

const fn ms_const(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn heal(w: &mut World, direct: bool) {
    (w.weather.direct, w.weather.relay) = (direct, true);
    (w.weather.loss, w.weather.repeats, w.weather.delay) = (0, 0, 20);
    for i in [0, 1] {
        w.xmpp(i, true);
        w.ends[i].traffic = true;
    }
}

proptest! {
    #[test]
    fn after_any_troubles_both_ends_are_up_on_one_path_and_quiet(
        seed: u64, proactive: [bool; 2], troubles in proptest::collection::vec(trouble(), 0..25), direct: bool
    ) {
        let mut w = World::new(seed, proactive);
        for i in [0, 1] {
            w.xmpp(i, true);
            w.ends[i].traffic = seed & (1 << i) != 0;
        }
        for t in &troubles {
            suffer(&mut w, t);
        }
        heal(&mut w, direct);
        let took = w.run_until(HEALED, World::healthy);
        prop_assert!(took.is_some(), "{:?} {:?}", w.ends[0].link, w.ends[1].link);
        // What is still running ends, the last repetition of a signal comes, and then there is nothing to be said.
        w.run(ms(90_000));
        let from = w.now;
        let relayed = w.ends.iter().any(|e| e.link.path().is_some_and(|p| p.1) || !e.agents.is_empty());
        w.run(ms(20_000));
        // A relayed path may just be giving way, or have given way, to a direct one.
        let moving = relayed && direct;
        let calm = if moving { w.run_until(ms(3_000), World::healthy).is_some() } else { w.healthy() };
        prop_assert!(calm, "{:?} {:?}", w.ends[0].link, w.ends[1].link);
        for e in &w.ends {
            if !relayed {
                prop_assert!(e.agents.is_empty());
                let loud = e.count(from, |o| !matches!(o, Output::Probe | Output::Changed));
                prop_assert_eq!(loud, 0, "{:?}", &e.log);
            }
            if !moving {
                prop_assert_eq!(e.count(from, |o| matches!(o, Output::UsePath { .. } | Output::Unpath)), 0);
            }
        }
    }

    #[test]
    fn when_both_start_at_once_one_session_is_left(seed: u64, delay in 1u64..400, apart in 0u64..400) {
        let mut w = World::new(seed, [false; 2]);
        w.weather.delay = delay;
        for i in [0, 1] {
            w.xmpp(i, true);
        }
        w.run(ms(100));
        w.input(0, Input::Wanted);
        w.run(ms(apart));
        w.input(1, Input::Wanted);
        let took = w.run_until(ms(6_000), World::healthy);
        prop_assert!(took.is_some(), "{:?} {:?}", w.ends[0].link, w.ends[1].link);
        w.run(ms(16_000));
        // One that was reached before its agent was ready, and lost that, knows of none.
        let sids = w.ends.each_ref().map(|e| e.link.sid().map(str::to_owned));
        prop_assert!(sids[0] == sids[1] || sids.contains(&None), "{sids:?}");
        for e in &w.ends {
            prop_assert!(e.agents.is_empty());
            // The channel reorders: an accept that overtakes an initiate costs one more.
            prop_assert!(e.starts <= 3, "{}", e.starts);
        }
    }

    #[test]
    fn a_path_that_dies_under_traffic_is_replaced_in_time(seed: u64, after in 5_000u64..20_000) {
        let mut w = World::new(seed, [false; 2]);
        for i in [0, 1] {
            w.xmpp(i, true);
            w.ends[i].traffic = true;
        }
        prop_assert!(w.run_until(ms(5_000), World::healthy).is_some());
        w.run(ms(after));
        w.break_paths();
        let died = w.now;
        let took = w.run_until(ms(8_000), World::healthy);
        prop_assert!(took.is_some(), "{:?} {:?}", w.ends[0].link, w.ends[1].link);
        let started = w.ends.iter().flat_map(|e| &e.log).filter(|(at, o)| *at > died && matches!(o, Output::Start { .. }));
        let first = started.map(|(at, _)| at.since(died)).min().expect("a start");
        prop_assert!(first <= ms(4_500), "{first:?}");
        prop_assert!(w.ends.iter().all(|e| e.count(died, |o| *o == Output::Unpath) == 0), "the old path stays until then");
    }
}

#[test]
fn an_xmpp_outage_leaves_a_running_link_alone() {
    let mut w = World::new(5, [false, true]);
    for i in [0, 1] {
        w.xmpp(i, true);
        w.ends[i].traffic = true;
    }
    assert!(w.run_until(ms(5_000), World::healthy).is_some());
    w.run(ms(5_000));
    let from = w.now;
    for i in [0, 1] {
        w.xmpp(i, false);
    }
    w.run(ms(300_000));
    assert!(w.healthy());
    w.break_paths();
    w.run(ms(30_000));
    assert!(w.ends.iter().all(|e| e.link.state() == State::Failing && e.link.why().contains("XMPP")));
    let loud = |o: &Output| !matches!(o, Output::Probe | Output::Changed);
    assert!(w.ends.iter().all(|e| e.count(from, loud) == 0), "{:?}", w.ends[0].log);
    for i in [0, 1] {
        w.xmpp(i, true);
    }
    assert!(w.run_until(ms(4_000), World::healthy).is_some());
}

#[test]
fn a_relayed_path_is_tried_direct_quietly_and_rarely_until_there_is_a_direct_one() {
    let mut w = World::new(9, [true; 2]);
    w.weather.direct = false;
    for i in [0, 1] {
        w.xmpp(i, true);
        w.ends[i].traffic = true;
    }
    assert!(w.run_until(ms(5_000), World::healthy).is_some());
    assert!(w.ends[0].link.path().is_some_and(|p| p.1) && w.ends[0].link.why().contains("relayed because"));
    w.run(ms(5_000));
    let (from, before) = (w.now, w.ends.each_ref().map(|e| e.starts));
    w.run(ms(3_600_000));
    let starts = w.ends[0].starts - before[0];
    // 30, 60, 120, 240, 480, 600, 600, 600 s, more or less a quarter.
    assert!((6..=11).contains(&starts), "{starts} in an hour");
    for e in &w.ends {
        let loud = |o: &Output| matches!(o, Output::UsePath { .. } | Output::Unpath | Output::Changed);
        assert_eq!(e.count(from, loud), 0, "{:?}", e.log);
    }
    w.weather.direct = true;
    assert!(w.run_until(ms(1_000_000), |w| w.healthy() && w.ends[0].link.path().is_some_and(|p| !p.1)).is_some());
    w.run(ms(10_000));
    let starts = w.ends[0].starts;
    w.run(ms(3_600_000));
    assert_eq!(w.ends[0].starts, starts, "a direct path is left alone");
}

#[test]
fn an_idle_link_is_closed_once_and_comes_back_when_it_is_wanted() {
    for proactive in [false, true] {
        let mut w = World::new(11, [false, proactive]);
        for i in [0, 1] {
            w.xmpp(i, true);
        }
        w.ends[0].traffic = true;
        assert!(w.run_until(ms(5_000), World::healthy).is_some());
        w.ends[0].traffic = false;
        let from = w.now;
        w.run(ms(1_000_000));
        for e in &w.ends {
            assert_eq!(e.link.state(), State::Idle, "{}", e.link.why());
            assert_eq!(e.count(from, |o| *o == Output::Unpath), 1);
            assert_eq!(e.count(from, |o| matches!(o, Output::Start { .. })), 0);
        }
        let told: usize = w.ends.iter().map(|e| e.count(from, |o| matches!(o, Output::Terminate { .. }))).sum();
        assert!((1..=2).contains(&told), "{told}");
        w.ends[1].traffic = true;
        assert!(w.run_until(ms(5_000), World::healthy).is_some());
    }
}
