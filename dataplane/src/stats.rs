//! Counters: what came in, what went out, and why the rest did not.
//!
//! Packets in = packets out + the sum of all drops, per direction; tests hold the pipeline to it. A multicast packet that
//! goes to several peers is as many packets from there on: what came in and [`Counters::multicast_copies`] = what went
//! out and all drops.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// Why a packet or datagram was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Drop { $($(#[doc = $doc])+ $name,)+ }

        impl Drop {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The reason's name in statistics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

reasons! {
    /// Outbound: not an IP packet, or its lengths contradict each other.
    Malformed = "malformed",
    /// Outbound: a destination in nobody's allowed IPs.
    NoRoute = "no_route",
    /// Outbound: the peer has no known endpoint.
    NoPath = "no_path",
    /// Outbound: no session yet and the peer's staging queue was full.
    StagingFull = "staging_full",
    /// Outbound: staged, but no handshake was completed in time or the peer went away.
    StagingExpired = "staging_expired",
    /// Outbound: the socket refused the datagram (unreachable, no buffer space, interface down ...).
    SendFailed = "send_failed",
    /// Outbound: larger than the path carries (EMSGSIZE).
    TooBig = "too_big",
    /// Outbound: the socket buffer stayed full.
    SendBufferFull = "send_buffer_full",
    /// Outbound: the session has used up its counters (2^64 - 2^13 - 1 messages).
    CounterExhausted = "counter_exhausted",
    /// Outbound: multicast while no peer is linked.
    MulticastNobody = "multicast_nobody",
    /// Outbound: more multicast than the rate limit lets out.
    MulticastRate = "multicast_rate",
    /// Outbound: copies of multicast packets for more peers than one goes to.
    MulticastFanout = "multicast_fanout",
    /// Inbound: none of the formats that the port carries.
    UnknownDatagram = "unknown_datagram",
    /// Inbound: longer than a receive buffer.
    Truncated = "truncated",
    /// Inbound: a receiver index of no live session.
    UnknownReceiver = "unknown_receiver",
    /// Inbound: the session is past its end (180 s).
    SessionExpired = "session_expired",
    /// Inbound: the tag was wrong.
    Forged = "forged",
    /// Inbound: a counter seen before, too old to tell, or beyond the end of the session.
    Replayed = "replayed",
    /// Inbound: an authentic payload that is no IP packet.
    InnerMalformed = "inner_malformed",
    /// Inbound: an inner source address that is not the peer's to use.
    WrongSource = "wrong_source",
    /// Inbound: an inner IPv4 source other than the address that a translated peer has.
    Spoofed = "spoofed",
    /// Inbound: multicast or broadcast of a translated peer while multicast is off.
    MulticastOff = "multicast_off",
    /// Inbound: a packet of a translated peer that contradicts itself, is source-routed, a redirect, or an ICMP error about
    /// somebody else's packet.
    Untranslatable = "untranslatable",
    /// Inbound: the TUN device refused the packet.
    TunWriteFailed = "tun_write_failed",
    /// Inbound: TUN is down.
    TunDown = "tun_down",
    /// Inbound: a handshake message with a wrong MAC1.
    BadMac = "bad_mac",
    /// Inbound: the keeper's queue of handshake messages was full.
    HandshakeQueueFull = "handshake_queue_full",
    /// Inbound: a handshake message that was refused (unknown peer, replayed timestamp, wrong index ...).
    HandshakeRefused = "handshake_refused",
    /// Inbound: more handshakes from one source than allowed.
    HandshakeRateLimited = "handshake_rate_limited",
    /// Inbound: a handshake answered by a cookie because of load.
    CookieSent = "cookie_sent",
    /// Inbound: the queue of STUN and ChannelData for the engine's user was full.
    SideQueueFull = "side_queue_full",
}

/// One writer's counters (a shard or the keeper). Written with relaxed stores by their owner, read by anyone.
#[derive(Debug)]
#[repr(align(128))]
pub struct Counters {
    drops: [AtomicU64; Drop::ALL.len()],
    /// Inner packets read from TUN, after splitting: segments.
    pub tun_in: AtomicU64,
    /// Multicast: packets that one packet from TUN became, beyond itself. Three for one that goes to four peers.
    pub multicast_copies: AtomicU64,
    /// Inner packets written to TUN, before coalescing: segments.
    pub tun_out: AtomicU64,
    /// Reads from TUN: super-packets.
    pub tun_reads: AtomicU64,
    /// Writes to TUN: super-packets.
    pub tun_writes: AtomicU64,
    /// Datagrams received.
    pub udp_in: AtomicU64,
    /// Data datagrams of live sessions that arrived at the shard that owns the session.
    pub udp_at_owner: AtomicU64,
    /// Those that arrived at another shard.
    pub udp_elsewhere: AtomicU64,
    /// Datagrams sent.
    pub udp_out: AtomicU64,
    /// Receive calls that brought datagrams: GRO buffers.
    pub udp_reads: AtomicU64,
    /// Send calls: GSO runs.
    pub udp_writes: AtomicU64,
    /// Keepalives received and sent are datagrams without an inner packet.
    pub keepalives_in: AtomicU64,
    /// Keepalives sent by this writer.
    pub keepalives_out: AtomicU64,
    /// Handshake messages handed to the keeper.
    pub handshakes_in: AtomicU64,
    /// ICMP messages to TUN about packets that nobody carries.
    pub unreachables_out: AtomicU64,
    /// STUN and ChannelData datagrams handed to the engine's user.
    pub side_in: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        let z = || AtomicU64::new(0);
        Self {
            drops: std::array::from_fn(|_| z()),
            tun_in: z(),
            multicast_copies: z(),
            tun_out: z(),
            tun_reads: z(),
            tun_writes: z(),
            udp_in: z(),
            udp_at_owner: z(),
            udp_elsewhere: z(),
            udp_out: z(),
            udp_reads: z(),
            udp_writes: z(),
            keepalives_in: z(),
            keepalives_out: z(),
            handshakes_in: z(),
            unreachables_out: z(),
            side_in: z(),
        }
    }
}

