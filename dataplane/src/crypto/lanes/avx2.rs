//! AVX2: Haswell, Zen and later.
// Every intrinsic is `unsafe` where the compiler does not know that the CPU has it.
#![allow(unsafe_code)]

use super::group::{self, Batch, Packet};
use super::isa::{HALF_MAX, Isa, LANES_MAX, Mul32};
use super::poly::Mac26;
use std::arch::is_x86_feature_detected;
use std::arch::x86_64::*;

/// The proof that this CPU has what this module needs.
#[derive(Clone, Copy)]
pub(in crate::crypto) struct Avx2(());

impl Avx2 {
    pub(in crate::crypto) fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }

    pub(in crate::crypto) fn seal(self, batch: &mut Batch<'_>) {
        // SAFETY: `self` proves the feature.
        unsafe { seal(self, batch) }
    }

    pub(in crate::crypto) fn open(self, batch: &mut Batch<'_>) {
        // SAFETY: `self` proves the feature.
        unsafe { open(self, batch) }
    }
}

#[target_feature(enable = "avx2")]
fn seal(isa: Avx2, batch: &mut Batch<'_>) {
    group::seal(isa, batch);
}

#[target_feature(enable = "avx2")]
fn open(isa: Avx2, batch: &mut Batch<'_>) {
    group::open(isa, batch);
}

/// Calls intrinsics that touch no memory.
macro_rules! pure {
    ($e:expr) => {
        // SAFETY: whoever has an `Avx2` has asked the CPU for the feature; nothing else is required.
        unsafe { $e }
    };
}

