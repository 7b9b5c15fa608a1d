//! `ipop-fast doctor` on the machine that the tests run on.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use ipop_tests::daemon::Implementation;
use ipop_tests::process::{output, run};
use ipop_tests::require::Need;
use ipop_tests::scene::{Share, play};
use serde_json::Value;

fn scene(body: impl FnOnce(std::path::PathBuf) -> Result<()>) {
    let ours = Implementation::under_test();
    play(Share::Shared, &[Need::Daemon(ours.clone()), Need::RealIpopFast], || body(ours.binary()?));
}

#[test]
fn the_doctor_speaks_of_everything_that_the_data_plane_leans_on() {
    scene(|binary| {
        let out = output(Command::new(binary).arg("doctor"))?;
        let said = String::from_utf8_lossy(&out.stdout).to_lowercase();
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        for word in [release.trim(), "io_uring", "tun", "gso", "gro", "buffer", "cores", "capabilit", "kernel programs"]
        {
            ensure!(said.contains(word), "nothing about {word:?}:\n{said}");
        }
        Ok(())
    });
}

#[test]
fn the_doctor_prints_json_that_agrees_with_the_machine() {
    scene(|binary| {
        let text = run(Command::new(binary).args(["doctor", "--json"]))?;
        let report: Value = serde_json::from_str(&text).with_context(|| format!("no JSON: {text:?}"))?;
        ensure!(report["usable"] == true, "not usable here: {text}");
        let items = report["items"].as_array().context("no items")?;
        ensure!(items.len() >= 10, "only {} items: {text}", items.len());
        for i in items {
            ensure!(["yes", "limited"].contains(&i["state"].as_str().unwrap_or_default()), "{i}");
        }
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        ensure!(text.contains(release.trim()), "another kernel than {release}: {text}");
        Ok(())
    });
}
