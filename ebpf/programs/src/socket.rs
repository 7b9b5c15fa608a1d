//! At the sockets: `steer` chooses one for each datagram, `sieve` lets go on what a shard has a use for.
//!
//! Two programs, because dropping in `steer` would tell the sender (the kernel answers with ICMP port unreachable when
//! no socket takes a datagram), and because only a socket filter sees how long the datagrams are of which a run is made.

use crate::{Datagram, INITIATION_READ, RESPONSE_READ, SETTINGS, count, head, judge, known, mac1_fits, scratch};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_hdr_start_off::BPF_HDR_START_NET, sk_action::SK_PASS};
use aya_ebpf::helpers::{bpf_skb_load_bytes, bpf_skb_load_bytes_relative};
use aya_ebpf::macros::{map, sk_reuseport, socket_filter};
use aya_ebpf::maps::ReusePortSockArray;
use aya_ebpf::programs::{SkBuffContext, SkReuseportContext};
use core::ffi::c_void;
use core::mem::MaybeUninit;
use ipop_ebpf::{Endpoint, HEAD_LEN, Head, INITIATION_LEN, MAX_SOCKETS, RESPONSE_LEN, STUN_COOKIE, Told, mark_of};

/// Length of the UDP header, at which both kinds of programs start to see a datagram.
const UDP_LEN: u32 = 8;
/// Datagrams in a run that the kernel puts together on arrival, at most (`UDP_GRO_CNT_MAX`).
const RUN: u32 = 64;
/// What a socket filter returns for all of a packet.
const ALL: i64 = u32::MAX as i64;
const ETH_P_IP: u32 = 0x0800;
const ETH_P_IPV6: u32 = 0x86dd;

/// The shards' sockets.
#[map]
static SOCKETS: ReusePortSockArray = ReusePortSockArray::with_max_entries(MAX_SOCKETS, 0);

#[inline(always)]
fn load(ctx: *mut c_void, offset: u32, to: *mut u32, len: u32) -> bool {
    // SAFETY: the callers have `len` bytes at `to`, which the verifier checks.
    unsafe { bpf_skb_load_bytes(ctx, offset, to.cast(), len) == 0 }
}

/// Gives datagrams of a known session to its shard. What it has no opinion on goes by hash.
#[sk_reuseport]
fn steer(ctx: SkReuseportContext) -> u32 {
    let skb = ctx.as_ptr();
    let len = (ctx.len() as u32).saturating_sub(UDP_LEN);
    if let Some(Told::Data(index) | Told::RelayedData(index)) =
        head(len, |to, n| load(skb, UDP_LEN, to, n)).map(Head::told)
        && let Some(slot) = known(index)
    {
        // A socket that is not there, or of a port that was given up: by hash.
        let _ = SOCKETS.select_reuseport(&ctx, slot.shard);
    }
    SK_PASS
}

/// Drops what is none of ours. Of a run, all is let through if one datagram may be ours: who sends junk under a peer's
/// address must not take the peer's own along.
#[socket_filter]
fn sieve(ctx: SkBuffContext) -> i64 {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel's view of a packet, which is there as long as the program runs.
    let (len, gso, protocol) = unsafe { ((*skb).len, (*skb).gso_size, u32::from_be((*skb).protocol << 16)) };
    let datagram = Found { skb: skb.cast(), protocol };
    let len = len.saturating_sub(UDP_LEN);
    let run = gso != 0 && gso < len;
    let (first, n) = if run { (gso, len.div_ceil(gso)) } else { (len, 1) };
    let Some(head) = head(first, |to, n| load(datagram.skb, UDP_LEN, to, n)) else { return ALL };
    let Some(junk) = judge(&datagram, head, u64::from(n)) else { return ALL };
    // A longer one than the kernel makes is a local sender's.
    if n > RUN || (run && may_be_ours_in_part(&datagram, head, gso, len)) {
        return ALL;
    }
    count(junk.at_socket(), u64::from(n));
    0
}

