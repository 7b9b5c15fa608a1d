//! SocialVPN end to end: friends who number each other's nodes as they like, `ipop-fast up` on every node.

mod both;
mod cast;
mod federated;
mod meet;
mod multicast;
mod stay;
mod strangers;
