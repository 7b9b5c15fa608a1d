//! The guard at an interface by `BPF_PROG_TEST_RUN`.

use anyhow::{Result, ensure};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use ipop_ebpf::{GUARD_BURST, Reason};
use ipop_tests::ns::{Namespace, link};
use ipop_tests::require::Need;
use ipop_tests::scene::{Share, play};
use ipop_tests::traffic::Noise;

use crate::model::{self, V6_RELAY};
use crate::sieve::{genuine, kinds};
use crate::{Bench, Bucket, KNOWN, PORT, bench};

const DROP: u32 = 1;
const PASS: u32 = 2;

/// How a datagram is wrapped.
#[derive(Clone, Debug)]
struct Wrap {
    vlans: Vec<u16>,
    v6: bool,
    /// IPv4 options, or IPv6 extension headers by number and length in units of 8 bytes beyond the first.
    options: usize,
    extensions: Vec<(u8, u8)>,
    /// The 16 bits with flags and offset of IPv4.
    fragment: u16,
    protocol: u8,
    port: u16,
    from_relay: bool,
    udp_len: Option<u16>,
}

const PLAIN: Wrap = Wrap {
    vlans: Vec::new(),
    v6: false,
    options: 0,
    extensions: Vec::new(),
    fragment: 0,
    protocol: 17,
    port: PORT,
    from_relay: false,
    udp_len: None,
};

fn wraps() -> Vec<Wrap> {
    let v6 = Wrap { v6: true, ..PLAIN };
    let extended = |e: &[(u8, u8)]| Wrap { extensions: e.to_vec(), ..v6.clone() };
    let mut all = vec![
        PLAIN,
        Wrap { from_relay: true, ..PLAIN },
        Wrap { vlans: vec![0x8100], ..PLAIN },
        Wrap { vlans: vec![0x88a8, 0x8100], ..PLAIN },
        Wrap { vlans: vec![0x88a8, 0x8100, 0x8100], ..PLAIN },
        Wrap { options: 4, ..PLAIN },
        Wrap { options: 40, ..PLAIN },
        Wrap { fragment: 0x4000, ..PLAIN },
        Wrap { fragment: 0x2000, ..PLAIN },
        Wrap { fragment: 185, ..PLAIN },
        Wrap { protocol: 6, ..PLAIN },
        Wrap { port: PORT + 1, ..PLAIN },
        Wrap { port: PORT.swap_bytes(), ..PLAIN },
        Wrap { udp_len: Some(0), ..PLAIN },
        Wrap { udp_len: Some(7), ..PLAIN },
        Wrap { udp_len: Some(8), ..PLAIN },
        Wrap { udp_len: Some(40), ..PLAIN },
        Wrap { udp_len: Some(0xffff), ..PLAIN },
        v6.clone(),
        Wrap { from_relay: true, ..v6.clone() },
        Wrap { vlans: vec![0x8100], ..v6.clone() },
        Wrap { port: PORT + 1, ..v6.clone() },
        Wrap { protocol: 58, ..v6.clone() },
    ];
    // Hop-by-hop, routing, destination; then those that are not looked behind: fragment, AH, ESP, no next header.
    for e in [0, 43, 60, 44, 51, 50, 59] {
        all.push(extended(&[(e, 0)]));
        all.push(extended(&[(e, 3)]));
    }
    all.push(extended(&[(0, 0), (60, 1), (43, 2), (60, 0)]));
    all.push(extended(&[(0, 0), (60, 1), (43, 2), (60, 0), (60, 0)]));
    all.push(extended(&[(0, 0), (44, 0)]));
    all
}

