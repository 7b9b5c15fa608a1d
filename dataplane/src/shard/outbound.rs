//! TUN -> split -> seal -> UDP.

use super::Shard;
use super::multicast::is_for_many;
use super::routing::Router;
use crate::Time;
use crate::crypto::{self, Job, TAG_LEN};
use crate::io::{CALL_BATCH, Driver, Outcomes, Packet, RUN_BYTES, RUN_DATAGRAMS, Run};
use crate::packet::Split;
use crate::packet::unreachable::Why;
use crate::path::Path;
use crate::shared::Shared;
use crate::stats::{Drop, add};
use crate::tunnel::{Peer, Session};
use arrayvec::ArrayVec;
use ipop_ebpf::{CHANNEL_HEADER_LEN, DATA_HEADER_LEN};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Bytes of datagrams that are sealed and sent together. Holds the largest super-packet in the smallest
/// usual segments, and stays in the second-level cache.
const ARENA: usize = 192 << 10;
/// Datagrams that are sealed and sent together.
const PLACED: usize = 1024;
/// How long sends may stay blocked by a full socket buffer before what waits is dropped.
pub(super) const BLOCKED_LIMIT: Duration = Duration::from_millis(100);
/// Jobs per call of the cipher.
const JOBS: usize = 64;
/// Segments of a super-packet that is sealed by itself, straight from the buffer that it was read into. Fewer wait
/// for others, to fill the cipher's lanes with.
const SEALED_AT_ONCE: usize = 16;
/// Added to every datagram around its packet, at most.
const OVERHEAD_MAX: usize = CHANNEL_HEADER_LEN + DATA_HEADER_LEN + 15 + TAG_LEN;

/// A datagram in the arena that is not sealed yet.
#[derive(Clone, Copy)]
struct Placed {
    /// Where its text starts.
    offset: u32,
    /// Text and tag.
    len: u32,
    session: u32,
    counter: u64,
}

/// A session used in this batch.
struct Used {
    session: Arc<Session>,
    bytes: u64,
}

pub(super) struct Outbox {
    arena: Box<[u8]>,
    filled: usize,
    /// The last run takes more datagrams of its size.
    open: bool,
    runs: Vec<Run>,
    placed: Vec<Placed>,
    used: Vec<Used>,
    blocked: Vec<Run>,
    /// Swapped with `blocked` at each new try.
    retried: Vec<Run>,
    blocked_since: Time,
    deferred: VecDeque<Packet>,
    /// Swapped with the turn's vector of packets.
    done: Vec<Packet>,
    outcomes: Outcomes,
    router: Router,
}

