//! Friends without a server.

use super::tests::{ME, Talk, pep, terminate};
use super::*;
use crate::config::Allow;
use crate::xmpp::{Befriend, Friends, Subscription};

const NETWORK: &str = "social:social";
const ROSTER: &str = "<iq type='result' id='1'><query xmlns='jabber:iq:roster'>\
    <item jid='f@x.test' subscription='both' name='Eff'/><item jid='g@uni.test' subscription='both'/>\
    <item jid='half@x.test' subscription='from'/><item jid='to@x.test' subscription='to'/>\
    <item jid='asked@y.test' subscription='none' ask='subscribe'/><item jid='none@x.test' subscription='none'/>\
    </query></iq>";

/// Logged in with a network of friends and nothing else; the answers are not there yet.
fn before(allow: Allow) -> Talk {
    let groups =
        Groups { roster: BTreeSet::new(), rooms: BTreeSet::new(), social: [(NETWORK.to_owned(), allow)].into() };
    Talk::with(groups)
}

fn logged_in(allow: Allow, blocked: &[&str]) -> Talk {
    let mut t = before(allow);
    t.hear(ROSTER);
    let items: String = blocked.iter().map(|b| format!("<item jid='{b}'/>")).collect();
    t.hear(&format!("<iq type='result' id='2'><blocklist xmlns='urn:xmpp:blocking'>{items}</blocklist></iq>"));
    t
}

fn members(events: &[Event]) -> Option<Vec<String>> {
    let last = events.iter().rev().find_map(|e| match e {
        Event::Members { network, accounts } if network == NETWORK => Some(accounts),
        _ => None,
    });
    last.map(|a| a.iter().cloned().collect())
}

/// What is told of friends after a while.
fn friends(t: &mut Talk) -> Friends {
    t.now += Duration::from_millis(60);
    t.session.timeout(t.now);
    let told = t.events().into_iter().rev().find_map(|e| if let Event::Friends(f) = e { Some(f) } else { None });
    told.expect("nothing was told of friends")
}

fn push(item: &str) -> String {
    format!("<iq type='set' id='p' from='me@x.test'><query xmlns='jabber:iq:roster'>{item}</query></iq>")
}

fn wish(t: &mut Talk, what: Befriend, jid: &str) -> oneshot::Receiver<Result<String, FriendError>> {
    let (reply, answer) = oneshot::channel();
    t.session.befriend(what, jid, reply, t.now);
    answer
}

fn sent(said: &[String], words: &[&str]) -> bool {
    said.iter().any(|s| words.iter().all(|w| s.contains(w)))
}

#[test]
fn every_friend_is_let_in_unless_it_is_said_who() {
    let mut t = logged_in(Allow::Everybody, &[]);
    assert_eq!(members(&t.events()).expect("members"), ["f@x.test", "g@uni.test"]);
    let only = |accounts: &[&str], domains: &[&str]| Allow::Only {
        accounts: accounts.iter().map(|a| (*a).to_owned()).collect(),
        domains: domains.iter().map(|d| (*d).to_owned()).collect(),
    };
    let among = |allow: Allow| members(&logged_in(allow, &[]).events()).expect("members");
    assert_eq!(among(only(&["f@x.test"], &[])), ["f@x.test"]);
    assert_eq!(among(only(&[], &["uni.test"])), ["g@uni.test"]);
    assert_eq!(among(only(&[], &[])), [""; 0]);
}

#[test]
fn nobody_is_let_in_before_it_is_known_whom_the_account_blocks() {
    let mut t = before(Allow::Everybody);
    assert!(sent(&t.said(), &["urn:xmpp:blocking"]));
    t.hear(ROSTER);
    assert!(members(&t.events()).is_none());
    assert!(!sent(&t.said(), &["<presence"]), "we show ourselves to nobody");
    assert!(t.ignored(&terminate("f@x.test/ipop-f")));
    t.hear("<iq type='result' id='2'><blocklist xmlns='urn:xmpp:blocking'><item jid='uni.test'/></blocklist></iq>");
    assert_eq!(members(&t.events()).expect("members"), ["f@x.test"]);
    assert!(sent(&t.said(), &["<presence"]));
}

#[test]
fn a_server_without_block_lists_does_as_well() {
    let mut t = before(Allow::Everybody);
    t.hear("<iq type='error' id='2'><error type='cancel'><service-unavailable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>");
    t.hear(ROSTER);
    assert_eq!(members(&t.events()).expect("members").len(), 2);
    let mut t = before(Allow::Everybody);
    t.hear(ROSTER);
    t.now += ANSWER_LIMIT;
    t.session.timeout(t.now);
    assert_eq!(members(&t.events()).expect("members").len(), 2, "an answer that does not come is not waited for");
}

