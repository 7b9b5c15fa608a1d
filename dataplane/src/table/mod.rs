//! Tables that packets are looked up in.

mod blocks;
pub mod prefix;
pub mod routes;
mod trie;

pub use prefix::Prefix;
pub use routes::Routes;
