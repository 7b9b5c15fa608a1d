//! What is read: datagrams, packets, routes, configuration.

use super::craft::naive;
use dataplane::packet::Inner;
use dataplane::packet::checksum::Sum;
use dataplane::table::{Prefix, Routes};
use std::net::IpAddr;

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
