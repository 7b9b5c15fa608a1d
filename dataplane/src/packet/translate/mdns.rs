//! Addresses in mDNS messages (RFC 6762 section 18, RFC 1035 section 4).
//!
//! Of the reverse name of the peer's own address (`100.0.31.172.in-addr.arpa`) nothing may be said here: it is a claim to
//! be the only one of that name, and whoever calls itself the same here would have to give itself another host name, and
//! another, for ever. Questions and records of it get a type that nobody asks for; their length stays.

use std::net::Ipv4Addr;

use super::{Translation, address};
use crate::packet::be16;

/// Bytes of the header.
const HEADER_LEN: usize = 12;
/// Messages are no longer (RFC 6762 section 17, less the headers of IP and UDP).
const MAX_LEN: usize = 9000;
/// Questions and records that are looked at. A message of 9,000 bytes holds hardly more that mean something.
const MAX_RECORDS: usize = 512;
/// Bytes of a name, at most (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 255;
/// Pointers in a name: one for each of its labels would be the most that makes sense.
const MAX_POINTERS: usize = 6;
/// Type, class, lifetime and length between a record's name and data.
const FIXED_LEN: usize = 10;
/// An IPv4 address.
const TYPE_A: u16 = 1;
/// For private use (RFC 6895 section 3.1): means nothing to anybody.
const TYPE_NOTHING: u16 = 0xff00;
/// The internet, with or without mDNS's "flush the cache".
const CLASS_IN: u16 = 1;
const CLASS_MASK: u16 = 0x7fff;

/// The reverse name of an address (RFC 1035 section 3.5) as it stands in a message: four labels of digits, and the suffix.
struct Reverse {
    bytes: [u8; 30],
    len: usize,
}

impl Reverse {
    const SUFFIX: &[u8] = b"\x07in-addr\x04arpa\0";

    fn of(a: Ipv4Addr) -> Self {
        let mut name = Self { bytes: [0; 30], len: 0 };
        for n in a.octets().into_iter().rev() {
            let digits: &[u8] = match n {
                100.. => &[b'0' + n / 100, b'0' + n / 10 % 10, b'0' + n % 10],
                10.. => &[b'0' + n / 10, b'0' + n % 10],
                _ => &[b'0' + n],
            };
            name.push(&[digits.len() as u8]);
            name.push(digits);
        }
        name.push(Self::SUFFIX);
        name
    }

    /// Four labels of at most four bytes, and fourteen: never more than there is room for.
    fn push(&mut self, more: &[u8]) {
        self.bytes[self.len..self.len + more.len()].copy_from_slice(more);
        self.len += more.len();
    }

    /// Whether this is the name at `at`, wherever its end stands (RFC 1035 section 4.1.4). Pointers lead backwards, and each
    /// label takes this name a step further: it ends.
    fn is_at(&self, message: &[u8], mut at: usize) -> bool {
        let mut rest = &self.bytes[..self.len];
        let mut pointers = 0;
        while let Some(&head) = message.get(at) {
            if head >= 0xc0 {
                let Some(&low) = message.get(at + 1) else { return false };
                let to = usize::from(u16::from_be_bytes([head & 0x3f, low]));
                pointers += 1;
                if to >= at || pointers > MAX_POINTERS {
                    return false;
                }
                at = to;
                continue;
            }
            let label = 1 + usize::from(head);
            let (Some(said), Some(wanted)) = (message.get(at..at + label), rest.get(..label)) else { return false };
            if !said.eq_ignore_ascii_case(wanted) {
                return false;
            }
            (at, rest) = (at + label, &rest[label..]);
            if rest.is_empty() {
                return true;
            }
        }
        false
    }
}

