//! Network namespaces of our own, gone when dropped.

use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::process::{self, run, serial};

/// All our namespaces are named `PREFIX-PID-N-LABEL`: a run that was killed is recognised by its pid being gone.
const PREFIX: &str = "ipft";
/// Files below `NETNS/NAME` take the place of those in `/etc` for what `ip netns exec NAME` starts (ip-netns(8)).
const NETNS: &str = "/etc/netns";

/// A network namespace made by us.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes an empty one with `lo` up; `label` shows in its name.
    ///
    /// # Errors
    /// When `ip netns add` fails: not root, no namespaces in this kernel.
    pub fn new(label: &str) -> Result<Self> {
        let name = format!("{PREFIX}-{}-{}-{label}", std::process::id(), serial());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let ns = Self { name };
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    /// Its name for `ip -n`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut c = Command::new("ip");
        c.args(["netns", "exec", &self.name]).arg(program);
        c
    }

    /// `ip` inside, its arguments separated by blanks.
    ///
    /// # Errors
    /// When `ip` says no.
    pub fn ip(&self, args: &str) -> Result<String> {
        run(Command::new("ip").args(["-n", &self.name]).args(args.split_whitespace()))
    }

    /// Has programs that [`Self::command`] starts from now on ask this name server (ip-netns(8): a file in `/etc/netns`
    /// is mounted over `/etc/resolv.conf` for them alone). It goes with the namespace.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn use_name_server(&self, server: std::net::IpAddr) -> Result<()> {
        let dir = own_etc(&self.name);
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        std::fs::write(dir.join("resolv.conf"), format!("nameserver {server}\noptions timeout:2 attempts:1\n"))
            .with_context(|| format!("writing into {}", dir.display()))
    }

    /// Whether an interface of that name exists inside.
    #[must_use]
    pub fn has_link(&self, name: &str) -> bool {
        self.ip(&format!("link show dev {name}")).is_ok()
    }

    /// Has programs that are started inside from now on ask these servers for names; without any, they have none to ask.
    /// Also changes it for those that run already and look again, if it was set before they were started.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_resolver(&self, servers: &[IpAddr]) -> Result<()> {
        let dir = files(&self.name);
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        // One try of two seconds: what tests wait for is an answer, or that there is none.
        let mut text = "options timeout:2 attempts:1\n".to_owned();
        text.extend(servers.iter().map(|s| format!("nameserver {s}\n")));
        // In place: it is mounted over /etc/resolv.conf, and a new file would not be.
        std::fs::write(dir.join("resolv.conf"), text).context("resolv.conf of a namespace")
    }

    /// Runs `f` on a thread of its own that has entered the namespace: sockets that it opens belong there, and stay
    /// there when handed to other threads.
    ///
    /// # Errors
    /// When the namespace cannot be entered or `f` fails.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        run_in(&self.name, f)
    }

    /// Like [`Self::run`], but goes on in the background.
    pub fn spawn<T: Send + 'static>(&self, f: impl FnOnce() -> Result<T> + Send + 'static) -> JoinHandle<Result<T>> {
        let name = self.name.clone();
        std::thread::spawn(move || {
            enter(&name)?;
            f()
        })
    }
}

/// [`Namespace::run`] for who has only its name.
///
/// # Errors
/// When the namespace cannot be entered or `f` fails.
pub fn run_in<T: Send>(name: &str, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|s| {
        let entered = s.spawn(|| {
            enter(name)?;
            f()
        });
        entered.join().map_err(|_| anyhow!("a thread in {name} panicked"))?
    })
}

fn enter(name: &str) -> Result<()> {
    let path = format!("/run/netns/{name}");
    let file = File::open(&path).with_context(|| format!("opening {path}"))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {path}"))
}

