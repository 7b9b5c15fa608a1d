//! AES-256-GCM against Wycheproof and against itself; how its keys come about.

use super::*;
use crate::Time;
use proptest::prelude::*;
use serde_json::Value;
use std::time::Duration;

fn hex(v: &Value) -> Vec<u8> {
    let s = v.as_str().expect("a string");
    (0..s.len()).step_by(2).map(|i| u8::from_str_radix(&s[i..i + 2], 16).expect("hexadecimal")).collect()
}

/// As the test of the same name for ChaCha20-Poly1305: by the functions that the batch interface calls for each job.
#[test]
fn it_agrees_with_wycheproof() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/aes_gcm_test.json");
    let file: Value = serde_json::from_slice(&std::fs::read(path).expect("a readable file")).expect("JSON");
    let (mut checked, mut refused, mut other) = (0, 0, 0);
    for group in file["testGroups"].as_array().expect("groups") {
        let tests = group["tests"].as_array().expect("tests");
        assert_eq!(group["tagSize"], 128);
        if (&group["ivSize"], &group["keySize"]) != (&96.into(), &256.into()) {
            // Keys of 128 and 192 bits and nonces of other lengths than 96 bits: the types of both rule them out.
            other += tests.len();
            continue;
        }
        for t in tests {
            let what = format!("case {} ({})", t["tcId"], t["comment"]);
            let valid = t["result"] == "valid";
            let key = Key::aes256gcm(&hex(&t["key"]).try_into().expect("32 bytes"));
            let nonce: [u8; 12] = hex(&t["iv"]).try_into().expect("12 bytes");
            let (aad, text) = (hex(&t["aad"]), hex(&t["msg"]));
            let sealed = [hex(&t["ct"]), hex(&t["tag"])].concat();
            let mut buf = text.clone();
            let tag = key.seal(nonce, &aad, &mut buf);
            assert_eq!([&buf[..], &tag].concat() == sealed, valid, "sealing, {what}");
            let mut buf = sealed.clone();
            assert_eq!(key.open(nonce, &aad, &mut buf), valid, "opening, {what}");
            if valid {
                assert_eq!(buf[..text.len()], text, "{what}");
            }
            checked += 1;
            refused += usize::from(!valid);
        }
    }
    assert_eq!(Some((checked + other) as u64), file["numberOfTests"].as_u64());
    assert_eq!((checked, refused), (66, 27), "{other} of other shapes");
}

#[test]
fn aes_keys_are_derived_by_rfc_5869() {
    let transport = RawKey::new(std::array::from_fn(|i| i as u8));
    // HMAC-SHA256(HMAC-SHA256(32 zeros, transport), label || 1), computed with Python's hmac.
    let expected = "fb731d9d14fc66b9d52cb79d1d999657c3931fa22959b4650ceaffbdb1ab6144";
    assert_eq!(aes_key(&transport).to_vec(), hex(&expected.into()));
}

#[test]
fn a_key_says_its_cipher_and_nothing_of_itself() {
    let transport = RawKey::new([7; 32]);
    for backend in Backend::ALL {
        let [chacha, aes] = Cipher::ALL.map(|c| c.key(backend, &transport));
        assert_eq!((chacha.cipher(), chacha.backend()), (Cipher::ChaCha20Poly1305, backend));
        assert_eq!((aes.cipher(), aes.backend()), (Cipher::Aes256Gcm, Backend::AwsLc));
        assert_eq!(format!("{aes:?}"), "Key(aes256gcm)");
    }
    for cipher in Cipher::ALL {
        assert_eq!(cipher.name().parse(), Ok(cipher));
    }
    assert!("aes128gcm".parse::<Cipher>().is_err());
}

