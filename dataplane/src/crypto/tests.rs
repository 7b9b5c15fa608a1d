//! The back ends against published vectors and against each other. `aws-lc` and `portable`, two libraries that know
//! nothing of each other, say what is right.

use super::lanes::{Batch, Packet, tests::all};
use super::*;
use arrayvec::ArrayVec;
use proptest::prelude::*;
use serde_json::Value;

fn vectors(file: &str) -> Value {
    let path = format!("{}/tests/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).expect("a readable file")).expect("JSON")
}

fn hex(v: &Value) -> Vec<u8> {
    let s = v.as_str().expect("a string");
    assert_eq!(s.len() % 2, 0);
    (0..s.len()).step_by(2).map(|i| u8::from_str_radix(&s[i..i + 2], 16).expect("hexadecimal")).collect()
}

/// A vector of this interface's shape: 256-bit key, 96-bit nonce, 128-bit tag.
struct Vector {
    key: [u8; 32],
    nonce: [u8; 12],
    aad: Vec<u8>,
    text: Vec<u8>,
    sealed: Vec<u8>,
    valid: bool,
}

impl Vector {
    fn new(v: &Value, nonce: &str, valid: bool) -> Self {
        Self {
            key: hex(&v["key"]).try_into().expect("32 bytes"),
            nonce: hex(&v[nonce]).try_into().expect("12 bytes"),
            aad: hex(&v["aad"]),
            text: hex(&v["msg"]),
            sealed: [hex(&v["ct"]), hex(&v["tag"])].concat(),
            valid,
        }
    }

    /// By the functions that the batch interface calls for each job or group: no vector has a nonce of its form and
    /// no associated data.
    fn check(&self, what: &str) {
        for backend in [Backend::AwsLc, Backend::Portable] {
            self.check_library(backend, what);
        }
        for lanes in all() {
            for n in [1, 2, lanes.width()] {
                self.check_lanes(lanes, n, what);
            }
        }
    }

    /// The same packet `n` times in a group.
    fn check_lanes(&self, lanes: Lanes, n: usize, what: &str) {
        let what = format!("{n} lanes of {} with {what}", lanes.width());
        let words = std::array::from_fn(|i| u32::from_le_bytes(self.key[4 * i..4 * i + 4].try_into().expect("4")));
        let run = |text: &[u8], tag: [u8; 16], task: Task| {
            let (mut texts, mut tags, mut oks) = (vec![text.to_vec(); n], vec![tag; n], vec![false; n]);
            let mut packets = ArrayVec::new();
            for ((text, tag), ok) in texts.iter_mut().zip(&mut tags).zip(&mut oks) {
                let nonce = batch::words(self.nonce);
                packets.push(Packet { key: &words, nonce, aad: &self.aad, text, from: &[], start: 0, tag, ok });
            }
            let mut all = Batch { packets, groups: [n as u8].into_iter().collect() };
            match task {
                Task::Seal => lanes.seal(&mut all),
                Task::Open => lanes.open(&mut all),
            }
            drop(all);
            assert!(texts.windows(2).all(|w| w[0] == w[1]) && tags.windows(2).all(|w| w[0] == w[1]), "{what}");
            assert!(oks.windows(2).all(|w| w[0] == w[1]), "{what}");
            (texts.remove(0), tags[0], oks[0])
        };
        let (text, tag, ok) = run(&self.text, [0x77; 16], Task::Seal);
        assert!(ok);
        assert_eq!([&text[..], &tag].concat() == self.sealed, self.valid, "{what}");
        let (sealed, tag) = self.sealed.split_last_chunk::<16>().expect("a tag");
        let (text, _, ok) = run(sealed, *tag, Task::Open);
        assert_eq!(ok, self.valid, "{what}");
        if ok {
            assert_eq!(text, self.text, "{what}");
        }
    }

    fn check_library(&self, backend: Backend, what: &str) {
        let key = backend.key(&self.key);
        let mut text = self.text.clone();
        let tag = key.seal(self.nonce, &self.aad, &mut text);
        assert_eq!([&text[..], &tag].concat() == self.sealed, self.valid, "{backend} seals {what}");
        let mut buf = self.sealed.clone();
        assert_eq!(key.open(self.nonce, &self.aad, &mut buf), self.valid, "{backend} opens {what}");
        if self.valid {
            assert_eq!(buf[..self.text.len()], self.text, "{backend} opens {what}");
        }
    }
}

#[test]
fn every_back_end_gives_the_bytes_of_rfc_8439() {
    let file = vectors("rfc8439.json");
    let all = file.as_array().expect("vectors");
    assert_eq!(all.len(), 2);
    for v in all {
        Vector::new(v, "nonce", true).check(&format!("section {}", v["section"]));
    }
}

#[test]
fn every_back_end_agrees_with_wycheproof() {
    let file = vectors("chacha20_poly1305_test.json");
    let (mut checked, mut other) = (0, 0);
    for group in file["testGroups"].as_array().expect("groups") {
        let tests = group["tests"].as_array().expect("tests");
        if (&group["ivSize"], &group["keySize"], &group["tagSize"]) != (&96.into(), &256.into(), &128.into()) {
            // Only nonces of a length that the type of the nonce rules out.
            assert!(tests.iter().all(|t| t["result"] == "invalid"));
            other += tests.len();
            continue;
        }
        for t in tests {
            let v = Vector::new(t, "iv", t["result"] == "valid");
            checked += 1;
            v.check(&format!("case {} ({})", t["tcId"], t["comment"]));
        }
    }
    assert_eq!(Some((checked + other) as u64), file["numberOfTests"].as_u64());
    assert!(checked > 250, "{checked} cases, {other} of other shapes");
}

/// Repeatable bytes.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    (0..len).map(|_| next() as u8).collect()
}

