//! Dynamic IP translation: a friend's packets under the addresses that we gave.
//!
//! Each of two friends numbers the other's node as it likes, and nothing is changed on the way out. Whoever receives puts
//! its own numbers into the packet, before packets are put together for TUN. Checksums are adjusted by what changed
//! (RFC 1624) and never made anew, so that what was wrong stays wrong.
//!
//! What is written where addresses belong is translated: the IP header, what ICMP errors quote, and what mDNS and SSDP
//! tell (`discovery.rs`). IP options stay as they are; the addresses in a recorded route are the peer's.

mod discovery;
mod mdns;
mod quote;
mod ssdp;
#[cfg(test)]
mod tests;

use super::checksum::Change;
use super::{IPV4_LEN, Inner, TCP_CHECKSUM, UDP_CHECKSUM, be16, be32, protocol};
use std::net::{IpAddr, Ipv4Addr};

/// A packet grows by this many bytes, at most: when the text "1.1.1.1" becomes a longest one.
pub const GROWTH: usize = "255.255.255.255".len() - "1.1.1.1".len();

/// IPv4's "more fragments".
const MORE_FRAGMENTS: u16 = 0x2000;
/// IPv4's fragment offset.
const FRAGMENT_OFFSET: u16 = 0x1fff;
/// DCCP's checksum is at this offset of its header (RFC 4340 section 5.1).
const DCCP_CHECKSUM: usize = 6;
/// UDP-Lite's checksum is at this offset of its header (RFC 3828 section 3.1).
const UDP_LITE_CHECKSUM: usize = 6;

/// IPv4 options (RFC 791 section 3.1): end of the list, a filler, and the two that choose the route.
mod option {
    pub(super) const END: u8 = 0;
    pub(super) const NOTHING: u8 = 1;
    pub(super) const LOOSE_ROUTE: u8 = 131;
    pub(super) const STRICT_ROUTE: u8 = 137;
}

/// How one peer's IPv4 packets are translated on arrival. IPv6 packets are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// What the peer's node calls itself: the only IPv4 source that it may use.
    pub peer: Ipv4Addr,
    /// What we call it.
    pub lease: Ipv4Addr,
    /// What we call ourselves: the destination of whatever comes, as we do not know what the peer calls us.
    pub own: Ipv4Addr,
    /// Multicast is on: the directed broadcast address of the peer's subnet, and that of ours. While it is off, packets
    /// for 224.0.0.0/4 and 255.255.255.255 are refused; a directed broadcast is not known as one, and is for `own`.
    pub broadcast: Option<(Ipv4Addr, Ipv4Addr)>,
}

/// Why a packet is not translated but to be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It names another source than [`Translation::peer`].
    #[error("the source is not the peer's own address")]
    Spoofed,
    /// It is for a group or for everybody, and multicast is off.
    #[error("multicast is off")]
    Multicast,
    /// Its checksum, which covers the addresses, is missing (the packet ends before it, or it is in a later fragment:
    /// RFC 1858), its options contradict their lengths, it is an ICMP error about somebody else's packet, or it is a
    /// redirect or source-routed: both are about addresses that mean nothing on this side (RFC 7126 section 4.3 and 4.4
    /// advises to drop the latter anyway).
    #[error("the packet cannot be translated")]
    Malformed,
}

impl Translation {
    /// Translates an IPv4 packet of the peer in place and gives its new length. `inner` was read from the start of
    /// `buf`; what is in `buf` behind the packet is room that it may grow into (an SSDP message, by at most [`GROWTH`])
    /// and of no meaning before and after.
    ///
    /// # Errors
    /// [`Refused`], for IPv6 too; nothing was changed then.
    ///
    /// # Panics
    /// If `inner` was read from something else.
    #[inline]
    pub fn translate(&self, buf: &mut [u8], inner: &Inner) -> Result<usize, Refused> {
        let (IpAddr::V4(source), IpAddr::V4(old)) = (inner.source(), inner.destination()) else {
            return Err(Refused::Malformed);
        };
        if source != self.peer {
            return Err(Refused::Spoofed);
        }
        let new = self.destination(old)?;
        let (header_len, total_len) = (inner.header_len(), inner.total_len());
        let (header, rest) = buf.split_at_mut(header_len);
        if header_len > IPV4_LEN {
            check_options(&header[IPV4_LEN..])?;
        }
        let fragment = be16(header, 6);
        let change = Change::NONE.u32(source.to_bits(), self.lease.to_bits()).u32(old.to_bits(), new.to_bits());
        if fragment & FRAGMENT_OFFSET == 0 {
            let payload = &mut rest[..total_len - header_len];
            if header[9] == protocol::ICMP {
                self.translate_icmp(payload, fragment & MORE_FRAGMENTS != 0, old, new)?;
            } else if let Some((at, nonzero)) = checksum_of(header[9]) {
                let sum = payload.get_mut(at..).and_then(<[u8]>::first_chunk_mut).ok_or(Refused::Malformed)?;
                *sum = if nonzero { change.apply_nonzero(*sum) } else { change.apply(*sum) };
            }
        }
        let sum = change.apply([header[10], header[11]]);
        header[10..12].copy_from_slice(&sum);
        header[12..16].copy_from_slice(&self.lease.octets());
        header[16..20].copy_from_slice(&new.octets());
        if header[9] == protocol::UDP && fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) == 0 {
            return Ok(self.translate_discovery(buf, header_len, total_len));
        }
        Ok(total_len)
    }

    /// What the destination `old` becomes.
    #[inline]
    fn destination(&self, old: Ipv4Addr) -> Result<Ipv4Addr, Refused> {
        if is_for_many(old) {
            return self.broadcast.map(|_| old).ok_or(Refused::Multicast);
        }
        match self.broadcast {
            Some((theirs, ours)) if theirs == old => Ok(ours),
            _ => Ok(self.own),
        }
    }
}

/// Whether it is a group, or everybody on the link.
#[must_use]
#[inline]
pub const fn is_for_many(address: Ipv4Addr) -> bool {
    address.is_multicast() || address.is_broadcast()
}

/// Where in its header a transport protocol has the checksum that covers the addresses, and whether zero means there is
/// none. SCTP, GRE and most others have no such checksum.
#[inline]
const fn checksum_of(protocol: u8) -> Option<(usize, bool)> {
    match protocol {
        protocol::TCP => Some((TCP_CHECKSUM, false)),
        protocol::UDP => Some((UDP_CHECKSUM, true)),
        // Zero is no valid checksum here, and 0xffff stands for it all the same.
        protocol::UDP_LITE => Some((UDP_LITE_CHECKSUM, true)),
        protocol::DCCP => Some((DCCP_CHECKSUM, false)),
        _ => None,
    }
}

/// Walks over IPv4 options as the kernel does (`__ip_options_compile`, net/ipv4/ip_options.c).
fn check_options(mut options: &[u8]) -> Result<(), Refused> {
    loop {
        options = match *options {
            [] | [option::END, ..] => return Ok(()),
            [option::NOTHING, ref rest @ ..] => rest,
            [option::LOOSE_ROUTE | option::STRICT_ROUTE, ..] => return Err(Refused::Malformed),
            [_, len, ..] if len >= 2 => options.get(usize::from(len)..).ok_or(Refused::Malformed)?,
            _ => return Err(Refused::Malformed),
        };
    }
}

/// The IPv4 address at `at`.
fn address(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(be32(bytes, at))
}
