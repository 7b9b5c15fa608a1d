//! The sections of the file, but for `[[network]]`.

use super::network::{Resolved, network, together};
use super::problem::{Problems, Report};
use super::section::{Found, Section};
use super::values::{self, host_port, join_host_port};
use super::{
    DEFAULT_STATE_DIR, IceConfig, MAX_NETWORKS, MAX_SERVERS, NamesConfig, NodeConfig, PASSWORD_VARIABLE, SOCKET_DIR,
    TurnConfig, XmppConfig, secret,
};
use dataplane::CipherChoice;
use std::path::{Path, PathBuf};
use toml::de::DeTable;
use zeroize::Zeroizing;

const XMPP_PORT: u16 = 5222;
/// XEP-0368.
const XMPPS_PORT: u16 = 5223;
const STUN_PORT: u16 = 3478;
/// Longest path of a UNIX socket: `sun_path` in unix(7), less its final zero.
const MAX_SOCKET_PATH: usize = 107;
/// Longest bundle of certificates, in bytes: the system's has a quarter of a megabyte.
const MAX_CA_FILE: u64 = 4 << 20;

/// What a configuration depends on besides its text.
#[derive(Clone)]
pub struct Surroundings {
    /// Relative paths in the file start here.
    pub directory: PathBuf,
    /// Of this machine.
    pub hostname: String,
    /// [`PASSWORD_VARIABLE`].
    pub password: Option<Zeroizing<String>>,
}

impl std::fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Surroundings").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Surroundings {
    /// Of this process and a file at `path`.
    #[must_use]
    pub fn of_process(path: &Path) -> Self {
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let password = std::env::var(PASSWORD_VARIABLE).ok().filter(|p| !p.is_empty()).map(Zeroizing::new);
        Self { directory, hostname, password }
    }

    pub(super) fn path(&self, s: &str) -> PathBuf {
        self.directory.join(s)
    }

    /// The first label of the host's name, made to fit.
    fn node_name(&self) -> String {
        let label = self.hostname.trim().split('.').next().unwrap_or_default();
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let name: String = label.chars().map(|c| if fits(c) { c } else { '-' }).take(63).collect();
        values::node_name(&name).unwrap_or_else(|_| "node".to_owned())
    }
}

