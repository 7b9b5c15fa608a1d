//! One negotiation, from outside.

use std::fmt;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::candidate::{Candidate, Credentials};
use super::core::AgentId;
use super::node::{Shared, too_many};
use super::types::{Failed, Found};

/// What a negotiation has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentEvent {
    /// More candidates for the peer.
    Candidates(Vec<Candidate>),
    /// There will be no more candidates.
    NoMoreCandidates,
    /// The end of it.
    Path(Result<Found, Failed>),
}

/// Finds one path to one peer. Closed when dropped.
pub struct Agent {
    shared: Arc<Shared>,
    /// `None` if it was refused.
    id: Option<AgentId>,
    credentials: Credentials,
    candidates: mpsc::UnboundedReceiver<Vec<Candidate>>,
    outcome: oneshot::Receiver<Result<Found, Failed>>,
    /// All candidates were given out.
    told: bool,
    /// What [`Self::path`] has handed out.
    known: Option<Result<Found, Failed>>,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Agent({:?}, {})", self.id, self.credentials.ufrag)
    }
}

impl Agent {
    pub(super) fn new(
        shared: Arc<Shared>,
        id: Option<AgentId>,
        credentials: Credentials,
        candidates: mpsc::UnboundedReceiver<Vec<Candidate>>,
        outcome: oneshot::Receiver<Result<Found, Failed>>,
    ) -> Self {
        let known = id.is_none().then(|| Err(too_many()));
        Self { shared, id, credentials, candidates, outcome, told: false, known }
    }

    /// Ours, for the peer.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        self.credentials.clone()
    }

    /// Whatever comes first: [`Self::local_candidates`] or [`Self::path`]. Can be cancelled and called again; the path is
    /// told again when asked again.
    pub async fn next(&mut self) -> AgentEvent {
        if let Some(r) = &self.known {
            return AgentEvent::Path(r.clone());
        }
        tokio::select! {
            c = self.candidates.recv(), if !self.told => c.map_or_else(|| {
                self.told = true;
                AgentEvent::NoMoreCandidates
            }, AgentEvent::Candidates),
            r = &mut self.outcome => AgentEvent::Path(self.learn(r)),
        }
    }

    fn learn(&mut self, r: Result<Result<Found, Failed>, oneshot::error::RecvError>) -> Result<Found, Failed> {
        let r = r.unwrap_or_else(|_| Err(Failed { why: "no path: the node was closed".into() }));
        self.known = Some(r.clone());
        r
    }

    /// Candidates for the peer that have not been given out yet: those known at once first, others as they come. `None`
    /// when there will be no more, at the latest after three seconds.
    pub async fn local_candidates(&mut self) -> Option<Vec<Candidate>> {
        self.candidates.recv().await
    }

    /// Those that are known now, without waiting; for an offer that carries its first candidates.
    pub fn known_candidates(&mut self) -> Vec<Candidate> {
        std::iter::from_fn(|| self.candidates.try_recv().ok()).flatten().collect()
    }

    /// The peer's credentials. Only the first ones count.
    pub fn remote(&self, credentials: &Credentials) {
        if let Some(id) = self.id {
            self.shared.with(|core, _| core.set_remote(id, credentials));
        }
    }

    /// More candidates of the peer, before or after its credentials. None: there are no more.
    pub fn add_remote(&self, candidates: &[Candidate]) {
        if let Some(id) = self.id {
            self.shared.with(|core, _| core.add_remote(id, candidates));
        }
    }

    /// The path, when there is one. Can be cancelled and called again.
    ///
    /// # Errors
    /// Ten seconds after the peer's credentials at the latest, or 30 seconds after the start without them.
    pub async fn path(&mut self) -> Result<Found, Failed> {
        if let Some(r) = &self.known {
            return r.clone();
        }
        let r = (&mut self.outcome).await;
        self.learn(r)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        self.shared.with(|core, now| core.close_agent(id, matches!(self.known, Some(Ok(_))), now));
    }
}
