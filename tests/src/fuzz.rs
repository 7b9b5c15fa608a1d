//! What is fuzzed: each function takes any bytes and asserts what has to hold for them.
//!
//! `tests/fuzz` runs them under libFuzzer, `tests/tests/fuzz_corpus.rs` over the corpus that it found.

#[allow(dead_code)]
#[path = "../../dataplane/tests/pipeline/world.rs"]
mod world;

use dataplane::crypto::{self, Backend, Cipher, Job, TAG_LEN};
use dataplane::packet::checksum::Sum;
use dataplane::packet::virtio::{GSO_NONE, Header, VNET_LEN};
use dataplane::packet::{Coalescer, GroupId, Inner, MAX_SEGMENTS, Split};
use dataplane::table::{Prefix, Routes};
use dataplane::tunnel::data_header;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;
use world::{Node, OFFLOADS, address, channel_data, joined, public, strangers};

/// A fuzz target's name and function.
pub type Target = (&'static str, fn(&[u8]));

/// Every target; each has a folder of its name in `tests/fuzz/corpus`.
pub const TARGETS: &[Target] = &[
    ("aead", aead),
    ("checksum", checksum),
    ("classify", classify),
    ("coalesce", coalesce),
    ("handshake", handshake),
    ("inner", inner),
    ("roundtrip", roundtrip),
    ("routes", routes),
    ("shard", shard),
    ("split", split),
    ("translate", translate),
    ("uapi", uapi),
];

/// The RFC 1071 checksum, word by word.
fn naive(pieces: &[&[u8]]) -> [u8; 2] {
    let bytes: Vec<u8> = pieces.concat();
    let mut sum: u32 = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!sum as u16).to_be_bytes()
}

/// The checksum of TCP or UDP in `packet`, whose IP header has `transport` bytes.
fn transport_sum(packet: &[u8], transport: usize, protocol: u8) -> [u8; 2] {
    let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
    let len = (packet.len() - transport) as u32;
    naive(&[addresses, &[0, protocol], &len.to_be_bytes(), &packet[transport..]])
}

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

