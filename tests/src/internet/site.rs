//! A site: a gateway and hosts on its LAN.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};

use super::{Gateway, answers, plug, route_ipv6, router};
use crate::ns::{Namespace, add_address, link};
use crate::process::run;

/// Hosts have addresses from here on.
const FIRST_HOST: u8 = 10;
/// What is added to a host's last number each time that it moves.
const MOVE: u8 = 60;

/// A site.
#[derive(Debug)]
pub struct Site {
    /// Its name.
    pub name: String,
    /// What it is behind.
    pub kind: Gateway,
    /// The gateway's namespace; interfaces `wan` and `lan` (a bridge).
    pub gateway: Namespace,
    /// The hosts.
    pub hosts: Vec<Host>,
    core: Rc<Namespace>,
    number: u8,
    life: u16,
}

/// A host of a site; its interface is `eth0`.
#[derive(Debug)]
pub struct Host {
    /// Its namespace.
    pub ns: Namespace,
    /// Its address on the LAN.
    pub address: Ipv4Addr,
}

impl Site {
    pub(super) fn build(core: &Rc<Namespace>, number: u8, name: &str, kind: Gateway, hosts: u8) -> Result<Self> {
        let gateway = Namespace::new(&format!("{name}-gw"))?;
        let (near, wan) = uplink(number);
        link((core, &format!("site{number}"), &[&format!("{near}/30")]), (&gateway, "wan", &[&format!("{wan}/30")]))?;
        router(&gateway)?;
        gateway.ip(&format!("route add default via {near}"))?;
        gateway.ip("link add lan type bridge")?;
        let mut site = Self { name: name.into(), kind, gateway, hosts: vec![], core: Rc::clone(core), number, life: 0 };
        site.gateway.ip(&format!("addr add {}/24 dev lan", site.on_lan(1)))?;
        site.gateway.ip("link set lan up")?;
        site.add_route()?;
        kind.load(&site.gateway, number, 0).with_context(|| format!("the gateway of {name}"))?;
        for n in 0..hosts {
            site.add_host(n)?;
        }
        Ok(site)
    }

    fn add_host(&mut self, n: u8) -> Result<()> {
        let (ns, address) = (Namespace::new(&format!("{}-{}", self.name, n + 1))?, self.on_lan(FIRST_HOST + n));
        let port = format!("port{n}");
        link((&self.gateway, &port, &[]), (&ns, "eth0", &[&format!("{address}/24")]))?;
        self.gateway.ip(&format!("link set {port} master lan"))?;
        ns.ip(&format!("route add default via {}", self.on_lan(1)))?;
        self.hosts.push(Host { ns, address });
        Ok(())
    }

    fn on_lan(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.kind.lan(self.number);
        Ipv4Addr::new(a, b, c, last)
    }

    fn add_route(&self) -> Result<()> {
        if self.kind.routed() {
            let (n, (_, wan)) = (self.number, uplink(self.number));
            self.core.ip(&format!("route replace 198.18.{n}.0/24 via {wan}"))?;
        }
        Ok(())
    }

    /// The address that the internet sees for a host.
    #[must_use]
    pub fn seen(&self, host: usize) -> Ipv4Addr {
        self.kind.seen(self.number, self.hosts[host].address, uplink(self.number).1)
    }

    /// The external ports that the gateway holds for a host's UDP port now; empty without NAT, and before the first
    /// datagram.
    ///
    /// # Errors
    /// When `conntrack` says no.
    pub fn mappings(&self, host: usize, port: u16) -> Result<Vec<u16>> {
        let mut list = self.gateway.command("conntrack");
        list.args(["-L", "-p", "udp", "--orig-src", &self.hosts[host].address.to_string()]);
        let text = run(list.args(["--orig-port-src", &port.to_string()]))?;
        // Each line has both directions; the answers' destination port is the external one.
        let external = |line: &str| line.rsplit_once(" dport=")?.1.split(' ').next()?.parse().ok();
        let mut ports: Vec<u16> = text.lines().filter_map(external).collect();
        ports.sort_unstable();
        ports.dedup();
        Ok(ports)
    }

