//! Super-packets taken apart and put together.

use super::craft::{mend, naive, transport_sum};
use dataplane::packet::virtio::{GSO_NONE, Header, VNET_LEN};
use dataplane::packet::{Coalescer, GroupId, Inner, MAX_SEGMENTS, Split};
use std::collections::HashMap;

/// All segments of one read from TUN; `None` if it is refused.
fn segments(data: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut buf = data.to_vec();
    let split = Split::new(&mut buf).ok()?;
    assert!((1..=MAX_SEGMENTS).contains(&split.count()));
    let mut out = Vec::new();
    for i in 0..split.count() {
        assert!(split.len_of(i) <= split.segment_len());
        let mut segment = vec![0xa5; split.len_of(i)];
        split.write(i, &mut segment);
        let inner = Inner::parse(&segment).expect("a segment is a packet");
        assert_eq!(inner.total_len(), segment.len());
        assert_eq!((inner.source(), inner.destination()), (split.source(), split.destination()));
        out.push(segment);
    }
    Some(out)
}

/// One read from TUN: every segment is a packet with the right checksums, and no payload is lost.
pub fn split(data: &[u8]) {
    let Some(segments) = segments(data) else { return };
    let (vnet, packet) = data.split_first_chunk::<VNET_LEN>().expect("it was split");
    let vnet = Header::read(vnet);
    let inner = Inner::parse(packet).expect("it was split");
    let packet = &packet[..inner.total_len()];
    if vnet.gso() == GSO_NONE {
        let mut expected = packet.to_vec();
        if vnet.needs_checksum() {
            let start = usize::from(vnet.csum_start);
            let sum = naive(&[&packet[start..]]);
            let at = start + usize::from(vnet.csum_offset);
            expected[at..at + 2].copy_from_slice(if sum == [0, 0] { &[0xff, 0xff] } else { &sum });
        }
        assert_eq!(segments, [expected]);
        return;
    }
    let start = usize::from(vnet.csum_start);
    let protocol = if vnet.gso() == dataplane::packet::virtio::GSO_UDP_L4 { 17 } else { 6 };
    let header = start + if protocol == 17 { 8 } else { usize::from(packet[start + 12] >> 4) * 4 };
    let payload: Vec<u8> = segments.iter().flat_map(|s| &s[header..]).copied().collect();
    assert_eq!(payload, packet[header..]);
    for s in &segments {
        if inner.version() == 4 {
            assert_eq!(naive(&[&s[..start]]), [0, 0], "IPv4 header checksum");
        }
        // Behind extension headers it continues the sum in the packet, whatever that is.
        if start == inner.header_len() {
            assert_eq!(transport_sum(s, start, protocol), [0, 0], "transport checksum");
        }
    }
}

/// A packet without what the kernel may change: the ID of an IPv4 packet with DF (RFC 6864).
fn meaning(packet: &[u8]) -> Vec<u8> {
    let mut p = packet.to_vec();
    if p.len() >= 20 && p[0] >> 4 == 4 && p[6] & 0x40 != 0 {
        p[4..6].fill(0);
        p[10..12].fill(0);
    }
    p
}

/// Version, addresses, protocol and ports of a packet whose ports are in sight.
fn flow(p: &[u8]) -> Option<Vec<u8>> {
    let inner = Inner::parse(p).ok()?;
    let (protocol, addresses) = if inner.version() == 4 { (p[9], &p[12..20]) } else { (p[6], &p[8..40]) };
    let fragment = inner.version() == 4 && (p[6] & 0x3f != 0 || p[7] != 0);
    if fragment || inner.total_len() != p.len() || !matches!(protocol, 6 | 17) {
        return None;
    }
    Some([addresses, &[protocol], p.get(inner.header_len()..inner.header_len() + 4)?].concat())
}

