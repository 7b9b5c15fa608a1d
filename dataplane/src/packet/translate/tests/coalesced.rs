//! Translated packets as the coalescer finds them.

use super::*;
use crate::packet::testing::{segments, stream, super_packet};
use crate::packet::{Coalescer, virtio};

/// The super-packets that `packets` become.
fn coalesced(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut c = Coalescer::new(packets.len(), true);
    for (i, p) in packets.iter().enumerate() {
        assert!(c.push(i as u32, p), "there is room");
    }
    let one = |g| {
        let mut members = c.members(g).map(|i| &packets[i as usize]);
        let mut out = vec![0; virtio::VNET_LEN];
        out.extend(members.next().expect("a member"));
        c.finish(g, &mut out);
        members.for_each(|p| out.extend(&p[c.header_len(g)..]));
        out
    };
    c.groups().map(one).collect()
}

proptest! {
    #[test]
    fn what_was_translated_is_put_together_as_if_it_had_been_sent_with_our_addresses(
        first in stream(), t in translation(), gso in 1usize..1400, n in 1usize..20_000, psh in any::<bool>(),
    ) {
        let gso = gso.max(n / 1000 + 1);
        let [to, from] = [THEIR_LEASE, t.peer].map(IpAddr::V4);
        let whole = |source, destination| first.with(|p| {
            (p.source, p.destination) = (source, destination);
            p.ports = p.ports.map(|p| p | 1 << 15);
            p.payload = (0..n).map(|i| i as u8).collect();
            p.flags |= if p.tcp && psh { 8 } else { 0 };
        });
        let sent = segments(super_packet(&whole(from, to), gso));
        let translated: Vec<_> = sent.iter().map(|p| run(&t, p).expect("translated")).collect();
        let direct = segments(super_packet(&whole(t.lease.into(), t.own.into()), gso));
        prop_assert_eq!(&translated, &direct);
        let written = coalesced(&translated);
        prop_assert_eq!(written.len(), coalesced(&sent).len(), "not fewer are put together");
        // The one freedom is the ID of packets with DF.
        let meaning = |p: &Vec<u8>| {
            let mut p = p.clone();
            if p[6] & 0x40 != 0 {
                p[4..6].fill(0);
                p[10..12].fill(0);
            }
            p
        };
        let again: Vec<_> = written.into_iter().flat_map(segments).collect();
        prop_assert_eq!(again.iter().map(meaning).collect::<Vec<_>>(), translated.iter().map(meaning).collect::<Vec<_>>());
    }
}
