//! The conversation without a server.

use super::*;
use crate::identity::NetworkDescriptor;
use crate::xmpp::xml::{NODE, descriptor};
use std::collections::BTreeSet;

pub(super) const ME: &str = "me@x.test/ipop-me";
const FRIEND: &str = "f@x.test/ipop-f";
const ROOM: &str = "r@conference.x.test";

pub(super) struct Talk {
    pub(super) session: Session,
    pub(super) now: Instant,
    pub(super) counters: Arc<Counters>,
}

impl Talk {
    /// Logged in, with `f@x.test` in group `g`, and a room that was not joined yet.
    pub(super) fn new() -> Self {
        let mut t = Self::before_the_roster();
        t.hear(
            "<iq type='result' id='1'><query xmlns='jabber:iq:roster'>\
             <item jid='f@x.test' subscription='both'><group>g</group></item>\
             <item jid='other@x.test' subscription='both'><group>h</group></item>\
             <item jid='half@x.test' subscription='from'><group>g</group></item></query></iq>",
        );
        t.session.take_out();
        t.session.events.clear();
        t
    }

    fn before_the_roster() -> Self {
        let rooms = [BareJid::new(ROOM).unwrap()].into();
        Self::with(Groups { roster: ["g".to_owned()].into(), rooms, social: BTreeMap::new() })
    }

    /// Nothing was answered yet.
    pub(super) fn with(groups: Groups) -> Self {
        let (counters, now) = (Arc::new(Counters::default()), Instant::now());
        let me = FullJid::new(ME).unwrap();
        let mut session = Session::new(me, groups, 1, Known::default(), Arc::clone(&counters));
        session.login(now);
        Self { session, now, counters }
    }

    pub(super) fn hear(&mut self, xml: &str) {
        let xml = xml.replacen(' ', " xmlns='jabber:client' ", 1);
        self.session.input(&xml.parse().unwrap(), self.now);
    }

    pub(super) fn said(&mut self) -> Vec<String> {
        self.session.take_out().iter().map(String::from).collect()
    }

    pub(super) fn events(&mut self) -> Vec<Event> {
        self.session.events.drain(..).collect()
    }

    /// Whether a stanza was passed over in silence.
    pub(super) fn ignored(&mut self, xml: &str) -> bool {
        let before = self.counters.strangers();
        self.hear(xml);
        let silent = self.said().is_empty() & self.events().is_empty();
        silent && self.counters.strangers() == before + 1
    }
}

fn a_descriptor(networks: &[&str]) -> Descriptor {
    let network = |n: &&str| NetworkDescriptor {
        network: (*n).to_owned(),
        public_key: dataplane::tunnel::PublicKey([7; 32]),
        addresses: vec![],
        routes: vec![],
        subnet: None,
        since: 1,
    };
    let networks = networks.iter().map(network).collect();
    Descriptor { name: "n".into(), version: "1".into(), capabilities: vec![], networks }
}

pub(super) fn pep(from: &str, device: &str, networks: &[&str]) -> String {
    format!(
        "<message from='{from}'><event xmlns='{}'><items node='{NODE}'><item id='{device}'>{}</item></items></event></message>",
        ns::PUBSUB_EVENT,
        String::from(&descriptor::write(&a_descriptor(networks)))
    )
}

pub(super) fn terminate(from: &str) -> String {
    format!(
        "<iq type='set' id='9' from='{from}'><jingle xmlns='urn:xmpp:jingle:1' action='session-terminate' sid='s'/></iq>"
    )
}

#[test]
fn only_who_shares_presence_both_ways_in_our_group_is_a_member() {
    let mut t = Talk::before_the_roster();
    assert!(t.said()[0].contains("jabber:iq:roster"));
    t.hear(
        "<iq type='result' id='1'><query xmlns='jabber:iq:roster'>\
         <item jid='f@x.test' subscription='both'><group>g</group></item>\
         <item jid='other@x.test' subscription='both'><group>h</group></item>\
         <item jid='half@x.test' subscription='from'><group>g</group></item></query></iq>",
    );
    let events = t.events();
    let members = events.iter().find_map(|e| match e {
        Event::Members { network, accounts } => Some((network.as_str(), accounts.clone())),
        _ => None,
    });
    assert_eq!(members, Some(("group:g", ["f@x.test".to_owned()].into())));
    assert!(t.said().iter().any(|s| s.starts_with("<presence")), "presence comes after the roster");
}

