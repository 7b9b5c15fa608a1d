//! Keys that change, and stanzas from those who have no part in a link.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use control::identity::{Descriptor, NetworkDescriptor};
use control::xmpp::{Reason, Signal, SignalError};
use dataplane::tunnel::{PrivateKey, PublicKey};
use ipop_tests::daemon::Implementation;
use ipop_tests::internet::Gateway;
use ipop_tests::node::first_ping;
use ipop_tests::process::{output, wait_for};
use ipop_tests::scene::Share;

use crate::cast::{Cast, FIND, GROUP, ROOM, SILENCE, STRANGER, Xmpp, group_scene, user};
use crate::puppet::{Puppet, candidate, negotiation};

/// An attempt that must fail is given so long.
const TRY: Duration = Duration::from_secs(3);

fn network() -> String {
    format!("group:{GROUP}")
}

/// A node's descriptor with an address of the overlay.
fn descriptor(name: &str, key: PublicKey, last: u8) -> Result<Descriptor> {
    let addresses = vec![format!("172.16.10.{last}/32").parse().ok().context("an address")?];
    let network = network();
    let networks =
        vec![NetworkDescriptor { network, public_key: key, addresses, routes: vec![], subnet: None, since: 1 }];
    Ok(Descriptor { name: name.into(), version: "0.1.0".into(), capabilities: vec![], networks })
}

/// `ipop-fast pins accept JID`, as a person says it to node `n`.
fn accept(cast: &Cast, n: usize, jid: &str) -> Result<(bool, String)> {
    let mut command = Command::new(Implementation::under_test().binary()?);
    let socket = cast.nodes[n].dir().join("control");
    let out = output(command.args(["pins", "accept", jid, "--socket"]).arg(socket))?;
    let said = [out.stdout, out.stderr].map(|s| String::from_utf8_lossy(&s).into_owned()).concat();
    Ok((out.status.success(), said))
}

#[test]
fn a_changed_key_is_refused_until_a_person_accepts_it() {
    group_scene(Share::Shared, Xmpp::ProsodyAndCoturn, || {
        let mut cast = Cast::at_sites(Xmpp::ProsodyAndCoturn, &[Gateway::Public; 2])?;
        cast.start_all()?;
        cast.reach(0, 1)?;
        let known = cast.nodes[0].peer(&cast.nodes[1])?;
        ensure!(known.pin == "pinned" && known.pin_detail.is_none(), "{known:?}");
        let a = cast.nodes[0].status()?.jid.context("no JID")?;
        let (said, message) = accept(&cast, 0, &known.jid)?;
        ensure!(!said && message.contains("nothing to accept"), "before anything changed: {message}");
        cast.nodes[1].leave()?;

        // Whoever has the account (or the server) says the same of the same device, but for the key.
        let (_, resource) = known.jid.split_once('/').context("no full JID")?;
        let (key, password) = (PrivateKey::new([7; 32]).public(), cast.nodes[1].options.password.clone());
        let forger = Puppet::login(&cast, cast.ns(1), &user(1), &password, resource)?;
        forger.publish(descriptor(&user(1), key, 3)?);
        wait_for("the changed key to be noticed", FIND, || {
            let peer = cast.nodes[0].peer(&cast.nodes[1])?;
            ensure!(peer.pin == "changed" && peer.online, "{peer:?}");
            Ok(true)
        })?;
        let offer = Signal::Initiate { sid: "forged1".into(), offer: negotiation(&network()) };
        let told = forger.signal(&a, offer)?;
        ensure!(matches!(told, Err(SignalError::Refused(_))), "its offer was answered with {told:?}");
        ensure!(first_ping(cast.ns(0), cast.nodes[1].address()?, TRY).is_err(), "somebody answered");
        let peer = cast.nodes[0].peer(&cast.nodes[1])?;
        ensure!(peer.jid == known.jid && peer.public_key == known.public_key, "{peer:?}");
        ensure!(
            peer.pin_detail == Some(control::identity::base64::public(&key)) && peer.link.state == "idle",
            "{peer:?}"
        );
        ensure!(forger.offers_of(&a)? == 0, "it was offered a link");
        let warnings = cast.nodes[0].network()?.warnings;
        ensure!(warnings.iter().any(|w| w.contains("pins accept") && w.contains(&known.jid)), "{warnings:?}");
        ensure!(cast.nodes[0].log().contains("THE KEY OF"), "nothing in the log");

        let (done, message) = accept(&cast, 0, &known.jid)?;
        ensure!(done, "{message}");
        wait_for("the accepted key to be in use", FIND, || {
            let peer = cast.nodes[0].peer(&cast.nodes[1])?;
            ensure!(
                peer.pin == "pinned"
                    && peer.public_key == control::identity::base64::public(&key)
                    && peer.pin_detail.is_none(),
                "{peer:?}"
            );
            Ok(true)
        })?;
        // Now it is a peer like any other: packets for it ask for a link.
        ensure!(first_ping(cast.ns(0), cast.nodes[1].address()?, TRY).is_err(), "who answered?");
        ensure!(forger.offers_of(&a)? > 0, "it was offered no link: {:?}", cast.link(0, 1));
        forger.close()?;
        // And the key that was pinned before is one that changed.
        cast.nodes[1].start_again()?;
        wait_for("the first key to be refused", FIND, || {
            let peer = cast.nodes[0].peer(&cast.nodes[1])?;
            ensure!(peer.pin == "changed" && peer.pin_detail.as_ref() == Some(&known.public_key), "{peer:?}");
            Ok(true)
        })?;
        // The bare JID does as well.
        let (done, message) = accept(&cast, 0, &cast.nodes[1].jid)?;
        ensure!(done, "{message}");
        cast.reach(0, 1)?;
        cast.alive()
    });
}

