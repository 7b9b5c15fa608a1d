//! Allowed IPs: which value has the longest prefix that contains an address.

use super::Prefix;
use super::trie::Trie;
use std::net::IpAddr;

/// A longest-prefix match over IPv4 and IPv6 prefixes.
///
/// A lookup takes at most one step for every byte of the address, and skips the bytes in which prefixes do
/// not differ. Clones are copies of a few flat vectors.
#[derive(Clone, Debug)]
pub struct Routes<T> {
    v4: Trie<u32, T>,
    v6: Trie<u128, T>,
}

impl<T> Default for Routes<T> {
    fn default() -> Self {
        Self { v4: Trie::new(), v6: Trie::new() }
    }
}

impl<T: Clone> Routes<T> {
    /// No routes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes `value` that of `prefix`, and returns the one that it had.
    pub fn insert(&mut self, prefix: Prefix, value: T) -> Option<T> {
        match prefix.address() {
            IpAddr::V4(a) => self.v4.insert(a.to_bits(), prefix.len(), value),
            IpAddr::V6(a) => self.v6.insert(a.to_bits(), prefix.len(), value),
        }
    }

    /// Removes exactly `prefix`, and returns its value.
    pub fn remove(&mut self, prefix: &Prefix) -> Option<T> {
        match prefix.address() {
            IpAddr::V4(a) => self.v4.remove(a.to_bits(), prefix.len()),
            IpAddr::V6(a) => self.v6.remove(a.to_bits(), prefix.len()),
        }
    }

    /// The value of the longest prefix that contains `address`.
    #[must_use]
    #[inline]
    pub fn lookup(&self, address: IpAddr) -> Option<&T> {
        match address {
            IpAddr::V4(a) => self.v4.lookup(a.to_bits()),
            IpAddr::V6(a) => self.v6.lookup(a.to_bits()),
        }
    }

    /// All prefixes and their values, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, &T)> {
        let v4 = self.v4.iter().map(|(a, len, v)| (IpAddr::from(a.to_be_bytes()), len, v));
        let v6 = self.v6.iter().map(|(a, len, v)| (IpAddr::from(a.to_be_bytes()), len, v));
        v4.chain(v6).filter_map(|(a, len, v)| Some((Prefix::new(a, len)?, v)))
    }

    /// Number of prefixes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(s: &str) -> Prefix {
        s.parse().expect("prefix")
    }

    fn address(s: &str) -> IpAddr {
        s.parse().expect("address")
    }

    #[test]
    fn the_longest_prefix_wins_and_versions_do_not_mix() {
        let mut r = Routes::new();
        for p in ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/23", "10.1.2.3/32", "::/0", "fd00::/7"] {
            assert_eq!(r.insert(prefix(p), p), None);
        }
        for (a, p) in [
            ("10.1.2.3", "10.1.2.3/32"),
            ("10.1.3.255", "10.1.2.0/23"),
            ("10.1.4.0", "10.1.0.0/16"),
            ("10.2.0.0", "10.0.0.0/8"),
            ("11.0.0.0", "0.0.0.0/0"),
            ("fc00::1", "fd00::/7"),
            ("2001:db8::1", "::/0"),
        ] {
            assert_eq!(r.lookup(address(a)), Some(&p), "{a}");
        }
        assert_eq!(r.insert(prefix("10.1.0.0/16"), "new"), Some("10.1.0.0/16"));
        assert_eq!(r.remove(&prefix("0.0.0.0/0")), Some("0.0.0.0/0"));
        assert_eq!(r.remove(&prefix("10.1.2.0/24")), None);
        assert_eq!(r.lookup(address("11.0.0.0")), None);
        assert_eq!(r.lookup(address("10.1.4.0")), Some(&"new"));
        assert_eq!(r.len(), 6);
    }

    #[test]
    fn a_hundred_thousand_hosts_come_and_go() {
        let mut r = Routes::new();
        let host = |i: u32| {
            let v4 = Prefix::new((0x0a00_0000 + i * 3).to_be_bytes().into(), 32).expect("prefix");
            let v6 = Prefix::new(((0xfd << 120) | u128::from(i) << 40).to_be_bytes().into(), 128).expect("prefix");
            [v4, v6]
        };
        for i in 0..50_000 {
            for p in host(i) {
                r.insert(p, i);
            }
        }
        let allocated = r.v4.allocated();
        for i in 0..50_000 {
            for p in host(i) {
                assert_eq!(r.lookup(p.address()), Some(&i));
                assert_eq!(r.remove(&p), Some(i));
                assert_eq!(r.lookup(p.address()), None);
            }
        }
        assert!(r.is_empty() && r.iter().next().is_none());
        for i in 0..50_000 {
            for p in host(i) {
                r.insert(p, i);
            }
        }
        assert_eq!(r.v4.allocated(), allocated, "what was freed is used again");
    }

    /// Few distinct bits, so that prefixes overlap.
    fn any_prefix() -> impl Strategy<Value = Prefix> {
        let bits = prop_oneof![any::<u128>(), (0u128..8, 0u32..126).prop_map(|(b, s)| b << s), Just(0), Just(!0)];
        (any::<bool>(), bits, 0u8..=128).prop_map(|(v4, bits, len)| {
            let (a, len) = if v4 {
                (IpAddr::from((bits as u32 | (bits >> 96) as u32).to_be_bytes()), len % 33)
            } else {
                (IpAddr::from(bits.to_be_bytes()), len)
            };
            Prefix::new(a, len).expect("prefix")
        })
    }

    /// An address in or near a prefix.
    fn near(p: &Prefix, noise: u128) -> IpAddr {
        match p.address() {
            IpAddr::V4(a) => {
                IpAddr::from((a.to_bits() ^ (noise as u32).checked_shr(u32::from(p.len())).unwrap_or(0)).to_be_bytes())
            }
            IpAddr::V6(a) => {
                IpAddr::from((a.to_bits() ^ noise.checked_shr(u32::from(p.len())).unwrap_or(0)).to_be_bytes())
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_scan_over_all_prefixes(
            pool in proptest::collection::vec(any_prefix(), 1..40),
            steps in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..4, any::<u128>()), 1..120),
        ) {
            let mut routes = Routes::new();
            let mut model: Vec<(Prefix, u32)> = Vec::new();
            for (n, (which, what, noise)) in steps.iter().enumerate() {
                let p = which.get(&pool);
                let at = model.iter().position(|(q, _)| q == p);
                if *what == 0 {
                    prop_assert_eq!(routes.remove(p), at.map(|at| model.swap_remove(at).1));
                } else {
                    let old = at.map(|at| model.swap_remove(at).1);
                    model.push((*p, n as u32));
                    prop_assert_eq!(routes.insert(*p, n as u32), old);
                }
                prop_assert_eq!(routes.len(), model.len());
                for q in pool.iter().flat_map(|p| [p.address(), near(p, *noise), near(p, 1 << 127), near(p, 1 << 31)]) {
                    let best = model.iter().filter(|(p, _)| p.contains(q)).max_by_key(|(p, _)| p.len());
                    prop_assert_eq!(routes.lookup(q), best.map(|(_, v)| v), "{}", q);
                }
            }
            let mut listed: Vec<_> = routes.iter().map(|(p, v)| (p, *v)).collect();
            listed.sort_unstable();
            model.sort_unstable();
            prop_assert_eq!(listed, model);
        }
    }
}
