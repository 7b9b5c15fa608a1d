//! The control side's view of a machine: interfaces, addresses, routes, and notices of their changes, each in a
//! namespace of its own.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::host::Host;
use dataplane::table::Prefix;
use ipop_tests::ns::Namespace;
use ipop_tests::require::Need;
use ipop_tests::scene::{Share, play};

/// A change is told after at most a second of unrest; the rest is for a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longer than a notice takes on a quiet machine.
const SILENCE: Duration = Duration::from_millis(2_500);

/// Runs `body` in a namespace that has an underlay `u0` and an overlay interface `o0`.
fn scene<F: Future<Output = Result<()>>>(body: impl FnOnce(Host, Vec<String>) -> F + Send) {
    play(Share::Shared, &[Need::Root], || {
        let ns = Namespace::new("host")?;
        for name in ["u0", "o0"] {
            ns.ip(&format!("link add {name} type veth peer name {name}far"))?;
            ns.ip(&format!("link set {name}far up"))?;
        }
        ns.ip("addr add 192.0.2.7/24 dev u0")?;
        ns.ip("addr add 2001:db8::7/64 dev u0 nodad")?;
        ns.ip("link set u0 up")?;
        ns.ip("route add default via 192.0.2.1")?;
        ns.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { body(Host::new()?, vec!["o0".to_owned()]).await })
        })
    });
}

fn ip(args: &str) -> Result<String> {
    ipop_tests::process::run(std::process::Command::new("ip").args(args.split_whitespace()))
}

fn addresses(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|a| a.parse().expect("address")).collect()
}

#[test]
fn an_interface_gets_exactly_its_addresses_and_again_changes_nothing() {
    scene(|host, _| async move {
        let own = [("172.16.10.2".parse()?, 24), ("fd00::2".parse()?, 64)];
        ip("addr add 172.16.99.9/24 dev o0")?;
        ip("addr add fd00:9::9/64 dev o0")?;
        for _ in 0..2 {
            host.setup_interface("o0", &own, 1380).await?;
            let seen = ip("addr show dev o0")?;
            ensure!(seen.contains("mtu 1380") && seen.contains(",UP"), "{seen}");
            ensure!(seen.contains("inet 172.16.10.2/24") && seen.contains("inet6 fd00::2/64"), "{seen}");
            ensure!(!seen.contains("172.16.99.9") && !seen.contains("fd00:9::9"), "{seen}");
            let waits = seen.lines().any(|l| l.contains("fd00::2/64") && l.contains("tentative"));
            ensure!(!waits, "not usable at once: {seen}");
        }
        let routes = ip("route show dev o0")?;
        ensure!(routes.contains("172.16.10.0/24"), "{routes}");
        host.setup_interface("o0", &[("172.16.10.3".parse()?, 16)], 1400).await?;
        let seen = ip("addr show dev o0")?;
        ensure!(seen.contains("inet 172.16.10.3/16") && !seen.contains("172.16.10.2"), "{seen}");
        let e = host.setup_interface("nosuch0", &own, 1380).await.err().context("no such interface")?;
        ensure!(e.to_string().contains("nosuch0"), "{e}");
        Ok(())
    });
}

#[test]
fn routes_come_and_go_and_never_take_another_interfaces_place() {
    scene(|host, overlays| async move {
        host.setup_interface("o0", &[("172.16.10.2".parse()?, 24), ("fd00::2".parse()?, 64)], 1380).await?;
        for route in ["10.1.0.0/16", "2001:db8:1::/48"] {
            let prefix: Prefix = route.parse().map_err(anyhow::Error::msg)?;
            let family = if route.contains(':') { "-6" } else { "-4" };
            let there = || Ok::<_, anyhow::Error>(ip(&format!("{family} route show dev o0"))?.contains(route));
            for _ in 0..2 {
                let refused = host.change_routes("o0", &[], &[prefix]).await?;
                ensure!(there()? && refused.is_empty(), "{route} is not there: {refused:?}");
            }
            ensure!(!host.local_routes(&overlays).await?.contains(&prefix), "our own routes are not local ones");
            for _ in 0..2 {
                host.change_routes("o0", &[prefix], &[]).await?;
                ensure!(!there()?, "{route} is still there");
            }
        }
        let taken: Prefix = "192.0.2.0/24".parse().map_err(anyhow::Error::msg)?;
        let before = ip("route show dev u0")?;
        let other: Prefix = "10.3.0.0/16".parse().map_err(anyhow::Error::msg)?;
        let refused = host.change_routes("o0", &[], &[taken, other]).await?;
        ensure!(ip("route show dev o0")?.contains("10.3.0.0/16"), "one that is refused hinders no other");
        // The kernel takes a second one of another metric or scope; then it is ours, and goes.
        ensure!(refused.iter().all(|(p, why)| *p == taken && why.contains("another interface")), "{refused:?}");
        host.change_routes("o0", &[taken, other], &[]).await?;
        ensure!(ip("route show dev u0")? == before, "it changed {before}");
        let e = host.change_routes("nosuch0", &[taken], &[]).await.err().context("no such interface")?;
        ensure!(e.to_string().contains("nosuch0"), "{e}");
        let local: Vec<String> = host.local_routes(&overlays).await?.iter().map(Prefix::to_string).collect();
        ensure!(local == ["192.0.2.0/24", "2001:db8::/64"], "{local:?}");
        Ok(())
    });
}

