//! Shards over memory: what goes in comes out, and what does not is counted.

mod drops;
mod faults;
mod flows;
mod friends;
mod multicast;
mod relay;
mod settings;
mod staging;
#[allow(dead_code)]
#[path = "../../src/packet/testing.rs"]
mod testing;
#[allow(dead_code)]
mod world;

use dataplane::packet::Split;

/// TCP payload of a full segment at the MTU of 1,420, over IPv4 with timestamps.
const MSS: usize = 1420 - 20 - 32;

/// A TCP super-packet from node 1 to node 2 with `payload` bytes, the `n`th of such in its flow.
fn bulk(n: usize, payload: usize) -> Vec<u8> {
    let p = testing::Packet::tcp4().with(|p| {
        p.seq = p.seq.wrapping_add((n * payload) as u32);
        p.id = p.id.wrapping_add((n * payload.div_ceil(MSS)) as u16);
        p.payload = (0..payload).map(|i| (i + n) as u8).collect();
    });
    testing::super_packet(&p, MSS)
}

/// A UDP packet from node 1 to node 2, as TUN hands it over with its checksum done.
fn udp(n: usize, payload: usize) -> Vec<u8> {
    plain(&testing::Packet::tcp4().udp().with(|p| {
        p.id = n as u16;
        p.payload = vec![n as u8; payload];
    }))
}

fn plain(p: &testing::Packet) -> Vec<u8> {
    [vec![0; dataplane::packet::virtio::VNET_LEN], p.bytes()].concat()
}

/// A packet that does not show all its bytes when a test fails.
#[derive(Clone, PartialEq, Eq)]
struct Plain(Vec<u8>);

impl std::fmt::Debug for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} B {:02x?}", self.0.len(), &self.0[..self.0.len().min(54)])
    }
}

/// All packets in these TUN reads or writes, without the IDs that the kernel may choose (RFC 6864).
fn packets(all: &[Vec<u8>]) -> Vec<Plain> {
    let mut out: Vec<_> = all.iter().flat_map(|p| testing::segments(p.clone())).collect();
    for p in &mut out {
        let (tcp, transport) = if p[0] >> 4 == 4 { (p[9] == 6, 20) } else { (p[6] == 6, 40) };
        testing::assert_checksums(p, transport, tcp);
        if p[0] >> 4 == 4 {
            p[4..6].fill(0);
            p[10..12].fill(0);
        }
    }
    out.into_iter().map(Plain).collect()
}
