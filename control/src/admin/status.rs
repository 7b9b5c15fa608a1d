//! The state of a running node as `status`, `peers` and `links` show it and as `--json` prints it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Full JID, while known.
    pub jid: Option<String>,
    /// Version of the program.
    pub version: String,
    /// Process.
    pub pid: u32,
    /// Seconds since its start.
    pub uptime_s: u64,
    /// The XMPP connection.
    pub xmpp: XmppStatus,
    /// Which cipher links get, and why.
    #[serde(default)]
    pub cipher: CipherStatus,
    /// STUN and TURN servers.
    pub servers: Vec<ServerStatus>,
    /// Bare JIDs of those who ask to be friends.
    #[serde(default)]
    pub requests: Vec<String>,
    /// Its networks.
    pub networks: Vec<NetworkStatus>,
}

/// An account that is a friend, was asked to be one, or asks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FriendStatus {
    /// Bare JID.
    pub jid: String,
    /// What the roster calls it.
    pub name: Option<String>,
    /// `friend`; `request`: it asks; `asked`: we asked; `one-sided`: one sees the other.
    pub state: String,
    /// One of its nodes is there.
    pub online: bool,
    /// It is on the account's block list.
    pub blocked: bool,
    /// Networks in which it is let in.
    pub networks: Vec<String>,
    /// Its nodes there.
    pub nodes: Vec<FriendNode>,
    /// Why our request did not arrive.
    pub problem: Option<String>,
}

/// A friend's node in one network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FriendNode {
    /// Its name.
    pub name: String,
    /// The network.
    pub network: String,
    /// Its IPv4 address here.
    pub address: Option<String>,
    /// It is there.
    pub online: bool,
}

/// Which cipher links get, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CipherStatus {
    /// `auto`, `chacha20poly1305` or `aes256gcm`, as configured.
    pub setting: String,
    /// AES-256-GCM is offered to the other nodes: links to those that offer it too get it.
    pub aes256gcm: bool,
    /// As measured at the start, GB/s of one core.
    pub chacha20poly1305_gb_s: f64,
    /// As measured at the start, GB/s of one core.
    pub aes256gcm_gb_s: f64,
}

/// The XMPP connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct XmppStatus {
    /// Logged in.
    pub online: bool,
    /// Why not, or since when.
    pub detail: String,
    /// Seconds in this state.
    pub for_s: u64,
    /// Stanzas of those who are no members: not answered.
    #[serde(default)]
    pub dropped_strangers: u64,
    /// Stanzas of members that break the rules.
    #[serde(default)]
    pub dropped_malformed: u64,
}

/// A STUN or TURN server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// `stun` or `turn`.
    pub kind: String,
    /// Its address.
    pub address: String,
    /// Working.
    pub ok: bool,
    /// What it told (mapped or relayed address), or what is wrong.
    pub detail: String,
}

/// One network of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// `group:NAME`, `muc:ROOM`, `social:NAME`.
    pub network: String,
    /// `group` or `social`.
    #[serde(default)]
    pub kind: String,
    /// The subnet of the own address; in a social network, of friends' addresses here as well.
    #[serde(default)]
    pub subnet: Option<String>,
    /// Its interface.
    pub interface: String,
    /// Own overlay addresses with prefix length.
    pub addresses: Vec<String>,
    /// Own public key, base64.
    pub public_key: String,
    /// UDP port.
    pub listen_port: u16,
    /// Local underlay addresses that are offered.
    pub host_addresses: Vec<String>,
    /// Subnets offered to the group.
    pub routes: Vec<String>,
    /// The data plane's counters that are not zero, by the names that `ipop-fast stats` has for them.
    #[serde(default)]
    pub traffic: BTreeMap<String, u64>,
    /// Its drops by reason, those that are not zero.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
    /// Datagrams that kernel programs dropped, by reason, those that are not zero.
    #[serde(default)]
    pub kernel_drops: BTreeMap<String, u64>,
    /// What kernel programs do for it, or why there are none.
    #[serde(default)]
    pub kernel_programs: String,
    /// What a person should know: address conflicts, refused keys, colliding routes.
    pub warnings: Vec<String>,
    /// Members that have a descriptor, and links to them.
    pub peers: Vec<PeerStatus>,
}

/// One other node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Full JID.
    pub jid: String,
    /// Reachable by XMPP now.
    pub online: bool,
    /// Overlay addresses; in a social network, those that it has here.
    pub addresses: Vec<String>,
    /// In a social network: what it calls itself.
    #[serde(default)]
    pub calls_itself: Option<String>,
    /// Subnets that are taken from it.
    pub routes: Vec<String>,
    /// Public key, base64.
    pub public_key: String,
    /// `pinned`; or `changed`, or `refused` (the key is another node's), with the key that was refused in `pin_detail`.
    pub pin: String,
    /// The refused key.
    pub pin_detail: Option<String>,
    /// Its link.
    pub link: LinkStatus,
}

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// `idle`, `negotiating`, `handshaking`, `up`, `failing`.
    pub state: String,
    /// `direct` or `relayed`, while there is a path.
    pub path: Option<String>,
    /// Where datagrams go: `192.0.2.1:51820` or `203.0.113.9:3478 (relay channel 0x4001)`.
    pub address: Option<String>,
    /// Kinds of the chosen candidates, as `srflx-host`.
    pub pair: Option<String>,
    /// Why this path, or why none: `relayed because ...`.
    pub why: String,
    /// Cipher of the session in use: `chacha20poly1305` or `aes256gcm`.
    #[serde(default)]
    pub cipher: Option<String>,
    /// Round trip in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Payload bytes to it.
    pub tx_bytes: u64,
    /// Payload bytes from it.
    pub rx_bytes: u64,
    /// Bit/s to it over the last seconds.
    pub tx_bps: f64,
    /// Bit/s from it over the last seconds.
    pub rx_bps: f64,
    /// Seconds since the last handshake.
    pub last_handshake_s: Option<u64>,
    /// Seconds in this state.
    pub for_s: u64,
    /// From the start of the first negotiation to the session, milliseconds.
    pub setup_ms: Option<f64>,
}
