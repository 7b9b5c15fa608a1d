//! The life of one interface: start, serve, end.

use crate::Error;
use crate::link_watch::{Event, LinkWatch};
use crate::uapi::server::{self, Served};
use crate::uapi::socket::{self, SocketFile};
use dataplane::{Capabilities, Closed, Config, Engine, Tun};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// How often the thread that waits for the engine looks whether it is still wanted.
const CLOSED_POLL: Duration = Duration::from_millis(500);

/// A TUN device and its configuration socket.
#[derive(Debug)]
pub struct Interface {
    /// The device.
    pub tun: Tun,
    /// The socket, listening.
    pub listener: UnixListener,
}

/// Where `interface`'s socket is in the file system: its own address, else by the rule, for a socket that was
/// bound elsewhere and handed over.
#[must_use]
pub fn socket_path(interface: &Interface) -> PathBuf {
    let bound = interface.listener.local_addr().ok().and_then(|a| a.as_pathname().map(Path::to_owned));
    let name = interface.tun.name();
    bound.map_or_else(|| socket::path(Path::new(socket::DIRECTORY), name), |b| socket::named(&b, name))
}

/// Carries packets until SIGTERM or SIGINT, until the interface or the socket file is deleted, or until the
/// engine fails. Calls `started` once packets can flow and `wg` is answered.
///
/// # Errors
/// If it did not start, or the engine failed.
pub fn run(interface: Interface, config: Config, started: impl FnOnce()) -> Result<(), Error> {
    let name = interface.tun.name().to_owned();
    let file = SocketFile::new(socket_path(&interface));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("start the control thread", e))?;
    // Before the engine, which takes its time to start: who is asked to end meanwhile leaves no socket behind either.
    let signals = runtime.block_on(async { Signals::new() }).map_err(|e| Error::io("handle signals", e))?;
    let engine = Engine::start(interface.tun, config).map_err(Error::Engine)?;
    let result = runtime.block_on(serve(&name, interface.listener, signals, (&file, &engine), started));
    // The socket goes first: nobody shall find one that is not served.
    drop(file);
    engine.shutdown();
    runtime.shutdown_background();
    let why = result?;
    tracing::info!("{name}: ends because {why}");
    Ok(())
}

/// The signals that mean something to a daemon.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// From now on they are kept until somebody asks.
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

async fn serve(
    name: &str,
    listener: UnixListener,
    signals: Signals,
    (file, engine): (&SocketFile, &Engine),
    started: impl FnOnce(),
) -> Result<&'static str, Error> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |e| Error::io(what, e)
    };
    let Signals { mut terminate, mut interrupt, mut hangup } = signals;
    listener.set_nonblocking(true).map_err(failed("listen on the configuration socket"))?;
    let listener =
        tokio::net::UnixListener::from_std(listener).map_err(failed("listen on the configuration socket"))?;
    let links = LinkWatch::new(name)?;
    let mut closed = closed(engine.clone()).map_err(failed("start a thread"))?;
    let uapi = server::serve(listener, Served { name: name.into(), engine: engine.clone() });
    let links = follow(name, links, engine);
    let gone = file.gone();
    tokio::pin!(uapi, links, gone);
    tracing::info!("{name}: {}", describe(&engine.capabilities()));
    if engine.capabilities().aes && !dataplane::crypto::has_aes() {
        tracing::warn!("{name}: this CPU has no AES instructions: without --cipher aes256gcm it would be faster");
    }
    started();
    loop {
        return tokio::select! {
            () = &mut uapi => Ok("the configuration socket failed"),
            () = &mut links => Ok("the interface was deleted"),
            () = &mut gone => Ok("its socket was deleted"),
            _ = terminate.recv() => Ok("SIGTERM came"),
            _ = interrupt.recv() => Ok("SIGINT came"),
            _ = hangup.recv() => {
                tracing::info!("{name}: SIGHUP is ignored: use wg syncconf to change the configuration");
                continue;
            }
            why = &mut closed => match why {
                Ok(Closed::Failed(e)) => Err(Error::EngineFailed(e)),
                Ok(Closed::DeviceGone) => Ok("the interface was deleted"),
                Ok(Closed::Shutdown) | Err(_) => Ok("the data plane was shut down"),
            },
        };
    }
}

