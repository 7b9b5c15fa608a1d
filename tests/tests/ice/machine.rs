//! A machine with the ICE side of a node and a port that stands in for the data plane's.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use control::ice::{
    Agent, AgentEvent, Candidate, Credentials, Failed, Found, IceNode, IceOptions, Port, Role, TurnServer, start,
};
use dataplane::{Path, SideDatagram};
use ipop_tests::ns::Namespace;
use ipop_tests::traffic::socket;

/// How long one signalling message takes between the machines: a round trip to an XMPP server.
const SIGNALLING: Duration = Duration::from_millis(20);
const DATA_LIMIT: Duration = Duration::from_secs(2);

/// The port: what begins like a tunnel message is data, the rest is for ICE.
struct TestPort {
    socket: UdpSocket,
    relays: Mutex<Vec<SocketAddr>>,
}

impl Port for TestPort {
    fn send(&self, path: Path, bytes: &[u8]) -> io::Result<()> {
        let sent = match path {
            Path::Direct(a) => self.socket.send_to(bytes, a),
            Path::Relay { server, channel } => {
                let head = [channel.to_be_bytes(), (bytes.len() as u16).to_be_bytes()].concat();
                self.socket.send_to(&[&head, bytes].concat(), server)
            }
        };
        sent.map(drop)
    }

    fn local_port(&self) -> u16 {
        self.socket.local_addr().map_or(0, |a| a.port())
    }

    fn set_relays(&self, servers: Vec<SocketAddr>) {
        *self.relays.lock().unwrap_or_else(PoisonError::into_inner) = servers;
    }
}

pub(crate) struct Machine {
    pub(crate) node: IceNode,
    port: Arc<TestPort>,
    data: Receiver<Vec<u8>>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Machine {
    /// Must be called inside of a tokio runtime.
    pub(crate) fn start(ns: &Namespace, address: IpAddr, server: Option<TurnServer>) -> Result<Self> {
        let any = if address.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        let socket = socket(ns, SocketAddr::new(any, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let port = Arc::new(TestPort { socket, relays: Mutex::default() });
        let node = start(port.clone(), IceOptions::default());
        let (data_in, data) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let (p, n, s) = (port.clone(), node.clone(), stop.clone());
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !s.load(Ordering::Relaxed) {
                let Ok((len, from)) = p.socket.recv_from(&mut buffer) else { continue };
                let bytes = &buffer[..len];
                let relayed = p.relays.lock().unwrap_or_else(PoisonError::into_inner).contains(&from);
                let inner = if relayed && (0x40..=0x4f).contains(&bytes[0]) { &bytes[4..] } else { bytes };
                if inner.starts_with(&[4, 0, 0, 0]) {
                    let _ = data_in.send(inner.to_vec());
                } else {
                    n.receive(&SideDatagram { from, bytes: bytes.to_vec() });
                }
            }
        });
        node.set_host_addresses(vec![address]);
        if let Some(server) = server {
            node.set_servers(vec![server.address], vec![server]);
        }
        Ok(Self { node, port, data, stop, reader: Some(reader) })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port.local_port()
    }

    pub(crate) fn channels(&self) -> usize {
        self.node.servers().iter().map(|s| s.channels).sum()
    }

    fn send(&self, path: Path, text: &str) -> Result<()> {
        Ok(self.port.send(path, &[&[4, 0, 0, 0], text.as_bytes()].concat())?)
    }

    fn wait_data(&self, text: &str) -> Result<()> {
        loop {
            match self.data.recv_timeout(DATA_LIMIT) {
                Ok(bytes) if &bytes[4..] == text.as_bytes() => return Ok(()),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => bail!("\"{text}\" did not arrive"),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.node.close();
        self.stop.store(true, Ordering::Relaxed);
        if let Some(r) = self.reader.take() {
            let _ = r.join();
        }
    }
}

type Inbox = tokio::sync::mpsc::UnboundedReceiver<Message>;
type Outbox = tokio::sync::mpsc::UnboundedSender<Message>;
type Side = (Agent, Result<Found, Failed>);

enum Message {
    Credentials(Credentials),
    Candidates(Vec<Candidate>),
}

/// Tells the other side everything as it comes, and hears it, until there is a path.
async fn side(mut me: Agent, out: Outbox, mut inbox: Inbox) -> Side {
    let _ = out.send(Message::Credentials(me.credentials()));
    let mut hearing = true;
    loop {
        tokio::select! {
            e = me.next() => match e {
                AgentEvent::Candidates(c) => drop(out.send(Message::Candidates(c))),
                AgentEvent::NoMoreCandidates => drop(out.send(Message::Candidates(vec![]))),
                AgentEvent::Path(r) => return (me, r),
            },
            m = inbox.recv(), if hearing => match m {
                Some(Message::Credentials(c)) => {
                    tokio::time::sleep(SIGNALLING).await;
                    me.remote(&c);
                }
                Some(Message::Candidates(c)) => me.add_remote(&c),
                None => hearing = false,
            },
        }
    }
}

/// Negotiates between two machines; the first is controlling.
pub(crate) async fn negotiate(a: &Machine, b: &Machine) -> (Side, Side) {
    let (to_b, in_b) = tokio::sync::mpsc::unbounded_channel();
    let (to_a, in_a) = tokio::sync::mpsc::unbounded_channel();
    let (x, y) = (a.node.negotiate(Role::Controlling), b.node.negotiate(Role::Controlled));
    tokio::join!(side(x, to_b, in_a), side(y, to_a, in_b))
}

/// Data gets through both ways over what was found, and probes are answered.
pub(crate) async fn works(a: &Machine, b: &Machine, found: [&Found; 2], agents: [&Agent; 2]) -> Result<()> {
    a.send(found[0].path, "there")?;
    b.wait_data("there").with_context(|| format!("over {:?} / {:?}", found[0], found[1]))?;
    b.send(found[1].path, "back")?;
    a.wait_data("back").with_context(|| format!("over {:?} / {:?}", found[1], found[0]))?;
    let [x, y] = agents.map(Agent::credentials);
    a.node.answer_probes(&x);
    b.node.answer_probes(&y);
    let rtt = a.node.probe(found[0].path, &x, &y).await?;
    ensure!(rtt < Duration::from_secs(1), "{rtt:?}");
    b.node.probe(found[1].path, &y, &x).await?;
    for (machine, found) in [(a, found[0]), (b, found[1])] {
        let want = usize::from(matches!(found.path, Path::Relay { .. }));
        ensure!(machine.channels() >= want, "{} channels in use for {found:?}", machine.channels());
    }
    Ok(())
}
