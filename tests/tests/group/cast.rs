//! Who plays: sites around an internet, an XMPP server, TURN, and a node at every site.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use control::admin::status::LinkStatus;
use ipop_tests::daemon::Implementation;
use ipop_tests::heartbeat::Heartbeat;
use ipop_tests::internet::{Gateway, Internet, Server, Site};
use ipop_tests::node::{Members, Node, Options, first_ping, has_up};
use ipop_tests::ns::Namespace;
use ipop_tests::process::wait_for;
use ipop_tests::require::{Need, tunnel};
use ipop_tests::scene::{Share, play};
use ipop_tests::servers::{self, Ca, Ejabberd, Prosody, Setup, ejabberd_needs, prosody_needs};
use ipop_tests::turn_server::{self, TurnServer};

/// The group of all scenes.
pub(crate) const GROUP: &str = "my_pragma_group_1";
/// A members-only room with the same members.
pub(crate) const ROOM: &str = "room1";
/// An account that is in no group.
pub(crate) const STRANGER: &str = "stranger";
/// The first node's address is 172.16.10.2.
const FIRST_ADDRESS: u8 = 2;
const SECRET: &str = "shared with the TURN server";
/// Two nodes that are up find each other within this on a busy machine; scenes that are about time are stricter.
pub(crate) const FIND: Duration = Duration::from_secs(15);
/// What needs nothing of what has gone never falls silent for so long.
pub(crate) const SILENCE: Duration = Duration::from_secs(2);
/// Traffic is back so soon after what it needs is back.
pub(crate) const BACK: Duration = Duration::from_secs(10);

/// Which XMPP server, with which TURN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Xmpp {
    /// With its own STUN and TURN.
    Ejabberd,
    /// With coturn beside it.
    ProsodyAndCoturn,
    /// Without STUN and TURN.
    Prosody,
}

/// Everything of one scene. Nodes go first, namespaces last.
#[derive(Debug)]
pub(crate) struct Cast {
    /// Node `i` is on the first host of site `i`; in a scene with one site, on host `i`.
    pub(crate) nodes: Vec<Node>,
    /// The XMPP server.
    pub(crate) xmpp: Box<dyn servers::Server>,
    /// Coturn, where the XMPP server has no TURN of its own.
    pub(crate) turn: Option<TurnServer>,
    ca: Ca,
    /// The sites.
    pub(crate) sites: Vec<Site>,
    server: Server,
    _internet: Internet,
}

