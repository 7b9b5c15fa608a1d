//! Nodes are found by their names, by programs of their own machine only.

use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::admin::names::Name;
use ipop_tests::daemon::Implementation;
use ipop_tests::internet::Gateway;
use ipop_tests::node::{INTERFACE, Members, Node};
use ipop_tests::ns::Namespace;
use ipop_tests::process::{output, run, wait_for};
use ipop_tests::require::{Need, can_run};
use ipop_tests::resolved::{self, Resolved};
use ipop_tests::scene::Share;

use crate::cast::{Cast, FIND, GROUP, ROOM, Xmpp, group_scene, user};

/// A member that was removed has no name any more so soon.
const GONE: Duration = Duration::from_secs(5);
/// A taken port is tried again every five seconds.
const PORT_IS_FREE: Duration = Duration::from_secs(15);

/// The program that asks; without it, nothing here can be played.
fn can_ask() -> bool {
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    can_run(&name, &[Need::Program("dig"), Need::Program("getent")])
}

/// What a server says: code, and the answers' data.
fn dig(ns: &Namespace, server: IpAddr, question: &[&str]) -> Result<(String, Vec<String>)> {
    let mut command = ns.command("dig");
    command.arg(format!("@{server}")).args(["+tries=1", "+time=2", "+norecurse", "+nocookie"]).args(question);
    let text = run(&mut command)?;
    let code = text.lines().find_map(|l| l.split_once("status: ")?.1.split(',').next());
    let code = code.with_context(|| format!("dig says {text}"))?.to_owned();
    let (_, answers) = text.split_once(";; ANSWER SECTION:\n").unwrap_or_default();
    let data = answers.lines().take_while(|l| !l.is_empty());
    Ok((code, data.filter_map(|l| l.split_whitespace().nth(4)).map(str::to_owned).collect()))
}

/// The code, and the only answer.
fn one(code: &str, answer: &str) -> (String, Vec<String>) {
    (code.to_owned(), vec![answer.to_owned()])
}

fn none(code: &str) -> (String, Vec<String>) {
    (code.to_owned(), Vec::new())
}

/// `ipop-fast names`, as a person says it on the machine of node `n`.
fn names(node: &Node) -> Result<Vec<Name>> {
    let mut command = Command::new(Implementation::under_test().binary()?);
    let text = run(command.args(["names", "--json", "--socket"]).arg(node.dir().join("control")))?;
    text.lines().map(|l| serde_json::from_str(l).with_context(|| format!("names printed {l}"))).collect()
}

fn ula(cast: &Cast, n: usize) -> Result<IpAddr> {
    let addresses = cast.nodes[n].network()?.addresses;
    let mut addresses = addresses.iter().filter_map(|a| a.split('/').next()?.parse::<IpAddr>().ok());
    addresses.find(IpAddr::is_ipv6).context("no IPv6 address")
}

