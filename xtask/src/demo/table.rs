//! What the demo tells at its end: for people, and as JSON.

use control::admin::status::LinkStatus;
use serde_json::{Value, json};

use super::cloud::{Cloud, GROUP};
use super::measure::Result;
use crate::packages;

pub(super) fn print(cloud: &Cloud, result: &Result) {
    let name = |i: usize| cloud.vms.get(i).map_or("?", |v| v.name.as_str());
    println!("\n{GROUP}: who found whom, over which path, and why");
    for p in &result.paths {
        let pair = format!("{} <-> {}", name(p.from), name(p.to));
        println!("  {pair:<27} {}", describe(&p.link));
    }
    println!("\nTime to the first answered packet");
    for f in &result.first {
        let pair = format!("{} -> {}", name(f.from), name(f.to));
        println!("  {pair:<27} {:6.2} s   {:<8} {}", f.seconds, f.link.path.as_deref().unwrap_or("-"), f.class);
    }
    println!("\nPing, ms (median; from the left to the top)");
    print!("  {:<12}", "");
    for vm in &cloud.vms {
        print!("{:>12}", vm.name);
    }
    println!();
    for (vm, row) in cloud.vms.iter().zip(&result.matrix) {
        print!("  {:<12}", vm.name);
        for ms in row {
            print!("{:>12}", ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.2}")));
        }
        println!("   {}", vm.address);
    }
    println!("\nThroughput, one TCP flow");
    for r in &result.rates {
        let pair = format!("{} -> {}", name(r.from), name(r.to));
        println!("  {pair:<27} {:6.2} Gbit/s  {:<8} {}", r.gbps, r.path, r.class);
    }
    if let Some(app) = &result.app {
        println!(
            "\nMPI job, {} processes on {} machines: pi = {:.10} in {:.2} s; a barrier takes {:.0} us; \
             a ring moved {:.0} MB at {:.0} Mbit/s, all bytes right",
            app.ranks,
            cloud.vms.len(),
            app.pi,
            app.pi_seconds,
            app.barrier_us,
            app.ring_bytes / 1e6,
            app.ring_mbps
        );
    }
    println!();
    for (what, value) in packages::machine() {
        println!("  {what}: {value}");
    }
}

fn describe(link: &LinkStatus) -> String {
    let path = link.path.as_deref().unwrap_or(&link.state);
    let address = link.address.as_deref().unwrap_or("-");
    let pair = link.pair.as_deref().map_or_else(String::new, |p| format!(" ({p})"));
    let why = if link.why.is_empty() { String::new() } else { format!("; {}", link.why) };
    format!("{path:<8} {address}{pair}{why}")
}

pub(super) fn json(cloud: &Cloud, result: &Result) -> Value {
    let name = |i: usize| cloud.vms.get(i).map(|v| v.name.clone());
    let first: Vec<Value> = result
        .first
        .iter()
        .map(|f| {
            json!({ "from": name(f.from), "to": name(f.to), "class": f.class, "seconds": f.seconds,
                "path": f.link.path })
        })
        .collect();
    let paths: Vec<Value> =
        result.paths.iter().map(|p| json!({ "from": name(p.from), "to": name(p.to), "link": p.link })).collect();
    let rates: Vec<Value> = result
        .rates
        .iter()
        .map(
            |r| json!({ "from": name(r.from), "to": name(r.to), "class": r.class, "tcp_gbps": r.gbps, "path": r.path }),
        )
        .collect();
    let machines: Vec<Value> = cloud
        .vms
        .iter()
        .map(|v| {
            let site = cloud.sites.get(v.site);
            json!({ "name": v.name, "site": site.map(|s| &s.name), "gateway": site.map(|s| s.kind.name()),
                "address": v.address })
        })
        .collect();
    let app = result.app.as_ref().map(|a| {
        json!({ "ranks": a.ranks, "pi": a.pi, "pi_seconds": a.pi_seconds, "barrier_us": a.barrier_us,
            "ring_bytes": a.ring_bytes, "ring_mbps": a.ring_mbps })
    });
    json!({
        "machine": packages::machine().into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "group": GROUP, "server": cloud.server.address.to_string(), "machines": machines,
        "met_seconds": cloud.met.as_secs_f64(), "first_packet": first, "ping_ms": result.matrix, "paths": paths,
        "throughput": rates, "mpi": app,
    })
}
