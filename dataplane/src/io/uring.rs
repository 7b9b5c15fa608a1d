//! The io_uring driver: multishot receive into provided buffers on both descriptors, and batches of sends
//! and writes in one system call.
//!
//! Needs 6.7 (`IORING_OP_READ_MULTISHOT` on TUN). Nothing here waits for a send: UDP sends are
//! `MSG_DONTWAIT` and TUN writes never block, so their completions are there when the submitting call
//! returns; should the kernel hand one to a worker after all, the call waits for it.

use super::event::Bell;
use super::mmsg::fill_slices;
use super::msg::{CONTROL_LEN, Control, NAME_LEN, Name, Parts, prepare, udp_gro};
use super::{
    BUFFER_LEN, Buffer, CALL_BATCH, CALL_PIECES, Datagrams, Driver, GATHER_READS, GATHER_TIME, Outcomes, Packet, Piece,
    Run, TURN_BYTES, TURN_DATAGRAMS, TURN_PACKETS, Turn, Want, Write, tun, udp,
};
use io_uring::types::{BufRingEntry, CancelBuilder, Fixed, RecvMsgOut, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Release};
use std::time::Duration;

/// Submissions in one call: a batch of sends and the re-arms.
const SQ_ENTRIES: u32 = 128;
/// Completions that can wait. Every buffer and every operation in flight has at most one, and there are
/// fewer than this of both together, so the queue cannot overflow.
const CQ_ENTRIES: u32 = 1024;
/// Slots of a provided-buffer ring.
const RING_ENTRIES: u16 = 64;
/// Buffers provided at first, see [`Pool`].
const DEPTH_MIN: usize = 8;
/// Turns after which the number of provided buffers is fitted to what was used.
const REVIEW: u32 = 1024;

/// A wait that only a completion ends, where the call takes no "for ever".
const LONG: Duration = Duration::from_secs(3600);

/// A TUN queue that fails this often in a row without being gone is tried at most once a millisecond.
const FAILURES: u32 = 16;

/// When the ring ends: how often cancelled operations are waited for, and how long at a time. One round does.
const ENDING_ROUNDS: u32 = 64;
const ENDING_WAIT: Duration = Duration::from_millis(20);

const FILE_TUN: u32 = 0;
const FILE_UDP: u32 = 1;
const FILE_BELL: u32 = 2;

const OP_TUN: u64 = 0;
const OP_UDP: u64 = 1;
const OP_BELL: u64 = 2;
const OP_WRITABLE: u64 = 3;
const OP_CANCEL: u64 = 4;
/// Sends and writes: this plus their position in the batch.
const OP_BATCH: u64 = 1 << 32;

/// Buffers of one direction. Few are provided at first and go round, so that they stay in the cache; when
/// the kernel runs out of them though they held little (many small packets), more are provided, and fewer again
/// when they are not used. So no fixed pool is ever the ceiling.
struct Pool {
    group: u16,
    ring: BufRing,
    /// Buffers that the kernel may fill, by id.
    lent: Vec<Option<Buffer>>,
    spare: Vec<Buffer>,
    provided: usize,
    depth: usize,
    made: u16,
    armed: bool,
    /// Payload bytes since the kernel last ran out.
    bytes: usize,
    /// Buffers in use at once at most, and calls of [`Pool::provide`], since `depth` was last looked at.
    peak: usize,
    calls: u32,
}

/// The memory that the kernel takes buffers from (`struct io_uring_buf_ring`).
struct BufRing {
    base: *mut BufRingEntry,
    tail: u16,
}

const RING_LAYOUT: std::alloc::Layout =
    match std::alloc::Layout::from_size_align(RING_ENTRIES as usize * size_of::<BufRingEntry>(), 4096) {
        Ok(l) => l,
        Err(_) => panic!("a power of two"),
    };

impl BufRing {
    fn new() -> Self {
        // SAFETY: the layout is not empty; all-zero entries are valid.
        let base = unsafe { std::alloc::alloc_zeroed(RING_LAYOUT) }.cast::<BufRingEntry>();
        if base.is_null() {
            std::alloc::handle_alloc_error(RING_LAYOUT);
        }
        Self { base, tail: 0 }
    }

    fn push(&mut self, buffer: &mut Buffer) {
        let at = usize::from(self.tail & (RING_ENTRIES - 1));
        // SAFETY: `at` is within the ring; the kernel reads an entry only after the tail has passed it.
        let entry = unsafe { &mut *self.base.add(at) };
        entry.set_addr(buffer.bytes.as_mut_ptr() as u64);
        entry.set_len(BUFFER_LEN as u32);
        entry.set_bid(buffer.id);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&self) {
        // SAFETY: the tail lies in the ring's first entry and is shared with the kernel: an atomic store.
        unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.base).cast_mut()).store(self.tail, Release) }
    }
}

