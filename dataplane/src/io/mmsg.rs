//! The driver for every kernel: epoll, `recvmmsg`, `sendmmsg`, `read` and `writev`.

use super::event::Bell;
use super::msg::{CONTROL_LEN, Control, NAME_LEN, Name, Parts, prepare, udp_gro};
use super::{
    Buffer, CALL_BATCH, CALL_PIECES, Datagrams, Driver, GATHER_TIME, Outcomes, Packet, Piece, Run, TURN_BYTES,
    TURN_DATAGRAMS, TURN_PACKETS, Turn, Want, Write, errno, tun, udp,
};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;
use std::sync::Arc;

const TUN: u64 = 0;
const UDP: u64 = 1;
const BELL: u64 = 2;

/// Receive buffers offered per call at first. Few and always the same ones stay in the cache; many small
/// datagrams raise the number, up to [`TURN_DATAGRAMS`].
const DEPTH_MIN: usize = 8;

/// The driver.
pub struct Mmsg {
    epoll: OwnedFd,
    tun: OwnedFd,
    udp: Arc<udp::Socket>,
    bell: Arc<Bell>,
    /// Last in, first out: the buffer used last is the one in the cache.
    pool: Vec<Buffer>,
    vectors: Box<Vectors>,
    depth: usize,
    tun_ready: bool,
    udp_ready: bool,
    armed: Want,
}

/// Arguments of the batch calls; boxed, because their addresses go to the kernel.
struct Vectors {
    messages: [libc::mmsghdr; CALL_BATCH],
    slices: [libc::iovec; CALL_BATCH],
    names: [Name; CALL_BATCH],
    controls: [Control; CALL_BATCH],
    pieces: [libc::iovec; CALL_PIECES],
}

// SAFETY: the raw pointers in `Vectors` are scratch: written before and read during one call.
unsafe impl Send for Mmsg {}

impl Mmsg {
    /// A driver for one TUN queue and one socket.
    ///
    /// # Errors
    /// The process has no more file descriptors.
    pub fn new(tun: OwnedFd, udp: Arc<udp::Socket>, bell: Arc<Bell>) -> io::Result<Self> {
        tun::set_nonblocking(&tun, true)?;
        // SAFETY: no pointers; a non-negative result is a descriptor that nobody else owns.
        let epoll = unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: all-zero message headers, slices and names are valid.
        let vectors = unsafe { Box::<Vectors>::new_zeroed().assume_init() };
        let armed = Want { packets: true, writable: false, timeout: None, gather: false };
        let pool = Vec::with_capacity(TURN_PACKETS + TURN_DATAGRAMS);
        let (tun_ready, udp_ready) = (true, true);
        let s = Self { epoll, tun, udp, bell, pool, vectors, depth: DEPTH_MIN, tun_ready, udp_ready, armed };
        s.control(libc::EPOLL_CTL_ADD, s.tun.as_raw_fd(), libc::EPOLLIN, TUN)?;
        s.control(libc::EPOLL_CTL_ADD, s.udp.as_raw_fd(), libc::EPOLLIN, UDP)?;
        s.control(libc::EPOLL_CTL_ADD, s.bell.as_raw_fd(), libc::EPOLLIN, BELL)?;
        Ok(s)
    }

