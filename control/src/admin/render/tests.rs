use super::*;
use crate::admin::status::{ServerStatus, XmppStatus};
use proptest::prelude::*;

fn link(state: &str, path: Option<&str>, why: &str) -> LinkStatus {
    LinkStatus { state: state.to_owned(), path: path.map(str::to_owned), why: why.to_owned(), ..LinkStatus::default() }
}

fn peer(name: &str, address: &str, online: bool, link: LinkStatus) -> PeerStatus {
    PeerStatus {
        name: name.to_owned(),
        jid: format!("{name}@example.org/ipop-307675d0be000ce2"),
        online,
        addresses: vec![format!("{address}/32"), "fd12:3456:789a:bcde:f012:3456:789a:bcde/128".to_owned()],
        public_key: "QBpiOyQ9JInxcokMrRHh63e4eyaTaZHBk+/doGsf6FQ=".to_owned(),
        pin: "pinned".to_owned(),
        link,
        ..PeerStatus::default()
    }
}

fn example() -> Status {
    let direct = LinkStatus {
        address: Some("198.51.100.7:51820".to_owned()),
        pair: Some("host-srflx".to_owned()),
        rtt_ms: Some(12.34),
        tx_bytes: 1_234_567,
        rx_bytes: 9_876_543_210,
        tx_bps: 1.5e6,
        rx_bps: 2.25e9,
        last_handshake_s: Some(42),
        cipher: Some("aes256gcm".to_owned()),
        ..link("up", Some("direct"), "both can be reached")
    };
    let relayed = LinkStatus {
        address: Some("203.0.113.9:3478 (relay channel 0x4001)".to_owned()),
        pair: Some("relay-srflx".to_owned()),
        rtt_ms: Some(0.5),
        for_s: 240,
        setup_ms: Some(812.0),
        cipher: Some("chacha20poly1305".to_owned()),
        ..link(
            "up",
            Some("relayed"),
            "relayed because no direct pair worked: both ends are behind NATs whose mapping depends on the destination",
        )
    };
    let mut changed = peer("vm4", "172.16.10.5", true, link("failing", None, "its key has changed"));
    changed.pin = "changed".to_owned();
    changed.pin_detail = Some("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".to_owned());
    let mut gateway = peer("vm3", "172.16.10.4", true, relayed);
    gateway.routes = vec!["10.1.0.0/16".to_owned()];
    let network = NetworkStatus {
        network: "group:my_pragma_group_1".to_owned(),
        interface: "ipop0".to_owned(),
        addresses: vec!["172.16.10.2/24".to_owned(), "fd00::2/64".to_owned()],
        public_key: "QBpiOyQ9JInxcokMrRHh63e4eyaTaZHBk+/doGsf6FQ=".to_owned(),
        listen_port: 51820,
        host_addresses: (1..12).map(|i| format!("192.168.100.{i}")).collect(),
        routes: vec!["10.9.0.0/16".to_owned()],
        kind: "group".to_owned(),
        subnet: Some("172.16.10.0/24".to_owned()),
        traffic: [("tun_packets_in".to_owned(), 10)].into(),
        drops: [("no_route".to_owned(), 7), ("replayed".to_owned(), 1)].into(),
        kernel_drops: [("socket_unknown_receiver".to_owned(), 3)].into(),
        kernel_programs: "steer and sieve at the sockets".to_owned(),
        warnings: vec!["172.16.10.2 is also claimed by vm9, which took it later".to_owned()],
        peers: vec![
            peer("vm2", "172.16.10.3", true, direct),
            gateway,
            changed,
            peer("vm5", "172.16.10.6", false, link("idle", None, "offline")),
            peer("vm6", "172.16.10.7", true, link("negotiating", Some("direct"), "started by vm6")),
        ],
    };
    Status {
        name: "vm1".to_owned(),
        jid: Some("vm1@example.org/ipop-0011223344556677".to_owned()),
        version: "0.1.0".to_owned(),
        pid: 4711,
        uptime_s: 7_261,
        xmpp: XmppStatus { online: true, for_s: 300, ..XmppStatus::default() },
        servers: vec![
            ServerStatus {
                kind: "stun".to_owned(),
                address: "192.0.2.1:3478".to_owned(),
                ok: true,
                detail: "sees this node as 198.51.100.1:51820".to_owned(),
            },
            ServerStatus {
                kind: "turn".to_owned(),
                address: "192.0.2.1:3478".to_owned(),
                ok: false,
                detail: "no answer".to_owned(),
            },
        ],
        cipher: CipherStatus {
            setting: "auto".to_owned(),
            aes256gcm: true,
            chacha20poly1305_gb_s: 2.34,
            aes256gcm_gb_s: 7.81,
        },
        requests: Vec::new(),
        networks: vec![network],
    }
}

