//! Keys of friends that change, and leases that a person writes down.

use anyhow::{Context, Result, ensure};
use control::config::Allow;
use control::identity::{Descriptor, NetworkDescriptor};
use control::xmpp::FriendSource;
use dataplane::tunnel::{PrivateKey, PublicKey};
use ipop_tests::internet::Gateway;
use ipop_tests::node::first_ping;
use ipop_tests::process::{self, output, wait_for};
use ipop_tests::scene::Share;
use nix::sys::signal::Signal;

use crate::cast::{Cast, FIND, OWN, TRY, Xmpp, befriend, edit, lease, options, reach, scene, user};
use crate::puppet::Puppet;

const NETWORK: &str = "social:social";

fn descriptor(name: &str, key: PublicKey) -> Result<Descriptor> {
    let addresses = vec![format!("{OWN}/32").parse().ok().context("an address")?];
    let network = NETWORK.to_owned();
    let networks =
        vec![NetworkDescriptor { network, public_key: key, addresses, routes: vec![], subnet: None, since: 1 }];
    Ok(Descriptor { name: name.into(), version: "0.1.0".into(), capabilities: vec![], networks })
}

fn accept(cast: &Cast, jid: &str) -> Result<()> {
    let out = output(&mut cast.nodes[0].ask(&["pins", "accept", jid])?)?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

#[test]
fn a_changed_key_of_a_friends_node_is_refused_until_accepted_and_the_lease_waits() {
    scene(Share::Shared, Xmpp::Prosody, || {
        let mut cast = Cast::without_groups(Xmpp::Prosody, &[Gateway::Public; 2])?;
        cast.start(vec![options(0), options(1)])?;
        befriend(&cast, 0, 1)?;
        reach(&cast, 0, 1)?;
        let (known, before) = (cast.nodes[0].peer(&cast.nodes[1])?, lease(&cast, 0, 1)?);
        cast.nodes[1].leave()?;
        let (_, resource) = known.jid.split_once('/').context("no full JID")?;
        let password = cast.nodes[1].options.password.clone();
        let friends = vec![FriendSource { network: NETWORK.into(), allow: Allow::Everybody }];
        let forger = Puppet::login_to(&cast, cast.ns(1), &user(1), &password, resource, (vec![], friends))?;
        let key = PrivateKey::new([7; 32]).public();
        forger.publish(descriptor(&user(1), key)?);
        wait_for("the changed key to be noticed", FIND, || {
            let peer = cast.nodes[0].peer(&cast.nodes[1])?;
            ensure!(
                peer.pin == "changed" && peer.pin_detail == Some(control::identity::base64::public(&key)),
                "{peer:?}"
            );
            Ok(true)
        })?;
        ensure!(first_ping(cast.ns(0), before, TRY).is_err(), "somebody answered");
        let warnings = cast.nodes[0].network()?.warnings;
        ensure!(warnings.iter().any(|w| w.contains("pins accept") && w.contains(&known.jid)), "{warnings:?}");
        ensure!(cast.nodes[0].log().contains("THE KEY OF"), "nothing in the log");
        accept(&cast, &known.jid)?;
        wait_for("the accepted key to be in use", FIND, || {
            let peer = cast.nodes[0].peer(&cast.nodes[1])?;
            ensure!(peer.pin == "pinned" && peer.public_key == control::identity::base64::public(&key), "{peer:?}");
            Ok(true)
        })?;
        ensure!(lease(&cast, 0, 1)? == before, "it was {before}");
        forger.close()?;
        cast.nodes[1].start_again()?;
        wait_for("the first key to be refused", FIND, || {
            Ok(cast.nodes[0].peer(&cast.nodes[1])?.pin_detail.as_ref() == Some(&known.public_key))
        })?;
        accept(&cast, &cast.nodes[1].jid)?;
        wait_for("the lease", FIND, || Ok(lease(&cast, 0, 1)? == before))?;
        reach(&cast, 0, 1)?;
        cast.alive()
    });
}

#[test]
fn a_lease_that_a_person_writes_down_holds_after_sighup_without_a_new_link() {
    scene(Share::Shared, Xmpp::Prosody, || {
        let mut cast = Cast::without_groups(Xmpp::Prosody, &[Gateway::Public; 2])?;
        cast.start(vec![options(0), options(1)])?;
        befriend(&cast, 0, 1)?;
        reach(&cast, 0, 1)?;
        let before = lease(&cast, 0, 1)?;
        let line = format!("\n[network.leases]\n\"{}\" = \"172.31.7.7\"\n", cast.nodes[1].jid);
        edit(&cast.nodes[0], |t| t + &line)?;
        process::signal(cast.nodes[0].pid(), Signal::SIGHUP)?;
        wait_for("the lease", FIND, || Ok(lease(&cast, 0, 1)?.to_string() == "172.31.7.7"))?;
        reach(&cast, 0, 1)?;
        ensure!(first_ping(cast.ns(0), before, TRY).is_err(), "the old address is answered");
        ensure!(cast.nodes[0].log().contains("as the configuration says"), "nothing in the log");
        let link = cast.nodes[0].peer(&cast.nodes[1])?.link;
        ensure!(link.state == "up", "{link:?}");
        cast.alive()
    });
}
