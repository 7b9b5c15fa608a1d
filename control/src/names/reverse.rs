//! Names of addresses, under `in-addr.arpa` (RFC 1035, section 3.5) and `ip6.arpa` (RFC 3596, section 2.5).

use dataplane::table::Prefix;
use hickory_proto::rr::{LowerName, Name};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bits for each label, and in all.
const fn shape(v4: bool) -> (u8, u8) {
    if v4 { (8, 32) } else { (4, 128) }
}

/// What a name under `arpa` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// As much of an address as was understood, from its start.
    pub(super) prefix: Prefix,
    /// There is more in front of it, which is no part of an address.
    pub(super) more: bool,
}

impl Asked {
    /// The address, if the name is that of one.
    pub(super) fn address(&self) -> Option<IpAddr> {
        let whole = self.prefix.len() == shape(self.prefix.address().is_ipv4()).1;
        (whole && !self.more).then(|| self.prefix.address())
    }
}

/// Reads a name. Only digits as RFC 1035 and 3596 write them count: `01` is no part of an address.
pub(super) fn read(name: &LowerName) -> Option<Asked> {
    let mut labels = name.iter().rev();
    if labels.next()? != b"arpa" {
        return None;
    }
    let v4 = match labels.next()? {
        b"in-addr" => true,
        b"ip6" => false,
        _ => return None,
    };
    let (step, all) = shape(v4);
    let (mut bits, mut len, mut more) = (0u128, 0, false);
    for label in labels {
        let digit = if v4 { decimal(label) } else { hexadecimal(label) };
        let Some(digit) = digit.filter(|_| len < all) else {
            more = true;
            break;
        };
        len += step;
        bits |= u128::from(digit) << (all - len);
    }
    let address = if v4 {
        IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(bits).ok()?))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(bits))
    };
    Some(Asked { prefix: Prefix::new(address, len)?, more })
}

fn decimal(label: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    let n: u8 = text.parse().ok()?;
    (n.to_string() == text).then_some(n)
}

fn hexadecimal(label: &[u8]) -> Option<u8> {
    match label {
        [d @ b'0'..=b'9'] => Some(d - b'0'),
        [d @ b'a'..=b'f'] => Some(d - b'a' + 10),
        _ => None,
    }
}

/// The length at which zones can be cut that lie in a subnet of this one.
fn zone_len(subnet: &Prefix) -> u8 {
    let (step, _) = shape(subnet.address().is_ipv4());
    // A zone has at least one label: nobody's subnet is the whole address space.
    subnet.len().max(1).next_multiple_of(step)
}

/// The zone of `subnet` in which `asked` lies.
pub(super) fn zone_in(subnet: &Prefix, asked: &Prefix) -> Option<Prefix> {
    let len = zone_len(subnet);
    (asked.len() >= len && subnet.contains(asked.address())).then(|| Prefix::new(asked.address(), len)).flatten()
}

/// Names of all zones of a subnet, without a dot at the end. As zones are cut at labels, a subnet has several of them if
/// its length is no multiple of 8 (IPv4) or 4 (IPv6): up to 128.
#[must_use]
pub fn zones(subnet: &Prefix) -> Vec<String> {
    let len = zone_len(subnet);
    let (_, all) = shape(subnet.address().is_ipv4());
    let count = 1u128 << (len - subnet.len());
    let zone = |n: u128| {
        let shifted = n << (all - len);
        let address = match subnet.address() {
            IpAddr::V4(a) => IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() | u32::try_from(shifted).ok()?)),
            IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() | shifted)),
        };
        Some(text(&Prefix::new(address, len)?))
    };
    (0..count).filter_map(zone).collect()
}

/// The name of a prefix whose length is a multiple of 8 (IPv4) or 4 (IPv6), without a dot at the end.
fn text(p: &Prefix) -> String {
    let mut name = String::new();
    match p.address() {
        IpAddr::V4(a) => {
            for octet in a.octets()[..usize::from(p.len() / 8)].iter().rev() {
                let _ = write!(name, "{octet}.");
            }
            name + "in-addr.arpa"
        }
        IpAddr::V6(a) => {
            for n in (0..p.len() / 4).rev() {
                let _ = write!(name, "{:x}.", (a.to_bits() >> (124 - 4 * u32::from(n))) & 15);
            }
            name + "ip6.arpa"
        }
    }
}

