//! Who is there: one XMPP connection, the members of groups, their descriptors, and Jingle.

pub mod signal;

pub use signal::{Negotiation, Reason, Signal};