impl Outbox {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self {
            arena: vec![0; ARENA].into_boxed_slice(),
            filled: 0,
            open: false,
            runs: Vec::with_capacity(CALL_BATCH),
            placed: Vec::with_capacity(PLACED),
            used: Vec::with_capacity(CALL_BATCH),
            blocked: Vec::with_capacity(PLACED),
            retried: Vec::with_capacity(PLACED),
            blocked_since: Time::ZERO,
            deferred: VecDeque::with_capacity(crate::io::TURN_PACKETS),
            done: Vec::with_capacity(2 * crate::io::TURN_PACKETS),
            outcomes: Outcomes::with_capacity(CALL_BATCH),
            router: Router::new(shared),
        }
    }

    pub(super) const fn is_blocked(&self) -> bool {
        !self.blocked.is_empty()
    }

    pub(super) fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    /// Whether `count` datagrams of packets of `len` bytes fit.
    fn has_room(&self, count: usize, len: usize) -> bool {
        self.placed.len() + count <= PLACED
            && self.filled + count * (len + OVERHEAD_MAX) <= ARENA
            && self.used.len() < self.used.capacity()
            // A super-packet makes few runs; the last one may be cut by the run limits.
            && self.runs.len() + count.div_ceil(RUN_DATAGRAMS.min(RUN_BYTES / (len + OVERHEAD_MAX)).max(1)) < CALL_BATCH
    }

    fn session_slot(&mut self, session: &Arc<Session>) -> u32 {
        let slot = match self.used.iter().rposition(|u| Arc::ptr_eq(&u.session, session)) {
            Some(i) => i,
            None => {
                self.used.push(Used { session: session.clone(), bytes: 0 });
                self.used.len() - 1
            }
        };
        slot as u32
    }

    /// Starts a datagram of `text` bytes (padded packet): writes what comes before the text and gives the
    /// text to fill in.
    fn place(&mut self, to: &Sealing<'_>, counter: u64, text: usize) -> &mut [u8] {
        let prefix = to.path.prefix_len();
        let start = self.filled;
        let total = prefix + DATA_HEADER_LEN + text + TAG_LEN;
        self.filled += total;
        self.extend_runs(to, start, total);
        let out = to.write_headers(counter, &mut self.arena[start..start + total]);
        self.placed.push(Placed {
            offset: (start + prefix + DATA_HEADER_LEN) as u32,
            len: (text + TAG_LEN) as u32,
            session: to.slot,
            counter,
        });
        self.used[to.slot as usize].bytes += total as u64;
        &mut out[..text]
    }

    /// Seals a super-packet's segments from the read buffer into the arena, the payload without a copy before.
    fn seal_from(&mut self, to: &Sealing<'_>, first: u64, split: &Split<'_>, mtu: usize) {
        let around = to.path.prefix_len() + DATA_HEADER_LEN + TAG_LEN;
        let mut end = self.filled;
        for i in 0..split.count() {
            let total = around + padded_len(split.len_of(i), mtu);
            self.extend_runs(to, end, total);
            end += total;
        }
        self.used[to.slot as usize].bytes += (end - self.filled) as u64;
        let mut rest = &mut self.arena[self.filled..end];
        self.filled = end;
        let mut jobs: ArrayVec<Job<'_>, JOBS> = ArrayVec::new();
        for i in 0..split.count() {
            let (len, counter) = (split.len_of(i), first + i as u64);
            let text = padded_len(len, mtu);
            let (out, tail) = rest.split_at_mut(around + text);
            rest = tail;
            let buf = to.write_headers(counter, out);
            let (head, payload) = split.write_header(i, &mut buf[..len]);
            buf[len..text].fill(0);
            jobs.push(Job::sealing(to.session.send_key(), counter, buf, head, payload));
            if jobs.is_full() {
                crypto::seal(&mut jobs);
                jobs.clear();
            }
        }
        crypto::seal(&mut jobs);
    }

    fn extend_runs(&mut self, to: &Sealing<'_>, start: usize, total: usize) {
        let total = total as u32;
        if let Some(run) = self.runs.last_mut()
            && self.open
            && run.to == to.address
            && total <= run.segment
            && run.count() < RUN_DATAGRAMS as u32
            && (run.len + total) as usize <= RUN_BYTES
        {
            run.len += total;
            self.open = total == run.segment;
            return;
        }
        self.open = to.gso;
        self.runs.push(Run { to: to.address, offset: start as u32, len: total, segment: total });
    }

    /// Encrypts what was placed.
    fn seal(&mut self) {
        let mut jobs: ArrayVec<Job<'_>, JOBS> = ArrayVec::new();
        let (mut rest, mut base) = (&mut self.arena[..], 0);
        for p in &self.placed {
            let (_, tail) = rest.split_at_mut(p.offset as usize - base);
            let (buf, tail) = tail.split_at_mut(p.len as usize);
            (rest, base) = (tail, (p.offset + p.len) as usize);
            jobs.push(Job::new(self.used[p.session as usize].session.send_key(), p.counter, buf));
            if jobs.is_full() {
                crypto::seal(&mut jobs);
                jobs.clear();
            }
        }
        crypto::seal(&mut jobs);
    }

    fn reset(&mut self) {
        self.filled = 0;
        self.open = false;
        self.runs.clear();
        self.placed.clear();
        self.used.clear();
    }
}

