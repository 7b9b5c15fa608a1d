//! What the keeper makes of settings, as shards see it.

use crate::world::{Seeded, friend, public};
use dataplane::crypto::Backend;
use dataplane::io::udp;
use dataplane::keeper::Core;
use dataplane::shared::Shared;
use dataplane::tunnel::{PublicKey, Tunnel};
use dataplane::{PeerUpdate, Time, Update, WallTime};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

struct Keeper {
    core: Core,
    shared: Arc<Shared>,
}

impl Keeper {
    fn new() -> Self {
        let (shared, _) = Shared::new(Vec::new(), 1420);
        let shared = Arc::new(shared);
        let tunnel = Tunnel::new(Backend::AwsLc, shared.sessions.clone(), Box::new(Seeded(1)));
        let options = udp::Options { port: 0, fwmark: 0, gro: false, receive_buffer: 1 << 16 };
        let counters = shared.counters[0].clone();
        Self { core: Core::new(tunnel, Vec::new(), options, shared.clone(), counters), shared }
    }

    fn apply(&mut self, update: Update) {
        let now = Time::ZERO + Duration::from_secs(9);
        self.core.configure(update, now, WallTime(Duration::from_secs(1_700_000_000))).expect("applied");
    }

    fn peer(&mut self, n: u8, change: impl FnOnce(&mut PeerUpdate)) {
        let mut peer = PeerUpdate::new(public(n));
        change(&mut peer);
        self.apply(Update { peers: vec![peer], ..Update::default() });
    }

    fn audience(&self) -> Vec<PublicKey> {
        self.shared.audience.load().iter().map(|p| p.public_key).collect()
    }
}

#[test]
fn a_translation_is_the_peers_until_it_is_changed_or_taken_away() {
    let mut k = Keeper::new();
    let lease = |n: u8| (format!("{}/32", friend(n).lease).parse().expect("a prefix"), true);
    for n in 1..=3 {
        k.peer(n, |p| {
            p.allowed_ips = vec![lease(n)];
            p.translation = (n != 2).then_some(Some(friend(n)));
        });
    }
    assert_eq!(k.audience(), [public(1), public(3)]);
    let of = |k: &Keeper, n| {
        let routes = k.shared.routes.load();
        routes.lookup(friend(n).lease.into()).and_then(|p| p.translation())
    };
    assert_eq!([1, 2, 3].map(|n| of(&k, n)), [Some(friend(1)), None, Some(friend(3))]);

    k.peer(1, |p| p.persistent_keepalive = Some(0));
    assert_eq!(of(&k, 1), Some(friend(1)), "not mentioned, not changed");
    let moved = dataplane::Translation { own: Ipv4Addr::new(10, 1, 1, 1), ..friend(1) };
    k.peer(1, |p| p.translation = Some(Some(moved)));
    assert_eq!((of(&k, 1), k.audience()), (Some(moved), vec![public(1), public(3)]));
    k.peer(1, |p| p.translation = Some(None));
    assert_eq!((of(&k, 1), k.audience()), (None, vec![public(3)]));
    k.peer(3, |p| p.remove = true);
    assert_eq!(k.audience(), []);
    k.peer(1, |p| p.translation = Some(Some(friend(1))));
    k.apply(Update { replace_peers: true, ..Update::default() });
    assert_eq!(k.audience(), []);
}

#[test]
fn multicast_is_off_until_it_is_switched_on_and_again_when_switched_off() {
    let mut k = Keeper::new();
    assert_eq!(k.shared.multicast(), None);
    for broadcast in [Ipv4Addr::new(172, 31, 255, 255), Ipv4Addr::UNSPECIFIED] {
        k.apply(Update { multicast: Some(Some(broadcast)), ..Update::default() });
        k.apply(Update::default());
        assert_eq!(k.shared.multicast(), Some(broadcast));
    }
    k.apply(Update { multicast: Some(None), ..Update::default() });
    assert_eq!(k.shared.multicast(), None);
}

#[test]
fn a_peer_is_willing_to_have_aes_while_it_is_said_so_and_a_forced_interface_says_so_of_new_ones() {
    let mut tunnel = Tunnel::new(Backend::AwsLc, Arc::default(), Box::new(Seeded(1)));
    assert!(!tunnel.add_peer(public(1)).expect("room").aes());
    tunnel.set_aes(true);
    assert!(tunnel.add_peer(public(2)).expect("room").aes());
    assert!(!tunnel.add_peer(public(1)).expect("known").aes());

    let mut k = Keeper::new();
    let of = |k: &Keeper| k.shared.routes.load().lookup(friend(1).lease.into()).map(|p| p.aes());
    k.peer(1, |p| p.allowed_ips = vec![(format!("{}/32", friend(1).lease).parse().expect("a prefix"), true)]);
    for (change, is) in [(None, false), (Some(true), true), (None, true), (Some(false), false)] {
        k.peer(1, |p| p.aes = change);
        assert_eq!(of(&k), Some(is));
    }
    assert_eq!(k.core.state().peers[0].cipher, None, "there is no session");
}
