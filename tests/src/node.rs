//! A node: a real `ipop-fast up` in a namespace.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use control::admin::status::{NetworkStatus, PeerStatus, Status};
use nix::sys::signal::Signal;

use crate::daemon::Implementation;
use crate::ns::Namespace;
use crate::process::{Process, output, run, state_file, wait_for};
use crate::servers::Server;

/// The interface of every node; each has a namespace of its own.
pub const INTERFACE: &str = "ipop0";
/// From the start of the program to its control socket.
pub const READY: Duration = Duration::from_secs(15);
/// A node that is told to end says goodbye to server and peers.
const GOODBYE: Duration = Duration::from_secs(10);

/// Where a network's members come from.
#[derive(Clone, Debug)]
pub enum Members {
    /// A shared roster group.
    Group(String),
    /// A room's JID.
    Room(String),
    /// The account's friends, in a subnet of its own.
    Friends(String),
}

/// What is written into a node's `node.toml`.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name.
    pub name: String,
    /// Account: local part.
    pub user: String,
    /// Account: password.
    pub password: String,
    /// Its network.
    pub members: Members,
    /// `address = "A/24"`; `None`: any of [`SUBNET`].
    pub address: Option<IpAddr>,
    /// `links = "proactive"`.
    pub proactive: bool,
    /// Group secret.
    pub secret: Option<String>,
    /// Lines for `[node]`.
    pub node_lines: String,
    /// Lines for `[[network]]`.
    pub network_lines: String,
    /// Everything behind `[ice]`; empty: what the XMPP server offers.
    pub ice_lines: String,
    /// Lines for `[xmpp]` in the place of `server` and `ca_file`, which otherwise are those of the harness.
    pub xmpp_lines: Option<String>,
    /// Environment variables beside those of the harness.
    pub environment: Vec<(String, String)>,
    /// `LOG_LEVEL`.
    pub level: String,
    /// What its command line begins with.
    pub wrapper: Vec<String>,
}

/// The overlay of all tests.
pub const SUBNET: &str = "172.16.10.0/24";

impl Options {
    /// A node named like its account, with an on-demand link to whoever it has a packet for.
    #[must_use]
    pub fn new(user: &str, password: &str, members: Members) -> Self {
        Self {
            name: user.into(),
            user: user.into(),
            password: password.into(),
            members,
            address: None,
            proactive: false,
            secret: None,
            node_lines: String::new(),
            network_lines: String::new(),
            ice_lines: String::new(),
            xmpp_lines: None,
            environment: Vec::new(),
            level: "debug".into(),
            wrapper: Vec::new(),
        }
    }

    /// With the address 172.16.10.`last`.
    #[must_use]
    pub const fn at(mut self, last: u8) -> Self {
        self.address = Some(IpAddr::V4(std::net::Ipv4Addr::new(172, 16, 10, last)));
        self
    }

    /// With this cipher.
    #[must_use]
    pub fn with_cipher(mut self, cipher: &str) -> Self {
        self.node_lines = format!("cipher = \"{cipher}\"\n");
        self
    }

    /// With links made as soon as a peer is there.
    #[must_use]
    pub const fn proactive(mut self) -> Self {
        self.proactive = true;
        self
    }

    fn toml(&self, jid: &str, server: &str, ca: &Path, dir: &Path) -> String {
        let mut t = format!("[node]\nname = \"{}\"\nstate_dir = \"state\"\ncontrol_socket = \"control\"\n", self.name);
        t.push_str(&self.node_lines);
        let _ = write!(t, "[xmpp]\njid = \"{jid}\"\npassword_file = \"password\"\n");
        let _ = match &self.xmpp_lines {
            Some(lines) => write!(t, "{lines}"),
            None => write!(t, "server = \"{server}\"\nca_file = \"{}\"\n", ca.display()),
        };
        let _ = write!(t, "[[network]]\ninterface = \"{INTERFACE}\"\n");
        let _ = match &self.members {
            Members::Group(g) => writeln!(t, "kind = \"group\"\ngroup = \"{g}\""),
            Members::Room(r) => writeln!(t, "kind = \"group\"\nmuc = \"{r}\""),
            Members::Friends(subnet) => writeln!(t, "kind = \"social\"\nsubnet = \"{subnet}\""),
        };
        let _ = match (self.address, &self.members) {
            (Some(a), Members::Friends(_)) => writeln!(t, "address = \"{a}\""),
            (Some(a), _) => writeln!(t, "address = \"{a}/24\""),
            (None, Members::Friends(_)) => Ok(()),
            (None, _) => writeln!(t, "subnet = \"{SUBNET}\""),
        };
        let _ = writeln!(t, "links = \"{}\"", if self.proactive { "proactive" } else { "on-demand" });
        if self.secret.is_some() {
            let _ = writeln!(t, "secret_file = \"{}\"", dir.join("secret").display());
        }
        t.push_str(&self.network_lines);
        if !self.ice_lines.is_empty() {
            let _ = write!(t, "\n[ice]\n{}", self.ice_lines);
        }
        t
    }
}

