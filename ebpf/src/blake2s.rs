//! BLAKE2s (RFC 7693), as much of it as MAC1 of a handshake message takes: keyed, 16 bytes of result (WireGuard paper,
//! section 5.4.4). For the kernel programs, which cannot use a library; held against one in the tests.

/// Initial state (RFC 7693, 2.6).
const IV: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
/// Parameters (RFC 7693, 2.8): a result of 16 bytes, a key of 32, neither fanout nor depth.
const PARAMETERS: u32 = 0x0101_2010;
/// Words of a block of the message, 64 bytes.
pub const BLOCK_WORDS: usize = 16;

/// Which word of the message comes when, in each round (RFC 7693, 2.7).
const SIGMA: [[u8; 16]; 10] = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
    [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
    [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
    [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
    [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
    [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
    [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
    [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
];

/// The mixing function G (RFC 7693, 3.1).
macro_rules! mix {
    ($v:ident, $a:literal $b:literal $c:literal $d:literal, $x:expr, $y:expr) => {
        $v[$a] = $v[$a].wrapping_add($v[$b]).wrapping_add($x);
        $v[$d] = ($v[$d] ^ $v[$a]).rotate_right(16);
        $v[$c] = $v[$c].wrapping_add($v[$d]);
        $v[$b] = ($v[$b] ^ $v[$c]).rotate_right(12);
        $v[$a] = $v[$a].wrapping_add($v[$b]).wrapping_add($y);
        $v[$d] = ($v[$d] ^ $v[$a]).rotate_right(8);
        $v[$c] = $v[$c].wrapping_add($v[$d]);
        $v[$b] = ($v[$b] ^ $v[$c]).rotate_right(7);
    };
}

/// What a block does to a state: it is to be XORed with this (RFC 7693, 3.2). `so_far` is how many bytes have been taken
/// with the block, that of the key among them.
#[inline(always)]
#[must_use]
pub fn compress(state: &[u32; 8], block: &[u32; BLOCK_WORDS], so_far: u32, last: bool) -> [u32; 8] {
    let ends = if last { u32::MAX } else { 0 };
    let mut v = [0; 16];
    v[..8].copy_from_slice(state);
    v[8..].copy_from_slice(&IV);
    v[12] ^= so_far;
    v[14] ^= ends;
    for sigma in &SIGMA {
        let m = |i: usize| block[usize::from(sigma[i] & 15)];
        mix!(v, 0 4 8 12, m(0), m(1));
        mix!(v, 1 5 9 13, m(2), m(3));
        mix!(v, 2 6 10 14, m(4), m(5));
        mix!(v, 3 7 11 15, m(6), m(7));
        mix!(v, 0 5 10 15, m(8), m(9));
        mix!(v, 1 6 11 12, m(10), m(11));
        mix!(v, 2 7 8 13, m(12), m(13));
        mix!(v, 3 4 9 14, m(14), m(15));
    }
    core::array::from_fn(|i| v[i] ^ v[i + 8])
}

/// The state after the key, for MACs under it.
#[must_use]
pub fn keyed(key: &[u8; 32]) -> [u32; 8] {
    let mut block = [0; BLOCK_WORDS];
    for (word, bytes) in block.iter_mut().zip(key.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    let mut state = IV;
    state[0] ^= PARAMETERS;
    let change = compress(&state, &block, 64, false);
    core::array::from_fn(|i| state[i] ^ change[i])
}
