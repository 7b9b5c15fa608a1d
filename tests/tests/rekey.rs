//! Rekeying in real time: longer than 120 s, so `cargo xtask test` runs this file beside all the others.

use std::time::Duration;

use anyhow::{Context, ensure};
use ipop_tests::daemon::{Implementation, Io};
use ipop_tests::pair::{Options, Pair, Side};
use ipop_tests::process::wait_for;
use ipop_tests::require::{Need, tunnel};
use ipop_tests::scene::{Share, play};
use ipop_tests::traffic::Flow;

/// Slow enough to leave the machine to the tests beside it.
const RATE: u64 = 3_000_000;
/// REKEY_AFTER_TIME.
const REKEY: Duration = Duration::from_secs(120);
/// Other tests hold both cores at times; a lost session would stall for 15 s and more.
const LONGEST_STALL: Duration = Duration::from_secs(5);

fn rekeys(a: &Implementation, b: &Implementation, initiator: Side) {
    let mut needs = tunnel();
    needs.extend([Need::Daemon(a.clone()), Need::Daemon(b.clone())]);
    play(Share::Apart, &needs, || {
        let mut pair = Pair::start(a, b, Options { initiator: Some(initiator), ..Options::default() })?;
        pair.wait_ping(initiator, Duration::from_secs(12))?;
        let first = pair.peer(initiator)?.latest_handshake.context("no handshake")?;
        let limit = REKEY + Duration::from_secs(60);
        let flows = [Side::A, Side::B].map(|from| {
            let to = from.other();
            Flow::start(pair.ns(from), pair.ns(to), to.inner4(), RATE, limit)
        });
        let mut seconds = Vec::new();
        for side in [Side::A, Side::B] {
            wait_for("a second handshake", REKEY + Duration::from_secs(20), || {
                Ok(pair.peer(side)?.latest_handshake.is_some_and(|t| t > first + REKEY / 2))
            })?;
            let second = pair.peer(side)?.latest_handshake.context("no handshake")?;
            seconds.push(second.duration_since(first)?.as_secs());
        }
        ensure!(seconds.iter().all(|s| (115..=135).contains(s)), "rekeyed after {seconds:?} s");
        for flow in flows {
            let flow = flow?;
            flow.wait_more(2 * RATE, Duration::from_secs(10)).context("after the rekey")?;
            let report = flow.finish()?;
            ensure!(report.longest_stall < LONGEST_STALL, "nothing arrived for {:?}", report.longest_stall);
            ensure!(report.bytes > 60 * RATE, "only {} bytes", report.bytes);
        }
        pair.both_run()
    });
}

#[test]
fn we_rekey_while_traffic_flows() {
    rekeys(&Implementation::under_test(), &Implementation::WireguardGo, Side::A);
}

#[test]
fn a_session_with_aes_is_renewed_while_traffic_flows() {
    let aes = Implementation::IpopFast { io: Io::Auto, args: vec!["--cipher".into(), "aes256gcm".into()] };
    rekeys(&aes, &aes, Side::A);
}

#[test]
fn wireguard_go_rekeys_while_traffic_flows() {
    rekeys(&Implementation::under_test(), &Implementation::WireguardGo, Side::B);
}
