//! Something is gone and comes back: traffic returns in time, and what needed nothing of it never stopped.
//!
//! Node 0 is behind a port-restricted NAT, node 1 has a public address, node 2 is behind a symmetric NAT: 0 and 1
//! meet directly, so do 1 and 2, and 0 and 2 need the relay.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ipop_tests::heartbeat::Heartbeat;
use ipop_tests::internet::Gateway;
use ipop_tests::process::wait_for;
use ipop_tests::scene::Share;

use crate::cast::{BACK, Cast, SILENCE, Xmpp, group_scene, wait_path};

/// How long something stays gone: longer than any keepalive of a data path.
const GONE: Duration = Duration::from_secs(8);

struct Play {
    cast: Cast,
    /// 0 to 1.
    direct: Heartbeat,
    /// 0 to 2.
    relayed: Heartbeat,
    /// 1 to 2.
    beside: Heartbeat,
}

fn outage(xmpp: Xmpp, body: impl FnOnce(&mut Play) -> Result<()>) {
    group_scene(Share::Alone, xmpp, || {
        let mut cast = Cast::at_sites(xmpp, &[Gateway::PortRestricted, Gateway::Public, Gateway::Symmetric])?;
        cast.start_all()?;
        let (direct, relayed, beside) = (cast.heartbeat(0, 1)?, cast.heartbeat(0, 2)?, cast.heartbeat(1, 2)?);
        for (from, to, path) in [(0, 1, "direct"), (0, 2, "relayed"), (1, 2, "direct")] {
            wait_path(&cast, from, to, path)?;
        }
        let mut play = Play { cast, direct, relayed, beside };
        body(&mut play)?;
        play.cast.alive()
    });
}

/// Lets time pass in which something is watched.
fn watch(heart: &Heartbeat, since: Instant, what: &str) -> Result<()> {
    wait_for("the outage to last", GONE + SILENCE, || Ok(since.elapsed() >= GONE))?;
    never_stopped(heart, since, what)
}

fn never_stopped(heart: &Heartbeat, since: Instant, what: &str) -> Result<()> {
    let silence = heart.longest_silence(since)?;
    ensure!(silence < SILENCE, "{what} fell silent for {silence:?}");
    Ok(())
}

fn returns(heart: &Heartbeat, since: Instant, what: &str) -> Result<()> {
    heart.wait_after(since, BACK).map(drop).with_context(|| what.to_owned())
}

fn online(cast: &Cast, want: bool) -> Result<()> {
    wait_for(&format!("XMPP online: {want}"), BACK, || {
        let all = cast.nodes.iter().map(|n| Ok(n.status()?.xmpp.online)).collect::<Result<Vec<_>>>()?;
        Ok(all.iter().all(|o| *o == want))
    })
}

fn xmpp_goes(xmpp: Xmpp) {
    outage(xmpp, |p| {
        let gone = Instant::now();
        p.cast.xmpp.kill()?;
        online(&p.cast, false)?;
        watch(&p.direct, gone, "the direct link")?;
        never_stopped(&p.beside, gone, "the other direct link")?;
        if xmpp == Xmpp::ProsodyAndCoturn {
            never_stopped(&p.relayed, gone, "the relayed link")?;
        }
        p.cast.xmpp.restart()?;
        let back = Instant::now();
        returns(&p.relayed, back, "the relayed link")?;
        online(&p.cast, true)?;
        never_stopped(&p.direct, gone, "the direct link")
    });
}

#[test]
fn links_outlive_the_xmpp_server() {
    xmpp_goes(Xmpp::ProsodyAndCoturn);
}

#[test]
fn direct_links_outlive_an_ejabberd_that_was_their_turn_server_too() {
    xmpp_goes(Xmpp::Ejabberd);
}

#[test]
fn a_node_that_comes_while_xmpp_is_down_is_found_when_it_is_back() {
    group_scene(Share::Alone, Xmpp::ProsodyAndCoturn, || {
        let mut cast = Cast::at_sites(Xmpp::ProsodyAndCoturn, &[Gateway::Public, Gateway::PortRestricted])?;
        cast.start_all()?;
        cast.nodes[1].kill()?;
        cast.xmpp.kill()?;
        cast.nodes[1].start_again()?;
        cast.xmpp.restart()?;
        let back = Instant::now();
        cast.reach(0, 1)?;
        ensure!(back.elapsed() <= BACK, "only after {:?}", back.elapsed());
        cast.alive()
    });
}

