//! The harness's federations are what they claim to be: people on two domains meet, and only over verified TLS.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipop_tests::internet::Internet;
use ipop_tests::process::wait_some;
use ipop_tests::raw_xmpp::{NOTE, Raw, SOON, attribute};
use ipop_tests::scene::{Share, play};
use ipop_tests::servers::{Ca, Federation, Kind, Member, federation_needs};

const ONE: &str = "one.example";
const TWO: &str = "two.example";
const USERS: [&[(&str, &str)]; 2] = [&[("alice", "secret-a")], &[("bob", "secret-b")]];

fn member(kind: Kind, n: usize) -> Member<'static> {
    Member::new(kind, [ONE, TWO][n], USERS[n])
}

/// Logs in on the machine of the server.
fn login(f: &Federation, n: usize) -> Result<Raw> {
    let (user, password) = USERS[n][0];
    let server = &f.servers[n];
    Raw::login_from(&f.machines[n].ns, server.direct_tls_address(), &server.setup().domain, user, password)
}

fn befriend(alice: &mut Raw, bob: &mut Raw) -> Result<()> {
    alice.say("<presence type='subscribe' to='bob@two.example'/>")?;
    bob.stanza(&["<presence", "type='subscribe'", "alice@one.example"]).context("bob is asked")?;
    bob.say("<presence type='subscribed' to='alice@one.example'/>")?;
    bob.say("<presence type='subscribe' to='alice@one.example'/>")?;
    alice.stanza(&["<presence", "type='subscribe'", "bob@two.example"]).context("alice is asked")?;
    alice.say("<presence type='subscribed' to='bob@two.example'/>")?;
    alice.say("<iq type='get' id='roster'><query xmlns='jabber:iq:roster'/></iq>")?;
    alice.stanza(&["id='roster'", "bob@two.example", "subscription='both'"]).context("the roster").map(drop)
}

/// Presence both ways, a PEP notification, an IQ and its answer.
fn meet(alice: &mut Raw, bob: &mut Raw) -> Result<()> {
    alice.interested()?;
    bob.stanza(&["<presence", "from='alice@one.example/ipop-x'", "urn:ipop-test"]).context("alice is there")?;
    bob.say("<presence/>")?;
    alice.stanza(&["<presence", "from='bob@two.example/ipop-x'"]).context("bob is there")?;
    // Ejabberd asks what she wants to hear of when it has seen her, and what is published before her answer goes by.
    let note = wait_some("the notification", SOON, || {
        bob.say(&format!(
            "<iq type='set' id='note'><pubsub xmlns='http://jabber.org/protocol/pubsub'><publish node='{NOTE}'>\
             <item id='1'><note xmlns='{NOTE}'>hello</note></item></publish></pubsub></iq>"
        ))?;
        bob.stanza(&["<iq", "id='note'", "type='result'"]).context("published")?;
        alice.stanza_within(Duration::from_secs(1), &["<message", "pubsub#event", "hello"]).map(Some)
    })?;
    ensure!(attribute(&note, "from").as_deref() == Some("bob@two.example"), "{note}");
    alice.say("<iq type='get' id='q1' to='bob@two.example/ipop-x'><query xmlns='jabber:iq:version'/></iq>")?;
    let asked = bob.stanza(&["<iq", "jabber:iq:version", "type='get'"]).context("the IQ")?;
    let id = attribute(&asked, "id").context("an id")?;
    bob.say(&format!("<iq type='result' id='{id}' to='alice@one.example/ipop-x'/>"))?;
    alice.stanza(&["<iq", "id='q1'", "type='result'", "from='bob@two.example/ipop-x'"]).context("its answer").map(drop)
}

fn friends_meet(kinds: [Kind; 2]) {
    play(Share::Shared, &federation_needs(&kinds), || {
        let internet = Internet::new()?;
        let f = Federation::start(&internet, &[member(kinds[0], 0), member(kinds[1], 1)])?;
        let (mut alice, mut bob) = (login(&f, 0)?, login(&f, 1)?);
        befriend(&mut alice, &mut bob)?;
        meet(&mut alice, &mut bob)?;
        ensure!(f.dns.log().contains("_xmpp-server._tcp.two.example"), "found without SRV: {}", f.dns.log());
        block(kinds[0], &mut alice, &mut bob)
    });
}

