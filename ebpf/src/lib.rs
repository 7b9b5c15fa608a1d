//! What user space and the kernel classifiers must agree on, without `std`: how one UDP datagram on the
//! shared port is told by its first bytes.
//!
//! One UDP port carries the tunnel, STUN and TURN, because the hole that is punched is the hole that is
//! used. The formats are disjoint in their first bytes (RFC 7983 makes the same argument for DTLS and
//! RTP): WireGuard starts with 1..=4 and three zero bytes, TURN ChannelData with 0x40..=0x7f (RFC 8656
//! section 12), STUN with 0x00..=0x3f and its magic cookie at offset 4 (RFC 8489 section 5).
#![no_std]
#![forbid(unsafe_code)]

pub mod blake2s;
mod shared;

pub use shared::*;

/// Length in bytes of a handshake initiation (WireGuard paper, section 5.4.2).
pub const INITIATION_LEN: usize = 148;
/// Length in bytes of a handshake response (WireGuard paper, section 5.4.3).
pub const RESPONSE_LEN: usize = 92;
/// Length in bytes of a cookie reply (WireGuard paper, section 5.4.7).
pub const COOKIE_REPLY_LEN: usize = 64;
/// Length in bytes of the header before a transport payload: type, receiver index, counter
/// (WireGuard paper, section 5.4.6).
pub const DATA_HEADER_LEN: usize = 16;
/// Length in bytes of the tag behind a transport payload, whichever the cipher.
pub const TAG_LEN: usize = 16;
/// Smallest transport message in bytes: header and tag around nothing, a keepalive.
pub const KEEPALIVE_LEN: usize = DATA_HEADER_LEN + TAG_LEN;
/// Length in bytes of the ChannelData header: channel number and length (RFC 8656 section 12.4).
pub const CHANNEL_HEADER_LEN: usize = 4;
/// The STUN magic cookie, at offset 4 (RFC 8489 section 5).
pub const STUN_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// What a datagram is, told by its first bytes and its length only; nothing is authenticated yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Handshake initiation, exactly [`INITIATION_LEN`] bytes.
    Initiation,
    /// Handshake response, exactly [`RESPONSE_LEN`] bytes.
    Response,
    /// Cookie reply, exactly [`COOKIE_REPLY_LEN`] bytes.
    CookieReply,
    /// Transport data, at least [`KEEPALIVE_LEN`] bytes.
    Data,
    /// TURN ChannelData if (and only if) the source is one of our TURN servers.
    ChannelData,
    /// A STUN message.
    Stun,
    /// None of ours.
    Unknown,
}

/// Tells what `datagram` is. Never looks past its first 8 bytes and its length.
#[must_use]
pub fn classify(datagram: &[u8]) -> Kind {
    let Some(first) = datagram.first_chunk::<4>() else {
        return Kind::Unknown;
    };
    match (*first, datagram.len()) {
        ([4, 0, 0, 0], KEEPALIVE_LEN..) => Kind::Data,
        ([1, 0, 0, 0], INITIATION_LEN) => Kind::Initiation,
        ([2, 0, 0, 0], RESPONSE_LEN) => Kind::Response,
        ([3, 0, 0, 0], COOKIE_REPLY_LEN) => Kind::CookieReply,
        ([0x40..=0x7f, ..], _) => Kind::ChannelData,
        // A STUN header is 20 bytes; its two top bits are zero.
        ([0..=0x3f, ..], 20..) if datagram.get(4..8) == Some(&STUN_COOKIE) => Kind::Stun,
        _ => Kind::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wireguard_messages_are_told_by_type_and_exact_length() {
        let mut m = [0u8; 200];
        for (kind, first, len) in [
            (Kind::Initiation, 1, INITIATION_LEN),
            (Kind::Response, 2, RESPONSE_LEN),
            (Kind::CookieReply, 3, COOKIE_REPLY_LEN),
        ] {
            m[0] = first;
            assert_eq!(classify(&m[..len]), kind);
            assert_eq!(classify(&m[..len - 1]), Kind::Unknown);
            assert_eq!(classify(&m[..len + 1]), Kind::Unknown);
        }
        m[0] = 4;
        assert_eq!(classify(&m[..31]), Kind::Unknown);
        assert_eq!(classify(&m[..32]), Kind::Data);
        m[2] = 1;
        assert_eq!(classify(&m), Kind::Unknown);
    }

    #[test]
    fn stun_and_channel_data_are_told_apart_from_the_tunnel() {
        let mut m = [0u8; 20];
        m[1] = 1;
        m[4..8].copy_from_slice(&STUN_COOKIE);
        assert_eq!(classify(&m), Kind::Stun);
        assert_eq!(classify(&m[..19]), Kind::Unknown);
        m[4] = 0;
        assert_eq!(classify(&m), Kind::Unknown);
        assert_eq!(classify(&[0x40, 0, 0, 0]), Kind::ChannelData);
        assert_eq!(classify(&[0x40, 0, 0]), Kind::Unknown);
        assert_eq!(classify(&[]), Kind::Unknown);
    }
}
