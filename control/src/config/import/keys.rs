//! Where IPOP's forms keep each setting. `*` stands for any one key, `[*]` for any entry of a list.

use super::source::matches;

pub(super) const USER: &[&str] = &[
    "xmpp_username",
    "CFx.xmpp_username",
    "XmppClient.Username",
    "XmppClient.xmppdetails[*].Username",
    "Signal.Overlays.*.Username",
];
pub(super) const PASSWORD: &[&str] = &[
    "xmpp_password",
    "CFx.xmpp_password",
    "XmppClient.Password",
    "XmppClient.xmppdetails[*].Password",
    "Signal.Overlays.*.Password",
];
pub(super) const HOST: &[&str] = &[
    "xmpp_host",
    "CFx.xmpp_host",
    "XmppClient.AddressHost",
    "XmppClient.xmppdetails[*].AddressHost",
    "Signal.Overlays.*.HostAddress",
    "XmppClient.HostAddress",
];
pub(super) const PORT: &[&str] =
    &["xmpp_port", "CFx.xmpp_port", "XmppClient.Port", "XmppClient.xmppdetails[*].Port", "Signal.Overlays.*.Port"];
pub(super) const TRUST: &[&str] =
    &["XmppClient.TrustStore", "XmppClient.xmppdetails[*].TrustStore", "Signal.Overlays.*.TrustStore"];
pub(super) const IP4: &[&str] = &[
    "ip4",
    "BaseTopologyManager.ip4",
    "CFx.ip4",
    "VirtualNetworkInitializer.Vnets[*].IP4",
    "Tincan.Vnets[*].IP4",
    "TincanInterface.Vnets[*].IP4",
    "LinkManager.ip4",
    "BridgeController.Overlays.*.IP4",
];
pub(super) const MASK: &[&str] = &[
    "ip4_mask",
    "CFx.ip4_mask",
    "BaseTopologyManager.ip4_mask",
    "VirtualNetworkInitializer.Vnets[*].IP4Prefix",
    "Tincan.Vnets[*].IP4Prefix",
    "TincanInterface.Vnets[*].IP4Prefix",
    "BridgeController.Overlays.*.PrefixLen",
];
pub(super) const TAP: &[&str] =
    &["VirtualNetworkInitializer.Vnets[*].TapName", "Tincan.Vnets[*].TapName", "TincanInterface.Vnets[*].TapName"];
pub(super) const MTU: &[&str] = &[
    "VirtualNetworkInitializer.Vnets[*].MTU4",
    "Tincan.Vnets[*].MTU4",
    "TincanInterface.Vnets[*].MTU4",
    "BridgeController.Overlays.*.MTU",
];
pub(super) const STUN: &[&str] = &[
    "stun",
    "CFx.stun",
    "BaseTopologyManager.stun",
    "LinkManager.Stun",
    "VirtualNetworkInitializer.Stun",
    "Tincan.Stun",
    "TincanInterface.Stun",
];
pub(super) const TURN: [&str; 7] = [
    "turn[*]",
    "CFx.turn[*]",
    "BaseTopologyManager.turn[*]",
    "LinkManager.Turn[*]",
    "VirtualNetworkInitializer.Turn[*]",
    "Tincan.Turn[*]",
    "TincanInterface.Turn[*]",
];
pub(super) const KIND: &[&str] = &["CFx.vpn_type", "vpn_type", "CFx.Model"];
pub(super) const ON_DEMAND: &[&str] = &["on-demand_connection", "CFx.on-demand_connection"];
pub(super) const IDLE: &[&str] = &["on-demand_inactive_timeout", "CFx.on-demand_inactive_timeout"];
pub(super) const OVERLAYS: &[&str] = &["CFx.Overlays"];

pub(super) const LOGIN: &[&str] = &[
    "XmppClient.AuthenticationMethod",
    "XmppClient.xmppdetails[*].AuthenticationMethod",
    "Signal.Overlays.*.AuthenticationMethod",
];

