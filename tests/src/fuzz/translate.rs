//! Packets of a translated peer.

use super::craft::{mend, naive, transport_sum};
use dataplane::crypto::TAG_LEN;
use dataplane::packet::Inner;
use std::net::IpAddr;

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
