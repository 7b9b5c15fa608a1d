//! At the sockets: `steer` chooses one for each datagram, `sieve` lets go on what a shard has a use for.
//!
//! Two programs, because dropping in `steer` would tell the sender (the kernel answers with ICMP port unreachable when
//! no socket takes a datagram), and because only a socket filter sees how long the datagrams are of which a run is made.

use crate::{Verdict, count, head, judge, known};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_hdr_start_off::BPF_HDR_START_NET, sk_action::SK_PASS};
use aya_ebpf::helpers::{bpf_skb_load_bytes, bpf_skb_load_bytes_relative};
use aya_ebpf::macros::{map, sk_reuseport, socket_filter};
use aya_ebpf::maps::ReusePortSockArray;
use aya_ebpf::programs::{SkBuffContext, SkReuseportContext};
use core::ffi::c_void;
use core::mem::MaybeUninit;
use ipop_ebpf::{HEAD_LEN, Head, MAX_SOCKETS, Reason, RelayKey, STUN_COOKIE, Told};

/// Length of the UDP header, at which both kinds of programs start to see a datagram.
const UDP_LEN: u32 = 8;
/// Datagrams in a run that the kernel puts together on arrival (`UDP_GRO_CNT_MAX`). A longer one is a local sender's.
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
        && let Some(shard) = known(index)
    {
        // A socket that is not there, or of a port that was given up: by hash.
        let _ = SOCKETS.select_reuseport(&ctx, shard);
    }
    SK_PASS
}

/// Drops what is none of ours and data for unknown receiver indices. Of a run, all is let through if one datagram may
/// be ours: who sends junk under a peer's address must not take the peer's own along.
#[socket_filter]
fn sieve(ctx: SkBuffContext) -> i64 {
    let skb = ctx.skb.skb;
    // SAFETY: the kernel's view of a packet, which is there as long as the program runs.
    let (len, gso, protocol) = unsafe { ((*skb).len, (*skb).gso_size, u32::from_be((*skb).protocol << 16)) };
    let skb = skb.cast();
    let len = len.saturating_sub(UDP_LEN);
    let run = gso != 0 && gso < len;
    let first = if run { gso } else { len };
    let Some(head) = head(first, |to, n| load(skb, UDP_LEN, to, n)) else { return ALL };
    let reason = match judge(head, || source(skb, protocol)) {
        Verdict::Pass => return ALL,
        Verdict::UnknownDatagram => Reason::SocketUnknownDatagram,
        Verdict::UnknownReceiver => Reason::SocketUnknownReceiver,
    };
    let mut datagrams = 1;
    if run {
        // All of a run have one source: if ChannelData was refused, all of it is.
        let relay = !matches!(head.told(), Told::RelayedData(_) | Told::Channel);
        let mut at = gso;
        while at < len {
            if datagrams == RUN {
                return ALL;
            }
            let mut words = MaybeUninit::<[u32; 3]>::uninit();
            // What is shorter than what is loaded is none of ours.
            if load(skb, UDP_LEN + at, words.as_mut_ptr().cast(), HEAD_LEN as u32) {
                // SAFETY: it was written as a whole.
                if may_be_ours(unsafe { words.assume_init() }, relay) {
                    return ALL;
                }
            }
            datagrams += 1;
            at += gso;
        }
    }
    count(reason, u64::from(datagrams));
    0
}

/// A rougher look at the later datagrams of a run, as the verifier goes through it once for each.
#[inline(always)]
fn may_be_ours(words: [u32; 3], relay: bool) -> bool {
    let [first, second, _] = words.map(u32::from_le);
    match first {
        4 => known(second).is_some(),
        1..=3 => true,
        _ if first & 0xc0 == 0x40 => relay,
        _ => first & 0xc0 == 0 && second == u32::from_le_bytes(STUN_COOKIE),
    }
}

/// Who sent it.
#[inline(always)]
fn source(skb: *mut c_void, protocol: u32) -> Option<RelayKey> {
    let mut port = [0u8; 2];
    let mut v6 = [0u8; 16];
    let mut v4 = [0u8; 4];
    let net = BPF_HDR_START_NET as u32;
    // SAFETY: the lengths are those of the arrays.
    unsafe {
        if bpf_skb_load_bytes(skb, 0, port.as_mut_ptr().cast(), 2) != 0 {
            return None;
        }
        if protocol == ETH_P_IPV6 {
            let r = bpf_skb_load_bytes_relative(skb, 8, v6.as_mut_ptr().cast(), 16, net);
            return (r == 0).then_some(RelayKey::v6(v6, port));
        }
        if protocol == ETH_P_IP {
            let r = bpf_skb_load_bytes_relative(skb, 12, v4.as_mut_ptr().cast(), 4, net);
            return (r == 0).then_some(RelayKey::v4(v4, port));
        }
    }
    None
}
