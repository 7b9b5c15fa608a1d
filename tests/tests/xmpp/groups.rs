//! Groups from the roster.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use control::xmpp::{Reason, ServiceKind, Signal, SignalError, Verdict};

use crate::cast::{Kind, NETWORK, Node, SOON, Stage, descriptor, negotiation, scene};

async fn pair(stage: &Stage) -> Result<(Node, Node)> {
    let (mut a, mut b) = (stage.node("a", "1")?, stage.node("b", "2")?);
    a.knows_group(NETWORK, &[stage.server.jid("b")]).await.context("a")?;
    b.knows_group(NETWORK, &[stage.server.jid("a")]).await.context("b")?;
    let (in_a, in_b) = (stage.full("a", "1"), stage.full("b", "2"));
    a.until("presence of b", SOON, |n| n.present.contains(&in_b)).await?;
    b.until("presence of a", SOON, |n| n.present.contains(&in_a)).await?;
    Ok((a, b))
}

async fn find_and_signal(stage: Stage) -> Result<()> {
    let (a_jid, b_jid) = (stage.full("a", "1"), stage.full("b", "2"));
    // a tells who it is while b is not there, and goes.
    let mut a = stage.node("a", "1")?;
    let first = descriptor("first", NETWORK);
    a.xmpp.publish(first.clone());
    a.until("login", SOON, |n| n.online == 1).await?;
    let mut b = stage.node("b", "2")?;
    b.until("a's descriptor", SOON, |n| n.descriptors.get(&a_jid) == Some(&first)).await?;
    a.xmpp.close().await;
    b.until("a's end", SOON, |n| !n.present.contains(&a_jid)).await?;
    b.xmpp.close().await;
    let mut b = stage.node("b", "2")?;
    b.until("a's descriptor, a offline", SOON, |n| n.descriptors.get(&a_jid) == Some(&first)).await?;
    ensure!(b.present.is_empty(), "{b}");
    let told = b.xmpp.signal(&a_jid, terminate()).await;
    ensure!(told == Err(SignalError::Gone), "signal to an absent node: {told:?}");

    // Both are there: changes are told, signals go to and fro.
    let (second, of_b) = (descriptor("second", NETWORK), descriptor("b", NETWORK));
    let mut a = stage.node("a", "1")?;
    a.xmpp.publish(first);
    b.until("a again", SOON, |n| n.present.contains(&a_jid)).await?;
    a.xmpp.publish(second.clone());
    b.xmpp.publish(of_b.clone());
    b.until("the change", SOON, |n| n.descriptors.get(&a_jid) == Some(&second)).await?;
    a.until("b's descriptor", SOON, |n| n.descriptors.get(&b_jid) == Some(&of_b)).await?;
    signals(&mut a, &mut b, &a_jid, &b_jid).await
}

fn terminate() -> Signal {
    Signal::Terminate { sid: "s1".into(), reason: Reason::Timeout }
}

async fn signals(a: &mut Node, b: &mut Node, a_jid: &str, b_jid: &str) -> Result<()> {
    let offer = Signal::Initiate { sid: "s1".into(), offer: negotiation(NETWORK) };
    let answer = Signal::Accept { sid: "s1".into(), answer: negotiation(NETWORK) };
    let more = Signal::Candidates { sid: "s1".into(), candidates: vec![], ufrag: "abcdefgh".into() };
    ensure!(a.signals(b, b_jid, &offer, Verdict::Ok).await? == Ok(()));
    ensure!(b.signals(a, a_jid, &answer, Verdict::Ok).await? == Ok(()));
    ensure!(b.signals(a, a_jid, &more, Verdict::Ok).await? == Ok(()));
    ensure!(a.signals(b, b_jid, &offer, Verdict::TieBreak).await? == Err(SignalError::TieBreak));
    ensure!(a.signals(b, b_jid, &more, Verdict::UnknownSession).await? == Err(SignalError::UnknownSession));
    ensure!(a.signals(b, b_jid, &offer, Verdict::Busy).await? == Err(SignalError::Busy));
    let refused = a.signals(b, b_jid, &offer, Verdict::NotAcceptable).await?;
    ensure!(matches!(refused, Err(SignalError::Refused(_))), "{refused:?}");
    // Many at once arrive in order. Each is begun, and none waited for, before the next.
    let mut many = Vec::new();
    for i in 0..200 {
        let s = Signal::Terminate { sid: format!("s{i}"), reason: Reason::Gone };
        let mut told = Box::pin(a.xmpp.signal(b_jid, s));
        tokio::select! {
            biased;
            early = &mut told => bail!("signal {i}: {early:?} before it was answered"),
            () = std::future::ready(()) => many.push(told),
        }
    }
    let all = async {
        for told in many {
            told.await?;
        }
        anyhow::Ok(())
    };
    let arrive = async {
        for i in 0..200 {
            let (_, s) = b.answer_one(Verdict::Ok).await?;
            ensure!(s.sid() == format!("s{i}"), "{} instead of s{i}", s.sid());
        }
        anyhow::Ok(())
    };
    let (told, arrived) = tokio::join!(all, arrive);
    told.and(arrived)
}

