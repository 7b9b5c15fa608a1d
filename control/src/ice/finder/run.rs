//! The life of one agent.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use webrtc_ice::agent::Agent;
use webrtc_ice::agent::agent_config::AgentConfig;
use webrtc_ice::candidate::CandidateType;
use webrtc_ice::candidate::candidate_base::{CandidateBase, CandidateBaseConfig};
use webrtc_ice::candidate::candidate_host::CandidateHostConfig;
use webrtc_ice::candidate::candidate_relay::CandidateRelayConfig;
use webrtc_ice::candidate::candidate_server_reflexive::CandidateServerReflexiveConfig;
use webrtc_ice::mdns::MulticastDnsMode;
use webrtc_ice::network_type::NetworkType;
use webrtc_ice::udp_network::UDPNetwork;
use webrtc_util::vnet::interface::Interface;
use webrtc_util::vnet::net::Net;

use super::super::candidate::CandidateKind;
use super::super::route::Route;
use super::seam::{Mux, Seam};
use super::verdict::Chosen;
use super::{ANSWER_DEADLINE, DEADLINE, NOTHING_TO_TRY, Role};

/// The one local candidate. The address is never seen by anybody.
pub(super) const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)), 1);

/// How often the agent checks what is not answered yet (RFC 8445, section 14.2: 50 ms).
const TICK: Duration = Duration::from_millis(50);
/// A way is checked until the end: the agent does not take up one again that it has given up.
const CHECKS: u16 = (DEADLINE.as_millis() / TICK.as_millis()) as u16 + 20;
/// How long after the start a reflexive way is taken, so that a shorter one in the same network comes first.
const REFLEXIVE_PATIENCE: Duration = Duration::from_millis(120);
/// The same for one that was not signalled.
const UNKNOWN_PATIENCE: Duration = Duration::from_millis(250);
/// The same for a relayed one.
const RELAY_PATIENCE: Duration = Duration::from_millis(700);
/// Relayed ways are made ready after direct ones had this long without success; the answering side begins one signalling
/// message earlier, and waits twice as long. With permissions (one round trip), checks (another, every 50 ms) and a channel
/// (a third) they are ready well before [`RELAY_PATIENCE`].
const RELAYS_AFTER: Duration = Duration::from_millis(150);
/// The same if a direct way works and is not agreed on yet.
const RELAYS_AT_LATEST: Duration = Duration::from_millis(450);
/// Longer than any negotiation: deadlines are ours.
const NEVER: Duration = Duration::from_secs(3600);
/// The agent's own work at start and end takes no longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the agent answers after the choice: the peer may not have got our last answer.
const LINGER: Duration = Duration::from_secs(2);

/// Runs until a way is chosen and for a moment longer, or until the finder is dropped.
pub(super) async fn run(seam: Arc<Seam>, gone: oneshot::Receiver<()>) {
    let agent = match start(&seam).await {
        Ok(agent) => agent,
        Err(why) => {
            let why = format!("no path: the ICE agent does not start: {why}");
            seam.lock().broken = Some(why.clone());
            seam.close();
            return seam.wire.done(Err(why));
        }
    };
    let life = async {
        let outcome = find(&seam, &agent).await;
        let found = outcome.is_ok();
        if let Err(why) = &outcome {
            seam.lock().broken.get_or_insert_with(|| why.clone());
        }
        seam.wire.done(outcome);
        if found {
            tokio::time::sleep(LINGER).await;
        }
    };
    tokio::select! {
        () = life => {}
        _ = gone => {}
    }
    seam.close();
    match timeout(PATIENCE, agent.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => tracing::debug!("an ICE agent does not close: {e}"),
        Err(_) => tracing::warn!("an ICE agent hangs in closing"),
    }
}

/// An agent with its one candidate.
async fn start(seam: &Arc<Seam>) -> Result<Agent, String> {
    let card = Interface::convert(LOCAL, None).map_err(|e| e.to_string())?;
    let config = AgentConfig {
        udp_network: UDPNetwork::Muxed(Arc::new(Mux(seam.clone()))),
        local_ufrag: seam.credentials.ufrag.clone(),
        // The agent keeps passwords as plain strings of its own, for the seconds that it lives.
        local_pwd: seam.credentials.password.to_string(),
        multicast_dns_mode: MulticastDnsMode::Disabled,
        disconnected_timeout: Some(NEVER),
        failed_timeout: Some(NEVER),
        keepalive_interval: Some(Duration::ZERO),
        network_types: vec![NetworkType::Udp6],
        candidate_types: vec![CandidateType::Host],
        check_interval: TICK,
        max_binding_requests: Some(CHECKS),
        is_controlling: seam.role == Role::Controlling,
        host_acceptance_min_wait: Some(Duration::ZERO),
        srflx_acceptance_min_wait: Some(REFLEXIVE_PATIENCE),
        prflx_acceptance_min_wait: Some(UNKNOWN_PATIENCE),
        relay_acceptance_min_wait: Some(RELAY_PATIENCE),
        net: Some(Arc::new(Net::Ifs(vec![Interface::new("paths".into(), vec![card])]))),
        ..AgentConfig::default()
    };
    let agent = Agent::new(config).await.map_err(|e| e.to_string())?;
    match timeout(PATIENCE, gather(&agent)).await {
        Ok(Ok(())) => Ok(agent),
        failed => {
            seam.close();
            let _ = timeout(PATIENCE, agent.close()).await;
            Err(failed.map_or_else(|_| "it does not gather".into(), |r| r.err().unwrap_or_default()))
        }
    }
}