/// Adds to a counter that has one writer: a plain load and store instead of a locked instruction.
pub fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}

impl Counters {
    /// Counts `n` drops for `reason`.
    pub fn count_drop(&self, reason: Drop, n: u64) {
        add(&self.drops[reason as usize], n);
    }

    /// Drops so far for `reason`.
    #[must_use]
    pub fn dropped(&self, reason: Drop) -> u64 {
        self.drops[reason as usize].load(Relaxed)
    }
}

/// A sum over writers at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Name and value of every traffic counter, in a fixed order.
    pub traffic: Vec<(&'static str, u64)>,
    /// Name and count of every drop reason, in a fixed order.
    pub drops: Vec<(&'static str, u64)>,
    /// What kernel programs dropped, by reason; empty without them. No other counter has these datagrams.
    pub kernel_drops: Vec<(&'static str, u64)>,
}

impl Stats {
    /// Sums over `writers`.
    pub fn sum<'a>(writers: impl IntoIterator<Item = &'a Counters>) -> Self {
        let mut traffic: Vec<(&'static str, u64)> = Vec::new();
        let mut drops: Vec<(&'static str, u64)> = Drop::ALL.iter().map(|d| (d.name(), 0)).collect();
        for c in writers {
            let rows = [
                ("tun_packets_in", &c.tun_in),
                ("tun_packets_out", &c.tun_out),
                ("tun_reads", &c.tun_reads),
                ("tun_writes", &c.tun_writes),
                ("udp_datagrams_in", &c.udp_in),
                ("udp_data_at_owner", &c.udp_at_owner),
                ("udp_data_elsewhere", &c.udp_elsewhere),
                ("udp_datagrams_out", &c.udp_out),
                ("udp_reads", &c.udp_reads),
                ("udp_writes", &c.udp_writes),
                ("keepalives_in", &c.keepalives_in),
                ("keepalives_out", &c.keepalives_out),
                ("handshakes_in", &c.handshakes_in),
                ("unreachables_out", &c.unreachables_out),
                ("side_datagrams_in", &c.side_in),
                ("multicast_copies", &c.multicast_copies),
            ];
            if traffic.is_empty() {
                traffic = rows.iter().map(|(n, _)| (*n, 0)).collect();
            }
            for (sum, (_, v)) in traffic.iter_mut().zip(rows) {
                sum.1 += v.load(Relaxed);
            }
            for (sum, d) in drops.iter_mut().zip(Drop::ALL) {
                sum.1 += c.dropped(*d);
            }
        }
        Self { traffic, drops, kernel_drops: Vec::new() }
    }

    /// A counter by name; zero for a name that does not exist.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        self.traffic
            .iter()
            .chain(&self.drops)
            .chain(&self.kernel_drops)
            .find(|(n, _)| *n == name)
            .map_or(0, |(_, v)| *v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_summed_over_writers_by_reason() {
        let (a, b) = (Counters::default(), Counters::default());
        a.count_drop(Drop::Forged, 2);
        b.count_drop(Drop::Forged, 3);
        add(&b.udp_in, 7);
        let s = Stats::sum([&a, &b]);
        assert_eq!((s.get("forged"), s.get("udp_datagrams_in"), s.get("replayed")), (5, 7, 0));
    }
}
