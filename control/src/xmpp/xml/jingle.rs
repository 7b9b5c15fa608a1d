//! [`Signal`]s as Jingle (XEP-0166) with the ICE-UDP transport (XEP-0176), one content named `link`.

use std::net::{IpAddr, SocketAddr};

use tokio_xmpp::minidom::Element;

use super::descriptor::MAX_NETWORK_NAME;
use super::{Build, LINK, Malformed, children, element, malformed, number_of, text_of};
use crate::ice::{Candidate, CandidateKind, Credentials};
use crate::xmpp::signal::{Negotiation, Reason, Signal};

pub(in crate::xmpp) const JINGLE: &str = "urn:xmpp:jingle:1";
pub(in crate::xmpp) const ICE_UDP: &str = "urn:xmpp:jingle:transports:ice-udp:1";
const CONTENT: &str = "link";
/// Candidates in one message.
pub(in crate::xmpp) const MAX_CANDIDATES: usize = 32;
/// Bytes of a session's name.
const MAX_SID: usize = 64;
/// RFC 8839, section 5.4: characters of a user fragment and a password.
const UFRAG: std::ops::RangeInclusive<usize> = 4..=256;
const PASSWORD: std::ops::RangeInclusive<usize> = 22..=256;
/// RFC 8839, section 5.1.
const FOUNDATION: std::ops::RangeInclusive<usize> = 1..=32;

const REASONS: [(Reason, &str); 7] = [
    (Reason::Success, "success"),
    (Reason::Gone, "gone"),
    (Reason::ConnectivityError, "connectivity-error"),
    (Reason::Decline, "decline"),
    (Reason::Busy, "busy"),
    (Reason::Timeout, "timeout"),
    (Reason::GeneralError, "general-error"),
];

/// Why a Jingle element is not a signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::xmpp) enum NotASignal {
    /// An action that we have no use for.
    Unsupported(String),
    /// It breaks the rules.
    Malformed(Malformed),
}

impl From<Malformed> for NotASignal {
    fn from(m: Malformed) -> Self {
        Self::Malformed(m)
    }
}

/// As XML. `me` is our full JID.
pub(in crate::xmpp) fn write(signal: &Signal, me: &str) -> Element {
    let jingle = |action: &str| element("jingle", JINGLE).with("action", action).with("sid", signal.sid());
    match signal {
        Signal::Initiate { offer, .. } => jingle("session-initiate").with("initiator", me).child(content(offer)),
        Signal::Accept { answer, .. } => jingle("session-accept").with("responder", me).child(content(answer)),
        Signal::Candidates { candidates, ufrag, .. } => {
            let transport = candidates.iter().fold(element("transport", ICE_UDP).with("ufrag", ufrag), add);
            jingle("transport-info").child(empty_content().child(transport))
        }
        Signal::Terminate { reason, .. } => {
            let name = REASONS.iter().find(|(r, _)| r == reason).map_or("general-error", |(_, n)| n);
            jingle("session-terminate").child(element("reason", JINGLE).child(element(name, JINGLE)))
        }
    }
}

fn empty_content() -> Element {
    element("content", JINGLE).with("creator", "initiator").with("name", CONTENT)
}

fn content(n: &Negotiation) -> Element {
    let c = &n.credentials;
    let transport = element("transport", ICE_UDP).with("ufrag", &c.ufrag).with("pwd", &c.password);
    empty_content()
        .child(element("description", LINK).with("network", &n.network))
        .child(n.candidates.iter().fold(transport, add))
}

fn add(transport: Element, c: &Candidate) -> Element {
    let number = transport.children().count();
    let mut e = element("candidate", ICE_UDP)
        .with("component", "1")
        .with("foundation", &c.foundation)
        .with("generation", "0")
        // Unique among the candidates of one transport element, which is as far as anyone looks.
        .with("id", format!("{}-{number}", c.foundation))
        .with("ip", c.address.ip().to_string())
        .with("port", c.address.port().to_string())
        .with("priority", c.priority.to_string())
        .with("protocol", "udp")
        .with("type", c.kind.name());
    if let Some(r) = c.related {
        e = e.with("rel-addr", r.ip().to_string()).with("rel-port", r.port().to_string());
    }
    transport.child(e)
}