async fn gather(agent: &Agent) -> Result<(), String> {
    let (tx, mut rx) = mpsc::channel(4);
    agent.on_candidate(Box::new(move |candidate| {
        let _ = tx.try_send(candidate.is_none());
        Box::pin(std::future::ready(()))
    }));
    agent.gather_candidates().map_err(|e| e.to_string())?;
    while let Some(all) = rx.recv().await {
        if all {
            let local = agent.get_local_candidates().await.map_err(|e| e.to_string())?;
            return if local.len() == 1 { Ok(()) } else { Err(format!("it has {} candidates, not one", local.len())) };
        }
    }
    Err("it stopped gathering".into())
}

async fn find(seam: &Seam, agent: &Agent) -> Result<Chosen, String> {
    let until = Instant::now() + ANSWER_DEADLINE;
    let remote = loop {
        add_fresh(seam, agent);
        let remote = seam.lock().remote.clone();
        if let Some(remote) = remote {
            break remote;
        }
        tokio::select! {
            () = seam.news.notified() => {}
            () = sleep_until(until) => return Err(seam.lock().failure()),
        }
    };
    let began = Instant::now();
    seam.lock().began = Some(began);
    // Kept: the agent gives up when it is dropped.
    let (_cancel, cancelled) = mpsc::channel(1);
    let connect = async {
        match seam.role {
            Role::Controlling => agent.dial(cancelled, remote.ufrag, remote.password.to_string()).await.map(drop),
            Role::Controlled => agent.accept(cancelled, remote.ufrag, remote.password.to_string()).await.map(drop),
        }
    };
    tokio::pin!(connect);
    let mut relays_at = Some(began + RELAYS_AFTER * if seam.role == Role::Controlling { 1 } else { 2 });
    loop {
        let (nothing, broken) = {
            let state = seam.lock();
            (state.told && state.ways.is_empty(), state.broken.clone())
        };
        if let Some(why) = broken {
            return Err(why);
        }
        let until = began + if nothing { NOTHING_TO_TRY } else { DEADLINE };
        tokio::select! {
            connected = &mut connect => {
                connected.map_err(|e| format!("no path: the ICE agent gave up: {e}"))?;
                break;
            }
            () = seam.news.notified() => add_fresh(seam, agent),
            () = sleep_until(relays_at.unwrap_or(until)), if relays_at.is_some() => {
                let latest = began + RELAYS_AT_LATEST;
                relays_at = Some(latest).filter(|_| Instant::now() < latest && seam.lock().has_direct());
                if relays_at.is_none() {
                    seam.wire.want_relays();
                }
            }
            () = sleep_until(until) => return Err(seam.lock().failure()),
        }
    }
    let pair = agent.get_selected_candidate_pair().ok_or("no path: the ICE agent lost the chosen one")?;
    let route = seam.route(pair.remote.addr()).ok_or("no path: the ICE agent chose an unknown one")?;
    seam.lock().take(route)
}

fn add_fresh(seam: &Seam, agent: &Agent) {
    for (route, address, kind, rank) in seam.take_fresh() {
        let added = candidate(&route, address, kind, rank)
            .map(|c| Arc::new(c) as Arc<dyn webrtc_ice::candidate::Candidate + Send + Sync>)
            .and_then(|c| agent.add_remote_candidate(&c));
        if let Err(e) = added {
            tracing::debug!(?route, "the ICE agent does not take a candidate: {e}");
        }
    }
}

/// The agent ranks by our rank and waits by the type.
fn candidate(
    route: &Route,
    address: SocketAddr,
    kind: CandidateKind,
    rank: u32,
) -> Result<CandidateBase, webrtc_ice::Error> {
    let base_config = CandidateBaseConfig {
        network: "udp".into(),
        address: address.ip().to_string(),
        port: address.port(),
        component: 1,
        priority: rank,
        ..CandidateBaseConfig::default()
    };
    if route.is_relay() || kind == CandidateKind::Relayed {
        return CandidateRelayConfig { base_config, ..CandidateRelayConfig::default() }.new_candidate_relay();
    }
    match kind {
        CandidateKind::Host => {
            CandidateHostConfig { base_config, ..CandidateHostConfig::default() }.new_candidate_host()
        }
        _ => CandidateServerReflexiveConfig { base_config, ..CandidateServerReflexiveConfig::default() }
            .new_candidate_server_reflexive(),
    }
}
