use super::super::testing::{Packet, assert_checksums, segments, stream, super_packet};
use super::*;
use proptest::prelude::*;

/// Pushes all packets; the groups as lists of packet numbers.
fn group(packets: &[Vec<u8>]) -> (Coalescer, Vec<Vec<u32>>) {
    let mut c = Coalescer::new(packets.len(), true);
    for (i, p) in packets.iter().enumerate() {
        assert!(c.push(i as u32, p));
    }
    let groups = c.groups().map(|g| c.members(g).collect()).collect();
    (c, groups)
}

/// What is written to TUN for a group.
fn written(c: &Coalescer, g: GroupId, packets: &[Vec<u8>]) -> Vec<u8> {
    let mut members = c.members(g).map(|i| &packets[i as usize]);
    let mut out = vec![0xee; VNET_LEN];
    out.extend(members.next().expect("a member"));
    c.finish(g, &mut out);
    members.for_each(|p| out.extend(&p[c.header_len(g)..]));
    out
}

/// The bytes of an IPv4 packet with DF without what carries no meaning then: ID, and the header checksum.
fn meaning(mut p: Vec<u8>) -> Vec<u8> {
    if p[0] >> 4 == 4 && p[6] & 0x40 != 0 {
        p[4..6].fill(0);
        p[10..12].fill(0);
    }
    p
}

/// Whether two packets become one group.
fn joins(a: &Packet, b: &Packet) -> bool {
    group(&[a.bytes(), b.bytes()]).1 == [[0, 1]]
}

fn kinds() -> [Packet; 4] {
    [Packet::tcp4(), Packet::tcp6(), Packet::tcp4().udp(), Packet::tcp6().udp()]
}

#[test]
fn packets_that_continue_each_other_become_one_super_packet() {
    for p in kinds() {
        let packets: Vec<_> = (0..4).map(|i| p.after(i, 100)).collect();
        let whole = p.with(|p| p.payload = vec![0x5a; 400]);
        let bytes: Vec<_> = packets.iter().map(Packet::bytes).collect();
        let (c, groups) = group(&bytes);
        assert_eq!(groups, [[0, 1, 2, 3]]);
        let g = c.groups().next().expect("group");
        assert_eq!((c.count(g), c.header_len(g)), (4, p.header_len()));
        assert_eq!(written(&c, g, &bytes), super_packet(&whole, 100));
    }
}