/// From XML.
pub(in crate::xmpp) fn read(e: &Element) -> Result<Signal, NotASignal> {
    if !e.is("jingle", JINGLE) {
        return Err(Malformed("no jingle".into()).into());
    }
    let sid = text_of(e, "sid", MAX_SID)?.to_owned();
    if sid.is_empty() {
        return Err(Malformed("an empty sid".into()).into());
    }
    Ok(match text_of(e, "action", 32)? {
        "session-initiate" => Signal::Initiate { sid, offer: negotiation(e)? },
        "session-accept" => Signal::Accept { sid, answer: negotiation(e)? },
        "transport-info" => {
            let t = transport(the_content(e)?)?;
            Signal::Candidates { sid, candidates: candidates(t)?, ufrag: ice_word(t, "ufrag", &UFRAG)? }
        }
        "session-terminate" => Signal::Terminate { sid, reason: reason(e) },
        other => return Err(NotASignal::Unsupported(other.to_owned())),
    })
}

fn the_content(e: &Element) -> Result<&Element, Malformed> {
    let mut all = children(e, "content", JINGLE);
    match (all.next(), all.next()) {
        (Some(c), None) if c.attr("name") == Some(CONTENT) => Ok(c),
        _ => malformed(format!("not exactly one content, named {CONTENT}")),
    }
}

fn transport(content: &Element) -> Result<&Element, Malformed> {
    let mut all = children(content, "transport", ICE_UDP);
    match (all.next(), all.next()) {
        (Some(t), None) => Ok(t),
        _ => malformed("not exactly one ICE-UDP transport"),
    }
}

fn negotiation(e: &Element) -> Result<Negotiation, Malformed> {
    let content = the_content(e)?;
    let Some(description) = content.get_child("description", LINK) else {
        return malformed("a content that does not describe a link");
    };
    let t = transport(content)?;
    Ok(Negotiation {
        network: text_of(description, "network", MAX_NETWORK_NAME)?.to_owned(),
        credentials: Credentials {
            ufrag: ice_word(t, "ufrag", &UFRAG)?,
            password: ice_word(t, "pwd", &PASSWORD)?.into(),
        },
        candidates: candidates(t)?,
    })
}

/// RFC 8839, section 5.1: `ice-char` is a letter, a digit, `+` or `/`.
fn ice_word(e: &Element, name: &str, length: &std::ops::RangeInclusive<usize>) -> Result<String, Malformed> {
    let text = text_of(e, name, *length.end())?;
    let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
    if !length.contains(&text.len()) || !text.bytes().all(known) {
        return malformed(format!("{name} has the wrong length or characters"));
    }
    Ok(text.to_owned())
}

fn candidates(transport: &Element) -> Result<Vec<Candidate>, Malformed> {
    let all: Vec<&Element> = children(transport, "candidate", ICE_UDP).collect();
    if all.len() > MAX_CANDIDATES {
        return malformed(format!("{} candidates, over {MAX_CANDIDATES}", all.len()));
    }
    let read: Result<Vec<_>, _> = all.into_iter().map(candidate).collect();
    Ok(read?.into_iter().flatten().collect())
}

