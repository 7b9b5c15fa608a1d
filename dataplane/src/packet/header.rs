//! What the coalescer has to know of a packet, and the comparison of two.

use super::checksum::Sum;
use super::{IPV4_LEN, IPV6_LEN, Inner, TCP_LEN, UDP_CHECKSUM, UDP_LEN, be16, be32, flag, protocol};

/// The longest headers that are coalesced: IPv6 without extensions and TCP with all options.
pub(super) const MAX_HEADER: usize = IPV6_LEN + 60;

/// IPv4's "don't fragment".
const DF: u16 = 0x4000;
/// IPv4's fragment offset and "more fragments".
const FRAGMENT: u16 = 0x3fff;
/// IPv6 extension headers, before which the ports are not in sight (IANA's list, RFC 7045 section 4; ESP
/// hides everything and is a flow of its own).
const EXTENSIONS: [u8; 8] = [0, 43, 44, 51, 60, 135, 139, 140];

/// What a packet is to the coalescer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// In no flow that is ever coalesced: nothing to keep in order.
    Apart,
    /// Belongs to some flow, but its ports are not in sight: a fragment, or behind extension headers.
    Hidden,
    /// In a TCP or UDP flow.
    Flow(Shape),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    /// A TCP segment that may be coalesced.
    Tcp,
    /// A UDP datagram that may be coalesced.
    Udp,
    /// A packet of a flow that may not be.
    #[default]
    Closing,
}

/// Where things are in a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) kind: Kind,
    pub(super) v6: bool,
    pub(super) protocol: u8,
    /// Bytes of the IP header.
    pub(super) transport: u8,
    /// Bytes of IP and transport header; zero for [`Kind::Closing`].
    pub(super) header_len: u8,
    /// Bytes behind them; zero for [`Kind::Closing`].
    pub(super) payload: u16,
}

impl Class {
    #[inline]
    pub(super) fn of(packet: &[u8], udp: bool) -> Self {
        let Ok(inner) = Inner::parse(packet) else { return Self::Apart };
        if inner.total_len() != packet.len() {
            return Self::Apart;
        }
        let v6 = inner.version() == 6;
        let protocol = if v6 { packet[6] } else { packet[9] };
        if v6 && EXTENSIONS.contains(&protocol) {
            return Self::Hidden;
        }
        if protocol != protocol::TCP && protocol != protocol::UDP {
            return Self::Apart;
        }
        let transport = inner.header_len();
        if (!v6 && be16(packet, 6) & FRAGMENT != 0) || packet.len() < transport + 4 {
            return Self::Hidden;
        }
        let closing = Shape { v6, protocol, transport: transport as u8, ..Shape::default() };
        Self::Flow(joinable(packet, closing, udp).unwrap_or(closing))
    }
}

/// The shape of a packet that may be coalesced.
#[inline]
fn joinable(packet: &[u8], at: Shape, udp: bool) -> Option<Shape> {
    let transport = usize::from(at.transport);
    if !at.v6 && (transport != IPV4_LEN || !Sum::ZERO.add_bytes(&packet[..IPV4_LEN]).is_valid()) {
        return None;
    }
    let l4 = &packet[transport..];
    let (kind, header) = if at.protocol == protocol::TCP {
        let header = l4.first_chunk::<TCP_LEN>()?;
        if header[13] & !flag::PSH != flag::ACK {
            return None;
        }
        (Kind::Tcp, usize::from(header[12] >> 4) * 4)
    } else {
        let header = l4.first_chunk::<UDP_LEN>()?;
        if !udp || usize::from(be16(header, 4)) != l4.len() || be16(header, UDP_CHECKSUM) == 0 {
            return None;
        }
        (Kind::Udp, UDP_LEN)
    };
    if (kind == Kind::Tcp && header < TCP_LEN) || header >= l4.len() {
        return None;
    }
    // The kernel computes the super-packet's checksum anew: a wrong one must not become right.
    let addresses = if at.v6 { &packet[8..40] } else { &packet[12..20] };
    if !Sum::pseudo(addresses, at.protocol, l4.len()).add_bytes(l4).is_valid() {
        return None;
    }
    let payload = (l4.len() - header) as u16;
    Some(Shape { kind, header_len: (transport + header) as u8, payload, ..at })
}

