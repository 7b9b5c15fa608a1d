//! The arithmetic of the lanes, at its edges. The cipher as a whole is tested one level up.

use super::array::Array;
use super::group::Packet;
use super::isa::{HALF_MAX, Isa};
use super::poly::{Halves, Mac, Sums};
use super::{Batch, Lanes, scalar};
use arrayvec::ArrayVec;
use proptest::prelude::*;

/// Poly1305 by the definition (RFC 8439, section 2.5.1): schoolbook numbers of 32-bit digits, no tricks.
mod reference {
    /// 2^130 - 5.
    const P: [u32; 5] = [0xffff_fffb, u32::MAX, u32::MAX, u32::MAX, 3];

    fn less(a: &[u32], b: &[u32]) -> bool {
        a.iter().rev().lt(b.iter().rev())
    }

    fn subtract(a: &mut [u32], b: &[u32]) {
        let mut borrow = 0;
        for (i, x) in a.iter_mut().enumerate() {
            let d = i64::from(*x) - i64::from(b.get(i).copied().unwrap_or(0)) - borrow;
            borrow = i64::from(d < 0);
            *x = d as u32;
        }
        assert_eq!(borrow, 0);
    }

    /// `a mod p`, bit by bit.
    fn reduce(a: &[u32]) -> [u32; 5] {
        let mut r = [0u32; 6];
        let p = [P[0], P[1], P[2], P[3], P[4], 0];
        for bit in (0..32 * a.len()).rev() {
            for i in (0..6).rev() {
                r[i] = (r[i] << 1) | if i > 0 { r[i - 1] >> 31 } else { (a[bit / 32] >> (bit % 32)) & 1 };
            }
            if !less(&r, &p) {
                subtract(&mut r, &p);
            }
        }
        [r[0], r[1], r[2], r[3], r[4]]
    }

    fn digits(x: u128) -> [u32; 4] {
        [0, 32, 64, 96].map(|s: u32| (x >> s) as u32)
    }

    /// The sum after `blocks`, each with the bit 2^128 on top, modulo p.
    pub(super) fn sum(r: u128, blocks: &[u128]) -> [u32; 5] {
        let r = digits(r);
        let mut h = [0u32; 5];
        for b in blocks {
            let b = digits(*b);
            let mut carry = 0u64;
            let mut sum = [0u32; 6];
            for (i, s) in sum.iter_mut().enumerate() {
                let digit = if i < 4 { b[i] } else { u32::from(i == 4) };
                carry += u64::from(h.get(i).copied().unwrap_or(0)) + u64::from(digit);
                *s = carry as u32;
                carry >>= 32;
            }
            let mut product = [0u32; 10];
            for (i, x) in sum.iter().enumerate() {
                let mut carry = 0u64;
                for j in 0..product.len() - i {
                    let y = r.get(j).copied().unwrap_or(0);
                    carry += u64::from(product[i + j]) + u64::from(*x) * u64::from(y);
                    product[i + j] = carry as u32;
                    carry >>= 32;
                }
            }
            h = reduce(&product);
        }
        h
    }

    pub(super) fn tag(r: u128, s: u128, blocks: &[u128]) -> u128 {
        let h = sum(r, blocks);
        let low = [0, 1, 2, 3].iter().fold(0u128, |x, i| x | u128::from(h[*i]) << (32 * i));
        low.wrapping_add(s)
    }
}

/// The tags of eight or four lanes by the multiplication of `I`, each lane with its own key and blocks. Blocks go
/// in by single steps and by pairs as `pairs` says.
fn tags<I: Isa>(isa: I, keys: &[u128; HALF_MAX], s: u128, blocks: &[[u128; HALF_MAX]], pairs: bool) -> Vec<u128> {
    let halves = |b: &[u128; HALF_MAX]| split(b).load(isa);
    let mac = I::Mac::new(isa, halves(keys));
    let mut sum = <I::Mac as Mac<I>>::load(isa, &[[0; HALF_MAX]; 3]);
    for two in blocks.chunks(2) {
        sum = match two {
            [a, b] if pairs => mac.two_steps(isa, sum, halves(a), halves(b)),
            _ => two.iter().fold(sum, |sum, b| mac.step(isa, sum, halves(b))),
        };
    }
    last_step(isa, sum, s)
}

