use super::*;
use crate::uapi::write_state;
use dataplane::{PeerState, State, WallTime};
use proptest::collection::vec;
use proptest::prelude::*;
use std::net::IpAddr;
use std::time::Duration;

const KEY: &str = "abababababababababababababababababababababababababababababababab";

fn set(body: &str) -> Result<Update, Error> {
    let mut all = parse(format!("set=1\n{body}\n").as_bytes()).expect("framing");
    match all.pop() {
        Some(Request::Set(result)) if all.is_empty() => result,
        other => panic!("not one set request: {other:?}"),
    }
}

fn errno_of(body: &str) -> i32 {
    set(body).expect_err(body).errno
}

#[test]
fn every_key_arrives() {
    let u = set(&format!(
        "private_key={KEY}\nlisten_port=51820\nfwmark=16\nreplace_peers=true\npublic_key={KEY}\nupdate_only=true\n\
         preshared_key={KEY}\nendpoint=[fe80::1%7]:9\npersistent_keepalive_interval=25\nreplace_allowed_ips=true\n\
         allowed_ip=10.0.0.1/8\nallowed_ip=-fd00::/64\nprotocol_version=1\npublic_key={}\nremove=true\n",
        "0".repeat(64)
    ))
    .expect("valid");
    assert_eq!(u.private_key.flatten().expect("key").bytes()[1], 0xab);
    assert_eq!((u.listen_port, u.fwmark, u.replace_peers, u.peers.len()), (Some(51820), Some(16), true, 2));
    let p = &u.peers[0];
    assert!(p.update_only && p.replace_allowed_ips && !p.remove && u.peers[1].remove);
    assert_eq!(p.preshared_key, Some(PresharedKey([0xab; 32])));
    assert_eq!(p.path, Some(Path::Direct("[fe80::1%7]:9".parse().expect("address"))));
    assert_eq!(p.persistent_keepalive, Some(25));
    let prefix = |s: &str| s.parse::<Prefix>().expect("prefix");
    assert_eq!(p.allowed_ips, [(prefix("10.0.0.0/8"), true), (prefix("fd00::/64"), false)]);
}

#[test]
fn an_all_zero_private_key_removes_it_and_an_empty_set_changes_nothing() {
    let u = set(&format!("private_key={}\n", "0".repeat(64))).expect("valid");
    assert!(matches!(u.private_key, Some(None)));
    let u = set("").expect("valid");
    assert!(u.private_key.is_none() && u.listen_port.is_none() && u.peers.is_empty());
}

#[test]
fn bad_values_are_refused_with_the_errno_of_wireguard_go() {
    for body in [
        "listen_port=70000\n",
        "listen_port=+1\n",
        "listen_port=\n",
        "fwmark=0x10\n",
        "fwmark=4294967296\n",
        "replace_peers=false\n",
        "private_key=00\n",
        "foo=1\n",
        "remove=true\n",
        "endpoint=1.2.3.4:5\n",
    ] {
        assert_eq!(errno_of(body), errno::EINVAL, "{body}");
    }
    for line in [
        "remove=1",
        "update_only=yes",
        "replace_allowed_ips=",
        "preshared_key=zz",
        "endpoint=host:1",
        "endpoint=1.2.3.4",
        "endpoint=1.2.3.4:65536",
        "endpoint=::1:5",
        "endpoint=[::1]5",
        "endpoint=[fe80::1%nosuch]:5",
        "endpoint=[fe80::1%]:5",
        "persistent_keepalive_interval=off",
        "persistent_keepalive_interval=65536",
        "allowed_ip=10.0.0.2",
        "allowed_ip=10.0.0.0/33",
        "allowed_ip=10.0.0.0/+8",
        "allowed_ip=--10.0.0.0/8",
        "protocol_version=2",
        "listen_port=1",
        "private_key=abababababababababababababababababababababababababababababababab",
    ] {
        assert_eq!(errno_of(&format!("public_key={KEY}\n{line}\n")), errno::EINVAL, "{line}");
    }
    let long = format!("allowed_ip={}\n", "1".repeat(MAX_LINE));
    for body in ["nonsense\n", "\u{0}\n", long.as_str()] {
        assert_eq!(errno_of(body), errno::EPROTO, "{body}");
    }
}

#[test]
fn an_error_text_never_holds_a_key() {
    let e = set(&format!("private_key={KEY}0\n")).expect_err("too long");
    assert!(!e.to_string().contains("abab"), "{e}");
    let e = set(&format!("{KEY}\n")).expect_err("no key=value");
    assert!(!e.to_string().contains("abab"), "{e}");
}

#[test]
fn a_refused_request_is_skipped_to_its_end_and_the_next_one_counts() {
    let all =
        parse(b"set=1\nbad\nlisten_port=1\n\nget=1\n\nset=1\nlisten_port=2\n\nstats=1\n\nget=1\nx\n\n").expect("ok");
    assert!(matches!(
        all.as_slice(),
        [
            Request::Set(Err(_)),
            Request::Get(Ok(())),
            Request::Set(Ok(Update { listen_port: Some(2), .. })),
            Request::Stats,
            Request::Get(Err(_))
        ]
    ));
    for bad in ["junk\n", "\n", "get=2\n", "set=1 \n"] {
        assert_eq!(parse(bad.as_bytes()).expect_err(bad), Fatal::UnknownOperation);
    }
}

#[test]
fn a_request_over_the_limit_ends_the_connection() {
    let mut d = Decoder::new(|_| None);
    d.advance(&mut b"set=1\n".as_slice()).expect("start");
    let block = vec![b'x'; 1 << 20];
    let end = (0..=MAX_REQUEST >> 20).find_map(|_| d.advance(&mut block.as_slice()).err());
    assert_eq!(end, Some(Fatal::TooLong));
    assert!(d.line.capacity() <= MAX_LINE);
}

