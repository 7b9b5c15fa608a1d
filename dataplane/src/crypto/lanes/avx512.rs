//! AVX-512 (F, BW, VL, IFMA, VBMI2): Ice Lake, Zen 4 and later.
// Every intrinsic is `unsafe` where the compiler does not know that the CPU has it.
#![allow(unsafe_code)]

use super::group::{self, Batch, Packet};
use super::isa::{HALF_MAX, Ifma, Isa, LANES_MAX};
use super::poly::Mac44;
use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;

/// The proof that this CPU has what this module needs.
#[derive(Clone, Copy)]
pub(in crate::crypto) struct Avx512(());

impl Avx512 {
    pub(in crate::crypto) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512ifma")
            && is_x86_feature_detected!("avx512vbmi2"))
        .then_some(Self(()))
    }

    pub(in crate::crypto) fn seal(self, batch: &mut Batch<'_>) {
        // SAFETY: `self` proves the features.
        unsafe { seal(self, batch) }
    }

    pub(in crate::crypto) fn open(self, batch: &mut Batch<'_>) {
        // SAFETY: `self` proves the features.
        unsafe { open(self, batch) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2")]
fn seal(isa: Avx512, batch: &mut Batch<'_>) {
    group::seal(isa, batch);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma,avx512vbmi2")]
fn open(isa: Avx512, batch: &mut Batch<'_>) {
    group::open(isa, batch);
}

/// A mask of the first `len` bytes of 64.
const fn first_bytes(len: usize) -> u64 {
    if len >= 64 { u64::MAX } else { (1 << len) - 1 }
}

/// Calls intrinsics that touch no memory.
macro_rules! pure {
    ($e:expr) => {
        // SAFETY: whoever has an `Avx512` has asked the CPU for the features; nothing else is required.
        unsafe { $e }
    };
}

/// Turns the 64 bytes of each of eight texts into two vectors, lower and upper halves, for each of the four
/// blocks.
#[inline(always)]
fn transpose(rows: [__m512i; HALF_MAX]) -> [[__m512i; 2]; 4] {
    // Pairs of texts: in its 128-bit lane k, each has the halves of both texts' block k.
    let (mut lo, mut hi) = ([rows[0]; 4], [rows[0]; 4]);
    for i in 0..4 {
        pure!({
            lo[i] = _mm512_unpacklo_epi64(rows[2 * i], rows[2 * i + 1]);
            hi[i] = _mm512_unpackhi_epi64(rows[2 * i], rows[2 * i + 1]);
        });
    }
    let (lo, hi) = (transpose_lanes(lo), transpose_lanes(hi));
    [[lo[0], hi[0]], [lo[1], hi[1]], [lo[2], hi[2]], [lo[3], hi[3]]]
}

/// Four rows of four 128-bit lanes, turned.
#[inline(always)]
fn transpose_lanes([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    pure!({
        let (ab01, cd01) = (_mm512_shuffle_i64x2::<0x44>(a, b), _mm512_shuffle_i64x2::<0x44>(c, d));
        let (ab23, cd23) = (_mm512_shuffle_i64x2::<0xee>(a, b), _mm512_shuffle_i64x2::<0xee>(c, d));
        [
            _mm512_shuffle_i64x2::<0x88>(ab01, cd01),
            _mm512_shuffle_i64x2::<0xdd>(ab01, cd01),
            _mm512_shuffle_i64x2::<0x88>(ab23, cd23),
            _mm512_shuffle_i64x2::<0xdd>(ab23, cd23),
        ]
    })
}

impl Isa for Avx512 {
    const LANES: usize = 16;
    const STITCH: bool = true;
    type Words = __m512i;
    type Block = __m512i;
    type Quads = __m512i;
    type Mac = Mac44<Self>;

    #[inline(always)]
    fn words(self, from: &[u32; LANES_MAX]) -> __m512i {
        // SAFETY: 64 bytes, any alignment.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn add_words(self, a: __m512i, b: __m512i) -> __m512i {
        pure!(_mm512_add_epi32(a, b))
    }

    #[inline(always)]
    fn xor_words(self, a: __m512i, b: __m512i) -> __m512i {
        pure!(_mm512_xor_si512(a, b))
    }

    #[inline(always)]
    fn rotate_words<const LEFT: i32>(self, v: __m512i) -> __m512i {
        pure!(_mm512_rol_epi32::<LEFT>(v))
    }

    #[inline(always)]
    fn quarters(self, w: [__m512i; 16]) -> [[__m512i; 4]; 4] {
        // In the 128-bit lane m of `quarters[j][k]`: words 4j to 4j + 3 of block 4m + k.
        let mut quarters = [[w[0]; 4]; 4];
        for j in 0..4 {
            let [w0, w1, w2, w3] = [w[4 * j], w[4 * j + 1], w[4 * j + 2], w[4 * j + 3]];
            pure!({
                let (a, b) = (_mm512_unpacklo_epi32(w0, w1), _mm512_unpacklo_epi32(w2, w3));
                let (c, d) = (_mm512_unpackhi_epi32(w0, w1), _mm512_unpackhi_epi32(w2, w3));
                quarters[j] = [
                    _mm512_unpacklo_epi64(a, b),
                    _mm512_unpackhi_epi64(a, b),
                    _mm512_unpacklo_epi64(c, d),
                    _mm512_unpackhi_epi64(c, d),
                ];
            });
        }
        quarters
    }

    #[inline(always)]
    fn column(self, quarters: &[[__m512i; 4]; 4], k: usize) -> [__m512i; 4] {
        transpose_lanes([quarters[0][k], quarters[1][k], quarters[2][k], quarters[3][k]])
    }

    #[inline(always)]
    fn xor_block(self, block: __m512i, from: &[u8; 64], to: &mut [u8; 64]) {
        // SAFETY: 64 bytes each, any alignment.
        unsafe {
            let old = _mm512_loadu_si512(from.as_ptr().cast());
            _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_xor_si512(old, block));
        }
    }

    #[inline(always)]
    fn xor_block_in_place(self, block: __m512i, text: &mut [u8; 64]) {
        // SAFETY: 64 bytes, any alignment.
        unsafe {
            let old = _mm512_loadu_si512(text.as_ptr().cast());
            _mm512_storeu_si512(text.as_mut_ptr().cast(), _mm512_xor_si512(old, block));
        }
    }

    #[inline(always)]
    fn xor_part(self, block: __m512i, text: &mut [u8]) {
        let mask = first_bytes(text.len());
        // SAFETY: the mask keeps both to the bytes of `text`; bytes that are masked out are not touched.
        unsafe {
            let old = _mm512_maskz_loadu_epi8(mask, text.as_ptr().cast());
            _mm512_mask_storeu_epi8(text.as_mut_ptr().cast(), mask, _mm512_xor_si512(old, block));
        }
    }

    #[inline(always)]
    fn quads(self, from: &[u64; HALF_MAX]) -> __m512i {
        // SAFETY: 64 bytes, any alignment.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn pairs(self, lower: __m512i, upper: __m512i) -> [__m512i; 2] {
        pure!({
            // Of the second vector, with the bit 16.
            let first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let second = _mm512_or_si512(first, _mm512_set1_epi32(8));
            [_mm512_permutex2var_epi32(lower, first, upper), _mm512_permutex2var_epi32(lower, second, upper)]
        })
    }

    #[inline(always)]
    fn splat(self, x: u64) -> __m512i {
        pure!(_mm512_set1_epi64(x as i64))
    }

    #[inline(always)]
    fn store_quads(self, v: __m512i, to: &mut [u64; HALF_MAX]) {
        // SAFETY: 64 bytes, any alignment.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), v) }
    }

    #[inline(always)]
    fn add(self, a: __m512i, b: __m512i) -> __m512i {
        pure!(_mm512_add_epi64(a, b))
    }

    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        pure!(_mm512_and_si512(a, b))
    }

    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        pure!(_mm512_or_si512(a, b))
    }

    #[inline(always)]
    fn shl<const N: u32>(self, v: __m512i) -> __m512i {
        pure!(_mm512_slli_epi64::<N>(v))
    }

    #[inline(always)]
    fn shr<const N: u32>(self, v: __m512i) -> __m512i {
        pure!(_mm512_srli_epi64::<N>(v))
    }

    #[inline(always)]
    fn select(self, mask: __m512i, a: __m512i, b: __m512i) -> __m512i {
        pure!(_mm512_ternarylogic_epi64::<0xca>(mask, a, b))
    }

    #[inline(always)]
    fn gather(self, group: &[Packet<'_>], v: usize, at: usize) -> [[__m512i; 2]; 4] {
        let mut rows = [self.splat(0); HALF_MAX];
        for i in 0..HALF_MAX {
            let block: &[u8; 64] =
                Packet::of(group, v, Self::HALF, i).text[at..].first_chunk().expect("64 bytes, as the caller says");
            // SAFETY: 64 bytes, any alignment.
            rows[i] = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
        }
        transpose(rows)
    }

    #[inline(always)]
    fn gather_part(self, group: &[Packet<'_>], v: usize, at: usize) -> [[__m512i; 2]; 4] {
        let mut rows = [self.splat(0); HALF_MAX];
        for i in 0..HALF_MAX {
            let rest = Packet::of(group, v, Self::HALF, i).text.get(at..).unwrap_or(&[]);
            // SAFETY: the mask keeps it to the bytes of `rest`; bytes that are masked out are not touched.
            rows[i] = unsafe { _mm512_maskz_loadu_epi8(first_bytes(rest.len()), rest.as_ptr().cast()) };
        }
        transpose(rows)
    }
}

impl Ifma for Avx512 {
    #[inline(always)]
    fn madd_lo(self, acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
        pure!(_mm512_madd52lo_epu64(acc, a, b))
    }

    #[inline(always)]
    fn madd_hi(self, acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
        pure!(_mm512_madd52hi_epu64(acc, a, b))
    }
}
