//! Networks of friends: own address, leases, what is told about friends, and what a person wants to be done about them.

use super::members::now_ms;
use super::run::{FRIENDS, Node};
use crate::Error;
use crate::admin::status::{FriendNode, FriendStatus};
use crate::admin::{FriendAction, Response};
use crate::config::{AddressChoice, NodeConfig};
use crate::host::{Host, overlapping};
use crate::network::address::{choose, usable};
use crate::network::members::split_jid;
use crate::network::social::{self, Terms};
use crate::network::{Plan, Roll};
use crate::xmpp::{Befriend, FriendError, Friends, Subscription};
use dataplane::table::Prefix;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The roster comes within so long after the login, or something is wrong.
const SETTLE: Duration = Duration::from_secs(5);
/// How often that is looked at.
const SETTLE_STEP: Duration = Duration::from_millis(100);
/// Online for so long, a friend's node that did not show itself is not there any more; other servers may be away for
/// minutes.
const ALL_SEEN: Duration = Duration::from_secs(600);

/// Refuses subnets that hide what this machine reaches.
///
/// # Errors
/// [`Error::State`] with the route; [`Error::Io`] if the kernel does not tell.
pub(super) async fn refuse_overlaps(config: &NodeConfig, host: &Host) -> Result<(), Error> {
    let social = config.networks.iter().filter(|n| n.social().is_some());
    let subnets: Vec<(&str, Prefix)> = social.filter_map(|n| Some((n.interface.as_str(), n.subnet()?))).collect();
    if subnets.is_empty() {
        return Ok(());
    }
    let interfaces: Vec<String> = config.networks.iter().map(|n| n.interface.clone()).collect();
    let routes = host.routes_by_interface(&interfaces).await?;
    match subnets.iter().find_map(|(i, s)| overlapping(s, &routes).map(|o| (i, o))) {
        None => Ok(()),
        Some((interface, overlap)) => Err(Error::State(format!(
            "the subnet of {interface} is refused: {overlap}. Friends' addresses are of no meaning to others, so give the \
             network any other private subnet"
        ))),
    }
}

/// Why an account is in no network of friends.
pub(super) fn why_out(friends: &Friends, account: &str) -> &'static str {
    match friends.contacts.iter().find(|c| c.jid == account) {
        Some(c) if c.blocked => "is on the account's block list",
        Some(c) if c.subscription == Subscription::Both => "is not let in by allow",
        _ => "is no friend any more",
    }
}

impl Node {
    /// The plan of a network of friends. Leases that change by it are kept.
    pub(super) fn social_plan(&mut self, id: usize, members: &HashSet<String>) -> Plan {
        let n = &self.networks[id];
        let (Some(config), Some(subnet)) = (n.config.social(), n.subnet()) else { return Plan::default() };
        // Not by `others`: the leases are changed meanwhile.
        let own_jid = self.jid.as_deref();
        let nodes = self.descriptors.iter().filter(|(jid, _)| Some(jid.as_str()) != own_jid);
        let nodes: Vec<_> = nodes.map(|(jid, descriptor)| crate::network::Node { jid, descriptor }).collect();
        let roll = Roll {
            network: &n.name,
            public_key: n.public_key,
            aes: self.offers_aes(),
            members,
            nodes: &nodes,
            pins: &self.pins,
        };
        let own = match n.address {
            Some((IpAddr::V4(a), _)) => Some(a),
            _ => None,
        };
        let terms = Terms { subnet, own, fixed: &config.leases };
        let book = self.friend_leases.book(&n.name);
        let mut changed = false;
        if self.connection.online && self.members.contains_key(&n.name) {
            let here = |node: &&crate::network::Node<'_>| node.descriptor.networks.iter().any(|d| d.network == n.name);
            let seen: HashSet<&str> = nodes.iter().filter(here).map(|node| node.jid).collect();
            let all_seen = self.connection.since.elapsed() >= ALL_SEEN;
            changed = book.observe(|account| members.contains(account), &seen, all_seen, now_ms());
        }
        let social = social::plan(&social::Inputs { roll, terms, multicast: config.multicast }, book, now_ms());
        let mut plan = social.plan;
        for news in &social.news {
            tracing::info!("{}: {news}", n.name);
        }
        for c in self.friends.contacts.iter().filter(|c| c.blocked && book.has_account(&c.jid)) {
            plan.warnings.push(format!("{} is on the account's block list: there are no links to its nodes", c.jid));
        }
        let routes = self.underlay.as_deref().unwrap_or_default();
        plan.warnings.extend(overlapping(&subnet, routes).map(|o| format!("{o}: the two get in each other's way")));
        for warning in plan.warnings.iter().filter(|w| !n.warnings.contains(w)) {
            tracing::warn!("{}: {warning}", n.name);
        }
        if changed || social.changed {
            self.keep_friend_leases();
        }
        plan
    }

    fn keep_friend_leases(&self) {
        if let Err(e) = self.store.write(FRIENDS, &self.friend_leases) {
            tracing::error!("the addresses of friends are not kept: {e}");
        }
    }

