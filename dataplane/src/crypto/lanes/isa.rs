//! What the lanes need of an instruction set.
//!
//! A value of a type that implements [`Isa`] is the proof that the CPU has those instructions: it is made only
//! after asking. So its methods are safe to call, and everything above them is safe Rust with checked slices.
//! It becomes fast only once it is part of a function that is compiled for the instruction set
//! (`#[target_feature]`): a function in between keeps every instruction a call. So all of it is
//! `#[inline(always)]`, and nothing that handles vectors is in a closure, which cannot be that.

use super::group::Packet;

/// Lanes of the widest instruction set.
pub(in crate::crypto) const LANES_MAX: usize = 16;
/// Half of them: as many 64-bit lanes are as wide.
pub(super) const HALF_MAX: usize = LANES_MAX / 2;

/// One instruction set: vectors of 32-bit words for ChaCha20 and of half as many 64-bit words for Poly1305.
pub(super) trait Isa: Copy {
    /// 32-bit lanes in a vector: packets in a group.
    const LANES: usize;
    /// 64-bit lanes in a vector.
    const HALF: usize = Self::LANES / 2;
    /// [`Self::LANES`] words of 32 bits.
    type Words: Copy;
    /// [`Self::HALF`] words of 64 bits.
    type Quads: Copy;

    fn words(self, from: &[u32; LANES_MAX]) -> Self::Words;
    fn add_words(self, a: Self::Words, b: Self::Words) -> Self::Words;
    fn xor_words(self, a: Self::Words, b: Self::Words) -> Self::Words;
    fn rotate_words<const LEFT: i32>(self, v: Self::Words) -> Self::Words;
    /// Turns sixteen vectors, one a word of the key stream, towards blocks: half of the way.
    fn quarters(self, words: [Self::Words; 16]) -> [[Self::Words; 4]; 4];
    /// The other half: the key stream of lanes `column`, `column + 4`, `column + 8`, `column + 12`. Lanes beyond
    /// [`Self::LANES`] are of no use.
    fn column(self, quarters: &[[Self::Words; 4]; 4], column: usize) -> [Self::Block; 4];

    /// 64 bytes of key stream.
    type Block: Copy;
    /// `to = from ^ block`.
    fn xor_block(self, block: Self::Block, from: &[u8; 64], to: &mut [u8; 64]);
    /// `text ^= block`.
    fn xor_block_in_place(self, block: Self::Block, text: &mut [u8; 64]);
    /// `text ^= block`, for a text shorter than the block.
    fn xor_part(self, block: Self::Block, text: &mut [u8]);

    fn quads(self, from: &[u64; HALF_MAX]) -> Self::Quads;
    /// 64-bit numbers of their lower and upper words, lane by lane: of the first half of the lanes, and of the second.
    fn pairs(self, lower: Self::Words, upper: Self::Words) -> [Self::Quads; 2];
    fn splat(self, x: u64) -> Self::Quads;
    fn store_quads(self, v: Self::Quads, to: &mut [u64; HALF_MAX]);
    fn add(self, a: Self::Quads, b: Self::Quads) -> Self::Quads;
    fn and(self, a: Self::Quads, b: Self::Quads) -> Self::Quads;
    fn or(self, a: Self::Quads, b: Self::Quads) -> Self::Quads;
    fn shl<const N: u32>(self, v: Self::Quads) -> Self::Quads;
    fn shr<const N: u32>(self, v: Self::Quads) -> Self::Quads;
    /// `a` where `mask` has ones, `b` where it has zeros.
    fn select(self, mask: Self::Quads, a: Self::Quads, b: Self::Quads) -> Self::Quads;
    /// The 64 bytes at `at` of the texts of vector `v`'s packets: for each of their four blocks of 16 bytes the
    /// lower and the upper half, a text a lane.
    fn gather(self, group: &[Packet<'_>], v: usize, at: usize) -> [[Self::Quads; 2]; 4];
    /// The same for texts that may end within these bytes, or before them: zeros follow.
    fn gather_part(self, group: &[Packet<'_>], v: usize, at: usize) -> [[Self::Quads; 2]; 4];

    /// How this instruction set multiplies in Poly1305.
    type Mac: super::poly::Mac<Self>;
    /// There are registers for steps of Poly1305 in the middle of ChaCha20.
    const STITCH: bool;
}

/// Has 52-bit multiply-add on 64-bit lanes.
pub(super) trait Ifma: Isa {
    /// `acc + (a * b) % 2^52`, of the lower 52 bits of `a` and `b`.
    fn madd_lo(self, acc: Self::Quads, a: Self::Quads, b: Self::Quads) -> Self::Quads;
    /// `acc + (a * b) / 2^52`, of the lower 52 bits of `a` and `b`.
    fn madd_hi(self, acc: Self::Quads, a: Self::Quads, b: Self::Quads) -> Self::Quads;
}

/// Multiplies 32-bit halves of 64-bit lanes.
pub(super) trait Mul32: Isa {
    /// The product of the lower 32 bits of `a` and `b`.
    fn mul(self, a: Self::Quads, b: Self::Quads) -> Self::Quads;
}
