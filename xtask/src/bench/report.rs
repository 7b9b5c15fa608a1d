//! The table, and whether what was to be reached is reached.

use std::fmt::Write;

use crate::bench::Line;
use crate::measure::median;
use crate::packages;

/// Heading, test, figure, factor, decimals.
const COLUMNS: [(&str, &str, &str, f64, usize); 13] = [
    ("TCP up Gbit/s", "tcp_up", "gbps", 1.0, 2),
    ("TCP down Gbit/s", "tcp_down", "gbps", 1.0, 2),
    ("TCP x4 Gbit/s", "tcp_p4", "gbps", 1.0, 2),
    ("TCP both ways, sum Gbit/s", "tcp_bidir", "gbps", 1.0, 2),
    ("UDP 1372 B kpps", "udp1372", "kpps", 1.0, 0),
    ("UDP 64 B kpps", "udp64", "kpps", 1.0, 0),
    ("ping p50 us", "ping", "p50_us", 1.0, 0),
    ("ping p99 us", "ping", "p99_us", 1.0, 0),
    ("loaded ping p50 ms", "ping_load", "p50_us", 1e-3, 2),
    ("loaded ping p99 ms", "ping_load", "p99_us", 1e-3, 2),
    ("CPU s/GB up", "tcp_up", "daemon_cpu_s_per_gb", 1.0, 2),
    ("CPU s/GB both ways", "tcp_bidir", "daemon_cpu_s_per_gb", 1.0, 2),
    ("RSS of one daemon MB", "tcp_bidir", "rss_mb", 1.0, 1),
];

const URING: &str = "ipop-fast-uring";
const MMSG: &str = "ipop-fast-mmsg";
const GO: &str = "wireguard-go";
const BORING: &str = "boringtun";

/// A figure over all rounds.
fn values(lines: &[Line], peer: &str, test: &str, figure: &str) -> Vec<f64> {
    let mine = lines.iter().filter(|l| l.peer == peer && l.test == test);
    mine.filter_map(|l| l.figures[figure].as_f64()).collect()
}

pub(super) fn markdown(lines: &[Line], versions: &[(&str, String)], rounds: u32, quick: bool) -> String {
    let mut out = String::new();
    let kind = if quick { "one short round: a look, not a result" } else { "medians (min-max)" };
    let _ = writeln!(out, "\n{rounds} round(s), peers in turn; {kind}.\n");
    for (what, value) in packages::machine() {
        let _ = writeln!(out, "- {what}: {value}");
    }
    for (peer, version) in versions {
        let _ = writeln!(out, "- {peer}: {version}");
    }
    let _ = write!(out, "\n| |");
    for (peer, _) in versions {
        let _ = write!(out, " {peer} |");
    }
    let _ = writeln!(out, "\n|{}", "---|".repeat(versions.len() + 1));
    for (heading, test, figure, factor, decimals) in COLUMNS {
        let _ = write!(out, "| {heading} |");
        for (peer, _) in versions {
            let v: Vec<f64> = values(lines, peer, test, figure).iter().map(|v| v * factor).collect();
            let _ = write!(out, " {} |", cell(&v, decimals));
        }
        out.push('\n');
    }
    goals(lines, &mut out);
    for l in lines.iter().filter(|l| !l.figures["failed"].is_null()) {
        let _ = writeln!(out, "- failed: {} {}: {}", l.peer, l.test, l.figures["failed"]);
    }
    out
}

fn cell(values: &[f64], decimals: usize) -> String {
    let Some(middle) = median(values) else { return "-".into() };
    if values.len() == 1 {
        return format!("{middle:.decimals$}");
    }
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{middle:.decimals$} ({low:.decimals$}-{high:.decimals$})")
}

/// How a figure has to stand to its goal.
#[derive(Clone, Copy)]
enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn mark(self, value: f64) -> String {
        let (met, sign, goal) = match self {
            Self::AtLeast(g) => (value >= g, ">=", g),
            Self::AtMost(g) => (value <= g, "<=", g),
        };
        format!("{value:.2} | {sign} {goal} | {}", if met { "PASS" } else { "short" })
    }
}

fn goals(lines: &[Line], out: &mut String) {
    let m = |peer: &str, test: &str, figure: &str| median(&values(lines, peer, test, figure));
    let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
    let ours = if m(URING, "tcp_up", "gbps").is_some() { URING } else { MMSG };
    let gbps = |peer: &str, test: &str| m(peer, test, "gbps");
    let cpu = "daemon_cpu_s_per_gb";
    let rows: [(&str, Option<f64>, Goal); 11] = [
        ("TCP, times wireguard-go", ratio(gbps(ours, "tcp_up"), gbps(GO, "tcp_up")), Goal::AtLeast(4.8)),
        ("TCP, times boringtun", ratio(gbps(ours, "tcp_up"), gbps(BORING, "tcp_up")), Goal::AtLeast(2.7)),
        ("four streams, times one", ratio(gbps(ours, "tcp_p4"), gbps(ours, "tcp_up")), Goal::AtLeast(1.0)),
        ("both directions, times one", ratio(gbps(ours, "tcp_bidir"), gbps(ours, "tcp_up")), Goal::AtLeast(1.0)),
        ("UDP 64 B, times boringtun", ratio(m(ours, "udp64", "kpps"), m(BORING, "udp64", "kpps")), Goal::AtLeast(1.3)),
        (
            "ping p50, times boringtun's",
            ratio(m(ours, "ping", "p50_us"), m(BORING, "ping", "p50_us")),
            Goal::AtMost(1.0),
        ),
        ("ping p99 under load, ms", m(ours, "ping_load", "p99_us").map(|us| us / 1e3), Goal::AtMost(4.0)),
        ("CPU s/GB, times wireguard-go's", ratio(m(ours, "tcp_up", cpu), m(GO, "tcp_up", cpu)), Goal::AtMost(0.22)),
        ("RSS of one daemon, MB", m(ours, "tcp_bidir", "rss_mb"), Goal::AtMost(40.0)),
        ("TCP, io_uring times mmsg", ratio(gbps(URING, "tcp_up"), gbps(MMSG, "tcp_up")), Goal::AtLeast(1.0)),
        (
            "UDP 64 B, io_uring times mmsg",
            ratio(m(URING, "udp64", "kpps"), m(MMSG, "udp64", "kpps")),
            Goal::AtLeast(1.0),
        ),
    ];
    let known: Vec<_> = rows.iter().filter_map(|(what, value, goal)| Some((what, (*value)?, goal))).collect();
    if known.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n| {ours} | reached | to reach | |\n|---|---|---|---|");
    for (what, value, goal) in known {
        let _ = writeln!(out, "| {what} | {} |", goal.mark(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn goals_are_marked_from_medians_of_one_run() {
        let line = |peer, gbps: f64| Line { peer, test: "tcp_up", figures: json!({ "gbps": gbps }) };
        let lines = [line(URING, 5.0), line(URING, 4.8), line(URING, 9.0), line(GO, 1.0), line(BORING, 2.0)];
        let mut out = String::new();
        goals(&lines, &mut out);
        assert!(out.contains("| TCP, times wireguard-go | 5.00 | >= 4.8 | PASS |"), "{out}");
        assert!(out.contains("| TCP, times boringtun | 2.50 | >= 2.7 | short |"), "{out}");
        assert!(!out.contains("RSS"), "a goal without figures:\n{out}");
    }
}