    /// Our own address in a network of friends: the configured one, the one of the last time, or one that no friend's
    /// node has. Nobody else has a say in that. True if it is another one than before.
    pub(super) fn choose_social_address(&mut self, id: usize) -> bool {
        let n = &mut self.networks[id];
        let (Some(config), Some(subnet)) = (n.config.social(), n.subnet()) else { return false };
        let book = self.friend_leases.book(&n.name);
        let is_free = |a: &IpAddr| match a {
            IpAddr::V4(a) => book.is_free(*a) && config.leases.iter().all(|l| l.address != *a),
            IpAddr::V6(_) => false,
        };
        let kept = n.address.map(|a| a.0).or_else(|| self.leases.get(&n.name).map(|l| l.address));
        let address = match n.config.address {
            AddressChoice::Fixed(a, _) => Some(a),
            AddressChoice::Within(_) => kept.filter(|a| usable(&subnet, *a) && is_free(a)).or_else(|| {
                let leased = book.iter().map(|l| l.address).chain(config.leases.iter().map(|l| l.address));
                let taken: HashSet<IpAddr> = leased.map(IpAddr::V4).collect();
                choose(&subnet, &n.public_key, &taken)
            }),
        };
        let Some(address) = address else {
            n.conflict = Some(format!("{subnet} is full: this node has no address"));
            return false;
        };
        if n.address.is_some_and(|(a, _)| a == address) {
            return false;
        }
        let keep = self.leases.take(&n.name, address, now_ms());
        n.address = Some((address, self.leases.get(&n.name).map_or(0, |l| l.since)));
        n.conflict = None;
        if keep {
            self.keep_leases();
        }
        true
    }

    /// What is known of friends, those who ask to be some first.
    pub(super) fn friend_list(&self) -> Response {
        if self.config.networks.iter().all(|n| n.social().is_none()) {
            return Response::Error { message: "this node has no network of kind social".to_owned() };
        }
        let here: HashSet<&str> = self.present.iter().map(|jid| split_jid(jid).0).collect();
        let mut nodes = self.friends_nodes();
        let request =
            |jid: &String| FriendStatus { jid: jid.clone(), state: "request".to_owned(), ..FriendStatus::default() };
        let contacts = self.friends.contacts.iter().map(|c| FriendStatus {
            jid: c.jid.clone(),
            name: c.name.clone(),
            state: match c.subscription {
                Subscription::Both => "friend",
                _ if c.asked => "asked",
                _ => "one-sided",
            }
            .to_owned(),
            online: here.contains(c.jid.as_str()),
            blocked: c.blocked,
            networks: c.networks.clone(),
            nodes: nodes.remove(&c.jid).unwrap_or_default(),
            problem: c.problem.clone(),
        });
        let mut asking: Vec<FriendStatus> = self.friends.requests.iter().map(request).collect();
        // Who sees us one way and asks for the other is listed once.
        asking.extend(contacts.filter(|c| !self.friends.requests.contains(&c.jid)));
        Response::Friends { friends: asking }
    }

    /// The nodes in networks of friends, by account.
    fn friends_nodes(&self) -> HashMap<String, Vec<FriendNode>> {
        let social = self.networks.iter().filter(|n| n.config.social().is_some());
        let mut all: HashMap<String, Vec<FriendNode>> = HashMap::new();
        for (n, p) in social.flat_map(|n| n.peers.values().map(move |p| (n, p))) {
            all.entry(split_jid(&p.planned.jid).0.to_owned()).or_default().push(FriendNode {
                name: p.planned.name.clone(),
                network: n.name.clone(),
                address: p.planned.translation.map(|t| t.lease.to_string()),
                online: p.online,
            });
        }
        for nodes in all.values_mut() {
            nodes.sort_by(|a, b| (&a.network, &a.name, &a.address).cmp(&(&b.network, &b.name, &b.address)));
        }
        all
    }

    /// Does what a person wants; the answer comes when the server has answered.
    pub(super) fn befriend(&self, action: FriendAction, jid: String, reply: oneshot::Sender<Response>) {
        let what = match action {
            FriendAction::Add => Befriend::Add,
            FriendAction::Accept => Befriend::Accept,
            FriendAction::Remove => Befriend::Remove,
        };
        let xmpp = self.xmpp.clone();
        tokio::spawn(async move {
            let end = Instant::now() + SETTLE;
            let done = loop {
                match xmpp.befriend(what, &jid).await {
                    // Just logged in: a moment more, and it can be done.
                    Err(FriendError::Unsettled) if Instant::now() < end => tokio::time::sleep(SETTLE_STEP).await,
                    done => break done,
                }
            };
            let response = match done {
                Ok(message) => Response::Done { message },
                Err(e) => Response::Error { message: e.to_string() },
            };
            // Whoever asked may have gone.
            let _ = reply.send(response);
        });
    }
}

/// What a friend's node calls itself.
pub(super) fn own_name(planned: &crate::network::PlannedPeer) -> Option<String> {
    planned.translation.map(|t| t.peer).map(|a: Ipv4Addr| a.to_string())
}
