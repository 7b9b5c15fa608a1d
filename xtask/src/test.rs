//! `cargo xtask test`: everything that CI runs, on any machine.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail, ensure};
use clap::Args;
use ipop_tests::daemon::Implementation;

use crate::packages::{self, cargo};
use crate::steps::Steps;
use crate::{ebpf, fuzz};

/// Test binaries of the harness that run everywhere. All others there need namespaces.
const EVERYWHERE: &[&str] = &["fuzz_corpus"];
/// Takes all of the machine.
const HEAVY: &[&str] = &["group", "social"];
/// Takes two minutes of real time and little else: runs beside the others.
const BESIDE: &str = "rekey";

#[derive(Args)]
pub(crate) struct Options {
    /// Also the tests marked as slow (`#[ignore]`), and five minutes of fuzzing for each target
    #[arg(long)]
    slow: bool,
    /// Only tests whose name contains this; leaves out format and lints
    filter: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut steps = Steps::new("test-logs")?;
    let result = all(&mut steps, options);
    // Of tests that were interrupted.
    ipop_tests::scene::sweep();
    steps.summary();
    result?;
    let left_out = steps.all_left_out();
    let ci = std::env::var_os("CI").is_some();
    ensure!(!ci || left_out.is_empty(), "CI is set, and {} things were left out (see above)", left_out.len());
    Ok(())
}

fn all(steps: &mut Steps, options: &Options) -> Result<()> {
    packages::install(steps)?;
    if options.filter.is_none() {
        steps.run("format", cargo().args(["fmt", "--all", "--check"]))?;
        // Kernel programs are a workspace of their own.
        let programs = ["fmt", "--check", "--manifest-path", "ebpf/programs/Cargo.toml"];
        steps.run("format of kernel programs", cargo().args(programs))?;
        steps.run("licences", Command::new(std::env::current_exe()?).arg("licences"))?;
        ebpf::check(steps)?;
        steps.run("lints", cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    }
    steps.run("test build", cargo().args(["test", "--workspace", "--no-run"]))?;
    // Every test that can run does, also after a failure: one run tells all.
    let mut failures = Vec::new();
    let mut unit = cargo();
    unit.args(["test", "--workspace", "--exclude", "ipop-tests", "--no-fail-fast"]);
    note(&mut failures, steps.run("unit tests", tail(&mut unit, options)));
    note(&mut failures, harness(steps, options));
    note(&mut failures, end_to_end(steps, options));
    if options.slow {
        note(&mut failures, fuzz::soak(steps));
    }
    if steps.failed() || !failures.is_empty() {
        bail!("{}", failures.join("; "));
    }
    Ok(())
}

fn note(failures: &mut Vec<String>, result: Result<()>) {
    if let Err(e) = result {
        failures.push(format!("{e:#}"));
    }
}

fn tail<'a>(command: &'a mut Command, options: &Options) -> &'a mut Command {
    command.args(options.filter.as_ref());
    if options.slow {
        command.args(["--", "--include-ignored"]);
    }
    command
}

/// The harness's own unit tests and the corpus replay.
fn harness(steps: &mut Steps, options: &Options) -> Result<()> {
    let mut command = cargo();
    command.args(["test", "-p", "ipop-tests", "--lib", "--no-fail-fast"]);
    for name in EVERYWHERE {
        command.args(["--test", name]);
    }
    steps.run("harness and corpus tests", tail(&mut command, options))
}

/// Test binaries that need namespaces: files, and directories with a `main.rs`.
fn end_to_end_binaries() -> Result<Vec<String>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/tests");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let Some(stem) = path.file_stem().and_then(|s| s.to_str()) else { continue };
        let is_test = path.extension().is_some_and(|e| e == "rs") || path.join("main.rs").is_file();
        if is_test && stem != BESIDE && !EVERYWHERE.contains(&stem) {
            names.push(stem.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn end_to_end(steps: &mut Steps, options: &Options) -> Result<()> {
    if let Some(why) = packages::no_tunnels() {
        steps.left_out(format!("end-to-end tests: {why}"));
        return Ok(());
    }
    packages::boringtun(steps)?;
    packages::resolved(steps)?;
    let binary = packages::ipop_fast(steps, packages::Build::Test)?;
    let boringtun = Implementation::Boringtun.binary()?;
    let names = end_to_end_binaries()?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let command = |tests: &[&str]| {
        let mut c = cargo();
        c.args(["test", "-p", "ipop-tests", "--no-fail-fast"]).env("IPOP_FAST", &binary).env("BORINGTUN", &boringtun);
        for t in tests {
            c.args(["--test", t]);
        }
        c
    };
    let (heavy, light): (Vec<&str>, Vec<&str>) = names.into_iter().partition(|n| HEAVY.contains(n));
    let beside = steps.start("end-to-end tests: rekeying in real time", tail(&mut command(&[BESIDE]), options))?;
    let main = steps.run("end-to-end tests", tail(&mut command(&light), options));
    let main = steps.finish(beside).and(main);
    // Fifty nodes leave no time for flows that must not stall.
    let groups = steps.run("end-to-end tests: groups and friends", tail(&mut command(&heavy), options));
    let all = main.and(groups);
    if options.filter.is_some() {
        return all;
    }
    let demo = |kind: &str| -> Result<Command> {
        let mut c = Command::new(std::env::current_exe()?);
        c.args(["demo", "--once", "--seconds", "1", kind]).env("IPOP_FAST", &binary);
        Ok(c)
    };
    let group = steps.run("the demo of a group: cargo xtask demo --once --app", &mut demo("--app")?);
    let friends = steps.run("the demo of friends: cargo xtask demo --once --social", &mut demo("--social")?);
    all.and(group).and(friends)
}
