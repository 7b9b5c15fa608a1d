//! Dynamic IP translation: a friend's packets under the addresses that we gave (RFC 3022, as far as it fits).
//!
//! Each of two friends numbers the other's node as it likes. Nothing is changed on the way out; whoever receives puts its
//! own numbers into the packet, before packets are put together for TUN. Sums are adjusted by what changed (RFC 1624),
//! never made anew, so that what was wrong stays wrong.

use std::net::Ipv4Addr;

/// How one peer's IPv4 packets are translated on arrival. IPv6 packets are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// What the peer's node calls itself: the only IPv4 source that it may use.
    pub peer: Ipv4Addr,
    /// What we call it.
    pub lease: Ipv4Addr,
    /// What we call ourselves. The peer may call us anything: it is the destination of whatever comes.
    pub own: Ipv4Addr,
    /// Multicast is on: the directed broadcast address of the peer's subnet, and that of ours.
    pub broadcast: Option<(Ipv4Addr, Ipv4Addr)>,
}
