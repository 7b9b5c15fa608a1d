//! The program under test against itself, `wireguard-go` and `boringtun`: both back ends, both outer IP versions, the
//! handshake started from either side.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipop_tests::daemon::{Implementation, Io};
use ipop_tests::ns::add_address;
use ipop_tests::pair::{Options, Outer, Pair, Side, UNDERLAY};
use ipop_tests::process::wait_for;
use ipop_tests::relay::{Faults, Relay};
use ipop_tests::require::{Need, tunnel};
use ipop_tests::scene::{Share, play};
use ipop_tests::traffic::{Flow, tcp_transfer, udp_echo};
use ipop_tests::wg::{preshared_key, setconf, wg, wg_with_file};

const MB: u64 = 1_000_000;
/// Two handshake attempts: the first may be lost while interfaces come up (REKEY_TIMEOUT is 5 s).
const HANDSHAKE: Duration = Duration::from_secs(12);
const TRANSFER: Duration = Duration::from_secs(60);
/// KEEPALIVE_TIMEOUT + REKEY_TIMEOUT (15 s) until a peer that hears nothing starts anew, and one retry with jitter.
const SILENCE: Duration = Duration::from_secs(23);

fn with_peers(peers: &[&Implementation], body: impl FnOnce() -> Result<()>) {
    let mut needs = tunnel();
    needs.extend(peers.iter().map(|p| Need::Daemon((*p).clone())));
    play(Share::Shared, &needs, body);
}

/// One cell of the matrix; `big` moves 100 MB each way.
fn cell(peer: &Implementation, outer: Outer, io: Io, big: bool) {
    let ours = Implementation::with_io(io);
    with_peers(&[&ours, peer], || {
        for initiator in [Side::A, Side::B] {
            let mut pair =
                Pair::start(&ours, peer, Options { outer, initiator: Some(initiator), ..Options::default() })?;
            ensure!(pair.peer(initiator)?.latest_handshake.is_none(), "a handshake before the first packet");
            // The responder knows no endpoint: only the initiator can have started it.
            pair.wait_ping(initiator, HANDSHAKE)?;
            let full = initiator == Side::A;
            for from in [Side::A, Side::B] {
                let to = from.other();
                for inner in [to.inner4(), to.inner6()] {
                    wait_for(&format!("a ping from {from:?}"), HANDSHAKE, || Ok(pair.pings(from, inner)))?;
                }
                let bytes = if big && full { 100 * MB } else { 20 * MB };
                tcp_transfer(pair.ns(from), pair.ns(to), to.inner4(), bytes, TRANSFER)
                    .with_context(|| format!("TCP from {from:?}"))?;
                tcp_transfer(pair.ns(from), pair.ns(to), to.inner6(), 5 * MB, TRANSFER)
                    .with_context(|| format!("TCP over IPv6 from {from:?}"))?;
            }
            let sizes = (1..=1400).step_by(if full { 1 } else { 101 });
            udp_echo(pair.ns(Side::A), pair.ns(Side::B), Side::B.inner4(), sizes.clone())?;
            udp_echo(pair.ns(Side::B), pair.ns(Side::A), Side::A.inner6(), sizes)?;
            for side in [Side::A, Side::B] {
                let peer = pair.peer(side)?;
                // boringtun reports the age of a handshake as its time and rounds it to 0: none, for `wg`.
                ensure!(side == Side::B || peer.latest_handshake.is_some(), "{side:?}: {peer:?}");
                ensure!(peer.rx > 25 * MB && peer.tx > 25 * MB, "{side:?}: {peer:?}");
                ensure!(peer.endpoint == Some(pair.endpoint(side.other())), "{side:?}: {peer:?}");
            }
            pair.both_run()?;
        }
        Ok(())
    });
}

