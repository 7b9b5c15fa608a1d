//! Who plays with whole nodes: sites around an internet, an XMPP server, TURN, and a node at every site.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::daemon::Implementation;
use crate::heartbeat::Heartbeat;
use crate::internet::{Gateway, Internet, Server, Site};
use crate::node::{Members, Node, Options, first_ping, has_up};
use crate::ns::Namespace;
use crate::process::wait_for;
use crate::require::{Need, tunnel};
use crate::scene::{Share, play};
use crate::servers::{self, Ca, Ejabberd, Prosody, Setup, ejabberd_needs, prosody_needs};
use crate::turn_server::{self, TurnServer};
use anyhow::{Context, Result, ensure};
use control::admin::status::LinkStatus;

/// The group of all scenes.
pub const GROUP: &str = "my_pragma_group_1";
/// A members-only room with the same members.
pub const ROOM: &str = "room1";
/// An account that is in no group.
pub const STRANGER: &str = "stranger";
/// The first node's address is 172.16.10.2.
const FIRST_ADDRESS: u8 = 2;
const SECRET: &str = "shared with the TURN server";
/// Two nodes that are up find each other within this on a busy machine; scenes that are about time are stricter.
pub const FIND: Duration = Duration::from_secs(15);
/// What needs nothing of what has gone never falls silent for so long.
pub const SILENCE: Duration = Duration::from_secs(2);
/// Traffic is back so soon after what it needs is back.
pub const BACK: Duration = Duration::from_secs(10);

/// Which XMPP server, with which TURN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xmpp {
    /// With its own STUN and TURN.
    Ejabberd,
    /// With coturn beside it.
    ProsodyAndCoturn,
    /// Without STUN and TURN.
    Prosody,
}

/// Everything of one scene. Nodes go first, namespaces last.
#[derive(Debug)]
pub struct Cast {
    /// Node `i` is on the first host of site `i`; in a scene with one site, on host `i`.
    pub nodes: Vec<Node>,
    /// The XMPP server.
    pub xmpp: Box<dyn servers::Server>,
    /// Coturn, where the XMPP server has no TURN of its own.
    pub turn: Option<TurnServer>,
    ca: Ca,
    /// The sites.
    pub sites: Vec<Site>,
    server: Server,
    _internet: Internet,
}

/// Plays a scene if the machine has all that it needs.
///
/// # Errors
/// When it cannot be had; the message says what.
pub fn group_scene(share: Share, xmpp: Xmpp, body: impl FnOnce() -> Result<()>) {
    let mut needs = tunnel();
    needs.extend([Need::Program("nft"), Need::Program("conntrack"), Need::Daemon(Implementation::under_test())]);
    match xmpp {
        Xmpp::Ejabberd => needs.extend(ejabberd_needs()),
        Xmpp::ProsodyAndCoturn => {
            needs.extend(prosody_needs());
            needs.push(Need::Program("turnserver"));
        }
        Xmpp::Prosody => needs.extend(prosody_needs()),
    }
    play(share, &needs, || {
        ensure!(has_up(), "the ipop-fast under test has no command `up`");
        body()
    });
}

/// The account of a node.
#[must_use]
pub fn user(n: usize) -> String {
    format!("vm{n}")
}

/// Its password.
#[must_use]
pub fn password(user: &str) -> String {
    format!("password of {user}")
}

impl Cast {
    /// A site with one host for every gateway, servers, accounts; no node runs yet.
    ///
    /// # Errors
    /// When it cannot be had; the message says what.
    pub fn at_sites(xmpp: Xmpp, gateways: &[Gateway]) -> Result<Self> {
        let (internet, sites) = at_sites(gateways)?;
        Self::with(internet, sites, gateways.len(), xmpp)
    }

    /// The same, but nobody is in a group or room: nobody is anybody's contact.
    ///
    /// # Errors
    /// When it cannot be had; the message says what.
    pub fn without_groups(xmpp: Xmpp, gateways: &[Gateway]) -> Result<Self> {
        let (internet, sites) = at_sites(gateways)?;
        let server = internet.server("server")?;
        let address = server.address.into();
        Self::at(internet, sites, gateways.len(), xmpp, server, address, false)
    }