/// A frame for this machine; each has a source of its own unless it comes from a relay.
fn frame(w: &Wrap, datagram: &[u8], noise: &mut Noise) -> Vec<u8> {
    let mut f = vec![0; 12];
    for tag in &w.vlans {
        f.extend(tag.to_be_bytes());
        f.extend([0, 5]);
    }
    let mut random = [0; 8];
    noise.fill(&mut random);
    let total = datagram.len() + 8;
    if w.v6 {
        f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        let extra: usize = w.extensions.iter().map(|(_, units)| (usize::from(*units) + 1) * 8).sum();
        f.extend(((total + extra) as u16).to_be_bytes());
        let mut chain = w.extensions.iter().map(|(n, _)| *n).chain([w.protocol]);
        f.extend([chain.next().unwrap_or(59), 64]);
        if w.from_relay {
            f.extend(V6_RELAY);
        } else {
            f.extend([0x20, 1]);
            f.extend(&random[..6]);
            f.extend([0; 8]);
        }
        f.extend([0xfd, 0x99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        for ((_, units), next) in w.extensions.iter().zip(chain) {
            f.extend([next, *units]);
            f.extend(vec![0; usize::from(*units) * 8 + 6]);
        }
    } else {
        f.extend([8, 0, 0x45 + (w.options / 4) as u8, 0]);
        f.extend(((total + 20 + w.options) as u16).to_be_bytes());
        f.extend([0, 0]);
        f.extend(w.fragment.to_be_bytes());
        f.extend([64, w.protocol, 0, 0]);
        if w.from_relay {
            f.extend([192, 0, 2, 7])
        } else {
            f.extend([10, random[0], random[1], random[2]])
        }
        f.extend([10, 99, 0, 2]);
        f.extend(vec![1; w.options]);
    }
    let source = if w.from_relay { 3478 } else { 40_000_u16 };
    f.extend(source.to_be_bytes());
    f.extend(w.port.to_be_bytes());
    f.extend(w.udp_len.unwrap_or(total as u16).to_be_bytes());
    f.extend([0, 0]);
    f.extend(datagram);
    f
}

fn judge(b: &mut Bench, frame: &[u8]) -> Result<(u32, Option<Reason>)> {
    let before = b.drops()?;
    let guard: &Xdp = b.guard()?;
    let value = guard.test_run(TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() })?.return_value;
    let after = b.drops()?;
    let new: Vec<_> = after.iter().zip(before).filter(|(a, b)| a.1 != b.1).map(|(a, _)| a.0).collect();
    ensure!(new.len() <= 1, "one packet counted as {new:?}");
    Ok((value, new.first().copied()))
}

#[test]
fn the_guard_agrees_with_the_model_on_every_kind_in_every_wrapping() {
    bench(|b| {
        let mut noise = Noise::new(7);
        let mut seen = [0; 5];
        for w in wraps() {
            // Initiations of one source are limited: another table.
            for (n, d) in kinds().into_iter().enumerate().filter(|(_, d)| !w.from_relay || d[0] != 1) {
                for len in
                    [0, 1, 3, 4, 11, 12, 19, 20, 31, 32, 63, 64, 75, 76, 91, 92, 131, 132, 147, 148, 149, d.len()]
                {
                    let bucket = if (n + len) % 2 == 0 { Bucket::Full } else { Bucket::Empty };
                    b.set_buckets(bucket)?;
                    let f = frame(&w, &d[..len.min(d.len())], &mut noise);
                    let (value, reason) = judge(b, &f)?;
                    let expected = model::frame(&f, bucket);
                    ensure!(reason == expected, "{reason:?}, not {expected:?}, for {w:?} {f:02x?}");
                    ensure!(value == if expected.is_some() { DROP } else { PASS }, "{value} for {w:?} {f:02x?}");
                    seen[expected.map_or(0, |r| r as usize - Reason::XdpUnknownDatagram as usize + 1)] += 1;
                }
            }
        }
        ensure!(seen.iter().all(|n| *n > 100), "a thin table: {seen:?}");
        Ok(())
    });
}

#[test]
fn the_guard_agrees_with_the_model_on_frames_cut_at_every_byte() {
    bench(|b| {
        let mut noise = Noise::new(8);
        for w in wraps() {
            // Initiations of one source are limited: another table.
            for d in kinds().iter().step_by(3).filter(|d| !w.from_relay || d[0] != 1) {
                for end in 14..frame(&w, d, &mut noise).len() {
                    let f = frame(&w, d, &mut noise);
                    b.set_buckets(Bucket::Empty)?;
                    let (value, reason) = judge(b, &f[..end])?;
                    let expected = model::frame(&f[..end], Bucket::Empty);
                    let fits = reason == expected && value == if expected.is_some() { DROP } else { PASS };
                    ensure!(fits, "{value} {reason:?}, not {expected:?}, for {end} bytes of {w:?} {f:02x?}");
                }
            }
        }
        Ok(())
    });
}

#[test]
fn a_source_may_send_so_many_initiations_and_others_do_not_suffer() {
    bench(|b| {
        let mut initiation = vec![0; 148];
        initiation[0] = 1;
        let forged = frame(&PLAIN, &initiation, &mut Noise::new(9));
        let initiation = genuine(initiation);
        for _ in 0..GUARD_BURST * 3 {
            // What strangers send under its address takes nothing of a source's share.
            ensure!(judge(b, &forged)? == (DROP, Some(Reason::XdpBadMac)));
        }
        for (v6, neighbour) in [(false, 26 + 4 - 1), (true, 22 + 16 - 1)] {
            let mut f = frame(&Wrap { v6, ..PLAIN }, &initiation, &mut Noise::new(9));
            let mut passed = 0;
            let limited = 'sent: {
                // The bucket fills while the test runs: more than a burst get through, but not much.
                for _ in 0..GUARD_BURST * 20 {
                    match judge(b, &f)? {
                        (PASS, None) => passed += 1,
                        (DROP, Some(Reason::XdpHandshakeRate)) => break 'sent true,
                        other => anyhow::bail!("{other:?}"),
                    }
                }
                false
            };
            ensure!(limited && passed >= GUARD_BURST, "{passed} got through, limited: {limited}");
            // The last byte of the address is another machine over IPv4, the same one over IPv6.
            f[neighbour] ^= 1;
            let same = matches!(judge(b, &f)?, (DROP, _));
            ensure!(same == v6, "v6 {v6}: the neighbour is {same}");
            // Data is no initiation.
            let mut data = [0; 64];
            data[0] = 4;
            data[4..8].copy_from_slice(&KNOWN[0].to_le_bytes());
            let f = frame(&Wrap { v6, ..PLAIN }, &data, &mut Noise::new(9));
            ensure!(judge(b, &f)? == (PASS, None), "data was dropped");
        }
        Ok(())
    });
}