/// [`text`] as a name.
pub(super) fn name(p: &Prefix) -> Option<Name> {
    Name::from_ascii(text(p) + ".").ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(s: &str) -> Prefix {
        s.parse().expect("prefix")
    }

    fn asked(s: &str) -> Option<(String, bool)> {
        // As from the wire: no parser has a say in what a label is.
        let labels = s.trim_end_matches('.').split('.').filter(|l| !l.is_empty()).map(str::as_bytes);
        let mut name = Name::from_labels(labels).expect("name");
        name.set_fqdn(true);
        let read = read(&LowerName::from(name))?;
        Some((read.prefix.to_string(), read.more))
    }

    #[test]
    fn names_under_arpa_are_read_strictly() {
        let some = |p: &str, more| Some((p.to_owned(), more));
        assert_eq!(asked("2.10.16.172.in-addr.arpa."), some("172.16.10.2/32", false));
        assert_eq!(asked("10.16.172.IN-ADDR.ARPA."), some("172.16.10.0/24", false));
        assert_eq!(asked("02.10.16.172.in-addr.arpa."), some("172.16.10.0/24", true));
        assert_eq!(asked("+2.10.16.172.in-addr.arpa."), some("172.16.10.0/24", true));
        assert_eq!(asked("256.10.16.172.in-addr.arpa."), some("172.16.10.0/24", true));
        assert_eq!(asked("lb._dns-sd._udp.0.10.16.172.in-addr.arpa."), some("172.16.10.0/32", true));
        assert_eq!(asked("in-addr.arpa."), some("0.0.0.0/0", false));
        assert_eq!(asked("B.d.f.ip6.arpa."), some("fdb0::/12", false));
        assert_eq!(asked("g.d.f.ip6.arpa."), some("fd00::/8", true));
        for no in ["arpa.", "ipop.", "ip4.arpa.", "."] {
            assert_eq!(asked(no), None, "{no}");
        }
    }

    #[test]
    fn zones_are_cut_at_labels() {
        assert_eq!(zones(&prefix("172.31.0.0/16")), ["31.172.in-addr.arpa"]);
        assert_eq!(zones(&prefix("172.16.10.0/24")), ["10.16.172.in-addr.arpa"]);
        assert_eq!(zones(&prefix("10.0.0.8/30")), [8, 9, 10, 11].map(|n| format!("{n}.0.0.10.in-addr.arpa")));
        assert_eq!(zones(&prefix("10.0.0.0/15")), ["0.10.in-addr.arpa", "1.10.in-addr.arpa"]);
        assert_eq!(zones(&prefix("10.0.0.5/32")), ["5.0.0.10.in-addr.arpa"]);
        assert_eq!(zones(&prefix("10.0.0.0/17")).len(), 128);
        assert_eq!(zones(&prefix("fd6d:797e:6f5b::/64")), ["0.0.0.0.b.5.f.6.e.7.9.7.d.6.d.f.ip6.arpa"]);
    }

    proptest! {
        #[test]
        fn the_name_of_an_address_is_read_back_and_lies_in_one_zone_of_its_subnet(v6: bool, raw: u128, len in 1u8..=128) {
            let a = if v6 { IpAddr::V6(raw.into()) } else { IpAddr::V4((raw as u32).into()) };
            let whole = crate::network::address::host_prefix(a);
            let name = name(&whole).expect("name");
            // hickory's own writing, to compare with.
            prop_assert_eq!(&name, &Name::from(a));
            let read = read(&LowerName::from(&name)).expect("read");
            prop_assert_eq!(read.address(), Some(a));
            let subnet = Prefix::new(a, len.min(whole.len())).expect("length");
            let zone = zone_in(&subnet, &whole).expect("in it");
            let listed = zones(&subnet);
            prop_assert_eq!(listed.iter().filter(|z| **z == text(&zone)).count(), 1);
            prop_assert!(listed.len() <= 128);
        }
    }
}
