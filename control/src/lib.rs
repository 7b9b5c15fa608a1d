//! The program around the data plane: command line, configuration protocol, daemon.
//!
//! Everything here is off the packets' way, on one thread; packets are the business of [`dataplane::Engine`].

#![forbid(unsafe_code)]

pub mod admin;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod error;
pub mod host;
pub mod ice;
pub mod identity;
pub mod link;
pub mod link_watch;
pub mod logging;
pub mod names;
pub mod network;
pub mod node;
pub mod run;
pub mod stats;
pub mod uapi;
pub mod xmpp;

pub use error::Error;
