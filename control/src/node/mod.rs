//! A running node: joins XMPP, ICE, links and the data plane.

use crate::Error;
use crate::cli::UpArgs;
use std::process::ExitCode;

/// Runs the node of a configuration file until SIGTERM or SIGINT.
///
/// # Errors
/// What to tell the user.
pub fn main(args: &UpArgs) -> Result<ExitCode, Error> {
    crate::config::load(&args.config)?;
    Err(Error::Client("the node itself is not in this build yet".to_owned()))
}