#[test]
fn ten_thousands_of_peers_fit_one_request() {
    let mut body = String::new();
    for i in 0..30_000u32 {
        body +=
            &format!("public_key={i:064x}\nreplace_allowed_ips=true\nallowed_ip={}/32\n", std::net::Ipv4Addr::from(i));
    }
    assert_eq!(set(&body).expect("valid").peers.len(), 30_000);
}

fn prefixes() -> impl Strategy<Value = Prefix> {
    (any::<IpAddr>(), 0u8..=128)
        .prop_map(|(a, len)| Prefix::new(a, if a.is_ipv4() { len % 33 } else { len }).expect("in range"))
}

fn paths() -> impl Strategy<Value = Path> {
    let v4 = any::<std::net::SocketAddrV4>().prop_map(SocketAddr::V4);
    let v6 = (any::<Ipv6Addr>(), any::<u16>(), prop_oneof![Just(0), 1u32..100])
        .prop_map(|(a, port, zone)| SocketAddrV6::new(a, port, 0, zone).into());
    prop_oneof![v4, v6].prop_map(|a: SocketAddr| Path::from(a))
}

fn peers() -> impl Strategy<Value = PeerState> {
    let identity = (any::<[u8; 32]>(), any::<[u8; 32]>(), proptest::option::of(paths()));
    let rest = (any::<u64>(), any::<u64>(), any::<u16>(), any::<u32>(), vec(prefixes(), 0..6));
    (identity, rest).prop_map(|((key, psk, path), (tx_bytes, rx_bytes, persistent_keepalive, at, allowed_ips))| {
        PeerState {
            public_key: PublicKey(key),
            preshared_key: PresharedKey(psk),
            path,
            cipher: None,
            last_handshake: (at != 0).then(|| WallTime(Duration::new(at.into(), 5))),
            last_sent: None,
            last_received: None,
            tx_bytes,
            rx_bytes,
            persistent_keepalive,
            allowed_ips,
        }
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..2000)) {
        let _ = parse(&bytes);
        let _ = parse(&[b"set=1\n", bytes.as_slice()].concat());
    }

    #[test]
    fn lines_of_known_keys_never_panic(lines in vec((0usize..12, "[-+0-9a-f:./%\\[\\]]{0,70}"), 0..30)) {
        const KEYS: [&str; 12] = ["private_key", "listen_port", "fwmark", "replace_peers", "public_key", "remove",
            "update_only", "preshared_key", "endpoint", "persistent_keepalive_interval", "allowed_ip", ""];
        let body: String = lines.iter().map(|(k, v)| format!("{}={v}\n", KEYS[*k])).collect();
        let _ = set(&body);
    }

    #[test]
    fn the_way_the_bytes_are_cut_does_not_matter(cut in 1usize..40) {
        let text = format!("set=1\nlisten_port=7\npublic_key={KEY}\nallowed_ip=::/0\n\nget=1\n\n");
        let mut d = Decoder::new(|_| None);
        let mut got = Vec::new();
        for mut piece in text.as_bytes().chunks(cut) {
            while let Some(r) = d.advance(&mut piece).expect("valid") {
                got.push(r);
            }
        }
        prop_assert!(d.is_idle());
        prop_assert_eq!(format!("{got:?}"), format!("{:?}", parse(text.as_bytes()).expect("valid")));
    }

    #[test]
    fn a_written_state_is_read_back_the_same(
        private in proptest::option::of(any::<[u8; 32]>()),
        listen_port in any::<u16>(), fwmark in any::<u32>(), peers in vec(peers(), 0..5),
    ) {
        let state = State { private_key: private.map(PrivateKey::new), listen_port, fwmark, peers };
        let text = write_state(&state);
        // What is only ever reported cannot be set: checked by value below, and left out here.
        let reported = ["last_handshake", "tx_bytes", "rx_bytes"];
        let settable: String =
            text.lines().filter(|l| !reported.iter().any(|r| l.starts_with(r))).flat_map(|l| [l, "\n"]).collect();
        let back = set(&settable).expect("own output");
        prop_assert_eq!(
            back.private_key.flatten().map(|k| *k.bytes()), state.private_key.as_ref().map(|k| *k.bytes()));
        prop_assert_eq!((back.listen_port.unwrap_or(0), back.fwmark.unwrap_or(0)), (listen_port, fwmark));
        prop_assert_eq!(back.peers.len(), state.peers.len());
        for (b, p) in back.peers.iter().zip(&state.peers) {
            prop_assert_eq!(b.public_key, p.public_key);
            prop_assert_eq!(b.preshared_key.as_ref(), Some(&p.preshared_key));
            prop_assert_eq!(b.path, p.path);
            prop_assert_eq!(b.persistent_keepalive, Some(p.persistent_keepalive));
            prop_assert_eq!(b.allowed_ips.iter().map(|a| a.0).collect::<Vec<_>>(), p.allowed_ips.clone());
            prop_assert!(b.allowed_ips.iter().all(|a| a.1));
        }
        for p in &state.peers {
            let seconds = p.last_handshake.map_or(0, |t| t.0.as_secs());
            for line in [
                format!("tx_bytes={}", p.tx_bytes),
                format!("rx_bytes={}", p.rx_bytes),
                format!("last_handshake_time_sec={seconds}"),
            ] {
                prop_assert!(text.lines().any(|l| l == line), "{}", line);
            }
        }
    }
}
