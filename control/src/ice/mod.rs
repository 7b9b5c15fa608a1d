//! Finding a path: ICE (RFC 8445) over the data plane's own UDP port, with STUN and TURN servers shared by all peers.

pub mod candidate;

pub use candidate::{Candidate, CandidateKind, Credentials};
