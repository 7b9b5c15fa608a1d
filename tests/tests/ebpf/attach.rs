//! The guard at a real interface: drops there, passes the rest, and is gone with its process.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipop_tests::daemon::{Daemon, Implementation, Io};
use ipop_tests::junk::{Junk, flood};
use ipop_tests::ns::Namespace;
use ipop_tests::pair::{Options, Outer, Pair, Side, UNDERLAY};
use ipop_tests::process::wait_for;
use ipop_tests::require::{Need, tunnel};
use ipop_tests::scene::{Share, play};
use ipop_tests::traffic::tcp_transfer;

const HANDSHAKE: Duration = Duration::from_secs(12);
const SOON: Duration = Duration::from_secs(5);

fn ours(args: &[&str]) -> Implementation {
    let args = ["--shards", "2"].iter().chain(args).map(|s| (*s).to_owned()).collect();
    Implementation::IpopFast { io: Io::Auto, args }
}

fn scene(mode: &str, outer: Outer, body: impl FnOnce(&mut Pair, &Implementation) -> Result<()>) {
    let (plain, guarded) = (ours(&[]), ours(&["--xdp", &format!("{UNDERLAY}{mode}")]));
    let mut needs = tunnel();
    needs.extend([Need::Daemon(plain.clone()), Need::RealIpopFast]);
    play(Share::Shared, &needs, || {
        let mut pair = Pair::start(&plain, &guarded, Options { outer, ..Options::default() })?;
        pair.wait_ping(Side::A, HANDSHAKE)?;
        body(&mut pair, &guarded)
    });
}

/// Whether a program is at the underlay's interface.
fn guarded(ns: &Namespace) -> Result<bool> {
    Ok(ns.ip(&format!("link show dev {UNDERLAY}"))?.contains("xdp"))
}

fn dropped(daemon: &Daemon, name: &str) -> Result<u64> {
    let stats = daemon.stats()?.context("no counters")?;
    Ok(stats["kernel_drops"][name].as_u64().unwrap_or(0))
}

fn drops_and_leaves_nothing_behind(mode: &str, outer: Outer) {
    scene(mode, outer, |pair, _| {
        ensure!(guarded(pair.ns(Side::B))?, "nothing is attached");
        let kinds = [Junk::Random, Junk::Data(1), Junk::Initiation];
        flood(pair.ns(Side::A), pair.endpoint(Side::B), &kinds, 6_000, 20_000)?;
        for name in ["xdp_unknown_datagram", "xdp_unknown_receiver", "xdp_bad_mac"] {
            wait_for(name, SOON, || Ok(dropped(&pair.site(Side::B).daemon, name)? > 500))?;
        }
        // Longer than a frame: only its fragments came by the guard.
        let left = dropped(&pair.site(Side::B).daemon, "socket_unknown_receiver")?;
        ensure!(left < 100, "{left} strange datagrams got past the guard");
        let carried = tcp_transfer(pair.ns(Side::A), pair.ns(Side::B), Side::B.inner4(), 4 << 20, 4 * HANDSHAKE);
        carried.context("a transfer through the guard")?;
        pair.daemon(Side::B).process().kill()?;
        wait_for("the guard to be gone", SOON, || Ok(!guarded(pair.ns(Side::B))?))
    });
}

#[test]
fn it_drops_junk_and_a_killed_daemon_leaves_nothing_behind() {
    drops_and_leaves_nothing_behind(":generic", Outer::V4);
}

#[test]
fn so_it_does_in_the_driver_over_ipv6() {
    drops_and_leaves_nothing_behind(":native", Outer::V6);
}

#[test]
fn where_another_program_is_attached_that_one_stays_and_the_tunnel_works() {
    scene(":generic", Outer::V4, |pair, guarded_too| {
        let second = Daemon::start(pair.ns(Side::B), guarded_too)?;
        let stats = second.stats()?.context("no counters")?;
        let said = stats["capabilities"]["ebpf_note"].as_str().unwrap_or_default().to_owned();
        ensure!(said.contains("another program is attached"), "{said:?}");
        ensure!(stats["capabilities"]["ebpf"] == true, "the programs at its sockets are not of the guard's: {stats}");
        drop(second);
        ensure!(guarded(pair.ns(Side::B))?, "the first one's is gone");
        flood(pair.ns(Side::A), pair.endpoint(Side::B), &[Junk::Data(1)], 1_000, 20_000)?;
        let daemon = &pair.site(Side::B).daemon;
        wait_for("drops of the first", SOON, || Ok(dropped(daemon, "xdp_unknown_receiver")? > 500))?;
        ensure!(pair.pings(Side::A, Side::B.inner4()), "the tunnel does not work");
        pair.both_run()
    });
}
