//! XML in and out of our own vocabulary. What comes in was written by others: every length and number has a limit.

use tokio_xmpp::jid::Jid;
use tokio_xmpp::minidom::{Element, rxml};

pub(super) mod descriptor;
pub(super) mod jingle;
pub(super) mod services;

/// Namespace of the descriptor and name of the PEP node that holds it.
pub(super) const NODE: &str = "urn:ipop-fast:node:1";
/// Namespace of what a Jingle content of ours describes.
pub(super) const LINK: &str = "urn:ipop-fast:link:1";
/// XEP-0166, section 11: conditions that go with a stanza error.
pub(super) const JINGLE_ERRORS: &str = "urn:xmpp:jingle:errors:1";
/// Namespace of stanzas on a client's stream (RFC 6120, section 4.8.2).
pub(super) const CLIENT: &str = "jabber:client";

/// What is wrong with a piece of XML, for a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(pub(super) String);

pub(super) fn malformed<T>(what: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed(what.into()))
}

/// Builds elements in one expression.
pub(super) trait Build: Sized {
    /// With an attribute.
    fn with(self, name: &str, value: impl AsRef<str>) -> Self;
    /// With a child.
    fn child(self, child: Element) -> Self;
    /// With a text.
    fn words(self, text: impl AsRef<str>) -> Self;
}

impl Build for Element {
    fn with(mut self, name: &str, value: impl AsRef<str>) -> Self {
        // Names are constants of this program; one that is no XML name would be seen by every test.
        if let Ok(name) = rxml::NcName::try_from(name) {
            self.set_attr(rxml::Namespace::NONE, name, printable(value.as_ref()));
        }
        self
    }

    fn child(mut self, child: Element) -> Self {
        self.append_child(child);
        self
    }

    fn words(mut self, text: impl AsRef<str>) -> Self {
        self.append_text(printable(text.as_ref()));
        self
    }
}

/// An empty element.
pub(super) fn element(name: &str, namespace: &str) -> Element {
    Element::bare(name, namespace)
}

/// What XML 1.0 cannot carry (control characters, U+FFFE) would end the whole stream.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') { '\u{fffd}' } else { c }).collect()
}

/// An attribute that must be there, at most `limit` bytes long.
pub(super) fn text_of<'e>(e: &'e Element, name: &'e str, limit: usize) -> Result<&'e str, Malformed> {
    match e.attr(name) {
        Some(v) if v.len() <= limit => Ok(v),
        Some(v) => malformed(format!("{name} of {} is {} bytes long, over {limit}", e.name(), v.len())),
        None => malformed(format!("{} without {name}", e.name())),
    }
}

/// A number that must be there. Digits only: `u32::from_str` alone would take a plus sign.
pub(super) fn number_of<T: std::str::FromStr>(e: &Element, name: &str) -> Result<T, Malformed> {
    let text = text_of(e, name, 20)?;
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| digits).map_or_else(|| malformed(format!("{name} is no number: {text:?}")), Ok)
}

/// A JID in an attribute; `None` if it is not there, an error if it is none.
pub(super) fn jid_of(e: &Element, name: &str) -> Result<Option<Jid>, Malformed> {
    let Some(text) = e.attr(name) else { return Ok(None) };
    Jid::new(text).map(Some).or_else(|why| malformed(format!("{name} is no JID: {why}")))
}

/// Children of one name in one namespace.
pub(super) fn children<'e>(e: &'e Element, name: &'e str, namespace: &'e str) -> impl Iterator<Item = &'e Element> {
    e.children().filter(move |c| c.is(name, namespace))
}
