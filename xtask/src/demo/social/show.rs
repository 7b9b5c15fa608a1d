//! What the friends do with each other's machines, by name, and how it is told.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use control::admin::status::LinkStatus;
use ipop_tests::process::{output, run};
use serde_json::{Value, json};

use super::super::{Options, SECONDS, say};
use super::{PEOPLE, SUBNET, Scene};
use crate::measure::{median, tcp_to};
use crate::packages;
use crate::stop;

/// Two machines find each other within this, or something is broken.
const FIND: Duration = Duration::from_secs(20);
const PINGS: &str = "10";
pub(super) const HTTP: u16 = 8080;
/// A request is one line and some headers.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// One machine from the view of another.
struct View {
    from: usize,
    to: usize,
    /// What `from` calls it, and the address behind that name, which means something to `from` alone.
    name: String,
    address: IpAddr,
    /// Seconds to the first answered ping.
    first: f64,
    /// Milliseconds, median.
    ping: Option<f64>,
    /// The address by which the web server at `to` sees `from`.
    seen_as: IpAddr,
    gbps: f64,
    link: LinkStatus,
}

pub(super) fn show(scene: &Scene, options: &Options) -> Result<()> {
    let seconds = options.seconds.unwrap_or(SECONDS).clamp(1, 600);
    say(&format!("\neach pings, curls and iperf3s the others by name, {seconds} s of TCP each:"));
    let mut views = Vec::new();
    for (from, who) in PEOPLE.iter().enumerate() {
        for (to, whom) in PEOPLE.iter().enumerate().filter(|(to, _)| *to != from) {
            let view = view(scene, from, to, seconds);
            // Nothing is wrong with the link if somebody had enough.
            stop::check()?;
            let view = view.with_context(|| format!("{} to {}: {:?}", who.name, whom.name, scene.peer(from, to)))?;
            say(&format!(
                "  {:<6} -> {:<25} {:<15} {:5.2} s to the first answer, {:.2} Gbit/s",
                who.name,
                view.name,
                view.address.to_string(),
                view.first,
                view.gbps
            ));
            views.push(view);
        }
    }
    if options.json {
        println!("{}", as_json(scene, &views));
    } else {
        print(&views);
    }
    Ok(())
}

fn view(scene: &Scene, from: usize, to: usize, seconds: u32) -> Result<View> {
    let (ns, name) = (scene.ns(from), PEOPLE[to].dns_name());
    let first = reach(scene, from, &name)?;
    let mut ping = ns.command("ping");
    let text = run(ping.args(["-4", "-n", "-c", PINGS, "-i", "0.02", "-W", "1", &name]))?;
    let times: Vec<f64> =
        text.lines().filter_map(|l| l.split_once("time=")?.1.split(' ').next()?.parse().ok()).collect();
    // `PING laptop.bob.social.ipop (172.31.0.1) 56(84) bytes of data.`
    let address = text.split_once('(').and_then(|(_, rest)| rest.split_once(')')?.0.parse().ok());
    let address: IpAddr = address.with_context(|| format!("no address in {text:.100}"))?;
    let mut curl = ns.command("curl");
    let page = run(curl.args(["-4", "-sS", "--max-time", "10", &format!("http://{name}:{HTTP}/")]))?;
    let (machine, seen_as) = page.trim().split_once(' ').with_context(|| format!("the page says {page:?}"))?;
    ensure!(machine == PEOPLE[to].machine, "{name} is the machine {machine}");
    let own = IpAddr::V4(PEOPLE[to].address);
    let gbps = tcp_to(ns, (scene.ns(to), own), &name, seconds)?;
    let (link, _) = scene.peer(from, to)?;
    Ok(View { from, to, address, first, ping: median(&times), seen_as: seen_as.parse()?, gbps, link, name })
}

