//! End-to-end harness: real programs, real sockets, network namespaces of our own.
//!
//! A test is a [`scene::play`]: it names what it needs, gets namespaces ([`ns`]), starts daemons in them
//! ([`daemon`], [`process`]), configures them by the real `wg` ([`wg`]) and sends traffic through ([`traffic`]).
//! Real XMPP servers come from [`servers`].
//! [`pair`] is the usual cast: two sites joined by a veth, one tunnel between them. Everything that a scene made is
//! gone when it ends, and what a killed run left behind is swept up by the next one.

pub mod cast;
pub mod daemon;
pub mod fuzz;
pub mod heartbeat;
pub mod internet;
pub mod junk;
pub mod mpi;
pub mod node;
pub mod ns;
pub mod pair;
pub mod process;
pub mod raw_xmpp;
pub mod relay;
pub mod require;
pub mod resolved;
pub mod scene;
pub mod servers;
pub mod traffic;
pub mod turn_server;
pub mod wg;
