//! The handshake against a computation of its own, and against forgers.

use super::*;
use crate::tunnel::mac::{Mac, mac};
use blake2::Blake2s;
use blake2::digest::consts::U32;
use blake2::digest::{FixedOutput, Update};
use chacha20poly1305::aead::{AeadInOut, KeyInit};

fn identity(n: u8) -> Identity {
    Identity::new(PrivateKey::new([n; 32]))
}

fn entropy(n: u8) -> Entropy {
    Zeroizing::new([n; 32])
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut h = Blake2s::<U32>::default();
    parts.iter().for_each(|p| Update::update(&mut h, p));
    h.finalize_fixed().into()
}

/// HMAC-BLAKE2s (RFC 2104), block length 64.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let pad = |x: u8| -> [u8; 64] { std::array::from_fn(|i| key.get(i).copied().unwrap_or(0) ^ x) };
    let inner: Vec<u8> = parts.concat();
    hash(&[&pad(0x5c), &hash(&[&pad(0x36), &inner])])
}

/// The paper's Kdf_n (section 5.4).
fn kdf<const N: usize>(key: &[u8; 32], input: &[u8]) -> [[u8; 32]; N] {
    let t0 = hmac(key, &[input]);
    let mut out = [[0; 32]; N];
    let mut last: Vec<u8> = Vec::new();
    for (i, o) in out.iter_mut().enumerate() {
        *o = hmac(&t0, &[&last, &[u8::try_from(i + 1).expect("small")]]);
        last = o.to_vec();
    }
    out
}

fn dh(secret: [u8; 32], public: [u8; 32]) -> [u8; 32] {
    x25519_dalek::x25519(secret, public)
}

fn open(key: &[u8; 32], sealed: &[u8], ad: &[u8]) -> Vec<u8> {
    let (text, tag) = sealed.split_last_chunk::<16>().expect("tag");
    let mut text = text.to_vec();
    let cipher = chacha20poly1305::ChaCha20Poly1305::new(key.into());
    let tag = chacha20poly1305::Tag::from(*tag);
    cipher.decrypt_inout_detached(&[0; 12].into(), ad, (&mut text[..]).into(), &tag).expect("authentic");
    text
}

/// Follows a handshake by the formulas of sections 5.4.2 to 5.4.5, knowing every secret.
#[test]
fn transport_keys_are_those_of_the_paper() {
    let (us, them) = (identity(1), identity(2));
    let (e_i, e_r) = ([3; 32], [4; 32]);
    let psk = PresharedKey([5; 32]);
    let stamp = [6; TIMESTAMP_LEN];
    let (mut initiator, first) = Initiator::start(&us, &them.public, 77, &stamp, entropy(3)).expect("started");
    let initiation = Initiation::read(&them, &first, entropy(4)).expect("authentic");
    assert_eq!((initiation.peer, initiation.remote_index, initiation.timestamp), (us.public, 77, stamp));
    let (second, theirs) = initiation.respond(&psk, 99).expect("answered");
    let ours = initiator.finish(&psk, &second).expect("authentic");

    let (s_i, s_r) = (*us.private.bytes(), *them.private.bytes());
    let base = x25519_dalek::X25519_BASEPOINT_BYTES;
    let (pe_i, pe_r) = (dh(e_i, base), dh(e_r, base));
    let c = hash(&[CONSTRUCTION.as_bytes()]);
    let h = hash(&[&hash(&[&c, IDENTIFIER]), &them.public.0]);
    let [c] = kdf(&c, &pe_i);
    assert_eq!(first[8..40], pe_i);
    let h = hash(&[&h, &pe_i]);
    let [c, k] = kdf(&c, &dh(e_i, them.public.0));
    assert_eq!(open(&k, &first[40..88], &h), us.public.0);
    let h = hash(&[&h, &first[40..88]]);
    let [c, k] = kdf(&c, &dh(s_i, them.public.0));
    assert_eq!(open(&k, &first[88..116], &h), stamp);
    let h = hash(&[&h, &first[88..116]]);
    let [c] = kdf(&c, &pe_r);
    assert_eq!(second[12..44], pe_r);
    let h = hash(&[&h, &pe_r]);
    let [c] = kdf(&c, &dh(e_r, pe_i));
    let [c] = kdf(&c, &dh(e_r, us.public.0));
    let [c, t, k] = kdf(&c, &psk.0);
    let h = hash(&[&h, &t]);
    assert!(open(&k, &second[44..60], &h).is_empty());
    let [forth, back] = kdf(&c, b"");
    assert_eq!((*ours.send, *ours.recv), (forth, back));
    assert_eq!((*theirs.recv, *theirs.send), (forth, back));
    let _ = s_r;
}

#[test]
fn a_forged_response_leaves_the_handshake_waiting_for_the_real_one() {
    let (us, them) = (identity(1), identity(2));
    let psk = PresharedKey([9; 32]);
    let (mut initiator, first) = Initiator::start(&us, &them.public, 1, &[0; 12], entropy(3)).expect("started");
    let read = |e| Initiation::read(&them, &first, entropy(e)).expect("authentic");
    let (real, _) = read(4).respond(&psk, 2).expect("answered");
    let (other_psk, _) = read(5).respond(&PresharedKey::default(), 2).expect("answered");
    for i in RESPONSE_NOISE {
        let mut forged = real;
        forged[i] ^= 1;
        // X25519 ignores the top bit of a point; the hash over it does not.
        assert!(initiator.finish(&psk, &forged).is_none(), "byte {i}");
    }
    let mut degenerate = real;
    degenerate[12..44].fill(0);
    assert!(initiator.finish(&psk, &degenerate).is_none());
    assert!(initiator.finish(&psk, &other_psk).is_none());
    assert!(initiator.finish(&PresharedKey::default(), &real).is_none());
    assert!(initiator.finish(&psk, &real[..59]).is_none());
    assert!(initiator.finish(&psk, &real).is_some());
}

#[test]
fn an_initiation_with_any_bit_changed_is_refused() {
    let (us, them) = (identity(1), identity(2));
    let (_, first) = Initiator::start(&us, &them.public, 1, &[0; 12], entropy(3)).expect("started");
    for i in INITIATION_NOISE {
        let mut forged = first;
        forged[i] ^= 0x80;
        assert!(Initiation::read(&them, &forged, entropy(4)).is_none(), "byte {i}");
    }
    assert!(Initiation::read(&identity(7), &first, entropy(4)).is_none());
    let zeros: Mac = mac(&[0; 32], &[]);
    assert!(Initiation::read(&them, &zeros, entropy(4)).is_none());
}

#[test]
fn a_degenerate_peer_key_starts_nothing() {
    assert!(Initiator::start(&identity(1), &PublicKey([0; 32]), 1, &[0; 12], entropy(3)).is_none());
}
