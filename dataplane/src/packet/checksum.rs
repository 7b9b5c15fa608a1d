//! The internet checksum (RFC 1071), fast: every payload byte passes through here once on the way out and
//! once on the way in.
//!
//! Sums are taken over 16-bit words in the machine's byte order, because the sum of swapped words is the
//! swapped sum (RFC 1071 section 2 (B)), and over 32-bit words at a time, because 2^16 is 1 in this
//! arithmetic (section 2 (C)).
//!
//! Copying and summing are two passes: one loop that does both measured 10 % slower in `Split::write` (Zen 5)
//! than the C library's copy followed by a sum of what then is in the first-level cache.

// AVX2 is compiled in but may be missing from the CPU; calling it is the only unsafe step.
#![allow(unsafe_code)]

/// A one's complement sum on its way to a checksum: 16-bit words in the machine's byte order, not yet folded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

/// Below this many bytes the vector code's set-up costs more than it saves.
#[cfg(target_arch = "x86_64")]
const VECTOR_MIN: usize = 64;

impl Sum {
    /// Nothing summed yet.
    pub const ZERO: Self = Self(0);

    /// The pseudo header of TCP and UDP (RFC 9293 section 3.1, RFC 8200 section 8.1): `addresses` is source
    /// and destination as they stand in the IP header (8 or 32 bytes), `len` the bytes of transport header
    /// and payload.
    #[must_use]
    #[inline]
    pub fn pseudo(addresses: &[u8], protocol: u8, len: usize) -> Self {
        Self::ZERO.add_bytes(addresses).add_u16(u16::from(protocol)).add_u32(len as u32)
    }

    /// Adds another sum.
    #[must_use]
    #[inline]
    pub const fn plus(self, other: Self) -> Self {
        let (sum, carry) = self.0.overflowing_add(other.0);
        Self(sum + carry as u64)
    }

    /// Adds a 16-bit field's value.
    #[must_use]
    #[inline]
    pub const fn add_u16(self, value: u16) -> Self {
        self.plus(Self(value.to_be() as u64))
    }

    /// Adds a 32-bit field's value.
    #[must_use]
    #[inline]
    pub const fn add_u32(self, value: u32) -> Self {
        self.plus(Self(value.to_be() as u64))
    }

    /// Adds `data`. Pieces of one checksum are added in any order, each starting at an even offset; only the
    /// last piece may have an odd length (it counts as padded by a zero byte).
    #[must_use]
    #[inline]
    pub fn add_bytes(self, data: &[u8]) -> Self {
        #[cfg(target_arch = "x86_64")]
        if data.len() >= VECTOR_MIN && std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the CPU has AVX2.
            return self.plus(Self(unsafe { avx2::sum(data) }));
        }
        self.plus(Self(plain(data)))
    }

    const fn fold(self) -> u16 {
        let mut s = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        s = (s >> 16) + (s & 0xffff);
        s = (s >> 16) + (s & 0xffff);
        s = (s >> 16) + (s & 0xffff);
        s as u16
    }

    /// The checksum's two bytes, as they stand in the packet.
    #[must_use]
    #[inline]
    pub const fn checksum(self) -> [u8; 2] {
        (!self.fold()).to_ne_bytes()
    }

    /// The checksum for a field in which zero means "none" (UDP): 0xffff stands for zero (RFC 768).
    #[must_use]
    #[inline]
    pub const fn checksum_nonzero(self) -> [u8; 2] {
        match self.checksum() {
            [0, 0] => [0xff, 0xff],
            bytes => bytes,
        }
    }

    /// The sum itself, not complemented: what the checksum field of a packet with
    /// [`F_NEEDS_CSUM`](super::virtio::F_NEEDS_CSUM) holds of its pseudo header.
    #[must_use]
    #[inline]
    pub const fn partial(self) -> [u8; 2] {
        self.fold().to_ne_bytes()
    }

    /// Whether data that contains its own checksum adds up.
    #[must_use]
    #[inline]
    pub const fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }
}

/// The checksum after the bytes `old` of what it covers have become `new` (RFC 1624, equation 3). Both have
/// the same even length and start at an even offset. For UDP the caller leaves a zero checksum alone and
/// turns a zero result into 0xffff.
#[must_use]
pub fn update(checksum: [u8; 2], old: &[u8], new: &[u8]) -> [u8; 2] {
    let not = |s: Sum| Sum(u64::from(!s.fold()));
    not(Sum::ZERO.add_bytes(&checksum)).plus(not(Sum::ZERO.add_bytes(old))).add_bytes(new).checksum()
}

