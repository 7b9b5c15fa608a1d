//! Groups from members-only rooms.

use anyhow::{Result, ensure};
use control::xmpp::{Signal, Verdict};

use crate::cast::{Kind, SOON, Stage, descriptor, negotiation, scene};

async fn room(mut stage: Stage) -> Result<()> {
    let network = format!("muc:{}", stage.server.room("room"));
    let (a_jid, b_jid) = (stage.full("a", "1"), stage.full("b", "2"));
    let (mut a, mut b, mut c) = (stage.room_node("a", "1")?, stage.room_node("b", "2")?, stage.room_node("c", "3")?);
    let (of_a, of_b) = (descriptor("a", &network), descriptor("b", &network));
    a.xmpp.publish(of_a.clone());
    b.xmpp.publish(of_b.clone());
    c.xmpp.publish(descriptor("c", &network));
    let b_account = stage.server.jid("b");
    let member = |n: &crate::cast::Node, who: &str| n.members.get(&network).is_some_and(|m| m.contains(who));
    a.until("b", SOON, |n| n.present.contains(&b_jid) && n.descriptors.get(&b_jid) == Some(&of_b)).await?;
    b.until("a", SOON, |n| n.present.contains(&a_jid) && n.descriptors.get(&a_jid) == Some(&of_a)).await?;
    ensure!(member(&a, &b_account), "{a}");
    c.until("to be told of no members", SOON, |n| n.members.contains_key(&network)).await?;
    ensure!(c.members[&network].is_empty() && c.descriptors.is_empty(), "{c}");
    let offer = Signal::Initiate { sid: "s".into(), offer: negotiation(&network) };
    ensure!(a.signals(&mut b, &b_jid, &offer, Verdict::Ok).await? == Ok(()));
    // A change reaches who is inside, and who comes later.
    let of_a = descriptor("a anew", &network);
    a.xmpp.publish(of_a.clone());
    b.until("the change", SOON, |n| n.descriptors.get(&a_jid) == Some(&of_a)).await?;
    // Went, but a member still.
    b.xmpp.close().await;
    a.until("b's end", SOON, |n| !n.present.contains(&b_jid)).await?;
    ensure!(member(&a, &b_account) && a.descriptors.contains_key(&b_jid), "{a}");
    let mut b = stage.room_node("b", "2")?;
    b.until("a's newest", SOON, |n| n.descriptors.get(&a_jid) == Some(&of_a)).await?;
    a.until("b again", SOON, |n| n.present.contains(&b_jid)).await?;
    // Put out.
    stage.with(|s| s.set_room_member("room", "b", false))?;
    a.until("b's end", SOON, |n| !member(n, &b_account) && !n.descriptors.contains_key(&b_jid)).await?;
    ensure!(!a.present.contains(&b_jid), "{a}");
    b.until("to be alone", SOON, |n| n.members.get(&network).is_some_and(std::collections::BTreeSet::is_empty)).await
}

#[test]
fn a_members_only_room_is_a_group_on_prosody() {
    scene(Kind::Prosody, room);
}

#[test]
fn a_members_only_room_is_a_group_on_ejabberd() {
    scene(Kind::Ejabberd, room);
}
