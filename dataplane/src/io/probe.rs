//! What this machine offers the data plane, tried out rather than looked up where that is possible.

use super::event::Bell;
use super::udp;
use crate::crypto::{Backend, Speeds};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

/// How well something is provided for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There.
    Yes,
    /// Missing, but there is a slower way.
    Limited,
    /// Missing, and ipop-fast cannot run without it.
    No,
}

/// One thing that was probed.
#[derive(Clone, Debug)]
pub struct Item {
    /// What it is.
    pub name: &'static str,
    /// Whether it is there.
    pub state: State,
    /// What was found.
    pub detail: String,
    /// What to do about it, if anything.
    pub advice: Option<String>,
}

/// The findings.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In order of what depends on what.
    pub items: Vec<Item>,
}

impl Report {
    fn add(&mut self, name: &'static str, state: State, detail: impl Into<String>) {
        self.items.push(Item { name, state, detail: detail.into(), advice: None });
    }

    fn advise(&mut self, advice: impl Into<String>) {
        if let Some(i) = self.items.last_mut() {
            i.advice = Some(advice.into());
        }
    }
}

/// Tries everything. Makes a TUN device and sockets for a moment; sends nothing.
#[must_use]
pub fn probe() -> Report {
    let mut r = Report::default();
    kernel(&mut r);
    capabilities(&mut r);
    let tun = tun(&mut r);
    uring(&mut r, tun);
    udp(&mut r);
    ebpf(&mut r);
    cpu(&mut r);
    r
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|s| s.trim().to_owned())
}

fn kernel_version() -> Option<(u32, u32)> {
    let release = read("/proc/sys/kernel/osrelease")?;
    let mut n = release.split(|c: char| !c.is_ascii_digit()).map_while(|p| p.parse().ok());
    Some((n.next()?, n.next()?))
}

fn kernel(r: &mut Report) {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into());
    match kernel_version() {
        Some(v) if v >= (6, 7) => r.add("kernel", State::Yes, format!("Linux {release}")),
        Some(v) if v >= (5, 12) => {
            r.add("kernel", State::Limited, format!("Linux {release}"));
            r.advise("Linux 6.7 or newer brings the io_uring back end, 6.2 or newer UDP offload on TUN.");
        }
        _ => {
            r.add("kernel", State::Limited, format!("Linux {release}: its UDP_GRO has a fault"));
            r.advise("Use Linux 5.12 or newer: before it, UDP_GRO can corrupt what it puts together.");
        }
    }
}

fn capabilities(r: &mut Report) {
    const CAP_NET_ADMIN: u32 = 12;
    let effective = read("/proc/self/status")
        .and_then(|s| s.lines().find_map(|l| l.strip_prefix("CapEff:").map(|v| v.trim().to_owned())))
        .and_then(|v| u64::from_str_radix(&v, 16).ok())
        .unwrap_or(0);
    if effective & (1 << CAP_NET_ADMIN) != 0 {
        r.add("CAP_NET_ADMIN", State::Yes, "this capability lets it create interfaces and large socket buffers");
    } else {
        r.add("CAP_NET_ADMIN", State::No, "missing");
        r.advise("Run as root, or: setcap cap_net_admin+ep \"$(command -v ipop-fast)\". In a container: --cap-add NET_ADMIN.");
    }
}

fn tun(r: &mut Report) -> Option<super::tun::Tun> {
    match super::tun::Tun::create("ipopprobe%d", 2, true) {
        Ok(t) => {
            r.add("TUN", State::Yes, format!("{} queues attached", t.queues()));
            let mut offload = |name, on, what: &str| {
                if on {
                    r.add(name, State::Yes, what);
                } else {
                    r.add(name, State::Limited, format!("not here: {what}"));
                }
            };
            offload("TUN vnet header", t.vnet, "IFF_VNET_HDR: checksum offload and super-packets");
            offload("TUN TSO", t.tso, "TCP super-packets of up to 64 KiB, both ways");
            offload("TUN USO", t.uso, "UDP super-packets, both ways");
            if !t.uso {
                r.advise("UDP offload on TUN needs Linux 6.2 or newer: without it UDP costs more CPU, TCP does not.");
            }
            Some(t)
        }
        Err(e) => {
            let missing = e.raw_os_error() == Some(libc::ENOENT);
            r.add("TUN", State::No, format!("cannot create a TUN device: {e}"));
            r.advise(if missing {
                "Load the module (modprobe tun); in a container pass the device: --device /dev/net/tun."
            } else {
                "Give the process CAP_NET_ADMIN and access to /dev/net/tun."
            });
            None
        }
    }
}