impl Drop for BufRing {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this layout; the io_uring that used it is dropped before (field order).
        unsafe { std::alloc::dealloc(self.base.cast(), RING_LAYOUT) }
    }
}

impl Pool {
    fn new(group: u16) -> Self {
        let n = usize::from(RING_ENTRIES);
        Self {
            group,
            ring: BufRing::new(),
            lent: (0..n).map(|_| None).collect(),
            spare: Vec::with_capacity(n),
            provided: 0,
            depth: DEPTH_MIN,
            made: 0,
            armed: false,
            bytes: 0,
            peak: 0,
            calls: 0,
        }
    }

    fn provide(&mut self) {
        self.calls += 1;
        if self.calls == REVIEW {
            self.depth = (self.peak * 2).clamp(DEPTH_MIN, self.depth);
            (self.calls, self.peak) = (0, 0);
        }
        let before = self.ring.tail;
        while self.provided < self.depth {
            let mut b = match self.spare.pop() {
                Some(b) => b,
                None if self.made < RING_ENTRIES => {
                    self.made += 1;
                    Buffer::new(self.made - 1)
                }
                None => break,
            };
            self.ring.push(&mut b);
            let id = usize::from(b.id);
            self.lent[id] = Some(b);
            self.provided += 1;
        }
        if self.ring.tail != before {
            self.ring.publish();
        }
    }

    fn take(&mut self, flags: u32) -> Option<Buffer> {
        let b = self.lent.get_mut(usize::from(cqueue::buffer_select(flags)?))?.take()?;
        self.provided -= 1;
        self.peak = self.peak.max(self.depth.saturating_sub(self.provided));
        Some(b)
    }

    /// The kernel ran out of buffers: if those that it had were not full of data, provide more.
    fn ran_out(&mut self) {
        if self.bytes < TURN_BYTES {
            self.depth = (self.depth * 2).min(usize::from(RING_ENTRIES));
        }
        self.bytes = 0;
    }
}

/// The driver.
pub struct Uring {
    // First, so that the ring is closed before the memory that it may write to is freed.
    ring: IoUring,
    tun: OwnedFd,
    udp: Arc<udp::Socket>,
    bell: Arc<Bell>,
    packets: Pool,
    datagrams: Pool,
    vectors: Box<Vectors>,
    bell_armed: bool,
    writable_armed: bool,
    /// Completions of input that arrived while a batch was being finished.
    ready_packets: VecDeque<Packet>,
    ready_datagrams: VecDeque<Datagrams>,
    woken: bool,
    writable: bool,
    /// Operations of the current batch in flight.
    flying: usize,
    gone: bool,
    /// The kernel has a minimum wait (6.12).
    can_gather: bool,
    /// Reads of TUN that failed in a row.
    failures: u32,
}

struct Vectors {
    /// What `RecvMsgMulti` expects: lengths of name and control only.
    receive: libc::msghdr,
    messages: [libc::msghdr; CALL_BATCH],
    slices: [libc::iovec; CALL_BATCH],
    names: [Name; CALL_BATCH],
    controls: [Control; CALL_BATCH],
    pieces: [libc::iovec; CALL_PIECES],
}

impl Uring {
    /// A driver for one TUN queue and one socket. Must be called on the thread that uses it
    /// (`IORING_SETUP_SINGLE_ISSUER`).
    ///
    /// # Errors
    /// io_uring is missing, forbidden or too old; the message says what failed.
    pub fn new(tun: OwnedFd, udp: Arc<udp::Socket>, bell: Arc<Bell>) -> Result<Self, (io::Error, OwnedFd)> {
        match Self::rings(&tun, &udp, &bell) {
            Ok((ring, packets, datagrams)) => {
                // SAFETY: all-zero message headers, slices and names are valid.
                let mut vectors = unsafe { Box::<Vectors>::new_zeroed().assume_init() };
                vectors.receive.msg_namelen = NAME_LEN as _;
                vectors.receive.msg_controllen = CONTROL_LEN as _;
                Ok(Self {
                    can_gather: ring.params().is_feature_min_timeout(),
                    failures: 0,
                    ring,
                    tun,
                    udp,
                    bell,
                    packets,
                    datagrams,
                    vectors,
                    bell_armed: false,
                    writable_armed: false,
                    ready_packets: VecDeque::with_capacity(usize::from(RING_ENTRIES)),
                    ready_datagrams: VecDeque::with_capacity(usize::from(RING_ENTRIES)),
                    woken: false,
                    writable: false,
                    flying: 0,
                    gone: false,
                })
            }
            Err(e) => Err((e, tun)),
        }
    }

