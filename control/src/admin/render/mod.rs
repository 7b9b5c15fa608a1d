//! A node's state as text for people: pure, printable ASCII, readable in 100 columns.

mod names;
pub mod table;
#[cfg(test)]
mod tests;
pub mod text;

pub use names::names;

use super::status::{CipherStatus, FriendStatus, LinkStatus, NetworkStatus, PeerStatus, Status};
use dataplane::crypto::Cipher;
use std::fmt::Write as _;
use table::{Column, Table};
use text::{age, bytes, list, millis, plain, rate_short, wrapped};

/// Requests that a summary names.
const MAX_REQUESTS: usize = 8;
/// Pins that are as they should be.
const PINNED: &str = "pinned";

/// A node in short: what does not work comes first.
#[must_use]
pub fn status(s: &Status) -> String {
    let mut out = format!(
        "node {} (ipop-fast {}, pid {}), up for {}\n",
        plain(&s.name),
        plain(&s.version),
        s.pid,
        age(s.uptime_s)
    );
    for warning in warnings(s) {
        wrapped(&mut out, "  WARNING  ", &warning, 11);
    }
    let since = age(s.xmpp.for_s);
    let what = match (s.xmpp.online, &s.jid) {
        (true, Some(jid)) => format!("online as {jid} for {since}"),
        (true, None) => format!("online for {since}"),
        (false, _) => format!("OFFLINE for {since}"),
    };
    let detail = if s.xmpp.detail.is_empty() { String::new() } else { format!(": {}", s.xmpp.detail) };
    wrapped(&mut out, "  xmpp        ", &format!("{what}{detail}"), 14);
    if !s.cipher.setting.is_empty() {
        wrapped(&mut out, "  cipher      ", &cipher(&s.cipher), 14);
    }
    for jid in s.requests.iter().take(MAX_REQUESTS) {
        let what = format!("{jid} asks to be a friend. To accept: ipop-fast friends accept {jid}");
        wrapped(&mut out, "  request     ", &what, 14);
    }
    if s.requests.len() > MAX_REQUESTS {
        let more = s.requests.len() - MAX_REQUESTS;
        wrapped(&mut out, "  request     ", &format!("and {more} more: ipop-fast friends list"), 14);
    }
    for server in &s.servers {
        let state = if server.ok { "works" } else { "FAILS" };
        let detail = if server.detail.is_empty() { String::new() } else { format!(": {}", server.detail) };
        let label = format!("  {:<10}  ", text::clipped(&server.kind, 10));
        wrapped(&mut out, &label, &format!("{} {state}{detail}", server.address), 14);
    }
    let x = &s.xmpp;
    if x.dropped_strangers + x.dropped_malformed > 0 {
        let (strangers, malformed) = (x.dropped_strangers, x.dropped_malformed);
        let _ = writeln!(out, "  ignored     {strangers} stanzas of strangers, {malformed} malformed ones of members");
    }
    if s.servers.is_empty() {
        out += "  stun, turn  none: only direct paths to known addresses can be found\n";
    }
    if s.networks.is_empty() {
        out += "no network\n";
    }
    for n in &s.networks {
        network(&mut out, n);
    }
    out
}

fn cipher(c: &CipherStatus) -> String {
    let links = if c.aes256gcm { "aes256gcm with nodes that have it too" } else { "chacha20poly1305" };
    let (chacha, aes) = (c.chacha20poly1305_gb_s, c.aes256gcm_gb_s);
    format!("{links} ({}; a core does {chacha:.1} GB/s of chacha20poly1305, {aes:.1} of aes256gcm)", c.setting)
}

fn network(out: &mut String, n: &NetworkStatus) {
    let _ = writeln!(out, "{} on {}", plain(&n.network), plain(&n.interface));
    list(out, "addresses", &n.addresses);
    if n.kind == "social" {
        list(out, "friends in", n.subnet.as_slice());
    }
    list(out, "key", std::slice::from_ref(&n.public_key));
    list(out, "udp port", &[n.listen_port.to_string()]);
    list(out, "offered at", &n.host_addresses);
    list(out, "routes", &n.routes);
    let online = n.peers.iter().filter(|p| p.online).count();
    list(out, "peers", &[format!("{} known", n.peers.len()), format!("{online} online")]);
    let count = |test: fn(&LinkStatus) -> bool| n.peers.iter().filter(|p| test(&p.link)).count();
    let counts = [
        (count(|l| path(l) == Some("direct")), "direct"),
        (count(|l| path(l) == Some("relayed")), "relayed"),
        (count(|l| l.state == "negotiating" || l.state == "handshaking"), "being made"),
        (count(|l| l.state == "failing"), "failing"),
        (count(|l| l.state == "idle"), "idle"),
    ];
    // The first two and failures are what one looks for, zero or not.
    let shown = counts.iter().filter(|(n, what)| *n > 0 || !matches!(*what, "being made" | "idle"));
    list(out, "links", &shown.map(|(n, what)| format!("{n} {what}")).collect::<Vec<_>>());
    let with = |cipher: &str| {
        let n = n.peers.iter().filter(|p| path(&p.link).is_some() && p.link.cipher.as_deref() == Some(cipher)).count();
        (n > 0).then(|| format!("{n} {cipher}"))
    };
    list(out, "ciphers", &Cipher::ALL.iter().filter_map(|c| with(c.name())).collect::<Vec<_>>());
    list(out, "dropped", &n.drops.iter().map(|(why, n)| format!("{n} {}", plain(why))).collect::<Vec<_>>());
    let kernel = n.kernel_drops.iter().map(|(why, n)| format!("{n} {}", plain(why)));
    list(out, "by kernel", &kernel.collect::<Vec<_>>());
    list(out, "programs", std::slice::from_ref(&n.kernel_programs));
}

