//! The edge to the kernel: TUN devices, UDP sockets, clocks, and the two drivers that move batches.
//!
//! A shard sees one [`Driver`]: it takes in a [`Turn`] (what one wait brought), and hands out whole batches
//! of [`Run`]s and [`Write`]s that are finished when the call returns. Everything about rings, control
//! messages and file descriptors stays behind this seam; `memory` is a third driver for tests and benches.
#![allow(unsafe_code)]

pub mod bpf;
pub mod clock;
pub mod event;
pub mod memory;
pub mod mmsg;
mod msg;
pub mod probe;
pub mod thread;
pub mod tun;
pub mod udp;
pub mod uring;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Bytes of one receive buffer: the largest TUN read (virtio header and 65,535 bytes) or GRO datagram
/// (shorter buffers make the kernel truncate), and room for the io_uring receive header.
pub const BUFFER_LEN: usize = 65_536 + 512;

/// TUN reads in one turn.
pub const TURN_PACKETS: usize = 64;
/// Receive buffers of datagrams in one turn.
pub const TURN_DATAGRAMS: usize = 64;
/// A driver stops taking in more once one direction of a turn has this many bytes, so that a turn's data
/// stays in the second-level cache and the other direction is not kept waiting.
pub const TURN_BYTES: usize = 256 << 10;
/// Datagrams in one GSO run (`UDP_MAX_SEGMENTS` of kernels before 6.9; newer ones take 128).
pub const RUN_DATAGRAMS: usize = 64;
/// Bytes in one GSO run: the largest UDP payload over IPv4.
pub const RUN_BYTES: usize = 65_507;
/// Runs or writes handed to the kernel in one call.
pub const CALL_BATCH: usize = 64;
/// Slices of all TUN writes of one call: `UIO_MAXIOV`, which the kernel allows for a single one.
pub const CALL_PIECES: usize = 1024;

/// A receive buffer on loan from its driver.
#[derive(Debug)]
pub struct Buffer {
    id: u16,
    bytes: Box<[u8]>,
}

impl Buffer {
    fn new(id: u16) -> Self {
        // Zeroed pages are mapped on first touch: buffers that small packets never fill cost nothing.
        Self { id, bytes: vec![0; BUFFER_LEN].into_boxed_slice() }
    }
}

/// One TUN read.
#[derive(Debug)]
pub struct Packet {
    buffer: Buffer,
    len: usize,
}

impl Packet {
    /// The bytes read: the virtio header, if the device has one, and the packet.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer.bytes[..self.len]
    }
}

/// One receive buffer of datagrams: one datagram, or several of one sender that the kernel put together.
#[derive(Debug)]
pub struct Datagrams {
    buffer: Buffer,
    offset: usize,
    len: usize,
    /// Every datagram but the last has this many bytes.
    pub segment: usize,
    /// Who sent them, in canonical form.
    pub from: SocketAddr,
    /// The kernel cut off what did not fit.
    pub truncated: bool,
}

impl Datagrams {
    /// The datagrams back to back.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buffer.bytes[self.offset..self.offset + self.len]
    }

    /// The datagrams back to back.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer.bytes[self.offset..self.offset + self.len]
    }
}

/// What one wait brought.
#[derive(Debug, Default)]
pub struct Turn {
    /// TUN reads, in order.
    pub packets: Vec<Packet>,
    /// Received datagrams, in order.
    pub datagrams: Vec<Datagrams>,
    /// Somebody rang the bell: look at the command queue.
    pub woken: bool,
    /// The UDP socket takes datagrams again after [`io::ErrorKind::WouldBlock`].
    pub writable: bool,
}

impl Turn {
    /// An empty turn with room for the largest.
    #[must_use]
    pub fn new() -> Self {
        Self {
            packets: Vec::with_capacity(TURN_PACKETS),
            datagrams: Vec::with_capacity(TURN_DATAGRAMS),
            woken: false,
            writable: false,
        }
    }
}

/// What a driver takes in during one turn.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    /// Read TUN. Off while sends are blocked: the backlog then waits where its sender sees it.
    pub packets: bool,
    /// Tell when the UDP socket takes datagrams again.
    pub writable: bool,
    /// Wait at most this long; `None`: until something happens; zero: do not wait.
    pub timeout: Option<Duration>,
    /// Many small reads come in: rather wait [`GATHER_TIME`] for [`GATHER_READS`] of them than take each
    /// alone. A wake-up, a send and the receiver's wake-up are then paid once for all.
    pub gather: bool,
}

/// How long a driver waits for more reads under [`Want::gather`].
pub const GATHER_TIME: Duration = Duration::from_micros(80);
/// How many reads end that wait.
pub const GATHER_READS: usize = 32;

/// Equal-sized datagrams (the last may be shorter) for one address, sent by one call.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Where to.
    pub to: SocketAddr,
    /// Where the first datagram starts in the batch's bytes.
    pub offset: u32,
    /// Bytes of all datagrams.
    pub len: u32,
    /// Bytes of each datagram but the last.
    pub segment: u32,
}

impl Run {
    /// Number of datagrams.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.len.div_ceil(self.segment)
    }
}

/// A slice of a received buffer: part of what goes to TUN in one write.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Which of [`Turn::datagrams`].
    pub datagrams: u32,
    /// Where in its [`Datagrams::bytes`].
    pub offset: u32,
    /// How many bytes.
    pub len: u32,
}

/// One TUN write: a range of the batch's pieces.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    /// Index of the first piece.
    pub first: u32,
    /// Number of pieces, at least 1.
    pub count: u32,
}

/// What became of each run or write of a batch, by position. A driver resizes it to the batch.
pub type Outcomes = Vec<Result<(), i32>>;

/// Moves batches between a shard and the kernel. Not an error: anything that concerns single datagrams or
/// packets; those are `errno` values in [`Outcomes`].
pub trait Driver {
    /// Waits for input as `want` says and fills the (emptied) `turn`. Buffers of the last turn must have
    /// been given back.
    ///
    /// # Errors
    /// Only what ends the shard: the TUN device is gone (`ENODEV`), or the driver itself broke.
    fn receive(&mut self, turn: &mut Turn, want: Want) -> io::Result<()>;

    /// Takes the buffers of `turn` back and empties it.
    fn recycle(&mut self, turn: &mut Turn);

    /// Sends `runs` (offsets are into `bytes`), at most [`CALL_BATCH`]. What is
    /// `EAGAIN` was not sent and should be tried again, in order, once the socket is writable.
    ///
    /// # Errors
    /// Only what ends the shard.
    fn send(&mut self, bytes: &[u8], runs: &[Run], outcomes: &mut Outcomes) -> io::Result<()>;

    /// Writes to TUN, at most [`CALL_BATCH`] with together at most [`CALL_PIECES`] pieces.
    ///
    /// # Errors
    /// Only what ends the shard.
    fn write(&mut self, turn: &Turn, pieces: &[Piece], writes: &[Write], outcomes: &mut Outcomes) -> io::Result<()>;

    /// Writes one plain packet (with its virtio header, if the device has them) to TUN; for the rare message of our
    /// own.
    ///
    /// # Errors
    /// Only what ends the shard.
    fn write_one(&mut self, packet: &[u8]) -> io::Result<Result<(), i32>>;

    /// Goes over to another UDP socket.
    ///
    /// # Errors
    /// Only what ends the shard.
    fn replace_udp(&mut self, socket: std::sync::Arc<udp::Socket>) -> io::Result<()>;
}

/// `errno` of the last failed call.
fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}
