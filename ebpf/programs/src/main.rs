//! Kernel programs that sort datagrams before user space sees them. What they look at and their maps are in `ipop-ebpf`.
#![no_std]
#![no_main]

mod guard;
mod socket;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use core::mem::MaybeUninit;
use ipop_ebpf::blake2s::{BLOCK_WORDS, compress};
use ipop_ebpf::{
    BUCKETS, ELSEWHERE_BURST, ELSEWHERE_INTERVAL_NS, Endpoint, Head, INITIATION_LEN, MAX_RELAYS, RESPONSE_LEN, Reason,
    SLOTS as SLOT_COUNT, Settings, Slot, Told, let_through, mark_of, slot_at, slot_of,
};

/// `BPF_F_MMAPABLE`: user space writes it as memory.
const MMAPABLE: u32 = 1 << 10;

/// Slot to receiver index, shard and where the peer was heard: `ipop_ebpf::slot_word`.
#[map]
static SLOTS: Array<u64> = Array::with_max_entries(SLOT_COUNT, MMAPABLE);

/// TURN servers whose ChannelData is ours.
#[map]
static RELAYS: HashMap<Endpoint, u8> = HashMap::with_max_entries(MAX_RELAYS, 0);

/// Datagrams dropped, by `Reason`.
#[map]
static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::ALL.len() as u32, 0);

/// What programs are told of the node.
#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// Buckets for data from elsewhere, by the low bits of the slot: `ipop_ebpf::let_through`.
#[map]
static ELSEWHERE: Array<u64> = Array::with_max_entries(BUCKETS, MMAPABLE);

/// Why a datagram does not go on to a shard.
#[derive(Clone, Copy)]
enum Junk {
    Datagram,
    Receiver,
    Elsewhere,
    BadMac,
}

impl Junk {
    #[inline(always)]
    const fn at_socket(self) -> Reason {
        match self {
            Self::Datagram => Reason::SocketUnknownDatagram,
            Self::Receiver => Reason::SocketUnknownReceiver,
            Self::Elsewhere => Reason::SocketElsewhere,
            Self::BadMac => Reason::SocketBadMac,
        }
    }

    #[inline(always)]
    const fn at_interface(self) -> Reason {
        match self {
            Self::Datagram => Reason::XdpUnknownDatagram,
            Self::Receiver => Reason::XdpUnknownReceiver,
            Self::Elsewhere => Reason::XdpElsewhere,
            Self::BadMac => Reason::XdpBadMac,
        }
    }
}

/// A datagram where a program finds it.
trait Datagram {
    /// Where it comes from, if that can be told.
    fn source(&self) -> Option<Endpoint>;
    /// Whether its MAC1 is right, as far as that can be told; it is an initiation or else a response.
    fn knows_us(&self, initiation: bool) -> bool;
}

/// What the map has of `index`, if it is in use.
#[inline(always)]
fn known(index: u32) -> Option<Slot> {
    SLOTS.get(slot_of(index)).and_then(|word| slot_at(*word, index))
}

/// Judges the first of `n` datagrams from one source.
#[inline(always)]
fn judge(datagram: &impl Datagram, head: Head, n: u64) -> Option<Junk> {
    match head.told() {
        Told::Data(index) => match known(index) {
            None => Some(Junk::Receiver),
            Some(slot) => too_much_from_elsewhere(index, slot, datagram, n).then_some(Junk::Elsewhere),
        },
        Told::Initiation => (!datagram.knows_us(true)).then_some(Junk::BadMac),
        Told::Response(index) if known(index).is_none() => Some(Junk::Receiver),
        Told::Response(_) => (!datagram.knows_us(false)).then_some(Junk::BadMac),
        Told::CookieReply(index) => known(index).is_none().then_some(Junk::Receiver),
        Told::RelayedData(_) | Told::Channel => match datagram.source() {
            // Where it comes from cannot be told: the shard sees.
            None => None,
            Some(key) if RELAYS.get_ptr(&key).is_some() => match head.told() {
                Told::RelayedData(index) if known(index).is_none() => Some(Junk::Receiver),
                _ => None,
            },
            Some(_) => Some(Junk::Datagram),
        },
        Told::Stun => None,
        Told::Unknown => Some(Junk::Datagram),
    }
}

/// Whether data is from elsewhere than where the session's peer was heard last, and more of it than a move of the peer
/// would bring.
#[inline(always)]
fn too_much_from_elsewhere(index: u32, slot: Slot, datagram: &impl Datagram, n: u64) -> bool {
    let Some(settings) = SETTINGS.get(0) else { return false };
    let Some(source) = datagram.source() else { return false };
    if mark_of(&source, settings.seed) == slot.mark {
        return false;
    }
    let Some(bucket) = ELSEWHERE.get_ptr_mut(slot_of(index) & (BUCKETS - 1)) else { return false };
    spend(bucket, n, ELSEWHERE_INTERVAL_NS, ELSEWHERE_BURST)
}