/// Plays a scene if the machine has all that it needs.
pub(crate) fn group_scene(share: Share, xmpp: Xmpp, body: impl FnOnce() -> Result<()>) {
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
pub(crate) fn user(n: usize) -> String {
    format!("vm{n}")
}

fn password(user: &str) -> String {
    format!("password of {user}")
}

impl Cast {
    /// A site with one host for every gateway, servers, accounts; no node runs yet.
    pub(crate) fn at_sites(xmpp: Xmpp, gateways: &[Gateway]) -> Result<Self> {
        let internet = Internet::new()?;
        let site = |(n, g): (usize, &Gateway)| internet.site(&format!("site{n}"), *g, 1);
        let sites = gateways.iter().enumerate().map(site).collect::<Result<Vec<_>>>()?;
        Self::with(internet, sites, gateways.len(), xmpp)
    }

    /// One site with public addresses and so many hosts on its LAN.
    pub(crate) fn on_a_lan(xmpp: Xmpp, hosts: u8) -> Result<Self> {
        Self::on_a_lan_behind(xmpp, Gateway::Public, hosts)
    }

    /// One site with so many hosts.
    pub(crate) fn on_a_lan_behind(xmpp: Xmpp, gateway: Gateway, hosts: u8) -> Result<Self> {
        let internet = Internet::new()?;
        let sites = vec![internet.site("lan", gateway, hosts)?];
        Self::with(internet, sites, hosts.into(), xmpp)
    }

    /// Sites with one host each and a prosody, with nothing but IPv6 between them.
    pub(crate) fn on_ipv6(sites: u8) -> Result<Self> {
        let internet = Internet::new()?;
        let site = |n| internet.site(&format!("site{n}"), Gateway::Public, 1);
        let sites = (0..sites).map(site).collect::<Result<Vec<_>>>()?;
        for s in &sites {
            s.only_ipv6()?;
        }
        let (server, nodes) = (internet.server("server")?, sites.len());
        let address = server.add_ipv6()?.into();
        Self::at(internet, sites, nodes, Xmpp::Prosody, server, address)
    }

    fn with(internet: Internet, sites: Vec<Site>, nodes: usize, xmpp: Xmpp) -> Result<Self> {
        let server = internet.server("server")?;
        let address = server.address.into();
        Self::at(internet, sites, nodes, xmpp, server, address)
    }

    fn at(
        internet: Internet,
        sites: Vec<Site>,
        nodes: usize,
        xmpp: Xmpp,
        server: Server,
        address: IpAddr,
    ) -> Result<Self> {
        let ca = Ca::new()?;
        let mut setup = Setup::new("ipop.example", address);
        let members: Vec<String> = (0..nodes).map(user).collect();
        setup.users = members.iter().map(String::as_str).chain([STRANGER]).map(|u| (u.into(), password(u))).collect();
        setup.groups = vec![(GROUP.into(), members.clone())];
        setup.rooms = vec![(ROOM.into(), members)];
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
    pub(crate) fn options(&self, n: usize) -> Options {
        let last = FIRST_ADDRESS + u8::try_from(n).unwrap_or(u8::MAX - FIRST_ADDRESS);
        Options::new(&user(n), &password(&user(n)), Members::Group(GROUP.into())).at(last)
    }

    /// What the stranger is told: the same as a member.
    pub(crate) fn stranger(&self) -> Options {
        Options::new(STRANGER, &password(STRANGER), Members::Group(GROUP.into())).at(200)
    }

    /// Where node `n` lives.
    pub(crate) fn ns(&self, n: usize) -> &Namespace {
        let (site, host) = self.place(n);
        &self.sites[site].hosts[host].ns
    }

    /// Site and host of node `n`.
    pub(crate) fn place(&self, n: usize) -> (usize, usize) {
        if self.sites.len() == 1 { (0, n) } else { (n, 0) }
    }

    /// The authority that all nodes trust.
    pub(crate) fn ca(&self) -> PathBuf {
        self.ca.pem()
    }

    /// The machine with the servers.
    pub(crate) fn server_address(&self) -> IpAddr {
        self.server.address.into()
    }

    /// Starts nodes with these options, the `n`-th where node `n` lives, and waits until all are ready.
    pub(crate) fn start(&mut self, all: Vec<Options>) -> Result<()> {
        for options in all {
            let node = Node::spawn(self.ns(self.nodes.len()), self.xmpp.as_ref(), &self.ca(), options)?;
            self.nodes.push(node);
        }
        self.nodes.iter_mut().try_for_each(|n| n.wait_ready(Duration::from_secs(60)))
    }

    /// Starts a node everywhere and waits until everybody knows everybody.
    pub(crate) fn start_all(&mut self) -> Result<()> {
        let count: usize = if self.sites.len() == 1 { self.sites[0].hosts.len() } else { self.sites.len() };
        self.start((0..count).map(|n| self.options(n)).collect())?;
        self.wait_known(count - 1)
    }

    /// Waits until every node sees so many others online.
    pub(crate) fn wait_known(&self, others: usize) -> Result<()> {
        wait_for("all nodes to know each other", Duration::from_secs(30), || {
            for node in &self.nodes {
                let online = node.network()?.peers.iter().filter(|p| p.online).count();
                ensure!(online >= others, "{} sees {online} of {others}", node.options.name);
            }
            Ok(true)
        })
    }

    /// Pings from one node to another until it is answered.
    pub(crate) fn reach(&self, from: usize, to: usize) -> Result<Duration> {
        let address = self.nodes[to].address()?;
        first_ping(self.ns(from), address, FIND).with_context(|| format!("{from} to {to}: {:?}", self.link(from, to)))
    }

    /// What a node says of its link to another.
    pub(crate) fn link(&self, from: usize, to: usize) -> Result<LinkStatus> {
        Ok(self.nodes[from].peer(&self.nodes[to])?.link)
    }

    /// Starts a heartbeat between two nodes and waits for its first answer.
    pub(crate) fn heartbeat(&self, from: usize, to: usize) -> Result<Heartbeat> {
        let start = Instant::now();
        let heart = Heartbeat::start(self.ns(from), self.ns(to), self.nodes[to].address()?)?;
        heart.wait_after(start, FIND).with_context(|| format!("{from} to {to}: {:?}", self.link(from, to)))?;
        Ok(heart)
    }

    /// Fails if a node has ended or panicked.
    pub(crate) fn alive(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(Node::alive)
    }
}

/// Waits until a node says `path` of its link.
pub(crate) fn wait_path(cast: &Cast, from: usize, to: usize, path: &str) -> Result<LinkStatus> {
    wait_for(&format!("a {path} link from {from} to {to}"), FIND, || {
        let link = cast.link(from, to)?;
        ensure!(link.path.as_deref() == Some(path), "{link:?}");
        Ok(true)
    })?;
    cast.link(from, to)
}