    fn rings(tun: &OwnedFd, udp: &udp::Socket, bell: &Bell) -> io::Result<(IoUring, Pool, Pool)> {
        let said = |what: &'static str| move |e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"));
        let build = |no_sqarray: bool| {
            let mut b = IoUring::builder();
            b.dontfork().setup_cqsize(CQ_ENTRIES).setup_single_issuer().setup_defer_taskrun();
            if no_sqarray {
                b.setup_no_sqarray();
            }
            b.build(SQ_ENTRIES)
        };
        // NO_SQARRAY needs 6.6; without it the ring works the same.
        tun::set_nonblocking(tun, false)?;
        let ring = build(true).or_else(|_| build(false)).map_err(|e| match e.raw_os_error() {
            // SINGLE_ISSUER is of 6.0, DEFER_TASKRUN of 6.1.
            Some(libc::EINVAL) => io::Error::new(io::ErrorKind::Unsupported, "it takes Linux 6.7"),
            _ => said("io_uring_setup")(e),
        })?;
        probe(&ring)?;
        let s = ring.submitter();
        s.register_files(&[tun.as_raw_fd(), udp.as_raw_fd(), bell.as_raw_fd()]).map_err(said("register files"))?;
        let (packets, datagrams) = (Pool::new(0), Pool::new(1));
        for p in [&packets, &datagrams] {
            // SAFETY: the ring's memory lives as long as the io_uring (both are in one struct, io_uring first).
            unsafe { s.register_buf_ring_with_flags(p.ring.base as u64, RING_ENTRIES, p.group, 0) }
                .map_err(said("register provided buffers"))?;
        }
        // Saves a reference count on the ring's file per call; fails harmlessly on old kernels.
        let _ = ring.submitter().register_ring_fd();
        Ok((ring, packets, datagrams))
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: what entries point to is in boxes of `self` or outlives the batch (`finish` waits for it).
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.submit(0, None)?;
        }
        Ok(())
    }

    /// Submits and waits for `want` completions or until `timeout`.
    fn submit(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        let r = match timeout.map(Timespec::from) {
            Some(ts) => self.ring.submitter().submit_with_args(want, &SubmitArgs::new().timespec(&ts)),
            None => self.ring.submit_and_wait(want),
        };
        Self::harmless(r)
    }

    /// Submits and waits for [`GATHER_READS`] completions, after [`GATHER_TIME`] for one (Linux 6.12).
    fn submit_and_gather(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let ts = Timespec::from(timeout.unwrap_or(LONG));
        let args = SubmitArgs::new().min_wait_usec(GATHER_TIME.as_micros() as u32).timespec(&ts);
        let r = self.ring.submitter().submit_with_args(GATHER_READS, &args);
        Self::harmless(r)
    }

    fn harmless(r: io::Result<usize>) -> io::Result<()> {
        match r.map_err(|e| e.raw_os_error().unwrap_or(libc::EIO)) {
            // EBUSY: completions overflowed and must be taken first; the caller does.
            Ok(_) | Err(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            Err(e) => Err(io::Error::from_raw_os_error(e)),
        }
    }

    fn arm(&mut self, want: Want) -> io::Result<()> {
        self.packets.provide();
        self.datagrams.provide();
        if !self.packets.armed && self.packets.provided > 0 {
            if self.failures > FAILURES {
                std::thread::sleep(Duration::from_millis(1));
            }
            // The crate (0.7.15) loses the fixed-file flag of this one operation: set it again.
            let e = opcode::ReadMulti::new(Fixed(FILE_TUN), 0, self.packets.group).build();
            let e = e.flags(squeue::Flags::FIXED_FILE).user_data(OP_TUN);
            self.push(&e)?;
            self.packets.armed = true;
        }
        if !self.datagrams.armed && self.datagrams.provided > 0 {
            let h = &raw const self.vectors.receive;
            let e = opcode::RecvMsgMulti::new(Fixed(FILE_UDP), h, self.datagrams.group).build().user_data(OP_UDP);
            self.push(&e)?;
            self.datagrams.armed = true;
        }
        if !self.bell_armed {
            let e = opcode::PollAdd::new(Fixed(FILE_BELL), libc::POLLIN as _).multi(true).build().user_data(OP_BELL);
            self.push(&e)?;
            self.bell_armed = true;
        }
        if want.writable && !self.writable_armed {
            let e = opcode::PollAdd::new(Fixed(FILE_UDP), libc::POLLOUT as _).build().user_data(OP_WRITABLE);
            self.push(&e)?;
            self.writable_armed = true;
        }
        Ok(())
    }

    /// Whether an operation waits in the kernel.
    const fn armed(&self) -> bool {
        self.packets.armed || self.datagrams.armed || self.bell_armed || self.writable_armed || self.flying > 0
    }

    /// Takes every completion that is there.
    fn reap(&mut self, outcomes: &mut Outcomes) {
        loop {
            // One at a time: the handlers need the rest of `self`. Costs two plain loads and a store each.
            let Some(c) = self.ring.completion().next() else { break };
            let (op, result, flags) = (c.user_data(), c.result(), c.flags());
            match op {
                OP_TUN => self.tun_completion(result, flags),
                OP_UDP => self.udp_completion(result, flags),
                OP_BELL => {
                    self.bell_armed = cqueue::more(flags);
                    self.bell.silence();
                    self.woken = true;
                }
                OP_WRITABLE => {
                    self.writable_armed = false;
                    self.writable = true;
                }
                OP_CANCEL => {}
                _ => {
                    let at = (op - OP_BATCH) as usize;
                    self.flying -= 1;
                    if let Some(o) = outcomes.get_mut(at) {
                        *o = if result < 0 { Err(-result) } else { Ok(()) };
                    }
                }
            }
        }
    }

    fn tun_completion(&mut self, result: i32, flags: u32) {
        self.packets.armed = cqueue::more(flags);
        match (self.packets.take(flags), usize::try_from(result)) {
            (Some(buffer), Ok(len)) if len > 0 => {
                self.packets.bytes += len;
                self.failures = 0;
                self.ready_packets.push_back(Packet { buffer, len });
            }
            (buffer, r) => {
                self.packets.spare.extend(buffer);
                if result == -libc::ENOBUFS {
                    self.packets.ran_out();
                } else if r.is_err() || r == Ok(0) {
                    self.failures += 1;
                    self.gone |= !tun::exists(self.tun.as_raw_fd());
                }
            }
        }
    }

    fn udp_completion(&mut self, result: i32, flags: u32) {
        self.datagrams.armed = cqueue::more(flags);
        if result == -libc::ENOBUFS {
            self.datagrams.ran_out();
        }
        let Some(buffer) = self.datagrams.take(flags) else { return };
        let used = usize::try_from(result).unwrap_or(0).min(BUFFER_LEN);
        let parsed = RecvMsgOut::parse(&buffer.bytes[..used], &self.vectors.receive).ok().and_then(|m| {
            let from = Name::from_bytes(m.name_data())?;
            let len = m.payload_data().len();
            let segment = udp_gro(m.control_data()).unwrap_or(len).max(1);
            let offset = used - len;
            Some((from, offset, len, segment, m.is_payload_truncated()))
        });
        match parsed {
            Some((from, offset, len, segment, truncated)) => {
                self.datagrams.bytes += len;
                self.ready_datagrams.push_back(Datagrams { buffer, offset, len, segment, from, truncated });
            }
            None => self.datagrams.spare.push(buffer),
        }
    }

    /// Submits the batch and waits until all of it is done: nothing that it points to is in use afterwards.
    fn finish(&mut self, outcomes: &mut Outcomes) -> io::Result<()> {
        self.submit(0, None)?;
        self.reap(outcomes);
        while self.flying > 0 {
            self.submit(1, None)?;
            self.reap(outcomes);
        }
        Ok(())
    }

    fn hand_over(&mut self, turn: &mut Turn, want: Want) {
        let (mut bytes, mut n) = (0, 0);
        while want.packets && n < TURN_PACKETS && bytes < TURN_BYTES {
            let Some(p) = self.ready_packets.pop_front() else { break };
            bytes += p.len;
            n += 1;
            turn.packets.push(p);
        }
        bytes = 0;
        while turn.datagrams.len() < TURN_DATAGRAMS && bytes < TURN_BYTES {
            let Some(d) = self.ready_datagrams.pop_front() else { break };
            bytes += d.len;
            turn.datagrams.push(d);
        }
        turn.woken |= std::mem::take(&mut self.woken);
        turn.writable |= std::mem::take(&mut self.writable);
    }
}

