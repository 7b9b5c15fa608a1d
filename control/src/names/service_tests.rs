use super::resolved::{self, Place};
use super::service::{Interface, MAX_CONNECTIONS, Service, State, View};
use super::table::{Standing, Table};
use super::table_tests::entry;
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, UdpSocket as StdSocket};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Everything here takes milliseconds.
const LIMIT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(20);

fn view(address: &str) -> View {
    let vm2 = entry("vm2", "vm2@x", "group:g", Standing::Known(0), &[address]);
    View { table: Arc::new(Table::new(vec![vm2], &[], 1)), own: HashSet::new() }
}

fn nowhere() -> Place {
    Place { directory: "/nonexistent".into(), search: None }
}

/// A port that nobody has on `address`. UDP and TCP are numbered apart; in this range both are mostly free.
fn free_port(address: &str) -> u16 {
    let at = |port| SocketAddr::new(address.parse().expect("address"), port);
    loop {
        let udp = StdSocket::bind(at(0)).expect("a port");
        let port = udp.local_addr().expect("its address").port();
        if std::net::TcpListener::bind(at(port)).is_ok() {
            return port;
        }
    }
}

fn interface(address: &str) -> Interface {
    Interface { name: "ipop0".to_owned(), addresses: vec![address.parse().expect("address")], zones: Vec::new() }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = timeout(LIMIT, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited for {what}");
}

fn answering(s: &Service, address: &str) -> bool {
    s.states().get(&address.parse::<IpAddr>().expect("address")) == Some(&State::Answering)
}

fn query() -> Vec<u8> {
    let mut m = Message::query();
    m.add_query(Query::query(Name::from_ascii("vm2.g.ipop.").expect("name"), RecordType::A));
    m.to_vec().expect("encodes")
}

fn addresses(reply: &[u8]) -> Vec<String> {
    Message::from_vec(reply).expect("decodes").answers.iter().map(|r| r.data.to_string()).collect()
}

async fn by_udp(at: SocketAddr) -> Vec<String> {
    let socket = UdpSocket::bind((at.ip(), 0)).await.expect("socket");
    let mut buffer = [0; 1500];
    socket.send_to(&query(), at).await.expect("sent");
    let (n, from) = timeout(LIMIT, socket.recv_from(&mut buffer)).await.expect("in time").expect("received");
    assert_eq!(from, at, "it answers from where it was asked");
    addresses(&buffer[..n])
}

async fn by_tcp(stream: &mut TcpStream) -> Vec<String> {
    let query = query();
    let mut message = u16::try_from(query.len()).expect("short").to_be_bytes().to_vec();
    message.extend(query);
    stream.write_all(&message).await.expect("sent");
    let len = timeout(LIMIT, stream.read_u16()).await.expect("in time").expect("a length");
    let mut reply = vec![0; len.into()];
    timeout(LIMIT, stream.read_exact(&mut reply)).await.expect("in time").expect("an answer");
    addresses(&reply)
}

#[tokio::test]
async fn names_are_answered_over_udp_and_tcp_as_they_are_now() {
    for address in ["127.0.0.2", "::1"] {
        let port = free_port(address);
        let at = SocketAddr::new(address.parse().expect("address"), port);
        let mut service = Service::start_at(view("10.0.0.1"), port, RETRY, nowhere());
        service.set_interfaces(vec![interface(address)]);
        until("sockets", || answering(&service, address)).await;
        assert_eq!(by_udp(at).await, ["10.0.0.1"]);
        let mut stream = TcpStream::connect(at).await.expect("connected");
        assert_eq!(by_tcp(&mut stream).await, ["10.0.0.1"]);
        service.set_view(view("10.0.0.2"));
        assert_eq!(by_udp(at).await, ["10.0.0.2"]);
        assert_eq!(by_tcp(&mut stream).await, ["10.0.0.2"], "on the same connection");
        assert_eq!((service.resolved(), service.refused()), (resolved::State::Absent, 0));
    }
}

#[tokio::test]
async fn an_address_that_changes_takes_its_sockets_along() {
    let port = free_port("127.0.0.3");
    let mut service = Service::start_at(view("10.0.0.1"), port, RETRY, nowhere());
    service.set_interfaces(vec![interface("127.0.0.3")]);
    until("the first address", || answering(&service, "127.0.0.3")).await;
    service.set_interfaces(vec![interface("127.0.0.4")]);
    until("the second address", || answering(&service, "127.0.0.4")).await;
    assert_eq!(service.states().len(), 1);
    assert_eq!(by_udp(SocketAddr::new("127.0.0.4".parse().expect("address"), port)).await, ["10.0.0.1"]);
    until("the first address to be free", || StdSocket::bind(("127.0.0.3", port)).is_ok()).await;
    drop(service);
    until("the second address to be free", || StdSocket::bind(("127.0.0.4", port)).is_ok()).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_and_used_once_it_is_free() {
    let other = StdSocket::bind("127.0.0.5:0").expect("socket");
    let port = other.local_addr().expect("its address").port();
    let mut service = Service::start_at(view("10.0.0.1"), port, RETRY, nowhere());
    service.set_interfaces(vec![interface("127.0.0.5")]);
    let address: IpAddr = "127.0.0.5".parse().expect("address");
    until("the failure", || matches!(service.states().get(&address), Some(State::Failed(_)))).await;
    let Some(State::Failed(why)) = service.states().remove(&address) else { panic!("it failed") };
    assert!(why.contains("another process has that port") && why.contains("[names]"), "{why}");
    drop(other);
    until("the port", || answering(&service, "127.0.0.5")).await;
    assert_eq!(by_udp(SocketAddr::new(address, port)).await, ["10.0.0.1"]);
}

#[tokio::test]
async fn connections_that_say_nothing_do_not_keep_others_out_for_long() {
    let port = free_port("127.0.0.6");
    let at = SocketAddr::new("127.0.0.6".parse().expect("address"), port);
    let mut service = Service::start_at(view("10.0.0.1"), port, RETRY, nowhere());
    service.set_interfaces(vec![interface("127.0.0.6")]);
    until("sockets", || answering(&service, "127.0.0.6")).await;
    let mut silent = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        silent.push(TcpStream::connect(at).await.expect("connected"));
    }
    let mut last = TcpStream::connect(at).await.expect("the backlog has room");
    assert_eq!(by_tcp(&mut last).await, ["10.0.0.1"]);
    for mut s in silent {
        assert_eq!(timeout(LIMIT, s.read(&mut [0])).await.expect("in time").expect("closed in order"), 0);
    }
}

#[tokio::test]
async fn systemd_resolved_hears_of_what_answers_and_of_nothing_else() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("directory");
    let (program, log) = (dir.path().join("resolvectl"), dir.path().join("log"));
    std::fs::write(&program, format!("#!/bin/sh\necho \"$*\" >>{}\n", log.display())).expect("write");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("mode");
    let place = Place { directory: dir.path().to_owned(), search: Some(dir.path().into()) };
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let taken = StdSocket::bind("127.0.0.8:0").expect("socket");
    let port = taken.local_addr().expect("its address").port();
    let mut service = Service::start_at(view("10.0.0.1"), port, RETRY, place);
    let mut both = interface("127.0.0.7");
    both.addresses.push("127.0.0.8".parse().expect("address"));
    both.zones.push("0.0.127.in-addr.arpa".to_owned());
    service.set_interfaces(vec![both]);
    until("resolvectl", || said().contains("dns ipop0 127.0.0.7\n")).await;
    until("its end", || service.resolved() == resolved::State::Told).await;
    assert!(said().contains("domain ipop0 ~ipop ~0.0.127.in-addr.arpa\n"), "{}", said());
    assert!(!said().contains("127.0.0.8"), "{}", said());
    drop(taken);
    until("the other address", || said().contains("dns ipop0 127.0.0.7 127.0.0.8\n")).await;
    service.set_interfaces(Vec::new());
    until("the end", || said().ends_with("revert ipop0\n")).await;
}
