//! The filter at the sockets by `BPF_PROG_TEST_RUN`.

use anyhow::{Result, ensure};
use aya::programs::{SocketFilter, TestRun, TestRunOptions};
use blake2::Blake2sMac;
use blake2::digest::{FixedOutput, KeyInit, Update, consts::U16};
use ipop_ebpf::{ELSEWHERE_BURST, ELSEWHERE_INTERVAL_NS, Endpoint, Reason, STUN_COOKIE};
use ipop_tests::traffic::Noise;

use crate::model::{self, Junk};
use crate::{Bench, Bucket, KNOWN, bench};

/// Where the kernel's `struct __sk_buff` (linux/bpf.h) has `gso_size`, and how long it is.
const GSO_SIZE: usize = 176;
const CONTEXT: usize = 192;
/// What lets a packet through whole.
const ALL: u32 = u32::MAX;

/// One of each kind, and neighbours of each; longer than any limit.
pub(crate) fn kinds() -> Vec<Vec<u8>> {
    let mut noise = Noise::new(6);
    let mut all = Vec::new();
    let mut push = |first: &[u8], len: usize| {
        let mut d = vec![0; len];
        noise.fill(&mut d);
        d[..first.len()].copy_from_slice(first);
        all.push(d);
    };
    for (kind, len) in [(1_u8, 160), (2, 100), (3, 72), (4, 64), (5, 160), (0, 40)] {
        push(&[kind, 0, 0, 0], len);
        push(&[kind, 0, 1, 0], len);
        push(&[kind, 0, 0, 0x80], len);
    }
    for index in KNOWN {
        for kind in [2, 3] {
            // A response has its receiver index second.
            let index = index.to_le_bytes();
            push(&[&[kind, 0, 0, 0][..], &index, &index].concat(), if kind == 2 { 100 } else { 72 });
        }
        for index in [index, index ^ 1, index ^ 0x8000_0000] {
            push(&[&[4, 0, 0, 0][..], &index.to_le_bytes()].concat(), 96);
        }
    }
    let cookie = STUN_COOKIE;
    push(&[&[0, 1, 0, 8][..], &cookie].concat(), 28);
    push(&[&[0x3f, 1, 0, 8][..], &cookie].concat(), 28);
    push(&[&[0x80, 1, 0, 8][..], &cookie].concat(), 28);
    push(&[&[1, 0, 0, 0][..], &cookie].concat(), 28);
    push(&[&[4, 0, 0, 0][..], &cookie].concat(), 31);
    for first in [0x40, 0x4f, 0x7f, 0x80, 0xff] {
        for inner in [0_u8, 31, 32, 64] {
            for index in [KNOWN[0], 7] {
                let data = [&[first, 1, 0, inner, 4, 0, 0, 0][..], &index.to_le_bytes()].concat();
                push(&data, 68);
            }
            push(&[first, 1, 0, inner, 1, 0, 0, 0], 68);
        }
    }
    let handshakes: Vec<_> =
        all.iter().filter(|d| d.len() >= 92 && matches!(d[..4], [1 | 2, 0, 0, 0])).cloned().collect();
    all.extend(handshakes.into_iter().map(genuine));
    all
}

/// The handshake message with the right MAC1.
pub(crate) fn genuine(mut message: Vec<u8>) -> Vec<u8> {
    let at = if message[0] == 1 { 116 } else { 60 };
    let mac = Blake2sMac::<U16>::new_from_slice(model::us().key()).expect("a key of 32 bytes").chain(&message[..at]);
    message[at..at + 16].copy_from_slice(&mac.finalize_fixed());
    message
}

/// The filter's verdict on what follows an Ethernet header, as in a run of datagrams of `gso` bytes unless it is 0.
fn judge(b: &mut Bench, protocol: u16, packet: &[u8], gso: u32) -> Result<(u32, Vec<(Reason, u64)>)> {
    let frame = [&[0; 12][..], &protocol.to_be_bytes(), packet].concat();
    let mut context = [0; CONTEXT];
    context[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&gso.to_ne_bytes());
    let sieve: &SocketFilter = b.sieve()?;
    let options = TestRunOptions { data_in: Some(&frame), ctx_in: Some(&context), ..TestRunOptions::new() };
    // The borrow of the program ends before the counters are read.
    let run = sieve.test_run(options)?;
    let drops = b.drops()?;
    Ok((run.return_value, drops))
}

/// A UDP header and a datagram. In a test run the IP header is where the UDP header is, so what the filter takes for the
/// source address is 12 (8) bytes behind that: the datagram's bytes 4 to 7 (0 to 15).
fn packet(datagram: &[u8]) -> Vec<u8> {
    [&3478_u16.to_be_bytes()[..], &[0; 6], datagram].concat()
}

