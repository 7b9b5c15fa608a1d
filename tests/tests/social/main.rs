//! SocialVPN end to end: friends who number each other's nodes as they like, `ipop-fast up` on every node.

mod both;
mod cast;
mod federated;
mod meet;
mod multicast;
mod programs;
#[path = "../group/puppet.rs"]
#[allow(dead_code, reason = "these scenes need less of it")]
mod puppet;
mod stay;
mod strangers;
mod trust;
