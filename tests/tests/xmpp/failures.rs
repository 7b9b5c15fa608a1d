//! What goes wrong, and that it is said and got over.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use control::xmpp::{Reason, Signal, SignalError};
use ipop_tests::servers::Ca;
use zeroize::Zeroizing;

use crate::cast::{Kind, NETWORK, Node, SOON, Stage, descriptor, scene};

fn terminate() -> Signal {
    Signal::Terminate { sid: "s".into(), reason: Reason::Gone }
}

async fn outage(mut stage: Stage) -> Result<()> {
    let (mut a, mut b) = (stage.node("a", "1")?, stage.node("b", "2")?);
    let (a_jid, b_jid) = (stage.full("a", "1"), stage.full("b", "2"));
    let d = descriptor("a", NETWORK);
    a.xmpp.publish(d.clone());
    b.until("a", SOON, |n| n.present.contains(&a_jid) && n.descriptors.get(&a_jid) == Some(&d)).await?;
    stage.with(|s| s.kill())?;
    a.until("offline", SOON, |n| !n.offline.is_empty()).await?;
    b.until("offline", SOON, |n| !n.offline.is_empty()).await?;
    let started = Instant::now();
    ensure!(a.xmpp.signal(&b_jid, terminate()).await == Err(SignalError::Offline));
    ensure!(a.xmpp.external_services().await == Err(SignalError::Offline));
    ensure!(started.elapsed() < Duration::from_secs(1), "it took {:?} to say that it is offline", started.elapsed());
    // Changed while there is nobody to tell.
    let d = descriptor("a anew", NETWORK);
    a.xmpp.publish(d.clone());
    stage.with(|s| s.restart())?;
    let back = Instant::now();
    a.until("online again", SOON, |n| n.online == 2).await?;
    b.until("all as before", SOON, |n| n.online == 2 && n.present.contains(&a_jid)).await?;
    b.until("the change", SOON, |n| n.descriptors.get(&a_jid) == Some(&d)).await?;
    ensure!(back.elapsed() < SOON, "{:?} after the server was back", back.elapsed());
    ensure!(a.refused.is_none() && b.refused.is_none());
    Ok(())
}

#[test]
fn a_prosody_that_was_killed_and_is_back_finds_its_nodes_again() {
    scene(Kind::Prosody, outage);
}

#[test]
fn an_ejabberd_that_was_killed_and_is_back_finds_its_nodes_again() {
    scene(Kind::Ejabberd, outage);
}

#[test]
fn a_wrong_password_is_the_end_and_says_so() {
    for kind in [Kind::Prosody, Kind::Ejabberd] {
        scene(kind, |stage| async move {
            let mut settings = stage.settings("a", "1");
            settings.account.password = Zeroizing::new("wrong".into());
            let mut a = Node::start(settings)?;
            a.until("refusal", SOON, |n| n.refused.is_some()).await?;
            let why = a.refused.clone().unwrap_or_default();
            ensure!(why.contains("password") && why.contains("a@xmpp.test") && !why.contains("wrong\""), "{why}");
            ensure!(a.xmpp.signal(&stage.full("b", "2"), terminate()).await == Err(SignalError::Offline));
            a.xmpp.close().await;
            Ok(())
        });
    }
}

#[test]
fn a_certificate_of_another_authority_is_not_accepted_and_that_is_said() {
    scene(Kind::Prosody, |stage| async move {
        let other = Ca::new()?;
        let mut settings = stage.settings("a", "1");
        settings.account.ca_file = Some(other.pem());
        let mut a = Node::start(settings)?;
        a.until("the reason", SOON, |n| n.offline.iter().any(|w| w.contains("certificate"))).await?;
        ensure!(a.online == 0 && a.refused.is_none(), "{a}");
        // The right authority, but another name.
        let mut settings = stage.settings("a", "1");
        settings.account.jid = "a@other.test".into();
        let mut a = Node::start(settings)?;
        a.until("some reason", SOON, |n| !n.offline.is_empty()).await?;
        ensure!(a.online == 0, "{a}");
        Ok(())
    });
}

#[test]
fn two_processes_on_one_resource_do_not_fight() {
    for kind in [Kind::Prosody, Kind::Ejabberd] {
        scene(kind, |stage| async move {
            let (mut one, mut two) = (stage.node("a", "1")?, stage.node("a", "1")?);
            one.until("login", SOON, |n| n.online == 1 || !n.offline.is_empty()).await?;
            two.until("login", SOON, |n| n.online == 1 || !n.offline.is_empty()).await?;
            let watch = tokio::time::sleep(Duration::from_secs(5));
            one.during(two.during(watch)).await;
            ensure!(one.online + two.online <= 3, "{} and {} logins", one.online, two.online);
            let said: Vec<_> = one.offline.iter().chain(&two.offline).collect();
            ensure!(said.iter().any(|w| w.contains("another process")), "{said:?}");
            Ok(())
        });
    }
}
