//! UDP sockets: one port, one socket a shard (`SO_REUSEPORT`), both address families on each.

use super::msg::Name;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// Send buffer asked for in bytes. It bounds what waits in the kernel below us (queue discipline and device
/// ring), so it is time: 4 MiB is 3 ms at 10 Gbit/s. Sockets over veth never fill it.
pub const SEND_BUFFER: usize = 4 << 20;
/// Receive buffer asked for in bytes; the kernel grants twice that, counted in memory that the queued packets
/// take. Under load the buffer is full, so it is time: on two cores at 6.7 Gbit/s a ping beside a TCP flow took
/// (p99) 5.1 ms with 4 MiB, 4.8 with 2 MiB, 3.3 with 1 MiB, 1.9 with 512 KiB and 1.1 with 256 KiB; only the
/// last cost throughput (10 %). 1 MiB leaves room for a time slice off the core at that rate.
pub const RECEIVE_BUFFER: usize = 1 << 20;

/// A bound UDP socket. It blocks, as io_uring needs it; every other call here passes `MSG_DONTWAIT`.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    v6: bool,
    /// `UDP_GRO` is on.
    pub gro: bool,
}

/// How sockets are opened.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Port; 0: the kernel chooses.
    pub port: u16,
    /// `SO_MARK`; 0: none.
    pub fwmark: u32,
    /// Receive runs of datagrams.
    pub gro: bool,
    /// Receive buffer in bytes.
    pub receive_buffer: usize,
}

impl Socket {
    /// Opens `count` sockets on one port.
    ///
    /// # Errors
    /// `EADDRINUSE` if another process has the port; `EPERM` for a mark without `CAP_NET_ADMIN`.
    pub fn open(count: usize, options: Options) -> io::Result<Vec<Arc<Self>>> {
        let mut o = options;
        let mut sockets = Vec::with_capacity(count);
        for i in 0..count {
            let s = Self::open_one(o)?;
            if i == 0 {
                o.port = s.port()?;
            }
            sockets.push(Arc::new(s));
        }
        Ok(sockets)
    }

    fn open_one(o: Options) -> io::Result<Self> {
        match Self::bind(o, true) {
            // No IPv6 in this kernel, or switched off.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
                Self::bind(o, false)
            }
            r => r,
        }
    }

    fn bind(o: Options, v6: bool) -> io::Result<Self> {
        let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
        // SAFETY: no pointers; a non-negative result is a descriptor that nobody else owns.
        let fd = unsafe {
            let fd = libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        let mut s = Self { fd, v6, gro: false };
        if v6 {
            s.set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0)?;
        }
        s.set(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        s.set_buffer(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, o.receive_buffer);
        s.set_buffer(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BUFFER);
        if o.fwmark != 0 {
            s.set_mark(o.fwmark)?;
        }
        if o.gro {
            s.gro = s.set(libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
        }
        let any: SocketAddr = if v6 { ([0u16; 8], o.port).into() } else { ([0u8; 4], o.port).into() };
        let (name, len) = Name::new(any, v6);
        // SAFETY: `name` holds an address of `len` bytes.
        if unsafe { libc::bind(s.as_raw_fd(), (&raw const name).cast(), len) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(s)
    }

    fn set(&self, level: i32, option: i32, value: i32) -> io::Result<()> {
        // SAFETY: `value` is an int, as these options take it.
        let r = unsafe {
            libc::setsockopt(self.as_raw_fd(), level, option, (&raw const value).cast(), size_of::<i32>() as _)
        };
        if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn get(&self, level: i32, option: i32) -> io::Result<i32> {
        let (mut value, mut len) = (0i32, size_of::<i32>() as libc::socklen_t);
        // SAFETY: `value` is an int, as these options give it.
        let r = unsafe { libc::getsockopt(self.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut len) };
        if r < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
    }

    /// Past the system limit if we may, up to it if we may not.
    fn set_buffer(&self, force: i32, plain: i32, bytes: usize) {
        let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
        if self.set(libc::SOL_SOCKET, force, bytes).is_err() {
            // The kernel clamps this to the system limit and does not fail.
            let _ = self.set(libc::SOL_SOCKET, plain, bytes);
        }
    }

    /// Sets `SO_MARK`; 0: none.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_ADMIN`.
    pub fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_MARK, mark.cast_signed())
    }

    /// Takes away kernel programs, its own and its group's.
    pub fn detach_programs(&self) {
        // Fails if there are none.
        let _ = self.set(libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0);
        let _ = self.set(libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF, 0);
    }

    /// Receive and send buffer as granted, in bytes.
    #[must_use]
    pub fn buffers(&self) -> (usize, usize) {
        // The kernel reports twice what was asked for: it counts its own overhead.
        let get = |o| self.get(libc::SOL_SOCKET, o).map_or(0, |v| v as usize / 2);
        (get(libc::SO_RCVBUF), get(libc::SO_SNDBUF))
    }

    /// Whether it is an IPv6 socket, on which IPv4 addresses are mapped.
    #[must_use]
    pub const fn is_v6(&self) -> bool {
        self.v6
    }

    /// The bound port.
    ///
    /// # Errors
    /// None that a bound socket gives.
    pub fn port(&self) -> io::Result<u16> {
        let (mut name, mut len) = (Name::empty(), super::msg::NAME_LEN as libc::socklen_t);
        // SAFETY: `name` has room for `len` bytes.
        if unsafe { libc::getsockname(self.as_raw_fd(), (&raw mut name).cast(), &raw mut len) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Name::from_bytes(name.as_bytes())
            .map(|a| a.port())
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
    }

    /// Sends one datagram now or not at all: for the slow path, never for data.
    ///
    /// # Errors
    /// What `sendto(2)` says.
    pub fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
        let (name, len) = Name::new(to, self.v6);
        // SAFETY: both pointers are to live memory of the given lengths.
        let r = unsafe {
            libc::sendto(
                self.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                libc::MSG_DONTWAIT,
                (&raw const name).cast(),
                len,
            )
        };
        if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_one_engine_share_a_port_and_a_stranger_is_kept_out() {
        let o = Options { port: 0, fwmark: 0, gro: true, receive_buffer: RECEIVE_BUFFER };
        let s = Socket::open(3, o).expect("sockets");
        let port = s[0].port().expect("port");
        assert!(port != 0 && s.iter().all(|s| s.port().is_ok_and(|p| p == port)));
        assert_eq!(
            std::net::UdpSocket::bind(("0.0.0.0", port)).map_err(|e| e.kind()).err(),
            Some(io::ErrorKind::AddrInUse)
        );
    }
}
