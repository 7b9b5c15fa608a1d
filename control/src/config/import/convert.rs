//! What each of IPOP's settings becomes.

use super::keys::{
    HOST, IDLE, IP4, KIND, LOGIN, MASK, MTU, ON_DEMAND, OVERLAYS, PASSWORD, PORT, STUN, TAP, TRUST, TURN, USER,
    needless,
};
use super::source::{Found, Source, kind, matches};
use crate::config::values::{self, host_port, join_host_port, shown};
use dataplane::table::Prefix;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use toml::Value;
use zeroize::Zeroizing;

/// The parts of `node.toml`.
#[derive(Debug)]
pub struct Imported {
    /// The file; it holds no secret.
    pub toml: String,
    /// What belongs into files of their own.
    pub secrets: Vec<Secret>,
    /// What was not carried over, or needs a look: one line each.
    pub notes: Vec<String>,
}

/// Something for a file of mode 0600.
pub struct Secret {
    /// What it is, for people.
    pub what: String,
    /// The file.
    pub path: PathBuf,
    /// What goes into it.
    pub value: Zeroizing<String>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({}, {})", self.what, self.path.display())
    }
}

/// IPOP's own default, of its first controllers.
const DEFAULT_MASK: u8 = 24;
/// Looked at; further ones are told about as left over.
const MAX_TURN: usize = 2 * crate::config::MAX_SERVERS;
/// If nothing says which group: the account's whole roster was the group.
const DEFAULT_GROUP: &str = "ipop";

/// Converts `json`. Files for secrets are named after `base`; `group` is the roster group if one was named.
///
/// # Errors
/// All that stands in the way.
pub fn convert(json: &str, base: &Path, group: Option<&str>) -> Result<Imported, Vec<String>> {
    let root: serde_json::Value = serde_json::from_str(json).map_err(|e| vec![format!("is no JSON: {e}")])?;
    if !root.is_object() {
        return Err(vec![format!("is {}, not a section with IPOP's settings", kind(&root))]);
    }
    let mut made = Made { source: Source::new(root), wrong: Vec::new(), notes: Vec::new(), secrets: Vec::new(), base };
    let xmpp = made.xmpp();
    let network = made.network(group);
    let ice = made.ice();
    made.leftovers();
    if !made.wrong.is_empty() {
        return Err(made.wrong);
    }
    Ok(Imported { toml: format!("{xmpp}\n{network}{ice}"), secrets: made.secrets, notes: made.notes })
}

struct Made<'a> {
    source: Source,
    wrong: Vec<String>,
    notes: Vec<String>,
    secrets: Vec<Secret>,
    base: &'a Path,
}

/// `key = "value"` with what TOML wants escaped.
fn set(out: &mut String, key: &str, value: impl Into<Value>) {
    let _ = writeln!(out, "{key} = {}", value.into());
}