fn raw(seed: u64) -> [u8; 32] {
    noise(32, seed).try_into().expect("32 bytes")
}

/// A secret for every back end that this CPU has.
fn keys(seed: u64) -> Vec<Key> {
    Backend::available().map(|b| b.key(&raw(seed))).collect()
}

/// What both libraries make of `text`: text and tag.
fn sealed(raw: &[u8; 32], counter: u64, text: &[u8]) -> Vec<u8> {
    let [a, b] = [Backend::AwsLc, Backend::Portable].map(|backend| {
        let mut buf = text.to_vec();
        let tag = backend.key(raw).seal(nonce(counter), &[], &mut buf);
        buf.extend(tag);
        buf
    });
    assert_eq!(a, b, "{} bytes with counter {counter}", text.len());
    a
}

/// Some packets under different keys, at an offset in memory, and what they are sealed.
struct Packets {
    align: usize,
    raws: Vec<[u8; 32]>,
    texts: Vec<Vec<u8>>,
    sealed: Vec<Vec<u8>>,
}

impl Packets {
    fn new(align: usize, lens: impl IntoIterator<Item = usize>) -> Self {
        let texts: Vec<Vec<u8>> = lens.into_iter().enumerate().map(|(i, len)| noise(len, i as u64 + 99)).collect();
        let raws: Vec<_> = (0..texts.len()).map(|i| raw(i as u64 % 3)).collect();
        let sealed = texts.iter().enumerate().map(|(i, t)| sealed(&raws[i], Self::counter(i), t)).collect();
        Self { align, raws, texts, sealed }
    }

    fn counter(i: usize) -> u64 {
        (i as u64) << (i % 60)
    }

    /// Buffers at the offset, in each a text and 16 more bytes, with nothing of theirs before and behind.
    fn buffers(&self, of: &[Vec<u8>]) -> Vec<Vec<u8>> {
        of.iter().map(|t| [&vec![0xee; self.align][..], t, &[0xee; 80]].concat()).collect()
    }

