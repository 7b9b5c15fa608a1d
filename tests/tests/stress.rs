//! Many peers, moving prefixes, packets to nowhere; and the books kept right.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipop_tests::daemon::{Daemon, Implementation};
use ipop_tests::ns::{Namespace, link};
use ipop_tests::pair::{Options, Pair, Side};
use ipop_tests::process::{output, wait_for};
use ipop_tests::require::{Need, tunnel};
use ipop_tests::scene::{Share, play};
use ipop_tests::traffic::{socket, tcp_transfer};
use ipop_tests::wg::{Dump, Keys, setconf, wg};
use serde_json::Value;

const HANDSHAKE: Duration = Duration::from_secs(12);
/// Peers in the hub's table; three of them are real.
const PEERS: usize = 1_000;
const SPOKES: u8 = 3;
/// Datagrams of one GSO call at most (UDP_MAX_SEGMENTS of newer kernels).
const LONGEST_RUN: u64 = 128;

fn scene(body: impl FnOnce(&Implementation) -> Result<()>) {
    let ours = Implementation::under_test();
    let mut needs = tunnel();
    needs.push(Need::Daemon(ours.clone()));
    play(Share::Shared, &needs, || body(&ours));
}

struct Spoke {
    daemon: Daemon,
    ns: Namespace,
    keys: Keys,
}

/// A spoke with its own link to the hub and 172.16.0.N inside.
fn spoke(hub: &Namespace, hub_key: &str, n: u8, ours: &Implementation) -> Result<Spoke> {
    let (ns, keys) = (Namespace::new("spoke")?, Keys::generate()?);
    let outer = |host| format!("10.99.{n}.{host}/24");
    link((hub, &format!("ul{n}"), &[&outer(1)]), (&ns, "ul0", &[&outer(2)]))?;
    let daemon = Daemon::start(&ns, ours)?;
    let config = format!(
        "[Interface]\nPrivateKey={}\n[Peer]\nPublicKey={hub_key}\nEndpoint=10.99.{n}.1:51820\nAllowedIPs=172.16.0.0/16\n",
        keys.private
    );
    setconf(daemon.interface(), &config)?;
    ns.ip(&format!("addr add 172.16.0.{n}/16 dev {}", daemon.interface()))?;
    ns.ip(&format!("link set {} mtu 1420 up", daemon.interface()))?;
    Ok(Spoke { daemon, ns, keys })
}

fn pings(ns: &Namespace, to: &str) -> bool {
    output(ns.command("ping").args(["-n", "-qc1", "-W1", to])).is_ok_and(|o| o.status.success())
}

