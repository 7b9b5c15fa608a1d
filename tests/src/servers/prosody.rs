//! A prosody in the foreground.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Ca, DIRECT_TLS_PORT, SERVER_PORT, STUN_PORT, Server, Setup, ca, wait_ready, write};
use crate::ns::Namespace;
use crate::process::{Process, wait_for};

/// Keeps the rooms as the file `rooms` says (lines of room, account, affiliation): prosody has no API for that without
/// a client. It reads the file again and again, so that changes are live, and copies it to `rooms.done` when applied.
const ROOMS_MODULE: &str = include_str!("mod_ipop_rooms.lua");

/// A running prosody. Ended, and its data removed, when dropped.
#[derive(Debug)]
pub struct Prosody {
    setup: Setup,
    namespace: String,
    dir: PathBuf,
    process: Process,
}

impl Prosody {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up; the message has its log.
    pub fn start(ns: &Namespace, ca: &Ca, setup: &Setup) -> Result<Self> {
        Self::start_with_turn(ns, ca, setup, None)
    }

    /// [`Self::start`]; with `turn`, it hands out credentials (XEP-0215) for a TURN server there that knows the shared
    /// secret.
    ///
    /// # Errors
    /// When it does not come up; the message has its log.
    pub fn start_with_turn(ns: &Namespace, ca: &Ca, setup: &Setup, turn: Option<(SocketAddr, &str)>) -> Result<Self> {
        let dir = ca::scratch("prosody")?;
        ca.certify(&setup.names(), &dir)?;
        for sub in ["data", "plugins"] {
            std::fs::create_dir(dir.join(sub))?;
        }
        write(&dir.join("plugins"), "mod_ipop_rooms.lua", ROOMS_MODULE)?;
        write(&dir, "prosody.cfg.lua", &config(setup, &dir, turn))?;
        write_accounts(setup, &dir)?;
        write_groups(setup, &dir)?;
        write(&dir, "rooms", &rooms(setup))?;
        let process = spawn(ns.name(), setup, &dir)?;
        let prosody = Self { setup: setup.clone(), namespace: ns.name().to_owned(), dir, process };
        prosody.wait_rooms()?;
        Ok(prosody)
    }

    fn wait_rooms(&self) -> Result<()> {
        wait_for("prosody to take the rooms over", Duration::from_secs(10), || {
            let wanted = rooms(&self.setup);
            Ok(std::fs::read_to_string(self.dir.join("rooms.done")).context("rooms.done")? == wanted)
        })
    }
}

impl Server for Prosody {
    fn setup(&self) -> &Setup {
        &self.setup
    }

    fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    fn restart(&mut self) -> Result<()> {
        if self.process.running() {
            self.process.kill()?;
        }
        self.process = spawn(&self.namespace, &self.setup, &self.dir)?;
        Ok(())
    }

    fn add_to_group(&mut self, group: &str, user: &str) -> Result<()> {
        self.setup.note_group_member(group, user, true)?;
        write_groups(&self.setup, &self.dir)
    }

    fn remove_from_group(&mut self, group: &str, user: &str) -> Result<()> {
        self.setup.note_group_member(group, user, false)?;
        write_groups(&self.setup, &self.dir)
    }

    fn set_room_member(&mut self, room: &str, user: &str, member: bool) -> Result<()> {
        self.setup.note_room_member(room, user, member)?;
        write(&self.dir, "rooms.new", &rooms(&self.setup))?;
        // In one step: the module may be reading.
        std::fs::rename(self.dir.join("rooms.new"), self.dir.join("rooms"))?;
        self.wait_rooms()
    }
}

impl Drop for Prosody {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn spawn(namespace: &str, setup: &Setup, dir: &Path) -> Result<Process> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, "prosody", "-F", "--config"]).arg(dir.join("prosody.cfg.lua"));
    let mut process = Process::start(&format!("prosody in {namespace}"), &mut command)?;
    wait_ready(&mut process, namespace, &setup.listens())?;
    Ok(process)
}