/// Length of the text for a packet of `len` bytes: a multiple of 16, but not above the MTU, so that a full
/// packet makes no datagram that is larger than the path takes (WireGuard paper, section 5.4.6).
fn padded_len(len: usize, mtu: usize) -> usize {
    len.next_multiple_of(16).min(mtu.max(len))
}

/// Where a read comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// From TUN just now.
    Tun,
    /// It waited for the session and is counted already.
    Staged,
}

/// Whether a read was dealt with (sent, staged or dropped).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    Yes,
    /// The socket buffer is full: try again later.
    NotYet,
}

/// Whether the datagrams of a super-packet fit into the arena.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Enough,
    /// The socket buffer is full: try again later.
    NotYet,
    /// They are more than the arena holds.
    Never,
}

/// How the datagrams of one super-packet are sealed and where they go.
struct Sealing<'a> {
    session: &'a Arc<Session>,
    slot: u32,
    path: Path,
    address: SocketAddr,
    gso: bool,
}

impl Sealing<'_> {
    /// Writes what comes before the text of a datagram, and gives the rest: room for text and tag.
    fn write_headers<'a>(&self, counter: u64, out: &'a mut [u8]) -> &'a mut [u8] {
        let prefix = self.path.prefix_len();
        if let Path::Relay { channel, .. } = self.path {
            let len = out.len() - CHANNEL_HEADER_LEN;
            out[..2].copy_from_slice(&channel.to_be_bytes());
            out[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        }
        let (header, rest) = out[prefix..].split_at_mut(DATA_HEADER_LEN);
        header[..4].copy_from_slice(&4u32.to_le_bytes());
        header[4..8].copy_from_slice(&self.session.remote_index.to_le_bytes());
        header[8..16].copy_from_slice(&counter.to_le_bytes());
        rest
    }
}

impl<D: Driver> Shard<D> {
    pub(super) fn outbound(&mut self, now: Time) -> io::Result<()> {
        // Both vectors are kept, so that a turn allocates nothing: `done` goes back to the driver by the turn.
        let mut fresh = std::mem::replace(&mut self.turn.packets, std::mem::take(&mut self.outbox.done));
        let mut deferred = std::mem::take(&mut self.outbox.deferred);
        add(&self.counters.tun_reads, fresh.len() as u64);
        while !self.outbox.is_blocked() {
            let Some(mut p) = deferred.pop_front() else { break };
            match self.send_read(p.bytes_mut(), now, Origin::Tun)? {
                Taken::Yes => self.turn.packets.push(p),
                Taken::NotYet => deferred.push_front(p),
            }
        }
        for mut p in fresh.drain(..) {
            // Keep it, and the sender's queue behind it, until the socket takes datagrams again.
            let blocked = self.outbox.is_blocked();
            match if blocked { Taken::NotYet } else { self.send_read(p.bytes_mut(), now, Origin::Tun)? } {
                Taken::Yes => self.turn.packets.push(p),
                Taken::NotYet => deferred.push_back(p),
            }
        }
        self.outbox.done = fresh;
        self.outbox.deferred = deferred;
        self.flush(now)
    }

