//! A UDP relay between two daemons: sees their datagrams, and can lose, double and reorder them.
//!
//! To the one side it is the other's endpoint, as a NAT would be: datagrams from the client leave by a second socket.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::ns::Namespace;
use crate::traffic::{Noise, socket};

/// Datagrams kept in [`Relay::seen`].
const KEEP: usize = 64;

/// What the relay does to datagrams, each as 1 in N; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Lost.
    pub lose: u64,
    /// Sent twice.
    pub double: u64,
    /// Held back until the next one has passed.
    pub reorder: u64,
}

/// A running relay; ends when dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    stop: AtomicBool,
    client: Mutex<Option<SocketAddr>>,
    seen: Mutex<Vec<Vec<u8>>>,
    passed: AtomicU64,
}

impl Relay {
    /// Listens at `listen` in `ns` and passes on to `target`; answers go back to whoever sent last.
    ///
    /// # Errors
    /// When a socket cannot be bound.
    pub fn start(ns: &Namespace, listen: SocketAddr, target: SocketAddr, faults: Faults) -> Result<Self> {
        let near = socket(ns, listen)?;
        let far = socket(ns, SocketAddr::new(listen.ip(), 0))?;
        let address = near.local_addr()?;
        let state = Arc::new(State::default());
        let mut threads = Vec::new();
        for (from, to, outward) in [(&near, &far, true), (&far, &near, false)] {
            let (from, to, state) = (from.try_clone()?, to.try_clone()?, Arc::clone(&state));
            from.set_read_timeout(Some(Duration::from_millis(50)))?;
            threads.push(std::thread::spawn(move || pass(&from, &to, outward, target, &state, faults)));
        }
        Ok(Self { address, state, threads })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Datagrams passed in both directions.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.state.passed.load(Relaxed)
    }

    /// The last datagrams that went from the client to the target.
    ///
    /// # Errors
    /// When a relay thread has died.
    pub fn seen(&self) -> Result<Vec<Vec<u8>>> {
        self.state.seen.lock().map(|s| s.clone()).map_err(|_| anyhow::anyhow!("the relay died"))
    }

    /// The receiver index of the last data message to the target.
    ///
    /// # Errors
    /// When none has passed.
    pub fn receiver_index(&self) -> Result<u32> {
        let seen = self.seen()?;
        let data =
            seen.iter().rev().find(|d| d.len() >= 32 && d[0] == 4).context("no data message passed the relay")?;
        Ok(u32::from_le_bytes(data[4..8].try_into()?))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.stop.store(true, Relaxed);
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

fn pass(from: &UdpSocket, to: &UdpSocket, outward: bool, target: SocketAddr, state: &State, faults: Faults) {
    let mut buffer = vec![0; 65_536];
    let mut noise = Noise::new(u64::from(outward) + 1);
    let mut held: Option<Vec<u8>> = None;
    while !state.stop.load(Relaxed) {
        let Ok((n, sender)) = from.recv_from(&mut buffer) else { continue };
        let datagram = &buffer[..n];
        let Some(destination) = destination(state, outward, sender, target, datagram) else { continue };
        state.passed.fetch_add(1, Relaxed);
        let mut hit = |one_in: u64| one_in != 0 && noise.below(one_in) == 0;
        if hit(faults.lose) {
            continue;
        }
        if hit(faults.reorder) && held.is_none() {
            held = Some(datagram.to_vec());
            continue;
        }
        let copies = if hit(faults.double) { 2 } else { 1 };
        for _ in 0..copies {
            // A full buffer is one more loss.
            let _ = to.send_to(datagram, destination);
        }
        if let Some(late) = held.take() {
            let _ = to.send_to(&late, destination);
        }
    }
}

fn destination(
    state: &State,
    outward: bool,
    sender: SocketAddr,
    target: SocketAddr,
    datagram: &[u8],
) -> Option<SocketAddr> {
    let mut client = state.client.lock().ok()?;
    if !outward {
        return *client;
    }
    *client = Some(sender);
    let mut seen = state.seen.lock().ok()?;
    if seen.len() == KEEP {
        seen.remove(0);
    }
    seen.push(datagram.to_vec());
    Some(target)
}
