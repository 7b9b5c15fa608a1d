//! Super-packets from TUN, taken apart into segments (TSO and USO in software).
//!
//! What is the same in every segment is summed once. A segment's payload is summed where it is: what copies or seals
//! it next finds it in the first-level cache.

use super::checksum::Sum;
use super::virtio::{self, VNET_LEN};
use super::{Inner, MAX_SEGMENTS, Malformed, TCP_CHECKSUM, TCP_LEN, UDP_CHECKSUM, UDP_LEN};
use super::{be16, be32, flag, protocol, put16};
use std::net::IpAddr;

/// IPv4's fragment offset and "more fragments".
const FRAGMENT: u16 = 0x3fff;

/// One read from TUN: a packet, or a super-packet that stands for several.
#[derive(Debug)]
pub struct Split<'a> {
    packet: &'a [u8],
    inner: Inner,
    /// Payload bytes of every segment but the last; the whole packet without offload.
    step: usize,
    count: usize,
    template: Option<Template>,
}

/// What the headers of all segments have in common.
#[derive(Debug)]
struct Template {
    /// Bytes of all headers.
    header_len: usize,
    /// Where the transport header begins.
    transport: usize,
    /// Sum of the IPv4 header without length, ID and checksum; unused for IPv6.
    ip: Sum,
    /// Sum of pseudo header and transport header without what differs: lengths, sequence, flags, checksum.
    l4: Sum,
    /// TCP's flags and sequence; `None` for UDP.
    tcp: Option<Tcp>,
}

#[derive(Clone, Copy, Debug)]
struct Tcp {
    seq: u32,
    flags: u8,
}

impl<'a> Split<'a> {
    /// `buf` is one read from TUN: the virtio header ([`VNET_LEN`] bytes) and a packet. A single packet that
    /// lacks its checksum gets it, in place, and its header says so.
    ///
    /// # Errors
    /// [`Malformed`] if it is no IP packet or the virtio header does not fit it. The buffer is unchanged then.
    pub fn new(buf: &'a mut [u8]) -> Result<Self, Malformed> {
        let (header, packet) = buf.split_first_chunk_mut::<VNET_LEN>().ok_or(Malformed::Short)?;
        let vnet = virtio::Header::read(header);
        let inner = Inner::parse(packet)?;
        let packet = &mut packet[..inner.total_len()];
        if vnet.gso() == virtio::GSO_NONE {
            if vnet.needs_checksum() {
                complete(packet, &inner, &vnet)?;
                // A packet that waits for a session is split again: its checksum is done.
                header[0] &= !virtio::F_NEEDS_CSUM;
            }
            return Ok(Self::whole(packet, inner));
        }
        Self::offloaded(packet, inner, &vnet)
    }

    /// `packet` is one read from a device without virtio headers.
    ///
    /// # Errors
    /// [`Malformed`] if it is no IP packet.
    pub fn plain(packet: &'a mut [u8]) -> Result<Self, Malformed> {
        let inner = Inner::parse(packet)?;
        Ok(Self::whole(&packet[..inner.total_len()], inner))
    }

    fn whole(packet: &'a [u8], inner: Inner) -> Self {
        Self { packet, inner, step: packet.len(), count: 1, template: None }
    }

    fn offloaded(packet: &'a [u8], inner: Inner, vnet: &virtio::Header) -> Result<Self, Malformed> {
        let (tcp, version) = match vnet.gso() {
            virtio::GSO_TCPV4 => (true, 4),
            virtio::GSO_TCPV6 => (true, 6),
            virtio::GSO_UDP_L4 => (false, inner.version()),
            _ => return Err(Malformed::Offload),
        };
        // The kernel hands out no super-packet with finished checksums: only csum_start says where the
        // transport header is.
        if !vnet.needs_checksum() || version != inner.version() || vnet.gso_size == 0 {
            return Err(Malformed::Offload);
        }
        let template = Template::new(packet, &inner, usize::from(vnet.csum_start), tcp)?;
        let step = usize::from(vnet.gso_size);
        let payload = packet.len() - template.header_len;
        let count = payload.div_ceil(step).max(1);
        if count > MAX_SEGMENTS {
            return Err(Malformed::Segments);
        }
        Ok(Self { packet, inner, step, count, template: Some(template) })
    }

    /// Number of segments; 1 for a packet that is none of a super-packet.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Bytes of every segment but the last, headers included.
    #[must_use]
    pub const fn segment_len(&self) -> usize {
        match &self.template {
            Some(t) if self.count > 1 => t.header_len + self.step,
            _ => self.packet.len(),
        }
    }

    /// Bytes of the last segment, headers included. At most [`Self::segment_len`].
    #[must_use]
    pub const fn last_len(&self) -> usize {
        self.packet.len() - (self.count - 1) * self.step
    }

