//! The `ipop-fast` program.

#![forbid(unsafe_code)]

use clap::Parser;
use control::admin::{
    self,
    view::{self, View},
};
use control::cli::{self, Cli, Command};
use control::{config, daemon, doctor, node, stats};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Command::Up(args)) => node::main(&args),
        Some(Command::Check(args)) => config::check::main(&args),
        Some(Command::Status(args)) => view::main(View::Status, &args),
        Some(Command::Peers(args)) => view::main(View::Peers, &args),
        Some(Command::Links(args)) => view::main(View::Links, &args),
        Some(Command::Names(args)) => admin::names::main(&args),
        Some(Command::Pins(args)) => view::pins(&args),
        Some(Command::Friends(args)) => view::friends(&args),
        Some(Command::Import(args)) => config::import::main(&args),
        Some(Command::Doctor(args)) => doctor::main(&args),
        Some(Command::Stats(args)) => stats::main(&args),
        Some(Command::Completions(args)) => cli::completions(&args),
        Some(Command::Man(args)) => cli::man(&args),
        None => daemon::main(&cli.run),
    };
    done.unwrap_or_else(|e| {
        eprintln!("ipop-fast: {e}");
        ExitCode::FAILURE
    })
}
