//! The data plane's UDP port as ICE sees it, and what comes in there for ICE and for links.

use super::event::{Event, NetworkId};
use crate::ice::{IceNode, Port};
use crossbeam::channel::select;
use dataplane::tunnel::PublicKey;
use dataplane::{Engine, Path};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// How often the thread that waits for the data plane looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(500);
/// How often a busy node is told again of what is wanted.
const AGAIN: Duration = Duration::from_millis(20);

/// The port of an engine.
pub(super) struct EnginePort {
    pub(super) engine: Engine,
    pub(super) port: u16,
}

impl Port for EnginePort {
    fn send(&self, path: Path, bytes: &[u8]) -> io::Result<()> {
        self.engine.send_raw(path, bytes)
    }

    fn local_port(&self) -> u16 {
        self.port
    }

    fn set_relays(&self, servers: Vec<SocketAddr>) {
        self.engine.set_relays(servers);
    }
}

/// Carries what the data plane has for us: STUN to ICE, peers that need a path to the node. Ends when dropped.
pub(super) struct Ferry(Arc<AtomicBool>);

impl Ferry {
    /// Starts its thread: the data plane's queues are not asynchronous.
    ///
    /// # Errors
    /// No thread.
    pub(super) fn start(id: NetworkId, engine: &Engine, ice: IceNode, events: mpsc::Sender<Event>) -> io::Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let (side, wanted, ended) = (engine.side_datagrams(), engine.wanted(), over.clone());
        std::thread::Builder::new().name(format!("ferry-{id}")).spawn(move || {
            // Demands for which the node has no ear just now. STUN does not wait for that. Each peer is in it once, as
            // the data plane asks once.
            let mut waiting: Vec<PublicKey> = Vec::new();
            while !ended.load(Relaxed) {
                waiting.retain(|key| matches!(events.try_send(Event::Wanted(id, *key)), Err(TrySendError::Full(_))));
                let pause = if waiting.is_empty() { LOOK } else { AGAIN };
                let carried = select! {
                    recv(side) -> d => d.map(|d| ice.receive(&d)),
                    recv(wanted) -> key => key.map(|key| waiting.push(key)),
                    default(pause) => Ok(()),
                };
                if carried.is_err() {
                    return;
                }
            }
        })?;
        Ok(Self(over))
    }
}

impl Drop for Ferry {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
