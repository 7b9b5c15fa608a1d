//! `node.toml`: what a node is told by its owner.
//!
//! [`load`] reads and checks a file; it tells all that is wrong with it at once ([`Problems`]), each with file, line,
//! column and key.

pub mod check;
pub mod import;
mod network;
mod problem;
mod secret;
mod section;
mod sections;
mod social;
#[cfg(test)]
mod tests;
pub mod values;

pub use problem::{Problem, Problems};
pub use secret::read_secret;
pub use sections::{Surroundings, parse};

use dataplane::CipherChoice;
use dataplane::table::Prefix;
use std::collections::BTreeSet;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// Longest file, in bytes. A file with [`MAX_NETWORKS`] networks and all their routes is a tenth of that.
pub const MAX_FILE: usize = 1 << 20;
/// Networks of one node: each has its interface, its sockets and its shards.
pub const MAX_NETWORKS: usize = 16;
/// Subnets offered in one network: they travel in the descriptor, which servers limit.
pub const MAX_ROUTES: usize = 64;
/// STUN servers, and TURN servers: each is asked for every network.
pub const MAX_SERVERS: usize = 8;
/// Entries of one `allow`: a person writes them.
pub const MAX_ALLOW: usize = 1024;
/// Fixed leases of one network: a person writes them.
pub const MAX_FIXED_LEASES: usize = 1024;
/// Name of a social network that is given none: friends with the default meet.
pub const DEFAULT_SOCIAL: &str = "social";
/// Default MTU of an interface. 1,500 of the usual underlay, less 40 of IPv6, 8 of UDP, 32 of WireGuard and 4 of
/// ChannelData (RFC 8656, section 12.4): no path, relayed or not, has to fragment.
pub const DEFAULT_MTU: u16 = 1500 - 40 - 8 - 32 - 4;
/// Default time without payload after which an on-demand link is closed.
pub const DEFAULT_IDLE: Duration = Duration::from_secs(600);
/// Default directory of keys, pins and leases.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/ipop-fast";
/// Directory of the nodes' control sockets.
pub const SOCKET_DIR: &str = "/run/ipop-fast";
/// The account's password; it goes before `password_file`.
pub const PASSWORD_VARIABLE: &str = "IPOP_FAST_XMPP_PASSWORD";

/// Reads and checks a configuration file and the files that it names.
///
/// # Errors
/// All that is wrong with it.
pub fn load(path: &Path) -> Result<NodeConfig, Problems> {
    let whole = |message: String| Problems::of_file(path, message);
    let unreadable = |e: std::io::Error| {
        whole(match e.kind() {
            std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
            std::io::ErrorKind::PermissionDenied => {
                "may not be read by this user: run it as root, or change the file's owner".to_owned()
            }
            _ => format!("cannot be read: {e}"),
        })
    };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.is_dir() {
        return Err(whole("is a directory: name the file in it".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > MAX_FILE {
        return Err(whole(format!("is longer than {} KiB: this is no node.toml", MAX_FILE >> 10)));
    }
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let line = bytes[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        whole(format!("line {line} has bytes that are no UTF-8: save the file as UTF-8"))
    })?;
    parse(path, text, &Surroundings::of_process(path))
}

/// A whole configuration, checked.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The node's name for people.
    pub name: String,
    /// Private key, pinned keys, leases.
    pub state_dir: PathBuf,
    /// Which cipher links get to nodes that have a choice too.
    pub cipher: CipherChoice,
    /// The account.
    pub xmpp: XmppConfig,
    /// At least one.
    pub networks: Vec<NetworkConfig>,
    /// Both lists empty: what the XMPP server offers by XEP-0215.
    pub ice: IceConfig,
    /// Names of nodes.
    pub names: NamesConfig,
    /// Where `status` and the like reach the node.
    pub control_socket: PathBuf,
    /// What is no error but worth telling once.
    pub notes: Vec<String>,
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

/// One `[[network]]`.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Who is in it.
    pub kind: NetworkKind,
    /// TUN interface.
    pub interface: String,
    /// Own address.
    pub address: AddressChoice,
    /// When links are made.
    pub links: LinkPolicy,
    /// An on-demand link that carries nothing for so long is closed.
    pub idle_timeout: Duration,
    /// UDP port; `None`: any.
    pub listen_port: Option<u16>,
    /// Of the interface.
    pub mtu: u16,
}

impl NetworkConfig {
    /// Its name in descriptors and in Jingle: `group:NAME`, `muc:ROOM` or `social:NAME`.
    #[must_use]
    pub fn network(&self) -> String {
        match &self.kind {
            NetworkKind::Group(g) => g.source.network(),
            NetworkKind::Social(s) => s.network(),
        }
    }

    /// The subnet that its own address is of.
    #[must_use]
    pub fn subnet(&self) -> Option<Prefix> {
        match self.address {
            AddressChoice::Fixed(a, len) => Prefix::new(a, len),
            AddressChoice::Within(p) => Some(p),
        }
    }

    /// What only a social network has.
    #[must_use]
    pub const fn social(&self) -> Option<&SocialConfig> {
        match &self.kind {
            NetworkKind::Social(s) => Some(s),
            NetworkKind::Group(_) => None,
        }
    }

    /// What only a group has.
    #[must_use]
    pub const fn group(&self) -> Option<&GroupConfig> {
        match &self.kind {
            NetworkKind::Group(g) => Some(g),
            NetworkKind::Social(_) => None,
        }
    }
}

/// Whose nodes meet in a network, and what they share.
#[derive(Clone, Debug)]
pub enum NetworkKind {
    /// The members of a group: one address space for all.
    Group(GroupConfig),
    /// The account's friends: each has an address space of its own.
    Social(SocialConfig),
}

/// `kind = "group"`.
#[derive(Clone)]
pub struct GroupConfig {
    /// Whose members.
    pub source: GroupSource,
    /// Contents of `secret_file`: mixed into every handshake.
    pub secret: Option<Zeroizing<Vec<u8>>>,
    /// Subnets behind this node that are offered.
    pub routes: Vec<Prefix>,
    /// Take the others' offers.
    pub accept_routes: bool,
}

impl std::fmt::Debug for GroupConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupConfig")
            .field("source", &self.source)
            .field("routes", &self.routes)
            .finish_non_exhaustive()
    }
}

