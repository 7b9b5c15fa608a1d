//! What we say we can do (XEP-0030, XEP-0115). By the `+notify` in it the server sends us the members' descriptors.

use std::sync::LazyLock;

use tokio_xmpp::minidom::Element;
use tokio_xmpp::parsers::caps::{Caps, compute_disco, hash_caps};
use tokio_xmpp::parsers::disco::{DiscoInfoResult, Identity};
use tokio_xmpp::parsers::hashes::Algo;
use tokio_xmpp::parsers::ns;

use crate::xmpp::xml::jingle::{ICE_UDP, JINGLE};
use crate::xmpp::xml::{LINK, NODE};

const URI: &str = "https://github.com/ipop-project/ipop-fast";

fn info() -> DiscoInfoResult {
    let notify = format!("{NODE}+notify");
    let features = [ns::DISCO_INFO, ns::CAPS, ns::PING, JINGLE, ICE_UDP, LINK, &notify];
    DiscoInfoResult {
        node: None,
        identities: vec![Identity { category: "client".into(), type_: "bot".into(), lang: None, name: None }],
        features: features.into_iter().map(str::to_owned).collect(),
        extensions: Vec::new(),
    }
}

/// The answer to disco#info, for the node that was asked about.
pub(super) fn answer(node: Option<&str>) -> Element {
    DiscoInfoResult { node: node.map(str::to_owned), ..info() }.into()
}

/// The part of presence.
pub(super) fn presence() -> Element {
    static CAPS: LazyLock<Option<Element>> = LazyLock::new(|| {
        // SHA-1 is what XEP-0115 demands; nothing secret hangs on it.
        hash_caps(&compute_disco(&info()), Algo::Sha_1).ok().map(|hash| Caps::new(URI, hash).into())
    });
    CAPS.clone().unwrap_or_else(|| Element::bare("c", ns::CAPS))
}

/// Whether a question is about us: about nothing in particular, or about what our presence says.
pub(super) fn is_ours(node: Option<&str>) -> bool {
    node.is_none_or(|n| n.strip_prefix(URI).is_some_and(|rest| rest.starts_with('#')))
}
