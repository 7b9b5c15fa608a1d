//! A batch of packets, group by group.
//!
//! A group has at most as many packets as there are lanes, all of about the same length, and its texts fit the
//! first-level cache. One block function makes its one-time keys, a packet a lane. Then each packet has one lane
//! or, in a small group, a power of two of neighbouring ones, and pass after pass of the block function goes along
//! the texts. Tags are computed, again a packet a lane, beside the next pass when sealing and beside the same
//! when opening.

use super::chacha::{Inputs, State};
use super::isa::{HALF_MAX, Isa, LANES_MAX};
use super::poly::{BESIDE, Keys, Tags};
use super::scalar;
use arrayvec::ArrayVec;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// Packets in a batch, at most.
pub(in crate::crypto) const PACKETS_MAX: usize = 64;

/// One packet.
pub(in crate::crypto) struct Packet<'a> {
    pub(in crate::crypto) key: &'a [u32; 8],
    /// RFC 8439, section 2.3: in little endian.
    pub(in crate::crypto) nonce: [u32; 3],
    /// The tag was right. If not, there may be anything in `text`: it must not be shown to anybody.
    pub(in crate::crypto) ok: &'a mut bool,
    /// Associated data: never on the packet path.
    pub(in crate::crypto) aad: &'a [u8],
    pub(in crate::crypto) text: &'a mut [u8],
    pub(in crate::crypto) tag: &'a mut [u8; 16],
    /// Whole blocks that are read from here while sealing, instead of from `text`, and where they start in the text.
    pub(in crate::crypto) from: &'a [u8],
    pub(in crate::crypto) start: usize,
}

impl Packet<'_> {
    /// The packet of each lane of vector `v` of a group. Lanes without one take the first one along, so that they
    /// are in nobody's way.
    #[inline(always)]
    pub(super) fn of<'g, 'p>(group: &'g [Packet<'p>], v: usize, half: usize, lane: usize) -> &'g Packet<'p> {
        group.get(v * half + lane).unwrap_or(&group[0])
    }
}

/// The packets of a batch, and how many of them make up each group.
pub(in crate::crypto) struct Batch<'a> {
    pub(in crate::crypto) packets: ArrayVec<Packet<'a>, PACKETS_MAX>,
    pub(in crate::crypto) groups: ArrayVec<u8, PACKETS_MAX>,
}

/// Encrypts the texts and sets the tags.
#[inline(always)]
pub(super) fn seal<I: Isa>(isa: I, batch: &mut Batch<'_>) {
    walk::<I, true>(isa, batch);
}

/// Decrypts the texts and compares the tags.
#[inline(always)]
pub(super) fn open<I: Isa>(isa: I, batch: &mut Batch<'_>) {
    walk::<I, false>(isa, batch);
}

#[inline(always)]
fn walk<I: Isa, const SEAL: bool>(isa: I, batch: &mut Batch<'_>) {
    let mut one_time = OneTime::ZERO;
    let mut rest = &mut batch.packets[..];
    for n in &batch.groups {
        let (group, others) = rest.split_at_mut(usize::from(*n).min(I::LANES));
        rest = others;
        if group.len() > I::HALF {
            whole::<I, SEAL, 2>(isa, group, &mut one_time);
        } else {
            whole::<I, SEAL, 1>(isa, group, &mut one_time);
        }
    }
}

