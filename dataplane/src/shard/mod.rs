//! One loop: TUN -> split -> seal -> UDP, and UDP -> open -> coalesce -> TUN.
//!
//! Everything that a packet needs is here or read once a batch; in the steady state nothing is allocated.

mod inbound;
mod multicast;
mod outbound;
mod pace;
mod refuse;
mod routing;
mod staging;

use crate::Time;
use crate::io::{Driver, Turn, Want};
use crate::packet::Coalescer;
use crate::shared::{Shared, ToShard};
use crate::stats::Counters;
use crossbeam::channel::Receiver;
use inbound::Inbox;
use multicast::Multicast;
use outbound::Outbox;
use pace::Pace;
use refuse::Refusals;
use staging::Staging;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// What a TUN queue of this shard takes and gives.
#[derive(Clone, Copy, Debug)]
pub struct TunFormat {
    /// Reads and writes carry a virtio header.
    pub vnet: bool,
    /// Takes TCP super-packets.
    pub tso: bool,
    /// Takes UDP super-packets.
    pub uso: bool,
}

/// A shard without its thread.
pub struct Shard<D> {
    number: usize,
    driver: D,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    commands: Receiver<ToShard>,
    tun: TunFormat,
    turn: Turn,
    outbox: Outbox,
    inbox: Inbox,
    staging: Staging,
    pace: Pace,
    refusals: Refusals,
    multicast: Multicast,
}

/// Whether the loop goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Call [`Shard::turn`] again.
    Go,
    /// Told to stop.
    Stop,
}

impl<D: Driver> Shard<D> {
    /// A shard that counts into `shared.counters[number]`.
    #[must_use]
    pub fn new(number: usize, driver: D, shared: Arc<Shared>, commands: Receiver<ToShard>, tun: TunFormat) -> Self {
        let counters = shared.counters[number].clone();
        let mut coalescer = Coalescer::new(inbound::BATCH, tun.uso);
        coalescer.set_enabled(tun.vnet && tun.tso && shared.tun_gso.load(Relaxed));
        Self {
            number,
            driver,
            counters,
            commands,
            tun,
            turn: Turn::new(),
            outbox: Outbox::new(&shared),
            inbox: Inbox::new(coalescer, &shared),
            staging: Staging::default(),
            pace: Pace::default(),
            refusals: Refusals::default(),
            multicast: Multicast::default(),
            shared,
        }
    }

    /// Waits for input (at most `timeout`) and deals with all of it. `clock` is read once, after the wait.
    ///
    /// # Errors
    /// What ends the shard: the device is gone, or the driver broke.
    pub fn turn(&mut self, timeout: Option<Duration>, clock: impl FnOnce() -> Time) -> io::Result<Next> {
        let blocked = self.outbox.is_blocked();
        let timeout = match (blocked, self.staging.is_empty()) {
            (true, _) => Some(outbound::BLOCKED_LIMIT),
            (false, false) => Some(timeout.map_or(staging::LOOK, |t| t.min(staging::LOOK))),
            (false, true) => timeout,
        };
        let want = Want { packets: !blocked, writable: blocked, timeout, gather: self.pace.is_fast() && !blocked };
        self.driver.receive(&mut self.turn, want)?;
        let now = clock();
        self.pace.note(now, self.turn.packets.len() + self.turn.datagrams.len());
        if blocked {
            self.retry(now)?;
            self.resume_staged(now)?;
        }
        if !self.turn.datagrams.is_empty() {
            self.inbound(now)?;
        }
        if !self.turn.packets.is_empty() || self.outbox.has_deferred() {
            self.outbound(now)?;
        }
        self.turn.woken = false;
        self.turn.writable = false;
        self.driver.recycle(&mut self.turn);
        self.look_over_staged(now)?;
        self.commands(now)
    }

    fn commands(&mut self, now: Time) -> io::Result<Next> {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                ToShard::Flush(peer) => self.flush_staged(&peer, now)?,
                ToShard::Discard(peer) => self.discard_staged(&peer),
                ToShard::Socket(socket) => {
                    self.drop_blocked();
                    self.driver.replace_udp(socket)?;
                    self.resume_staged(now)?;
                }
                ToShard::Stop => {
                    self.staging.discard_all(&self.counters);
                    self.drop_blocked();
                    return Ok(Next::Stop);
                }
            }
        }
        Ok(Next::Go)
    }

    /// The driver, for tests and benches.
    pub fn driver(&mut self) -> &mut D {
        &mut self.driver
    }
}