    /// One site with public addresses and so many hosts on its LAN.
    ///
    /// # Errors
    /// When it cannot be had; the message says what.
    pub fn on_a_lan(xmpp: Xmpp, hosts: u8) -> Result<Self> {
        Self::on_a_lan_behind(xmpp, Gateway::Public, hosts)
    }

    /// One site with so many hosts.
    ///
    /// # Errors
    /// When it cannot be had; the message says what.
    pub fn on_a_lan_behind(xmpp: Xmpp, gateway: Gateway, hosts: u8) -> Result<Self> {
        let internet = Internet::new()?;
        let sites = vec![internet.site("lan", gateway, hosts)?];
        Self::with(internet, sites, hosts.into(), xmpp)
    }

    /// Sites with one host each and a prosody, with nothing but IPv6 between them.
    ///
    /// # Errors
    /// When it cannot be had; the message says what.
    pub fn on_ipv6(sites: u8) -> Result<Self> {
        let internet = Internet::new()?;
        let site = |n| internet.site(&format!("site{n}"), Gateway::Public, 1);
        let sites = (0..sites).map(site).collect::<Result<Vec<_>>>()?;
        for s in &sites {
            s.only_ipv6()?;
        }
        let (server, nodes) = (internet.server("server")?, sites.len());
        let address = server.add_ipv6()?.into();
        Self::at(internet, sites, nodes, Xmpp::Prosody, server, address, true)
    }

    fn with(internet: Internet, sites: Vec<Site>, nodes: usize, xmpp: Xmpp) -> Result<Self> {
        let server = internet.server("server")?;
        let address = server.address.into();
        Self::at(internet, sites, nodes, xmpp, server, address, true)
    }

    fn at(
        internet: Internet,
        sites: Vec<Site>,
        nodes: usize,
        xmpp: Xmpp,
        server: Server,
        address: IpAddr,
        grouped: bool,
    ) -> Result<Self> {
        let ca = Ca::new()?;
        let mut setup = Setup::new("ipop.example", address);
        let members: Vec<String> = (0..nodes).map(user).collect();
        setup.users = members.iter().map(String::as_str).chain([STRANGER]).map(|u| (u.into(), password(u))).collect();
        if grouped {
            setup.groups = vec![(GROUP.into(), members.clone())];
            setup.rooms = vec![(ROOM.into(), members)];
        }
        let (xmpp, turn): (Box<dyn servers::Server>, _) = match xmpp {
            Xmpp::Ejabberd => (Box::new(Ejabberd::start(&server.ns, &ca, &setup)?), None),
            Xmpp::Prosody => (Box::new(Prosody::start(&server.ns, &ca, &setup)?), None),
            Xmpp::ProsodyAndCoturn => {
                let turn = TurnServer::start_with_secret(&server, SECRET)?;
                let at = (turn_server::address(server.address), SECRET);
                (Box::new(Prosody::start_with_turn(&server.ns, &ca, &setup, Some(at))?), Some(turn))
            }
        };
        Ok(Self { nodes: Vec::new(), xmpp, turn, ca, sites, server, _internet: internet })
    }

    /// What node `n` is told, unless a scene says otherwise.
    #[must_use]
    pub fn options(&self, n: usize) -> Options {
        let last = FIRST_ADDRESS + u8::try_from(n).unwrap_or(u8::MAX - FIRST_ADDRESS);
        Options::new(&user(n), &password(&user(n)), Members::Group(GROUP.into())).at(last)
    }

    /// What the stranger is told: the same as a member.
    #[must_use]
    pub fn stranger(&self) -> Options {
        Options::new(STRANGER, &password(STRANGER), Members::Group(GROUP.into())).at(200)
    }

    /// Where node `n` lives.
    #[must_use]
    pub fn ns(&self, n: usize) -> &Namespace {
        let (site, host) = self.place(n);
        &self.sites[site].hosts[host].ns
    }