#[test]
fn what_is_forwarded_to_another_machine_passes_whatever_its_port() {
    play(Share::Shared, &[Need::Root, Need::Program("ip"), Need::Program("sysctl")], || {
        let (router, there) = (Namespace::new("router")?, Namespace::new("there")?);
        link((&router, "r0", &["10.99.0.1/24", "fd99::1/64"]), (&there, "t0", &["10.99.0.2/24", "fd99::2/64"]))?;
        let set = |on: u8| -> Result<()> {
            for key in ["net.ipv4.conf.all.forwarding", "net.ipv4.conf.lo.forwarding", "net.ipv6.conf.all.forwarding"] {
                ipop_tests::process::run(router.command("sysctl").args(["-q", "-w", &format!("{key}={on}")]))?;
            }
            Ok(())
        };
        set(1)?;
        router.run(|| {
            let mut b = Bench::new()?;
            let mut noise = Noise::new(10);
            for v6 in [false, true] {
                let mut f = frame(&Wrap { v6, ..PLAIN }, &[0xff; 64], &mut noise);
                ensure!(
                    judge(&mut b, &f)? == (PASS, None),
                    "v6 {v6}: a packet for .2, behind this router, was dropped"
                );
                let last = if v6 { 14 + 39 } else { 14 + 19 };
                f[last] = 1;
                let own = judge(&mut b, &f)?;
                ensure!(own == (DROP, Some(Reason::XdpUnknownDatagram)), "v6 {v6}: {own:?} for the router's own");
            }
            Ok(())
        })?;
        set(0)?;
        router.run(|| {
            let mut b = Bench::new()?;
            let f = frame(&PLAIN, &[0xff; 64], &mut Noise::new(10));
            ensure!(judge(&mut b, &f)?.0 == DROP, "this machine forwards nothing, so it was for nobody");
            Ok(())
        })
    });
}
