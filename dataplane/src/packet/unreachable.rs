//! ICMP "destination unreachable" for packets that nobody will carry (RFC 792, RFC 1812 section 4.3.2, RFC 4443).

use super::checksum::Sum;
use super::{IPV4_LEN, IPV6_LEN, Inner, be16, protocol};
use std::net::IpAddr;

/// The longest message: IPv6's minimum MTU (RFC 4443, section 2.4 (c)).
pub const MAX_LEN: usize = 1280;
/// The longest message about an IPv4 packet (RFC 1812, section 4.3.2.3).
const MAX_LEN_V4: usize = 576;
/// Bytes of the ICMP header of an error in both versions.
const ICMP_LEN: usize = 8;
const HOP_LIMIT: u8 = 64;
/// IPv4's fragment offset.
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// Why a packet is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nobody has the address.
    NoRoute,
    /// Somebody has it, but cannot be reached.
    NoPath,
}

/// Writes the message that refuses `packet` into `out` and gives its length; `None` if no message may be sent about
/// it (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)) or it is malformed. It comes from the address that the
/// packet was for: the interface's own address would be a martian on its way back in.
#[must_use]
pub fn unreachable(packet: &[u8], why: Why, out: &mut [u8; MAX_LEN]) -> Option<usize> {
    let inner = Inner::parse(packet).ok()?;
    let packet = packet.get(..inner.total_len())?;
    if no_answer(inner.source()) || inner.destination().is_multicast() || is_error(packet, &inner) {
        return None;
    }
    match (inner.source(), inner.destination()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            if destination.is_broadcast() || be16(packet, 6) & FRAGMENT_OFFSET != 0 {
                return None;
            }
            let quoted = packet.len().min(MAX_LEN_V4 - IPV4_LEN - ICMP_LEN);
            let len = IPV4_LEN + ICMP_LEN + quoted;
            let (header, icmp) = out[..len].split_at_mut(IPV4_LEN);
            header.copy_from_slice(&[0x45, 0xc0, 0, 0, 0, 0, 0, 0, HOP_LIMIT, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            header[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            header[12..16].copy_from_slice(&destination.octets());
            header[16..20].copy_from_slice(&source.octets());
            let sum = Sum::ZERO.add_bytes(header).checksum();
            header[10..12].copy_from_slice(&sum);
            // Host unreachable either way: "network unreachable" would be taken for the whole subnet.
            fill(icmp, 3, 1, &packet[..quoted], Sum::ZERO);
            Some(len)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let quoted = packet.len().min(MAX_LEN - IPV6_LEN - ICMP_LEN);
            let len = IPV6_LEN + ICMP_LEN + quoted;
            let (header, icmp) = out[..len].split_at_mut(IPV6_LEN);
            header[..4].copy_from_slice(&[0x60, 0, 0, 0]);
            header[4..6].copy_from_slice(&((ICMP_LEN + quoted) as u16).to_be_bytes());
            header[6..8].copy_from_slice(&[protocol::ICMPV6, HOP_LIMIT]);
            header[8..24].copy_from_slice(&destination.octets());
            header[24..40].copy_from_slice(&source.octets());
            let pseudo = Sum::pseudo(&header[8..40], protocol::ICMPV6, ICMP_LEN + quoted);
            let code = if why == Why::NoRoute { 0 } else { 3 };
            fill(icmp, 1, code, &packet[..quoted], pseudo);
            Some(len)
        }
        _ => None,
    }
}

fn fill(icmp: &mut [u8], kind: u8, code: u8, quoted: &[u8], pseudo: Sum) {
    icmp[..ICMP_LEN].copy_from_slice(&[kind, code, 0, 0, 0, 0, 0, 0]);
    icmp[ICMP_LEN..].copy_from_slice(quoted);
    let sum = pseudo.add_bytes(icmp).checksum();
    icmp[2..4].copy_from_slice(&sum);
}

fn no_answer(source: IpAddr) -> bool {
    source.is_unspecified() || source.is_multicast() || source.is_loopback() || source == IpAddr::from([255; 4])
}

/// Whether it is an ICMP message that is not a query: errors are not answered by errors.
fn is_error(packet: &[u8], inner: &Inner) -> bool {
    let kind = packet.get(inner.header_len());
    match inner.version() {
        4 => packet[9] == protocol::ICMP && !kind.is_some_and(|k| matches!(k, 0 | 8 | 13..=18)),
        _ => packet[6] == protocol::ICMPV6 && kind.is_none_or(|k| *k < 128),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut p = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0, 172, 16, 10, 2, 172, 16, 10, 99];
        p.extend_from_slice(payload);
        let len = (p.len() as u16).to_be_bytes();
        p[2..4].copy_from_slice(&len);
        p
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut p = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        p.extend_from_slice(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        p.extend_from_slice(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        p.extend_from_slice(payload);
        let len = (payload.len() as u16).to_be_bytes();
        p[4..6].copy_from_slice(&len);
        p
    }

    fn refused(packet: &[u8]) -> Option<Vec<u8>> {
        let mut out = [0xaa; MAX_LEN];
        unreachable(packet, Why::NoRoute, &mut out).map(|n| out[..n].to_vec())
    }

    #[test]
    fn an_ipv4_packet_is_refused_in_the_name_of_its_destination() {
        let packet = v4(17, &[7; 900]);
        let m = refused(&packet).expect("refused");
        let inner = Inner::parse(&m).expect("an IP packet");
        assert_eq!(inner.total_len(), MAX_LEN_V4);
        assert_eq!(
            (inner.source().to_string(), inner.destination().to_string()),
            ("172.16.10.99".into(), "172.16.10.2".into())
        );
        assert!(Sum::ZERO.add_bytes(&m[..20]).is_valid() && Sum::ZERO.add_bytes(&m[20..]).is_valid());
        assert_eq!(m[20..22], [3, 1]);
        assert_eq!(m[28..], packet[..MAX_LEN_V4 - 28]);
    }

    #[test]
    fn an_ipv6_packet_is_refused_with_a_pseudo_header() {
        let packet = v6(17, &[7; 1400]);
        let m = refused(&packet).expect("refused");
        assert_eq!(m.len(), MAX_LEN);
        assert!(Sum::pseudo(&m[8..40], 58, m.len() - 40).add_bytes(&m[40..]).is_valid());
        assert_eq!(m[40..42], [1, 0]);
        assert_eq!(m[48..], packet[..MAX_LEN - 48]);
    }

    #[test]
    fn what_must_not_be_answered_is_not() {
        let mut fragment = v4(17, &[0; 8]);
        fragment[7] = 1;
        let mut multicast = v4(17, &[0; 8]);
        multicast[16] = 224;
        let mut nobody = v4(17, &[0; 8]);
        nobody[12..16].fill(0);
        let error = refused(&v4(17, &[0; 8])).expect("refused");
        let error6 = refused(&v6(17, &[0; 8])).expect("refused");
        for p in [fragment, multicast, nobody, error, error6, v4(1, &[]), v6(58, &[1, 0])] {
            assert_eq!(refused(&p), None, "{p:x?}");
        }
        assert!(refused(&v4(1, &[8, 0, 0, 0])).is_some() && refused(&v6(58, &[128, 0, 0, 0])).is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_answers_are_whole_packets(mut bytes in prop::collection::vec(any::<u8>(), 0..2000), six in any::<bool>()) {
            if let Some(b) = bytes.first_mut() {
                *b = if six { 0x60 } else { 0x45 };
            }
            if let Some(m) = refused(&bytes) {
                let inner = Inner::parse(&m).expect("an IP packet");
                prop_assert_eq!(inner.total_len(), m.len());
                prop_assert!(refused(&m).is_none());
            }
        }
    }
}
