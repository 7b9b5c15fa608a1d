//! Who is no friend gets nothing, but to be listed as one who asks; and `allow`.

use anyhow::ensure;
use ipop_tests::cast::{FIND, STRANGER, password};
use ipop_tests::internet::Gateway;
use ipop_tests::node::{Node, first_ping};
use ipop_tests::process::{run, wait_for};
use ipop_tests::scene::Share;

use crate::cast::{Cast, TRY, Xmpp, befriend, friend, friends, lease, options, reach, scene, tell, wait_friends};

#[test]
fn a_stranger_is_listed_and_gets_nothing() {
    scene(Share::Shared, Xmpp::Prosody, || {
        let mut cast = Cast::without_groups(Xmpp::Prosody, &[Gateway::Public; 3])?;
        cast.start(vec![options(0), options(1)])?;
        befriend(&cast, 0, 1)?;
        let mut o = options(2);
        (o.name, o.user, o.password) = (STRANGER.into(), STRANGER.into(), password(STRANGER));
        let mut stranger = Node::start(cast.ns(2), cast.xmpp.as_ref(), &cast.ca(), o)?;
        wait_for("the stranger to ask", FIND, || Ok(friends(&stranger, &["add", &cast.nodes[0].jid])?.0))?;
        wait_for("the request", FIND, || Ok(cast.nodes[0].status()?.requests == [stranger.jid.clone()]))?;
        let text = run(&mut cast.nodes[0].status_command()?)?;
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let hint = format!("{0} asks to be a friend. To accept: ipop-fast friends accept {0}", stranger.jid);
        ensure!(words.contains(&hint), "{text}");
        ensure!(friend(&cast.nodes[0], &stranger.jid)?.state == "request");
        ensure!(friend(&stranger, &cast.nodes[0].jid)?.state == "asked");
        for a in cast.nodes[0].network()?.addresses.iter().filter_map(|a| a.split('/').next()?.parse().ok()) {
            let own: std::net::IpAddr = a;
            // Its own address is the stranger's own as well.
            if own.is_ipv6() {
                ensure!(first_ping(cast.ns(2), own, TRY).is_err(), "the stranger got an answer");
            }
        }
        let known = stranger.network()?.peers;
        ensure!(known.is_empty(), "the stranger was told about {known:?}");
        ensure!(cast.nodes[0].network()?.peers.len() == 1, "{:?}", cast.nodes[0].network()?.peers);
        // Declined, it may ask again.
        tell(&cast.nodes[0], "remove", &stranger.jid)?;
        wait_for("it to be declined", FIND, || Ok(cast.nodes[0].status()?.requests.is_empty()))?;
        let (done, said) = friends(&cast.nodes[0], &["accept", &stranger.jid])?;
        ensure!(!done && said.contains("does not ask"), "{said}");
        reach(&cast, 0, 1)?;
        stranger.alive()?;
        cast.alive()
    });
}

#[test]
fn allow_chooses_among_friends() {
    scene(Share::Shared, Xmpp::Prosody, || {
        let mut cast = Cast::without_groups(Xmpp::Prosody, &[Gateway::Public; 3])?;
        let mut chooser = options(0);
        chooser.network_lines = format!(
            "allow = [\"{0}\", \"*@elsewhere.example\"]\n[network.leases]\n\"{0}/vm1\" = \"172.31.7.7\"\n",
            cast.xmpp.jid("vm1")
        );
        cast.start(vec![chooser, options(1), options(2)])?;
        befriend(&cast, 1, 0)?;
        ensure!(lease(&cast, 0, 1)?.to_string() == "172.31.7.7", "the lease of the configuration");
        wait_for("the other friend's request to be taken", FIND, || {
            Ok(friends(&cast.nodes[2], &["add", &cast.nodes[0].jid])?.0)
        })?;
        wait_for("the request", FIND, || Ok(cast.nodes[0].status()?.requests.contains(&cast.nodes[2].jid)))?;
        tell(&cast.nodes[0], "accept", &cast.nodes[2].jid)?;
        wait_for("them to be friends", FIND, || {
            let one = friend(&cast.nodes[0], &cast.nodes[2].jid)?;
            ensure!(one.state == "friend" && one.networks.is_empty() && one.nodes.is_empty(), "{one:?}");
            ensure!(lease(&cast, 2, 0).is_ok(), "who lets it in is known to the other");
            Ok(true)
        })?;
        ensure!(first_ping(cast.ns(2), lease(&cast, 2, 0)?, TRY).is_err(), "a friend that is not let in is answered");
        ensure!(cast.nodes[0].peer(&cast.nodes[2]).is_err(), "it is a peer");
        reach(&cast, 0, 1)?;
        cast.alive()
    });
}

/// Servers differ in what they tell a node of a request that came while it was away.
fn asked_while_away(xmpp: Xmpp) {
    scene(Share::Shared, xmpp, || {
        let mut cast = Cast::without_groups(xmpp, &[Gateway::Public; 2])?;
        cast.start(vec![options(0), options(1)])?;
        wait_for("both to be online", FIND, || {
            Ok(cast.nodes[0].status()?.xmpp.online && cast.nodes[1].status()?.xmpp.online)
        })?;
        cast.nodes[1].leave()?;
        tell(&cast.nodes[0], "add", &cast.nodes[1].jid)?;
        cast.nodes[1].start_again()?;
        if xmpp == Xmpp::Prosody {
            wait_for("the request", FIND, || Ok(cast.nodes[1].status()?.requests == [cast.nodes[0].jid.clone()]))?;
        }
        wait_for("the answer to be taken", FIND, || Ok(friends(&cast.nodes[1], &["add", &cast.nodes[0].jid])?.0))?;
        wait_friends(&cast, 0, 1)?;
        reach(&cast, 0, 1)?;
        cast.alive()
    });
}

#[test]
fn who_asked_while_the_other_was_away_is_a_friend_as_soon_as_that_one_adds_it() {
    asked_while_away(Xmpp::Prosody);
}

#[test]
fn who_asked_while_the_other_was_away_is_a_friend_as_soon_as_that_one_adds_it_on_ejabberd() {
    asked_while_away(Xmpp::Ejabberd);
}
