//! The WireGuard daemons that tests bring up: the program under test and its peers in the field.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::ns::{Namespace, unique_interface};
use crate::process::{Process, output, run, wait_for};
use crate::require::find_program;

/// Time for a daemon to have its interface and socket.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Which I/O back end of `ipop-fast` is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// Its own choice.
    Auto,
    /// io_uring.
    Uring,
    /// epoll with `recvmmsg` and `sendmmsg`.
    Mmsg,
}

impl Io {
    /// The value of `--io`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Mmsg => "mmsg",
        }
    }
}

/// A user-space WireGuard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// The program under test: `$IPOP_FAST`, or this workspace's release build.
    IpopFast {
        /// `--io`.
        io: Io,
        /// More options.
        args: Vec<String>,
    },
    /// `$WIREGUARD_GO`, or from `PATH`.
    WireguardGo,
    /// `$BORINGTUN`, or from `PATH`, or from this workspace's `target/tools`.
    Boringtun,
}

impl Implementation {
    /// The program under test with its own choice of back end.
    #[must_use]
    pub const fn under_test() -> Self {
        Self::with_io(Io::Auto)
    }

    /// The program under test with a given back end.
    #[must_use]
    pub const fn with_io(io: Io) -> Self {
        Self::IpopFast { io, args: Vec::new() }
    }

    /// A name for people.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::IpopFast { io: Io::Mmsg, .. } => "ipop-fast mmsg",
            Self::IpopFast { io: Io::Uring, .. } => "ipop-fast uring",
            Self::IpopFast { .. } => "ipop-fast",
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun",
        }
    }

    /// Where its binary is.
    ///
    /// # Errors
    /// When there is none, saying how to get it.
    pub fn binary(&self) -> Result<PathBuf> {
        let (variable, name, built, hint) = match self {
            Self::IpopFast { .. } => {
                ("IPOP_FAST", "ipop-fast", "release/ipop-fast", "cargo build --release -p ipop-control")
            }
            Self::WireguardGo => ("WIREGUARD_GO", "wireguard-go", "tools/bin/wireguard-go", "the package wireguard-go"),
            Self::Boringtun => {
                let hint = "cargo install boringtun-cli --version 0.7.1 --locked --root target/tools";
                ("BORINGTUN", "boringtun-cli", "tools/bin/boringtun-cli", hint)
            }
        };
        if let Some(path) = std::env::var_os(variable) {
            return find_program(&path.to_string_lossy())
                .with_context(|| format!("no program {} ({variable})", path.display()));
        }
        let built = target_dir().join(built);
        if built.is_file() {
            return Ok(built);
        }
        find_program(name).with_context(|| format!("no {name}: {hint}, or name one in {variable}"))
    }

    /// Its command line for `interface`: in the foreground if `foreground`, else to the background as `wg-quick` wants.
    ///
    /// # Errors
    /// When there is no binary.
    pub fn command_line(&self, interface: &str, foreground: bool) -> Result<Vec<String>> {
        let binary = self.binary()?;
        let mut line = vec![binary.to_string_lossy().into_owned()];
        if foreground {
            line.push("-f".into());
        }
        if let Self::IpopFast { io, args } = self
            && is_ipop_fast(&binary)
        {
            if *io != Io::Auto {
                line.extend(["--io".into(), io.name().into()]);
            }
            line.extend(args.iter().cloned());
        }
        line.push(interface.to_owned());
        Ok(line)
    }

    /// Whether it is there and can do here what it will be told.
    ///
    /// # Errors
    /// Why not.
    pub fn runs_here(&self) -> Result<()> {
        let binary = self.binary()?;
        if !matches!(self, Self::IpopFast { io: Io::Uring, .. }) || !is_ipop_fast(&binary) {
            return Ok(());
        }
        // It takes a newer kernel than all the rest.
        let report = output(Command::new(binary).args(["doctor", "--json"]))?;
        let report: Value = serde_json::from_slice(&report.stdout).context("what doctor says")?;
        let items = report["items"].as_array().context("doctor has no items")?;
        let io_uring = items.iter().find(|i| i["name"] == "io_uring").context("doctor says nothing of io_uring")?;
        ensure!(io_uring["state"] == "yes", "io_uring: {}", io_uring["detail"].as_str().unwrap_or_default());
        Ok(())
    }

    /// Its version as it says it.
    ///
    /// # Errors
    /// When it cannot run.
    pub fn version(&self) -> Result<String> {
        Ok(run(Command::new(self.binary()?).arg("--version"))?.lines().next().unwrap_or_default().to_owned())
    }
}

