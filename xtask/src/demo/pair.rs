//! `cargo xtask demo --static`: two sites on this machine, the tunnel at work, and the same through its peers.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ipop_tests::daemon::Implementation;
use ipop_tests::pair::Side;
use ipop_tests::traffic::ping;
use serde_json::json;

use super::{Options, say};
use crate::measure::{Rig, median};
use crate::packages;
use crate::stop;

/// A full bar, Gbit/s.
const BAR_GBPS: f64 = 8.0;
const BAR: usize = 32;
/// Of throughput for each, unless told otherwise.
const SECONDS: u32 = 8;

struct Figures {
    name: &'static str,
    version: String,
    gbps: f64,
    ping_us: f64,
    cpu_s_per_gb: f64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut cast = vec![Implementation::under_test(), Implementation::WireguardGo];
    if Implementation::Boringtun.binary().is_ok() {
        cast.push(Implementation::Boringtun);
    }
    let mut figures = Vec::new();
    for implementation in &cast {
        stop::check()?;
        figures.push(show(implementation, options).with_context(|| implementation.name())?);
    }
    if options.json {
        println!("{}", as_json(&figures));
    } else {
        print_table(&figures);
    }
    Ok(())
}

fn show(implementation: &Implementation, options: &Options) -> Result<Figures> {
    let version = implementation.version()?;
    say(&format!(
        "\n{} ({version}): site A 172.16.10.1 <== tunnel over 10.99.0.0/24 ==> site B 172.16.10.2",
        implementation.name()
    ));
    let mut rig = Rig::start(implementation)?;
    let peer = rig.pair.peer(Side::A)?;
    say(&format!("  handshake with {}, peer {}", rig.pair.endpoint(Side::B), peer.public_key));
    let mut times = ping(rig.pair.ns(Side::A), Side::B.inner4(), 400, Duration::from_millis(2))?;
    let ping_us = median(&times).context("no ping was answered")? * 1e3;
    times.sort_by(f64::total_cmp);
    say(&format!("  ping: {} of 400 answered, p50 {ping_us:.0} us", times.len()));

    let mut last = (Instant::now(), rig.delivered()?);
    let seconds = f64::from(options.seconds.unwrap_or(SECONDS).clamp(1, 600));
    let run = rig.iperf(seconds, &["-C", "cubic"], |rig| {
        let Ok(bytes) = rig.delivered() else { return };
        let gbps = bytes.saturating_sub(last.1) as f64 * 8e-9 / last.0.elapsed().as_secs_f64();
        last = (Instant::now(), bytes);
        live(gbps);
    })?;
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    let (gbps, bytes) =
        (run.number("/end/sum_received/bits_per_second")? / 1e9, run.number("/end/sum_received/bytes")?);
    let cpu_s_per_gb = run.daemon_cpu / (bytes / 1e9);
    say(&format!("  TCP: {gbps:.2} Gbit/s for {seconds} s, {:.1} GB, {cpu_s_per_gb:.2} CPU s/GB", bytes / 1e9));
    rig.alive()?;
    if options.keep && matches!(implementation, Implementation::IpopFast { .. }) {
        keep(&rig);
    }
    Ok(Figures { name: implementation.name(), version, gbps, ping_us, cpu_s_per_gb })
}

fn live(gbps: f64) {
    let full = ((gbps / BAR_GBPS * BAR as f64) as usize).min(BAR);
    let bar = format!("  TCP: {gbps:6.2} Gbit/s  [{}{}]", "#".repeat(full), ".".repeat(BAR - full));
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{bar}");
        let _ = std::io::stderr().flush();
    } else {
        say(&bar);
    }
}

fn keep(rig: &Rig) {
    for side in [Side::A, Side::B] {
        let (ns, dev) = (rig.pair.ns(side).name(), rig.pair.interface(side));
        say(&format!("  site {side:?}: ip netns exec {ns} bash    wg show {dev}    ipop-fast stats {dev}"));
    }
    say("  kept up until Ctrl-C ...");
    while !stop::asked() {
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn as_json(figures: &[Figures]) -> serde_json::Value {
    let rows: Vec<_> = figures
        .iter()
        .map(|f| {
            json!({ "peer": f.name, "version": f.version, "tcp_gbps": f.gbps, "ping_p50_us": f.ping_us,
                "daemon_cpu_s_per_gb": f.cpu_s_per_gb })
        })
        .collect();
    json!({ "machine": packages::machine().into_iter().collect::<std::collections::BTreeMap<_, _>>(), "results": rows })
}

fn print_table(figures: &[Figures]) {
    let Some(ours) = figures.first() else { return };
    println!("\n  {:<14}{:>13}{:>12}{:>12}   ipop-fast moves", "", "TCP Gbit/s", "ping p50", "CPU s/GB");
    for f in figures {
        let ratio =
            if std::ptr::eq(f, ours) { String::new() } else { format!("{:.1} times as much", ours.gbps / f.gbps) };
        println!("  {:<14}{:>13.2}{:>9.0} us{:>12.2}   {ratio}", f.name, f.gbps, f.ping_us, f.cpu_s_per_gb);
    }
    println!();
    for (what, value) in packages::machine() {
        println!("  {what}: {value}");
    }
    for f in figures {
        println!("  {}: {}", f.name, f.version);
    }
}
