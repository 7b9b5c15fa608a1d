//! GroupVPN end to end: real XMPP and TURN servers, real NATs, `ipop-fast up` on every node.

mod cast;
mod ciphers;
mod gateway;
mod links;
mod many;
mod matrix;
mod members;
mod names;
mod outages;
mod puppet;
mod trust;
