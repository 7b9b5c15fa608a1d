//! The data plane's UDP port as ICE sees it, and what comes in there for ICE and for links.

use super::event::{Event, NetworkId};
use crate::ice::{IceNode, Port};
use crossbeam::channel::{RecvTimeoutError, select};
use dataplane::{Engine, Path};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::mpsc;

/// How often the thread that waits for the data plane looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(500);

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
            while !ended.load(Relaxed) {
                let carried = select! {
                    recv(side) -> d => d.map(|d| ice.receive(&d)).map_err(|_| RecvTimeoutError::Disconnected),
                    recv(wanted) -> key => match key {
                        Ok(key) if events.blocking_send(Event::Wanted(id, key)).is_ok() => Ok(()),
                        _ => Err(RecvTimeoutError::Disconnected),
                    },
                    default(LOOK) => Ok(()),
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
