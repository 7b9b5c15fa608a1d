//! How a person sees and steers a running node: a UNIX socket, and what is said over it.
//!
//! A client sends one line of JSON (a [`Request`]) and gets one line of JSON (a [`Response`]).

pub mod client;
pub mod names;
pub mod render;
pub mod server;
pub mod status;
pub mod view;

pub use names::Names;
pub use server::{AdminSocket, listen, serve};
pub use status::Status;

use serde::{Deserialize, Serialize};

/// Longest request line, in bytes: the longest JID has 3,071.
pub const MAX_REQUEST: usize = 8192;
/// Longest response line, in bytes: a peer takes less than 2 KiB.
pub const MAX_RESPONSE: usize = 32 << 20;

/// What a node can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Its state: answered by [`Response::Status`].
    Status,
    /// What the nodes are called: answered by [`Response::Names`].
    Names,
    /// Take the changed key of a peer.
    AcceptPin {
        /// Bare JID (all its devices), or full JID.
        jid: String,
    },
    /// Forget the pinned keys of a peer.
    ForgetPins {
        /// Bare JID (all its devices), or full JID.
        jid: String,
    },
    /// Friends, and who asks to be one: answered by [`Response::Friends`].
    Friends,
    /// Do something about a friend.
    Befriend {
        /// What.
        action: FriendAction,
        /// Bare JID.
        jid: String,
    },
    /// Read the configuration again, as SIGHUP does.
    Reload,
}

/// What a person wants to be done about an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FriendAction {
    /// Ask it to be a friend, or accept its request.
    Add,
    /// Accept its request.
    Accept,
    /// End the friendship, or decline its request.
    Remove,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "kebab-case")]
pub enum Response {
    /// Its state.
    Status(Box<Status>),
    /// Friends.
    Friends {
        /// Those who ask to be one first.
        friends: Vec<status::FriendStatus>,
    },
    /// What the nodes are called.
    Names(Box<Names>),
    /// It is done.
    Done {
        /// What was done, for people.
        message: String,
    },
    /// It is not done.
    Error {
        /// Why not, for people.
        message: String,
    },
}
