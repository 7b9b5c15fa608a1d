//! Somebody who speaks XMPP as a node does, and says what a test wants: the library's XMPP side without the rest.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use control::config::{GroupSource, XmppConfig};
use control::ice::{Candidate, CandidateKind, Credentials};
use control::identity::Descriptor;
use control::xmpp::{Event, FriendSource, Negotiation, Settings, Signal, SignalError, Verdict, Xmpp};
use ipop_tests::ns::Namespace;
use ipop_tests::process::wait_for;
use tokio::runtime::Runtime;
use zeroize::Zeroizing;

use crate::cast::{Cast, FIND, GROUP};

/// What it has heard.
#[derive(Debug, Default)]
struct Heard {
    online: bool,
    /// The server told it who is in the group.
    group: bool,
    signals: Vec<(String, Signal)>,
}

/// A client with a node's resource. Its connection ends when it is dropped.
pub(crate) struct Puppet {
    xmpp: Xmpp,
    heard: Arc<Mutex<Heard>>,
    runtime: Option<Runtime>,
}

impl Puppet {
    /// Logs in from `ns`, and waits until it knows the group's members.
    pub(crate) fn login(cast: &Cast, ns: &Namespace, user: &str, password: &str, resource: &str) -> Result<Self> {
        let groups = vec![GroupSource::Roster(GROUP.into())];
        Self::login_to(cast, ns, user, password, resource, (groups, vec![]))
    }

    /// The same for networks of the caller's choice: groups, and networks of friends.
    pub(crate) fn login_to(
        cast: &Cast,
        ns: &Namespace,
        user: &str,
        password: &str,
        resource: &str,
        (groups, friends): (Vec<GroupSource>, Vec<FriendSource>),
    ) -> Result<Self> {
        let address = cast.xmpp.address();
        let account = XmppConfig {
            jid: cast.xmpp.jid(user),
            password: Zeroizing::new(password.to_owned()),
            server: Some((address.ip().to_string(), address.port())),
            direct_tls: false,
            ca_file: Some(cast.ca()),
        };
        let settings = Settings { account, resource: resource.into(), groups, friends };
        let heard = Arc::new(Mutex::new(Heard::default()));
        // The runtime's threads are made in the namespace, and so are their sockets.
        let runtime = ns.run(|| {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(1).enable_all().build().context("a runtime")
        })?;
        let entered = runtime.enter();
        let (xmpp, mut events) = control::xmpp::start(settings)?;
        let (ears, mouth) = (Arc::clone(&heard), xmpp.clone());
        runtime.spawn(async move {
            while let Some(event) = events.recv().await {
                let Ok(mut heard) = ears.lock() else { return };
                match event {
                    Event::Online { .. } => heard.online = true,
                    Event::Members { .. } => heard.group = true,
                    Event::Signal(request) => {
                        heard.signals.push((request.from.clone(), request.signal.clone()));
                        mouth.answer(request, Verdict::Ok);
                    }
                    _ => {}
                }
            }
        });
        drop(entered);
        let puppet = Self { xmpp, heard, runtime: Some(runtime) };
        wait_for("a client to be logged in", FIND, || puppet.heard(|h| h.online && h.group))?;
        Ok(puppet)
    }

    fn heard<T>(&self, f: impl FnOnce(&Heard) -> T) -> Result<T> {
        self.heard.lock().map(|h| f(&h)).map_err(|_| anyhow!("the client died"))
    }

    /// Says what it is.
    pub(crate) fn publish(&self, descriptor: Descriptor) {
        self.xmpp.publish(descriptor);
    }

    /// How many offers of a link came from a full JID.
    pub(crate) fn offers_of(&self, jid: &str) -> Result<usize> {
        let offer = |(from, s): &&(String, Signal)| from == jid && matches!(s, Signal::Initiate { .. });
        self.heard(|h| h.signals.iter().filter(offer).count())
    }

    /// Sends a signal and gives the answer.
    pub(crate) fn signal(&self, to: &str, signal: Signal) -> Result<Result<(), SignalError>> {
        self.signals(to, vec![signal])?.pop().context("no answer")
    }

    /// Sends signals at once, and gives the answers in their order. Each may take as long as an answer may.
    pub(crate) fn signals(&self, to: &str, signals: Vec<Signal>) -> Result<Vec<Result<(), SignalError>>> {
        let runtime = self.runtime.as_ref().context("it has ended")?;
        let send = |signal| {
            let (xmpp, to) = (self.xmpp.clone(), to.to_owned());
            runtime.spawn(async move { xmpp.signal(&to, signal).await })
        };
        let sent: Vec<_> = signals.into_iter().map(send).collect();
        sent.into_iter().map(|s| runtime.block_on(s).context("a signal")).collect()
    }

    /// Says goodbye.
    pub(crate) fn close(self) -> Result<()> {
        let runtime = self.runtime.as_ref().context("it has ended")?;
        runtime.block_on(self.xmpp.clone().close());
        Ok(())
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        if let Some(r) = self.runtime.take() {
            r.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

/// An offer or answer for a network with one candidate, which nobody has.
pub(crate) fn negotiation(network: &str) -> Negotiation {
    Negotiation {
        network: network.into(),
        credentials: Credentials {
            ufrag: "forgedxx".into(),
            password: "0123456789abcdef0123456789abcdef".to_owned().into(),
        },
        candidates: vec![candidate()],
    }
}

/// An address that nobody has.
pub(crate) fn candidate() -> Candidate {
    Candidate {
        foundation: "1".into(),
        priority: 2_130_706_431,
        address: ([192, 0, 2, 99], 40_000).into(),
        kind: CandidateKind::Host,
        related: None,
    }
}