/// Makes the lease of every A record in `message` that holds the peer's own address, in any section: probes tell theirs
/// as authority; and hides what is said of its reverse name. True if there was anything. What is malformed ends the search.
pub(super) fn rewrite(t: &Translation, message: &mut [u8]) -> bool {
    if message.len() < HEADER_LEN || message.len() > MAX_LEN {
        return false;
    }
    let questions = usize::from(be16(message, 4)).min(MAX_RECORDS);
    let records: usize = (0..3).map(|section| usize::from(be16(message, 6 + 2 * section))).sum();
    let reverse = Reverse::of(t.peer);
    let mut at = HEADER_LEN;
    let mut changed = false;
    for _ in 0..questions {
        // Type and class.
        let Some(end) = skip_name(message, at).filter(|end| end + 4 <= message.len()) else { return changed };
        if reverse.is_at(message, at) {
            message[end..end + 2].copy_from_slice(&TYPE_NOTHING.to_be_bytes());
            changed = true;
        }
        at = end + 4;
    }
    for _ in 0..records.min(MAX_RECORDS - questions) {
        let Some(fixed) = skip_name(message, at) else { break };
        let data = fixed + FIXED_LEN;
        if data > message.len() {
            break;
        }
        let (kind, class, len) =
            (be16(message, fixed), be16(message, fixed + 2), usize::from(be16(message, fixed + 8)));
        let name = std::mem::replace(&mut at, data + len);
        if at > message.len() {
            break;
        }
        if reverse.is_at(message, name) {
            message[fixed..fixed + 2].copy_from_slice(&TYPE_NOTHING.to_be_bytes());
            changed = true;
        }
        if kind == TYPE_A && class & CLASS_MASK == CLASS_IN && len == 4 && address(message, data) == t.peer {
            message[data..at].copy_from_slice(&t.lease.octets());
            changed = true;
        }
    }
    changed
}

