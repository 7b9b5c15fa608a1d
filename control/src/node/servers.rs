//! Which STUN and TURN servers the node uses: those of its configuration, else those that the XMPP server offers.

use super::event::Event;
use crate::config::IceConfig;
use crate::ice::TurnServer;
use crate::xmpp::{ServiceKind, Xmpp};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::mpsc;

/// Servers of one kind that are used; more add nothing but traffic.
const MOST: usize = 4;
/// A name that is not resolved in this time counts as unknown.
const RESOLVE: Duration = Duration::from_secs(5);
/// Credentials that end are asked for again this often: servers make them for some hours (ejabberd 12, prosody 24),
/// and an allocation that is refreshed with old ones is lost when they end.
const RENEW: Duration = Duration::from_secs(3600);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(30);

/// Finds out, and says so by [`Event::Servers`].
pub(super) async fn find(config: IceConfig, xmpp: Xmpp, events: mpsc::Sender<Event>) {
    let found =
        if config.stun.is_empty() && config.turn.is_empty() { offered(&xmpp).await } else { configured(&config).await };
    let _ = events.send(found).await;
}

async fn configured(config: &IceConfig) -> Event {
    let (mut stun, mut turn, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    for server in &config.stun {
        match resolve(server).await {
            Ok(found) => stun.extend(found),
            Err(e) => problems.push(e),
        }
    }
    for server in &config.turn {
        match resolve(&server.server).await {
            Ok(found) => turn.extend(found.into_iter().map(|address| TurnServer {
                address,
                username: server.username.clone(),
                password: server.password.to_string(),
            })),
            Err(e) => problems.push(e),
        }
    }
    let lifetime = (!problems.is_empty()).then_some(AGAIN);
    told(stun, turn, problems, lifetime)
}

async fn offered(xmpp: &Xmpp) -> Event {
    let services = match xmpp.external_services().await {
        Ok(services) => services,
        Err(e) => {
            let problem = format!("the XMPP server offers no STUN or TURN servers (XEP-0215): {e}");
            return told(Vec::new(), Vec::new(), vec![problem], Some(AGAIN));
        }
    };
    let (mut stun, mut turn, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    let mut lifetime: Option<Duration> = None;
    for s in services.iter().filter(|s| s.transport == "udp") {
        let found = match resolve(&format!("{}:{}", bracketed(&s.host), s.port)).await {
            Ok(found) => found,
            Err(e) => {
                problems.push(e);
                continue;
            }
        };
        match (&s.username, &s.password) {
            (Some(username), Some(password)) if (s.kind == ServiceKind::Turn) => {
                turn.extend(found.into_iter().map(|address| TurnServer {
                    address,
                    username: username.clone(),
                    password: password.to_string(),
                }));
            }
            _ if (s.kind == ServiceKind::Turn) => {
                problems.push(format!("the XMPP server gave no credentials for TURN at {}", s.host))
            }
            _ => stun.extend(found),
        }
        if s.expires.is_some() {
            lifetime = Some(RENEW);
        }
    }
    if stun.is_empty() && turn.is_empty() && problems.is_empty() {
        problems.push("the XMPP server offers no STUN or TURN servers over UDP: set [ice] in the configuration".into());
    }
    let lifetime = lifetime.or_else(|| (!problems.is_empty()).then_some(AGAIN));
    told(stun, turn, problems, lifetime)
}

fn told(
    mut stun: Vec<SocketAddr>,
    mut turn: Vec<TurnServer>,
    problems: Vec<String>,
    lifetime: Option<Duration>,
) -> Event {
    stun.truncate(MOST);
    turn.truncate(MOST);
    let problem = (!problems.is_empty()).then(|| problems.join("; "));
    Event::Servers { stun, turn, problem, lifetime }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() }
}

/// One address of each family at most.
async fn resolve(server: &str) -> Result<Vec<SocketAddr>, String> {
    let looked = tokio::time::timeout(RESOLVE, tokio::net::lookup_host(server)).await;
    let all: Vec<SocketAddr> = match looked {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(e)) => return Err(format!("the name of {server} is not known: {e}")),
        Err(_) => return Err(format!("the name server did not answer for {server}")),
    };
    let first = |v6: bool| all.iter().copied().find(|a| a.is_ipv6() == v6);
    Ok([first(false), first(true)].into_iter().flatten().collect())
}
