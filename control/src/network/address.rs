//! Overlay addresses: choosing one, settling conflicts, and the stable IPv6 address of every node.

use dataplane::table::Prefix;
use dataplane::tunnel::PublicKey;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const GLOBAL_ID: &[u8] = b"ipop-fast ula global id v1";
const INTERFACE_ID: &[u8] = b"ipop-fast ula interface id v1";
const CANDIDATE: &[u8] = b"ipop-fast address candidate v1";
/// Scattered candidates that are tried before neighbouring ones.
const SCATTERED: u32 = 16;

/// The `/32` or `/128` of an address.
#[must_use]
pub fn host_prefix(a: IpAddr) -> Prefix {
    match Prefix::new(a, if a.is_ipv4() { 32 } else { 128 }) {
        Some(p) => p,
        None => unreachable!("32 and 128 are the lengths of whole addresses"),
    }
}

/// Whether `p` is one whole address.
#[must_use]
pub fn is_host(p: &Prefix) -> bool {
    *p == host_prefix(p.address())
}

const fn host_bits(subnet: &Prefix) -> u32 {
    let all = if subnet.address().is_ipv4() { 32 } else { 128 };
    all - subnet.len() as u32
}

/// Whether a node of `subnet` may have the address: inside, and neither the network's own nor the broadcast address,
/// where these exist (not in `/31`, RFC 3021, and longer).
#[must_use]
pub fn usable(subnet: &Prefix, a: IpAddr) -> bool {
    subnet.contains(a) && (host_bits(subnet) < 2 || !is_edge(subnet, a))
}

fn is_edge(subnet: &Prefix, a: IpAddr) -> bool {
    let mask = u128::MAX.checked_shl(host_bits(subnet)).map_or(u128::MAX, |m| !m);
    let host = bits(a) & mask;
    host == 0 || host == mask
}

fn bits(a: IpAddr) -> u128 {
    match a {
        IpAddr::V4(a) => a.to_bits().into(),
        IpAddr::V6(a) => a.to_bits(),
    }
}

/// The usable address number `n` of `subnet`, counted around.
fn nth(subnet: &Prefix, n: u128) -> IpAddr {
    let bits_free = host_bits(subnet);
    let size = 1u128.checked_shl(bits_free);
    let host = match size {
        // The whole IPv6 space: nobody has that as a subnet, and it must not panic either.
        None => n.max(1),
        Some(size) if size <= 2 => n % size,
        Some(size) => 1 + n % (size - 2),
    };
    match subnet.address() {
        IpAddr::V4(a) => IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() | u32::try_from(host).unwrap_or(0))),
        IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() | host)),
    }
}

fn count(subnet: &Prefix) -> u128 {
    match 1u128.checked_shl(host_bits(subnet)) {
        None => u128::MAX,
        Some(size) if size <= 2 => size,
        Some(size) => size - 2,
    }
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut h = Sha256::new();
    for p in parts {
        h.update(p);
    }
    h.finalize().into()
}

fn number(bytes: &[u8; 32]) -> u128 {
    bytes.first_chunk::<16>().map_or(0, |c| u128::from_be_bytes(*c))
}

/// An address in `subnet` for the node with `key` that nobody has: by the hash of the key, so that it is mostly the
/// same one at every start and different for different nodes. `None`: the subnet is full.
#[must_use]
pub fn choose<S: BuildHasher>(subnet: &Prefix, key: &PublicKey, taken: &HashSet<IpAddr, S>) -> Option<IpAddr> {
    choose_for(subnet, &[CANDIDATE, &key.0], taken.len(), |a| taken.contains(a))
}