fn uring(r: &mut Report, tun: Option<super::tun::Tun>) {
    let tried = tun.map(|t| -> io::Result<()> {
        let bell = Arc::new(Bell::new()?);
        let options = udp::Options { port: 0, fwmark: 0, gro: true, receive_buffer: udp::RECEIVE_BUFFER };
        let socket = udp::Socket::open(1, options)?.remove(0);
        let queue = t.into_queues().remove(0);
        super::uring::Uring::new(queue, socket, bell).map(drop).map_err(|(e, _): (io::Error, OwnedFd)| e)
    });
    match tried {
        Some(Ok(())) => r.add(
            "io_uring",
            State::Yes,
            "multishot reads and receives, provided-buffer rings, SINGLE_ISSUER, DEFER_TASKRUN, registered files",
        ),
        Some(Err(e)) => {
            r.add("io_uring", State::Limited, format!("{e}; epoll with recvmmsg and sendmmsg is used instead"));
            let disabled = read("/proc/sys/kernel/io_uring_disabled").filter(|v| v != "0");
            r.advise(match disabled {
                Some(v) => format!("kernel.io_uring_disabled is {v}: sysctl -w kernel.io_uring_disabled=0"),
                None => {
                    "Container runtimes forbid io_uring by default (seccomp); the kernel must be 6.7 or newer.".into()
                }
            });
        }
        None => r.add("io_uring", State::Limited, "not tried: there is no TUN device to try it on"),
    }
}

fn udp(r: &mut Report) {
    let options = udp::Options { port: 0, fwmark: 0, gro: true, receive_buffer: udp::RECEIVE_BUFFER };
    let socket = match udp::Socket::open(1, options) {
        Ok(mut s) => s.remove(0),
        Err(e) => {
            r.add("UDP", State::No, format!("cannot open a UDP socket: {e}"));
            return;
        }
    };
    let both = if socket.is_v6() { "IPv4 and IPv6" } else { "IPv4 only: this kernel or namespace has no IPv6" };
    r.add("UDP", State::Yes, both);
    let set = |o| {
        let one = 1400i32;
        // SAFETY: the option takes an int.
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, o, (&raw const one).cast(), 4) == 0 }
    };
    let state = |ok| if ok { State::Yes } else { State::Limited };
    r.add("UDP GSO", state(set(libc::UDP_SEGMENT)), "UDP_SEGMENT: up to 64 datagrams per send");
    r.add("UDP GRO", state(socket.gro), "UDP_GRO: up to 64 KiB of datagrams per receive");
    let (receive, send) = socket.buffers();
    let enough = receive >= udp::RECEIVE_BUFFER && send >= udp::SEND_BUFFER;
    r.add(
        "socket buffers",
        state(enough),
        format!(
            "receive {} KiB of {}, send {} KiB of {}",
            receive >> 10,
            udp::RECEIVE_BUFFER >> 10,
            send >> 10,
            udp::SEND_BUFFER >> 10
        ),
    );
    if !enough {
        r.advise(format!(
            "Without CAP_NET_ADMIN the system limits hold: sysctl -w net.core.rmem_max={} net.core.wmem_max={}",
            udp::RECEIVE_BUFFER,
            udp::SEND_BUFFER
        ));
    }
}

/// How fast the ciphers are on this machine, ChaCha20-Poly1305 by `backend`. Takes a millisecond or two.
#[must_use]
pub fn ciphers(backend: Backend) -> Speeds {
    Speeds::measure(backend, super::clock::now)
}

fn ebpf(r: &mut Report) {
    const NAME: &str = "kernel programs";
    let options = udp::Options { port: 0, fwmark: 0, gro: true, receive_buffer: udp::RECEIVE_BUFFER };
    let Ok(sockets) = udp::Socket::open(2, options) else {
        r.add(NAME, State::Limited, "not tried: there are no UDP sockets to try them on");
        return;
    };
    match super::bpf::Programs::load(sockets.len(), true).and_then(|mut p| p.attach(&sockets)) {
        Ok(()) => r.add(NAME, State::Yes, "a session's datagrams go to its shard, junk is dropped before one sees it"),
        Err(e) => {
            r.add(NAME, State::Limited, format!("{e}; the network's hash chooses the shard"));
            r.advise(
                "They take CAP_BPF and CAP_NET_ADMIN (or root), and Linux 5.15 or newer; a container runtime may forbid bpf(2).",
            );
        }
    }
}

fn cpu(r: &mut Report) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    r.add("cores", State::Yes, format!("{cores}: as many shards by default"));
    #[cfg(target_arch = "x86_64")]
    let features: Vec<&str> = [
        ("ssse3", std::arch::is_x86_feature_detected!("ssse3")),
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512ifma", std::arch::is_x86_feature_detected!("avx512ifma")),
        ("aes", std::arch::is_x86_feature_detected!("aes")),
        ("vaes", std::arch::is_x86_feature_detected!("vaes")),
    ]
    .into_iter()
    .filter_map(|(n, on)| on.then_some(n))
    .collect();
    #[cfg(not(target_arch = "x86_64"))]
    let features: Vec<&str> = Vec::new();
    r.add("CPU features", State::Yes, features.join(" "));
    let b = Backend::detect();
    r.add(
        "cipher",
        State::Yes,
        format!(
            "ChaCha20-Poly1305 by {b}; --aead takes {}",
            Backend::available().map(Backend::name).collect::<Vec<_>>().join(", ")
        ),
    );
    let speeds = ciphers(b);
    let auto = if speeds.prefers_aes() { "AES-256-GCM with nodes that say the same" } else { "ChaCha20-Poly1305" };
    r.add("cipher speed", State::Yes, format!("{speeds} a core; cipher = \"auto\" takes {auto}"));
}