    /// Site and host of node `n`.
    #[must_use]
    pub fn place(&self, n: usize) -> (usize, usize) {
        if self.sites.len() == 1 { (0, n) } else { (n, 0) }
    }

    /// The authority that all nodes trust.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.ca.pem()
    }

    /// The machine with the servers.
    #[must_use]
    pub fn server_address(&self) -> IpAddr {
        self.server.address.into()
    }

    /// Starts nodes with these options, the `n`-th where node `n` lives, and waits until all are ready.
    ///
    /// # Errors
    /// When it cannot be had; the message says what.
    pub fn start(&mut self, all: Vec<Options>) -> Result<()> {
        for options in all {
            let node = Node::spawn(self.ns(self.nodes.len()), self.xmpp.as_ref(), &self.ca(), options)?;
            self.nodes.push(node);
        }
        self.nodes.iter_mut().try_for_each(|n| n.wait_ready(Duration::from_secs(60)))
    }

    /// Starts a node everywhere and waits until everybody knows everybody.
    ///
    /// # Errors
    /// When it cannot be had; the message says what.
    pub fn start_all(&mut self) -> Result<()> {
        let count: usize = if self.sites.len() == 1 { self.sites[0].hosts.len() } else { self.sites.len() };
        self.start((0..count).map(|n| self.options(n)).collect())?;
        self.wait_known(count - 1)
    }

    /// Waits until every node sees so many others online.
    ///
    /// # Errors
    /// When it cannot be had; the message says what.
    pub fn wait_known(&self, others: usize) -> Result<()> {
        wait_for("all nodes to know each other", Duration::from_secs(30), || {
            for node in &self.nodes {
                let online = node.network()?.peers.iter().filter(|p| p.online).count();
                ensure!(online >= others, "{} sees {online} of {others}", node.options.name);
            }
            Ok(true)
        })
    }

    /// Pings from one node to another until it is answered.
    ///
    /// # Errors
    /// When it cannot be had; the message says what.
    pub fn reach(&self, from: usize, to: usize) -> Result<Duration> {
        let address = self.nodes[to].address()?;
        first_ping(self.ns(from), address, FIND).with_context(|| format!("{from} to {to}: {:?}", self.link(from, to)))
    }

    /// What a node says of its link to another.
    ///
    /// # Errors
    /// When it cannot be had; the message says what.
    pub fn link(&self, from: usize, to: usize) -> Result<LinkStatus> {
        Ok(self.nodes[from].peer(&self.nodes[to])?.link)
    }

    /// Starts a heartbeat between two nodes and waits for its first answer.
    ///
    /// # Errors
    /// When it cannot be had; the message says what.
    pub fn heartbeat(&self, from: usize, to: usize) -> Result<Heartbeat> {
        let start = Instant::now();
        let heart = Heartbeat::start(self.ns(from), self.ns(to), self.nodes[to].address()?)?;
        heart.wait_after(start, FIND).with_context(|| format!("{from} to {to}: {:?}", self.link(from, to)))?;
        Ok(heart)
    }

    /// Fails if a node has ended or panicked.
    ///
    /// # Errors
    /// When it cannot be had; the message says what.
    pub fn alive(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(Node::alive)
    }
}

fn at_sites(gateways: &[Gateway]) -> Result<(Internet, Vec<Site>)> {
    let internet = Internet::new()?;
    let site = |(n, g): (usize, &Gateway)| internet.site(&format!("site{n}"), *g, 1);
    let sites = gateways.iter().enumerate().map(site).collect::<Result<Vec<_>>>()?;
    Ok((internet, sites))
}

/// Waits until a node says `path` of its link.
///
/// # Errors
/// When it cannot be had; the message says what.
pub fn wait_path(cast: &Cast, from: usize, to: usize, path: &str) -> Result<LinkStatus> {
    wait_for(&format!("a {path} link from {from} to {to}"), FIND, || {
        let link = cast.link(from, to)?;
        ensure!(link.path.as_deref() == Some(path), "{link:?}");
        Ok(true)
    })?;
    cast.link(from, to)
}
