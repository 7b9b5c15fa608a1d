//! Messages that tell the sender's address.

use super::*;

/// A datagram of the peer from `port` with `text`.
fn datagram(port: u16, kind: Kind, text: &[u8]) -> Whole {
    Whole { ports: [port, 40_000], payload: text.to_vec(), ..plain(kind) }
}

/// An mDNS answer that tells `host`; the name makes its data begin at any offset.
fn mdns(name: &str, host: Ipv4Addr) -> Vec<u8> {
    let mut m = vec![0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0, name.len() as u8];
    m.extend(name.as_bytes());
    m.extend([0, 0, 1, 0x80, 1, 0, 0, 0, 120, 0, 4]);
    m.extend(host.octets());
    m
}

fn ssdp(host: Ipv4Addr) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nLocation: http://{host}:49152/d.xml\r\n\r\n").into_bytes()
}

#[test]
fn discovery_tells_the_lease_in_datagrams_of_any_shape_with_right_lengths_and_checksums() {
    let leases = ["10.99.7.3", "1.2.3.4", "255.255.255.254"].map(|a| a.parse().expect("an address"));
    for (kind, options, to) in [
        (Kind::Udp, vec![], [224, 0, 0, 251]),
        (Kind::UdpUnsummed, vec![], [239, 255, 255, 250]),
        (Kind::Udp, vec![148, 4, 0, 0], [172, 31, 9, 9]),
    ] {
        for lease in leases {
            let t = Translation { lease, ..T };
            let own: [u8; 4] = if to[0] < 224 { t.own.octets() } else { to };
            for name in ["a", "ab", "laptop"] {
                let text = |host| Whole { options: options.clone(), ..datagram(5353, kind, &mdns(name, host)) };
                let sent = text(t.peer).between(t.peer, to.into()).bytes();
                assert_eq!(run(&t, &sent), Ok(text(lease).between(lease, own.into()).bytes()));
            }
            let text = |host| Whole { options: options.clone(), ..datagram(1900, kind, &ssdp(host)) };
            let sent = text(t.peer).between(t.peer, to.into()).bytes();
            assert_eq!(run(&t, &sent), Ok(text(lease).between(lease, own.into()).bytes()));
            // To the port instead of from it.
            let back = |host| Whole { ports: [40_000, 1900], ..text(host) };
            let sent = back(t.peer).between(t.peer, to.into()).bytes();
            assert_eq!(run(&t, &sent), Ok(back(lease).between(lease, own.into()).bytes()));
        }
    }
}

#[test]
fn discovery_in_fragments_on_other_ports_or_with_wrong_lengths_and_checksums_is_left_alone() {
    for (port, text) in [(5353, mdns("laptop", T.peer)), (1900, ssdp(T.peer))] {
        let p = datagram(port, Kind::Udp, &text);
        for (f, expected) in p.fragments(2).iter().zip(p.between(T.lease, T.own).fragments(2)) {
            assert_eq!(run(&T, f).as_ref(), Ok(&expected));
        }
        let other = Whole { ports: [port + 1, 9], ..p.clone() };
        assert_eq!(run(&T, &other.bytes()), Ok(other.between(T.lease, T.own).bytes()));
        let mut wrong = p.bytes();
        wrong[20 + 8] ^= 0x40;
        assert_eq!(run(&T, &wrong).expect("translated")[28..], wrong[28..]);
        let mut short = datagram(port, Kind::UdpUnsummed, &text).bytes();
        short[25] -= 1;
        assert_eq!(run(&T, &short).expect("translated")[28..], short[28..]);
    }
    // There is no room but the packet's own length.
    let p = datagram(1900, Kind::Udp, &ssdp(T.peer));
    let mut tight = p.bytes();
    let inner = Inner::parse(&tight).expect("a packet");
    let long = Translation { lease: Ipv4Addr::new(255, 255, 255, 254), ..T };
    assert_eq!(long.translate(&mut tight, &inner), Ok(inner.total_len()));
    assert_eq!(tight, p.between(long.lease, T.own).bytes());
}
