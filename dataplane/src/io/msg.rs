//! Socket addresses and control messages in the kernel's layout.

use super::Run;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Room for one control message with a `u16` (UDP_SEGMENT) or `int` (UDP_GRO), aligned as `cmsghdr`.
pub(super) const CONTROL_LEN: usize = 24;

/// A control buffer with the alignment of `cmsghdr`.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control(pub(super) [u8; CONTROL_LEN]);

/// A control message `UDP_SEGMENT` with `segment` (linux/udp.h); its length is [`CONTROL_LEN`].
pub(super) fn udp_segment(segment: u16) -> Control {
    let mut c = [0; CONTROL_LEN];
    // struct cmsghdr: size_t len (header and data, unpadded), int level, int type.
    let len = size_of::<libc::cmsghdr>() + 2;
    c[..8].copy_from_slice(&len.to_ne_bytes());
    c[8..12].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
    c[12..16].copy_from_slice(&libc::UDP_SEGMENT.to_ne_bytes());
    c[16..18].copy_from_slice(&segment.to_ne_bytes());
    Control(c)
}

/// The segment size of a `UDP_GRO` control message, if `control` starts with one.
pub(super) fn udp_gro(control: &[u8]) -> Option<usize> {
    let int = |at: usize| Some(i32::from_ne_bytes(*control.get(at..)?.first_chunk()?));
    if int(8)? != libc::SOL_UDP || int(12)? != libc::UDP_GRO {
        return None;
    }
    usize::try_from(int(16)?).ok().filter(|s| *s > 0)
}

/// A socket address of either family, as the kernel reads and writes it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union Name {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

pub(super) const NAME_LEN: usize = size_of::<Name>();

impl Name {
    pub(super) const fn empty() -> Self {
        // SAFETY: all-zero bytes are a valid sockaddr_in6.
        Self { v6: unsafe { std::mem::zeroed() } }
    }

    /// `a` for a socket of family `AF_INET6` (where IPv4 is mapped) or `AF_INET`.
    pub(super) fn new(a: SocketAddr, v6_socket: bool) -> (Self, libc::socklen_t) {
        let mut n = Self::empty();
        match a {
            SocketAddr::V4(a) if !v6_socket => {
                n.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as _,
                    sin_port: a.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: a.ip().to_bits().to_be() },
                    sin_zero: [0; 8],
                };
                (n, size_of::<libc::sockaddr_in>() as _)
            }
            _ => {
                let (ip, scope) = match a {
                    SocketAddr::V4(a) => (a.ip().to_ipv6_mapped(), 0),
                    SocketAddr::V6(a) => (*a.ip(), a.scope_id()),
                };
                n.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as _,
                    sin6_port: a.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: ip.octets() },
                    sin6_scope_id: scope,
                };
                (n, size_of::<libc::sockaddr_in6>() as _)
            }
        }
    }

    /// Reads a name that the kernel wrote; `None` for any family but IP.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<SocketAddr> {
        let family = u16::from_ne_bytes(*bytes.first_chunk()?);
        let port = u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]);
        match i32::from(family) {
            libc::AF_INET => {
                let ip: [u8; 4] = *bytes.get(4..)?.first_chunk()?;
                Some(SocketAddrV4::new(ip.into(), port).into())
            }
            libc::AF_INET6 => {
                let ip: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
                let ip = Ipv6Addr::from(ip);
                if let Some(v4) = ip.to_ipv4_mapped() {
                    return Some(SocketAddrV4::new(v4, port).into());
                }
                let scope = u32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
                Some(SocketAddrV6::new(ip, port, 0, scope).into())
            }
            _ => None,
        }
    }

    /// The raw bytes.
    pub(super) fn as_bytes(&self) -> &[u8] {
        // SAFETY: any byte of a sockaddr_in6 is readable and initialised by `empty`.
        unsafe { std::slice::from_raw_parts((&raw const *self).cast(), NAME_LEN) }
    }
}

/// The parts of one message that `msghdr` points to.
pub(super) struct Parts<'a> {
    pub(super) name: &'a mut Name,
    pub(super) slice: &'a mut libc::iovec,
    pub(super) control: &'a mut Control,
}

/// Fills in `header` and its parts to send `run` of `bytes`. The header points to all of them.
pub(super) fn prepare(header: &mut libc::msghdr, parts: Parts<'_>, bytes: &[u8], run: &Run, v6_socket: bool) {
    let data = &bytes[run.offset as usize..][..run.len as usize];
    let len;
    (*parts.name, len) = Name::new(run.to, v6_socket);
    *parts.slice = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    header.msg_name = (&raw mut *parts.name).cast();
    header.msg_namelen = len;
    header.msg_iov = parts.slice;
    header.msg_iovlen = 1;
    header.msg_flags = 0;
    (header.msg_control, header.msg_controllen) = if run.segment < run.len {
        *parts.control = udp_segment(run.segment as u16);
        ((&raw mut *parts.control).cast(), CONTROL_LEN as _)
    } else {
        (std::ptr::null_mut(), 0)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_kernel_layout_and_mapped_addresses_are_unmapped() {
        for (a, v6) in
            [("10.1.2.3:99", false), ("10.1.2.3:99", true), ("[2001:db8::7]:65535", true), ("[fe80::1%3]:1", true)]
        {
            let a: SocketAddr = a.parse().expect("address");
            let (n, len) = Name::new(a, v6);
            assert_eq!(Name::from_bytes(&n.as_bytes()[..len as usize]), Some(a));
        }
        assert_eq!(Name::from_bytes(&[]), None);
        assert_eq!(Name::from_bytes(&[1, 0, 0, 0]), None);
    }

    #[test]
    fn control_messages_are_told_from_others() {
        assert_eq!(udp_gro(&udp_segment(1452).0), None, "UDP_SEGMENT is not UDP_GRO");
        let mut c = udp_segment(1452).0;
        c[12..16].copy_from_slice(&libc::UDP_GRO.to_ne_bytes());
        assert_eq!(udp_gro(&c), Some(1452));
        assert_eq!(udp_gro(&c[..18]), None);
    }
}
