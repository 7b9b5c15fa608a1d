//! At the interface: the same verdicts before the kernel's stack spends anything on a packet, and a limit for handshake
//! initiations of each source. Only UDP to our port on this machine; all else passes untouched, as does what cannot be
//! judged: fragments, headers that are not there in full, unknown extension headers.

use crate::{Verdict, count, head, judge};
use aya_ebpf::bindings::{
    bpf_fib_lookup as Fib,
    xdp_action::{XDP_DROP, XDP_PASS},
};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_ktime_get_ns};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, LruHashMap};
use aya_ebpf::programs::XdpContext;
use ipop_ebpf::{GUARD_BURST, GUARD_INTERVAL_NS, MAX_SOURCES, Reason, RelayKey, Told, prefix_of_v4, prefix_of_v6};

/// Our UDP port, in host byte order; 0: none.
#[map]
static PORT: Array<u32> = Array::with_max_entries(1, 0);

/// Source prefix to when its next initiation is due, in nanoseconds.
#[map]
static SOURCES: LruHashMap<u64, u64> = LruHashMap::with_max_entries(MAX_SOURCES, 0);

const ETH_LEN: usize = 14;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;
const VLAN_LEN: usize = 4;
/// Tags looked behind: a service's and a customer's (802.1ad).
const VLANS: usize = 2;
const IPV6_LEN: usize = 40;
const UDP: u8 = 17;
/// Extension headers looked behind.
const EXTENSIONS: usize = 4;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;
/// More than any chain of headers that is looked behind; tells the verifier so.
const MAX_OFFSET: usize = 0x3fff;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The packet.
#[derive(Clone, Copy)]
struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    /// `N` bytes at `offset`.
    #[inline(always)]
    fn at<const N: usize>(self, offset: usize) -> Option<[u8; N]> {
        if offset > MAX_OFFSET {
            return None;
        }
        let p = self.start + offset;
        if p + N > self.end {
            return None;
        }
        // SAFETY: the bytes lie between start and end of the packet, as the verifier checks again.
        Some(unsafe { *(p as *const [u8; N]) })
    }

    #[inline(always)]
    fn u8(self, offset: usize) -> Option<u8> {
        self.at::<1>(offset).map(|b| b[0])
    }

    #[inline(always)]
    fn u16(self, offset: usize) -> Option<u16> {
        self.at::<2>(offset).map(u16::from_be_bytes)
    }
}

/// Where a datagram comes from and goes to.
enum Addresses {
    V4([u8; 4], [u8; 4]),
    V6([u8; 16], [u8; 16]),
}

#[xdp]
fn guard(ctx: XdpContext) -> u32 {
    match examine(&ctx) {
        Some(reason) => {
            count(reason, 1);
            XDP_DROP
        }
        None => XDP_PASS,
    }
}

/// Why to drop the packet, if so.
#[inline(always)]
fn examine(ctx: &XdpContext) -> Option<Reason> {
    let frame = Frame { start: ctx.data(), end: ctx.data_end() };
    let mut protocol = frame.u16(12)?;
    let mut at = ETH_LEN;
    for _ in 0..VLANS {
        if protocol != ETH_P_8021Q && protocol != ETH_P_8021AD {
            break;
        }
        protocol = frame.u16(at + 2)?;
        at += VLAN_LEN;
    }
    let (udp, addresses) = match protocol {
        ETH_P_IP => ipv4(frame, at)?,
        ETH_P_IPV6 => ipv6(frame, at)?,
        _ => return None,
    };
    let [s0, s1, d0, d1, l0, l1] = frame.at::<6>(udp)?;
    let port = u32::from(u16::from_be_bytes([d0, d1]));
    if port == 0 || PORT.get(0).copied() != Some(port) {
        return None;
    }
    let len = u32::from(u16::from_be_bytes([l0, l1])).checked_sub(8)?;
    let head = head(len, |to, n| {
        // SAFETY: `to` has room for `n` bytes, which is 4 or 12.
        unsafe {
            if n == 12 {
                frame.at::<12>(udp + 8).map(|b| to.cast::<[u8; 12]>().write(b)).is_some()
            } else {
                frame.at::<4>(udp + 8).map(|b| to.cast::<[u8; 4]>().write(b)).is_some()
            }
        }
    })?;
    let source = || {
        Some(match addresses {
            Addresses::V4(a, _) => RelayKey::v4(a, [s0, s1]),
            Addresses::V6(a, _) => RelayKey::v6(a, [s0, s1]),
        })
    };
    let reason = match judge(head, source) {
        Verdict::UnknownDatagram => Reason::XdpUnknownDatagram,
        Verdict::UnknownReceiver => Reason::XdpUnknownReceiver,
        Verdict::Pass if matches!(head.told(), Told::Initiation) && too_many(&addresses) => Reason::XdpHandshakeRate,
        Verdict::Pass => return None,
    };
    (!forwarded(ctx, &addresses)).then_some(reason)
}

