//! The XMPP side of a node against a real prosody and a real ejabberd.

mod cast;
mod failures;
mod groups;
mod rooms;
mod strangers;
