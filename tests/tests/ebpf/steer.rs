//! What the programs do for tunnels: whose shard gets a session's datagrams, also while the peer roams.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipop_ebpf::{ELSEWHERE_BURST, ELSEWHERE_INTERVAL_NS};
use ipop_tests::daemon::{Implementation, Io};
use ipop_tests::junk::{Junk, flood, index_of_b};
use ipop_tests::pair::{Options, Outer, Pair, Side};
use ipop_tests::require::{Need, tunnel};
use ipop_tests::scene::{Share, play};
use ipop_tests::traffic::ping;
use ipop_tests::wg::{setconf, wg};
use serde_json::Value;

const HANDSHAKE: Duration = Duration::from_secs(12);
/// Ports that the peer takes in turn: that the hash of all leads to one of two shards happens once in 2,000 times.
const PORTS: u16 = 12;

fn scene(io: Io, args: &[&str], options: Options, body: impl FnOnce(&mut Pair) -> Result<()>) {
    let args = ["--shards", "2"].iter().chain(args).map(|s| (*s).to_owned()).collect();
    let ours = Implementation::IpopFast { io, args };
    let mut needs = tunnel();
    needs.extend([Need::Daemon(ours.clone()), Need::RealIpopFast]);
    play(Share::Shared, &needs, || {
        let mut pair = Pair::start(&ours, &ours, options)?;
        body(&mut pair)?;
        pair.both_run()
    });
}

fn stats(pair: &Pair) -> Result<Value> {
    pair.site(Side::B).daemon.stats()?.context("no counters")
}

fn count(stats: &Value, list: &str, name: &str) -> u64 {
    stats[list][name].as_u64().unwrap_or(0)
}

/// Data at the owner and elsewhere after the peer has used one port after the other.
fn roam(pair: &Pair) -> Result<(u64, u64)> {
    pair.wait_ping(Side::A, HANDSHAKE)?;
    for port in 0..PORTS {
        wg(&format!("set {} listen-port {}", pair.interface(Side::A), 40_000 + port))?;
        ensure!(pair.pings(Side::A, Side::B.inner4()), "no answer from port {port}");
        let endpoint = pair.peer(Side::B)?.endpoint.context("no endpoint")?;
        ensure!(endpoint.port() == 40_000 + port, "the peer is still at {endpoint}");
    }
    let s = stats(pair)?;
    Ok((count(&s, "traffic", "udp_data_at_owner"), count(&s, "traffic", "udp_data_elsewhere")))
}

fn steered(io: Io, outer: Outer) {
    scene(io, &["--ebpf", "on"], Options { outer, ..Options::default() }, |pair| {
        let (own, elsewhere) = roam(pair)?;
        ensure!(own > u64::from(PORTS) && elsewhere == 0, "{own} datagrams at their owner, {elsewhere} elsewhere");
        // A port of our own is another group of sockets.
        wg(&format!("set {} listen-port 41000", pair.interface(Side::B)))?;
        let (key, to) = (&pair.site(Side::B).keys.public, pair.endpoint(Side::B).ip());
        let to = std::net::SocketAddr::new(to, 41_000);
        wg(&format!("set {} peer {key} endpoint {to}", pair.interface(Side::A)))?;
        let (own, elsewhere) = roam(pair)?;
        ensure!(own > 2 * u64::from(PORTS) && elsewhere == 0, "{own} at their owner, {elsewhere} elsewhere: new port");
        let s = stats(pair)?;
        flood(
            pair.ns(Side::A),
            to,
            &[Junk::Random, Junk::Data(1), Junk::Initiation, Junk::CookieReply],
            4_000,
            20_000,
        )?;
        let after = stats(pair)?;
        for name in ["socket_unknown_datagram", "socket_unknown_receiver", "socket_bad_mac"] {
            let n = count(&after, "kernel_drops", name) - count(&s, "kernel_drops", name);
            ensure!(n > 500, "{n} more of {name}: {after}");
        }
        // None of it is seen by a shard.
        for name in ["unknown_datagram", "unknown_receiver", "bad_mac"] {
            ensure!(count(&after, "drops", name) == count(&s, "drops", name), "{name} at a shard: {after}");
        }
        Ok(())
    });
}

#[test]
fn a_sessions_datagrams_come_to_its_owner_also_while_the_peer_roams_by_uring() {
    steered(Io::Uring, Outer::V4);
}

#[test]
fn a_sessions_datagrams_come_to_its_owner_also_while_the_peer_roams_by_mmsg_over_ipv6() {
    steered(Io::Mmsg, Outer::V6);
}

#[test]
fn without_the_programs_the_hash_scatters_them_and_all_works() {
    scene(Io::Auto, &["--ebpf", "off"], Options::default(), |pair| {
        let (own, elsewhere) = roam(pair)?;
        ensure!(own + elsewhere > u64::from(PORTS) && elsewhere > 0, "{own} at their owner, {elsewhere} elsewhere");
        let s = stats(pair)?;
        ensure!(
            s["capabilities"]["ebpf"] == false && s["kernel_drops"].as_object().is_some_and(|d| d.is_empty()),
            "{s}"
        );
        Ok(())
    });
}

/// A new session has a new index: the map has it before the first datagram comes, and the old one until it is over.
#[test]
fn nothing_is_lost_over_new_sessions() {
    scene(Io::Auto, &["--ebpf", "on"], Options::default(), |pair| {
        pair.wait_ping(Side::A, HANDSHAKE)?;
        for _ in 0..20 {
            // Longer than B minds two initiations of one peer.
            let answers = ping(pair.ns(Side::A), Side::B.inner4(), 4, Duration::from_millis(20))?;
            ensure!(answers.len() == 4, "of the first packets of a new session only {} were answered", answers.len());
            // A forgets its session and makes another.
            setconf(pair.interface(Side::A), &pair.config(Side::A))?;
        }
        let s = stats(pair)?;
        ensure!(count(&s, "traffic", "udp_data_elsewhere") == 0, "{s}");
        Ok(())
    });
}

/// Who has read a session's index off the wire, but cannot send from the peer's address, keeps no shard busy; and the
/// peer moves as before.
#[test]
fn a_flood_for_a_known_index_from_elsewhere_is_cut_and_the_peer_still_roams() {
    scene(Io::Auto, &["--ebpf", "on"], Options::default(), |pair| {
        let (index, _) = index_of_b(pair)?;
        let start = std::time::Instant::now();
        let sent = flood(pair.ns(Side::A), pair.endpoint(Side::B), &[Junk::Data(index)], 40_000, 40_000)?;
        let refilled = start.elapsed().as_nanos() as u64 / ELSEWHERE_INTERVAL_NS;
        ensure!(pair.pings(Side::A, Side::B.inner4()), "the peer gets no answer");
        let s = stats(pair)?;
        let (cut, seen) = (count(&s, "kernel_drops", "socket_elsewhere"), count(&s, "drops", "forged"));
        ensure!(cut + seen <= sent && cut > sent / 2, "of {sent} datagrams {cut} were cut and {seen} seen");
        ensure!(seen <= ELSEWHERE_BURST + 2 + refilled, "a shard saw {seen}, for {refilled} to come back");
        let (own, elsewhere) = roam(pair)?;
        ensure!(own > u64::from(PORTS) && elsewhere == 0, "{own} datagrams at their owner, {elsewhere} elsewhere");
        Ok(())
    });
}
