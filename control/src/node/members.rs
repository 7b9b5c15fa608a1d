//! Who is a peer, and which address is ours: from members, descriptors and pins to plans.

use super::friends;
use super::network::{Around, Network};
use super::run::{LEASES, Node, PINS};
use crate::admin::Response;
use crate::config::{AddressChoice, NetworkKind};
use crate::identity::base64;
use crate::network::address::{OwnAddress, Settlement, choose, host_prefix, settle, usable};
use crate::network::members::{claims, split_jid};
use crate::network::{Inputs, Node as Member, Own, Refused, plan};
use dataplane::table::Prefix;
use std::collections::HashSet;
use std::net::IpAddr;
use std::time::SystemTime;

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Node {
    /// Makes the plan of every network again and carries it out.
    pub(super) async fn refresh(&mut self) {
        let interfaces: Vec<String> = self.config.networks.iter().map(|n| n.interface.clone()).collect();
        match self.host.routes_by_interface(&interfaces).await {
            Ok(routes) => self.underlay = Some(routes),
            Err(e) => tracing::warn!("{e}"),
        }
        for id in 0..self.networks.len() {
            self.readdress(id, false).await;
            let members = self.members_of(id);
            let plan = match self.networks[id].config.kind {
                NetworkKind::Group(_) => self.with_inputs(id, plan),
                NetworkKind::Social(_) => self.social_plan(id, &members),
            };
            let mut pinned = false;
            let n = &mut self.networks[id];
            let seen = plan.peers.iter().map(|p| (&p.jid, &p.public_key));
            let changed = plan.refused.iter().filter(|r| r.pinned.is_some()).map(|r| (&r.jid, &r.public_key));
            for (jid, key) in seen.chain(changed) {
                let (account, device) = split_jid(jid);
                pinned |= self.pins.note(account, device, &n.name, key);
            }
            let new = |r: &&Refused| !n.refused.iter().any(|o| o.public_key == r.public_key && o.jid == r.jid);
            for r in plan.refused.iter().filter(|r| r.pinned.is_some()).filter(new) {
                tracing::error!(
                    "THE KEY OF {} CHANGED to {}: it is refused until you say `ipop-fast pins accept {}`",
                    r.jid,
                    base64::public(&r.public_key),
                    r.jid
                );
            }
            n.refused.clone_from(&plan.refused);
            let signaling = self.connection.online;
            let social = n.config.social().is_some();
            let friends = &self.friends;
            let around = Around {
                online: &self.present,
                our_jid: self.jid.as_deref(),
                signaling,
                host: &self.host,
                xmpp: &self.xmpp,
                events: &self.events,
                why_gone: &|jid| match split_jid(jid).0 {
                    account if members.contains(account) => "is no node of this network any more",
                    account if social => friends::why_out(friends, account),
                    _ => "is no member any more",
                },
            };
            n.apply(plan, &around).await;
            if pinned {
                self.keep_pins();
            }
        }
        // A path to a peer must not lead through a tunnel of ours.
        let carried: Vec<Prefix> = self.networks.iter().flat_map(Network::carries).collect();
        for n in &self.networks {
            n.ice.set_overlay(carried.clone());
        }
        self.rename();
    }

    /// Bare JIDs of all whose nodes may be peers in network `id`.
    fn members_of(&self, id: usize) -> HashSet<String> {
        let others = self.members.get(&self.networks[id].name).into_iter().flatten();
        // Our other devices.
        others.chain([&self.config.xmpp.jid]).cloned().collect()
    }

    /// All nodes that said something about themselves, but for this one.
    pub(super) fn others(&self) -> Vec<Member<'_>> {
        let own_jid = self.jid.as_deref();
        let others = self.descriptors.iter().filter(|(jid, _)| Some(jid.as_str()) != own_jid);
        others.map(|(jid, descriptor)| Member { jid, descriptor }).collect()
    }

    fn keep_pins(&self) {
        if let Err(e) = self.store.write(PINS, &self.pins) {
            tracing::error!("pinned keys are not kept: {e}");
        }
    }

    pub(super) fn keep_leases(&self) {
        if let Err(e) = self.store.write(LEASES, &self.leases) {
            tracing::error!("the own address is not kept: {e}");
        }
    }

    /// A person trusts the new key of `jid`.
    pub(super) fn accept_pin(&mut self, jid: &str) -> Response {
        match self.pins.accept(jid) {
            keys if keys.is_empty() => {
                Response::Error { message: format!("no changed key of {jid} was refused: there is nothing to accept") }
            }
            keys => {
                self.keep_pins();
                self.stir();
                let keys: Vec<String> = keys.iter().map(base64::public).collect();
                let message = format!("accepted of {jid}: {}", keys.join(", "));
                tracing::warn!("changed keys were {message}");
                Response::Done { message }
            }
        }
    }

    /// A person does not need the pinned keys of `jid` any more.
    pub(super) fn forget_pins(&mut self, jid: &str) -> Response {
        match self.pins.forget(jid) {
            0 => Response::Error { message: format!("no key of {jid} is pinned") },
            n => {
                self.keep_pins();
                self.stir();
                tracing::warn!("{n} pinned keys of {jid} were forgotten");
                Response::Done {
                    message: format!("{n} pinned key(s) of {jid} forgotten; what it shows next is pinned"),
                }
            }
        }
    }

    /// All that the plan of network `id` depends on.
    fn with_inputs<T>(&self, id: usize, f: impl FnOnce(&Inputs<'_>) -> T) -> T {
        let n = &self.networks[id];
        let group = n.config.group();
        let members = self.members_of(id);
        let subnets = n.subnets();
        // Of the network's own addresses: `claims` are about the others.
        let own = n.addresses();
        f(&Inputs {
            network: &n.name,
            own: Own {
                account: &self.config.xmpp.jid,
                public_key: n.public_key,
                addresses: &own,
                since: n.address.map_or(u64::MAX, |(_, since)| since),
                routes: n.routes(),
            },
            subnets: &subnets,
            secret: group.and_then(|g| g.secret.as_ref()).map(|s| s.as_slice()),
            // Without knowing what this machine reaches by itself, nobody's routes are taken.
            accept_routes: group.is_some_and(|g| g.accept_routes) && self.underlay.is_some(),
            aes: self.offers_aes(),
            underlay: &self.guarded(id),
            members: &members,
            nodes: &self.others(),
            online: &self.present,
            pins: &self.pins,
        })
    }

    /// What no member of network `id` may take over by offering a route.
    fn guarded(&self, id: usize) -> Vec<Prefix> {
        let local = self.underlay.iter().flatten().map(|r| r.0);
        let others = self.networks.iter().enumerate().filter(|(i, _)| *i != id).flat_map(|(_, n)| n.reaches());
        let endpoints = self.networks.iter().flat_map(Network::endpoints);
        let hosts = self.servers.addresses().chain(self.xmpp_server).chain(endpoints).map(host_prefix);
        local.chain(others).chain(hosts).collect()
    }

    /// Finds our address in network `id`: the configured one, the one of the last time, or, if the others' are `known`,
    /// one that nobody has. True if it is another one than before.
    pub(super) fn choose_address(&mut self, id: usize, known: bool) -> bool {
        if self.networks[id].config.social().is_some() {
            return self.choose_social_address(id);
        }
        let others = self.with_inputs(id, claims);
        let n = &mut self.networks[id];
        let (fixed, subnet) = (matches!(n.config.address, AddressChoice::Fixed(..)), n.subnet());
        let Some(subnet) = subnet else { return false };
        let kept = self.leases.get(&n.name).map(|l| l.address).filter(|a| usable(&subnet, *a));
        let taken: HashSet<IpAddr> = others.iter().map(|o| o.2).collect();
        let address = match (n.config.address, n.address) {
            (_, Some((address, since))) => {
                let own = OwnAddress { address, key: n.public_key, since, fixed };
                match settle(&own, &subnet, &others) {
                    Settlement::Keep => {
                        n.conflict = None;
                        return false;
                    }
                    Settlement::Move(to) => {
                        tracing::warn!("{}: another member had {address} before us: ours is {to} from now on", n.name);
                        Some(to)
                    }
                    Settlement::Conflict(key) => {
                        let said =
                            format!("{address} is also the address of the member with key {key}, which had it first");
                        if n.conflict.as_ref() != Some(&said) {
                            tracing::error!("{}: {said}: give this node another one", n.name);
                        }
                        n.conflict = Some(said);
                        return false;
                    }
                }
            }
            (AddressChoice::Fixed(a, _), None) => Some(a),
            (AddressChoice::Within(_), None) if kept.is_some() => kept,
            (AddressChoice::Within(_), None) if known => choose(&subnet, &n.public_key, &taken),
            (AddressChoice::Within(_), None) => None,
        };
        let Some(address) = address else {
            if known {
                n.conflict = Some(format!("{subnet} is full: this node has no address"));
            }
            return false;
        };
        let keep = self.leases.take(&n.name, address, now_ms());
        let since = self.leases.get(&n.name).map_or(0, |l| l.since);
        n.address = Some((address, since));
        n.conflict = None;
        if keep {
            self.keep_leases();
        }
        true
    }

    /// [`Self::choose_address`], and tells interface and members.
    pub(super) async fn readdress(&mut self, id: usize, known: bool) {
        if !self.choose_address(id, known) {
            return;
        }
        let n = &self.networks[id];
        if let Some((address, _)) = n.address {
            tracing::info!("{}: our address is {address}", n.name);
        }
        if let Err(e) = n.set_up(&self.host).await {
            tracing::error!("{}: {e}", n.name);
        }
        self.publish();
        self.stir();
    }
}
