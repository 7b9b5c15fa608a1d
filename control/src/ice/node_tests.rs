//! Two nodes over real sockets on loopback, without servers.

use super::{Agent, AgentEvent, Candidate, Found, IceNode, IceOptions, Port, Role, start};
use dataplane::{Path, SideDatagram};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;

struct Loop(Arc<UdpSocket>);

impl Port for Loop {
    fn send(&self, path: Path, bytes: &[u8]) -> io::Result<()> {
        self.0.try_send_to(bytes, path.address()).map(drop)
    }
    fn local_port(&self) -> u16 {
        self.0.local_addr().map_or(0, |a| a.port())
    }
    fn set_relays(&self, _: Vec<SocketAddr>) {}
}

async fn node(address: &str) -> IceNode {
    let socket = Arc::new(UdpSocket::bind(address).await.expect("a port"));
    let ip = socket.local_addr().expect("bound").ip();
    let n = start(Arc::new(Loop(socket.clone())), IceOptions::default());
    n.set_host_addresses(vec![ip]);
    let receiver = n.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            receiver.receive(&SideDatagram { from, bytes: buffer[..len].to_vec() });
        }
    });
    n
}

async fn all(agent: &mut Agent) -> Vec<Vec<Candidate>> {
    let mut list = Vec::new();
    while let AgentEvent::Candidates(c) = agent.next().await {
        list.push(c);
    }
    list.push(Vec::new());
    list
}

async fn meet(mut x: Agent, mut y: Agent) -> (Found, Found) {
    x.remote(&y.credentials());
    y.remote(&x.credentials());
    for c in all(&mut x).await {
        y.add_remote(&c);
    }
    for c in all(&mut y).await {
        x.add_remote(&c);
    }
    let (a, b) = tokio::join!(x.path(), y.path());
    (a.expect("a path"), b.expect("a path"))
}

#[tokio::test]
async fn two_nodes_meet_over_either_family() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (a, b) = (node(address).await, node(address).await);
        let (x, y) = (a.negotiate(Role::Controlling), b.negotiate(Role::Controlled));
        let (cx, cy) = (x.credentials(), y.credentials());
        let (fa, fb) = meet(x, y).await;
        assert!(!fa.is_relayed() && !fb.is_relayed(), "{fa:?} {fb:?}");
        a.answer_probes(&cx);
        assert!(b.probe(fb.path, &cy, &cx).await.is_ok());
    }
}

#[tokio::test]
async fn eighty_negotiations_at_once_are_done_soon() {
    let (a, b) = (node("127.0.0.1:0").await, node("127.0.0.1:0").await);
    let start = Instant::now();
    let meetings: Vec<_> = (0..80)
        .map(|i| {
            let roles =
                if i % 2 == 0 { (Role::Controlling, Role::Controlled) } else { (Role::Controlled, Role::Controlling) };
            tokio::spawn(meet(a.negotiate(roles.0), b.negotiate(roles.1)))
        })
        .collect();
    for m in meetings {
        m.await.expect("no panic");
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn closing_the_node_ends_what_is_under_way() {
    let n = node("127.0.0.1:0").await;
    let mut agent = n.negotiate(Role::Controlling);
    let mut late = n.clone().negotiate(Role::Controlled);
    n.close();
    assert!(agent.path().await.is_err() && late.path().await.is_err());
    let refused = n.negotiate(Role::Controlling).path().await.expect_err("closed");
    assert!(refused.why.contains("no path"), "{refused}");
}

#[tokio::test]
#[ignore = "a measurement: what a probe costs"]
async fn what_a_probe_costs() {
    let (a, b) = (node("127.0.0.1:0").await, node("127.0.0.1:0").await);
    let (x, y) = (a.negotiate(Role::Controlling), b.negotiate(Role::Controlled));
    let (cx, cy) = (x.credentials(), y.credentials());
    let (_, fb) = meet(x, y).await;
    a.answer_probes(&cx);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let number = |file: &str, name: &str| -> u64 {
        let text = std::fs::read_to_string(file).expect("procfs");
        text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok()).expect("a number")
    };
    let cpu = || -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("procfs");
        text.split(' ').next().and_then(|n| n.parse().ok()).expect("a number")
    };
    let switches = || number("/proc/thread-self/status", "voluntary_ctxt_switches:");
    let before = (cpu(), switches());
    // One after the other, as links of an idle node do it: each a while after the last.
    const PROBES: u64 = 40;
    for _ in 0..PROBES {
        b.probe(fb.path, &cy, &cx).await.expect("an answer");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let (cpu, switches) = (cpu() - before.0, switches() - before.1);
    println!("a probe, both ends: {} us of CPU, {:.1} wake-ups", cpu / PROBES / 1000, switches as f64 / PROBES as f64);
}