    /// Bytes of segment `i`, headers included.
    #[must_use]
    pub const fn len_of(&self, i: usize) -> usize {
        if i + 1 < self.count { self.segment_len() } else { self.last_len() }
    }

    /// The source address of every segment.
    #[must_use]
    pub const fn source(&self) -> IpAddr {
        self.inner.source()
    }

    /// The destination address of every segment.
    #[must_use]
    pub const fn destination(&self) -> IpAddr {
        self.inner.destination()
    }

    /// Writes segment `i` to `out`.
    ///
    /// # Panics
    /// If `i` is not below [`Self::count`] or `out` is not [`Self::len_of`] bytes long.
    pub fn write(&self, i: usize, out: &mut [u8]) {
        let (head, payload) = self.write_header(i, out);
        out[head..].copy_from_slice(payload);
    }

    /// Writes only the header of segment `i` and gives its length and the payload, which belongs behind it. A packet
    /// that is no super-packet is all payload.
    ///
    /// # Panics
    /// As [`Self::write`], which needs as much room.
    pub fn write_header(&self, i: usize, out: &mut [u8]) -> (usize, &'a [u8]) {
        assert_eq!(out.len(), self.len_of(i), "room for segment {i}");
        let Some(t) = &self.template else {
            assert_eq!(i, 0, "a packet is one segment");
            return (0, self.packet);
        };
        assert!(i < self.count, "segment {i} of {}", self.count);
        let (header, payload) = self.packet.split_at(t.header_len);
        let from = i * self.step;
        let payload = &payload[from..payload.len().min(from + self.step)];
        let header_out = &mut out[..t.header_len];
        header_out.copy_from_slice(header);
        let sum = t.l4.add_bytes(payload);
        t.patch(header_out, payload.len(), sum, Position { i, from, last: i + 1 == self.count });
        (t.header_len, payload)
    }
}

/// Where a segment stands in its super-packet.
struct Position {
    i: usize,
    /// Payload bytes before it.
    from: usize,
    last: bool,
}

impl Template {
    fn new(packet: &[u8], inner: &Inner, transport: usize, tcp: bool) -> Result<Self, Malformed> {
        let v4 = inner.version() == 4;
        // IPv6 extension headers may stand between, for IPv4 there is nothing.
        if transport < inner.header_len() || (v4 && transport != inner.header_len()) {
            return Err(Malformed::Offload);
        }
        let number = if tcp { protocol::TCP } else { protocol::UDP };
        let extended = transport != inner.header_len();
        let said = if v4 { packet[9] } else { packet[6] };
        if (!extended && said != number) || (v4 && be16(packet, 6) & FRAGMENT != 0) {
            return Err(Malformed::Offload);
        }
        let l4 = packet.get(transport..).ok_or(Malformed::Short)?;
        let l4_header = if tcp { tcp_len(l4)? } else { UDP_LEN };
        let header = l4.get(..l4_header).ok_or(Malformed::Short)?;
        let pseudo = if extended {
            // With a routing header the pseudo header has another destination than the IP header
            // (RFC 8200 section 8.1). The kernel knew it: take its sum and the whole length out of it.
            let field = if tcp { TCP_CHECKSUM } else { UDP_CHECKSUM };
            Sum::ZERO.add_u16(be16(header, field)).add_u16(!(l4.len() as u16))
        } else {
            let addresses = if v4 { &packet[12..20] } else { &packet[8..40] };
            Sum::pseudo(addresses, number, 0)
        };
        let fixed = if tcp {
            pseudo
                .add_bytes(&header[..4])
                .add_bytes(&header[8..12])
                .add_u16(u16::from(header[12]) << 8)
                .add_bytes(&header[14..TCP_CHECKSUM])
                .add_bytes(&header[18..])
        } else {
            pseudo.add_bytes(&header[..4])
        };
        Ok(Self {
            header_len: transport + l4_header,
            transport,
            ip: if v4 {
                Sum::ZERO.add_bytes(&packet[..2]).add_bytes(&packet[6..10]).add_bytes(&packet[12..transport])
            } else {
                Sum::ZERO
            },
            l4: fixed,
            tcp: tcp.then(|| Tcp { seq: be32(header, 4), flags: header[13] }),
        })
    }

