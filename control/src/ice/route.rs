//! The ways a datagram can take out of the one port, and which of them may be asked for.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use dataplane::Path;
use dataplane::path::canonical;

/// A way to a peer before a channel number is known: what checks run over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Route {
    /// From the port straight to this address.
    Direct(SocketAddr),
    /// Through our allocation on `server` to `peer`.
    Relay { server: SocketAddr, peer: SocketAddr },
}

impl Route {
    pub(crate) fn direct(a: SocketAddr) -> Self {
        Self::Direct(canonical(a))
    }

    /// The address at the far end.
    pub(crate) const fn peer(&self) -> SocketAddr {
        match self {
            Self::Direct(a) | Self::Relay { peer: a, .. } => *a,
        }
    }

    pub(crate) const fn is_relay(&self) -> bool {
        matches!(self, Self::Relay { .. })
    }
}

/// One datagram to send from the port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transmit {
    pub(crate) path: Path,
    pub(crate) bytes: Vec<u8>,
}

/// Whether anything can be sent there at all. Link-local IPv6 has no meaning without an interface, which candidates do
/// not carry.
pub(crate) fn is_sendable(a: SocketAddr) -> bool {
    let ip = a.ip().to_canonical();
    let ok = match ip {
        IpAddr::V4(v4) => !v4.is_broadcast(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    };
    ok && a.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
}

/// Ranges that no server on the internet can relay to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Private {
    Ten,
    OneSevenTwo,
    OneNineTwo,
    CarrierNat,
    Loopback,
    LinkLocal,
    UniqueLocal,
    Nowhere,
}

fn private(ip: IpAddr) -> Option<Private> {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let o = v4.octets();
            match o {
                [10, ..] => Some(Private::Ten),
                [172, b, ..] if b & 0xf0 == 16 => Some(Private::OneSevenTwo),
                [192, 168, ..] => Some(Private::OneNineTwo),
                [100, b, ..] if b & 0xc0 == 64 => Some(Private::CarrierNat),
                [127, ..] => Some(Private::Loopback),
                [169, 254, ..] => Some(Private::LinkLocal),
                [0 | 224.., ..] => Some(Private::Nowhere),
                _ => None,
            }
        }
        IpAddr::V6(v6) if v6 == Ipv6Addr::LOCALHOST => Some(Private::Loopback),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(Private::LinkLocal),
        IpAddr::V6(v6) if v6.is_unique_local() => Some(Private::UniqueLocal),
        IpAddr::V6(v6) if v6.is_unspecified() || v6.is_multicast() => Some(Private::Nowhere),
        IpAddr::V6(_) => None,
    }
}

/// Whether `server`, whose allocation of ours is `relayed`, may be asked to relay to `to`. A server that is asked for an
/// unroutable address may close the whole allocation (coturn does), and with it every peer's path: so only public
/// addresses, or those of a range that the server itself is in, unless `relay_private`.
pub(crate) fn may_relay(server: SocketAddr, relayed: SocketAddr, to: SocketAddr, relay_private: bool) -> bool {
    if !is_sendable(to) || to.is_ipv4() != relayed.is_ipv4() {
        return false;
    }
    match private(to.ip()) {
        None => true,
        Some(Private::Nowhere | Private::LinkLocal) => false,
        Some(p) => relay_private || private(server.ip()) == Some(p) || private(relayed.ip()) == Some(p),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn a(s: &str) -> SocketAddr {
        s.parse().expect("address")
    }

    #[test]
    fn private_addresses_are_relayed_to_only_by_servers_that_live_there() {
        let (public, lab) = (a("203.0.113.1:3478"), a("10.0.0.1:3478"));
        assert!(may_relay(public, public, a("198.18.4.5:1"), false));
        for p in ["10.1.2.3:1", "172.16.0.1:1", "192.168.1.1:9", "100.64.3.3:7", "127.0.0.1:5", "169.254.1.1:4"] {
            assert!(!may_relay(public, public, a(p), false), "{p}");
        }
        assert!(may_relay(lab, lab, a("10.1.2.3:1"), false) && !may_relay(lab, lab, a("192.168.1.1:1"), false));
        assert!(may_relay(public, public, a("10.1.2.3:1"), true));
        assert!(!may_relay(public, public, a("0.0.0.0:1"), true) && !may_relay(public, public, a("1.2.3.4:0"), true));
        assert!(!may_relay(public, public, a("[2001:db8::1]:1"), true), "another family than the allocation's");
    }

    proptest! {
        #[test]
        fn no_address_panics_and_what_is_relayed_is_sendable(ip: u128, v4: u32, six: bool, port: u16, flag: bool) {
            let ip: IpAddr = if six { Ipv6Addr::from(ip).into() } else { std::net::Ipv4Addr::from(v4).into() };
            let to = SocketAddr::new(ip, port);
            let server = a("203.0.113.1:3478");
            prop_assert!(!may_relay(server, server, to, flag) || is_sendable(to));
            let direct = Route::direct(to);
            prop_assert_eq!(direct.peer(), canonical(to));
        }
    }
}
