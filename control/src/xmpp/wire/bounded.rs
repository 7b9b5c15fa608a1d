//! One element of the stream, bounded while it is read.
//!
//! A tree of elements is built, compared and dropped recursively: a stanza of 256 kB that is nothing but `<a><a><a>...`
//! would overflow the stack. And whoever knows a full JID can send one. So what is too deep or too large is read to its
//! end and thrown away.

use tokio_xmpp::minidom::{Element, rxml};
use xso::error::{Error, FromEventsError};
use xso::{Context, FromEventsBuilder, FromXml};

/// The deepest that we understand is seven (a PEP event with a descriptor).
const MAX_DEPTH: u32 = 16;
/// A roster of 5,000 entries is the largest that a server sends; strangers are held to less by the server.
const MAX_BYTES: usize = 1 << 20;

/// An element of the stream.
#[derive(Debug)]
pub(in crate::xmpp) enum Incoming {
    /// Within the limits.
    Element(Element),
    /// Thrown away: its name and sender.
    TooLarge { name: String, from: String },
}

/// Reads an [`Incoming`].
pub(in crate::xmpp) struct Builder {
    depth: u32,
    bytes: usize,
    name: String,
    from: String,
    /// `None`: over a limit.
    element: Option<<Element as FromXml>::Builder>,
}

impl FromXml for Incoming {
    type Builder = Builder;

    fn from_events(name: rxml::QName, attrs: rxml::AttrMap, ctx: &Context<'_>) -> Result<Builder, FromEventsError> {
        let word = name.1.to_string();
        let from = attrs.get(&rxml::Namespace::NONE, "from").cloned().unwrap_or_default();
        let element = Element::from_events(name, attrs, ctx)?;
        Ok(Builder { depth: 1, bytes: 0, name: word, from, element: Some(element) })
    }
}

impl FromEventsBuilder for Builder {
    type Output = Incoming;

    fn feed(&mut self, event: rxml::Event, ctx: &Context<'_>) -> Result<Option<Incoming>, Error> {
        self.bytes = self.bytes.saturating_add(event.metrics().len());
        match &event {
            rxml::Event::StartElement(..) => self.depth += 1,
            rxml::Event::EndElement(_) => self.depth -= 1,
            _ => {}
        }
        if self.depth > MAX_DEPTH || self.bytes > MAX_BYTES {
            self.element = None;
        }
        match &mut self.element {
            Some(builder) => Ok(builder.feed(event, ctx)?.map(Incoming::Element)),
            None if self.depth == 0 => Ok(Some(Incoming::TooLarge {
                name: std::mem::take(&mut self.name),
                from: std::mem::take(&mut self.from),
            })),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(xml: &str) -> Incoming {
        xso::from_bytes(xml.as_bytes()).unwrap()
    }

    fn nested(depth: usize) -> String {
        format!("<a xmlns='x' from='m@x'>{}{}</a>", "<b>".repeat(depth - 1), "</b>".repeat(depth - 1))
    }

    #[test]
    fn what_is_too_deep_is_thrown_away_without_the_stack_noticing() {
        let deepest = usize::try_from(MAX_DEPTH).unwrap();
        assert!(matches!(parse(&nested(deepest)), Incoming::Element(_)));
        for depth in [deepest + 1, 80_000] {
            let Incoming::TooLarge { name, from } = parse(&nested(depth)) else { panic!("{depth} got through") };
            assert_eq!((name.as_str(), from.as_str()), ("a", "m@x"));
        }
    }

    #[test]
    fn what_is_too_long_is_thrown_away() {
        let long = |n: usize| format!("<a xmlns='x'>{}</a>", "<b c='d'>e</b>".repeat(n));
        assert!(matches!(parse(&long(1000)), Incoming::Element(_)));
        assert!(matches!(parse(&long(MAX_BYTES / 14 + 1)), Incoming::TooLarge { .. }));
    }

    #[test]
    fn what_is_within_the_limits_is_read_whole() {
        let Incoming::Element(e) = parse("<a xmlns='x' y='z'>t<b/>u</a>") else { panic!("too large?") };
        assert_eq!((e.attr("y"), e.text().as_str(), e.children().count()), (Some("z"), "tu", 1));
    }
}
