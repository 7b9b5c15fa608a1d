//! The forms of single values, and what to tell about those that are not of the form.

use dataplane::table::Prefix;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;
use xmpp_parsers::jid::{self, BareJid, Jid};

/// Longest part of a value that is repeated in a message, in characters.
const MAX_SHOWN: usize = 60;

/// `s` as it may stand in a message: without control characters, and not endless.
#[must_use]
pub fn shown(s: &str) -> String {
    let short: String = s.chars().take(MAX_SHOWN).collect();
    let dots = if short.len() < s.len() { "..." } else { "" };
    format!("{}{dots}", short.escape_debug())
}

/// The entry of `known` that `word` was meant to be: at most a third of its letters differ.
#[must_use]
pub fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    if word.len() > MAX_SHOWN {
        return None;
    }
    let word = word.to_lowercase().replace('-', "_");
    let best = known.iter().map(|k| (distance(&word, &k.to_lowercase().replace('-', "_")), *k)).min()?;
    (best.0 <= (word.chars().count() / 3).max(1)).then_some(best.1)
}

/// Letters to put in, take out, replace or swap with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut cost = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + same);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                cost = cost.min(rows[i - 2][j - 2] + 1);
            }
            row.push(cost);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// "90", "90s", "10m", "2h", "1d": from ten seconds to thirty days.
///
/// # Errors
/// What would be right.
pub fn duration(s: &str) -> Result<Duration, String> {
    let (digits, unit) = match s.trim() {
        s if s.ends_with('d') => (&s[..s.len() - 1], 86_400),
        s if s.ends_with('h') => (&s[..s.len() - 1], 3_600),
        s if s.ends_with('m') => (&s[..s.len() - 1], 60),
        s if s.ends_with('s') => (&s[..s.len() - 1], 1),
        s => (s, 1),
    };
    let seconds = digits.trim().parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    match seconds {
        Some(n) if (10..=30 * 86_400).contains(&n) => Ok(Duration::from_secs(n)),
        Some(_) => Err(format!("\"{}\" is out of range: from 10 seconds to 30 days", shown(s))),
        None => Err(format!("\"{}\" is no time: write seconds, or \"90s\", \"10m\", \"2h\"", shown(s))),
    }
}

/// `host`, `host:port`, `192.0.2.1:port`, `[2001:db8::1]`, `[2001:db8::1]:port`. The host of an IPv6 address comes
/// back without brackets.
///
/// # Errors
/// What would be right.
pub fn host_port(s: &str, default_port: u16) -> Result<(String, u16), String> {
    let with_port = |host: &str, port: &str| match port.parse::<u16>() {
        Ok(p) if p > 0 && port.bytes().all(|b| b.is_ascii_digit()) => Ok((host.to_owned(), p)),
        _ => Err(format!("\"{}\" has no port from 1 to 65535 behind its colon", shown(s))),
    };
    if let Some(rest) = s.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return Err(format!("\"{}\" has no closing bracket: write [2001:db8::1]:{default_port}", shown(s)));
        };
        if address.parse::<Ipv6Addr>().is_err() {
            return Err(format!("\"{}\" has no IPv6 address in its brackets", shown(s)));
        }
        return match port.strip_prefix(':') {
            Some(port) => with_port(address, port),
            None if port.is_empty() => Ok((address.to_owned(), default_port)),
            None => Err(format!("\"{}\" has something else than :PORT behind its brackets", shown(s))),
        };
    }
    if s.parse::<Ipv6Addr>().is_ok() {
        return Err(format!("put the IPv6 address in brackets: [{s}]:{default_port}"));
    }
    if s.contains("://") || s.starts_with("stun:") || s.starts_with("turn:") || s.starts_with("turns:") {
        return Err(format!("\"{}\" is a URL: write HOST:PORT only", shown(s)));
    }
    let (host, port) = s.split_once(':').map_or((s, None), |(h, p)| (h, Some(p)));
    if host.parse::<IpAddr>().is_err() && !is_host_name(host) {
        return Err(format!("\"{}\" is no host: write HOST:PORT, 192.0.2.1:PORT or [2001:db8::1]:PORT", shown(s)));
    }
    port.map_or_else(|| Ok((host.to_owned(), default_port)), |p| with_port(host, p))
}

