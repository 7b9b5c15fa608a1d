//! A batch of packets, group by group.
//!
//! A group has at most as many packets as there are lanes, all of about the same length, and its texts fit the
//! first-level cache. Each packet has one lane or, in a small group, a power of two of neighbouring ones, and pass
//! after pass of the block function goes along the key streams, whose first blocks have the one-time keys. Tags are
//! computed, a packet a lane, beside the next pass when sealing and beside the same when opening.

use super::chacha::{Inputs, State};
use super::isa::{HALF_MAX, Isa, LANES_MAX};
use super::poly::{BESIDE, Halves, Tags};
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
    let lanes = Lanes::new::<I>(group.len());
    let mut state = lanes.state(isa, group);
    let mut first = None;
    if V == 2 && I::STITCH && !group[0].text.is_empty() {
        // The first pass of the texts has the same lanes, a block further.
        let keys = state;
        state.advance(isa, 1);
        let [zeroth, block] = keys.two_blocks(isa, &state);
        one_time.set::<I, V>(isa, zeroth, &lanes);
        first = Some(block);
    } else {
        let block = state.block(isa);
        one_time.set::<I, V>(isa, block, &lanes);
        if V == 2 {
            state.advance(isa, 1);
        } else {
            first = Some(block);
        }
    }
    let (mut lengths, mut sums) = ([Halves::ZERO; 2], [[[0; HALF_MAX]; 3]; 2]);
    let (mut least, mut most) = (usize::MAX, 0);
    for (i, p) in group.iter().enumerate() {
        let (v, lane) = (i / I::HALF, i % I::HALF);
        let len = p.text.len();
        (least, most) = (least.min(len), most.max(len));
        (lengths[v].lo[lane], lengths[v].hi[lane]) = (p.aad.len() as u64, len as u64);
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
    let (pass, ahead) = (lanes.share() * 64, ahead::<V>());
    // Bytes of each packet's key stream that are made, and that are applied: a pass behind.
    let (mut made, mut applied) = (0usize, 0usize);
    let mut quarters = isa.quarters([isa.words(&[0; LANES_MAX]); 16]);
    while most > 0 && made < most + ahead {
        // What of the texts is as it was sent (sealing), or still (opening).
        let ready = if SEAL { applied.saturating_sub(ahead) } else { made + pass - ahead };
        let held = Held { quarters: &quarters, at: applied, whole: made <= least + ahead, lanes: &lanes, group };
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
                finished = Some(tags.finish::<V>(isa, group, tagged, &lengths, &one_time.s));
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
        Held { quarters: &quarters, at: applied, whole: made <= least + ahead, lanes: &lanes, group }
            .apply_all::<V>(isa);
    }
    let tags = match finished {
        Some(tags) => tags,
        None => tags.finish::<V>(isa, group, tagged, &lengths, &one_time.s),
    };
    for (i, p) in group.iter_mut().enumerate() {
        let (v, lane) = (i / I::HALF, i % I::HALF);
        let tag = tags[v].get(lane);
        if SEAL {
            (*p.tag, *p.ok) = (tag.to_le_bytes(), true);
        } else {
            // As one number: a comparison byte by byte is a barrier for each.
            *p.ok = tag.ct_eq(&u128::from_le_bytes(*p.tag)).into();
        }
    }
}

/// Bytes of key stream before that for the text in the passes of [`whole`]: the first block, which has the one-time key.
/// Where a packet has one lane, that block is a pass of its own before all others.
#[inline(always)]
const fn ahead<const V: usize>() -> usize {
    if V == 2 { 0 } else { 64 }
}

/// The one-time keys for Poly1305 (RFC 8439, section 2.6).
struct OneTime {
    r: [Halves; 2],
    s: [Halves; 2],
}

impl OneTime {
    const ZERO: Self = Self { r: [Halves::ZERO; 2], s: [Halves::ZERO; 2] };

    /// From the lanes that have the packets' first blocks.
    #[inline(always)]
    fn set<I: Isa, const V: usize>(&mut self, isa: I, block: [I::Words; 16], lanes: &Lanes) {
        let clamp = [isa.splat(scalar::CLAMP[0]), isa.splat(scalar::CLAMP[1])];
        let (r_lo, r_hi) = (isa.pairs(block[0], block[1]), isa.pairs(block[2], block[3]));
        let (s_lo, s_hi) = (isa.pairs(block[4], block[5]), isa.pairs(block[6], block[7]));
        for v in 0..2 {
            self.r[v].store(isa, [isa.and(r_lo[v], clamp[0]), isa.and(r_hi[v], clamp[1])]);
            self.s[v].store(isa, [s_lo[v], s_hi[v]]);
        }
        if V == 1 {
            for i in 0..lanes.packet(lanes.count) {
                let lane = i << lanes.share_bits;
                for keys in [&mut self.r, &mut self.s] {
                    let from = &keys[lane / I::HALF];
                    let (lo, hi) = (from.lo[lane % I::HALF], from.hi[lane % I::HALF]);
                    (keys[0].lo[i], keys[0].hi[i]) = (lo, hi);
                }
            }
        }
    }
}

impl Drop for OneTime {
    fn drop(&mut self) {
        for key in self.r.iter_mut().chain(&mut self.s) {
            key.lo.zeroize();
            key.hi.zeroize();
        }
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
    /// As many as there are for each packet.
    #[inline(always)]
    fn new<I: Isa>(packets: usize) -> Self {
        let packets = packets.min(I::LANES);
        let share_bits = (I::LANES / packets).ilog2();
        Self { count: packets << share_bits, share_bits }
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

    /// The state of each packet's first blocks.
    #[inline(always)]
    fn state<I: Isa>(&self, isa: I, packets: &[Packet<'_>]) -> State<I> {
        let mut inputs = Inputs { keys: &[], counters: [0; LANES_MAX], nonces: [[0; LANES_MAX]; 3] };
        let mut keys: ArrayVec<&[u32; 8], LANES_MAX> = ArrayVec::new();
        for lane in 0..self.count {
            let p = &packets[self.packet(lane)];
            keys.push(p.key);
            inputs.counters[lane] = self.offset(lane) as u32;
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
    /// Where in the packets' key streams the pass starts.
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
            let at = (self.at + 64 * offset).checked_sub(ahead::<V>());
            if let (Some(p), Some(at)) = (self.group.get_mut(i), at) {
                p.apply(isa, at, self.whole, blocks[m]);
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
