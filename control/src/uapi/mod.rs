//! The cross-platform userspace configuration protocol of WireGuard, which `wg` and `wg-quick` speak
//! (<https://www.wireguard.com/xplatform/>): a pure [`decode`]r and writer, the [`socket`] and the [`server`].
//!
//! A set request is applied as a whole or not at all; `wireguard-go` applies it line by line.

pub mod decode;
pub mod server;
pub mod socket;
pub mod write;

pub use decode::{Decoder, Fatal, Request, parse};
pub use write::write_state;

/// Longest line in bytes, without its end. The longest valid one is a preshared key (79 bytes) or an
/// endpoint with a scope (under 90).
pub const MAX_LINE: usize = 512;
/// Longest request in bytes: 200,000 peers with two allowed IPs each.
pub const MAX_REQUEST: usize = 64 << 20;

/// Errno values of Linux (asm-generic/errno.h), positive. On the wire they are negative: `wg` negates what
/// it reads before it looks up the text.
pub mod errno {
    /// Input/output error.
    pub const EIO: i32 = 5;
    /// A value that is not allowed.
    pub const EINVAL: i32 = 22;
    /// A line that is no `key=value`.
    pub const EPROTO: i32 = 71;
    /// The request is too long.
    pub const EMSGSIZE: i32 = 90;
}

/// Why a request was refused. Its text never holds a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (errno {errno})")]
pub struct Error {
    /// Positive errno.
    pub errno: i32,
    /// What is wrong, for the log.
    pub message: String,
}

impl Error {
    /// An error with a text for people.
    pub fn new(errno: i32, message: impl Into<String>) -> Self {
        Self { errno, message: message.into() }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new(errno::EINVAL, message)
    }
}
