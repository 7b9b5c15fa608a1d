//! `cargo xtask bench --group`: what a link costs for having been negotiated. It should be nothing.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use ipop_tests::daemon::{Daemon, Implementation};
use ipop_tests::internet::{Gateway, Internet, Server, Site};
use ipop_tests::node::{INTERFACE, Members, Node, Options, first_ping, has_up};
use ipop_tests::ns::Namespace;
use ipop_tests::scene;
use ipop_tests::servers::{Ca, Prosody, Setup};
use ipop_tests::wg::{Keys, setconf};
use serde_json::Value;

use crate::measure::{median, tcp};
use crate::packages;
use crate::steps::Steps;
use crate::stop;

const GROUP: &str = "bench";
/// The first host of the tunnel that is set up by hand.
const BY_HAND: usize = 2;
const SECONDS: u32 = 8;
const FIND: std::time::Duration = std::time::Duration::from_secs(30);
/// The negotiated link may be slower by so much.
const TOLERANCE: f64 = 0.05;

/// Four hosts on a LAN: two with a negotiated link between them, and two with one set up by hand, which would be a path of
/// the former if it were on the same hosts. Only one carries anything at a time.
struct Rig {
    _by_hand: [Daemon; 2],
    _nodes: [Node; 2],
    _xmpp: Prosody,
    _ca: Ca,
    site: Site,
    _server: Server,
    _internet: Internet,
}

pub(super) fn run(rounds: u32) -> Result<()> {
    let mut steps = Steps::new("bench-logs")?;
    packages::install(&mut steps)?;
    packages::demand_tunnels()?;
    scene::sweep();
    packages::ipop_fast(&mut steps, packages::Build::Release)?;
    ensure!(has_up(), "the ipop-fast under test has no command `up`: is IPOP_FAST another program?");
    let rig = Rig::start()?;
    let (mut group, mut by_hand) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        for (name, from, to, rates) in
            [("negotiated", 0, group_address(1), &mut group), ("by hand", BY_HAND, hand_address(1), &mut by_hand)]
        {
            stop::check()?;
            let gbps = tcp(rig.ns(from), rig.ns(from + 1), to, SECONDS)?;
            eprintln!("round {round} of {rounds}: {name:<10} {gbps:.2} Gbit/s");
            rates.push(gbps);
        }
    }
    let (group, by_hand) = (median(&group).context("no round")?, median(&by_hand).context("no round")?);
    let ratio = group / by_hand;
    let verdict = if ratio >= 1.0 - TOLERANCE { "within" } else { "NOT within" };
    println!(
        "TCP over a negotiated link: {group:.2} Gbit/s; over one set up by hand: {by_hand:.2} Gbit/s; {:.1} %, {verdict} \
         {:.0} % (medians of {rounds} rounds of {SECONDS} s)",
        ratio * 100.0,
        TOLERANCE * 100.0
    );
    ensure!(ratio >= 1.0 - TOLERANCE, "a link must not cost anything for having been negotiated");
    Ok(())
}

fn group_address(n: u8) -> IpAddr {
    IpAddr::from([172, 16, 10, 2 + n])
}

fn hand_address(n: u8) -> IpAddr {
    IpAddr::from([172, 16, 20, 2 + n])
}

impl Rig {
    fn start() -> Result<Self> {
        let internet = Internet::new()?;
        let (server, site) = (internet.server("server")?, internet.site("lan", Gateway::Public, 4)?);
        let ca = Ca::new()?;
        let users = [("vm0", "password of vm0"), ("vm1", "password of vm1")];
        let setup = Setup::new("ipop.example", server.address.into()).users(&users).group(GROUP, &["vm0", "vm1"]);
        let xmpp = Prosody::start(&server.ns, &ca, &setup)?;
        let node = |n: u8| -> Result<Node> {
            let (user, password) = users[usize::from(n)];
            let mut options = Options::new(user, password, Members::Group(GROUP.into())).at(2 + n).proactive();
            options.level = "warn".into();
            Node::start(&site.hosts[usize::from(n)].ns, &xmpp, &ca.pem(), options)
        };
        let nodes = [node(0)?, node(1)?];
        let near = &site.hosts[0].ns;
        first_ping(near, group_address(1), FIND).with_context(|| format!("{:?}", nodes[0].network()))?;
        let mtu = mtu(near)?;
        let by_hand = tunnel(&site, mtu)?;
        first_ping(&site.hosts[BY_HAND].ns, hand_address(1), FIND)?;
        Ok(Self { _by_hand: by_hand, _nodes: nodes, _xmpp: xmpp, _ca: ca, site, _server: server, _internet: internet })
    }

    fn ns(&self, n: usize) -> &Namespace {
        &self.site.hosts[n].ns
    }
}

fn mtu(ns: &Namespace) -> Result<u64> {
    let text = ns.ip(&format!("-j link show dev {INTERFACE}"))?;
    serde_json::from_str::<Value>(&text)?[0]["mtu"].as_u64().context("no MTU of the overlay interface")
}

/// A tunnel between the two hosts with keys and endpoints set by hand, and the MTU of the other.
fn tunnel(site: &Site, mtu: u64) -> Result<[Daemon; 2]> {
    let ours = Implementation::under_test();
    let hosts = &site.hosts[BY_HAND..];
    let start = |n: usize| Daemon::start_logging(&hosts[n].ns, &ours, "error");
    let (daemons, keys) = ([start(0)?, start(1)?], [Keys::generate()?, Keys::generate()?]);
    for (n, other) in [(0_u8, 1_u8), (1, 0)] {
        let (me, it) = (usize::from(n), usize::from(other));
        let config = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = 51999\n[Peer]\nPublicKey = {}\nAllowedIPs = {}/32\n\
             Endpoint = {}:51999\n",
            keys[me].private,
            keys[it].public,
            hand_address(other),
            hosts[it].address
        );
        let dev = daemons[me].interface();
        setconf(dev, &config)?;
        hosts[me].ns.ip(&format!("addr add {}/24 dev {dev}", hand_address(n)))?;
        hosts[me].ns.ip(&format!("link set {dev} mtu {mtu} up"))?;
    }
    Ok(daemons)
}