    fn control(&self, op: i32, fd: RawFd, events: i32, token: u64) -> io::Result<()> {
        let mut e = libc::epoll_event { events: events.cast_unsigned(), u64: token };
        // SAFETY: `e` is a valid event.
        let r = unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), op, fd, &raw mut e) };
        if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn take_buffer(&mut self) -> Buffer {
        self.pool.pop().unwrap_or_else(|| Buffer::new(0))
    }

    fn arm(&mut self, want: Want) -> io::Result<()> {
        if want.packets != self.armed.packets {
            let events = if want.packets { libc::EPOLLIN } else { 0 };
            self.control(libc::EPOLL_CTL_MOD, self.tun.as_raw_fd(), events, TUN)?;
        }
        if want.writable != self.armed.writable {
            let events = if want.writable { libc::EPOLLIN | libc::EPOLLOUT } else { libc::EPOLLIN };
            self.control(libc::EPOLL_CTL_MOD, self.udp.as_raw_fd(), events, UDP)?;
        }
        self.armed = want;
        Ok(())
    }

    fn wait(&mut self, turn: &mut Turn, want: Want) -> io::Result<()> {
        self.arm(want)?;
        let timeout = want.timeout.map_or(-1, |t| i32::try_from(t.as_millis()).unwrap_or(i32::MAX));
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 4];
        // SAFETY: `events` has room for four.
        let n = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), 4, timeout) };
        if n < 0 {
            let e = io::Error::last_os_error();
            return if e.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(e) };
        }
        for e in &events[..n as usize] {
            match e.u64 {
                TUN => self.tun_ready = true,
                UDP => {
                    turn.writable |= e.events & libc::EPOLLOUT.cast_unsigned() != 0;
                    // An error condition on the socket is cleared by receiving.
                    self.udp_ready |= e.events & !libc::EPOLLOUT.cast_unsigned() != 0;
                }
                _ => {
                    self.bell.silence();
                    turn.woken = true;
                }
            }
        }
        Ok(())
    }

    fn read_tun(&mut self, turn: &mut Turn) -> io::Result<()> {
        let mut bytes = 0;
        while turn.packets.len() < TURN_PACKETS && bytes < TURN_BYTES {
            let mut buffer = self.take_buffer();
            // SAFETY: the buffer is live and as long as said.
            let n = unsafe { libc::read(self.tun.as_raw_fd(), buffer.bytes.as_mut_ptr().cast(), buffer.bytes.len()) };
            if n >= 0 {
                bytes += n as usize;
                turn.packets.push(Packet { buffer, len: n as usize });
                continue;
            }
            self.pool.push(buffer);
            match errno() {
                libc::EINTR => {}
                libc::EAGAIN => {
                    self.tun_ready = false;
                    break;
                }
                _ if !tun::exists(self.tun.as_raw_fd()) => return Err(io::Error::from_raw_os_error(libc::ENODEV)),
                // A bad single packet (EFAULT, EMSGSIZE ...): the next wait tells whether there is more.
                _ => {
                    self.tun_ready = false;
                    break;
                }
            }
        }
        Ok(())
    }

    fn receive_udp(&mut self, turn: &mut Turn) {
        let depth = self.depth.min(TURN_DATAGRAMS);
        let mut buffers: arrayvec::ArrayVec<Buffer, TURN_DATAGRAMS> = arrayvec::ArrayVec::new();
        for i in 0..depth {
            let mut b = self.take_buffer();
            let v = &mut *self.vectors;
            v.slices[i] = libc::iovec { iov_base: b.bytes.as_mut_ptr().cast(), iov_len: b.bytes.len() };
            let h = &mut v.messages[i].msg_hdr;
            h.msg_name = (&raw mut v.names[i]).cast();
            h.msg_namelen = NAME_LEN as _;
            h.msg_iov = &raw mut v.slices[i];
            h.msg_iovlen = 1;
            h.msg_control = (&raw mut v.controls[i]).cast();
            h.msg_controllen = CONTROL_LEN as _;
            h.msg_flags = 0;
            buffers.push(b);
        }
        // SAFETY: the first `depth` headers point to live names, buffers and control space.
        let n = unsafe {
            libc::recvmmsg(
                self.udp.as_raw_fd(),
                self.vectors.messages.as_mut_ptr(),
                depth as _,
                libc::MSG_DONTWAIT,
                null_mut(),
            )
        };
        let n = usize::try_from(n).unwrap_or(0);
        // Fewer than asked for: drained. An error (EAGAIN, or a pending ICMP error): wait again.
        self.udp_ready = n == depth;
        let mut bytes = 0;
        for (i, buffer) in buffers.into_iter().enumerate() {
            if i >= n {
                self.pool.push(buffer);
                continue;
            }
            let v = &self.vectors;
            let (h, len) = (&v.messages[i].msg_hdr, v.messages[i].msg_len as usize);
            let Some(from) = Name::from_bytes(&v.names[i].as_bytes()[..(h.msg_namelen as usize).min(NAME_LEN)]) else {
                self.pool.push(buffer);
                continue;
            };
            let control = &v.controls[i].0[..h.msg_controllen.min(CONTROL_LEN)];
            let segment = udp_gro(control).unwrap_or(len).max(1);
            let truncated = h.msg_flags & libc::MSG_TRUNC != 0;
            bytes += len;
            turn.datagrams.push(Datagrams { buffer, offset: 0, len, segment, from, truncated });
        }
        if n == depth && bytes < TURN_BYTES / 2 {
            self.depth = (depth * 2).min(TURN_DATAGRAMS);
        } else if bytes > TURN_BYTES {
            self.depth = (depth / 2).max(DEPTH_MIN);
        }
    }

    fn take_in(&mut self, turn: &mut Turn, want: Want) -> io::Result<()> {
        if self.udp_ready {
            self.receive_udp(turn);
        }
        if self.tun_ready && want.packets {
            self.read_tun(turn)?;
        }
        Ok(())
    }
}