/// Four rows of four 64-bit words, turned.
#[inline(always)]
fn transpose(rows: [__m256i; 4]) -> [__m256i; 4] {
    let [a, b, c, d] = rows;
    pure!({
        let (ab0, ab1) = (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
        let (cd0, cd1) = (_mm256_unpacklo_epi64(c, d), _mm256_unpackhi_epi64(c, d));
        [
            _mm256_permute2x128_si256::<0x20>(ab0, cd0),
            _mm256_permute2x128_si256::<0x20>(ab1, cd1),
            _mm256_permute2x128_si256::<0x31>(ab0, cd0),
            _mm256_permute2x128_si256::<0x31>(ab1, cd1),
        ]
    })
}

/// Lower and upper halves of the four blocks in 64 bytes of each of four texts.
#[inline(always)]
fn halves(rows: [[__m256i; 2]; 4]) -> [[__m256i; 2]; 4] {
    let [p, q, r, s] = rows;
    let [a, b, c, d] = transpose([p[0], q[0], r[0], s[0]]);
    let [e, f, g, h] = transpose([p[1], q[1], r[1], s[1]]);
    [[a, b], [c, d], [e, f], [g, h]]
}

#[inline(always)]
fn load(bytes: &[u8; 64]) -> [__m256i; 2] {
    // SAFETY: 32 bytes from the start and 32 from the middle of 64, any alignment.
    unsafe { [_mm256_loadu_si256(bytes.as_ptr().cast()), _mm256_loadu_si256(bytes.as_ptr().add(32).cast())] }
}

#[inline(always)]
fn store(v: [__m256i; 2], bytes: &mut [u8; 64]) {
    // SAFETY: 32 bytes from the start and 32 from the middle of 64, any alignment.
    unsafe {
        _mm256_storeu_si256(bytes.as_mut_ptr().cast(), v[0]);
        _mm256_storeu_si256(bytes.as_mut_ptr().add(32).cast(), v[1]);
    }
}

#[inline(always)]
fn xor(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
    pure!([_mm256_xor_si256(a[0], b[0]), _mm256_xor_si256(a[1], b[1])])
}

#[target_feature(enable = "avx2")]
fn xor_part(block: [__m256i; 2], text: &mut [u8]) {
    let mut bytes = [0; 64];
    store(block, &mut bytes);
    for (to, k) in text.iter_mut().zip(bytes) {
        *to ^= k;
    }
}

#[target_feature(enable = "avx2")]
fn load_part(text: &[u8]) -> [__m256i; 2] {
    let mut bytes = [0; 64];
    bytes[..text.len()].copy_from_slice(text);
    load(&bytes)
}

impl Isa for Avx2 {
    const LANES: usize = 8;
    const STITCH: bool = false;
    type Words = __m256i;
    type Block = [__m256i; 2];
    type Quads = __m256i;
    type Mac = Mac26<Self>;

    #[inline(always)]
    fn words(self, from: &[u32; LANES_MAX]) -> __m256i {
        // SAFETY: 32 of 64 bytes, any alignment.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn add_words(self, a: __m256i, b: __m256i) -> __m256i {
        pure!(_mm256_add_epi32(a, b))
    }

    #[inline(always)]
    fn xor_words(self, a: __m256i, b: __m256i) -> __m256i {
        pure!(_mm256_xor_si256(a, b))
    }

    #[inline(always)]
    fn rotate_words<const LEFT: i32>(self, v: __m256i) -> __m256i {
        pure!(match LEFT {
            // Whole bytes in one instruction.
            16 => _mm256_shuffle_epi8(
                v,
                _mm256_broadcastsi128_si256(_mm_setr_epi8(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)),
            ),
            8 => _mm256_shuffle_epi8(
                v,
                _mm256_broadcastsi128_si256(_mm_setr_epi8(3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14)),
            ),
            12 => _mm256_or_si256(_mm256_slli_epi32::<12>(v), _mm256_srli_epi32::<20>(v)),
            7 => _mm256_or_si256(_mm256_slli_epi32::<7>(v), _mm256_srli_epi32::<25>(v)),
            _ => unreachable!("ChaCha20 turns by 16, 12, 8 and 7"),
        })
    }

    #[inline(always)]
    fn quarters(self, w: [__m256i; 16]) -> [[__m256i; 4]; 4] {
        // In the 128-bit lane m of `quarters[j][k]`: words 4j to 4j + 3 of block 4m + k.
        let mut quarters = [[w[0]; 4]; 4];
        for j in 0..4 {
            let [w0, w1, w2, w3] = [w[4 * j], w[4 * j + 1], w[4 * j + 2], w[4 * j + 3]];
            pure!({
                let (a, b) = (_mm256_unpacklo_epi32(w0, w1), _mm256_unpacklo_epi32(w2, w3));
                let (c, d) = (_mm256_unpackhi_epi32(w0, w1), _mm256_unpackhi_epi32(w2, w3));
                quarters[j] = [
                    _mm256_unpacklo_epi64(a, b),
                    _mm256_unpackhi_epi64(a, b),
                    _mm256_unpacklo_epi64(c, d),
                    _mm256_unpackhi_epi64(c, d),
                ];
            });
        }
        quarters
    }

    #[inline(always)]
    fn column(self, quarters: &[[__m256i; 4]; 4], k: usize) -> [[__m256i; 2]; 4] {
        let [a, b, c, d] = [quarters[0][k], quarters[1][k], quarters[2][k], quarters[3][k]];
        pure!({
            let low = [_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x20>(c, d)];
            let high = [_mm256_permute2x128_si256::<0x31>(a, b), _mm256_permute2x128_si256::<0x31>(c, d)];
            [low, high, low, high]
        })
    }

    #[inline(always)]
    fn xor_block(self, block: [__m256i; 2], from: &[u8; 64], to: &mut [u8; 64]) {
        store(xor(load(from), block), to);
    }

    #[inline(always)]
    fn xor_block_in_place(self, block: [__m256i; 2], text: &mut [u8; 64]) {
        store(xor(load(text), block), text);
    }

    #[inline(always)]
    fn xor_part(self, block: [__m256i; 2], text: &mut [u8]) {
        pure!(xor_part(block, text));
    }

    #[inline(always)]
    fn quads(self, from: &[u64; HALF_MAX]) -> __m256i {
        // SAFETY: 32 of 64 bytes, any alignment.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }

    #[inline(always)]
    fn pairs(self, lower: __m256i, upper: __m256i) -> [__m256i; 2] {
        pure!({
            // Lanes 0, 1, 4, 5 and lanes 2, 3, 6, 7.
            let (a, b) = (_mm256_unpacklo_epi32(lower, upper), _mm256_unpackhi_epi32(lower, upper));
            [_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b)]
        })
    }

    #[inline(always)]
    fn splat(self, x: u64) -> __m256i {
        pure!(_mm256_set1_epi64x(x as i64))
    }

    #[inline(always)]
    fn store_quads(self, v: __m256i, to: &mut [u64; HALF_MAX]) {
        // SAFETY: 32 of 64 bytes, any alignment.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), v) }
    }

    #[inline(always)]
    fn add(self, a: __m256i, b: __m256i) -> __m256i {
        pure!(_mm256_add_epi64(a, b))
    }

    #[inline(always)]
    fn and(self, a: __m256i, b: __m256i) -> __m256i {
        pure!(_mm256_and_si256(a, b))
    }

    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        pure!(_mm256_or_si256(a, b))
    }

    #[inline(always)]
    fn shl<const N: u32>(self, v: __m256i) -> __m256i {
        pure!(_mm256_sll_epi64(v, _mm_cvtsi32_si128(N as i32)))
    }

    #[inline(always)]
    fn shr<const N: u32>(self, v: __m256i) -> __m256i {
        pure!(_mm256_srl_epi64(v, _mm_cvtsi32_si128(N as i32)))
    }

    #[inline(always)]
    fn select(self, mask: __m256i, a: __m256i, b: __m256i) -> __m256i {
        pure!(_mm256_or_si256(_mm256_and_si256(mask, a), _mm256_andnot_si256(mask, b)))
    }

    #[inline(always)]
    fn gather(self, group: &[Packet<'_>], v: usize, at: usize) -> [[__m256i; 2]; 4] {
        let mut rows = [[self.splat(0); 2]; 4];
        for i in 0..4 {
            rows[i] = load(
                Packet::of(group, v, Self::HALF, i).text[at..].first_chunk().expect("64 bytes, as the caller says"),
            );
        }
        halves(rows)
    }

    #[inline(always)]
    fn gather_part(self, group: &[Packet<'_>], v: usize, at: usize) -> [[__m256i; 2]; 4] {
        let mut rows = [[self.splat(0); 2]; 4];
        for i in 0..4 {
            let rest = Packet::of(group, v, Self::HALF, i).text.get(at..).unwrap_or(&[]);
            rows[i] = pure!(load_part(&rest[..rest.len().min(64)]));
        }
        halves(rows)
    }
}

impl Mul32 for Avx2 {
    #[inline(always)]
    fn mul(self, a: __m256i, b: __m256i) -> __m256i {
        pure!(_mm256_mul_epu32(a, b))
    }
}
