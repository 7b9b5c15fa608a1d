//! Watches our network interface by rtnetlink: MTU, up and down, deletion.
//!
//! Three fields of one message are needed, so the message is read here (include/uapi/linux/rtnetlink.h,
//! if_link.h) instead of by a netlink library.

use crate::Error;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, bind, netdevice, netlink, send, socket_with};
use std::io::ErrorKind;
use tokio::net::unix::pipe;

/// Protocol 0 of the family.
const NETLINK_ROUTE: Option<rustix::net::Protocol> = None;
const RTMGRP_LINK: u32 = 1;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFLA_NEW_NETNSID: u16 = 45;
const IFF_UP: u32 = 1;
const HEADER: usize = 16;
const LINK_HEADER: usize = 16;
/// The kernel sends no message of this group larger than a page or two, even with many virtual functions.
const BUFFER: usize = 32 << 10;

/// What happened to the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Its state now.
    Link {
        /// `IFF_UP`.
        up: bool,
        /// MTU in bytes.
        mtu: Option<u16>,
    },
    /// It was deleted.
    Deleted,
    /// It was moved to another network namespace, where this socket does not see it. Packets go on.
    Moved,
}

/// A subscription to one interface.
#[derive(Debug)]
pub struct LinkWatch {
    /// Netlink sockets understand `read`, and so this type serves for any descriptor that can be waited for.
    socket: pipe::Receiver,
    index: u32,
}

impl LinkWatch {
    /// Subscribes to interface `name` and asks for its present state. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Io`]: netlink is refused or there is no such interface.
    pub fn new(name: &str) -> Result<Self, Error> {
        let failed = |e: Errno| Error::io(format!("watch interface {name}"), e);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, NETLINK_ROUTE).map_err(failed)?;
        bind(&socket, &netlink::SocketAddrNetlink::new(0, RTMGRP_LINK)).map_err(failed)?;
        let index = netdevice::name_to_index(&socket, name).map_err(failed)?;
        let socket = pipe::Receiver::from_owned_fd_unchecked(socket)
            .map_err(|e| Error::io(format!("watch interface {name}"), e))?;
        let watch = Self { socket, index };
        watch.ask().map_err(failed)?;
        Ok(watch)
    }

    /// Asks for the present state; the answer comes as an event.
    fn ask(&self) -> Result<(), Errno> {
        let request = request(self.index);
        send(&self.socket, &request, SendFlags::empty()).map(|_| ())
    }

    /// Waits for the next events and hands them to `each`.
    ///
    /// # Errors
    /// [`Error::Io`]: the socket is broken.
    pub async fn next(&self, mut each: impl FnMut(Event)) -> Result<(), Error> {
        let failed = |e| Error::io("read link changes", e);
        let mut buffer = vec![0; BUFFER];
        self.socket.readable().await.map_err(failed)?;
        match self.socket.try_read(&mut buffer) {
            Ok(n) => events(&buffer[..n], self.index).for_each(&mut each),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // Changes were lost: ask for the outcome.
            Err(e) if Errno::from_io_error(&e) == Some(Errno::NOBUFS) => self.ask().map_err(|e| failed(e.into()))?,
            Err(e) => return Err(failed(e)),
        }
        Ok(())
    }
}

