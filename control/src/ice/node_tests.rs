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
