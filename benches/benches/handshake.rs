//! Handshakes a second, on one core. Cookies and queues are not part of it.

use criterion::Throughput;
use dataplane::crypto::Backend;
use dataplane::tunnel::MacVerifier;
use ipop_benches::nodes::Pair;
use std::hint::black_box;
use std::time::{Duration, Instant};

fn main() {
    let mut c = ipop_benches::criterion();
    let mut group = c.benchmark_group("handshake");
    group.throughput(Throughput::Elements(1));
    let mut pair = Pair::new(Backend::detect());
    group.bench_function("both sides", |b| {
        b.iter(|| {
            let initiation = pair.initiation();
            let response = pair.response(&initiation);
            pair.confirmation(&response)
        });
    });
    group.bench_function("responder", |b| {
        b.iter_custom(|n| {
            let mut spent = Duration::ZERO;
            for _ in 0..n {
                let initiation = pair.initiation();
                let start = Instant::now();
                let response = pair.response(black_box(&initiation));
                spent += start.elapsed();
                pair.confirmation(&response);
            }
            spent
        });
    });
    // What junk costs a shard: it has the right shape and a wrong MAC1, and gets no further.
    let mut junk = pair.initiation();
    junk[9] ^= 1;
    let verifier = MacVerifier::new(&pair.a.peer.public_key);
    group.bench_function("junk refused by MAC1", |b| b.iter(|| assert!(!verifier.verify_mac1(black_box(&junk)))));
    group.finish();
    c.final_summary();
}
