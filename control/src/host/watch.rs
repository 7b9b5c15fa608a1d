//! Notices when the underlay changes: an address, or where the default routes lead.
//!
//! The kernel's notices only say that it is time to look; what counts is whether what is found differs from before.
//! So nothing is lost when the socket overruns, and our own overlay routes are no news.

use super::{Host, dump};
use crate::Error;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, netlink, socket_with};
use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::sync::mpsc::{self, Receiver, Sender};

/// RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE
/// (include/uapi/linux/rtnetlink.h).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/// A network comes in pieces (link, address, default route, a second address): wait until it is quiet for so long,
const QUIET: Duration = Duration::from_millis(150);
/// but look after this time in any case.
const MOST: Duration = Duration::from_millis(1000);
/// Notices are thrown away in pieces of this size.
const BUFFER: usize = 32 << 10;

#[derive(PartialEq)]
struct Underlay {
    addresses: Vec<IpAddr>,
    defaults: Vec<dump::Route>,
}

impl Host {
    /// Tells when [`Self::underlay_addresses`] or a default route changed, a moment after the last change. Interfaces
    /// in `exclude` (our overlays) do not count. Notices that were not fetched are one. Ends with the receiver.
    ///
    /// # Errors
    /// [`Error::Io`]: the kernel refuses.
    pub async fn watch(&self, exclude: Vec<String>) -> Result<Receiver<()>, Error> {
        let failed = |e: Errno| Error::io("watch addresses and routes", e);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None).map_err(failed)?;
        bind(&socket, &netlink::SocketAddrNetlink::new(0, GROUPS)).map_err(failed)?;
        // Netlink sockets understand `read`, and so this type serves for any descriptor that can be waited for.
        let socket =
            pipe::Receiver::from_owned_fd_unchecked(socket).map_err(|e| Error::io("watch addresses and routes", e))?;
        let known = self.underlay(&exclude).await?;
        let (tell, hear) = mpsc::channel(1);
        tokio::spawn(follow(self.clone(), socket, exclude, known, tell));
        Ok(hear)
    }

    async fn underlay(&self, exclude: &[String]) -> Result<Underlay, Error> {
        let links = super::outside(dump::links(self).await?, exclude);
        let mut defaults = Vec::new();
        for v4 in [true, false] {
            defaults.extend(dump::routes(self, v4).await?.into_iter().filter(|r| r.prefix.is_empty()));
        }
        defaults.retain(|r| r.index.is_none_or(|i| links.iter().any(|l| l.index == i)));
        defaults.sort();
        Ok(Underlay { addresses: self.underlay_addresses(exclude).await?, defaults })
    }
}

async fn follow(host: Host, socket: pipe::Receiver, exclude: Vec<String>, mut known: Underlay, tell: Sender<()>) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let noticed = tokio::select! {
            noticed = notice(&socket, &mut buffer) => noticed,
            () = tell.closed() => return,
        };
        if let Err(e) = noticed {
            tracing::warn!("changes of this machine's network are no longer noticed: {e}");
            return;
        }
        settle(&socket, &mut buffer).await;
        match host.underlay(&exclude).await {
            Ok(now) if now == known => {}
            Ok(now) => {
                tracing::info!("this machine's network changed: addresses {:?}", now.addresses);
                known = now;
                // Full: the receiver has not looked at the last notice yet, and will see this change with it.
                let _ = tell.try_send(());
            }
            Err(e) => tracing::warn!("after a change of this machine's network: {e}"),
        }
    }
}

/// Waits until nothing has come for a while.
async fn settle(socket: &pipe::Receiver, buffer: &mut [u8]) {
    let end = tokio::time::Instant::now() + MOST;
    loop {
        let until = end.min(tokio::time::Instant::now() + QUIET);
        match tokio::time::timeout_at(until, notice(socket, buffer)).await {
            Ok(Ok(())) if tokio::time::Instant::now() < end => {}
            _ => return,
        }
    }
}

async fn notice(socket: &pipe::Receiver, buffer: &mut [u8]) -> std::io::Result<()> {
    loop {
        socket.readable().await?;
        match socket.try_read(buffer) {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // Notices were lost: as good as one.
            Err(e) if Errno::from_io_error(&e) == Some(Errno::NOBUFS) => return Ok(()),
            Err(e) => return Err(e),
            Ok(_) => return Ok(()),
        }
    }
}
