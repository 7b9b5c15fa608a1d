//! Two finders and a network between them. Time is the runtime's and passes by itself when all wait.

mod world;

use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

use self::world::{ECHO, LATENCY, Nat, World};
use super::super::candidate::{Candidate, CandidateKind};
use super::super::route::Route;
use super::super::stun::View;
use super::{Chosen, Taken, priority};

/// Runs a negotiation and says how long it took.
async fn timed(world: &World) -> ([Chosen; 2], Duration) {
    let began = Instant::now();
    let [a, b] = world.negotiate().await;
    ([a.expect("a path of the first"), b.expect("a path of the second")], began.elapsed())
}

fn is_direct(c: &Chosen) -> bool {
    !c.route.is_relay() && c.local_kind != CandidateKind::Relayed && c.remote_kind != CandidateKind::Relayed
}

fn channels_in_use(world: &World, i: usize) -> usize {
    world.node(i).bound.lock().expect("lock").iter().filter(|uses| uses.count() > 0).count()
}

#[tokio::test(start_paused = true)]
async fn open_nodes_find_the_direct_way_at_once() {
    let world = World::new([Nat::None, Nat::None], [true, true]);
    let ([a, b], took) = timed(&world).await;
    assert_eq!(a.route, Route::Direct(world.node(1).mapped()));
    assert_eq!(b.route, Route::Direct(world.node(0).mapped()));
    assert_eq!((a.local_kind, a.remote_kind), (CandidateKind::Host, CandidateKind::Host), "{}", a.why);
    assert!(took < Duration::from_millis(200), "{took:?}");
    assert!(a.rtt.is_some_and(|r| r >= LATENCY * 2 && r < LATENCY * 8), "{:?}", a.rtt);
}

