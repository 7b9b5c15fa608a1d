//! The ciphers: every back end, sealing and opening, by packet size and batch.

use criterion::{BenchmarkId, Criterion, Throughput};
use dataplane::crypto::{Backend, Cipher, Job, Key, TAG_LEN, open, seal};
use std::hint::black_box;

/// Packet sizes in bytes: small, middling, and a full one.
const SIZES: [usize; 3] = [64, 256, 1420];
/// Jobs in one call.
const BATCHES: [usize; 2] = [1, 32];

fn main() {
    let mut c = ipop_benches::criterion();
    let chacha = Backend::ALL.map(|b| (b.name(), b.key(&[7; 32])));
    for (name, key) in chacha.into_iter().chain([(Cipher::Aes256Gcm.name(), Key::aes256gcm(&[7; 32]))]) {
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