#[test]
fn a_summary_starts_with_what_does_not_work() {
    let expected = "\
node vm1 (ipop-fast 0.1.0, pid 4711), up for 2h
  WARNING  the turn server 192.0.2.1:3478 does not work
  WARNING  group:my_pragma_group_1: 172.16.10.2 is also claimed by vm9, which took it later
  WARNING  group:my_pragma_group_1: the key of vm4 (vm4@example.org/ipop-307675d0be000ce2) has
           changed and is refused. If its owner says that this is right: ipop-fast pins accept
           vm4@example.org/ipop-307675d0be000ce2
  WARNING  group:my_pragma_group_1: no link to vm4: its key has changed
  xmpp        online as vm1@example.org/ipop-0011223344556677 for 5m
  cipher      aes256gcm with nodes that have it too (auto; a core does 2.3 GB/s of chacha20poly1305,
              7.8 of aes256gcm)
  stun        192.0.2.1:3478 works: sees this node as 198.51.100.1:51820
  turn        192.0.2.1:3478 FAILS: no answer
group:my_pragma_group_1 on ipop0
  addresses   172.16.10.2/24, fd00::2/64
  key         QBpiOyQ9JInxcokMrRHh63e4eyaTaZHBk+/doGsf6FQ=
  udp port    51820
  offered at  192.168.100.1, 192.168.100.2, 192.168.100.3, 192.168.100.4, 192.168.100.5,
              192.168.100.6, 192.168.100.7, 192.168.100.8, 192.168.100.9, 192.168.100.10,
              192.168.100.11
  routes      10.9.0.0/16
  peers       5 known, 4 online
  links       1 direct, 1 relayed, 1 being made, 1 failing, 1 idle
  ciphers     1 chacha20poly1305, 1 aes256gcm
  dropped     7 no_route, 1 replayed
  by kernel   3 socket_unknown_receiver
  programs    steer and sieve at the sockets
";
    assert_eq!(status(&example()), expected);
}

#[test]
fn peers_take_one_line_each() {
    let expected = "\
vm1: group:my_pragma_group_1 on ipop0
  NAME  JID              ADDRESS         XMPP     PIN      LINK
  vm2   vm2@example.org  172.16.10.3 +1  online   pinned   direct aes
  vm3   vm3@example.org  172.16.10.4 +1  online   pinned   relayed
    routes through it: 10.1.0.0/16
  vm4   vm4@example.org  172.16.10.5 +1  online   CHANGED  failing
  vm5   vm5@example.org  172.16.10.6 +1  offline  pinned   idle
  vm6   vm6@example.org  172.16.10.7 +1  online   pinned   negotiating
";
    assert_eq!(peers(&example(), false), expected);
    let wide = peers(&example(), true);
    assert!(
        wide.contains("vm2@example.org/ipop-307675d0be000ce2  172.16.10.3 fd12:3456:789a:bcde:f012:3456:789a:bcde")
    );
}

