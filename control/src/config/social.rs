//! What a `[[network]]` of kind `social` has beside what every network has.

use super::problem::Report;
use super::section::{Found, Section};
use super::{AddressChoice, Allow, DEFAULT_SOCIAL, FixedLease, MAX_ALLOW, MAX_FIXED_LEASES, SocialConfig, values};
use dataplane::table::Prefix;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use xmpp_parsers::jid::BareJid;

/// Checks it. `choice` is the network's own address and subnet.
pub(super) fn kind(
    s: &Section<'_, '_>,
    choice: Option<(AddressChoice, Prefix)>,
    report: &mut Report,
) -> Option<SocialConfig> {
    let name = match s.string(report, "name") {
        Some(name) => name.check(report, |n| values::social_name(n)),
        None => Some(DEFAULT_SOCIAL.to_owned()),
    };
    if let Some((_, subnet)) = choice
        && !subnet.address().is_ipv4()
    {
        let key = if s.has("subnet") { "subnet" } else { "address" };
        if let Some(text) = s.string(report, key) {
            let message = "has to be IPv4: friends' IPv6 addresses are unique and are not translated";
            text.wrong(report, message);
        }
    }
    let allow = allow(s, report);
    let multicast = s.boolean(report, "multicast").unwrap_or(false);
    let leases = leases(s, choice, report);
    Some(SocialConfig { name: name?, allow, multicast, leases })
}

/// Who is let in. What is wrong was told, so that what comes back is not used.
fn allow(s: &Section<'_, '_>, report: &mut Report) -> Allow {
    if !s.has("allow") {
        return Allow::Everybody;
    }
    let (mut accounts, mut domains) = (BTreeSet::new(), BTreeSet::new());
    for entry in s.strings(report, "allow", MAX_ALLOW) {
        if entry.value == "*" {
            entry.wrong(report, "is no account: to let every friend in, leave allow out");
        } else if let Some(domain) = entry.value.strip_prefix("*@") {
            domains.extend(entry.check(report, |_| self::domain(domain)));
        } else {
            accounts.extend(entry.check(report, |j| values::bare_jid(j)).map(|j| j.to_string()));
        }
    }
    Allow::Only { accounts, domains }
}

/// The normal form of a domain.
fn domain(s: &str) -> Result<String, String> {
    match BareJid::new(s) {
        Ok(jid) if jid.node().is_none() => Ok(jid.to_string()),
        _ => Err(format!("\"*@{}\" has no domain behind its @: write it as *@example.org", values::shown(s))),
    }
}

fn leases(s: &Section<'_, '_>, choice: Option<(AddressChoice, Prefix)>, report: &mut Report) -> Vec<FixedLease> {
    let wanted = "a section [network.leases] with lines as \"bob@example.org/laptop\" = \"172.31.0.7\"";
    let mut all: Vec<FixedLease> = Vec::new();
    let mut taken: BTreeMap<Ipv4Addr, String> = BTreeMap::new();
    for (who, address) in s.pairs(report, "leases", wanted, MAX_FIXED_LEASES) {
        let whose = who.check(report, |w| split(w));
        let address = address.check(report, |a| free(a, choice, &mut taken, &who));
        let (Some((account, node)), Some(address)) = (whose, address) else { continue };
        if all.iter().any(|l| l.account == account && l.node == node) {
            who.wrong(report, "has a lease already, written in another way");
            continue;
        }
        all.push(FixedLease { account, node, address });
    }
    all
}

/// `account` or `account/node`.
fn split(who: &str) -> Result<(String, Option<String>), String> {
    let (account, node) = who.split_once('/').map_or((who, None), |(a, n)| (a, Some(n)));
    let account = values::bare_jid(account)?.to_string();
    if node.is_some_and(|n| n.trim().is_empty()) {
        return Err("has no name of a node behind its slash".to_owned());
    }
    Ok((account, node.map(str::to_owned)))
}

/// Whether a node of a friend can have `address`.
fn free(
    address: &str,
    choice: Option<(AddressChoice, Prefix)>,
    taken: &mut BTreeMap<Ipv4Addr, String>,
    who: &Found<String>,
) -> Result<Ipv4Addr, String> {
    let Ok(address) = address.trim().parse::<Ipv4Addr>() else {
        return Err(format!("\"{}\" is no IPv4 address: write it as 172.31.0.7", values::shown(address)));
    };
    // It has been told what is wrong with the subnet.
    let Some((own, subnet)) = choice else { return Ok(address) };
    values::member_address(IpAddr::V4(address), subnet)?;
    if matches!(own, AddressChoice::Fixed(a, _) if a == IpAddr::V4(address)) {
        return Err(format!("{address} is this node's own address"));
    }
    match taken.insert(address, who.value.clone()) {
        Some(first) => Err(format!("{address} is the lease of \"{}\" already", values::shown(&first))),
        None => Ok(address),
    }
}
