//! Packets are built twice, before and after, by code that knows nothing of translation: with all checksums summed anew.

mod coalesced;
mod discovery;

use super::super::testing::{Packet, naive};
use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

/// Transports, by how their checksums are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
    UdpUnsummed,
    UdpLite,
    Dccp,
    Echo,
    Other,
}

const KINDS: [Kind; 7] = [Kind::Tcp, Kind::Udp, Kind::UdpUnsummed, Kind::UdpLite, Kind::Dccp, Kind::Echo, Kind::Other];

/// An IPv4 packet that is not cut into fragments yet.
#[derive(Clone, Debug)]
struct Whole {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    kind: Kind,
    ports: [u16; 2],
    /// The header's fields that nobody looks at: TOS, ID, TTL.
    fields: [u8; 4],
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Whole {
    fn between(&self, source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        Self { source, destination, ..self.clone() }
    }

    const fn protocol(&self) -> u8 {
        match self.kind {
            Kind::Tcp => 6,
            Kind::Udp | Kind::UdpUnsummed => 17,
            Kind::UdpLite => 136,
            Kind::Dccp => 33,
            Kind::Echo => 1,
            Kind::Other => 132,
        }
    }

    fn transport(&self) -> Vec<u8> {
        let len = 8 + self.payload.len();
        let mut l4: Vec<u8> = self.ports.iter().flat_map(|p| p.to_be_bytes()).collect();
        let at = match self.kind {
            Kind::Tcp => {
                l4.extend([1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x10, 9, 9, 0, 0, 0, 0]);
                16
            }
            Kind::Udp | Kind::UdpUnsummed | Kind::UdpLite => {
                l4.extend((len as u16).to_be_bytes());
                l4.extend([0, 0]);
                6
            }
            Kind::Dccp => {
                l4.extend([4, 0, 0, 0, 0x41, 0, 0, 0, 0, 0, 0, 1]);
                6
            }
            Kind::Echo => {
                l4 = vec![8, 0, 0, 0, 0, 7, 0, 9];
                2
            }
            Kind::Other => {
                l4.extend([0xaa; 8]);
                l4.extend(&self.payload);
                return l4;
            }
        };
        l4.extend(&self.payload);
        let sum = match self.kind {
            Kind::UdpUnsummed => [0, 0],
            Kind::Echo => naive(&l4),
            _ => {
                let pseudo = [&self.source.octets()[..], &self.destination.octets(), &[0, self.protocol()]].concat();
                naive(&[&pseudo, &(l4.len() as u16).to_be_bytes()[..], &l4].concat())
            }
        };
        let sum = match (self.kind, sum) {
            (Kind::Udp | Kind::UdpLite, [0, 0]) => [0xff, 0xff],
            _ => sum,
        };
        l4[at..at + 2].copy_from_slice(&sum);
        l4
    }

    fn bytes(&self) -> Vec<u8> {
        ip(self, 0, &self.transport())
    }

    /// Fragments with `step` times 8 bytes each.
    fn fragments(&self, step: usize) -> Vec<Vec<u8>> {
        let l4 = self.transport();
        let step = step * 8;
        let count = l4.len().div_ceil(step);
        let one = |(i, piece): (usize, &[u8])| {
            let more = if i + 1 < count { MORE_FRAGMENTS } else { 0 };
            ip(self, more | (i * step / 8) as u16, piece)
        };
        l4.chunks(step).enumerate().map(one).collect()
    }
}

/// An IP header like `like`'s before `payload`.
fn ip(like: &Whole, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let header = 20 + like.options.len();
    let [tos, id0, id1, ttl] = like.fields;
    let mut p = vec![0x40 | (header / 4) as u8, tos];
    p.extend(((header + payload.len()) as u16).to_be_bytes());
    p.extend([id0, id1]);
    p.extend(fragment.to_be_bytes());
    p.extend([ttl, like.protocol(), 0, 0]);
    p.extend(like.source.octets().into_iter().chain(like.destination.octets()));
    p.extend(&like.options);
    let sum = naive(&p);
    p[10..12].copy_from_slice(&sum);
    p.extend(payload);
    p
}

/// An ICMP error about `quote`, in a packet with the addresses, options and fields of `outer`.
fn error(outer: &Whole, kind: u8, quote: &[u8]) -> Vec<u8> {
    let mut icmp = vec![kind, 1, 0, 0, 0, 0, 5, 0x8c];
    icmp.extend(quote);
    let sum = naive(&icmp);
    icmp[2..4].copy_from_slice(&sum);
    ip(&Whole { kind: Kind::Echo, ..outer.clone() }, 0, &icmp)
}

const T: Translation = Translation {
    peer: Ipv4Addr::new(172, 31, 0, 100),
    lease: Ipv4Addr::new(10, 99, 7, 3),
    own: Ipv4Addr::new(172, 31, 0, 100),
    broadcast: Some((Ipv4Addr::new(172, 31, 255, 255), Ipv4Addr::new(10, 99, 255, 255))),
};
/// What the peer calls us.
const THEIR_LEASE: Ipv4Addr = Ipv4Addr::new(172, 31, 9, 9);

/// Translates a packet with room behind it.
fn run(t: &Translation, packet: &[u8]) -> Result<Vec<u8>, Refused> {
    let mut buf = [packet, &[0xee; 16]].concat();
    let inner = Inner::parse(packet).expect("a packet");
    let result = t.translate(&mut buf, &inner);
    match result {
        Ok(len) => buf.truncate(len),
        Err(_) => assert_eq!(buf[..packet.len()], *packet, "a refused packet is unchanged"),
    }
    result.map(|_| buf)
}

/// What takes back what `t` does to a packet for `to`.
const fn inverse(t: &Translation, to: Ipv4Addr) -> Translation {
    Translation { peer: t.lease, lease: t.peer, own: to, broadcast: None }
}

fn unicast() -> impl Strategy<Value = Ipv4Addr> {
    let any = (1u8..=223, any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| Ipv4Addr::new(a, b, c, d));
    prop_oneof![any, (0u8..3).prop_map(|d| Ipv4Addr::new(172, 31, 0, d))]
}

fn translation() -> impl Strategy<Value = Translation> {
    [unicast(), unicast(), unicast()].prop_map(|[peer, lease, own]| Translation { peer, lease, own, broadcast: None })
}

/// Options that may pass: fillers, a recorded route, a timestamp, router alert; then the end.
fn options() -> impl Strategy<Value = Vec<u8>> {
    let one = prop_oneof![
        Just(vec![1u8]),
        Just(vec![7, 11, 4, 172, 31, 0, 100, 0, 0, 0, 0]),
        Just(vec![68, 8, 5, 0, 1, 2, 3, 4]),
        Just(vec![148, 4, 0, 0]),
    ];
    vec(one, 0..4).prop_map(|all| {
        let mut o = all.concat();
        o.truncate(40);
        o.resize(o.len().next_multiple_of(4), 0);
        o
    })
}

fn whole() -> impl Strategy<Value = Whole> {
    let kind = prop::sample::select(&KINDS[..]);
    (kind, any::<[u16; 2]>(), any::<[u8; 4]>(), options(), vec(any::<u8>(), 0..100)).prop_map(
        |(kind, ports, fields, options, payload)| Whole {
            source: T.peer,
            destination: THEIR_LEASE,
            kind,
            // Discovery has tests of its own.
            ports: ports.map(|p| if p == 5353 || p == 1900 { 1 } else { p }),
            fields,
            options,
            payload,
        },
    )
}

proptest! {
    #[test]
    fn a_translated_packet_is_the_one_that_would_have_been_sent_with_our_addresses(
        t in translation(), to in unicast(), p in whole(),
    ) {
        let sent = p.between(t.peer, to).bytes();
        let translated = run(&t, &sent);
        prop_assert_eq!(&translated, &Ok(p.between(t.lease, t.own).bytes()));
        prop_assert_eq!(run(&inverse(&t, to), &translated.expect("translated")), Ok(sent));
    }

    #[test]
    fn so_is_every_fragment(t in translation(), to in unicast(), p in whole(), step in 3usize..6) {
        let sent = p.between(t.peer, to).fragments(step);
        let expected = p.between(t.lease, t.own).fragments(step);
        for (sent, expected) in sent.into_iter().zip(expected) {
            let translated = run(&t, &sent);
            prop_assert_eq!(&translated, &Ok(expected));
            prop_assert_eq!(run(&inverse(&t, to), &translated.expect("translated")), Ok(sent));
        }
    }

    #[test]
    fn so_is_an_icmp_error_about_our_packet_however_much_it_quotes(
        t in translation(), to in unicast(), outer in whole(), quoted in whole(), step in prop::option::of(3usize..6),
        which in any::<prop::sample::Index>(), kind in prop::sample::select(&[3u8, 4, 11, 12][..]),
        padding in vec(any::<u8>(), 0..20),
    ) {
        // What we sent, as the peer got it and as we know it.
        let (there, here) = (quoted.between(to, t.peer), quoted.between(t.own, t.lease));
        let (there, here) = match step {
            Some(step) => (there.fragments(step), here.fragments(step)),
            None => (vec![there.bytes()], vec![here.bytes()]),
        };
        let which = which.index(there.len());
        let (there, here) = (&there[which], &here[which]);
        let header = 20 + quoted.options.len();
        for cut in 0..=there.len() {
            let mut expected = here[..cut].to_vec();
            if cut < 20 {
                expected.copy_from_slice(&there[..cut]);
            }
            let first = be16(there, 6) & FRAGMENT_OFFSET == 0;
            if let Some((at, _)) = checksum_of(there[9]).filter(|(at, _)| first && cut == header + at + 1) {
                // One byte of a checksum cannot be adjusted.
                expected[header + at] = there[header + at];
            }
            let mut quote = there[..cut].to_vec();
            if cut == there.len() {
                quote.extend(&padding);
                expected.extend(&padding);
            }
            let sent = error(&outer.between(t.peer, to), kind, &quote);
            let translated = run(&t, &sent);
            prop_assert_eq!(&translated, &Ok(error(&outer.between(t.lease, t.own), kind, &expected)), "cut at {}", cut);
            prop_assert_eq!(run(&inverse(&t, to), &translated.expect("translated")), Ok(sent));
        }
    }

    #[test]
    fn an_error_about_anything_but_our_packet_to_the_peer_is_refused(
        outer in whole(), quoted in whole(), a in unicast(), b in unicast(),
        kind in prop::sample::select(&[3u8, 4, 11, 12][..]), near in 0u32..64,
    ) {
        // Any other packet, and one whose source or destination differs in one bit.
        let flip = |a: Ipv4Addr| Ipv4Addr::from_bits(a.to_bits() ^ 1 << (near % 32));
        let close = if near < 32 { (flip(THEIR_LEASE), T.peer) } else { (THEIR_LEASE, flip(T.peer)) };
        for (source, destination) in [(a, b), close] {
            prop_assume!((source, destination) != (THEIR_LEASE, T.peer));
            let sent = error(&outer, kind, &quoted.between(source, destination).bytes());
            prop_assert_eq!(run(&T, &sent), Err(Refused::Malformed));
        }
        // In fragments it would be out of sight.
        let right = error(&outer, kind, &quoted.between(THEIR_LEASE, T.peer).bytes());
        let header = 20 + outer.options.len();
        let first = ip(&Whole { kind: Kind::Echo, ..outer }, MORE_FRAGMENTS, &right[header..header + 24]);
        prop_assert_eq!(run(&T, &first), Err(Refused::Malformed));
    }

    #[test]
    fn what_was_wrong_stays_wrong(p in whole(), at in any::<prop::sample::Index>(), flip in 1u8..) {
        prop_assume!(!matches!(p.kind, Kind::UdpUnsummed | Kind::Echo | Kind::Other) && !p.payload.is_empty());
        let mut sent = p.bytes();
        let header = 20 + p.options.len();
        let payload = sent.len() - p.payload.len();
        let at = payload + at.index(p.payload.len());
        sent[at] ^= flip;
        let translated = run(&T, &sent).expect("translated");
        let l4 = &translated[header..];
        let pseudo = [&translated[12..20], &[0, translated[9]], &(l4.len() as u16).to_be_bytes()].concat();
        prop_assert_ne!(naive(&[&pseudo, l4].concat()), [0, 0]);
    }

    #[test]
    fn a_spoofed_source_never_passes(t in translation(), source in any::<u32>(), p in whole(), near in 0u32..64) {
        // Any other, and one that differs in one bit.
        for source in [source, t.peer.to_bits() ^ (1 << (near % 32))] {
            prop_assume!(source != t.peer.to_bits());
            let sent = p.between(Ipv4Addr::from_bits(source), p.destination);
            prop_assert_eq!(run(&t, &sent.bytes()), Err(Refused::Spoofed));
            for f in sent.fragments(3) {
                prop_assert_eq!(run(&t, &f), Err(Refused::Spoofed));
            }
        }
    }

    #[test]
    fn any_bytes_are_translated_or_refused(
        mut bytes in vec(any::<u8>(), 0..300), words in 5u8..16, total in any::<u16>(), protocol in prop::sample::select(&[1u8, 6, 17, 33, 136, 2][..]),
        port in prop::sample::select(&[1900u16, 5353, 3 << 8, 11 << 8][..]), whole in any::<bool>(),
    ) {
        // Half way to something sensible, else nothing passes the first checks.
        if let Some(h) = bytes.get_mut(..60) {
            h[0] = 0x40 | words;
            h[12..16].copy_from_slice(&T.peer.octets());
            h[9] = protocol;
            if whole {
                h[6..8].fill(0);
            }
            let at = usize::from(words) * 4;
            if at < 50 {
                h[20..at].fill(1);
                h[at..at + 2].copy_from_slice(&port.to_be_bytes());
            }
            let len = (usize::from(total) % (bytes.len() + 1)) as u16;
            bytes[2..4].copy_from_slice(&len.to_be_bytes());
        }
        if let Ok(inner) = Inner::parse(&bytes) {
            let before = bytes.clone();
            match T.translate(&mut bytes, &inner) {
                Ok(len) => {
                    prop_assert!(len <= inner.total_len() + GROWTH && len <= bytes.len());
                    prop_assert_eq!(&bytes[12..16], &T.lease.octets());
                }
                Err(_) => prop_assert_eq!(bytes, before),
            }
        }
    }
}

fn plain(kind: Kind) -> Whole {
    Whole {
        source: T.peer,
        destination: THEIR_LEASE,
        kind,
        ports: [40_000, 5201],
        fields: [0, 0, 7, 64],
        options: vec![],
        payload: vec![0x5a; 40],
    }
}

#[test]
fn groups_and_everybody_stay_and_the_directed_broadcast_becomes_ours() {
    let off = Translation { broadcast: None, ..T };
    for (to, on, without) in [
        ([224, 0, 0, 251], Ok([224, 0, 0, 251]), Err(Refused::Multicast)),
        ([239, 255, 255, 250], Ok([239, 255, 255, 250]), Err(Refused::Multicast)),
        ([255; 4], Ok([255; 4]), Err(Refused::Multicast)),
        ([172, 31, 255, 255], Ok([10, 99, 255, 255]), Ok(T.own.octets())),
        ([172, 31, 255, 254], Ok(T.own.octets()), Ok(T.own.octets())),
        ([240, 0, 0, 1], Ok(T.own.octets()), Ok(T.own.octets())),
        ([0; 4], Ok(T.own.octets()), Ok(T.own.octets())),
        ([127, 0, 0, 1], Ok(T.own.octets()), Ok(T.own.octets())),
    ] {
        for kind in KINDS {
            let p = plain(kind);
            let sent = p.between(T.peer, to.into()).bytes();
            let expected = |to: Result<[u8; 4], Refused>| to.map(|to| p.between(T.lease, to.into()).bytes());
            assert_eq!(run(&T, &sent), expected(on), "{to:?}");
            assert_eq!(run(&off, &sent), expected(without), "{to:?}");
        }
    }
}

#[test]
fn a_computed_zero_is_0xffff_for_udp_and_zero_for_tcp() {
    for (kind, at, zero) in [(Kind::Udp, 26, [0xff, 0xff]), (Kind::UdpLite, 26, [0xff, 0xff]), (Kind::Tcp, 36, [0, 0])]
    {
        let mut p = plain(kind);
        p.payload = vec![0, 0];
        // The payload that makes the checksum zero after the translation is the checksum that is there without.
        let after = p.between(T.lease, T.own).bytes();
        p.payload = after[at..at + 2].to_vec();
        let expected = p.between(T.lease, T.own).bytes();
        assert_eq!(expected[at..at + 2], zero, "{kind:?}");
        let sent = p.bytes();
        assert_eq!(run(&T, &sent), Ok(expected.clone()));
        assert_eq!(run(&inverse(&T, THEIR_LEASE), &expected), Ok(sent));
    }
}

#[test]
fn routes_chosen_by_the_sender_redirects_and_packets_without_their_checksum_are_refused() {
    for options in [
        vec![131, 7, 4, 1, 2, 3, 4, 0],
        vec![137, 7, 4, 1, 2, 3, 4, 0],
        vec![1, 1, 131, 3, 4, 0, 0, 0],
        vec![7, 1, 0, 0],
        vec![7, 0, 0, 0],
        vec![7, 5, 0, 0],
        vec![1, 1, 1, 7],
    ] {
        let p = Whole { options, ..plain(Kind::Tcp) };
        assert_eq!(run(&T, &p.bytes()), Err(Refused::Malformed), "{:?}", p.options);
    }
    let after_the_end = Whole { options: vec![0, 131, 7, 4], ..plain(Kind::Tcp) };
    assert!(run(&T, &after_the_end.bytes()).is_ok());

    let redirect = error(&plain(Kind::Echo), 5, &plain(Kind::Udp).between(THEIR_LEASE, T.peer).bytes());
    assert_eq!(run(&T, &redirect), Err(Refused::Malformed));

    for (kind, len) in [(Kind::Tcp, 18), (Kind::Udp, 8), (Kind::UdpLite, 8), (Kind::Dccp, 8)] {
        let p = plain(kind);
        let l4 = p.transport();
        for cut in 0..20 {
            let refused = run(&T, &ip(&p, 0, &l4[..cut])) == Err(Refused::Malformed);
            assert_eq!(refused, cut < len, "{kind:?} {cut}");
        }
    }
    let tiny = plain(Kind::Tcp).fragments(1);
    assert_eq!(run(&T, &tiny[0]), Err(Refused::Malformed));
    assert!(run(&T, &tiny[1]).is_ok());
    let six = Inner::parse(&Packet::tcp6().bytes()).expect("a packet");
    assert_eq!(T.translate(&mut [0; 200], &six), Err(Refused::Malformed));
}

#[test]
fn a_checksum_in_the_padding_of_a_quote_stays() {
    // The quoted packet ends before its checksum; what follows is padding.
    let p = plain(Kind::Udp);
    let quoted = |a, b| [&ip(&p.between(a, b), 0, &[1, 2, 3, 4])[..], &[0x77; 30]].concat();
    let sent = error(&p, 3, &quoted(THEIR_LEASE, T.peer));
    assert_eq!(run(&T, &sent), Ok(error(&p.between(T.lease, T.own), 3, &quoted(T.own, T.lease))));
}
