//! What a test needs of the machine, and what happens when it is not there.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::daemon::Implementation;

/// Something that a test cannot do without.
#[derive(Clone, Debug)]
pub enum Need {
    /// Root, for namespaces and TUN.
    Root,
    /// `/dev/net/tun`.
    Tun,
    /// A program on `PATH`.
    Program(&'static str),
    /// A daemon, wherever its binary is looked for, with the I/O back end that it is told to take.
    Daemon(Implementation),
    /// systemd-resolved, this machine's or one that was unpacked.
    Resolved,
    /// The real `ipop-fast` in the place of the program under test, not a stand-in.
    RealIpopFast,
}

impl Need {
    /// Why it is not there, or `None` when it is.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        match self {
            Self::Root => (!nix::unistd::geteuid().is_root()).then(|| "not root".into()),
            Self::Tun => (!Path::new("/dev/net/tun").exists()).then(|| "no /dev/net/tun".into()),
            Self::Program(p) => find_program(p).is_none().then(|| format!("no program {p} on PATH")),
            Self::Daemon(i) => i.runs_here().err().map(|e| e.to_string()),
            Self::Resolved => crate::resolved::binaries().err().map(|e| e.to_string()),
            Self::RealIpopFast => match Implementation::under_test().binary() {
                Err(e) => Some(e.to_string()),
                Ok(b) if crate::daemon::is_ipop_fast(&b) => None,
                Ok(b) => Some(format!("{} stands in for ipop-fast", b.display())),
            },
        }
    }
}

/// What every test with a tunnel in it needs.
#[must_use]
pub fn tunnel() -> Vec<Need> {
    vec![Need::Root, Need::Tun, Need::Program("ip"), Need::Program("wg"), Need::Program("ping")]
}

/// Whether a test named `test` can run. If not, says so on the terminal (past the test runner's capture).
///
/// # Panics
/// When `CI` is set and something is missing: there, a test left out is a test failed. A stand-in in `IPOP_FAST`
/// is the caller's own choice and no failure.
#[must_use]
pub fn can_run(test: &str, needs: &[Need]) -> bool {
    let mut missing = Vec::new();
    for need in needs {
        let Some(why) = need.missing() else { continue };
        let chosen = matches!(need, Need::RealIpopFast) && Implementation::under_test().binary().is_ok();
        assert!(chosen || std::env::var_os("CI").is_none(), "{test} cannot run and CI is set: {why}");
        missing.push(why);
    }
    if missing.is_empty() {
        return true;
    }
    // A failure to write to the terminal must not fail the test.
    let _ = writeln!(std::io::stderr(), "LEFT OUT {test}: {}", missing.join("; "));
    false
}

/// The path of a program, searched as a shell would; a name with a slash is taken as it is.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Path::new(name).exists().then(|| PathBuf::from(name));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(extra).map(|d| d.join(name)).find(|p| p.is_file())
}