/// Makes lengths and checksums right, so that a fuzzer gets past them.
fn mend(p: &mut [u8]) {
    if p.len() < 28 || p.len() > 0xffff {
        return;
    }
    let len = p.len();
    let (transport, protocol) = if p[0] & 0x10 == 0 {
        p[0] = 0x45;
        p[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        p[10..12].fill(0);
        let sum = naive(&[&p[..20]]);
        p[10..12].copy_from_slice(&sum);
        (20, p[9])
    } else if len >= 48 {
        p[0] = 0x60 | p[0] & 0xf;
        p[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        (40, p[6])
    } else {
        return;
    };
    let at = match protocol {
        6 if len >= transport + 20 => transport + 16,
        17 => {
            p[transport + 4..transport + 6].copy_from_slice(&((len - transport) as u16).to_be_bytes());
            transport + 6
        }
        _ => return,
    };
    p[at..at + 2].fill(0);
    let sum = transport_sum(p, transport, protocol);
    p[at..at + 2].copy_from_slice(&sum);
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

/// Whether the checksums of an IPv4 packet are right: the header's, and the transport's; `None` for the latter if there
/// is none that covers the addresses or what is quoted, or not all of it is in this packet.
fn sums(p: &[u8]) -> (bool, Option<bool>) {
    let (ip, l4) = p.split_at(usize::from(p[0] & 15) * 4);
    let ip_right = naive(&[ip]) == [0, 0];
    let field = match ip[9] {
        6 => 16,
        17 | 33 | 136 => 6,
        1 => 2,
        _ => return (ip_right, None),
    };
    let whole = ip[6] & 0x3f == 0 && ip[7] == 0 && l4.len() >= field + 2;
    let unsummed = matches!(ip[9], 17 | 136) && l4.get(field..field + 2) == Some(&[0, 0]);
    let right = if ip[9] == 1 { naive(&[l4]) } else { transport_sum(p, ip.len(), ip[9]) } == [0, 0];
    (ip_right, (whole && !unsummed).then_some(right))
}

/// A packet of a translated peer: checksums are right afterwards if they were before and only then, and what takes the
/// translation back takes all of it back.
pub fn translate(data: &[u8]) {
    use dataplane::Translation;
    use dataplane::packet::translate::{GROWTH, Refused, is_for_many};
    let [op, a, b, c, packet @ ..] = data else { return };
    let address = |n: &u8| std::net::Ipv4Addr::new(172, 31, n & 1, *n);
    let broadcast = (op & 1 != 0).then_some(([172, 31, 255, 255].into(), [10, 255, 255, 255].into()));
    let t = Translation { peer: address(a), lease: address(b), own: address(c), broadcast };
    let mut packet = packet.to_vec();
    if op & 2 != 0 && packet.len() >= 20 {
        packet[12..16].copy_from_slice(&t.peer.octets());
    }
    if op & 4 != 0 {
        mend(&mut packet);
        if packet.len() >= 28 && packet[0] == 0x45 && packet[9] == 1 {
            packet[22..24].fill(0);
            let sum = naive(&[&packet[20..]]);
            packet[22..24].copy_from_slice(&sum);
        }
    }
    let Ok(inner) = Inner::parse(&packet) else { return };
    packet.truncate(inner.total_len());
    let run = |t: &Translation, packet: &[u8]| {
        let mut buf = [packet, &[0xee; TAG_LEN]].concat();
        let result = t.translate(&mut buf, &Inner::parse(packet).expect("a packet"));
        buf.truncate(*result.as_ref().unwrap_or(&packet.len()));
        (result, buf)
    };
    let (result, translated) = run(&t, &packet);
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (inner.source(), inner.destination()) else {
        return assert_eq!((result, translated), (Err(Refused::Malformed), packet));
    };
    assert_eq!(result == Err(Refused::Spoofed), source != t.peer);
    let Ok(len) = result else { return assert_eq!(translated, packet) };
    let new = Inner::parse(&translated).expect("a packet");
    assert_eq!((new.total_len(), new.source()), (len, t.lease.into()));
    let IpAddr::V4(to) = new.destination() else { unreachable!("it was IPv4") };
    match broadcast {
        _ if is_for_many(destination) => assert!(broadcast.is_some() && to == destination),
        Some((theirs, ours)) if destination == theirs => assert_eq!(to, ours),
        _ => assert_eq!(to, t.own),
    }
    assert_eq!(sums(&packet), sums(&translated));
    let ports = packet.get(inner.header_len()..inner.header_len() + 4).unwrap_or_default();
    if packet[9] == 17 && ports.chunks(2).any(|p| matches!(p, [0x07, 0x6c] | [0x14, 0xe9])) {
        return assert!(len <= packet.len() + GROWTH);
    }
    // The first way there may write a checksum in another way (0 for 0xffff), from then on nothing changes.
    let back = Translation { peer: t.lease, lease: t.peer, own: destination, broadcast: Some((to, destination)) };
    let (result, original) = run(&back, &translated);
    assert_eq!(result, Ok(packet.len()));
    assert_eq!(run(&t, &original), (Ok(len), translated));
}

/// A datagram on the shared port.
pub fn classify(data: &[u8]) {
    use ipop_ebpf::{KEEPALIVE_LEN, Kind};
    let kind = ipop_ebpf::classify(data);
    let expected = match data {
        [1, 0, 0, 0, ..] if data.len() == 148 => Kind::Initiation,
        [2, 0, 0, 0, ..] if data.len() == 92 => Kind::Response,
        [3, 0, 0, 0, ..] if data.len() == 64 => Kind::CookieReply,
        [4, 0, 0, 0, ..] if data.len() >= KEEPALIVE_LEN => Kind::Data,
        [0x40..=0x7f, _, _, _, ..] => Kind::ChannelData,
        [0..=0x3f, _, _, _, 0x21, 0x12, 0xa4, 0x42, ..] if data.len() >= 20 => Kind::Stun,
        _ => Kind::Unknown,
    };
    assert_eq!(kind, expected);
}

/// A decrypted payload.
pub fn inner(data: &[u8]) {
    let Ok(p) = Inner::parse(data) else { return };
    assert_eq!(p.version(), data[0] >> 4);
    assert!(p.header_len() <= p.total_len() && p.total_len() <= data.len());
    assert_eq!(p.source().is_ipv4(), p.version() == 4);
    assert_eq!(Inner::parse(&data[..p.total_len()]), Ok(p), "padding changes nothing");
    assert!(Inner::parse(&data[..p.total_len() - 1]).is_err());
}

/// A sum in two pieces, and an incremental update.
pub fn checksum(data: &[u8]) {
    let [cut, from, data @ ..] = data else { return };
    let cut = (usize::from(*cut) * 2).min(data.len() & !1);
    assert_eq!(Sum::ZERO.add_bytes(&data[cut..]).add_bytes(&data[..cut]).checksum(), naive(&[data]));
    let unaligned = &data[data.len().min(usize::from(*from))..];
    assert_eq!(Sum::ZERO.add_bytes(unaligned).checksum(), naive(&[unaligned]));
    let (old, rest) = data.split_at(cut);
    let new: Vec<u8> = old.iter().map(|b| b.wrapping_mul(5).wrapping_add(1)).collect();
    // The covered bytes are never all zero in a packet: that is where zero and minus zero differ.
    let tail: &[u8] = &[&[0x45, 0][..], rest].concat();
    let updated = dataplane::packet::checksum::update(naive(&[old, tail]), old, &new);
    assert_eq!(updated, naive(&[&new, tail]));
}

/// Changes to the allowed IPs, against a list that is searched from end to end.
pub fn routes(data: &[u8]) {
    let mut routes = Routes::new();
    let mut model: Vec<(Prefix, usize)> = Vec::new();
    for (n, record) in data.chunks_exact(6).enumerate().take(256) {
        let [op, len, address @ ..] = record else { continue };
        let address = [address[0], address[1], address[2], address[3]];
        let address = if op & 1 == 0 {
            IpAddr::from(address)
        } else {
            // Bits in the first, the middle or the last bytes.
            IpAddr::from((u128::from(u32::from_be_bytes(address)) << (u32::from(op >> 4) * 6)).to_be_bytes())
        };
        let best = model.iter().filter(|(p, _)| p.contains(address)).max_by_key(|(p, _)| p.len());
        assert_eq!(routes.lookup(address), best.map(|(_, v)| v));
        let Some(prefix) = Prefix::new(address, len % if op & 1 == 0 { 33 } else { 129 }) else { continue };
        let at = model.iter().position(|(p, _)| *p == prefix);
        let old = at.map(|at| model.swap_remove(at).1);
        if op & 6 == 0 {
            assert_eq!(routes.remove(&prefix), old);
        } else {
            assert_eq!(routes.insert(prefix, n), old);
            model.push((prefix, n));
        }
        assert_eq!(routes.len(), model.len());
    }
    for (prefix, value) in routes.iter() {
        assert!(model.contains(&(prefix, *value)));
    }
}

/// A WireGuard configuration session: no input panics, and how it is cut into reads makes no difference.
pub fn uapi(data: &[u8]) {
    let whole = control::uapi::parse(data);
    let mut decoder = control::uapi::Decoder::new(|_| None);
    let mut count = 0;
    for piece in data.chunks(1 + data.len() % 7) {
        let mut piece = piece;
        while !piece.is_empty() {
            match decoder.advance(&mut piece) {
                Ok(request) => count += usize::from(request.is_some()),
                Err(_) => return assert!(whole.is_err()),
            }
        }
    }
    assert_eq!(whole.map(|r| r.len()).ok(), Some(count));
}

/// Changes `message` as `edits` (pairs of a place and what it is XORed with) say.
fn edit(message: &mut [u8], edits: &[u8]) {
    for pair in edits.chunks_exact(2) {
        if let Some(b) = message.get_mut(usize::from(pair[0])) {
            *b ^= pair[1];
        }
    }
}

/// Puts the MAC1 on a handshake message to node `n` (WireGuard paper, section 5.4.4), and an empty MAC2.
fn authenticate(message: &mut [u8], n: u8) {
    use blake2::digest::{FixedOutput, KeyInit, Update};
    let key = blake2::Blake2s256::default().chain(b"mac1----").chain(public(n).0).finalize_fixed();
    let at = message.len() - 32;
    let mut mac = blake2::Blake2sMac::<blake2::digest::consts::U16>::new_from_slice(&key).expect("a key of 32 bytes");
    mac.update(&message[..at]);
    message[at..at + 16].copy_from_slice(&mac.finalize_fixed());
    message[at + 16..].fill(0);
}

/// Handshake messages of any bytes, and valid ones that were changed: whatever is authenticated in them must be
/// as it was sent, and afterwards a handshake works, with whichever cipher each end would take.
pub fn handshake(data: &[u8]) {
    let (mut a, mut b) = strangers(OFFLOADS);
    let (to_b, from) = (a.tunnel.peer(&public(2)).expect("a peer"), address(1).into());
    let to_a = b.tunnel.peer(&public(1)).expect("a peer");
    let wall = |n: &Node| dataplane::WallTime(Duration::from_secs(1_700_000_000) + n.now.since(dataplane::Time::ZERO));
    for record in data.chunks(64).take(8) {
        let [op, bytes @ ..] = record else { continue };
        let under_load = op & 4 != 0;
        to_b.set_aes(op & 16 != 0);
        to_a.set_aes(op & 32 != 0);
        for n in [&mut a, &mut b] {
            n.now += Duration::from_secs(6);
        }
        let (now, time) = (b.now, wall(&b));
        if op & 3 == 0 {
            let mut m = vec![0; [148, 92, 64, 256][usize::from(op >> 6)]];
            m.iter_mut().zip(bytes).for_each(|(m, b)| *m = *b);
            if op & 8 != 0 {
                authenticate(&mut m, 2);
            }
            let _ = b.tunnel.handle(now, time, from, &m, under_load);
            b.keep();
            b.sent();
            continue;
        }
        a.tunnel.initiate(now, time, &to_b);
        a.keep();
        let Some((_, initiation)) = a.sent().pop() else { continue };
        let mut sent = initiation.clone();
        if op & 3 == 1 {
            edit(&mut sent, bytes);
            if op & 8 != 0 {
                authenticate(&mut sent, 2);
            }
        }
        let answered = b.tunnel.handle(now, time, from, &sent, under_load);
        assert!(answered.is_err() || sent[8..116] == initiation[8..116], "a changed initiation was taken");
        b.keep();
        let Some((_, answer)) = b.sent().pop() else { continue };
        let mut sent = answer.clone();
        if op & 3 == 2 {
            edit(&mut sent, bytes);
            if op & 8 != 0 && sent.len() == 92 {
                authenticate(&mut sent, 1);
            }
        }
        let taken = a.tunnel.handle(now, time, address(2).into(), &sent, false);
        let authentic = if answer.len() == 92 { 8..60 } else { 4..64 };
        assert!(taken.is_err() || sent[authentic.clone()] == answer[authentic], "a changed answer was taken");
        a.keep();
        a.sent();
    }
    // Time for attempts to end and for a cookie to be forgotten.
    for n in [&mut a, &mut b] {
        n.wait(Duration::from_secs(300));
        n.sent();
    }
    a.shared.request_handshake(&to_b);
    world::settle(&mut a, &mut b);
    let session = to_b.current().expect("a session");
    assert!(!session.expired(a.now), "a new session");
    let theirs = to_a.current().expect("a session that was confirmed");
    assert_eq!((theirs.cipher(), theirs.remote_index), (session.cipher(), session.local_index));
    assert_eq!(session.cipher() == Cipher::Aes256Gcm, to_a.aes() && to_b.aes());
}

/// A shard between two nodes that gets anything from anybody: no panic, and every packet is accounted for.
pub fn shard(mut data: &[u8]) {
    let (a, mut b) = joined(OFFLOADS);
    let server = address(200);
    b.shared.relays.store(std::sync::Arc::new(vec![server]));
    let session = a.tunnel.peer(&public(2)).and_then(|p| p.current()).expect("a session");
    let mut last = Vec::new();
    while let [op, len, rest @ ..] = data {
        let (bytes, after) = rest.split_at(rest.len().min(usize::from(*len)));
        data = after;
        let mut bytes = bytes.to_vec();
        match op & 7 {
            0 => b.receive(address(op >> 3), bytes),
            1 => b.receive_all(server, bytes.chunks(1 + usize::from(op >> 3)).map(<[u8]>::to_vec)),
            2 => b.read(bytes),
            3 | 4 => {
                // An authentic datagram with any text in it.
                if op & 7 == 4 {
                    mend(&mut bytes);
                }
                let counter = session.reserve(1).expect("a counter");
                last = [&data_header(session.remote_index, counter)[..], &bytes, &[0; TAG_LEN]].concat();
                dataplane::crypto::seal(&mut [Job::new(session.send_key(), counter, &mut last[16..])]);
                b.receive(address(1), last.clone());
            }
            5 => {
                edit(&mut last, &bytes);
                b.receive(address(1), last.clone());
            }
            6 => b.receive(server, channel_data(0x4000 | u16::from(op >> 3), &last)),
            _ => {
                b.now += Duration::from_secs(u64::from(op >> 3));
                b.turn();
            }
        }
    }
    b.run();
    b.stop();
}

/// Batches for the cipher: records of seven bytes, a packet each (key, length, counter, offset in memory, what is
/// done to it on the way), at most 64. Every back end has to make the same of them; AES-256-GCM, of which there is
/// only one, has to open what it sealed and nothing else.
pub fn aead(data: &[u8]) {
    struct Packet {
        key: usize,
        counter: u64,
        align: usize,
        text: Vec<u8>,
        flip: Option<usize>,
    }
    let packets: Vec<Packet> = (data.as_chunks::<7>().0.iter().take(64))
        .map(|&[key, low, high, counter, align, fill, flip]| {
            let len = usize::from(u16::from_le_bytes([low, high])) % 2100;
            let text: Vec<u8> = (0..len).map(|i| fill.wrapping_mul(i as u8).wrapping_add(counter)).collect();
            let flip = (flip >= 128).then(|| usize::from(flip) * 8111 % ((len + TAG_LEN) * 8));
            Packet {
                key: usize::from(key % 3),
                counter: u64::from(counter) << (key / 4),
                align: align.into(),
                text,
                flip,
            }
        })
        .collect();
    let run = |cipher: Cipher, backend: Backend| {
        let keys = [1u8, 2, 3].map(|k| cipher.key(backend, &[k; 32].into()));
        let mut bufs: Vec<Vec<u8>> =
            packets.iter().map(|p| [&vec![0xee; p.align][..], &p.text, &[0; TAG_LEN]].concat()).collect();
        let jobs = |bufs: &mut [Vec<u8>], task: fn(&mut [Job<'_>])| {
            let parts = bufs.iter_mut().zip(&packets);
            let mut jobs: Vec<Job<'_>> =
                parts.map(|(b, p)| Job::new(&keys[p.key], p.counter, &mut b[p.align..])).collect();
            task(&mut jobs);
            jobs.iter().map(|j| j.ok).collect::<Vec<_>>()
        };
        assert!(jobs(&mut bufs, crypto::seal).iter().all(|ok| *ok));
        let sealed = bufs.clone();
        for (buf, p) in bufs.iter_mut().zip(&packets) {
            if let Some(bit) = p.flip {
                buf[p.align + bit / 8] ^= 1 << (bit % 8);
            }
        }
        for (ok, p) in jobs(&mut bufs, crypto::open).iter().zip(&packets) {
            assert_eq!(*ok, p.flip.is_none());
        }
        for (buf, p) in bufs.iter().zip(&packets) {
            let (before, text) = buf.split_at(p.align);
            assert!(before.iter().all(|b| *b == 0xee), "wrote before the packet");
            match p.flip {
                None => assert_eq!(text[..p.text.len()], p.text),
                Some(_) => assert!(text.iter().all(|b| *b == 0), "something is left"),
            }
        }
        sealed
    };
    let expected = run(Cipher::ChaCha20Poly1305, Backend::Portable);
    for backend in Backend::available() {
        assert_eq!(run(Cipher::ChaCha20Poly1305, backend), expected, "{backend}");
    }
    run(Cipher::Aes256Gcm, Backend::AwsLc);
}