/// A packet of a flow, borrowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    pub(super) shape: Shape,
    pub(super) packet: &'a [u8],
}

impl Seen<'_> {
    fn ports(&self) -> u32 {
        be32(self.packet, usize::from(self.shape.transport))
    }

    /// A hash of the flow. Nobody is kept from finding flows that collide; they only lose coalescing by it.
    #[inline]
    pub(super) fn hash(&self) -> u32 {
        let addresses = if self.shape.v6 { &self.packet[8..40] } else { &self.packet[12..20] };
        let mut h = u64::from(self.ports()) << 8 | u64::from(self.shape.protocol);
        for word in addresses.as_chunks::<8>().0 {
            h = (h ^ u64::from_ne_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            h ^= h >> 32;
        }
        h as u32
    }

    /// Payload bytes.
    pub(super) const fn payload(&self) -> usize {
        self.shape.payload as usize
    }

    /// Whether it may be coalesced and ends what it is appended to.
    pub(super) fn has_push(&self) -> bool {
        self.shape.kind == Kind::Tcp && self.packet[usize::from(self.shape.transport) + 13] & flag::PSH != 0
    }
}

/// A copy of a packet's headers.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) shape: Shape,
    bytes: [u8; MAX_HEADER],
}

impl Header {
    /// Of a packet that has no flow.
    pub(super) const NONE: Self = Self {
        shape: Shape { kind: Kind::Closing, v6: false, protocol: 0, transport: 0, header_len: 0, payload: 0 },
        bytes: [0; MAX_HEADER],
    };

    pub(super) fn of(seen: &Seen<'_>) -> Self {
        let mut bytes = [0; MAX_HEADER];
        let shape = seen.shape;
        // Of a closing packet the ports, with whatever IPv4 options are before them.
        let len = usize::from(shape.header_len).max(usize::from(shape.transport) + 4);
        bytes[..len].copy_from_slice(&seen.packet[..len]);
        Self { shape, bytes }
    }

    /// Whether `next` has the same addresses, protocol and ports.
    #[inline]
    pub(super) fn same_flow(&self, next: &Seen<'_>) -> bool {
        let (a, b) = (&self.bytes, next.packet);
        self.shape.v6 == next.shape.v6
            && self.shape.protocol == next.shape.protocol
            && be32(a, usize::from(self.shape.transport)) == next.ports()
            && if self.shape.v6 { a[8..40] == b[8..40] } else { a[12..20] == b[12..20] }
    }

    /// Whether `next`, of the same flow and of a kind that may be coalesced, continues this one after
    /// `payload` bytes in `count` packets, with all the fields equal that the kernel gives to every segment.
    #[inline]
    pub(super) fn continued_by(&self, next: &Seen<'_>, payload: u32, count: u32) -> bool {
        let shape = self.shape;
        if shape.kind != next.shape.kind || shape.header_len != next.shape.header_len {
            return false;
        }
        let len = usize::from(shape.header_len);
        let (ip_a, l4_a) = self.bytes[..len].split_at(usize::from(shape.transport));
        let (ip_b, l4_b) = next.packet[..len].split_at(usize::from(shape.transport));
        let ip = if shape.v6 {
            // Traffic class and flow label; next header and hop limit.
            ip_a[..4] == ip_b[..4] && ip_a[6..8] == ip_b[6..8]
        } else {
            // TOS with ECN; DF; TTL.
            ip_a[1] == ip_b[1]
                && be16(ip_a, 6) == be16(ip_b, 6)
                && ip_a[8] == ip_b[8]
                && (be16(ip_a, 6) & DF != 0 || be16(ip_b, 4) == be16(ip_a, 4).wrapping_add(count as u16))
        };
        ip && (shape.kind == Kind::Udp
            || (be32(l4_b, 4) == be32(l4_a, 4).wrapping_add(payload)
                // Acknowledgement, header length; window; urgent pointer and options.
                && l4_a[8..13] == l4_b[8..13]
                && l4_a[14..16] == l4_b[14..16]
                && l4_a[18..] == l4_b[18..]))
    }
}
