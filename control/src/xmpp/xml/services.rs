//! STUN and TURN servers that the XMPP server offers (XEP-0215, version 2).

use tokio_xmpp::minidom::Element;
use zeroize::Zeroizing;

use super::{Malformed, children, element, malformed};

const EXTDISCO: &str = "urn:xmpp:extdisco:2";
/// More than these are not looked at.
const MAX_SERVICES: usize = 32;
const MAX_FIELD: usize = 1024;

/// What a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// RFC 8489.
    Stun,
    /// RFC 8656.
    Turn,
}

/// A STUN or TURN server that the XMPP server offers.
#[derive(Clone, PartialEq, Eq)]
pub struct ExternalService {
    /// What it is.
    pub kind: ServiceKind,
    /// Name or address.
    pub host: String,
    /// Port; 3478 where the server names none.
    pub port: u16,
    /// `udp` or `tcp`; `udp` where the server names none.
    pub transport: String,
    /// Long-term credential (RFC 8489, section 9.2).
    pub username: Option<String>,
    /// Never logged.
    pub password: Option<Zeroizing<String>>,
    /// When the credential ends (XEP-0082, as the server wrote it: `2026-11-23T07:36:53Z`).
    pub expires: Option<String>,
}

impl std::fmt::Debug for ExternalService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}({}:{}/{}, until {:?})", self.kind, self.host, self.port, self.transport, self.expires)
    }
}

/// The question.
pub(in crate::xmpp) fn question() -> Element {
    element("services", EXTDISCO)
}

/// The answer: TLS variants and kinds that we do not know are passed over.
pub(in crate::xmpp) fn read(e: &Element) -> Result<Vec<ExternalService>, Malformed> {
    if !e.is("services", EXTDISCO) {
        return malformed("no list of services");
    }
    Ok(children(e, "service", EXTDISCO).take(MAX_SERVICES).filter_map(service).collect())
}

fn service(e: &Element) -> Option<ExternalService> {
    let field = |name| e.attr(name).filter(|v| v.len() <= MAX_FIELD).map(str::to_owned);
    let kind = match e.attr("type")? {
        "stun" => ServiceKind::Stun,
        "turn" => ServiceKind::Turn,
        _ => return None,
    };
    Some(ExternalService {
        kind,
        host: field("host").filter(|h| !h.is_empty())?,
        port: e.attr("port").map_or(Some(3478), |p| p.parse().ok().filter(|p| *p != 0))?,
        transport: field("transport").unwrap_or_else(|| "udp".into()).to_ascii_lowercase(),
        username: field("username"),
        password: field("password").map(Zeroizing::new),
        expires: field("expires"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ejabberd_and_prosody_say_is_understood_and_the_password_is_not_shown() {
        let text = "<services xmlns='urn:xmpp:extdisco:2'>\
            <service host='192.0.2.1' port='3478' transport='udp' type='stun' restricted='false'/>\
            <service host='192.0.2.1' port='3479' transport='udp' type='turn' restricted='true' username='1:x' \
             password='hush' expires='2026-11-23T07:36:53Z'/>\
            <service host='t' type='turns'/><service host='' type='stun'/><service type='turn' host='h' port='0'/>\
            </services>";
        let all = read(&text.parse().unwrap()).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].kind, all[0].port, all[0].username.as_deref()), (ServiceKind::Stun, 3478, None));
        assert_eq!(all[1].password.as_ref().map(|p| p.as_str()), Some("hush"));
        assert!(!format!("{all:?}").contains("hush"));
        assert!(read(&element("services", "other")).is_err());
    }
}
