//! A driver without a kernel, for tests and benches: input is queued by hand, output is kept or counted,
//! and faults are injected at the seam.

use super::{
    Buffer, Datagrams, Driver, Outcomes, Packet, Piece, Run, TURN_BYTES, TURN_DATAGRAMS, TURN_PACKETS, Turn, Want,
    Write, udp,
};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

/// One datagram, or several of equal size back to back, as GRO hands them over.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Sender.
    pub from: SocketAddr,
    /// Datagrams back to back.
    pub bytes: Vec<u8>,
    /// Bytes of each but the last.
    pub segment: usize,
    /// Pretend that the kernel cut it off.
    pub truncated: bool,
}

/// Decides what becomes of the `n`th call of one kind: `Some(errno)` fails it.
pub type Fault = Box<dyn FnMut(u64) -> Option<i32> + Send>;

/// The driver.
#[derive(Default)]
pub struct Memory {
    /// TUN reads to come, with their virtio headers.
    pub packets: VecDeque<Vec<u8>>,
    /// Datagrams to come.
    pub arrivals: VecDeque<Arrival>,
    /// Datagrams sent: address and bytes. Only if `keep`.
    pub sent: Vec<(SocketAddr, Vec<u8>)>,
    /// TUN writes. Only if `keep`.
    pub written: Vec<Vec<u8>>,
    /// Keep output; benches count it only.
    pub keep: bool,
    /// Bytes of all output.
    pub output_bytes: u64,
    /// Fault on sends, by number of the run.
    pub send_fault: Option<Fault>,
    /// Fault on TUN writes, by number of the write.
    pub write_fault: Option<Fault>,
    sends: u64,
    writes: u64,
    pool: Vec<Buffer>,
}

impl Memory {
    /// An idle driver that keeps its output.
    #[must_use]
    pub fn new() -> Self {
        Self { keep: true, ..Self::default() }
    }

    fn buffer(&mut self, bytes: &[u8]) -> Buffer {
        let mut b = self.pool.pop().unwrap_or_else(|| Buffer::new(0));
        b.bytes[..bytes.len()].copy_from_slice(bytes);
        b
    }
}

impl Driver for Memory {
    fn receive(&mut self, turn: &mut Turn, want: Want) -> io::Result<()> {
        turn.writable = want.writable;
        let mut bytes = 0;
        while want.packets && turn.packets.len() < TURN_PACKETS && bytes < TURN_BYTES {
            let Some(p) = self.packets.pop_front() else { break };
            bytes += p.len();
            let buffer = self.buffer(&p);
            turn.packets.push(Packet { buffer, len: p.len() });
        }
        bytes = 0;
        while turn.datagrams.len() < TURN_DATAGRAMS && bytes < TURN_BYTES {
            let Some(a) = self.arrivals.pop_front() else { break };
            bytes += a.bytes.len();
            let buffer = self.buffer(&a.bytes);
            let (len, segment) = (a.bytes.len(), a.segment);
            turn.datagrams.push(Datagrams { buffer, offset: 0, len, segment, from: a.from, truncated: a.truncated });
        }
        Ok(())
    }

    fn recycle(&mut self, turn: &mut Turn) {
        self.pool.extend(turn.packets.drain(..).map(|p| p.buffer));
        self.pool.extend(turn.datagrams.drain(..).map(|d| d.buffer));
    }

    fn send(&mut self, bytes: &[u8], runs: &[Run], outcomes: &mut Outcomes) -> io::Result<()> {
        outcomes.clear();
        for run in runs {
            let blocked = outcomes.last() == Some(&Err(libc::EAGAIN));
            let fault = if blocked { Some(libc::EAGAIN) } else { self.send_fault.as_mut().and_then(|f| f(self.sends)) };
            self.sends += 1;
            if let Some(errno) = fault {
                outcomes.push(Err(errno));
                continue;
            }
            let data = &bytes[run.offset as usize..][..run.len as usize];
            self.output_bytes += data.len() as u64;
            if self.keep {
                self.sent.extend(data.chunks(run.segment as usize).map(|d| (run.to, d.to_vec())));
            }
            outcomes.push(Ok(()));
        }
        Ok(())
    }

    fn write(&mut self, turn: &Turn, pieces: &[Piece], writes: &[Write], outcomes: &mut Outcomes) -> io::Result<()> {
        outcomes.clear();
        for w in writes {
            let fault = self.write_fault.as_mut().and_then(|f| f(self.writes));
            self.writes += 1;
            if let Some(errno) = fault {
                outcomes.push(Err(errno));
                continue;
            }
            let pieces = &pieces[w.first as usize..][..w.count as usize];
            self.output_bytes += pieces.iter().map(|p| u64::from(p.len)).sum::<u64>();
            if self.keep {
                let slice =
                    |p: &Piece| &turn.datagrams[p.datagrams as usize].bytes()[p.offset as usize..][..p.len as usize];
                self.written.push(pieces.iter().flat_map(slice).copied().collect());
            }
            outcomes.push(Ok(()));
        }
        Ok(())
    }

    fn write_one(&mut self, packet: &[u8]) -> io::Result<Result<(), i32>> {
        if self.keep {
            self.written.push(packet.to_vec());
        }
        Ok(Ok(()))
    }

    fn replace_udp(&mut self, _: Arc<udp::Socket>) -> io::Result<()> {
        Ok(())
    }
}