    /// `n`th buffer's text and tag.
    fn part<'a>(&self, n: usize, buf: &'a mut [u8]) -> &'a mut [u8] {
        let len = self.sealed[n].len();
        &mut buf[self.align..][..len]
    }

    fn is_sealed(&self, bufs: &[Vec<u8>], what: &str) {
        for (n, buf) in bufs.iter().enumerate() {
            let (before, rest) = buf.split_at(self.align);
            let (got, behind) = rest.split_at(self.sealed[n].len());
            assert!(got == self.sealed[n], "{what}: packet {n} of {}, {} bytes", bufs.len(), self.texts[n].len());
            assert!(before.iter().chain(behind).all(|b| *b == 0xee), "{what}: wrote beside packet {n}");
        }
    }

    fn is_open(&self, bufs: &[Vec<u8>], what: &str) {
        for (n, buf) in bufs.iter().enumerate() {
            let (before, rest) = buf.split_at(self.align);
            let (got, behind) = rest.split_at(self.texts[n].len());
            assert!(got == self.texts[n], "{what}: packet {n} of {}, {} bytes", bufs.len(), self.texts[n].len());
            let behind = &behind[TAG_LEN..];
            assert!(before.iter().chain(behind).all(|b| *b == 0xee), "{what}: wrote beside packet {n}");
        }
    }

    /// By the batch interface with every back end.
    fn check_jobs(&self) {
        for backend in Backend::available() {
            let keys: Vec<Key> = self.raws.iter().map(|r| backend.key(r)).collect();
            let run = |task: fn(&mut [Job<'_>]), bufs: &mut [Vec<u8>]| {
                let jobs = bufs.iter_mut().enumerate();
                let mut jobs: Vec<Job<'_>> =
                    jobs.map(|(i, b)| Job::new(&keys[i], Self::counter(i), self.part(i, b))).collect();
                task(&mut jobs);
                assert!(jobs.iter().all(|j| j.ok), "{backend}");
            };
            let mut bufs = self.buffers(&self.texts);
            run(seal, &mut bufs);
            // Sixteen of the 80 bytes behind the text are the tag's.
            for buf in &mut bufs {
                buf.truncate(buf.len() - TAG_LEN);
            }
            self.is_sealed(&bufs, backend.name());
            run(open, &mut bufs);
            self.is_open(&bufs, backend.name());
        }
    }

    /// By the lanes themselves, all packets in groups of `n`.
    fn check_lanes(&self, lanes: Lanes, n: usize) {
        let words: Vec<[u32; 8]> = (self.raws.iter())
            .map(|r| std::array::from_fn(|i| u32::from_le_bytes(r[4 * i..4 * i + 4].try_into().expect("4 bytes"))))
            .collect();
        let run = |task: Task, bufs: &mut [Vec<u8>]| {
            let mut ok = vec![false; bufs.len()];
            let mut batch = Batch { packets: ArrayVec::new(), groups: ArrayVec::new() };
            for (i, (buf, ok)) in bufs.iter_mut().zip(&mut ok).enumerate() {
                let (text, tag) = self.part(i, buf).split_last_chunk_mut().expect("a tag");
                let nonce = batch::words(nonce(Self::counter(i)));
                batch.packets.push(Packet { key: &words[i], nonce, aad: &[], text, from: &[], start: 0, tag, ok });
            }
            let mut left = batch.packets.len();
            while left > 0 {
                batch.groups.push(n.min(left) as u8);
                left -= n.min(left);
            }
            match task {
                Task::Seal => lanes.seal(&mut batch),
                Task::Open => lanes.open(&mut batch),
            }
            drop(batch);
            assert!(ok.iter().all(|ok| *ok));
        };
        let what = format!("{} lanes, groups of {n}", lanes.width());
        let mut bufs = self.buffers(&self.texts);
        run(Task::Seal, &mut bufs);
        for buf in &mut bufs {
            buf.truncate(buf.len() - TAG_LEN);
        }
        self.is_sealed(&bufs, &what);
        run(Task::Open, &mut bufs);
        self.is_open(&bufs, &what);
    }
}

#[test]
fn every_length_is_sealed_and_opened_as_both_libraries_do() {
    for len in (0..=2048).chain([65_535]) {
        // Sixteen fill the lanes, four share them.
        Packets::new(len % 64, [len; 16]).check_jobs();
        Packets::new(63 - len % 64, [len; 4]).check_jobs();
    }
}

