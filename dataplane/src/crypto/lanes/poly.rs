//! Poly1305 (RFC 8439, section 2.5), a message a lane.
//!
//! Each lane has its own message, accumulator and key, so that no power of `r` is needed but its square, which saves
//! every other chain of carries.

use super::group::Packet;
use super::isa::{HALF_MAX, Ifma, Isa, Mul32};
use super::scalar::{self, M44};
use std::ops::Range;

/// A number of 128 bits for each of as many messages as a vector has 64-bit lanes, in lower and upper halves: `r`
/// (clamped) and `s` of the one-time keys, and tags.
#[derive(Clone, Copy)]
pub(super) struct Halves {
    pub(super) lo: [u64; HALF_MAX],
    pub(super) hi: [u64; HALF_MAX],
}

impl Halves {
    pub(super) const ZERO: Self = Self { lo: [0; HALF_MAX], hi: [0; HALF_MAX] };

    #[inline(always)]
    pub(super) fn load<I: Isa>(&self, isa: I) -> [I::Quads; 2] {
        [isa.quads(&self.lo), isa.quads(&self.hi)]
    }

    #[inline(always)]
    pub(super) fn store<I: Isa>(&mut self, isa: I, [lo, hi]: [I::Quads; 2]) {
        isa.store_quads(lo, &mut self.lo);
        isa.store_quads(hi, &mut self.hi);
    }

    #[inline(always)]
    pub(super) fn get(&self, lane: usize) -> u128 {
        u128::from(self.lo[lane]) | u128::from(self.hi[lane]) << 64
    }
}

/// Accumulators in the limbs of [`scalar`], a message a lane.
pub(super) type Sums = [[u64; HALF_MAX]; 3];

/// How one instruction set multiplies modulo 2^130 - 5.
pub(super) trait Mac<I: Isa>: Copy {
    /// The accumulators of the lanes.
    type Sum: Copy;
    /// `r` is clamped.
    fn new(isa: I, r: [I::Quads; 2]) -> Self;
    fn load(isa: I, sums: &Sums) -> Self::Sum;
    /// `(sum mod 2^130 - 5) + s mod 2^128`.
    fn tag(isa: I, sum: Self::Sum, s: [I::Quads; 2]) -> [I::Quads; 2];
    /// `(sum + block) * r`. Blocks are lower and upper half; each has the bit 2^128 on top.
    fn step(&self, isa: I, sum: Self::Sum, block: [I::Quads; 2]) -> Self::Sum;
    /// Two steps, with one chain of carries: `(sum + first) * r^2 + second * r`.
    fn two_steps(&self, isa: I, sum: Self::Sum, first: [I::Quads; 2], second: [I::Quads; 2]) -> Self::Sum;
    fn select(isa: I, mask: I::Quads, a: Self::Sum, b: Self::Sum) -> Self::Sum;
}

/// The authenticators of a group's packets: one vector of them or, with more packets than half the lanes, two.
/// Vectors take turns, so that one's chain of carries hides in the other's multiplications.
#[derive(Clone, Copy)]
pub(super) struct Tags<I: Isa> {
    macs: [I::Mac; 2],
    sums: [<I::Mac as Mac<I>>::Sum; 2],
}

/// Steps that go beside one block function.
pub(super) const BESIDE: usize = 8;

impl<I: Isa> Tags<I> {
    /// `sums` is what was before the texts.
    #[inline(always)]
    pub(super) fn new(isa: I, r: &[Halves; 2], sums: &[Sums; 2]) -> Self {
        Self {
            macs: [I::Mac::new(isa, r[0].load(isa)), I::Mac::new(isa, r[1].load(isa))],
            sums: [<I::Mac as Mac<I>>::load(isa, &sums[0]), <I::Mac as Mac<I>>::load(isa, &sums[1])],
        }
    }

