//! One function a trial; figures as JSON. Gbit/s are the receiver's.

use std::time::Duration;

use anyhow::{Context, Result};
use ipop_tests::pair::Side;
use ipop_tests::process::wait_for;
use ipop_tests::traffic::ping;
use serde_json::{Value, json};

use crate::measure::{Rig, percentile};
use crate::stop;

/// Highest loss of a rate that counts as carried.
const MOST_LOSS: f64 = 0.01;
/// Bounds of the offered UDP rate, packets a second.
const RATES: (f64, f64) = (4_000.0, 600_000.0);
/// Below this part of the offered rate, the sender itself was at its end.
const SENDER_SPENT: f64 = 0.85;

/// How long trials take.
pub(super) struct Length {
    tcp: f64,
    udp: f64,
    probes: u32,
    pings: u32,
}

impl Length {
    pub(super) const FULL: Self = Self { tcp: 10.0, udp: 1.2, probes: 7, pings: 1000 };
    pub(super) const QUICK: Self = Self { tcp: 3.0, udp: 1.0, probes: 5, pings: 300 };
}

type Trial = fn(&mut Rig, &Length) -> Result<Value>;

/// Every trial in the order in which they run. The last ones find the daemons' memory as the others left it.
pub(super) const ALL: [(&str, Trial); 8] = [
    ("tcp_up", |r, l| tcp(r, l, &[])),
    ("tcp_down", |r, l| tcp(r, l, &["-R"])),
    ("tcp_p4", |r, l| tcp(r, l, &["-P", "4"])),
    ("tcp_bidir", |r, l| tcp(r, l, &["--bidir"])),
    ("udp1372", |r, l| highest_rate(r, l, 1372)),
    ("udp64", |r, l| highest_rate(r, l, 64)),
    ("ping", idle_ping),
    ("ping_load", loaded_ping),
];

fn tcp(rig: &mut Rig, length: &Length, extra: &[&str]) -> Result<Value> {
    let mut args = vec!["-C", "cubic"];
    args.extend(extra);
    let run = rig.iperf(length.tcp, &args, |_| ())?;
    let sum = |field: &str| -> Result<f64> {
        let back = run.number(&format!("/end/sum_received_bidir_reverse/{field}")).unwrap_or(0.0);
        Ok(run.number(&format!("/end/sum_received/{field}"))? + back)
    };
    Ok(json!({
        "gbps": sum("bits_per_second")? / 1e9,
        "retransmits": run.number("/end/sum_sent/retransmits").unwrap_or(0.0),
        "daemon_cpu_s_per_gb": run.daemon_cpu / (sum("bytes")? / 1e9),
        "rss_mb": rig.resident()? as f64 / 1e6,
    }))
}

/// The highest rate with at most 1 % loss, by geometric bisection of short probes.
fn highest_rate(rig: &mut Rig, length: &Length, size: u32) -> Result<Value> {
    let ((mut low, mut high), mut best) = (RATES, 0.0_f64);
    for _ in 0..length.probes {
        stop::check()?;
        let offered = (low * high).sqrt();
        let bits = (offered * f64::from(size) * 8.0).round();
        let (size, bits) = (size.to_string(), bits.to_string());
        let probe = rig.iperf(
            length.udp,
            &["-u", "--get-server-output", "-l", &size, "-b", &bits, "--pacing-timer", "200"],
            |_| (),
        );
        // A probe that breaks down is one that lost everything.
        let Ok((loss, rate)) = probe.and_then(|p| loss_and_rate(&p, &size)) else {
            high = offered;
            continue;
        };
        if loss > MOST_LOSS {
            high = offered;
            continue;
        }
        (low, best) = (offered, best.max(rate));
        if rate < SENDER_SPENT * offered {
            break;
        }
    }
    Ok(json!({ "kpps": best / 1e3, "gbps": best * f64::from(size) * 8.0 / 1e9 }))
}

fn loss_and_rate(probe: &crate::measure::Run, size: &str) -> Result<(f64, f64)> {
    let arrived = probe.udp_received()? / size.parse::<f64>()?;
    let sent = probe.number("/end/streams/0/udp/packets")?;
    let seconds = probe.number("/end/streams/0/udp/seconds")?;
    Ok((1.0 - arrived / sent, arrived / seconds))
}

fn idle_ping(rig: &mut Rig, length: &Length) -> Result<Value> {
    round_trips(&ping(rig.pair.ns(Side::A), Side::B.inner4(), length.pings, Duration::from_millis(2))?)
}

/// Round trips beside one TCP flow at full speed.
fn loaded_ping(rig: &mut Rig, length: &Length) -> Result<Value> {
    let ns = rig.pair.ns(Side::A);
    let (count, interval) = (length.pings * 7 / 10, Duration::from_millis(5));
    let seconds = interval.as_secs_f64() * f64::from(count) + 3.0;
    let mut load = ns.command("iperf3");
    load.args(["-c", &Side::B.inner4().to_string(), "-C", "cubic", "-t", &seconds.to_string()]);
    let mut load = ipop_tests::process::Process::start("iperf3", &mut load)?;
    let before = rig.delivered()?;
    // Past slow start: the queue that the ping meets is the one of full speed.
    let started = wait_for("the flow", Duration::from_secs(6), || Ok(rig.delivered()? > before + 100_000_000));
    let times = started.and_then(|()| ping(ns, Side::B.inner4(), count, interval));
    // The server serves one client at a time: the flow has to end before the next trial.
    let _ = load.wait(Duration::from_secs_f64(seconds + 5.0));
    round_trips(&times?)
}

fn round_trips(milliseconds: &[f64]) -> Result<Value> {
    let at = |f| percentile(milliseconds, f).map(|ms| ms * 1e3).context("no ping was answered");
    Ok(json!({ "p50_us": at(0.5)?, "p99_us": at(0.99)?, "answered": milliseconds.len() }))
}
