//! Where a peer's datagrams go.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Where a peer's datagrams go. Every address is in its canonical form: an IPv4 address is `V4`, never
/// `::ffff:a.b.c.d` (unmapped at the socket, so that one address has one form inside).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// Straight to this address.
    Direct(SocketAddr),
    /// As TURN ChannelData (RFC 8656 section 12.4) through `server`: each datagram gets a 4-byte prefix of
    /// `channel` and its length.
    Relay {
        /// The TURN server's address.
        server: SocketAddr,
        /// The bound channel number, 0x4000..=0x4fff.
        channel: u16,
    },
}

impl Path {
    /// The address that the datagrams are sent to.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        match self {
            Self::Direct(a) | Self::Relay { server: a, .. } => *a,
        }
    }

    /// Bytes before each datagram on this path.
    #[must_use]
    pub const fn prefix_len(&self) -> usize {
        match self {
            Self::Direct(_) => 0,
            Self::Relay { .. } => ipop_ebpf::CHANNEL_HEADER_LEN,
        }
    }
}

impl From<SocketAddr> for Path {
    fn from(a: SocketAddr) -> Self {
        Self::Direct(canonical(a))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(a) => write!(f, "{a}"),
            Self::Relay { server, channel } => write!(f, "{server} (relay channel {channel:#06x})"),
        }
    }
}

/// `::ffff:a.b.c.d` as `a.b.c.d`; anything else as it is.
#[must_use]
pub fn canonical(a: SocketAddr) -> SocketAddr {
    match a {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), v6.port()),
            None => a,
        },
        SocketAddr::V4(_) => a,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_have_one_form() {
        let p = Path::from("[::ffff:10.0.0.1]:5".parse::<SocketAddr>().expect("address"));
        assert_eq!(p, Path::Direct("10.0.0.1:5".parse().expect("address")));
        assert_eq!(p.prefix_len(), 0);
    }
}
