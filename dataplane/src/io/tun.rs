//! TUN devices. `tun-rs` makes and configures them; further queues are attached and packets moved here.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

/// MTU of a new device: 1,500 less the largest outer overhead, IPv6 (40), UDP (8) and the tunnel's own 32.
pub const DEFAULT_MTU: u16 = 1420;
/// Packets that wait per queue. UDP floods fill it (1,000 small packets are 4 ms at 250,000 a second, about
/// one time slice); TCP does not, its own small-queue limit holds it back.
const TX_QUEUE_LEN: u32 = 1000;

const TUN_F_CSUM: u32 = 0x01;
const TUN_F_TSO4: u32 = 0x02;
const TUN_F_TSO6: u32 = 0x04;
const TUN_F_USO4: u32 = 0x20;
const TUN_F_USO6: u32 = 0x40;
const TSO: u32 = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
const USO: u32 = TSO | TUN_F_USO4 | TUN_F_USO6;

/// A TUN device with one queue a shard.
#[derive(Debug)]
pub struct Tun {
    name: String,
    queues: Vec<OwnedFd>,
    /// Reads and writes carry a virtio header.
    pub vnet: bool,
    /// The kernel hands over and takes TCP super-packets.
    pub tso: bool,
    /// The kernel hands over and takes UDP super-packets.
    pub uso: bool,
    queue_note: Option<String>,
}

impl Tun {
    /// Makes the device `name` (or the first free one of a pattern like `wg%d`) with `queues` queues.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_ADMIN`; `ENOENT` without `/dev/net/tun`; `EBUSY` if the name is taken.
    pub fn create(name: &str, queues: usize, offload: bool) -> io::Result<Self> {
        if name.is_empty() || name.len() >= libc::IFNAMSIZ {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let device = tun_rs::DeviceBuilder::new()
            .name(name)
            .multi_queue(true)
            .offload(offload)
            .mtu(DEFAULT_MTU)
            .tx_queue_len(TX_QUEUE_LEN)
            .enable(false)
            .build_sync()?;
        // SAFETY: `into_raw_fd` gives up the descriptor.
        let first = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };
        Self::with_first(first, queues)
    }

    /// Takes over a queue that somebody else opened, with whatever flags it has, and attaches more if it
    /// can have more.
    ///
    /// # Errors
    /// `fd` is no TUN queue.
    pub fn from_fd(fd: OwnedFd, queues: usize) -> io::Result<Self> {
        Self::with_first(fd, queues)
    }

