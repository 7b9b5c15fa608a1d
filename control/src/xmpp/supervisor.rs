//! Keeps the connection up: connects, runs the session, waits, connects again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::session::{Known, Session};
use super::wire::{ConnectError, Heard, Incoming, Target, Wire, connect};
use super::{Command, Counters, Event, FriendError, Groups, SignalError};
use crate::identity::Descriptor;

/// Before the first try again, and while the server is just not there: it may be back any moment.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const REACHABLE_CAP: Duration = Duration::from_secs(4);
/// While a person has to do something.
const UNUSABLE_CAP: Duration = Duration::from_secs(30);
/// While the server refuses an account that it took before: its accounts may be on their way back, or the password is
/// being changed. Servers shut out who asks more often.
const REFUSED_WAIT: Duration = Duration::from_secs(300);
/// Two processes on one resource push each other out: the one that is pushed waits.
const CONFLICT_WAIT: Duration = Duration::from_secs(30);
/// A sign of life takes no longer.
const CHECK: Duration = Duration::from_secs(2);
/// A session that lived so long was a good one.
const GOOD_SESSION: Duration = Duration::from_secs(20);
/// Events of the session that nobody took yet; above, the stream is not read.
const MAX_EVENTS: usize = 1024;

pub(super) struct Supervisor {
    pub target: Target,
    pub groups: Groups,
    pub commands: mpsc::Receiver<Command>,
    pub descriptor: watch::Receiver<Option<Descriptor>>,
    pub events: mpsc::Sender<Event>,
    pub counters: Arc<Counters>,
}

/// How a session ended.
enum End {
    Lost(String),
    Conflict,
    Closed(Option<oneshot::Sender<()>>),
}

