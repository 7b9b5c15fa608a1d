//! Pure functions on the bytes of packets. No file descriptors, no clocks, no randomness.

pub mod checksum;
pub mod coalesce;
mod flows;
mod header;
pub mod ip;
pub mod split;
#[cfg(test)]
mod testing;
pub mod translate;
pub mod unreachable;
pub mod virtio;

pub use coalesce::{Coalescer, GroupId};
pub use ip::Inner;
pub use split::Split;
pub use translate::Translation;

/// Segments of one super-packet, at most, in both directions.
///
/// Out: the smallest MSS that an application can ask for is 88 bytes (`TCP_MIN_MSS`, include/net/tcp.h), 76
/// with timestamps, so 64 KiB come to 863 segments; more is nonsense. In: `writev` takes 1,024 pieces
/// (`UIO_MAXIOV`), one a segment.
pub const MAX_SEGMENTS: usize = 1024;

/// Bytes of a super-packet, at most: IP lengths have 16 bits.
pub const MAX_PACKET: usize = 65_535;

/// Why bytes are not a packet, or not one that can be split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends within a header.
    #[error("the packet ends within its headers")]
    Short,
    /// Neither IPv4 nor IPv6.
    #[error("the IP version is neither 4 nor 6")]
    Version,
    /// The IP or TCP header length is below its minimum or beyond the packet.
    #[error("a header length contradicts the packet")]
    HeaderLength,
    /// The IP length is below the header's or above what is there.
    #[error("the IP length contradicts the packet")]
    TotalLength,
    /// An IPv6 jumbogram (RFC 2675).
    #[error("IPv6 jumbograms are not carried")]
    Jumbogram,
    /// The virtio header asks for an offload that was not agreed on, or its offsets do not fit the packet.
    #[error("the virtio header contradicts the packet")]
    Offload,
    /// More than [`MAX_SEGMENTS`] segments.
    #[error("the super-packet has too many segments")]
    Segments,
}

/// IP protocol numbers.
mod protocol {
    pub(super) const TCP: u8 = 6;
    pub(super) const UDP: u8 = 17;
    pub(super) const DCCP: u8 = 33;
    pub(super) const UDP_LITE: u8 = 136;
    pub(super) const ICMP: u8 = 1;
    pub(super) const ICMPV6: u8 = 58;
}

/// Length in bytes of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Length in bytes of the fixed IPv6 header.
pub const IPV6_LEN: usize = 40;
/// Length in bytes of a TCP header without options.
pub const TCP_LEN: usize = 20;
/// Length in bytes of a UDP header.
pub const UDP_LEN: usize = 8;

/// TCP's checksum is at this offset of its header.
const TCP_CHECKSUM: usize = 16;
/// UDP's checksum is at this offset of its header.
const UDP_CHECKSUM: usize = 6;

/// TCP flags (RFC 9293 section 3.1).
mod flag {
    pub(super) const FIN: u8 = 0x01;
    pub(super) const PSH: u8 = 0x08;
    pub(super) const ACK: u8 = 0x10;
    pub(super) const CWR: u8 = 0x80;
}

/// The big-endian 16-bit field at `at`.
fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The big-endian 32-bit field at `at`.
fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Stores a 16-bit length, count or identification big-endian at `at`.
fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
