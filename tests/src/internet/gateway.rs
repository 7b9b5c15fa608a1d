//! What stands between a site's LAN and the internet, in nftables.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};

use super::SERVERS;
use crate::ns::Namespace;
use crate::process::{run, state_file};

/// External ports of one life of a NAT: a rebooted one gives out others, so a mapping that was lost shows.
const PORTS_A_LIFE: u16 = 2_000;
const FIRST_PORT: u16 = 20_000;
const MOST_LIVES: u16 = 20;

/// A kind of gateway, in the words of RFC 4787.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gateway {
    /// No NAT, no filter: hosts have public addresses.
    Public,
    /// NAT with endpoint-independent mapping and filtering. Each host has a public address of its own in front of
    /// it, as clouds do it: one address for all would need a rule for every port that is in use.
    EndpointIndependent,
    /// NAT with endpoint-independent mapping, and address and port-dependent filtering. The external port is another
    /// than the internal one.
    PortRestricted,
    /// NAT with address and port-dependent mapping: a new external port for every destination.
    Symmetric,
    /// Public addresses behind a firewall that lets only the servers' network through, in both directions.
    ServerOnly,
}

impl Gateway {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Public, Self::EndpointIndependent, Self::PortRestricted, Self::Symmetric, Self::ServerOnly];

    /// A name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::EndpointIndependent => "NAT, endpoint-independent filtering",
            Self::PortRestricted => "NAT, port-restricted filtering",
            Self::Symmetric => "symmetric NAT",
            Self::ServerOnly => "firewall, server only",
        }
    }

    /// Whether hosts have the addresses that the internet sees.
    #[must_use]
    pub const fn public_hosts(self) -> bool {
        matches!(self, Self::Public | Self::ServerOnly)
    }

    /// Whether there is a direct path between a host behind this and one behind `other`, at another site.
    #[must_use]
    pub const fn direct(self, other: Self) -> bool {
        use Gateway::{PortRestricted, ServerOnly, Symmetric};
        !matches!(
            (self, other),
            (ServerOnly, _) | (_, ServerOnly) | (Symmetric, Symmetric | PortRestricted) | (PortRestricted, Symmetric)
        )
    }

    /// The LAN's first three numbers.
    pub(super) const fn lan(self, site: u8) -> [u8; 3] {
        if self.public_hosts() { [198, 18, site] } else { [10, site, 0] }
    }

    /// Whether the core needs a route to 198.18.SITE.0/24.
    pub(super) const fn routed(self) -> bool {
        self.public_hosts() || matches!(self, Self::EndpointIndependent)
    }

    /// The address that the internet sees for a host, where it is the same for all destinations.
    pub(super) fn seen(self, site: u8, host: Ipv4Addr, wan: Ipv4Addr) -> Ipv4Addr {
        if self.routed() { Ipv4Addr::new(198, 18, site, host.octets()[3]) } else { wan }
    }

    /// The rule set for a gateway with interfaces `wan` and `lan`, in its `life`-th life.
    fn rules(self, site: u8, life: u16) -> String {
        let first = FIRST_PORT + (life % MOST_LIVES) * PORTS_A_LIFE;
        let last = first + PORTS_A_LIFE - 1;
        let nat = match self {
            Self::Public | Self::ServerOnly => String::new(),
            Self::EndpointIndependent => format!(
                "chain pre {{ type nat hook prerouting priority dstnat;
                   ip daddr 198.18.{site}.0/24 dnat ip prefix to 10.{site}.0.0/24\n}}
                 chain post {{ type nat hook postrouting priority srcnat;
                   oifname wan snat ip prefix to ip saddr map {{ 10.{site}.0.0/24 : 198.18.{site}.0/24 }}\n}}"
            ),
            // The kernel gives one source the same external port again for as long as an entry of it lives.
            Self::PortRestricted => format!(
                "chain post {{ type nat hook postrouting priority srcnat;
                   oifname wan meta l4proto udp masquerade to :{first}-{last} persistent
                   oifname wan masquerade\n}}"
            ),
            Self::Symmetric => format!(
                "chain post {{ type nat hook postrouting priority srcnat;
                   oifname wan meta l4proto udp masquerade to :{first}-{last} random,fully-random
                   oifname wan masquerade\n}}"
            ),
        };
        let forward = match self {
            Self::Public => "accept".to_owned(),
            Self::EndpointIndependent => "iifname lan accept\nct state established,related accept\n\
                 iifname wan meta l4proto udp accept\ndrop"
                .to_owned(),
            Self::PortRestricted | Self::Symmetric => {
                "iifname lan accept\nct state established,related accept\ndrop".to_owned()
            }
            Self::ServerOnly => format!(
                "iifname lan ip daddr {SERVERS} accept\niifname wan ip saddr {SERVERS} accept\n\
                 iifname lan oifname lan accept\ndrop"
            ),
        };
        // Without the drop on input, a datagram to a port without a mapping would occupy an entry, and the mapping
        // that comes later would have to move.
        format!(
            "table ip nat {{\n{nat}\n}}
             table ip filter {{
               chain input {{ type filter hook input priority filter; policy drop;
                 iifname {{ lo, lan }} accept\nct state established,related accept\nip protocol icmp accept\n}}
               chain forward {{ type filter hook forward priority filter; policy drop;\n{forward}\n}}
             }}\n"
        )
    }

    /// Loads the rules, and forgets every mapping.
    pub(super) fn load(self, ns: &Namespace, site: u8, life: u16) -> Result<()> {
        ensure!(life < MOST_LIVES, "a NAT of these tests has {MOST_LIVES} lives");
        let file = state_file("nft")?;
        std::fs::write(&file, format!("flush ruleset\n{}", self.rules(site, life)))?;
        let loaded = run(ns.command("nft").arg("-f").arg(&file));
        let _ = std::fs::remove_file(&file);
        loaded?;
        if life > 0 {
            run(ns.command("conntrack").args(["-F"]))?;
        }
        Ok(())
    }
}
