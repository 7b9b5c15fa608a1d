//! What stays when nodes restart, are renamed, renumbered and installed anew; and what ends a friendship.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ipop_tests::cast::{BACK, FIND};
use ipop_tests::heartbeat::Heartbeat;
use ipop_tests::internet::Gateway;
use ipop_tests::node::first_ping;
use ipop_tests::process::wait_for;
use ipop_tests::raw_xmpp::Raw;
use ipop_tests::scene::Share;

use crate::cast::{
    CLOSED, Cast, TRY, Xmpp, befriend, edit, friend, friends, lease, list, options, reach, scene, tell, wait_friends,
};

/// A link over which nothing comes any more is found dead within 15 s and four probes.
const SILENT: Duration = Duration::from_secs(30);

fn two_friends_on(xmpp: Xmpp) -> Result<Cast> {
    let mut cast = Cast::without_groups(xmpp, &[Gateway::Public, Gateway::PortRestricted])?;
    cast.start(vec![options(0), options(1)])?;
    befriend(&cast, 0, 1)?;
    Ok(cast)
}

fn two_friends() -> Result<Cast> {
    two_friends_on(Xmpp::Prosody)
}

/// A heartbeat from 0 to 1 that has begun to beat.
fn heartbeat(cast: &Cast) -> Result<Heartbeat> {
    let start = Instant::now();
    let heart = Heartbeat::start(cast.ns(0), cast.ns(1), lease(cast, 0, 1)?)?;
    heart.wait_after(start, FIND)?;
    Ok(heart)
}

fn wait_closed(cast: &Cast, who: &[(usize, usize)]) -> Result<()> {
    wait_for("the link to be closed", CLOSED, || {
        for (a, b) in who {
            let known = cast.nodes[*a].network()?.peers.into_iter().find(|p| p.name == cast.nodes[*b].options.name);
            ensure!(known.is_none(), "{a} knows {known:?}");
        }
        Ok(true)
    })
}

fn removing(xmpp: Xmpp) {
    scene(Share::Alone, xmpp, || {
        let mut cast = two_friends_on(xmpp)?;
        let before = (lease(&cast, 0, 1)?, lease(&cast, 1, 0)?);
        let heart = heartbeat(&cast)?;
        tell(&cast.nodes[0], "remove", &cast.nodes[1].jid)?;
        wait_closed(&cast, &[(0, 1), (1, 0)])?;
        let closed = Instant::now();
        ensure!(first_ping(cast.ns(1), before.1, TRY).is_err(), "a former friend is answered");
        let silence = heart.longest_silence(closed)?;
        ensure!(silence >= closed.elapsed() - Duration::from_secs(1), "its traffic went on; silent for {silence:?}");
        for n in &cast.nodes {
            ensure!(list(n)?.is_empty(), "{} knows {:?}", n.options.name, list(n)?);
            ensure!(n.log().contains("is no friend any more"), "{}", n.log());
        }
        let (done, said) = friends(&cast.nodes[0], &["remove", &cast.nodes[1].jid])?;
        ensure!(!done && said.contains("neither a friend"), "{said}");
        befriend(&cast, 1, 0)?;
        ensure!((lease(&cast, 0, 1)?, lease(&cast, 1, 0)?) == before, "they were {before:?}");
        heart.wait_after(Instant::now(), BACK)?;
        cast.alive()
    });
}

#[test]
fn leases_outlive_restarts_and_kills() {
    scene(Share::Shared, Xmpp::Prosody, || {
        let mut cast = two_friends()?;
        let before = (lease(&cast, 0, 1)?, lease(&cast, 1, 0)?);
        reach(&cast, 0, 1)?;
        cast.nodes[0].leave()?;
        wait_for("its absence to be noticed", FIND, || Ok(!cast.nodes[1].peer(&cast.nodes[0])?.online))?;
        ensure!(cast.nodes[1].log().contains("is offline"), "the log does not say that it is offline");
        cast.nodes[1].kill()?;
        for n in &mut cast.nodes {
            n.start_again()?;
        }
        wait_friends(&cast, 0, 1)?;
        ensure!((lease(&cast, 0, 1)?, lease(&cast, 1, 0)?) == before, "they were {before:?}");
        reach(&cast, 1, 0)?;
        cast.alive()
    });
}

#[test]
fn a_friend_that_is_renamed_and_calls_itself_something_else_keeps_its_lease() {
    scene(Share::Shared, Xmpp::Prosody, || {
        let mut cast = two_friends()?;
        let before = lease(&cast, 0, 1)?;
        reach(&cast, 0, 1)?;
        cast.nodes[1].leave()?;
        edit(&cast.nodes[1], |t| {
            t.replace("name = \"vm1\"", "name = \"renamed\"")
                .replace("172.31.0.100", "10.9.8.7")
                .replace("172.31.0.0/16", "10.9.0.0/16")
        })?;
        cast.nodes[1].options.name = "renamed".into();
        cast.nodes[1].options.address = "10.9.8.7".parse().ok();
        cast.nodes[1].start_again()?;
        wait_friends(&cast, 0, 1)?;
        ensure!(lease(&cast, 0, 1)? == before, "it was {before}");
        reach(&cast, 0, 1)?;
        crate::cast::carries(&cast, 0, 1)?;
        crate::cast::carries(&cast, 1, 0)?;
        let peer = cast.nodes[0].peer(&cast.nodes[1])?;
        ensure!(peer.calls_itself.as_deref() == Some("10.9.8.7"), "{peer:?}");
        ensure!(cast.nodes[0].log().contains("is called renamed now and was vm1"), "nothing in the log");
        cast.alive()
    });
}