#[test]
fn relayed_links_return_with_the_turn_server_and_direct_ones_never_stop() {
    outage(Xmpp::ProsodyAndCoturn, |p| {
        let gone = Instant::now();
        p.cast.turn.as_mut().context("no coturn")?.kill()?;
        watch(&p.direct, gone, "the direct link")?;
        ensure!(p.relayed.longest_silence(gone)? > GONE / 2, "the relay is gone, yet something answers through it");
        p.cast.turn.as_mut().context("no coturn")?.start_again()?;
        returns(&p.relayed, Instant::now(), "the relayed link")?;
        never_stopped(&p.direct, gone, "the direct link")?;
        never_stopped(&p.beside, gone, "the other direct link")
    });
}

#[test]
fn a_rebooted_nat_costs_its_own_links_seconds_and_others_nothing() {
    outage(Xmpp::ProsodyAndCoturn, |p| {
        p.cast.sites[0].reboot()?;
        let back = Instant::now();
        returns(&p.direct, back, "the direct link")?;
        returns(&p.relayed, back, "the relayed link")?;
        wait_path(&p.cast, 0, 1, "direct")?;
        never_stopped(&p.beside, back, "a link elsewhere")
    });
}

#[test]
fn a_killed_node_comes_back() {
    outage(Xmpp::ProsodyAndCoturn, |p| {
        let gone = Instant::now();
        p.cast.nodes[1].kill()?;
        watch(&p.relayed, gone, "a link elsewhere")?;
        p.cast.nodes[1].start_again()?;
        let back = p.cast.nodes[1].started();
        returns(&p.direct, back, "its link to node 0")?;
        returns(&p.beside, back, "its link to node 2")?;
        never_stopped(&p.relayed, gone, "a link elsewhere")
    });
}

#[test]
fn a_node_whose_address_changes_is_found_again() {
    for node in [0, 1] {
        outage(Xmpp::ProsodyAndCoturn, |p| {
            let moved = Instant::now();
            p.cast.sites[node].move_host(0)?;
            let back = Instant::now();
            returns(&p.direct, back, "the direct link")?;
            if node == 0 {
                returns(&p.relayed, back, "the relayed link")?;
                never_stopped(&p.beside, moved, "a link elsewhere")
            } else {
                returns(&p.beside, back, "the other direct link")?;
                never_stopped(&p.relayed, moved, "a link elsewhere")
            }
        });
    }
}

#[test]
fn a_site_that_was_cut_off_comes_back() {
    outage(Xmpp::ProsodyAndCoturn, |p| {
        let gone = Instant::now();
        p.cast.sites[0].set_connected(false)?;
        watch(&p.beside, gone, "a link elsewhere")?;
        p.cast.sites[0].set_connected(true)?;
        let back = Instant::now();
        returns(&p.direct, back, "the direct link")?;
        returns(&p.relayed, back, "the relayed link")
    });
}

/// Longer than permissions (300 s), channels (600 s) and allocations (600 s) live without being refreshed.
const LONG: Duration = Duration::from_secs(680);

fn a_relayed_link_lives_on(xmpp: Xmpp) {
    group_scene(Share::Apart, xmpp, || {
        let mut cast = Cast::at_sites(xmpp, &[Gateway::PortRestricted, Gateway::Symmetric])?;
        cast.start_all()?;
        let heart = cast.heartbeat(0, 1)?;
        wait_path(&cast, 0, 1, "relayed")?;
        let start = Instant::now();
        wait_for("eleven minutes to pass", LONG * 2, || Ok(start.elapsed() >= LONG))?;
        never_stopped(&heart, start, "the relayed link")?;
        wait_path(&cast, 0, 1, "relayed")?;
        cast.alive()
    });
}

#[test]
#[ignore = "takes eleven minutes; cargo xtask test --slow"]
fn a_link_over_coturn_outlives_what_the_relay_gives_at_once() {
    a_relayed_link_lives_on(Xmpp::ProsodyAndCoturn);
}

#[test]
#[ignore = "takes eleven minutes; cargo xtask test --slow"]
fn a_link_over_ejabberd_outlives_what_the_relay_gives_at_once() {
    a_relayed_link_lives_on(Xmpp::Ejabberd);
}
