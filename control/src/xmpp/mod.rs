//! Who is there: one XMPP connection, the members of groups, their descriptors, and Jingle.
//!
//! [`start`] keeps one connection up for ever (`supervisor`, `wire`); what is said over it is a state machine without
//! I/O (`session`). This is also the border of trust: what a stranger sends ends here, unanswered. Everything in an
//! [`Event`] comes from a member of one of our groups, from a friend or from our own account, as the server vouches for
//! it; but that a stranger asks to be a friend is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_xmpp::jid::{BareJid, FullJid};

use crate::config::{Allow, GroupSource, XmppConfig};
use crate::identity::Descriptor;

mod friends;
mod session;
pub mod signal;
mod supervisor;
mod wire;
mod xml;

pub use friends::{Befriend, FriendContact, FriendError, FriendSource, Friends, Subscription};
pub use signal::{Negotiation, Reason, Signal};
pub use xml::services::{ExternalService, ServiceKind};

/// Resources of nodes start with it: `ipop-<key hash>`. Other clients of an account (a chat program) are no nodes.
pub const RESOURCE_PREFIX: &str = "ipop-";
/// How long a peer or the server may take to answer. With fifty nodes logging in at once on a small machine answers take
/// seconds; what is given up too early was work for nothing, and is begun again.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Commands on their way to the connection.
const COMMANDS: usize = 1024;
/// Events on their way out. The connection is not read while they are not taken.
const EVENTS: usize = 256;
/// A clean end takes no longer.
const CLOSE_LIMIT: Duration = Duration::from_secs(4);

/// What a connection needs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Account and server.
    pub account: XmppConfig,
    /// Resource of this node, [`RESOURCE_PREFIX`] and more.
    pub resource: String,
    /// Whose members are let in.
    pub groups: Vec<GroupSource>,
    /// Networks of friends, and which of them are let in.
    pub friends: Vec<FriendSource>,
}

/// Why there is nothing to start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A JID in the configuration.
    #[error("\"{0}\" is no {1}")]
    Jid(String, &'static str),
    /// The resource.
    #[error("the resource \"{0}\" does not start with {RESOURCE_PREFIX} or is no resource")]
    Resource(String),
    /// `ca_file`.
    #[error("cannot use {} as ca_file: {why}", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Nobody is trusted.
    #[error("the system trusts no certificate authority ({0}): install ca-certificates or set ca_file")]
    NoRoots(String),
    /// The TLS library.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

/// Why a signal did not arrive, or was not welcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignalError {
    /// We have no connection to the server.
    #[error("not connected to the XMPP server")]
    Offline,
    /// No answer within [`ANSWER_LIMIT`]: gone without a word, or we are not a member for it.
    #[error("no answer within {} s", ANSWER_LIMIT.as_secs())]
    Timeout,
    /// The other side started a session of its own at the same time, and that one goes on (XEP-0166, section 7.2.16).
    #[error("the peer's own session for this link goes on")]
    TieBreak,
    /// The other side knows no session of that name.
    #[error("the peer does not know the session")]
    UnknownSession,
    /// There is no such node now.
    #[error("the peer is not there")]
    Gone,
    /// Too many at once: later.
    #[error("the peer is busy")]
    Busy,
    /// Anything else that it said.
    #[error("the peer refused: {0}")]
    Refused(String),
    /// We could not send it.
    #[error("cannot send it: {0}")]
    Invalid(String),
}

/// Why a question to the connection has no answer.
enum Lost {
    Offline,
    Timeout,
}

impl From<Lost> for SignalError {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Offline => Self::Offline,
            Lost::Timeout => Self::Timeout,
        }
    }
}

impl From<Lost> for FriendError {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Offline => Self::Offline,
            Lost::Timeout => Self::Timeout,
        }
    }
}

/// How an incoming signal is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Taken.
    Ok,
    /// Our own session goes on.
    TieBreak,
    /// No such session.
    UnknownSession,
    /// Later.
    Busy,
    /// Not with you, or not for this network.
    NotAcceptable,
}