macro_rules! matrix {
    ($($name:ident: $peer:expr, $outer:ident, $io:ident, $big:literal;)+) => {
        $(#[test] fn $name() { cell(&$peer, Outer::$outer, Io::$io, $big); })+
    };
}

matrix! {
    traffic_flows_with_wireguard_go_over_ipv4_by_uring: Implementation::WireguardGo, V4, Uring, true;
    traffic_flows_with_wireguard_go_over_ipv4_by_mmsg: Implementation::WireguardGo, V4, Mmsg, false;
    traffic_flows_with_wireguard_go_over_ipv6_by_uring: Implementation::WireguardGo, V6, Uring, false;
    traffic_flows_with_wireguard_go_over_ipv6_by_mmsg: Implementation::WireguardGo, V6, Mmsg, true;
    traffic_flows_with_boringtun_over_ipv4_by_uring: Implementation::Boringtun, V4, Uring, true;
    traffic_flows_with_boringtun_over_ipv4_by_mmsg: Implementation::Boringtun, V4, Mmsg, false;
    traffic_flows_with_boringtun_over_ipv6_by_uring: Implementation::Boringtun, V6, Uring, false;
    traffic_flows_with_boringtun_over_ipv6_by_mmsg: Implementation::Boringtun, V6, Mmsg, false;
    traffic_flows_with_itself_over_ipv4_by_uring: Implementation::with_io(Io::Uring), V4, Uring, true;
    traffic_flows_with_itself_over_ipv4_by_mmsg: Implementation::with_io(Io::Mmsg), V4, Mmsg, true;
    traffic_flows_with_itself_over_ipv6_by_uring: Implementation::with_io(Io::Uring), V6, Uring, false;
    traffic_flows_with_itself_over_ipv6_by_mmsg: Implementation::with_io(Io::Mmsg), V6, Mmsg, false;
    traffic_flows_between_its_two_back_ends: Implementation::with_io(Io::Mmsg), V4, Uring, false;
}

fn preshared(peer: &Implementation) {
    let ours = Implementation::under_test();
    with_peers(&[&ours, peer], || {
        let key = preshared_key()?;
        for initiator in [Side::A, Side::B] {
            let preshared = [Some(key.clone()), Some(key.clone())];
            let pair =
                Pair::start(&ours, peer, Options { initiator: Some(initiator), preshared, ..Options::default() })?;
            pair.wait_ping(initiator, HANDSHAKE)?;

            let right = preshared_key()?;
            let preshared = [Some(key.clone()), Some(right.clone())];
            let mut pair =
                Pair::start(&ours, peer, Options { initiator: Some(initiator), preshared, ..Options::default() })?;
            // Long enough for a first try and a retry.
            let got = pair.wait_ping(initiator, Duration::from_secs(7));
            ensure!(got.is_err(), "traffic in spite of different preshared keys");
            ensure!(pair.peer(initiator)?.latest_handshake.is_none(), "a handshake with different preshared keys");
            pair.both_run()?;
            // Put right while it runs, it works. At our side: boringtun 0.7.1 dies when a peer of its is modified.
            let other = &pair.site(Side::B).keys.public;
            wg_with_file(&format!("set {} peer {other} preshared-key {{}}", pair.interface(Side::A)), &right)?;
            pair.wait_ping(initiator, Duration::from_secs(20))?;
        }
        Ok(())
    });
}

#[test]
fn a_preshared_key_is_needed_and_enough_with_wireguard_go() {
    preshared(&Implementation::WireguardGo);
}
#[test]
fn a_preshared_key_is_needed_and_enough_with_boringtun() {
    preshared(&Implementation::Boringtun);
}
#[test]
fn a_preshared_key_is_needed_and_enough_with_itself() {
    preshared(&Implementation::under_test());
}

/// `roamer` moves to another port, then to another address, while TCP flows from it to the other side.
fn roaming(peer: &Implementation, outer: Outer, roamer: Side) {
    let ours = Implementation::under_test();
    with_peers(&[&ours, peer], || {
        let mut pair = Pair::start(&ours, peer, Options { outer, ..Options::default() })?;
        pair.wait_ping(roamer, HANDSHAKE)?;
        let stays = roamer.other();
        let flow = Flow::start(pair.ns(roamer), pair.ns(stays), stays.inner4(), 4 * MB, Duration::from_secs(150))?;
        flow.wait_more(2 * MB, HANDSHAKE)?;

        wg(&format!("set {} listen-port 50001", pair.interface(roamer)))?;
        wait_for("the new port to be learnt", HANDSHAKE, || {
            Ok(pair.peer(stays)?.endpoint.is_some_and(|e| e.port() == 50001))
        })?;
        flow.wait_more(4 * MB, SILENCE).context("after the port changed")?;

        let (old, new) = match outer {
            Outer::V4 => (format!("{}/24", roamer.outer(outer)), "10.99.0.77/24"),
            Outer::V6 => (format!("{}/64", roamer.outer(outer)), "fd99::77/64"),
        };
        // In this order: a second IPv4 address of a subnet goes when the first does.
        pair.ns(roamer).ip(&format!("addr del {old} dev {UNDERLAY}"))?;
        add_address(pair.ns(roamer), UNDERLAY, new)?;
        let new_ip: IpAddr = new.split('/').next().unwrap_or(new).parse()?;
        wait_for("the new address to be learnt", SILENCE, || {
            Ok(pair.peer(stays)?.endpoint.is_some_and(|e| e.ip() == new_ip))
        })?;
        pair.wait_ping(roamer, HANDSHAKE).context("after the address changed")?;
        // wireguard-go keeps the old source address until its next handshake; meanwhile TCP has backed off.
        flow.wait_more(4 * MB, SILENCE * 2).context("after the address changed")?;
        flow.finish()?;
        pair.both_run()
    });
}

#[test]
fn traffic_follows_us_to_a_new_port_and_address_with_wireguard_go() {
    roaming(&Implementation::WireguardGo, Outer::V4, Side::A);
}
#[test]
fn we_follow_wireguard_go_to_a_new_port_and_address() {
    roaming(&Implementation::WireguardGo, Outer::V4, Side::B);
}
#[test]
fn we_follow_wireguard_go_to_a_new_port_and_ipv6_address() {
    roaming(&Implementation::WireguardGo, Outer::V6, Side::B);
}
#[test]
fn traffic_follows_us_to_a_new_port_and_address_with_boringtun() {
    roaming(&Implementation::Boringtun, Outer::V4, Side::A);
}
#[test]
fn traffic_follows_us_to_a_new_port_and_address_with_itself() {
    roaming(&Implementation::under_test(), Outer::V4, Side::A);
}
#[test]
fn traffic_follows_us_to_a_new_port_and_ipv6_address_with_itself() {
    roaming(&Implementation::under_test(), Outer::V6, Side::A);
}

/// Either side dies without a word and comes back; the other keeps sending and must notice by itself.
fn restart(peer: &Implementation) {
    let ours = Implementation::under_test();
    with_peers(&[&ours, peer], || {
        for victim in [Side::A, Side::B] {
            let mut pair = Pair::start(&ours, peer, Options { initiator: Some(victim.other()), ..Options::default() })?;
            pair.wait_ping(victim.other(), HANDSHAKE)?;
            pair.crash_and_restart(victim)?;
            pair.wait_ping(victim.other(), SILENCE).with_context(|| format!("after a crash at {victim:?}"))?;
            let to = victim;
            tcp_transfer(pair.ns(to.other()), pair.ns(to), to.inner4(), MB, TRANSFER)?;
            pair.both_run()?;
        }
        Ok(())
    });
}

#[test]
fn traffic_returns_after_either_side_crashed_with_wireguard_go() {
    restart(&Implementation::WireguardGo);
}
#[test]
fn traffic_returns_after_either_side_crashed_with_boringtun() {
    restart(&Implementation::Boringtun);
}
#[test]
fn traffic_returns_after_either_side_crashed_with_itself() {
    restart(&Implementation::under_test());
}

/// A side that comes back and has something to say is heard at once: its handshake replaces the dead session.
#[test]
fn a_restarted_side_that_speaks_first_is_heard_at_once() {
    let ours = Implementation::under_test();
    with_peers(&[&ours, &Implementation::WireguardGo], || {
        for victim in [Side::A, Side::B] {
            let mut pair = Pair::start(&ours, &Implementation::WireguardGo, Options::default())?;
            pair.wait_ping(Side::A, HANDSHAKE)?;
            pair.crash_and_restart(victim)?;
            pair.wait_ping(victim, Duration::from_secs(7))?;
        }
        Ok(())
    });
}

fn bad_network(peer: &Implementation, io: Io) {
    let ours = Implementation::with_io(io);
    with_peers(&[&ours, peer], || {
        let mut pair = Pair::start(&ours, peer, Options::default())?;
        let faults = Faults { lose: 200, double: 50, reorder: 50 };
        let relay = Relay::start(pair.ns(Side::B), "10.99.0.2:7000".parse()?, pair.endpoint(Side::B), faults)?;
        let by_relay = pair.config(Side::A).replace(&pair.endpoint(Side::B).to_string(), &relay.address().to_string());
        setconf(pair.interface(Side::A), &by_relay)?;
        // Learns the relay's address from the first handshake.
        setconf(pair.interface(Side::B), &pair.config(Side::B).replace("Endpoint", "# was"))?;
        pair.wait_ping(Side::A, SILENCE)?;
        for from in [Side::A, Side::B] {
            let to = from.other();
            tcp_transfer(pair.ns(from), pair.ns(to), to.inner4(), 5 * MB, TRANSFER)?;
        }
        ensure!(relay.passed() > 7_000, "only {} datagrams went by the relay", relay.passed());
        pair.both_run()
    });
}

#[test]
fn tcp_survives_loss_doubling_and_reordering_with_wireguard_go() {
    bad_network(&Implementation::WireguardGo, Io::Uring);
}
#[test]
fn tcp_survives_loss_doubling_and_reordering_with_itself_by_mmsg() {
    bad_network(&Implementation::with_io(Io::Mmsg), Io::Mmsg);
}

/// The program under test with `--cipher`.
fn with_cipher(name: &str) -> Implementation {
    Implementation::IpopFast { io: Io::Auto, args: vec!["--cipher".into(), name.into()] }
}

/// Both ways, by TCP and UDP, with the handshake from either side.
fn cipher(a: &Implementation, b: &Implementation, expected: &str) {
    with_peers(&[a, b], || {
        for initiator in [Side::A, Side::B] {
            let mut pair = Pair::start(a, b, Options { initiator: Some(initiator), ..Options::default() })?;
            pair.wait_ping(initiator, HANDSHAKE)?;
            for from in [Side::A, Side::B] {
                let to = from.other();
                tcp_transfer(pair.ns(from), pair.ns(to), to.inner4(), 5 * MB, TRANSFER)?;
                udp_echo(pair.ns(from), pair.ns(to), to.inner6(), (1..=1400).step_by(101))?;
                let Some(stats) = pair.site(from).daemon.stats()? else { continue };
                let sessions = &stats["sessions"];
                ensure!(sessions[expected] == 1, "{from:?}: {sessions}");
                // And `wg` finds nothing that it does not know.
                ensure!(pair.peer(from)?.latest_handshake.is_some(), "{from:?}");
            }
            pair.both_run()?;
        }
        Ok(())
    });
}

#[test]
fn aes_is_used_where_both_ends_are_told_so() {
    cipher(&with_cipher("aes256gcm"), &with_cipher("aes256gcm"), "aes256gcm");
}
#[test]
fn with_aes_forced_at_one_end_only_it_is_wireguards_own_cipher() {
    cipher(&with_cipher("aes256gcm"), &Implementation::under_test(), "chacha20poly1305");
    cipher(&with_cipher("aes256gcm"), &with_cipher("auto"), "chacha20poly1305");
}
#[test]
fn with_aes_forced_wireguard_go_gets_its_own_cipher() {
    cipher(&with_cipher("aes256gcm"), &Implementation::WireguardGo, "chacha20poly1305");
}
#[test]
fn with_aes_forced_boringtun_gets_its_own_cipher() {
    cipher(&with_cipher("aes256gcm"), &Implementation::Boringtun, "chacha20poly1305");
}
