//! Paths through a small internet with real NATs and a real TURN server, over one port a machine.

mod machine;

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use control::ice::{IceEvent, TurnServer};
use dataplane::Path;
use ipop_tests::internet::{Gateway, Internet};
use ipop_tests::process;
use ipop_tests::require::Need;
use ipop_tests::scene::{Share, play};
use ipop_tests::turn_server::{self, PASSWORD, USER};
use machine::{Machine, negotiate, works};

/// Far more than is expected: these tests look at what is found, and print how fast.
const GENEROUS: Duration = Duration::from_secs(8);

fn needs() -> [Need; 6] {
    let programs = ["ip", "nft", "conntrack", "ss", "turnserver"].map(Need::Program);
    let [a, b, c, d, e] = programs;
    [Need::Root, a, b, c, d, e]
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn account(internet_address: std::net::Ipv4Addr) -> TurnServer {
    TurnServer {
        address: turn_server::address(internet_address),
        username: USER.into(),
        password: PASSWORD.to_owned().into(),
    }
}

/// From two nodes that know nothing to a path that carries data, for each pair of gateways.
fn matrix(pairs: &[(Gateway, Gateway)], rounds: usize) {
    play(Share::Shared, &needs(), || {
        let internet = Internet::new()?;
        let server = internet.server("turn")?;
        let turn = turn_server::TurnServer::start(&server)?;
        let mut table = String::new();
        for (x, y) in pairs {
            let sites = [internet.site("a", *x, 1)?, internet.site("b", *y, 1)?];
            let mut times = Vec::new();
            let mut why = String::new();
            for _ in 0..rounds {
                let (took, reason) = runtime()?
                    .block_on(async {
                        let start = Instant::now();
                        let host = |i: usize| &sites[i].hosts[0];
                        let machine = |i: usize| {
                            Machine::start(&host(i).ns, host(i).address.into(), Some(account(server.address)))
                        };
                        let (a, b) = (machine(0)?, machine(1)?);
                        let ((ma, ra), (mb, rb)) = negotiate(&a, &b).await;
                        let took = start.elapsed();
                        let (fa, fb) = (ra?, rb?);
                        works(&a, &b, [&fa, &fb], [&ma, &mb]).await?;
                        // What was bound for other ways, or is not used any more, has been given back.
                        let to_b = fa.path;
                        drop((ma, mb));
                        let (why, relayed) = (fa.why.clone(), [fa.is_relayed(), fb.is_relayed()]);
                        drop((fa, fb));
                        ensure!(a.channels() + b.channels() == 0, "{} and {} channels", a.channels(), b.channels());
                        if let (true, Path::Direct(to)) = (y.public_hosts() && !relayed[0], to_b) {
                            ensure!(to.port() == b.port(), "{to} is not the data port {}", b.port());
                        }
                        let direct = x.direct(*y);
                        ensure!(relayed == [!direct; 2], "{why}");
                        ensure!(took < GENEROUS, "it took {took:?}");
                        anyhow::Ok((took, why))
                    })
                    .with_context(|| format!("{} - {}; coturn says\n{}", x.name(), y.name(), turn.log()))?;
                times.push(took);
                why = reason;
            }
            times.sort_unstable();
            let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
            let _ = writeln!(
                table,
                "{:>5} ms (at most {:>5})  {} - {}: {why}",
                median.as_millis(),
                worst.as_millis(),
                x.name(),
                y.name()
            );
        }
        // Past the test runner's capture: figures are for people.
        let _ = write!(std::io::stderr(), "nothing to path, median of {rounds}:\n{table}");
        Ok(())
    });
}

fn all_pairs() -> Vec<(Gateway, Gateway)> {
    let all = Gateway::ALL;
    (0..all.len()).flat_map(|i| (i..all.len()).map(move |j| (all[i], all[j]))).collect()
}

#[test]
fn every_pair_of_gateways_finds_the_best_path_there_is() {
    matrix(&all_pairs(), 1);
}

#[test]
#[ignore = "a measurement: five rounds of all pairs"]
fn times_from_nothing_to_a_path() {
    matrix(&all_pairs(), 5);
}

#[test]
fn without_a_server_firewalled_sites_have_no_path_and_say_what_was_tried() {
    play(Share::Shared, &needs(), || {
        let internet = Internet::new()?;
        let sites = [internet.site("a", Gateway::ServerOnly, 1)?, internet.site("b", Gateway::Symmetric, 1)?];
        runtime()?.block_on(async {
            let nobody = TurnServer {
                address: "203.0.113.99:3478".parse()?,
                username: "u".into(),
                password: "p".to_owned().into(),
            };
            let machine = |i: usize| {
                Machine::start(&sites[i].hosts[0].ns, sites[i].hosts[0].address.into(), Some(nobody.clone()))
            };
            let (a, b) = (machine(0)?, machine(1)?);
            let ((_, ra), (_, rb)) = negotiate(&a, &b).await;
            for r in [ra, rb] {
                let why = r.err().context("a path where there is none")?.why;
                ensure!(why.contains("1 host, 0 srflx, 0 relay"), "{why}");
                ensure!(why.contains("203.0.113.99:3478"), "{why}");
            }
            Ok(())
        })
    });
}

#[test]
fn a_wrong_password_is_told() {
    play(Share::Shared, &needs(), || {
        let internet = Internet::new()?;
        let server = internet.server("turn")?;
        let _turn = turn_server::TurnServer::start(&server)?;
        let site = internet.site("a", Gateway::Public, 1)?;
        runtime()?.block_on(async {
            let wrong = TurnServer { password: "wrong".to_owned().into(), ..account(server.address) };
            let m = Machine::start(&site.hosts[0].ns, site.hosts[0].address.into(), Some(wrong))?;
            let error = wait(|| m.node.servers().into_iter().find_map(|s| s.error)).await?;
            ensure!(error.contains("401") && error.contains("password"), "{error}");
            // The right one is taken without a restart.
            m.node.set_servers(vec![], vec![account(server.address)]);
            wait(|| m.node.servers().into_iter().find_map(|s| s.relayed)).await?;
            Ok(())
        })
    });
}

#[test]
fn a_relay_that_was_restarted_is_noticed_and_used_again() {
    play(Share::Shared, &needs(), || {
        let internet = Internet::new()?;
        let server = internet.server("turn")?;
        let mut turn = turn_server::TurnServer::start(&server)?;
        let sites = [internet.site("a", Gateway::Symmetric, 1)?, internet.site("b", Gateway::Symmetric, 1)?];
        runtime()?.block_on(async {
            let machine = |i: usize| {
                Machine::start(&sites[i].hosts[0].ns, sites[i].hosts[0].address.into(), Some(account(server.address)))
            };
            let (a, b) = (machine(0)?, machine(1)?);
            let ((ma, ra), (mb, rb)) = negotiate(&a, &b).await;
            works(&a, &b, [&ra?, &rb?], [&ma, &mb]).await?;
            let mut events = [a.node.events(), b.node.events()];
            // As long as there is a link, servers are looked after.
            a.node.answer_probes(&ma.credentials());
            b.node.answer_probes(&mb.credentials());
            turn.kill()?;
            turn.start_again()?;
            let back = Instant::now();
            for e in &mut events {
                let mut lost = false;
                loop {
                    match tokio::time::timeout(Duration::from_secs(15), e.recv()).await?? {
                        IceEvent::RelayLost { .. } => lost = true,
                        IceEvent::RelayUp { .. } if lost => break,
                        _ => {}
                    }
                }
            }
            let noticed = back.elapsed();
            drop((ma, mb));
            let ((ma, ra), (mb, rb)) = negotiate(&a, &b).await;
            works(&a, &b, [&ra?, &rb?], [&ma, &mb]).await?;
            let _ =
                writeln!(std::io::stderr(), "relay back: noticed after {noticed:?}, path after {:?}", back.elapsed());
            Ok(())
        })
    });
}

#[test]
fn two_machines_on_a_lan_meet_on_the_lan() {
    play(Share::Shared, &needs(), || {
        let internet = Internet::new()?;
        let server = internet.server("turn")?;
        let _turn = turn_server::TurnServer::start(&server)?;
        let site = internet.site("a", Gateway::Symmetric, 2)?;
        runtime()?.block_on(async {
            let machine = |i: usize| {
                Machine::start(&site.hosts[i].ns, site.hosts[i].address.into(), Some(account(server.address)))
            };
            let (a, b) = (machine(0)?, machine(1)?);
            let ((ma, ra), (mb, rb)) = negotiate(&a, &b).await;
            let (fa, fb) = (ra?, rb?);
            works(&a, &b, [&fa, &fb], [&ma, &mb]).await?;
            let lan = SocketAddr::new(site.hosts[1].address.into(), b.port());
            ensure!(fa.path == Path::Direct(lan), "{fa:?}");
            Ok(())
        })
    });
}

/// Waits until a node says that its addresses are others than before.
async fn changed(events: &mut tokio::sync::broadcast::Receiver<IceEvent>) -> Result<String> {
    loop {
        if let IceEvent::Changed { why } = tokio::time::timeout(Duration::from_secs(12), events.recv()).await?? {
            return Ok(why);
        }
    }
}

#[test]
fn a_rebooted_nat_and_a_move_are_noticed_and_there_is_a_path_again() {
    play(Share::Shared, &needs(), || {
        let internet = Internet::new()?;
        let server = internet.server("turn")?;
        let _turn = turn_server::TurnServer::start(&server)?;
        let mut site = internet.site("a", Gateway::PortRestricted, 1)?;
        let other = internet.site("b", Gateway::PortRestricted, 1)?;
        runtime()?.block_on(async {
            let host =
                |h: &ipop_tests::internet::Host| Machine::start(&h.ns, h.address.into(), Some(account(server.address)));
            let (a, b) = (host(&site.hosts[0])?, host(&other.hosts[0])?);
            let ((ma, ra), (mb, rb)) = negotiate(&a, &b).await;
            works(&a, &b, [&ra?, &rb?], [&ma, &mb]).await?;
            drop((ma, mb));
            let mut events = a.node.events();
            let start = Instant::now();
            site.reboot()?;
            let why = changed(&mut events).await?;
            let noticed = start.elapsed();
            let ((ma, ra), (mb, rb)) = negotiate(&a, &b).await;
            works(&a, &b, [&ra?, &rb?], [&ma, &mb]).await?;
            let _ = writeln!(
                std::io::stderr(),
                "NAT rebooted: noticed after {noticed:?} ({why}), path after {:?}",
                start.elapsed()
            );
            drop((ma, mb));
            let address = site.move_host(0)?;
            let start = Instant::now();
            a.node.set_host_addresses(vec![address.into()]);
            changed(&mut events).await?;
            let ((ma, ra), (mb, rb)) = negotiate(&a, &b).await;
            let (fa, fb) = (ra?, rb?);
            works(&a, &b, [&fa, &fb], [&ma, &mb]).await?;
            ensure!(!fa.is_relayed(), "{fa:?}");
            let _ = writeln!(std::io::stderr(), "moved: path after {:?}", start.elapsed());
            Ok(())
        })
    });
}

#[test]
fn eighty_relayed_negotiations_at_once_are_done_soon_and_leave_nothing() {
    play(Share::Shared, &needs(), || {
        let internet = Internet::new()?;
        let server = internet.server("turn")?;
        let _turn = turn_server::TurnServer::start(&server)?;
        let sites = [internet.site("a", Gateway::Symmetric, 1)?, internet.site("b", Gateway::Symmetric, 1)?];
        runtime()?.block_on(async {
            let machine = |i: usize| {
                Machine::start(&sites[i].hosts[0].ns, sites[i].hosts[0].address.into(), Some(account(server.address)))
            };
            let (a, b) = (std::rc::Rc::new(machine(0)?), std::rc::Rc::new(machine(1)?));
            let start = Instant::now();
            let cpu = process::cpu_seconds(std::process::id());
            let local = tokio::task::LocalSet::new();
            let all: Vec<_> = (0..80)
                .map(|_| {
                    let (a, b) = (a.clone(), b.clone());
                    local.spawn_local(async move { negotiate(&a, &b).await })
                })
                .collect();
            let mut paths = Vec::new();
            local
                .run_until(async {
                    for t in all {
                        let ((_, ra), (_, rb)) = t.await?;
                        paths.push((ra?, rb?));
                    }
                    anyhow::Ok(())
                })
                .await?;
            let took = start.elapsed();
            let cpu = process::cpu_seconds(std::process::id()).zip(cpu).map(|(x, y)| x - y);
            ensure!(a.channels() + b.channels() > 0, "all over relays, and no channel");
            drop(paths);
            ensure!(a.channels() + b.channels() == 0, "{} and {} channels", a.channels(), b.channels());
            ensure!(took < GENEROUS, "it took {took:?}");
            let _ = writeln!(std::io::stderr(), "80 negotiations at once, both ends here: {took:?}, {cpu:?} s of CPU");
            Ok(())
        })
    });
}

async fn wait<T>(mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let until = Instant::now() + GENEROUS;
    loop {
        if let Some(v) = condition() {
            return Ok(v);
        }
        ensure!(Instant::now() < until, "it did not come about");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
