//! `cargo xtask bench --flood`: what is left of a TCP flow beside junk, and what the junk costs the daemon, without
//! kernel programs, with those at the sockets, and with the guard as well.
//!
//! The flooder takes CPU time of the same machine. So each rate is compared with that beside the same flood aimed at a
//! port that nobody uses and dropped by nftables before anything else is done with it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use ipop_tests::daemon::{Implementation, Io};
use ipop_tests::junk::{Junk, Torrent, index_of_b};
use ipop_tests::pair::{Side, UNDERLAY};
use ipop_tests::process::{cpu_seconds, run as run_command};
use ipop_tests::scene;

use crate::measure::{Rig, median};
use crate::packages;
use crate::steps::Steps;
use crate::stop;

/// Junk datagrams a second.
const RATE: u64 = 200_000;
/// Where nobody listens.
const UNUSED: u16 = 9;
const SECONDS: f64 = 5.0;
/// How long the daemon is watched under junk alone.
const WATCH: Duration = Duration::from_secs(3);
/// CPU seconds are told for so many datagrams.
const PER: f64 = 10e6;
/// Addresses of which spoofed junk comes, all in a network that the flooder says is its own.
const SPOOFED: u16 = 500;
const SPOOFED_NETWORK: &str = "10.200.0.0/16";

/// The daemons that are compared.
const CASTS: [(&str, &[&str]); 3] = [
    ("without", &["--ebpf", "off"]),
    ("steer", &["--ebpf", "on"]),
    ("guard", &["--ebpf", "on", "--xdp", "ul0:generic"]),
];
const FLOODS: [&str; 5] =
    ["random", "handshake-shaped", "unknown index", "known index, bad tag", "random, spoofed sources"];

/// One daemon's figures of all rounds.
#[derive(Default)]
struct Figures {
    alone: Vec<f64>,
    beside: [Vec<f64>; FLOODS.len()],
    reference: [Vec<f64>; FLOODS.len()],
    cpu: [Vec<f64>; FLOODS.len()],
}

pub(super) fn run(rounds: u32) -> Result<()> {
    let mut steps = Steps::new("bench-logs")?;
    packages::install(&mut steps)?;
    packages::demand_tunnels()?;
    scene::sweep();
    packages::ipop_fast(&mut steps, packages::Build::Release)?;
    let mut figures = [Figures::default(), Figures::default(), Figures::default()];
    for round in 1..=rounds {
        for ((name, args), figures) in CASTS.iter().zip(&mut figures) {
            stop::check()?;
            eprintln!("round {round} of {rounds}: {name}, load {}", super::load());
            measure(args, figures).with_context(|| format!("{name}, round {round}"))?;
        }
    }
    println!("{}", table(&figures, rounds));
    Ok(())
}

fn measure(args: &[&str], figures: &mut Figures) -> Result<()> {
    let args = ["--shards", "2"].iter().chain(args).map(|s| (*s).to_owned()).collect();
    let mut rig = Rig::start(&Implementation::IpopFast { io: Io::Auto, args })?;
    let (index, _) = index_of_b(&rig.pair)?;
    let (a, b) = (rig.pair.ns(Side::A), rig.pair.ns(Side::B));
    debug_assert!(CASTS[2].1[3].starts_with(UNDERLAY));
    a.ip(&format!("route add local {SPOOFED_NETWORK} dev lo"))?;
    b.ip(&format!("route add {SPOOFED_NETWORK} via 10.99.0.1"))?;
    let rules = format!(
        "table inet bench {{ chain early {{ type filter hook prerouting priority raw; udp dport {UNUSED} drop; }}; }}"
    );
    run_command(b.command("nft").arg(rules))?;
    figures.alone.push(tcp(&mut rig)?);
    for (n, name) in FLOODS.iter().enumerate() {
        let kind = match n {
            0 | 4 => Junk::Random,
            1 => Junk::Initiation,
            2 => Junk::Data(index ^ 0x8000_0000),
            _ => Junk::Data(index),
        };
        let to = rig.pair.endpoint(Side::B);
        let flood = |rig: &Rig, to| Torrent::start(rig.pair.ns(Side::A), &sources(n == 4), to, kind, RATE);
        let reference = {
            let _torrent = flood(&rig, SocketAddr::new(to.ip(), UNUSED))?;
            tcp(&mut rig)?
        };
        let beside = {
            let _torrent = flood(&rig, to)?;
            tcp(&mut rig)?
        };
        let cpu = {
            let torrent = flood(&rig, to)?;
            let pid = rig.pair.site(Side::B).daemon.pid();
            let now = || cpu_seconds(pid).context("the daemon has ended");
            let (before, sent) = (now()?, torrent.sent());
            std::thread::sleep(WATCH);
            (now()? - before) / (torrent.sent() - sent).max(1) as f64 * PER
        };
        eprintln!("  {name:<24} {beside:.2} of {reference:.2} Gbit/s, {cpu:.1} CPU seconds");
        figures.beside[n].push(beside);
        figures.reference[n].push(reference);
        figures.cpu[n].push(cpu);
        rig.alive()?;
    }
    Ok(())
}

fn tcp(rig: &mut Rig) -> Result<f64> {
    stop::check()?;
    Ok(rig.iperf(SECONDS, &["-C", "cubic"], |_| ())?.number("/end/sum_received/bits_per_second")? / 1e9)
}

/// Where junk comes from.
fn sources(spoofed: bool) -> Vec<SocketAddr> {
    if !spoofed {
        return vec![([0; 4], 0).into()];
    }
    (0..SPOOFED).map(|n| ([10, 200, (n >> 8) as u8, n as u8], 0).into()).collect()
}

fn table(figures: &[Figures], rounds: u32) -> String {
    let middle = |v: &[f64]| median(v).unwrap_or(f64::NAN);
    let mut lines = vec![
        format!(
            "TCP beside {RATE} junk datagrams a second, medians of {rounds} rounds of {SECONDS:.0} s; in brackets, of the rate"
        ),
        "beside the same flood dropped by nftables. Then CPU seconds of the daemon for 10 million junk datagrams."
            .into(),
        String::new(),
        format!("| junk | {} |", CASTS.map(|(n, _)| format!("{n}, Gbit/s | CPU s")).join(" | ")),
        format!("|---{}", "|---|---".repeat(CASTS.len()) + "|"),
        format!(
            "| none | {} |",
            figures.iter().map(|f| format!("{:.2} | ", middle(&f.alone))).collect::<Vec<_>>().join(" | ")
        ),
    ];
    for (n, name) in FLOODS.iter().enumerate() {
        let cell = |f: &Figures| {
            let ratios: Vec<f64> = f.beside[n].iter().zip(&f.reference[n]).map(|(b, r)| b / r).collect();
            format!("{:.2} ({:.2}) | {:.1}", middle(&f.beside[n]), middle(&ratios), middle(&f.cpu[n]))
        };
        lines.push(format!("| {name} | {} |", figures.iter().map(cell).collect::<Vec<_>>().join(" | ")));
    }
    lines.join("\n")
}