#[test]
fn a_member_is_found_by_its_name_until_it_is_removed() {
    if !can_ask() {
        return;
    }
    group_scene(Share::Shared, Xmpp::Prosody, || {
        let mut cast = Cast::at_sites(Xmpp::Prosody, &[Gateway::Public; 2])?;
        let mut all = Vec::new();
        for n in 0..2 {
            let mut o = cast.options(n);
            o.members = Members::Room(cast.xmpp.room(ROOM));
            all.push(o);
        }
        cast.start(all)?;
        cast.wait_known(1)?;
        let (own, other) = (cast.nodes[0].address()?, cast.nodes[1].address()?);
        let (own6, other6) = (ula(&cast, 0)?, ula(&cast, 1)?);
        let ns = cast.ns(0);
        let (vm0, vm1) = (format!("{}.{ROOM}.ipop", user(0)), format!("{}.{ROOM}.ipop", user(1)));
        wait_for("the name", FIND, || Ok(dig(ns, own, &[&vm1, "A"])? == one("NOERROR", &other.to_string())))?;
        for server in [own, own6] {
            let ask = |question: &[&str]| dig(ns, server, question);
            ensure!(ask(&[&vm1, "A"])? == one("NOERROR", &other.to_string()));
            ensure!(ask(&[&vm1, "AAAA"])? == one("NOERROR", &other6.to_string()));
            ensure!(ask(&["+tcp", &vm1, "A"])? == one("NOERROR", &other.to_string()));
            ensure!(ask(&[&vm0.to_uppercase(), "A"])? == one("NOERROR", &own.to_string()));
            ensure!(ask(&["-x", &other.to_string()])? == one("NOERROR", &format!("{vm1}.")));
            ensure!(ask(&["-x", &other6.to_string()])? == one("NOERROR", &format!("{vm1}.")));
            ensure!(ask(&[&vm1, "MX"])? == none("NOERROR"));
            ensure!(ask(&[&format!("nobody.{ROOM}.ipop"), "A"])? == none("NXDOMAIN"));
            ensure!(ask(&["example.org", "A"])? == none("REFUSED"));
            ensure!(ask(&["ipop", "AXFR"]).map_or(true, |(_, all)| all.is_empty()), "the whole list was given away");
        }
        let listed = names(&cast.nodes[0])?;
        let find = |name: &str| listed.iter().find(|n| n.name == name).with_context(|| format!("{name}: {listed:?}"));
        ensure!(find(&vm0)?.own && find(&vm0)?.addresses == [own.to_string(), own6.to_string()], "{listed:?}");
        let peer = find(&vm1)?;
        ensure!(peer.jid == cast.nodes[1].jid && peer.network == format!("muc:{}", cast.xmpp.room(ROOM)), "{peer:?}");

        // Programs that know nothing of it: names both ways, and a packet to a name.
        ns.use_name_server(own)?;
        let getent = |args: &[&str]| run(ns.command("getent").args(args));
        ensure!(getent(&["ahostsv4", &vm1])?.starts_with(&format!("{other} ")));
        ensure!(getent(&["ahostsv6", &vm1])?.starts_with(&format!("{other6} ")));
        ensure!(getent(&["hosts", &other.to_string()])?.contains(&vm1));
        cast.reach(0, 1)?;
        run(ns.command("ping").args(["-4", "-c1", "-W5", &vm1]))?;

        // Another member reaches the server, and is told nothing.
        for question in [&[vm1.as_str(), "A"][..], &[vm0.as_str(), "A"], &["ipop", "SOA"]] {
            ensure!(dig(cast.ns(1), own, question)? == none("REFUSED"), "another machine was told of {question:?}");
        }
        let by_tcp = dig(cast.ns(1), own, &["+tcp", &vm1, "A"]);
        ensure!(by_tcp.is_err(), "another machine was told by TCP: {by_tcp:?}");

        cast.xmpp.set_room_member(ROOM, &user(1), false)?;
        let ns = cast.ns(0);
        wait_for("the name to be gone", GONE, || Ok(dig(ns, own, &[&vm1, "A"])? == none("NXDOMAIN")))?;
        ensure!(dig(ns, own, &["-x", &other.to_string()])? == none("NXDOMAIN"));
        ensure!(!output(ns.command("getent").args(["hosts", &vm1]))?.status.success(), "it is still found");
        cast.xmpp.set_room_member(ROOM, &user(1), true)?;
        let ns = cast.ns(0);
        wait_for(
            "the name to be back",
            FIND,
            || Ok(dig(ns, own, &[&vm1, "A"])? == one("NOERROR", &other.to_string())),
        )?;
        cast.alive()
    });
}