/// The path in use.
fn path(l: &LinkStatus) -> Option<&str> {
    l.path.as_deref().filter(|_| l.state == "up")
}

fn warnings(s: &Status) -> Vec<String> {
    let mut all = Vec::new();
    if !s.xmpp.online {
        all.push("XMPP is offline: running links stay, new ones cannot be made".to_owned());
    }
    for server in s.servers.iter().filter(|s| !s.ok) {
        all.push(format!("the {} server {} does not work", server.kind, server.address));
    }
    for n in &s.networks {
        all.extend(n.warnings.iter().map(|w| format!("{}: {w}", n.network)));
        for p in &n.peers {
            if p.pin != PINNED && !p.pin.is_empty() {
                all.push(format!(
                    "{}: the key of {} ({}) has changed and is refused. If its owner says that this is right: \
                     ipop-fast pins accept {}",
                    n.network, p.name, p.jid, p.jid
                ));
            }
            if p.link.state == "failing" {
                let why = if p.link.why.is_empty() { "" } else { ": " };
                all.push(format!("{}: no link to {}{why}{}", n.network, p.name, p.link.why));
            }
        }
    }
    all
}

/// One line a peer, network by network.
#[must_use]
pub fn peers(s: &Status, wide: bool) -> String {
    let columns = [
        table::text("NAME", 16),
        table::text("JID", 26),
        table::text("ADDRESS", 21),
        table::text("XMPP", 7),
        table::text("PIN", 7),
        table::text("LINK", 11),
    ];
    by_network(s, |n| {
        let mut table = Table::new(&columns, wide);
        for p in &n.peers {
            // All resources look alike, and do not fit.
            let jid = if wide { p.jid.as_str() } else { p.jid.split('/').next().unwrap_or_default() };
            let cells = [
                p.name.clone(),
                jid.to_owned(),
                addresses(p, wide),
                if p.online { "online" } else { "offline" }.to_owned(),
                if p.pin == PINNED { p.pin.clone() } else { p.pin.to_uppercase() },
                link_word(&p.link),
            ];
            let mut below = String::new();
            if !p.routes.is_empty() {
                wrapped(&mut below, "    routes through it: ", &p.routes.join(", "), 6);
            }
            table.row(cells, below);
        }
        (!n.peers.is_empty()).then(|| table.show("  "))
    })
}

/// The first IPv4 address and how many others there are; all of them if there is room.
fn addresses(p: &PeerStatus, wide: bool) -> String {
    let bare = |a: &String| a.trim_end_matches("/32").trim_end_matches("/128").to_owned();
    if wide {
        let there = p.calls_itself.iter().map(|a| format!("(there {a})"));
        return p.addresses.iter().map(bare).chain(there).collect::<Vec<_>>().join(" ");
    }
    let first = p.addresses.iter().find(|a| !a.contains(':')).or(p.addresses.first()).map(bare);
    match (first, p.addresses.len()) {
        (None, _) => "-".to_owned(),
        (Some(first), 0..=1) => first,
        (Some(first), n) => format!("{} +{}", text::clipped(&first, 18), n - 1),
    }
}

fn link_word(l: &LinkStatus) -> String {
    match path(l) {
        // "relayed aes" just fits. What is not said is WireGuard's own cipher.
        Some(path) if l.cipher.as_deref() == Some(Cipher::Aes256Gcm.name()) => format!("{path} aes"),
        Some(path) => path.to_owned(),
        None if l.state.is_empty() => "-".to_owned(),
        None => l.state.clone(),
    }
}