/// Settings without a counterpart, and why they need none.
const NEEDLESS: &[(&str, &[&str])] = &[
    (
        "the certificate of the XMPP server is checked always (see ca_file)",
        &[
            "XmppClient.AcceptUntrustedServer",
            "XmppClient.xmppdetails[*].AcceptUntrustedServer",
            "Signal.Overlays.*.AcceptUntrustedServer",
        ],
    ),
    (
        "there is one XMPP connection for all networks",
        &[
            "VirtualNetworkInitializer.Vnets[*].XMPPModuleName",
            "Tincan.Vnets[*].XMPPModuleName",
            "XmppClient.TapName",
            "XmppClient.xmppdetails[*].TapName",
        ],
    ),
    ("every link is encrypted", &["sec", "*.sec"]),
    (
        "the option --log-level of up takes its place",
        &[
            "tincan_logging",
            "controller_logging",
            "*.tincan_logging",
            "Logger.*",
            "Tincan.LogLevel",
            "VirtualNetworkInitializer.Log.*",
        ],
    ),
    (
        "there is one process, and these were for talk between two",
        &[
            "localhost",
            "localhost6",
            "svpn_port",
            "contr_port",
            "buf_size",
            "wait_time",
            "tincan_path",
            "*.localhost",
            "*.localhost6",
            "*.svpn_port",
            "*.contr_port",
            "*.buf_size",
            "*.socket_read_wait_time",
            "*.SocketReadWaitTime",
            "TincanInterface.CtrlRecvPort",
            "TincanInterface.CtrlSendPort",
        ],
    ),
    (
        "the node makes its own identity and its own IPv6 address",
        &[
            "local_uid",
            "uid_size",
            "ip6_prefix",
            "ip6_mask",
            "subnet_mask",
            "*.local_uid",
            "*.uid_size",
            "*.ip6_prefix",
            "*.ip6_mask",
            "CFx.NodeId",
        ],
    ),
    (
        "every pair of members has its own link, so there is no ring to set up",
        &[
            "multihop",
            "multihop_*",
            "BaseTopologyManager.num_*",
            "BaseTopologyManager.ttl_*",
            "BaseTopologyManager.interval_*",
            "BaseTopologyManager.*",
            "Topology.Overlays.*.*",
            "ConnectionManager.*",
            "trim_enabled",
        ],
    ),
    (
        "modules are not loaded one by one",
        &["*.dependencies", "*.Enabled", "*.joinEnabled", "*.TimerInterval", "*.timer_interval"],
    ),
    (
        "nothing is reported to others",
        &[
            "stat_report",
            "stat_server",
            "stat_server_port",
            "*.stat_report",
            "StatReport.*",
            "CentralVisualizer.*",
            "OverlayVisualizer.*",
            "UsageReport.*",
        ],
    ),
    (
        "packets are IP, not Ethernet: there are no bridges, switches or broadcasts",
        &[
            "switchmode",
            "*.switchmode",
            "router_mode",
            "icc",
            "icc_port",
            "CFx.icc",
            "CFx.icc_port",
            "VirtualNetworkInitializer.Vnets[*].L2TunnellingEnabled",
            "Tincan.Vnets[*].L2TunnellingEnabled",
            "BridgeController.Overlays.*.*",
            "BroadCastController.*",
            "BroadCastForwarder.*",
            "BroadcastForwarder.*",
            "Multicast.*",
            "IPMulticast.*",
            "ArpCache.*",
        ],
    ),
];

/// Why a setting has no counterpart.
pub(super) fn needless(path: &str) -> Option<&'static str> {
    NEEDLESS.iter().find(|(_, patterns)| patterns.iter().any(|p| wild(p, path))).map(|(why, _)| *why)
}

/// [`matches`], where a step may also end in `*`, and a single last `*` stands for all that is below.
fn wild(pattern: &str, path: &str) -> bool {
    if let Some(section) = pattern.strip_suffix(".*").filter(|s| !s.contains('*')) {
        return path.to_lowercase().starts_with(&format!("{}.", section.to_lowercase()));
    }
    if let Some(start) = pattern.strip_suffix('*').filter(|s| !s.is_empty() && !s.ends_with('.')) {
        return path.to_lowercase().starts_with(&start.to_lowercase());
    }
    matches(pattern, path)
}
