//! Who a node is: its keys, its name, and the descriptor by which others know it.

pub mod base64;
pub mod descriptor;
pub mod keys;
pub mod lock;

pub use descriptor::{AES, Descriptor, NetworkDescriptor};
pub use keys::Keys;
pub use lock::StateLock;
