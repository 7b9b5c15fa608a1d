//! Keys that were seen once: trust on first use. An XMPP server can lie about keys, but not twice without being noticed.

use dataplane::tunnel::PublicKey;
use serde::{Deserialize, Serialize};

/// More are not remembered.
pub const MAX_PINS: usize = 16_384;
/// The same for one account: whoever makes device after device must not use up what protects the others.
pub const MAX_OF_ACCOUNT: usize = 256;

/// What is known of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinVerdict {
    /// This device was never seen in this network.
    First,
    /// Neither, and no more can be remembered: refuse, or the server could swap keys at will.
    Full,
    /// It has the key that it had. The number tells which pin is older.
    Same {
        /// Position in the order of pinning.
        order: u64,
    },
    /// It had another key: refuse until a person accepts.
    Changed {
        /// The key that is pinned.
        pinned: PublicKey,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pin {
    account: String,
    device: String,
    network: String,
    #[serde(with = "hex")]
    key: [u8; 32],
    order: u64,
    /// The key that was refused last.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex_option")]
    refused: Option<[u8; 32]>,
}

/// Pinned keys by account (bare JID), device and network. Serialises to JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pins {
    /// Sorted by account, device, network.
    pins: Vec<Pin>,
    #[serde(default)]
    next: u64,
}

impl Pins {
    /// After deserialising: a file that somebody edited may be out of order or too long.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        self.pins.sort_by(|a, b| id(a).cmp(&id(b)));
        self.pins.dedup_by(|b, a| id(a) == id(b));
        self.pins.truncate(MAX_PINS);
        self.next = self.pins.iter().map(|p| p.order.saturating_add(1)).max().unwrap_or(0).max(self.next);
        self
    }

    fn find(&self, account: &str, device: &str, network: &str) -> Result<usize, usize> {
        self.pins.binary_search_by(|p| id(p).cmp(&(account, device, network)))
    }

    /// What is known of `key`.
    #[must_use]
    pub fn check(&self, account: &str, device: &str, network: &str, key: &PublicKey) -> PinVerdict {
        match self.find(account, device, network).ok().map(|i| &self.pins[i]) {
            None if self.is_full(account) => PinVerdict::Full,
            None => PinVerdict::First,
            Some(p) if p.key == key.0 => PinVerdict::Same { order: p.order },
            Some(p) => PinVerdict::Changed { pinned: PublicKey(p.key) },
        }
    }

    /// Remembers the outcome of [`Self::check`]: pins a first key, notes a refused one for [`Self::accept`], and forgets
    /// that one when the pinned key is back: what nobody says any more is not to be accepted by mistake. Returns whether
    /// there is something to store. With [`MAX_PINS`], or [`MAX_OF_ACCOUNT`] of the account, nothing more is pinned.
    pub fn note(&mut self, account: &str, device: &str, network: &str, key: &PublicKey) -> bool {
        match self.find(account, device, network) {
            Ok(i) if self.pins[i].key == key.0 => self.pins[i].refused.take().is_some(),
            Ok(i) => self.pins[i].refused.replace(key.0) != Some(key.0),
            Err(_) if self.is_full(account) => false,
            Err(i) => {
                let (account, device, network) = (account.to_owned(), device.to_owned(), network.to_owned());
                let order = self.next;
                self.next += 1;
                self.pins.insert(i, Pin { account, device, network, key: key.0, order, refused: None });
                true
            }
        }
    }

    fn is_full(&self, account: &str) -> bool {
        let first = self.pins.partition_point(|p| p.account.as_str() < account);
        let of_account = self.pins[first..].iter().take_while(|p| p.account == account).count();
        self.pins.len() >= MAX_PINS || of_account >= MAX_OF_ACCOUNT
    }

    /// A person accepts the changed keys of `jid`, bare (all its devices) or full, in all networks. Returns them.
    pub fn accept(&mut self, jid: &str) -> Vec<PublicKey> {
        let mut accepted = Vec::new();
        for p in self.pins.iter_mut().filter(|p| is_of(p, jid)) {
            if let Some(key) = p.refused.take() {
                p.key = key;
                accepted.push(PublicKey(key));
            }
        }
        accepted
    }

    /// A person wants the keys of `jid`, bare (all its devices) or full, forgotten: what is seen next is pinned anew.
    /// Returns how many there were.
    pub fn forget(&mut self, jid: &str) -> usize {
        let before = self.pins.len();
        self.pins.retain(|p| !is_of(p, jid));
        before - self.pins.len()
    }

    /// How many keys are pinned.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pins.len()
    }

    /// Whether nothing is pinned.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pins.is_empty()
    }
}

fn is_of(p: &Pin, jid: &str) -> bool {
    let (account, device) = jid.split_once('/').map_or((jid, None), |(a, d)| (a, Some(d)));
    p.account == account && device.is_none_or(|d| d == p.device)
}

