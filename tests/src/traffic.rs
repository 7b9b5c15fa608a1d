//! Traffic through the tunnel, checked by content: TCP with a digest, UDP of every size, a paced flow that times its
//! own stalls. Everything is bounded in bytes and time.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use blake2::{Blake2b512, Digest};

use crate::ns::Namespace;
use crate::process::wait_for;

/// Longest time a TCP connection may take to come up.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// One write to a socket, bytes.
const CHUNK: usize = 64 * 1024;

/// Pseudo-random bytes (xorshift64*): junk and contents that repeat by seed.
#[derive(Clone, Debug)]
pub struct Noise(u64);

impl Noise {
    /// A stream of its own for every seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound` (which is not 0).
    pub const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Fills a buffer.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

/// An address as its own machine and as the others see it: not the same where addresses are translated.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// What the machine calls itself.
    pub there: IpAddr,
    /// What the others call it.
    pub here: IpAddr,
}

impl From<IpAddr> for Seen {
    fn from(address: IpAddr) -> Self {
        Self { there: address, here: address }
    }
}

fn connect(from: &Namespace, to: &Namespace, address: Seen) -> Result<(TcpStream, TcpStream)> {
    let there = address.there;
    let listener = to.run(|| TcpListener::bind((there, 0)).with_context(|| format!("binding {there}")))?;
    let target = SocketAddr::new(address.here, listener.local_addr()?.port());
    let sender = from.run(|| {
        TcpStream::connect_timeout(&target, CONNECT_LIMIT).with_context(|| format!("connecting to {target}"))
    })?;
    // Connected: it is in the listener's queue.
    let (receiver, _) = listener.accept()?;
    Ok((sender, receiver))
}

/// Sends `bytes` pseudo-random bytes over one TCP connection and compares the digests of both ends.
/// Gives the time it took.
///
/// # Errors
/// When the connection fails, takes longer than `limit`, or other bytes arrive.
pub fn tcp_transfer(
    from: &Namespace,
    to: &Namespace,
    to_address: impl Into<Seen>,
    bytes: u64,
    limit: Duration,
) -> Result<Duration> {
    let (mut sender, mut receiver) = connect(from, to, to_address.into())?;
    let start = Instant::now();
    for s in [&sender, &receiver] {
        s.set_read_timeout(Some(limit))?;
        s.set_write_timeout(Some(limit))?;
    }
    let (sent, received) = std::thread::scope(|s| {
        let sending = s.spawn(|| -> Result<_> {
            let (mut noise, mut digest, mut left) = (Noise::new(bytes), Blake2b512::new(), bytes);
            let mut chunk = vec![0; CHUNK];
            while left > 0 {
                ensure!(start.elapsed() < limit, "{left} of {bytes} bytes unsent after {limit:?}");
                let n = usize::try_from(left.min(CHUNK as u64))?;
                noise.fill(&mut chunk[..n]);
                digest.update(&chunk[..n]);
                sender.write_all(&chunk[..n]).context("sending")?;
                left -= n as u64;
            }
            sender.shutdown(std::net::Shutdown::Write)?;
            Ok(digest.finalize())
        });
        let receiving = s.spawn(|| -> Result<_> {
            let (mut digest, mut got, mut chunk) = (Blake2b512::new(), 0, vec![0; CHUNK]);
            loop {
                ensure!(start.elapsed() < limit, "{got} of {bytes} bytes arrived in {limit:?}");
                match receiver.read(&mut chunk).with_context(|| format!("receiving after {got} bytes"))? {
                    0 => return Ok((digest.finalize(), got)),
                    n => {
                        digest.update(&chunk[..n]);
                        got += n as u64;
                    }
                }
            }
        });
        (sending.join(), receiving.join())
    });
    let (got_digest, got) = received.map_err(|_| anyhow!("receiver panicked"))??;
    let sent_digest = sent.map_err(|_| anyhow!("sender panicked"))??;
    ensure!(got == bytes && got_digest == sent_digest, "{got} of {bytes} bytes arrived, or not the same ones");
    Ok(start.elapsed())
}

/// Sends one datagram of every size in `sizes` to an echo at the other end and compares what comes back; a lost one is
/// sent again a few times.
///
/// # Errors
/// When a size never comes back whole.
pub fn udp_echo(
    from: &Namespace,
    to: &Namespace,
    to_address: impl Into<Seen>,
    sizes: impl IntoIterator<Item = usize>,
) -> Result<()> {
    const TRIES: usize = 5;
    let address = to_address.into();
    let echo = to.run(|| Ok(UdpSocket::bind((address.there, 0))?))?;
    echo.set_read_timeout(Some(Duration::from_millis(50)))?;
    let target = SocketAddr::new(address.here, echo.local_addr()?.port());
    let client = from.run(|| {
        let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let s = UdpSocket::bind((any, 0))?;
        s.connect(target)?;
        Ok(s)
    })?;
    client.set_read_timeout(Some(Duration::from_millis(500)))?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut buffer = [0; 2048];
            while !stop.load(Relaxed) {
                if let Ok((n, peer)) = echo.recv_from(&mut buffer) {
                    let _ = echo.send_to(&buffer[..n], peer);
                }
            }
        });
        let result = sizes.into_iter().try_for_each(|size| {
            let mut payload = vec![0; size];
            Noise::new(size as u64).fill(&mut payload);
            let echoed = (0..TRIES).any(|_| echoed(&client, &payload));
            ensure!(echoed, "{size} bytes to {target} did not come back in {TRIES} tries");
            Ok(())
        });
        stop.store(true, Relaxed);
        result
    })
}