#[test]
fn nodes_find_each_other_and_signal_over_prosody() {
    scene(Kind::Prosody, find_and_signal);
}

#[test]
fn nodes_find_each_other_and_signal_over_ejabberd() {
    scene(Kind::Ejabberd, find_and_signal);
}

async fn devices(stage: Stage) -> Result<()> {
    let (mut one, mut two) = (stage.node("a", "1")?, stage.node("a", "2")?);
    let (d1, d2) = (descriptor("one", NETWORK), descriptor("two", NETWORK));
    one.xmpp.publish(d1.clone());
    two.xmpp.publish(d2.clone());
    let (j1, j2) = (stage.full("a", "1"), stage.full("a", "2"));
    one.until("the other device", SOON, |n| n.present.contains(&j2) && n.descriptors.get(&j2) == Some(&d2)).await?;
    two.until("the other device", SOON, |n| n.present.contains(&j1) && n.descriptors.get(&j1) == Some(&d1)).await?;
    let mut b = stage.node("b", "3")?;
    b.until("both devices", SOON, |n| n.descriptors.get(&j1) == Some(&d1) && n.descriptors.get(&j2) == Some(&d2))
        .await?;
    let offer = Signal::Initiate { sid: "s".into(), offer: negotiation(NETWORK) };
    ensure!(one.signals(&mut two, &j2, &offer, Verdict::Ok).await? == Ok(()));
    Ok(())
}

#[test]
fn devices_of_one_account_are_nodes_of_their_own_on_prosody() {
    scene(Kind::Prosody, devices);
}

#[test]
fn devices_of_one_account_are_nodes_of_their_own_on_ejabberd() {
    scene(Kind::Ejabberd, devices);
}

#[test]
fn ejabberd_tells_at_once_who_is_put_into_the_group_and_who_is_taken_out() {
    scene(Kind::Ejabberd, |mut stage| async move {
        let (mut a, mut b) = pair(&stage).await?;
        let (b_jid, c_jid) = (stage.full("b", "2"), stage.full("c", "3"));
        let mut c = stage.node("c", "3")?;
        c.knows_group(NETWORK, &[]).await?;
        b.xmpp.publish(descriptor("b", NETWORK));
        c.xmpp.publish(descriptor("c", NETWORK));
        a.until("b's descriptor", SOON, |n| n.descriptors.contains_key(&b_jid)).await?;
        stage.with(|s| s.add_to_group(crate::cast::GROUP, "c"))?;
        a.knows_group(NETWORK, &[stage.server.jid("b"), stage.server.jid("c")]).await?;
        a.until("c", SOON, |n| n.descriptors.contains_key(&c_jid)).await?;
        stage.with(|s| s.remove_from_group(crate::cast::GROUP, "b"))?;
        a.knows_group(NETWORK, &[stage.server.jid("c")]).await?;
        a.until("b's end", SOON, |n| !n.descriptors.contains_key(&b_jid) && !n.present.contains(&b_jid)).await?;
        b.knows_group(NETWORK, &[]).await?;
        // It is a stranger now: nobody answers it.
        let before = a.xmpp.counters().strangers();
        let xmpp = b.xmpp.clone();
        let told = a.during(xmpp.signal(&stage.full("a", "1"), terminate())).await;
        ensure!(told == Err(SignalError::Timeout), "{told:?}");
        ensure!(a.signals.is_empty() && a.xmpp.counters().strangers() > before, "{a}");
        Ok(())
    });
}

async fn services(stage: Stage) -> Result<()> {
    let mut a = stage.node("a", "1")?;
    a.until("login", SOON, |n| n.online == 1).await?;
    let all = a.xmpp.external_services().await?;
    let stun = all.iter().find(|s| s.kind == ServiceKind::Stun).context("no STUN")?;
    ensure!(stun.host == "127.0.0.1" && stun.port == 3478 && stun.transport == "udp", "{stun:?}");
    if let Some(turn) = all.iter().find(|s| s.kind == ServiceKind::Turn) {
        ensure!(turn.username.is_some() && turn.password.is_some() && turn.expires.is_some(), "{turn:?}");
    } else {
        ensure!(!format!("{:?}", stage.server).starts_with("Ejabberd"), "ejabberd offers no TURN: {all:?}");
    }
    Ok(())
}

#[test]
fn prosody_names_its_stun_server() {
    scene(Kind::Prosody, services);
}

#[test]
fn ejabberd_names_its_stun_and_turn_server_with_a_credential() {
    scene(Kind::Ejabberd, services);
}

#[test]
fn tls_from_the_first_byte_works_with_both() {
    for kind in [Kind::Prosody, Kind::Ejabberd] {
        scene(kind, |stage| async move {
            let mut settings = stage.settings("a", "1");
            let address = stage.server.direct_tls_address();
            settings.account.server = Some((address.ip().to_string(), address.port()));
            settings.account.direct_tls = true;
            let mut a = Node::start(settings)?;
            a.until("login", Duration::from_secs(5), |n| n.online == 1).await?;
            a.xmpp.close().await;
            Ok(())
        });
    }
}
