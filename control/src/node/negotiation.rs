//! One negotiation: an agent, and what is said about it over XMPP, in order.

use super::event::{Event, LinkId, Progress, Remote};
use crate::ice::{Agent, AgentEvent, Credentials, IceNode, Role};
use crate::xmpp::{Negotiation, Signal, SignalError, Xmpp};
use std::time::Instant;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// What the peer says that the agent has not taken yet: an offer or answer and its later candidates.
const REMOTE_QUEUE: usize = 32;
/// Signals that wait for the answer to the one before.
const SIGNAL_QUEUE: usize = 32;

/// What a negotiation is about.
pub(super) struct Subject {
    pub(super) link: LinkId,
    pub(super) sid: String,
    pub(super) role: Role,
    /// The network's name in signals.
    pub(super) network: String,
}

/// A negotiation under way. Dropping it ends the agent.
pub(super) struct Running {
    remote: mpsc::Sender<Remote>,
    _tasks: JoinSet<()>,
}

impl Running {
    /// Hands over what the peer said; too much of it is dropped, as a peer that says so much makes no sense.
    pub(super) fn tell(&self, remote: Remote) {
        if self.remote.try_send(remote).is_err() {
            tracing::debug!("a peer sends more candidates than are looked at");
        }
    }
}

/// Starts a negotiation.
pub(super) fn start(subject: Subject, ice: &IceNode, xmpp: &Xmpp, events: mpsc::Sender<Event>) -> Running {
    let (remote, remote_in) = mpsc::channel(REMOTE_QUEUE);
    let mut tasks = JoinSet::new();
    let (signals, signals_in) = mpsc::channel(SIGNAL_QUEUE);
    tasks.spawn(talk(subject.link.clone(), subject.sid.clone(), xmpp.clone(), signals_in, events.clone()));
    tasks.spawn(find(subject, ice.clone(), remote_in, signals, events));
    Running { remote, _tasks: tasks }
}

/// Sends signals one after the other: each waits for the answer to the one before.
async fn talk(link: LinkId, sid: String, xmpp: Xmpp, mut signals: mpsc::Receiver<Signal>, events: mpsc::Sender<Event>) {
    while let Some(signal) = signals.recv().await {
        if let Err(e) = xmpp.signal(&link.jid, signal).await {
            // The link is told that signalling is down, and knows what to take up again when it is back.
            if matches!(e, SignalError::Offline) {
                return;
            }
            let what = Progress::Refused {
                why: e.to_string(),
                tie_break: matches!(e, SignalError::TieBreak),
                gone: matches!(e, SignalError::Gone),
                unanswered: matches!(e, SignalError::Timeout),
            };
            let _ = events.send(Event::Negotiation { link, sid, what }).await;
            return;
        }
    }
}

/// Runs the agent until it has a path or has none.
async fn find(
    subject: Subject,
    ice: IceNode,
    mut remote: mpsc::Receiver<Remote>,
    signals: mpsc::Sender<Signal>,
    events: mpsc::Sender<Event>,
) {
    let start = Instant::now();
    let Subject { link, sid, role, network } = subject;
    let mut agent = ice.negotiate(role);
    let local = agent.credentials();
    let mut theirs = None;
    let candidates = agent.known_candidates();
    let say = Negotiation { network, credentials: local.clone(), candidates };
    let first = match role {
        Role::Controlling => Signal::Initiate { sid: sid.clone(), offer: say },
        Role::Controlled => Signal::Accept { sid: sid.clone(), answer: say },
    };
    let _ = signals.send(first).await;
    let found = loop {
        tokio::select! {
            step = agent.next() => match step {
                AgentEvent::Candidates(candidates) => {
                    let more = Signal::Candidates { sid: sid.clone(), candidates, ufrag: local.ufrag.clone() };
                    let _ = signals.send(more).await;
                }
                // A list without candidates says so.
                AgentEvent::NoMoreCandidates => {
                    let candidates = Vec::new();
                    let more = Signal::Candidates { sid: sid.clone(), candidates, ufrag: local.ufrag.clone() };
                    let _ = signals.send(more).await;
                }
                AgentEvent::Path(found) => break found,
            },
            said = remote.recv() => match said {
                Some(said) => listen(&agent, said, &mut theirs),
                None => return,
            },
        }
    };
    let what = match (found, theirs) {
        (Ok(found), Some(remote)) => Progress::Found { found, took: start.elapsed(), local, remote },
        (Ok(_), None) => Progress::Failed { why: "a path was found before the peer said how to check it".into() },
        (Err(failed), _) => Progress::Failed { why: failed.why },
    };
    let _ = events.send(Event::Negotiation { link, sid, what }).await;
    // The peer's agent may still need our answers: this one stays until the link drops it.
    while let Some(said) = remote.recv().await {
        listen(&agent, said, &mut None);
    }
}

fn listen(agent: &Agent, said: Remote, theirs: &mut Option<Credentials>) {
    match said {
        Remote::Description { credentials, candidates } => {
            agent.remote(&credentials);
            agent.add_remote(&candidates);
            *theirs = Some(credentials);
        }
        Remote::Candidates(candidates) => agent.add_remote(&candidates),
    }
}
