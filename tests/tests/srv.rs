//! A node whose configuration names no server: it finds the one that DNS names.

use std::net::{IpAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ipop_tests::daemon::Implementation;
use ipop_tests::internet::{Dns, Internet, Server, Zone, dns_needs};
use ipop_tests::node::{Members, Node, Options, has_up};
use ipop_tests::process::wait_for;
use ipop_tests::require::{Need, tunnel};
use ipop_tests::scene::{Share, play};
use ipop_tests::servers::{self, Ca, DIRECT_TLS_PORT, PORT, Prosody, Setup, prosody_needs};

const DOMAIN: &str = "ipop.example";
const HOST: &str = "chat.ipop.example";
const CLIENT: &str = "_xmpp-client._tcp";
const DIRECT: &str = "_xmpps-client._tcp";
const USUAL: (u16, u16) = (5, 0);
/// A login on a busy machine, with every server of the domain tried on the way.
const LOGIN: Duration = Duration::from_secs(20);
/// A node that finds something wrong tries again after 30 s, a quarter more at most.
const AGAIN: Duration = Duration::from_secs(60);

/// A server, a name server and a machine for the node.
struct Stage {
    prosody: Prosody,
    dns: Dns,
    ca: Ca,
    server: Server,
    home: Server,
    _dns_machine: Server,
    internet: Internet,
}

fn scene(share: Share, port: u16, body: impl FnOnce(&mut Stage) -> Result<()>) {
    let mut needs = tunnel();
    needs.extend(prosody_needs().into_iter().chain(dns_needs()));
    needs.push(Need::Daemon(Implementation::under_test()));
    play(share, &needs, || {
        ensure!(has_up(), "the ipop-fast under test has no command `up`");
        let internet = Internet::new()?;
        let (server, dns_machine, home) = (internet.server("xmpp")?, internet.server("dns")?, internet.server("home")?);
        let setup =
            Setup::new(DOMAIN, server.address.into()).users(&[("vm", "secret")]).group("g", &["vm"]).on_port(port);
        let ca = Ca::new()?;
        let prosody = Prosody::start(&server.ns, &ca, &setup)?;
        let dns = Dns::start(&dns_machine, &Zone::new())?;
        home.ns.set_resolver(&[dns.address()])?;
        body(&mut Stage { prosody, dns, ca, server, home, _dns_machine: dns_machine, internet })
    });
}

impl Stage {
    fn zone(&self) -> Zone {
        Zone::new().host(HOST, &[self.server.address.into()])
    }

    fn options(&self) -> Options {
        let mut options = Options::new("vm", "secret", Members::Group("g".into())).at(2);
        options.xmpp_lines = Some(format!("ca_file = \"{}\"\n", self.ca.pem().display()));
        options
    }

    fn node(&self, options: Options) -> Result<Node> {
        Node::start(&self.home.ns, &self.prosody, &self.ca.pem(), options)
    }

    /// A node with these records is online in time.
    fn comes_online(&mut self, zone: &Zone) -> Result<Node> {
        self.dns.change(zone)?;
        let mut node = self.node(self.options())?;
        online(&node, LOGIN)?;
        node.alive()?;
        Ok(node)
    }

    /// To which ports of the server the node's machine is connected.
    fn connected(&self, port: u16) -> Result<bool> {
        let mut ss = self.home.ns.command("ss");
        let at = format!("{}:{port}", self.server.address);
        Ok(ipop_tests::process::run(ss.args(["-tnH", "state", "established", "dst", &at]))?.contains(&at))
    }
}

fn online(node: &Node, limit: Duration) -> Result<()> {
    wait_for("the node to be online", limit, || {
        let xmpp = node.status()?.xmpp;
        ensure!(xmpp.online, "it says: {}", xmpp.detail);
        Ok(true)
    })
}

/// Waits until the node says why it is not online.
fn says(node: &Node, pieces: &[&str]) -> Result<()> {
    wait_for(&format!("the node to say {pieces:?}"), AGAIN, || {
        let xmpp = node.status()?.xmpp;
        let all = !xmpp.online && pieces.iter().all(|p| xmpp.detail.contains(p));
        ensure!(all, "online {}: {}", xmpp.online, xmpp.detail);
        Ok(true)
    })?;
    let log = node.log();
    ensure!(pieces.iter().all(|p| log.contains(p)), "status says it, the log does not");
    Ok(())
}

#[test]
fn a_host_and_a_port_of_an_srv_record_are_found() {
    scene(Share::Shared, 5299, |stage| {
        let zone = stage.zone().service(CLIENT, DOMAIN, (HOST, 5299), USUAL);
        let _node = stage.comes_online(&zone)?;
        ensure!(stage.connected(5299)?);
        Ok(())
    });
}

#[test]
fn a_server_for_direct_tls_is_found_alone_and_preferred_if_its_record_says_so() {
    scene(Share::Shared, PORT, |stage| {
        let zone = stage.zone().service(DIRECT, DOMAIN, (HOST, DIRECT_TLS_PORT), USUAL);
        for zone in [zone.clone(), zone.service(CLIENT, DOMAIN, (HOST, PORT), (10, 0))] {
            let mut node = stage.comes_online(&zone)?;
            ensure!(stage.connected(DIRECT_TLS_PORT)? && !stage.connected(PORT)?, "not by direct TLS");
            node.leave()?;
        }
        Ok(())
    });
}

#[test]
fn without_srv_records_it_is_the_address_of_the_domain_and_port_5222() {
    scene(Share::Shared, PORT, |stage| {
        let zone = Zone::new().host(DOMAIN, &[stage.server.address.into()]);
        let mut node = stage.comes_online(&zone)?;
        ensure!(stage.connected(PORT)?);
        node.leave()?;
        // Also if direct TLS is denied, which says nothing about the other.
        let _node = stage.comes_online(&zone.without_service(DIRECT, DOMAIN))?;
        Ok(())
    });
}

#[test]
fn of_several_servers_the_dead_and_the_mute_are_passed_over_in_time() {
    scene(Share::Alone, PORT, |stage| {
        // Nobody listens; nobody has that address; somebody takes the connection and says nothing.
        let shut = stage.internet.server("shut")?;
        let mute = stage.internet.server("mute")?;
        let gone: IpAddr = [203, 0, 113, 240].into();
        let at = std::net::SocketAddr::new(mute.address.into(), PORT);
        let _listener = mute.ns.run(|| TcpListener::bind(at).context("the mute one"))?;
        for (n, dead) in [shut.address.into(), gone, mute.address.into()].into_iter().enumerate() {
            let zone = stage.zone().host("dead.ipop.example", &[dead]).service(CLIENT, DOMAIN, (HOST, PORT), (10, 0));
            let zone = zone.service(CLIENT, DOMAIN, ("dead.ipop.example", PORT), USUAL);
            let start = Instant::now();
            let mut node = stage.comes_online(&zone).with_context(|| format!("dead in way {n}"))?;
            let took = start.elapsed();
            ensure!(took < Duration::from_secs(6), "dead in way {n}: it took {took:?}");
            node.leave()?;
        }
        // One name with two addresses, of which one is dead.
        let both = Zone::new().host(HOST, &[gone, stage.server.address.into()]);
        let _node = stage.comes_online(&both.service(CLIENT, DOMAIN, (HOST, PORT), USUAL))?;
        Ok(())
    });
}

#[test]
fn a_domain_that_denies_the_service_is_told_and_tried_again() {
    scene(Share::Shared, PORT, |stage| {
        // The domain has an address, where nobody may be asked for.
        let zone = stage.zone().host(DOMAIN, &[stage.server.address.into()]).without_service(CLIENT, DOMAIN);
        stage.dns.change(&zone)?;
        let mut node = stage.node(stage.options())?;
        says(&node, &[DOMAIN, "has no XMPP server"])?;
        let zone = stage.zone().service(CLIENT, DOMAIN, (HOST, PORT), USUAL);
        stage.dns.change(&zone)?;
        online(&node, AGAIN)?;
        node.alive()
    });
}

#[test]
fn a_domain_that_does_not_exist_and_a_name_server_that_is_down_are_told_and_tried_again() {
    scene(Share::Shared, PORT, |stage| {
        let mut node = stage.node(stage.options())?;
        says(&node, &["no server found for ipop.example", "ipop.example:5222", "set `server`"])?;
        let zone = stage.zone().service(CLIENT, DOMAIN, (HOST, PORT), USUAL);
        stage.dns.change(&zone)?;
        online(&node, AGAIN)?;
        stage.dns.kill()?;
        servers::Server::restart(&mut stage.prosody)?;
        says(&node, &["no server found for ipop.example", "SRV records: "])?;
        // It ends in good time also while it waits for names.
        node.leave()?;
        node.start_again()?;
        says(&node, &["no server found for ipop.example", "SRV records: "])?;
        stage.dns.start_again()?;
        online(&node, AGAIN)?;
        node.alive()
    });
}

#[test]
fn without_ca_file_the_authorities_of_the_system_are_trusted_and_no_others() {
    scene(Share::Shared, PORT, |stage| {
        stage.dns.change(&stage.zone().service(CLIENT, DOMAIN, (HOST, PORT), USUAL))?;
        let other = Ca::new()?;
        let with = |ca: &Ca| {
            let mut options = stage.options();
            options.xmpp_lines = Some(String::new());
            options.environment =
                vec![("SSL_CERT_FILE".into(), ca.pem().display().to_string()), ("SSL_CERT_DIR".into(), String::new())];
            options
        };
        let mut node = stage.node(with(&stage.ca))?;
        online(&node, LOGIN)?;
        node.leave()?;
        let mut node = stage.node(with(&other))?;
        says(
            &node,
            &["chat.ipop.example:5222", "certificate is not to be trusted", "for ipop.example", "set ca_file"],
        )?;
        node.alive()
    });
}

/// Only what is said in order counts.
fn in_order(notes: &[String], wanted: &[&str]) -> bool {
    let mut notes = notes.iter();
    wanted.iter().all(|w| notes.any(|n| n.contains(w)))
}

#[test]
fn systemd_is_told_of_readiness_state_and_the_end() {
    scene(Share::Shared, PORT, |stage| {
        let zone = stage.zone().service(CLIENT, DOMAIN, (HOST, PORT), USUAL);
        let mut node = stage.comes_online(&zone)?;
        let told = |node: &mut Node, wanted: &[&str]| {
            let notes = node.notes().to_vec();
            ensure!(in_order(&notes, wanted), "{notes:?}, not {wanted:?}");
            Ok(true)
        };
        wait_for("READY and STATUS", LOGIN, || {
            told(&mut node, &["READY=1", "STATUS=online as vm@ipop.example/ipop-"])
        })?;
        stage.dns.kill()?;
        servers::Server::kill(&mut stage.prosody)?;
        wait_for("another STATUS", LOGIN, || told(&mut node, &["STATUS=online", "STATUS=offline"]))?;
        node.leave()?;
        told(&mut node, &["READY=1", "STATUS=offline", "STOPPING=1"]).map(drop)
    });
}
