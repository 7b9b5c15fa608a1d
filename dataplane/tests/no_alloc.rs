//! In the steady state a shard allocates nothing.
#![allow(unsafe_code)]

#[allow(dead_code)]
#[path = "../src/packet/testing.rs"]
mod testing;
#[allow(dead_code)]
#[path = "pipeline/world.rs"]
mod world;

use dataplane::crypto::Cipher;
use dataplane::io::memory::Arrival;
use dataplane::packet::Split;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::Ordering::Relaxed;
use testing::{Packet, super_packet};
use world::{Node, OFFLOADS, address, joined, joined_by};

/// Counts this thread's allocations while it is told to.
struct Counting;

thread_local! {
    static COUNT: Cell<Option<u64>> = const { Cell::new(None) };
}

fn count() {
    // A thread that is ending has no counter any more.
    let _ = COUNT.try_with(|c| c.set(c.get().map(|n| n + 1)));
}

// SAFETY: everything is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations while `f` runs.
fn allocations(f: impl FnOnce()) -> u64 {
    COUNT.set(Some(0));
    f();
    COUNT.replace(None).expect("it was set")
}

const MSS: usize = 1368;

fn bulk(n: usize) -> Vec<u8> {
    let p = Packet::tcp4().with(|p| {
        p.seq = p.seq.wrapping_add((n * 40 * MSS) as u32);
        p.payload = vec![n as u8; 40 * MSS];
    });
    super_packet(&p, MSS)
}

fn small(n: usize) -> Vec<u8> {
    let p = Packet::tcp4().udp().with(|p| {
        p.ports[0] = n as u16 % 7;
        p.payload = vec![n as u8; 64 + n % 3];
    });
    [vec![0; 10], p.bytes()].concat()
}

/// What one turn reads from TUN.
type Load = fn(usize) -> Vec<Vec<u8>>;

const LOADS: [(&str, Load); 3] = [
    ("bulk TCP", |n| (0..4).map(|i| bulk(n * 4 + i)).collect()),
    ("small UDP", |n| (0..60).map(|i| small(n * 60 + i)).collect()),
    ("mixed", |n| (0..20).map(|i| if i % 9 == 4 { bulk(n + i) } else { small(n * 20 + i) }).collect()),
];

/// One turn of `node`, counted; the input was queued before.
fn turn(node: &mut Node) -> u64 {
    let now = node.now;
    allocations(|| {
        node.shard.turn(None, || now).expect("it goes on");
    })
}

/// The datagrams of one turn of node 1, put together as GRO does it.
fn arrivals(a: &mut Node, load: Load, n: usize) -> Vec<Arrival> {
    load(n).into_iter().for_each(|r| a.read(r));
    a.run();
    let datagrams = a.sent();
    // Borrows the grouping of a node's own input.
    a.receive_all(address(1), datagrams.into_iter().map(|(_, d)| d));
    a.shard.driver().arrivals.drain(..).collect()
}

const WARM_UP: usize = 50;
const TURNS: usize = 1000;

#[test]
fn sending_allocates_nothing() {
    for ((name, load), cipher) in LOADS.into_iter().flat_map(|l| Cipher::ALL.map(|c| (l, c))) {
        let (mut a, _b) = joined_by(OFFLOADS, cipher);
        a.shard.driver().keep = false;
        let mut counted = 0;
        for n in 0..WARM_UP + TURNS {
            load(n).into_iter().for_each(|r| a.read(r));
            let c = turn(&mut a);
            counted += if n < WARM_UP { 0 } else { c };
        }
        assert!(a.counters().udp_out.load(Relaxed) >= TURNS as u64 * 20);
        assert_eq!(counted, 0, "allocations in {TURNS} turns of {name} with {cipher}");
        a.stop();
    }
}

#[test]
fn sending_allocates_nothing_while_the_socket_is_full_now_and_then_or_cannot_segment() {
    for gso in [true, false] {
        for (name, load) in LOADS {
            let (mut a, _b) = joined(OFFLOADS);
            a.shared.udp_gso.store(gso, Relaxed);
            a.shard.driver().keep = false;
            a.shard.driver().send_fault = Some(Box::new(|n| (n % 7 > 4).then_some(libc::EAGAIN)));
            let mut counted = 0;
            for n in 0..WARM_UP + TURNS {
                if a.shard.driver().packets.is_empty() {
                    load(n).into_iter().for_each(|r| a.read(r));
                }
                let c = turn(&mut a);
                counted += if n < WARM_UP { 0 } else { c };
            }
            assert_eq!(counted, 0, "allocations in {TURNS} turns of {name}");
            a.stop();
        }
    }
}

