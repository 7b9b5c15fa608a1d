//! systemd-resolved, where it runs: it is told, by resolvectl(1), that queries for `ipop` and for the names of overlay
//! addresses go to our server on our interface, and nothing else. All of it is a property of that interface and goes with
//! it; resolv.conf is never touched.

use super::DOMAIN;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How often it is looked for where it does not run, and asked again when it refused.
pub const AGAIN: Duration = Duration::from_secs(30);
/// A command that takes longer is ended: resolved is asked over D-Bus, and answers at once.
const LIMIT: Duration = Duration::from_secs(5);
/// Between looks whether it has ended.
const LOOK: Duration = Duration::from_millis(10);
/// So much is read of what it complains about.
const MAX_COMPLAINT: usize = 300;

/// Where it is looked for.
#[derive(Clone, Debug)]
pub struct Place {
    /// It keeps this directory while it runs.
    pub directory: PathBuf,
    /// Directories with programs, as in `PATH`.
    pub search: Option<OsString>,
}

impl Place {
    /// On this machine.
    #[must_use]
    pub fn of_system() -> Self {
        Self { directory: PathBuf::from("/run/systemd/resolve"), search: std::env::var_os("PATH") }
    }

    /// The path of resolvectl, if it is there and the service runs.
    #[must_use]
    pub fn program(&self) -> Option<PathBuf> {
        if !self.directory.is_dir() {
            return None;
        }
        let mut directories = std::env::split_paths(self.search.as_ref()?);
        directories.find_map(|d| Some(d.join("resolvectl")).filter(|p| p.is_absolute() && p.is_file()))
    }
}

/// What it is to know of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Our servers.
    pub servers: Vec<IpAddr>,
    /// Zones of addresses.
    pub zones: Vec<String>,
}

/// How it is with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It does not run here.
    Absent,
    /// It knows.
    Told,
    /// It does not take it. Why, for people.
    Failed(String),
}

/// Arguments of resolvectl, one command after the other. Domains with `~` say where queries go, and are not appended to
/// names without dots. Neither DNSSEC nor DNS over TLS is what our server does, whatever is set for the others.
#[must_use]
pub fn commands(interface: &str, link: &Link) -> Vec<Vec<String>> {
    let command =
        |what: &str, args: Vec<String>| [what.to_owned(), interface.to_owned()].into_iter().chain(args).collect();
    let no = || vec!["no".to_owned()];
    let domains = [DOMAIN].into_iter().chain(link.zones.iter().map(String::as_str)).map(|d| format!("~{d}"));
    vec![
        command("default-route", no()),
        command("dnssec", no()),
        command("dnsovertls", no()),
        command("domain", domains.collect()),
        // Last: before it, nothing is asked over this interface.
        command("dns", link.servers.iter().map(ToString::to_string).collect()),
    ]
}

/// Makes what it knows what is `wanted`; `known` is what it was told before.
pub(super) async fn bring(place: &Place, known: &mut BTreeMap<String, Link>, wanted: &BTreeMap<String, Link>) -> State {
    let Some(program) = place.program() else {
        known.clear();
        return State::Absent;
    };
    let over: Vec<String> = known.keys().filter(|i| !wanted.contains_key(*i)).cloned().collect();
    for interface in over {
        // The interface may have gone, and the settings with it.
        let _ = run(&program, vec!["revert".to_owned(), interface.clone()]).await;
        known.remove(&interface);
    }
    for (interface, link) in wanted {
        if known.get(interface) == Some(link) {
            continue;
        }
        known.remove(interface);
        for command in commands(interface, link) {
            if let Err(why) = run(&program, command).await {
                return State::Failed(why);
            }
        }
        tracing::info!("systemd-resolved asks for {DOMAIN} on {interface}");
        known.insert(interface.clone(), link.clone());
    }
    State::Told
}

/// Runs it to its end, elsewhere: starting a process blocks.
async fn run(program: &Path, args: Vec<String>) -> Result<(), String> {
    let program = program.to_owned();
    let done = tokio::task::spawn_blocking(move || run_here(&program, &args)).await;
    done.unwrap_or_else(|e| Err(e.to_string()))
}