fn config(setup: &Setup, dir: &Path, turn: Option<(SocketAddr, &str)>) -> String {
    let (domain, address, dir, port) = (&setup.domain, setup.address, dir.display(), setup.port);
    // Without dialback: a certificate that does not verify is the end.
    let (disabled, federation) = if setup.federated {
        let s2s = format!(
            "s2s_ports = {{ {SERVER_PORT} }}\ns2s_direct_tls_ports = {{}}\ns2s_require_encryption = true\n\
             s2s_secure_auth = true\n"
        );
        (r#""offline", "dialback""#, s2s)
    } else {
        (r#""offline", "s2s""#, String::new())
    };
    let mut services =
        format!("{{ type = \"stun\", transport = \"udp\", host = \"{address}\", port = {STUN_PORT} }};\n");
    if let Some((a, secret)) = turn {
        let _ = writeln!(
            services,
            "{{ type = \"turn\", transport = \"udp\", host = \"{}\", port = {}, secret = \"{secret}\" }};",
            a.ip(),
            a.port()
        );
    }
    format!(
        r#"
run_as_root = true
pidfile = "{dir}/pid"
data_path = "{dir}/data"
plugin_paths = {{ "{dir}/plugins" }}
log = {{ {{ levels = {{ min = "info" }}, to = "console" }} }}
-- Without it, every answer waits 40 ms for more.
network_settings = {{ nagle = false }}
interfaces = {{ "{address}" }}
c2s_ports = {{ {port} }}
c2s_direct_tls_ports = {{ {DIRECT_TLS_PORT} }}
c2s_require_encryption = true
certificates = "{dir}"
ssl = {{ certificate = "{dir}/cert.pem", key = "{dir}/key.pem", cafile = "{dir}/ca.pem" }}
authentication = "internal_plain"
modules_enabled = {{ "roster", "saslauth", "tls", "disco", "pep", "ping", "groups", "blocklist", "external_services" }}
modules_disabled = {{ {disabled} }}
{federation}groups_file = "{dir}/groups"
external_services = {{
{services}}}
VirtualHost "{domain}"
Component "conference.{domain}" "muc"
    modules_enabled = {{ "ipop_rooms" }}
    ipop_rooms_file = "{dir}/rooms"
    restrict_room_creation = true
"#
    )
}

/// The account files as mod_auth_internal_plain reads them.
fn write_accounts(setup: &Setup, dir: &Path) -> Result<()> {
    let accounts = dir.join("data").join(encode(&setup.domain)).join("accounts");
    std::fs::create_dir_all(&accounts)?;
    for (user, password) in &setup.users {
        let text = format!("return {{ [\"password\"] = \"{}\"; }};\n", password.escape_default());
        write(&accounts, &format!("{}.dat", encode(user)), &text)?;
    }
    Ok(())
}

/// As prosody encodes names of files: everything but letters and digits.
fn encode(name: &str) -> String {
    name.bytes().fold(String::new(), |mut s, b| {
        if b.is_ascii_alphanumeric() {
            s.push(b.into());
        } else {
            let _ = write!(s, "%{b:02x}");
        }
        s
    })
}

fn write_groups(setup: &Setup, dir: &Path) -> Result<()> {
    let mut text = String::new();
    for (name, members) in &setup.groups {
        let _ = writeln!(text, "[{name}]");
        for m in members {
            let _ = writeln!(text, "{m}@{}", setup.domain);
        }
    }
    write(dir, "groups", &text)
}

fn rooms(setup: &Setup) -> String {
    let mut text = String::new();
    for (name, members) in &setup.rooms {
        let _ = writeln!(text, "{name}@conference.{0} admin@{0} owner", setup.domain);
        for m in members {
            let _ = writeln!(text, "{name}@conference.{0} {m}@{0} member", setup.domain);
        }
    }
    text
}
