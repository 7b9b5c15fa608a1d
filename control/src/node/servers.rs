//! Which STUN and TURN servers the node uses: those of its configuration, else those that the XMPP server offers.

use super::event::{Event, Servers};
use crate::config::IceConfig;
use crate::ice::TurnServer;
use crate::xmpp::{ServiceKind, Xmpp};
use std::net::{IpAddr, SocketAddr};
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
                password: server.password.clone(),
            })),
            Err(e) => problems.push(e),
        }
    }
    let (complete, lifetime) = (problems.is_empty(), (!problems.is_empty()).then_some(AGAIN));
    told(Servers { stun, turn }, complete, problems, lifetime)
}

async fn offered(xmpp: &Xmpp) -> Event {
    let services = match xmpp.external_services().await {
        Ok(services) => services,
        Err(e) => {
            let problem = format!("the XMPP server offers no STUN or TURN servers (XEP-0215): {e}");
            return told(Servers::default(), false, vec![problem], Some(AGAIN));
        }
    };
    let (mut stun, mut turn, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    let mut complete = true;
    let mut lifetime: Option<Duration> = None;
    for s in services.iter().filter(|s| s.transport == "udp") {
        let found = match resolve(&format!("{}:{}", bracketed(&s.host), s.port)).await {
            Ok(found) => found,
            Err(e) => {
                complete = false;
                problems.push(e);
                continue;
            }
        };
        match (&s.username, &s.password) {
            (Some(username), Some(password)) if (s.kind == ServiceKind::Turn) => {
                turn.extend(found.into_iter().map(|address| TurnServer {
                    address,
                    username: username.clone(),
                    password: password.clone(),
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
    // What cannot be looked up just now is soon asked for again.
    let lifetime = if complete { lifetime } else { Some(AGAIN) };
    told(Servers { stun, turn }, complete, problems, lifetime)
}

fn told(servers: Servers, complete: bool, problems: Vec<String>, lifetime: Option<Duration>) -> Event {
    let problem = (!problems.is_empty()).then(|| problems.join("; "));
    Event::Servers { servers, complete, problem, lifetime }
}

impl Servers {
    /// What is used after `news`. News that are not complete (XMPP is down, a name was not resolved) take nothing away:
    /// relayed links stand on these servers.
    pub(super) fn after(&self, mut news: Self, complete: bool) -> Self {
        if !complete {
            let known = |a: &SocketAddr| news.turn.iter().any(|t| t.address == *a);
            let kept: Vec<TurnServer> = self.turn.iter().filter(|t| !known(&t.address)).cloned().collect();
            news.turn.extend(kept);
            let kept: Vec<SocketAddr> = self.stun.iter().filter(|a| !news.stun.contains(a)).copied().collect();
            news.stun.extend(kept);
        }
        news.stun.truncate(MOST);
        news.turn.truncate(MOST);
        news
    }

    /// Their addresses.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.stun.iter().map(SocketAddr::ip).chain(self.turn.iter().map(|t| t.address.ip()))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(stun: &[u8], turn: &[(u8, &str)]) -> Servers {
        let at = |n: u8| SocketAddr::from(([192, 0, 2, n], 3478));
        let turn = turn.iter().map(|(n, user)| TurnServer {
            address: at(*n),
            username: (*user).to_owned(),
            password: String::new().into(),
        });
        Servers { stun: stun.iter().map(|n| at(*n)).collect(), turn: turn.collect() }
    }

    fn said(s: &Servers) -> (Vec<u8>, Vec<(u8, &str)>) {
        let last = |a: &SocketAddr| match a.ip() {
            IpAddr::V4(a) => a.octets()[3],
            IpAddr::V6(_) => 0,
        };
        (s.stun.iter().map(last).collect(), s.turn.iter().map(|t| (last(&t.address), t.username.as_str())).collect())
    }

    #[test]
    fn a_question_without_an_answer_takes_no_server_away_and_a_whole_answer_does() {
        let before = servers(&[1, 2], &[(3, "old"), (4, "old")]);
        assert_eq!(said(&before.after(Servers::default(), false)), said(&before));
        let after = before.after(servers(&[2], &[(4, "new")]), false);
        assert_eq!(said(&after), (vec![2, 1], vec![(4, "new"), (3, "old")]));
        let after = before.after(servers(&[2], &[(4, "new")]), true);
        assert_eq!(said(&after), (vec![2], vec![(4, "new")]));
        assert_eq!(said(&before.after(Servers::default(), true)), (vec![], vec![]));
        let many = servers(&[5, 6, 7, 8, 9], &[]);
        assert_eq!(
            said(&before.after(many, false)).0,
            [5, 6, 7, 8],
            "those that were told last, and no more than MOST"
        );
    }
}
