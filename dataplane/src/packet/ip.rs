//! A checked view of an inner packet's IP header (RFC 791, RFC 8200).

use super::{IPV4_LEN, IPV6_LEN, Malformed, be16};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The IPv6 next header "hop-by-hop options", the only place for a jumbo payload option.
const HOP_BY_HOP: u8 = 0;

/// What the IP header of a packet says, checked against the bytes that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    source: IpAddr,
    destination: IpAddr,
    total_len: u16,
    header_len: u8,
}

impl Inner {
    /// Reads the IP header at the start of `packet`. More bytes than the packet's length are padding
    /// (WireGuard pads to 16 bytes, and checksums do not cover it); fewer are an error.
    ///
    /// # Errors
    /// [`Malformed`] if it is no whole IP packet, or a jumbogram.
    #[inline]
    pub fn parse(packet: &[u8]) -> Result<Self, Malformed> {
        match packet.first().ok_or(Malformed::Short)? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => Err(Malformed::Version),
        }
    }

    #[inline]
    fn parse_v4(packet: &[u8]) -> Result<Self, Malformed> {
        let h = packet.first_chunk::<IPV4_LEN>().ok_or(Malformed::Short)?;
        let header_len = (h[0] & 0xf) * 4;
        let total_len = be16(h, 2);
        if usize::from(header_len) < IPV4_LEN {
            return Err(Malformed::HeaderLength);
        }
        if total_len < u16::from(header_len) || usize::from(total_len) > packet.len() {
            return Err(Malformed::TotalLength);
        }
        Ok(Self {
            source: Ipv4Addr::new(h[12], h[13], h[14], h[15]).into(),
            destination: Ipv4Addr::new(h[16], h[17], h[18], h[19]).into(),
            total_len,
            header_len,
        })
    }

    #[inline]
    fn parse_v6(packet: &[u8]) -> Result<Self, Malformed> {
        let h = packet.first_chunk::<IPV6_LEN>().ok_or(Malformed::Short)?;
        let payload_len = be16(h, 4);
        if payload_len == 0 && h[6] == HOP_BY_HOP {
            return Err(Malformed::Jumbogram);
        }
        // A super-packet is at most 65,535 bytes long, header included.
        let total_len = payload_len.checked_add(IPV6_LEN as u16).ok_or(Malformed::TotalLength)?;
        if usize::from(total_len) > packet.len() {
            return Err(Malformed::TotalLength);
        }
        let address = |at: usize| {
            let mut a = [0; 16];
            a.copy_from_slice(&h[at..at + 16]);
            IpAddr::V6(Ipv6Addr::from(a))
        };
        Ok(Self { source: address(8), destination: address(24), total_len, header_len: IPV6_LEN as u8 })
    }

    /// 4 or 6.
    #[must_use]
    pub const fn version(&self) -> u8 {
        if self.source.is_ipv4() { 4 } else { 6 }
    }

    /// The source address.
    #[must_use]
    pub const fn source(&self) -> IpAddr {
        self.source
    }

    /// The destination address.
    #[must_use]
    pub const fn destination(&self) -> IpAddr {
        self.destination
    }

    /// Bytes of the packet, header included, padding not.
    #[must_use]
    pub const fn total_len(&self) -> usize {
        self.total_len as usize
    }

    /// Bytes of the IP header: with options for IPv4, without extension headers for IPv6.
    #[must_use]
    pub const fn header_len(&self) -> usize {
        self.header_len as usize
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Packet;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn padding_is_not_part_of_the_packet() {
        for p in [Packet::tcp4(), Packet::tcp6()] {
            let exact = p.bytes();
            let mut padded = exact.clone();
            padded.extend([0; 9]);
            let inner = Inner::parse(&padded).expect("packet");
            assert_eq!(inner.total_len(), exact.len());
            assert_eq!((inner.source(), inner.destination()), (p.source, p.destination));
            assert_eq!(Inner::parse(&exact[..exact.len() - 1]), Err(Malformed::TotalLength));
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let v4 = |change: fn(&mut Vec<u8>)| {
            let mut p = Packet::tcp4().bytes();
            change(&mut p);
            Inner::parse(&p).map(|_| ())
        };
        assert_eq!(v4(|p| p[0] = 0x44), Err(Malformed::HeaderLength));
        assert_eq!(v4(|p| p[0] = 0x55), Err(Malformed::Version));
        assert_eq!(v4(|p| p.truncate(19)), Err(Malformed::Short));
        assert_eq!(v4(Vec::clear), Err(Malformed::Short));
        assert_eq!(v4(|p| p[2..4].copy_from_slice(&[0, 19])), Err(Malformed::TotalLength));
        let mut jumbo = Packet::tcp6().bytes();
        jumbo[4..7].fill(0);
        assert_eq!(Inner::parse(&jumbo), Err(Malformed::Jumbogram));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(p) = Inner::parse(&bytes) {
                prop_assert!(p.header_len() <= p.total_len() && p.total_len() <= bytes.len());
            }
        }
    }
}
