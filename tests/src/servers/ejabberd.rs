//! An ejabberd in the foreground, with its own STUN and TURN: the whole "private server" in one program.
//!
//! It runs without Erlang distribution: no node name, no cookie, no `epmd`. Commands go over its HTTP API on a Unix
//! socket in its directory, which only we can enter.

use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Ca, DIRECT_TLS_PORT, READY_LIMIT, SERVER_PORT, STUN_PORT, Server, Setup, ca, wait_ready, write};
use crate::ns::Namespace;
use crate::process::{Process, wait_for};

const API_LIMIT: Duration = Duration::from_secs(20);

/// A running ejabberd. Ended, and its data removed, when dropped.
#[derive(Debug)]
pub struct Ejabberd {
    setup: Setup,
    namespace: String,
    dir: PathBuf,
    process: Process,
}

impl Ejabberd {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up; the message has its log.
    pub fn start(ns: &Namespace, ca: &Ca, setup: &Setup) -> Result<Self> {
        let dir = ca::scratch("ejabberd")?;
        ca.certify(&setup.names(), &dir)?;
        // One file: ejabberd pairs keys and certificates by itself.
        let both = [std::fs::read(dir.join("key.pem"))?, std::fs::read(dir.join("cert.pem"))?].concat();
        std::fs::write(dir.join("both.pem"), both)?;
        write(&dir, "ejabberd.yml", &config(setup, &dir))?;
        write(&dir, "inetrc", "{lookup,[file,native]}.\n")?;
        let process = spawn(ns.name(), setup, &dir)?;
        let server = Self { setup: setup.clone(), namespace: ns.name().to_owned(), dir, process };
        server.populate()?;
        Ok(server)
    }

    /// Calls a command of its administration API (`ejabberdctl help` lists them).
    ///
    /// # Errors
    /// When it does not answer in time or says no.
    pub fn command(&self, name: &str, arguments: &Value) -> Result<Value> {
        let body = arguments.to_string();
        let mut socket = UnixStream::connect(api(&self.dir)).context("the API of ejabberd")?;
        socket.set_read_timeout(Some(API_LIMIT))?;
        socket.set_write_timeout(Some(API_LIMIT))?;
        write!(
            socket,
            "POST /api/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).with_context(|| format!("answer to {name}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        ensure!(head.contains(" 200 "), "{name} {arguments}: {}: {body}", head.lines().next().unwrap_or_default());
        serde_json::from_str(body).with_context(|| format!("{name} answered {body:?}"))
    }

    /// Makes everything as the setup says it. Also after a restart: what was told within the last two seconds before
    /// a kill is lost, Mnesia writes its log that late.
    fn populate(&self) -> Result<()> {
        let host = self.setup.domain.as_str();
        for (user, password) in &self.setup.users {
            self.ensure("register", &json!({"user": user, "host": host, "password": password}))?;
        }
        for (group, members) in &self.setup.groups {
            let create = json!({"group": group, "host": host, "label": group, "description": group, "display": group});
            self.ensure("srg_create", &create)?;
            let there = self.command("srg_get_members", &json!({"group": group, "host": host}))?;
            let there: Vec<String> = serde_json::from_value(there)?;
            for gone in there.iter().filter_map(|j| j.split('@').next()).filter(|u| !members.iter().any(|m| m == u)) {
                self.group_member("srg_user_del", group, gone)?;
            }
            for new in members.iter().filter(|m| !there.contains(&self.jid(m))) {
                self.group_member("srg_user_add", group, new)?;
            }
        }
        for (room, members) in &self.setup.rooms {
            self.populate_room(room, members)?;
        }
        Ok(())
    }

    fn populate_room(&self, room: &str, members: &[String]) -> Result<()> {
        let options = [
            ("members_only", "true"),
            ("persistent", "true"),
            ("public", "false"),
            ("anonymous", "false"),
            ("max_users", "1000"),
            ("allow_subscription", "false"),
        ];
        let options: Vec<Value> = options.iter().map(|(n, v)| json!({"name": n, "value": v})).collect();
        let service = format!("conference.{}", self.setup.domain);
        let create = json!({"name": room, "service": service, "host": self.setup.domain, "options": options});
        self.ensure("create_room_with_opts", &create)?;
        let there = self.command("get_room_affiliations", &json!({"name": room, "service": service}))?;
        for entry in there.as_array().context("no list of affiliations")? {
            let user = entry["username"].as_str().unwrap_or_default();
            if entry["affiliation"] == "member" && !members.iter().any(|m| m == user) {
                self.affiliate(room, user, "none")?;
            }
        }
        members.iter().try_for_each(|m| self.affiliate(room, m, "member"))
    }

    /// A command whose result may be there already.
    fn ensure(&self, name: &str, arguments: &Value) -> Result<()> {
        match self.command(name, arguments) {
            Err(e) if !format!("{e:#}").contains("already") => Err(e),
            _ => Ok(()),
        }
    }

    fn group_member(&self, command: &str, group: &str, user: &str) -> Result<()> {
        let host = &self.setup.domain;
        self.command(command, &json!({"user": user, "host": host, "group": group, "grouphost": host})).map(drop)
    }

    fn affiliate(&self, room: &str, user: &str, affiliation: &str) -> Result<()> {
        let service = format!("conference.{}", self.setup.domain);
        let jid = self.jid(user);
        let set = json!({"name": room, "service": service, "jid": jid, "affiliation": affiliation});
        self.command("set_room_affiliation", &set).map(drop)
    }
}

impl Server for Ejabberd {
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
        self.populate()
    }

    fn add_to_group(&mut self, group: &str, user: &str) -> Result<()> {
        self.setup.note_group_member(group, user, true)?;
        self.group_member("srg_user_add", group, user)
    }