/// One line a link, and below it why it is not direct and up.
#[must_use]
pub fn links(s: &Status, wide: bool) -> String {
    const COLUMNS: [Column; 8] = [
        table::text("NAME", 12),
        table::text("LINK", 11),
        table::text("ADDRESS", 21),
        table::number("RTT", 7),
        table::number("SENT", 7),
        table::number("RECVD", 7),
        table::number("BIT/S O/I", 9),
        table::number("HANDSHAKE", 9),
    ];
    by_network(s, |n| {
        let mut table = Table::new(&COLUMNS, wide);
        for p in &n.peers {
            let l = &p.link;
            let carries = l.tx_bps.max(l.rx_bps) >= 0.5;
            let rates = format!("{}/{}", rate_short(l.tx_bps), rate_short(l.rx_bps));
            let cells = [
                p.name.clone(),
                link_word(l),
                l.address.clone().unwrap_or_else(|| "-".to_owned()),
                millis(l.rtt_ms),
                bytes(l.tx_bytes).replace(' ', ""),
                bytes(l.rx_bytes).replace(' ', ""),
                if carries { rates } else { "-".to_owned() },
                l.last_handshake_s.map_or_else(|| "-".to_owned(), age),
            ];
            table.row(cells, below(l, wide));
        }
        (!n.peers.is_empty()).then(|| table.show("  "))
    })
}

/// Why, candidates, and for how long.
fn below(l: &LinkStatus, wide: bool) -> String {
    let mut out = String::new();
    let plain_direct = path(l) == Some("direct") || l.state == "idle";
    if !l.why.is_empty() && (wide || !plain_direct) {
        let pair = l.pair.as_ref().map_or_else(String::new, |p| format!(" [{p}]"));
        let setup = l.setup_ms.map_or_else(String::new, |ms| format!(", made in {}", millis(Some(ms))));
        wrapped(&mut out, "    ", &format!("{}{pair} (for {}{setup})", l.why, age(l.for_s)), 6);
    }
    out
}

/// The pinned key of each peer.
#[must_use]
pub fn pins(s: &Status) -> String {
    const COLUMNS: [Column; 4] =
        [table::text("NAME", 16), table::text("PIN", 8), table::text("KEY", 44), table::text("JID", usize::MAX)];
    by_network(s, |n| {
        let mut table = Table::new(&COLUMNS, false);
        for p in &n.peers {
            let below = match &p.pin_detail {
                Some(key) if p.pin != PINNED => format!("    refused: {}\n", plain(key)),
                _ => String::new(),
            };
            let pin = if p.pin == PINNED { p.pin.clone() } else { p.pin.to_uppercase() };
            table.row([p.name.clone(), pin, p.public_key.clone(), p.jid.clone()], below);
        }
        (!n.peers.is_empty()).then(|| table.show("  "))
    })
}

/// One line a friend, and below it what there is to know or to do.
#[must_use]
pub fn friends(all: &[FriendStatus]) -> String {
    const COLUMNS: [Column; 4] =
        [table::text("JID", 40), table::text("STATE", 9), table::text("XMPP", 7), table::text("NODES", 40)];
    if all.is_empty() {
        return "nobody yet: ask somebody with ipop-fast friends add bob@example.org\n".to_owned();
    }
    let mut table = Table::new(&COLUMNS, false);
    for f in all {
        let node = |n: &super::status::FriendNode| match &n.address {
            Some(a) => format!("{} {a}", n.name),
            None => n.name.clone(),
        };
        let word = if f.blocked { "BLOCKED" } else { &f.state };
        let xmpp = match (f.state.as_str(), f.online) {
            ("friend", true) => "online",
            ("friend", false) => "offline",
            _ => "-",
        };
        let nodes = f.nodes.iter().map(node).collect::<Vec<_>>().join(", ");
        let below = match (&f.problem, f.state.as_str()) {
            (Some(why), _) => format!("the request did not arrive: {why}"),
            (None, "request") => {
                format!("asks to be a friend: ipop-fast friends accept {0}, or friends remove {0}", f.jid)
            }
            (None, "one-sided") => format!("only one of you sees the other: ipop-fast friends add {}", f.jid),
            (None, "friend") if f.networks.is_empty() && !f.blocked => "is not let in by allow".to_owned(),
            _ => String::new(),
        };
        let mut lines = String::new();
        if !below.is_empty() {
            wrapped(&mut lines, "    ", &below, 6);
        }
        table.row([f.jid.clone(), word.to_owned(), xmpp.to_owned(), nodes], lines);
    }
    table.show("")
}

fn by_network(s: &Status, mut show: impl FnMut(&NetworkStatus) -> Option<String>) -> String {
    let mut out = String::new();
    for n in &s.networks {
        let _ = writeln!(out, "{}: {} on {}", plain(&s.name), plain(&n.network), plain(&n.interface));
        out += &show(n).unwrap_or_else(|| "  nobody else has been seen yet\n".to_owned());
    }
    if s.networks.is_empty() {
        let _ = writeln!(out, "{}: no network", plain(&s.name));
    }
    out
}