fn source(protocol: u16, packet: &[u8]) -> Endpoint {
    let mut padded = packet.to_vec();
    padded.resize(packet.len().max(24), 0);
    match protocol {
        0x0800 => Endpoint::v4(padded[12..16].try_into().unwrap_or_default(), [padded[0], padded[1]]),
        _ => Endpoint::v6(padded[8..24].try_into().unwrap_or_default(), [padded[0], padded[1]]),
    }
}

#[test]
fn the_sieve_agrees_with_the_model_on_every_kind_cut_at_every_byte() {
    bench(|b| {
        let mut seen = [0; 5];
        let mut known_relay = kinds();
        for d in known_relay.iter_mut().filter(|d| d[0] & 0xc0 == 0x40) {
            d[4..8].copy_from_slice(&[192, 0, 2, 7]);
        }
        for (d, bucket) in kinds().iter().chain(&known_relay).flat_map(|d| [(d, Bucket::Full), (d, Bucket::Empty)]) {
            for len in 0..=d.len() {
                for protocol in [0x0800_u16, 0x86dd] {
                    let packet = packet(&d[..len]);
                    // The kernel runs nothing on less than an IP header of what claims to be IP.
                    if packet.len() < if protocol == 0x0800 { 20 } else { 40 } {
                        continue;
                    }
                    b.set_buckets(bucket)?;
                    let before = b.drops()?;
                    let (value, after) = judge(b, protocol, &packet, 0)?;
                    let verdict = model::datagram(&d[..len], len, source(protocol, &packet), bucket);
                    let (expected, reason, kind) = match verdict {
                        None => (ALL, None, 0),
                        Some(Junk::Datagram) => (0, Some(Reason::SocketUnknownDatagram), 1),
                        Some(Junk::Receiver) => (0, Some(Reason::SocketUnknownReceiver), 2),
                        Some(Junk::Elsewhere) => (0, Some(Reason::SocketElsewhere), 3),
                        Some(Junk::BadMac) => (0, Some(Reason::SocketBadMac), 4),
                    };
                    seen[kind] += 1;
                    ensure!(value == expected, "{value:x} for {verdict:?}: {protocol:x} {:02x?}", &d[..len]);
                    for ((r, n), (_, n0)) in after.iter().zip(&before) {
                        ensure!(n - n0 == u64::from(Some(*r) == reason), "{r:?} counted {} more", n - n0);
                    }
                }
            }
        }
        ensure!(seen.iter().all(|n| *n > 50), "a thin table: {seen:?}");
        Ok(())
    });
}

#[test]
fn short_datagrams_of_no_protocol_are_dropped_or_left_to_the_shard() {
    bench(|b| {
        for d in kinds() {
            for len in 0..32.min(d.len()) {
                // Neither IP version: where ChannelData comes from cannot be told.
                let (value, _) = judge(b, 0x88b5, &packet(&d[..len]), 0)?;
                let channel = len >= 4 && d[0] & 0xc0 == 0x40;
                let expected =
                    if channel || model::datagram(&d[..len], len, source(0x0800, &[]), Bucket::Full).is_none() {
                        ALL
                    } else {
                        0
                    };
                ensure!(value == expected, "{value:x}: {:02x?}", &d[..len]);
            }
        }
        Ok(())
    });
}

#[test]
fn of_a_run_all_goes_if_one_datagram_does_and_all_are_counted_if_none_does() {
    bench(|b| {
        // What is taken for the source of the run is the first datagram's index: here, where the peer of KNOWN[0] was heard.
        let (known, strange, elsewhere) = (KNOWN[0].to_le_bytes(), [192, 0, 2, 7], [192, 0, 2, 8]);
        let data = |index: [u8; 4], n: usize| [&[4, 0, 0, 0][..], &index, &vec![7; n - 8]].concat();
        for count in [2, 3, 17, 63, 64] {
            for tail in [48, 20, 3] {
                let mut run: Vec<u8> = (1..count).flat_map(|_| data(strange, 48)).collect();
                run.extend(&data(strange, 48)[..tail]);
                let before = b.drops()?;
                let (value, after) = judge(b, 0x0800, &packet(&run), 48)?;
                let more = |r: Reason| after[r as usize].1 - before[r as usize].1;
                ensure!(value == 0, "a run of {count} strange datagrams got through");
                ensure!(more(Reason::SocketUnknownReceiver) == count as u64, "{count}: {before:?} {after:?}");
                for good in 0..count - 1 {
                    let mut run = run.clone();
                    run[good * 48 + 4..][..4].copy_from_slice(&known);
                    let (value, _) = judge(b, 0x0800, &packet(&run), 48)?;
                    ensure!(value == ALL, "datagram {good} of {count} is known, and the run was dropped");
                    run[4..8].copy_from_slice(&elsewhere);
                    let (value, _) = judge(b, 0x0800, &packet(&run), 48)?;
                    ensure!(good == 0 || value == 0, "a run from elsewhere, as datagram {good} of {count} is known");
                }
            }
        }
        let run: Vec<u8> = (0..65).flat_map(|_| data(strange, 20)).collect();
        ensure!(judge(b, 0x0800, &packet(&run), 20)?.0 == ALL, "longer runs than the kernel makes are left alone");
        Ok(())
    });
}

