//! Somebody with a valid account on the same server, who knows full JIDs, and who is no member.

use std::time::Duration;

use anyhow::{Result, ensure};
use control::xmpp::{Signal, SignalError};
use ipop_tests::raw_xmpp::Raw;

use crate::cast::{Kind, NETWORK, SOON, Stage, descriptor, negotiation, scene};

async fn the_library_as_a_stranger(stage: Stage) -> Result<()> {
    let (mut a, mut c) = (stage.node("a", "1")?, stage.node("c", "3")?);
    let (a_jid, c_jid) = (stage.full("a", "1"), stage.full("c", "3"));
    a.xmpp.publish(descriptor("a", NETWORK));
    c.xmpp.publish(descriptor("c", NETWORK));
    a.knows_group(NETWORK, &[stage.server.jid("b")]).await?;
    c.knows_group(NETWORK, &[]).await?;
    let offer = Signal::Initiate { sid: "s".into(), offer: negotiation(NETWORK) };
    let told = c.xmpp.signal(&a_jid, offer.clone()).await;
    ensure!(told == Err(SignalError::Timeout), "{told:?}");
    // Also the other way: a member's signal to who does not count it as one.
    let told = a.xmpp.signal(&c_jid, offer).await;
    ensure!(told == Err(SignalError::Timeout), "{told:?}");
    a.during(c.during(tokio::time::sleep(Duration::from_millis(300)))).await;
    ensure!(a.signals.is_empty() && a.descriptors.is_empty() && a.present.is_empty(), "{a}");
    ensure!(c.signals.is_empty() && c.descriptors.is_empty() && c.present.is_empty(), "{c}");
    ensure!(a.xmpp.counters().strangers() > 0 && c.xmpp.counters().strangers() > 0);
    Ok(())
}

#[test]
fn a_stranger_on_prosody_gets_nothing() {
    scene(Kind::Prosody, the_library_as_a_stranger);
}

#[test]
fn a_stranger_on_ejabberd_gets_nothing() {
    scene(Kind::Ejabberd, the_library_as_a_stranger);
}

async fn a_hostile_one(stage: Stage) -> Result<()> {
    let mut a = stage.node("a", "1")?;
    let mut b = stage.node("b", "2")?;
    let (a_jid, b_jid) = (stage.full("a", "1"), stage.full("b", "2"));
    a.xmpp.publish(descriptor("a", NETWORK));
    b.until("a's descriptor", SOON, |n| n.descriptors.contains_key(&a_jid)).await?;
    a.until("b", SOON, |n| n.present.contains(&b_jid)).await?;
    let (members, descriptors) = (a.members.clone(), a.descriptors.clone());
    let address = stage.server.direct_tls_address();
    let account = stage.server.jid("a");
    let (to, before) = (a_jid.clone(), a.xmpp.counters().strangers());
    let node = |name: &str| format!("<node xmlns='urn:ipop-fast:node:1' name='{name}' version='1'/>");
    let event = format!(
        "<event xmlns='http://jabber.org/protocol/pubsub#event'><items node='urn:ipop-fast:node:1'>\
         <item id='ipop-2'>{}</item></items></event>",
        node("forged")
    );
    let lines = vec![
        format!("<iq type='get' id='q1' to='{to}'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>"),
        format!("<iq type='get' id='q2' to='{to}'><ping xmlns='urn:xmpp:ping'/></iq>"),
        format!("<iq type='get' id='q3' to='{to}'><query xmlns='jabber:iq:version'/></iq>"),
        format!(
            "<iq type='set' id='q4' to='{to}'><jingle xmlns='urn:xmpp:jingle:1' action='session-terminate' sid='s'/></iq>"
        ),
        // A change of the roster, as if it came from the server; a forged answer to a question of ours.
        format!(
            "<iq type='set' id='q5' to='{to}'><query xmlns='jabber:iq:roster'><item jid='c@xmpp.test' subscription='both'>\
             <group>my group &amp; &lt;co&gt;</group></item></query></iq>"
        ),
        format!("<iq type='result' id='3' to='{to}'/>"),
        format!("<presence to='{to}'>{}</presence>", node("x")),
        format!("<presence to='{to}' type='subscribe'/>"),
        format!("<message to='{to}' type='headline'>{event}</message>"),
        format!("<message to='{to}'><body>{}</body></message>", "x".repeat(20_000)),
    ];
    // Would overflow the stack of who builds a tree of it. Ejabberd 23.01 itself dies of 15,000.
    let depth = if format!("{:?}", stage.server).starts_with("Ejabberd") { 1000 } else { 15_000 };
    let (open, close) = ("<z>".repeat(depth), "</z>".repeat(depth));
    let monster = format!("<message to='{to}'><x xmlns='y'>{open}{close}</x></message>");
    let hostile = tokio::task::spawn_blocking(move || -> Result<(String, String)> {
        let mut raw = Raw::login(address, "xmpp.test", "c", "secret-c")?;
        for line in &lines {
            raw.say(line)?;
        }
        raw.say(&format!(
            "<iq type='get' id='items' to='{account}'><pubsub xmlns='http://jabber.org/protocol/pubsub'>\
             <items node='urn:ipop-fast:node:1'/></pubsub></iq>"
        ))?;
        // The server answers in order, so everything that concerns us came before; but the answers of a would come by
        // another way: give them a second.
        let mut heard = raw.hear("id='items'")?;
        let items = raw.hear("</iq>")?;
        std::thread::sleep(Duration::from_secs(1));
        raw.say("<iq type='get' id='last' to='xmpp.test'><ping xmlns='urn:xmpp:ping'/></iq>")?;
        heard.push_str(&raw.hear("last")?);
        raw.say(&monster)?;
        raw.say("<iq type='get' id='end' to='xmpp.test'><ping xmlns='urn:xmpp:ping'/></iq>")?;
        raw.hear("end")?;
        Ok((heard, items))
    });
    let (heard, items) = a.during(hostile).await??;
    ensure!(items.contains("error") && !items.contains("key="), "the descriptor is open to strangers: {items}");
    ensure!(!heard.contains(&a_jid), "it was answered: {heard}");
    ensure!(a.online == 1 && a.offline.is_empty(), "it ended the connection: {a}");
    ensure!(a.members == members && a.descriptors == descriptors && a.signals.is_empty(), "{a}");
    ensure!(a.present.iter().all(|p| p.starts_with("b@")), "{a}");
    let dropped = a.xmpp.counters().strangers() - before;
    ensure!(dropped >= 8, "only {dropped} stanzas of a stranger were counted");
    // And it works as before.
    let offer = Signal::Initiate { sid: "s".into(), offer: negotiation(NETWORK) };
    ensure!(b.signals(&mut a, &a_jid, &offer, control::xmpp::Verdict::Ok).await? == Ok(()));
    Ok(())
}

#[test]
fn forged_and_monstrous_stanzas_change_nothing_on_prosody() {
    scene(Kind::Prosody, a_hostile_one);
}

#[test]
fn forged_and_monstrous_stanzas_change_nothing_on_ejabberd() {
    scene(Kind::Ejabberd, a_hostile_one);
}