/// Whether a binary is the real thing: other names stand in for it, to prove the tests themselves.
#[must_use]
pub fn is_ipop_fast(binary: &Path) -> bool {
    binary.file_name().is_some_and(|n| n == "ipop-fast")
}

/// The workspace's target directory.
#[must_use]
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from)
}

/// Environment for a daemon. Two are for boringtun: `WG_SUDO` keeps it from giving up root, which it cannot undo in a
/// namespace, and with one thread an end it is fastest where both ends share two cores.
#[must_use]
pub fn environment(level: &str) -> [(&'static str, String); 3] {
    [("LOG_LEVEL", level.to_owned()), ("WG_SUDO", "true".to_owned()), ("WG_THREADS", "1".to_owned())]
}

/// Where the UAPI socket of an interface is.
#[must_use]
pub fn uapi_socket(interface: &str) -> PathBuf {
    PathBuf::from(format!("/var/run/wireguard/{interface}.sock"))
}

/// A daemon in the foreground with its interface. Ended, and its leftovers removed, when dropped.
#[derive(Debug)]
pub struct Daemon {
    implementation: Implementation,
    interface: String,
    namespace: String,
    level: &'static str,
    process: Process,
}

impl Daemon {
    /// Starts one in a namespace, on an interface name of its own, and waits for interface and UAPI socket.
    ///
    /// # Errors
    /// When it does not come up; the message has its log.
    pub fn start(ns: &Namespace, implementation: &Implementation) -> Result<Self> {
        Self::start_logging(ns, implementation, "verbose")
    }

    /// [`Self::start`] with a log level: `verbose`, `error` or `silent`.
    ///
    /// # Errors
    /// When it does not come up; the message has its log.
    pub fn start_logging(ns: &Namespace, implementation: &Implementation, level: &'static str) -> Result<Self> {
        let interface = unique_interface();
        let process = spawn(ns.name(), implementation, &interface, level)?;
        Ok(Self { implementation: implementation.clone(), namespace: ns.name().into(), interface, level, process })
    }

    /// Its interface.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Kills it without warning and starts it anew on the same interface name, unconfigured.
    ///
    /// # Errors
    /// When it does not come up again.
    pub fn crash_and_restart(&mut self) -> Result<()> {
        self.process.kill()?;
        wait_for("the dead daemon's interface to go", START_LIMIT, || Ok(!self.link_exists()))?;
        self.process = spawn(&self.namespace, &self.implementation, &self.interface, self.level)?;
        Ok(())
    }

    /// Its counters, if it is the real `ipop-fast`.
    ///
    /// # Errors
    /// When the command fails or prints no JSON.
    pub fn stats(&self) -> Result<Option<Value>> {
        let binary = self.implementation.binary()?;
        if !matches!(self.implementation, Implementation::IpopFast { .. }) || !is_ipop_fast(&binary) {
            return Ok(None);
        }
        let text = run(Command::new(binary).args(["stats", &self.interface, "--json"]))?;
        Ok(Some(serde_json::from_str(&text).with_context(|| format!("stats printed {text:?}"))?))
    }

    fn link_exists(&self) -> bool {
        run(Command::new("ip").args(["-n", &self.namespace, "link", "show", "dev", &self.interface])).is_ok()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.process.running() {
            let _ = self.process.signal(nix::sys::signal::Signal::SIGTERM);
            if self.process.wait(Duration::from_secs(3)).is_err() {
                let _ = self.process.kill();
            }
        }
        let _ = std::fs::remove_file(uapi_socket(&self.interface));
    }
}

fn spawn(namespace: &str, implementation: &Implementation, interface: &str, level: &str) -> Result<Process> {
    let line = implementation.command_line(interface, true)?;
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).args(&line).envs(environment(level));
    let mut process = Process::start(&format!("{} in {namespace}", implementation.name()), &mut command)?;
    // Asking it, not just looking for the file: a crash leaves a dead socket behind.
    wait_for("interface and UAPI socket", START_LIMIT, || {
        if !process.running() {
            return Ok(true);
        }
        run(Command::new("ip").args(["-n", namespace, "link", "show", "dev", interface]))?;
        crate::wg::Dump::read(interface).map(|_| true)
    })
    .with_context(|| format!("{line:?} logged:\n{}", process.tail()))?;
    if !process.running() {
        bail!("{line:?} ended at once and logged:\n{}", process.tail());
    }
    Ok(process)
}