    /// The blocks for [`BESIDE`] steps, in their order: 64 bytes of two vectors' texts or 128 of one's.
    #[inline(always)]
    pub(super) fn gather<const V: usize>(isa: I, group: &[Packet<'_>], at: usize) -> [[I::Quads; 2]; BESIDE] {
        if V == 2 {
            let (a, b) = (isa.gather(group, 0, at), isa.gather(group, 1, at));
            [a[0], b[0], a[1], b[1], a[2], b[2], a[3], b[3]]
        } else {
            let (a, b) = (isa.gather(group, 0, at), isa.gather(group, 0, at + 64));
            [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
        }
    }

    /// One step.
    #[inline(always)]
    pub(super) fn step(&mut self, isa: I, vector: usize, block: [I::Quads; 2]) {
        self.sums[vector] = self.macs[vector].step(isa, self.sums[vector], block);
    }

    /// Takes in that range, whole chunks of 64 bytes that all texts have.
    #[inline(always)]
    pub(super) fn absorb<const V: usize>(&mut self, isa: I, group: &[Packet<'_>], range: Range<usize>) {
        let mut at = range.start;
        while at + 64 <= range.end {
            let blocks = [isa.gather(group, 0, at), isa.gather(group, V - 1, at)];
            for k in 0..2 {
                for v in 0..V {
                    let sum = self.sums[v];
                    self.sums[v] = self.macs[v].two_steps(isa, sum, blocks[v][2 * k], blocks[v][2 * k + 1]);
                }
            }
            at += 64;
        }
    }

    /// Takes in the texts from `at` on, zero-padded to whole blocks, and the block with their lengths
    /// (RFC 8439, section 2.8): the tags.
    #[inline(always)]
    pub(super) fn finish<const V: usize>(
        mut self,
        isa: I,
        group: &[Packet<'_>],
        mut at: usize,
        lengths: &[Halves; 2],
        s: &[Halves; 2],
    ) -> [Halves; 2] {
        let (mut least, mut most) = (usize::MAX, 0);
        for p in group {
            (least, most) = (least.min(p.text.len()), most.max(p.text.len()));
        }
        if at < least {
            let end = at + (least - at) / 64 * 64;
            self.absorb::<V>(isa, group, at..end);
            at = end;
        }
        while at < most {
            let blocks = [isa.gather_part(group, 0, at), isa.gather_part(group, V - 1, at)];
            for k in 0..(most - at).div_ceil(16).min(4) {
                for v in 0..V {
                    let mut goes_on = [0; HALF_MAX];
                    for i in 0..I::HALF {
                        let len = Packet::of(group, v, I::HALF, i).text.len();
                        goes_on[i] = if at + 16 * k < len { u64::MAX } else { 0 };
                    }
                    let old = self.sums[v];
                    self.step(isa, v, blocks[v][k]);
                    self.sums[v] = <I::Mac as Mac<I>>::select(isa, isa.quads(&goes_on), self.sums[v], old);
                }
            }
            at += 64;
        }
        let mut tags = [Halves::ZERO; 2];
        for v in 0..V {
            self.step(isa, v, lengths[v].load(isa));
        }
        for v in 0..V {
            tags[v].store(isa, <I::Mac as Mac<I>>::tag(isa, self.sums[v], s[v].load(isa)));
        }
        tags
    }
}

/// What is above 2^130 comes back times 5.
#[inline(always)]
fn times_5<I: Isa>(isa: I, x: I::Quads) -> I::Quads {
    isa.add(x, isa.shl::<2>(x))
}

/// Limbs of 44, 44 and 42 bits, multiplied by 52-bit multiply-add.
#[derive(Clone, Copy)]
pub(super) struct Mac44<I: Isa> {
    r: Factor44<I>,
    r2: Factor44<I>,
}

#[derive(Clone, Copy)]
struct Factor44<I: Isa> {
    r: [I::Quads; 3],
    /// `20 * r[1]` and `20 * r[2]`: what is above 2^132 comes back times 20, as 2^130 is 5.
    s: [I::Quads; 2],
}

/// Sums of products in the lower 52 bits and above, for each limb.
#[derive(Clone, Copy)]
struct Products44<I: Isa> {
    low: [I::Quads; 3],
    high: [I::Quads; 3],
}

impl<I: Ifma> Factor44<I> {
    #[inline(always)]
    fn new(isa: I, r: [I::Quads; 3]) -> Self {
        let s1 = isa.add(isa.shl::<4>(r[1]), isa.shl::<2>(r[1]));
        let s2 = isa.add(isa.shl::<4>(r[2]), isa.shl::<2>(r[2]));
        Self { r, s: [s1, s2] }
    }

    /// `to + h * self`.
    #[inline(always)]
    fn times(&self, isa: I, h: [I::Quads; 3], to: Products44<I>) -> Products44<I> {
        let ([r0, r1, r2], [s1, s2]) = (self.r, self.s);
        let factors = [[r0, s2, s1], [r1, r0, s2], [r2, r1, r0]];
        let mut to = to;
        for i in 0..3 {
            for j in [2, 1, 0] {
                to.low[i] = isa.madd_lo(to.low[i], h[j], factors[i][j]);
                to.high[i] = isa.madd_hi(to.high[i], h[j], factors[i][j]);
            }
        }
        to
    }
}

impl<I: Ifma> Products44<I> {
    #[inline(always)]
    fn zero(isa: I) -> Self {
        Self { low: [isa.splat(0); 3], high: [isa.splat(0); 3] }
    }

    /// Carries. Bounds: each of at most six products in a sum gives less than 2^52 below and less than 2^44
    /// above, so that no sum reaches 2^58.
    #[inline(always)]
    fn carry(self, isa: I) -> [I::Quads; 3] {
        let (m44, m42) = (isa.splat(M44), isa.splat(M44 >> 2));
        let ([l0, l1, l2], [u0, u1, u2]) = (self.low, self.high);
        // What is above 2^52 has weight 2^52 = 2^8 * 2^44: it belongs to the next limb.
        let d1 = isa.add(isa.add(l1, isa.shl::<8>(u0)), isa.shr::<44>(l0));
        let d2 = isa.add(isa.add(l2, isa.shl::<8>(u1)), isa.shr::<44>(d1));
        // At the top 2^(88 + 52) = 2^10 * 2^130.
        let top = isa.add(isa.shl::<10>(u2), isa.shr::<42>(d2));
        let d0 = isa.add(isa.and(l0, m44), times_5(isa, top));
        [isa.and(d0, m44), isa.add(isa.and(d1, m44), isa.shr::<44>(d0)), isa.and(d2, m42)]
    }
}

impl<I: Ifma> Mac44<I> {
    /// The limbs of a number's lower and upper 64 bits.
    #[inline(always)]
    fn limbs(isa: I, [lo, hi]: [I::Quads; 2]) -> [I::Quads; 3] {
        let m44 = isa.splat(M44);
        [isa.and(lo, m44), isa.and(isa.or(isa.shr::<44>(lo), isa.shl::<20>(hi)), m44), isa.shr::<24>(hi)]
    }

    /// A block's, with its bit 2^128.
    #[inline(always)]
    fn block(isa: I, block: [I::Quads; 2]) -> [I::Quads; 3] {
        let [a, b, c] = Self::limbs(isa, block);
        [a, b, isa.or(c, isa.splat(1 << 40))]
    }
}

impl<I: Ifma> Mac<I> for Mac44<I> {
    /// 44 bits, 44 bits and a carry of less than 2^13, 42 bits: with a block added each limb is below 2^46,
    /// within the 52 bits that are multiplied.
    type Sum = [I::Quads; 3];

    #[inline(always)]
    fn new(isa: I, r: [I::Quads; 2]) -> Self {
        let r = Factor44::new(isa, Self::limbs(isa, r));
        let squared = r.times(isa, r.r, Products44::zero(isa)).carry(isa);
        Self { r, r2: Factor44::new(isa, squared) }
    }

    #[inline(always)]
    fn load(isa: I, sums: &Sums) -> Self::Sum {
        [isa.quads(&sums[0]), isa.quads(&sums[1]), isa.quads(&sums[2])]
    }

    #[inline(always)]
    fn tag(isa: I, [h0, h1, h2]: Self::Sum, s: [I::Quads; 2]) -> [I::Quads; 2] {
        let (m44, m42) = (isa.splat(M44), isa.splat(M44 >> 2));
        // Below 2^130, or not much above.
        let h2 = isa.add(h2, isa.shr::<44>(h1));
        let (h0, h1, h2) = (isa.add(h0, times_5(isa, isa.shr::<42>(h2))), isa.and(h1, m44), isa.and(h2, m42));
        // It is the sum modulo 2^130 - 5 if adding 5 does not reach 2^130; if it does, what is below 2^130 then is.
        let carry = isa.shr::<44>(isa.add(h0, isa.splat(5)));
        let carry = isa.shr::<44>(isa.add(h1, carry));
        let over = isa.shr::<42>(isa.add(h2, carry));
        let [s0, s1, s2] = Self::limbs(isa, s);
        let t0 = isa.add(isa.add(h0, times_5(isa, over)), s0);
        let t1 = isa.add(isa.add(h1, s1), isa.shr::<44>(t0));
        let t2 = isa.add(isa.add(h2, s2), isa.shr::<44>(t1));
        let (t0, t1) = (isa.and(t0, m44), isa.and(t1, m44));
        [isa.or(t0, isa.shl::<44>(t1)), isa.or(isa.shr::<20>(t1), isa.shl::<24>(t2))]
    }

    #[inline(always)]
    fn step(&self, isa: I, sum: Self::Sum, block: [I::Quads; 2]) -> Self::Sum {
        let b = Self::block(isa, block);
        let h = [isa.add(sum[0], b[0]), isa.add(sum[1], b[1]), isa.add(sum[2], b[2])];
        self.r.times(isa, h, Products44::zero(isa)).carry(isa)
    }

    #[inline(always)]
    fn two_steps(&self, isa: I, sum: Self::Sum, first: [I::Quads; 2], second: [I::Quads; 2]) -> Self::Sum {
        let products = self.r.times(isa, Self::block(isa, second), Products44::zero(isa));
        let b = Self::block(isa, first);
        let h = [isa.add(sum[0], b[0]), isa.add(sum[1], b[1]), isa.add(sum[2], b[2])];
        self.r2.times(isa, h, products).carry(isa)
    }

    #[inline(always)]
    fn select(isa: I, mask: I::Quads, a: Self::Sum, b: Self::Sum) -> Self::Sum {
        let mut out = a;
        for i in 0..out.len() {
            out[i] = isa.select(mask, a[i], b[i]);
        }
        out
    }
}

/// Five limbs of 26 bits, multiplied as 32-bit numbers.
#[derive(Clone, Copy)]
pub(super) struct Mac26<I: Isa> {
    r: Factor26<I>,
    r2: Factor26<I>,
}

#[derive(Clone, Copy)]
struct Factor26<I: Isa> {
    r: [I::Quads; 5],
    /// `5 * r`: what is above 2^130 comes back times 5.
    s: [I::Quads; 5],
}

const M26: u64 = (1 << 26) - 1;

impl<I: Mul32> Factor26<I> {
    #[inline(always)]
    fn new(isa: I, r: [I::Quads; 5]) -> Self {
        let mut s = r;
        for x in &mut s {
            *x = times_5(isa, *x);
        }
        Self { r, s }
    }

    /// `to + h * self`.
    #[inline(always)]
    fn times(&self, isa: I, h: [I::Quads; 5], to: [I::Quads; 5]) -> [I::Quads; 5] {
        let mut to = to;
        for j in 0..5 {
            for i in 0..5 {
                let factor = if j <= i { self.r[i - j] } else { self.s[i + 5 - j] };
                to[i] = isa.add(to[i], isa.mul(h[j], factor));
            }
        }
        to
    }
}

impl<I: Mul32> Mac26<I> {
    /// The limbs of a number's lower and upper 64 bits.
    #[inline(always)]
    fn limbs(isa: I, [lo, hi]: [I::Quads; 2]) -> [I::Quads; 5] {
        let m = isa.splat(M26);
        [
            isa.and(lo, m),
            isa.and(isa.shr::<26>(lo), m),
            isa.and(isa.or(isa.shr::<52>(lo), isa.shl::<12>(hi)), m),
            isa.and(isa.shr::<14>(hi), m),
            isa.shr::<40>(hi),
        ]
    }

    /// A block's, with its bit 2^128.
    #[inline(always)]
    fn block(isa: I, block: [I::Quads; 2]) -> [I::Quads; 5] {
        let [a, b, c, d, e] = Self::limbs(isa, block);
        [a, b, c, d, isa.or(e, isa.splat(1 << 24))]
    }

    /// Carries, in two chains side by side. Bounds: ten products of less than 2^28 and 5 * 2^26.1 in a sum, which
    /// stays below 2^60.
    #[inline(always)]
    fn carry(isa: I, d: [I::Quads; 5]) -> [I::Quads; 5] {
        let m = isa.splat(M26);
        let [mut d0, mut d1, mut d2, mut d3, mut d4] = d;
        d1 = isa.add(d1, isa.shr::<26>(d0));
        d4 = isa.add(d4, isa.shr::<26>(d3));
        (d0, d3) = (isa.and(d0, m), isa.and(d3, m));
        d2 = isa.add(d2, isa.shr::<26>(d1));
        let top = isa.shr::<26>(d4);
        d0 = isa.add(d0, times_5(isa, top));
        (d1, d4) = (isa.and(d1, m), isa.and(d4, m));
        d3 = isa.add(d3, isa.shr::<26>(d2));
        d1 = isa.add(d1, isa.shr::<26>(d0));
        (d2, d0) = (isa.and(d2, m), isa.and(d0, m));
        d4 = isa.add(d4, isa.shr::<26>(d3));
        d3 = isa.and(d3, m);
        [d0, d1, d2, d3, d4]
    }
}

impl<I: Mul32> Mac<I> for Mac26<I> {
    /// Limbs below 2^26, the second and the last with a carry: with a block added below 2^28.
    type Sum = [I::Quads; 5];

    #[inline(always)]
    fn new(isa: I, r: [I::Quads; 2]) -> Self {
        let r = Factor26::new(isa, Self::limbs(isa, r));
        let squared = Self::carry(isa, r.times(isa, r.r, [isa.splat(0); 5]));
        Self { r, r2: Factor26::new(isa, squared) }
    }

    #[inline(always)]
    fn load(isa: I, sums: &Sums) -> Self::Sum {
        let mut limbs = [[0; HALF_MAX]; 5];
        for i in 0..I::HALF {
            let h = scalar::join([sums[0][i], sums[1][i], sums[2][i]]);
            for (k, limb) in limbs.iter_mut().enumerate() {
                limb[i] = (h.0 >> (26 * k)) as u64 & M26;
            }
            limbs[4][i] |= h.1 << 24;
        }
        let mut out = [isa.splat(0); 5];
        for i in 0..5 {
            out[i] = isa.quads(&limbs[i]);
        }
        out
    }

    #[inline(always)]
    fn tag(isa: I, sum: Self::Sum, s: [I::Quads; 2]) -> [I::Quads; 2] {
        let m = isa.splat(M26);
        let mut h = sum;
        // Below 2^130, or not much above.
        for i in 1..4 {
            h[i + 1] = isa.add(h[i + 1], isa.shr::<26>(h[i]));
            h[i] = isa.and(h[i], m);
        }
        h[0] = isa.add(h[0], times_5(isa, isa.shr::<26>(h[4])));
        h[4] = isa.and(h[4], m);
        // It is the sum modulo 2^130 - 5 if adding 5 does not reach 2^130; if it does, what is below 2^130 then is.
        let mut carry = isa.splat(5);
        for i in 0..5 {
            carry = isa.shr::<26>(isa.add(h[i], carry));
        }
        h[0] = isa.add(h[0], times_5(isa, carry));
        let s = Self::limbs(isa, s);
        let mut carry = isa.splat(0);
        for i in 0..5 {
            let t = isa.add(isa.add(h[i], s[i]), carry);
            (h[i], carry) = (isa.and(t, m), isa.shr::<26>(t));
        }
        let low = isa.or(isa.or(h[0], isa.shl::<26>(h[1])), isa.shl::<52>(h[2]));
        let high = isa.or(isa.or(isa.shr::<12>(h[2]), isa.shl::<14>(h[3])), isa.shl::<40>(h[4]));
        [low, high]
    }

    #[inline(always)]
    fn step(&self, isa: I, sum: Self::Sum, block: [I::Quads; 2]) -> Self::Sum {
        let mut h = Self::block(isa, block);
        for i in 0..5 {
            h[i] = isa.add(h[i], sum[i]);
        }
        Self::carry(isa, self.r.times(isa, h, [isa.splat(0); 5]))
    }

    #[inline(always)]
    fn two_steps(&self, isa: I, sum: Self::Sum, first: [I::Quads; 2], second: [I::Quads; 2]) -> Self::Sum {
        let products = self.r.times(isa, Self::block(isa, second), [isa.splat(0); 5]);
        let mut h = Self::block(isa, first);
        for i in 0..5 {
            h[i] = isa.add(h[i], sum[i]);
        }
        Self::carry(isa, self.r2.times(isa, h, products))
    }

    #[inline(always)]
    fn select(isa: I, mask: I::Quads, a: Self::Sum, b: Self::Sum) -> Self::Sum {
        let mut out = a;
        for i in 0..out.len() {
            out[i] = isa.select(mask, a[i], b[i]);
        }
        out
    }
}
