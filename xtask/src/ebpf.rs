//! `cargo xtask ebpf`: builds the kernel programs, or tells whether the object that is committed is what its source makes.
//!
//! Beside the object lies a record: the tools that built it and a digest of what they built it from. Other versions of
//! the tools make other bytes of the same source; then the digest tells.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use ipop_tests::daemon::target_dir;
use ipop_tests::process::run;
use ipop_tests::require::{Need, find_program};
use sha2::{Digest, Sha256};

use crate::packages::{self, cargo, tools};
use crate::steps::Steps;

const LINKER_VERSION: &str = "0.13.0";
/// Debian's compiler for browsers, with its sources: the standard library of a target without one is built from them.
const COMPILER: &str = "/usr/bin/rustc";
const LLVM: &str = "/usr/lib/llvm-22";
const PACKAGES: [&str; 3] = ["rustc-web", "rust-web-src", "llvm-22-dev"];
const TARGET: &str = "bpfel-unknown-none";
/// What the compiler is told. The architecture is that of the kernel's headers; what is used of them is the same on all.
/// The third version of the instructions (Linux 5.1) has 32-bit arithmetic, which BLAKE2s is made of.
const FLAGS: [&str; 3] = ["-Clinker=bpf-linker", "-Ctarget-cpu=v3", "--cfg=bpf_target_arch=\"x86_64\""];
/// All that the object is made from.
const SOURCES: [&str; 5] =
    ["ebpf/Cargo.toml", "ebpf/src", "ebpf/programs/Cargo.toml", "ebpf/programs/Cargo.lock", "ebpf/programs/src"];
const OBJECT: &str = "ebpf/programs/programs.o";
const RECORD: &str = "ebpf/programs/programs.txt";

#[derive(Args)]
pub(crate) struct Options {
    /// Change nothing; fail if source and committed object differ. Part of `test`
    #[arg(long)]
    check: bool,
}

pub(crate) fn run_alone(options: &Options) -> Result<()> {
    let mut steps = Steps::new("ebpf-logs")?;
    let result = if options.check { check(&mut steps) } else { rebuild(&mut steps) };
    steps.summary();
    result
}

/// Builds the object anew and records how.
fn rebuild(steps: &mut Steps) -> Result<()> {
    install(steps)?;
    let toolchain = toolchain().context("no tools to build kernel programs with: see CONTRIBUTING.md")?;
    let built = build(steps)?;
    std::fs::copy(&built, root().join(OBJECT)).with_context(|| format!("copying {}", built.display()))?;
    std::fs::write(root().join(RECORD), record(&toolchain)?).context("writing the record")?;
    steps.say(&format!("  {OBJECT} and {RECORD} are new; commit them with the source"));
    Ok(())
}

