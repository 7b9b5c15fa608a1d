use super::*;
use crate::config::{AddressChoice, LinkPolicy, NodeConfig, Surroundings, parse};
use proptest::prelude::*;
use std::os::unix::fs::PermissionsExt;

/// As of the first controllers, with all settings that had a meaning.
const FLAT: &str = r#"{
    "xmpp_username": "alice@example.org", "xmpp_password": " se\"cret ", "xmpp_host": "xmpp.example.org",
    "ip4": "172.31.0.100", "ip4_mask": 16,
    "stun": ["stun.example.org:19302", "stun.example.com"],
    "turn": [{"server": "192.0.2.7:19302", "user": "bob", "pass": "apple"}, {"server": "", "user": "", "pass": ""}],
    "localhost": "127.0.0.1", "ip6_prefix": "fd50:0dbc:41f2:4a3c", "svpn_port": 5800, "uid_size": 40, "sec": true,
    "on-demand_connection": false, "on-demand_inactive_timeout": 100, "tincan_logging": 2, "switchmode": 1,
    "controller_logging": "DEBUG", "icc": true, "multihop_cl": 100, "stat_report": false,
    "favourite_colour": "blue", "extra": {"deep": [1, 2], "none": {}}
}"#;

/// As of the controllers with modules and lower-case keys.
const MODULES: &str = r#"{
    "CFx": {"xmpp_username": "alice", "xmpp_password": "secret", "xmpp_host": "example.org", "xmpp_port": 5222,
            "tincan_logging": 0, "vpn_type": "GroupVPN", "ip4_mask": 16, "stat_report": false},
    "Logger": {"controller_logging": "ERROR"},
    "TincanSender": {"switchmode": 0, "dependencies": ["Logger"]},
    "BaseTopologyManager": {"ip4": "172.31.0.16", "sec": true, "multihop": false, "num_successors": 2,
            "ttl_link_pulse": 30, "dependencies": ["Logger"]},
    "LinkManager": {"dependencies": ["Logger"], "future": 1},
    "TincanListener": {"socket_read_wait_time": 15},
    "CentralVisualizer": {"enabled": false, "central_visualizer_addr": ""}
}"#;

/// As of the controllers with virtual networks and capital keys.
const VNETS: &str = r#"{
    "CFx": {"Model": "GroupVPN"},
    "VirtualNetworkInitializer": {
        "Vnets": [{"IP4": "10.254.0.1", "IP4Prefix": 24, "MTU4": 1400, "TapName": "ipop_tap0", "XMPPModuleName": "XmppClient",
                   "L2TunnellingEnabled": 1},
                  {"IP4": "10.253.0.1", "IP4Prefix": 24, "TapName": "ipop_tap1"}],
        "Stun": ["stun.example.org:19302"],
        "Turn": [{"Address": "turn.example.org:19302", "User": "u", "Password": "of turn"}]},
    "XmppClient": {"xmppdetails": [{"Username": "alice@example.org", "Password": "secret", "AddressHost": "xmpp.example.org",
                   "Port": "5223", "TapName": "ipop_tap0", "AcceptUntrustedServer": true}], "TimerInterval": 10}
}"#;

/// As of the last controllers.
const OVERLAYS: &str = r#"{
    "CFx": {"Model": "Default", "Overlays": ["A0FB389"]},
    "Signal": {"Enabled": true, "Overlays": {"A0FB389": {"HostAddress": "192.0.2.3", "Port": "5222",
               "Username": "alice@example.org", "Password": "secret", "AuthenticationMethod": "PASSWORD"}}},
    "Topology": {"Overlays": {"A0FB389": {"Name": "x", "MaxSuccessors": 1}}},
    "LinkManager": {"Stun": ["stun.example.org:19302"], "Overlays": {"A0FB389": {"Type": "TUNNEL", "TapName": "tnl-"}}},
    "BridgeController": {"Overlays": {"A0FB389": {"BridgeName": "b", "IP4": "10.10.100.2", "PrefixLen": 24, "MTU": 1410}}}
}"#;