    /// Splits one TUN read and places its packets as datagrams.
    pub(super) fn send_read(&mut self, read: &mut [u8], now: Time, origin: Origin) -> io::Result<Taken> {
        let split = if self.tun.vnet { Split::new(read) } else { Split::plain(read) };
        let Ok(split) = split else {
            add(&self.counters.tun_in, 1);
            self.counters.count_drop(Drop::Malformed, 1);
            return Ok(Taken::Yes);
        };
        let count = split.count();
        if origin == Origin::Tun {
            add(&self.counters.tun_in, count as u64);
        }
        let drop = |s: &Self, reason| s.counters.count_drop(reason, count as u64);
        if let Some(broadcast) = self.shared.multicast()
            && is_for_many(split.destination(), broadcast)
        {
            let taken = self.send_to_many(&split, now)?;
            if taken == Taken::NotYet && origin == Origin::Tun {
                self.counters.tun_in.fetch_sub(count as u64, Relaxed);
            }
            return Ok(taken);
        }
        let Some(peer) = self.outbox.router.lookup(split.destination()).cloned() else {
            drop(self, Drop::NoRoute);
            self.refuse(read, Why::NoRoute, now)?;
            return Ok(Taken::Yes);
        };
        let session = match peer.current() {
            Some(s) if !s.expired(now) => s,
            _ => {
                self.stage(&peer, read, count, now)?;
                return Ok(Taken::Yes);
            }
        };
        let Some(path) = peer.path() else {
            self.stage(&peer, read, count, now)?;
            return Ok(Taken::Yes);
        };
        if origin == Origin::Tun && self.staging.len(&peer) > 0 {
            // The session is there and the keeper's word of it is not yet: what waited goes first.
            self.flush_staged(&peer, now)?;
            if self.outbox.is_blocked() {
                self.counters.tun_in.fetch_sub(count as u64, Relaxed);
                return Ok(Taken::NotYet);
            }
        }
        match self.make_room(&split, now)? {
            Room::Enough => self.place_all(&split, &session, path),
            Room::Never => drop(self, Drop::TooBig),
            Room::NotYet => {
                if origin == Origin::Tun {
                    self.counters.tun_in.fetch_sub(count as u64, Relaxed);
                }
                return Ok(Taken::NotYet);
            }
        }
        Ok(Taken::Yes)
    }

    /// Makes room for `split`'s datagrams by sending what was placed, if need be.
    pub(super) fn make_room(&mut self, split: &Split<'_>, now: Time) -> io::Result<Room> {
        let (count, len) = (split.count(), split.segment_len().max(split.last_len()));
        if !self.outbox.is_blocked() && !self.outbox.has_room(count, len) {
            self.flush(now)?;
        }
        Ok(match (self.outbox.is_blocked(), self.outbox.has_room(count, len)) {
            (true, _) => Room::NotYet,
            (false, true) => Room::Enough,
            (false, false) => Room::Never,
        })
    }

    /// Places all segments as datagrams of one session. There has to be room.
    pub(super) fn place_all(&mut self, split: &Split<'_>, session: &Arc<Session>, path: Path) {
        let count = split.count();
        let Some(first) = session.reserve(count as u64) else {
            self.counters.count_drop(Drop::CounterExhausted, count as u64);
            self.shared.request_handshake(session.peer());
            return;
        };
        let slot = self.outbox.session_slot(session);
        let gso = self.shared.udp_gso.load(Relaxed);
        let to = Sealing { session, slot, path, address: path.address(), gso };
        let mtu = self.shared.mtu();
        if count >= SEALED_AT_ONCE {
            return self.outbox.seal_from(&to, first, split, mtu);
        }
        for i in 0..count {
            let len = split.len_of(i);
            let text = self.outbox.place(&to, first + i as u64, padded_len(len, mtu));
            let (body, padding) = text.split_at_mut(len);
            split.write(i, body);
            padding.fill(0);
        }
    }

    fn stage(&mut self, peer: &Arc<Peer>, read: &[u8], count: usize, now: Time) -> io::Result<()> {
        let path = peer.path().is_some();
        if !path && !peer.on_demand() {
            self.counters.count_drop(Drop::NoPath, count as u64);
            return self.refuse(read, Why::NoPath, now);
        }
        if !self.staging.push(peer, read, count as u32, now) {
            self.counters.count_drop(Drop::StagingFull, count as u64);
        }
        if path {
            self.shared.request_handshake(peer);
        } else {
            self.shared.want_path(peer);
        }
        Ok(())
    }

    /// Seals and sends what was placed.
    pub(super) fn flush(&mut self, now: Time) -> io::Result<()> {
        if self.outbox.is_blocked() || self.outbox.runs.is_empty() {
            return Ok(());
        }
        self.outbox.seal();
        for u in &self.outbox.used {
            let peer = u.session.peer();
            if peer.note_sent(now, &u.session, u.bytes, true) {
                self.shared.request_handshake(peer);
            }
        }
        let runs = std::mem::take(&mut self.outbox.runs);
        let r = self.transmit(&runs, now);
        self.outbox.runs = runs;
        r?;
        if !self.outbox.is_blocked() {
            self.outbox.reset();
        }
        Ok(())
    }