#[test]
fn receiving_allocates_nothing() {
    for ((name, load), cipher) in LOADS.into_iter().flat_map(|l| Cipher::ALL.map(|c| (l, c))) {
        let (mut a, mut b) = joined_by(OFFLOADS, cipher);
        b.shard.driver().keep = false;
        let mut counted = 0;
        for n in 0..WARM_UP + TURNS {
            let all = arrivals(&mut a, load, n);
            b.shard.driver().arrivals.extend(all);
            let c = turn(&mut b);
            counted += if n < WARM_UP { 0 } else { c };
        }
        assert!(b.counters().tun_out.load(Relaxed) >= TURNS as u64 * 20);
        assert_eq!(counted, 0, "allocations in {TURNS} turns of {name} with {cipher}");
        b.assert_drops(&[]);
        b.stop();
    }
}

/// The same reads with the addresses of [`world::friends`], and discovery messages among them.
fn friendly(reads: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut all: Vec<_> = reads
        .into_iter()
        .map(|mut r| {
            r[22..26].copy_from_slice(&world::OWN.octets());
            r[26..30].copy_from_slice(&world::lease(2).octets());
            // Checksums are for the device to make, from where they stand.
            let at = if r[19] == 6 { 16 } else { 6 };
            let words = [world::OWN.octets(), world::lease(2).octets()].concat();
            let len = (r.len() - 30) as u32;
            let sum: u32 =
                words.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum::<u32>() + u32::from(r[19]) + len;
            let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
            r[30 + at..32 + at].copy_from_slice(&sum.to_be_bytes());
            if r[1] == 0 {
                r[..10].copy_from_slice(&[1, 0, 0, 0, 0, 0, 20, 0, at as u8, 0]);
            }
            r
        })
        .collect();
    for port in [1900, 5353] {
        let p = Packet::tcp4().udp().with(|p| {
            (p.source, p.destination) = (world::OWN.into(), world::lease(2).into());
            p.ports[0] = port;
            p.payload = b"HTTP/1.1 200 OK\r\nLOCATION: http://172.31.0.100:1/\r\n\r\n".to_vec();
        });
        all.push([vec![0; 10], p.bytes()].concat());
    }
    all
}

#[test]
fn translating_allocates_nothing() {
    for (name, load) in LOADS {
        let (mut a, mut b) = world::friends(OFFLOADS);
        b.shard.driver().keep = false;
        let mut counted = 0;
        for n in 0..WARM_UP + TURNS {
            friendly(load(n)).into_iter().for_each(|r| a.read(r));
            a.run();
            let datagrams = a.sent();
            a.receive_all(address(1), datagrams.into_iter().map(|(_, d)| d));
            let all: Vec<Arrival> = a.shard.driver().arrivals.drain(..).collect();
            b.shard.driver().arrivals.extend(all);
            let c = turn(&mut b);
            counted += if n < WARM_UP { 0 } else { c };
        }
        assert!(b.counters().tun_out.load(Relaxed) >= TURNS as u64 * 20);
        assert_eq!(counted, 0, "allocations in {TURNS} turns of {name}");
        b.assert_drops(&[]);
        b.stop();
    }
}

#[test]
fn multicast_allocates_nothing() {
    let (mut a, _b) = world::friends(OFFLOADS);
    a.shared.set_multicast(Some([172, 31, 255, 255].into()));
    a.shard.driver().keep = false;
    let mut counted = 0;
    for n in 0..WARM_UP + TURNS {
        a.now += std::time::Duration::from_millis(10);
        for to in [[224, 0, 0, 251], [172, 31, 255, 255]] {
            let p = Packet::tcp4().udp().with(|p| (p.source, p.destination) = (world::OWN.into(), to.into()));
            a.read(super_packet(&p.with(|p| p.payload = vec![n as u8; 4000]), 1000));
        }
        let c = turn(&mut a);
        counted += if n < WARM_UP { 0 } else { c };
    }
    assert!(a.counters().udp_out.load(Relaxed) >= TURNS as u64 * 8);
    assert_eq!(counted, 0, "allocations in {TURNS} turns");
    a.assert_drops(&[]);
    a.stop();
}

#[test]
fn both_directions_at_once_allocate_nothing_and_neither_do_drops() {
    let (mut a, mut b) = joined(OFFLOADS);
    b.shard.driver().keep = false;
    let mut counted = 0;
    for n in 0..WARM_UP + TURNS {
        let mut all = arrivals(&mut a, LOADS[2].1, n);
        // A replay, a forgery and junk among it.
        all.push(all[0].clone());
        all[1].bytes[40] ^= 1;
        all.push(Arrival { from: address(66), bytes: vec![9; 100], segment: 100, truncated: false });
        b.shard.driver().arrivals.extend(all);
        let back = |n| {
            let p = Packet::tcp4().with(|p| {
                std::mem::swap(&mut p.source, &mut p.destination);
                p.payload = vec![n as u8; 20 * MSS];
            });
            super_packet(&p, MSS)
        };
        b.read(back(n));
        let c = turn(&mut b);
        counted += if n < WARM_UP { 0 } else { c };
    }
    assert_eq!(counted, 0, "allocations in {TURNS} turns");
    b.stop();
}
