//! Work on packets that is neither cipher nor kernel: split, translate, coalesce, checksum.

use criterion::{BenchmarkId, Criterion, Throughput};
use dataplane::Translation;
use dataplane::packet::checksum::{Sum, update};
use dataplane::packet::virtio::VNET_LEN;
use dataplane::packet::{Coalescer, Inner, Split};
use ipop_benches::Noise;
use ipop_benches::packets::{Flow, MTU, SEGMENTS, TRANSLATION};
use std::hint::black_box;

fn main() {
    let mut c = ipop_benches::criterion();
    split(&mut c);
    translate(&mut c);
    coalesce(&mut c);
    checksum(&mut c);
    c.final_summary();
}

fn split(c: &mut Criterion) {
    let mut group = c.benchmark_group("split");
    for flow in [Flow::Tcp4, Flow::Tcp6, Flow::Udp4] {
        let mut read = flow.read(SEGMENTS, flow.full(), 40_000);
        let mut out = vec![0; SEGMENTS * MTU];
        group.throughput(Throughput::ElementsAndBytes { elements: SEGMENTS as u64, bytes: read.len() as u64 });
        group.bench_function(format!("{} x {SEGMENTS}", flow.name()), |b| {
            b.iter(|| {
                let split = Split::new(black_box(&mut read)).expect("a packet");
                for (i, out) in out.chunks_exact_mut(MTU).enumerate() {
                    split.write(i, out);
                }
                black_box(&mut out);
            });
        });
    }
}

/// There and back again, so that each is the other's input.
fn translate(c: &mut Criterion) {
    let mut group = c.benchmark_group("translate");
    let there = TRANSLATION;
    let back = Translation { peer: there.lease, lease: there.peer, own: [10, 0, 0, 2].into(), broadcast: None };
    for (name, flow, payload) in [
        ("tcp4 1420 B", Flow::Tcp4, Flow::Tcp4.full()),
        ("udp4 1420 B", Flow::Udp4, Flow::Udp4.full()),
        ("udp4 64 B", Flow::Udp4, 64),
    ] {
        let mut packet = flow.packets(1, payload, 40_000).remove(0).split_off(VNET_LEN);
        let before = packet.clone();
        let inner = Inner::parse(&packet).expect("a packet");
        let len = there.translate(&mut packet, &inner).expect("translated");
        let translated = Inner::parse(&packet).expect("a packet");
        assert_eq!(back.translate(&mut packet, &translated), Ok(len));
        assert_eq!(packet, before);
        group.throughput(Throughput::Elements(2));
        group.bench_function(name, |b| {
            b.iter(|| {
                let packet = black_box(&mut packet[..]);
                let ok = there.translate(packet, black_box(&inner)).is_ok();
                ok & back.translate(black_box(packet), black_box(&translated)).is_ok()
            });
        });
    }
}

fn coalesce(c: &mut Criterion) {
    let mut group = c.benchmark_group("coalesce");
    let bulk = |flow: Flow| flow.packets(SEGMENTS, flow.full(), 40_000);
    let flows = (0..64).flat_map(|port| Flow::Udp4.packets(1, 64, 40_000 + port)).collect();
    for (name, mut packets, groups) in [
        ("tcp4 x 45", bulk(Flow::Tcp4), 1),
        ("tcp6 x 45", bulk(Flow::Tcp6), 1),
        ("udp4 64 B x 64, one flow", Flow::Udp4.packets(64, 64, 40_000), 1),
        ("udp4 64 B x 64, each its own flow", flows, 64),
    ] {
        let mut coalescer = Coalescer::new(1024, true);
        let bytes: usize = packets.iter().map(|p| p.len() - VNET_LEN).sum();
        let fresh = packets[0].clone();
        group.throughput(Throughput::ElementsAndBytes { elements: packets.len() as u64, bytes: bytes as u64 });
        group.bench_function(name, |b| {
            b.iter(|| {
                // Finishing a group rewrites the headers of its first packet.
                packets[0][..VNET_LEN + 80].copy_from_slice(&fresh[..VNET_LEN + 80]);
                coalescer.clear();
                for (i, p) in black_box(&packets).iter().enumerate() {
                    assert!(coalescer.push(i as u32, &p[VNET_LEN..]), "there is room");
                }
                let mut made = 0;
                for g in coalescer.groups() {
                    made += 1;
                    let first = coalescer.members(g).next().map_or(0, |i| i as usize);
                    coalescer.finish(g, &mut packets[first]);
                }
                assert_eq!(made, groups, "super-packets");
            });
        });
    }
}

fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for size in [20, 64, 256, MTU, 65_535] {
        let data = Noise::new(1).bytes(size);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{size} B")), |b| {
            b.iter(|| Sum::ZERO.add_bytes(black_box(&data)).checksum());
        });
    }
    group.throughput(Throughput::Elements(1));
    group.bench_function("update an address", |b| {
        b.iter(|| update(black_box([1, 2]), black_box(&[10, 0, 0, 1]), black_box(&[10, 9, 9, 9])));
    });
}
