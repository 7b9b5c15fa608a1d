//! `cargo xtask demo`: a group of six machines at three sites; with `--social` three friends with subnets of their own; with
//! `--static` two sites and a tunnel set up by hand.

mod cloud;
mod measure;
mod pair;
mod social;
mod table;

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use ipop_tests::require::Need;
use ipop_tests::{mpi, node, scene, servers};

use crate::packages;
use crate::steps::Steps;
use crate::stop;
use cloud::Cloud;

#[derive(Args)]
#[allow(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub(crate) struct Options {
    /// Two sites and one tunnel with keys and endpoints set by hand, beside the same through wireguard-go
    #[arg(long = "static")]
    by_hand: bool,
    /// Three friends on two federated servers, each with a subnet of their own, all of these the same
    #[arg(long, conflicts_with_all = ["by_hand", "app"])]
    social: bool,
    /// Seconds of throughput for each measurement
    #[arg(long)]
    seconds: Option<u32>,
    /// End when everything has been shown, instead of staying up until Ctrl-C
    #[arg(long, conflicts_with = "by_hand")]
    once: bool,
    /// Also run a small MPI job over the overlay, one process on each of the six machines
    #[arg(long, conflicts_with = "by_hand")]
    app: bool,
    /// With --static: keep the sites of ipop-fast up until Ctrl-C, to try things by hand
    #[arg(long, requires = "by_hand")]
    keep: bool,
    /// The result as JSON on standard output, everything else on standard error
    #[arg(long)]
    json: bool,
}

/// Of throughput for each class of pair, unless told otherwise.
const SECONDS: u32 = 4;

pub(crate) fn run(options: &Options) -> Result<()> {
    prepare(options)?;
    let result = if options.by_hand {
        pair::run(options)
    } else if options.social {
        social::run_demo(options)
    } else {
        group(options)
    };
    ipop_tests::process::forget_logs();
    result
}

fn prepare(options: &Options) -> Result<()> {
    let steps = Steps::new("demo-logs")?;
    let mut steps = if options.json { steps.on_stderr() } else { steps };
    packages::install(&mut steps)?;
    packages::demand_tunnels()?;
    scene::sweep();
    packages::ipop_fast(&mut steps)?;
    if !options.by_hand {
        demand(&servers::ejabberd_needs())?;
        demand(&[Need::Program("nft"), Need::Program("conntrack"), Need::Program("iperf3")])?;
        ensure!(node::has_up(), "the ipop-fast under test has no command `up`: is IPOP_FAST another program?");
    }
    if options.social {
        demand(&social::needs())?;
    }
    if options.app { demand(&mpi::needs()) } else { Ok(()) }
}

fn demand(needs: &[Need]) -> Result<()> {
    let missing: Vec<String> = needs.iter().filter_map(Need::missing).collect();
    ensure!(missing.is_empty(), "the demo needs more than there is: {}", missing.join("; "));
    Ok(())
}

/// Says something on the way; with `--json` standard output is for the result alone.
fn say(line: &str) {
    eprintln!("{line}");
}

fn group(options: &Options) -> Result<()> {
    let mut cloud = Cloud::start()?;
    let shown = show(&cloud, options);
    if shown.is_err() && !stop::asked() {
        for vm in &cloud.vms {
            say(&format!("--- end of the log of {} ---\n{}", vm.name, vm.log_tail()));
        }
    }
    shown?;
    cloud.alive()?;
    if !options.once {
        stay(&cloud)?;
    }
    say("\ncleaning up: machines leave, server and namespaces go ...");
    Ok(())
}

fn show(cloud: &Cloud, options: &Options) -> Result<()> {
    let seconds = options.seconds.unwrap_or(SECONDS).clamp(1, 600);
    say("\nfirst packet between two machines that have had nothing to do with each other (links are made on demand):");
    let first = measure::first_packets(cloud)?;
    say("\npinging from everybody to everybody ...");
    let matrix = measure::matrix(cloud)?;
    let paths = measure::paths(cloud)?;
    say(&format!("throughput, {seconds} s for each kind of pair (TCP, all on the cores of this machine) ..."));
    let rates = measure::rates(cloud, seconds)?;
    let app = if options.app {
        say("an MPI job: one process on each machine, messages over the overlay alone ...");
        Some(measure::app(cloud)?)
    } else {
        None
    };
    let result = measure::Result { first, matrix, paths, rates, app };
    if options.json {
        println!("{}", table::json(cloud, &result));
    } else {
        table::print(cloud, &result);
    }
    measure::judge(cloud, &result.paths)
}

/// Stays up until Ctrl-C.
fn stay(cloud: &Cloud) -> Result<()> {
    say("\nThe cloud stays up until Ctrl-C. Look around from another terminal:");
    for vm in &cloud.vms {
        let command = vm.node.status_command()?;
        let words: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        let program = command.get_program().to_string_lossy().into_owned();
        say(&format!("  {:<11}  {program} {}", vm.name, words.join(" ")));
        say(&format!("               ip netns exec {} bash", cloud.ns(vm).name()));
    }
    while !stop::asked() {
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
