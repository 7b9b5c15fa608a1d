//! Three cloud sites, six machines, one private server.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ipop_tests::internet::{Gateway, Internet, Server, Site};
use ipop_tests::node::{Members, Node, Options, READY};
use ipop_tests::ns::Namespace;
use ipop_tests::process::wait_for;
use ipop_tests::servers::{Ca, Ejabberd, Setup};

use super::say;
use crate::stop;

/// The group, after the scenario of a simulation that bursts to the cloud.
pub(super) const GROUP: &str = "my_pragma_group_1";
const DOMAIN: &str = "ipop.example";
const SITES: [(&str, Gateway); 3] =
    [("ec2-east", Gateway::PortRestricted), ("sierra", Gateway::Symmetric), ("india", Gateway::Public)];
const VMS_A_SITE: u8 = 2;
const FIRST_ADDRESS: u8 = 2;
/// Until every machine has read every other's descriptor.
const MEET: Duration = Duration::from_secs(30);
/// Every machine has this many others.
const OTHERS: usize = SITES.len() * VMS_A_SITE as usize - 1;

/// One machine.
pub(super) struct Vm {
    pub(super) name: String,
    pub(super) site: usize,
    pub(super) host: usize,
    pub(super) address: IpAddr,
    pub(super) node: Node,
}

impl Vm {
    /// Whether the two can meet without a relay: on their LAN, or as their gateways let them.
    pub(super) fn meets_directly(&self, other: &Self) -> bool {
        self.site == other.site || SITES[self.site].1.direct(SITES[other.site].1)
    }

    pub(super) fn log_tail(&self) -> String {
        let log = self.node.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }
}

/// Everything. Fields are dropped in this order: machines leave before the server and the namespaces go.
pub(super) struct Cloud {
    pub(super) vms: Vec<Vm>,
    _xmpp: Ejabberd,
    _ca: Ca,
    pub(super) sites: Vec<Site>,
    pub(super) server: Server,
    _internet: Internet,
    /// From the start of the last machine until all knew each other.
    pub(super) met: Duration,
}

impl Cloud {
    /// Builds it all, telling what it does.
    pub(super) fn start() -> Result<Self> {
        say("\nthe internet: a core router, a server network, three sites (all of them network namespaces)");
        let internet = Internet::new()?;
        let server = internet.server("server")?;
        let mut sites = Vec::new();
        for (name, gateway) in SITES {
            stop::check()?;
            let site = internet.site(name, gateway, VMS_A_SITE)?;
            let hosts: Vec<String> = site.hosts.iter().map(|h| h.address.to_string()).collect();
            say(&format!("  {name:<9} {} behind: {}", hosts.join(", "), gateway.name()));
            sites.push(site);
        }
        let (ca, xmpp) = private_server(&server)?;
        let vms = machines(&sites, &xmpp, &ca)?;
        let mut cloud = Self { vms, _xmpp: xmpp, _ca: ca, sites, server, _internet: internet, met: Duration::ZERO };
        cloud.wait_ready()?;
        Ok(cloud)
    }

    pub(super) fn ns(&self, vm: &Vm) -> &Namespace {
        &self.sites[vm.site].hosts[vm.host].ns
    }

    /// Fails if a machine has ended.
    pub(super) fn alive(&mut self) -> Result<()> {
        self.vms.iter_mut().try_for_each(|vm| vm.node.alive())
    }

    fn wait_ready(&mut self) -> Result<()> {
        for vm in &mut self.vms {
            stop::check()?;
            vm.node.wait_ready(READY)?;
            let took = vm.node.started().elapsed();
            say(&format!("  {:<11} {} ready after {:.2} s", vm.name, vm.address, took.as_secs_f64()));
        }
        let start = Instant::now();
        wait_for("all machines to know each other", MEET, || {
            stop::check()?;
            for vm in &self.vms {
                let online = vm.node.network()?.peers.iter().filter(|p| p.online).count();
                anyhow::ensure!(online >= OTHERS, "{} knows {online} of {OTHERS}", vm.name);
            }
            Ok(true)
        })?;
        self.met = start.elapsed();
        say(&format!("  everybody knows everybody after {:.2} s more", self.met.as_secs_f64()));
        Ok(())
    }
}

fn private_server(server: &Server) -> Result<(Ca, Ejabberd)> {
    stop::check()?;
    let start = Instant::now();
    let ca = Ca::new()?;
    let mut setup = Setup::new(DOMAIN, server.address.into());
    let users: Vec<String> = names().map(|(name, ..)| name).collect();
    setup.users = users.iter().map(|u| (u.clone(), password(u))).collect();
    setup.groups = vec![(GROUP.to_owned(), users)];
    let xmpp = Ejabberd::start(&server.ns, &ca, &setup).context("the private server")?;
    say(&format!(
        "the private server: ejabberd at {} with TLS of a private CA, STUN and TURN, {GROUP} with six members \
         ({:.1} s)",
        server.address,
        start.elapsed().as_secs_f64()
    ));
    Ok((ca, xmpp))
}

fn machines(sites: &[Site], xmpp: &Ejabberd, ca: &Ca) -> Result<Vec<Vm>> {
    say("the machines: `ipop-fast up -c node.toml` on each, nobody types a key or an endpoint");
    let mut vms = Vec::new();
    for ((name, site, host), last) in names().zip(FIRST_ADDRESS..) {
        stop::check()?;
        let mut options = Options::new(&name, &password(&name), Members::Group(GROUP.into())).at(last);
        options.level = "info".into();
        let node = Node::spawn(&sites[site].hosts[host].ns, xmpp, &ca.pem(), options)?;
        vms.push(Vm { name, site, host, address: Ipv4Addr::new(172, 16, 10, last).into(), node });
    }
    Ok(vms)
}

/// Name, site and number there of every machine.
fn names() -> impl Iterator<Item = (String, usize, usize)> {
    let at = |(i, (site, _)): (usize, (&'static str, Gateway))| {
        (0..usize::from(VMS_A_SITE)).map(move |h| (format!("{site}-{}", h + 1), i, h))
    };
    SITES.into_iter().enumerate().flat_map(at)
}

/// Nobody but the six can reach that server.
fn password(user: &str) -> String {
    format!("demo {user}")
}
