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

/// What the map of slots holds for an index in use: the index below, the number of its shard and one above. Zero: the
/// slot is free.
#[must_use]
pub const fn slot_word(index: u32, shard: u32) -> u64 {
    ((shard as u64 + 1) << 32) | index as u64
}

/// The shard of `index`, if `word` is what its slot holds.
#[must_use]
pub const fn shard_of(word: u64, index: u32) -> Option<u32> {
    match (word >> 32) as u32 {
        0 => None,
        shard if word as u32 == index => Some(shard - 1),
        _ => None,
    }
}

/// Key of the map of TURN servers. IPv4 addresses are mapped (RFC 4291, 2.5.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RelayKey {
    /// The address.
    pub address: [u8; 16],
    /// The port, in network byte order.
    pub port: [u8; 2],
    /// Zero.
    pub pad: [u8; 2],
}

impl RelayKey {
    /// The key for a server at an IPv4 address.
    #[must_use]
    pub const fn v4(a: [u8; 4], port: [u8; 2]) -> Self {
        let address = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]];
        Self { address, port, pad: [0; 2] }
    }

    /// The key for a server at an IPv6 address.
    #[must_use]
    pub const fn v6(address: [u8; 16], port: [u8; 2]) -> Self {
        Self { address, port, pad: [0; 2] }
    }
}

/// Why a program dropped a datagram: positions in the map of counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// At the socket: none of the formats that the port carries.
    SocketUnknownDatagram,
    /// At the socket: data for a receiver index that is not in use.
    SocketUnknownReceiver,
    /// At the interface: none of the formats that the port carries.
    XdpUnknownDatagram,
    /// At the interface: data for a receiver index that is not in use.
    XdpUnknownReceiver,
    /// At the interface: more handshake initiations from one source than are let through.
    XdpHandshakeRate,
}

impl Reason {
    /// Every reason.
    pub const ALL: &[Self] = &[
        Self::SocketUnknownDatagram,
        Self::SocketUnknownReceiver,
        Self::XdpUnknownDatagram,
        Self::XdpUnknownReceiver,
        Self::XdpHandshakeRate,
    ];

    /// Its name in statistics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SocketUnknownDatagram => "socket_unknown_datagram",
            Self::SocketUnknownReceiver => "socket_unknown_receiver",
            Self::XdpUnknownDatagram => "xdp_unknown_datagram",
            Self::XdpUnknownReceiver => "xdp_unknown_receiver",
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
    /// Another message for the slow path: handshake response, cookie reply, STUN.
    Slow,
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
            2 if len >= RESPONSE_LEN as u32 => return Told::Slow,
            3 if len >= COOKIE_REPLY_LEN as u32 => return Told::Slow,
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
            0..=0x3f if len >= 20 && second == u32::from_le_bytes(STUN_COOKIE) => Told::Slow,
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
        let word = slot_word(0xabcd_0007, 63);
        assert_eq!((shard_of(word, 0xabcd_0007), shard_of(word, 0xabce_0007), shard_of(0, 0)), (Some(63), None, None));
        assert_eq!(shard_of(slot_word(0, 0), 0), Some(0));
        assert_eq!(slot_of(0xabcd_0007), 0x1_0007);
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
                            Kind::Response | Kind::CookieReply | Kind::Stun if !longer => assert_eq!(told, Told::Slow),
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
