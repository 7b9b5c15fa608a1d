//! Steps with a live line each, their output in a log, and a summary at the end.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipop_tests::daemon::target_dir;
use ipop_tests::process::{end_group, tail_of};

use crate::stop;

/// Pause between two looks at a running step.
const TICK: Duration = Duration::from_millis(200);
/// Without a terminal, a sign of life this often.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// Time for an interrupted step to end by itself.
const PATIENCE: Duration = Duration::from_secs(5);
/// Lines of a failed step's log that are shown.
const SHOWN: usize = 200;

/// A list of steps, done and running.
pub(crate) struct Steps {
    done: Vec<Done>,
    left_out: Vec<String>,
    /// Tests that the runner counts as passed, but that said they could not run.
    tests_left_out: u64,
    terminal: bool,
    /// Standard output is somebody else's.
    stderr: bool,
    logs: PathBuf,
}

struct Done {
    name: String,
    seconds: f64,
    ok: bool,
    results: Vec<String>,
}

/// A step that runs.
pub(crate) struct Running {
    name: String,
    child: Child,
    log: PathBuf,
    start: Instant,
}

impl Steps {
    pub(crate) fn new(logs: &str) -> Result<Self> {
        let logs = target_dir().join(logs);
        std::fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
        Ok(Self {
            done: Vec::new(),
            left_out: Vec::new(),
            tests_left_out: 0,
            terminal: std::io::stdout().is_terminal(),
            stderr: false,
            logs,
        })
    }

    /// Tells of its progress on standard error.
    pub(crate) fn on_stderr(mut self) -> Self {
        self.terminal = false;
        self.stderr = true;
        self
    }

    /// One line of progress.
    pub(crate) fn say(&self, line: &str) {
        if self.stderr {
            eprintln!("{line}");
        } else {
            println!("{line}");
        }
    }

    /// Notes something that was not done, and why.
    pub(crate) fn left_out(&mut self, what: String) {
        self.say(&format!("  LEFT OUT {what}"));
        self.left_out.push(what);
    }

    /// What was left out so far.
    pub(crate) fn all_left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Starts a step in the background.
    pub(crate) fn start(&self, name: &str, command: &mut Command) -> Result<Running> {
        let file: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(60).collect();
        let log = self.logs.join(format!("{:02}-{file}.log", self.done.len()));
        let out = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        // A group of its own: a stop has to reach the tests that cargo runs, too.
        let child = command.process_group(0).spawn().with_context(|| format!("cannot run {command:?}"))?;
        Ok(Running { name: name.to_owned(), child, log, start: Instant::now() })
    }

    /// Runs a step to its end.
    pub(crate) fn run(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let running = self.start(name, command)?;
        self.finish(running)
    }

    /// Waits for a started step with a live line; shows its log if it fails, which is an error.
    pub(crate) fn finish(&mut self, mut step: Running) -> Result<()> {
        let mut beat = Instant::now();
        if !self.terminal {
            self.say(&format!("  ....  {}", step.name));
        }
        let status = loop {
            if let Some(status) = step.child.try_wait()? {
                break status;
            }
            if stop::asked() {
                end_group(&mut step.child, PATIENCE);
                bail!("interrupted in {}", step.name);
            }
            let line = format!("{} {:.0} s  {}", step.name, step.start.elapsed().as_secs_f64(), step.progress());
            if self.terminal {
                print!("\r\x1b[K  ....  {}", line.chars().take(110).collect::<String>());
                std::io::stdout().flush()?;
            } else if beat.elapsed() > HEARTBEAT {
                beat = Instant::now();
                self.say(&format!("  ....  {line}"));
            }
            std::thread::sleep(TICK);
        };
        if self.terminal {
            print!("\r\x1b[K");
        }
        let (seconds, ok) = (step.seconds(), status.success());
        self.say(&format!("  {}  {} ({seconds:.1} s)", if ok { "ok  " } else { "FAIL" }, step.name));
        let results = step.results();
        for line in step.left_out_lines() {
            self.tests_left_out += 1;
            self.left_out(line);
        }
        self.done.push(Done { name: step.name.clone(), seconds, ok, results });
        if !ok {
            self.say(&format!("{}\n(whole log: {})", tail_of(&step.log, SHOWN), step.log.display()));
            bail!("a step failed: {status}");
        }
        Ok(())
    }

    /// Prints what was done and left out, with the test runner's own closing lines.
    pub(crate) fn summary(&self) {
        println!("\nSummary");
        for d in &self.done {
            println!("  {}  {:7.1} s  {}", if d.ok { "ok  " } else { "FAIL" }, d.seconds, d.name);
        }
        for l in &self.left_out {
            println!("  LEFT OUT  {l}");
        }
        println!();
        for line in self.done.iter().flat_map(|d| &d.results) {
            println!("{line}");
        }
        let sum =
            |what: &str| -> u64 { self.done.iter().flat_map(|d| &d.results).map(|l| number_before(l, what)).sum() };
        let passed = sum("passed").saturating_sub(self.tests_left_out);
        println!("\n{passed} passed, {} failed, {} skipped", sum("failed"), sum("ignored") + self.tests_left_out);
    }

    /// Whether a step has failed.
    pub(crate) fn failed(&self) -> bool {
        self.done.iter().any(|d| !d.ok)
    }
}

impl Running {
    fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Tests passed so far, or the log's last line.
    fn progress(&self) -> String {
        let text = self.log_text();
        let tests = text.lines().filter(|l| l.starts_with("test ") && l.ends_with(" ok")).count();
        let last = text.lines().last().unwrap_or_default().trim().to_owned();
        if tests > 0 { format!("{tests} tests ok; {last}") } else { last }
    }

    /// How long it ran: one in the background may have ended before somebody asked, its last words tell when.
    fn seconds(&self) -> f64 {
        let written = std::fs::metadata(&self.log).and_then(|m| m.modified());
        let since = written.ok().and_then(|w| w.elapsed().ok()).unwrap_or_default();
        let quiet = std::fs::metadata(&self.log).map_or(true, |m| m.len() == 0);
        let run = self.start.elapsed();
        if quiet { run } else { run.saturating_sub(since) }.as_secs_f64()
    }

    fn results(&self) -> Vec<String> {
        let text = self.log_text();
        text.lines().filter(|l| l.starts_with("test result:")).map(str::to_owned).collect()
    }

    fn left_out_lines(&self) -> Vec<String> {
        // The test runner's own line may stand before it: tests write past its capture.
        self.log_text().lines().filter_map(|l| l.split_once("LEFT OUT ").map(|(_, w)| w.to_owned())).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A background step outlived by its list.
        if matches!(self.child.try_wait(), Ok(None)) {
            end_group(&mut self.child, PATIENCE);
        }
    }
}

/// The number before a word: 6 in `ok. 6 passed; 0 failed` for `passed`.
fn number_before(line: &str, word: &str) -> u64 {
    let before = line.split_once(&format!(" {word}")).map_or("", |(b, _)| b);
    before.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_runners_closing_line_is_counted() {
        let line = "test result: ok. 26 passed; 1 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.03s";
        assert_eq!(["passed", "failed", "ignored", "nothing"].map(|w| number_before(line, w)), [26, 1, 3, 0]);
    }
}