/// `None`: right, but of no use to us (TCP, another component, an address that nothing can be sent to).
fn candidate(e: &Element) -> Result<Option<Candidate>, Malformed> {
    let component: u8 = number_of(e, "component")?;
    let protocol = text_of(e, "protocol", 16)?;
    let address = SocketAddr::new(ip(e, "ip")?, number_of(e, "port")?);
    let kind = text_of(e, "type", 16)?;
    let Some(kind) = CandidateKind::by_name(kind) else { return malformed(format!("candidate of type {kind:?}")) };
    let related = match (e.attr("rel-addr"), e.attr("rel-port")) {
        (Some(_), Some(_)) => Some(SocketAddr::new(ip(e, "rel-addr")?, number_of(e, "rel-port")?)),
        _ => None,
    };
    let read = Candidate {
        foundation: ice_word(e, "foundation", &FOUNDATION)?,
        priority: number_of(e, "priority")?,
        address,
        kind,
        related,
    };
    let usable = component == 1 && protocol.eq_ignore_ascii_case("udp") && reachable(address);
    Ok(usable.then_some(read))
}

fn ip(e: &Element, name: &str) -> Result<IpAddr, Malformed> {
    text_of(e, name, 64)?.parse().or_else(|_| malformed(format!("{name} is no IP address")))
}

fn reachable(a: SocketAddr) -> bool {
    let broadcast = matches!(a.ip(), IpAddr::V4(v4) if v4.is_broadcast());
    a.port() != 0 && !a.ip().is_unspecified() && !a.ip().is_multicast() && !broadcast
}

