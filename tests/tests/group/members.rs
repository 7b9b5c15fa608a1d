//! Who is in the group is served; who is not, or no longer, gets nothing.

use std::time::{Duration, Instant};

use anyhow::ensure;
use ipop_tests::internet::Gateway;
use ipop_tests::node::{Members, Node, READY, first_ping};
use ipop_tests::process::wait_for;
use ipop_tests::scene::Share;

use crate::cast::{BACK, Cast, FIND, GROUP, ROOM, SILENCE, STRANGER, Xmpp, group_scene, user, wait_path};

/// An attempt that must fail is given so long.
const TRY: Duration = Duration::from_secs(4);
/// Whoever is told of the end of a link closes it at once; to find a dead path takes four seconds.
const GOODBYE: Duration = Duration::from_secs(2);
/// A removed member's links are closed so soon.
const CLOSED: Duration = Duration::from_secs(5);

#[test]
fn a_stranger_with_an_account_on_the_server_gets_nothing() {
    group_scene(Share::Shared, Xmpp::Ejabberd, || {
        let gateways = [Gateway::Public, Gateway::PortRestricted, Gateway::Public];
        let mut cast = Cast::at_sites(Xmpp::Ejabberd, &gateways)?;
        // The third site's account stays at home: the stranger is there.
        cast.start(vec![cast.options(0), cast.options(1)])?;
        cast.wait_known(1)?;
        let mut stranger = Node::start(cast.ns(2), cast.xmpp.as_ref(), &cast.ca(), cast.stranger())?;
        cast.reach(0, 1)?;
        wait_for("the stranger to be logged in", READY, || Ok(stranger.status()?.xmpp.online))?;
        for member in &cast.nodes {
            ensure!(first_ping(cast.ns(2), member.address()?, TRY).is_err(), "the stranger got an answer");
        }
        ensure!(first_ping(cast.ns(0), stranger.address()?, TRY).is_err(), "a member reached the stranger");
        let known = stranger.network()?.peers;
        ensure!(known.is_empty(), "the stranger was told about {known:?}");
        for member in &cast.nodes {
            let known = member.network()?.peers;
            ensure!(!known.iter().any(|p| p.name == STRANGER), "a member knows {known:?}");
        }
        stranger.alive()?;
        cast.alive()
    });
}

#[test]
fn a_removed_member_is_cut_off_within_seconds_and_an_added_one_let_in() {
    group_scene(Share::Alone, Xmpp::Ejabberd, || {
        let mut cast = Cast::at_sites(Xmpp::Ejabberd, &[Gateway::Public, Gateway::PortRestricted, Gateway::Public])?;
        cast.start_all()?;
        let (removed, staying) = (cast.heartbeat(0, 1)?, cast.heartbeat(0, 2)?);
        cast.xmpp.remove_from_group(GROUP, &user(1))?;
        let start = Instant::now();
        wait_for("the links to be closed", CLOSED, || {
            let up = |n: &Node, other: &Node| n.peer(other).is_ok_and(|p| p.link.state == "up");
            let open = [0, 2].iter().any(|n| up(&cast.nodes[*n], &cast.nodes[1]));
            Ok(!open)
        })?;
        let closed = Instant::now();
        ensure!(first_ping(cast.ns(1), cast.nodes[0].address()?, TRY).is_err(), "a removed member is answered");
        let silence = removed.longest_silence(closed)?;
        ensure!(silence >= closed.elapsed() - Duration::from_secs(1), "its traffic went on; silent for {silence:?}");
        ensure!(staying.longest_silence(start)? < SILENCE, "another member's link was disturbed");
        cast.xmpp.add_to_group(GROUP, &user(1))?;
        removed.wait_after(Instant::now(), BACK)?;
        cast.alive()
    });
}

/// Prosody tells of rooms live, of shared groups only after a restart.
fn a_rooms_members_are_a_group(xmpp: Xmpp) {
    group_scene(Share::Shared, xmpp, || {
        let mut cast = Cast::at_sites(xmpp, &[Gateway::Public, Gateway::PortRestricted])?;
        let all = (0..2).map(|n| {
            let mut o = cast.options(n);
            o.members = Members::Room(cast.xmpp.room(ROOM));
            o
        });
        let all = all.collect();
        cast.start(all)?;
        cast.wait_known(1)?;
        let heart = cast.heartbeat(0, 1)?;
        cast.xmpp.set_room_member(ROOM, &user(1), false)?;
        wait_for("the link to be closed", CLOSED, || {
            Ok(cast.nodes[0].network()?.peers.iter().all(|p| p.link.state != "up"))
        })?;
        ensure!(first_ping(cast.ns(1), cast.nodes[0].address()?, TRY).is_err(), "a removed member is answered");
        cast.xmpp.set_room_member(ROOM, &user(1), true)?;
        heart.wait_after(Instant::now(), BACK)?;
        cast.alive()
    });
}

#[test]
fn a_members_only_room_of_prosody_is_a_group() {
    a_rooms_members_are_a_group(Xmpp::ProsodyAndCoturn);
}

