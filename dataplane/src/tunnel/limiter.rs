//! How many handshakes one source may cause while we are under load (WireGuard paper, section 5.3).

use super::limits::{MAX_SOURCES, SOURCE_BURST, SOURCE_RATE};
use crate::{Path, Time};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_nanos(1_000_000_000 / SOURCE_RATE as u64);
const BURST: Duration = Duration::from_nanos(1_000_000_000 / SOURCE_RATE as u64 * (SOURCE_BURST as u64 - 1));

/// Who counts as one source: an IPv4 address, an IPv6 /64, or one peer behind a relay.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    V4([u8; 4], u16),
    V6([u8; 8], u16),
}

impl From<&Path> for Source {
    fn from(p: &Path) -> Self {
        let channel = match p {
            Path::Direct(_) => 0,
            Path::Relay { channel, .. } => *channel,
        };
        match p.address().ip() {
            IpAddr::V4(ip) => Self::V4(ip.octets(), channel),
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h, ..] = ip.octets();
                Self::V6([a, b, c, d, e, f, g, h], channel)
            }
        }
    }
}

/// A token bucket per source, kept as the time at which the bucket is full again: a source that has been
/// quiet needs no entry.
#[derive(Default)]
pub(super) struct Limiter {
    full_at: HashMap<Source, Time>,
    swept: Time,
}

impl Limiter {
    /// Takes a token of `from`'s bucket, if there is one.
    pub(super) fn allow(&mut self, now: Time, from: &Path) -> bool {
        let source = Source::from(from);
        if let Some(full_at) = self.full_at.get_mut(&source) {
            if full_at.since(now) > BURST {
                return false;
            }
            *full_at = now.max(*full_at) + INTERVAL;
            return true;
        }
        if self.full_at.len() >= MAX_SOURCES && !self.sweep(now) {
            return false;
        }
        self.full_at.insert(source, now + INTERVAL);
        true
    }

    /// Drops what expired, once in a bucket's time at most. True if that made room.
    fn sweep(&mut self, now: Time) -> bool {
        if now.since(self.swept) < BURST {
            return false;
        }
        self.swept = now;
        self.full_at.retain(|_, full_at| *full_at > now);
        self.full_at.len() < MAX_SOURCES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, SocketAddr};

    fn v4(n: u32) -> Path {
        Path::Direct(SocketAddr::from((Ipv4Addr::from_bits(n), 1)))
    }

    #[test]
    fn a_source_has_a_burst_and_then_its_rate() {
        let mut l = Limiter::default();
        let start = Time::from_nanos(1_000_000_000);
        for _ in 0..SOURCE_BURST {
            assert!(l.allow(start, &v4(1)));
        }
        assert!(!l.allow(start, &v4(1)));
        assert!(l.allow(start, &v4(2)), "another source is not affected");
        let passed = (0..1000u64).filter(|ms| l.allow(start + Duration::from_millis(*ms), &v4(1))).count();
        assert!((19..=20).contains(&passed), "{passed}");
        let idle = start + Duration::from_secs(60);
        assert_eq!((0..10).filter(|_| l.allow(idle, &v4(1))).count(), SOURCE_BURST as usize);
    }

    #[test]
    fn an_ipv6_site_is_one_source_and_channels_of_a_relay_are_many() {
        let v6 = |s: &str| Path::Direct(s.parse().expect("address"));
        let relay = |channel| Path::Relay { server: "10.0.0.1:3478".parse().expect("address"), channel };
        assert!(Source::from(&v6("[2001:db8::1]:1")) == Source::from(&v6("[2001:db8::ffff:1]:2")));
        assert!(Source::from(&v6("[2001:db8::1]:1")) != Source::from(&v6("[2001:db8:0:1::1]:1")));
        assert!(Source::from(&relay(0x4000)) != Source::from(&relay(0x4001)));
    }

    #[test]
    fn the_table_is_bounded_and_recovers() {
        let mut l = Limiter::default();
        let start = Time::from_nanos(1_000_000_000);
        let n = u32::try_from(MAX_SOURCES).expect("small");
        assert!((0..n).all(|i| l.allow(start, &v4(i))));
        assert!(!l.allow(start, &v4(n)));
        assert!(l.full_at.len() <= MAX_SOURCES);
        assert!(l.allow(start + Duration::from_secs(1), &v4(n)));
        assert_eq!(l.full_at.len(), 1);
    }
}