impl Driver for Uring {
    fn receive(&mut self, turn: &mut Turn, want: Want) -> io::Result<()> {
        self.arm(want)?;
        let waiting = (want.packets && !self.ready_packets.is_empty()) || !self.ready_datagrams.is_empty();
        if waiting || self.woken || self.writable {
            self.submit(0, None)?;
        } else if want.gather && self.can_gather {
            self.submit_and_gather(want.timeout)?;
        } else {
            self.submit(1, want.timeout)?;
        }
        self.reap(&mut Outcomes::new());
        self.hand_over(turn, want);
        if self.gone && turn.packets.is_empty() && turn.datagrams.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        Ok(())
    }

    fn recycle(&mut self, turn: &mut Turn) {
        self.packets.spare.extend(turn.packets.drain(..).rev().map(|p| p.buffer));
        self.datagrams.spare.extend(turn.datagrams.drain(..).rev().map(|d| d.buffer));
    }

    fn send(&mut self, bytes: &[u8], runs: &[Run], outcomes: &mut Outcomes) -> io::Result<()> {
        outcomes.clear();
        outcomes.resize(runs.len(), Ok(()));
        for (i, run) in runs.iter().enumerate() {
            let v = &mut *self.vectors;
            let parts = Parts { name: &mut v.names[i], slice: &mut v.slices[i], control: &mut v.controls[i] };
            prepare(&mut v.messages[i], parts, bytes, run, self.udp.is_v6());
            let e = opcode::SendMsg::new(Fixed(FILE_UDP), &raw const self.vectors.messages[i])
                .flags(libc::MSG_DONTWAIT as u32)
                .build()
                .user_data(OP_BATCH + i as u64);
            self.push(&e)?;
            self.flying += 1;
        }
        self.finish(outcomes)
    }