/// Handshake messages in a run that begins with something else: the last one is looked into.
#[test]
fn a_genuine_handshake_behind_junk_takes_the_run_along_and_a_forged_one_does_not() {
    bench(|b| {
        let mut noise = Noise::new(11);
        let mut shaped = |kind: u8, len: usize| {
            let mut m = vec![0; len];
            noise.fill(&mut m);
            m[..4].copy_from_slice(&[kind, 0, 0, 0]);
            m[8..12].copy_from_slice(&KNOWN[0].to_le_bytes());
            m
        };
        for (kind, len) in [(1, 148), (2, 92)] {
            // Longer ones before it: the last one of a run may be shorter than the others.
            for before in [len, len + 12] {
                let mut stale = vec![9; before];
                stale[..8].copy_from_slice(&[4, 0, 0, 0, 5, 0, 0, 0]);
                let forged = shaped(kind, len);
                for (last, goes) in [(genuine(forged.clone()), true), (forged, false)] {
                    let run = [&stale[..], &stale, &last].concat();
                    let (value, _) = judge(b, 0x0800, &packet(&run), before as u32)?;
                    ensure!((value == ALL) == goes, "{value:x}: {kind} behind datagrams of {before} bytes");
                }
                // Cut short, it is none, and nothing is read beyond.
                let run = [&stale[..], &genuine(shaped(kind, len))[..len - 1]].concat();
                ensure!(judge(b, 0x0800, &packet(&run), before as u32)?.0 == 0, "a message that is too short");
            }
            let run: Vec<u8> = (0..20).flat_map(|_| shaped(kind, len)).collect();
            ensure!(judge(b, 0x0800, &packet(&run), len as u32)?.0 == 0, "a run of forged messages");
            let first = [genuine(shaped(kind, len)), shaped(kind, len)].concat();
            ensure!(judge(b, 0x0800, &packet(&first), len as u32)?.0 == ALL, "a genuine one in front");
        }
        Ok(())
    });
}

#[test]
fn without_a_key_every_handshake_goes_to_a_shard() {
    bench(|b| {
        b.set_key(None)?;
        let message = [&[1, 0, 0, 0][..], &[7; 144]].concat();
        ensure!(judge(b, 0x0800, &packet(&message), 0)?.0 == ALL);
        b.set_key(Some(&[3; 32]))?;
        ensure!(judge(b, 0x0800, &packet(&message), 0)?.0 == 0);
        ensure!(judge(b, 0x0800, &packet(&genuine(message)), 0)?.0 == 0, "a MAC under another key");
        Ok(())
    });
}

#[test]
fn data_from_elsewhere_is_limited_for_each_session_and_data_from_the_peer_is_not() {
    bench(|b| {
        // What is taken for the source address is the receiver index: KNOWN[2] is at home, the others are not.
        let data = |i: usize| packet(&[&[4, 0, 0, 0][..], &KNOWN[i].to_le_bytes(), &[7; 40]].concat());
        b.set_buckets(Bucket::Full)?;
        let (start, mut passed, mut sent) = (std::time::Instant::now(), 0, 0);
        while sent < 3 * ELSEWHERE_BURST {
            sent += 1;
            passed += u64::from(judge(b, 0x0800, &data(0), 0)?.0 == ALL);
            ensure!(judge(b, 0x0800, &data(2), 0)?.0 == ALL, "the peer's own datagram {sent}");
        }
        let refilled = start.elapsed().as_nanos() as u64 / ELSEWHERE_INTERVAL_NS;
        let expected = ELSEWHERE_BURST + 1..=(ELSEWHERE_BURST + 2 + refilled).min(sent);
        ensure!(expected.contains(&passed), "{passed} of {sent} got through, not {expected:?}");
        // Another session has a bucket of its own; a run takes as many as it has datagrams.
        b.set_buckets(Bucket::Full)?;
        let run: Vec<u8> = data(1)[8..].repeat(64);
        let runs = (0..500).map(|_| Ok(judge(b, 0x0800, &packet(&run), 48)?.0 == ALL));
        let passed = runs.collect::<Result<Vec<bool>>>()?.into_iter().filter(|p| *p).count() as u64;
        ensure!((ELSEWHERE_BURST / 64..500).contains(&passed), "{passed} runs of 64");
        Ok(())
    });
}