impl Drop for Namespace {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

/// Files that programs started in a namespace see in `/etc`.
fn own_etc(name: &str) -> std::path::PathBuf {
    std::path::Path::new("/etc/netns").join(name)
}

/// Ends what still runs in a namespace of ours (daemons that went to the background) and removes it.
fn delete(name: &str) {
    let pids = run(Command::new("ip").args(["netns", "pids", name])).unwrap_or_default();
    for pid in pids.lines().filter_map(|l| l.trim().parse::<u32>().ok()) {
        // Our own threads may still be inside for a moment.
        if pid != std::process::id() {
            process::end(pid, Duration::from_secs(2));
        }
    }
    let _ = std::fs::remove_dir_all(own_etc(name));
    let _ = run(Command::new("ip").args(["netns", "del", name]));
    let _ = std::fs::remove_dir_all(files(name));
}

/// Where its own versions of files in `/etc` are.
fn files(name: &str) -> PathBuf {
    PathBuf::from(NETNS).join(name)
}

/// Whether the maker of a namespace of ours is gone; `false` for those of others.
fn orphaned(name: &str) -> bool {
    let rest = name.strip_prefix(PREFIX).and_then(|r| r.strip_prefix('-'));
    let pid = rest.and_then(|r| r.split('-').next()?.parse::<u32>().ok());
    pid.is_some_and(|p| !process::alive(p))
}

/// Removes namespaces whose maker is gone, and what is left of their files.
pub(crate) fn sweep() {
    let list = run(Command::new("ip").args(["netns", "list"])).unwrap_or_default();
    list.lines().filter_map(|l| l.split_whitespace().next()).filter(|n| orphaned(n)).for_each(delete);
    let Ok(left) = std::fs::read_dir(NETNS) else { return };
    for entry in left.flatten().filter(|e| orphaned(&e.file_name().to_string_lossy())) {
        let _ = std::fs::remove_dir_all(entry.path());
    }
}

/// One end of a veth link: namespace, interface name, addresses with prefix length.
pub type End<'a> = (&'a Namespace, &'a str, &'a [&'a str]);

/// Joins two namespaces by a veth pair, both ends up, IPv6 usable at once (no duplicate address detection).
///
/// # Errors
/// When `ip` says no.
pub fn link(a: End<'_>, b: End<'_>) -> Result<()> {
    run(Command::new("ip")
        .args(["link", "add", a.1, "netns", &a.0.name, "type", "veth"])
        .args(["peer", "name", b.1, "netns", &b.0.name]))?;
    for (ns, dev, addresses) in [a, b] {
        for address in addresses {
            add_address(ns, dev, address)?;
        }
        ns.ip(&format!("link set {dev} up"))?;
    }
    Ok(())
}

/// Adds an address with its prefix length to an interface.
///
/// # Errors
/// When `ip` says no.
pub fn add_address(ns: &Namespace, dev: &str, address: &str) -> Result<()> {
    let nodad = if address.contains(':') { "nodad" } else { "" };
    ns.ip(&format!("addr add {address} dev {dev} {nodad}")).map(drop)
}

/// An interface name that no other test on this machine uses now: the UAPI sockets of all namespaces share one
/// directory.
#[must_use]
pub fn unique_interface() -> String {
    format!("ft{}x{}", base36(std::process::id()), base36(serial()))
}

fn base36(mut n: u32) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit(n % 36, 36).unwrap_or('0'));
        n /= 36;
        if n == 0 {
            return digits.into_iter().rev().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_ours_and_whose_maker_is_gone_is_swept() {
        let mine = format!("{PREFIX}-{}-0-x", std::process::id());
        // Above the largest pid there can be.
        let gone = format!("{PREFIX}-{}-0-x", (1 << 22) + 1);
        assert!(orphaned(&gone) && !orphaned(&mine) && !orphaned("someone-4194305-0-x") && !orphaned("ipft-x"));
    }

    #[test]
    fn interface_names_fit_the_kernels_15_bytes_and_differ() {
        assert_eq!((base36(0), base36(35), base36(36)), ("0".into(), "z".into(), "10".into()));
        // The largest pid is 2^22; 46,655 interfaces are three more digits.
        assert!(format!("ft{}x{}", base36(1 << 22), base36(46_655)).len() <= 15);
        assert_ne!(unique_interface(), unique_interface());
    }
}
