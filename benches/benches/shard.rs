//! The whole loop without a kernel: what one core could do if system calls cost nothing.
//!
//! The memory driver copies each input into a receive buffer, as the kernel would; that is part of the figure.

use criterion::{Criterion, Throughput};
use dataplane::crypto::Backend;
use dataplane::io::TURN_PACKETS;
use ipop_benches::nodes::{Pair, Station};
use ipop_benches::packets::{Flow, SEGMENTS, TRANSLATION};
use std::time::{Duration, Instant};

/// Super-packets in one turn: as many as [`dataplane::io::TURN_BYTES`] lets in.
const BULK: usize = 4;

fn main() {
    let mut c = ipop_benches::criterion();
    let bulk = |flow: Flow| vec![flow.read(SEGMENTS, flow.full(), 40_000); BULK];
    let small = (0..TURN_PACKETS).map(|i| Flow::Udp4.read(1, 64, 40_000 + i as u16)).collect::<Vec<_>>();
    for (name, reads, packets) in [
        ("tcp4 bulk", bulk(Flow::Tcp4), BULK * SEGMENTS),
        ("tcp6 bulk", bulk(Flow::Tcp6), BULK * SEGMENTS),
        ("udp4 64 B", small, TURN_PACKETS),
    ] {
        let bytes = reads.iter().map(Vec::len).sum::<usize>() as u64;
        let throughput = Throughput::ElementsAndBytes { elements: packets as u64, bytes };
        outbound(&mut c, name, &reads, throughput.clone());
        inbound(&mut c, name, &reads, throughput.clone(), false);
        if !name.starts_with("tcp6") {
            inbound(&mut c, &format!("{name}, translated"), &reads, throughput, true);
        }
    }
    c.final_summary();
}

fn outbound(c: &mut Criterion, name: &str, reads: &[Vec<u8>], throughput: Throughput) {
    let [mut a, _b] = Pair::new(Backend::detect()).stations();
    let mut group = c.benchmark_group("shard/outbound");
    group.throughput(throughput);
    group.bench_function(name, |b| {
        b.iter_custom(|n| time(n, &mut a, |a| a.shard.driver().packets.extend(reads.iter().cloned())));
    });
    assert_eq!(a.drops(), 0);
    assert_eq!(a.count("udp_datagrams_out"), a.count("tun_packets_in"), "every packet was sent");
}

fn inbound(c: &mut Criterion, name: &str, reads: &[Vec<u8>], throughput: Throughput, translated: bool) {
    let [mut a, mut b] = Pair::new(Backend::detect()).stations();
    if translated {
        b.translate(TRANSLATION);
    }
    let mut group = c.benchmark_group("shard/inbound");
    group.throughput(throughput);
    group.bench_function(name, |bench| {
        bench.iter_custom(|n| time(n, &mut b, |b| a.send(reads, b)));
    });
    assert_eq!(b.drops(), 0);
    assert_eq!(b.count("tun_packets_out"), a.count("tun_packets_in"), "every packet arrived");
}

/// The time of `n` turns, without that of getting their input ready.
fn time(n: u64, station: &mut Station, mut prepare: impl FnMut(&mut Station)) -> Duration {
    let mut spent = Duration::ZERO;
    for _ in 0..n {
        prepare(station);
        let start = Instant::now();
        station.turn();
        spent += start.elapsed();
    }
    spent
}
