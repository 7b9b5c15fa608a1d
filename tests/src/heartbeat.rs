//! A steady trickle of datagrams to an echo at the other end: when did it stop, when did it go on?

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::ns::Namespace;
use crate::process::wait_for;
use crate::traffic::socket;

/// Between two datagrams.
const BEAT: Duration = Duration::from_millis(20);
/// How long a read waits: the threads look for their end so often.
const LOOK: Duration = Duration::from_millis(20);
/// Answers that are kept: more than ten minutes of them.
const KEEP: usize = 40_000;

/// A running trickle; ends when dropped.
#[derive(Debug)]
pub struct Heartbeat {
    name: String,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    answers: Mutex<Vec<Instant>>,
}

impl Heartbeat {
    /// Starts one from `from` to `address`, which is (or will be) one of `to`'s. Sockets are bound to no address, so
    /// they outlive interfaces.
    ///
    /// # Errors
    /// When a socket cannot be made.
    pub fn start(from: &Namespace, to: &Namespace, address: IpAddr) -> Result<Self> {
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        let (near, far) = (socket(from, any)?, socket(to, any)?);
        let target = SocketAddr::new(address, far.local_addr()?.port());
        for s in [&near, &far] {
            s.set_read_timeout(Some(LOOK))?;
        }
        let shared = Arc::new(Shared::default());
        let (a, b) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads =
            vec![std::thread::spawn(move || echo(&far, &a)), std::thread::spawn(move || beat(&near, target, &b))];
        Ok(Self { name: format!("{} to {address}", from.name()), shared, threads })
    }

    fn answers(&self) -> Result<Vec<Instant>> {
        self.shared.answers.lock().map(|a| a.clone()).map_err(|_| anyhow!("the heartbeat died"))
    }

    /// Waits for an answer that came after `since`; gives the time from then to it.
    ///
    /// # Errors
    /// When none comes within `limit`.
    pub fn wait_after(&self, since: Instant, limit: Duration) -> Result<Duration> {
        let mut found = None;
        wait_for(&format!("an answer, {}", self.name), limit, || {
            found = self.answers()?.into_iter().find(|a| *a > since);
            Ok(found.is_some())
        })?;
        found.map(|f| f - since).context("no answer")
    }

    /// The longest silence from `since` until now.
    ///
    /// # Errors
    /// When the heartbeat died.
    pub fn longest_silence(&self, since: Instant) -> Result<Duration> {
        let (mut last, mut longest) = (since, Duration::ZERO);
        for answer in self.answers()?.into_iter().filter(|a| *a > since).chain([Instant::now()]) {
            longest = longest.max(answer - last);
            last = answer;
        }
        Ok(longest)
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

fn echo(s: &UdpSocket, shared: &Shared) {
    let mut buffer = [0; 64];
    while !shared.stop.load(Relaxed) {
        if let Ok((n, from)) = s.recv_from(&mut buffer) {
            // What gets lost on the way back is one more lost beat.
            let _ = s.send_to(&buffer[..n], from);
        }
    }
}

fn beat(s: &UdpSocket, target: SocketAddr, shared: &Shared) {
    let mut buffer = [0; 64];
    let mut last: Option<Instant> = None;
    while !shared.stop.load(Relaxed) {
        if last.is_none_or(|l| l.elapsed() >= BEAT) {
            last = Some(Instant::now());
            // No route, no interface: that is what is being watched.
            let _ = s.send_to(b"beat", target);
        }
        match s.recv_from(&mut buffer) {
            Ok(_) => {
                if let Ok(mut a) = shared.answers.lock()
                    && a.len() < KEEP
                {
                    a.push(Instant::now());
                }
            }
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            // An ICMP error of an earlier beat is reported at once.
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::{Side, joined};
    use crate::require::Need;
    use crate::scene::{Share, play};

    #[test]
    fn a_cut_is_a_silence_and_its_end_an_answer() {
        play(Share::Shared, &[Need::Root, Need::Program("ip")], || {
            let (a, b) = joined()?;
            let start = Instant::now();
            let heart = Heartbeat::start(&a, &b, Side::B.outer(crate::pair::Outer::V4))?;
            heart.wait_after(start, Duration::from_secs(2))?;
            let cut = Instant::now();
            b.ip("link set ul0 down")?;
            let down = Instant::now();
            wait_for("a silence", Duration::from_secs(5), || {
                Ok(heart.longest_silence(down)? > Duration::from_millis(300))
            })?;
            let plugged = Instant::now();
            b.ip("link set ul0 up")?;
            heart.wait_after(plugged, Duration::from_secs(5))?;
            anyhow::ensure!(heart.longest_silence(cut)? >= Duration::from_millis(300));
            Ok(())
        });
    }
}
