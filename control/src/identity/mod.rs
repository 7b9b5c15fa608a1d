//! Who a node is: its keys, its name, and the descriptor by which others know it.

pub mod descriptor;

pub use descriptor::{Descriptor, NetworkDescriptor};
