//! What a negotiation stands on: the node's port and servers.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use super::core::AgentId;
use super::finder::{Chosen, Wire};
use super::node::Shared;
use super::route::Route;

/// For one negotiation. Without the node, nothing is done.
pub(super) struct AgentWire {
    shared: Weak<Shared>,
    id: AgentId,
}

impl AgentWire {
    pub(super) fn new(shared: &Arc<Shared>, id: AgentId) -> Self {
        Self { shared: Arc::downgrade(shared), id }
    }
}

impl Wire for AgentWire {
    fn send(&self, route: Route, bytes: &[u8]) {
        if let Some(s) = self.shared.upgrade() {
            s.send(|core, _| core.send_check(self.id, route, bytes.to_vec()));
        }
    }

    fn want_relays(&self) {
        if let Some(s) = self.shared.upgrade() {
            s.with(|core, _| core.want_relays(self.id));
        }
    }

    fn bind(&self, server: SocketAddr, peer: SocketAddr) {
        if let Some(s) = self.shared.upgrade() {
            s.with(|core, now| core.bind(self.id, server, peer, now));
        }
    }

    fn done(&self, outcome: Result<Chosen, String>) {
        if let Some(s) = self.shared.upgrade() {
            s.with(|core, _| core.done(self.id, outcome));
        }
    }
}