#[test]
fn every_alignment_and_every_number_of_lanes_in_use() {
    for lanes in all() {
        for n in 1..=lanes.width() {
            for align in [0, 1, 7, 16, 31, 33, 63] {
                Packets::new(align, [64 + align; 16]).check_lanes(lanes, n);
                // Nothing says that packets of a group are alike: it is only slow when they are not.
                Packets::new(align, [0, 1200, 15, 16, 17, 63, 64, 65, 129, 0, 1, 500, 256, 300, 1024, 33])
                    .check_lanes(lanes, n);
            }
        }
    }
    for align in 0..64 {
        Packets::new(align, [257; 16]).check_jobs();
    }
}

#[test]
fn every_size_of_a_batch_with_lengths_and_keys_mixed() {
    for n in 1..=64 {
        let lens = noise(2 * n, n as u64);
        let mixed = || lens.chunks(2).map(|c| usize::from(u16::from_le_bytes([c[0], c[1]])) % 1500);
        Packets::new(n, mixed()).check_jobs();
        Packets::new(n, (0..n).map(|_| 64)).check_jobs();
        for lanes in all() {
            Packets::new(n, mixed().map(|len| len % 200)).check_lanes(lanes, 1 + n % lanes.width());
        }
    }
    // More than are looked at together.
    Packets::new(0, (0..150).map(|i| i * 7)).check_jobs();
}

#[test]
fn counters_of_any_size_are_part_of_the_nonce() {
    for counter in [0, 1, u64::from(u32::MAX), 1 << 32, 1 << 60, u64::MAX] {
        let text = noise(100, counter);
        let expected = sealed(&raw(1), counter, &text);
        for key in keys(1) {
            let mut bufs: Vec<Vec<u8>> = (0..16).map(|_| [&text[..], &[0; TAG_LEN]].concat()).collect();
            seal(&mut bufs.iter_mut().map(|b| Job::new(&key, counter, b)).collect::<Vec<_>>());
            assert!(bufs.iter().all(|b| *b == expected), "{key:?} with {counter}");
        }
    }
}

#[test]
fn a_buffer_without_room_for_a_tag_is_refused() {
    for key in &keys(2) {
        for len in 0..TAG_LEN {
            let mut buf = vec![9; len];
            let mut jobs = [Job::new(key, 0, &mut buf)];
            open(&mut jobs);
            assert!(!jobs[0].ok);
            assert!(buf.iter().all(|b| *b == 0));
        }
    }
}

/// Every single bit of a packet, in every place of a group.
#[test]
fn a_flipped_bit_anywhere_is_found_and_harms_no_neighbour() {
    for lanes in all() {
        let backend_key = |seed| LanesKey::new(lanes, &raw(seed));
        for (n, len) in [(lanes.width(), 70), (4, 200), (1, 20)] {
            let key = Key(Expanded::Lanes(Box::new(backend_key(5))));
            let texts: Vec<Vec<u8>> = (0..n).map(|i| noise(len, i as u64)).collect();
            let good: Vec<Vec<u8>> = texts.iter().enumerate().map(|(i, t)| sealed(&raw(5), i as u64, t)).collect();
            for bit in 0..(len + TAG_LEN) * 8 {
                let which = bit % n;
                let mut bufs = good.clone();
                bufs[which][bit / 8] ^= 1 << (bit % 8);
                let mut jobs: Vec<Job<'_>> =
                    bufs.iter_mut().enumerate().map(|(i, b)| Job::new(&key, i as u64, b)).collect();
                open(&mut jobs);
                for (i, job) in jobs.iter().enumerate() {
                    assert_eq!(job.ok, i != which);
                    if job.ok {
                        assert_eq!(job.buf[..len], texts[i][..]);
                    } else {
                        assert!(job.buf.iter().all(|b| *b == 0), "bit {bit}: something is left");
                    }
                }
            }
        }
    }
}

/// The back end of job `i`: the first shifts have one for all, the others take turns.
const fn pick(i: usize, shift: usize, backends: usize) -> usize {
    if shift < backends { shift } else { (i + shift) % backends }
}

