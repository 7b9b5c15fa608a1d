//! `[[network]]`, each by itself and all together.

use super::problem::Report;
use super::section::{Found, Section};
use super::sections::Surroundings;
use super::values;
use super::{
    AddressChoice, DEFAULT_IDLE, DEFAULT_MTU, GroupConfig, GroupSource, LinkPolicy, MAX_ROUTES, NetworkConfig,
    NetworkKind, secret, social,
};
use dataplane::table::Prefix;
use std::ops::Range;
use toml::de::DeTable;

/// IPv6 works from this MTU on (RFC 8200, section 5); an overlay has IPv6 addresses always.
const MIN_MTU: u16 = 1280;
/// Jumbo frames.
const MAX_MTU: u16 = 9000;
/// A shorter group secret could be guessed from a recorded handshake.
const GOOD_SECRET: usize = 16;

/// A network and where in the file it stands.
pub(super) struct Resolved {
    pub(super) config: NetworkConfig,
    subnet: Prefix,
    span: Range<usize>,
}

/// Keys of every kind.
const COMMON: [&str; 7] = ["kind", "interface", "address", "subnet", "links", "idle_timeout", "listen_port"];
/// Keys of a group.
const OF_GROUPS: [&str; 5] = ["group", "muc", "secret_file", "routes", "accept_routes"];
/// Keys of a social network.
const OF_FRIENDS: [&str; 4] = ["name", "allow", "multicast", "leases"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Group,
    Social,
}

/// Checks the network number `index`. `None` after a report.
pub(super) fn network(
    table: &DeTable<'_>,
    span: Range<usize>,
    index: usize,
    around: &Surroundings,
    report: &mut Report,
    notes: &mut Vec<String>,
) -> Option<Resolved> {
    // Which keys are right depends on the kind, so it is looked at first; what is wrong with it is told below.
    let kind = table.get("kind").and_then(|k| k.get_ref().as_str());
    let kind = if kind == Some("social") { Kind::Social } else { Kind::Group };
    let own: &[&str] = if kind == Kind::Social { &OF_FRIENDS } else { &OF_GROUPS };
    let known: Vec<&str> = COMMON[..1].iter().chain(own).chain(&COMMON[1..]).copied().chain(["mtu"]).collect();
    let s = Section::new(table, span.clone(), "network", &known, |key| hint(kind, key), report);
    if let Some(kind) = s.string(report, "kind") {
        kind.check(report, |k| match k.as_str() {
            "group" | "social" => Ok(()),
            other => Err(format!("\"{}\" is no kind of network: use \"group\" or \"social\"", values::shown(other))),
        });
    }
    let interface = match s.string(report, "interface") {
        Some(name) => name.check(report, |n| crate::cli::interface_name(n)),
        None => Some(format!("ipop{index}")),
    };
    let choice = address(&s, report);
    let kind = match kind {
        Kind::Group => group_kind(&s, choice.map(|c| c.1), around, report, notes).map(NetworkKind::Group),
        Kind::Social => social::kind(&s, choice, report).map(NetworkKind::Social),
    };
    let links = s.string(report, "links").and_then(|f| {
        f.check(report, |l| match l.as_str() {
            "on-demand" => Ok(LinkPolicy::OnDemand),
            "proactive" => Ok(LinkPolicy::Proactive),
            other => Err(format!("\"{}\" is none of \"on-demand\" and \"proactive\"", values::shown(other))),
        })
    });
    let idle_timeout = s.duration(report, "idle_timeout").map_or(DEFAULT_IDLE, |d| d.value);
    let listen_port = s.number(report, "listen_port", (1, u16::MAX)).map(|n| n.value);
    let mtu = s.number(report, "mtu", (MIN_MTU, MAX_MTU)).map_or(DEFAULT_MTU, |n| n.value);
    let (address, subnet) = choice?;
    let config = NetworkConfig {
        kind: kind?,
        interface: interface?,
        address,
        links: links.unwrap_or_default(),
        idle_timeout,
        listen_port,
        mtu,
    };
    Some(Resolved { config, subnet, span })
}

/// What to tell of a key that is none of its kind.
fn hint(kind: Kind, key: &str) -> Option<String> {
    let told = match (kind, key) {
        (_, "secret") => "is not kept in this file: write it into a file (chmod 600) that secret_file names",
        (Kind::Group, "name") => "is no known key; the group's name goes into group",
        (Kind::Group, key) if OF_FRIENDS.contains(&key) => "is for networks of kind = \"social\"",
        (Kind::Social, "group" | "muc") => {
            "is for networks of kind = \"group\": here the account's friends meet; choose among them with allow"
        }
        (Kind::Social, "secret_file") => {
            "is for networks of kind = \"group\": friends share no secret, each of them has friends of its own"
        }
        (Kind::Social, "routes" | "accept_routes") => {
            "is for networks of kind = \"group\": among friends each address is that of a node"
        }
        (Kind::Social, "block") => "is not kept here: block an account with any XMPP client, it holds here as well",
        _ => return None,
    };
    Some(told.to_owned())
}

