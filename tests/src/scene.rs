//! One test from start to end: needs checked, share of the machine taken, logs shown if it fails.

use std::cell::RefCell;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Once;

use anyhow::{Context, Result};

use crate::{ns, process, require};

/// How a test shares the machine's few cores with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Beside other tests.
    Shared,
    /// Alone among the tests that take part: it asserts on time or rate.
    Alone,
    /// Takes no part: long, light, and runs beside everything.
    Apart,
}

thread_local! {
    static LOGS: RefCell<Vec<(String, PathBuf)>> = const { RefCell::new(Vec::new()) };
}

/// Has the log of a process shown if the scene of this thread fails.
pub(crate) fn note_log(name: &str, path: PathBuf) {
    LOGS.with_borrow_mut(|l| l.push((name.to_owned(), path)));
}

/// Runs `body` if the machine offers what it `needs`; otherwise says what is left out (see [`require::can_run`]).
///
/// # Panics
/// With the error's whole chain and the ends of all logs if `body` fails.
pub fn play(share: Share, needs: &[require::Need], body: impl FnOnce() -> Result<()>) {
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    if !require::can_run(&name, needs) {
        return;
    }
    static SWEEP: Once = Once::new();
    SWEEP.call_once(sweep);
    let _turn = take_turn(share);
    LOGS.with_borrow_mut(Vec::clear);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
    let logs = LOGS.take();
    let failed = !matches!(result, Ok(Ok(())));
    for (name, path) in logs {
        if failed {
            eprintln!("--- end of the log of {name} ---\n{}", process::tail_of(&path, 25));
        }
        // Gone already if the process never started.
        let _ = std::fs::remove_file(&path);
    }
    match result {
        Ok(Ok(())) => {}
        Ok(Err(e)) => panic!("{e:#}"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Removes what runs that were killed left behind: namespaces, what runs in them, files.
pub fn sweep() {
    ns::sweep();
    process::sweep_logs();
}

fn take_turn(share: Share) -> Option<File> {
    let lock = || -> Result<Option<File>> {
        let file = File::create(process::state_dir()?.join("turn.lock")).context("lock file")?;
        match share {
            Share::Apart => return Ok(None),
            Share::Shared => file.lock_shared()?,
            Share::Alone => file.lock()?,
        }
        Ok(Some(file))
    };
    lock().unwrap_or_else(|e| panic!("taking turns: {e:#}"))
}
