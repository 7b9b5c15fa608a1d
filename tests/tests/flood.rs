//! Junk beside a running TCP flow: the flow goes on, memory stays flat, nobody dies.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipop_tests::daemon::{Implementation, Io};
use ipop_tests::junk::{Junk, flood, index_of_b};
use ipop_tests::pair::{Options, Pair, Side};
use ipop_tests::process::resident_bytes;
use ipop_tests::require::{Need, tunnel};
use ipop_tests::scene::{Share, play};
use ipop_tests::traffic::{Flow, socket, udp_echo};

const HANDSHAKE: Duration = Duration::from_secs(12);
/// Bytes a second of the flow beside the flood.
const RATE: u64 = 10_000_000;
/// Junk datagrams in all, and a second.
const JUNK: u64 = 150_000;
const JUNK_RATE: u64 = 30_000;
/// The flow may not stand still longer than a TCP retransmission or two.
const LONGEST_STALL: Duration = Duration::from_secs(3);
/// What a daemon's memory may grow by once a first flood has filled its queues.
const GROWTH: u64 = 8 << 20;
/// The same for a stand-in, which may collect its garbage late.
const GROWTH_STAND_IN: u64 = 40 << 20;

fn scene(body: impl FnOnce(&mut Pair) -> Result<()>, io: Io) {
    let ours = Implementation::with_io(io);
    let mut needs = tunnel();
    needs.push(Need::Daemon(ours.clone()));
    play(Share::Alone, &needs, || {
        let mut pair = Pair::start(&ours, &ours, Options::default())?;
        body(&mut pair)?;
        pair.both_run()
    });
}

fn memory(pair: &Pair) -> Result<u64> {
    resident_bytes(pair.site(Side::B).daemon.pid()).context("the daemon has ended")
}

fn flooded(io: Io) {
    scene(
        |pair| {
            let (index, genuine) = index_of_b(pair)?;
            let flow =
                Flow::start(pair.ns(Side::A), pair.ns(Side::B), Side::B.inner4(), RATE, Duration::from_secs(60))?;
            flow.wait_more(RATE, HANDSHAKE)?;
            let mut kinds = Junk::BLIND.to_vec();
            kinds.push(Junk::Data(index));
            // Filled once before the first reading of memory.
            let flood = |count| flood(pair.ns(Side::A), pair.endpoint(Side::B), &kinds, count, JUNK_RATE);
            flood(JUNK / 2)?;
            let before = memory(pair)?;
            let sent = flood(JUNK)?;
            ensure!(sent > JUNK / 2, "only {sent} junk datagrams left");
            let replayer = socket(pair.ns(Side::A), "0.0.0.0:0".parse()?)?;
            for datagram in genuine.iter().cycle().take(20_000) {
                // Refused by a full buffer now and then.
                let _ = replayer.send_to(datagram, pair.endpoint(Side::B));
            }
            let after = memory(pair)?;
            let real = Need::RealIpopFast.missing().is_none();
            let growth = if real { GROWTH } else { GROWTH_STAND_IN };
            ensure!(after <= before + growth, "memory grew from {before} to {after} bytes");
            flow.wait_more(RATE, Duration::from_secs(5)).context("after the flood")?;
            let report = flow.finish()?;
            ensure!(report.longest_stall < LONGEST_STALL, "nothing arrived for {:?}", report.longest_stall);
            // Junk is not authentic: it must not have moved anybody's endpoint.
            let endpoint = pair.peer(Side::B)?.endpoint;
            ensure!(endpoint == Some(pair.endpoint(Side::A)), "the flood moved the peer to {endpoint:?}");
            if let Some(stats) = pair.site(Side::B).daemon.stats()? {
                // Kernel programs drop what they can tell, and count it under names of their own.
                let drops = |name: &str| {
                    let kernel = &stats["kernel_drops"][format!("socket_{name}")];
                    stats["drops"][name].as_u64().unwrap_or(0) + kernel.as_u64().unwrap_or(0)
                };
                for name in ["forged", "unknown_receiver", "bad_mac", "unknown_datagram", "replayed"] {
                    ensure!(drops(name) > 0, "no drop was counted as {name}: {stats}");
                }
            }
            Ok(())
        },
        io,
    );
}

#[test]
fn a_flow_and_memory_outlive_a_junk_flood_by_uring() {
    flooded(Io::Uring);
}

#[test]
fn a_flow_and_memory_outlive_a_junk_flood_by_mmsg() {
    flooded(Io::Mmsg);
}

/// While junk of handshakes comes in, a genuine peer must still get its handshake through (cookies make it so).
#[test]
fn a_handshake_gets_through_a_flood_of_false_ones() {
    scene(
        |pair| {
            std::thread::scope(|s| {
                let (ns, target) = (pair.ns(Side::A), pair.endpoint(Side::B));
                let junk = s.spawn(move || flood(ns, target, &[Junk::Initiation], 120_000, 15_000));
                let answered = pair.wait_ping(Side::A, HANDSHAKE);
                ensure!(junk.join().is_ok_and(|sent| sent.is_ok_and(|n| n > 0)), "the flood failed");
                answered
            })
        },
        Io::Auto,
    );
}

/// A burst of the odd sizes at the edges of every parser, then traffic as if nothing had been.
#[test]
fn datagrams_of_every_length_and_type_byte_are_survived() {
    scene(
        |pair| {
            pair.wait_ping(Side::A, HANDSHAKE)?;
            let from = socket(pair.ns(Side::A), "0.0.0.0:0".parse()?)?;
            for first in 0..=255_u8 {
                for length in [0, 1, 3, 4, 8, 15, 16, 17, 31, 32, 33, 63, 64, 91, 92, 147, 148, 149, 1472] {
                    let mut datagram = vec![0; length];
                    datagram.iter_mut().take(1).for_each(|b| *b = first);
                    let _ = from.send_to(&datagram, pair.endpoint(Side::B));
                }
            }
            for length in [9_000, 32_768, 65_507] {
                for first in [0, 1, 4, 0x40] {
                    let mut datagram = vec![0xa5; length];
                    datagram[0] = first;
                    let _ = from.send_to(&datagram, pair.endpoint(Side::B));
                }
            }
            udp_echo(pair.ns(Side::A), pair.ns(Side::B), Side::B.inner4(), (1..=1400).step_by(50))
        },
        Io::Auto,
    );
}
