//! The virtio network header that TUN puts before every packet (`IFF_VNET_HDR`;
//! include/uapi/linux/virtio_net.h, OASIS virtio 1.2 section 5.1.6).

/// Length of the header in bytes. TUN's default (`TUNGETVNETHDRSZ`), without the `num_buffers` field.
pub const VNET_LEN: usize = 10;

/// Flag: the checksum is missing; sum from `csum_start` to the end and store it `csum_offset` further on.
/// The field holds the pseudo header's sum, not complemented.
pub const F_NEEDS_CSUM: u8 = 1;

/// GSO type: not a super-packet.
pub const GSO_NONE: u8 = 0;
/// GSO type: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// GSO type: UDP by IP fragmentation (UFO), which is never asked for.
pub const GSO_UDP: u8 = 3;
/// GSO type: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// GSO type: equal-sized UDP datagrams (USO), over IPv4 or IPv6.
pub const GSO_UDP_L4: u8 = 5;
/// Bit in the GSO type: the first segment has CWR set.
pub const GSO_ECN: u8 = 0x80;

/// The header's fields. In the machine's byte order, as TUN has them unless told otherwise (`TUNSETVNETLE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// [`F_NEEDS_CSUM`] or zero; other bits carry no meaning here.
    pub flags: u8,
    /// One of the `GSO_` types, perhaps with [`GSO_ECN`].
    pub gso_type: u8,
    /// A hint at the bytes of headers; wrong on the kernel's forwarding path.
    pub hdr_len: u16,
    /// Payload bytes of every segment but the last.
    pub gso_size: u16,
    /// Where the transport header begins, in bytes from the IP header.
    pub csum_start: u16,
    /// Where the checksum is, in bytes from `csum_start`.
    pub csum_offset: u16,
}

impl Header {
    /// Reads the header.
    #[must_use]
    pub const fn read(b: &[u8; VNET_LEN]) -> Self {
        Self {
            flags: b[0],
            gso_type: b[1],
            hdr_len: u16::from_ne_bytes([b[2], b[3]]),
            gso_size: u16::from_ne_bytes([b[4], b[5]]),
            csum_start: u16::from_ne_bytes([b[6], b[7]]),
            csum_offset: u16::from_ne_bytes([b[8], b[9]]),
        }
    }

    /// The header's bytes.
    #[must_use]
    pub const fn bytes(&self) -> [u8; VNET_LEN] {
        let (h, g) = (self.hdr_len.to_ne_bytes(), self.gso_size.to_ne_bytes());
        let (s, o) = (self.csum_start.to_ne_bytes(), self.csum_offset.to_ne_bytes());
        [self.flags, self.gso_type, h[0], h[1], g[0], g[1], s[0], s[1], o[0], o[1]]
    }

    /// Whether the checksum is missing.
    #[must_use]
    pub const fn needs_checksum(&self) -> bool {
        self.flags & F_NEEDS_CSUM != 0
    }

    /// The GSO type without [`GSO_ECN`].
    #[must_use]
    pub const fn gso(&self) -> u8 {
        self.gso_type & !GSO_ECN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_its_bytes() {
        let h = Header {
            flags: F_NEEDS_CSUM,
            gso_type: GSO_TCPV6 | GSO_ECN,
            hdr_len: 74,
            gso_size: 1368,
            csum_start: 40,
            csum_offset: 16,
        };
        assert_eq!(Header::read(&h.bytes()), h);
        assert_eq!(h.gso(), GSO_TCPV6);
        assert_eq!(Header::default().bytes(), [0; VNET_LEN]);
    }
}
