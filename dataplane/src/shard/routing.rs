//! Allowed IPs as one direction of a shard sees them.

use crate::shared::Shared;
use crate::table::Routes;
use crate::tunnel::Peer;
use arc_swap::ArcSwap;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

type Snapshot = Arc<Routes<Arc<Peer>>>;

/// Looks peers up and remembers the last answer: most packets go where the one before went.
pub(super) struct Router {
    cache: arc_swap::Cache<SharedRoutes, Snapshot>,
    last: Option<Last>,
}

struct Last {
    address: IpAddr,
    peer: Arc<Peer>,
    /// The snapshot that said so.
    routes: Snapshot,
}

/// Makes the routes of [`Shared`] cacheable: a revalidation is one load.
struct SharedRoutes(Arc<Shared>);

impl Deref for SharedRoutes {
    type Target = ArcSwap<Routes<Arc<Peer>>>;
    fn deref(&self) -> &Self::Target {
        &self.0.routes
    }
}

impl Router {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self { cache: arc_swap::Cache::new(SharedRoutes(shared.clone())), last: None }
    }

    /// The peer whose allowed IPs hold `address`.
    pub(super) fn lookup(&mut self, address: IpAddr) -> Option<&Arc<Peer>> {
        let routes = self.cache.load();
        let known = self.last.as_ref().is_some_and(|l| l.address == address && Arc::ptr_eq(&l.routes, routes));
        if !known {
            let peer = routes.lookup(address)?.clone();
            self.last = Some(Last { address, peer, routes: routes.clone() });
        }
        self.last.as_ref().map(|l| &l.peer)
    }
}
