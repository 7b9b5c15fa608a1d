//! `node.toml`: what a node is told by its owner.

use dataplane::table::Prefix;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use zeroize::Zeroizing;

/// A whole configuration, checked.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The node's name for people.
    pub name: String,
    /// Private key, pinned keys, leases.
    pub state_dir: PathBuf,
    /// The account.
    pub xmpp: XmppConfig,
    /// At least one.
    pub networks: Vec<NetworkConfig>,
    /// `None`: what the XMPP server offers by XEP-0215.
    pub ice: IceConfig,
}

/// An XMPP account and its server.
#[derive(Clone)]
pub struct XmppConfig {
    /// Bare JID.
    pub jid: String,
    /// Never logged.
    pub password: Zeroizing<String>,
    /// Host and port; `None`: SRV lookup of the JID's domain.
    pub server: Option<(String, u16)>,
    /// TLS from the first byte instead of STARTTLS (with `server`; SRV `_xmpps-client` says it by itself).
    pub direct_tls: bool,
    /// PEM file of the authorities that are trusted; `None`: the system's.
    pub ca_file: Option<PathBuf>,
}

impl std::fmt::Debug for XmppConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("XmppConfig").field("jid", &self.jid).field("server", &self.server).finish_non_exhaustive()
    }
}

/// Where a group's members come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GroupSource {
    /// A (shared) roster group of that name.
    Roster(String),
    /// A members-only room.
    Muc(String),
}

impl GroupSource {
    /// The network's name in descriptors and in Jingle: `group:NAME` or `muc:ROOM`.
    #[must_use]
    pub fn network(&self) -> String {
        match self {
            Self::Roster(name) => format!("group:{name}"),
            Self::Muc(room) => format!("muc:{room}"),
        }
    }
}

/// When links are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkPolicy {
    /// When there is a packet for the peer.
    #[default]
    OnDemand,
    /// As soon as the peer is there.
    Proactive,
}

/// The node's own address in a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressChoice {
    /// This one, in a subnet of this length.
    Fixed(IpAddr, u8),
    /// The node chooses one in this subnet, and keeps it.
    Within(Prefix),
}

/// One `[[network]]` of kind `group`.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Whose members.
    pub group: GroupSource,
    /// TUN interface.
    pub interface: String,
    /// Own address.
    pub address: AddressChoice,
    /// Contents of `secret_file`: mixed into every handshake.
    pub secret: Option<Zeroizing<Vec<u8>>>,
    /// Subnets behind this node that are offered.
    pub routes: Vec<Prefix>,
    /// Take the others' offers.
    pub accept_routes: bool,
    /// When links are made.
    pub links: LinkPolicy,
    /// An on-demand link that carries nothing for so long is closed.
    pub idle_timeout: Duration,
    /// UDP port; `None`: chosen once and kept in the state directory.
    pub listen_port: Option<u16>,
    /// Of the interface.
    pub mtu: u16,
}

/// STUN and TURN servers from the file; both empty: what the XMPP server offers.
#[derive(Clone, Debug, Default)]
pub struct IceConfig {
    /// `host:port`.
    pub stun: Vec<String>,
    /// TURN servers.
    pub turn: Vec<TurnConfig>,
}

/// One TURN server.
#[derive(Clone)]
pub struct TurnConfig {
    /// `host:port`.
    pub server: String,
    /// Long-term credential (RFC 8489, section 9.2).
    pub username: String,
    /// Never logged.
    pub password: Zeroizing<String>,
}

impl std::fmt::Debug for TurnConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TurnConfig").field("server", &self.server).finish_non_exhaustive()
    }
}