/// `kind = "social"`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocialConfig {
    /// Friends meet in social networks of the same name.
    pub name: String,
    /// Which friends.
    pub allow: Allow,
    /// Multicast and broadcast reach every friend that is linked.
    pub multicast: bool,
    /// Addresses that friends' nodes have here, whatever else they would get.
    pub leases: Vec<FixedLease>,
}

impl SocialConfig {
    /// `social:NAME`.
    #[must_use]
    pub fn network(&self) -> String {
        social_network(&self.name)
    }
}

/// The name of a social network in descriptors and in Jingle.
#[must_use]
pub fn social_network(name: &str) -> String {
    format!("social:{name}")
}

/// Which of an account's friends are let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Allow {
    /// Every one.
    #[default]
    Everybody,
    /// Accounts and whole domains, in their normal form.
    Only {
        /// Bare JIDs.
        accounts: BTreeSet<String>,
        /// From `*@domain`.
        domains: BTreeSet<String>,
    },
}

impl Allow {
    /// Whether an account (bare JID in its normal form) is let in.
    #[must_use]
    pub fn lets_in(&self, account: &str) -> bool {
        match self {
            Self::Everybody => true,
            Self::Only { accounts, domains } => {
                let domain = account.split_once('@').map_or(account, |(_, d)| d);
                accounts.contains(account) || domains.contains(domain)
            }
        }
    }
}

/// A line of `[network.leases]`: `"bob@example.org/laptop" = "172.31.0.7"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixedLease {
    /// Bare JID.
    pub account: String,
    /// The node's name, or its resource (`ipop-` and 16 digits); `None`: the account's node that was known first.
    pub node: Option<String>,
    /// The address.
    pub address: Ipv4Addr,
}

/// Whether the node answers for the names of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamesConfig {
    /// There is a DNS server on the node's overlay addresses.
    pub enabled: bool,
}

impl Default for NamesConfig {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// STUN and TURN servers from the file; both empty: what the XMPP server offers.
#[derive(Clone, Debug, Default)]
pub struct IceConfig {
    /// `host:port`.
    pub stun: Vec<String>,
    /// TURN servers.
    pub turn: Vec<TurnConfig>,
    /// Ask for relays also to reach private addresses, as a test network without public ones needs.
    pub relay_private: bool,
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
