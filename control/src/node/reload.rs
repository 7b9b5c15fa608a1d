//! Reading the configuration again.

use super::run::Node;
use crate::config::{NetworkConfig, NodeConfig};

impl Node {
    /// Takes over what can change while the node runs; says what was done and what needs a restart.
    pub(super) async fn reload(&mut self) -> String {
        let new = match crate::config::load(&self.args.config) {
            Ok(new) => new,
            Err(problems) => {
                tracing::error!("the configuration is not taken:\n{problems}");
                return format!("the configuration is not taken: {problems}");
            }
        };
        let restart = needs_restart(&self.config, &new);
        if !restart.is_empty() {
            let said = format!("nothing was changed: {} can only be changed by a restart", restart.join(", "));
            tracing::warn!("{said}");
            return said;
        }
        for (n, config) in self.networks.iter_mut().zip(&new.networks) {
            n.config = config.clone();
            n.set_multicast();
        }
        let cipher_changed = self.config.cipher != new.cipher;
        self.config = new;
        if cipher_changed {
            self.tell_cipher();
        }
        self.new_servers();
        self.publish();
        self.stir();
        "the configuration was read again: routes, group secret, leases, multicast, STUN and TURN servers are in force; \
         links and idle_timeout for links made from now on, cipher for handshakes"
            .to_owned()
    }
}

/// The keys whose change is not taken over.
fn needs_restart(old: &NodeConfig, new: &NodeConfig) -> Vec<String> {
    let (a, b) = (&old.xmpp, &new.xmpp);
    let mut keys = Vec::new();
    let mut note = |changed: bool, key: &str| {
        if changed {
            keys.push(key.to_owned());
        }
    };
    note(old.name != new.name, "[node] name");
    note(old.state_dir != new.state_dir, "[node] state_dir");
    note(old.control_socket != new.control_socket, "[node] control_socket");
    note((&a.jid, &a.server, a.direct_tls, &a.ca_file) != (&b.jid, &b.server, b.direct_tls, &b.ca_file), "[xmpp]");
    note(a.password != b.password, "the password");
    note(old.names != new.names, "[names] enabled");
    note(old.ice.relay_private != new.ice.relay_private, "[ice] relay_private");
    note(old.networks.len() != new.networks.len(), "the number of networks");
    let allow = |n: &NetworkConfig| n.social().map(|s| s.allow.clone());
    note(old.networks.iter().zip(&new.networks).any(|(a, b)| allow(a) != allow(b)), "allow of a network");
    let fixed = |n: &NetworkConfig| (n.network(), n.interface.clone(), n.address, n.listen_port, n.mtu);
    note(
        old.networks.iter().zip(&new.networks).any(|(a, b)| fixed(a) != fixed(b)),
        "kind, group, name, interface, address, listen_port and mtu of a network",
    );
    keys
}