/// Until it is closed, refused, or nobody listens any more.
pub(super) async fn run(mut s: Supervisor) {
    let mut known = Known::default();
    let mut backoff = Backoff::default();
    let mut told = None;
    let mut connection = 0;
    loop {
        let connected = tokio::select! {
            c = connect(&s.target) => c,
            why = offline(&mut s.commands, true) => match why {
                Interrupted::Close(done) => return finish(done),
                // From the old address it may hang for long.
                Interrupted::Hurry => continue,
            },
        };
        let (why, wait) = match connected {
            Ok((wire, jid)) => {
                connection += 1;
                told = None;
                tracing::info!("connected to the XMPP server as {jid}");
                if let Some(address) = wire.address
                    && let Err(done) = tell(&mut s, Event::Reached { address }).await
                {
                    return finish(done);
                }
                let started = Instant::now();
                let session = Session::new(jid, s.groups.clone(), connection, known, Arc::clone(&s.counters));
                let (end, session) = converse(&mut s, wire, session).await;
                let unsent;
                (known, unsent) = session.end();
                for event in unsent {
                    if let Err(done) = tell(&mut s, event).await {
                        return finish(done);
                    }
                }
                if started.elapsed() >= GOOD_SESSION {
                    backoff = Backoff::default();
                }
                match end {
                    End::Closed(done) => return finish(done),
                    End::Lost(why) => (why, backoff.next(REACHABLE_CAP)),
                    End::Conflict => (
                        format!("another process uses resource {} of this account", s.target.resource),
                        backoff.conflict(),
                    ),
                }
            }
            Err(ConnectError::Refused(why)) if connection > 0 => {
                (format!("{why}; it was accepted before, so it is tried again every few minutes"), jitter(REFUSED_WAIT))
            }
            Err(ConnectError::Refused(why)) => {
                tracing::error!("{why}");
                return finish(tell(&mut s, Event::Refused { why }).await.err().flatten());
            }
            Err(ConnectError::Unreachable(why)) => (why, backoff.next(REACHABLE_CAP)),
            Err(ConnectError::Unusable(why)) => (why, backoff.next(UNUSABLE_CAP)),
            Err(ConnectError::Conflict(why)) => (why, backoff.conflict()),
        };
        if told.as_ref() != Some(&why) {
            tracing::warn!("no connection to the XMPP server: {why}");
            told = Some(why.clone());
            if let Err(done) = tell(&mut s, Event::Offline { why }).await {
                return finish(done);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            why = offline(&mut s.commands, true) => match why {
                Interrupted::Close(done) => return finish(done),
                Interrupted::Hurry => backoff = Backoff::default(),
            },
        }
    }
}

fn finish(done: Option<oneshot::Sender<()>>) {
    if let Some(done) = done {
        let _ = done.send(());
    }
}

/// Passes an event on. An error: this is the end, and who is to be told.
async fn tell(s: &mut Supervisor, event: Event) -> Result<(), Option<oneshot::Sender<()>>> {
    tokio::select! {
        sent = s.events.send(event) => sent.map_err(|_| None),
        why = offline(&mut s.commands, false) => match why {
            Interrupted::Close(done) => Err(done),
            Interrupted::Hurry => Ok(()),
        },
    }
}

/// What ends a wait.
enum Interrupted {
    /// This is the end, and who is to be told.
    Close(Option<oneshot::Sender<()>>),
    /// There is hope: try again now.
    Hurry,
}

/// Answers commands while there is no connection, until one says that this is the end.
async fn offline(commands: &mut mpsc::Receiver<Command>, hurry: bool) -> Interrupted {
    loop {
        match commands.recv().await {
            Some(Command::Signal { reply, .. }) => drop(reply.send(Err(SignalError::Offline))),
            Some(Command::Services { reply }) => drop(reply.send(Err(SignalError::Offline))),
            Some(Command::Befriend { reply, .. }) => drop(reply.send(Err(FriendError::Offline))),
            Some(Command::Answer { .. }) => {}
            Some(Command::Check) if hurry => return Interrupted::Hurry,
            Some(Command::Check) => {}
            Some(Command::Close { done }) => return Interrupted::Close(Some(done)),
            None => return Interrupted::Close(None),
        }
    }
}

/// One session, from its first stanza to its last.
async fn converse(s: &mut Supervisor, mut wire: Wire, mut session: Session) -> (End, Session) {
    session.publish(s.descriptor.borrow_and_update().clone(), Instant::now());
    session.login(Instant::now());
    // Since when the server owes a sign of life.
    let mut suspect: Option<Instant> = None;
    let end = loop {
        for e in session.take_out() {
            if !wire.push(e) {
                return (End::Lost("the server takes nothing any more".into()), session);
            }
        }
        let wake = session.deadline().unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
        let wake = suspect.map_or(wake, |at| at.min(wake));
        let read = session.events.len() < MAX_EVENTS;
        tokio::select! {
            heard = wire.turn(read) => {
                if matches!(heard, Heard::Incoming(_)) {
                    suspect = None;
                }
                match heard {
                Heard::Incoming(Incoming::Element(e)) if e.is("error", "http://etherx.jabber.org/streams") => {
                    if e.has_child("conflict", "urn:ietf:params:xml:ns:xmpp-streams") {
                        break End::Conflict;
                    }
                    break End::Lost(format!("the server ended the stream: {}", condition(&e)));
                }
                Heard::Incoming(Incoming::Element(e)) => session.input(&e, Instant::now()),
                Heard::Incoming(Incoming::TooLarge { name, from }) => session.too_large(&name, &from, Instant::now()),
                Heard::Silence => session.ping(Instant::now()),
                Heard::Ended(why) => break End::Lost(why),
            }}
            permit = s.events.reserve(), if !session.events.is_empty() => match (permit, session.events.pop_front()) {
                (Ok(permit), Some(event)) => permit.send(event),
                (Err(_), _) => break End::Closed(None),
                (Ok(_), None) => {}
            },
            changed = s.descriptor.changed() => {
                if changed.is_err() {
                    // The last handle is gone.
                    break End::Closed(None);
                }
                session.publish(s.descriptor.borrow_and_update().clone(), Instant::now());
            }
            command = s.commands.recv() => match command {
                Some(Command::Signal { to, signal, reply }) => session.signal(&to, &signal, reply, Instant::now()),
                Some(Command::Services { reply }) => session.services(reply, Instant::now()),
                Some(Command::Befriend { what, jid, reply }) => session.befriend(what, &jid, reply, Instant::now()),
                Some(Command::Answer { request, verdict }) => session.answer(&request, verdict),
                Some(Command::Check) => {
                    session.ping(Instant::now());
                    suspect.get_or_insert_with(|| Instant::now() + CHECK);
                }
                Some(Command::Close { done }) => break End::Closed(Some(done)),
                None => break End::Closed(None),
            },
            () = tokio::time::sleep_until(wake.into()) => {
                if suspect.is_some_and(|at| at <= Instant::now()) {
                    break End::Lost("this machine's addresses changed, and the server does not answer any more".into());
                }
                session.timeout(Instant::now());
            }
        }
    };
    if matches!(end, End::Closed(_)) {
        session.goodbye();
        for e in session.take_out() {
            wire.push(e);
        }
    }
    // Also after an error, which ends the TLS session in order; bounded.
    wire.close().await;
    (end, session)
}

fn condition(error: &tokio_xmpp::minidom::Element) -> String {
    error
        .children()
        .map(|c| if c.name() == "text" { c.text() } else { c.name().to_owned() })
        .collect::<Vec<_>>()
        .join(": ")
}

/// How long to wait before the next try.
#[derive(Default)]
struct Backoff {
    tries: i32,
}

impl Backoff {
    fn next(&mut self, cap: Duration) -> Duration {
        let wait = FIRST_WAIT.mul_f64(1.5_f64.powi(self.tries)).min(cap);
        self.tries = (self.tries + 1).min(20);
        jitter(wait)
    }

    fn conflict(&mut self) -> Duration {
        self.tries = (self.tries + 1).min(20);
        jitter(CONFLICT_WAIT)
    }
}

/// Between 75 and 125 per cent: nodes that lost their server at once do not come back at once.
fn jitter(d: Duration) -> Duration {
    let mut random = [0; 4];
    // Without randomness there is no jitter, which is no reason to stop.
    let _ = getrandom::fill(&mut random);
    d.mul_f64(0.75 + f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_not_there_is_tried_often_and_a_wrong_one_seldom() {
        let mut b = Backoff::default();
        let waits: Vec<_> = (0..30).map(|_| b.next(REACHABLE_CAP)).collect();
        assert!(waits[0] < Duration::from_secs(1) && waits.iter().all(|w| *w <= REACHABLE_CAP.mul_f64(1.26)));
        assert!(b.next(UNUSABLE_CAP) >= UNUSABLE_CAP.mul_f64(0.74));
        assert!(Backoff::default().conflict() >= CONFLICT_WAIT.mul_f64(0.74));
    }
}
