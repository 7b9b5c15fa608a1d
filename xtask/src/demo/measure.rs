//! What the demo measures.

use std::time::{Duration, Instant};

use anyhow::{Context, Result as Fallible, ensure};
use control::admin::status::LinkStatus;
use ipop_tests::mpi::{Host, Job, Outcome, Work};
use ipop_tests::node::{SUBNET, first_ping};
use ipop_tests::traffic::ping;

use super::cloud::{Cloud, Vm};
use super::say;
use crate::measure::{median, tcp};
use crate::stop;

/// Two machines find each other within this, or something is broken.
const FIND: Duration = Duration::from_secs(20);
const SLICE: Duration = Duration::from_secs(2);
const PINGS: u32 = 10;
const PING_INTERVAL: Duration = Duration::from_millis(20);

/// Everything measured.
pub(super) struct Result {
    pub(super) first: Vec<First>,
    /// Row: from; column: to; milliseconds, median of the answered.
    pub(super) matrix: Vec<Vec<Option<f64>>>,
    pub(super) paths: Vec<Path>,
    pub(super) rates: Vec<Rate>,
    pub(super) app: Option<Outcome>,
}

/// The kinds of pairs that the three sites make, by an example each: indices of machines.
const CLASSES: [(&str, usize, usize); 5] = [
    ("same LAN", 0, 1),
    ("NAT to public", 0, 4),
    ("symmetric NAT to public", 2, 4),
    ("NAT to symmetric NAT", 0, 2),
    ("public, same site", 4, 5),
];

/// Time to the first answered packet of a pair.
pub(super) struct First {
    pub(super) class: &'static str,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) seconds: f64,
    pub(super) link: LinkStatus,
}

/// Who found whom.
pub(super) struct Path {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) link: LinkStatus,
}

/// Throughput of a pair.
pub(super) struct Rate {
    pub(super) class: &'static str,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) gbps: f64,
    pub(super) path: String,
}

fn pair(cloud: &Cloud, from: usize, to: usize) -> Fallible<(&Vm, &Vm)> {
    Ok((cloud.vms.get(from).context("no such machine")?, cloud.vms.get(to).context("no such machine")?))
}

fn link(cloud: &Cloud, from: usize, to: usize) -> Fallible<LinkStatus> {
    let (a, b) = pair(cloud, from, to)?;
    Ok(a.node.peer(&b.node)?.link)
}

/// Seconds to the first answered packet; in slices, so that Ctrl-C is heard.
fn reach(cloud: &Cloud, from: usize, to: usize) -> Fallible<f64> {
    let (a, b) = pair(cloud, from, to)?;
    let start = Instant::now();
    loop {
        stop::check()?;
        match first_ping(cloud.ns(a), b.address, SLICE) {
            Ok(_) => return Ok(start.elapsed().as_secs_f64()),
            Err(e) if start.elapsed() > FIND => {
                return Err(e.context(format!("{} to {} in {FIND:?}: {:?}", a.name, b.name, link(cloud, from, to))));
            }
            Err(_) => {}
        }
    }
}

pub(super) fn first_packets(cloud: &Cloud) -> Fallible<Vec<First>> {
    let mut all = Vec::new();
    for (class, from, to) in CLASSES {
        let (a, b) = pair(cloud, from, to)?;
        let seconds = reach(cloud, from, to)?;
        let link = link(cloud, from, to)?;
        let (names, path) = (format!("{} to {}", a.name, b.name), link.path.clone().unwrap_or_default());
        say(&format!("  {names:<25} {seconds:6.2} s  {path:<8} ({class})"));
        all.push(First { class, from, to, seconds, link });
    }
    Ok(all)
}

pub(super) fn matrix(cloud: &Cloud) -> Fallible<Vec<Vec<Option<f64>>>> {
    let mut rows = Vec::new();
    for (from, a) in cloud.vms.iter().enumerate() {
        let mut row = Vec::new();
        for (to, b) in cloud.vms.iter().enumerate() {
            if from == to {
                row.push(None);
                continue;
            }
            reach(cloud, from, to)?;
            row.push(median(&ping(cloud.ns(a), b.address, PINGS, PING_INTERVAL)?));
        }
        rows.push(row);
    }
    Ok(rows)
}

pub(super) fn paths(cloud: &Cloud) -> Fallible<Vec<Path>> {
    let mut all = Vec::new();
    for from in 0..cloud.vms.len() {
        for to in from + 1..cloud.vms.len() {
            all.push(Path { from, to, link: link(cloud, from, to)? });
        }
    }
    Ok(all)
}

/// Fails if a pair met over another path than its gateways call for: then the picture is wrong, however fast it is.
pub(super) fn judge(cloud: &Cloud, paths: &[Path]) -> Fallible<()> {
    let mut wrong = Vec::new();
    for p in paths {
        let (a, b) = pair(cloud, p.from, p.to)?;
        let expected = if a.meets_directly(b) { "direct" } else { "relayed" };
        if p.link.state != "up" || p.link.path.as_deref() != Some(expected) {
            wrong.push(format!("{} to {} should be {expected}: {:?}", a.name, b.name, p.link));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

pub(super) fn rates(cloud: &Cloud, seconds: u32) -> Fallible<Vec<Rate>> {
    let mut all = Vec::new();
    for (class, from, to) in CLASSES {
        stop::check()?;
        let (a, b) = pair(cloud, from, to)?;
        let gbps =
            tcp(cloud.ns(a), cloud.ns(b), b.address, seconds).with_context(|| format!("{} to {}", a.name, b.name))?;
        let path = link(cloud, from, to)?.path.unwrap_or_default();
        say(&format!("  {:<25} {gbps:6.2} Gbit/s  {path:<8} ({class})", format!("{} to {}", a.name, b.name)));
        all.push(Rate { class, from, to, gbps, path });
    }
    Ok(all)
}

pub(super) fn app(cloud: &Cloud) -> Fallible<Outcome> {
    stop::check()?;
    let hosts: Vec<Host<'_>> = cloud.vms.iter().map(|vm| (vm.name.as_str(), cloud.ns(vm), vm.address)).collect();
    let work = Work { points: 400_000_000, block: 1 << 20, laps: 8 };
    Job::compile()?.run(&hosts, SUBNET, work)
}