/// Tells the engine about its interface; returns when that is deleted.
pub(crate) async fn follow(name: &str, links: LinkWatch, engine: &Engine) {
    loop {
        let mut ended = None;
        let read = links
            .next(|event| match event {
                Event::Link { up, mtu } => {
                    tracing::debug!("{name}: up {up}, mtu {mtu:?}");
                    if let Some(mtu) = mtu {
                        engine.set_mtu(mtu);
                    }
                    engine.set_link_up(up);
                }
                Event::Deleted | Event::Moved => ended = Some(event),
            })
            .await;
        match (read, ended) {
            (_, Some(Event::Deleted)) => return,
            (Ok(()), None) => continue,
            (Err(e), _) => tracing::warn!("{name}: {e}: changes of its MTU are no longer noticed"),
            (Ok(()), Some(_)) => tracing::info!("{name}: moved to another network namespace; it goes on"),
        }
        return std::future::pending().await;
    }
}

/// The reason for which the engine closes, from a thread of its own. Ends soon after the receiver is dropped.
pub(crate) fn closed(engine: Engine) -> std::io::Result<oneshot::Receiver<Closed>> {
    let (tell, hear) = oneshot::channel();
    std::thread::Builder::new().name("engine-wait".into()).spawn(move || {
        while !tell.is_closed() {
            if let Some(why) = engine.wait_closed(CLOSED_POLL) {
                // Nobody waits any more: then nobody needs to know.
                let _ = tell.send(why);
                return;
            }
        }
    })?;
    Ok(hear)
}

/// What was chosen, and why not better, in one line.
fn describe(c: &Capabilities) -> String {
    let names = [("tun", c.tun_vnet), ("tso", c.tun_tso), ("uso", c.tun_uso), ("gso", c.udp_gso), ("gro", c.udp_gro)];
    let list = |on: bool| names.iter().filter(|n| n.1 == on).map(|n| n.0).collect::<Vec<_>>().join(" ");
    let note = c.io_note.as_deref().map(|n| format!(" ({n})")).unwrap_or_default();
    let (on, off) = (list(true), list(false));
    let on = if on.is_empty() { "none".to_owned() } else { on };
    let off = if off.is_empty() { String::new() } else { format!(", without {off}") };
    let shards = if c.shards == 1 { "1 shard".to_owned() } else { format!("{} shards", c.shards) };
    let aes = if c.aes { " (AES-256-GCM with peers that take it)" } else { "" };
    let ebpf = c.ebpf_text();
    format!("running on {}{note}, cipher {}{aes}, {shards}, offloads: {on}{off}; kernel programs: {ebpf}", c.io, c.aead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_says_what_was_chosen_and_why() {
        let c = Capabilities {
            io: "mmsg",
            io_note: Some("io_uring is disabled by kernel.io_uring_disabled".to_owned()),
            aead: "aws-lc",
            aes: false,
            shards: 2,
            pinned: false,
            tun_vnet: true,
            tun_tso: true,
            tun_uso: false,
            udp_gso: true,
            udp_gro: true,
            ebpf: false,
            ebpf_note: Some("cannot load kernel programs: not permitted".to_owned()),
            receive_buffer: 1,
            send_buffer: 1,
        };
        assert_eq!(
            describe(&c),
            "running on mmsg (io_uring is disabled by kernel.io_uring_disabled), cipher aws-lc, 2 shards, \
             offloads: tun tso gso gro, without uso; kernel programs: cannot load kernel programs: not permitted"
        );
        let c = Capabilities { aes: true, ..c };
        assert!(describe(&c).contains("cipher aws-lc (AES-256-GCM with peers that take it), 2 shards"));
    }
}
