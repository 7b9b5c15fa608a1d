//! A social network's rules: which address a friend's node has here, and how its packets are translated. Pure.

pub mod leases;
mod plan;
#[cfg(test)]
mod tests;

pub use leases::{Book, FriendLeases, GRACE, MAX_PER_ACCOUNT, Terms};
pub use plan::{Inputs, Social, broadcast, plan};
