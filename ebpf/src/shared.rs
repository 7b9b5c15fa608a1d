//! Maps: names, keys and values that user space and the kernel programs share.

use crate::{CHANNEL_HEADER_LEN, COOKIE_REPLY_LEN, INITIATION_LEN, KEEPALIVE_LEN, RESPONSE_LEN, STUN_COOKIE};

/// Bits of a receiver index that are its slot in the table of sessions.
pub const SLOT_BITS: u32 = 18;
/// Entries of the map of slots: every slot that there can be.
pub const SLOTS: u32 = 1 << SLOT_BITS;
/// Sockets that datagrams are steered to, at most: one a shard.
pub const MAX_SOCKETS: u32 = 64;
/// TURN servers whose ChannelData is let through, at most. A node asks a handful.
pub const MAX_RELAYS: u32 = 256;
/// Sources of handshake initiations that the guard remembers; the one not heard for longest is forgotten for a new one.
pub const MAX_SOURCES: u32 = 16_384;

/// Initiations that one source may send at once past the guard. A handshake costs the keeper some 0.2 ms, and behind one
/// address may be a site whose nodes all start at the same moment.
pub const GUARD_BURST: u64 = 100;
/// Time between two initiations of one source after that, in nanoseconds: 50 a second.
pub const GUARD_INTERVAL_NS: u64 = 20_000_000;

/// Data that one session may get at once from elsewhere than its peer was heard from last. A peer that moves sends on: at
/// a million a second this is the time in which a shard sees the first and tells the programs of the new address.
pub const ELSEWHERE_BURST: u64 = 4096;
/// Time between two such datagrams after that, in nanoseconds: 2,000 a second. They cost a shard some 2 us each.
pub const ELSEWHERE_INTERVAL_NS: u64 = 500_000;
/// Buckets for that, by the low bits of the slot: up to so many sessions have one each.
pub const BUCKETS: u32 = 1 << 14;

/// Who counts as one source over IPv4: an address.
#[must_use]
pub const fn prefix_of_v4(a: [u8; 4]) -> u64 {
    u32::from_be_bytes(a) as u64
}

/// Who counts as one source over IPv6: a /64, of which a machine has all addresses. (0::/32, where IPv4's are, is nobody's.)
#[must_use]
pub const fn prefix_of_v6(a: [u8; 16]) -> u64 {
    u64::from_be_bytes([a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]])
}

/// The slot of a receiver index.
#[must_use]
pub const fn slot_of(index: u32) -> u32 {
    index & (SLOTS - 1)
}

/// What the map of slots says of an index in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Number of the shard that owns its session.
    pub shard: u32,
    /// [`mark_of`] where its authentic data came from last; 0 before any has come.
    pub mark: u32,
}

/// Bits of a mark.
const MARK_BITS: u32 = 24;

/// What the map of slots holds for an index in use: from below, 32 bits of the index, 8 of the number of its shard and
/// one, 24 of the mark. Zero: the slot is free.
#[must_use]
pub const fn slot_word(index: u32, slot: Slot) -> u64 {
    ((slot.mark as u64) << (64 - MARK_BITS)) | ((slot.shard as u64 + 1) << 32) | index as u64
}

/// What `word` says of `index`, if it is what the index's slot holds.
#[must_use]
pub const fn slot_at(word: u64, index: u32) -> Option<Slot> {
    match (word >> 32) as u8 {
        0 => None,
        shard if word as u32 == index => {
            Some(Slot { shard: shard as u32 - 1, mark: (word >> (64 - MARK_BITS)) as u32 })
        }
        _ => None,
    }
}

/// What stands for a source in a [`Slot`], never 0. Two sources have the same mark once in 16 million times; which ones
/// cannot be told without the `seed`. Murmur3's finaliser, for each part of the address.
#[inline(always)]
#[must_use]
pub const fn mark_of(source: &Endpoint, seed: u64) -> u32 {
    let [a, b, c, d] = source.address;
    let mut x = seed;
    x = stir(x ^ ((a as u64) << 32 | b as u64));
    x = stir(x ^ ((c as u64) << 32 | d as u64));
    x = stir(x ^ source.port as u64);
    let mark = (x >> (64 - MARK_BITS)) as u32;
    if mark == 0 { 1 } else { mark }
}

#[inline(always)]
const fn stir(mut x: u64) -> u64 {
    x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// A token bucket that is kept as the time at which it would be full (GCRA, ITU-T I.371): what it becomes if `n` are let
/// through `now`, each of which takes `interval` to come back, or `None` if that is more than a `burst`.
#[inline(always)]
#[must_use]
pub const fn let_through(due: u64, now: u64, n: u64, interval: u64, burst: u64) -> Option<u64> {
    let due = if due < now { now } else { due };
    if due - now > interval * burst { None } else { Some(due + n * interval) }
}

/// What the programs are told of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// For [`mark_of`].
    pub seed: u64,
    /// State of BLAKE2s after the key of MAC1 ([`crate::blake2s::keyed`]).
    pub mac1: [u32; 8],
    /// 1: there is such a key. 0: there is none, and every handshake message is for a shard to see.
    pub keyed: u32,
    /// The node's UDP port, in host byte order, for the guard; 0: none.
    pub port: u32,
}

