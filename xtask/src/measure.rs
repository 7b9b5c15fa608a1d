//! What demo and bench have in common: two sites, iperf3 between them, and the cost in CPU time.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use ipop_tests::daemon::Implementation;
use ipop_tests::ns::Namespace;
use ipop_tests::pair::{Options, Pair, Side};
use ipop_tests::process::{Process, cpu_seconds, resident_bytes, run, state_file, wait_for};
use serde_json::Value;

use crate::stop;

/// What a command adds to the time that it is told to run for: start, connection, report.
const SLACK: Duration = Duration::from_secs(25);
const PORT_READY: Duration = Duration::from_secs(5);

/// Two sites with one implementation at both ends and an iperf3 server at B.
pub(crate) struct Rig {
    server: Process,
    pub(crate) pair: Pair,
}

/// One iperf3 run.
pub(crate) struct Run {
    /// iperf3's report.
    pub(crate) report: Value,
    /// CPU seconds of both daemons in its time, softirq work done on their account included.
    pub(crate) daemon_cpu: f64,
}

impl Rig {
    /// Brings it up, to the first answered ping.
    pub(crate) fn start(implementation: &Implementation) -> Result<Self> {
        let pair = Pair::start(implementation, implementation, Options { level: "error", ..Options::default() })?;
        pair.wait_ping(Side::A, Duration::from_secs(15))?;
        Ok(Self { server: serve(&pair)?, pair })
    }

    /// CPU seconds of both daemons so far.
    pub(crate) fn cpu(&self) -> Result<f64> {
        self.sum(cpu_seconds)
    }

    /// Resident bytes of the larger daemon.
    pub(crate) fn resident(&self) -> Result<u64> {
        let of = |side| resident_bytes(self.pair.site(side).daemon.pid());
        of(Side::A).max(of(Side::B)).context("a daemon has ended")
    }

    fn sum(&self, of: impl Fn(u32) -> Option<f64>) -> Result<f64> {
        let one = |side| of(self.pair.site(side).daemon.pid()).context("a daemon has ended");
        Ok(one(Side::A)? + one(Side::B)?)
    }

    /// Bytes that B's tunnel interface has taken in so far.
    pub(crate) fn delivered(&self) -> Result<u64> {
        let text = self.pair.ns(Side::B).ip(&format!("-s -j link show dev {}", self.pair.interface(Side::B)))?;
        let links: Value = serde_json::from_str(&text)?;
        links[0]["stats64"]["rx"]["bytes"].as_u64().context("no byte count of the interface")
    }

    /// Runs an iperf3 client at A, `each` called about once a second; one more try if the server was stuck.
    pub(crate) fn iperf(&mut self, seconds: f64, args: &[&str], mut each: impl FnMut(&Self)) -> Result<Run> {
        let first = self.iperf_once(seconds, args, &mut each);
        stop::check()?;
        first.or_else(|_| {
            self.server = serve(&self.pair)?;
            self.iperf_once(seconds, args, &mut each)
        })
    }

    fn iperf_once(&self, seconds: f64, args: &[&str], each: &mut impl FnMut(&Self)) -> Result<Run> {
        let out = state_file("iperf")?;
        let mut command = self.pair.ns(Side::A).command("iperf3");
        command.args(["-c", &Side::B.inner4().to_string(), "-J", "--connect-timeout", "5000"]);
        command.args(["-t", &seconds.to_string()]).args(args);
        command.stdout(std::fs::File::create(&out)?).stderr(std::process::Stdio::null());
        let before = self.cpu()?;
        let mut client = Process::adopt("iperf3", out.clone(), &mut command)?;
        let (start, mut beats) = (Instant::now(), 0);
        let limit = Duration::from_secs_f64(seconds) + SLACK;
        let ended = wait_for("iperf3", limit, || {
            if start.elapsed().as_secs() > beats {
                beats = start.elapsed().as_secs();
                each(self);
            }
            Ok(stop::asked() || !client.running())
        });
        let daemon_cpu = self.cpu()? - before;
        let text = client.log();
        let _ = std::fs::remove_file(&out);
        stop::check()?;
        ended?;
        let report: Value = serde_json::from_str(&text).map_err(|e| anyhow!("iperf3 printed {text:.200?}: {e}"))?;
        ensure!(report["error"].is_null(), "iperf3: {}", report["error"]);
        Ok(Run { report, daemon_cpu })
    }

