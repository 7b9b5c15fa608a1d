//! Packets as TUN gives and takes them.

use crate::Noise;
use dataplane::Translation;
use dataplane::packet::checksum::Sum;
use dataplane::packet::virtio::{self, VNET_LEN};
use dataplane::packet::{IPV4_LEN, IPV6_LEN, Split, TCP_LEN, UDP_LEN};
use std::net::Ipv4Addr;

/// Segments of a bulk super-packet: with their headers just below 64 KiB.
pub const SEGMENTS: usize = 45;
/// MTU of the tunnel in bytes.
pub const MTU: usize = 1420;
/// TCP options in bytes: two paddings and a timestamp, as Linux sends them.
const OPTIONS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];

/// How the flows' sender is translated.
pub const TRANSLATION: Translation = Translation {
    peer: Ipv4Addr::new(10, 0, 0, 1),
    lease: Ipv4Addr::new(172, 31, 7, 1),
    own: Ipv4Addr::new(172, 31, 0, 100),
    broadcast: None,
};

/// What a flow is made of. Flows go from 10.0.0.1 to 10.0.0.2, or from fd00::1 to fd00::2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over IPv4.
    Udp4,
}

impl Flow {
    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp4 => "tcp4",
            Self::Tcp6 => "tcp6",
            Self::Udp4 => "udp4",
        }
    }

    const fn ip_len(self) -> usize {
        if matches!(self, Self::Tcp6) { IPV6_LEN } else { IPV4_LEN }
    }

    const fn is_udp(self) -> bool {
        matches!(self, Self::Udp4)
    }

    /// Bytes of IP and transport header.
    #[must_use]
    pub const fn header_len(self) -> usize {
        self.ip_len() + if self.is_udp() { UDP_LEN } else { TCP_LEN + OPTIONS.len() }
    }

    /// Payload bytes of a packet that fills the MTU.
    #[must_use]
    pub const fn full(self) -> usize {
        MTU - self.header_len()
    }

    /// One TUN read: `count` segments of `payload` bytes each, from `port`. The checksum is left to the
    /// reader, as the kernel does.
    #[must_use]
    pub fn read(self, count: usize, payload: usize, port: u16) -> Vec<u8> {
        let (ip_len, header_len) = (self.ip_len(), self.header_len());
        let l4_len = header_len - ip_len + count * payload;
        let mut p = self.ip_header(l4_len);
        p.extend(port.to_be_bytes());
        p.extend(5201u16.to_be_bytes());
        if self.is_udp() {
            p.extend((l4_len as u16).to_be_bytes());
            p.extend([0; 2]);
        } else {
            p.extend([0, 0, 3, 232, 0, 0, 0, 77, 0x80, 0x10, 1, 245, 0, 0, 0, 0]);
            p.extend(OPTIONS);
        }
        let addresses = if ip_len == IPV6_LEN { &p[8..40] } else { &p[12..20] };
        let protocol = if self.is_udp() { 17 } else { 6 };
        let sum = Sum::pseudo(addresses, protocol, l4_len).partial();
        let csum_offset = if self.is_udp() { 6 } else { 16 };
        p[ip_len + csum_offset..][..2].copy_from_slice(&sum);
        p.extend(Noise::new(u64::from(port)).bytes(count * payload));

        let whole = count == 1;
        let header = virtio::Header {
            flags: virtio::F_NEEDS_CSUM,
            gso_type: match self {
                _ if whole => virtio::GSO_NONE,
                Self::Tcp4 => virtio::GSO_TCPV4,
                Self::Tcp6 => virtio::GSO_TCPV6,
                Self::Udp4 => virtio::GSO_UDP_L4,
            },
            hdr_len: header_len as u16,
            gso_size: if whole { 0 } else { payload as u16 },
            csum_start: ip_len as u16,
            csum_offset: csum_offset as u16,
        };
        [&header.bytes()[..], &p].concat()
    }

    fn ip_header(self, l4_len: usize) -> Vec<u8> {
        let protocol = if self.is_udp() { 17 } else { 6 };
        if self == Self::Tcp6 {
            let mut p = vec![0x60, 1, 2, 3];
            p.extend((l4_len as u16).to_be_bytes());
            p.extend([protocol, 64]);
            for host in [1, 2] {
                p.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
            }
            return p;
        }
        let mut p = vec![0x45, 0];
        p.extend(((IPV4_LEN + l4_len) as u16).to_be_bytes());
        p.extend([0, 7, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let sum = Sum::ZERO.add_bytes(&p).checksum();
        p[10..12].copy_from_slice(&sum);
        p
    }

    /// The packets of [`Self::read`] as they come out of the tunnel: each with room for a virtio header in
    /// front, and all checksums right.
    #[must_use]
    pub fn packets(self, count: usize, payload: usize, port: u16) -> Vec<Vec<u8>> {
        let mut read = self.read(count, payload, port);
        // Cannot fail: the read was made to fit.
        let split = Split::new(&mut read).expect("a packet");
        let packet = |i: usize| {
            let mut out = vec![0; VNET_LEN + split.len_of(i)];
            split.write(i, &mut out[VNET_LEN..]);
            out
        };
        (0..split.count()).map(packet).collect()
    }
}
