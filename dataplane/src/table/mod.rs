//! Tables that packets are looked up in.

pub mod prefix;

pub use prefix::Prefix;