fn echoed(client: &UdpSocket, payload: &[u8]) -> bool {
    let mut buffer = [0; 2048];
    if client.send(payload).is_err() {
        return false;
    }
    // Answers to earlier tries of another size may still come.
    while let Ok(n) = client.recv(&mut buffer) {
        if &buffer[..n] == payload {
            return true;
        }
    }
    false
}

/// A TCP flow in the background, paced, its content checked at the end.
#[derive(Debug)]
pub struct Flow {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    sender: JoinHandle<Result<Sent>>,
    receiver: JoinHandle<Result<FlowReport>>,
}

type Sent = (u64, Vec<u8>);

/// How a [`Flow`] went.
#[derive(Clone, Debug)]
pub struct FlowReport {
    /// Bytes that arrived.
    pub bytes: u64,
    /// Longest time in which nothing arrived.
    pub longest_stall: Duration,
    digest: Vec<u8>,
}

impl Flow {
    /// Starts a flow of `rate` bytes a second; it ends by [`Self::finish`], or by itself after `limit`.
    ///
    /// # Errors
    /// When the connection does not come up.
    pub fn start(from: &Namespace, to: &Namespace, to_address: IpAddr, rate: u64, limit: Duration) -> Result<Self> {
        let (out, inn) = connect(from, to, to_address.into())?;
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (s, r) = (Arc::clone(&stop), Arc::clone(&received));
        Ok(Self {
            sender: std::thread::spawn(move || send_paced(out, rate, &s, limit)),
            receiver: std::thread::spawn(move || receive_timed(inn, &r, limit)),
            stop,
            received,
        })
    }

    /// Bytes that have arrived so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Waits until `bytes` more have arrived.
    ///
    /// # Errors
    /// After `limit`.
    pub fn wait_more(&self, bytes: u64, limit: Duration) -> Result<()> {
        let before = self.received();
        wait_for("the flow to go on", limit, || Ok(self.received() >= before + bytes))
            .with_context(|| format!("{} bytes more arrived", self.received() - before))
    }

    /// Ends it and compares what was sent with what arrived.
    ///
    /// # Errors
    /// When the flow broke or other bytes arrived.
    pub fn finish(self) -> Result<FlowReport> {
        self.stop.store(true, Relaxed);
        let sent = self.sender.join().map_err(|_| anyhow!("sender panicked"))?;
        let report = self.receiver.join().map_err(|_| anyhow!("receiver panicked"))?.context("the flow's receiver")?;
        let (bytes, digest) = sent.context("the flow's sender")?;
        ensure!(report.bytes == bytes, "{} of {bytes} bytes arrived", report.bytes);
        ensure!(report.digest == digest, "other bytes arrived than were sent");
        Ok(report)
    }
}

fn send_paced(mut stream: TcpStream, rate: u64, stop: &AtomicBool, limit: Duration) -> Result<Sent> {
    let (start, mut sent) = (Instant::now(), 0_u64);
    let (mut noise, mut digest, mut chunk) = (Noise::new(rate), Blake2b512::new(), vec![0; CHUNK]);
    stream.set_write_timeout(Some(Duration::from_millis(200)))?;
    while !stop.load(Relaxed) && start.elapsed() < limit {
        noise.fill(&mut chunk);
        let mut rest = &chunk[..];
        while !rest.is_empty() && start.elapsed() < limit {
            match stream.write(rest) {
                Ok(n) => {
                    digest.update(&rest[..n]);
                    sent += n as u64;
                    rest = &rest[n..];
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(e) => bail!("after {sent} bytes: {e}"),
            }
        }
        let due = Duration::from_secs_f64(sent as f64 / rate as f64);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    Ok((sent, digest.finalize().to_vec()))
}

fn receive_timed(mut stream: TcpStream, received: &AtomicU64, limit: Duration) -> Result<FlowReport> {
    let (start, mut last, mut longest_stall) = (Instant::now(), Instant::now(), Duration::ZERO);
    let (mut digest, mut chunk) = (Blake2b512::new(), vec![0; CHUNK]);
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    loop {
        let result = stream.read(&mut chunk);
        longest_stall = longest_stall.max(last.elapsed());
        match result {
            Ok(0) => break,
            Ok(n) => {
                digest.update(&chunk[..n]);
                received.fetch_add(n as u64, Relaxed);
                last = Instant::now();
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => bail!("after {} bytes: {e}", received.load(Relaxed)),
        }
        ensure!(start.elapsed() < limit + CONNECT_LIMIT, "no end of the flow");
    }
    Ok(FlowReport { bytes: received.load(Relaxed), longest_stall, digest: digest.finalize().to_vec() })
}

/// Round trips of `count` pings sent every `interval`, in milliseconds, lost ones left out.
///
/// # Errors
/// When `ping` cannot run.
pub fn ping(from: &Namespace, to: IpAddr, count: u32, interval: Duration) -> Result<Vec<f64>> {
    let mut command = from.command("ping");
    command.args(["-n", "-c", &count.to_string(), "-i", &interval.as_secs_f64().to_string(), "-W", "1"]);
    let out = crate::process::output(command.arg(to.to_string()))?;
    let text = String::from_utf8_lossy(&out.stdout);
    let times = text.lines().filter_map(|l| l.split_once("time=")?.1.split(' ').next()?.parse().ok());
    Ok(times.collect())
}

/// A socket in a namespace, for datagrams of one's own making.
///
/// # Errors
/// When the address cannot be bound.
pub fn socket(ns: &Namespace, address: SocketAddr) -> Result<UdpSocket> {
    ns.run(|| UdpSocket::bind(address).with_context(|| format!("binding {address}")))
}