/// Where the UDP header of an IPv4 packet is.
#[inline(always)]
fn ipv4(frame: Frame, at: usize) -> Option<(usize, Addresses)> {
    let header = frame.at::<20>(at)?;
    let len = usize::from(header[0] & 0xf) * 4;
    // More fragments, or a later one.
    let fragment = header[6] & 0x3f != 0 || header[7] != 0;
    if header[0] >> 4 != 4 || len < 20 || header[9] != UDP || fragment {
        return None;
    }
    let source = [header[12], header[13], header[14], header[15]];
    let to = [header[16], header[17], header[18], header[19]];
    Some((at + len, Addresses::V4(source, to)))
}

/// Where the UDP header of an IPv6 packet is.
#[inline(always)]
fn ipv6(frame: Frame, at: usize) -> Option<(usize, Addresses)> {
    if frame.u8(at)? >> 4 != 6 {
        return None;
    }
    let mut next = frame.u8(at + 6)?;
    let source = frame.at::<16>(at + 8)?;
    let to = frame.at::<16>(at + 24)?;
    let mut at = at + IPV6_LEN;
    for _ in 0..EXTENSIONS {
        if next != HOP_BY_HOP && next != ROUTING && next != DESTINATION {
            break;
        }
        let [following, units] = frame.at::<2>(at)?;
        next = following;
        at += (usize::from(units) + 1) * 8;
    }
    (next == UDP).then_some((at, Addresses::V6(source, to)))
}

/// Whether a source sends more initiations than it may (RFC 2697's bucket, as a time at which it would be full).
#[inline(always)]
fn too_many(addresses: &Addresses) -> bool {
    let key = match addresses {
        Addresses::V4(a, _) => prefix_of_v4(*a),
        Addresses::V6(a, _) => prefix_of_v6(*a),
    };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(due) = SOURCES.get_ptr_mut(&key) else {
        let _ = SOURCES.insert(&key, now + GUARD_INTERVAL_NS, 0);
        return false;
    };
    // SAFETY: an entry may be given to another source meanwhile, whose time is then wrong by one step.
    let before = unsafe { *due };
    let before = if before < now { now } else { before };
    if before - now > GUARD_INTERVAL_NS * GUARD_BURST {
        return true;
    }
    // SAFETY: as above.
    unsafe { *due = before + GUARD_INTERVAL_NS };
    false
}

/// Whether the packet goes on to another machine: then it is not ours, whatever its port.
#[inline(always)]
fn forwarded(ctx: &XdpContext, addresses: &Addresses) -> bool {
    const SUCCESS: i64 = 0;
    const NO_NEIGHBOUR: i64 = 7;
    const TOO_BIG: i64 = 8;
    // SAFETY: all zero is a value of it: numbers and unions of numbers.
    let mut fib: Fib = unsafe { core::mem::zeroed() };
    fib.l4_protocol = UDP;
    fib.ifindex = ctx.ingress_ifindex() as u32;
    match addresses {
        Addresses::V4(source, to) => {
            fib.family = AF_INET;
            fib.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(*source);
            fib.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(*to);
        }
        Addresses::V6(source, to) => {
            fib.family = AF_INET6;
            // SAFETY: the same 16 bytes.
            unsafe {
                fib.__bindgen_anon_3.ipv6_src = core::mem::transmute::<[u8; 16], [u32; 4]>(*source);
                fib.__bindgen_anon_4.ipv6_dst = core::mem::transmute::<[u8; 16], [u32; 4]>(*to);
            }
        }
    }
    // SAFETY: `fib` is as long as is said.
    let r = unsafe { bpf_fib_lookup(ctx.ctx.cast(), &raw mut fib, size_of::<Fib>() as i32, 0) };
    r == SUCCESS || r == NO_NEIGHBOUR || r == TOO_BIG
}