/// What changes in the bytes that a checksum covers, on its way to the new checksum (RFC 1624, equation 3): the sum
/// of what comes, less the sum of what goes. One change serves every checksum that covers the same bytes.
#[derive(Clone, Copy, Debug)]
pub struct Change(Sum);

impl Change {
    /// None yet.
    pub const NONE: Self = Self(Sum::ZERO);

    /// A 16-bit field at an even offset has become another.
    #[must_use]
    #[inline]
    pub const fn u16(self, old: u16, new: u16) -> Self {
        Self(self.0.add_u16(!old).add_u16(new))
    }

    /// A 32-bit field at an even offset has become another.
    #[must_use]
    #[inline]
    pub const fn u32(self, old: u32, new: u32) -> Self {
        Self(self.0.add_u32(!old).add_u32(new))
    }

    /// The checksum `old` after the change.
    #[must_use]
    #[inline]
    pub const fn apply(self, old: [u8; 2]) -> [u8; 2] {
        self.0.add_u16(!u16::from_be_bytes(old)).checksum()
    }

    /// As [`Self::apply`], for a field in which zero means "none" (UDP, RFC 768): zero stays, and 0xffff stands for a
    /// computed zero.
    #[must_use]
    #[inline]
    pub const fn apply_nonzero(self, old: [u8; 2]) -> [u8; 2] {
        match (old, self.apply(old)) {
            ([0, 0], _) => old,
            (_, [0, 0]) => [0xff, 0xff],
            (_, new) => new,
        }
    }
}

/// Sums `data` in plain Rust; the compiler turns the loop into whatever vectors the target always has.
#[inline]
fn plain(data: &[u8]) -> u64 {
    let (blocks, rest) = data.as_chunks::<32>();
    let mut lanes = [0u64; 8];
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    lanes.iter().sum::<u64>() + tail(rest)
}