/// A signal that came in and waits for [`Xmpp::answer`].
#[derive(Debug)]
pub struct SignalRequest {
    /// The sender's full JID, as the server stamped it.
    pub from: String,
    /// What it says.
    pub signal: Signal,
    id: String,
    connection: u64,
}

/// What happens.
#[derive(Debug)]
pub enum Event {
    /// The server that took the account, before [`Self::Online`].
    Reached {
        /// Where it is.
        address: IpAddr,
    },
    /// The connection is up. What the events before said about who is present is void.
    Online {
        /// Our full JID.
        jid: String,
    },
    /// It is not, and is tried again and again. Told once for each reason.
    Offline {
        /// For people.
        why: String,
    },
    /// The server does not want the account, and never did. This is the end.
    Refused {
        /// For people.
        why: String,
    },
    /// All members of a network other than ourselves, whenever that changes and after each [`Self::Online`].
    Members {
        /// [`GroupSource::network`].
        network: String,
        /// Bare JIDs.
        accounts: BTreeSet<String>,
    },
    /// A node of a member, or another one of our own account, came or went.
    Presence {
        /// Full JID.
        jid: String,
        /// Came.
        available: bool,
    },
    /// A node's descriptor, new or changed. Networks in it of which the account is no member were taken out.
    Descriptor {
        /// Bare JID.
        account: String,
        /// Resource.
        device: String,
        /// It.
        descriptor: Descriptor,
    },
    /// A node withdrew its descriptor, or its account is no member any more.
    DescriptorGone {
        /// Bare JID.
        account: String,
        /// Resource.
        device: String,
    },
    /// What is known of friends, whenever that changes and after each [`Self::Online`]. Only with [`Settings::friends`].
    Friends(Friends),
    /// A signal, to be answered.
    Signal(SignalRequest),
}

/// What was dropped at the border.
#[derive(Debug, Default)]
pub struct Counters {
    strangers: AtomicU64,
    malformed: AtomicU64,
}

impl Counters {
    /// Stanzas of those who are no members.
    #[must_use]
    pub fn strangers(&self) -> u64 {
        self.strangers.load(Ordering::Relaxed)
    }

    /// Stanzas of members that break the rules.
    #[must_use]
    pub fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
enum Command {
    Signal {
        to: String,
        signal: Signal,
        reply: oneshot::Sender<Result<(), SignalError>>,
    },
    Services {
        reply: oneshot::Sender<Result<Vec<ExternalService>, SignalError>>,
    },
    Befriend {
        what: Befriend,
        jid: String,
        reply: oneshot::Sender<Result<String, FriendError>>,
    },
    Answer {
        request: SignalRequest,
        verdict: Verdict,
    },
    /// Is the server still there?
    Check,
    Close {
        done: oneshot::Sender<()>,
    },
}

/// The connection. Cheap to clone; the connection ends with the last one.
#[derive(Clone, Debug)]
pub struct Xmpp {
    commands: mpsc::Sender<Command>,
    descriptor: Arc<watch::Sender<Option<Descriptor>>>,
    counters: Arc<Counters>,
}

/// What the settings mean, checked.
#[derive(Clone, Debug)]
struct Groups {
    roster: BTreeSet<String>,
    rooms: BTreeSet<BareJid>,
    /// By the network's name.
    social: BTreeMap<String, Allow>,
}

impl Groups {
    /// Whether any of it hangs on the account's roster.
    fn use_roster(&self) -> bool {
        !self.roster.is_empty() || !self.social.is_empty()
    }
}

/// Starts the connection in tasks of the current runtime.
///
/// # Errors
/// When the settings cannot be used.
pub fn start(settings: Settings) -> Result<(Xmpp, mpsc::Receiver<Event>), Error> {
    let Settings { account, resource, groups, friends } = settings;
    let jid = BareJid::new(&account.jid).ok().filter(|j| j.node().is_some());
    let jid = jid.ok_or_else(|| Error::Jid(account.jid.clone(), "account: write it as user@example.org"))?;
    let full = FullJid::new(&format!("{jid}/{resource}")).ok();
    if !resource.starts_with(RESOURCE_PREFIX) || full.is_none_or(|f| f.resource().as_str() != resource) {
        return Err(Error::Resource(resource));
    }
    let social = friends.into_iter().map(|f| (f.network, f.allow)).collect();
    let mut checked = Groups { roster: BTreeSet::new(), rooms: BTreeSet::new(), social };
    for g in groups {
        match g {
            GroupSource::Roster(name) => checked.roster.insert(name),
            GroupSource::Muc(room) => {
                let jid = BareJid::new(&room).ok().filter(|j| j.node().is_some());
                checked.rooms.insert(jid.ok_or(Error::Jid(room, "room: write it as room@conference.example.org"))?)
            }
        };
    }
    let tls = wire::tls_config(account.ca_file.as_deref())?;
    let (commands, command_queue) = mpsc::channel(COMMANDS);
    let (events, event_queue) = mpsc::channel(EVENTS);
    let (descriptor, watched) = watch::channel(None);
    let counters = Arc::new(Counters::default());
    let target = wire::Target { account, jid, resource, tls };
    tokio::spawn(supervisor::run(supervisor::Supervisor {
        target,
        groups: checked,
        commands: command_queue,
        descriptor: watched,
        events,
        counters: Arc::clone(&counters),
    }));
    Ok((Xmpp { commands, descriptor: Arc::new(descriptor), counters }, event_queue))
}

impl Xmpp {
    /// Tells the members what this node is: now, and again at every login.
    pub fn publish(&self, descriptor: Descriptor) {
        self.descriptor.send_if_modified(|d| {
            let new = d.as_ref() != Some(&descriptor);
            *d = Some(descriptor);
            new
        });
    }