/// A node. Ended, and its files removed, when dropped.
#[derive(Debug)]
pub struct Node {
    /// What it was told.
    pub options: Options,
    /// Bare JID.
    pub jid: String,
    namespace: String,
    dir: PathBuf,
    notify: UnixDatagram,
    notes: Vec<String>,
    started: Instant,
    process: Process,
}

impl Node {
    /// Starts one and waits until it answers `status`.
    ///
    /// # Errors
    /// When it does not come up; the message has its log.
    pub fn start(ns: &Namespace, server: &dyn Server, ca: &Path, options: Options) -> Result<Self> {
        let mut node = Self::spawn(ns, server, ca, options)?;
        node.wait_ready(READY)?;
        Ok(node)
    }

    /// Starts one and does not wait.
    ///
    /// # Errors
    /// When its files cannot be written or the program is not there.
    pub fn spawn(ns: &Namespace, server: &dyn Server, ca: &Path, options: Options) -> Result<Self> {
        let dir = state_file(&options.name)?;
        std::fs::DirBuilder::new().mode(0o700).create(&dir).with_context(|| format!("making {}", dir.display()))?;
        let jid = server.jid(&options.user);
        let secret = |name: &str, text: &str| -> Result<()> {
            let mut o = std::fs::OpenOptions::new();
            let mut file = o.write(true).create_new(true).mode(0o600).open(dir.join(name))?;
            Ok(std::io::Write::write_all(&mut file, text.as_bytes())?)
        };
        secret("password", &format!("{}\n", options.password))?;
        if let Some(s) = &options.secret {
            secret("secret", s)?;
        }
        let toml = options.toml(&jid, &server.address().to_string(), ca, &dir);
        std::fs::write(dir.join("node.toml"), toml)?;
        let notify = UnixDatagram::bind(dir.join("notify")).context("the socket for sd_notify")?;
        notify.set_nonblocking(true)?;
        let process = launch(ns.name(), &options, &dir)?;
        let namespace = ns.name().to_owned();
        Ok(Self { options, jid, namespace, dir, notify, notes: Vec::new(), started: Instant::now(), process })
    }