    fn remove_from_group(&mut self, group: &str, user: &str) -> Result<()> {
        self.setup.note_group_member(group, user, false)?;
        self.group_member("srg_user_del", group, user)
    }

    fn set_room_member(&mut self, room: &str, user: &str, member: bool) -> Result<()> {
        self.setup.note_room_member(room, user, member)?;
        self.affiliate(room, user, if member { "member" } else { "none" })
    }
}

impl Drop for Ejabberd {
    fn drop(&mut self) {
        // No orderly end: its data goes too, and a VM takes seconds to say goodbye.
        let _ = self.process.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn api(dir: &Path) -> PathBuf {
    dir.join("api")
}

fn spawn(namespace: &str, setup: &Setup, dir: &Path) -> Result<Process> {
    // What a killed one left behind would let itself be connected to, or not be bound again.
    let _ = std::fs::remove_file(api(dir));
    let libraries = libraries()?;
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", namespace, "erl", "-noinput", "+K", "true", "-env", "ERL_CRASH_DUMP_BYTES", "0"])
        .args(["-mnesia", "dir", &format!("\"{}\"", dir.join("data").display()), "-s", "ejabberd"])
        .env("ERL_LIBS", libraries)
        .env("ERL_INETRC", dir.join("inetrc"))
        .env("EJABBERD_CONFIG_PATH", dir.join("ejabberd.yml"))
        .env("EJABBERD_LOG_PATH", dir.join("ejabberd.log"))
        .env("HOME", dir);
    let mut process = Process::start(&format!("ejabberd in {namespace}"), &mut command)?;
    wait_ready(&mut process, namespace, &setup.listens())
        .with_context(|| crate::process::tail_of(&dir.join("ejabberd.log"), 25))?;
    wait_for("the API of ejabberd", READY_LIMIT, || {
        UnixStream::connect(api(dir)).context("connecting")?;
        Ok(true)
    })?;
    Ok(process)
}

/// Where Debian keeps ejabberd's own code: `/usr/lib/ARCHITECTURE/ejabberd-VERSION`.
fn libraries() -> Result<PathBuf> {
    for entry in std::fs::read_dir("/usr/lib")?.flatten() {
        let Ok(inside) = std::fs::read_dir(entry.path()) else { continue };
        if inside.flatten().any(|e| e.file_name().to_string_lossy().starts_with("ejabberd-")) {
            return Ok(entry.path());
        }
    }
    bail!("no ejabberd below /usr/lib: install the package ejabberd")
}

fn config(setup: &Setup, dir: &Path) -> String {
    let (domain, address, dir, port) = (&setup.domain, setup.address, dir.display(), setup.port);
    // Without mod_s2s_dialback: a certificate that does not verify is the end.
    let (tls, listener) = if setup.federated {
        let listener = format!(
            "  - port: {SERVER_PORT}\n    ip: \"{address}\"\n    module: ejabberd_s2s_in\n    max_stanza_size: 262144\n    \
             shaper: none\n"
        );
        // It calls a server that was away again after a random time of up to five minutes, and refuses all that is for it.
        let retry = "s2s_max_retry_delay: 2s\n";
        (format!("s2s_use_starttls: required\ns2s_cafile: \"{dir}/ca.pem\"\n{retry}"), listener)
    } else {
        (String::new(), String::new())
    };
    // TURN gives its clients addresses of one family here.
    let turn = match address {
        IpAddr::V4(a) => {
            format!("    use_turn: true\n    turn_max_permissions: infinity\n    turn_ipv4_address: \"{a}\"\n")
        }
        IpAddr::V6(a) => {
            format!("    use_turn: true\n    turn_max_permissions: infinity\n    turn_ipv6_address: \"{a}\"\n")
        }
    };
    format!(
        r#"
loglevel: info
log_rotate_count: 0
hosts: ["{domain}"]
certfiles: ["{dir}/both.pem"]
ca_file: "{dir}/cert.pem"
auth_password_format: plain
{tls}listen:
{listener}  - port: {port}
    ip: "{address}"
    module: ejabberd_c2s
    max_stanza_size: 262144
    shaper: none
    access: all
    starttls_required: true
  - port: {DIRECT_TLS_PORT}
    ip: "{address}"
    module: ejabberd_c2s
    max_stanza_size: 262144
    shaper: none
    access: all
    tls: true
  - port: "unix:{dir}/api"
    module: ejabberd_http
    request_handlers:
      /api: mod_http_api
  - port: {STUN_PORT}
    ip: "{address}"
    transport: udp
    module: ejabberd_stun
{turn}acl:
  local:
    user_regexp: ""
access_rules:
  # mod_stun_disco asks for this one; without it, nobody gets credentials.
  local:
    allow: local
api_permissions:
  "all":
    from: [mod_http_api, ejabberd_ctl]
    who: all
    what: "*"
shaper_rules:
  # Ten by default, which ends the oldest session of an account with eleven devices.
  max_user_sessions: 1000
modules:
  mod_admin_extra: {{}}
  mod_blocking: {{}}
  mod_caps: {{}}
  mod_disco: {{}}
  mod_http_api: {{}}
  mod_muc:
    host: "conference.{domain}"
    access_create: none
    max_users: 1000
  mod_muc_admin: {{}}
  mod_ping: {{}}
  mod_privacy: {{}}
  mod_pubsub:
    plugins: [flat, pep]
    last_item_cache: false
    max_items_node: 100
  mod_roster:
    versioning: true
  mod_shared_roster: {{}}
  mod_stream_mgmt: {{}}
  mod_stun_disco:
    credentials_lifetime: 12h
"#
    )
}
