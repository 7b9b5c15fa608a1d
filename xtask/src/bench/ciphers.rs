//! `cargo xtask bench --ciphers`: what the cipher makes of the throughput, everything else being the same binary.

use anyhow::{Result, ensure};
use dataplane::crypto::{Backend, Cipher};
use ipop_tests::daemon::{Implementation, Io, is_ipop_fast};
use serde_json::json;

use super::{Line, trials};
use crate::measure::{Rig, median};
use crate::stop;

/// A library for all packets: what the others are measured against.
const LIBRARY: &str = "library";
/// Our own back end for ChaCha20-Poly1305, the best that this CPU has.
const OURS: &str = "chacha20poly1305";
const AES: &str = "aes256gcm";

/// Trial, figure, what it is called, and what each cipher is to reach, times the library.
const GOALS: [(&str, &str, &str, &str, f64); 4] = [
    ("tcp_up", "gbps", "TCP, ChaCha20-Poly1305", OURS, 1.5),
    ("tcp_up", "gbps", "TCP, AES-256-GCM", AES, 1.75),
    ("udp64", "kpps", "UDP 64 B, ChaCha20-Poly1305", OURS, 1.1),
    ("udp64", "kpps", "UDP 64 B, AES-256-GCM", AES, 1.1),
];

fn cast() -> [(&'static str, Implementation); 3] {
    let with = |args: [&str; 2]| Implementation::IpopFast { io: Io::Auto, args: args.map(str::to_owned).to_vec() };
    [
        (LIBRARY, with(["--aead", Backend::AwsLc.name()])),
        (OURS, with(["--aead", Backend::detect().name()])),
        (AES, with(["--cipher", Cipher::Aes256Gcm.name()])),
    ]
}

pub(super) fn run(rounds: u32, length: &trials::Length) -> Result<()> {
    let binary = Implementation::under_test().binary()?;
    ensure!(is_ipop_fast(&binary), "{} is not called ipop-fast: it would get no options", binary.display());
    let mut lines = Vec::new();
    for round in 1..=rounds {
        for (peer, implementation) in &cast() {
            stop::check()?;
            eprintln!("round {round} of {rounds}: {peer}, load {}", super::load());
            let mut rig = Rig::start(implementation)?;
            for (test, trial) in trials::ALL.iter().filter(|(t, _)| GOALS.iter().any(|g| g.0 == *t)) {
                let figures = trial(&mut rig, length).unwrap_or_else(|e| json!({ "failed": format!("{e:#}") }));
                eprintln!("  {test:<10} {figures}");
                lines.push(Line { peer, test, figures });
            }
        }
    }
    let values = |peer: &str, test: &str, figure: &str| {
        let mine = lines.iter().filter(|l| l.peer == peer && l.test == test);
        mine.filter_map(|l| l.figures[figure].as_f64()).collect::<Vec<_>>()
    };
    let middle = |peer: &str, test: &str, figure: &str| median(&values(peer, test, figure));
    println!(
        "\n{rounds} round(s), ciphers in turn; medians. The library is {}, ours {}.\n",
        Backend::AwsLc,
        Backend::detect()
    );
    println!("| | TCP Gbit/s | daemons' CPU s/GB | UDP 64 B, 1000/s |\n|---|---|---|---|");
    for (peer, _) in cast() {
        let cell = |test, figure, decimals: usize| {
            middle(peer, test, figure).map_or_else(|| "-".to_owned(), |v| format!("{v:.decimals$}"))
        };
        let (gbps, cpu) = (cell("tcp_up", "gbps", 2), cell("tcp_up", "daemon_cpu_s_per_gb", 2));
        println!("| {peer} | {gbps} | {cpu} | {} |", cell("udp64", "kpps", 0));
    }
    println!("\n| times the library | reached | to reach | |\n|---|---|---|---|");
    for (test, figure, what, peer, goal) in GOALS {
        let (Some(a), Some(b)) = (middle(peer, test, figure), middle(LIBRARY, test, figure)) else { continue };
        let verdict = if a / b >= goal { "yes" } else { "short" };
        println!("| {what} | {:.2} | >= {goal} | {verdict} |", a / b);
    }
    Ok(())
}