/// Sums fewer than 32 bytes: whole 32-bit words, then up to three bytes.
#[inline]
fn tail(data: &[u8]) -> u64 {
    let (words, rest) = data.as_chunks::<4>();
    let mut sum: u64 = words.iter().map(|w| u64::from(u32::from_ne_bytes(*w))).sum();
    sum += match *rest {
        [a, b, c] => u64::from(u32::from_ne_bytes([a, b, c, 0])),
        [a, b] => u64::from(u16::from_ne_bytes([a, b])),
        [a] => u64::from(u16::from_ne_bytes([a, 0])),
        _ => 0,
    };
    sum
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi64, _mm256_extract_epi64, _mm256_loadu_si256, _mm256_setzero_si256, _mm256_slli_epi64,
        _mm256_srli_epi64, _mm256_sub_epi64,
    };

    const LANES: usize = 32;
    const UNROLL: usize = 4;

    /// Running sums of 64-bit lanes. `all` sums whole lanes and wraps; `high` sums their upper halves and
    /// cannot within 2^32 steps. The sum of the lower halves is then `all - (high << 32)`, exactly, which
    /// saves masking every lane.
    #[derive(Clone, Copy)]
    struct Acc {
        all: __m256i,
        high: __m256i,
    }

    impl Acc {
        #[target_feature(enable = "avx2")]
        #[inline]
        fn zero() -> Self {
            Self { all: _mm256_setzero_si256(), high: _mm256_setzero_si256() }
        }

        #[target_feature(enable = "avx2")]
        #[inline]
        fn add(&mut self, v: __m256i) {
            self.all = _mm256_add_epi64(self.all, v);
            self.high = _mm256_add_epi64(self.high, _mm256_srli_epi64::<32>(v));
        }

        #[target_feature(enable = "avx2")]
        #[inline]
        fn total(self) -> u64 {
            let low = _mm256_sub_epi64(self.all, _mm256_slli_epi64::<32>(self.high));
            let v = _mm256_add_epi64(low, self.high);
            (_mm256_extract_epi64::<0>(v) as u64)
                + (_mm256_extract_epi64::<1>(v) as u64)
                + (_mm256_extract_epi64::<2>(v) as u64)
                + (_mm256_extract_epi64::<3>(v) as u64)
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn load(from: &[u8; LANES]) -> __m256i {
        // SAFETY: `from` is 32 readable bytes, and this load has no alignment.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }

    /// Sums `data`.
    #[target_feature(enable = "avx2")]
    pub(super) fn sum(data: &[u8]) -> u64 {
        let (vectors, rest) = data.as_chunks::<LANES>();
        let (blocks, single) = vectors.as_chunks::<UNROLL>();
        let mut acc = [Acc::zero(); UNROLL];
        for block in blocks {
            for (a, v) in acc.iter_mut().zip(block) {
                a.add(load(v));
            }
        }
        for (a, v) in acc.iter_mut().zip(single) {
            a.add(load(v));
        }
        acc.iter().map(|a| a.total()).sum::<u64>() + super::tail(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::naive;
    use super::*;
    use proptest::prelude::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut x = 0x9e37_79b9_7f4a_7c15_u64;
        (0..len)
            .map(|_| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                (x >> 32) as u8
            })
            .collect()
    }

    #[test]
    fn every_length_and_alignment_agrees_with_the_naive_sum() {
        let data = noise(700);
        for at in 0..33 {
            for len in (0..300).chain([511, 512, 640, 641]) {
                let d = &data[at..at + len];
                let expected = naive(d);
                assert_eq!(Sum::ZERO.add_bytes(d).checksum(), expected, "{at} {len}");
                assert_eq!(Sum(plain(d)).checksum(), expected, "plain {at} {len}");
            }
        }
    }

    #[test]
    fn all_ones_do_not_overflow() {
        for len in [64, 65, 65_535, 1 << 20] {
            let data = vec![0xff; len];
            assert_eq!(Sum::ZERO.add_bytes(&data).checksum(), naive(&data));
            assert_eq!(Sum(plain(&data)).checksum(), naive(&data));
        }
        assert!(Sum(u64::MAX).plus(Sum(u64::MAX)).is_valid());
    }

    #[test]
    fn rfc_1071_example() {
        let s = Sum::ZERO.add_bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(s.partial(), [0xdd, 0xf2]);
    }

    proptest! {
        #[test]
        fn pieces_add_up_to_the_whole(
            data in proptest::collection::vec(any::<u8>(), 0..400), cut in 0usize..200, start in any::<u64>(),
        ) {
            let cut = (cut * 2).min(data.len() & !1);
            let s = Sum(start);
            prop_assert_eq!(s.add_bytes(&data[..cut]).add_bytes(&data[cut..]).fold(), s.add_bytes(&data).fold());
            prop_assert_eq!(Sum::ZERO.add_bytes(&data[cut..]).plus(s.add_bytes(&data[..cut])).fold(), s.add_bytes(&data).fold());
        }

        #[test]
        fn an_update_equals_summing_again(
            mut data in proptest::collection::vec(any::<u8>(), 64), at in 1usize..24, new in any::<[u8; 16]>(),
        ) {
            data[0] |= 1; // Not all zero, as no header is: zero and minus zero are told apart.
            let before = naive(&data);
            let old: [u8; 16] = data[2 * at..2 * at + 16].try_into().expect("16 bytes");
            data[2 * at..2 * at + 16].copy_from_slice(&new);
            prop_assert_eq!(update(before, &old, &new), naive(&data));
        }

        #[test]
        fn a_change_equals_summing_again(
            mut data in proptest::collection::vec(any::<u8>(), 64), word in any::<u32>(), half in any::<u16>(),
        ) {
            data[0] |= 1;
            let before = naive(&data);
            let change = Change::NONE
                .u32(u32::from_be_bytes([data[10], data[11], data[12], data[13]]), word)
                .u16(u16::from_be_bytes([data[30], data[31]]), half);
            data[10..14].copy_from_slice(&word.to_be_bytes());
            data[30..32].copy_from_slice(&half.to_be_bytes());
            prop_assert_eq!(change.apply(before), naive(&data));
            prop_assert_eq!(change.apply_nonzero([0, 0]), [0, 0]);
            let nonzero = if naive(&data) == [0, 0] { [0xff, 0xff] } else { naive(&data) };
            // A checksum of zero is written as 0xffff where zero means none.
            let before = if before == [0, 0] { [0xff, 0xff] } else { before };
            prop_assert_eq!(change.apply_nonzero(before), nonzero);
        }
    }
}