/// Whether one of the later datagrams of a run that begins with junk may be ours.
#[inline(always)]
fn may_be_ours_in_part(datagram: &Found, head: Head, gso: u32, len: u32) -> bool {
    // All of a run have one source: if ChannelData was refused, all of it is; if data from elsewhere was, so is more.
    let relay = !matches!(head.told(), Told::RelayedData(_) | Told::Channel);
    let mark = datagram.mark();
    let Some(found) = scratch() else { return false };
    found.at = 0;
    let mut at = gso;
    for _ in 1..RUN {
        if at >= len {
            break;
        }
        let mut words = MaybeUninit::<[u32; 3]>::uninit();
        // What is shorter than what is loaded is none of ours.
        if load(datagram.skb, UDP_LEN + at, words.as_mut_ptr().cast(), HEAD_LEN as u32) {
            // SAFETY: it was written as a whole.
            let [first, second, _] = unsafe { words.assume_init() }.map(u32::from_le);
            match first {
                4 if known(second).is_some_and(|slot| slot.mark == mark) => return true,
                3 if known(second).is_some() => return true,
                1 if len - at >= INITIATION_LEN as u32 => (found.at, found.initiation) = (at, 1),
                2 if len - at >= RESPONSE_LEN as u32 => (found.at, found.initiation) = (at, 0),
                1..=4 => {}
                _ if first & 0xc0 == 0x40 && relay => return true,
                _ if first & 0xc0 == 0 && second == u32::from_le_bytes(STUN_COOKIE) => return true,
                _ => {}
            }
        }
        at += gso;
    }
    // Only the last one is looked into: a peer sends one in five seconds.
    found.at != 0 && knows_us(datagram.skb, UDP_LEN + found.at, found.initiation == 1)
}

/// Whether the handshake message at `at` was made by somebody who knows our public key, as far as that can be told.
#[unsafe(no_mangle)]
#[inline(never)]
fn knows_us(skb: *mut c_void, at: u32, initiation: bool) -> bool {
    let Some(scratch) = scratch() else { return true };
    let to = scratch.words.as_mut_ptr();
    let len = if initiation { INITIATION_READ } else { RESPONSE_READ };
    let loaded = load(skb, at, to, len as u32);
    !loaded || mac1_fits(scratch, initiation)
}

/// A datagram that came to a socket.
struct Found {
    skb: *mut c_void,
    protocol: u32,
}

impl Found {
    /// What stands for its source; 0 if that cannot be told.
    #[inline(always)]
    fn mark(&self) -> u32 {
        match (SETTINGS.get(0), self.source()) {
            (Some(settings), Some(source)) => mark_of(&source, settings.seed),
            _ => 0,
        }
    }
}

impl Datagram for Found {
    #[inline(always)]
    fn source(&self) -> Option<Endpoint> {
        source(self.skb, self.protocol)
    }

    #[inline(always)]
    fn knows_us(&self, initiation: bool) -> bool {
        knows_us(self.skb, UDP_LEN, initiation)
    }
}

/// Who sent it.
#[inline(always)]
fn source(skb: *mut c_void, protocol: u32) -> Option<Endpoint> {
    let mut source = MaybeUninit::<Endpoint>::uninit();
    let p = source.as_mut_ptr();
    let net = BPF_HDR_START_NET as u32;
    // SAFETY: the lengths are those of the fields, and all of them are written.
    unsafe {
        (&raw mut (*p).pad).write(0);
        if bpf_skb_load_bytes(skb, 0, (&raw mut (*p).port).cast(), 2) != 0 {
            return None;
        }
        let address = &raw mut (*p).address;
        match protocol {
            ETH_P_IPV6 if bpf_skb_load_bytes_relative(skb, 8, address.cast(), 16, net) == 0 => {}
            ETH_P_IP => {
                let mut v4 = MaybeUninit::<u32>::uninit();
                if bpf_skb_load_bytes_relative(skb, 12, v4.as_mut_ptr().cast(), 4, net) != 0 {
                    return None;
                }
                address.write(Endpoint::mapped(v4.assume_init()));
            }
            _ => return None,
        }
        Some(source.assume_init())
    }
}
