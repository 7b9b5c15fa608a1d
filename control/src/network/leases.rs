//! What a node chose for itself and keeps over restarts: its address in each network.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The choices for one network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The address.
    pub address: IpAddr,
    /// When it was taken, milliseconds since 1970.
    pub since: u64,
}

/// By network name. Serialises to JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    networks: BTreeMap<String, Lease>,
}

impl Leases {
    /// The choices for a network.
    #[must_use]
    pub fn get(&self, network: &str) -> Option<Lease> {
        self.networks.get(network).copied()
    }

    /// The address for a network at `now` (milliseconds since 1970), with the time since when it is ours: unchanged
    /// if it is the same as before. Returns whether there is something to store.
    pub fn take(&mut self, network: &str, address: IpAddr, now: u64) -> bool {
        let old = self.get(network);
        if old.is_some_and(|l| l.address == address) {
            return false;
        }
        self.networks.insert(network.to_owned(), Lease { address, since: now });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_keeps_its_age_while_the_address_is_the_same() {
        let mut leases = Leases::default();
        let (a, b): (IpAddr, IpAddr) = ("10.0.0.1".parse().expect("address"), "10.0.0.2".parse().expect("address"));
        assert!(leases.take("group:g", a, 5));
        assert!(!leases.take("group:g", a, 9));
        assert_eq!(leases.get("group:g"), Some(Lease { address: a, since: 5 }));
        assert!(leases.take("group:g", b, 9));
        let text = serde_json::to_string(&leases).expect("JSON");
        let again: Leases = serde_json::from_str(&text).expect("JSON");
        assert_eq!(again.get("group:g"), Some(Lease { address: b, since: 9 }));
    }
}
