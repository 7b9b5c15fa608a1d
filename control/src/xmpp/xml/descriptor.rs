//! A node's descriptor as XML: the item of its PEP node, and a part of its presence in rooms.
//!
//! ```xml
//! <node xmlns='urn:ipop-fast:node:1' name='vm1' version='0.1.0'>
//!   <capability>aes256gcm</capability>
//!   <network name='group:my_pragma_group_1' key='64 hexadecimal digits' since='1750000000000'>
//!     <address>172.16.10.2/32</address>
//!     <route>10.1.0.0/16</route>
//!     <subnet>172.16.10.0/24</subnet> <!-- of social networks with multicast -->
//!   </network>
//! </node>
//! ```

use std::collections::BTreeSet;
use std::str::FromStr;

use dataplane::table::Prefix;
use dataplane::tunnel::PublicKey;
use tokio_xmpp::minidom::Element;

use super::{Build, Malformed, NODE, children, element, malformed, number_of, text_of};
use crate::identity::{Descriptor, NetworkDescriptor};

/// Networks of one node.
pub(in crate::xmpp) const MAX_NETWORKS: usize = 16;
/// Overlay addresses of one node in one network.
pub(in crate::xmpp) const MAX_ADDRESSES: usize = 16;
/// Subnets that one node offers in one network.
pub(in crate::xmpp) const MAX_ROUTES: usize = 256;
/// Capabilities of one node.
pub(in crate::xmpp) const MAX_CAPABILITIES: usize = 16;
/// Bytes of a name or a version.
pub(in crate::xmpp) const MAX_WORD: usize = 128;
/// Bytes of a network's name: a kind and a bare JID (RFC 7622: two parts of up to 1,023) that nobody uses in full.
pub(in crate::xmpp) const MAX_NETWORK_NAME: usize = 1024;
/// An IPv6 prefix in its longest form has 43 + 4 characters.
const MAX_PREFIX: usize = 64;

/// As XML.
pub(in crate::xmpp) fn write(d: &Descriptor) -> Element {
    let mut node = element("node", NODE).with("name", &d.name).with("version", &d.version);
    for c in &d.capabilities {
        node = node.child(element("capability", NODE).words(c));
    }
    for n in &d.networks {
        let mut network = element("network", NODE)
            .with("name", &n.network)
            .with("key", hex(&n.public_key))
            .with("since", n.since.to_string());
        for a in &n.addresses {
            network = network.child(element("address", NODE).words(a.to_string()));
        }
        for r in &n.routes {
            network = network.child(element("route", NODE).words(r.to_string()));
        }
        if let Some(s) = &n.subnet {
            network = network.child(element("subnet", NODE).words(s.to_string()));
        }
        node = node.child(network);
    }
    node
}

/// From XML. What this version does not know is passed over; what it knows must be right.
pub(in crate::xmpp) fn read(e: &Element) -> Result<Descriptor, Malformed> {
    if !e.is("node", NODE) {
        return malformed(format!("{} in {} is no descriptor", e.name(), e.ns()));
    }
    let capabilities = texts(e, "capability", MAX_CAPABILITIES, MAX_WORD)?;
    let networks: Vec<&Element> = children(e, "network", NODE).collect();
    if networks.len() > MAX_NETWORKS {
        return malformed(format!("{} networks, over {MAX_NETWORKS}", networks.len()));
    }
    let networks = networks.into_iter().map(network).collect::<Result<Vec<_>, _>>()?;
    let names: BTreeSet<&str> = networks.iter().map(|n| n.network.as_str()).collect();
    if names.len() != networks.len() {
        return malformed("a network twice");
    }
    Ok(Descriptor {
        name: text_of(e, "name", MAX_WORD)?.to_owned(),
        version: text_of(e, "version", MAX_WORD)?.to_owned(),
        capabilities,
        networks,
    })
}

fn network(e: &Element) -> Result<NetworkDescriptor, Malformed> {
    let addresses = prefixes(e, "address", MAX_ADDRESSES)?;
    if let Some(p) = addresses.iter().find(|p| p.len() != if p.address().is_ipv4() { 32 } else { 128 }) {
        return malformed(format!("{p} is not one address"));
    }
    Ok(NetworkDescriptor {
        network: text_of(e, "name", MAX_NETWORK_NAME)?.to_owned(),
        public_key: key(text_of(e, "key", 64)?)?,
        addresses,
        routes: prefixes(e, "route", MAX_ROUTES)?,
        subnet: prefixes(e, "subnet", 1)?.pop(),
        since: number_of(e, "since")?,
    })
}

fn prefixes(e: &Element, name: &str, limit: usize) -> Result<Vec<Prefix>, Malformed> {
    texts(e, name, limit, MAX_PREFIX)?.iter().map(|t| Prefix::from_str(t).map_err(Malformed)).collect()
}

fn texts(e: &Element, name: &str, limit: usize, length: usize) -> Result<Vec<String>, Malformed> {
    let mut all = Vec::new();
    for child in children(e, name, NODE) {
        let text = child.text();
        if all.len() == limit || text.len() > length {
            return malformed(format!("more than {limit} of {name}, or one longer than {length} bytes"));
        }
        all.push(text);
    }
    Ok(all)
}