    /// Waits for `READY=1` (sd_notify(3)), or for an answer to `status`.
    ///
    /// # Errors
    /// After `limit`, or when the program has ended; the message has its log.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let mut asked = Instant::now();
        loop {
            if !self.process.running() {
                bail!("{} has ended:\n{}", self.options.name, self.process.tail());
            }
            if self.notes().iter().any(|n| n == "READY=1") {
                return Ok(());
            }
            if asked.elapsed() > Duration::from_millis(500) {
                asked = Instant::now();
                if self.status().is_ok() {
                    return Ok(());
                }
            }
            if self.started.elapsed() > limit {
                bail!("{} is not ready after {limit:?}:\n{}", self.options.name, self.process.tail());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it has told systemd since its start (sd_notify(3)), a line each.
    pub fn notes(&mut self) -> &[String] {
        let mut note = [0; 1024];
        while let Ok(n) = self.notify.recv(&mut note) {
            self.notes.extend(String::from_utf8_lossy(&note[..n]).lines().map(str::to_owned));
        }
        &self.notes
    }

    /// The program's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// When it was started last.
    #[must_use]
    pub const fn started(&self) -> Instant {
        self.started
    }

    /// Where its configuration, state and control socket are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The command that shows its state to a person.
    ///
    /// # Errors
    /// When the program is not there.
    pub fn status_command(&self) -> Result<Command> {
        self.ask(&["status"])
    }

    /// A command to the running program: its words, such as `friends` and `list`.
    ///
    /// # Errors
    /// When the program is not there.
    pub fn ask(&self, words: &[&str]) -> Result<Command> {
        let mut c = Command::new(Implementation::under_test().binary()?);
        c.args(words).arg("--socket").arg(self.dir.join("control"));
        Ok(c)
    }

    /// What `status --json` says.
    ///
    /// # Errors
    /// When it does not answer, or not in the agreed form.
    pub fn status(&self) -> Result<Status> {
        let text = run(self.status_command()?.arg("--json"))?;
        serde_json::from_str(&text).with_context(|| format!("status printed {text:.500}"))
    }

    /// Its only network.
    ///
    /// # Errors
    /// When `status` fails or there is none.
    pub fn network(&self) -> Result<NetworkStatus> {
        self.status()?.networks.into_iter().next().context("status has no network")
    }

    /// What it says about another node.
    ///
    /// # Errors
    /// When it does not know that node.
    pub fn peer(&self, other: &Self) -> Result<PeerStatus> {
        let network = self.network()?;
        let known: Vec<String> = network.peers.iter().map(|p| p.name.clone()).collect();
        let found = network.peers.into_iter().find(|p| p.name == other.options.name);
        found.with_context(|| format!("{} knows {known:?}, not {}", self.options.name, other.options.name))
    }

    /// Its overlay address, IPv4.
    ///
    /// # Errors
    /// When it has none yet.
    pub fn address(&self) -> Result<IpAddr> {
        if let Some(a) = self.options.address {
            return Ok(a);
        }
        let network = self.network()?;
        let addresses = network.addresses.iter().filter_map(|a| a.split('/').next()?.parse::<IpAddr>().ok());
        addresses.into_iter().find(IpAddr::is_ipv4).with_context(|| format!("{} has no address", self.options.name))
    }

    /// Kills it without warning.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Tells it to leave, and waits until it has.
    ///
    /// # Errors
    /// When it does not end in time, or with an error.
    pub fn leave(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        let status = self.process.wait(GOODBYE)?;
        ensure!(status.success(), "{} ended with {status}:\n{}", self.options.name, self.process.tail());
        Ok(())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Waits until it has ended by itself; how, and its log.
    ///
    /// # Errors
    /// When it has not.
    pub fn ended(&mut self, limit: Duration) -> Result<(ExitStatus, String)> {
        let status = self.process.wait(limit)?;
        Ok((status, self.process.log()))
    }

    /// Starts it again, after [`Self::kill`] or [`Self::leave`], with the state that it left.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_again(&mut self) -> Result<()> {
        // What the one before said of itself does not count.
        self.notes();
        self.notes.clear();
        self.started = Instant::now();
        self.process = launch(&self.namespace, &self.options, &self.dir)?;
        self.wait_ready(READY)
    }

    /// Fails if it has ended or its log has a panic.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn alive(&mut self) -> Result<()> {
        ensure!(self.process.running(), "{} has ended:\n{}", self.options.name, self.process.tail());
        ensure!(!self.process.log().contains("panicked"), "{} panicked:\n{}", self.options.name, self.process.tail());
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.signal(Signal::SIGTERM);
        if self.process.wait(Duration::from_secs(3)).is_err() {
            let _ = self.process.kill();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn launch(namespace: &str, options: &Options, dir: &Path) -> Result<Process> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).args(&options.wrapper).arg(Implementation::under_test().binary()?);
    command.args(["up", "-c"]).arg(dir.join("node.toml")).current_dir(dir);
    command.env("LOG_LEVEL", &options.level).env("NOTIFY_SOCKET", dir.join("notify"));
    command.envs(options.environment.iter().cloned());
    Process::start(&format!("node {}", options.name), &mut command)
}

/// Pings `to` 20 times a second until the first answer; gives the time that it took.
///
/// # Errors
/// When there is none within `limit`.
pub fn first_ping(from: &Namespace, to: IpAddr, limit: Duration) -> Result<Duration> {
    let start = Instant::now();
    // With no route yet, ping gives up at once; with one, it goes on until it is answered.
    wait_for(&format!("an answer from {to} to {}", from.name()), limit, || {
        let left = limit.saturating_sub(start.elapsed()).as_secs_f64().max(0.2);
        let mut ping = from.command("ping");
        ping.args(["-n", "-q", "-c1", "-i0.05", &format!("-w{left:.0}", left = left.ceil()), &to.to_string()]);
        Ok(output(&mut ping)?.status.success())
    })?;
    Ok(start.elapsed())
}

/// Whether the `ipop-fast` under test knows the subcommand `up`.
#[must_use]
pub fn has_up() -> bool {
    let help = |b: PathBuf| output(Command::new(b).args(["up", "--help"])).is_ok_and(|o| o.status.success());
    Implementation::under_test().binary().is_ok_and(help)
}
