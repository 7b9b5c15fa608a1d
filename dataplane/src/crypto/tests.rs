//! The back ends against published vectors and against each other.

use super::*;
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

    /// By the functions that the batch interface calls for each job: no vector has a nonce of its form and no
    /// associated data.
    fn check(&self, backend: Backend, what: &str) {
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
        for backend in Backend::ALL {
            Vector::new(v, "nonce", true).check(backend, &format!("section {}", v["section"]));
        }
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
            for backend in Backend::ALL {
                v.check(backend, &format!("case {} ({})", t["tcId"], t["comment"]));
            }
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

/// Both keys of one secret.
fn keys(seed: u64) -> [Key; 2] {
    let raw: [u8; 32] = noise(32, seed).try_into().expect("32 bytes");
    Backend::ALL.map(|b| b.key(&raw))
}

/// Seals `text` with one back end, opens it with the other, both ways round.
fn check_pair(keys: &[Key; 2], counter: u64, text: &[u8]) {
    let [a, b] = [0, 1].map(|i: usize| {
        let mut buf = [text, &[0x77; TAG_LEN]].concat();
        seal(&mut [Job::new(&keys[i], counter, &mut buf)]);
        buf
    });
    assert_eq!(a, b, "{} bytes with counter {counter}", text.len());
    for (key, mut buf) in keys.iter().zip([b, a]) {
        let mut jobs = [Job::new(key, counter, &mut buf)];
        open(&mut jobs);
        assert!(jobs[0].ok);
        assert_eq!(buf[..text.len()], *text);
    }
}

#[test]
fn back_ends_agree_at_every_small_length_and_the_largest() {
    let keys = keys(1);
    for len in (0..=300).chain([1419, 1420, 1421, 1452, 2047, 2048, 65_518, 65_519]) {
        check_pair(&keys, len as u64, &noise(len, len as u64));
    }
    for counter in [0, 1, u64::from(u32::MAX), 1 << 32, 1 << 60, u64::MAX] {
        check_pair(&keys, counter, &noise(100, counter));
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

/// One job: key number, counter, length, and which bit is flipped on the way, if any.
type Plan = (usize, u64, usize, Option<usize>);

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let flip = proptest::option::weighted(0.2, any::<usize>());
    proptest::collection::vec((0usize..4, any::<u64>(), 0usize..=2048, flip), 1..=64)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Back ends mixed within a batch give the bytes of the other ones; a flipped bit fails its job only.
    #[test]
    fn batches_of_mixed_keys_agree_and_a_flipped_bit_harms_no_neighbour(plans in plans()) {
        let all: Vec<[Key; 2]> = (0..4).map(|n| keys(10 + n)).collect();
        let texts: Vec<Vec<u8>> = plans.iter().enumerate().map(|(i, p)| noise(p.2, i as u64)).collect();
        let sealed = [0, 1].map(|shift| {
            let mut bufs: Vec<Vec<u8>> = texts.iter().map(|t| [&t[..], &[0; TAG_LEN]].concat()).collect();
            let mut jobs: Vec<Job<'_>> = bufs
                .iter_mut()
                .zip(&plans)
                .enumerate()
                .map(|(i, (buf, p))| Job::new(&all[p.0][(i + shift) % 2], p.1, buf))
                .collect();
            seal(&mut jobs);
            assert!(jobs.iter().all(|j| j.ok));
            drop(jobs);
            bufs
        });
        prop_assert_eq!(&sealed[0], &sealed[1]);
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
                .map(|(i, (buf, p))| Job::new(&all[p.0][(i + shift) % 2], p.1, buf))
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
}