/// As [`choose`], for whatever `what` stands for, of `count_taken` addresses of which `taken` knows.
pub(super) fn choose_for(
    subnet: &Prefix,
    what: &[&[u8]],
    count_taken: usize,
    taken: impl Fn(&IpAddr) -> bool,
) -> Option<IpAddr> {
    let start = |n: u32| number(&hash(&[what, &[&n.to_be_bytes()]].concat())) % count(subnet);
    let scattered = (0..SCATTERED).map(|n| nth(subnet, start(n)));
    // Of so many neighbours at least one is free, if there are so many.
    let most = count(subnet).min(count_taken as u128 + 1);
    let first = start(0);
    let neighbours = (0..most).map(|i| nth(subnet, first.wrapping_add(i) % count(subnet)));
    scattered.chain(neighbours).find(|a| usable(subnet, *a) && !taken(a))
}

/// What to do about our own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Nobody else has it, or only those that must give way.
    Keep,
    /// Take this one instead.
    Move(IpAddr),
    /// The node with this key has it and was first. Ours is fixed, or there is no other: people must decide.
    Conflict(PublicKey),
}

/// Our own address in a subnet.
#[derive(Clone, Copy, Debug)]
pub struct OwnAddress {
    /// Which.
    pub address: IpAddr,
    /// Whose.
    pub key: PublicKey,
    /// When it was taken, milliseconds since 1970.
    pub since: u64,
    /// Written in the configuration: never moved.
    pub fixed: bool,
}

/// Looks whether another member has our address with the better right (smaller `since`, then smaller key). `others`
/// are (key, since, address) of all other members.
#[must_use]
pub fn settle(own: &OwnAddress, subnet: &Prefix, others: &[(PublicKey, u64, IpAddr)]) -> Settlement {
    let better = |o: &&(PublicKey, u64, IpAddr)| o.2 == own.address && (o.1, o.0) < (own.since, own.key);
    let Some(winner) = others.iter().filter(better).min_by_key(|o| (o.1, o.0)) else { return Settlement::Keep };
    if own.fixed {
        return Settlement::Conflict(winner.0);
    }
    let taken: HashSet<IpAddr> = others.iter().map(|o| o.2).collect();
    choose(subnet, &own.key, &taken).map_or(Settlement::Conflict(winner.0), Settlement::Move)
}

/// The `/64` of a network's stable IPv6 addresses (RFC 4193): its global id comes from the network's name, subnet 0.
#[must_use]
pub fn ula_prefix(network: &str) -> Prefix {
    let id = hash(&[GLOBAL_ID, network.as_bytes()]);
    let mut a = [0; 16];
    a[0] = 0xfd;
    a[1..6].copy_from_slice(&id[..5]);
    match Prefix::new(IpAddr::V6(a.into()), 64) {
        Some(p) => p,
        None => unreachable!("64 is a length of IPv6 prefixes"),
    }
}

