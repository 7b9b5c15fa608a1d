//! What the engine is told, and what it tells.

use crate::crypto::{Backend, Cipher, Speeds};
use crate::packet::Translation;
use crate::table::Prefix;
use crate::tunnel::{PresharedKey, PrivateKey, PublicKey};
use crate::{Path, Time, WallTime};
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Which I/O back end the shards use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoChoice {
    /// io_uring where it works, else `Mmsg`.
    #[default]
    Auto,
    /// io_uring, or fail.
    Uring,
    /// epoll with `recvmmsg` and `sendmmsg`.
    Mmsg,
}

impl FromStr for IoChoice {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "mmsg" => Ok(Self::Mmsg),
            _ => Err(format!("no I/O back end is called \"{s}\": use one of auto, uring, mmsg")),
        }
    }
}

/// Which cipher packets get, between nodes that both have a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CipherChoice {
    /// The one that this machine is faster with.
    #[default]
    Auto,
    /// This one.
    Only(Cipher),
}

impl CipherChoice {
    /// Its name in settings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Only(cipher) => cipher.name(),
        }
    }

    /// Whether a node that is so fast offers AES-256-GCM to others.
    #[must_use]
    pub fn offers_aes(self, speeds: &Speeds) -> bool {
        match self {
            Self::Auto => speeds.prefers_aes(),
            Self::Only(cipher) => cipher == Cipher::Aes256Gcm,
        }
    }
}

impl FromStr for CipherChoice {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let named = if s == "auto" { Ok(Self::Auto) } else { s.parse().map(Self::Only) };
        named.map_err(|_: String| format!("no cipher is called \"{s}\": use one of auto, chacha20poly1305, aes256gcm"))
    }
}

/// Whether kernel programs sort datagrams before the shards see them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EbpfChoice {
    /// Where the kernel lets us.
    #[default]
    Auto,
    /// Yes, or fail.
    On,
    /// No.
    Off,
}

impl FromStr for EbpfChoice {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(format!("kernel programs are not \"{s}\": use one of auto, on, off")),
        }
    }
}

/// How the guard runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver where it can, else in the kernel's stack.
    #[default]
    Auto,
    /// In the kernel's stack.
    Generic,
    /// In the driver.
    Native,
}

/// Where the guard is put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xdp {
    /// The interface that datagrams come in on.
    pub interface: String,
    /// How it runs.
    pub mode: XdpMode,
}

impl FromStr for Xdp {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        // No interface's name has a colon.
        let (interface, mode) = match s.split_once(':') {
            None => (s, XdpMode::Auto),
            Some((interface, "generic")) => (interface, XdpMode::Generic),
            Some((interface, "native")) => (interface, XdpMode::Native),
            Some(_) => return Err("write it as eth0, eth0:generic or eth0:native".into()),
        };
        let valid = !interface.is_empty() && interface.len() < 16 && interface.bytes().all(|b| b > b' ' && b != b'/');
        let named = valid.then(|| Self { interface: interface.to_owned(), mode });
        named.ok_or_else(|| format!("no interface can be called \"{}\"", interface.escape_debug()))
    }
}

/// Settings that hold for the life of an engine. The number of shards is that of the TUN device's queues.
#[derive(Clone, Debug)]
pub struct Config {
    /// I/O back end.
    pub io: IoChoice,
    /// Back end of ChaCha20-Poly1305; `None`: [`Backend::detect`].
    pub aead: Option<Backend>,
    /// Peers are taken for willing to have AES-256-GCM, unless [`PeerUpdate::aes`] says otherwise.
    pub aes: bool,
    /// Pin each shard to a core; `None`: decided by the engine.
    pub pin: Option<bool>,
    /// Send runs of datagrams by `UDP_SEGMENT`.
    pub udp_gso: bool,
    /// Receive runs of datagrams by `UDP_GRO`.
    pub udp_gro: bool,
    /// Coalesce received packets into super-packets for TUN. Whether TUN hands out super-packets is settled
    /// when the device is made.
    pub tun_gso: bool,
    /// Receive buffer of each UDP socket in bytes; `None`: bounded by queue delay.
    pub receive_buffer: Option<usize>,
    /// Kernel programs at the sockets.
    pub ebpf: EbpfChoice,
    /// A kernel program at an interface as well: for the network that is open to everybody.
    pub xdp: Option<Xdp>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            io: IoChoice::Auto,
            aead: None,
            aes: false,
            pin: None,
            udp_gso: true,
            udp_gro: true,
            tun_gso: true,
            receive_buffer: None,
            ebpf: EbpfChoice::Auto,
            xdp: None,
        }
    }
}

