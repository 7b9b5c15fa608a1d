//! `cargo xtask demo --social`: three friends on two federated servers, each with a subnet of their own, and all of these
//! the same.

mod show;

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ipop_tests::internet::{Gateway, Internet, Site};
use ipop_tests::node::{Members, Node, Options as NodeOptions, READY};
use ipop_tests::ns::Namespace;
use ipop_tests::process::{run, wait_for};
use ipop_tests::require::Need;
use ipop_tests::servers::{Federation, Kind, Member, federation_needs};

use super::{Options, say};
use crate::stop;

/// Everybody's subnet: nobody asked the others.
const SUBNET: &str = "172.31.0.0/16";
const HOME: &str = "home.example";
const CAMPUS: &str = "campus.example";
/// A roster goes to two servers and back.
const BEFRIEND: Duration = Duration::from_secs(20);
/// Until everybody has read the others' descriptors.
const MEET: Duration = Duration::from_secs(30);

/// Somebody, and their only machine.
struct Person {
    name: &'static str,
    domain: &'static str,
    machine: &'static str,
    gateway: Gateway,
    /// What it calls itself in its own subnet.
    address: Ipv4Addr,
}

const PEOPLE: [Person; 3] = [
    Person {
        name: "alice",
        domain: HOME,
        machine: "desktop",
        gateway: Gateway::PortRestricted,
        address: Ipv4Addr::new(172, 31, 0, 100),
    },
    Person {
        name: "bob",
        domain: HOME,
        machine: "laptop",
        gateway: Gateway::Symmetric,
        address: Ipv4Addr::new(172, 31, 0, 100),
    },
    Person {
        name: "carol",
        domain: CAMPUS,
        machine: "server",
        gateway: Gateway::Public,
        address: Ipv4Addr::new(172, 31, 0, 7),
    },
];

impl Person {
    fn jid(&self) -> String {
        format!("{}@{}", self.name, self.domain)
    }

    /// What others call the machine.
    fn dns_name(&self) -> String {
        format!("{}.{}.social.ipop", self.machine, self.name)
    }
}

/// What it needs of the machine beside tunnels.
pub(super) fn needs() -> Vec<Need> {
    let programs = ["nft", "conntrack", "iperf3", "curl", "turnserver"].map(Need::Program);
    federation_needs(&[Kind::Ejabberd, Kind::Prosody]).into_iter().chain(programs).collect()
}

/// Everything. Fields are dropped in this order: machines leave before servers and namespaces go.
struct Scene {
    nodes: Vec<Node>,
    sites: Vec<Site>,
    federation: Federation,
    _internet: Internet,
    /// From the first request until everybody had everybody as a friend.
    befriended: Duration,
    /// From then on until all machines knew each other.
    met: Duration,
}

impl Scene {
    fn start() -> Result<Self> {
        say("\nthe internet: two servers and a name server, three homes (all of them network namespaces)");
        let internet = Internet::new()?;
        let federation = servers(&internet)?;
        let mut sites = Vec::new();
        for p in &PEOPLE {
            stop::check()?;
            let site = internet.site(p.name, p.gateway, 1)?;
            let host = &site.hosts[0];
            federation.tell_names(&host.ns)?;
            say(&format!("  {:<6} {:<12} behind: {}", p.name, host.address.to_string(), p.gateway.name()));
            sites.push(site);
        }
        let mut scene = Self {
            nodes: Vec::new(),
            sites,
            federation,
            _internet: internet,
            befriended: Duration::ZERO,
            met: Duration::ZERO,
        };
        scene.start_nodes()?;
        scene.befriend()?;
        scene.meet()?;
        Ok(scene)
    }

    fn ns(&self, n: usize) -> &Namespace {
        &self.sites[n].hosts[0].ns
    }

    fn start_nodes(&mut self) -> Result<()> {
        say("the machines: `ipop-fast up -c node.toml` on each; servers are found by SRV records");
        for (p, site) in PEOPLE.iter().zip(&self.sites) {
            stop::check()?;
            let mut options = NodeOptions::new(p.name, &password(p.name), Members::Friends(SUBNET.into()));
            options.name = p.machine.into();
            options.address = Some(p.address.into());
            options.xmpp_lines = Some(format!("ca_file = \"{}\"\n", self.federation.ca.pem().display()));
            options.level = "info".into();
            let (server, ca) = (self.federation.server(p.domain)?, self.federation.ca.pem());
            self.nodes.push(Node::spawn(&site.hosts[0].ns, server, &ca, options)?);
        }
        for (node, p) in self.nodes.iter_mut().zip(&PEOPLE) {
            node.wait_ready(READY)?;
            wait_for(&format!("{} to be online", p.name), READY, || {
                stop::check()?;
                let xmpp = node.status()?.xmpp;
                ensure!(xmpp.online, "{}", xmpp.detail);
                Ok(true)
            })?;
            say(&format!("  {:<20} {:<8} {} in {SUBNET}, online", p.jid(), p.machine, p.address));
        }
        Ok(())
    }

