//! Fifty nodes at once.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use control::admin::status::LinkStatus;
use ipop_tests::process::{cpu_seconds, resident_bytes, wait_for};
use ipop_tests::scene::Share;

use crate::cast::{Cast, Xmpp, group_scene};

const NODES: u8 = 50;
/// From the start of the first node until every link of every node is up.
const ALL_TO_ALL: Duration = Duration::from_secs(60);
/// From then until all are direct: the first try again is due after 30 s, by one end or the other, give or take.
const ALL_DIRECT: Duration = Duration::from_secs(150);
/// How long idle nodes are watched.
const IDLE: Duration = Duration::from_secs(10);
/// What a negotiation leaves behind is gone after this.
const SETTLE: Duration = Duration::from_secs(4);
/// Of one core.
const IDLE_CPU: f64 = 0.01;
const MEMORY: u64 = 60 << 20;

#[test]
fn fifty_nodes_are_all_linked_within_a_minute_and_cost_little_when_idle() {
    group_scene(Share::Alone, Xmpp::ProsodyAndCoturn, || {
        let _room = Neighbours::room()?;
        let mut cast = Cast::on_a_lan(Xmpp::ProsodyAndCoturn, NODES)?;
        let all: Vec<_> = (0..usize::from(NODES))
            .map(|n| {
                let mut o = cast.options(n).proactive();
                o.level = "warn".into();
                o
            })
            .collect();
        let start = Instant::now();
        cast.start(all)?;
        everywhere(&cast, ALL_TO_ALL.saturating_sub(start.elapsed()), "up", |l| l.state == "up")?;
        eprintln!("{NODES} nodes, all linked after {:.1} s", start.elapsed().as_secs_f64());
        // A check that came too late on a busy machine makes a link relayed; that is mended by the next try. Until then
        // nobody is idle.
        everywhere(&cast, ALL_DIRECT, "direct", |l| l.path.as_deref() == Some("direct"))?;
        eprintln!("all direct after {:.1} s", start.elapsed().as_secs_f64());
        idle(&cast)?;
        cast.alive()
    });
}

/// Room for neighbours: the kernel has one table for all namespaces, and drops packets to a neighbour for which it has no
/// room (arp(7)). Fifty hosts that talk to each other on one machine make more than the usual 1,024. Put back when dropped.
struct Neighbours(Vec<(PathBuf, String)>);

impl Neighbours {
    const DIRECTORY: &str = "/proc/sys/net/ipv4/neigh/default";

    fn room() -> Result<Self> {
        let mut before = Self(Vec::new());
        for (name, entries) in [("gc_thresh3", "16384"), ("gc_thresh2", "8192"), ("gc_thresh1", "4096")] {
            let path = Path::new(Self::DIRECTORY).join(name);
            let old = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            std::fs::write(&path, entries).with_context(|| path.display().to_string())?;
            before.0.insert(0, (path, old));
        }
        Ok(before)
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        for (path, old) in &self.0 {
            let _ = std::fs::write(path, old);
        }
    }
}

/// Waits until this holds of all links of all nodes. Node by node: asking all of them again and again would be most of the
/// load.
fn everywhere(cast: &Cast, limit: Duration, what: &str, holds: fn(&LinkStatus) -> bool) -> Result<()> {
    let (start, others) = (Instant::now(), usize::from(NODES) - 1);
    for node in &cast.nodes {
        let left = limit.saturating_sub(start.elapsed());
        wait_for(&format!("all links of {} to be {what}", node.options.name), left, || {
            let so_far = node.network()?.peers.iter().filter(|p| holds(&p.link)).count();
            ensure!(so_far == others, "{so_far} of {others} are");
            Ok(true)
        })?;
    }
    Ok(())
}

/// Watches everybody do nothing.
fn idle(cast: &Cast) -> Result<()> {
    let cpu = || -> Result<Vec<f64>> {
        cast.nodes.iter().map(|n| cpu_seconds(n.pid()).with_context(|| format!("{} ended", n.options.name))).collect()
    };
    // The agents of the last negotiations stay for two seconds.
    std::thread::sleep(SETTLE);
    let (before, start) = (cpu()?, Instant::now());
    wait_for("idle time to pass", IDLE * 2, || Ok(start.elapsed() >= IDLE))?;
    let seconds = start.elapsed().as_secs_f64();
    let used: Vec<f64> = cpu()?.iter().zip(&before).map(|(a, b)| (a - b) / seconds).collect();
    let mean = used.iter().sum::<f64>() / used.len() as f64;
    let memory: Option<Vec<u64>> = cast.nodes.iter().map(|n| resident_bytes(n.pid())).collect();
    let most = memory.context("a node ended")?.into_iter().max().unwrap_or_default();
    eprintln!("idle: {:.2} % of a core each, at most {:.1} MB", mean * 100.0, most as f64 / 1e6);
    ensure!(mean < IDLE_CPU, "an idle node takes {:.2} % of a core", mean * 100.0);
    ensure!(most < MEMORY, "a node takes {most} bytes");
    Ok(())
}