#[tokio::test(start_paused = true)]
async fn two_cone_nats_are_punched() {
    let world = World::new([Nat::Cone, Nat::Cone], [true, true]);
    let ([a, b], took) = timed(&world).await;
    assert!(is_direct(&a) && is_direct(&b), "{} {}", a.why, b.why);
    assert_eq!((a.local_kind, a.remote_kind), (CandidateKind::ServerReflexive, CandidateKind::ServerReflexive));
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert_eq!((channels_in_use(&world, 0), channels_in_use(&world, 1)), (0, 0));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!([0, 1].iter().all(|i| world.node(*i).permitted.lock().expect("lock").is_empty()), "no relay was needed");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_was_not_signalled_is_found_by_its_checks() {
    for nats in [[Nat::Symmetric, Nat::FullCone], [Nat::FullCone, Nat::Symmetric]] {
        let world = World::new(nats, [true, true]);
        let ([a, b], took) = timed(&world).await;
        assert!(is_direct(&a) && is_direct(&b), "{nats:?}: {} {}", a.why, b.why);
        let unknown =
            if nats[0] == Nat::Symmetric { (a.local_kind, b.remote_kind) } else { (b.local_kind, a.remote_kind) };
        assert_eq!(unknown, (CandidateKind::PeerReflexive, CandidateKind::PeerReflexive), "{nats:?}");
        assert!(took < Duration::from_millis(700), "{nats:?}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn where_nothing_direct_works_one_relay_is_taken() {
    for (nats, relays) in [
        ([Nat::Symmetric, Nat::Symmetric], [true, true]),
        ([Nat::Symmetric, Nat::Cone], [true, true]),
        ([Nat::Symmetric, Nat::Symmetric], [true, false]),
        ([Nat::Symmetric, Nat::Symmetric], [false, true]),
        ([Nat::Cone, Nat::Symmetric], [false, true]),
    ] {
        let world = World::new(nats, relays);
        let ([a, b], took) = timed(&world).await;
        assert!(a.route.is_relay() != b.route.is_relay(), "{nats:?} {relays:?}: {} {}", a.why, b.why);
        assert_eq!((a.channel.is_some(), b.channel.is_some()), (a.route.is_relay(), b.route.is_relay()));
        assert!(took < Duration::from_millis(850), "{nats:?} {relays:?}: {took:?}");
        let wanted: Vec<usize> = [0, 1].map(|i| world.node(i).wanted.lock().expect("lock").len()).into();
        assert_eq!(wanted, [1, 1]);
        let in_use = channels_in_use(&world, 0) + channels_in_use(&world, 1);
        assert_eq!(in_use, 1, "{nats:?} {relays:?}: a channel was not given back");
    }
}

#[tokio::test(start_paused = true)]
async fn two_relays_are_the_last_resort() {
    let world = World::new([Nat::Deaf, Nat::Deaf], [true, true]);
    // Deaf nodes hear their relays only, and send through them only.
    let ([a, b], took) = timed(&world).await;
    assert!(a.route.is_relay() || b.route.is_relay());
    assert!(took < Duration::from_millis(2000), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_third_of_the_datagrams_may_be_lost() {
    for (nats, direct) in [([Nat::Cone, Nat::Cone], true), ([Nat::Symmetric, Nat::Symmetric], false)] {
        let world = World::with(nats, [true, true], 33, false);
        let ([a, b], took) = timed(&world).await;
        assert_eq!((is_direct(&a), is_direct(&b)), (direct, direct), "{nats:?}: {} {}", a.why, b.why);
        assert!(took < Duration::from_millis(3000), "{nats:?}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_is_heard_before_it_is_signalled_is_not_taken_for_direct() {
    let world = World::new([Nat::Cone, Nat::Cone], [false, true]);
    let began = Instant::now();
    let (a, b) = (world.start(0), world.start(1));
    world.signal(0, &world.node(0).candidates(), true);
    let theirs = world.node(1).candidates();
    // Its own address comes last, the relay's in between: its checks come first.
    let (relay, others): (Vec<Candidate>, Vec<Candidate>) =
        theirs.into_iter().partition(|c| c.kind == CandidateKind::Relayed);
    world.signal(1, &others[..1], false);
    tokio::time::sleep(Duration::from_millis(150)).await;
    world.signal(1, &relay, false);
    tokio::time::sleep(Duration::from_millis(150)).await;
    world.signal(1, &others[1..], true);
    let (a, b) = (a.await.expect("outcome").expect("path"), b.await.expect("outcome").expect("path"));
    assert!(is_direct(&a) && is_direct(&b), "{} {}", a.why, b.why);
    assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn without_any_way_both_say_why() {
    let world = World::new([Nat::Deaf, Nat::Deaf], [false, false]);
    let began = Instant::now();
    let [a, b] = world.negotiate().await;
    let (a, b) = (a.expect_err("no way"), b.expect_err("no way"));
    assert!(a.starts_with("no path: none of 2 checks was answered"), "{a}");
    assert!(b.contains("the peer's: 1 host, 1 srflx, 0 relay"), "{b}");
    assert!(began.elapsed() < Duration::from_secs(11));
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_refuses_channels_fails_with_a_reason() {
    let world = World::with([Nat::Symmetric, Nat::Symmetric], [false, true], 0, true);
    let [_, b] = world.negotiate().await;
    assert!(b.expect_err("no channel").contains("refuses a channel"));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_answer_is_waited_for_half_a_minute() {
    let world = World::new([Nat::None, Nat::None], [false, false]);
    let began = Instant::now();
    let why = world.start(0).await.expect("outcome").expect_err("no answer");
    assert_eq!(why, "no path: the peer did not answer the offer");
    assert_eq!(began.elapsed().as_secs(), 30);
}

async fn tasks_end(base: usize) {
    let until = Instant::now() + Duration::from_secs(20);
    while Handle::current().metrics().num_alive_tasks() > base {
        assert!(Instant::now() < until, "{} tasks are left", Handle::current().metrics().num_alive_tasks() - base);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_at_any_time_nothing_is_left() {
    let base = Handle::current().metrics().num_alive_tasks();
    for after in [0, 1, 5, 20, 60, 150, 400, 450, 700, 760, 900] {
        let world = World::new([Nat::Symmetric, Nat::Symmetric], [true, true]);
        let outcomes = (world.start(0), world.start(1));
        if after > 1 {
            world.signal(0, &world.node(0).candidates(), true);
            world.signal(1, &world.node(1).candidates(), true);
        }
        tokio::time::sleep(Duration::from_millis(after)).await;
        world.node(0).close();
        world.node(1).close();
        tasks_end(base).await;
        world.node(0).hang_up();
        world.node(1).hang_up();
        let outcomes = [outcomes.0.await, outcomes.1.await];
        for (i, o) in outcomes.into_iter().enumerate() {
            let taken = matches!(&o, Ok(Ok(c)) if c.channel.is_some());
            assert_eq!(channels_in_use(&world, i), usize::from(taken), "after {after} ms");
            drop(o);
            assert_eq!(channels_in_use(&world, i), 0, "after {after} ms");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_finished_one_ends_by_itself() {
    let base = Handle::current().metrics().num_alive_tasks();
    let world = World::new([Nat::None, Nat::None], [false, false]);
    timed(&world).await;
    tasks_end(base).await;
    let bytes = request(0, "password-of-node-number-0");
    let v = View::parse(&bytes).expect("a request");
    let late = world.node(0).with(|f| f.incoming(Route::Direct(world.node(1).mapped()), &v));
    assert_eq!(late, Some(Taken::No));
}

#[tokio::test(start_paused = true)]
async fn floods_and_forgeries_change_nothing() {
    let world = World::new([Nat::Cone, Nat::Cone], [true, true]);
    let outcomes = (world.start(0), world.start(1));
    let n = world.node(0);
    let says = |route: Route, bytes: &[u8]| n.with(|f| f.incoming(route, &View::parse(bytes).expect("a request")));
    for port in 0..1000u16 {
        let forged = request(port, "a wrong password");
        assert_eq!(says(Route::direct(([192, 0, 2, 7], port).into()), &forged), Some(Taken::Forged));
    }
    world.signal(0, &n.candidates(), true);
    world.signal(1, &world.node(1).candidates(), true);
    let relay = n.relay.expect("has one").server;
    for port in 1000..1200 {
        let peer = ([192, 0, 2, 7], port).into();
        says(Route::Relay { server: relay, peer }, &request(port, "a wrong password"));
        says(Route::Direct(peer), &request(port, "a wrong password"));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (a, b) = (outcomes.0.await.expect("outcome"), outcomes.1.await.expect("outcome"));
    assert!(a.is_ok_and(|c| is_direct(&c)) && b.is_ok_and(|c| is_direct(&c)));
    let to_forger = n.sent.lock().expect("lock").iter().filter(|r| r.peer().ip().to_string() == "192.0.2.7").count();
    assert_eq!(to_forger, 0);
}

#[tokio::test(start_paused = true)]
async fn a_way_through_the_tunnel_itself_is_none() {
    let overlay: dataplane::table::Prefix = "172.16.10.0/24".parse().expect("prefix");
    // Both know what is inside; one does, and the other tells it and sends there; nobody does.
    for knows in [[true, true], [true, false], [false, true], [false, false]] {
        let world = World::new([Nat::Symmetric, Nat::Symmetric], [true, true]);
        let outcomes = (world.start(0), world.start(1));
        for i in [0, 1].into_iter().filter(|i| knows[*i]) {
            world.node(i).with(|f| f.set_overlay(&[overlay]));
        }
        for i in [0, 1] {
            let mut candidates = world.node(i).candidates();
            let inside =
                Candidate { address: world.node(i).inside(), kind: CandidateKind::Host, ..candidates[0].clone() };
            candidates.insert(0, inside);
            world.signal(i, &candidates, true);
        }
        let (a, b) = (outcomes.0.await.expect("outcome"), outcomes.1.await.expect("outcome"));
        let (a, b) = (a.expect("a path"), b.expect("a path"));
        let loops = |c: &Chosen| overlay.contains(c.route.peer().ip());
        let any = knows[0] || knows[1];
        assert_eq!((loops(&a), loops(&b)), (!any, !any), "{knows:?}: {} {}", a.why, b.why);
        for i in [0, 1].into_iter().filter(|i| knows[*i]) {
            assert!(!world.node(i).sent.lock().expect("lock").iter().any(|r| overlay.contains(r.peer().ip())));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_floods_fills_its_queue_and_no_more() {
    let world = World::new([Nat::Cone, Nat::Cone], [true, true]);
    let _outcome = world.start(0);
    let bytes = request(1, "password-of-node-number-0");
    let v = View::parse(&bytes).expect("a request");
    let says = |port: u16| world.node(0).with(|f| f.incoming(Route::direct(([192, 0, 2, 7], port).into()), &v));
    let taken = (0..1000).filter(|port| says(*port) == Some(Taken::Yes)).count();
    assert!((1..=64).contains(&taken), "{taken} were kept");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_the_peer_did_not_sign_is_none() {
    // Only the side that decides has a relay.
    let world = World::new([Nat::Symmetric, Nat::Symmetric], [true, false]);
    let outcomes = (world.start(0), world.start(1));
    let echo = |mut list: Vec<Candidate>| {
        list.push(Candidate { address: ECHO, kind: CandidateKind::Host, ..list[0].clone() });
        list
    };
    world.signal(0, &echo(world.node(0).candidates()), true);
    world.signal(1, &echo(world.node(1).candidates()), true);
    let a = outcomes.0.await.expect("outcome").expect("a relay, as nothing else works");
    outcomes.1.await.expect("outcome").expect("a path");
    assert!(!is_direct(&a), "{}", a.why);
    assert!(world.node(0).sent.lock().expect("lock").contains(&Route::Direct(ECHO)), "it was tried");
}

/// A check with the ufrag of node 0.
fn request(number: u16, password: &str) -> Vec<u8> {
    use stun_types::attribute::Username;
    use stun_types::message::{BINDING, Message, MessageWriteVec, ShortTermCredentials};
    use stun_types::message::{IntegrityAlgorithm, MessageWriteExt};
    use stun_types::prelude::MessageWrite;
    let mut m = Message::builder_request(BINDING, MessageWriteVec::new());
    m.add_attribute(&Username::new("frag0:frag1").expect("short")).expect("fits");
    m.add_attribute(&stun_types::attribute::Software::new(&number.to_string()).expect("short")).expect("fits");
    let key = ShortTermCredentials::new(password.to_owned()).into();
    m.add_message_integrity(&key, IntegrityAlgorithm::Sha1).expect("fits");
    m.finish()
}

#[tokio::test(start_paused = true)]
async fn forty_negotiations_at_once() {
    let worlds: Vec<_> = (0..40)
        .map(|i| {
            let nats = [[Nat::Cone, Nat::Cone], [Nat::Symmetric, Nat::Symmetric]][i % 2];
            World::new(nats, [true, true])
        })
        .collect();
    let found = futures::future::join_all(worlds.iter().map(|w| timed(w))).await;
    for (i, ([a, b], took)) in found.iter().enumerate() {
        assert_eq!(is_direct(a) && is_direct(b), i % 2 == 0);
        assert!(*took < Duration::from_millis(1500), "{took:?}");
    }
    let sent: usize = worlds.iter().map(|w| w.node(0).sent.lock().expect("lock").len()).sum();
    assert!(sent < 40 * 300, "{sent} datagrams for 40 negotiations");
}

#[test]
fn priorities_are_those_of_the_standard() {
    assert_eq!(priority(CandidateKind::Host, 65_535), 2_130_706_431);
    assert_eq!(priority(CandidateKind::Relayed, 65_535), 16_777_215);
}