/// A name for it, and a change to a packet.
type Change = (&'static str, fn(&mut Packet));

#[test]
fn a_difference_in_any_common_field_keeps_packets_apart() {
    let common: [Change; 7] = [
        ("tos", |p| p.tos ^= 1),
        ("ttl", |p| p.ttl ^= 1),
        ("source port", |p| p.ports[0] ^= 1),
        ("destination port", |p| p.ports[1] ^= 1),
        ("destination", |p| p.destination = p.source),
        ("larger", |p| p.payload.push(0)),
        ("empty", |p| p.payload.clear()),
    ];
    let tcp: [Change; 8] = [
        ("ack", |p| p.ack += 1),
        ("window", |p| p.window += 1),
        ("options", |p| p.options[11] += 1),
        ("option length", |p| p.options.truncate(8)),
        ("a gap", |p| p.seq += 1),
        ("an overlap", |p| p.seq -= 1),
        ("fin", |p| p.flags |= 1),
        ("ece", |p| p.flags |= 0x40),
    ];
    for p in kinds() {
        let next = p.after(1, 100);
        assert!(joins(&p, &next));
        assert!(joins(&p, &next.with(|p| p.payload.truncate(7))), "a short last one");
        for (what, change) in common.iter().chain(if p.tcp { &tcp[..] } else { &[] }) {
            assert!(!joins(&p, &next.with(change)), "{what} of {p:?}");
        }
        if p.source.is_ipv4() {
            assert!(joins(&p, &next.with(|p| p.id = 0)), "the ID has no meaning with DF");
            assert!(!joins(&p, &next.with(|p| p.df = false)), "DF differs");
            let p = p.with(|p| p.df = false);
            assert!(joins(&p, &next.with(|p| p.df = false)));
            assert!(!joins(&p, &next.with(|p| (p.df, p.id) = (false, 7))), "ID does not count up");
            assert!(!joins(&p.with(|p| p.ip_options = vec![1; 4]), &next.with(|p| p.ip_options = vec![1; 4])));
        } else {
            assert!(!joins(&p, &next.with(|p| p.label ^= 1)), "flow label");
            let extended = |p: &mut Packet| p.ip_options = vec![if p.tcp { 6 } else { 17 }, 0, 1, 4, 0, 0, 0, 0];
            assert!(!joins(&p.with(extended), &next.with(extended)), "extension headers");
        }
    }
}

#[test]
fn a_wrong_checksum_is_not_made_right() {
    for p in kinds() {
        let (a, b) = (p.bytes(), p.after(1, 100).bytes());
        for (broken, at) in (0..2).flat_map(|i| [10, 11, p.transport(), a.len() - 1].map(|at| (i, at))) {
            let mut packets = [a.clone(), b.clone()];
            packets[broken][at] ^= 0x10;
            let (c, groups) = group(&packets);
            assert_eq!(groups, [[0], [1]], "byte {at} of {p:?}");
            for (g, p) in c.groups().zip(&packets) {
                assert_eq!(written(&c, g, &packets)[VNET_LEN..], p[..]);
            }
        }
    }
}

#[test]
fn udp_without_a_checksum_is_left_alone() {
    let p = Packet::tcp4().udp();
    let packets = [0, 1].map(|i| {
        let mut b = p.after(i, 100).bytes();
        b[26..28].fill(0);
        b
    });
    assert_eq!(group(&packets).1, [[0], [1]]);
}

#[test]
fn nothing_follows_a_push_or_a_short_segment() {
    let p = Packet::tcp4();
    let pushed = |i| p.after(i, 100).with(|p| p.flags |= 8).bytes();
    let next = |i| p.after(i, 100).bytes();
    assert_eq!(group(&[next(0), pushed(1), next(2), next(3)]).1, [[0, 1], [2, 3]]);
    assert_eq!(group(&[pushed(0), next(1)]).1, [[0], [1]]);
    let short = p.after(1, 100).with(|p| p.payload.truncate(50));
    let then = short.after(1, 50).with(|p| p.payload.truncate(50));
    assert_eq!(group(&[next(0), short.bytes(), then.bytes()]).1, [vec![0, 1], vec![2]]);
    let (c, _) = group(&[next(0), pushed(1)]);
    let out = written(&c, GroupId(0), &[next(0), pushed(1)]);
    assert_eq!(out[VNET_LEN + 33], 0x18, "the super-packet pushes if its last segment does");
}

#[test]
fn a_packet_that_cannot_be_coalesced_closes_its_flow_only() {
    let p = Packet::tcp4();
    let other = p.with(|p| p.ports[0] += 1);
    let ack = p.after(2, 100).with(|p| p.payload.clear());
    let packets = [p.clone(), other.clone(), p.after(1, 100), ack, other.after(1, 100), p.after(2, 100)];
    assert_eq!(group(&packets.map(|p| p.bytes())).1, [vec![0, 2], vec![1, 4], vec![3], vec![5]]);
}

#[test]
fn a_fragment_closes_every_flow_because_its_own_is_not_known() {
    let p = Packet::tcp4();
    let mut fragment = p.after(1, 100).bytes();
    fragment[7] = 1;
    assert_eq!(group(&[p.bytes(), fragment, p.after(1, 100).bytes()]).1, [[0], [1], [2]]);
    let mut icmp = p.bytes();
    icmp[9] = 1;
    assert_eq!(group(&[p.bytes(), icmp, p.after(1, 100).bytes()]).1, [vec![0, 2], vec![1]]);
}

#[test]
fn limits_of_length_and_number_start_a_new_group() {
    let p = Packet::tcp4().udp();
    let packets: Vec<_> = (0..130).map(|i| p.after(i, 0).bytes()).collect();
    let lens: Vec<_> = group(&packets).1.iter().map(Vec::len).collect();
    assert_eq!(lens, [MAX_DATAGRAMS, MAX_DATAGRAMS, 2]);
    let p = Packet::tcp6().with(|p| p.payload = vec![1; 13_000]);
    let packets: Vec<_> = (0..8).map(|i| p.after(i, 13_000).bytes()).collect();
    let (c, groups) = group(&packets);
    assert_eq!(groups, [vec![0, 1, 2, 3, 4], vec![5, 6, 7]]);
    assert!(written(&c, GroupId(0), &packets).len() <= VNET_LEN + MAX_PACKET);
    let p = Packet::tcp6().with(|p| p.payload = vec![1]);
    let packets: Vec<_> = (0..MAX_SEGMENTS + 1).map(|i| p.after(i, 1).bytes()).collect();
    assert_eq!(group(&packets).1.len(), 2);
}

#[test]
fn capacity_and_switches_hold() {
    let p = Packet::tcp4();
    let mut c = Coalescer::new(2, false);
    for turn in 0..3 {
        c.set_enabled(turn != 1);
        assert!(c.push(5, &p.bytes()) && c.push(9, &p.after(1, 100).bytes()));
        assert!(!c.push(11, &p.after(2, 100).bytes()));
        let members: Vec<Vec<u32>> = c.groups().map(|g| c.members(g).collect()).collect();
        assert_eq!(members, if turn == 1 { vec![vec![5], vec![9]] } else { vec![vec![5, 9]] });
        c.clear();
        assert_eq!(c.groups().count(), 0);
    }
    let udp = p.udp();
    let both = |c: &mut Coalescer| {
        assert!(c.push(0, &udp.bytes()) && c.push(1, &udp.after(1, 100).bytes()));
        let n = c.groups().count();
        c.clear();
        n
    };
    assert_eq!(both(&mut c), 2, "the device takes no USO");
    c.set_udp(true);
    assert_eq!(both(&mut c), 1);
}

/// What comes next in a flow.
#[derive(Clone, Debug)]
enum Step {
    Data(usize),
    Push(usize),
    Ack,
    Gap(usize),
    OtherTos(usize),
    Forged(usize),
    Fragment(usize),
    RandomId(usize, u16),
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![4 => Just(1000usize), 1 => 1usize..1500];
    prop_oneof![
        12 => len.clone().prop_map(Step::Data),
        2 => len.clone().prop_map(Step::Push),
        1 => Just(Step::Ack),
        1 => len.clone().prop_map(Step::Gap),
        1 => len.clone().prop_map(Step::OtherTos),
        1 => len.clone().prop_map(Step::Forged),
        1 => len.clone().prop_map(Step::Fragment),
        1 => (len, any::<u16>()).prop_map(|(n, id)| Step::RandomId(n, id)),
    ]
}

/// The next packet of `flow`, and whether its checksum is right.
fn advance(flow: &mut Packet, step: &Step) -> (Vec<u8>, bool) {
    let (Step::Data(n)
    | Step::Push(n)
    | Step::Gap(n)
    | Step::OtherTos(n)
    | Step::Forged(n)
    | Step::Fragment(n)
    | Step::RandomId(n, _)) = *step
    else {
        return (flow.with(|p| p.payload.clear()).bytes(), true);
    };
    let mut p = flow.with(|p| p.payload = (0..n).map(|i| (i * 7) as u8).collect());
    let mut good = true;
    match step {
        Step::Push(_) if p.tcp => p.flags |= 8,
        Step::Gap(_) => p.seq = p.seq.wrapping_add(1),
        Step::OtherTos(_) => p.tos ^= 2,
        Step::RandomId(_, id) => p.id = *id,
        _ => {}
    }
    *flow = Packet { payload: vec![], flags: flow.flags, tos: flow.tos, id: flow.id, ..p.after(1, n) };
    flow.id = flow.id.wrapping_add(1);
    let mut bytes = p.bytes();
    match step {
        Step::Forged(_) => {
            *bytes.last_mut().expect("payload") ^= 1;
            good = false;
        }
        Step::Fragment(_) if p.source.is_ipv4() => {
            bytes[7] = 3;
            good = false;
        }
        _ => {}
    }
    (bytes, good)
}

proptest! {
    #[test]
    fn taking_groups_apart_gives_every_packet_back_in_its_flows_order(
        mut flows in proptest::collection::vec(stream(), 1..5),
        steps in proptest::collection::vec((any::<prop::sample::Index>(), 1usize..6, step()), 1..60),
    ) {
        let mut packets = Vec::new();
        let mut origin = Vec::new();
        for (flow, times, step) in &steps {
            let flow = flow.index(flows.len());
            for _ in 0..*times {
                packets.push(advance(&mut flows[flow], step));
                origin.push(flow);
            }
        }
        let (packets, good): (Vec<_>, Vec<_>) = packets.into_iter().unzip();
        let (c, groups) = group(&packets);
        let mut seen = vec![None; flows.len()];
        let mut all = Vec::new();
        for (g, members) in c.groups().zip(&groups) {
            let made = segments(written(&c, g, &packets));
            prop_assert_eq!(made.len(), members.len());
            prop_assert_eq!(c.count(g), members.len());
            for (made, &i) in made.into_iter().zip(members) {
                let flow = &mut seen[origin[i as usize]];
                prop_assert!(*flow < Some(i), "order within a flow");
                *flow = Some(i);
                all.push(i);
                if good[i as usize] {
                    let of = &flows[origin[i as usize]];
                    assert_checksums(&made, of.transport(), of.tcp);
                }
                if members.len() == 1 {
                    prop_assert_eq!(&made, &packets[i as usize]);
                }
                prop_assert_eq!(meaning(made), meaning(packets[i as usize].clone()));
            }
        }
        all.sort_unstable();
        prop_assert_eq!(all, (0..packets.len() as u32).collect::<Vec<_>>());
    }

    #[test]
    fn putting_segments_together_gives_the_super_packet_back(
        p in stream(), gso in 1usize..3000, n in 2usize..60_000, push in any::<bool>(),
    ) {
        let most = if p.tcp { MAX_SEGMENTS } else { MAX_DATAGRAMS };
        let gso = gso.max(n.div_ceil(most)).min(n - 1);
        let whole = p.with(|p| {
            p.payload = (0..n).map(|i| (i * 13) as u8).collect();
            p.flags |= if push && p.tcp { 8 } else { 0 };
        });
        let buf = super_packet(&whole, gso);
        let packets = segments(buf.clone());
        let (c, groups) = group(&packets);
        // A datagram whose checksum comes out as zero is sent as 0xffff, which verifies.
        prop_assert_eq!(groups.len(), 1);
        prop_assert_eq!(written(&c, GroupId(0), &packets), buf);
    }

    #[test]
    fn any_bytes_are_grouped_and_come_back_unchanged(
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 1..20), sane in any::<bool>(),
    ) {
        let packets: Vec<_> = packets.into_iter().map(|mut p| {
            if sane && let Some(h) = p.get_mut(..10) {
                h[0] = 0x45;
                (h[2], h[6], h[7], h[9]) = (0, 0, 0, if h[9] & 1 == 0 { 6 } else { 17 });
            }
            let len = p.len() as u8;
            if sane && len > 9 { p[3] = len; }
            p
        }).collect();
        let (c, _) = group(&packets);
        for g in c.groups() {
            let i = c.members(g).next().expect("member") as usize;
            prop_assert_eq!(&written(&c, g, &packets)[VNET_LEN..], &packets[i][..]);
        }
    }
}
