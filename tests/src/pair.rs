//! The usual cast: two sites joined by a veth, a daemon at each, one tunnel.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::daemon::{Daemon, Implementation};
use crate::ns::{Namespace, add_address, link};
use crate::process::{output, wait_for};
use crate::wg::{Dump, Keys, Peer, setconf};

/// Both sites' underlay interface.
pub const UNDERLAY: &str = "ul0";
/// MTU of the tunnel interfaces: 1,500 less IPv6, UDP and WireGuard headers.
pub const TUNNEL_MTU: u32 = 1420;
const PORT: u16 = 51820;

/// The IP version that carries the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outer {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Which of the two sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

impl Side {
    /// The opposite site.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
        }
    }

    /// Its address inside the tunnel, IPv4.
    #[must_use]
    pub fn inner4(self) -> IpAddr {
        IpAddr::from([172, 16, 10, self.number()])
    }

    /// Its address inside the tunnel, IPv6.
    #[must_use]
    pub fn inner6(self) -> IpAddr {
        IpAddr::from([0xfd10, 0, 0, 0, 0, 0, 0, u16::from(self.number())])
    }

    /// Its address on the underlay.
    #[must_use]
    pub fn outer(self, version: Outer) -> IpAddr {
        match version {
            Outer::V4 => IpAddr::from([10, 99, 0, self.number()]),
            Outer::V6 => IpAddr::from([0xfd99, 0, 0, 0, 0, 0, 0, u16::from(self.number())]),
        }
    }
}

/// A namespace with a daemon in it.
#[derive(Debug)]
pub struct Site {
    // Before the namespace: fields are dropped in this order, and a daemon ends before its namespace does.
    /// The daemon.
    pub daemon: Daemon,
    /// The namespace.
    pub ns: Namespace,
    /// Its keys.
    pub keys: Keys,
}

/// Settings of a tunnel.
#[derive(Clone, Debug)]
pub struct Options {
    /// What carries it.
    pub outer: Outer,
    /// Who knows the other's endpoint, and so starts the handshake; `None`: both.
    pub initiator: Option<Side>,
    /// Preshared key of each side (base64).
    pub preshared: [Option<String>; 2],
    /// Daemons' log level.
    pub level: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self { outer: Outer::V4, initiator: None, preshared: [None, None], level: "verbose" }
    }
}

/// Two sites and their tunnel.
#[derive(Debug)]
pub struct Pair {
    a: Site,
    b: Site,
    options: Options,
}

impl Pair {
    /// Brings both sites up with the tunnel configured; no packet has been sent through it yet.
    ///
    /// # Errors
    /// When anything on the way fails.
    pub fn start(a: &Implementation, b: &Implementation, options: Options) -> Result<Self> {
        let (na, nb) = joined()?;
        let site = |ns: Namespace, i: &Implementation| -> Result<Site> {
            Ok(Site { daemon: Daemon::start_logging(&ns, i, options.level)?, ns, keys: Keys::generate()? })
        };
        let pair = Self { a: site(na, a)?, b: site(nb, b)?, options: options.clone() };
        for side in [Side::A, Side::B] {
            pair.configure(side)?;
        }
        Ok(pair)
    }

    /// One site.
    #[must_use]
    pub const fn site(&self, side: Side) -> &Site {
        match side {
            Side::A => &self.a,
            Side::B => &self.b,
        }
    }

    /// One site's namespace.
    #[must_use]
    pub const fn ns(&self, side: Side) -> &Namespace {
        &self.site(side).ns
    }

    /// One site's tunnel interface.
    #[must_use]
    pub fn interface(&self, side: Side) -> &str {
        self.site(side).daemon.interface()
    }

    /// One site's daemon.
    pub const fn daemon(&mut self, side: Side) -> &mut Daemon {
        match side {
            Side::A => &mut self.a.daemon,
            Side::B => &mut self.b.daemon,
        }
    }

    /// Where a site's daemon listens.
    #[must_use]
    pub fn endpoint(&self, side: Side) -> SocketAddr {
        SocketAddr::new(side.outer(self.options.outer), PORT)
    }

    /// The configuration of a site as `wg setconf` takes it.
    #[must_use]
    pub fn config(&self, side: Side) -> String {
        let (own, other) = (self.site(side), self.site(side.other()));
        let mut text = format!("[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n", own.keys.private);
        let (v4, v6) = (side.other().inner4(), side.other().inner6());
        let _ = write!(text, "[Peer]\nPublicKey = {}\nAllowedIPs = {v4}/32, {v6}/128\n", other.keys.public);
        if self.options.initiator.is_none_or(|i| i == side) {
            let _ = writeln!(text, "Endpoint = {}", self.endpoint(side.other()));
        }
        if let Some(psk) = &self.options.preshared[usize::from(side == Side::B)] {
            let _ = writeln!(text, "PresharedKey = {psk}");
        }
        text
    }

    /// (Re)configures a site from nothing: keys, peer, addresses, interface up.
    ///
    /// # Errors
    /// When `wg` or `ip` says no.
    pub fn configure(&self, side: Side) -> Result<()> {
        let dev = self.interface(side);
        setconf(dev, &self.config(side))?;
        add_address(self.ns(side), dev, &format!("{}/24", side.inner4()))?;
        add_address(self.ns(side), dev, &format!("{}/64", side.inner6()))?;
        self.ns(side).ip(&format!("link set {dev} mtu {TUNNEL_MTU} up")).map(drop)
    }

    /// Kills a site's daemon without warning, starts it again and configures it as before.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn crash_and_restart(&mut self, side: Side) -> Result<()> {
        self.daemon(side).crash_and_restart()?;
        self.configure(side)
    }

    /// What `wg` says about a site's only peer.
    ///
    /// # Errors
    /// When `wg` says no.
    pub fn peer(&self, side: Side) -> Result<Peer> {
        let public = &self.site(side.other()).keys.public;
        Ok(Dump::read(self.interface(side))?.peer(public)?.clone())
    }

    /// Whether one ping from a site to an address is answered within a second.
    #[must_use]
    pub fn pings(&self, from: Side, to: IpAddr) -> bool {
        let mut ping = self.ns(from).command("ping");
        output(ping.args(["-n", "-q", "-c1", "-W1"]).arg(to.to_string())).is_ok_and(|o| o.status.success())
    }

    /// Waits until the other site answers a ping on IPv4.
    ///
    /// # Errors
    /// After `limit`.
    pub fn wait_ping(&self, from: Side, limit: Duration) -> Result<()> {
        let to = from.other().inner4();
        wait_for(&format!("an answer from {to}"), limit, || Ok(self.pings(from, to)))
            .with_context(|| format!("wg at {from:?}: {:?}", self.peer(from)))
    }

    /// Fails if a daemon has ended.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn both_run(&mut self) -> Result<()> {
        for side in [Side::A, Side::B] {
            let process = self.daemon(side).process();
            anyhow::ensure!(process.running(), "the daemon at {side:?} has ended:\n{}", process.tail());
        }
        Ok(())
    }
}

/// Two namespaces joined by a veth with the underlay's addresses of both IP versions.
///
/// # Errors
/// When `ip` says no.
pub fn joined() -> Result<(Namespace, Namespace)> {
    let (a, b) = (Namespace::new("a")?, Namespace::new("b")?);
    link((&a, UNDERLAY, &["10.99.0.1/24", "fd99::1/64"]), (&b, UNDERLAY, &["10.99.0.2/24", "fd99::2/64"]))?;
    Ok((a, b))
}
