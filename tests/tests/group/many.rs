//! Fifty nodes at once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ipop_tests::process::{cpu_seconds, resident_bytes, wait_for};
use ipop_tests::scene::Share;

use crate::cast::{Cast, Xmpp, group_scene};

const NODES: u8 = 50;
/// From the start of the first node until every link of every node is up.
const ALL_TO_ALL: Duration = Duration::from_secs(60);
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
        let (mut at, others) = (0, usize::from(NODES) - 1);
        // Node by node: asking all of them again and again would be most of the load.
        while let Some(node) = cast.nodes.get(at) {
            let left = ALL_TO_ALL.saturating_sub(start.elapsed());
            wait_for(&format!("all links of {}", node.options.name), left, || {
                let up = node.network()?.peers.iter().filter(|p| p.link.state == "up").count();
                ensure!(up == others, "{up} of {others} are up");
                Ok(true)
            })?;
            at += 1;
        }
        eprintln!("{NODES} nodes, all linked after {:.1} s", start.elapsed().as_secs_f64());
        idle(&cast)?;
        cast.alive()
    });
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
