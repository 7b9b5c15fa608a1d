//! Telling the sender that nobody carries its packet.

use super::Shard;
use crate::Time;
use crate::io::Driver;
use crate::packet::unreachable::{MAX_LEN, Why, unreachable};
use crate::packet::virtio::VNET_LEN;
use crate::stats::add;
use std::io;
use std::time::Duration;

/// One message in this time on average ...
const INTERVAL: Duration = Duration::from_millis(10);
/// ... and so many at once (the kernel's `icmp_msgs_burst`).
const BURST: u32 = 50;

/// The limit of messages (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)).
#[derive(Default)]
pub(super) struct Refusals {
    /// A bucket as a time: it is empty now if this is [`BURST`] intervals ahead.
    full: Time,
}

impl Refusals {
    fn allowed(&mut self, now: Time) -> bool {
        let next = self.full.max(now) + INTERVAL;
        let allowed = next.since(now) <= INTERVAL * BURST;
        if allowed {
            self.full = next;
        }
        allowed
    }
}

impl<D: Driver> Shard<D> {
    /// Answers a TUN read that is dropped.
    pub(super) fn refuse(&mut self, read: &[u8], why: Why, now: Time) -> io::Result<()> {
        let header = if self.tun.vnet { VNET_LEN } else { 0 };
        let Some(packet) = read.get(header..) else { return Ok(()) };
        let mut message = [0; MAX_LEN];
        let Some(len) = unreachable(packet, why, &mut message) else { return Ok(()) };
        if !self.refusals.allowed(now) {
            return Ok(());
        }
        let mut framed = [0; VNET_LEN + MAX_LEN];
        framed[header..header + len].copy_from_slice(&message[..len]);
        // A full or downed device loses it, as any ICMP message may be lost.
        if self.driver.write_one(&framed[..header + len])?.is_ok() {
            add(&self.counters.unreachables_out, 1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_hundred_a_second() {
        let mut r = Refusals::default();
        let mut now = Time::ZERO + Duration::from_secs(5);
        assert_eq!((0..200).filter(|_| r.allowed(now)).count(), 50);
        let mut sent = 0;
        for _ in 0..1000 {
            now += Duration::from_millis(1);
            sent += usize::from(r.allowed(now));
        }
        assert_eq!(sent, 100);
    }
}
