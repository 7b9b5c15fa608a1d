//! Tables and windows: routes by number of prefixes, and the replay window.

use criterion::{Criterion, Throughput};
use dataplane::table::{Prefix, Routes};
use dataplane::tunnel::ReplayWindow;
use ipop_benches::Noise;
use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;

/// Lookups, or counters, in one iteration.
const BATCH: usize = 4096;

fn main() {
    let mut c = ipop_benches::criterion();
    routes(&mut c);
    leases(&mut c);
    replay(&mut c);
    c.final_summary();
}

/// `n` prefixes as a large network has them: three of four are single hosts, the others subnets. In 10.0.0.0/8,
/// or in fd00::/64 subnets of one site.
fn prefixes(n: usize, v6: bool) -> Vec<Prefix> {
    let mut noise = Noise::new(n as u64);
    let one = |i: usize| {
        let bits = noise.draw();
        let host = !i.is_multiple_of(4);
        let (address, len): (IpAddr, u8) = if v6 {
            let site = 0xfd00_1234_5678_u128 << 80 | u128::from(bits as u16) << 64;
            ((site | u128::from(bits.rotate_left(17))).to_be_bytes().into(), if host { 128 } else { 64 })
        } else {
            ((0x0a00_0000 | bits as u32 & 0x00ff_ffff).to_be_bytes().into(), if host { 32 } else { 24 })
        };
        Prefix::new(address, len).expect("a length that the family has")
    };
    (0..n).map(one).collect()
}

fn routes(c: &mut Criterion) {
    let mut group = c.benchmark_group("routes");
    for n in [10, 1_000, 100_000] {
        // Half of the prefixes are of each family; values are shared pointers, as in the engine.
        let mut routes = Routes::new();
        for p in prefixes(n / 2, false).into_iter().chain(prefixes(n / 2, true)) {
            routes.insert(p, Arc::new(p));
        }
        for (name, v6) in [("v4", false), ("v6", true)] {
            let known = prefixes(n / 2, v6);
            let mut noise = Noise::new(3);
            let pick = |_| known[(noise.draw() % known.len() as u64) as usize].address();
            let addresses: Vec<IpAddr> = (0..BATCH).map(pick).collect();
            group.throughput(Throughput::Elements(BATCH as u64));
            group.bench_function(format!("{name} hit in {n}"), |b| {
                b.iter(|| {
                    let hits = black_box(&addresses).iter().filter(|a| routes.lookup(**a).is_some()).count();
                    assert_eq!(hits, BATCH, "all are there");
                });
            });
        }
        group.throughput(Throughput::Elements(n as u64));
        group.bench_function(format!("snapshot of {n}"), |b| b.iter_with_large_drop(|| black_box(&routes).clone()));
    }
}

/// Friends in one subnet: a lease and a ULA each. What a friend more costs a packet.
fn leases(c: &mut Criterion) {
    let mut group = c.benchmark_group("leases");
    for n in [10u32, 2_000, 60_000] {
        let mut noise = Noise::new(7);
        let mut routes = Routes::new();
        let mut known: Vec<IpAddr> = Vec::new();
        for i in 0..n {
            let lease = IpAddr::from((0xac1f_0000 + 256 + i).to_be_bytes());
            let ula = 0xfd00_1234_5678_u128 << 80 | u128::from(noise.draw());
            let friend = Arc::new(i);
            routes.insert(Prefix::new(lease, 32).expect("a prefix"), friend.clone());
            routes.insert(Prefix::new(ula.to_be_bytes().into(), 128).expect("a prefix"), friend);
            known.push(lease);
        }
        let addresses: Vec<IpAddr> = (0..BATCH).map(|_| known[(noise.draw() % u64::from(n)) as usize]).collect();
        group.throughput(Throughput::Elements(BATCH as u64));
        group.bench_function(format!("lookup in {n}"), |b| {
            b.iter(|| {
                let hits = black_box(&addresses).iter().filter(|a| routes.lookup(**a).is_some()).count();
                assert_eq!(hits, BATCH, "all are there");
            });
        });
    }
}

fn replay(c: &mut Criterion) {
    let mut group = c.benchmark_group("replay window");
    group.throughput(Throughput::Elements(BATCH as u64));
    let in_order: Vec<u64> = (0..BATCH as u64).collect();
    let mut random = in_order.clone();
    Noise::new(5).shuffle(&mut random);
    for (name, order) in [("in order", in_order), ("random in the window", random)] {
        let (mut window, mut base) = (ReplayWindow::default(), 0);
        group.bench_function(name, |b| {
            b.iter(|| {
                let good = black_box(&order).iter().filter(|c| window.check_and_update(base + **c)).count();
                base += BATCH as u64;
                assert_eq!(good, BATCH, "all are fresh");
            });
        });
    }
    let mut window = ReplayWindow::default();
    assert!((0..BATCH as u64).all(|c| window.check_and_update(c)));
    group.bench_function("replayed", |b| {
        b.iter(|| (0..BATCH as u64).filter(|c| window.check(black_box(*c))).count());
    });
}