fn split(x: &[u128; HALF_MAX]) -> Halves {
    Halves { lo: x.map(|x| x as u64), hi: x.map(|x| (x >> 64) as u64) }
}

/// The tags of sums.
fn last_step<I: Isa>(isa: I, sum: <I::Mac as Mac<I>>::Sum, s: u128) -> Vec<u128> {
    let mut tags = Halves::ZERO;
    tags.store(isa, <I::Mac as Mac<I>>::tag(isa, sum, split(&[s; HALF_MAX]).load(isa)));
    (0..I::HALF).map(|i| tags.get(i)).collect()
}

/// Checks the last step of every instruction set that there is, and of the twins, from a sum in [`scalar`]'s limbs.
fn check_last_step(limbs: [u64; 3], s: u128, expected: u128) {
    fn one<I: Isa>(isa: I, sums: &Sums, s: u128, expected: u128) {
        let tags = last_step(isa, <I::Mac as Mac<I>>::load(isa, sums), s);
        assert!(tags.iter().all(|t| *t == expected), "{sums:x?} + {s:x}: {tags:x?}, not {expected:x}");
    }
    let sums = limbs.map(|l| [l; HALF_MAX]);
    one(Array::<16>, &sums, s, expected);
    one(Array::<8>, &sums, s, expected);
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(isa) = super::avx512::Avx512::detect() {
            one(isa, &sums, s, expected);
        }
        if let Some(isa) = super::avx2::Avx2::detect() {
            one(isa, &sums, s, expected);
        }
    }
}

/// Checks every instruction set that there is, and the twins, against the definition.
fn check(keys: [u128; HALF_MAX], s: u128, blocks: &[[u128; HALF_MAX]]) {
    let keys = keys.map(|k| {
        let [lo, hi] = scalar::CLAMP.map(u128::from);
        k & (lo | hi << 64)
    });
    let lane = |i: usize| blocks.iter().map(|b| b[i]).collect::<Vec<_>>();
    let expected: Vec<u128> = (0..HALF_MAX).map(|i| reference::tag(keys[i], s, &lane(i))).collect();
    for pairs in [false, true] {
        assert_eq!(tags(Array::<16>, &keys, s, blocks, pairs), expected);
        assert_eq!(tags(Array::<8>, &keys, s, blocks, pairs), expected[..4]);
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(isa) = super::avx512::Avx512::detect() {
                assert_eq!(tags(isa, &keys, s, blocks, pairs), expected);
            }
            if let Some(isa) = super::avx2::Avx2::detect() {
                assert_eq!(tags(isa, &keys, s, blocks, pairs), expected[..4]);
            }
        }
    }
    let bytes: Vec<u8> = lane(0).iter().flat_map(|b| b.to_le_bytes()).collect();
    let alone = scalar::absorb([keys[0] as u64, (keys[0] >> 64) as u64], &bytes);
    check_last_step(alone, s, expected[0]);
}

/// Numbers where carries go wrong if they can.
const EDGES: [u128; 14] = [
    0,
    1,
    5,
    u128::MAX,
    u128::MAX - 1,
    u128::MAX - 4,
    u128::MAX - 5,
    1 << 127,
    (1 << 64) - 1,
    1 << 64,
    0xffff_ffff_ffff_ffff_0000_0000_0000_0000,
    (1 << 44) - 1,
    (1 << 88) - 1,
    0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff,
];

#[test]
fn poly1305_is_right_at_the_edges_of_r_s_and_the_blocks() {
    for r in EDGES {
        for s in [0, 1, u128::MAX] {
            for a in EDGES {
                let all: Vec<[u128; HALF_MAX]> =
                    (0..9).map(|n| std::array::from_fn(|i| [a, EDGES[(n + i) % EDGES.len()]][n % 2])).collect();
                check(std::array::from_fn(|i| if i == 0 { r } else { EDGES[i] }), s, &all);
            }
        }
    }
}