    /// Makes `header`, a copy of the super-packet's, the header of the segment at `at` with `payload` bytes.
    /// `sum` is that of the template and the payload.
    #[inline]
    fn patch(&self, header: &mut [u8], payload: usize, sum: Sum, at: Position) {
        let (ip, l4) = header.split_at_mut(self.transport);
        // All lengths are below the packet's, which is below 2^16.
        let l4_len = (l4.len() + payload) as u16;
        if ip[0] >> 4 == 4 {
            let total = ip.len() as u16 + l4_len;
            let id = be16(ip, 4).wrapping_add(at.i as u16);
            put16(ip, 2, total);
            put16(ip, 4, id);
            ip[10..12].copy_from_slice(&self.ip.add_u16(total).add_u16(id).checksum());
        } else {
            put16(ip, 4, (self.transport - super::IPV6_LEN) as u16 + l4_len);
        }
        // The length in the pseudo header.
        let sum = sum.add_u16(l4_len);
        match self.tcp {
            Some(tcp) => {
                let seq = tcp.seq.wrapping_add(at.from as u32);
                let mut flags = tcp.flags;
                if at.i > 0 {
                    flags &= !flag::CWR;
                }
                if !at.last {
                    flags &= !(flag::FIN | flag::PSH);
                }
                l4[4..8].copy_from_slice(&seq.to_be_bytes());
                l4[13] = flags;
                let sum = sum.add_u32(seq).add_u16(u16::from(flags));
                l4[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&sum.checksum());
            }
            None => {
                put16(l4, 4, l4_len);
                l4[UDP_CHECKSUM..].copy_from_slice(&sum.add_u16(l4_len).checksum_nonzero());
            }
        }
    }
}

/// The length of the TCP header at the start of `l4`, options included.
fn tcp_len(l4: &[u8]) -> Result<usize, Malformed> {
    let words = l4.get(12).ok_or(Malformed::Short)? >> 4;
    let len = usize::from(words) * 4;
    if len < TCP_LEN { Err(Malformed::HeaderLength) } else { Ok(len) }
}

