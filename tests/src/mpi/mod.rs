//! A small real MPI job over hosts that are namespaces: Open MPI with `ip netns exec` in the place of ssh.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::ns::Namespace;
use crate::process::{Process, run, state_file};
use crate::require::Need;

const PROGRAM: &str = include_str!("ring.c");
const LIMIT: Duration = Duration::from_secs(180);

/// A host of the job: a name for people, its namespace, and the address by which the others reach it.
pub type Host<'a> = (&'a str, &'a Namespace, IpAddr);

/// How much there is to do.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Points of the midpoint rule.
    pub points: u64,
    /// Bytes of a block that goes around.
    pub block: u32,
    /// Times that it goes around.
    pub laps: u32,
}

/// What the job found out.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Processes.
    pub ranks: u64,
    /// Pi, as they found it.
    pub pi: f64,
    /// Seconds that it took.
    pub pi_seconds: f64,
    /// One barrier, microseconds.
    pub barrier_us: f64,
    /// Bytes that went over all links of the ring.
    pub ring_bytes: f64,
    /// The rate of all links together, Mbit/s.
    pub ring_mbps: f64,
}

/// What a machine must have.
#[must_use]
pub fn needs() -> Vec<Need> {
    vec![Need::Root, Need::Program("ip"), Need::Program("unshare"), Need::Program("mpicc"), Need::Program("mpirun")]
}

/// A compiled job in a directory of its own, removed when dropped.
#[derive(Debug)]
pub struct Job {
    dir: PathBuf,
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Job {
    /// Compiles it.
    ///
    /// # Errors
    /// When `mpicc` says no.
    pub fn compile() -> Result<Self> {
        let dir = state_file("mpi")?;
        std::fs::DirBuilder::new().mode(0o700).create(&dir).with_context(|| format!("making {}", dir.display()))?;
        let job = Self { dir };
        std::fs::write(job.dir.join("ring.c"), PROGRAM)?;
        run(Command::new("mpicc")
            .args(["-O2", "-o"])
            .arg(job.dir.join("ring"))
            .arg(job.dir.join("ring.c"))
            .arg("-lm"))?;
        Ok(job)
    }

    /// Runs one process on every host, over `subnet` alone, started from the first.
    ///
    /// # Errors
    /// When it fails, takes too long, or finds something wrong.
    pub fn run(&self, hosts: &[Host<'_>], subnet: &str, work: Work) -> Result<Outcome> {
        let (first, agent) = (hosts.first().context("no host")?, self.agent(hosts)?);
        let list: Vec<String> = hosts.iter().map(|(_, _, a)| format!("{a}:1")).collect();
        // Hosts share one machine: without a host name each, Open MPI would pass messages through shared memory.
        let mut command = first.1.command("unshare");
        command.args(["--uts", "sh", "-c", "hostname \"$0\" && exec \"$@\"", first.0, "mpirun", "--allow-run-as-root"]);
        command.args(["-np", &hosts.len().to_string(), "--host", &list.join(","), "--bind-to", "none"]);
        for (key, value) in [
            ("plm_rsh_agent", agent.to_string_lossy().as_ref()),
            ("btl", "tcp,self"),
            ("pml", "ob1"),
            ("btl_tcp_if_include", subnet),
            ("oob_tcp_if_include", subnet),
            // Two cores for all: a process that waits gives way.
            ("mpi_yield_when_idle", "1"),
        ] {
            command.args(["--mca", key, value]);
        }
        command.arg(self.dir.join("ring"));
        command.args([work.points.to_string(), work.block.to_string(), work.laps.to_string()]);
        command.env("TMPDIR", &self.dir).current_dir(&self.dir);
        let mut process = Process::start("mpirun", &mut command)?;
        let status = process.wait(LIMIT)?;
        let log = process.log();
        ensure!(status.success(), "mpirun ended with {status}:\n{}", process.tail());
        let line = log.lines().find(|l| l.starts_with('{')).with_context(|| format!("no result in {log}"))?;
        outcome(&serde_json::from_str(line)?, hosts.len())
    }

    /// The script that stands in for ssh: `AGENT HOST COMMAND...`.
    fn agent(&self, hosts: &[Host<'_>]) -> Result<PathBuf> {
        let mut script = "#!/bin/sh\nhost=$1\nshift\ncase $host in\n".to_owned();
        for (name, ns, address) in hosts {
            let _ = writeln!(script, "{address}) ns={} name={name} ;;", ns.name());
        }
        script.push_str("*) echo \"no such host: $host\" >&2; exit 1 ;;\nesac\n");
        // As ssh does it: the words become one line for a shell there.
        script.push_str(
            "exec ip netns exec \"$ns\" unshare --uts sh -c 'hostname \"$0\" && exec sh -c \"$1\"' \"$name\" \"$*\"\n",
        );
        let path = self.dir.join("agent");
        std::fs::write(&path, script)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700))?;
        Ok(path)
    }
}

fn outcome(v: &Value, hosts: usize) -> Result<Outcome> {
    let number = |key: &str| v[key].as_f64().with_context(|| format!("no {key} in {v}"));
    let ranks = v["ranks"].as_u64().context("no ranks")?;
    ensure!(ranks == hosts as u64, "{ranks} processes on {hosts} hosts");
    ensure!(number("wrong_bytes")? == 0.0, "the ring delivered wrong bytes: {v}");
    ensure!(number("error")? < 1e-9, "that is not pi: {v}");
    Ok(Outcome {
        ranks,
        pi: number("pi")?,
        pi_seconds: number("pi_seconds")?,
        barrier_us: number("barrier_us")?,
        ring_bytes: number("ring_bytes")?,
        ring_mbps: number("ring_mbps")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::internet::{Gateway, Internet};
    use crate::scene::{Share, play};

    fn received(ns: &Namespace) -> Result<u64> {
        let text = ns.ip("-s -j link show dev eth0")?;
        serde_json::from_str::<Value>(&text)?[0]["stats64"]["rx"]["bytes"].as_u64().context("no count")
    }

    #[test]
    fn the_job_runs_over_a_plain_lan_and_its_bytes_cross_the_wire() {
        play(Share::Shared, &needs(), || {
            let internet = Internet::new()?;
            let site = internet.site("lan", Gateway::Public, 3)?;
            let names = ["one", "two", "three"];
            let hosts: Vec<Host<'_>> =
                site.hosts.iter().zip(names).map(|(h, n)| (n, &h.ns, IpAddr::from(h.address))).collect();
            let work = Work { points: 3_000_000, block: 100_000, laps: 2 };
            let outcome = Job::compile()?.run(&hosts, "198.18.1.0/24", work)?;
            ensure!(outcome.ring_mbps > 0.0, "{outcome:?}");
            for host in &site.hosts {
                let bytes = received(&host.ns)?;
                ensure!(bytes > 600_000, "only {bytes} bytes came to {}", host.address);
            }
            Ok(())
        });
    }
}