    /// Sends `runs` and deals with what the socket said of each.
    fn transmit(&mut self, runs: &[Run], now: Time) -> io::Result<()> {
        for batch in runs.chunks(CALL_BATCH) {
            if self.outbox.is_blocked() {
                // Nothing overtakes what waits for the socket.
                self.outbox.blocked.extend_from_slice(batch);
                continue;
            }
            let mut outcomes = std::mem::take(&mut self.outbox.outcomes);
            self.driver.send(&self.outbox.arena[..self.outbox.filled], batch, &mut outcomes)?;
            for (run, outcome) in batch.iter().zip(&outcomes) {
                let n = u64::from(run.count());
                match *outcome {
                    Ok(()) => {
                        add(&self.counters.udp_out, n);
                        add(&self.counters.udp_writes, 1);
                    }
                    Err(libc::EAGAIN) => {
                        if !self.outbox.is_blocked() {
                            self.outbox.blocked_since = now;
                        }
                        self.outbox.blocked.push(*run);
                    }
                    Err(errno @ (libc::EIO | libc::EINVAL | libc::EMSGSIZE)) if n > 1 => {
                        self.send_singly(run, errno, now)?
                    }
                    Err(libc::EMSGSIZE) => self.counters.count_drop(Drop::TooBig, n),
                    Err(libc::ENOBUFS | libc::ENOMEM) => self.counters.count_drop(Drop::SendBufferFull, n),
                    Err(_) => self.counters.count_drop(Drop::SendFailed, n),
                }
            }
            self.outbox.outcomes = outcomes;
        }
        Ok(())
    }

    /// Sends a run that the kernel would not segment, one datagram a time. `EIO` means that the device has
    /// no checksum offload and never will (udp(7)): segmentation stays off from here on. `EMSGSIZE` (`EINVAL`
    /// on older kernels) means that this path's MTU is below the segment size: only this run is affected, its
    /// datagrams go out as fragments.
    fn send_singly(&mut self, run: &Run, errno: i32, now: Time) -> io::Result<()> {
        if errno == libc::EIO && self.shared.udp_gso.swap(false, Relaxed) {
            tracing::info!("the network device refuses UDP segmentation offload (EIO): switched off");
        }
        let single = |i: u32| {
            let offset = run.offset + i * run.segment;
            let len = run.segment.min(run.offset + run.len - offset);
            Run { to: run.to, offset, len, segment: len }
        };
        let singles: ArrayVec<Run, RUN_DATAGRAMS> = (0..run.count()).map(single).collect();
        self.transmit(&singles, now)
    }

    /// Tries again what a full socket buffer held back.
    pub(super) fn retry(&mut self, now: Time) -> io::Result<()> {
        if now.since(self.outbox.blocked_since) >= BLOCKED_LIMIT {
            self.drop_blocked();
            return Ok(());
        }
        if !self.turn.writable {
            return Ok(());
        }
        let since = self.outbox.blocked_since;
        let spare = std::mem::take(&mut self.outbox.retried);
        let mut blocked = std::mem::replace(&mut self.outbox.blocked, spare);
        let r = self.transmit(&blocked, now);
        if !self.outbox.is_blocked() {
            self.outbox.reset();
        } else if self.outbox.blocked.len() == blocked.len() {
            // Progress restarts the clock; none does not.
            self.outbox.blocked_since = since;
        }
        blocked.clear();
        self.outbox.retried = blocked;
        r
    }

    /// Gives up on what a full socket buffer held back.
    pub(super) fn drop_blocked(&mut self) {
        if self.outbox.is_blocked() {
            let n: u64 = self.outbox.blocked.iter().map(|r| u64::from(r.count())).sum();
            self.counters.count_drop(Drop::SendBufferFull, n);
            self.outbox.blocked.clear();
            self.outbox.reset();
        }
    }
}
