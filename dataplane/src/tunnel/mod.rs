//! The WireGuard protocol without I/O: time, wall clock and randomness are arguments.

pub mod keys;

pub use keys::{PresharedKey, PrivateKey, PublicKey};