/// The stable IPv6 address of the node with `key` in a network. Never believed, always computed: nobody can claim
/// another node's.
#[must_use]
pub fn ula(network: &str, key: &PublicKey) -> Ipv6Addr {
    let id = hash(&[INTERFACE_ID, &key.0]);
    let id = id.first_chunk::<8>().map_or(1, |c| u64::from_be_bytes(*c));
    // Not the subnet's anycast address (RFC 4291, section 2.6.1).
    let id = u128::from(id.max(1));
    Ipv6Addr::from_bits(bits(ula_prefix(network).address()) | id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(s: &str) -> Prefix {
        s.parse().expect("prefix")
    }

    fn key(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    #[test]
    fn network_and_broadcast_addresses_are_for_nobody() {
        let net = prefix("172.16.10.0/24");
        let usable = |a: &str| usable(&net, a.parse().expect("address"));
        assert!(usable("172.16.10.1") && usable("172.16.10.254"));
        assert!(!usable("172.16.10.0") && !usable("172.16.10.255") && !usable("172.16.11.1"));
        assert!(super::usable(&prefix("10.0.0.0/31"), "10.0.0.0".parse().expect("address")));
        assert!(super::usable(&prefix("10.0.0.7/32"), "10.0.0.7".parse().expect("address")));
    }

    #[test]
    fn a_subnet_fills_up_to_the_last_address() {
        for (net, size) in [("10.9.8.0/24", 254), ("10.0.0.0/30", 2), ("10.0.0.0/31", 2), ("10.0.0.0/32", 1)] {
            let (net, mut taken) = (prefix(net), HashSet::new());
            for n in 0..size {
                let a = choose(&net, &PublicKey([7; 32]), &taken);
                let a = a.unwrap_or_else(|| panic!("{net} is full after {n}"));
                assert!(usable(&net, a) && taken.insert(a), "{a}");
            }
            assert_eq!(choose(&net, &key(7), &taken), None);
        }
    }

    #[test]
    fn the_earlier_keeps_an_address_and_the_later_moves_or_warns() {
        let net = prefix("10.0.0.0/24");
        let address: IpAddr = "10.0.0.5".parse().expect("address");
        let own = |since, fixed| OwnAddress { address, key: key(5), since, fixed };
        let other = |k, since| [(key(k), since, address)];
        assert_eq!(settle(&own(10, false), &net, &other(9, 11)), Settlement::Keep);
        assert_eq!(settle(&own(10, false), &net, &other(9, 10)), Settlement::Keep);
        let Settlement::Move(new) = settle(&own(10, false), &net, &other(4, 10)) else { panic!("must move") };
        assert!(usable(&net, new) && new != address);
        assert_eq!(settle(&own(10, true), &net, &other(9, 3)), Settlement::Conflict(key(9)));
        let full = [(key(9), 3, "10.0.0.1".parse().expect("address"))];
        let own = OwnAddress { address: full[0].2, key: key(5), since: 10, fixed: false };
        assert_eq!(settle(&own, &prefix("10.0.0.1/32"), &full), Settlement::Conflict(key(9)));
    }

    #[test]
    fn stable_addresses_are_where_rfc_4193_puts_them_and_never_change() {
        let net = ula_prefix("group:my_pragma_group_1");
        let a = ula("group:my_pragma_group_1", &key(1));
        assert!(net.contains(IpAddr::V6(a)) && net.len() == 64);
        assert_eq!(a.octets()[0], 0xfd);
        assert_eq!(a.octets()[6..8], [0, 0]);
        assert_ne!(ula_prefix("group:other"), net);
        assert_ne!(ula("group:my_pragma_group_1", &key(2)), a);
        // Written into other nodes' tables: a change would break a network of mixed versions.
        assert_eq!(a.to_string(), "fd6d:797e:6f5b:0:f8a2:1670:2a67:64c");
    }

    proptest! {
        #[test]
        fn a_chosen_address_is_usable_free_and_the_same_again(
            v6: bool, raw: u128, len in 0u8..=128, k: [u8; 32], many in 0usize..40
        ) {
            let (a, len) = if v6 {
                (IpAddr::V6(Ipv6Addr::from_bits(raw)), len)
            } else {
                (IpAddr::V4(Ipv4Addr::from_bits(raw as u32)), len.min(32))
            };
            let net = Prefix::new(a, len).expect("length");
            let mut taken = HashSet::new();
            for _ in 0..many {
                let Some(a) = choose(&net, &PublicKey(k), &taken) else { break };
                prop_assert!(usable(&net, a) && !taken.contains(&a));
                prop_assert_eq!(choose(&net, &PublicKey(k), &taken), Some(a));
                taken.insert(a);
            }
            prop_assert!(taken.len() as u128 == count(&net).min(many as u128));
        }

        #[test]
        fn of_two_with_one_address_exactly_one_keeps_it(since: [u64; 2], keys: [u8; 2]) {
            prop_assume!(keys[0] != keys[1]);
            let net = prefix("10.0.0.0/24");
            let address: IpAddr = "10.0.0.5".parse().expect("address");
            let kept = [0, 1].map(|i: usize| {
                let own = OwnAddress { address, key: key(keys[i]), since: since[i], fixed: false };
                settle(&own, &net, &[(key(keys[1 - i]), since[1 - i], address)]) == Settlement::Keep
            });
            prop_assert!(kept[0] != kept[1]);
        }
    }
}