#[test]
fn who_is_answered_what() {
    let question = |from: &str, payload: &str, kind: &str| {
        let from = if from.is_empty() { String::new() } else { format!("from='{from}'") };
        format!("<iq type='{kind}' id='q' {from}>{payload}</iq>")
    };
    let disco = "<query xmlns='http://jabber.org/protocol/disco#info'/>";
    let (ping, version) = ("<ping xmlns='urn:xmpp:ping'/>", "<query xmlns='jabber:iq:version'/>");
    let jingle = "<jingle xmlns='urn:xmpp:jingle:1' action='session-terminate' sid='s'/>";
    let roster =
        "<query xmlns='jabber:iq:roster'><item jid='evil@x.test' subscription='both'><group>g</group></item></query>";
    // Sender; what it gets for: disco#info, ping, jingle, a change of the roster, anything else.
    // `r` result, `e` error, `-` silence and counted, `j` an event.
    let table = [
        ("", "rrere"),
        ("me@x.test", "rrere"),
        ("x.test", "rreee"),
        ("me@x.test/ipop-other", "rrjee"),
        (FRIEND, "rrjee"),
        ("f@x.test", "rr-ee"),
        ("f@x.test/phone", "rr-ee"),
        ("other@x.test/ipop-o", "-----"),
        ("half@x.test/ipop-h", "-----"),
        ("stranger@x.test/ipop-s", "-----"),
        ("f@x.test.evil.test/ipop-f", "-----"),
        ("evil.test", "-----"),
        ("r@conference.x.test/nick", "rreee"),
        ("q@conference.x.test/nick", "-----"),
    ];
    for (from, expected) in table {
        let asked = [(disco, "get"), (ping, "get"), (jingle, "set"), (roster, "set"), (version, "get")];
        let got: String = asked
            .iter()
            .map(|(payload, kind)| {
                let mut t = Talk::new();
                t.hear(&question(from, payload, kind));
                let (said, events) = (t.said(), t.events());
                match said.first() {
                    Some(s) if s.contains("type='result'") => 'r',
                    Some(s) if s.contains("type='error'") => 'e',
                    Some(_) => '?',
                    None if matches!(events[..], [Event::Signal(_)]) => 'j',
                    None if events.is_empty() && t.counters.strangers() == 1 => '-',
                    None => '?',
                }
            })
            .collect();
        assert_eq!(got, expected, "{from:?}");
    }
}

#[test]
fn strangers_presence_and_descriptors_are_passed_over() {
    let mut t = Talk::new();
    assert!(t.ignored("<presence from='stranger@x.test/ipop-s'/>"));
    assert!(t.ignored(&pep("stranger@x.test", "ipop-s", &["group:g"])));
    assert!(t.ignored(&pep("other@x.test", "ipop-s", &["group:g"])));
    assert!(t.ignored(&terminate("stranger@x.test/ipop-s")));
    t.hear(&pep("f@x.test/ipop-f", "ipop-f", &["group:g"]));
    assert!(t.events().is_empty(), "a client that plays its server");
    t.hear("<presence from='f@x.test/phone'/>");
    assert!(t.events().is_empty(), "a client that is no node");
    t.session.too_large("message", "stranger@x.test/a", t.now);
    t.session.too_large("message", FRIEND, t.now);
    assert_eq!((t.counters.strangers(), t.counters.malformed()), (5, 1));
}