fn id(p: &Pin) -> (&str, &str, &str) {
    (&p.account, &p.device, &p.network)
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn write(key: &[u8; 32]) -> String {
        key.iter().map(|b| format!("{b:02x}")).collect()
    }

    pub(super) fn read(s: &str) -> Option<[u8; 32]> {
        if s.len() != 64 || !s.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut key = [0; 32];
        for (i, b) in key.iter_mut().enumerate() {
            *b = u8::from_str_radix(s.get(2 * i..2 * i + 2)?, 16).ok()?;
        }
        Some(key)
    }

    pub(super) fn serialize<S: Serializer>(key: &[u8; 32], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&write(key))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(d)?;
        read(&text).ok_or_else(|| D::Error::custom("a key has 64 hexadecimal digits"))
    }
}

mod hex_option {
    use super::hex;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(key: &Option<[u8; 32]>, s: S) -> Result<S::Ok, S::Error> {
        match key {
            Some(key) => s.serialize_some(&hex::write(key)),
            None => s.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<[u8; 32]>, D::Error> {
        let text = Option::<String>::deserialize(d)?;
        text.map(|t| hex::read(&t).ok_or_else(|| D::Error::custom("a key has 64 hexadecimal digits"))).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn key(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    #[test]
    fn a_changed_key_is_refused_until_accepted() {
        let mut pins = Pins::default();
        let check = |p: &Pins, n| p.check("a@x", "d", "group:g", &key(n));
        assert_eq!(check(&pins, 1), PinVerdict::First);
        assert!(pins.note("a@x", "d", "group:g", &key(1)) && !pins.note("a@x", "d", "group:g", &key(1)));
        assert_eq!(check(&pins, 1), PinVerdict::Same { order: 0 });
        assert_eq!(check(&pins, 2), PinVerdict::Changed { pinned: key(1) });
        assert_eq!(pins.accept("a@x"), [], "nothing was refused yet");
        assert!(pins.note("a@x", "d", "group:g", &key(2)) && !pins.note("a@x", "d", "group:g", &key(2)));
        assert_eq!(check(&pins, 2), PinVerdict::Changed { pinned: key(1) }, "noting is not accepting");
        let text = serde_json::to_string_pretty(&pins).expect("JSON");
        let mut pins = serde_json::from_str::<Pins>(&text).expect("JSON").sorted();
        assert_eq!(
            [pins.accept("a@x/other"), pins.accept("b@x"), pins.accept("a@x/d")],
            [vec![], vec![], vec![key(2)]]
        );
        assert_eq!(check(&pins, 2), PinVerdict::Same { order: 0 });
        assert_eq!(check(&pins, 1), PinVerdict::Changed { pinned: key(2) });
    }

    #[test]
    fn a_refused_key_is_not_accepted_once_the_pinned_one_is_back() {
        let mut pins = Pins::default();
        for n in [1, 2, 1] {
            assert!(pins.note("a@x", "d", "group:g", &key(n)));
        }
        assert!(!pins.note("a@x", "d", "group:g", &key(1)), "nothing is left to forget");
        assert_eq!(pins.accept("a@x"), []);
        assert_eq!(pins.check("a@x", "d", "group:g", &key(1)), PinVerdict::Same { order: 0 });
    }

    #[test]
    fn an_account_with_device_after_device_fills_its_own_share_only() {
        let mut pins = Pins::default();
        for n in 0..MAX_OF_ACCOUNT {
            assert!(pins.note("a@x", &format!("d{n}"), "g", &key(1)));
        }
        assert!(!pins.note("a@x", "more", "g", &key(1)));
        assert_eq!(pins.check("a@x", "more", "g", &key(1)), PinVerdict::Full);
        assert_eq!(pins.check("a@x", "d7", "g", &key(2)), PinVerdict::Changed { pinned: key(1) });
        assert_eq!(pins.check("a@xx", "d", "g", &key(1)), PinVerdict::First);
        assert_eq!((pins.forget("b@x"), pins.forget("a@x/d7"), pins.forget("a@x")), (0, 1, MAX_OF_ACCOUNT - 1));
        assert_eq!(pins.check("a@x", "d7", "g", &key(2)), PinVerdict::First);
    }

    #[test]
    fn no_more_than_the_limit_is_pinned() {
        let mut pins = Pins::default();
        for n in 0..MAX_PINS {
            assert!(pins.note(&format!("a{n}@x"), "d", "g", &key(1)));
        }
        assert!(!pins.note("z@x", "d", "g", &key(1)));
        assert_eq!(pins.len(), MAX_PINS);
    }

    proptest! {
        #[test]
        fn pins_behave_as_a_map_that_never_overwrites(
            ops in proptest::collection::vec((0u8..3, 0u8..3, 0u8..2, 0u8..3), 0..60)
        ) {
            let (mut pins, mut model) = (Pins::default(), HashMap::new());
            for (a, d, n, k) in ops {
                let (a, d, n) = (format!("a{a}"), format!("d{d}"), format!("n{n}"));
                let first = *model.entry((a.clone(), d.clone(), n.clone())).or_insert(k);
                pins.note(&a, &d, &n, &key(k));
                let same = matches!(pins.check(&a, &d, &n, &key(k)), PinVerdict::Same { .. });
                prop_assert_eq!(same, first == k);
            }
            prop_assert_eq!(pins.len(), model.len());
            let text = serde_json::to_string(&pins).expect("JSON");
            prop_assert_eq!(serde_json::from_str::<Pins>(&text).expect("JSON").sorted(), pins);
        }
    }
}