    /// Reboots the gateway: every mapping is gone, and new ones get other ports.
    ///
    /// # Errors
    /// When `nft` or `conntrack` says no.
    pub fn reboot(&mut self) -> Result<()> {
        self.life += 1;
        self.kind.load(&self.gateway, self.number, self.life)
    }

    /// Puts another kind of gateway in the place of the one that is there, and forgets every mapping. Only between kinds
    /// with the same addresses on the LAN ([`Gateway::public_hosts`]).
    ///
    /// # Errors
    /// When `nft` or `conntrack` says no.
    pub fn replace_gateway(&mut self, kind: Gateway) -> Result<()> {
        ensure!(
            kind.public_hosts() == self.kind.public_hosts(),
            "the hosts of {} would need other addresses",
            self.name
        );
        self.kind = kind;
        self.add_route()?;
        self.reboot()
    }

    /// Gives a host another address on the LAN, as DHCP would after a change of network; gives it.
    ///
    /// # Errors
    /// When `ip` says no.
    pub fn move_host(&mut self, host: usize) -> Result<Ipv4Addr> {
        let last = self.hosts[host].address.octets()[3];
        let address = self.on_lan(if last < 130 { last + MOVE } else { last - MOVE });
        let (gateway, ns) = (self.on_lan(1), &self.hosts[host].ns);
        ns.ip("addr flush dev eth0")?;
        ns.ip(&format!("addr add {address}/24 dev eth0"))?;
        ns.ip(&format!("route replace default via {gateway}"))?;
        self.hosts[host].address = address;
        Ok(address)
    }

    /// Takes the hosts' IPv4 addresses away and gives each a public IPv6 one instead; gives these.
    ///
    /// # Errors
    /// When `ip` says no: no IPv6 in this kernel.
    pub fn only_ipv6(&self) -> Result<Vec<Ipv6Addr>> {
        let n = u16::from(self.number);
        let on = |net, last: u8| Ipv6Addr::new(0x2001, 0xdb8, net, n, 0, 0, 0, last.into());
        let (near, wan, router) = (on(2, 1), on(2, 2), on(3, 1));
        route_ipv6(&self.core)?;
        route_ipv6(&self.gateway)?;
        add_address(&self.core, &format!("site{n}"), &format!("{near}/64"))?;
        add_address(&self.gateway, "wan", &format!("{wan}/64"))?;
        add_address(&self.gateway, "lan", &format!("{router}/64"))?;
        self.gateway.ip(&format!("route add default via {near}"))?;
        self.core.ip(&format!("route add {}/64 via {wan}", on(3, 0)))?;
        let mut given = Vec::new();
        for host in &self.hosts {
            let address = on(3, host.address.octets()[3]);
            host.ns.ip("-4 addr flush dev eth0")?;
            add_address(&host.ns, "eth0", &format!("{address}/64"))?;
            host.ns.ip(&format!("route add default via {router}"))?;
            given.push(address);
        }
        Ok(given)
    }

    /// Cuts the site off from the internet, or joins it again. Its LAN goes on.
    ///
    /// # Errors
    /// When `ip` says no.
    pub fn set_connected(&self, connected: bool) -> Result<()> {
        plug(&self.core, &format!("site{}", self.number), connected)?;
        if !connected {
            return Ok(());
        }
        self.add_route()?;
        answers(&self.gateway, uplink(self.number).0)
    }

    /// Pulls a host's cable, or plugs it in again; the host keeps its address and routes.
    ///
    /// # Errors
    /// When `ip` says no.
    pub fn set_host_connected(&self, host: usize, connected: bool) -> Result<()> {
        plug(&self.gateway, &format!("port{host}"), connected)?;
        if connected { answers(&self.gateway, self.hosts[host].address) } else { Ok(()) }
    }
}

/// The core's and the gateway's address of a site's uplink.
const fn uplink(number: u8) -> (Ipv4Addr, Ipv4Addr) {
    (Ipv4Addr::new(198, 51, 100, 4 * number + 1), Ipv4Addr::new(198, 51, 100, 4 * number + 2))
}