fn request(index: u32) -> [u8; HEADER + LINK_HEADER] {
    let mut m = [0; HEADER + LINK_HEADER];
    let len = u32::try_from(m.len()).unwrap_or(0);
    m[..4].copy_from_slice(&len.to_ne_bytes());
    m[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    m[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    m[HEADER + 4..HEADER + 8].copy_from_slice(&index.to_ne_bytes());
    m
}

/// The events of interface `index` in one datagram. Malformed input ends the iteration.
pub fn events(mut datagram: &[u8], index: u32) -> impl Iterator<Item = Event> {
    std::iter::from_fn(move || {
        loop {
            let len = usize::try_from(u32_at(datagram, 0)?).ok()?;
            let message = datagram.get(..len).filter(|m| m.len() >= HEADER)?;
            datagram = datagram.get(align(len)..).unwrap_or_default();
            if let Some(event) = event(message, index) {
                return Some(event);
            }
        }
    })
}

fn event(message: &[u8], index: u32) -> Option<Event> {
    let kind = u16_at(message, 4)?;
    let link = message.get(HEADER..)?;
    if !matches!(kind, RTM_NEWLINK | RTM_DELLINK) || u32_at(link, 4)? != index {
        return None;
    }
    let attributes = link.get(LINK_HEADER..)?;
    if kind == RTM_DELLINK {
        // dev_change_net_namespace() (net/core/dev.c) says "deleted" to the namespace that is left.
        let moved = attribute(attributes, IFLA_NEW_NETNSID).is_some();
        return Some(if moved { Event::Moved } else { Event::Deleted });
    }
    let mtu = attribute(attributes, IFLA_MTU).and_then(|v| u32_at(v, 0));
    let mtu = mtu.map(|m| u16::try_from(m).unwrap_or(u16::MAX));
    Some(Event::Link { up: u32_at(link, 8)? & IFF_UP != 0, mtu })
}

fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16_at(attributes, 0)?);
        let kind = u16_at(attributes, 2)?;
        let value = attributes.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(align(len)..)?;
    }
}

const fn align(len: usize) -> usize {
    len.saturating_add(3) & !3
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    b.get(at..)?.first_chunk().map(|c| u16::from_ne_bytes(*c))
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    b.get(at..)?.first_chunk().map(|c| u32::from_ne_bytes(*c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u16, index: u32, flags: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut m = request(index).to_vec();
        m[4..6].copy_from_slice(&kind.to_ne_bytes());
        m[HEADER + 8..HEADER + 12].copy_from_slice(&flags.to_ne_bytes());
        for (kind, value) in attributes {
            m.extend_from_slice(&u16::try_from(4 + value.len()).expect("short").to_ne_bytes());
            m.extend_from_slice(&kind.to_ne_bytes());
            m.extend_from_slice(value);
            m.resize(align(m.len()), 0);
        }
        let len = u32::try_from(m.len()).expect("short");
        m[..4].copy_from_slice(&len.to_ne_bytes());
        m
    }

    #[test]
    fn only_our_interface_counts() {
        let mtu = 1300u32.to_ne_bytes();
        let datagram = [
            message(RTM_NEWLINK, 9, IFF_UP, &[(IFLA_MTU, &mtu)]),
            message(RTM_NEWLINK, 7, IFF_UP, &[(3, b"wg0\0x"), (IFLA_MTU, &mtu)]),
            message(RTM_NEWLINK, 7, 0, &[]),
            message(RTM_DELLINK, 8, 0, &[]),
            message(RTM_DELLINK, 7, 0, &[(3, b"wg0\0")]),
            message(RTM_DELLINK, 7, 0, &[(IFLA_NEW_NETNSID, &[0; 4])]),
        ]
        .concat();
        let got: Vec<_> = events(&datagram, 7).collect();
        let up = Event::Link { up: true, mtu: Some(1300) };
        assert_eq!(got, [up, Event::Link { up: false, mtu: None }, Event::Deleted, Event::Moved]);
    }

    #[test]
    fn the_loopback_interface_reports_its_state() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let mut seen = None;
        runtime.block_on(async {
            let watch = LinkWatch::new("lo").expect("lo");
            while seen.is_none() {
                let next = watch.next(|e| seen = Some(e));
                tokio::time::timeout(std::time::Duration::from_secs(10), next).await.expect("in time").expect("read");
            }
        });
        assert!(matches!(seen, Some(Event::Link { mtu: Some(1..), .. })), "{seen:?}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), len in 0u32..80) {
            let _ = events(&bytes, 7).count();
            let mut m = message(RTM_NEWLINK, 7, 0, &[]);
            m.extend_from_slice(&bytes);
            m[..4].copy_from_slice(&len.to_ne_bytes());
            let _ = events(&m, 7).count();
        }
    }
}
