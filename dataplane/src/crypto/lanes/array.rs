//! The instruction sets' twin in plain Rust, for the tests: the same walks over packets, lanes and limbs, on
//! any CPU, with every access checked and every overflow a panic. With 16 lanes it multiplies as AVX-512 does,
//! with 8 as AVX2.

use super::group::{self, Batch, Packet};
use super::isa::{HALF_MAX, Ifma, Isa, LANES_MAX, Mul32};
use super::poly::{Mac26, Mac44};

#[derive(Clone, Copy)]
pub(in crate::crypto) struct Array<const LANES: usize>;

impl<const LANES: usize> Array<LANES>
where
    Self: Isa,
{
    pub(in crate::crypto) fn seal(self, batch: &mut Batch<'_>) {
        group::seal(self, batch);
    }

    pub(in crate::crypto) fn open(self, batch: &mut Batch<'_>) {
        group::open(self, batch);
    }
}

fn each<T: Copy + Default, const N: usize>(lanes: usize, f: impl Fn(usize) -> T) -> [T; N] {
    std::array::from_fn(|i| if i < lanes { f(i) } else { T::default() })
}

macro_rules! twin {
    ($lanes:literal, $mac:ident, $stitch:literal) => {
        impl Isa for Array<$lanes> {
            const LANES: usize = $lanes;
            const STITCH: bool = $stitch;
            type Words = [u32; LANES_MAX];
            type Block = [u8; 64];
            type Quads = [u64; HALF_MAX];
            type Mac = $mac<Self>;

            fn words(self, from: &[u32; LANES_MAX]) -> Self::Words {
                *from
            }
            fn add_words(self, a: Self::Words, b: Self::Words) -> Self::Words {
                each(Self::LANES, |i| a[i].wrapping_add(b[i]))
            }
            fn xor_words(self, a: Self::Words, b: Self::Words) -> Self::Words {
                each(Self::LANES, |i| a[i] ^ b[i])
            }
            fn rotate_words<const LEFT: i32>(self, v: Self::Words) -> Self::Words {
                each(Self::LANES, |i| v[i].rotate_left(LEFT as u32))
            }
            fn quarters(self, words: [Self::Words; 16]) -> [[Self::Words; 4]; 4] {
                std::array::from_fn(|i| std::array::from_fn(|j| words[4 * i + j]))
            }
            fn column(self, quarters: &[[Self::Words; 4]; 4], column: usize) -> [[u8; 64]; 4] {
                let lane = |m: usize| (column + 4 * m) % Self::LANES;
                let word = |m: usize, i: usize| quarters[i / 16][i / 4 % 4][lane(m)].to_le_bytes()[i % 4];
                std::array::from_fn(|m| std::array::from_fn(|i| word(m, i)))
            }
            fn xor_block(self, block: [u8; 64], from: &[u8; 64], to: &mut [u8; 64]) {
                *to = std::array::from_fn(|i| from[i] ^ block[i]);
            }
            fn xor_block_in_place(self, block: [u8; 64], text: &mut [u8; 64]) {
                self.xor_part(block, text);
            }
            fn xor_part(self, block: [u8; 64], text: &mut [u8]) {
                assert!(text.len() <= 64);
                for (t, k) in text.iter_mut().zip(block) {
                    *t ^= k;
                }
            }
            fn quads(self, from: &[u64; HALF_MAX]) -> Self::Quads {
                *from
            }
            fn pairs(self, lower: Self::Words, upper: Self::Words) -> [Self::Quads; 2] {
                let pair = |i: usize| u64::from(lower[i]) | u64::from(upper[i]) << 32;
                [0, 1].map(|v: usize| each(Self::HALF, |i| pair(v * Self::HALF + i)))
            }
            fn splat(self, x: u64) -> Self::Quads {
                [x; HALF_MAX]
            }
            fn store_quads(self, v: Self::Quads, to: &mut [u64; HALF_MAX]) {
                *to = v;
            }
            // Sums of limbs never wrap: here they would panic.
            fn add(self, a: Self::Quads, b: Self::Quads) -> Self::Quads {
                each(Self::HALF, |i| a[i].checked_add(b[i]).expect("limbs have room"))
            }
            fn and(self, a: Self::Quads, b: Self::Quads) -> Self::Quads {
                each(Self::HALF, |i| a[i] & b[i])
            }
            fn or(self, a: Self::Quads, b: Self::Quads) -> Self::Quads {
                each(Self::HALF, |i| a[i] | b[i])
            }
            fn shl<const N: u32>(self, v: Self::Quads) -> Self::Quads {
                each(Self::HALF, |i| v[i] << N)
            }
            fn shr<const N: u32>(self, v: Self::Quads) -> Self::Quads {
                each(Self::HALF, |i| v[i] >> N)
            }
            fn select(self, mask: Self::Quads, a: Self::Quads, b: Self::Quads) -> Self::Quads {
                each(Self::HALF, |i| (mask[i] & a[i]) | (!mask[i] & b[i]))
            }
            fn gather(self, group: &[Packet<'_>], v: usize, at: usize) -> [[Self::Quads; 2]; 4] {
                assert!((0..Self::HALF).all(|i| Packet::of(group, v, Self::HALF, i).text.len() >= at + 64));
                self.gather_part(group, v, at)
            }
            fn gather_part(self, group: &[Packet<'_>], v: usize, at: usize) -> [[Self::Quads; 2]; 4] {
                let half = |lane: usize, from: usize| {
                    let text = &Packet::of(group, v, Self::HALF, lane).text;
                    u64::from_le_bytes(std::array::from_fn(|b| text.get(at + from + b).copied().unwrap_or(0)))
                };
                std::array::from_fn(|k| [0, 8].map(|h: usize| each(Self::HALF, |lane| half(lane, 16 * k + h))))
            }
        }
    };
}

twin!(16, Mac44, true);
twin!(8, Mac26, false);

const M52: u128 = (1 << 52) - 1;

fn product52(a: u64, b: u64) -> u128 {
    // The instruction would cut them off: limbs must not rely on that.
    assert!(u128::from(a) <= M52 && u128::from(b) <= M52, "limbs fit 52 bits");
    u128::from(a) * u128::from(b)
}

impl Ifma for Array<16> {
    fn madd_lo(self, acc: Self::Quads, a: Self::Quads, b: Self::Quads) -> Self::Quads {
        std::array::from_fn(|i| acc[i].checked_add((product52(a[i], b[i]) & M52) as u64).expect("room"))
    }
    fn madd_hi(self, acc: Self::Quads, a: Self::Quads, b: Self::Quads) -> Self::Quads {
        std::array::from_fn(|i| acc[i].checked_add((product52(a[i], b[i]) >> 52) as u64).expect("room"))
    }
}

impl Mul32 for Array<8> {
    fn mul(self, a: Self::Quads, b: Self::Quads) -> Self::Quads {
        each(Self::HALF, |i| {
            assert!(a[i] >> 32 == 0 && b[i] >> 32 == 0, "limbs fit 32 bits");
            a[i] * b[i]
        })
    }
}
