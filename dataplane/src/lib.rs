//! The packet pipeline of ipop-fast: a WireGuard tunnel between multi-queue TUN devices and UDP sockets.
//!
//! This crate knows packets only: no async runtime, no XMPP, no names. `packet/`, `tunnel/`, `crypto/` and
//! `table/` are pure (bytes and time are arguments); file descriptors, clocks and `unsafe` live in `io/`.

pub mod config;
pub mod crypto;
pub mod engine;
pub mod io;
pub mod keeper;
pub mod packet;
pub mod path;
pub mod shard;
pub mod shared;
pub mod stats;
pub mod table;
pub mod time;
pub mod tunnel;

pub use config::{CipherChoice, Config, EbpfChoice, IoChoice, PeerState, PeerUpdate, State, Update, Xdp, XdpMode};
pub use engine::{Capabilities, Closed, Engine, EngineError, Tun};
pub use io::probe;
pub use packet::Translation;
pub use path::Path;
pub use shared::SideDatagram;
pub use stats::Stats;
pub use time::{Time, WallTime};
