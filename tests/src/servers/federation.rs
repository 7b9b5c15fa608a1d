//! XMPP servers of several domains that talk to each other, found by DNS, each verifying the other's certificate.

use std::net::IpAddr;

use anyhow::{Context, Result};

use super::{Ca, Ejabberd, Prosody, Server, Setup, ejabberd_needs, prosody_needs};
use crate::internet::{self, Dns, Internet, Zone, dns_needs};
use crate::ns::Namespace;
use crate::require::Need;
use crate::turn_server::{self, TurnServer};

/// Which XMPP server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Prosody`].
    Prosody,
    /// [`Ejabberd`].
    Ejabberd,
}

impl Kind {
    /// Starts one.
    ///
    /// # Errors
    /// When it does not come up; the message has its log.
    pub fn start(self, ns: &Namespace, ca: &Ca, setup: &Setup) -> Result<Box<dyn Server>> {
        Ok(match self {
            Self::Prosody => Box::new(Prosody::start(ns, ca, setup)?),
            Self::Ejabberd => Box::new(Ejabberd::start(ns, ca, setup)?),
        })
    }

    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prosody => "prosody",
            Self::Ejabberd => "ejabberd",
        }
    }

    /// What it needs of the machine.
    #[must_use]
    pub fn needs(self) -> Vec<Need> {
        match self {
            Self::Prosody => prosody_needs(),
            Self::Ejabberd => ejabberd_needs(),
        }
    }
}

/// A domain of a federation.
#[derive(Clone, Debug)]
pub struct Member<'a> {
    /// Its server.
    pub kind: Kind,
    /// Its name.
    pub domain: &'a str,
    /// Local part and password.
    pub users: &'a [(&'a str, &'a str)],
    /// Who signs its certificate, and whom it trusts; `None`: the authority of the federation.
    pub ca: Option<&'a Ca>,
    /// With STUN and TURN on the same machine, for its users: a prosody gets a coturn, an ejabberd has its own anyway.
    pub turn: bool,
}

impl<'a> Member<'a> {
    /// A domain with these users, and nothing else.
    #[must_use]
    pub const fn new(kind: Kind, domain: &'a str, users: &'a [(&'a str, &'a str)]) -> Self {
        Self { kind, domain, users, ca: None, turn: false }
    }
}

/// What a prosody and its coturn share.
const TURN_SECRET: &str = "shared by prosody and coturn";

/// All of them, each on a machine of its own. Ended when dropped.
#[derive(Debug)]
pub struct Federation {
    /// In the order of the members.
    pub servers: Vec<Box<dyn Server>>,
    /// Of those members that have one beside their server.
    pub turns: Vec<TurnServer>,
    /// Their machines.
    pub machines: Vec<internet::Server>,
    /// What knows them.
    pub dns: Dns,
    /// What they trust, and users may.
    pub ca: Ca,
    /// What is in `dns`.
    pub zone: Zone,
    _dns_machine: internet::Server,
}

impl Federation {
    /// Starts name server and servers, and waits until all answer.
    ///
    /// # Errors
    /// When one does not come up; the message has its log.
    pub fn start(internet: &Internet, members: &[Member<'_>]) -> Result<Self> {
        Self::start_with(internet, Ca::new()?, members)
    }

    /// [`Self::start`] with an authority that is there already.
    ///
    /// # Errors
    /// When one does not come up; the message has its log.
    pub fn start_with(internet: &Internet, ca: Ca, members: &[Member<'_>]) -> Result<Self> {
        let named = |m: &Member<'_>| internet.server(m.domain.split('.').next().unwrap_or("xmpp"));
        let machines = members.iter().map(named).collect::<Result<Vec<_>>>()?;
        let zone = machines.iter().zip(members).fold(Zone::new(), |z, (at, m)| z.xmpp(m.domain, at.address.into()));
        let dns_machine = internet.server("dns")?;
        let dns = Dns::start(&dns_machine, &zone)?;
        let (mut servers, mut turns) = (Vec::<Box<dyn Server>>::new(), Vec::new());
        for (machine, m) in machines.iter().zip(members) {
            machine.ns.set_resolver(&[dns.address()])?;
            let setup = Setup::new(m.domain, IpAddr::V4(machine.address)).users(m.users).federated();
            let (ns, trusted) = (&machine.ns, m.ca.unwrap_or(&ca));
            let server = if m.turn && m.kind == Kind::Prosody {
                turns.push(TurnServer::start_with_secret(machine, TURN_SECRET)?);
                let turn = Some((turn_server::address(machine.address), TURN_SECRET));
                Prosody::start_with_turn(ns, trusted, &setup, turn).map(|p| -> Box<dyn Server> { Box::new(p) })
            } else {
                m.kind.start(ns, trusted, &setup)
            };
            servers.push(server.with_context(|| format!("the server of {}", m.domain))?);
        }
        Ok(Self { servers, turns, machines, dns, ca, zone, _dns_machine: dns_machine })
    }

    /// Has a machine ask the name server of the federation.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn tell_names(&self, ns: &Namespace) -> Result<()> {
        ns.set_resolver(&[self.dns.address()])
    }

    /// The server of a domain.
    ///
    /// # Errors
    /// When it is no member.
    pub fn server(&self, domain: &str) -> Result<&dyn Server> {
        let found = self.servers.iter().find(|s| s.setup().domain == domain);
        found.map(AsRef::as_ref).with_context(|| format!("no server of {domain}"))
    }
}

/// What federations of these kinds need of the machine.
#[must_use]
pub fn federation_needs(kinds: &[Kind]) -> Vec<Need> {
    kinds.iter().flat_map(|k| k.needs()).chain(dns_needs()).collect()
}
