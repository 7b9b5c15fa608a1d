//! Child processes: logs captured, ended by pid, waited for with a limit.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::scene;

/// Kernel ticks a second in `/proc/PID/stat`: `USER_HZ`, 100 on every Linux port that runs Rust.
const USER_HZ: f64 = 100.0;
/// Pause between two looks at a condition.
const POLL: Duration = Duration::from_millis(10);

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A number that no other caller in this process got: for names.
pub(crate) fn serial() -> u32 {
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

/// Where logs, keys and configurations of running tests live; mode 0700.
///
/// # Errors
/// When the directory cannot be made.
pub fn state_dir() -> Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let dir = std::env::temp_dir().join(format!("ipop-tests-{}", nix::unistd::geteuid()));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

/// A path for a new file in [`state_dir`], named after this process.
///
/// # Errors
/// When the directory cannot be made.
pub fn state_file(name: &str) -> Result<PathBuf> {
    Ok(state_dir()?.join(format!("{}-{}-{name}", std::process::id(), serial())))
}

/// Removes files of runs whose process is gone.
pub(crate) fn sweep_logs() {
    remove_files(|pid| !alive(pid));
}

/// Removes the files of this process: logs of what it started.
pub fn forget_logs() {
    remove_files(|pid| pid == std::process::id());
}

fn remove_files(of: impl Fn(u32) -> bool) {
    let Ok(files) = state_dir().and_then(|d| Ok(std::fs::read_dir(d)?)) else { return };
    for file in files.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        let pid = name.split_once('-').and_then(|(pid, _)| pid.parse::<u32>().ok());
        if pid.is_some_and(&of) {
            let path = file.path();
            let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        }
    }
}

/// Whether a process of that id exists (a zombie counts as gone).
#[must_use]
pub fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|s| s.rsplit_once(") ").map(|(_, rest)| !rest.starts_with(['Z', 'X'])))
        .unwrap_or(false)
}

/// Sends `signal` to one process.
///
/// # Errors
/// When the process is gone already or is not ours.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(pid.try_into().context("pid")?), signal).with_context(|| format!("{signal} to {pid}"))
}

/// Ends a process that need not be our child: TERM, then KILL after `patience`.
pub fn end(pid: u32, patience: Duration) {
    let _ = signal(pid, Signal::SIGTERM);
    if wait_for("end of a process", patience, || Ok(!alive(pid))).is_err() {
        let _ = signal(pid, Signal::SIGKILL);
    }
}

/// Ends a process group that one of our children leads, children of children included: INT, then KILL.
pub fn end_group(leader: &mut Child, patience: Duration) {
    let Ok(group) = i32::try_from(leader.id()).map(Pid::from_raw) else { return };
    let _ = killpg(group, Signal::SIGINT);
    let ended = wait_for("a process group", patience, || {
        let _ = leader.try_wait();
        Ok(killpg(group, None).is_err())
    });
    if ended.is_err() {
        let _ = killpg(group, Signal::SIGKILL);
    }
    let _ = leader.wait();
}

/// Waits until `condition` holds.
///
/// # Errors
/// After `limit`, naming `what` and the condition's last error if it had one.
pub fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_some(what, limit, || condition().map(|c| c.then_some(())))
}

/// Waits until `condition` has a value.
///
/// # Errors
/// After `limit`, naming `what` and the condition's last error if it had one.
pub fn wait_some<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = condition();
        match last {
            Ok(Some(v)) => return Ok(v),
            Ok(None) if start.elapsed() >= limit => bail!("waited {limit:?} for {what}"),
            Err(e) if start.elapsed() >= limit => return Err(e.context(format!("waited {limit:?} for {what}"))),
            _ => std::thread::sleep(POLL),
        }
    }
}

/// Runs a command to its end and gives what it printed on stdout.
///
/// # Errors
/// When it cannot start or does not exit with 0; the message has its stderr.
pub fn run(command: &mut Command) -> Result<String> {
    let out = output(command)?;
    if !out.status.success() {
        bail!("{command:?}: {}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Runs a command to its end, whatever it says.
///
/// # Errors
/// When it cannot start.
pub fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))
}

/// The last `lines` lines of a file; empty if there is none.
#[must_use]
pub fn tail_of(path: &Path, lines: usize) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// CPU time of a process and all its threads so far, user and system, in seconds; `None` if it is gone.
#[must_use]
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Fields 14 and 15 of proc(5); the 2nd is in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let ticks = |f: Option<&str>| f.and_then(|v| v.parse::<f64>().ok());
    Some((ticks(fields.next())? + ticks(fields.next())?) / USER_HZ)
}

/// Resident memory of a process in bytes; `None` if it is gone.
#[must_use]
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    kib.trim().parse::<u64>().ok().map(|k| k * 1024)
}

/// A running child with its log. Ended by pid when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    name: String,
}

impl Process {
    /// Starts `command` with no input, stdout and stderr to a log file.
    ///
    /// # Errors
    /// When it cannot start.
    pub fn start(name: &str, command: &mut Command) -> Result<Self> {
        let log = state_file("log")?;
        let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        scene::note_log(name, log.clone());
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Self::adopt(name, log, command)
    }

    /// Starts `command` with the streams that it has been given; `log` is where its output goes.
    ///
    /// # Errors
    /// When it cannot start.
    pub fn adopt(name: &str, log: PathBuf, command: &mut Command) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { child, log, name: name.to_owned() })
    }

    /// Process id. `ip netns exec` execs, so this is the program's own.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it runs.
    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The end of its log.
    #[must_use]
    pub fn tail(&self) -> String {
        tail_of(&self.log, 25)
    }

    /// Everything it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, s: Signal) -> Result<()> {
        signal(self.pid(), s)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        wait_some(&format!("the end of {}", self.name), limit, || Ok(child.try_wait()?))
            .with_context(|| format!("its log ends:\n{}", tail_of(&self.log, 10)))
    }

    /// Kills it (SIGKILL) and reaps it.
    ///
    /// # Errors
    /// When it cannot be reaped.
    pub fn kill(&mut self) -> Result<()> {
        let _ = self.child.kill();
        let status = self.wait(Duration::from_secs(5))?;
        status.signal().map_or_else(|| bail!("{} had ended before: {status}", self.name), |_| Ok(()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.running() {
            return;
        }
        let _ = self.signal(Signal::SIGTERM);
        if self.wait(Duration::from_secs(3)).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_never_holds_ends_with_its_last_error() {
        let e = wait_for("x", Duration::from_millis(30), || bail!("not yet")).unwrap_err();
        assert!(format!("{e:#}").contains("for x: not yet"), "{e:#}");
    }

    #[test]
    fn our_own_cpu_time_and_memory_can_be_read() {
        let me = std::process::id();
        assert!(cpu_seconds(me).is_some() && resident_bytes(me).is_some_and(|b| b > 1 << 20) && alive(me));
    }

    #[test]
    fn a_process_is_ended_when_dropped_and_its_output_is_kept() {
        let mut p = Process::start("sh", Command::new("sh").args(["-c", "echo hello; exec sleep 60"])).unwrap();
        wait_for("output", Duration::from_secs(5), || Ok(p.log().contains("hello"))).unwrap();
        assert!(p.running());
        let (pid, log) = (p.pid(), p.log.clone());
        drop(p);
        assert!(!alive(pid));
        std::fs::remove_file(log).unwrap();
    }
}
