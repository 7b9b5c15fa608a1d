//! `cargo xtask bench`: the side-by-side table, peers taken in turn round by round so that drift hits all alike.

mod ciphers;
mod flood;
mod group;
mod report;
mod trials;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::Args;
use ipop_tests::daemon::{Implementation, Io, target_dir};
use ipop_tests::scene;
use serde_json::{Value, json};

use crate::measure::Rig;
use crate::packages;
use crate::steps::Steps;
use crate::stop;

/// Every peer by the name it is asked for.
const CAST: [(&str, Implementation); 4] = [
    ("ipop-fast-uring", Implementation::with_io(Io::Uring)),
    ("ipop-fast-mmsg", Implementation::with_io(Io::Mmsg)),
    ("wireguard-go", Implementation::WireguardGo),
    ("boringtun", Implementation::Boringtun),
];

#[derive(Args)]
pub(crate) struct Options {
    /// Rounds; the table has medians over them
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// One short round: a look, not a result
    #[arg(long)]
    quick: bool,
    /// Instead: a link that two nodes of a group negotiated against one set up by hand, same hosts, same run
    #[arg(long, conflicts_with = "peers")]
    group: bool,
    /// Instead: the ciphers and their back ends, everything else being the same
    #[arg(long, conflicts_with_all = ["peers", "group"])]
    ciphers: bool,
    /// Instead: a TCP flow beside floods of junk, with and without kernel programs
    #[arg(long, conflicts_with_all = ["peers", "group"])]
    flood: bool,
    /// Which of ipop-fast-uring, ipop-fast-mmsg, wireguard-go, boringtun (all)
    peers: Vec<String>,
}

/// One line of the result: a trial of a peer in a round.
struct Line {
    peer: &'static str,
    test: &'static str,
    figures: Value,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.group {
        return group::run(if options.quick { 1 } else { options.rounds.max(1) });
    }
    let ours = ["ipop-fast-uring".to_owned()];
    if options.flood {
        return flood::run(if options.quick { 1 } else { options.rounds.max(1) });
    }
    let cast = cast(if options.ciphers { &ours } else { &options.peers })?;
    let mut steps = Steps::new("bench-logs")?;
    packages::install(&mut steps)?;
    packages::demand_tunnels()?;
    scene::sweep();
    if cast.iter().any(|(n, _)| *n == "boringtun") {
        packages::boringtun(&mut steps)?;
    }
    if cast.iter().any(|(n, _)| n.starts_with("ipop")) {
        packages::ipop_fast(&mut steps, packages::Build::Release)?;
    }
    let length = if options.quick { trials::Length::QUICK } else { trials::Length::FULL };
    let rounds = if options.quick { 1 } else { options.rounds.max(1) };
    if options.ciphers {
        return ciphers::run(rounds, &length);
    }
    let (path, mut file) = results_file()?;
    let mut lines = Vec::new();
    for round in 1..=rounds {
        for (name, implementation) in &cast {
            stop::check()?;
            eprintln!("round {round} of {rounds}: {name}, load {}", load());
            measure(name, implementation, &length, |line| {
                let when = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
                let object = json!({ "peer": line.peer, "round": round, "test": line.test, "figures": line.figures, "ts": when });
                writeln!(file, "{object}")?;
                eprintln!("  {:<10} {}", line.test, line.figures);
                lines.push(line);
                Ok(())
            })?;
        }
    }
    let versions = cast.iter().map(|(n, i)| (*n, i.version().unwrap_or_default())).collect::<Vec<_>>();
    println!("{}", report::markdown(&lines, &versions, rounds, options.quick));
    eprintln!("raw lines: {}", path.display());
    Ok(())
}

fn cast(wanted: &[String]) -> Result<Vec<(&'static str, Implementation)>> {
    if let Some(unknown) = wanted.iter().find(|w| CAST.iter().all(|(n, _)| n != w)) {
        bail!("no peer {unknown}; there are {}", CAST.map(|(n, _)| n).join(", "));
    }
    Ok(CAST.into_iter().filter(|(n, _)| wanted.is_empty() || wanted.iter().any(|w| w == n)).collect())
}

/// All trials of one peer, each on the same pair of daemons. A trial that fails is a line that says so.
fn measure(
    peer: &'static str,
    implementation: &Implementation,
    length: &trials::Length,
    mut note: impl FnMut(Line) -> Result<()>,
) -> Result<()> {
    let mut rig = match Rig::start(implementation) {
        Ok(rig) => rig,
        Err(e) => return note(Line { peer, test: "start", figures: json!({ "failed": format!("{e:#}") }) }),
    };
    for (test, trial) in trials::ALL {
        stop::check()?;
        let figures = trial(&mut rig, length).unwrap_or_else(|e| json!({ "failed": format!("{e:#}") }));
        note(Line { peer, test, figures })?;
        if let Err(e) = rig.alive() {
            note(Line { peer, test, figures: json!({ "failed": format!("{e:#}") }) })?;
            rig = Rig::start(implementation)?;
        }
    }
    Ok(())
}

fn results_file() -> Result<(PathBuf, File)> {
    let dir = target_dir().join("bench");
    std::fs::create_dir_all(&dir)?;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let path = dir.join(format!("{seconds}.jsonl"));
    let file = OpenOptions::new().create(true).append(true).open(&path);
    Ok((path.clone(), file.with_context(|| format!("creating {}", path.display()))?))
}

/// The machine's load before a peer: other work ruins figures.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}