/// Blocks that bring the sum to any value, such as those around 2^130 - 5: with `r = 1` a sum is the blocks' sum.
#[test]
fn poly1305_is_right_when_the_sum_is_near_the_modulus() {
    for below in 0..16u128 {
        // Each block adds 2^128 and itself: two, and a last one that fills up to 2^130 - 1 - below.
        let blocks = [0, 0, u128::MAX - below].map(|b| [b; HALF_MAX]);
        let h = reference::sum(1, &blocks.map(|b| b[0]));
        assert_eq!(h[0], if below <= 4 { 4 - below as u32 } else { u32::MAX - below as u32 }, "{below}");
        check([1; HALF_MAX], 0, &blocks);
        check([1; HALF_MAX], u128::MAX, &blocks);
    }
    // The accumulator before its last reduction may be any representative below 2^130 and some: all of them.
    for low in [0u64, 1, 4, 5, scalar::M44 - 5, scalar::M44 - 4, scalar::M44] {
        for mid in [0, scalar::M44, scalar::M44 + 1] {
            for high in [0, 1, (1 << 42) - 1, (1 << 42), (1 << 43) - 1] {
                let wide = |x: u64| [x as u32, (x >> 32) as u32];
                let mut digits = [0u64; 6];
                for (shift, limb) in [(0, low), (44, mid), (88, high)] {
                    let at = shift / 32;
                    let [a, b] = wide(limb).map(u64::from);
                    let value = (u128::from(a) | u128::from(b) << 32) << (shift % 32);
                    for (k, d) in digits[at..].iter_mut().enumerate().take(4) {
                        *d += (value >> (32 * k)) as u64 & 0xffff_ffff;
                    }
                }
                let (mut carry, mut value) = (0, [0u32; 6]);
                for (d, v) in digits.iter().zip(&mut value) {
                    carry += d;
                    *v = carry as u32;
                    carry >>= 32;
                }
                // h mod p by the definition: h - 2^128 as a block with r = 1 gives h, for what is at least that.
                let (top, low128) = (value[4], (0..4).fold(0u128, |x, i| x | u128::from(value[i]) << (32 * i)));
                let mut blocks = vec![0; top as usize];
                match blocks.last_mut() {
                    Some(last) => *last = low128,
                    None => continue,
                }
                for s in [0, 7, (1 << 44) - 1, (1 << 88) - 1, u128::MAX - 4, u128::MAX] {
                    check_last_step([low, mid, high], s, reference::tag(1, s, &blocks));
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn poly1305_is_right_on_anything(
        keys in any::<[u128; HALF_MAX]>(),
        s in any::<u128>(),
        blocks in proptest::collection::vec(any::<[u128; HALF_MAX]>(), 0..8),
    ) {
        check(keys, s, &blocks);
    }
}

/// The block function against the test vector of RFC 8439, section 2.3.2, in every lane, beside others.
#[test]
fn every_lane_gives_the_key_stream_of_rfc_8439() {
    let key: [u32; 8] = std::array::from_fn(|i| u32::from_le_bytes(std::array::from_fn(|k| (4 * i + k) as u8)));
    let stream = [
        0xe4e7_f110u32,
        0x1559_3bd1,
        0x1fdd_0f50,
        0xc471_20a3,
        0xc7f4_d1c7,
        0x0368_c033,
        0x9aaa_2204,
        0x4e6c_d4c3,
        0x4664_82d2,
        0x09aa_9f07,
        0x05d7_c214,
        0xa202_8bd9,
        0xd19c_12b5,
        0xb94e_16de,
        0xe883_d0cb,
        0x4e3c_50a2,
    ];
    let stream: Vec<u8> = stream.iter().flat_map(|w| w.to_le_bytes()).collect();
    for lanes in all() {
        for n in 1..=lanes.width() {
            for which in 0..n {
                let others = [7u32; 8];
                let mut texts = vec![[0u8; 64]; n];
                let (mut tags, mut ok) = (vec![[0; 16]; n], vec![false; n]);
                let mut packets = ArrayVec::new();
                for (i, ((text, tag), ok)) in texts.iter_mut().zip(&mut tags).zip(&mut ok).enumerate() {
                    let key = if i == which { &key } else { &others };
                    let nonce = [0x0900_0000, 0x4a00_0000, 0];
                    packets.push(Packet { key, nonce, aad: &[], text, from: &[], start: 0, tag, ok });
                }
                lanes.seal(&mut Batch { packets, groups: [n as u8].into_iter().collect() });
                assert_eq!(texts[which][..], stream[..], "lane {which} of {n}");
            }
        }
    }
}

/// All instruction sets that this CPU has, and the twins.
pub(in crate::crypto) fn all() -> Vec<Lanes> {
    [Lanes::avx512(), Lanes::avx2(), Some(Lanes::Twin16), Some(Lanes::Twin8)].into_iter().flatten().collect()
}