#[test]
fn after_a_forged_descriptor_the_node_with_the_pinned_key_is_served_as_before() {
    group_scene(Share::Shared, Xmpp::ProsodyAndCoturn, || {
        let mut cast = Cast::at_sites(Xmpp::ProsodyAndCoturn, &[Gateway::Public; 2])?;
        cast.start_all()?;
        cast.reach(0, 1)?;
        let known = cast.nodes[0].peer(&cast.nodes[1])?;
        cast.nodes[1].leave()?;
        let (_, resource) = known.jid.split_once('/').context("no full JID")?;
        let (key, password) = (PrivateKey::new([7; 32]).public(), cast.nodes[1].options.password.clone());
        let forger = Puppet::login(&cast, cast.ns(1), &user(1), &password, resource)?;
        forger.publish(descriptor(&user(1), key, 3)?);
        wait_for("the changed key to be noticed", FIND, || Ok(cast.nodes[0].peer(&cast.nodes[1])?.pin == "changed"))?;
        forger.close()?;
        // A restart does not make it forget.
        cast.nodes[0].leave()?;
        cast.nodes[0].start_again()?;
        wait_for("the changed key to be noticed again", FIND, || {
            Ok(cast.nodes[0].peer(&cast.nodes[1])?.pin == "changed")
        })?;
        cast.nodes[1].start_again()?;
        cast.reach(0, 1)?;
        // The forged key is no news any more: who says so late does not get it pinned.
        let (done, message) = accept(&cast, 0, &known.jid)?;
        ensure!(!done && message.contains("nothing to accept"), "{message}");
        let peer = cast.nodes[0].peer(&cast.nodes[1])?;
        ensure!(peer.pin == "pinned" && peer.public_key == known.public_key && peer.pin_detail.is_none(), "{peer:?}");
        cast.alive()
    });
}

/// The sessions that a node's log names for a peer.
fn sessions(cast: &Cast, n: usize, peer: &str) -> Vec<String> {
    let start = format!("{peer}: negotiation ");
    let log = cast.nodes[n].log();
    let named = log.lines().filter_map(|l| l.split_once(&start)?.1.split(' ').next());
    named.map(str::to_owned).collect()
}

/// Everything that can be said about a session of somebody else.
fn meddling(sid: &str) -> Vec<Signal> {
    let (sid, ufrag) = (sid.to_owned(), "forgedxx".to_owned());
    let mut all = vec![
        Signal::Accept { sid: sid.clone(), answer: negotiation(&network()) },
        Signal::Candidates { sid: sid.clone(), candidates: vec![candidate()], ufrag },
    ];
    let reasons = [Reason::Gone, Reason::GeneralError, Reason::Success, Reason::Decline];
    all.extend(reasons.map(|reason| Signal::Terminate { sid: sid.clone(), reason }));
    all
}

