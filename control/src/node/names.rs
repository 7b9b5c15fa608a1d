//! What the nodes are called: from the networks' peers to the DNS server.

use super::network::Network;
use super::run::Node;
use crate::admin;
use crate::names::{Entry, Interface, PORT, Service, Standing, State, Table, View, resolved, zones};
use crate::network::PinVerdict;
use crate::network::members::split_jid;
use dataplane::table::Prefix;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

/// The names of a node.
pub(super) struct Names {
    /// `None`: `[names]` says so.
    service: Option<Service>,
    table: Arc<Table>,
    /// Of this machine, but for the overlays'.
    host: HashSet<IpAddr>,
    /// What the table was made of.
    made_of: (Vec<Entry>, Vec<Prefix>),
    own: HashSet<IpAddr>,
}

impl Names {
    /// Without names.
    pub(super) fn new(enabled: bool) -> Self {
        // So that it grows also over restarts (RFC 1982).
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let table = Arc::new(Table::new(Vec::new(), &[], u32::try_from(now & u64::from(u32::MAX)).unwrap_or(0)));
        let view = View { table: table.clone(), own: HashSet::new() };
        Self {
            service: enabled.then(|| Service::start(view)),
            table,
            host: HashSet::new(),
            made_of: (Vec::new(), Vec::new()),
            own: HashSet::new(),
        }
    }

    /// Addresses of this machine: programs that ask from them are ours.
    pub(super) fn set_host(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.host = addresses.into_iter().collect();
    }

    /// What is wrong with one of these addresses.
    pub(super) fn problems(&self, addresses: &[IpAddr]) -> Vec<String> {
        let states = self.service.as_ref().map(Service::states).unwrap_or_default();
        let failed = states.into_iter().filter_map(|(a, s)| match s {
            State::Failed(why) if addresses.contains(&a) => Some(why),
            _ => None,
        });
        failed.collect()
    }
}

impl Node {
    /// Makes the names anew after the networks' peers or our addresses have changed.
    pub(super) fn rename(&mut self) {
        let entries: Vec<Entry> = self.networks.iter().flat_map(|n| self.entries(n)).collect();
        let subnets: Vec<Prefix> = self.networks.iter().flat_map(Network::subnets).collect();
        let overlay = self.networks.iter().flat_map(Network::addresses);
        let own: HashSet<IpAddr> = overlay.chain(self.names.host.iter().copied()).collect();
        let made_of = (entries, subnets);
        if self.names.made_of == made_of && self.names.own == own {
            return;
        }
        if self.names.made_of != made_of {
            let serial = self.names.table.serial().wrapping_add(1);
            self.names.table = Arc::new(Table::new(made_of.0.clone(), &made_of.1, serial));
            self.names.made_of = made_of;
        }
        self.names.own.clone_from(&own);
        let interface = |n: &Network| Interface {
            name: n.config.interface.clone(),
            addresses: n.addresses(),
            zones: n.subnets().iter().flat_map(zones).collect(),
        };
        let interfaces = self.networks.iter().map(interface).collect();
        if let Some(service) = &mut self.names.service {
            service.set_view(View { table: self.names.table.clone(), own });
            service.set_interfaces(interfaces);
        }
    }

    /// Who is in a network, ourselves included.
    fn entries(&self, n: &Network) -> Vec<Entry> {
        let account = &self.config.xmpp.jid;
        let device = self.jid.as_deref().map_or("", |jid| split_jid(jid).1);
        let own = Entry {
            node: self.config.name.clone(),
            account: account.clone(),
            device: device.to_owned(),
            network: n.name.clone(),
            addresses: n.addresses(),
            standing: Standing::This,
        };
        let peers = n.peers.values().map(|p| {
            let (of, device) = split_jid(&p.planned.jid);
            let standing = match self.pins.check(of, device, &n.name, &p.planned.public_key) {
                _ if of == account => Standing::Own,
                PinVerdict::Same { order } => Standing::Known(order),
                PinVerdict::First | PinVerdict::Full | PinVerdict::Changed { .. } => Standing::New,
            };
            Entry {
                node: p.planned.name.clone(),
                account: of.to_owned(),
                device: device.to_owned(),
                network: n.name.clone(),
                addresses: p.planned.addresses.iter().map(Prefix::address).collect(),
                standing,
            }
        });
        // In the order in which a hash table has them: the table sorts, and so that "the same" can be told.
        let mut peers: Vec<Entry> = peers.collect();
        peers.sort_by(|a, b| (&a.account, &a.device).cmp(&(&b.account, &b.device)));
        [own].into_iter().chain(peers).collect()
    }

    /// For `ipop-fast names`.
    pub(super) fn names_shown(&self) -> admin::Names {
        let service = self.names.service.as_ref();
        let (mut answering, mut problems) = (Vec::new(), Vec::new());
        for (address, state) in service.map(Service::states).unwrap_or_default() {
            match state {
                State::Answering => answering.push(SocketAddr::new(address, PORT).to_string()),
                State::Failed(why) => problems.push(why),
                State::Starting => {}
            }
        }
        let resolved = match service.map(Service::resolved) {
            None | Some(resolved::State::Absent) => "absent".to_owned(),
            Some(resolved::State::Told) => "told".to_owned(),
            Some(resolved::State::Failed(why)) => why,
        };
        let names = self.names.table.named().iter().map(|n| admin::names::Name {
            name: n.name.clone(),
            addresses: n.entry.addresses.iter().map(ToString::to_string).collect(),
            jid: n.entry.account.clone(),
            network: n.entry.network.clone(),
            own: n.entry.standing == Standing::This,
        });
        admin::Names {
            node: self.config.name.clone(),
            enabled: service.is_some(),
            answering,
            problems,
            resolved,
            refused: service.map_or(0, Service::refused),
            names: names.collect(),
        }
    }
}