#[test]
fn a_thousand_peers_are_configured_at_once_and_the_active_ones_reach_each_other() {
    scene(|ours| {
        let hub = Namespace::new("hub")?;
        let mut daemon = Daemon::start(&hub, ours)?;
        let dev = daemon.interface().to_owned();
        let keys = Keys::generate()?;
        let spokes = (1..=SPOKES).map(|n| spoke(&hub, &keys.public, n, ours)).collect::<Result<Vec<_>>>()?;
        let mut config = format!("[Interface]\nPrivateKey = {}\nListenPort = 51820\n", keys.private);
        for n in 1..=PEERS {
            let real = u8::try_from(n).ok().and_then(|i| spokes.get(usize::from(i) - 1));
            let public = match real {
                Some(s) => s.keys.public.clone(),
                None => Keys::generate()?.public,
            };
            let (hi, lo) = (n / 256, n % 256);
            let _ = write!(config, "[Peer]\nPublicKey = {public}\nAllowedIPs = 172.16.{hi}.{lo}/32, fd10::{n:x}/128\n");
        }
        setconf(&dev, &config)?;
        ensure!(Dump::read(&dev)?.peers.len() == PEERS, "{} peers", Dump::read(&dev)?.peers.len());
        hub.ip(&format!("addr add 172.16.255.254/16 dev {dev}"))?;
        hub.ip(&format!("link set {dev} mtu 1420 up"))?;
        output(hub.command("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]))?;
        for s in &spokes {
            wait_for("a spoke to reach the hub", HANDSHAKE, || Ok(pings(&s.ns, "172.16.255.254")))?;
        }
        // In by one peer and out by another, through the hub's own routing.
        ensure!(pings(&spokes[0].ns, "172.16.0.2") && pings(&spokes[1].ns, "172.16.0.3"), "spokes do not meet");
        tcp_transfer(&spokes[0].ns, &spokes[2].ns, IpAddr::from([172, 16, 0, 3]), 10_000_000, Duration::from_secs(60))?;

        // Packets for peers without an endpoint pile up nowhere.
        let from = socket(&hub, "172.16.255.254:0".parse()?)?;
        for n in 4..PEERS {
            let target = std::net::SocketAddr::from(([172, 16, u8::try_from(n / 256)?, u8::try_from(n % 256)?], 9));
            for _ in 0..20 {
                // The kernel may refuse when the device's queue is full.
                let _ = from.send_to(&[0; 1000], target);
            }
        }
        ensure!(pings(&spokes[0].ns, "172.16.255.254"), "the hub is stuck");

        // Half of them removed again, in one go.
        let half: String = config.split_inclusive("/128\n").take(PEERS / 2).collect();
        setconf(&dev, &half)?;
        ensure!(Dump::read(&dev)?.peers.len() == PEERS / 2, "peers were not removed");
        wait_for("a spoke after setconf", Duration::from_secs(23), || Ok(pings(&spokes[0].ns, "172.16.255.254")))?;
        ensure!(daemon.process().running(), "the hub has ended:\n{}", daemon.process().tail());
        Ok(())
    });
}

#[test]
fn a_prefix_moved_between_two_live_peers_moves_the_traffic_and_the_source_check() {
    scene(|ours| {
        let hub = Namespace::new("hub")?;
        let daemon = Daemon::start(&hub, ours)?;
        let (dev, keys) = (daemon.interface().to_owned(), Keys::generate()?);
        let spokes = [spoke(&hub, &keys.public, 1, ours)?, spoke(&hub, &keys.public, 2, ours)?];
        let config = format!(
            "[Interface]\nPrivateKey={}\nListenPort=51820\n[Peer]\nPublicKey={}\nAllowedIPs=172.16.0.1/32\n\
             [Peer]\nPublicKey={}\nAllowedIPs=172.16.0.2/32\n",
            keys.private, spokes[0].keys.public, spokes[1].keys.public
        );
        setconf(&dev, &config)?;
        hub.ip(&format!("addr add 172.16.255.254/16 dev {dev}"))?;
        hub.ip(&format!("link set {dev} up"))?;
        for s in &spokes {
            s.ns.ip(&format!("addr add 172.16.77.1/32 dev {}", s.daemon.interface()))?;
            wait_for("the hub", HANDSHAKE, || Ok(pings(&s.ns, "172.16.255.254")))?;
        }
        for round in 0..6 {
            let (owner, other) = (&spokes[round % 2], &spokes[(round + 1) % 2]);
            wg(&format!("set {dev} peer {} allowed-ips +172.16.77.1/32", owner.keys.public))
                .or_else(|_| set_whole(&dev, owner, round))?;
            ensure!(pings(&hub, "172.16.77.1"), "round {round}: the new owner is not reached");
            let from = |s: &Spoke| -> Result<bool> {
                let mut ping = s.ns.command("ping");
                Ok(output(ping.args(["-n", "-qc1", "-W1", "-I", "172.16.77.1", "172.16.255.254"]))?.status.success())
            };
            ensure!(from(owner)?, "round {round}: the owner may not speak");
            ensure!(!from(other)?, "round {round}: a peer speaks with an address that is another's");
        }
        Ok(())
    });
}

/// For a `wg` that has no `+prefix` yet: the whole list.
fn set_whole(dev: &str, owner: &Spoke, round: usize) -> Result<String> {
    let own = format!("172.16.0.{}/32", round % 2 + 1);
    wg(&format!("set {dev} peer {} allowed-ips {own},172.16.77.1/32", owner.keys.public))
}

fn counter(stats: &Value, group: &str, name: &str) -> Result<u64> {
    stats[group][name].as_u64().with_context(|| format!("no counter {group}.{name} in {stats}"))
}

/// Keepalives and handshakes aside, what goes into one end comes out at the other or is counted as dropped.
#[test]
fn packets_in_are_packets_out_plus_counted_drops() {
    let ours = Implementation::under_test();
    let mut needs = tunnel();
    needs.extend([Need::Daemon(ours.clone()), Need::RealIpopFast]);
    play(Share::Alone, &needs, || {
        let pair = Pair::start(&ours, &ours, Options::default())?;
        pair.wait_ping(Side::A, HANDSHAKE)?;
        for from in [Side::A, Side::B] {
            tcp_transfer(pair.ns(from), pair.ns(from.other()), from.other().inner4(), 50_000_000, HANDSHAKE * 4)?;
        }
        // In the tunnel's subnet, in nobody's allowed IPs.
        let lost = socket(pair.ns(Side::A), "172.16.10.1:0".parse()?)?;
        for _ in 0..500 {
            let _ = lost.send_to(&[0; 100], "172.16.10.99:9");
        }
        let read = |side| -> Result<Value> { pair.site(side).daemon.stats()?.context("no stats") };
        wait_for("the books to balance", Duration::from_secs(10), || {
            let (a, b) = (read(Side::A)?, read(Side::B)?);
            ensure!(counter(&a, "drops", "no_route")? >= 400, "packets to nowhere: {a}");
            for (x, y) in [(&a, &b), (&b, &a)] {
                let outbound = [
                    "malformed",
                    "no_route",
                    "no_path",
                    "staging_full",
                    "staging_expired",
                    "send_failed",
                    "too_big",
                    "send_buffer_full",
                    "counter_exhausted",
                ];
                let inbound = [
                    "inner_malformed",
                    "wrong_source",
                    "tun_write_failed",
                    "tun_down",
                    "unknown_receiver",
                    "session_expired",
                    "forged",
                    "replayed",
                    "truncated",
                ];
                let sum = |s: &Value, names: &[&str]| names.iter().map(|n| counter(s, "drops", n)).sum::<Result<u64>>();
                let sent = counter(x, "traffic", "tun_packets_in")?;
                let dropped = sum(x, &outbound)?;
                let (arrived, refused) = (counter(y, "traffic", "tun_packets_out")?, sum(y, &inbound)?);
                // The wire between them loses too, by full receive buffers: the kernel counts them, but one of its
                // counts may be a whole GSO run.
                let overruns = udp_overruns(if std::ptr::eq(y, &a) { pair.ns(Side::A) } else { pair.ns(Side::B) })?;
                let missing = i128::from(sent) - i128::from(dropped + arrived + refused);
                ensure!(
                    (i128::from(overruns)..=i128::from(overruns * LONGEST_RUN)).contains(&missing),
                    "in {sent}, dropped {dropped}, out {arrived}, refused {refused}, overruns {overruns}:\n{x}\n{y}"
                );
            }
            Ok(true)
        })
    });
}

/// Datagrams that found a full socket buffer in a namespace, by the kernel's own count.
fn udp_overruns(ns: &Namespace) -> Result<u64> {
    let out = output(ns.command("cat").arg("/proc/net/snmp"))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let mut udp = text.lines().filter_map(|l| l.strip_prefix("Udp: "));
    let (names, values) = (udp.next().context("no Udp line")?, udp.next().context("no Udp line")?);
    let column = names.split(' ').position(|n| n == "RcvbufErrors").context("no RcvbufErrors")?;
    Ok(values.split(' ').nth(column).context("short line")?.parse()?)
}