/// RFC 1123, section 2.1, and underscores, which private zones have.
fn is_host_name(s: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let name = s.strip_suffix('.').unwrap_or(s);
    // Digits and dots only was meant to be an IPv4 address.
    name.len() <= 253 && name.split('.').all(label) && !name.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

/// `host:port` as a program takes it, with brackets where they belong.
#[must_use]
pub fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A bare JID of an account or room: `local@domain`.
///
/// # Errors
/// What would be right.
pub fn bare_jid(s: &str) -> Result<BareJid, String> {
    let example = "write it as vm1@example.org";
    match Jid::new(s).map(Jid::try_into_full) {
        Ok(Ok(full)) => Err(format!("leave out the resource \"/{}\": the node makes its own", shown(full.resource()))),
        Ok(Err(bare)) if bare.node().is_none() => Err(format!("\"{}\" has no name before an @: {example}", shown(s))),
        Ok(Err(bare)) => Ok(bare),
        Err(jid::Error::TooManyAts) => Err(format!("\"{}\" has more than one @: {example}", shown(s))),
        Err(e) => Err(format!("\"{}\" is no JID ({e}): {example}", shown(s))),
    }
}

/// A subnet: no bits behind its length.
///
/// # Errors
/// What would be right.
pub fn subnet(s: &str) -> Result<Prefix, String> {
    let (address, _) = split_prefix(s)?;
    let prefix: Prefix = s.trim().parse()?;
    if !s.contains('/') {
        return Err(format!("\"{}\" has no length: write {s}/24 or the like", shown(s)));
    }
    if prefix.address() != address {
        return Err(format!("\"{}\" is an address in a subnet: the subnet is {prefix}", shown(s)));
    }
    Ok(prefix)
}

/// An address and, where it is given, the length of its subnet.
///
/// # Errors
/// What would be right.
pub fn split_prefix(s: &str) -> Result<(IpAddr, Option<u8>), String> {
    let bad = || format!("\"{}\" is no address: write it as 172.16.10.2/24", shown(s));
    let (address, len) = s.trim().split_once('/').map_or((s.trim(), None), |(a, l)| (a, Some(l)));
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    match len.map(str::parse::<u8>) {
        None => Ok((address, None)),
        Some(Ok(n)) if n <= most => Ok((address, Some(n))),
        Some(_) => Err(format!("\"{}\" has no length from 0 to {most} behind its slash", shown(s))),
    }
}

/// Whether a subnet can be an overlay: room for two nodes, and not half of the Internet.
///
/// # Errors
/// What would be right.
pub fn overlay_subnet(p: Prefix) -> Result<(), String> {
    let range = if p.address().is_ipv4() { 8..=30 } else { 16..=126 };
    if !range.contains(&p.len()) {
        return Err(format!(
            "{p} is no subnet for an overlay: its length has to be {} to {}",
            range.start(),
            range.end()
        ));
    }
    unicast(p.address())
}

/// Whether a machine can have such an address or prefix.
///
/// # Errors
/// What it is instead.
pub fn unicast(a: IpAddr) -> Result<(), String> {
    let link_local = match a {
        IpAddr::V4(a) => a.is_link_local() || a.is_broadcast(),
        IpAddr::V6(a) => a.segments()[0] & 0xffc0 == 0xfe80,
    };
    let what = if a.is_loopback() {
        "a loopback address"
    } else if a.is_multicast() {
        "a multicast address"
    } else if link_local {
        "a link-local address"
    } else {
        return Ok(());
    };
    Err(format!("{a} is {what}: take one of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16"))
}

/// Whether a node can have `address` in `subnet`.
///
/// # Errors
/// What would be right.
pub fn member_address(address: IpAddr, subnet: Prefix) -> Result<(), String> {
    if !subnet.contains(address) {
        return Err(format!("{address} is not in the subnet {subnet}"));
    }
    unicast(address)?;
    if address == subnet.address() {
        return Err(format!("{address} is the subnet's own address: take another one in {subnet}"));
    }
    if let (IpAddr::V4(a), IpAddr::V4(net)) = (address, subnet.address())
        && a.to_bits() == net.to_bits() | u32::MAX.checked_shr(subnet.len().into()).unwrap_or(0)
    {
        return Err(format!("{address} is the subnet's broadcast address: take another one in {subnet}"));
    }
    Ok(())
}

/// A node's name: also the name of its control socket and the first label of its DNS name.
///
/// # Errors
/// What would be right.
pub fn node_name(s: &str) -> Result<String, String> {
    let fits = (1..=63).contains(&s.len())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        && s.starts_with(|c: char| c.is_ascii_alphanumeric());
    if fits {
        Ok(s.to_owned())
    } else {
        Err(format!("\"{}\" is no name for a node: letters, digits, - and _, at most 63", shown(s)))
    }
}

/// A social network's name: also a label of DNS names.
///
/// # Errors
/// What would be right.
pub fn social_name(s: &str) -> Result<String, String> {
    node_name(s)
        .map_err(|_| format!("\"{}\" is no name for a social network: letters, digits, - and _, at most 63", shown(s)))
}

/// A roster group's name.
///
/// # Errors
/// What would be right.
pub fn group_name(s: &str) -> Result<String, String> {
    if s.len() > 255 || s.chars().any(char::is_control) || s.trim() != s {
        return Err(format!(
            "\"{}\" is no name of a group: at most 255 bytes, no control characters, no spaces around it",
            shown(s)
        ));
    }
    Ok(s.to_owned())
}
