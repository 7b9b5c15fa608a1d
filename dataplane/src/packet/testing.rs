//! Packets for tests, built and checked without any code under test.

use proptest::prelude::*;
use std::net::IpAddr;

/// RFC 1071 word by word: the checksum bytes of `data`.
pub(super) fn naive(data: &[u8]) -> [u8; 2] {
    let mut sum = 0u32;
    for pair in data.chunks(2) {
        sum += u32::from(pair[0]) * 256 + u32::from(*pair.get(1).unwrap_or(&0));
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    (!(sum as u16)).to_be_bytes()
}

/// A packet's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) tcp: bool,
    pub(super) ports: [u16; 2],
    pub(super) tos: u8,
    pub(super) ttl: u8,
    pub(super) id: u16,
    pub(super) df: bool,
    pub(super) label: u32,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) options: Vec<u8>,
    /// IPv4 options, or one IPv6 extension header (destination options).
    pub(super) ip_options: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

impl Packet {
    pub(super) fn tcp4() -> Self {
        Self {
            source: "10.0.0.1".parse().expect("address"),
            destination: "10.0.0.2".parse().expect("address"),
            tcp: true,
            ports: [40_000, 5201],
            tos: 0,
            ttl: 64,
            id: 7,
            df: true,
            label: 0,
            seq: 1000,
            ack: 77,
            flags: 0x10,
            window: 501,
            options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            ip_options: vec![],
            payload: vec![0x5a; 100],
        }
    }

    pub(super) fn tcp6() -> Self {
        Self {
            source: "fd00::1".parse().expect("address"),
            destination: "fd00::2".parse().expect("address"),
            label: 0x12345,
            ..Self::tcp4()
        }
    }

    pub(super) fn udp(self) -> Self {
        Self { tcp: false, options: vec![], flags: 0, ..self }
    }

    /// The same stream, `n` packets of `payload` bytes later.
    pub(super) fn after(&self, n: usize, payload: usize) -> Self {
        Self { seq: self.seq.wrapping_add((n * payload) as u32), id: self.id.wrapping_add(n as u16), ..self.clone() }
    }

    pub(super) fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut p = self.clone();
        change(&mut p);
        p
    }

    /// Offset of the transport header.
    pub(super) fn transport(&self) -> usize {
        self.ip_options.len() + if self.source.is_ipv4() { 20 } else { 40 }
    }

    /// Bytes before the payload.
    pub(super) fn header_len(&self) -> usize {
        self.transport() + if self.tcp { 20 + self.options.len() } else { 8 }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let protocol = if self.tcp { 6 } else { 17 };
        let mut l4 = Vec::new();
        l4.extend(self.ports.iter().flat_map(|p| p.to_be_bytes()));
        if self.tcp {
            l4.extend(self.seq.to_be_bytes());
            l4.extend(self.ack.to_be_bytes());
            l4.extend([(5 + self.options.len() as u8 / 4) << 4, self.flags]);
            l4.extend(self.window.to_be_bytes());
            l4.extend([0; 4]);
            l4.extend(&self.options);
        } else {
            l4.extend((8 + self.payload.len() as u16).to_be_bytes());
            l4.extend([0; 2]);
        }
        l4.extend(&self.payload);
        let (mut p, addresses) = match (self.source, self.destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                let header = 20 + self.ip_options.len();
                let mut p = vec![0x40 | (header / 4) as u8, self.tos];
                p.extend(((header + l4.len()) as u16).to_be_bytes());
                p.extend(self.id.to_be_bytes());
                p.extend([if self.df { 0x40 } else { 0 }, 0, self.ttl, protocol, 0, 0]);
                p.extend(s.octets().into_iter().chain(d.octets()));
                p.extend(&self.ip_options);
                let sum = naive(&p);
                p[10..12].copy_from_slice(&sum);
                (p, s.octets().into_iter().chain(d.octets()).collect::<Vec<_>>())
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                let mut p = (0x6000_0000 | u32::from(self.tos) << 20 | self.label).to_be_bytes().to_vec();
                p.extend(((self.ip_options.len() + l4.len()) as u16).to_be_bytes());
                p.extend([if self.ip_options.is_empty() { protocol } else { 60 }, self.ttl]);
                p.extend(s.octets().into_iter().chain(d.octets()));
                p.extend(&self.ip_options);
                (p, s.octets().into_iter().chain(d.octets()).collect())
            }
            _ => unreachable!("one IP version"),
        };
        let mut sum = pseudo(addresses, protocol, &l4);
        if !self.tcp && sum == [0, 0] {
            sum = [0xff; 2];
        }
        let at = if self.tcp { 16 } else { 6 };
        l4[at..at + 2].copy_from_slice(&sum);
        p.extend(l4);
        p
    }
}