#[test]
fn only_usable_addresses_of_the_underlay_are_offered() {
    scene(|host, overlays| async move {
        host.setup_interface("o0", &[("172.16.10.2".parse()?, 24), ("fd00::2".parse()?, 64)], 1380).await?;
        ip("link add down0 type veth peer name down0far")?;
        ip("addr add 198.51.100.7/24 dev down0")?;
        ip("addr add 169.254.3.4/16 dev u0")?;
        let seen = host.underlay_addresses(&overlays).await?;
        ensure!(seen == addresses(&["192.0.2.7", "2001:db8::7"]), "{seen:?}");
        ip("link set down0 up")?;
        ip("addr del 2001:db8::7/64 dev u0")?;
        let seen = host.underlay_addresses(&overlays).await?;
        ensure!(seen == addresses(&["192.0.2.7", "198.51.100.7"]), "{seen:?}");
        ip("tuntap add dev vpn0 mode tun")?;
        ip("addr add 10.8.0.1/24 dev vpn0")?;
        ip("link set vpn0 up")?;
        let seen = host.underlay_addresses(&overlays).await?;
        ensure!(
            seen == addresses(&["192.0.2.7", "198.51.100.7", "10.8.0.1"]),
            "through another tunnel only if need be: {seen:?}"
        );
        Ok(())
    });
}

#[test]
fn changes_of_the_underlay_are_told_once_and_others_not() {
    scene(|host, overlays| async move {
        let mut changes = host.watch(overlays).await?;
        host.setup_interface("o0", &[("172.16.10.2".parse()?, 24), ("fd00::2".parse()?, 64)], 1380).await?;
        host.change_routes("o0", &[], &["10.1.0.0/16".parse().map_err(anyhow::Error::msg)?]).await?;
        ip("route add 10.2.0.0/16 via 192.0.2.3")?;
        ensure!(tokio::time::timeout(SILENCE, changes.recv()).await.is_err(), "the overlay is no news");
        let each = [
            "addr add 192.0.2.8/24 dev u0",
            "route replace default via 192.0.2.9",
            "addr del 192.0.2.8/24 dev u0",
            "link set u0 down",
            "link set u0 up",
        ];
        for change in each {
            ip(change)?;
            let told = tokio::time::timeout(PATIENCE, changes.recv()).await;
            told.with_context(|| format!("nothing after {change}"))?.context("the watch ended")?;
        }
        // A burst is one notice, or two if it takes longer than the first is held back.
        for n in 10..60 {
            ip(&format!("addr add 192.0.2.{n}/24 dev u0"))?;
        }
        let mut told = 0;
        while tokio::time::timeout(SILENCE, changes.recv()).await.is_ok() {
            told += 1;
        }
        ensure!((1..=4).contains(&told), "{told} notices of one burst");
        Ok(())
    });
}

#[test]
fn many_may_ask_at_once() {
    scene(|host, overlays| async move {
        let asked: Vec<_> = (0..20)
            .map(|_| {
                let (host, overlays) = (host.clone(), overlays.clone());
                tokio::spawn(async move { host.local_routes(&overlays).await.map(|r| r.len()) })
            })
            .collect();
        for a in asked {
            ensure!(a.await?? > 0, "no local route");
        }
        Ok(())
    });
}