    fn write(&mut self, turn: &Turn, pieces: &[Piece], writes: &[Write], outcomes: &mut Outcomes) -> io::Result<()> {
        outcomes.clear();
        outcomes.resize(writes.len(), Ok(()));
        fill_slices(turn, pieces, &mut self.vectors.pieces[..pieces.len()]);
        for (i, w) in writes.iter().enumerate() {
            let slices = &self.vectors.pieces[w.first as usize..][..w.count as usize];
            let e =
                opcode::Writev::new(Fixed(FILE_TUN), slices.as_ptr(), w.count).build().user_data(OP_BATCH + i as u64);
            self.push(&e)?;
            self.flying += 1;
        }
        self.finish(outcomes)
    }

    fn write_one(&mut self, packet: &[u8]) -> io::Result<Result<(), i32>> {
        Ok(tun::write(&self.tun, packet))
    }

    fn replace_udp(&mut self, socket: Arc<udp::Socket>) -> io::Result<()> {
        for op in [OP_UDP, OP_WRITABLE] {
            let e = opcode::AsyncCancel::new(op).build().user_data(OP_CANCEL);
            self.push(&e)?;
        }
        let mut none = Outcomes::new();
        while self.datagrams.armed || self.writable_armed {
            self.submit(1, None)?;
            self.reap(&mut none);
        }
        self.ring.submitter().register_files_update(FILE_UDP, &[socket.as_raw_fd()])?;
        self.udp = socket;
        Ok(())
    }
}

impl Drop for Uring {
    /// Closing a ring cancels its operations some time later, and each keeps its file until then; the buffers
    /// that they may still write to go now, and so shall the interface. So cancel first, and wait: a cancelled
    /// operation ends only when this thread next asks for completions (`IORING_SETUP_DEFER_TASKRUN`).
    fn drop(&mut self) {
        let s = self.ring.submitter();
        let _ = s.register_sync_cancel(Some(Timespec::from(Duration::from_secs(1))), CancelBuilder::any());
        let mut none = Outcomes::new();
        for _ in 0..ENDING_ROUNDS {
            self.reap(&mut none);
            if !self.armed() || self.submit(1, Some(ENDING_WAIT)).is_err() {
                break;
            }
        }
        // Lets go of TUN now, not when the ring's memory is freed: the interface shall be gone at once.
        let _ = self.ring.submitter().unregister_files();
    }
}

/// Checks for the operations that this driver cannot do without.
fn probe(ring: &IoUring) -> io::Result<()> {
    let mut p = io_uring::Probe::new();
    ring.submitter().register_probe(&mut p)?;
    for (op, name) in [
        (opcode::ReadMulti::CODE, "IORING_OP_READ_MULTISHOT (Linux 6.7)"),
        (opcode::RecvMsgMulti::CODE, "IORING_OP_RECVMSG"),
        (opcode::SendMsg::CODE, "IORING_OP_SENDMSG"),
        (opcode::Writev::CODE, "IORING_OP_WRITEV"),
    ] {
        if !p.is_supported(op) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, format!("this kernel lacks {name}")));
        }
    }
    Ok(())
}