/// One change to the interface, applied as a whole. `None` leaves a setting as it is.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// `Some(None)` removes the private key.
    pub private_key: Option<Option<PrivateKey>>,
    /// UDP port; 0: the kernel chooses.
    pub listen_port: Option<u16>,
    /// `SO_MARK` of outgoing datagrams; 0: none.
    pub fwmark: Option<u32>,
    /// `Some(Some(b))`: multicast is on. Packets for 224.0.0.0/4, 255.255.255.255 and `b`, our subnet's directed
    /// broadcast, go to every peer that has a [`Translation`], a session and a path; they wait for none and open no
    /// path. `Some(None)`: off, as at first; such packets are routed like any other then.
    pub multicast: Option<Option<Ipv4Addr>>,
    /// Remove all peers first.
    pub replace_peers: bool,
    /// Changes to peers, in order.
    pub peers: Vec<PeerUpdate>,
}

/// One change to one peer.
#[derive(Clone, Debug)]
pub struct PeerUpdate {
    /// Which peer.
    pub public_key: PublicKey,
    /// Remove it; nothing else counts then.
    pub remove: bool,
    /// Do nothing unless the peer exists.
    pub update_only: bool,
    /// All zeros: none.
    pub preshared_key: Option<PresharedKey>,
    /// Where its datagrams go until it is heard from elsewhere.
    pub path: Option<Path>,
    /// While there is no path, packets wait for one and [`Engine::wanted`](crate::Engine::wanted) tells; else they are
    /// refused. Off at first.
    pub on_demand: Option<bool>,
    /// `Some(Some(_))`: its IPv4 packets are translated on arrival. Its allowed IPs have to hold
    /// [`Translation::lease`]. `Some(None)`: they are taken as they are, as at first.
    pub translation: Option<Option<Translation>>,
    /// Sessions from the next handshake on have AES-256-GCM if the peer says the same. Not for peers that are not known
    /// to have it.
    pub aes: Option<bool>,
    /// Seconds between persistent keepalives; 0: off.
    pub persistent_keepalive: Option<u16>,
    /// Remove all its allowed IPs first.
    pub replace_allowed_ips: bool,
    /// Allowed IPs to add (true) or remove (false), in order. Adding takes a prefix from any other peer.
    pub allowed_ips: Vec<(Prefix, bool)>,
}

impl PeerUpdate {
    /// A change to `public_key` that only makes sure that the peer exists.
    #[must_use]
    pub const fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            path: None,
            on_demand: None,
            translation: None,
            aes: None,
            persistent_keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}

/// The interface as it is.
#[derive(Clone, Debug)]
pub struct State {
    /// The private key, if set.
    pub private_key: Option<PrivateKey>,
    /// The bound UDP port.
    pub listen_port: u16,
    /// `SO_MARK`, 0: none.
    pub fwmark: u32,
    /// Every peer, in the order in which they were added.
    pub peers: Vec<PeerState>,
}

/// A peer as it is.
#[derive(Clone, Debug)]
pub struct PeerState {
    /// Its identity.
    pub public_key: PublicKey,
    /// All zeros: none.
    pub preshared_key: PresharedKey,
    /// Where its datagrams go.
    pub path: Option<Path>,
    /// The cipher of the session in use, if there is one.
    pub cipher: Option<Cipher>,
    /// When the last handshake was completed.
    pub last_handshake: Option<WallTime>,
    /// When a datagram was last sent to it.
    pub last_sent: Option<Time>,
    /// When an authentic datagram last came from it.
    pub last_received: Option<Time>,
    /// UDP payload bytes sent to it.
    pub tx_bytes: u64,
    /// Authentic UDP payload bytes received from it.
    pub rx_bytes: u64,
    /// Seconds; 0: off.
    pub persistent_keepalive: u16,
    /// In ascending order.
    pub allowed_ips: Vec<Prefix>,
}
