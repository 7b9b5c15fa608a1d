//! Long fuzzing, for `cargo xtask test --slow`. What it finds stays in the corpus folders, which the normal tests replay.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::steps::Steps;

/// For each target, in seconds.
const TIME: u32 = 300;

/// Fuzzes every target; left out without `cargo fuzz` or a nightly compiler, which cannot be had everywhere.
pub(crate) fn soak(steps: &mut Steps) -> Result<()> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests");
    let there =
        Command::new("cargo").args(["+nightly", "fuzz", "--version"]).output().is_ok_and(|o| o.status.success());
    if !there {
        steps.left_out("fuzzing: needs `rustup toolchain install nightly` and `cargo install cargo-fuzz`".into());
        return Ok(());
    }
    for entry in std::fs::read_dir(tests.join("fuzz/fuzz_targets")).context("read the list of fuzz targets")? {
        let path = entry?.path();
        let Some(target) = path.file_stem().and_then(|s| s.to_str()) else { continue };
        let mut fuzz = Command::new("cargo");
        fuzz.current_dir(&tests).args(["+nightly", "fuzz", "run", "--fuzz-dir", "fuzz", target, "--"]);
        steps.run(&format!("fuzzing {target}"), fuzz.arg(format!("-max_total_time={TIME}")))?;
    }
    Ok(())
}