/// Converts it, writes the secrets, and reads the result as `up` does.
fn through(json: &str) -> (NodeConfig, Imported) {
    let dir = tempfile::tempdir().expect("directory");
    let made = convert(json, &dir.path().join("node"), None).unwrap_or_else(|e| panic!("{e:?}"));
    for secret in &made.secrets {
        assert!(!made.toml.contains(secret.value.as_str()), "{}", made.toml);
        write_new(&secret.path, &secret.value, 0o600).expect("write");
    }
    let around = Surroundings { directory: dir.path().to_owned(), hostname: "h".to_owned(), password: None };
    let config = parse(Path::new("node.toml"), &made.toml, &around).unwrap_or_else(|e| panic!("{e}\n{}", made.toml));
    (config, made)
}

fn note<'a>(made: &'a Imported, path: &str) -> &'a str {
    let start = format!("{path}: ");
    made.notes.iter().find_map(|n| n.strip_prefix(&start)).unwrap_or_else(|| panic!("{path}: {:#?}", made.notes))
}

#[test]
fn the_flat_form_is_carried_over() {
    let (c, made) = through(FLAT);
    assert_eq!((c.xmpp.jid.as_str(), c.xmpp.password.as_str()), ("alice@example.org", " se\"cret "));
    assert_eq!(c.xmpp.server, Some(("xmpp.example.org".to_owned(), 5222)));
    let n = &c.networks[0];
    assert_eq!(n.address, AddressChoice::Fixed("172.31.0.100".parse().expect("address"), 16));
    assert_eq!((n.links, n.idle_timeout.as_secs()), (LinkPolicy::Proactive, 100));
    assert_eq!(c.ice.stun, ["stun.example.org:19302", "stun.example.com:3478"]);
    let turn: Vec<_> =
        c.ice.turn.iter().map(|t| (t.server.as_str(), t.username.as_str(), t.password.as_str())).collect();
    assert_eq!(turn, [("192.0.2.7:19302", "bob", "apple")]);
    assert!(note(&made, "favourite_colour").contains("a string that is not understood"));
    assert!(note(&made, "extra.deep").contains("a list that is not understood"));
    assert!(note(&made, "extra.none").contains("nothing to carry over"));
    for needless in ["localhost", "sec", "svpn_port", "uid_size", "icc", "switchmode", "multihop_cl", "tincan_logging"]
    {
        assert!(note(&made, needless).contains("not needed"), "{needless}: {}", note(&made, needless));
    }
    assert!(!made.notes.iter().any(|n| n.contains("blue") || n.contains("apple")), "values are not shown");
}

#[test]
fn the_module_form_is_carried_over() {
    let (c, made) = through(MODULES);
    assert_eq!(c.xmpp.jid, "alice@example.org", "the host completes a name without a domain");
    assert_eq!(c.xmpp.server, Some(("example.org".to_owned(), 5222)));
    assert_eq!(c.networks[0].address, AddressChoice::Fixed("172.31.0.16".parse().expect("address"), 16));
    assert!(c.ice.stun.is_empty());
    assert!(note(&made, "LinkManager.future").contains("NOT carried over: a number that is not understood"));
    assert!(note(&made, "BaseTopologyManager.num_successors").contains("no ring"));
    assert!(note(&made, "Logger.controller_logging").contains("--log-level"));
}

#[test]
fn the_form_with_virtual_networks_is_carried_over() {
    let (c, made) = through(VNETS);
    assert_eq!(c.xmpp.server, Some(("xmpp.example.org".to_owned(), 5223)));
    let n = &c.networks[0];
    assert_eq!((n.interface.as_str(), n.mtu), ("ipop_tap0", 1400));
    assert_eq!(n.address, AddressChoice::Fixed("10.254.0.1".parse().expect("address"), 24));
    assert_eq!(c.ice.turn[0].server, "turn.example.org:19302");
    assert!(note(&made, "VirtualNetworkInitializer.Vnets[1].IP4").contains("another one"));
    assert!(note(&made, "XmppClient.xmppdetails[0].AcceptUntrustedServer").contains("is checked"));
    assert!(note(&made, "VirtualNetworkInitializer.Vnets[0].L2TunnellingEnabled").contains("not Ethernet"));
}