impl Made<'_> {
    fn text(&mut self, patterns: &[&str]) -> Option<(String, String)> {
        let found = self.source.take(patterns)?;
        match found.text() {
            Ok(text) if text.is_empty() => {
                self.notes.push(format!("{}: is empty, so it was left out", found.path));
                None
            }
            Ok(text) => Some((found.path, text)),
            Err(e) => {
                self.wrong.push(e);
                None
            }
        }
    }

    fn number(&mut self, patterns: &[&str]) -> Option<(String, u64)> {
        let found = self.source.take(patterns)?;
        if found.text().is_ok_and(|t| t.is_empty()) {
            self.notes.push(format!("{}: is empty, so it was left out", found.path));
            return None;
        }
        found.number().map_err(|e| self.wrong.push(e)).ok().map(|n| (found.path, n))
    }

    fn secret(&mut self, what: &str, suffix: &str, value: String) -> String {
        let mut name = self.base.file_name().unwrap_or_default().to_owned();
        name.push(suffix);
        let path = self.base.with_file_name(name);
        let text = path.to_string_lossy().into_owned();
        self.secrets.push(Secret { what: what.to_owned(), path, value: Zeroizing::new(value) });
        text
    }

    fn xmpp(&mut self) -> String {
        let mut out = "[xmpp]\n".to_owned();
        let (user, password) = (self.text(USER), self.secret_text(PASSWORD));
        let (host, port) = (self.text(HOST), self.number(PORT));
        match user {
            None => self.wrong.push("names no XMPP account: fill in xmpp_username (or XmppClient.Username)".to_owned()),
            Some((path, user)) => {
                let jid = match &host {
                    Some((_, host)) if !user.contains('@') => format!("{user}@{host}"),
                    _ => user,
                };
                match values::bare_jid(&jid) {
                    Ok(jid) => set(&mut out, "jid", jid.to_string()),
                    Err(e) => self.wrong.push(format!("{path}: {e}")),
                }
            }
        }
        let file = match password {
            Some(password) => self.secret("the XMPP password", ".password", password),
            None => {
                self.notes
                    .push("there is no XMPP password in it: write it into the password_file (chmod 600)".to_owned());
                format!("{}.password", self.base.display())
            }
        };
        set(&mut out, "password_file", file);
        if let Some((path, host)) = host {
            let port = match port {
                Some((path, n)) => u16::try_from(n).ok().filter(|n| *n > 0).unwrap_or_else(|| {
                    self.wrong.push(format!("{path}: {n} is no port"));
                    0
                }),
                None => 5222,
            };
            match host_port(&host, port).or_else(|e| host_port(&format!("[{host}]"), port).map_err(|_| e)) {
                Ok((host, port)) => set(&mut out, "server", join_host_port(&host, port)),
                Err(e) => self.wrong.push(format!("{path}: {e}")),
            }
        } else if let Some((path, _)) = port {
            self.notes.push(format!("{path}: not carried over, because there is no host beside it"));
        }
        if let Some((path, method)) = self.text(LOGIN) {
            if method.eq_ignore_ascii_case("password") {
                self.notes.push(format!("{path}: not needed: nodes always log in by password"));
            } else {
                self.wrong.push(format!("{path}: \"{}\" is not supported: nodes log in by password", shown(&method)));
            }
        }
        if let Some((path, trust)) = self.text(TRUST) {
            set(&mut out, "ca_file", trust);
            self.notes.push(format!("{path}: became ca_file, which has to be a file in PEM form"));
        }
        self.notes.push(
            "the certificate of the XMPP server is checked now: if a private authority issued it, add ca_file"
                .to_owned(),
        );
        out
    }

    /// A password: spaces around it are part of it.
    fn secret_text(&mut self, patterns: &[&str]) -> Option<String> {
        let found = self.source.take(patterns)?;
        match found.value {
            serde_json::Value::String(s) if s.is_empty() => None,
            serde_json::Value::String(s) if s.contains(['\n', '\r', '\0']) => {
                self.wrong.push(format!("{}: has more than one line", found.path));
                None
            }
            serde_json::Value::String(s) => Some(s),
            other => {
                self.wrong.push(format!("{} has to be a string, and is {}", found.path, kind(&other)));
                None
            }
        }
    }

    fn network(&mut self, group: Option<&str>) -> String {
        let mut out = "[[network]]\nkind = \"group\"\n".to_owned();
        if let Some((path, kind)) = self.text(KIND).filter(|(_, kind)| kind.to_lowercase().contains("social")) {
            self.wrong.push(format!("{path}: \"{}\" networks are not in this version yet", shown(&kind)));
        }
        let overlay = self.source.take(OVERLAYS).and_then(|o| o.value.get(0)?.as_str().map(str::to_owned));
        let overlay = overlay.filter(|o| values::group_name(o).is_ok() && !o.trim().is_empty());
        let name = group.map(str::to_owned).or(overlay).unwrap_or_else(|| DEFAULT_GROUP.to_owned());
        if group.is_none() {
            self.notes.push(format!(
                "the members of \"{}\" make up the network: IPOP took the whole roster, so put the name of a (shared) \
                 roster group there (--group), or muc = \"ROOM@SERVICE\"",
                shown(&name)
            ));
        }
        set(&mut out, "group", name);
        if let Some((path, tap)) = self.text(TAP) {
            match crate::cli::interface_name(&tap) {
                Ok(tap) => set(&mut out, "interface", tap),
                Err(e) => self.notes.push(format!("{path}: not carried over: {e}")),
            }
        }
        self.address(&mut out);
        if let Some((path, mtu)) = self.number(MTU) {
            match u16::try_from(mtu).ok().filter(|m| (1280..=9000).contains(m)) {
                Some(mtu) => set(&mut out, "mtu", i64::from(mtu)),
                None => self.notes.push(format!("{path}: {mtu} not carried over: an MTU has to be 1280 to 9000")),
            }
        }
        if let Some(found) = self.source.take(ON_DEMAND) {
            set(&mut out, "links", if found.truth() { "on-demand" } else { "proactive" });
        }
        if let Some((path, seconds)) = self.number(IDLE) {
            match values::duration(&seconds.to_string()) {
                Ok(_) => set(&mut out, "idle_timeout", i64::try_from(seconds).unwrap_or_default()),
                Err(e) => self.notes.push(format!("{path}: not carried over: {e}")),
            }
        }
        out
    }

    fn address(&mut self, out: &mut String) {
        let len = match self.number(MASK) {
            None => {
                self.notes.push(format!("there is no netmask in it: /{DEFAULT_MASK} was taken"));
                DEFAULT_MASK
            }
            Some((path, n)) => u8::try_from(n).ok().filter(|n| *n <= 32).unwrap_or_else(|| {
                self.wrong.push(format!("{path}: {n} is no length of an IPv4 subnet"));
                DEFAULT_MASK
            }),
        };
        let Some((path, text)) = self.text(IP4) else {
            self.wrong.push("has no IPv4 address: fill in ip4 (or IP4 of Vnets)".to_owned());
            return;
        };
        let checked = text.parse().map_err(|_| format!("\"{}\" is no IPv4 address", shown(&text))).and_then(|a| {
            let a = std::net::IpAddr::V4(a);
            let subnet = Prefix::new(a, len).ok_or("has no subnet")?;
            values::overlay_subnet(subnet)?;
            values::member_address(a, subnet)
        });
        match checked {
            Ok(()) => set(out, "address", format!("{text}/{len}")),
            Err(e) => self.wrong.push(format!("{path}: {e}")),
        }
    }

    fn ice(&mut self) -> String {
        let mut stun = Vec::new();
        for list in self.source.take_all(STUN) {
            let entries = match &list.value {
                serde_json::Value::Array(entries) => entries.clone(),
                one => vec![one.clone()],
            };
            for value in entries {
                let entry = Found { path: list.path.clone(), value };
                match entry.text().and_then(|t| host_port(&t, 3478).map_err(|e| format!("{}: {e}", entry.path))) {
                    Ok((host, port)) => stun.push(join_host_port(&host, port)),
                    Err(e) => self.wrong.push(e),
                }
            }
        }
        stun.dedup();
        let mut turn = Vec::new();
        for _ in 0..MAX_TURN {
            let Some(entry) = self.turn(turn.len() + 1) else { break };
            turn.extend(entry);
        }
        for (what, list) in [("STUN", &mut stun), ("TURN", &mut turn)] {
            if list.len() > crate::config::MAX_SERVERS {
                self.notes.push(format!(
                    "of {} {what} servers, the first {} were carried over",
                    list.len(),
                    crate::config::MAX_SERVERS
                ));
                list.truncate(crate::config::MAX_SERVERS);
            }
        }
        if stun.is_empty() && turn.is_empty() {
            self.notes.push("there is no STUN or TURN server in it: those of the XMPP server are taken".to_owned());
            return String::new();
        }
        let mut out = "\n[ice]\n".to_owned();
        if !stun.is_empty() {
            set(&mut out, "stun", stun);
        }
        if !turn.is_empty() {
            let _ = writeln!(out, "turn = [\n{}]", turn.concat());
        }
        out
    }

    /// The next TURN server as a line; an inner `None` after a problem.
    fn turn(&mut self, number: usize) -> Option<Option<String>> {
        let keys = |names: &[&str]| -> Vec<String> {
            TURN.iter().flat_map(|t| names.iter().map(move |n| format!("{t}.{n}"))).collect()
        };
        let server = keys(&["server", "address"]);
        let found = self.source.take(&server.iter().map(String::as_str).collect::<Vec<_>>())?;
        let entry = found.path.rsplit_once('.').map_or("", |(entry, _)| entry).to_owned();
        let own = |name: &str| format!("{entry}.{name}");
        let user = self.text(&[&own("user"), &own("username")]).map(|u| u.1);
        let password = self.secret_text(&[&own("pass"), &own("password")]);
        let server = found.text().and_then(|t| host_port(&t, 3478).map_err(|e| format!("{}: {e}", found.path)));
        let (server, user, password) = match (server, user, password) {
            (Ok(server), Some(user), Some(password)) => (server, user, password),
            _ if found.text().is_ok_and(|t| t.is_empty()) => {
                self.notes.push(format!("{}: is empty, so it was left out", found.path));
                return Some(None);
            }
            (Err(e), ..) => {
                self.wrong.push(e);
                return Some(None);
            }
            _ => {
                self.notes.push(format!("{entry}: not carried over: a TURN server needs a user and a password"));
                return Some(None);
            }
        };
        let what = format!("the password of TURN server {number}");
        let file = self.secret(&what, &format!(".turn-{number}.password"), password);
        let (server, user, file) =
            (Value::from(join_host_port(&server.0, server.1)), Value::from(user), Value::from(file));
        Some(Some(format!("  {{ server = {server}, username = {user}, password_file = {file} }},\n")))
    }

    /// Tells about everything that has not become something.
    fn leftovers(&mut self) {
        for found in self.source.rest() {
            let what = kind(&found.value);
            if found.value.as_array().is_some_and(Vec::is_empty)
                || found.value.as_object().is_some_and(|o| o.is_empty())
            {
                self.notes.push(format!("{}: is {what}, so there was nothing to carry over", found.path));
                continue;
            }
            let another = [USER, PASSWORD, HOST, PORT, IP4, MASK, TAP, MTU].concat();
            let note = if another.iter().any(|p| matches(p, &found.path)) {
                "NOT carried over: one account and one network are, this belongs to another one".to_owned()
            } else if let Some(why) = needless(&found.path) {
                format!("not needed: {why}")
            } else {
                format!("NOT carried over: {what} that is not understood")
            };
            self.notes.push(format!("{}: {note}", found.path));
        }
    }
}