fn pseudo(mut addresses: Vec<u8>, protocol: u8, l4: &[u8]) -> [u8; 2] {
    addresses.extend([0, protocol]);
    addresses.extend((l4.len() as u32).to_be_bytes());
    addresses.extend(l4);
    naive(&addresses)
}

/// Asserts that every checksum in `p` is right; the transport header is `transport` bytes in.
pub(super) fn assert_checksums(p: &[u8], transport: usize, tcp: bool) {
    let addresses = if p[0] >> 4 == 4 {
        assert_eq!(naive(&p[..usize::from(p[0] & 15) * 4]), [0, 0], "IPv4 header checksum");
        p[12..20].to_vec()
    } else {
        p[8..40].to_vec()
    };
    assert_eq!(pseudo(addresses, if tcp { 6 } else { 17 }, &p[transport..]), [0, 0], "transport checksum");
}

/// Any first packet of a stream that may be coalesced, with an empty payload.
pub(super) fn stream() -> impl Strategy<Value = Packet> {
    let addresses = (any::<bool>(), any::<[u8; 16]>(), any::<[u8; 16]>());
    let ip = (any::<u8>(), any::<u8>(), any::<u16>(), any::<bool>(), 0u32..1 << 20);
    let tcp = (any::<bool>(), any::<[u16; 2]>(), any::<u32>(), any::<u32>(), any::<u16>());
    let options = (0usize..=10).prop_flat_map(|n| proptest::collection::vec(any::<u8>(), 4 * n));
    (addresses, ip, tcp, options).prop_map(|((v4, s, d), (tos, ttl, id, df, label), (tcp, ports, seq, ack, w), o)| {
        let address = |a: [u8; 16]| -> IpAddr { if v4 { [a[0], a[1], a[2], a[3]].into() } else { a.into() } };
        Packet {
            source: address(s),
            destination: address(d),
            tcp,
            ports,
            tos,
            ttl,
            id,
            df,
            label,
            seq,
            ack,
            flags: 0x10,
            window: w,
            options: if tcp { o } else { vec![] },
            ip_options: vec![],
            payload: vec![],
        }
    })
}

/// What TUN reads or writes for `p` as a super-packet of `gso_size` segments.
pub(super) fn super_packet(p: &Packet, gso_size: usize) -> Vec<u8> {
    let mut bytes = p.bytes();
    let at = p.transport() + if p.tcp { 16 } else { 6 };
    let mut addresses = if p.source.is_ipv4() { bytes[12..20].to_vec() } else { bytes[8..40].to_vec() };
    addresses.extend([0, if p.tcp { 6 } else { 17 }]);
    addresses.extend(((bytes.len() - p.transport()) as u32).to_be_bytes());
    let sum = naive(&addresses).map(|b| !b);
    bytes[at..at + 2].copy_from_slice(&sum);
    let gso_type = if p.tcp { if p.source.is_ipv4() { 1 } else { 4 } } else { 5 };
    let mut buf = vec![1, gso_type];
    for field in [p.header_len(), gso_size, p.transport(), at - p.transport()] {
        buf.extend((field as u16).to_ne_bytes());
    }
    buf.extend(bytes);
    buf
}

/// All segments of one read from TUN.
pub(super) fn segments(mut buf: Vec<u8>) -> Vec<Vec<u8>> {
    let split = super::Split::new(&mut buf).expect("a packet");
    let segments = (0..split.count()).map(|i| {
        let mut out = vec![0xa5; split.len_of(i)];
        split.write(i, &mut out);
        out
    });
    segments.collect()
}
