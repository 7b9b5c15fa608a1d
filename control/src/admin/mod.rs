//! How a person sees and steers a running node: a UNIX socket, and what is said over it.

pub mod status;

pub use status::Status;