impl Driver for Mmsg {
    fn receive(&mut self, turn: &mut Turn, want: Want) -> io::Result<()> {
        // After a busy turn there is usually more: ask the descriptors themselves before epoll.
        self.take_in(turn, want)?;
        if turn.packets.is_empty() && turn.datagrams.is_empty() {
            if want.gather {
                super::thread::nap(GATHER_TIME);
                self.take_in(turn, want)?;
            }
            if turn.packets.is_empty() && turn.datagrams.is_empty() {
                self.wait(turn, want)?;
                self.take_in(turn, want)?;
            }
        } else if want.writable {
            self.wait(turn, Want { timeout: Some(std::time::Duration::ZERO), ..want })?;
        }
        Ok(())
    }

    fn recycle(&mut self, turn: &mut Turn) {
        self.pool.extend(turn.packets.drain(..).rev().map(|p| p.buffer));
        self.pool.extend(turn.datagrams.drain(..).rev().map(|d| d.buffer));
    }

    fn send(&mut self, bytes: &[u8], runs: &[Run], outcomes: &mut Outcomes) -> io::Result<()> {
        outcomes.clear();
        let v = &mut *self.vectors;
        for (i, run) in runs.iter().enumerate() {
            let parts = Parts { name: &mut v.names[i], slice: &mut v.slices[i], control: &mut v.controls[i] };
            prepare(&mut v.messages[i].msg_hdr, parts, bytes, run, self.udp.is_v6());
        }
        while outcomes.len() < runs.len() {
            let at = outcomes.len();
            // SAFETY: headers `at..runs.len()` were filled in above and point to live memory.
            let n = unsafe {
                libc::sendmmsg(
                    self.udp.as_raw_fd(),
                    v.messages.as_mut_ptr().add(at),
                    (runs.len() - at) as _,
                    libc::MSG_DONTWAIT,
                )
            };
            match n {
                1.. => outcomes.resize(at + n as usize, Ok(())),
                _ => match errno() {
                    libc::EINTR => {}
                    libc::EAGAIN => outcomes.resize(runs.len(), Err(libc::EAGAIN)),
                    e => outcomes.push(Err(e)),
                },
            }
        }
        Ok(())
    }

    fn write(&mut self, turn: &Turn, pieces: &[Piece], writes: &[Write], outcomes: &mut Outcomes) -> io::Result<()> {
        outcomes.clear();
        for w in writes {
            let pieces = &pieces[w.first as usize..][..w.count as usize];
            let slices = &mut self.vectors.pieces[..pieces.len()];
            fill_slices(turn, pieces, slices);
            // SAFETY: the slices point into live buffers of `turn`.
            let n = unsafe { libc::writev(self.tun.as_raw_fd(), slices.as_ptr(), slices.len() as _) };
            outcomes.push(if n < 0 { Err(errno()) } else { Ok(()) });
        }
        Ok(())
    }

    fn write_one(&mut self, packet: &[u8]) -> io::Result<Result<(), i32>> {
        Ok(tun::write(&self.tun, packet))
    }

    fn replace_udp(&mut self, socket: Arc<udp::Socket>) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, self.udp.as_raw_fd(), 0, UDP)?;
        self.udp = socket;
        self.armed.writable = false;
        self.control(libc::EPOLL_CTL_ADD, self.udp.as_raw_fd(), libc::EPOLLIN, UDP)?;
        self.udp_ready = true;
        Ok(())
    }
}

/// Points `slices` at `pieces`.
pub(super) fn fill_slices(turn: &Turn, pieces: &[Piece], slices: &mut [libc::iovec]) {
    for (s, p) in slices.iter_mut().zip(pieces) {
        let data = &turn.datagrams[p.datagrams as usize].bytes()[p.offset as usize..][..p.len as usize];
        *s = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    }
}