/// Where the name at `at` ends. A pointer ends it and is not followed: loops are none of ours.
fn skip_name(message: &[u8], at: usize) -> Option<usize> {
    let mut end = at;
    while end - at < MAX_NAME {
        match *message.get(end)? {
            0 => return Some(end + 1),
            pointer if pointer >= 0xc0 => return Some(end + 2),
            label if label < 0x40 => end += 1 + usize::from(label),
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Translation = Translation {
        peer: std::net::Ipv4Addr::new(172, 31, 0, 100),
        lease: std::net::Ipv4Addr::new(10, 5, 0, 7),
        own: std::net::Ipv4Addr::new(10, 5, 0, 1),
        broadcast: None,
    };

    fn record(name: &[u8], kind: u16, class: u16, data: &[u8]) -> Vec<u8> {
        [name, &kind.to_be_bytes(), &class.to_be_bytes(), &[0, 0, 0, 120], &(data.len() as u16).to_be_bytes(), data]
            .concat()
    }

    fn message(questions: &[&[u8]], records: &[Vec<u8>]) -> Vec<u8> {
        let count = |n: usize| (n as u16).to_be_bytes();
        let mut m = [&[0, 0, 0x84, 0][..], &count(questions.len()), &count(records.len()), &[0; 4]].concat();
        questions.iter().for_each(|q| m.extend([*q, &[0, 1, 0, 1]].concat()));
        records.iter().for_each(|r| m.extend(r));
        m
    }

    const HOST: &[u8] = b"\x06laptop\x05local\0";
    const POINTER: &[u8] = &[0xc0, 12];

    #[test]
    fn a_records_of_the_peer_become_its_lease_and_nothing_else_does() {
        let (peer, lease) = (T.peer.octets(), T.lease.octets());
        let same = [
            record(HOST, 16, 0x8001, b"\x09path=/doc"),
            record(POINTER, 1, 1, &[172, 31, 0, 101]),
            record(POINTER, 28, 1, &[&[0xfd; 12][..], &peer].concat()),
            record(POINTER, 16, 1, &peer),
            record(POINTER, 1, 3, &peer),
            record(POINTER, 1, 1, &[&peer[..], &peer].concat()),
        ];
        let mut m = message(&[HOST], &same);
        let before = m.clone();
        assert!(!rewrite(&T, &mut m));
        assert_eq!(m, before);
        let with = |a: &[u8]| {
            let records = [record(HOST, 1, 0x8001, a), record(POINTER, 1, 1, a)];
            message(&[POINTER, HOST], &[&same[..], &records].concat())
        };
        let mut m = with(&peer);
        assert!(rewrite(&T, &mut m));
        assert_eq!(m, with(&lease));
    }

    #[test]
    fn nothing_is_said_of_the_reverse_name_of_the_peers_own_address() {
        let claim = |name: &[u8], kind| record(name, kind, 0x8001, HOST);
        for (own, name) in [
            ([172, 31, 0, 100], &b"\x03100\x010\x0231\x03172\x07in-addr\x04arpa\0"[..]),
            ([10, 0, 9, 7], b"\x017\x019\x010\x0210\x07IN-ADDR\x04Arpa\0"),
            ([255, 255, 255, 255], b"\x03255\x03255\x03255\x03255\x07in-addr\x04arpa\0"),
        ] {
            let t = Translation { peer: own.into(), ..T };
            // A probe: anybody else of this name? And the claim, in full and by a pointer to the question.
            let mut m = message(&[name], &[claim(name, 12), claim(POINTER, 12)]);
            let question = HEADER_LEN + name.len();
            assert!(rewrite(&t, &mut m));
            let mut hidden = message(&[name], &[claim(name, TYPE_NOTHING), claim(POINTER, TYPE_NOTHING)]);
            hidden[question..question + 2].copy_from_slice(&TYPE_NOTHING.to_be_bytes());
            assert_eq!(m, hidden);
        }
        // The end of a name stands where another one ends, as of `ip6.arpa` before.
        let (host6, tail) = (b"\x011\x03ip6\x04arpa\0", &[0xc0, (HEADER_LEN + 6) as u8][..]);
        let name = [&b"\x03100\x010\x0231\x03172\x07in-addr"[..], tail].concat();
        let mut m = message(&[host6], &[claim(&name, 12)]);
        assert!(rewrite(&T, &mut m));
        assert_eq!(m, message(&[host6], &[claim(&name, TYPE_NOTHING)]));
        // Of any other name all may be said, and a pointer to itself or beyond the end is no name.
        let other: &[u8] = b"\x03101\x010\x0231\x03172\x07in-addr\x04arpa\0";
        for name in [other, &[0xc0, 12], &[0xff, 0xff]] {
            let mut m = message(&[name], &[claim(name, 12)]);
            let before = m.clone();
            assert!(!rewrite(&T, &mut m));
            assert_eq!(m, before);
        }
    }

    #[test]
    fn every_section_is_looked_at() {
        for section in 0..3 {
            let mut m = message(&[], &[record(HOST, 1, 1, &T.peer.octets())]);
            m[6..8].fill(0);
            m[7 + 2 * section] = 1;
            assert!(rewrite(&T, &mut m), "section {section}");
        }
    }

    #[test]
    fn malformed_messages_are_harmless() {
        let good = message(&[HOST], &vec![record(POINTER, 1, 1, &T.peer.octets()); 3]);
        for cut in 0..good.len() {
            rewrite(&T, &mut good[..cut].to_vec());
        }
        // A pointer to itself, a name without end, and counts that promise more than there is.
        let looped = message(&[&[0xc0, 12]], &[record(&[0xc0, 12], 1, 1, &T.peer.octets())]);
        assert!(rewrite(&T, &mut looped.clone()), "pointers are not followed");
        let endless = message(&[&[63; 300]], &[]);
        assert!(!rewrite(&T, &mut endless.clone()));
        let mut many = good;
        many[4..12].fill(0xff);
        assert!(!rewrite(&T, &mut many));
        assert!(!rewrite(&T, &mut message(&[&[0x80, 0]], &[record(HOST, 1, 1, &T.peer.octets())])));
    }

    #[test]
    fn work_is_bounded() {
        let records = vec![record(&[0], 1, 1, &T.peer.octets()); 590];
        let mut m = message(&[], &records);
        assert!(m.len() <= MAX_LEN && rewrite(&T, &mut m));
        let changed = m.windows(4).filter(|w| *w == T.lease.octets()).count();
        assert_eq!(changed, MAX_RECORDS);
        assert!(!rewrite(&T, &mut vec![0; MAX_LEN + 1]));
    }
}
