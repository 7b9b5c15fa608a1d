//! Finding a path: ICE (RFC 8445) over the data plane's own UDP port, with STUN and TURN servers shared by all peers.
//!
//! `stun`, `turn`, `binding` and `core` are pure: bytes and time come as arguments. `finder` runs an agent of the
//! `webrtc-ice` crate for each negotiation. `node` gives them a port, a clock and handles.

mod agent;
mod binding;
pub mod candidate;
mod core;
mod finder;
mod node;
#[cfg(test)]
mod node_tests;
mod route;
mod stun;
#[cfg(test)]
mod stun_tests;
mod turn;
mod types;
mod wire;

pub use self::core::Drops;
pub use agent::{Agent, AgentEvent};
pub use candidate::{Candidate, CandidateKind, Credentials};
pub use finder::Role;
pub use node::{IceNode, IceOptions, start};
pub use types::{Failed, Found, IceEvent, Port, ProbeError, ServerKind, ServerState, TurnServer};