    fn with_first(first: OwnedFd, queues: usize) -> io::Result<Self> {
        let request = interface(&first)?;
        // SAFETY: TUNGETIFF fills in the flags.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        if flags & libc::IFF_TAP != 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is a TAP device, a TUN device is needed"));
        }
        let name = name_of(&request)?;
        let vnet = flags & libc::IFF_VNET_HDR != 0;
        // The offload mask belongs to the device, not to the queue: set it either way.
        let uso = vnet && set_offload(&first, USO).is_ok();
        let tso = uso || (vnet && set_offload(&first, TSO).is_ok());
        if vnet {
            set_header_len(&first, crate::packet::virtio::VNET_LEN as i32)?;
        }
        let mut tun = Self { name, queues: vec![first], vnet, tso, uso, queue_note: None };
        for _ in 1..queues {
            if flags & libc::IFF_MULTI_QUEUE == 0 {
                tun.queue_note = Some("the device was opened with a single queue".into());
                break;
            }
            let fd = tun.attach(flags)?;
            tun.queues.push(fd);
        }
        Ok(tun)
    }

    fn attach(&self, flags: i32) -> io::Result<OwnedFd> {
        let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
        let fd = OwnedFd::from(file);
        let mut request = interface(&self.queues[0])?;
        let keep = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        // TUNGETIFF does not report IFF_NO_PI reliably; every device that gets here has it.
        request.ifr_ifru.ifru_flags = ((flags & keep) | libc::IFF_NO_PI) as i16;
        // SAFETY: `request` is a valid ifreq.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
        if self.vnet {
            set_header_len(&fd, crate::packet::virtio::VNET_LEN as i32)?;
        }
        Ok(fd)
    }

    /// The interface's name when it was opened.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The first queue.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.queues[0].as_fd()
    }

    /// Number of queues.
    #[must_use]
    pub const fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Why there are fewer queues than asked for.
    #[must_use]
    pub fn queue_note(&self) -> Option<&str> {
        self.queue_note.as_deref()
    }

    /// The interface's MTU in bytes.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn mtu(&self) -> io::Result<u16> {
        let mut request = interface(&self.queues[0])?;
        // SAFETY: `request` is a valid ifreq with a name.
        check(unsafe { libc::ioctl(any_socket()?.as_raw_fd(), libc::SIOCGIFMTU as _, &raw mut request) })?;
        // SAFETY: SIOCGIFMTU filled in the MTU.
        Ok(u16::try_from(unsafe { request.ifr_ifru.ifru_mtu }).unwrap_or(u16::MAX))
    }

    /// Sets the interface's MTU in bytes.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_ADMIN` in the interface's network namespace.
    pub fn set_mtu(&self, mtu: u16) -> io::Result<()> {
        let mut request = interface(&self.queues[0])?;
        request.ifr_ifru.ifru_mtu = i32::from(mtu);
        // SAFETY: `request` is a valid ifreq with a name and an MTU.
        check(unsafe { libc::ioctl(any_socket()?.as_raw_fd(), libc::SIOCSIFMTU as _, &raw mut request) })
    }

    /// Takes the queues out, first queue first.
    #[must_use]
    pub fn into_queues(self) -> Vec<OwnedFd> {
        self.queues
    }
}

/// A socket to ask about interfaces with: any will do. The wildcard address is there in the barest namespace.
fn any_socket() -> io::Result<std::net::UdpSocket> {
    std::net::UdpSocket::bind("0.0.0.0:0").or_else(|_| std::net::UdpSocket::bind("[::]:0"))
}

/// Writes one packet to a queue: its errno if that fails.
pub(super) fn write(queue: &OwnedFd, packet: &[u8]) -> Result<(), i32> {
    // SAFETY: `packet` is live for the call.
    let n = unsafe { libc::write(queue.as_raw_fd(), packet.as_ptr().cast(), packet.len()) };
    if n < 0 { Err(super::errno()) } else { Ok(()) }
}

/// Whether the device of `queue` still exists. A queue of a deleted device answers `EBADFD`.
pub(super) fn exists(queue: RawFd) -> bool {
    // SAFETY: an all-zero ifreq is valid, and TUNGETIFF fills it in.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        libc::ioctl(queue, libc::TUNGETIFF as _, &raw mut request) == 0
    }
}

fn interface(fd: &OwnedFd) -> io::Result<libc::ifreq> {
    // SAFETY: an all-zero ifreq is valid, and TUNGETIFF fills it in.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        check(libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF as _, &raw mut request))?;
        Ok(request)
    }
}

fn name_of(request: &libc::ifreq) -> io::Result<String> {
    let bytes = request.ifr_name.map(|c| c as u8);
    let name = CStr::from_bytes_until_nul(&bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    Ok(name.to_string_lossy().into_owned())
}

fn set_offload(fd: &OwnedFd, mask: u32) -> io::Result<()> {
    // SAFETY: the argument is a plain number.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(mask)) })
}

fn set_header_len(fd: &OwnedFd, len: i32) -> io::Result<()> {
    // SAFETY: the argument points to an int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const len) })
}

/// Switches `O_NONBLOCK`. io_uring needs it off: with it, a read that finds nothing fails instead of waiting.
pub(super) fn set_nonblocking(fd: &OwnedFd, on: bool) -> io::Result<()> {
    // SAFETY: no pointers.
    unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        check(flags)?;
        let flags = if on { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
        check(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags))
    }
}

fn check(r: i32) -> io::Result<()> {
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
