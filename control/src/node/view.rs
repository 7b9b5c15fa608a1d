//! The node as people see it.

use super::friends::own_name;
use super::network::Network;
use super::peer::Peer;
use super::run::Node;
use crate::admin::status::{CipherStatus, LinkStatus, NetworkStatus, PeerStatus, ServerStatus, Status, XmppStatus};
use crate::ice::{ServerKind, ServerState};
use crate::identity::base64;
use dataplane::Engine;
use std::collections::BTreeMap;

/// All of it.
pub(super) fn status(node: &Node) -> Status {
    let mut servers: Vec<ServerStatus> = Vec::new();
    for s in node.networks.iter().flat_map(|n| n.ice.servers()) {
        let s = server(&s);
        if !servers.contains(&s) {
            servers.push(s);
        }
    }
    let mut networks: Vec<NetworkStatus> = node.networks.iter().map(|n| network(node, n)).collect();
    if let (Some(problem), Some(first)) = (&node.servers_problem, networks.first_mut()) {
        first.warnings.push(problem.clone());
    }
    Status {
        name: node.config.name.clone(),
        jid: node.jid.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_s: node.started.elapsed().as_secs(),
        xmpp: XmppStatus {
            online: node.connection.online,
            detail: node.connection.detail.clone(),
            for_s: node.connection.since.elapsed().as_secs(),
            dropped_strangers: node.xmpp.counters().strangers(),
            dropped_malformed: node.xmpp.counters().malformed(),
        },
        cipher: CipherStatus {
            setting: node.config.cipher.name().to_owned(),
            aes256gcm: node.offers_aes(),
            chacha20poly1305_gb_s: gb_s(node.speeds.chacha20poly1305),
            aes256gcm_gb_s: gb_s(node.speeds.aes256gcm),
        },
        servers,
        requests: node.friends.requests.clone(),
        networks,
    }
}

/// Bytes a second in GB/s, as exactly as it was measured.
fn gb_s(bytes_s: f64) -> f64 {
    (bytes_s / 1e7).round() / 100.0
}

fn server(s: &ServerState) -> ServerStatus {
    let (kind, told) = match s.kind {
        ServerKind::Stun => ("stun", s.mapped.map(|a| format!("sees us as {a}"))),
        ServerKind::Turn => ("turn", s.relayed.map(|a| format!("relays for us at {a}"))),
    };
    ServerStatus {
        kind: kind.to_owned(),
        address: s.address.to_string(),
        ok: s.error.is_none() && told.is_some(),
        detail: s.error.clone().or(told).unwrap_or_else(|| "no answer yet".to_owned()),
    }
}

fn network(node: &Node, n: &Network) -> NetworkStatus {
    let mut peers: Vec<PeerStatus> = n.peers.values().map(peer).collect();
    for r in &n.refused {
        peers.push(PeerStatus {
            name: r.name.clone(),
            jid: r.jid.clone(),
            online: node.present.contains(&r.jid),
            public_key: r.pinned.map_or_else(String::new, |k| base64::public(&k)),
            pin: if r.pinned.is_some() { "changed" } else { "refused" }.to_owned(),
            pin_detail: Some(base64::public(&r.public_key)),
            link: LinkStatus {
                state: "idle".to_owned(),
                why: match r.pinned {
                    Some(_) => "its key changed and is refused".to_owned(),
                    None => "it says that it has another node's key, and is refused".to_owned(),
                },
                ..LinkStatus::default()
            },
            ..PeerStatus::default()
        });
    }
    let stats = n.engine.stats();
    peers.sort_by(|a, b| (&a.name, &a.jid).cmp(&(&b.name, &b.jid)));
    NetworkStatus {
        network: n.name.clone(),
        kind: if n.config.social().is_some() { "social" } else { "group" }.to_owned(),
        subnet: n.subnet().map(|p| p.to_string()),
        interface: n.config.interface.clone(),
        addresses: n.interface_addresses().iter().map(|(a, len)| format!("{a}/{len}")).collect(),
        public_key: base64::public(&n.public_key),
        listen_port: n.port,
        host_addresses: n.host_addresses.iter().flatten().map(ToString::to_string).collect(),
        routes: n.routes().iter().map(ToString::to_string).collect(),
        traffic: counted(&stats.traffic),
        drops: drops(n, &stats.drops),
        kernel_drops: counted(&stats.kernel_drops),
        kernel_programs: n.engine.capabilities().ebpf_text().to_owned(),
        warnings: n.conflict.iter().chain(&n.warnings).cloned().chain(node.names.problems(&n.addresses())).collect(),
        peers,
    }
}

/// Of the data plane, and of STUN and TURN on its port.
fn drops(n: &Network, rows: &[(&'static str, u64)]) -> BTreeMap<String, u64> {
    let ice = n.ice.drops();
    let ice = [("stun_malformed", ice.malformed), ("stun_unknown", ice.unknown), ("stun_forged", ice.forged)];
    let mut all = counted(rows);
    all.append(&mut counted(&ice));
    all
}

fn counted(rows: &[(&'static str, u64)]) -> BTreeMap<String, u64> {
    rows.iter().filter(|(_, n)| *n > 0).map(|(name, n)| ((*name).to_owned(), *n)).collect()
}

fn peer(p: &Peer) -> PeerStatus {
    PeerStatus {
        name: p.planned.name.clone(),
        jid: p.planned.jid.clone(),
        online: p.online,
        addresses: p.planned.addresses.iter().map(|a| a.address().to_string()).collect(),
        calls_itself: own_name(&p.planned),
        routes: p.planned.routes.iter().map(ToString::to_string).collect(),
        public_key: base64::public(&p.planned.public_key),
        pin: "pinned".to_owned(),
        pin_detail: None,
        link: p.status(Engine::now()),
    }
}