#[test]
fn whoever_is_blocked_is_out_at_once_and_back_when_it_is_not_any_more() {
    let mut t = logged_in(Allow::Everybody, &[]);
    t.hear("<presence from='f@x.test/ipop-f'/>");
    t.hear(&pep("f@x.test", "ipop-f", &[NETWORK]));
    t.events();
    let block = |what: &str, jid: &str| {
        format!("<iq type='set' id='b'><{what} xmlns='urn:xmpp:blocking'><item jid='{jid}'/></{what}></iq>")
    };
    for from in ["f@x.test/ipop-f", "stranger@x.test", "me@x.test/phone"] {
        t.hear(&block("block", "g@uni.test").replace("<iq", &format!("<iq from='{from}'")));
        assert!(t.events().is_empty(), "{from} is not the server");
    }
    t.said();
    t.hear(&block("block", "f@x.test"));
    assert!(sent(&t.said(), &["result"]));
    let events = t.events();
    assert!(matches!(&events[0], Event::Friends(f) if f.contacts[1].blocked && f.contacts[1].networks.is_empty()));
    assert_eq!(members(&events).expect("members"), ["g@uni.test"]);
    assert!(events.iter().any(|e| matches!(e, Event::DescriptorGone { .. })), "{events:?}");
    assert!(t.ignored(&terminate("f@x.test/ipop-f")));
    t.hear("<iq type='set' id='u'><unblock xmlns='urn:xmpp:blocking'/></iq>");
    assert_eq!(members(&t.events()).expect("members").len(), 2);
    let said = t.said();
    assert!(sent(&said, &["<presence", "to='f@x.test'", "probe"]), "is it there? {said:?}");
    assert!(sent(&said, &["pubsub", "to='f@x.test'"]), "who is it? {said:?}");
}

#[test]
fn a_request_is_listed_and_its_sender_gets_nothing_else() {
    let mut t = logged_in(Allow::Everybody, &[]);
    t.events();
    t.said();
    t.hear("<presence from='stranger@z.test' type='subscribe'/>");
    t.hear("<presence from='stranger@z.test/phone' type='subscribe'/>");
    assert!(t.said().is_empty());
    assert_eq!(friends(&mut t).requests, ["stranger@z.test"]);
    assert!(t.ignored(&terminate("stranger@z.test/ipop-s")));
    assert!(t.ignored("<presence from='stranger@z.test/ipop-s'/>"));
    t.hear("<presence from='stranger@z.test' type='unsubscribe'/>");
    assert!(friends(&mut t).requests.is_empty(), "it has thought better of it");
    for n in 0..2 * friends::MAX_REQUESTS {
        t.hear(&format!("<presence from='s{n}@z.test' type='subscribe'/>"));
    }
    assert_eq!(friends(&mut t).requests.len(), friends::MAX_REQUESTS);
    let (known, _) = t.session.end();
    assert_eq!(known.requests.len(), friends::MAX_REQUESTS, "not every server says it again");
}

#[test]
fn without_a_network_of_friends_a_request_is_what_any_stranger_sends() {
    let mut t = Talk::new();
    assert!(t.ignored("<presence from='stranger@z.test' type='subscribe'/>"));
    let mut answer = wish(&mut t, Befriend::Add, "a@b");
    assert!(matches!(answer.try_recv(), Ok(Err(FriendError::Unfit(_)))));
}

#[test]
fn whom_we_asked_is_accepted_without_a_question() {
    let mut t = logged_in(Allow::Everybody, &[]);
    t.said();
    for from in ["asked@y.test", "to@x.test"] {
        t.hear(&format!("<presence from='{from}' type='subscribe'/>"));
        assert!(sent(&t.said(), &["subscribed", &format!("to='{from}'")]), "{from}");
    }
    t.hear("<presence from='half@x.test' type='subscribe'/>");
    assert!(t.said().is_empty(), "the server answers");
    assert!(friends(&mut t).requests.is_empty());
}

#[test]
fn adding_asks_and_accepts_in_advance_after_the_server_took_the_contact() {
    let mut t = logged_in(Allow::Everybody, &[]);
    t.said();
    let mut answer = wish(&mut t, Befriend::Add, "new@y.test");
    let said = t.said();
    assert!(sent(&said, &["jabber:iq:roster", "jid='new@y.test'"]) && !sent(&said, &["subscribe'"]), "{said:?}");
    let id = said[0].parse::<Element>().expect("XML").attr("id").expect("id").to_owned();
    t.hear(&format!("<iq type='result' id='{id}'/>"));
    let said = t.said();
    assert!(sent(&said, &["type='subscribe'", "new@y.test"]) && sent(&said, &["type='subscribed'", "new@y.test"]));
    assert!(answer.try_recv().expect("an answer").expect("done").contains("was asked"));
    // Of a contact that is there, name and groups stay as they are.
    let mut answer = wish(&mut t, Befriend::Add, "half@x.test");
    let said = t.said();
    assert!(!sent(&said, &["jabber:iq:roster"]) && sent(&said, &["type='subscribe'", "half@x.test"]), "{said:?}");
    assert!(answer.try_recv().is_ok_and(|a| a.is_ok()));
    let mut answer = wish(&mut t, Befriend::Add, "f@x.test");
    assert!(t.said().is_empty() && answer.try_recv().expect("an answer").expect("done").contains("already"));
}

