//! ChaCha20 (RFC 8439, section 2.3), a block a lane.

use super::group::Held;
use super::isa::{Isa, LANES_MAX};
use super::poly::{BESIDE, Tags};

/// The state of as many blocks as there are lanes.
#[derive(Clone, Copy)]
pub(super) struct State<I: Isa>([I::Words; 16]);

/// What distinguishes the blocks of a [`State`]. Lanes beyond those in use may hold anything.
pub(super) struct Inputs<'a> {
    /// The key of each lane in use.
    pub(super) keys: &'a [&'a [u32; 8]],
    pub(super) counters: [u32; LANES_MAX],
    pub(super) nonces: [[u32; LANES_MAX]; 3],
}

/// "expand 32-byte k" in little endian.
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];
/// Word of the state that is the block counter.
const COUNTER: usize = 12;

/// Four quarter rounds, on columns or diagonals: rows `0..4` with the given ones.
macro_rules! quarter_rounds {
    ($isa:ident, $s:ident, $b:expr, $c:expr, $d:expr) => {
        quarter_rounds!(step $isa, $s, [0, 1, 2, 3], $b, $d, 16);
        quarter_rounds!(step $isa, $s, $c, $d, $b, 12);
        quarter_rounds!(step $isa, $s, [0, 1, 2, 3], $b, $d, 8);
        quarter_rounds!(step $isa, $s, $c, $d, $b, 7);
    };
    // The four do not wait for each other: side by side they hide each other's latency.
    (step $isa:ident, $s:ident, $to:expr, $add:expr, $turn:expr, $by:literal) => {
        for i in 0..4 {
            $s[$to[i]] = $isa.add_words($s[$to[i]], $s[$add[i]]);
        }
        for i in 0..4 {
            $s[$turn[i]] = $isa.rotate_words::<$by>($isa.xor_words($s[$turn[i]], $s[$to[i]]));
        }
    };
}

impl<I: Isa> State<I> {
    #[inline(always)]
    pub(super) fn new(isa: I, inputs: &Inputs<'_>) -> Self {
        let first = inputs.keys[0];
        // Public: which session a packet belongs to, not what its key is.
        let same = inputs.keys.iter().all(|k| std::ptr::eq(*k, first));
        let mut s = [isa.words(&[0; LANES_MAX]); 16];
        for i in 0..4 {
            s[i] = isa.words(&[CONSTANTS[i]; LANES_MAX]);
        }
        for i in 0..8 {
            let mut lanes = [first[i]; LANES_MAX];
            if !same {
                for (lane, key) in lanes.iter_mut().zip(inputs.keys) {
                    *lane = key[i];
                }
            }
            s[4 + i] = isa.words(&lanes);
        }
        s[COUNTER] = isa.words(&inputs.counters);
        for i in 0..3 {
            s[13 + i] = isa.words(&inputs.nonces[i]);
        }
        Self(s)
    }

    /// Moves every lane's block counter.
    #[inline(always)]
    pub(super) fn advance(&mut self, isa: I, by: u32) {
        self.0[COUNTER] = isa.add_words(self.0[COUNTER], isa.words(&[by; LANES_MAX]));
    }

    /// The key stream: its sixteen words, a block a lane.
    #[inline(always)]
    pub(super) fn block(&self, isa: I) -> [I::Words; 16] {
        let mut s = self.0;
        for _ in 0..10 {
            quarter_rounds!(isa, s, [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]);
            quarter_rounds!(isa, s, [5, 6, 7, 4], [10, 11, 8, 9], [15, 12, 13, 14]);
        }
        self.end(isa, s)
    }

    /// This key stream and another's, which do not wait for each other.
    #[inline(always)]
    pub(super) fn two_blocks(&self, isa: I, other: &Self) -> [[I::Words; 16]; 2] {
        let (mut s, mut t) = (self.0, other.0);
        for _ in 0..10 {
            quarter_rounds!(isa, s, [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]);
            quarter_rounds!(isa, t, [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]);
            quarter_rounds!(isa, s, [5, 6, 7, 4], [10, 11, 8, 9], [15, 12, 13, 14]);
            quarter_rounds!(isa, t, [5, 6, 7, 4], [10, 11, 8, 9], [15, 12, 13, 14]);
        }
        [self.end(isa, s), other.end(isa, t)]
    }

    /// The key stream, with steps of Poly1305 in between, on text as it is sent, and with what an earlier pass has still
    /// to apply. Rotations keep one half of the vector units waiting for the other: that is where both fit in.
    #[inline(always)]
    pub(super) fn block_beside<const V: usize>(
        &self,
        isa: I,
        tags: &mut Tags<I>,
        beside: &[[I::Quads; 2]; BESIDE],
        mut held: Held<'_, '_, I>,
    ) -> [I::Words; 16] {
        let mut s = self.0;
        for i in 0..BESIDE / 2 {
            for v in 0..2 {
                quarter_rounds!(isa, s, [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]);
                tags.step(isa, v % V, beside[2 * i + v]);
                quarter_rounds!(isa, s, [5, 6, 7, 4], [10, 11, 8, 9], [15, 12, 13, 14]);
            }
            held.apply::<V>(isa, i);
        }
        for _ in BESIDE..10 {
            quarter_rounds!(isa, s, [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]);
            quarter_rounds!(isa, s, [5, 6, 7, 4], [10, 11, 8, 9], [15, 12, 13, 14]);
        }
        self.end(isa, s)
    }

    #[inline(always)]
    fn end(&self, isa: I, mut s: [I::Words; 16]) -> [I::Words; 16] {
        for i in 0..16 {
            s[i] = isa.add_words(s[i], self.0[i]);
        }
        s
    }
}
