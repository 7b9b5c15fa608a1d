//! Who is a peer, and which address is ours: from members, descriptors and pins to plans.

use super::network::Around;
use super::run::{LEASES, Node, PINS};
use crate::admin::Response;
use crate::config::AddressChoice;
use crate::network::address::{OwnAddress, Settlement, choose, settle, usable};
use crate::network::members::split_jid;
use crate::network::{Inputs, Node as Member, Own, plan};
use dataplane::tunnel::PublicKey;
use std::collections::HashSet;
use std::net::IpAddr;
use std::time::SystemTime;

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Node {
    /// Makes the plan of every network again and carries it out.
    pub(super) async fn refresh(&mut self) {
        let interfaces: Vec<String> = self.config.networks.iter().map(|n| n.interface.clone()).collect();
        let underlay = self.host.local_routes(&interfaces).await.unwrap_or_else(|e| {
            tracing::warn!("{e}");
            Vec::new()
        });
        for id in 0..self.networks.len() {
            self.readdress(id, false).await;
            let n = &self.networks[id];
            let mut members: HashSet<String> = self.members.get(&n.name).into_iter().flatten().cloned().collect();
            // Our other devices.
            members.insert(self.config.xmpp.jid.clone());
            let own_jid = self.jid.as_deref();
            let nodes: Vec<Member<'_>> = self
                .descriptors
                .iter()
                .filter(|(jid, _)| Some(jid.as_str()) != own_jid)
                .map(|(jid, descriptor)| Member { jid, descriptor })
                .collect();
            let addresses = n.addresses();
            let subnets = n.subnets();
            let plan = plan(&Inputs {
                network: &n.name,
                own: Own {
                    public_key: n.public_key,
                    addresses: &addresses,
                    since: n.address.map_or(u64::MAX, |(_, since)| since),
                    routes: &n.config.routes,
                },
                subnets: &subnets,
                secret: n.config.secret.as_ref().map(|s| s.as_slice()),
                accept_routes: n.config.accept_routes,
                underlay: &underlay,
                members: &members,
                nodes: &nodes,
                pins: &self.pins,
            });
            let mut pinned = false;
            let seen = plan.peers.iter().map(|p| (&p.jid, &p.public_key));
            for (jid, key) in seen.chain(plan.refused.iter().map(|r| (&r.jid, &r.public_key))) {
                let (account, device) = split_jid(jid);
                pinned |= self.pins.note(account, device, &n.name, key);
            }
            if pinned {
                self.keep_pins();
            }
            let n = &mut self.networks[id];
            for r in plan.refused.iter().filter(|r| !n.refused.iter().any(|o| o.public_key == r.public_key)) {
                tracing::error!(
                    "THE KEY OF {} CHANGED to {}: it is refused until you say `ipop-fast pins accept {}`",
                    r.jid,
                    r.public_key,
                    r.jid
                );
            }
            n.refused.clone_from(&plan.refused);
            let signaling = self.connection.online;
            let around = Around {
                online: &self.present,
                our_jid: own_jid,
                signaling,
                host: &self.host,
                xmpp: &self.xmpp,
                events: &self.events,
            };
            n.apply(plan, &around).await;
        }
        self.rename();
    }

    fn keep_pins(&self) {
        if let Err(e) = self.store.write(PINS, &self.pins) {
            tracing::error!("pinned keys are not kept: {e}");
        }
    }

    fn keep_leases(&self) {
        if let Err(e) = self.store.write(LEASES, &self.leases) {
            tracing::error!("the own address is not kept: {e}");
        }
    }

    /// A person trusts the new key of `jid`.
    pub(super) fn accept_pin(&mut self, jid: &str) -> Response {
        match self.pins.accept(jid) {
            0 => {
                Response::Error { message: format!("no changed key of {jid} was refused: there is nothing to accept") }
            }
            n => {
                self.keep_pins();
                self.stir();
                tracing::warn!("the changed key of {jid} was accepted");
                Response::Done { message: format!("{n} changed key(s) of {jid} accepted") }
            }
        }
    }

    /// Addresses that other members say they have in network `id`.
    fn taken(&self, id: usize) -> Vec<(PublicKey, u64, IpAddr)> {
        let n = &self.networks[id];
        let Some(subnet) = n.subnet() else { return Vec::new() };
        let members = self.members.get(&n.name);
        let own = &self.config.xmpp.jid;
        let said = self.descriptors.iter().filter(|(jid, _)| Some(*jid) != self.jid.as_ref());
        said.filter(|(jid, _)| {
            let account = split_jid(jid).0;
            account == own || members.is_some_and(|m| m.contains(account))
        })
        .flat_map(|(_, d)| &d.networks)
        .filter(|d| d.network == n.name && d.public_key != n.public_key)
        .flat_map(|d| d.addresses.iter().map(|p| (d.public_key, d.since, p.address())))
        .filter(|(_, _, a)| subnet.contains(*a))
        .collect()
    }

    /// Finds our address in network `id`: the configured one, the one of the last time, or, if the others' are `known`,
    /// one that nobody has. True if it is another one than before.
    pub(super) fn choose_address(&mut self, id: usize, known: bool) -> bool {
        let others = self.taken(id);
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