fn run_here(program: &Path, args: &[String]) -> Result<(), String> {
    let shown = format!("resolvectl {}", args.join(" "));
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("{shown}: {e}"))?;
    let deadline = Instant::now() + LIMIT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => {
                let mut said = String::new();
                if let Some(stderr) = child.stderr.take() {
                    use std::io::Read as _;
                    let _ = stderr.take(MAX_COMPLAINT as u64).read_to_string(&mut said);
                }
                return Err(format!("{shown}: {status}: {}", said.trim()));
            }
            Ok(None) if Instant::now() < deadline => std::thread::sleep(LOOK),
            Ok(None) | Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{shown}: no end within {} s", LIMIT.as_secs()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn link(server: &str, zones: &[&str]) -> Link {
        let zones = zones.iter().map(|z| (*z).to_owned()).collect();
        Link { servers: vec![server.parse().expect("address")], zones }
    }

    #[test]
    fn only_our_names_go_to_our_server() {
        let said = commands("ipop0", &link("172.16.10.2", &["10.16.172.in-addr.arpa"]));
        let lines: Vec<String> = said.iter().map(|c| c.join(" ")).collect();
        assert_eq!(
            lines,
            [
                "default-route ipop0 no",
                "dnssec ipop0 no",
                "dnsovertls ipop0 no",
                "domain ipop0 ~ipop ~10.16.172.in-addr.arpa",
                "dns ipop0 172.16.10.2"
            ]
        );
    }

    /// A directory with a program that writes down how it is called.
    fn stand_in(body: &str) -> (tempfile::TempDir, Place) {
        let dir = tempfile::tempdir().expect("directory");
        let program = dir.path().join("resolvectl");
        let log = dir.path().join("log");
        std::fs::write(&program, format!("#!/bin/sh\necho \"$*\" >>{}\n{body}\n", log.display())).expect("write");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("mode");
        let place = Place { directory: dir.path().to_owned(), search: Some(dir.path().into()) };
        (dir, place)
    }

    fn log(dir: &tempfile::TempDir) -> Vec<String> {
        let text = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn it_is_told_once_and_again_only_of_changes() {
        let (dir, place) = stand_in("");
        let mut known = BTreeMap::new();
        let mut wanted = BTreeMap::from([("ipop0".to_owned(), link("172.16.10.2", &[]))]);
        assert_eq!(bring(&place, &mut known, &wanted).await, State::Told);
        assert_eq!((log(&dir).len(), log(&dir).last().map(String::as_str)), (5, Some("dns ipop0 172.16.10.2")));
        assert_eq!(bring(&place, &mut known, &wanted).await, State::Told);
        assert_eq!(log(&dir).len(), 5);
        wanted.insert("ipop0".to_owned(), link("172.16.10.3", &[]));
        assert_eq!(bring(&place, &mut known, &wanted).await, State::Told);
        assert_eq!((log(&dir).len(), log(&dir).last().map(String::as_str)), (10, Some("dns ipop0 172.16.10.3")));
        wanted.clear();
        assert_eq!(bring(&place, &mut known, &wanted).await, State::Told);
        assert_eq!((log(&dir).len(), log(&dir).last().map(String::as_str)), (11, Some("revert ipop0")));
    }

    #[tokio::test]
    async fn what_it_says_against_it_is_told_and_tried_again() {
        let (dir, place) = stand_in("echo 'Unknown interface' >&2; exit 1");
        let (mut known, wanted) = (BTreeMap::new(), BTreeMap::from([("ipop0".to_owned(), link("10.0.0.1", &[]))]));
        for tries in 1..3 {
            let State::Failed(why) = bring(&place, &mut known, &wanted).await else { panic!("it failed") };
            assert!(why.contains("resolvectl default-route ipop0 no") && why.contains("Unknown interface"), "{why}");
            assert_eq!((log(&dir).len(), known.len()), (tries, 0));
        }
    }

    #[tokio::test]
    async fn without_it_nothing_is_run() {
        let (dir, place) = stand_in("");
        let wanted = BTreeMap::from([("ipop0".to_owned(), link("10.0.0.1", &[]))]);
        let not_running = Place { directory: dir.path().join("none"), ..place.clone() };
        let no_program = Place { search: Some("/nonexistent".into()), ..place.clone() };
        let no_path = Place { search: None, ..place };
        for place in [not_running, no_program, no_path] {
            assert_eq!(place.program(), None);
            assert_eq!(bring(&place, &mut BTreeMap::new(), &wanted).await, State::Absent);
        }
        assert!(log(&dir).is_empty());
    }
}