#[test]
fn a_members_only_room_of_ejabberd_is_a_group() {
    a_rooms_members_are_a_group(Xmpp::Ejabberd);
}

#[test]
fn a_member_that_leaves_says_goodbye_and_is_known_to_be_gone() {
    group_scene(Share::Shared, Xmpp::ProsodyAndCoturn, || {
        let mut cast = Cast::at_sites(Xmpp::ProsodyAndCoturn, &[Gateway::Public, Gateway::Public])?;
        cast.start_all()?;
        cast.reach(0, 1)?;
        cast.nodes[1].leave()?;
        wait_for("its absence to be noticed", GOODBYE, || {
            // Still listed, by its descriptor, or not any more.
            let peers = cast.nodes[0].network()?.peers;
            let gone = peers.iter().all(|p| !p.online && p.link.state != "up");
            ensure!(gone, "{peers:?}");
            Ok(true)
        })?;
        ensure!(!cast.ns(1).has_link(ipop_tests::node::INTERFACE), "it left its interface behind");
        cast.nodes[0].alive()
    });
}

#[test]
fn the_group_secret_decides_who_gets_a_session() {
    group_scene(Share::Shared, Xmpp::ProsodyAndCoturn, || {
        let mut cast = Cast::at_sites(Xmpp::ProsodyAndCoturn, &[Gateway::Public; 3])?;
        let secrets = ["the right one", "the right one", "another one"];
        let all: Vec<_> = secrets
            .iter()
            .enumerate()
            .map(|(n, s)| {
                let mut o = cast.options(n);
                o.secret = Some((*s).to_owned());
                o
            })
            .collect();
        cast.start(all)?;
        cast.wait_known(2)?;
        cast.reach(0, 1)?;
        ensure!(first_ping(cast.ns(0), cast.nodes[2].address()?, TRY).is_err(), "a wrong secret is enough");
        let link = cast.link(0, 2)?;
        ensure!(link.state != "up" && !link.why.is_empty(), "{link:?}");
        cast.alive()
    });
}

#[test]
fn addresses_are_chosen_apart_and_kept() {
    group_scene(Share::Shared, Xmpp::ProsodyAndCoturn, || {
        let mut cast = Cast::at_sites(Xmpp::ProsodyAndCoturn, &[Gateway::Public; 2])?;
        let all = (0..2).map(|n| {
            let mut o = cast.options(n);
            o.address = None;
            o
        });
        let all = all.collect();
        cast.start(all)?;
        cast.wait_known(1)?;
        wait_for("addresses", FIND, || Ok(cast.nodes[0].address()? != cast.nodes[1].address()?))?;
        cast.reach(0, 1)?;
        let before = cast.nodes[1].address()?;
        cast.nodes[1].leave()?;
        cast.nodes[1].start_again()?;
        ensure!(cast.nodes[1].address()? == before, "it was {before}");
        cast.reach(0, 1)?;
        wait_path(&cast, 0, 1, "direct").map(drop)
    });
}

#[test]
fn a_refused_password_ends_the_node_and_says_so_and_the_environment_has_the_right_one() {
    group_scene(Share::Shared, Xmpp::Prosody, || {
        let mut cast = Cast::at_sites(Xmpp::Prosody, &[Gateway::Public; 2])?;
        let mut options = cast.options(0);
        options.password = "wrong".into();
        let mut node = Node::spawn(cast.ns(0), cast.xmpp.as_ref(), &cast.ca(), options)?;
        let (status, log) = node.ended(READY)?;
        let last = log.lines().last().unwrap_or_default();
        ensure!(!status.success(), "it ended with {status}: {log}");
        ensure!(last.contains("refuses the account") && last.contains(&node.jid), "the last word is {last}");
        ensure!(!log.contains("wrong\""), "the password is in the log: {log}");
        drop(node);
        // The variable goes before the file.
        let mut options = cast.options(0);
        options.environment =
            vec![("IPOP_FAST_XMPP_PASSWORD".into(), std::mem::replace(&mut options.password, "wrong".into()))];
        let other = cast.options(1);
        cast.start(vec![options, other])?;
        cast.wait_known(1)?;
        cast.alive()
    });
}

#[test]
fn two_machines_of_one_account_are_two_nodes() {
    group_scene(Share::Shared, Xmpp::ProsodyAndCoturn, || {
        let mut cast = Cast::at_sites(Xmpp::ProsodyAndCoturn, &[Gateway::PortRestricted, Gateway::Public])?;
        let (first, mut second) = (cast.options(0), cast.options(0));
        (second.name, second.address) = ("laptop".into(), Some([172, 16, 10, 77].into()));
        cast.start(vec![first, second])?;
        cast.wait_known(1)?;
        ensure!(cast.nodes[0].jid == cast.nodes[1].jid, "one account");
        cast.reach(0, 1)?;
        cast.reach(1, 0)?;
        wait_path(&cast, 0, 1, "direct")?;
        cast.alive()
    });
}
