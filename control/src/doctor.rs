//! `ipop-fast doctor`: what this machine offers, for people and as JSON.

use crate::Error;
use crate::cli::DoctorArgs;
use dataplane::probe::{self, Item, Report, State};
use serde_json::json;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::process::ExitCode;

/// Probes, prints, and fails if something essential is missing.
///
/// # Errors
/// If standard output cannot be written.
pub fn main(args: &DoctorArgs) -> Result<ExitCode, Error> {
    let report = probe::probe();
    let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let text = if args.json { json(&report) + "\n" } else { table(&report, colours) };
    io::stdout().lock().write_all(text.as_bytes()).map_err(|e| Error::io("write to standard output", e))?;
    Ok(if missing(&report).next().is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn missing(report: &Report) -> impl Iterator<Item = &Item> {
    report.items.iter().filter(|i| i.state == State::No)
}

const fn word(state: State) -> &'static str {
    match state {
        State::Yes => "yes",
        State::No => "no",
        State::Limited => "limited",
    }
}

fn json(report: &Report) -> String {
    let item = |i: &Item| json!({ "name": i.name, "state": word(i.state), "detail": i.detail, "advice": i.advice });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "usable": missing(report).next().is_none(),
        "items": report.items.iter().map(item).collect::<Vec<_>>(),
    })
    .to_string()
}

fn table(report: &Report, colours: bool) -> String {
    let paint = |state: State, text: &str| {
        let code = match state {
            State::Yes => "32",
            State::Limited => "33",
            State::No => "31",
        };
        if colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    };
    let lost: Vec<_> = missing(report).map(|i| i.name).collect();
    let better = report.items.iter().filter(|i| i.state != State::Yes).count();
    let headline = match (lost.as_slice(), better) {
        ([], 0) => paint(State::Yes, "This machine has everything that ipop-fast can use."),
        ([], n) => {
            paint(State::Limited, &format!("ipop-fast runs on this machine; {n} of the things below could be better."))
        }
        (lost, _) => paint(State::No, &format!("ipop-fast cannot run here: {} missing.", lost.join(", "))),
    };
    let width = report.items.iter().map(|i| i.name.chars().count()).max().unwrap_or(0);
    let mut out = format!("{headline}\n\n");
    for i in &report.items {
        let state = paint(i.state, &format!("{:<7}", word(i.state)));
        // Writing to a `String` cannot fail.
        let _ = writeln!(out, "  {:<width$}  {state}  {}", i.name, i.detail);
    }
    let advice: Vec<_> = report.items.iter().filter_map(|i| i.advice.as_ref().map(|a| (i.name, a))).collect();
    if !advice.is_empty() {
        out.push_str("\nWhat to do\n");
        for (name, text) in advice {
            let _ = writeln!(out, "  - {name}: {text}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(tun: State) -> Report {
        let item = |name, state, advice: Option<&str>| Item {
            name,
            state,
            detail: format!("about {name}"),
            advice: advice.map(str::to_owned),
        };
        Report { items: vec![item("tun", tun, None), item("io_uring", State::Limited, Some("update the kernel"))] }
    }

    #[test]
    fn the_table_names_every_item_and_the_advice() {
        let t = table(&report(State::Yes), false);
        assert!(t.starts_with("ipop-fast runs on this machine"), "{t}");
        assert!(t.contains("  tun       yes      about tun\n"), "{t}");
        assert!(t.ends_with("What to do\n  - io_uring: update the kernel\n"), "{t}");
        assert!(table(&report(State::Yes), true).contains("\x1b[32myes"));
    }

    #[test]
    fn something_essential_missing_is_said_first_and_in_json() {
        assert!(table(&report(State::No), false).starts_with("ipop-fast cannot run here: tun missing."));
        let value: serde_json::Value = serde_json::from_str(&json(&report(State::No))).expect("JSON");
        assert_eq!((&value["usable"], &value["items"][1]["state"]), (&json!(false), &json!("limited")));
    }
}
