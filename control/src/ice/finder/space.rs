//! One IPv6 address for each way to the peer.
//!
//! The ICE agent knows one local address and remote addresses only. So a way through a TURN server gets an address that
//! nothing else has; the agent then checks ways as if they were addresses.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::super::route::Route;

/// RFC 6666: nothing on the internet has an address in `100::/64`.
const PREFIX: u128 = 0x0100 << 112;

fn is_reserved(ip: Ipv6Addr) -> bool {
    ip.to_bits() >> 64 == PREFIX >> 64
}

/// Relayed ways in the order in which they were met.
#[derive(Debug, Default)]
pub(super) struct Space {
    relayed: Vec<(SocketAddr, SocketAddr)>,
}

impl Space {
    /// The address of a way; the caller limits how many there are. `None` if a peer claims an address that is ours to
    /// give.
    pub(super) fn address(&mut self, route: &Route) -> Option<SocketAddr> {
        let (ip, port) = match *route {
            Route::Direct(a) => (mapped(a.ip()), a.port()),
            Route::Relay { server, peer } => {
                let found = self.relayed.iter().position(|r| *r == (server, peer));
                let i = found.unwrap_or_else(|| {
                    self.relayed.push((server, peer));
                    self.relayed.len() - 1
                });
                return Some(SocketAddr::new(Ipv6Addr::from_bits(PREFIX + i as u128 + 1).into(), peer.port()));
            }
        };
        (!is_reserved(ip)).then_some(SocketAddr::new(ip.into(), port))
    }

    /// The way of an address.
    pub(super) fn route(&self, address: SocketAddr) -> Option<Route> {
        match address.ip() {
            IpAddr::V6(ip) if is_reserved(ip) => {
                let i = usize::try_from(ip.to_bits() - PREFIX).ok()?.checked_sub(1)?;
                let (server, peer) = *self.relayed.get(i)?;
                Some(Route::Relay { server, peer })
            }
            _ => Some(Route::direct(address)),
        }
    }
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses() -> impl Strategy<Value = SocketAddr> {
        let ips = prop_oneof![
            any::<u32>().prop_map(|v| IpAddr::V4(v.into())),
            any::<u128>().prop_map(|v| IpAddr::V6(v.into())),
            (0u128..4).prop_map(|v| IpAddr::V6((PREFIX + v).into())),
        ];
        (ips, any::<u16>()).prop_map(|(ip, port)| dataplane::path::canonical(SocketAddr::new(ip, port)))
    }

    proptest! {
        #[test]
        fn every_way_has_an_address_of_its_own_and_is_found_by_it(
            ways in proptest::collection::vec((addresses(), proptest::option::of(0u8..3)), 1..40)
        ) {
            let mut space = Space::default();
            let mut seen = std::collections::HashMap::new();
            for (peer, server) in ways {
                let route = match server {
                    None => Route::direct(peer),
                    Some(n) => Route::Relay { server: SocketAddr::from(([192, 0, 2, n], 3478)), peer },
                };
                match space.address(&route) {
                    Some(a) => {
                        prop_assert!(a.is_ipv6());
                        prop_assert_eq!(space.route(a), Some(route));
                        prop_assert_eq!(*seen.entry(a).or_insert(route), route);
                    }
                    None => prop_assert!(!route.is_relay()),
                }
            }
        }
    }

    #[test]
    fn an_address_that_was_not_given_is_no_way() {
        assert_eq!(Space::default().route("[100::1]:5".parse().expect("address")), None);
        assert_eq!(Space::default().route("[100::]:5".parse().expect("address")), None);
    }
}
