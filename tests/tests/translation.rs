//! Two nodes that both call themselves 172.31.0.100, on real devices: what kernels make of translated packets.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dataplane::tunnel::PrivateKey;
use dataplane::{Config, Engine, Path, PeerUpdate, Translation, Tun, Update};
use ipop_tests::ns::{Namespace, unique_interface};
use ipop_tests::pair::joined;
use ipop_tests::process::{output, wait_for};
use ipop_tests::require::Need;
use ipop_tests::scene::{Share, play};
use ipop_tests::traffic::Noise;

/// What both call themselves.
const OWN: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 100);
/// What each calls the other: the second node, and the first.
const LEASES: [Ipv4Addr; 2] = [Ipv4Addr::new(172, 31, 7, 2), Ipv4Addr::new(172, 31, 123, 231)];
const BROADCAST: Ipv4Addr = Ipv4Addr::new(172, 31, 255, 255);
const PORT: u16 = 51820;
/// Longest wait for one packet, as other tests hold both cores at times.
const LIMIT: Duration = Duration::from_secs(10);

struct Node {
    engine: Engine,
    ns: Namespace,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.engine.shutdown();
    }
}

/// The node in `ns`, the first (0) or the second (1).
fn node(ns: Namespace, n: usize) -> Result<Node> {
    let key = |n: usize| PrivateKey::new([n as u8 + 1; 32]);
    let (dev, other) = (unique_interface(), 1 - n);
    let engine = ns.run(|| {
        let engine = Engine::start(Tun::create(&dev, 1, true)?, Config::default())?;
        let translation =
            Translation { peer: OWN, lease: LEASES[n], own: OWN, broadcast: Some((BROADCAST, BROADCAST)) };
        let peer = PeerUpdate {
            path: Some(Path::Direct(SocketAddr::from(([10, 99, 0, other as u8 + 1], PORT)))),
            translation: Some(Some(translation)),
            allowed_ips: vec![(format!("{}/32", LEASES[n]).parse().map_err(anyhow::Error::msg)?, true)],
            ..PeerUpdate::new(key(other).public())
        };
        engine.configure(Update {
            private_key: Some(Some(key(n))),
            listen_port: Some(PORT),
            multicast: Some(Some(BROADCAST)),
            peers: vec![peer],
            ..Update::default()
        })?;
        Ok(engine)
    })?;
    let node = Node { engine, ns };
    node.ns.ip(&format!("addr add {OWN}/16 brd {BROADCAST} dev {dev}"))?;
    node.ns.ip(&format!("link set {dev} up"))?;
    node.ns.ip(&format!("route add 224.0.0.0/4 dev {dev}"))?;
    Ok(node)
}

fn friends(body: impl FnOnce([&Node; 2]) -> Result<()>) {
    let needs = [Need::Root, Need::Tun, Need::Program("ip"), Need::Program("ping")];
    play(Share::Shared, &needs, || {
        let (a, b) = joined()?;
        let (a, b) = (node(a, 0)?, node(b, 1)?);
        wait_for("an answer", LIMIT, || Ok(pings(&a, LEASES[0], &[])))?;
        body([&a, &b])?;
        for n in [&a, &b] {
            let stats = n.engine.stats();
            ensure!(stats.get("spoofed") + stats.get("untranslatable") == 0, "{:?}", stats.drops);
        }
        Ok(())
    });
}

fn pings(from: &Node, to: Ipv4Addr, options: &[&str]) -> bool {
    let mut ping = from.ns.command("ping");
    ping.args(["-n", "-q", "-c1", "-W1"]).args(options).arg(to.to_string());
    output(&mut ping).is_ok_and(|o| o.status.success())
}

fn udp(at: &Node, address: Ipv4Addr, port: u16) -> Result<UdpSocket> {
    let socket = at.ns.run(|| Ok(UdpSocket::bind((address, port))?))?;
    socket.set_read_timeout(Some(LIMIT))?;
    Ok(socket)
}

