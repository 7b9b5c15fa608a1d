//! Friends on two servers: each found by DNS, told of each other by federation.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ipop_tests::cast::{BACK, FIND, SILENCE};
use ipop_tests::daemon::Implementation;
use ipop_tests::heartbeat::Heartbeat;
use ipop_tests::internet::{Gateway, Internet, Site};
use ipop_tests::node::{Members, Node, Options, first_ping, has_up};
use ipop_tests::ns::Namespace;
use ipop_tests::process::wait_for;
use ipop_tests::raw_xmpp::Raw;
use ipop_tests::require::{Need, tunnel};
use ipop_tests::scene::{Share, play};
use ipop_tests::servers::{Federation, Kind, Member, Server, federation_needs};
use ipop_tests::traffic::{Seen, tcp_transfer};
use nix::sys::signal::Signal;

use crate::cast::{CLOSED, OWN, SUBNET, TRY, four, friend, tell};

const USERS: [&[(&str, &str)]; 2] = [&[("alice", "secret-a")], &[("bob", "secret-b")]];
const DOMAINS: [&str; 2] = ["one.example", "two.example"];
/// An Erlang VM takes its time to end, too.
const STOP: Duration = Duration::from_secs(30);
const TRANSFER: Duration = Duration::from_secs(60);

/// Node 0 is alice's, on the first server; node 1 is bob's, on the second. Nodes go first, namespaces last.
struct Two {
    nodes: Vec<Node>,
    federation: Federation,
    sites: Vec<Site>,
    _internet: Internet,
}

fn scene(share: Share, kinds: [Kind; 2], body: impl FnOnce(&mut Two) -> Result<()>) {
    let mut needs = tunnel();
    needs.extend(federation_needs(&kinds));
    needs.extend([Need::Program("nft"), Need::Program("conntrack"), Need::Daemon(Implementation::under_test())]);
    play(share, &needs, || {
        ensure!(has_up(), "the ipop-fast under test has no command `up`");
        let mut two = Two::start(kinds)?;
        body(&mut two)?;
        two.nodes.iter_mut().try_for_each(Node::alive)
    });
}

impl Two {
    fn start(kinds: [Kind; 2]) -> Result<Self> {
        let internet = Internet::new()?;
        let members = [0, 1].map(|n| Member::new(kinds[n], DOMAINS[n], USERS[n]));
        let federation = Federation::start(&internet, &members)?;
        let gateways = [Gateway::Public, Gateway::PortRestricted];
        let site = |n: usize| internet.site(USERS[n][0].0, gateways[n], 1);
        let sites = [0, 1].map(site).into_iter().collect::<Result<Vec<_>>>()?;
        let ca = federation.ca.pem();
        let mut nodes = Vec::new();
        for (n, site) in sites.iter().enumerate() {
            let (user, password) = USERS[n][0];
            let mut options = Options::new(user, password, Members::Friends(SUBNET.into()));
            options.address = OWN.parse().ok();
            options.xmpp_lines = Some(format!("ca_file = \"{}\"\n", ca.display()));
            federation.tell_names(&site.hosts[0].ns)?;
            nodes.push(Node::start(&site.hosts[0].ns, federation.servers[n].as_ref(), &ca, options)?);
        }
        let two = Self { nodes, federation, sites, _internet: internet };
        two.befriend()?;
        Ok(two)
    }

    fn befriend(&self) -> Result<()> {
        let [alice, bob] = [&self.nodes[0], &self.nodes[1]];
        wait_for("both to be online", FIND, || Ok(alice.status()?.xmpp.online && bob.status()?.xmpp.online))?;
        wait_for("the request to be taken", FIND, || tell(alice, "add", &bob.jid).map(|()| true))?;
        wait_for("the request", FIND, || Ok(bob.status()?.requests.contains(&alice.jid)))?;
        tell(bob, "accept", &alice.jid)?;
        self.know(FIND)
    }

    /// Waits until each knows the other's node as one that is there.
    fn know(&self, limit: Duration) -> Result<()> {
        wait_for("the friends to know each other", limit, || {
            for (a, b) in [(0, 1), (1, 0)] {
                let peer = self.nodes[a].peer(&self.nodes[b])?;
                ensure!(peer.online && four(&peer).is_some(), "{a} knows {peer:?}");
                let state = friend(&self.nodes[a], &self.nodes[b].jid)?.state;
                ensure!(state == "friend", "to {a}, the other is {state}");
            }
            Ok(true)
        })
    }

    fn ns(&self, n: usize) -> &Namespace {
        &self.sites[n].hosts[0].ns
    }

    /// What one calls the other.
    fn lease(&self, from: usize, to: usize) -> Result<IpAddr> {
        four(&self.nodes[from].peer(&self.nodes[to])?).with_context(|| format!("{from} has no address for {to}"))
    }

