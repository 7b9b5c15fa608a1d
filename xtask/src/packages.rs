//! What the machine needs beside Rust, installed only where it is missing.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use ipop_tests::daemon::{Implementation, target_dir};
use ipop_tests::process::run;
use ipop_tests::require::{Need, find_program};

use crate::steps::Steps;

/// Debian packages and the program by which each is recognised.
const PACKAGES: &[(&str, &str)] = &[
    ("gcc", "cc"),
    ("iproute2", "ip"),
    ("iputils-ping", "ping"),
    ("procps", "sysctl"),
    ("nftables", "nft"),
    ("conntrack", "conntrack"),
    ("coturn", "turnserver"),
    // The program alone, without a service.
    ("dnsmasq-base", "dnsmasq"),
    ("curl", "curl"),
    // What a user may run over the overlay.
    ("traceroute", "traceroute"),
    ("openssh-client", "ssh-keygen"),
    ("openssh-server", "sshd"),
    ("avahi-daemon", "avahi-daemon"),
    ("avahi-utils", "avahi-browse"),
    ("ethtool", "ethtool"),
    ("iperf3", "iperf3"),
    ("wireguard-tools", "wg-quick"),
    ("wireguard-go", "wireguard-go"),
    ("openssl", "openssl"),
    ("prosody", "prosody"),
    ("ejabberd", "ejabberdctl"),
    ("bind9-dnsutils", "dig"),
    ("dbus-daemon", "dbus-daemon"),
    ("openmpi-bin", "mpirun"),
    ("libopenmpi-dev", "mpicc"),
];
const BORINGTUN_VERSION: &str = "0.7.1";

/// Packages whose program is not there.
fn missing() -> Vec<&'static str> {
    PACKAGES.iter().filter(|(_, program)| find_program(program).is_none()).map(|(package, _)| *package).collect()
}

/// Installs what is missing, if we may.
pub(crate) fn install(steps: &mut Steps) -> Result<()> {
    let wanted = missing();
    if wanted.is_empty() {
        return Ok(());
    }
    if Need::Root.missing().is_some() || find_program("apt-get").is_none() {
        steps.left_out(format!("packages {}: not root, or no apt-get; install them by hand", wanted.join(" ")));
        return Ok(());
    }
    apt(steps, &wanted)?;
    let still = missing();
    ensure!(still.is_empty(), "installed, but still not on PATH: {still:?}");
    Ok(())
}

/// Installs packages.
pub(crate) fn apt(steps: &mut Steps, wanted: &[&str]) -> Result<()> {
    let _quiet = NoServices::hold();
    let mut update = Command::new("apt-get");
    steps.run("apt-get update", update.args(["-qq", "update"]))?;
    let mut install = Command::new("apt-get");
    install.args(["-qq", "install", "-y", "--no-install-recommends"]).args(wanted);
    steps.run(&format!("apt-get install {}", wanted.join(" ")), install.env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Where Debian's maintainer scripts ask whether they may start a service (invoke-rc.d(8), deb-systemd-invoke(1p)).
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Keeps packages that are being installed from starting their services: the tests start their own, in namespaces.
/// (A machine that has a policy already keeps that.)
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn hold() -> Self {
        let write = || -> std::io::Result<()> {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o755).open(POLICY)?;
            // 101: forbidden by policy.
            file.write_all(b"#!/bin/sh\nexit 101\n")
        };
        Self { ours: write().is_ok() }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = std::fs::remove_file(POLICY);
        }
    }
}

/// Builds boringtun into `target/tools` unless one is there.
pub(crate) fn boringtun(steps: &mut Steps) -> Result<()> {
    if Implementation::Boringtun.version().is_ok_and(|v| v.contains(BORINGTUN_VERSION)) {
        return Ok(());
    }
    let root = tools();
    let mut cargo = cargo();
    cargo.args(["install", "boringtun-cli", "--version", BORINGTUN_VERSION, "--locked", "--root"]).arg(root);
    steps.run(&format!("boringtun-cli {BORINGTUN_VERSION} into target/tools"), &mut cargo)
}

/// Unpacks systemd-resolved into `target/tools` where it is not installed. Installing it would make it this machine's
/// resolver.
pub(crate) fn resolved(steps: &mut Steps) -> Result<()> {
    if Need::Resolved.missing().is_none() || Need::Root.missing().is_some() || find_program("apt-get").is_none() {
        return Ok(());
    }
    let dir = tools().join("systemd-resolved");
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let mut unpack = Command::new("sh");
    unpack.args(["-ec", "rm -f *.deb; apt-get -qq download systemd-resolved; dpkg-deb -x *.deb ."]).current_dir(&dir);
    steps.run("systemd-resolved into target/tools", &mut unpack)?;
    Need::Resolved.missing().map_or(Ok(()), |why| bail!(why))
}

/// How the program under test is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Build {
    /// As it is installed: for figures.
    Release,
    /// As unit tests are, of the same crates: tests ask whether it works, and a release build of everything takes as
    /// long as half of them.
    Test,
}

/// Builds the program and gives its path.
pub(crate) fn ipop_fast(steps: &mut Steps, build: Build) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("IPOP_FAST") {
        steps.say(&format!("  IPOP_FAST is set: {} is the program under test", path.display()));
        return Implementation::under_test().binary();
    }
    let path = match build {
        Build::Release => {
            steps.run("release build", cargo().args(["build", "--release", "-p", "ipop-control"]))?;
            target_dir().join("release/ipop-fast")
        }
        Build::Test => {
            steps.run("build", cargo().args(["build", "-p", "ipop-control", "-p", "ipop-tests"]))?;
            target_dir().join("debug/ipop-fast")
        }
    };
    path.canonicalize().with_context(|| format!("no {}", path.display()))
}

/// Where programs are put that are for this workspace only.
pub(crate) fn tools() -> PathBuf {
    target_dir().join("tools")
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    let mut c = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    c.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    c
}

/// Why tunnels cannot be made here; `None` if they can.
pub(crate) fn no_tunnels() -> Option<String> {
    let needs = [Need::Root, Need::Tun, Need::Program("ip"), Need::Program("wg"), Need::Program("ping")];
    let why: Vec<String> = needs.iter().filter_map(Need::missing).collect();
    (!why.is_empty()).then(|| why.join("; "))
}

/// Fails, saying why, where tunnels cannot be made.
pub(crate) fn demand_tunnels() -> Result<()> {
    match no_tunnels() {
        Some(why) => bail!("needs root, /dev/net/tun and network namespaces: {why}"),
        None => Ok(()),
    }
}

/// Machine, kernel and versions in one line each, for reports.
pub(crate) fn machine() -> Vec<(&'static str, String)> {
    let first = |c: &mut Command| run(c).ok().and_then(|o| o.lines().next().map(str::to_owned)).unwrap_or_default();
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map_or("?", |(_, m)| m);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut rows = vec![
        ("machine", format!("{cores} cores, {model}")),
        ("kernel", std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()),
        ("compiler", first(Command::new("rustc").arg("--version"))),
        ("iperf3", first(Command::new("iperf3").arg("--version"))),
    ];
    let mut git = Command::new("git");
    git.current_dir(env!("CARGO_MANIFEST_DIR")).args(["describe", "--always", "--dirty"]);
    rows.push(("commit", first(&mut git)));
    rows
}
