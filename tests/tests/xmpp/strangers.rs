//! Somebody with a valid account on the same server, who knows full JIDs, and who is no member.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use control::xmpp::{Signal, SignalError};

use crate::cast::{Kind, NETWORK, SOON, Stage, descriptor, negotiation, scene};

/// A client that says whatever it likes: XML by hand over `openssl s_client`.
struct Raw {
    child: Child,
    heard: mpsc::Receiver<Vec<u8>>,
    text: String,
}

impl Raw {
    fn login(address: SocketAddr, domain: &str, user: &str, password: &str) -> Result<Self> {
        let mut child = Command::new("openssl")
            .args(["s_client", "-quiet", "-no_ign_eof", "-connect", &address.to_string(), "-servername", domain])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("openssl s_client")?;
        let mut out = child.stdout.take().context("stdout")?;
        let (tx, heard) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut buffer) {
                if tx.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        let mut raw = Self { child, heard, text: String::new() };
        let open = format!(
            "<stream:stream to='{domain}' xmlns='jabber:client' version='1.0' xmlns:stream='http://etherx.jabber.org/streams'>"
        );
        raw.say(&open)?;
        raw.hear("</stream:features>")?;
        let plain = base64(format!("\0{user}\0{password}").as_bytes());
        raw.say(&format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{plain}</auth>"))?;
        raw.hear("<success")?;
        raw.say(&open)?;
        raw.hear("</stream:features>")?;
        raw.say("<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>ipop-x</resource></bind></iq>")?;
        raw.hear("</bind>")?;
        raw.say("<presence/>")?;
        Ok(raw)
    }

    fn say(&mut self, xml: &str) -> Result<()> {
        // Not in one line: s_client takes lines that begin with Q or R as commands.
        self.child.stdin.as_mut().context("stdin")?.write_all(format!("{xml}\n").as_bytes()).context("saying")
    }

    /// Waits for a piece of text, and gives and forgets what came up to it.
    fn hear(&mut self, what: &str) -> Result<String> {
        let start = Instant::now();
        loop {
            if let Some(at) = self.text.find(what) {
                let rest = self.text.split_off(at + what.len());
                return Ok(std::mem::replace(&mut self.text, rest));
            }
            match self.heard.recv_timeout(SOON.saturating_sub(start.elapsed())) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(e) => bail!("waiting for {what}: {e}; heard {}", self.text),
            }
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let n = chunk.iter().fold(0_u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = (n >> (18 - 6 * i)) & 63;
            text.push(if i > chunk.len() { '=' } else { DIGITS[digit as usize].into() });
        }
    }
    text
}

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
        let mut heard = raw.hear("id='items'").or_else(|_| raw.hear("id=\"items\""))?;
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