/// Completes the checksum of a packet that is no super-packet.
fn complete(packet: &mut [u8], inner: &Inner, vnet: &virtio::Header) -> Result<(), Malformed> {
    let start = usize::from(vnet.csum_start);
    let at = start + usize::from(vnet.csum_offset);
    if start < inner.header_len() || at + 2 > packet.len() {
        return Err(Malformed::Offload);
    }
    // The field takes part: it holds the pseudo header's sum. Zero becomes 0xffff for every protocol, as in
    // skb_checksum_help() (net/core/dev.c): UDP needs it, to the others both are zero.
    let sum = Sum::ZERO.add_bytes(&packet[start..]).checksum_nonzero();
    packet[at..at + 2].copy_from_slice(&sum);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Packet, assert_checksums, segments, stream, super_packet};
    use super::*;
    use proptest::prelude::*;

    fn refused(p: &Packet, change: impl FnOnce(&mut Vec<u8>)) -> Malformed {
        let mut buf = super_packet(p, 40);
        change(&mut buf);
        Split::new(&mut buf).map(|_| ()).expect_err("malformed")
    }

    #[test]
    fn fin_and_psh_are_last_and_cwr_is_first() {
        let p = Packet::tcp4().with(|p| p.flags = 0x99);
        let flags: Vec<u8> = segments(super_packet(&p, 40)).iter().map(|s| s[33]).collect();
        assert_eq!(flags, [0x90, 0x10, 0x19]);
    }

    #[test]
    fn a_missing_checksum_is_completed_in_place() {
        for p in [Packet::tcp4(), Packet::tcp6(), Packet::tcp4().udp(), Packet::tcp6().udp()] {
            let mut buf = super_packet(&p, 0);
            buf[1] = 0;
            assert_eq!(segments(buf), [p.bytes()]);
        }
    }

    #[test]
    fn packets_without_offload_pass_unchanged_and_lose_padding() {
        let p = Packet::tcp6().bytes();
        let mut buf = [&[0; VNET_LEN], &p[..], &[1, 2, 3]].concat();
        assert_eq!(segments(buf.clone()), std::slice::from_ref(&p));
        let split = Split::plain(&mut buf[VNET_LEN..]).expect("packet");
        assert_eq!((split.count(), split.segment_len(), split.last_len()), (1, p.len(), p.len()));
        let mut out = vec![0; p.len()];
        split.write(0, &mut out);
        assert_eq!(out, p);
    }

    #[test]
    fn a_small_super_packet_is_one_segment() {
        let p = Packet::tcp4();
        for payload in [0, 1, 39, 40] {
            let p = p.with(|p| p.payload.truncate(payload));
            assert_eq!(segments(super_packet(&p, 40)), [p.bytes()]);
        }
    }

    #[test]
    fn extension_headers_stay_before_the_transport_header() {
        for p in [Packet::tcp6(), Packet::tcp6().udp()] {
            let p = p.with(|p| p.ip_options = vec![6, 0, 1, 4, 0, 0, 0, 0]);
            for (i, s) in segments(super_packet(&p, 40)).iter().enumerate() {
                assert_checksums(s, 48, p.tcp);
                assert_eq!(s.len(), p.header_len() + [40, 40, 20][i]);
                assert_eq!(usize::from(be16(s, 4)), s.len() - 40);
            }
        }
    }

    #[test]
    fn headers_that_contradict_the_packet_are_refused() {
        let (p, udp) = (Packet::tcp4(), Packet::tcp4().udp());
        let field = |at: usize, value: u16| move |b: &mut Vec<u8>| b[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        assert_eq!(refused(&p, field(4, 0)), Malformed::Offload, "segments of no bytes");
        assert_eq!(refused(&p, field(6, 0)), Malformed::Offload, "checksum in the IP header");
        assert_eq!(refused(&p, field(6, 24)), Malformed::Offload, "a gap behind the IPv4 header");
        assert_eq!(refused(&Packet::tcp6(), field(6, 60_000)), Malformed::Short, "transport behind the packet");
        assert_eq!(refused(&p, |b| b[0] = 0), Malformed::Offload, "no checksum to complete");
        assert_eq!(refused(&p, |b| b[1] = 4), Malformed::Offload, "wrong version");
        assert_eq!(refused(&p, |b| b[1] = 5), Malformed::Offload, "wrong protocol");
        assert_eq!(refused(&udp, |b| b[1] = 3), Malformed::Offload, "UFO");
        assert_eq!(refused(&p, |b| b[1] = 77), Malformed::Offload, "unknown");
        assert_eq!(refused(&p, |b| b[16] = 0x20), Malformed::Offload, "a fragment");
        assert_eq!(refused(&p, |b| b[42] = 0x40), Malformed::HeaderLength, "TCP header too short");
        assert_eq!(refused(&p.with(|p| p.payload.clear()), |b| b[42] = 0xf0), Malformed::Short, "TCP header cut");
        assert_eq!(refused(&p, |b| b.truncate(9)), Malformed::Short);
        let many = p.with(|p| p.payload = vec![0; MAX_SEGMENTS + 1]);
        assert_eq!(refused(&many, field(4, 1)), Malformed::Segments);
        let needs_csum = |start: u16, offset: u16| {
            let mut buf = [&[0; VNET_LEN], &p.bytes()[..]].concat();
            buf[0] = 1;
            buf[6..8].copy_from_slice(&start.to_ne_bytes());
            buf[8..10].copy_from_slice(&offset.to_ne_bytes());
            Split::new(&mut buf).map(|_| ())
        };
        assert_eq!(needs_csum(0, 10), Err(Malformed::Offload));
        assert_eq!(needs_csum(20, 65_535), Err(Malformed::Offload));
        assert_eq!(needs_csum(65_535, 65_535), Err(Malformed::Offload));
    }

    proptest! {
        #[test]
        fn segments_are_the_packets_that_the_stream_would_have_sent(
            p in stream(), gso in 1usize..3000, n in 1usize..60_000, seed in any::<u8>(), flags in any::<u8>(),
        ) {
            let gso = gso.max(n / MAX_SEGMENTS + 1);
            let payload: Vec<u8> = (0..n).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
            let whole = p.with(|p| { p.payload = payload.clone(); if p.tcp { p.flags = flags } });
            let made = segments(super_packet(&whole, gso));
            let count = n.div_ceil(gso);
            prop_assert_eq!(made.len(), count);
            for (i, (made, payload)) in made.iter().zip(payload.chunks(gso)).enumerate() {
                let expected = p.after(i, gso).with(|p| {
                    p.payload = payload.to_vec();
                    p.flags = whole.flags & !if i > 0 { 0x80 } else { 0 } & !if i + 1 < count { 0x09 } else { 0 };
                });
                prop_assert_eq!(made, &expected.bytes());
                assert_checksums(made, p.transport(), p.tcp);
            }
        }

        #[test]
        fn any_bytes_are_split_or_refused(
            mut buf in proptest::collection::vec(any::<u8>(), 0..200), v6 in any::<bool>(), gso in 0u8..7,
        ) {
            // Half way to something sensible, else nothing passes the first checks.
            if let Some(b) = buf.get_mut(..80) {
                b[10] = if v6 { 0x60 } else { 0x45 };
                b[12..15].fill(0);
                b[15] = 50;
                b[1] = gso;
                b[7] = 0;
            }
            let len = buf.len();
            if let Ok(split) = Split::new(&mut buf) {
                for i in 0..split.count() {
                    prop_assert!(split.len_of(i) <= len.max(split.segment_len()));
                    split.write(i, &mut vec![0; split.len_of(i)]);
                }
            }
        }
    }
}