#[test]
fn what_makes_no_sense_is_refused_with_a_reason() {
    let mut t = logged_in(Allow::Everybody, &["blocked@y.test"]);
    t.said();
    for (what, jid, words) in [
        (Befriend::Add, "me@x.test", "own account"),
        (Befriend::Add, "x.test", "no account"),
        (Befriend::Add, "a@b@c", "no account"),
        (Befriend::Add, "blocked@y.test", "block list"),
        (Befriend::Accept, "new@y.test", "friends add new@y.test"),
        (Befriend::Accept, "f@x.test", "does not ask"),
        (Befriend::Remove, "new@y.test", "neither"),
    ] {
        let told = wish(&mut t, what, jid).try_recv().expect("an answer").expect_err("refused").to_string();
        assert!(told.contains(words), "{what:?} {jid}: {told}");
        assert!(t.said().is_empty(), "{what:?} {jid}");
    }
    // The server's refusal and its silence.
    let mut refused = wish(&mut t, Befriend::Remove, "f@x.test");
    let id = t.said()[0].parse::<Element>().expect("XML").attr("id").expect("id").to_owned();
    t.hear(&format!("<iq type='error' id='{id}'><error type='auth'><not-allowed xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>"));
    assert_eq!(refused.try_recv(), Ok(Err(FriendError::Refused("not-allowed".into()))));
    let (mut late, mut lost) = (wish(&mut t, Befriend::Remove, "f@x.test"), wish(&mut t, Befriend::Add, "q@x.test"));
    let end = t.now + ANSWER_LIMIT;
    t.session.timeout(end);
    assert_eq!(late.try_recv(), Ok(Err(FriendError::Timeout)));
    assert_eq!(lost.try_recv(), Ok(Err(FriendError::Timeout)));
    let mut open = wish(&mut t, Befriend::Remove, "f@x.test");
    drop(t.session.end());
    assert_eq!(open.try_recv(), Ok(Err(FriendError::Offline)));
}

#[test]
fn removing_ends_a_friendship_or_declines_a_request() {
    let mut t = logged_in(Allow::Everybody, &[]);
    t.hear("<presence from='stranger@z.test' type='subscribe'/>");
    t.said();
    let mut declined = wish(&mut t, Befriend::Remove, "stranger@z.test");
    assert!(sent(&t.said(), &["type='unsubscribed'", "to='stranger@z.test'"]));
    assert!(declined.try_recv().expect("an answer").expect("done").contains("declined"));
    let _answer = wish(&mut t, Befriend::Remove, "f@x.test");
    assert!(sent(&t.said(), &["jid='f@x.test'", "subscription='remove'"]));
    t.events();
    t.hear(&push("<item jid='f@x.test' subscription='remove'/>"));
    let events = t.events();
    let first = matches!(&events[0], Event::Friends(f) if f.contacts.iter().all(|c| c.jid != "f@x.test"));
    assert!(first && members(&events).is_some_and(|m| m == ["g@uni.test"]), "{events:?}");
}

#[test]
fn a_new_friend_is_greeted_and_asked_who_and_where_it_is() {
    let mut t = logged_in(Allow::Everybody, &[]);
    t.hear("<presence from='to@x.test' type='subscribe'/>");
    // It was told of before it counted.
    t.hear("<presence from='to@x.test/ipop-t'/>");
    t.events();
    t.said();
    t.hear(&push("<item jid='to@x.test' subscription='both'/>"));
    assert_eq!(members(&t.events()).expect("members").len(), 3);
    let said = t.said();
    assert!(sent(&said, &["<presence", "to='to@x.test'", "http://jabber.org/protocol/caps"]), "{said:?}");
    assert!(sent(&said, &["<presence", "to='to@x.test'", "probe"]) && sent(&said, &["pubsub", "to='to@x.test'"]));
    t.hear("<presence from='to@x.test/ipop-t'/>");
    assert!(t.events().iter().any(|e| matches!(e, Event::Presence { available: true, .. })));
    // A push that changes nothing greets nobody.
    t.hear(&push("<item jid='to@x.test' subscription='both' name='T'/>"));
    assert!(!sent(&t.said(), &["probe"]));
}