impl Settings {
    /// As the map holds it.
    #[must_use]
    pub const fn words(&self) -> [u64; 6] {
        let [a, b, c, d, e, f, g, h] = self.mac1;
        [self.seed, pair(a, b), pair(c, d), pair(e, f), pair(g, h), pair(self.keyed, self.port)]
    }
}

/// Two words one behind the other in memory, as one.
const fn pair(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// An address and a port, as maps hold them. IPv4 addresses are mapped (RFC 4291, 2.5.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint {
    /// The address as in memory, in network byte order.
    pub address: [u32; 4],
    /// The port, in network byte order.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}

impl Endpoint {
    /// With an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn v4(a: [u8; 4], port: [u8; 2]) -> Self {
        Self { address: Self::mapped(u32::from_ne_bytes(a)), port: u16::from_ne_bytes(port), pad: 0 }
    }

    /// With an IPv6 address.
    #[inline(always)]
    #[must_use]
    pub const fn v6(address: [u8; 16], port: [u8; 2]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address;
        let address = [
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ];
        Self { address, port: u16::from_ne_bytes(port), pad: 0 }
    }

    /// The mapped form of an IPv4 address in memory.
    #[inline(always)]
    #[must_use]
    pub const fn mapped(a: u32) -> [u32; 4] {
        [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), a]
    }

    /// As the map of TURN servers has it for a key.
    #[must_use]
    pub const fn words(&self) -> [u32; 5] {
        let [a, b, c, d] = self.address;
        let ([e, f], [g, h]) = (self.port.to_ne_bytes(), self.pad.to_ne_bytes());
        [a, b, c, d, u32::from_ne_bytes([e, f, g, h])]
    }
}

/// Why a program dropped a datagram: positions in the map of counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// At the socket: none of the formats that the port carries.
    SocketUnknownDatagram,
    /// At the socket: a receiver index that is not in use.
    SocketUnknownReceiver,
    /// At the socket: more data from elsewhere than where the peer was heard than is let through.
    SocketElsewhere,
    /// At the socket: a handshake message of somebody who does not know our public key.
    SocketBadMac,
    /// At the interface: none of the formats that the port carries.
    XdpUnknownDatagram,
    /// At the interface: a receiver index that is not in use.
    XdpUnknownReceiver,
    /// At the interface: more data from elsewhere than where the peer was heard than is let through.
    XdpElsewhere,
    /// At the interface: a handshake message of somebody who does not know our public key.
    XdpBadMac,
    /// At the interface: more handshake initiations from one source than are let through.
    XdpHandshakeRate,
}

impl Reason {
    /// Every reason.
    pub const ALL: &[Self] = &[
        Self::SocketUnknownDatagram,
        Self::SocketUnknownReceiver,
        Self::SocketElsewhere,
        Self::SocketBadMac,
        Self::XdpUnknownDatagram,
        Self::XdpUnknownReceiver,
        Self::XdpElsewhere,
        Self::XdpBadMac,
        Self::XdpHandshakeRate,
    ];

    /// Its name in statistics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SocketUnknownDatagram => "socket_unknown_datagram",
            Self::SocketUnknownReceiver => "socket_unknown_receiver",
            Self::SocketElsewhere => "socket_elsewhere",
            Self::SocketBadMac => "socket_bad_mac",
            Self::XdpUnknownDatagram => "xdp_unknown_datagram",
            Self::XdpUnknownReceiver => "xdp_unknown_receiver",
            Self::XdpElsewhere => "xdp_elsewhere",
            Self::XdpBadMac => "xdp_bad_mac",
            Self::XdpHandshakeRate => "xdp_handshake_rate",
        }
    }
}

/// Bytes of a datagram that [`Head`] looks at.
pub const HEAD_LEN: usize = 12;

/// The first bytes of a datagram: all that kernel programs look at. A run of datagrams that the kernel has put together
/// is told by its first one, and is longer than that, so lengths are lower limits here where [`crate::classify`] has
/// exact ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes 0 to 11 as little-endian words; what the datagram does not have is zero.
    pub words: [u32; 3],
    /// Length of the datagram in bytes.
    pub len: u32,
}

/// What a [`Head`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Tunnel data for this receiver index.
    Data(u32),
    /// A handshake initiation.
    Initiation,
    /// A handshake response to this receiver index.
    Response(u32),
    /// A cookie reply to this receiver index.
    CookieReply(u32),
    /// STUN.
    Stun,
    /// ChannelData with tunnel data for this receiver index.
    RelayedData(u32),
    /// Other ChannelData.
    Channel,
    /// None of ours.
    Unknown,
}

