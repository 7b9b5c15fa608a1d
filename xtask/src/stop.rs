//! Ctrl-C, TERM and HUP: noted here, looked at by every loop, so that destructors clean up.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Has the signals noted from now on.
pub(crate) fn install() -> Result<()> {
    ctrlc::set_handler(|| ASKED.store(true, Ordering::SeqCst)).context("signal handler")
}

/// Whether somebody asked to stop.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// An error once somebody asked to stop.
pub(crate) fn check() -> Result<()> {
    ensure!(!asked(), "interrupted");
    Ok(())
}
