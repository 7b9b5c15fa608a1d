//! Labels of DNS names, made of what people call things.

use sha2::{Digest, Sha256};
use std::collections::HashSet;

/// Longest label, in bytes (RFC 1035, section 2.3.4).
pub(super) const MAX_LABEL: usize = 63;
/// Digits of a hash that tell names apart: the first number that is enough is taken.
const DIGITS: [usize; 4] = [4, 8, 16, 32];

/// `s` as a label: lower case, and `-` for everything that host names do not have (RFC 1123, section 2.1). Underscores
/// stay, as groups are called so and resolvers take them. It starts with a letter or digit and does not end with `-`, and
/// `--` becomes `-`, so that nothing looks like an encoded Unicode label (RFC 5890, section 2.3.1). `None` if nothing is
/// left.
pub(super) fn label(s: &str) -> Option<String> {
    let mut text = String::with_capacity(s.len().min(MAX_LABEL));
    for c in s.chars().flat_map(char::to_lowercase) {
        let c = if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
        let superfluous = if text.is_empty() { !c.is_ascii_alphanumeric() } else { c == '-' && text.ends_with('-') };
        if text.len() == MAX_LABEL {
            break;
        }
        if !superfluous {
            text.push(c);
        }
    }
    text.truncate(text.trim_end_matches('-').len());
    (!text.is_empty()).then_some(text)
}

/// `first-second` as one label; `first` is what is shortened.
pub(super) fn joined(first: &str, second: &str) -> String {
    let second: String = second.chars().take(MAX_LABEL - 2).collect();
    let room = MAX_LABEL - 1 - second.len();
    let first: String = first.chars().take(room).collect();
    format!("{}-{second}", first.trim_end_matches('-'))
}

/// A label that nobody in `taken` has, which it is then in: one of `wanted`, the first ones first, else the first one with
/// as many digits of the hash of `identity` as it takes.
pub(super) fn distinct(wanted: &[String], identity: &[&str], taken: &mut HashSet<String>) -> String {
    let plain = wanted.iter().find(|w| !taken.contains(*w)).cloned();
    let base = wanted.first().map_or("node", String::as_str);
    let free = plain.unwrap_or_else(|| {
        let digits = hash(identity);
        let tagged = DIGITS.iter().map(|n| joined(base, &digits[..*n])).find(|l| !taken.contains(l));
        // Only if somebody called itself by all of them. There are fewer names than numbers.
        tagged.unwrap_or_else(|| {
            let mut n = 2u64;
            loop {
                let label = joined(base, &format!("{}-{n}", &digits[..DIGITS[0]]));
                if !taken.contains(&label) {
                    break label;
                }
                n += 1;
            }
        })
    });
    taken.insert(free.clone());
    free
}

/// SHA-256 of the parts, each ended by a zero byte, in hexadecimal digits.
fn hash(parts: &[&str]) -> String {
    let mut h = Sha256::new();
    for p in parts {
        h.update(p.as_bytes());
        h.update([0]);
    }
    h.finalize().iter().fold(String::with_capacity(64), |mut s, b| {
        use std::fmt::Write as _;
        let _ = write!(s, "{b:02x}");
        s
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn labels_are_what_host_names_have_and_underscores() {
        let made = |s: &str| label(s).unwrap_or_default();
        assert_eq!(made("vm2"), "vm2");
        assert_eq!(made("My_Pragma_Group_1"), "my_pragma_group_1");
        assert_eq!(made("Bob's laptop (2)"), "bob-s-laptop-2");
        assert_eq!(made("-_a.b-"), "a-b");
        assert_eq!(made("xn--80ak6aa92e"), "xn-80ak6aa92e");
        assert_eq!(made("Zürich"), "z-rich");
        for nothing in ["", "---", "___", "ü", "日本"] {
            assert_eq!(label(nothing), None, "{nothing}");
        }
        assert_eq!(made(&"a".repeat(100)), "a".repeat(63));
        assert_eq!(made(&format!("{}-b", "a".repeat(62))), "a".repeat(62));
        assert_eq!(joined(&"a".repeat(63), "beef"), format!("{}-beef", "a".repeat(58)));
    }

    #[test]
    fn whoever_comes_second_gets_a_suffix_that_stays() {
        let mut taken = HashSet::new();
        let mut give = |who: &str| distinct(&["vm".to_owned()], &[who], &mut taken);
        let (first, second) = (give("a"), give("b"));
        assert_eq!((first.as_str(), second.as_str()), ("vm", "vm-1e57"));
        // Somebody who called itself just so, and so on, only makes it longer.
        let all = [4, 8, 16, 32].map(|n| joined("vm", &hash(&["b"])[..n]));
        let mut taken: HashSet<String> = all.iter().cloned().chain(["vm".to_owned()]).collect();
        assert_eq!(distinct(&["vm".to_owned()], &["b"], &mut taken), "vm-1e57-2");
        taken.remove(&all[1]);
        assert_eq!(distinct(&["vm".to_owned()], &["b"], &mut taken), all[1]);
    }

    proptest! {
        #[test]
        fn every_label_is_valid_and_its_own_label(s in any::<String>(), t in any::<String>()) {
            for made in [label(&s), label(&t)].into_iter().flatten() {
                prop_assert!(valid(&made), "{made}");
                prop_assert_eq!(label(&made), Some(made));
            }
            if let (Some(a), Some(b)) = (label(&s), label(&t)) {
                prop_assert!(valid(&joined(&a, &b)), "{}", joined(&a, &b));
            }
        }
    }

    fn valid(l: &str) -> bool {
        let inner = l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        (1..=MAX_LABEL).contains(&l.len())
            && inner
            && l.starts_with(|c: char| c.is_ascii_alphanumeric())
            && !l.ends_with('-')
            && !l.contains("--")
    }
}