/// Groups `packets`; taken apart again, the groups give every packet back, each flow in order.
fn regroup(packets: &[Vec<u8>]) -> (Coalescer, Vec<Vec<u8>>) {
    let mut c = Coalescer::new(packets.len(), true);
    for (i, p) in packets.iter().enumerate() {
        assert!(c.push(i as u32, p), "capacity");
    }
    let mut seen = vec![false; packets.len()];
    let mut latest: HashMap<Vec<u8>, u32> = HashMap::new();
    let mut all = Vec::new();
    for g in c.groups() {
        let members: Vec<u32> = c.members(g).collect();
        assert_eq!(members.len(), c.count(g));
        let out = written(&c, g, packets);
        if let [alone] = members[..] {
            assert_eq!(out[..VNET_LEN], [0; VNET_LEN]);
            assert_eq!(out[VNET_LEN..], packets[alone as usize]);
        } else {
            let made = segments(&out).expect("a group can be split");
            assert_eq!(made.len(), members.len());
            for (made, i) in made.iter().zip(&members) {
                assert_eq!(meaning(made), meaning(&packets[*i as usize]));
            }
        }
        for i in members {
            assert!(!std::mem::replace(&mut seen[i as usize], true), "a packet is in one group");
            if let Some(flow) = flow(&packets[i as usize]) {
                assert!(latest.insert(flow, i).is_none_or(|before| before < i), "order within a flow");
            }
        }
        all.push(out);
    }
    assert!(seen.iter().all(|s| *s), "no packet is lost");
    (c, all)
}

/// What is written to TUN for a group.
fn written(c: &Coalescer, g: GroupId, packets: &[Vec<u8>]) -> Vec<u8> {
    let mut members = c.members(g).map(|i| &packets[i as usize]);
    let mut out = vec![0xee; VNET_LEN];
    out.extend(members.next().expect("a member"));
    c.finish(g, &mut out);
    members.for_each(|p| out.extend(&p[c.header_len(g)..]));
    out
}

/// A batch of packets made of `data`: records of an operation, a length and bytes. A record is a packet as it
/// is, a packet with mended checksums, or a continuation of an earlier packet's flow.
fn batch(mut data: &[u8]) -> Vec<Vec<u8>> {
    let mut packets: Vec<Vec<u8>> = Vec::new();
    while let [op, len, rest @ ..] = data
        && packets.len() < 256
    {
        let (bytes, after) = rest.split_at(rest.len().min(usize::from(*len)));
        data = after;
        match (op & 3, packets.len().checked_sub(1 + usize::from(op >> 5))) {
            (0, _) => packets.push(bytes.to_vec()),
            (1, _) | (_, None) => {
                let mut p = bytes.to_vec();
                mend(&mut p);
                packets.push(p);
            }
            (_, Some(of)) => packets.push(continuation(&packets[of], op >> 2 & 1 != 0, *len)),
        }
    }
    packets
}

/// The packet that follows `p` in its flow: ID and sequence go on, `cut` bytes are missing if `short`.
fn continuation(p: &[u8], short: bool, cut: u8) -> Vec<u8> {
    let mut next = p.to_vec();
    let Ok(inner) = Inner::parse(p) else { return next };
    let transport = inner.header_len();
    if inner.version() == 4 {
        let id = u16::from_be_bytes([p[4], p[5]]).wrapping_add(1);
        next[4..6].copy_from_slice(&id.to_be_bytes());
    }
    if let Some(&offset) = p.get(transport + 12) {
        let payload = p.len().saturating_sub(transport + usize::from(offset >> 4) * 4) as u32;
        let seq = &p[transport + 4..transport + 8];
        let seq = u32::from_be_bytes([seq[0], seq[1], seq[2], seq[3]]).wrapping_add(payload);
        if flow(p).is_some_and(|f| f[f.len() - 5] == 6) {
            next[transport + 4..transport + 8].copy_from_slice(&seq.to_be_bytes());
        }
    }
    if short {
        next.truncate(next.len().saturating_sub(usize::from(cut)));
    }
    mend(&mut next);
    next
}

/// A batch of received packets: see `regroup`.
pub fn coalesce(data: &[u8]) {
    let packets = batch(data);
    if !packets.is_empty() {
        regroup(&packets);
    }
}

/// One read from TUN, split, coalesced and split again.
pub fn roundtrip(data: &[u8]) {
    let Some(packets) = segments(data) else { return };
    let (_, groups) = regroup(&packets);
    let again: Vec<_> = groups.iter().flat_map(|g| segments(g).expect("a group can be split")).collect();
    let meanings = |packets: &[Vec<u8>]| packets.iter().map(|p| meaning(p)).collect::<Vec<_>>();
    assert_eq!(meanings(&again), meanings(&packets));
}
