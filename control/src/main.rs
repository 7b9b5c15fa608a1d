//! The `ipop-fast` program.

#![forbid(unsafe_code)]

use clap::Parser;
use control::cli::{Cli, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Command::Doctor(args)) => control::doctor::main(&args),
        Some(Command::Stats(args)) => control::stats::main(&args),
        None => control::daemon::main(&cli.run),
    };
    done.unwrap_or_else(|e| {
        eprintln!("ipop-fast: {e}");
        ExitCode::FAILURE
    })
}