/// Seconds to the first answered packet; in slices, so that Ctrl-C is heard.
fn reach(scene: &Scene, from: usize, name: &str) -> Result<f64> {
    let start = Instant::now();
    loop {
        stop::check()?;
        let mut ping = scene.ns(from).command("ping");
        let out = output(ping.args(["-4", "-n", "-q", "-c1", "-i0.05", "-w2", name]))?;
        if out.status.success() {
            return Ok(start.elapsed().as_secs_f64());
        }
        let why = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(start.elapsed() < FIND, "no answer from {name} in {FIND:?}: {}", why.trim());
    }
}

/// A web server on every machine, that says its machine's name and by which address it sees who asks.
pub(super) struct Web {
    ends: std::sync::Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<Result<()>>>,
}

impl Web {
    pub(super) fn start(scene: &Scene) -> Result<Self> {
        let ends = std::sync::Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (n, p) in PEOPLE.iter().enumerate() {
            let at = SocketAddr::new(p.address.into(), HTTP);
            let listener = scene.ns(n).run(|| TcpListener::bind(at).with_context(|| format!("binding {at}")))?;
            listener.set_nonblocking(true)?;
            let ends = std::sync::Arc::clone(&ends);
            threads.push(std::thread::spawn(move || serve(&listener, p.machine, &ends)));
        }
        Ok(Self { ends, threads })
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

fn serve(listener: &TcpListener, machine: &str, ends: &AtomicBool) -> Result<()> {
    while !ends.load(Ordering::SeqCst) {
        let Ok((mut stream, who)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(REQUEST_LIMIT))?;
        // Up to the empty line; who does not send one gets no page.
        let lines = BufReader::new(stream.try_clone()?).lines().map_while(std::io::Result::ok).take(100);
        if lines.into_iter().any(|l| l.is_empty()) {
            let page = format!("{machine} {}\n", who.ip());
            let length = page.len();
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{page}");
        }
    }
    Ok(())
}

fn print(views: &[View]) {
    println!("\nThree friends, each in a {SUBNET} of their own: what each calls the others' machines");
    println!(
        "  {:<7}{:<27}{:<17}{:<17}{:>8}{:>9}{:>9}  path",
        "who", "name", "address", "is seen as", "first s", "ping ms", "Gbit/s"
    );
    for v in views {
        println!(
            "  {:<7}{:<27}{:<17}{:<17}{:>8.2}{:>9}{:>9.2}  {}",
            PEOPLE[v.from].name,
            v.name,
            v.address.to_string(),
            v.seen_as.to_string(),
            v.first,
            v.ping.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.2}")),
            v.gbps,
            v.link.path.as_deref().unwrap_or(&v.link.state),
        );
    }
    println!("\n  what each calls itself:");
    for p in &PEOPLE {
        println!("  {:<7}{:<27}{:<17}{}", p.name, p.dns_name(), p.address.to_string(), p.jid());
    }
    println!();
    for (what, value) in packages::machine() {
        println!("  {what}: {value}");
    }
}

fn as_json(scene: &Scene, views: &[View]) -> Value {
    let people: Vec<Value> = PEOPLE
        .iter()
        .map(|p| {
            json!({ "jid": p.jid(), "machine": p.machine, "gateway": p.gateway.name(), "subnet": SUBNET,
                "address": p.address })
        })
        .collect();
    let pairs: Vec<Value> = views
        .iter()
        .map(|v| {
            json!({ "from": PEOPLE[v.from].name, "to": PEOPLE[v.to].name, "name": v.name, "address": v.address,
                "seen_as": v.seen_as, "first_packet_seconds": v.first, "ping_ms": v.ping, "tcp_gbps": v.gbps,
                "link": v.link })
        })
        .collect();
    json!({
        "machine": packages::machine().into_iter().collect::<BTreeMap<_, _>>(), "people": people, "pairs": pairs,
        "befriended_seconds": scene.befriended.as_secs_f64(), "met_seconds": scene.met.as_secs_f64(),
    })
}
