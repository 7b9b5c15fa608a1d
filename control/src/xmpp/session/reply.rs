//! Answers to questions of others, and what their answers mean.

use tokio_xmpp::minidom::Element;
use tokio_xmpp::parsers::ns;

use crate::xmpp::xml::{Build, CLIENT, JINGLE_ERRORS, element};
use crate::xmpp::{SignalError, Verdict};

/// An answer without an error.
pub(super) fn result(to: Option<&str>, id: &str, payload: Option<Element>) -> Element {
    let mut iq = element("iq", CLIENT).with("type", "result").with("id", id);
    if let Some(to) = to {
        iq = iq.with("to", to);
    }
    payload.into_iter().fold(iq, Element::child)
}

/// An answer with an error (RFC 6120, section 8.3); `jingle` is a condition of XEP-0166, section 11.
pub(super) fn error(to: Option<&str>, id: &str, kind: &str, condition: &str, jingle: Option<&str>) -> Element {
    let mut error = element("error", CLIENT).with("type", kind).child(element(condition, ns::XMPP_STANZAS));
    if let Some(j) = jingle {
        error = error.child(element(j, JINGLE_ERRORS));
    }
    let mut iq = element("iq", CLIENT).with("type", "error").with("id", id);
    if let Some(to) = to {
        iq = iq.with("to", to);
    }
    iq.child(error)
}

/// The answer to a signal.
pub(super) fn verdict(to: &str, id: &str, verdict: Verdict) -> Element {
    let to = Some(to);
    match verdict {
        Verdict::Ok => result(to, id, None),
        Verdict::TieBreak => error(to, id, "cancel", "conflict", Some("tie-break")),
        Verdict::UnknownSession => error(to, id, "cancel", "item-not-found", Some("unknown-session")),
        Verdict::Busy => error(to, id, "wait", "resource-constraint", None),
        Verdict::NotAcceptable => error(to, id, "cancel", "not-acceptable", None),
    }
}

/// The condition of an error that came as an answer.
pub(super) fn condition(iq: &Element) -> &str {
    let error = iq.get_child("error", CLIENT);
    let named = error.and_then(|e| e.children().find(|c| c.has_ns(ns::XMPP_STANZAS) && c.name() != "text"));
    named.map_or("undefined-condition", Element::name)
}

/// What an error means for a signal.
pub(super) fn signal_error(iq: &Element) -> SignalError {
    let jingle = |name| iq.get_child("error", CLIENT).is_some_and(|e| e.has_child(name, JINGLE_ERRORS));
    match condition(iq) {
        "conflict" if jingle("tie-break") => SignalError::TieBreak,
        "item-not-found" if jingle("unknown-session") => SignalError::UnknownSession,
        "item-not-found"
        | "service-unavailable"
        | "recipient-unavailable"
        | "gone"
        | "remote-server-not-found"
        | "remote-server-timeout" => SignalError::Gone,
        "resource-constraint" => SignalError::Busy,
        other => SignalError::Refused(other.chars().take(64).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_arrives_as_what_it_was() {
        let means = |v| signal_error(&verdict("a@b/c", "1", v));
        assert_eq!(means(Verdict::TieBreak), SignalError::TieBreak);
        assert_eq!(means(Verdict::UnknownSession), SignalError::UnknownSession);
        assert_eq!(means(Verdict::Busy), SignalError::Busy);
        assert_eq!(means(Verdict::NotAcceptable), SignalError::Refused("not-acceptable".into()));
        assert_eq!(verdict("a@b/c", "1", Verdict::Ok).attr("type"), Some("result"));
        assert_eq!(signal_error(&error(None, "1", "cancel", "service-unavailable", None)), SignalError::Gone);
        assert_eq!(
            signal_error(&error(None, "1", "cancel", "conflict", None)),
            SignalError::Refused("conflict".into())
        );
    }
}