#[test]
fn what_is_known_of_friends_is_told_once_for_a_burst() {
    let mut t = logged_in(Allow::Everybody, &[]);
    let f = friends(&mut t);
    let of = |f: &Friends, jid: &str| f.contacts.iter().find(|c| c.jid == jid).cloned();
    let first = of(&f, "f@x.test").expect("a friend");
    assert_eq!((first.name.as_deref(), first.subscription, first.blocked), (Some("Eff"), Subscription::Both, false));
    assert_eq!(first.networks, [NETWORK]);
    assert!(of(&f, "asked@y.test").is_some_and(|c| c.asked) && of(&f, "none@x.test").is_none());
    for n in 0..50 {
        t.hear(&push(&format!("<item jid='n{n}@x.test' subscription='both'/>")));
    }
    t.now += Duration::from_secs(1);
    t.session.timeout(t.now);
    assert_eq!(t.events().iter().filter(|e| matches!(e, Event::Friends(_))).count(), 1);
    // A request that does not arrive.
    t.hear("<presence from='asked@y.test' type='error'><error type='cancel'><remote-server-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></presence>");
    let f = friends(&mut t);
    assert_eq!(of(&f, "asked@y.test").and_then(|c| c.problem).as_deref(), Some("remote-server-not-found"));
    t.hear("<presence from='stranger@y.test' type='error'/>");
    assert!(t.events().is_empty());
}

#[test]
fn two_thousand_friends_are_known_soon() {
    const MANY: usize = 2_000;
    let mut t = before(Allow::Everybody);
    let start = std::time::Instant::now();
    let items: String = (0..MANY).map(|n| format!("<item jid='f{n}@x.test' subscription='both'/>")).collect();
    t.hear(&format!("<iq type='result' id='1'><query xmlns='jabber:iq:roster'>{items}</query></iq>"));
    t.hear("<iq type='result' id='2'><blocklist xmlns='urn:xmpp:blocking'/></iq>");
    assert_eq!(members(&t.events()).expect("members").len(), MANY);
    // Not all are asked at once, and each answer is followed by the next question.
    let mut asked = 0;
    loop {
        let questions: Vec<Element> =
            t.session.take_out().into_iter().filter(|e| e.has_child("pubsub", ns::PUBSUB)).collect();
        let questions: Vec<&Element> =
            questions.iter().filter(|e| e.attr("to").is_some_and(|j| j.starts_with('f'))).collect();
        if questions.is_empty() {
            break;
        }
        assert!(questions.len() <= 32, "{} at once", questions.len());
        for q in questions {
            asked += 1;
            let (id, from) = (q.attr("id").expect("id"), q.attr("to").expect("to"));
            t.hear(&format!(
                "<iq type='result' id='{id}' from='{from}'><pubsub xmlns='{}'><items node='{}'/></pubsub></iq>",
                ns::PUBSUB,
                crate::xmpp::xml::NODE
            ));
            t.hear(&format!("<presence from='{from}/ipop-1'/>"));
        }
    }
    assert_eq!(asked, MANY);
    assert_eq!(t.events().iter().filter(|e| matches!(e, Event::Presence { .. })).count(), MANY);
    t.hear(&push("<item jid='f7@x.test' subscription='remove'/>"));
    assert_eq!(members(&t.events()).expect("members").len(), MANY - 1);
    // A second or less; a walk through all of them for each would take minutes.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

proptest::proptest! {
    #[test]
    fn no_stanza_about_friends_panics(
        kind in "(subscribe|subscribed|unsubscribe|unsubscribed|error|probe|)", from in "[a-z@./]{0,12}",
        payload in "(query xmlns='jabber:iq:roster'|block xmlns='urn:xmpp:blocking'|unblock xmlns='urn:xmpp:blocking'|blocklist xmlns='urn:xmpp:blocking')",
        item in "( jid='[a-z@./]{0,9}'){0,1}( subscription='(both|to|from|none|remove|x)'){0,1}( ask='subscribe'){0,1}", id in "[0-9]{1,2}") {
        let mut t = before(Allow::Everybody);
        let word = payload.split(' ').next().unwrap();
        for _ in 0..2 {
            t.hear(&format!("<presence from='{from}' type='{kind}'/>"));
            for kind in ["set", "result"] {
                t.hear(&format!("<iq type='{kind}' id='{id}'><{payload}><item{item}/></{word}></iq>"));
            }
            t.now += Duration::from_secs(6);
            t.session.timeout(t.now);
        }
        assert_eq!(ME, "me@x.test/ipop-me");
    }
}
