//! A small internet: a core router, servers at public addresses, and sites behind gateways of every usual kind.
//!
//! ```text
//!   hosts -- lan bridge [gateway] wan -- [core] -- srv bridge -- servers
//! ```
//! Addresses are those set aside for documentation and benchmarks: uplinks in 198.51.100.0/24, servers in
//! 203.0.113.0/24, sites with public addresses in 198.18.0.0/16, LANs behind a NAT in 10.0.0.0/8. Whoever asks for
//! IPv6 gets it without NAT and without a filter: servers in 2001:db8:1::/64, LANs in 2001:db8:3:SITE::/64.

mod dns;
mod gateway;
pub mod probe;
mod site;

use std::cell::Cell;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::ns::{Namespace, add_address, link};
use crate::process::{output, run, wait_for};

pub use dns::{Dns, Zone, dns_needs};
pub use gateway::Gateway;
pub use site::{Host, Site};

/// Servers' network; the firewalled sites let nothing else through.
pub const SERVERS: &str = "203.0.113.0/24";
/// What the core router and its bridge are called inside its namespace.
const SERVER_BRIDGE: &str = "srv";
/// Uplinks are /30s of one /24.
const MOST_SITES: u8 = 63;
/// Addresses of [`SERVERS`] from `.10` on.
const MOST_SERVERS: u8 = 200;

/// The core router. Sites and servers hang on it, and are cut off when it is dropped.
#[derive(Debug)]
pub struct Internet {
    core: Rc<Namespace>,
    sites: Cell<u8>,
    servers: Cell<u8>,
}

/// A machine with a public address near the core.
#[derive(Debug)]
pub struct Server {
    /// Its namespace.
    pub ns: Namespace,
    /// Its first address.
    pub address: Ipv4Addr,
    core: Rc<Namespace>,
    port: String,
}

impl Internet {
    /// The core alone.
    ///
    /// # Errors
    /// When namespaces cannot be made.
    pub fn new() -> Result<Self> {
        let core = Namespace::new("core")?;
        router(&core)?;
        core.ip(&format!("link add {SERVER_BRIDGE} type bridge"))?;
        core.ip(&format!("addr add 203.0.113.1/24 dev {SERVER_BRIDGE}"))?;
        core.ip(&format!("link set {SERVER_BRIDGE} up"))?;
        Ok(Self { core: Rc::new(core), sites: Cell::new(0), servers: Cell::new(0) })
    }

    /// A server with one public address.
    ///
    /// # Errors
    /// When namespaces cannot be made, or there are too many servers.
    pub fn server(&self, name: &str) -> Result<Server> {
        let n = next(&self.servers, MOST_SERVERS).context("no address is left for a server")?;
        let (ns, port, address) = (Namespace::new(name)?, format!("srv{n}"), Ipv4Addr::new(203, 0, 113, 9 + n));
        link((&self.core, &port, &[]), (&ns, "eth0", &[&format!("{address}/24")]))?;
        self.core.ip(&format!("link set {port} master {SERVER_BRIDGE}"))?;
        ns.ip("route add default via 203.0.113.1")?;
        Ok(Server { ns, address, core: Rc::clone(&self.core), port })
    }

    /// A site with so many hosts on one LAN behind a gateway.
    ///
    /// # Errors
    /// When namespaces cannot be made, `nft` says no, or there are too many sites.
    pub fn site(&self, name: &str, gateway: Gateway, hosts: u8) -> Result<Site> {
        let n = next(&self.sites, MOST_SITES).context("no uplink is left for a site")?;
        Site::build(&self.core, n, name, gateway, hosts)
    }
}

impl Server {
    /// Gives it an IPv6 address as well.
    ///
    /// # Errors
    /// When `ip` says no: no IPv6 in this kernel.
    pub fn add_ipv6(&self) -> Result<Ipv6Addr> {
        let core = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
        let address = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, self.address.octets()[3].into());
        route_ipv6(&self.core)?;
        self.core.ip(&format!("addr replace {core}/64 dev {SERVER_BRIDGE} nodad"))?;
        add_address(&self.ns, "eth0", &format!("{address}/64"))?;
        self.ns.ip(&format!("route add default via {core}"))?;
        Ok(address)
    }

    /// Gives it one more public address.
    ///
    /// # Errors
    /// When `ip` says no, or `last` is none of [`SERVERS`] that is free for it (`210..=250`).
    pub fn add_address(&self, last: u8) -> Result<Ipv4Addr> {
        ensure!((210..=250).contains(&last), "203.0.113.{last} is not set aside for second addresses");
        self.ns.ip(&format!("addr add 203.0.113.{last}/24 dev eth0"))?;
        Ok(Ipv4Addr::new(203, 0, 113, last))
    }

    /// Pulls its cable, or plugs it in again.
    ///
    /// # Errors
    /// When `ip` says no.
    pub fn set_connected(&self, connected: bool) -> Result<()> {
        plug(&self.core, &self.port, connected)?;
        if connected { answers(&self.core, self.address) } else { Ok(()) }
    }
}

/// Pulls or plugs in the cable at an interface.
fn plug(ns: &Namespace, dev: &str, connected: bool) -> Result<()> {
    ns.ip(&format!("link set {dev} {}", if connected { "up" } else { "down" })).map(drop)
}

/// Waits until a neighbour answers: the kernel tells of a carrier up to a second late.
fn answers(from: &Namespace, neighbour: Ipv4Addr) -> Result<()> {
    wait_for("a cable to work", Duration::from_secs(5), || {
        let mut ping = from.command("ping");
        Ok(output(ping.args(["-n", "-q", "-c1", "-W1", &neighbour.to_string()]))?.status.success())
    })
}

fn next(counter: &Cell<u8>, most: u8) -> Option<u8> {
    let n = counter.get() + 1;
    (n <= most).then(|| {
        counter.set(n);
        n
    })
}

/// Has a namespace forward packets, and keep out of the way while it does.
fn router(ns: &Namespace) -> Result<()> {
    let settings = ["ip_forward=1", "conf.all.rp_filter=0", "conf.default.rp_filter=0", "conf.all.send_redirects=0"];
    run(ns.command("sysctl").arg("-qw").args(settings.map(|s| format!("net.ipv4.{s}"))))?;
    // Where the kernel has br_netfilter, a LAN would go through the rules for what is routed.
    // -e: it need not have it.
    let bridges = ["net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0"];
    run(ns.command("sysctl").arg("-eqw").args(bridges)).map(drop)
}

/// Has a namespace forward IPv6 packets.
fn route_ipv6(ns: &Namespace) -> Result<()> {
    run(ns.command("sysctl").args(["-qw", "net.ipv6.conf.all.forwarding=1"])).map(drop)
}
