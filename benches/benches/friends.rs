//! Leases of friends' nodes: a lookup costs the same however many there are, and a whole plan little.

use control::identity::{Descriptor, NetworkDescriptor};
use control::network::social::{Book, Inputs, Terms, plan};
use control::network::{Node, Pins, Roll};
use criterion::Criterion;
use dataplane::table::Prefix;
use dataplane::tunnel::PublicKey;
use std::collections::HashSet;
use std::hint::black_box;
use std::net::Ipv4Addr;

const NETWORK: &str = "social:social";
const OWN: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 100);

fn main() {
    let mut c = ipop_benches::criterion();
    lookup(&mut c);
    plans(&mut c);
    c.final_summary();
}

fn terms() -> Terms<'static> {
    let subnet: Prefix = "172.31.0.0/16".parse().expect("a constant");
    Terms { subnet, own: Some(OWN), fixed: &[] }
}

fn jids(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("friend{i}@example.org/ipop-{i:016x}")).collect()
}

fn book(jids: &[String]) -> Book {
    let nodes: Vec<(&str, &str)> = jids.iter().map(|j| (j.as_str(), "laptop")).collect();
    let mut book = Book::default();
    book.settle(&terms(), &nodes, 1);
    book
}

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("lease");
    for n in [10, 100, 2_000, 16_000] {
        let jids = jids(n);
        let book = book(&jids);
        let addresses: Vec<Ipv4Addr> = jids.iter().filter_map(|j| book.get(j)).collect();
        assert_eq!(addresses.len(), n);
        let mut i = 0;
        group.bench_function(format!("of a node among {n}"), |b| {
            b.iter(|| {
                i = (i + 7) % n;
                book.get(black_box(&jids[i]))
            });
        });
        group.bench_function(format!("whose address among {n}"), |b| {
            b.iter(|| {
                i = (i + 7) % n;
                book.whose(black_box(addresses[i])).map(str::len)
            });
        });
    }
    group.finish();
}

fn plans(c: &mut Criterion) {
    let mut group = c.benchmark_group("friends");
    for n in [100_u16, 2_000] {
        let jids = jids(n.into());
        let said: Vec<Descriptor> = (0..n).map(descriptor).collect();
        let nodes: Vec<Node<'_>> = jids.iter().zip(&said).map(|(jid, descriptor)| Node { jid, descriptor }).collect();
        let members: HashSet<String> = jids.iter().filter_map(|j| j.split('/').next()).map(str::to_owned).collect();
        let pins = Pins::default();
        let roll = Roll {
            network: NETWORK,
            public_key: PublicKey([0; 32]),
            aes: true,
            members: &members,
            nodes: &nodes,
            pins: &pins,
        };
        let inputs = Inputs { roll, terms: terms(), multicast: false };
        let mut settled = Book::default();
        assert_eq!(plan(&inputs, &mut settled, 1).plan.peers.len(), usize::from(n));
        group.bench_function(format!("plan of {n}"), |b| b.iter(|| plan(&inputs, &mut settled, 1)));
        group.bench_function(format!("first leases of {n}"), |b| b.iter(|| book(&jids)));
    }
    group.finish();
}

fn descriptor(n: u16) -> Descriptor {
    let mut key = [1; 32];
    key[..2].copy_from_slice(&n.to_be_bytes());
    let network = NetworkDescriptor {
        network: NETWORK.to_owned(),
        public_key: PublicKey(key),
        addresses: vec!["172.31.0.100/32".parse().expect("a constant")],
        routes: Vec::new(),
        subnet: None,
        since: 1,
    };
    Descriptor { name: "laptop".to_owned(), version: String::new(), capabilities: Vec::new(), networks: vec![network] }
}
