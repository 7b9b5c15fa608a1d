//! What can go wrong outside the packets, each with what a person can do about it.

use dataplane::EngineError;
use std::io;
use std::path::PathBuf;

/// Why `ipop-fast` stopped. `Display` is for people and may have several lines.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The TUN device was refused.
    #[error("cannot set up interface {name}: {source}{}", hint_line(hint))]
    Tun {
        /// Its name as asked for.
        name: String,
        /// What the engine says.
        source: std::io::Error,
        /// What to do.
        hint: String,
    },
    /// The packet pipeline did not start.
    #[error("cannot start the data plane: {0}")]
    Engine(EngineError),
    /// Another process answers on the socket.
    #[error(
        "{} is in use by a running process{}: interface {name} is already served. Remove it first \
         (ip link delete {name}) or take another name", path.display(), pid_note(*pid)
    )]
    SocketInUse {
        /// The interface.
        name: String,
        /// The socket.
        path: PathBuf,
        /// The process behind it, where the kernel tells.
        pid: Option<i32>,
    },
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, as in "cannot ...".
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// `WG_TUN_FD` and the like.
    #[error("{variable} must be the number of an open file descriptor, not \"{value}\"")]
    FdVariable {
        /// Name of the environment variable.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// The background process did not get as far as carrying packets.
    #[error("{0}")]
    Background(String),
    /// The engine stopped by itself.
    #[error("the data plane stopped: {0}")]
    EngineFailed(String),
    /// A configuration file is not as it should be.
    #[error(transparent)]
    Config(#[from] crate::config::Problems),
    /// The state directory cannot be used.
    #[error("{0}")]
    State(String),
    /// A request to a running ipop-fast failed.
    #[error("{0}")]
    Client(String),
}

fn hint_line(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!("\n  {hint}") }
}

fn pid_note(pid: Option<i32>) -> String {
    pid.map_or_else(String::new, |p| format!(" (pid {p})"))
}

impl Error {
    /// Wraps the error of a system call; `what` completes "cannot ...".
    pub fn io(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { what: what.into(), source: source.into() }
    }
}