#[test]
fn speeds_are_measured_by_the_clock_that_is_given() {
    let mut t = Time::ZERO;
    let mut ticks = 0;
    let speeds = Speeds::measure(Backend::Portable, || {
        ticks += 1;
        t += Duration::from_micros(if ticks <= 20 { 40 } else { 20 });
        t
    });
    assert!((speeds.chacha20poly1305 - 1.136e9).abs() < 1e6 && (speeds.aes256gcm - 2.272e9).abs() < 1e6);
    assert_eq!(speeds.prefers_aes(), has_aes());
    assert!(!Speeds { has_aes: false, ..speeds }.prefers_aes());
    assert!(!Speeds { aes256gcm: 1e9, ..speeds }.prefers_aes());
    let said = Speeds { has_aes: true, ..speeds }.to_string();
    assert_eq!(said, "ChaCha20-Poly1305 1.1 GB/s, AES-256-GCM 2.3 GB/s");
}

#[test]
fn a_buffer_without_room_for_a_tag_is_refused() {
    let key = Key::aes256gcm(&[3; 32]);
    for len in 0..TAG_LEN {
        let mut buf = vec![9; len];
        let mut jobs = [Job::new(&key, 0, &mut buf)];
        open(&mut jobs);
        assert!(!jobs[0].ok);
        assert!(buf.iter().all(|b| *b == 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Out of place, from a body that starts and ends anywhere, gives the bytes of in place.
    #[test]
    fn sealing_out_of_place_gives_the_same_bytes(
        (len, part) in (0..1500usize).prop_flat_map(|len| (Just(len), (0..=len, 0..=len))), counter in any::<u64>()
    ) {
        let key = Key::aes256gcm(&[4; 32]);
        let (head, end) = (part.0.min(part.1), part.0.max(part.1));
        let text: Vec<u8> = (0..len).map(|n| (n * 3) as u8).collect();
        let mut expected = [&text[..], &[0; TAG_LEN]].concat();
        let mut buf = expected.clone();
        buf[head..end].fill(0xdd);
        seal(&mut [Job::new(&key, counter, &mut expected)]);
        let mut jobs = [Job::sealing(&key, counter, &mut buf, head, &text[head..end])];
        seal(&mut jobs);
        prop_assert!(jobs[0].ok);
        prop_assert_eq!(buf, expected);
    }

    /// What is sealed opens; a flipped bit harms its job only; and ChaCha20-Poly1305 jobs may stand between.
    #[test]
    fn batches_with_both_ciphers_open_and_a_flipped_bit_harms_no_neighbour(
        plans in proptest::collection::vec(
            (0..3usize, any::<u64>(), 0..2048usize, proptest::option::weighted(0.2, any::<usize>())), 1..=64)
    ) {
        let keys = [Key::aes256gcm(&[1; 32]), Key::aes256gcm(&[2; 32]), Backend::detect().key(&[1; 32])];
        let text = |i: usize, len: usize| -> Vec<u8> { (0..len).map(|n| (n * 7 + i) as u8).collect() };
        let mut bufs: Vec<Vec<u8>> =
            plans.iter().enumerate().map(|(i, p)| [text(i, p.2), vec![0; TAG_LEN]].concat()).collect();
        let jobs = |bufs: &mut [Vec<u8>], run: fn(&mut [Job<'_>])| -> Vec<bool> {
            let mut jobs: Vec<Job<'_>> =
                bufs.iter_mut().zip(&plans).map(|(b, p)| Job::new(&keys[p.0], p.1, b)).collect();
            run(&mut jobs);
            jobs.iter().map(|j| j.ok).collect()
        };
        prop_assert!(jobs(&mut bufs, seal).into_iter().all(|ok| ok));
        for (buf, p) in bufs.iter_mut().zip(&plans) {
            if let Some(bit) = p.3 {
                let bit = bit % (buf.len() * 8);
                buf[bit / 8] ^= 1 << (bit % 8);
            }
        }
        let opened = jobs(&mut bufs, open);
        for (i, (buf, p)) in bufs.iter().zip(&plans).enumerate() {
            prop_assert_eq!(opened[i], p.3.is_none());
            if opened[i] {
                prop_assert_eq!(&buf[..p.2], &text(i, p.2)[..]);
            } else {
                prop_assert!(buf.iter().all(|b| *b == 0));
            }
        }
    }
}