/// Takes `n` from a bucket; true if it is empty.
#[inline(always)]
fn spend(bucket: *mut u64, n: u64, interval: u64, burst: u64) -> bool {
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: an entry of a map. Others write it too, and it may belong to another by now: it is wrong by a step then.
    unsafe {
        match let_through(*bucket, now, n, interval, burst) {
            Some(due) => *bucket = due,
            None => return true,
        }
    }
    false
}

/// Words of an initiation that MAC1 covers, and of a response.
const INITIATION_COVERED: usize = 29;
const RESPONSE_COVERED: usize = 15;
const MAC_WORDS: usize = 4;
/// The longer of the two with its MAC1.
const COVERED_AND_MAC: usize = INITIATION_COVERED + MAC_WORDS;
/// Bytes of an initiation up to the end of its MAC1, and of a response: all but MAC2.
const INITIATION_READ: usize = INITIATION_LEN - 4 * MAC_WORDS;
const RESPONSE_READ: usize = RESPONSE_LEN - 4 * MAC_WORDS;
const _: () = assert!(INITIATION_READ == 4 * COVERED_AND_MAC && RESPONSE_READ == 4 * (RESPONSE_COVERED + MAC_WORDS));

/// Room for a handshake message up to its MAC1, and for what is found on the way. The stack has not enough; and what is in
/// a map, the verifier does not follow from case to case.
#[repr(C)]
struct Scratch {
    words: [u32; COVERED_AND_MAC],
    state: [u32; 8],
    /// Where a handshake message was found, and whether it is an initiation.
    at: u32,
    initiation: u32,
}

/// Each CPU's own: a program is not interrupted by another on it.
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: nobody else has it while a program runs, and who takes it a second time is done with the first.
    SCRATCH.get_ptr_mut(0).map(|p| unsafe { &mut *p })
}

/// Whether the MAC1 of a handshake message is right (WireGuard paper, section 5.4.4), or there is no key to tell by.
#[inline(always)]
fn mac1_fits(scratch: &mut Scratch, initiation: bool) -> bool {
    let Some(settings) = SETTINGS.get(0) else { return true };
    if settings.keyed == 0 {
        return true;
    }
    let Scratch { words: m, state, .. } = scratch;
    *state = settings.mac1;
    let mac: [u32; MAC_WORDS];
    if initiation {
        mac = [m[29], m[30], m[31], m[32]];
        (m[29], m[30], m[31]) = (0, 0, 0);
        block(state, first_block(m), 2 * 64, false);
        block(state, second_block(m), 64 + 4 * INITIATION_COVERED as u32, true);
    } else {
        mac = [m[15], m[16], m[17], m[18]];
        m[RESPONSE_COVERED] = 0;
        block(state, first_block(m), 64 + 4 * RESPONSE_COVERED as u32, true);
    }
    (state[0] ^ mac[0]) | (state[1] ^ mac[1]) | (state[2] ^ mac[2]) | (state[3] ^ mac[3]) == 0
}

#[inline(always)]
fn first_block(m: &[u32; COVERED_AND_MAC]) -> &[u32; BLOCK_WORDS] {
    // SAFETY: the first 16 of 33 words.
    unsafe { &*m.as_ptr().cast() }
}

#[inline(always)]
fn second_block(m: &[u32; COVERED_AND_MAC]) -> &[u32; BLOCK_WORDS] {
    // SAFETY: words 16 to 31 of 33.
    unsafe { &*m.as_ptr().add(BLOCK_WORDS).cast() }
}

/// A function of its own: with a stack of its own, and the verifier's work once. Such functions keep their names, or there
/// would be a hash of the directory in the object.
#[unsafe(no_mangle)]
#[inline(never)]
fn block(state: &mut [u32; 8], m: &[u32; BLOCK_WORDS], so_far: u32, last: bool) {
    // SAFETY: a plain read. Volatile, so that the state is read again below and takes no room on the stack meanwhile.
    let before = unsafe { core::ptr::read_volatile(state) };
    let change = compress(&before, m, so_far, last);
    for i in 0..8 {
        state[i] ^= change[i];
    }
}

#[inline(always)]
fn count(reason: Reason, n: u64) {
    if let Some(counter) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: the entry is this CPU's own, and a program is not interrupted by another on it.
        unsafe { *counter += n };
    }
}

/// Head of a datagram of `len` bytes, by `load(to, count)` from its start. `None`: it cannot be read.
#[inline(always)]
fn head(len: u32, load: impl Fn(*mut u32, u32) -> bool) -> Option<Head> {
    let mut words = MaybeUninit::<[u32; 3]>::uninit();
    let p = words.as_mut_ptr().cast::<u32>();
    // SAFETY: there is room for 12 bytes, and all of them are written.
    unsafe {
        if len >= 12 {
            if !load(p, 12) {
                return None;
            }
        } else {
            if len < 4 {
                p.write(0);
            } else if !load(p, 4) {
                return None;
            }
            p.add(1).write(0);
            p.add(2).write(0);
        }
        Some(Head { words: words.assume_init().map(u32::from_le), len })
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// `bpf_fib_lookup` is for programs under a licence that agrees with the kernel's.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
