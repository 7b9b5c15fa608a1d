//! A systemd-resolved in a namespace, with a D-Bus, a `/run` and a `/etc/resolv.conf` of its own: this machine's are not
//! touched, and need not be there.

use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::daemon::target_dir;
use crate::ns::Namespace;
use crate::process::{Process, output, state_file, wait_for};
use crate::require::{Need, find_program};

/// Its own limit for D-Bus is longer.
const READY: Duration = Duration::from_secs(20);
/// Where it listens for programs of its machine.
pub const STUB: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 53));

/// Everybody may do everything: there is nobody else on this bus.
const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/> <allow own="*"/> <allow send_destination="*"/> <allow receive_sender="*"/>
  </policy>
</busconfig>
"#;

/// In a mount namespace of its own; `$1` is our directory, `$2` the program. The user that it changes to may be missing.
/// `/etc/resolv.conf` may be a link into `/run`, where resolved puts the same.
const SCRIPT: &str = r#"set -e
for f in passwd group; do cp /etc/$f "$1/$f"; done
grep -q ^systemd-resolve: "$1/passwd" || echo systemd-resolve:x:991:991::/:/usr/sbin/nologin >>"$1/passwd"
grep -q ^systemd-resolve: "$1/group" || echo systemd-resolve:x:991: >>"$1/group"
for f in passwd group; do mount --bind "$1/$f" /etc/$f; done
test -L /etc/resolv.conf || mount --bind "$1/resolv.conf" /etc/resolv.conf
mount -t tmpfs tmpfs /run
mkdir -p /run/dbus /run/systemd/resolve
chown systemd-resolve:systemd-resolve /run/systemd/resolve
dbus-daemon --config-file="$1/bus.conf" --nofork --nopidfile &
tries=0
until test -S /run/dbus/system_bus_socket; do
    tries=$((tries + 1))
    test $tries -lt 200
    sleep 0.05
done
exec "$2"
"#;

/// A running one. Ended, and its files removed, when dropped; its D-Bus goes with the namespace.
#[derive(Debug)]
pub struct Resolved {
    process: Process,
    dir: PathBuf,
    tools: PathBuf,
}

/// The service and resolvectl: of this machine, else those that `cargo xtask test` has unpacked.
///
/// # Errors
/// When there are none.
pub fn binaries() -> Result<(PathBuf, PathBuf)> {
    let unpacked = target_dir().join("tools/systemd-resolved");
    let places = [
        (Some(PathBuf::from("/lib/systemd/systemd-resolved")), find_program("resolvectl")),
        (Some(unpacked.join("lib/systemd/systemd-resolved")), Some(unpacked.join("usr/bin/resolvectl"))),
        (Some(unpacked.join("usr/lib/systemd/systemd-resolved")), Some(unpacked.join("usr/bin/resolvectl"))),
    ];
    let found = places.into_iter().filter_map(|(a, b)| Some((a?, b?))).find(|(a, b)| a.is_file() && b.is_file());
    found.context("no systemd-resolved, here or in target/tools")
}

/// What a test with one needs of the machine.
#[must_use]
pub fn needs() -> Vec<Need> {
    let programs = ["unshare", "nsenter", "dbus-daemon", "ip"].map(Need::Program);
    [Need::Root, Need::Resolved].into_iter().chain(programs).collect()
}

impl Resolved {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(ns: &Namespace) -> Result<Self> {
        let (service, control) = binaries()?;
        let dir = state_file("resolved")?;
        std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
        std::fs::write(dir.join("bus.conf"), BUS)?;
        std::fs::write(dir.join("resolv.conf"), format!("nameserver {STUB}\noptions timeout:5 attempts:1\n"))?;
        let mut command = ns.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh"]).arg(&dir).arg(service);
        let process = Process::start(&format!("resolved in {}", ns.name()), &mut command)?;
        let tools = control.parent().map(Path::to_owned).unwrap_or_default();
        let mut resolved = Self { process, dir, tools };
        let ready = wait_for("systemd-resolved", READY, || {
            anyhow::ensure!(resolved.process.running(), "it has ended");
            Ok(output(resolved.command("resolvectl").arg("status"))?.status.success())
        });
        ready.with_context(|| resolved.process.tail())?;
        Ok(resolved)
    }

    /// What a command in the namespace begins with to see its D-Bus and files, and to find resolvectl.
    #[must_use]
    pub fn wrapper(&self) -> Vec<String> {
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("PATH={}:{path}", self.tools.display());
        ["nsenter", "-m", "-t", &self.process.pid().to_string(), "env", &path].map(str::to_owned).to_vec()
    }

    /// A command beside it.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let wrapper = self.wrapper();
        let mut c = Command::new(&wrapper[0]);
        c.arg("-n").args(&wrapper[1..]).arg(program);
        c
    }
}

impl Drop for Resolved {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