#[test]
fn the_form_with_overlays_is_carried_over() {
    let (c, made) = through(OVERLAYS);
    assert_eq!(c.networks[0].network(), "group:A0FB389");
    assert_eq!(c.networks[0].address, AddressChoice::Fixed("10.10.100.2".parse().expect("address"), 24));
    assert_eq!((c.networks[0].mtu, c.ice.stun.len()), (1410, 1));
    assert!(note(&made, "Signal.Overlays.A0FB389.AuthenticationMethod").contains("by password"));
}

#[test]
fn what_stands_in_the_way_is_told_together() {
    let wrong =
        convert(r#"{"xmpp_username": "", "ip4": "10.10.100.**", "ip4_mask": 40, "stun": [7.5]}"#, Path::new("n"), None)
            .expect_err("refused");
    let all = wrong.join("\n");
    for words in ["names no XMPP account", "\"10.10.100.**\" is no IPv4 address", "40 is no length", "stun"] {
        assert!(all.contains(words), "{words}: {all}");
    }
    for (json, words) in [
        ("", "is no JSON"),
        ("[1]", "is a list"),
        ("{\"a\": 1,}", "line 1 column 9"),
        (&FLAT.replace("172.31.0.100", "172.31.0.0"), "the subnet's own address"),
        (&MODULES.replace("GroupVPN", "SocialVPN"), "not in this version yet"),
        (&FLAT.replace("\"xmpp.example.org\"", "\"a b\""), "is no host"),
        (&MODULES.replace("5222", "99999"), "99999 is no port"),
        (&FLAT.replace("\" se\\\"cret \"", "[]"), "xmpp_password has to be a string"),
    ] {
        let wrong = convert(json, Path::new("n"), None).expect_err("refused").join("\n");
        assert!(wrong.contains(words), "{words}: {wrong}");
    }
}

#[test]
fn files_are_written_for_the_owner_and_never_over_others() {
    let dir = tempfile::tempdir().expect("directory");
    let (json, out) = (dir.path().join("config.json"), dir.path().join("node.toml"));
    std::fs::write(&json, FLAT).expect("write");
    let args = ImportArgs { file: json, output: Some(out.clone()), group: Some("my group".to_owned()) };
    main(&args).expect("imported");
    assert_eq!(load(&out).expect("valid").networks[0].network(), "group:my group");
    for (name, text) in [("node.password", " se\"cret \n"), ("node.turn-1.password", "apple\n")] {
        let path = dir.path().join(name);
        assert_eq!(std::fs::read_to_string(&path).expect("read"), text);
        assert_eq!(std::fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o600);
    }
    let again = main(&args).expect_err("in the way").to_string();
    assert!(again.contains("is there already"), "{again}");
}

proptest! {
    #[test]
    fn every_setting_is_carried_over_or_told(key in "[A-Za-z_.\\[\\]\"-]{1,20}", under in prop::sample::select(vec!["", "CFx", "turn", "X"])) {
        let entry = serde_json::json!({ key.clone(): 12345 });
        let entry = if under.is_empty() { entry } else { serde_json::json!({ under: entry }) };
        let mut all: serde_json::Value = serde_json::from_str(MODULES).expect("json");
        let before = convert(&all.to_string(), Path::new("n"), None).expect("valid");
        for (name, value) in entry.as_object().expect("object") {
            let section = all.get(name.as_str()).and_then(|s| s.as_object()).cloned();
            let new = match (section, value) {
                (Some(mut section), serde_json::Value::Object(more)) => {
                    section.extend(more.clone());
                    section.into()
                }
                (_, value) => value.clone(),
            };
            all[name.as_str()] = new;
        }
        if let Ok(after) = convert(&all.to_string(), Path::new("n"), None) {
            let told = after.notes != before.notes;
            prop_assert!(told || after.toml != before.toml, "{} {}", under, key);
        }
    }

    #[test]
    fn no_json_makes_it_panic(text in "[\\[\\]{}\":, a-z0-9.*]{0,200}") {
        let _ = convert(&text, Path::new("n"), None);
    }
}