fn group_kind(
    s: &Section<'_, '_>,
    subnet: Option<Prefix>,
    around: &Surroundings,
    report: &mut Report,
    notes: &mut Vec<String>,
) -> Option<GroupConfig> {
    let source = group(s, report);
    let routes = s.strings(report, "routes", MAX_ROUTES);
    let routes = routes.iter().filter_map(|f| route(f, subnet, report)).collect();
    let secret = s.string(report, "secret_file");
    let secret = secret.and_then(|f| f.check(report, |p| secret::read_secret(&around.path(p))));
    if secret.as_ref().is_some_and(|s| s.len() < GOOD_SECRET) {
        notes.push(format!("network.secret_file has less than {GOOD_SECRET} bytes: it may be guessed"));
    }
    let accept_routes = s.boolean(report, "accept_routes").unwrap_or(false);
    Some(GroupConfig { source: source?, secret, routes, accept_routes })
}

fn group(s: &Section<'_, '_>, report: &mut Report) -> Option<GroupSource> {
    let (group, muc) = (s.string(report, "group"), s.string(report, "muc"));
    match (group, muc) {
        (Some(_), Some(muc)) => {
            muc.wrong(report, "stands beside group: a network's members come from one of them, so remove the other");
            None
        }
        (Some(group), None) => group.check(report, |g| values::group_name(g)).map(GroupSource::Roster),
        (None, Some(muc)) => muc.check(report, |m| values::bare_jid(m)).map(|m| GroupSource::Muc(m.to_string())),
        (None, None) => {
            if !s.has("group") && !s.has("muc") {
                let message = "is missing: group = \"NAME\" of a roster group, or muc = \"ROOM@SERVICE\"; or \
                               kind = \"social\" for the account's friends";
                s.missing(report, "group", message);
            }
            None
        }
    }
}

/// The address and its subnet.
fn address(s: &Section<'_, '_>, report: &mut Report) -> Option<(AddressChoice, Prefix)> {
    let subnet_text = s.string(report, "subnet");
    let subnet = subnet_text
        .as_ref()
        .and_then(|f| f.check(report, |p| values::subnet(p).and_then(|p| values::overlay_subnet(p).map(|()| p))));
    let Some(text) = s.string(report, "address") else {
        if !s.has("address") && !s.has("subnet") {
            let message =
                "is missing: address = \"172.16.10.2/24\", or subnet = \"172.16.10.0/24\" to let the node choose";
            s.missing(report, "address", message);
        }
        // A bad address beside a good subnet is not the same as none.
        return subnet.filter(|_| !s.has("address")).map(|p| (AddressChoice::Within(p), p));
    };
    let (address, len) = text.check(report, |a| values::split_prefix(a))?;
    let own = match (len, subnet) {
        (Some(len), Some(subnet)) if len != subnet.len() => {
            text.wrong(
                report,
                format!("has the length /{len}, but the subnet is {subnet}: write {address}/{}", subnet.len()),
            );
            return None;
        }
        (_, Some(subnet)) => subnet,
        // It has been told what is wrong with the subnet.
        (_, None) if subnet_text.is_some() => return None,
        (Some(len), None) => Prefix::new(address, len)?,
        (None, None) => {
            text.wrong(report, format!("has no length: write {address}/24 or the like, or give the subnet as well"));
            return None;
        }
    };
    text.check(report, |_| values::overlay_subnet(own).and_then(|()| values::member_address(address, own)))?;
    Some((AddressChoice::Fixed(address, own.len()), own))
}

fn route(f: &Found<String>, subnet: Option<Prefix>, report: &mut Report) -> Option<Prefix> {
    f.check(report, |text| {
        let route = values::subnet(text)?;
        if !route.is_empty() {
            values::unicast(route.address())?;
        }
        match subnet {
            Some(own) if own.contains(route.address()) && route.len() >= own.len() => {
                Err(format!("{route} lies in the network's own subnet {own}: its addresses belong to members"))
            }
            _ => Ok(route),
        }
    })
}

/// What two networks may not have in common.
pub(super) fn together(networks: &[Resolved], report: &mut Report) {
    for (i, b) in networks.iter().enumerate() {
        for a in &networks[..i] {
            let mut clash = |key: &str, message: String| report.at(&b.span, format!("network.{key}"), message);
            let name = a.config.network();
            if name == b.config.network() {
                let key = if b.config.social().is_some() { "name" } else { "group" };
                clash(key, format!("two networks are of {}: one is enough", values::shown(&name)));
            }
            if a.config.interface == b.config.interface {
                clash("interface", format!("two networks have the interface {}", a.config.interface));
            }
            if crate::network::overlap(&a.subnet, &b.subnet) {
                clash("subnet", format!("{} overlaps {} of another network", b.subnet, a.subnet));
            }
            if a.config.listen_port.is_some() && a.config.listen_port == b.config.listen_port {
                clash("listen_port", "two networks have the same UDP port: each needs its own".to_owned());
            }
        }
    }
}
