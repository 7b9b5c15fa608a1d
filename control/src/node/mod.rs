//! A running node: joins XMPP, ICE, links and the data plane.
//!
//! One loop (`run`) on one thread takes events (`event`), whatever they come from, and carries them to
//! the links. Packets are not its business: they go on when it waits, and when XMPP is down.

mod event;
mod friends;
mod members;
mod names;
mod negotiation;
mod network;
mod pace;
mod peer;
mod port;
mod rates;
mod reload;
mod run;
mod servers;
mod start;
mod view;

use crate::Error;
use crate::cli::UpArgs;
use std::process::ExitCode;

/// Runs the node of a configuration file until SIGTERM or SIGINT.
///
/// # Errors
/// What to tell the user.
pub fn main(args: &UpArgs) -> Result<ExitCode, Error> {
    let config = crate::config::load(&args.config)?;
    crate::logging::start(crate::logging::asked_level(args.engine.log_level));
    for note in &config.notes {
        tracing::warn!("{note}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("start the control thread", e))?;
    let result = runtime.block_on(run::run(args, config));
    runtime.shutdown_background();
    result.map(|()| ExitCode::SUCCESS)
}
