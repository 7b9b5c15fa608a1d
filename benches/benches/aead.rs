//! The ciphers: every back end, sealing and opening, by packet size and batch. At the end a table of ratios to
//! the best library, measured in turns.

use criterion::{BenchmarkId, Criterion, Throughput};
use dataplane::crypto::{Backend, Cipher, Job, Key, TAG_LEN, open, seal};
use std::hint::black_box;
use std::time::Instant;

/// Packet sizes in bytes: small, middling, and a full one.
const SIZES: [usize; 3] = [64, 256, 1420];
/// Jobs in one call.
const BATCHES: [usize; 2] = [1, 32];
/// Jobs in one call in the table: also few, and what a super-packet has.
const TABLE: [usize; 8] = [1, 2, 4, 8, 12, 16, 32, 45];
/// Turns of all back ends, for medians.
const TURNS: usize = 31;

fn main() {
    let mut c = ipop_benches::criterion();
    for (name, key) in cast() {
        each(&mut c, name, &key, "seal", |key, _, bufs| {
            let jobs = bufs.iter_mut().enumerate().map(|(i, b)| Job::new(key, i as u64, b));
            seal(&mut jobs.collect::<Vec<_>>());
        });
        // Opening destroys its input: putting that back is a copy in the first-level cache, part of the figure.
        each(&mut c, name, &key, "open", |key, sealed, bufs| {
            for (b, s) in bufs.iter_mut().zip(sealed) {
                b.copy_from_slice(s);
            }
            let jobs = bufs.iter_mut().enumerate().map(|(i, b)| Job::new(key, i as u64, b));
            let mut jobs = jobs.collect::<Vec<_>>();
            open(&mut jobs);
            assert!(jobs.iter().all(|j| j.ok), "the tag is right");
        });
    }
    c.final_summary();
    // Not with a filter, `--list`, `--test` or a baseline.
    if std::env::args().skip(1).all(|a| a == "--bench" || a == "ratios") {
        ratios();
    }
}

/// Every back end of ChaCha20-Poly1305 that this CPU has, and AES-256-GCM.
fn cast() -> Vec<(&'static str, Key)> {
    let chacha = Backend::available().map(|b| (b.name(), b.key(&[7; 32])));
    chacha.chain([(Cipher::Aes256Gcm.name(), Key::aes256gcm(&[7; 32]))]).collect()
}

fn each(c: &mut Criterion, name: &str, key: &Key, what: &str, work: impl Fn(&Key, &[Vec<u8>], &mut [Vec<u8>])) {
    let mut group = c.benchmark_group(format!("aead/{what}/{name}"));
    for size in SIZES {
        for batch in BATCHES {
            let mut sealed = vec![vec![0x5a; size + TAG_LEN]; batch];
            seal(&mut sealed.iter_mut().enumerate().map(|(i, b)| Job::new(key, i as u64, b)).collect::<Vec<_>>());
            let mut bufs = sealed.clone();
            group.throughput(Throughput::Bytes((size * batch) as u64));
            group.bench_function(BenchmarkId::from_parameter(format!("{size} B x {batch}")), |b| {
                b.iter(|| work(key, black_box(&sealed), black_box(&mut bufs)));
            });
        }
    }
}

/// Datagrams back to back, as the pipeline has them, sealed by every back end in turn.
#[allow(clippy::print_stdout)] // A table is what it is for.
fn ratios() {
    let cast = cast();
    println!("\nSealing, GB/s and times the best library (medians of {TURNS} turns)\n");
    println!("| bytes x packets |{}", cast.iter().map(|(n, _)| format!(" {n} |")).collect::<String>());
    println!("|---|{}", "---:|".repeat(cast.len()));
    for size in SIZES {
        for batch in TABLE {
            let stride = size + 16 + TAG_LEN;
            let mut arena = vec![0x5a; stride * batch];
            let calls = 1 + 400_000 / (stride * batch);
            let mut times = vec![Vec::new(); cast.len()];
            for _ in 0..TURNS {
                for ((_, key), times) in cast.iter().zip(&mut times) {
                    let start = Instant::now();
                    for _ in 0..calls {
                        let datagrams = arena.chunks_exact_mut(stride).enumerate();
                        let jobs = datagrams.map(|(i, d)| Job::new(key, i as u64, &mut d[16..]));
                        seal(black_box(&mut jobs.collect::<Vec<_>>()));
                    }
                    times.push(start.elapsed().as_secs_f64() / calls as f64);
                }
            }
            let medians: Vec<f64> = times
                .iter_mut()
                .map(|t| {
                    t.sort_by(f64::total_cmp);
                    t[t.len() / 2]
                })
                .collect();
            let libraries = [Backend::AwsLc, Backend::Portable].map(Backend::name);
            let best = cast.iter().zip(&medians).filter(|((n, _), _)| libraries.contains(n)).map(|(_, t)| *t);
            let best = best.fold(f64::INFINITY, f64::min);
            let cell = |t: &f64| format!(" {:.2} ({:.2}) |", (size * batch) as f64 / t / 1e9, best / t);
            println!("| {size} x {batch} |{}", medians.iter().map(cell).collect::<String>());
        }
    }
}