#[test]
fn pings_and_whole_streams_reach_the_friend_and_come_back_under_its_address() {
    friends(|nodes| {
        for n in 0..2 {
            let (from, to) = (nodes[n], nodes[1 - n]);
            for options in [&["-t1"][..], &["-Mdo", "-s1392"], &["-Mdont", "-s5000"]] {
                ensure!(pings(from, LEASES[n], options), "ping {options:?} from node {n}");
            }
            let listener = to.ns.run(|| Ok(TcpListener::bind((OWN, 0))?))?;
            let target = SocketAddr::from((LEASES[n], listener.local_addr()?.port()));
            let mut sender = from.ns.run(|| Ok(TcpStream::connect_timeout(&target, LIMIT)?))?;
            let (mut receiver, seen) = listener.accept()?;
            ensure!(seen.ip() == LEASES[1 - n], "it comes from {seen}");
            receiver.set_read_timeout(Some(LIMIT))?;
            let mut sent = vec![0; 32 << 20];
            Noise::new(n as u64 + 1).fill(&mut sent);
            let got = std::thread::scope(|s| -> Result<Vec<u8>> {
                let sending = s.spawn(|| sender.write_all(&sent));
                let mut got = vec![0; sent.len()];
                receiver.read_exact(&mut got)?;
                sending.join().expect("no panic")?;
                Ok(got)
            })?;
            ensure!(got == sent, "other bytes arrived");
        }
        let writes = nodes[1].engine.stats();
        let (packets, writes) = (writes.get("tun_packets_out"), writes.get("tun_writes"));
        ensure!(writes * 2 < packets, "{packets} packets in {writes} writes: put together all the same");
        Ok(())
    });
}

#[test]
fn a_dead_port_is_told_to_the_socket_that_asked() {
    friends(|[a, _]| {
        let socket = udp(a, OWN, 0)?;
        // The kernel finds the socket by the addresses and ports that the ICMP error quotes.
        socket.connect((LEASES[0], 9))?;
        socket.send(b"anybody there?")?;
        let said = socket.recv(&mut [0; 100]).err().context("an answer from a dead port")?;
        ensure!(said.kind() == ErrorKind::ConnectionRefused, "{said}");
        Ok(())
    });
}

/// An mDNS answer that tells `host`.
fn answer(host: Ipv4Addr) -> Vec<u8> {
    let fixed: &[u8] = b"\0\0\x84\0\0\0\0\x01\0\0\0\0\x06laptop\x05local\0\0\x01\x80\x01\0\0\0\x78\0\x04";
    [fixed, &host.octets()].concat()
}

fn notify(host: Ipv4Addr) -> Vec<u8> {
    format!("NOTIFY * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nLocation: http://{host}:49152/d.xml\r\n\r\n")
        .into_bytes()
}

#[test]
fn groups_and_broadcasts_are_heard_and_discovery_tells_the_address_that_works() {
    friends(|[a, b]| {
        let (mdns, ssdp) = (Ipv4Addr::new(224, 0, 0, 251), Ipv4Addr::new(239, 255, 255, 250));
        type Text = fn(Ipv4Addr) -> Vec<u8>;
        let cases: [(u16, Ipv4Addr, Text); 5] = [
            (5353, mdns, answer),
            (1900, ssdp, notify),
            (1900, LEASES[0], notify),
            (7777, BROADCAST, |_| b"everybody in the subnet".to_vec()),
            (7778, Ipv4Addr::BROADCAST, |_| b"everybody".to_vec()),
        ];
        for (port, to, text) in cases {
            let (sender, receiver) = (udp(a, OWN, port)?, udp(b, Ipv4Addr::UNSPECIFIED, port)?);
            if to.is_multicast() {
                receiver.join_multicast_v4(&to, &OWN)?;
            }
            sender.set_broadcast(true)?;
            let mut got = [0; 2000];
            sender.send_to(&text(OWN), (to, port))?;
            let (len, from) = receiver.recv_from(&mut got).with_context(|| format!("waiting for {to}"))?;
            ensure!(from == SocketAddr::from((LEASES[1], port)), "{to}: it comes from {from}");
            let expected = text(LEASES[1]);
            ensure!(got[..len] == expected, "{to}: {}", String::from_utf8_lossy(&got[..len]));
        }
        Ok(())
    });
}
