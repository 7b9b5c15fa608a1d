//! Names of nodes: `vm2.my_pragma_group_1.ipop`, `laptop.bob.social.ipop`, and a small DNS server for them.
//!
//! [`Table`] makes names of who is known, [`answer`] answers a query from it; both are pure. [`Service`] has the sockets
//! on this node's own overlay addresses, and [`resolved`] tells systemd-resolved of them where that runs.
//!
//! What others are called is nobody's business: only queries of this machine itself are answered, all others are refused.

mod answer;
#[cfg(test)]
mod answer_tests;
mod label;
pub mod resolved;
mod reverse;
mod service;
#[cfg(test)]
mod service_tests;
mod table;
#[cfg(test)]
mod table_tests;

pub use answer::{Asker, Transport, answer};
pub use reverse::zones;
pub use service::{Interface, PORT, Service, State, View};
pub use table::{Entry, Named, Standing, Table};

/// The domain of all names. It is on no list of the root zone's, and only this machine resolves it.
pub const DOMAIN: &str = "ipop";
/// Of all records, in seconds: who is in the table changes within seconds, and to ask again costs nothing on one machine.
pub const TTL: u32 = 5;