    /// Sends a signal to a node (full JID) and waits for its answer, at most [`ANSWER_LIMIT`]. Signals to one node arrive
    /// in the order in which this is called.
    ///
    /// # Errors
    /// When it did not arrive or was refused; see [`SignalError`].
    pub async fn signal(&self, to: &str, signal: Signal) -> Result<(), SignalError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Signal { to: to.to_owned(), signal, reply }, answer).await
    }

    /// STUN and TURN servers that the XMPP server offers (XEP-0215).
    ///
    /// # Errors
    /// When there is no connection, no answer, or no such service.
    pub async fn external_services(&self) -> Result<Vec<ExternalService>, SignalError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Services { reply }, answer).await
    }

    /// Does what a person wants to be done about a friend (bare JID), and says what that was.
    ///
    /// # Errors
    /// When there is no connection, or it cannot be done; see [`FriendError`].
    pub async fn befriend(&self, what: Befriend, jid: &str) -> Result<String, FriendError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Befriend { what, jid: jid.to_owned(), reply }, answer).await
    }

    async fn ask<T, E: From<Lost>>(&self, command: Command, answer: oneshot::Receiver<Result<T, E>>) -> Result<T, E> {
        // Full for so long: the connection is stuck.
        let sent = tokio::time::timeout(ANSWER_LIMIT, self.commands.send(command)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return Err(Lost::Offline.into());
        }
        // The session has its own limit; this one is for a session that was lost with the question in it.
        match tokio::time::timeout(2 * ANSWER_LIMIT, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Lost::Offline.into()),
            Err(_) => Err(Lost::Timeout.into()),
        }
    }

    /// Answers a signal that came in.
    pub fn answer(&self, request: SignalRequest, verdict: Verdict) {
        if self.commands.try_send(Command::Answer { request, verdict }).is_err() {
            tracing::debug!("an answer to a signal was dropped: the connection is busy or ended");
        }
    }

    /// Something changed that may have cut the connection: the server is asked for a sign of life, and without one soon
    /// the login is made again. Without a connection the next login is tried at once.
    pub fn check(&self) {
        // Full: there is enough going on to notice by itself.
        let _ = self.commands.try_send(Command::Check);
    }

    /// What was dropped so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Says goodbye: presence unavailable, also in rooms, and the end of the stream. Takes at most four seconds.
    pub async fn close(self) {
        let (done, closed) = oneshot::channel();
        let _ = tokio::time::timeout(CLOSE_LIMIT, async {
            if self.commands.send(Command::Close { done }).await.is_ok() {
                let _ = closed.await;
            }
        })
        .await;
    }
}
