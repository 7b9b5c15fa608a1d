//! `ipop-fast check`.

use super::{NodeConfig, Problems, load};
use crate::Error;
use crate::cli::CheckArgs;
use crate::host::Host;
use serde::Serialize;
use std::fmt::Write as _;
use std::process::ExitCode;

#[derive(Serialize)]
struct Answer<'a> {
    file: &'a std::path::Path,
    ok: bool,
    problems: &'a [super::Problem],
    notes: &'a [String],
}

/// Checks a file, says what is in it, and ends with 1 if it is not fine.
///
/// # Errors
/// If the result cannot be written.
pub fn main(args: &CheckArgs) -> Result<ExitCode, Error> {
    let mut done = load(&args.config);
    if let Ok(config) = &mut done {
        let overlaps = overlaps(config);
        config.notes.extend(overlaps);
    }
    let text = if args.json { json(args, &done) } else { people(args, &done) };
    crate::admin::view::print(text.as_bytes())?;
    Ok(if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Subnets of friends that overlap what this machine reaches now: `up` would refuse them.
fn overlaps(config: &NodeConfig) -> Vec<String> {
    let subnets = config.networks.iter().filter(|n| n.social().is_some()).filter_map(super::NetworkConfig::subnet);
    let subnets: Vec<_> = subnets.collect();
    if subnets.is_empty() {
        return Vec::new();
    }
    let interfaces: Vec<String> = config.networks.iter().map(|n| n.interface.clone()).collect();
    // Without netlink there is nothing to compare with, and the file is what it is.
    let routes =
        tokio::runtime::Builder::new_current_thread().enable_all().build().ok().and_then(|runtime| {
            runtime.block_on(async { Host::new().ok()?.routes_by_interface(&interfaces).await.ok() })
        });
    let routes = routes.unwrap_or_default();
    let told = subnets.iter().filter_map(|s| crate::host::overlapping(s, &routes));
    told.map(|o| format!("network.subnet: {o}: here, `up` refuses it")).collect()
}

fn json(args: &CheckArgs, done: &Result<NodeConfig, Problems>) -> String {
    let (problems, notes): (&[_], &[_]) = match done {
        Ok(config) => (&[], &config.notes),
        Err(p) => (&p.problems, &[]),
    };
    let answer = Answer { file: &args.config, ok: done.is_ok(), problems, notes };
    // Strings and numbers only: nothing that JSON refuses, unless the path is no UTF-8.
    serde_json::to_string(&answer).unwrap_or_else(|e| format!("{{\"ok\":false,\"error\":\"{e}\"}}")) + "\n"
}

fn people(args: &CheckArgs, done: &Result<NodeConfig, Problems>) -> String {
    let config = match done {
        Ok(config) => config,
        Err(p) => return format!("{p}\n"),
    };
    let mut text = format!("{}: fine: node {} as {}", args.config.display(), config.name, config.xmpp.jid);
    for n in &config.networks {
        let address = match n.address {
            super::AddressChoice::Fixed(a, len) => format!("{a}/{len}"),
            super::AddressChoice::Within(p) => format!("an address in {p}"),
        };
        let _ = write!(text, ", {} on {} with {address}", n.network(), n.interface);
    }
    text.push('\n');
    for note in &config.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}