#[test]
fn a_port_that_another_program_has_is_told_once_and_used_when_it_is_free() {
    if !can_ask() {
        return;
    }
    group_scene(Share::Shared, Xmpp::Prosody, || {
        let mut cast = Cast::at_sites(Xmpp::Prosody, &[Gateway::Public; 2])?;
        let other = cast.ns(0).run(|| Ok(UdpSocket::bind("0.0.0.0:53")?))?;
        let mut silent = cast.options(1);
        silent.network_lines = "\n[names]\nenabled = false\n".to_owned();
        let all = vec![cast.options(0), silent];
        cast.start(all)?;
        cast.wait_known(1)?;
        let own = cast.nodes[0].address()?;
        wait_for("the warning", FIND, || {
            let warnings = cast.nodes[0].network()?.warnings;
            ensure!(warnings.iter().any(|w| w.contains("another process has that port")), "{warnings:?}");
            Ok(true)
        })?;
        // The other address is free.
        let (ns, vm1) = (cast.ns(0), format!("{}.{GROUP}.ipop", user(1)));
        let address = cast.nodes[1].address()?.to_string();
        ensure!(dig(ns, ula(&cast, 0)?, &[&vm1, "A"])? == one("NOERROR", &address));
        cast.reach(0, 1)?;
        drop(other);
        wait_for("the name", PORT_IS_FREE, || Ok(dig(ns, own, &[&vm1, "A"])? == one("NOERROR", &address)))?;
        let warnings = cast.nodes[0].network()?.warnings;
        ensure!(warnings.is_empty(), "{warnings:?}");
        let told = cast.nodes[0].log().matches("another process has that port").count();
        ensure!(told == 1, "it was told {told} times");
        // Where it is switched off, there is nothing to ask.
        ensure!(dig(cast.ns(1), cast.nodes[1].address()?, &[&vm1, "A"]).is_err(), "there is a server");
        ensure!(names(&cast.nodes[1])?.iter().any(|n| n.name == vm1 && n.own), "no names: {:?}", names(&cast.nodes[1]));
        cast.alive()
    });
}

#[test]
fn systemd_resolved_asks_for_our_names_where_it_runs() {
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    if !can_run(&name, &resolved::needs()) || !can_ask() {
        return;
    }
    group_scene(Share::Shared, Xmpp::Prosody, || {
        let mut cast = Cast::at_sites(Xmpp::Prosody, &[Gateway::Public; 2])?;
        let resolved = Resolved::start(cast.ns(0))?;
        let mut first = cast.options(0);
        first.wrapper = resolved.wrapper();
        let all = vec![first, cast.options(1)];
        cast.start(all)?;
        cast.wait_known(1)?;
        let say = |args: &[&str]| run(resolved.command(args[0]).args(&args[1..]));
        let before = say(&["cat", "/etc/resolv.conf"])?;
        let (vm1, address) = (format!("{}.{GROUP}.ipop", user(1)), cast.nodes[1].address()?.to_string());
        wait_for("a name by systemd-resolved", FIND, || {
            Ok(say(&["getent", "ahostsv4", &vm1])?.starts_with(&format!("{address} ")))
        })?;
        ensure!(say(&["getent", "ahostsv6", &vm1])?.starts_with(&format!("{} ", ula(&cast, 1)?)));
        ensure!(say(&["getent", "hosts", &address])?.contains(&vm1));
        ensure!(dig(cast.ns(0), resolved::STUB, &["+recurse", &format!("nobody.{GROUP}.ipop")])? == none("NXDOMAIN"));
        let domains = say(&["resolvectl", "domain", INTERFACE])?;
        ensure!(domains.contains("~ipop") && domains.contains("~10.16.172.in-addr.arpa"), "{domains}");
        ensure!(say(&["resolvectl", "default-route", INTERFACE])?.trim().ends_with("no"), "it is asked for everything");
        let mut command = resolved.command(&Implementation::under_test().binary()?.to_string_lossy());
        let shown = run(command.args(["names", "--socket"]).arg(cast.nodes[0].dir().join("control")))?;
        ensure!(shown.contains("asks there for ipop"), "{shown}");
        // It goes with the interface, and nothing else was changed.
        cast.nodes[0].leave()?;
        // The kernel may take the device down a little after its process.
        wait_for("systemd-resolved to know nothing of it", GONE, || {
            let after = say(&["resolvectl", "domain"])?;
            ensure!(!after.contains("ipop"), "{after}");
            Ok(true)
        })?;
        ensure!(say(&["cat", "/etc/resolv.conf"])? == before, "resolv.conf was changed");
        ensure!(!output(resolved.command("getent").args(["hosts", &vm1]))?.status.success(), "it is still found");
        Ok(())
    });
}
