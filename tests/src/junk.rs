//! Junk datagrams for a daemon's UDP port, bounded in number and rate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::ns::Namespace;
use crate::pair::{Pair, Side};
use crate::relay::{Faults, Relay};
use crate::traffic::{Noise, socket};
use crate::wg::wg;

/// Different datagrams of a [`Torrent`].
const DATAGRAMS: usize = 1024;
/// Datagrams that it sends between two looks at the clock.
const BURST: usize = 64;
/// Longest datagram of it: one packet.
const LONGEST: usize = 1400;

/// A kind of junk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Junk {
    /// Noise of any length, from nothing to more than an Ethernet frame.
    Random,
    /// Noise in the shape of a handshake initiation (type 1, 148 bytes).
    Initiation,
    /// Noise in the shape of a handshake response (type 2, 92 bytes).
    Response,
    /// Noise in the shape of a cookie reply (type 3, 64 bytes).
    CookieReply,
    /// Noise in the shape of a data message (type 4) for that receiver index.
    Data(u32),
    /// STUN's first byte and magic cookie, then noise.
    Stun,
    /// TURN ChannelData's first byte (0x40 to 0x4f), then noise.
    ChannelData,
}

impl Junk {
    /// Every kind that needs no knowledge of the daemon.
    pub const BLIND: [Self; 7] = [
        Self::Random,
        Self::Initiation,
        Self::Response,
        Self::CookieReply,
        Self::Data(0),
        Self::Stun,
        Self::ChannelData,
    ];

    /// One datagram of this kind.
    #[must_use]
    pub fn datagram(self, noise: &mut Noise) -> Vec<u8> {
        let length = match self {
            Self::Random => noise.below(1900),
            Self::Initiation => 148,
            Self::Response => 92,
            Self::CookieReply => 64,
            Self::Data(_) => 32 + 16 * noise.below(80),
            Self::Stun => 20 + 4 * noise.below(30),
            Self::ChannelData => 4 + noise.below(1400),
        };
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        noise.fill(&mut bytes);
        match self {
            Self::Random => {}
            Self::Initiation => bytes[..4].copy_from_slice(&[1, 0, 0, 0]),
            Self::Response => bytes[..4].copy_from_slice(&[2, 0, 0, 0]),
            Self::CookieReply => bytes[..4].copy_from_slice(&[3, 0, 0, 0]),
            Self::Data(index) => {
                bytes[..4].copy_from_slice(&[4, 0, 0, 0]);
                bytes[4..8].copy_from_slice(&index.to_le_bytes());
                // A counter that a replay window would let pass.
                bytes[8..16].copy_from_slice(&(1_000_000 + noise.below(1 << 20)).to_le_bytes());
            }
            Self::Stun => {
                bytes[..2].copy_from_slice(&[0, 1]);
                bytes[4..8].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
            }
            Self::ChannelData => bytes[0] = 0x40 | (bytes[0] & 0x0f),
        }
        bytes
    }
}

/// Sends `count` datagrams of the given kinds in turn, `rate` a second, each second from a new port. Gives how many
/// the kernel took.
///
/// # Errors
/// When no socket can be had.
pub fn flood(ns: &Namespace, target: SocketAddr, kinds: &[Junk], count: u64, rate: u64) -> Result<u64> {
    ensure!(count <= 5_000_000 && rate > 0 && !kinds.is_empty(), "a flood is bounded");
    let any: SocketAddr = if target.is_ipv4() { ([0; 4], 0).into() } else { ([0_u8; 16], 0).into() };
    let (start, mut noise, mut sent) = (Instant::now(), Noise::new(count), 0);
    let mut from = socket(ns, any)?;
    for n in 0..count {
        if n % rate == rate - 1 {
            from = socket(ns, any)?;
        }
        let kind = kinds[usize::try_from(n).unwrap_or(0) % kinds.len()];
        // A full buffer or an ICMP error from the other side is the flood's own trouble.
        sent += u64::from(from.send_to(&kind.datagram(&mut noise), target).is_ok());
        if n % 64 == 0 {
            let due = Duration::from_secs_f64(n as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
    Ok(sent)
}

/// The receiver index by which B knows its session with A, and datagrams of that, read off the wire by a relay that the
/// handshake took.
///
/// # Errors
/// When there is no handshake, or the session does not survive the relay's going.
pub fn index_of_b(pair: &Pair) -> Result<(u32, Vec<Vec<u8>>)> {
    let relay = Relay::start(pair.ns(Side::B), "10.99.0.2:7000".parse()?, pair.endpoint(Side::B), Faults::default())?;
    let (a, b) = (pair.interface(Side::A), pair.interface(Side::B));
    wg(&format!("set {a} peer {} endpoint {}", pair.site(Side::B).keys.public, relay.address()))?;
    pair.wait_ping(Side::A, Duration::from_secs(12))?;
    let found = (relay.receiver_index()?, relay.seen()?);
    // Both straight again; the session stays.
    wg(&format!("set {a} peer {} endpoint {}", pair.site(Side::B).keys.public, pair.endpoint(Side::B)))?;
    wg(&format!("set {b} peer {} endpoint {}", pair.site(Side::A).keys.public, pair.endpoint(Side::A)))?;
    ensure!(pair.pings(Side::A, Side::B.inner4()), "the session did not survive the change of path");
    Ok(found)
}

/// A flood at a steady rate from prepared datagrams, for figures; ends when dropped.
#[derive(Debug)]
pub struct Torrent {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Torrent {
    /// Sends `kind` from `from` to `target`, `rate` a second.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn start(from: &Namespace, sources: &[SocketAddr], target: SocketAddr, kind: Junk, rate: u64) -> Result<Self> {
        let mut noise = Noise::new(rate);
        let fits = std::iter::repeat_with(|| kind.datagram(&mut noise)).filter(|d| d.len() <= LONGEST);
        let datagrams: Vec<Vec<u8>> = fits.take(DATAGRAMS).collect();
        let sockets = sources.iter().map(|a| socket(from, *a)).collect::<Result<Vec<_>>>()?;
        for s in &sockets {
            s.connect(target)?;
        }
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counter) = (stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            let (start, mut n) = (Instant::now(), 0_u64);
            while !stopped.load(Relaxed) {
                for _ in 0..BURST {
                    let i = usize::try_from(n).unwrap_or(0);
                    n += 1;
                    if sockets[i % sockets.len()].send(&datagrams[i % DATAGRAMS]).is_ok() {
                        counter.fetch_add(1, Relaxed);
                    }
                }
                let due = Duration::from_secs_f64(n as f64 / rate as f64);
                std::thread::sleep(due.saturating_sub(start.elapsed()));
            }
        });
        Ok(Self { stop, sent, thread: Some(thread) })
    }

    /// How many the kernel took so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }
}

impl Drop for Torrent {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshake_shaped_junk_has_the_types_and_lengths_of_the_paper() {
        let mut noise = Noise::new(1);
        for (kind, first, length) in [(Junk::Initiation, 1, 148), (Junk::Response, 2, 92), (Junk::CookieReply, 3, 64)] {
            let d = kind.datagram(&mut noise);
            assert_eq!((d[0], d.len()), (first, length));
        }
        let d = Junk::Data(7).datagram(&mut noise);
        assert!(d[0] == 4 && d[4..8] == [7, 0, 0, 0] && d.len().is_multiple_of(16) && d.len() >= 32);
    }
}