/// One job: key number, counter, length, and which bit is flipped on the way, if any.
type Mixed = (usize, u64, usize, Option<usize>);

fn plans() -> impl Strategy<Value = Vec<Mixed>> {
    let flip = proptest::option::weighted(0.2, any::<usize>());
    proptest::collection::vec((0usize..4, any::<u64>(), 0usize..=2048, flip), 1..=64)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Back ends, alone or mixed within a batch, give the bytes of the other ones; a flipped bit fails its job only.
    #[test]
    fn batches_of_mixed_keys_agree_and_a_flipped_bit_harms_no_neighbour(plans in plans()) {
        let all: Vec<Vec<Key>> = (0..4).map(|n| keys(10 + n)).collect();
        let backends = all[0].len();
        let texts: Vec<Vec<u8>> = plans.iter().enumerate().map(|(i, p)| noise(p.2, i as u64)).collect();
        let sealed: Vec<Vec<Vec<u8>>> = (0..2 * backends).map(|shift| {
            let mut bufs: Vec<Vec<u8>> = texts.iter().map(|t| [&t[..], &[0; TAG_LEN]].concat()).collect();
            let mut jobs: Vec<Job<'_>> = bufs
                .iter_mut()
                .zip(&plans)
                .enumerate()
                .map(|(i, (buf, p))| Job::new(&all[p.0][pick(i, shift, backends)], p.1, buf))
                .collect();
            seal(&mut jobs);
            assert!(jobs.iter().all(|j| j.ok));
            drop(jobs);
            bufs
        }).collect();
        prop_assert!(sealed.windows(2).all(|w| w[0] == w[1]));
        for (shift, mut bufs) in sealed.into_iter().enumerate() {
            for (buf, p) in bufs.iter_mut().zip(&plans) {
                if let Some(bit) = p.3 {
                    let bit = bit % (buf.len() * 8);
                    buf[bit / 8] ^= 1 << (bit % 8);
                }
            }
            let mut jobs: Vec<Job<'_>> = bufs
                .iter_mut()
                .zip(&plans)
                .enumerate()
                .map(|(i, (buf, p))| Job::new(&all[p.0][pick(i, shift, backends)], p.1, buf))
                .collect();
            open(&mut jobs);
            for ((job, p), text) in jobs.iter().zip(&plans).zip(&texts) {
                prop_assert_eq!(job.ok, p.3.is_none());
                if job.ok {
                    prop_assert_eq!(&job.buf[..text.len()], &text[..]);
                } else {
                    prop_assert!(job.buf.iter().all(|b| *b == 0));
                }
            }
        }
    }

    /// Out of place, from a body that starts and ends anywhere, gives the bytes of in place.
    #[test]
    fn sealing_out_of_place_gives_the_same_bytes(
        plans in proptest::collection::vec((0usize..200, 0usize..1500, 0usize..20, 0u64..1000), 1..=40),
    ) {
        for key in keys(3) {
            let bodies: Vec<Vec<u8>> = plans.iter().enumerate().map(|(i, p)| noise(p.1, i as u64)).collect();
            let mut bufs = Vec::new();
            let mut expected = Vec::new();
            for (i, (head, _, padding, counter)) in plans.iter().enumerate() {
                let text = [noise(*head, 7), bodies[i].clone(), vec![0; *padding]].concat();
                let mut buf = text.clone();
                buf[*head..][..bodies[i].len()].fill(0xdd);
                buf.extend([0; TAG_LEN]);
                bufs.push(buf);
                expected.push(sealed(&raw(3), *counter, &text));
            }
            let jobs = bufs.iter_mut().zip(&bodies).zip(&plans);
            let mut jobs: Vec<Job<'_>> =
                jobs.map(|((buf, body), p)| Job::sealing(&key, p.3, buf, p.0, body)).collect();
            seal(&mut jobs);
            prop_assert!(jobs.iter().all(|j| j.ok));
            drop(jobs);
            prop_assert_eq!(&bufs, &expected);
        }
    }
}