    /// As people would: one asks, the other accepts.
    fn befriend(&mut self) -> Result<()> {
        let start = Instant::now();
        for (to, second) in PEOPLE.iter().enumerate() {
            for (from, first) in PEOPLE.iter().enumerate().take(to) {
                let (asks, accepts) = (first.jid(), second.jid());
                say(&format!("  {asks}: ipop-fast friends add {accepts}"));
                // The server may not have sent the list of friends yet.
                wait_for("the request to be taken", BEFRIEND, || {
                    stop::check()?;
                    run(&mut self.nodes[from].ask(&["friends", "add", &accepts])?).map(|_| true)
                })?;
                wait_for("the request", BEFRIEND, || {
                    stop::check()?;
                    let list = run(&mut self.nodes[to].ask(&["friends", "list"])?)?;
                    ensure!(list.contains(&asks), "not in {list:?}");
                    Ok(true)
                })?;
                say(&format!("  {accepts}: ipop-fast friends accept {asks}"));
                run(&mut self.nodes[to].ask(&["friends", "accept", &asks])?)?;
            }
        }
        self.befriended = start.elapsed();
        Ok(())
    }

    fn meet(&mut self) -> Result<()> {
        let start = Instant::now();
        wait_for("all machines to know each other", MEET, || {
            stop::check()?;
            for (node, p) in self.nodes.iter().zip(&PEOPLE) {
                let online = node.network()?.peers.iter().filter(|q| q.online).count();
                ensure!(online >= PEOPLE.len() - 1, "{}'s knows {online} of {}", p.name, PEOPLE.len() - 1);
            }
            Ok(true)
        })?;
        self.met = start.elapsed();
        // Programs ask the node for its names and the internet for all others; systemd-resolved does that where it runs.
        for (n, p) in PEOPLE.iter().enumerate() {
            self.ns(n).set_resolver(&[p.address.into(), self.federation.dns.address()])?;
        }
        say(&format!(
            "  friends after {:.2} s, everybody's machine knows everybody's after {:.2} s more",
            self.befriended.as_secs_f64(),
            self.met.as_secs_f64()
        ));
        Ok(())
    }

    /// How `from` sees the machine of `to`: its link, and the address that only `from` has for it.
    fn peer(&self, from: usize, to: usize) -> Result<(control::admin::status::LinkStatus, Option<IpAddr>)> {
        let peer = self.nodes[from].peer(&self.nodes[to])?;
        let addresses = peer.addresses.iter().filter_map(|a| a.split('/').next()?.parse::<IpAddr>().ok());
        Ok((peer.link, addresses.into_iter().find(IpAddr::is_ipv4)))
    }

    fn alive(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(Node::alive)
    }
}

fn servers(internet: &Internet) -> Result<Federation> {
    stop::check()?;
    let start = Instant::now();
    let of = |domain: &str| -> Vec<(&'static str, String)> {
        PEOPLE.iter().filter(|p| p.domain == domain).map(|p| (p.name, password(p.name))).collect()
    };
    let (home, campus) = (of(HOME), of(CAMPUS));
    let [home, campus] = [&home, &campus].map(|all| all.iter().map(|(u, p)| (*u, p.as_str())).collect::<Vec<_>>());
    let members = [
        Member { turn: true, ..Member::new(Kind::Ejabberd, HOME, &home) },
        Member { turn: true, ..Member::new(Kind::Prosody, CAMPUS, &campus) },
    ];
    let federation = Federation::start(internet, &members)?;
    for (m, machine) in members.iter().zip(&federation.machines) {
        say(&format!("  {:<15} {} at {}, STUN and TURN beside it", m.domain, m.kind.name(), machine.address));
    }
    say(&format!("  they talk to each other with TLS of a private CA ({:.1} s)", start.elapsed().as_secs_f64()));
    Ok(federation)
}

/// Nobody but the three can reach these servers.
fn password(user: &str) -> String {
    format!("demo {user}")
}

pub(super) fn run_demo(options: &Options) -> Result<()> {
    let mut scene = Scene::start()?;
    let web = show::Web::start(&scene)?;
    let shown = show::show(&scene, options);
    if shown.is_err() && !stop::asked() {
        for (node, p) in scene.nodes.iter().zip(&PEOPLE) {
            let log = node.log();
            let lines: Vec<&str> = log.lines().collect();
            say(&format!(
                "--- end of the log of {} ---\n{}",
                p.name,
                lines[lines.len().saturating_sub(25)..].join("\n")
            ));
        }
    }
    shown?;
    scene.alive()?;
    if !options.once {
        stay(&scene)?;
    }
    drop(web);
    say("\ncleaning up: machines leave, servers and namespaces go ...");
    Ok(())
}

fn stay(scene: &Scene) -> Result<()> {
    say("\nThe machines stay up until Ctrl-C. Look around from another terminal:");
    let line = |c: &Command| {
        let words: Vec<_> = c.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        format!("{} {}", c.get_program().to_string_lossy(), words.join(" "))
    };
    for (n, (node, p)) in scene.nodes.iter().zip(&PEOPLE).enumerate() {
        say(&format!("  {:<6} {}", p.name, line(&node.status_command()?)));
        say(&format!("         {}", line(&node.ask(&["names"])?)));
        let other = PEOPLE[(n + 1) % PEOPLE.len()].dns_name();
        say(&format!("         ip netns exec {} curl http://{other}:{}/", scene.ns(n).name(), show::HTTP));
    }
    while !stop::asked() {
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