fn hex(key: &PublicKey) -> String {
    use std::fmt::Write;
    key.0.iter().fold(String::with_capacity(64), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

fn key(text: &str) -> Result<PublicKey, Malformed> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
    let mut key = [0; 32];
    match digits {
        Some(d) if d.len() == 64 => {
            for (k, pair) in key.iter_mut().zip(d.chunks_exact(2)) {
                *k = pair[0] << 4 | pair[1];
            }
            Ok(PublicKey(key))
        }
        _ => malformed("a key is 64 hexadecimal digits"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(host: bool) -> impl Strategy<Value = Prefix> {
        (any::<std::net::IpAddr>(), 0..=128_u8).prop_map(move |(a, len)| {
            let full = if a.is_ipv4() { 32 } else { 128 };
            Prefix::new(a, if host { full } else { len % (full + 1) }).unwrap()
        })
    }

    prop_compose! {
        fn networks()(n in prop::collection::vec(
            (any::<[u8; 32]>(), prop::collection::vec(prefix(true), 0..5), prop::collection::vec(prefix(false), 0..5),
             prop::option::of(prefix(false)), any::<u64>()), 0..4)) -> Vec<NetworkDescriptor> {
            n.into_iter().enumerate().map(|(i, (k, addresses, routes, subnet, since))| NetworkDescriptor {
                network: format!("group:<&{i}>"), public_key: PublicKey(k), addresses, routes, subnet, since,
            }).collect()
        }
    }

    proptest! {
        #[test]
        fn a_descriptor_survives_the_way_through_xml(
            name in "[^\\p{C}]{0,30}", caps in prop::collection::vec("[^\\p{C}]{0,30}", 0..4), networks in networks()) {
            let d = Descriptor { name, version: "1".into(), capabilities: caps, networks };
            let text = String::from(&write(&d));
            prop_assert_eq!(read(&text.parse::<Element>().unwrap()).unwrap(), d);
        }

        #[test]
        fn whatever_is_written_into_its_attributes_nothing_panics(
            name in ".{0,300}", key in "[0-9a-fx]{60,70}", since in "[-+0-9]{0,25}", address in "[0-9a-f:./]{0,50}") {
            let e = element("node", NODE).with("name", name).with("version", "").child(
                element("network", NODE).with("name", "n").with("key", key).with("since", since)
                    .child(element("address", NODE).words(address)));
            let _ = read(&e);
        }
    }

    fn many(name: &str, n: usize) -> Element {
        let mut net = element("network", NODE).with("name", "n").with("key", "00".repeat(32)).with("since", "1");
        for i in 0..n {
            net = net.child(element(name, NODE).words(format!("10.{}.{}.0/32", i / 256, i % 256)));
        }
        element("node", NODE).with("name", "n").with("version", "1").child(net)
    }

    #[test]
    fn one_more_than_the_limit_is_refused() {
        for (name, limit) in [("address", MAX_ADDRESSES), ("route", MAX_ROUTES), ("subnet", 1)] {
            assert!(read(&many(name, limit)).is_ok() && read(&many(name, limit + 1)).is_err(), "{name}");
        }
        let mut node = element("node", NODE).with("name", "n").with("version", "1");
        for i in 0..=MAX_NETWORKS {
            assert!(read(&node).is_ok());
            let key = "00".repeat(32);
            node =
                node.child(element("network", NODE).with("name", format!("{i}")).with("key", key).with("since", "1"));
        }
        assert!(read(&node).is_err());
        let long = "x".repeat(MAX_WORD + 1);
        assert!(read(&element("node", NODE).with("name", long).with("version", "1")).is_err());
    }

    #[test]
    fn wrong_keys_addresses_and_doubles_are_refused_and_unknown_things_passed_over() {
        let net = |key: &str, address: &str| {
            let n = element("network", NODE).with("name", "n").with("key", key).with("since", "1");
            let n = n.child(element("address", NODE).words(address));
            element("node", NODE).with("name", "n").with("version", "1").child(n)
        };
        let good = "ab".repeat(32);
        assert!(read(&net(&good, "10.0.0.1/32")).is_ok());
        assert!(read(&net(&good, "10.0.0.1/24")).is_err());
        assert!(read(&net(&good, "10.0.0.1/33")).is_err());
        assert!(read(&net("ab", "10.0.0.1/32")).is_err());
        assert!(read(&net(&"+a".repeat(32), "10.0.0.1/32")).is_err());
        let twice = net(&good, "10.0.0.1/32")
            .child(element("network", NODE).with("name", "n").with("key", &good).with("since", "2"));
        assert!(read(&twice).is_err());
        let newer = net(&good, "10.0.0.1/32").with("mood", "fine").child(element("future", NODE));
        assert!(read(&newer).is_ok());
    }

    #[test]
    fn control_characters_do_not_reach_the_stream() {
        let d = Descriptor { name: "a\u{0}b\n".into(), version: String::new(), capabilities: vec![], networks: vec![] };
        assert_eq!(read(&write(&d)).unwrap().name, "a\u{fffd}b\u{fffd}");
    }
}
