//! At the interface: the same verdicts before the kernel's stack spends anything on a packet, and a limit for handshake
//! initiations of each source. Only UDP to our port on this machine; all else passes untouched, as does what cannot be
//! judged: fragments, headers that are not there in full, unknown extension headers.

use crate::{Datagram, INITIATION_READ, RESPONSE_READ, SETTINGS, count, head, judge, mac1_fits, scratch, spend};
use aya_ebpf::bindings::{
    bpf_fib_lookup as Fib,
    xdp_action::{XDP_DROP, XDP_PASS},
    xdp_md,
};
use aya_ebpf::helpers::bpf_fib_lookup;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::XdpContext;
use core::mem::MaybeUninit;
use ipop_ebpf::{Endpoint, GUARD_BURST, GUARD_INTERVAL_NS, MAX_SOURCES, Reason, Told, prefix_of_v4, prefix_of_v6};

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

/// Where in a frame the addresses are that a datagram comes from and goes to, one behind the other. Not the addresses:
/// the stack is small.
#[derive(Clone, Copy)]
struct Addresses {
    v6: bool,
    at: usize,
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
    if port == 0 || SETTINGS.get(0).is_none_or(|s| s.port != port) {
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
    let datagram = Arrived { frame, at: udp + 8, addresses, port: [s0, s1] };
    let reason = match judge(&datagram, head, 1) {
        Some(junk) => junk.at_interface(),
        None if matches!(head.told(), Told::Initiation) && too_many(frame, addresses) => Reason::XdpHandshakeRate,
        None => return None,
    };
    (!forwarded(ctx.ctx, addresses.v6, addresses.at)).then_some(reason)
}

/// A datagram that came to the interface.
struct Arrived {
    frame: Frame,
    at: usize,
    addresses: Addresses,
    port: [u8; 2],
}

impl Datagram for Arrived {
    #[inline(always)]
    fn source(&self) -> Option<Endpoint> {
        let Addresses { v6, at } = self.addresses;
        if v6 {
            self.frame.at(at).map(|a| Endpoint::v6(a, self.port))
        } else {
            self.frame.at(at).map(|a| Endpoint::v4(a, self.port))
        }
    }

    #[inline(always)]
    fn knows_us(&self, initiation: bool) -> bool {
        knows_us(self.frame, self.at, initiation)
    }
}

/// Whether the handshake message at `at` was made by somebody who knows our public key, as far as that can be told.
#[inline(always)]
fn knows_us(frame: Frame, at: usize, initiation: bool) -> bool {
    let Some(scratch) = scratch() else { return true };
    let to = scratch.words.as_mut_ptr();
    // SAFETY: there is room for 33 words.
    let loaded = unsafe {
        if initiation {
            frame.at::<INITIATION_READ>(at).map(|b| to.cast::<[u8; INITIATION_READ]>().write(b)).is_some()
        } else {
            frame.at::<RESPONSE_READ>(at).map(|b| to.cast::<[u8; RESPONSE_READ]>().write(b)).is_some()
        }
    };
    !loaded || mac1_fits(scratch, initiation)
}

/// Where the UDP header of an IPv4 packet is.
#[inline(always)]
fn ipv4(frame: Frame, at: usize) -> Option<(usize, Addresses)> {
    let first = frame.u8(at)?;
    let len = usize::from(first & 0xf) * 4;
    // All of the header is there; more fragments, or a later one.
    let [_, protocol, _, _, ..] = frame.at::<12>(at + 8)?;
    let fragment = frame.u16(at + 6)? & 0x3fff != 0;
    if first >> 4 != 4 || len < 20 || protocol != UDP || fragment {
        return None;
    }
    Some((at + len, Addresses { v6: false, at: at + 12 }))
}

/// Where the UDP header of an IPv6 packet is.
#[inline(always)]
fn ipv6(frame: Frame, at: usize) -> Option<(usize, Addresses)> {
    if frame.u8(at)? >> 4 != 6 {
        return None;
    }
    let mut next = frame.u8(at + 6)?;
    let addresses = Addresses { v6: true, at: at + 8 };
    // All of the header is there.
    frame.u8(at + IPV6_LEN - 1)?;
    let mut at = at + IPV6_LEN;
    for _ in 0..EXTENSIONS {
        if next != HOP_BY_HOP && next != ROUTING && next != DESTINATION {
            break;
        }
        let [following, units] = frame.at::<2>(at)?;
        next = following;
        at += (usize::from(units) + 1) * 8;
    }
    (next == UDP).then_some((at, addresses))
}

/// Whether a source sends more initiations than it may.
#[inline(always)]
fn too_many(frame: Frame, Addresses { v6, at }: Addresses) -> bool {
    let key = if v6 { frame.at(at).map(prefix_of_v6) } else { frame.at(at).map(prefix_of_v4) };
    let Some(key) = key else { return false };
    let Some(bucket) = SOURCES.get_ptr_mut(&key) else {
        // A full one, as good as: what the first one takes is back before it counts.
        let _ = SOURCES.insert(&key, 0, 0);
        return false;
    };
    spend(bucket, 1, GUARD_INTERVAL_NS, GUARD_BURST)
}

/// Whether the packet goes on to another machine: then it is not ours, whatever its port. A function of its own: so it
/// has a stack of its own, too.
#[unsafe(no_mangle)]
#[inline(never)]
fn forwarded(ctx: *mut xdp_md, v6: bool, at: usize) -> bool {
    const SUCCESS: i64 = 0;
    const NO_NEIGHBOUR: i64 = 7;
    const TOO_BIG: i64 = 8;
    let ctx = XdpContext::new(ctx);
    let frame = Frame { start: ctx.data(), end: ctx.data_end() };
    let mut fib = MaybeUninit::<Fib>::uninit();
    const { assert!(size_of::<Fib>() == 64 && align_of::<Fib>() <= 8) };
    let words = fib.as_mut_ptr().cast::<u64>();
    // Word by word and volatile, or it becomes a call of `memset`, which comes out so that the verifier refuses it.
    for i in 0..8 {
        // SAFETY: within its 64 bytes, of which the alignment allows words.
        unsafe { words.add(i).write_volatile(0) };
    }
    // SAFETY: all zero is a value of it: numbers and unions of numbers.
    let fib = unsafe { &mut *fib.as_mut_ptr() };
    fib.l4_protocol = UDP;
    fib.ifindex = ctx.ingress_ifindex() as u32;
    if v6 {
        let (Some(source), Some(to)) = (frame.at::<16>(at), frame.at::<16>(at + 16)) else { return false };
        fib.family = AF_INET6;
        // SAFETY: the same 16 bytes.
        unsafe {
            fib.__bindgen_anon_3.ipv6_src = core::mem::transmute::<[u8; 16], [u32; 4]>(source);
            fib.__bindgen_anon_4.ipv6_dst = core::mem::transmute::<[u8; 16], [u32; 4]>(to);
        }
    } else {
        let (Some(source), Some(to)) = (frame.at::<4>(at), frame.at::<4>(at + 4)) else { return false };
        fib.family = AF_INET;
        fib.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(source);
        fib.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(to);
    }
    // SAFETY: `fib` is as long as is said.
    let r = unsafe { bpf_fib_lookup(ctx.ctx.cast(), fib, size_of::<Fib>() as i32, 0) };
    r == SUCCESS || r == NO_NEIGHBOUR || r == TOO_BIG
}