#[test]
fn links_say_where_how_fast_and_why() {
    let expected = "\
vm1: group:my_pragma_group_1 on ipop0
  NAME  LINK         ADDRESS                    RTT   SENT  RECVD  BIT/S O/I  HANDSHAKE
  vm2   direct aes   198.51.100.7:51820     12.3 ms  1.2MB  9.9GB  1.5M/2.2G        42s
  vm3   relayed      203.0.113.9:3478 (re~  0.50 ms     0B     0B          -          -
    relayed because no direct pair worked: both ends are behind NATs whose mapping depends on the
      destination [relay-srflx] (for 4m, made in 812 ms)
  vm4   failing      -                            -     0B     0B          -          -
    its key has changed (for 0s)
  vm5   idle         -                            -     0B     0B          -          -
  vm6   negotiating  -                            -     0B     0B          -          -
    started by vm6 (for 0s)
";
    assert_eq!(links(&example(), false), expected);
    assert!(links(&example(), true).contains("203.0.113.9:3478 (relay channel 0x4001)"));
    assert!(links(&example(), true).contains("both can be reached [host-srflx]"));
}

#[test]
fn changed_keys_are_shown_with_the_pinned_one() {
    let text = pins(&example());
    assert!(text.contains("vm2   pinned   QBpiOyQ9JInxcokMrRHh63e4eyaTaZHBk+/doGsf6FQ=  vm2@example.org/"), "{text}");
    assert!(text.contains("vm4   CHANGED"), "{text}");
    assert!(text.contains("\n    refused: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"), "{text}");
}

#[test]
fn a_node_that_has_nothing_yet_is_shown() {
    let s = Status { name: "n".to_owned(), version: "0".to_owned(), ..Status::default() };
    assert_eq!(
        status(&s),
        "node n (ipop-fast 0, pid 0), up for 0s\n  WARNING  XMPP is offline: running links stay, new ones cannot be \
         made\n  xmpp        OFFLINE for 0s\n  stun, turn  none: only direct paths to known addresses can be found\nno network\n"
    );
    assert_eq!(peers(&s, false), "n: no network\n");
    let lonely = Status { networks: vec![NetworkStatus::default()], ..s };
    assert!(links(&lonely, false).ends_with("nobody else has been seen yet\n"));
    assert!(status(&lonely).contains("  links       0 direct, 0 relayed, 0 failing\n"));
}

#[test]
fn friends_take_one_line_each_and_say_what_to_do() {
    let friend = |jid: &str, state: &str| FriendStatus {
        jid: jid.to_owned(),
        state: state.to_owned(),
        networks: vec!["social:social".to_owned()],
        ..FriendStatus::default()
    };
    let node = |name: &str, a: Option<&str>| crate::admin::status::FriendNode {
        name: name.to_owned(),
        network: "social:social".to_owned(),
        address: a.map(str::to_owned),
        online: true,
    };
    let bob = FriendStatus {
        online: true,
        nodes: vec![node("laptop", Some("172.31.4.7")), node("pi", None)],
        ..friend("bob@example.org", "friend")
    };
    let failed =
        FriendStatus { problem: Some("remote-server-not-found".to_owned()), ..friend("dave@nowhere.example", "asked") };
    let eve = FriendStatus { blocked: true, networks: Vec::new(), ..friend("eve@example.org", "friend") };
    let out = FriendStatus { networks: Vec::new(), ..friend("fay@example.org", "friend") };
    let all = [friend("carol@example.org", "request"), bob, failed, eve, out, friend("gus@example.org", "one-sided")];
    let expected = "\
JID                   STATE      XMPP     NODES
carol@example.org     request    -        -
    asks to be a friend: ipop-fast friends accept carol@example.org, or friends remove
      carol@example.org
bob@example.org       friend     online   laptop 172.31.4.7, pi
dave@nowhere.example  asked      -        -
    the request did not arrive: remote-server-not-found
eve@example.org       BLOCKED    offline  -
fay@example.org       friend     offline  -
    is not let in by allow
gus@example.org       one-sided  -        -
    only one of you sees the other: ipop-fast friends add gus@example.org
";
    assert_eq!(friends(&all), expected);
    assert!(friends(&[]).contains("friends add"));
}

#[test]
fn requests_and_the_subnet_of_friends_are_in_the_summary() {
    let mut s = example();
    s.requests = (0..10).map(|n| format!("r{n}@x\x1b")).collect();
    s.networks[0].kind = "social".to_owned();
    s.networks[0].subnet = Some("172.31.0.0/16".to_owned());
    let text = status(&s);
    assert!(
        text.contains("  request     r0@x\\u{1b} asks to be a friend. To accept: ipop-fast friends accept r0"),
        "{text}"
    );
    assert!(text.contains("  request     and 2 more: ipop-fast friends list\n"), "{text}");
    assert!(text.contains("  friends in  172.31.0.0/16\n"), "{text}");
    s.networks[0].peers[0].calls_itself = Some("172.31.0.100".to_owned());
    assert!(peers(&s, true).contains("(there 172.31.0.100)"));
}

proptest! {
    #[test]
    fn what_others_say_cannot_leave_its_place(name in any::<String>(), why in any::<String>(), rate in any::<f64>()) {
        let mut l = link("up", Some("relayed"), &why);
        (l.tx_bps, l.rx_bps, l.rtt_ms) = (rate, -rate, Some(rate));
        l.address = Some(name.clone());
        let mut s = example();
        s.networks[0].peers[0] = peer(&name, &why, true, l);
        s.networks[0].warnings.push(why.clone());
        for text in [status(&s), peers(&s, false), links(&s, false), links(&s, true), pins(&s)] {
            prop_assert!(text.bytes().all(|b| b == b'\n' || (b' '..=b'~').contains(&b)));
        }
        let rows = |text: &str| text.lines().filter(|l| l.starts_with("  ") && !l.starts_with("    ")).count();
        prop_assert_eq!(rows(&links(&s, false)), 6, "a title and five links");
        for line in peers(&s, false).lines().chain(links(&s, false).lines().filter(|l| !l.starts_with("    "))) {
            prop_assert!(line.len() <= text::WIDTH, "{} {}", line.len(), line);
        }
    }
}