#[test]
fn presence_is_told_once_and_again_only_after_a_change() {
    let mut t = Talk::new();
    let came = |e: &[Event]| matches!(e, [Event::Presence { available: true, .. }]);
    t.hear(&format!("<presence from='{FRIEND}'/>"));
    assert!(came(&t.events()));
    t.hear(&format!(
        "<presence from='{FRIEND}'><delay xmlns='urn:xmpp:delay' stamp='2026-01-01T00:00:00Z'/></presence>"
    ));
    assert!(t.events().is_empty());
    t.hear(&format!("<presence from='{FRIEND}' type='unavailable'/>"));
    assert!(matches!(t.events()[..], [Event::Presence { available: false, .. }]));
    t.hear(&format!("<presence from='{FRIEND}' type='unavailable'/>"));
    assert!(t.events().is_empty());
    t.hear(&format!("<presence from='{ME}'/>"));
    assert!(t.events().is_empty(), "our own");
}

#[test]
fn a_descriptor_says_nothing_about_networks_that_its_account_is_not_in() {
    let mut t = Talk::new();
    t.hear(&pep("f@x.test", "ipop-f", &["group:g", "group:h", "muc:r@conference.x.test"]));
    let networks = |e: &[Event]| match e {
        [Event::Descriptor { descriptor, account, device }] => {
            assert_eq!((account.as_str(), device.as_str()), ("f@x.test", "ipop-f"));
            descriptor.networks.iter().map(|n| n.network.clone()).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(networks(&t.events()), ["group:g"]);
    t.hear(&pep("f@x.test", "ipop-f", &["group:g"]));
    assert!(t.events().is_empty(), "nothing new in it");
    t.hear(&pep("f@x.test", "ipop-f", &[]));
    assert!(networks(&t.events()).is_empty());
    let before = t.counters.malformed();
    t.hear(&pep("f@x.test", "ipop-f", &["group:g", "group:g"]));
    assert!(t.events().is_empty() && t.counters.malformed() == before + 1);
}

#[test]
fn who_is_taken_out_of_the_group_is_forgotten_and_a_stranger() {
    let mut t = Talk::new();
    t.hear(&format!("<presence from='{ROOM}/ipop-me'><x xmlns='{}'><status code='110'/></x></presence>", ns::MUC_USER));
    t.hear(&format!("<presence from='{FRIEND}'/>"));
    t.hear(&pep("f@x.test", "ipop-f", &["group:g"]));
    t.events();
    t.said();
    t.hear("<iq type='set' id='p' from='me@x.test'><query xmlns='jabber:iq:roster'><item jid='f@x.test' subscription='remove'/></query></iq>");
    let events = t.events();
    assert!(
        matches!(
            &events[..],
            [Event::Members { accounts, .. }, Event::Presence { available: false, .. }, Event::DescriptorGone { .. }]
                if accounts.is_empty()
        ),
        "{events:?}"
    );
    t.said();
    assert!(t.ignored(&terminate(FRIEND)));
}

#[test]
fn a_network_of_which_the_sender_is_no_member_is_not_talked_about() {
    let mut t = Talk::new();
    let initiate = |network: &str| {
        format!(
            "<iq type='set' id='i' from='{FRIEND}'><jingle xmlns='urn:xmpp:jingle:1' action='session-initiate' sid='s'>\
             <content creator='initiator' name='link'><description xmlns='urn:ipop-fast:link:1' network='{network}'/>\
             <transport xmlns='urn:xmpp:jingle:transports:ice-udp:1' ufrag='abcd' pwd='abcdefghijklmnopqrstuv'/></content>\
             </jingle></iq>"
        )
    };
    t.hear(&initiate("group:g"));
    assert!(matches!(t.events()[..], [Event::Signal(_)]));
    assert!(t.ignored(&initiate("group:h")) && t.ignored(&initiate("muc:r@conference.x.test")));
}

#[test]
fn answers_count_only_from_whom_was_asked() {
    let mut t = Talk::new();
    let (reply, mut answer) = oneshot::channel();
    let signal = Signal::Terminate { sid: "s".into(), reason: crate::xmpp::Reason::Gone };
    t.session.signal(FRIEND, &signal, reply, t.now);
    let id: Element = t.said()[0].parse().unwrap();
    let id = id.attr("id").unwrap().to_owned();
    for from in ["stranger@x.test/ipop-s", "f@x.test", "f@x.test/ipop-g"] {
        t.hear(&format!("<iq type='result' id='{id}' from='{from}'/>"));
    }
    t.hear(&format!("<iq type='result' id='{id}'/>"));
    assert!(answer.try_recv().is_err(), "a forged answer was taken");
    t.hear(&format!("<iq type='result' id='{id}' from='{FRIEND}'/>"));
    assert_eq!(answer.try_recv(), Ok(Ok(())));
}

#[test]
fn every_question_ends_in_time_and_the_end_of_the_connection_ends_all() {
    let mut t = Talk::new();
    let signal = Signal::Terminate { sid: "s".into(), reason: crate::xmpp::Reason::Gone };
    let (reply, mut late) = oneshot::channel();
    t.session.signal(FRIEND, &signal, reply, t.now);
    let due = t.session.deadline().unwrap();
    assert!(due <= t.now + ANSWER_LIMIT);
    t.session.timeout(t.now + ANSWER_LIMIT);
    assert_eq!(late.try_recv(), Ok(Err(SignalError::Timeout)));
    let mut open = Vec::new();
    for _ in 0..MAX_PENDING + 10 {
        let (reply, answer) = oneshot::channel();
        t.session.signal(FRIEND, &signal, reply, t.now);
        open.push(answer);
    }
    let (reply, mut wrong) = oneshot::channel();
    t.session.signal("f@x.test", &signal, reply, t.now);
    assert!(matches!(wrong.try_recv(), Ok(Err(SignalError::Invalid(_)))));
    drop(t.session.end());
    let ends: Vec<_> = open.iter_mut().map(|a| a.try_recv().unwrap().unwrap_err()).collect();
    assert!(ends.contains(&SignalError::Busy) && ends.contains(&SignalError::Offline));
}

#[test]
fn an_answer_from_an_earlier_connection_is_not_sent_over_this_one() {
    let mut t = Talk::new();
    let request = |connection| SignalRequest {
        from: FRIEND.into(),
        signal: Signal::Terminate { sid: "s".into(), reason: crate::xmpp::Reason::Gone },
        id: "9".into(),
        connection,
    };
    t.session.answer(&request(0), Verdict::Ok);
    assert!(t.said().is_empty());
    t.session.answer(&request(1), Verdict::TieBreak);
    assert!(t.said()[0].contains("tie-break"));
}

#[test]
fn a_room_that_hides_who_is_inside_has_no_members() {
    let mut t = Talk::new();
    let inside = |item: &str| format!("<presence from='{ROOM}/n'><x xmlns='{}'>{item}</x></presence>", ns::MUC_USER);
    t.hear(&inside("<item affiliation='member'/>"));
    t.hear(&inside("<item affiliation='none' jid='v@x.test/ipop-v'/>"));
    let accounts: BTreeSet<String> = t
        .events()
        .into_iter()
        .filter_map(|e| if let Event::Members { accounts, .. } = e { Some(accounts) } else { None })
        .flatten()
        .collect();
    assert!(accounts.is_empty());
    t.hear(&inside("<item affiliation='member' jid='v@x.test/ipop-v'/>"));
    assert!(t.events().iter().any(|e| matches!(e, Event::Members { accounts, .. } if accounts.contains("v@x.test"))));
    // It knows now who that is, also when the room is left.
    t.hear(&format!("<presence from='{ROOM}/ipop-me' type='unavailable'/>"));
    let events = t.events();
    assert!(events.iter().any(|e| matches!(e, Event::Presence { available: false, .. })), "{events:?}");
    assert!(t.session.deadline().is_some_and(|d| d <= t.now + RETRY), "never joined again");
}

impl Talk {
    /// Has the room's answer to the look at it that is under way.
    fn room_says(&mut self, kind: &str, answer: &str) {
        let asked = |p: &Pending| matches!(&p.purpose, Purpose::Room(r) if r.as_str() == ROOM);
        let id = *self.session.pending.iter().find(|(_, p)| asked(p)).expect("a question").0;
        self.hear(&format!("<iq type='{kind}' id='{id}' from='{ROOM}'>{answer}</iq>"));
    }

    fn features(&mut self, list: &[&str]) {
        let list: String = list.iter().map(|f| format!("<feature var='{f}'/>")).collect();
        self.room_says("result", &format!("<query xmlns='{}'>{list}</query>", ns::DISCO_INFO));
    }

    fn has_entered(&mut self) -> bool {
        self.said().iter().any(|s| s.starts_with("<presence") && s.contains(ROOM) && !s.contains("unavailable"))
    }

    /// In the room, with `v@x.test` as a member.
    fn in_a_room() -> Self {
        let mut t = Self::new();
        t.features(&["muc_membersonly", "muc_nonanonymous"]);
        assert!(t.has_entered());
        let x = |item: &str| format!("<x xmlns='{}'>{item}</x>", ns::MUC_USER);
        let v = x("<item affiliation='member' jid='v@x.test/ipop-v'/>");
        t.hear(&format!("<presence from='{ROOM}/ipop-v'>{v}</presence>"));
        let me = x("<item affiliation='member' jid='me@x.test/ipop-me'/><status code='110'/>");
        t.hear(&format!("<presence from='{ROOM}/ipop-me'>{me}</presence>"));
        assert_eq!(t.room_members(), Some(["v@x.test".to_owned()].into()));
        t
    }

    /// What was told last.
    fn room_members(&mut self) -> Option<BTreeSet<String>> {
        let of_room = |e| match e {
            Event::Members { network, accounts } if network.starts_with("muc:") => Some(accounts),
            _ => None,
        };
        self.events().into_iter().filter_map(of_room).next_back()
    }

    fn put_out(&mut self, codes: &[&str]) {
        let codes: String = codes.iter().map(|c| format!("<status code='{c}'/>")).collect();
        let x = format!("<x xmlns='{}'><item affiliation='none'/>{codes}</x>", ns::MUC_USER);
        self.hear(&format!("<presence from='{ROOM}/ipop-me' type='unavailable'>{x}</presence>"));
    }
}

#[test]
fn a_room_is_entered_only_if_it_keeps_strangers_out() {
    for features in [&["muc_membersonly"][..], &["muc_nonanonymous"], &[], &["muc_membersonly", "muc_semianonymous"]] {
        let mut t = Talk::new();
        t.features(features);
        assert!(!t.has_entered(), "{features:?}");
        assert_eq!(t.room_members(), Some(BTreeSet::new()));
        assert!(t.session.timers.contains_key(&Timer::Join(BareJid::new(ROOM).unwrap())), "not looked at again");
    }
    // One that is not there would be made by entering it.
    let mut t = Talk::new();
    t.room_says("error", "<error type='cancel'><item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error>");
    assert!(!t.has_entered());
    // It was gone after all.
    let mut t = Talk::new();
    t.features(&["muc_membersonly", "muc_nonanonymous"]);
    t.said();
    let x =
        format!("<x xmlns='{}'><item affiliation='owner'/><status code='110'/><status code='201'/></x>", ns::MUC_USER);
    t.hear(&format!("<presence from='{ROOM}/ipop-me'>{x}</presence>"));
    assert!(t.said().iter().any(|s| s.contains("unavailable") && s.contains(ROOM)));
}

#[test]
fn a_room_that_goes_away_takes_no_members_along_and_one_that_puts_us_out_does() {
    for codes in [&["110", "332"][..], &["110"], &[], &["110", "307"]] {
        let mut t = Talk::in_a_room();
        t.put_out(codes);
        assert_eq!(t.room_members(), None, "{codes:?}");
    }
    for code in PUT_OUT_CODES {
        let mut t = Talk::in_a_room();
        t.put_out(&["110", code]);
        assert_eq!(t.room_members(), Some(BTreeSet::new()), "{code}");
    }
    for (condition, out) in
        [("service-unavailable", false), ("remote-server-timeout", false), ("conflict", false), ("forbidden", true)]
    {
        let mut t = Talk::in_a_room();
        t.hear(&format!(
            "<presence from='{ROOM}/ipop-me' type='error'><error type='cancel'>\
             <{condition} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></presence>"
        ));
        assert_eq!(t.room_members(), out.then(BTreeSet::new), "{condition}");
    }
}

#[test]
fn what_we_say_of_ourselves_while_a_room_lets_us_in_is_said_inside() {
    let told = |said: &[String]| -> Vec<String> {
        let to_room = said.iter().filter(|s| s.starts_with("<presence") && s.contains(&format!("{ROOM}/ipop-me")));
        to_room.filter_map(|s| Some(s.split_once("muc:")?.1.split(['\'', '"']).next()?.to_owned())).collect()
    };
    let inside = format!(
        "<presence from='{ROOM}/ipop-me'><x xmlns='{}'><item affiliation='member'/><status code='110'/></x></presence>",
        ns::MUC_USER
    );
    for (before, since, expected) in [
        (None, Some("b"), &["b"][..]),
        (Some("a"), Some("b"), &["b"]),
        (Some("a"), None, &[]),
        (Some("a"), Some("a"), &[]),
    ] {
        let descriptor = |n: &str| a_descriptor(&[format!("muc:{n}").as_str()]);
        let mut t = Talk::new();
        t.session.publish(before.map(descriptor), t.now);
        t.features(&["muc_membersonly", "muc_nonanonymous"]);
        assert_eq!(told(&t.said()), before.into_iter().collect::<Vec<_>>(), "at the door");
        if since.is_some() {
            t.session.publish(since.map(descriptor), t.now);
            assert_eq!(told(&t.said()), [""; 0], "not let in yet");
        }
        t.hear(&inside);
        assert_eq!(told(&t.said()), expected, "{before:?}, then {since:?}");
        // And once only.
        t.hear(&inside);
        t.session.publish(since.or(before).map(descriptor), t.now);
        assert_eq!(told(&t.said()), [""; 0]);
    }
}

const PUT_OUT_CODES: [&str; 3] = ["301", "321", "322"];

#[test]
fn whoever_takes_our_nickname_does_not_keep_us_out() {
    let mut t = Talk::new();
    t.features(&["muc_membersonly", "muc_nonanonymous"]);
    t.said();
    t.hear(&format!(
        "<presence from='{ROOM}/ipop-me' type='error'><error type='cancel'>\
         <conflict xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></presence>"
    ));
    t.now += Duration::from_secs(4);
    t.session.timeout(t.now);
    t.features(&["muc_membersonly", "muc_nonanonymous"]);
    let said = t.said();
    assert!(said.iter().any(|s| s.starts_with("<presence") && s.contains(&format!("{ROOM}/ipop-me-1"))), "{said:?}");
}

proptest::proptest! {
    #[test]
    fn no_stanza_panics(
        name in "(iq|presence|message)", kind in "(get|set|result|error|unavailable|)", id in "[0-9]{1,2}",
        from in "(f@x[.]test/ipop-f|me@x[.]test|r@conference[.]x[.]test/n|x[.]test|@|)",
        payload in "(jingle xmlns='urn:xmpp:jingle:1'|query xmlns='jabber:iq:roster'|x xmlns='http://jabber[.]org/protocol/muc#user'|event xmlns='http://jabber[.]org/protocol/pubsub#event'|pubsub xmlns='http://jabber[.]org/protocol/pubsub')",
        child in "(item|items|content|reason|status|retract)", attributes in "( jid='[a-z@./]{0,9}'| node='urn:ipop-fast:node:1'| action='session-initiate'| sid='s'| id='ipop-a'){0,1}") {
        let mut t = Talk::new();
        let word = payload.split(' ').next().unwrap();
        t.hear(&format!("<{name} type='{kind}' id='{id}' from='{from}'><{payload}{attributes}><{child}{attributes}/></{word}></{name}>"));
        t.session.timeout(t.now + Duration::from_secs(100));
    }
}
