//! A network's rules: members, addresses, routes, pins. Pure, but for [`store`], which keeps what is remembered.

pub mod address;
pub mod leases;
pub mod members;
pub mod pins;
pub mod psk;
mod routes;
pub mod social;
pub mod store;

#[cfg(test)]
mod members_tests;

pub use leases::{Lease, Leases};
pub use members::{Inputs, Node, Own, Plan, PlannedPeer, Refused, Roll, plan};
pub use pins::{PinVerdict, Pins};
pub use psk::psk;
pub use social::FriendLeases;
pub use store::Store;

use dataplane::table::Prefix;

/// Whether two prefixes have an address in common: then one contains the other.
#[must_use]
pub fn overlap(a: &Prefix, b: &Prefix) -> bool {
    if a.len() <= b.len() { a.contains(b.address()) } else { b.contains(a.address()) }
}

/// Of two nodes with the same address or route the earlier one keeps it, then the one with the smaller key.
pub(crate) type Claim = (u64, dataplane::tunnel::PublicKey);