    fn reach(&self) -> Result<()> {
        for (a, b) in [(0, 1), (1, 0)] {
            first_ping(self.ns(a), self.lease(a, b)?, FIND)?;
        }
        Ok(())
    }
}

/// They meet, over their own names for each other; one leaves and is back; one blocks the other, and not any more.
fn meet_part_and_block(two: &mut Two) -> Result<()> {
    two.reach()?;
    let (there, here) = (two.nodes[1].address()?, two.lease(0, 1)?);
    tcp_transfer(two.ns(0), two.ns(1), Seen { there, here }, 10_000_000, TRANSFER)?;
    two.nodes[1].leave()?;
    wait_for("bob to be gone", BACK, || Ok(!two.nodes[0].peer(&two.nodes[1])?.online))?;
    two.nodes[1].start_again()?;
    two.know(FIND)?;
    ensure!(two.lease(0, 1)? == here, "he has another address: {} was {here}", two.lease(0, 1)?);
    two.reach()?;
    // With any client of his.
    let (server, (user, password)) = (&two.federation.servers[1], USERS[1][0]);
    let machine = &two.federation.machines[1].ns;
    let mut bob = Raw::login_from(machine, server.direct_tls_address(), DOMAINS[1], user, password)?;
    let item = format!("<item jid='{}'/>", two.nodes[0].jid);
    bob.say(&format!("<iq type='set' id='b1'><block xmlns='urn:xmpp:blocking'>{item}</block></iq>"))?;
    bob.stanza(&["<iq", "id='b1'", "type='result'"])?;
    let (alice, bobs) = (&two.nodes[0], &two.nodes[1]);
    wait_for("alice to be blocked", CLOSED, || {
        let known = friend(bobs, &alice.jid)?;
        ensure!(known.blocked, "{known:?}");
        Ok(bobs.network()?.peers.is_empty())
    })?;
    ensure!(first_ping(two.ns(0), here, TRY).is_err(), "who is blocked is answered");
    bob.say(&format!("<iq type='set' id='b2'><unblock xmlns='urn:xmpp:blocking'>{item}</unblock></iq>"))?;
    bob.stanza(&["<iq", "id='b2'", "type='result'"])?;
    two.know(FIND)?;
    two.reach()
}

#[test]
fn friends_on_two_prosodies_meet_part_and_block_each_other() {
    scene(Share::Alone, [Kind::Prosody, Kind::Prosody], meet_part_and_block);
}

#[test]
fn friends_on_two_ejabberds_meet_part_and_block_each_other() {
    scene(Share::Alone, [Kind::Ejabberd, Kind::Ejabberd], meet_part_and_block);
}

#[test]
fn friends_on_an_ejabberd_and_a_prosody_meet_part_and_block_each_other() {
    scene(Share::Alone, [Kind::Ejabberd, Kind::Prosody], meet_part_and_block);
}

/// What is up goes on; when the server is back, so are its users, and links can be made.
fn the_other_server_goes(two: &mut Two, end: impl FnOnce(&mut dyn Server) -> Result<()>) -> Result<()> {
    two.reach()?;
    let start = Instant::now();
    let heart = Heartbeat::start(two.ns(0), two.ns(1), two.lease(0, 1)?)?;
    heart.wait_after(start, FIND)?;
    let beating = Instant::now();
    end(two.federation.servers[1].as_mut())?;
    wait_for("bob to be offline", BACK, || Ok(!two.nodes[1].status()?.xmpp.online))?;
    ensure!(two.nodes[0].status()?.xmpp.online, "alice's server is another");
    two.federation.servers[1].restart()?;
    two.know(FIND)?;
    let silence = heart.longest_silence(beating)?;
    ensure!(silence < SILENCE, "the link was silent for {silence:?}");
    // A link from nothing takes both servers.
    two.nodes[1].kill()?;
    two.nodes[1].start_again()?;
    two.know(FIND)?;
    two.reach()
}

#[test]
fn a_prosody_that_is_killed_leaves_its_users_friends_elsewhere_their_links() {
    scene(Share::Alone, [Kind::Ejabberd, Kind::Prosody], |two| the_other_server_goes(two, |server| server.kill()));
}

#[test]
fn an_ejabberd_that_is_restarted_leaves_its_users_friends_elsewhere_their_links() {
    // In order: killed, it forgets the last two seconds, and with them the friendship.
    scene(Share::Alone, [Kind::Prosody, Kind::Ejabberd], |two| {
        the_other_server_goes(two, |server| {
            server.process().signal(Signal::SIGTERM)?;
            server.process().wait(STOP).map(drop)
        })
    });
}