#[test]
fn what_others_say_about_a_session_changes_nothing() {
    group_scene(Share::Alone, Xmpp::ProsodyAndCoturn, || {
        let mut cast = Cast::at_sites(Xmpp::ProsodyAndCoturn, &[Gateway::Public; 3])?;
        cast.start(vec![cast.options(0), cast.options(1)])?;
        cast.wait_known(1)?;
        let heart = cast.heartbeat(0, 1)?;
        let start = Instant::now();
        let jids = cast.nodes.iter().map(|n| n.status()?.jid.context("no JID")).collect::<Result<Vec<_>>>()?;
        let (a, b) = (&jids[0], &jids[1]);
        let sids = sessions(&cast, 0, b);
        ensure!(!sids.is_empty(), "the log names no session with {b}");
        let before = cast.link(0, 1)?;
        ensure!(before.state == "up", "{before:?}");

        // Another device of the peer's own account, another member, and somebody who is in no group.
        let third = cast.options(2);
        let clients = [
            (user(1), cast.nodes[1].options.password.clone(), true),
            (user(2), third.password, true),
            (STRANGER.to_owned(), cast.stranger().password, false),
        ];
        for (user, password, member) in clients {
            let client = Puppet::login(&cast, cast.ns(2), &user, &password, "ipop-0123456789abcdef")?;
            let mut all: Vec<(Signal, SignalError)> = Vec::new();
            let unknown = if member { SignalError::UnknownSession } else { SignalError::Timeout };
            all.extend(sids.iter().flat_map(|s| meddling(s)).map(|s| (s, unknown.clone())));
            // Of networks in which the sender, or the receiver, is not.
            for network in [format!("muc:{}", cast.xmpp.room(ROOM)), "group:another".into()] {
                let offer = Signal::Initiate { sid: "elsewhere".into(), offer: negotiation(&network) };
                all.push((offer, SignalError::Timeout));
            }
            let (signals, right): (Vec<_>, Vec<_>) = all.into_iter().unzip();
            let told = client.signals(a, signals.clone())?;
            for ((signal, right), told) in signals.iter().zip(right).zip(told) {
                ensure!(told == Err(right), "{user} was told {told:?} to {signal:?}");
            }
            // With the same name as a session in use, and with a new one: it has no key there, so it gets no link.
            let offer = |sid: &str| Signal::Initiate { sid: sid.into(), offer: negotiation(&network()) };
            for told in client.signals(a, vec![offer(&sids[0]), offer("another")])? {
                let right = if member {
                    matches!(told, Err(SignalError::Refused(_)))
                } else {
                    told == Err(SignalError::Timeout)
                };
                ensure!(right, "{user} was told {told:?} to an offer");
            }
            client.close()?;
        }
        let silence = heart.longest_silence(start)?;
        ensure!(silence < SILENCE, "the link fell silent for {silence:?}");
        let link = cast.link(0, 1)?;
        ensure!((&link.state, &link.address, &link.pair) == (&before.state, &before.address, &before.pair), "{link:?}");
        ensure!(sessions(&cast, 0, b) == sids, "they negotiated again");
        ensure!(cast.nodes[0].network()?.peers.len() == 1, "there is a peer more");
        cast.alive()
    });
}

#[test]
fn a_node_of_one_network_gets_no_link_in_another() {
    group_scene(Share::Shared, Xmpp::ProsodyAndCoturn, || {
        let mut cast = Cast::at_sites(Xmpp::ProsodyAndCoturn, &[Gateway::Public; 2])?;
        // Node 0 is in the group and in the room, node 1's account in the group only.
        cast.xmpp.set_room_member(ROOM, &user(1), false)?;
        let (mut both, room) = (cast.options(0), cast.xmpp.room(ROOM));
        both.network_lines = format!(
            "\n[[network]]\nkind = \"group\"\ninterface = \"ipop1\"\nmuc = \"{room}\"\naddress = \"172.16.11.2/24\"\n"
        );
        cast.start(vec![both, cast.options(1)])?;
        cast.wait_known(1)?;
        let heart = cast.heartbeat(0, 1)?;
        let start = Instant::now();
        let a = cast.nodes[0].status()?.jid.context("no JID")?;
        let client = Puppet::login(&cast, cast.ns(1), &user(1), &cast.options(1).password, "ipop-0123456789abcdef")?;
        let key = PrivateKey::new([9; 32]).public();
        // It says that it is in both.
        let mut said = descriptor("forged", key, 77)?;
        let other = NetworkDescriptor { network: format!("muc:{room}"), ..said.networks[0].clone() };
        said.networks.push(other);
        client.publish(said);
        wait_for("its descriptor", FIND, || {
            Ok(cast.nodes[0].status()?.networks.iter().any(|n| n.peers.iter().any(|p| p.name == "forged")))
        })?;
        let told =
            client.signal(&a, Signal::Initiate { sid: "room".into(), offer: negotiation(&format!("muc:{room}")) })?;
        ensure!(told == Err(SignalError::Timeout), "{told:?}");
        let networks = cast.nodes[0].status()?.networks;
        let room = networks.iter().find(|n| n.network.starts_with("muc:")).context("no room")?;
        ensure!(room.peers.is_empty(), "{room:?}");
        // In the network that it is in, it is served.
        let told = client.signal(&a, Signal::Initiate { sid: "group".into(), offer: negotiation(&network()) })?;
        ensure!(told == Ok(()), "{told:?}");
        client.close()?;
        let silence = heart.longest_silence(start)?;
        ensure!(silence < SILENCE, "the link fell silent for {silence:?}");
        cast.alive()
    });
}