#[test]
fn a_node_that_was_installed_anew_is_another_one_and_that_is_told() {
    scene(Share::Shared, Xmpp::Prosody, || {
        let mut cast = two_friends()?;
        let before = lease(&cast, 0, 1)?;
        cast.nodes[1].leave()?;
        std::fs::remove_dir_all(cast.nodes[1].dir().join("state"))?;
        cast.nodes[1].start_again()?;
        wait_for("the new device", FIND, || {
            let network = cast.nodes[0].network()?;
            let online = network.peers.iter().filter(|p| p.online).count();
            ensure!(network.peers.len() == 2 && online == 1, "{:?}", network.peers);
            let told =
                network.warnings.iter().any(|w| w.contains("2 nodes called vm1") && w.contains("installed anew"));
            ensure!(told, "{:?}", network.warnings);
            Ok(true)
        })?;
        let network = cast.nodes[0].network()?;
        let new = network
            .peers
            .iter()
            .find(|p| p.online)
            .and_then(|p| p.addresses.iter().find(|a| !a.contains(':')).cloned());
        let new: std::net::IpAddr = new.unwrap_or_default().parse()?;
        ensure!(new != before, "another device has the old one's address");
        first_ping(cast.ns(0), new, FIND)?;
        cast.alive()
    });
}

fn blocking(xmpp: Xmpp) {
    scene(Share::Shared, xmpp, || {
        let mut cast = two_friends_on(xmpp)?;
        let before = lease(&cast, 0, 1)?;
        reach(&cast, 0, 1)?;
        let setup = cast.xmpp.setup().clone();
        let options = &cast.nodes[0].options;
        let at = cast.xmpp.direct_tls_address();
        let mut client = Raw::login_from(cast.ns(0), at, &setup.domain, &options.user, &options.password)?;
        let friends_jid = cast.nodes[1].jid.clone();
        client.say(&format!(
            "<iq type='set' id='b1'><block xmlns='urn:xmpp:blocking'><item jid='{friends_jid}'/></block></iq>"
        ))?;
        wait_closed(&cast, &[(0, 1)])?;
        wait_for("the other side to notice", SILENT, || {
            let peer = cast.nodes[1].peer(&cast.nodes[0])?;
            // Ejabberd does not tell it that we are gone for it.
            ensure!(peer.link.state != "up" && (!peer.online || xmpp == Xmpp::Ejabberd), "{peer:?}");
            Ok(true)
        })?;
        ensure!(first_ping(cast.ns(1), lease(&cast, 1, 0)?, TRY).is_err(), "whoever is blocked is answered");
        let known = friend(&cast.nodes[0], &friends_jid)?;
        ensure!(known.blocked && known.networks.is_empty(), "{known:?}");
        ensure!(cast.nodes[0].log().contains("is on the account's block list"), "nothing in the log");
        let warnings = cast.nodes[0].network()?.warnings;
        ensure!(warnings.iter().any(|w| w.contains(&friends_jid) && w.contains("block list")), "{warnings:?}");
        // A restart does not forget it.
        cast.nodes[0].leave()?;
        cast.nodes[0].start_again()?;
        wait_for("the block list", FIND, || Ok(friend(&cast.nodes[0], &friends_jid)?.blocked))?;
        ensure!(cast.nodes[0].network()?.peers.is_empty(), "{:?}", cast.nodes[0].network()?.peers);
        client.say(&format!(
            "<iq type='set' id='b2'><unblock xmlns='urn:xmpp:blocking'><item jid='{friends_jid}'/></unblock></iq>"
        ))?;
        wait_friends(&cast, 0, 1)?;
        ensure!(lease(&cast, 0, 1)? == before, "it was {before}");
        reach(&cast, 0, 1)?;
        reach(&cast, 1, 0)?;
        cast.alive()
    });
}

#[test]
fn blocking_with_any_client_ends_the_link_and_unblocking_brings_it_back() {
    blocking(Xmpp::Prosody);
}

#[test]
fn blocking_ends_the_link_on_ejabberd_as_well() {
    blocking(Xmpp::Ejabberd);
}

#[test]
fn removing_a_friend_ends_the_link_within_seconds_and_friends_again_have_the_same_addresses() {
    removing(Xmpp::Prosody);
}

#[test]
fn removing_a_friend_ends_the_link_on_ejabberd_as_well() {
    removing(Xmpp::Ejabberd);
}
