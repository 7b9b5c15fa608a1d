//! Poly1305 one message at a time: what stands before the texts.
//!
//! Accumulators are limbs of 44, 44 and 42 bits, each with some room above.

/// Mask of the lower two limbs.
pub(super) const M44: u64 = (1 << 44) - 1;
const M42: u64 = (1 << 42) - 1;
/// RFC 8439, section 2.5: bits of `r` that are always zero, lower and upper half.
pub(super) const CLAMP: [u64; 2] = [0x0fff_fffc_0fff_ffff, 0x0fff_fffc_0fff_fffc];

/// Takes `data`, zero-padded to whole blocks of 16 bytes, into an accumulator that was zero.
pub(super) fn absorb([lo, hi]: [u64; 2], data: &[u8]) -> [u64; 3] {
    let r = [lo & M44, ((lo >> 44) | (hi << 20)) & M44, hi >> 24].map(u128::from);
    let mut h = [0u64; 3];
    for chunk in data.chunks(16) {
        let mut block = [0; 16];
        block[..chunk.len()].copy_from_slice(chunk);
        let block = u128::from_le_bytes(block);
        let [a, b, c] =
            [h[0] + (block as u64 & M44), h[1] + ((block >> 44) as u64 & M44), h[2] + (block >> 88) as u64 + (1 << 40)]
                .map(u128::from);
        let d0 = a * r[0] + 20 * (b * r[2] + c * r[1]);
        let d1 = a * r[1] + b * r[0] + 20 * (c * r[2]) + (d0 >> 44);
        let d2 = a * r[2] + b * r[1] + c * r[0] + (d1 >> 44);
        let low = (d0 as u64 & M44) + 5 * (d2 >> 42) as u64;
        h = [low & M44, (d1 as u64 & M44) + (low >> 44), d2 as u64 & M42];
    }
    h
}

/// The value of an accumulator: 128 bits, and what is above.
#[inline(always)]
pub(super) const fn join(h: [u64; 3]) -> (u128, u64) {
    let h1 = h[1] + (h[0] >> 44);
    let h2 = h[2] + (h1 >> 44);
    let low = (h[0] & M44) as u128 | (((h1 & M44) as u128) << 44);
    (low | ((h2 as u128) << 88), h2 >> 40)
}
