//! `cargo xtask`: what the project does to itself. Each command does its own set-up.
#![allow(clippy::print_stdout, reason = "a command-line tool prints")]

mod bench;
mod demo;
mod ebpf;
mod fuzz;
mod licences;
mod measure;
mod packages;
mod steps;
mod stop;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Test, show and measure ipop-fast")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Set-up, format, lints, unit tests and end-to-end tests
    Test(test::Options),
    /// Six machines at three sites find each other through NATs; --static: one tunnel beside wireguard-go
    Demo(demo::Options),
    /// The side-by-side table on this machine
    Bench(bench::Options),
    /// Build the kernel programs anew, or check that the committed object is what their source makes
    Ebpf(ebpf::Options),
    /// Whether every dependency may come in (deny.toml); part of `test`
    Licences,
}

fn main() -> ExitCode {
    let result = stop::install().and_then(|()| match Arguments::parse().command {
        Command::Test(options) => test::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Ebpf(options) => ebpf::run_alone(&options),
        Command::Licences => licences::check(),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cargo xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}
