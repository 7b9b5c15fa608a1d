//! What a node tells the members of its networks about itself. Never where it is: endpoints travel in Jingle only.

use dataplane::crypto::Cipher;
use dataplane::table::Prefix;
use dataplane::tunnel::PublicKey;

/// The capability of a node that takes AES-256-GCM from those who have it as well.
pub const AES: &str = Cipher::Aes256Gcm.name();

/// One node, one device of one account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The node's name for people (the host's name by default).
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// What it can do beyond the first version of this format.
    pub capabilities: Vec<String>,
    /// Its networks.
    pub networks: Vec<NetworkDescriptor>,
}

impl Descriptor {
    /// Whether it takes AES-256-GCM.
    #[must_use]
    pub fn has_aes(&self) -> bool {
        self.capabilities.iter().any(|c| c == AES)
    }
}

/// What a node is in one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkDescriptor {
    /// Kind and name: `group:my_pragma_group_1`, `muc:room@conference.example.org`.
    pub network: String,
    /// Its key there.
    pub public_key: PublicKey,
    /// Its overlay addresses (`/32` and `/128`), the stable IPv6 one among them.
    pub addresses: Vec<Prefix>,
    /// Subnets behind it that it offers.
    pub routes: Vec<Prefix>,
    /// In a social network with multicast: the subnet of its address there, whose broadcast address it means.
    pub subnet: Option<Prefix>,
    /// When the address was taken, milliseconds since 1970: of two nodes with the same address the earlier keeps it.
    pub since: u64,
}