    /// Fails if the server or a daemon has ended.
    pub(crate) fn alive(&mut self) -> Result<()> {
        ensure!(self.server.running(), "the iperf3 server has ended:\n{}", self.server.tail());
        self.pair.both_run()
    }
}

fn serve(pair: &Pair) -> Result<Process> {
    let ns = pair.ns(Side::B);
    // The one before, if any, has to let go of the port.
    let listening = || -> Result<bool> {
        let out = ipop_tests::process::run(ns.command("ss").args(["-ltnH", "sport = :5201"]))?;
        Ok(!out.trim().is_empty())
    };
    let mut command = ns.command("iperf3");
    let server = Process::start("iperf3 server", command.args(["-s", "-J"]))?;
    wait_for("the iperf3 server", PORT_READY, listening)?;
    Ok(server)
}

impl Run {
    /// A number of the report by its JSON pointer.
    pub(crate) fn number(&self, pointer: &str) -> Result<f64> {
        let value = self.report.pointer(pointer).and_then(Value::as_f64);
        value.with_context(|| format!("iperf3's report has no {pointer}"))
    }

    /// Bytes that a UDP server counted. (Its loss count is blind to a flow that stops dead.)
    pub(crate) fn udp_received(&self) -> Result<f64> {
        let intervals = self.report["server_output_json"]["intervals"].as_array().context("no server output")?;
        Ok(intervals.iter().filter_map(|i| i["sum"]["bytes"].as_f64()).sum())
    }
}

/// One iperf3 TCP flow between two namespaces; what arrived, Gbit/s.
pub(crate) fn tcp(near: &Namespace, far: &Namespace, to: IpAddr, seconds: u32) -> Result<f64> {
    tcp_to(near, (far, to), &to.to_string(), seconds)
}

/// [`tcp`] to a server that is bound to an address of its own and goes by another, or by a name, at the client.
pub(crate) fn tcp_to(near: &Namespace, far: (&Namespace, IpAddr), to: &str, seconds: u32) -> Result<f64> {
    let (far, own) = far;
    let mut serve = far.command("iperf3");
    let mut server = Process::start("iperf3 server", serve.args(["-s", "-1", "-B", &own.to_string()]))?;
    wait_for("the iperf3 server", Duration::from_secs(5), || {
        ensure!(server.running(), "it has ended: {}", server.tail());
        Ok(!run(far.command("ss").args(["-ltnH", "sport = :5201"]))?.trim().is_empty())
    })?;
    let out = state_file("iperf")?;
    let mut command = near.command("iperf3");
    command.args(["-c", to, "-J", "--connect-timeout", "5000", "-t", &seconds.to_string()]);
    if own.is_ipv4() {
        // A name has an IPv6 address, too, where nobody listens.
        command.arg("-4");
    }
    command.stdout(std::fs::File::create(&out)?).stderr(std::process::Stdio::null());
    let mut client = Process::adopt("iperf3", out.clone(), &mut command)?;
    let limit = Duration::from_secs(seconds.into()) + SLACK;
    let ended = wait_for("iperf3", limit, || Ok(stop::asked() || !client.running()));
    let text = client.log();
    let _ = std::fs::remove_file(&out);
    stop::check()?;
    ended?;
    let report: Value = serde_json::from_str(&text).with_context(|| format!("iperf3 printed {text:.200?}"))?;
    ensure!(report["error"].is_null(), "iperf3: {}", report["error"]);
    let bits = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    Ok(bits.context("iperf3 reported no rate")? / 1e9)
}

/// The middle one; of an even number the mean of the two.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[half]),
        _ => Some(f64::midpoint(sorted[half - 1], sorted[half])),
    }
}

/// The value at a fraction of the sorted list, as the lab counts percentiles.
pub(crate) fn percentile(values: &[f64], fraction: f64) -> Option<f64> {
    let sorted = sorted(values);
    let index = (sorted.len() as f64 * fraction) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied()
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut v = values.to_vec();
    v.sort_by(f64::total_cmp);
    v
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles_are_those_of_the_sorted_list() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!((median(&[]), percentile(&[], 0.5)), (None, None));
        let v: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!((percentile(&v, 0.99), percentile(&v, 1.0)), (Some(99.0), Some(99.0)));
    }
}
