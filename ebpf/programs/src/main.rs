//! Kernel programs that sort datagrams before user space sees them. What they look at and their maps are in `ipop-ebpf`.
#![no_std]
#![no_main]

mod guard;
mod socket;

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use ipop_ebpf::{Head, MAX_RELAYS, Reason, RelayKey, SLOTS as SLOT_COUNT, Told, shard_of, slot_of};

/// `BPF_F_MMAPABLE`: user space writes it as memory.
const MMAPABLE: u32 = 1 << 10;

/// Slot to receiver index and shard: `ipop_ebpf::slot_word`.
#[map]
static SLOTS: Array<u64> = Array::with_max_entries(SLOT_COUNT, MMAPABLE);

/// TURN servers whose ChannelData is ours.
#[map]
static RELAYS: HashMap<RelayKey, u8> = HashMap::with_max_entries(MAX_RELAYS, 0);

/// Datagrams dropped, by `Reason`.
#[map]
static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::ALL.len() as u32, 0);

/// Whether a datagram may go on to a shard.
enum Verdict {
    Pass,
    UnknownDatagram,
    UnknownReceiver,
}

/// The shard of `index`, if it is in use.
#[inline(always)]
fn known(index: u32) -> Option<u32> {
    SLOTS.get(slot_of(index)).and_then(|word| shard_of(*word, index))
}

/// Judges a datagram; `source` is asked for only if it is ChannelData.
#[inline(always)]
fn judge(head: Head, source: impl FnOnce() -> Option<RelayKey>) -> Verdict {
    match head.told() {
        Told::Data(index) if known(index).is_none() => Verdict::UnknownReceiver,
        Told::RelayedData(_) | Told::Channel => match source() {
            // Where it comes from cannot be told: the shard sees.
            None => Verdict::Pass,
            Some(key) if RELAYS.get_ptr(&key).is_some() => match head.told() {
                Told::RelayedData(index) if known(index).is_none() => Verdict::UnknownReceiver,
                _ => Verdict::Pass,
            },
            Some(_) => Verdict::UnknownDatagram,
        },
        Told::Unknown => Verdict::UnknownDatagram,
        _ => Verdict::Pass,
    }
}

#[inline(always)]
fn count(reason: Reason, n: u64) {
    if let Some(counter) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: the entry is this CPU's own, and a program is not interrupted by another on it.
        unsafe { *counter += n };
    }
}

/// Head of a datagram of `len` bytes, by `load(offset, bytes, count)` from its start. `None`: it cannot be read.
#[inline(always)]
fn head(len: u32, load: impl Fn(*mut u32, u32) -> bool) -> Option<Head> {
    let mut words = [0u32; 3];
    let loaded = match len {
        12.. => load(words.as_mut_ptr(), 12),
        4.. => load(words.as_mut_ptr(), 4),
        _ => true,
    };
    loaded.then_some(Head { words: words.map(u32::from_le), len })
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// `bpf_fib_lookup` is for programs under a licence that agrees with the kernel's.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