/// Whom she blocks (XEP-0191) gets no IQ through, and sees her go, which ejabberd 23.01 forgets.
fn block(hers: Kind, alice: &mut Raw, bob: &mut Raw) -> Result<()> {
    alice
        .say("<iq type='set' id='block'><block xmlns='urn:xmpp:blocking'><item jid='bob@two.example'/></block></iq>")?;
    alice.stanza(&["<iq", "id='block'", "type='result'"]).context("blocked")?;
    if hers == Kind::Prosody {
        bob.stanza(&["<presence", "type='unavailable'", "from='alice@one.example/ipop-x'"]).context("alice goes")?;
    }
    bob.say("<iq type='get' id='q2' to='alice@one.example/ipop-x'><query xmlns='jabber:iq:version'/></iq>")?;
    bob.stanza(&["<iq", "id='q2'", "type='error'"]).context("refused")?;
    alice.nothing("jabber:iq:version", ONE)
}

#[test]
fn friends_on_two_prosodies_meet() {
    friends_meet([Kind::Prosody, Kind::Prosody]);
}

#[test]
fn friends_on_two_ejabberds_meet() {
    friends_meet([Kind::Ejabberd, Kind::Ejabberd]);
}

#[test]
fn friends_on_a_prosody_and_an_ejabberd_meet() {
    friends_meet([Kind::Prosody, Kind::Ejabberd]);
}

/// The second server would talk to anybody; the first does not talk to it, whoever begins.
fn refuses_a_stranger(kind: Kind, stranger: Kind) {
    play(Share::Shared, &federation_needs(&[kind, stranger]), || {
        let internet = Internet::new()?;
        let ours = Ca::new()?;
        let theirs = Ca::new()?.trusting(&ours)?;
        let members = [member(kind, 0), Member { ca: Some(&theirs), ..member(stranger, 1) }];
        let f = Federation::start_with(&internet, ours, &members)?;
        let (mut alice, mut bob) = (login(&f, 0)?, login(&f, 1)?);
        for (from, to, domain) in [(&mut alice, "bob@two.example", ONE), (&mut bob, "alice@one.example", TWO)] {
            from.say(&format!(
                "<iq type='get' id='out' to='{to}'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>"
            ))?;
            from.say(&format!("<presence type='subscribe' to='{to}'/>"))?;
            from.stanza(&["<iq", "id='out'", "type='error'"]).with_context(|| format!("from {domain}"))?;
        }
        alice.nothing("type='subscribe'", ONE)?;
        bob.nothing("type='subscribe'", TWO)
    });
}

#[test]
fn prosody_refuses_a_server_of_another_authority() {
    refuses_a_stranger(Kind::Prosody, Kind::Ejabberd);
}

#[test]
fn ejabberd_refuses_a_server_of_another_authority() {
    refuses_a_stranger(Kind::Ejabberd, Kind::Prosody);
}

#[test]
fn names_are_those_of_the_scene_and_go_with_it() {
    play(Share::Shared, &federation_needs(&[Kind::Prosody]), || {
        let internet = Internet::new()?;
        let f = Federation::start(&internet, &[member(Kind::Prosody, 0)])?;
        let site = internet.site("site", ipop_tests::internet::Gateway::PortRestricted, 1)?;
        let ns = &site.hosts[0].ns;
        f.tell_names(ns)?;
        let file = std::path::Path::new("/etc/netns").join(ns.name());
        let found = |name: &str| {
            let mut getent = ns.command("getent");
            ipop_tests::process::output(getent.args(["ahostsv4", name]))
                .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        };
        ensure!(found("xmpp.one.example")?.starts_with(&f.machines[0].address.to_string()), "not found");
        ensure!(found("xmpp.two.example")?.is_empty() && found("localhost.one.example")?.is_empty(), "found too much");
        ensure!(file.exists());
        drop(site);
        ensure!(!file.exists(), "{} is still there", file.display());
        Ok(())
    });
}