/// Whether the committed object is what its source makes.
pub(crate) fn check(steps: &mut Steps) -> Result<()> {
    let recorded = std::fs::read_to_string(root().join(RECORD)).with_context(|| format!("reading {RECORD}"))?;
    let field = |name: &str| recorded.lines().find_map(|l| l.strip_prefix(name)).map_or("", str::trim);
    let again = "run cargo xtask ebpf and commit what it makes";
    ensure!(field("source") == digest_of_sources()?, "the source of the kernel programs was changed: {again}");
    let object = std::fs::read(root().join(OBJECT)).with_context(|| format!("reading {OBJECT}"))?;
    ensure!(field("object") == hex(&object), "{OBJECT} is not the one that was recorded: {again}");
    if let Err(e) = install(steps) {
        steps.left_out(format!("kernel programs were not built anew: {e:#}"));
        return Ok(());
    }
    let Some(toolchain) = toolchain() else {
        steps.left_out("kernel programs were not built anew: their tools are not there".into());
        return Ok(());
    };
    let built = build(steps)?;
    if field("tools") != toolchain {
        steps.say(&format!("  the object was built by {}, here are {toolchain}: bytes not compared", field("tools")));
        return Ok(());
    }
    let built = std::fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    ensure!(built == object, "{OBJECT} is not what its source makes: {again}");
    Ok(())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The tools by their versions, if all are there.
fn toolchain() -> Option<String> {
    let compiler = run(Command::new(COMPILER).arg("--version")).ok()?;
    let linker = run(Command::new(linker()).arg("--version")).ok()?;
    let llvm = run(Command::new(format!("{LLVM}/bin/llvm-config")).arg("--version")).ok()?;
    Path::new("/usr/lib/rustlib/src/rust/library/core").exists().then_some(())?;
    Some(format!("{}; {}; LLVM {}", compiler.trim(), linker.trim(), llvm.trim()))
}

fn linker() -> PathBuf {
    tools().join("bin/bpf-linker")
}

/// Installs the tools where they are missing: half a minute for the packages, one for the linker.
fn install(steps: &mut Steps) -> Result<()> {
    let compiler = Path::new("/usr/lib/rustlib/src/rust/library/core").exists() && Path::new(COMPILER).exists();
    if !compiler || !Path::new(LLVM).join("bin/llvm-config").exists() {
        if Need::Root.missing().is_some() || find_program("apt-get").is_none() {
            bail!("{} are missing, and we are not root or have no apt-get", PACKAGES.join(", "));
        }
        packages::apt(steps, &PACKAGES)?;
    }
    if run(Command::new(linker()).arg("--version")).is_ok_and(|v| v.contains(LINKER_VERSION)) {
        return Ok(());
    }
    let mut cargo = cargo();
    cargo.args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--no-default-features"]);
    cargo.args(["--features", "llvm-22", "--root"]).arg(tools()).env("LLVM_PREFIX", LLVM);
    steps.run(&format!("bpf-linker {LINKER_VERSION} into target/tools"), &mut cargo)
}

fn build(steps: &mut Steps) -> Result<PathBuf> {
    let target = std::path::absolute(target_dir().join("bpf")).context("the target directory")?;
    let mut path = std::ffi::OsString::from(std::path::absolute(tools().join("bin")).context("the tools")?);
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut cargo = cargo();
    cargo.current_dir(root().join("ebpf/programs"));
    cargo.args(["build", "--release", "--locked", "--target", TARGET, "-Z", "build-std=core"]);
    // The compiler is a stable one, and what it is asked for (a target without a standard library) is not.
    cargo.env("RUSTC", COMPILER).env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", &target).env("PATH", path);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f")).env_remove("RUSTFLAGS");
    steps.run("kernel programs", &mut cargo)?;
    Ok(target.join(TARGET).join("release/programs"))
}

fn record(toolchain: &str) -> Result<String> {
    let object = std::fs::read(root().join(OBJECT)).with_context(|| format!("reading {OBJECT}"))?;
    Ok(format!("tools   {toolchain}\nsource  {}\nobject  {}\n", digest_of_sources()?, hex(&object)))
}

/// Of names and contents of all sources, and of the flags.
fn digest_of_sources() -> Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        let path = root().join(source);
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).with_context(|| format!("reading {source}"))?;
            for entry in entries {
                files.push(format!("{source}/{}", entry?.file_name().to_string_lossy()));
            }
        } else {
            files.push(source.to_owned());
        }
    }
    files.sort();
    let mut list = FLAGS.join(" ");
    for file in files {
        let bytes = std::fs::read(root().join(&file)).with_context(|| format!("reading {file}"))?;
        // Writing to a `String` cannot fail.
        let _ = write!(list, "\n{file} {}", hex(&bytes));
    }
    Ok(hex(list.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_object_is_of_the_committed_source() {
        let recorded = std::fs::read_to_string(root().join(RECORD)).expect("a record");
        let object = std::fs::read(root().join(OBJECT)).expect("an object");
        assert!(recorded.contains(&format!("source  {}\n", digest_of_sources().expect("sources"))));
        assert!(recorded.contains(&format!("object  {}\n", hex(&object))));
    }
}
