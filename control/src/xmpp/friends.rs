//! Friends in the terms of the rest of the program.

use super::ANSWER_LIMIT;
use crate::config::Allow;

/// A network of friends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FriendSource {
    /// Its name: `social:NAME`.
    pub network: String,
    /// Which friends are let in.
    pub allow: Allow,
}

/// What a person wants to be done about an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Befriend {
    /// Ask it to be a friend, or accept its request.
    Add,
    /// Accept its request.
    Accept,
    /// Be friends no more, or decline its request.
    Remove,
}

/// Who sees whose presence (RFC 6121, section 2.1.2.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subscription {
    /// Nobody.
    #[default]
    None,
    /// We see it.
    To,
    /// It sees us.
    From,
    /// Each sees the other: friends.
    Both,
}

/// A contact of the account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FriendContact {
    /// Bare JID.
    pub jid: String,
    /// What the account's owner calls it.
    pub name: Option<String>,
    /// Who sees whom.
    pub subscription: Subscription,
    /// We asked to be friends, and there is no answer yet.
    pub asked: bool,
    /// It is on the account's block list.
    pub blocked: bool,
    /// Networks of friends in which it is let in.
    pub networks: Vec<String>,
    /// Why our request did not arrive.
    pub problem: Option<String>,
}

/// All that is known of friends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Friends {
    /// In the order of their JIDs.
    pub contacts: Vec<FriendContact>,
    /// Bare JIDs of those who ask to be friends.
    pub requests: Vec<String>,
}

/// Why something about a friend was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FriendError {
    /// We have no connection to the server.
    #[error("not connected to the XMPP server: try again later")]
    Offline,
    /// No answer within [`ANSWER_LIMIT`].
    #[error("the XMPP server did not answer within {} s", ANSWER_LIMIT.as_secs())]
    Timeout,
    /// Just logged in: the roster is not here yet.
    #[error("the XMPP server has not told yet who is a friend: try again")]
    Unsettled,
    /// The server does not do it.
    #[error("the XMPP server refused it: {0}")]
    Refused(String),
    /// It makes no sense.
    #[error("{0}")]
    Unfit(String),
}