/// Does a group with `V` vectors of tags.
#[inline(always)]
fn whole<I: Isa, const SEAL: bool, const V: usize>(isa: I, group: &mut [Packet<'_>], one_time: &mut OneTime) {
    let mut state = Lanes::new::<I>(group.len()).state(isa, group, 0);
    let mut first = None;
    if V == 2 && I::STITCH && !group[0].text.is_empty() {
        // The first pass of the texts has the same lanes, a block further.
        let keys = state;
        state.advance(isa, 1);
        let [zeroth, block] = keys.two_blocks(isa, &state);
        one_time.set(isa, zeroth);
        first = Some(block);
    } else {
        one_time.set(isa, state.block(isa));
        if V == 2 {
            state.advance(isa, 1);
        }
    }
    let (mut lengths, mut sums) = ([[[0; HALF_MAX]; 2]; 2], [[[0; HALF_MAX]; 3]; 2]);
    let (mut least, mut most) = (usize::MAX, 0);
    for (i, p) in group.iter().enumerate() {
        let (v, lane) = (i / I::HALF, i % I::HALF);
        let len = p.text.len();
        (least, most) = (least.min(len), most.max(len));
        (lengths[v][0][lane], lengths[v][1][lane]) = (p.aad.len() as u64, len as u64);
        if !p.aad.is_empty() {
            let before = scalar::absorb([one_time.r[v].lo[lane], one_time.r[v].hi[lane]], p.aad);
            for k in 0..3 {
                sums[v][k][lane] = before[k];
            }
        }
    }
    let mut tags = Tags::new(isa, &one_time.r, &sums);
    let mut tagged = 0;
    let mut finished = None;
    let lanes = Lanes::new::<I>(group.len()).shared::<I>();
    if V == 1 {
        state = lanes.state(isa, group, 1);
    }
    let pass = lanes.share() * 64;
    // Bytes of each text for which there is key stream, and to which it is applied: a pass behind.
    let (mut made, mut applied) = (0, 0);
    let mut quarters = isa.quarters([isa.words(&[0; LANES_MAX]); 16]);
    while made < most {
        // What is as it was sent (sealing), or still (opening).
        let ready = if SEAL { applied } else { made + pass };
        let held = Held { quarters: &quarters, at: applied, whole: made <= least, lanes: &lanes, group };
        let block = if I::STITCH && made > 0 && tagged + pass <= ready && ready <= least {
            let beside = Tags::gather::<V>(isa, held.group, tagged);
            let block = state.block_beside::<V>(isa, &mut tags, &beside, held);
            tags.absorb::<V>(isa, group, tagged + BESIDE * 16 / V..ready);
            tagged = ready;
            applied = made;
            block
        } else {
            if made > 0 {
                held.apply_all::<V>(isa);
                applied = made;
            }
            if !SEAL && ready <= least {
                tags.absorb::<V>(isa, group, tagged..ready);
                tagged = ready;
            } else if !SEAL && finished.is_none() {
                finished = Some(tags.finish::<V>(isa, group, tagged, &lengths));
            }
            match first.take() {
                Some(block) => block,
                None => state.block(isa),
            }
        };
        state.advance(isa, lanes.share() as u32);
        quarters = isa.quarters(block);
        made += pass;
    }
    if applied < made {
        Held { quarters: &quarters, at: applied, whole: made <= least, lanes: &lanes, group }.apply_all::<V>(isa);
    }
    let sums = match finished {
        Some(sums) => sums,
        None => tags.finish::<V>(isa, group, tagged, &lengths),
    };
    for (i, p) in group.iter_mut().enumerate() {
        let (v, lane) = (i / I::HALF, i % I::HALF);
        let tag = scalar::finish([sums[v][0][lane], sums[v][1][lane], sums[v][2][lane]], one_time.s[i]).to_le_bytes();
        if SEAL {
            (*p.tag, *p.ok) = (tag, true);
        } else {
            // As one number: a comparison byte by byte is a barrier for each.
            *p.ok = u128::from_le_bytes(tag).ct_eq(&u128::from_le_bytes(*p.tag)).into();
        }
    }
}

/// The one-time keys for Poly1305 (RFC 8439, section 2.6).
struct OneTime {
    r: [Keys; 2],
    s: [u128; LANES_MAX],
}

impl OneTime {
    const ZERO: Self = Self { r: [Keys::ZERO; 2], s: [0; LANES_MAX] };

    #[inline(always)]
    fn set<I: Isa>(&mut self, isa: I, block: [I::Words; 16]) {
        let mut words = [[0; LANES_MAX]; 8];
        for i in 0..8 {
            isa.store_words(block[i], &mut words[i]);
        }
        for lane in 0..I::LANES {
            let two = |i: usize| u64::from(words[i][lane]) | u64::from(words[i + 1][lane]) << 32;
            let [lo, hi] = scalar::clamp([two(0), two(2)]);
            let to = &mut self.r[lane / I::HALF];
            (to.lo[lane % I::HALF], to.hi[lane % I::HALF]) = (lo, hi);
            self.s[lane] = u128::from(two(4)) | u128::from(two(6)) << 64;
        }
    }
}

impl Drop for OneTime {
    fn drop(&mut self) {
        for r in &mut self.r {
            r.lo.zeroize();
            r.hi.zeroize();
        }
        self.s.zeroize();
    }
}

/// How a group's packets share the lanes.
struct Lanes {
    /// Lanes in use.
    count: usize,
    /// Each packet has two to the power of this.
    share_bits: u32,
}

impl Lanes {
    /// One for each packet.
    #[inline(always)]
    fn new<I: Isa>(packets: usize) -> Self {
        Self { count: packets.min(I::LANES), share_bits: 0 }
    }

    /// As many as there are for each packet.
    #[inline(always)]
    fn shared<I: Isa>(&self) -> Self {
        let share_bits = (I::LANES / self.count).ilog2();
        Self { count: self.count << share_bits, share_bits }
    }

    #[inline(always)]
    fn share(&self) -> usize {
        1 << self.share_bits
    }

    /// The packet of a lane.
    #[inline(always)]
    fn packet(&self, lane: usize) -> usize {
        lane >> self.share_bits
    }

    /// Which of the packet's lanes it is.
    #[inline(always)]
    fn offset(&self, lane: usize) -> usize {
        lane & (self.share() - 1)
    }

    /// The state of each packet's blocks from that one on.
    #[inline(always)]
    fn state<I: Isa>(&self, isa: I, packets: &[Packet<'_>], block: u32) -> State<I> {
        let mut inputs = Inputs { keys: &[], counters: [0; LANES_MAX], nonces: [[0; LANES_MAX]; 3] };
        let mut keys: ArrayVec<&[u32; 8], LANES_MAX> = ArrayVec::new();
        for lane in 0..self.count {
            let p = &packets[self.packet(lane)];
            keys.push(p.key);
            inputs.counters[lane] = block + self.offset(lane) as u32;
            for i in 0..3 {
                inputs.nonces[i][lane] = p.nonce[i];
            }
        }
        State::new(isa, &Inputs { keys: &keys, ..inputs })
    }
}

/// Key stream of a pass that is still to be applied.
pub(super) struct Held<'a, 'p, I: Isa> {
    quarters: &'a [[I::Words; 4]; 4],
    /// Where in the texts the pass starts.
    at: usize,
    /// All texts have all of it.
    whole: bool,
    lanes: &'a Lanes,
    group: &'a mut [Packet<'p>],
}

impl<I: Isa> Held<'_, '_, I> {
    /// Applies a quarter of it.
    #[inline(always)]
    pub(super) fn apply<const V: usize>(&mut self, isa: I, column: usize) {
        let blocks = isa.column(self.quarters, column);
        for m in 0..I::LANES / 4 {
            let lane = column + 4 * m;
            // With two vectors of tags there is a lane for each packet.
            let (i, offset) = if V == 2 { (lane, 0) } else { (self.lanes.packet(lane), self.lanes.offset(lane)) };
            if let Some(p) = self.group.get_mut(i) {
                p.apply(isa, self.at + 64 * offset, self.whole, blocks[m]);
            }
        }
    }

    #[inline(always)]
    fn apply_all<const V: usize>(mut self, isa: I) {
        for column in 0..4 {
            self.apply::<V>(isa, column);
        }
    }
}

impl Packet<'_> {
    /// Applies a block of key stream at `at`, as far as the text has it: all, if it is known to be `whole`.
    #[inline(always)]
    fn apply<I: Isa>(&mut self, isa: I, at: usize, whole: bool, block: I::Block) {
        let Some(rest) = self.text.get_mut(at..) else { return };
        let Some(text) = rest.first_chunk_mut::<64>() else {
            if !whole && !rest.is_empty() {
                isa.xor_part(block, rest);
            }
            return;
        };
        match self.from.get(at.wrapping_sub(self.start)..).and_then(|from| from.first_chunk()) {
            Some(from) => isa.xor_block(block, from, text),
            None => isa.xor_block_in_place(block, text),
        }
    }
}