/// Checks `text`, the contents of `file`, and reads the secrets that it names.
///
/// # Errors
/// All that is wrong with it.
pub fn parse(file: &Path, text: &str, around: &Surroundings) -> Result<NodeConfig, Problems> {
    if text.trim().is_empty() {
        return Err(Problems::of_file(file, "is empty: it needs an [xmpp] and a [[network]] section".to_owned()));
    }
    let mut report = Report::new(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    for e in errors {
        report.syntax(e.span(), e.message());
    }
    let config = document_of(document.get_ref(), around, &mut report);
    report.finish(file)?;
    // Without a problem reported there is a configuration; should that ever fail, it is said, not hidden.
    config.ok_or_else(|| Problems::of_file(file, "is not understood".to_owned()))
}

fn document_of(document: &DeTable<'_>, around: &Surroundings, report: &mut Report) -> Option<NodeConfig> {
    let known = ["node", "xmpp", "network", "ice", "names"];
    let hint = |key: &str| match key {
        "cipher" => Some("belongs below a line [node]".to_owned()),
        "jid" | "password_file" => Some("belongs below a line [xmpp]".to_owned()),
        "group" | "muc" | "address" | "subnet" | "allow" | "leases" => {
            Some("belongs below a line [[network]]".to_owned())
        }
        _ => None,
    };
    let root = Section::new(document, 0..0, "", &known, hint, report);
    let mut notes = Vec::new();
    let node = root.table(report, "node");
    let (name, state_dir, control_socket, cipher) = node_section(node.as_ref(), around, report);
    let xmpp = match root.table(report, "xmpp") {
        Some((table, span)) => xmpp_section(table, span, around, report, &mut notes),
        None if root.has("xmpp") => None,
        None => {
            root.missing(report, "xmpp", "is missing: add a section [xmpp] with the account's jid and password_file");
            None
        }
    };
    let wanted = "a section [[network]], in double brackets";
    let tables = root.tables(report, "network", wanted, MAX_NETWORKS);
    if !root.has("network") {
        root.missing(report, "network", "is missing: add a section [[network]] with a group and an address or subnet");
    } else if tables.is_empty() && report.is_empty() {
        root.missing(report, "network", "is an empty list: add a section [[network]]");
    }
    let mut networks: Vec<Resolved> = Vec::new();
    for (i, (table, span)) in tables.into_iter().enumerate() {
        networks.extend(network(table, span, i, around, report, &mut notes));
    }
    together(&networks, report);
    let ice = root.table(report, "ice").map(|(table, span)| ice_section(table, span, around, report));
    let names = root.table(report, "names").map(|(table, span)| names_section(table, span, report));
    Some(NodeConfig {
        name,
        state_dir,
        cipher,
        xmpp: xmpp?,
        networks: networks.into_iter().map(|n| n.config).collect(),
        ice: ice.unwrap_or_default(),
        names: names.unwrap_or_default(),
        control_socket,
        notes,
    })
}

fn node_section(
    section: Option<&(&DeTable<'_>, std::ops::Range<usize>)>,
    around: &Surroundings,
    report: &mut Report,
) -> (String, PathBuf, PathBuf, CipherChoice) {
    let known = ["name", "state_dir", "control_socket", "cipher"];
    let section = section.map(|(table, span)| Section::new(table, span.clone(), "node", &known, |_| None, report));
    let mut string = |key: &str| section.as_ref().and_then(|s| s.string(report, key));
    let (name, state_dir, socket) = (string("name"), string("state_dir"), string("control_socket"));
    let cipher = string("cipher").and_then(|c| c.check(report, |c| c.parse::<CipherChoice>())).unwrap_or_default();
    let name = name.and_then(|n| n.check(report, |n| values::node_name(n))).unwrap_or_else(|| around.node_name());
    let state_dir = state_dir.map_or_else(|| PathBuf::from(DEFAULT_STATE_DIR), |d| around.path(&d.value));
    let control_socket = socket.as_ref().map_or_else(
        || Path::new(SOCKET_DIR).join(format!("{name}.sock")),
        |s| {
            let path = around.path(&s.value);
            if path.as_os_str().len() > MAX_SOCKET_PATH {
                s.wrong(report, format!("is longer than {MAX_SOCKET_PATH} bytes, the limit of socket paths"));
            }
            path
        },
    );
    (name, state_dir, control_socket, cipher)
}

fn xmpp_section(
    table: &DeTable<'_>,
    span: std::ops::Range<usize>,
    around: &Surroundings,
    report: &mut Report,
    notes: &mut Vec<String>,
) -> Option<XmppConfig> {
    let known = ["jid", "password_file", "server", "direct_tls", "ca_file"];
    let hint = |key: &str| match key {
        "password" => Some(format!(
            "is not kept in this file: write it into a file of its own (chmod 600) that password_file names, or into \
             the environment variable {PASSWORD_VARIABLE}"
        )),
        "username" | "user" => Some("is called jid: jid = \"vm1@example.org\"".to_owned()),
        "host" | "port" => Some("is called server: server = \"xmpp.example.org:5222\"".to_owned()),
        _ => None,
    };
    let s = Section::new(table, span, "xmpp", &known, hint, report);
    let jid = s.string(report, "jid").and_then(|j| j.check(report, |j| values::bare_jid(j)));
    if !s.has("jid") {
        s.missing(report, "jid", "is missing: the account, as jid = \"vm1@example.org\"");
    }
    let direct_tls = s.boolean(report, "direct_tls").unwrap_or(false);
    let port = if direct_tls { XMPPS_PORT } else { XMPP_PORT };
    let server = s.string(report, "server").and_then(|f| f.check(report, |s| host_port(s, port)));
    let ca_file = s.string(report, "ca_file").and_then(|f| f.check(report, |p| certificates(&around.path(p))));
    let password_file = s.string(report, "password_file");
    let password = match (&around.password, password_file) {
        (Some(password), file) => {
            if file.is_some() {
                notes.push(format!("xmpp.password_file is not read: {PASSWORD_VARIABLE} is set and goes before it"));
            }
            Some(password.clone())
        }
        (None, Some(file)) => file.check(report, |p| secret::read_password(&around.path(p))),
        (None, None) => {
            if !s.has("password_file") {
                let message = format!("is missing, and the environment variable {PASSWORD_VARIABLE} is not set");
                s.missing(report, "password_file", message);
            }
            None
        }
    };
    Some(XmppConfig { jid: jid?.to_string(), password: password?, server, direct_tls, ca_file })
}

/// Looks whether a file can hold certificates; what is in them is for TLS to judge.
fn certificates(path: &Path) -> Result<PathBuf, String> {
    let shown = path.display();
    let about = std::fs::metadata(path).map_err(|e| format!("cannot read {shown}: {e}"))?;
    if !about.is_file() || about.len() > MAX_CA_FILE {
        return Err(format!("{shown} is no file with certificates"));
    }
    let text = std::fs::read(path).map_err(|e| format!("cannot read {shown}: {e}"))?;
    let mark = b"-----BEGIN CERTIFICATE-----";
    if text.windows(mark.len()).any(|w| w == mark) {
        Ok(path.to_owned())
    } else {
        Err(format!("{shown} has no certificate in PEM form (-----BEGIN CERTIFICATE-----)"))
    }
}

fn names_section(table: &DeTable<'_>, span: std::ops::Range<usize>, report: &mut Report) -> NamesConfig {
    let hint = |key: &str| match key {
        "domain" => Some(format!("cannot be chosen: names end in .{}", crate::names::DOMAIN)),
        "enable" => Some("is called enabled: enabled = false".to_owned()),
        _ => None,
    };
    let s = Section::new(table, span, "names", &["enabled"], hint, report);
    s.boolean(report, "enabled").map_or_else(NamesConfig::default, |enabled| NamesConfig { enabled })
}

fn ice_section(
    table: &DeTable<'_>,
    span: std::ops::Range<usize>,
    around: &Surroundings,
    report: &mut Report,
) -> IceConfig {
    let s = Section::new(table, span, "ice", &["stun", "turn", "relay_private"], |_| None, report);
    let address = |f: &Found<String>, report: &mut Report| {
        f.check(report, |s| host_port(s, STUN_PORT)).map(|(h, p)| join_host_port(&h, p))
    };
    let stun = s.strings(report, "stun", MAX_SERVERS);
    let stun = stun.iter().filter_map(|f| address(f, report)).collect();
    let wanted = "a list of { server = \"HOST:PORT\", username = \"...\", password_file = \"...\" }";
    let mut turn = Vec::new();
    for (table, span) in s.tables(report, "turn", wanted, MAX_SERVERS) {
        let known = ["server", "username", "password_file"];
        let hint = |key: &str| match key {
            "password" => Some("is not kept in this file: use password_file".to_owned()),
            "user" => Some("is called username".to_owned()),
            _ => None,
        };
        let t = Section::new(table, span, "ice.turn", &known, hint, report);
        for key in known {
            if !t.has(key) {
                t.missing(report, key, "is missing");
            }
        }
        let server = t.string(report, "server").and_then(|f| address(&f, report));
        let username = t.string(report, "username");
        let password = t.string(report, "password_file");
        let password = password.and_then(|f| f.check(report, |p| secret::read_password(&around.path(p))));
        if let (Some(server), Some(username), Some(password)) = (server, username, password) {
            turn.push(TurnConfig { server, username: username.value, password });
        }
    }
    IceConfig { stun, turn, relay_private: s.boolean(report, "relay_private").unwrap_or(false) }
}