impl Head {
    /// Tells what the datagram is.
    #[inline(always)]
    #[must_use]
    pub const fn told(self) -> Told {
        let Self { words: [first, second, third], len } = self;
        match first {
            4 if len >= KEEPALIVE_LEN as u32 => return Told::Data(second),
            1 if len >= INITIATION_LEN as u32 => return Told::Initiation,
            2 if len >= RESPONSE_LEN as u32 => return Told::Response(third),
            3 if len >= COOKIE_REPLY_LEN as u32 => return Told::CookieReply(second),
            _ => {}
        }
        match first & 0xff {
            0x40..=0x7f if len >= CHANNEL_HEADER_LEN as u32 => {
                let inner = ((first >> 16) as u16).swap_bytes() as u32;
                let room = len - CHANNEL_HEADER_LEN as u32;
                if second == 4 && inner >= KEEPALIVE_LEN as u32 && inner <= room {
                    Told::RelayedData(third)
                } else {
                    Told::Channel
                }
            }
            0..=0x3f if len >= 20 && second == u32::from_le_bytes(STUN_COOKIE) => Told::Stun,
            _ => Told::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kind, classify};

    #[test]
    fn a_word_is_for_one_index_and_a_free_slot_for_none() {
        let (first, last) = (Slot { shard: 0, mark: 0 }, Slot { shard: MAX_SOCKETS - 1, mark: (1 << MARK_BITS) - 1 });
        let word = slot_word(0xabcd_0007, last);
        assert_eq!((slot_at(word, 0xabcd_0007), slot_at(word, 0xabce_0007), slot_at(0, 0)), (Some(last), None, None));
        assert_eq!(slot_at(slot_word(0, first), 0), Some(first));
        assert_eq!(slot_of(0xabcd_0007), 0x1_0007);
    }

    #[test]
    fn sources_next_to_each_other_have_marks_of_their_own() {
        let mut seen = [0u32; 4096];
        for n in 0..4096u16 {
            let [a, b] = n.to_be_bytes();
            seen[usize::from(n)] = mark_of(&Endpoint::v4([10, 0, 0, b], [a, 7]), 9);
            assert_ne!(seen[usize::from(n)], 0);
        }
        seen.sort_unstable();
        // Of 4,096 marks of 24 bits half a pair is the same by chance.
        assert!(seen.windows(2).filter(|w| w[0] == w[1]).count() < 5);
        let one = Endpoint::v4([10, 0, 0, 1], [1, 2]);
        assert!(mark_of(&one, 1) != mark_of(&one, 2) && mark_of(&one, 1) >> MARK_BITS == 0);
    }

    #[test]
    fn a_bucket_lets_a_burst_through_and_then_one_an_interval() {
        let mut due = 0;
        let mut passed = 0;
        for now in 1_000_000..1_001_000 {
            if let Some(next) = let_through(due, now, 1, 100, 5) {
                (due, passed) = (next, passed + 1);
            }
        }
        assert_eq!(passed, 5 + 1 + 999 / 100);
        assert_eq!(let_through(u64::MAX, 0, 1, 100, 5), None);
    }

    fn head(datagram: &[u8]) -> Head {
        let mut bytes = [0; HEAD_LEN];
        let n = datagram.len().min(HEAD_LEN);
        bytes[..n].copy_from_slice(&datagram[..n]);
        let word = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        Head { words: [word(0), word(4), word(8)], len: datagram.len() as u32 }
    }

    #[test]
    fn a_head_tells_what_all_of_the_datagram_tells() {
        for first in 0..=255u8 {
            for second in [0u8, 1] {
                for cookie in [false, true] {
                    for len in 0..200 {
                        let mut datagram = [0u8; 200];
                        datagram[..2].copy_from_slice(&[first, second]);
                        if cookie {
                            datagram[4..8].copy_from_slice(&STUN_COOKIE);
                        }
                        let datagram = &datagram[..len];
                        let told = head(datagram).told();
                        let longer = matches!((first, second), (1..=3, 0));
                        match classify(datagram) {
                            Kind::Data => assert!(matches!(told, Told::Data(_))),
                            Kind::Initiation => assert_eq!(told, Told::Initiation),
                            Kind::Response => assert!(matches!(told, Told::Response(_))),
                            Kind::CookieReply => assert!(matches!(told, Told::CookieReply(_))),
                            Kind::Stun if !longer => assert_eq!(told, Told::Stun),
                            Kind::ChannelData => assert_eq!(told, Told::Channel),
                            Kind::Unknown if !longer => assert_eq!(told, Told::Unknown),
                            _ => assert!(len > COOKIE_REPLY_LEN - 1 || told == Told::Unknown || cookie),
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn data_inside_of_channel_data_is_told_if_all_of_it_is_there() {
        let mut m = [0u8; 4 + 32];
        m[..4].copy_from_slice(&[0x40, 1, 0, 32]);
        m[4..12].copy_from_slice(&[4, 0, 0, 0, 7, 0, 0, 0x80]);
        assert_eq!(head(&m).told(), Told::RelayedData(0x8000_0007));
        assert_eq!(head(&m[..35]).told(), Told::Channel);
        m[3] = 31;
        assert_eq!(head(&m).told(), Told::Channel);
    }
}