fn reason(e: &Element) -> Reason {
    let said =
        e.get_child("reason", JINGLE).and_then(|r| r.children().find(|c| c.has_ns(JINGLE) && c.name() != "text"));
    said.and_then(|c| REASONS.iter().find(|(_, n)| *n == c.name())).map_or(Reason::GeneralError, |(r, _)| *r)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kind() -> impl Strategy<Value = CandidateKind> {
        prop::sample::select(vec![
            CandidateKind::Host,
            CandidateKind::ServerReflexive,
            CandidateKind::PeerReflexive,
            CandidateKind::Relayed,
        ])
    }

    fn candidate_() -> impl Strategy<Value = Candidate> {
        let address = || (any::<IpAddr>(), 1..=u16::MAX).prop_map(|(i, p)| SocketAddr::new(i, p));
        (address(), "[a-zA-Z0-9]{1,32}", any::<u32>(), kind(), prop::option::of(address()))
            .prop_filter("useless addresses are left out", |(a, ..)| reachable(*a))
            .prop_map(|(address, foundation, priority, kind, related)| Candidate {
                foundation,
                priority,
                address,
                kind,
                related,
            })
    }

    fn negotiation_() -> impl Strategy<Value = Negotiation> {
        ("[a-zA-Z0-9+/]{4,40}", "[a-zA-Z0-9+/]{22,40}", prop::collection::vec(candidate_(), 0..=MAX_CANDIDATES))
            .prop_map(|(ufrag, password, candidates)| Negotiation {
                network: "group:a & <b>".into(),
                credentials: Credentials { ufrag, password: password.into() },
                candidates,
            })
    }

    fn signal() -> impl Strategy<Value = Signal> {
        let reason = prop::sample::select(REASONS.map(|(r, _)| r).to_vec());
        let sid = || "[a-zA-Z0-9]{1,64}";
        prop_oneof![
            (sid(), negotiation_()).prop_map(|(sid, offer)| Signal::Initiate { sid, offer }),
            (sid(), negotiation_()).prop_map(|(sid, answer)| Signal::Accept { sid, answer }),
            (sid(), negotiation_()).prop_map(|(sid, n)| Signal::Candidates {
                sid,
                candidates: n.candidates,
                ufrag: n.credentials.ufrag
            }),
            (sid(), reason).prop_map(|(sid, reason)| Signal::Terminate { sid, reason }),
        ]
    }

    /// Any element of our kinds, any attribute, any value.
    fn junk() -> impl Strategy<Value = Element> {
        let names = ["jingle", "content", "transport", "candidate", "description", "reason"];
        let attributes =
            ["action", "sid", "name", "ufrag", "pwd", "ip", "port", "priority", "type", "component", "protocol"];
        let values = prop_oneof![
            Just("session-initiate".to_owned()),
            Just("transport-info".to_owned()),
            Just("link".to_owned()),
            Just("1".to_owned()),
            ".{0,80}"
        ];
        let leaf = (
            prop::sample::select(names.to_vec()),
            prop::sample::select(vec![JINGLE, ICE_UDP, LINK]),
            prop::collection::vec((prop::sample::select(attributes.to_vec()), values), 0..6),
        )
            .prop_map(|(n, ns, a)| a.into_iter().fold(element(n, ns), |e, (k, v)| e.with(k, v)));
        leaf.prop_recursive(4, 32, 4, |inner| {
            (inner.clone(), prop::collection::vec(inner, 0..4)).prop_map(|(e, c)| c.into_iter().fold(e, Element::child))
        })
    }

    proptest! {
        #[test]
        fn a_signal_survives_the_way_through_xml(s in signal()) {
            let text = String::from(&write(&s, "a@b/c"));
            prop_assert_eq!(read(&text.parse::<Element>().unwrap()).unwrap(), s);
        }

        #[test]
        fn junk_is_refused_without_a_panic(e in junk()) {
            let _ = read(&e);
        }
    }

    fn info(candidates: usize) -> Element {
        let c = Candidate {
            foundation: "1".into(),
            priority: 1,
            address: "192.0.2.1:1".parse().unwrap(),
            kind: CandidateKind::Host,
            related: None,
        };
        let candidates = vec![c; candidates];
        write(&Signal::Candidates { sid: "s".into(), candidates, ufrag: "abcd".into() }, "a@b/c")
    }

    #[test]
    fn one_candidate_too_many_is_refused() {
        assert!(read(&info(MAX_CANDIDATES)).is_ok());
        assert!(matches!(read(&info(MAX_CANDIDATES + 1)), Err(NotASignal::Malformed(_))));
    }

    #[test]
    fn candidates_that_we_cannot_use_are_passed_over_and_wrong_ones_refused() {
        let text = String::from(&info(1));
        let with = |from: &str, to: &str| read(&text.replace(from, to).parse().unwrap());
        let left = |s: Result<Signal, NotASignal>| match s {
            Ok(Signal::Candidates { candidates, .. }) => Some(candidates.len()),
            _ => None,
        };
        assert_eq!(left(with("x", "x")), Some(1));
        for (from, to) in [
            ("udp'", "tcp'"),
            ("component='1'", "component='2'"),
            ("192.0.2.1", "0.0.0.0"),
            ("192.0.2.1", "239.0.0.1"),
            ("192.0.2.1", "255.255.255.255"),
            ("port='1'", "port='0'"),
        ] {
            assert_ne!(text.replace(from, to), text, "{from}");
            assert_eq!(left(with(from, to)), Some(0), "{to}");
        }
        for (from, to) in [
            ("192.0.2.1", "example.org"),
            ("port='1'", "port='65536'"),
            ("port='1'", "port='+1'"),
            ("'host'", "'hosts'"),
            ("'abcd'", "'abc'"),
            ("'abcd'", "'ab d'"),
            ("'link'", "'video'"),
        ] {
            assert_ne!(text.replace(from, to), text, "{from}");
            assert!(matches!(with(from, to), Err(NotASignal::Malformed(_))), "{to}");
        }
        assert_eq!(with("transport-info", "session-info"), Err(NotASignal::Unsupported("session-info".into())));
    }

    #[test]
    fn an_unknown_reason_is_a_general_error() {
        let e = "<jingle xmlns='urn:xmpp:jingle:1' action='session-terminate' sid='s'>\
                 <reason><text>x</text><alternative-session/></reason></jingle>";
        let Ok(Signal::Terminate { reason, .. }) = read(&e.parse().unwrap()) else { panic!("no terminate") };
        assert_eq!(reason, Reason::GeneralError);
    }
}
