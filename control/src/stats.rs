//! The `stats=1` extension of the configuration socket, and `ipop-fast stats`, which asks it.

use crate::Error;
use crate::cli::StatsArgs;
use crate::uapi::socket;
use dataplane::Capabilities;
use dataplane::crypto::Cipher;
use dataplane::stats::Stats;
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_secs(1);
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Longest answer taken, in bytes.
const MAX_ANSWER: usize = 1 << 20;

#[derive(Serialize)]
struct Answer<'a> {
    interface: &'a str,
    version: &'static str,
    capabilities: Chosen<'a>,
    traffic: Counters<'a>,
    drops: Counters<'a>,
    sessions: Counters<'a>,
    kernel_drops: Counters<'a>,
}

#[derive(Serialize)]
struct Chosen<'a> {
    io: &'a str,
    io_note: Option<&'a str>,
    aead: &'a str,
    aes: bool,
    shards: usize,
    tun_vnet: bool,
    tun_tso: bool,
    tun_uso: bool,
    udp_gso: bool,
    udp_gro: bool,
    ebpf: bool,
    ebpf_note: Option<&'a str>,
    receive_buffer: usize,
    send_buffer: usize,
}

struct Counters<'a>(&'a [(&'static str, u64)]);

impl Serialize for Counters<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(self.0.len()))?;
        for (name, n) in self.0 {
            map.serialize_entry(name, n)?;
        }
        map.end()
    }
}

/// Counters and capabilities of `interface`, and how many peers have a session with which cipher, as one line of JSON.
#[must_use]
pub fn to_json(interface: &str, c: &Capabilities, stats: &Stats, sessions: [(Cipher, usize); 2]) -> String {
    let capabilities = Chosen {
        io: c.io,
        io_note: c.io_note.as_deref(),
        aead: c.aead,
        aes: c.aes,
        shards: c.shards,
        tun_vnet: c.tun_vnet,
        tun_tso: c.tun_tso,
        tun_uso: c.tun_uso,
        udp_gso: c.udp_gso,
        udp_gro: c.udp_gro,
        ebpf: c.ebpf,
        ebpf_note: c.ebpf_note.as_deref(),
        receive_buffer: c.receive_buffer,
        send_buffer: c.send_buffer,
    };
    let version = env!("CARGO_PKG_VERSION");
    let (traffic, drops) = (Counters(&stats.traffic), Counters(&stats.drops));
    let sessions = sessions.map(|(cipher, n)| (cipher.name(), n as u64));
    let sessions = Counters(&sessions);
    let kernel_drops = Counters(&stats.kernel_drops);
    // Strings, numbers and maps with string keys only: nothing that JSON refuses.
    serde_json::to_string(&Answer { interface, version, capabilities, traffic, drops, sessions, kernel_drops })
        .unwrap_or_default()
}

#[derive(Deserialize)]
struct Received {
    interface: String,
    version: String,
    capabilities: Map<String, Value>,
    traffic: Map<String, Value>,
    drops: Map<String, Value>,
    /// Peers that have a session, by cipher.
    #[serde(default)]
    sessions: Map<String, Value>,
    /// A daemon of an earlier version has none.
    #[serde(default)]
    kernel_drops: Map<String, Value>,
}

/// Shows the counters of one interface or of all.
///
/// # Errors
/// If the interface does not answer.
pub fn main(args: &StatsArgs) -> Result<ExitCode, Error> {
    let directory = Path::new(socket::DIRECTORY);
    let clear = args.watch && !args.json && io::stdout().is_terminal();
    loop {
        let text = match &args.interface {
            Some(name) => show(&ask(&socket::path(directory, name), name)?, args.json)?,
            None => overview(directory, args.json)?,
        };
        let mut out = io::stdout().lock();
        let clear = if clear { "\x1b[H\x1b[2J" } else { "" };
        write!(out, "{clear}{text}")
            .and_then(|()| out.flush())
            .map_err(|e| Error::io("write to standard output", e))?;
        if !args.watch {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(INTERVAL);
    }
}

/// One JSON line an interface, or one table; interfaces that do not answer are named.
fn overview(directory: &Path, json: bool) -> Result<String, Error> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|f| f.ok()?.file_name().to_str()?.strip_suffix(".sock").map(str::to_owned))
        .collect();
    names.sort();
    if names.is_empty() && !json {
        return Ok(format!("No interface is served: there is no socket in {}.\n", directory.display()));
    }
    let mut text = String::new();
    for name in names {
        match ask(&socket::path(directory, &name), &name) {
            Ok(line) => text += &show(&line, json)?,
            Err(e) if json => tracing::warn!("{e}"),
            Err(e) => text += &format!("{name}: {e}\n"),
        }
    }
    Ok(text)
}

fn ask(path: &PathBuf, name: &str) -> Result<String, Error> {
    let failed = |e: io::Error| {
        Error::Client(match e.kind() {
            io::ErrorKind::NotFound => format!("no interface {name} is served: there is no {}", path.display()),
            io::ErrorKind::PermissionDenied => format!("{} may be used by root only", path.display()),
            _ => format!("{name} does not answer on {}: {e}", path.display()),
        })
    };
    let mut stream = UnixStream::connect(path).map_err(failed)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT)).map_err(failed)?;
    stream.write_all(b"stats=1\n\n").map_err(failed)?;
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    while !answer.ends_with(b"\n\n") && answer.len() < MAX_ANSWER {
        match stream.read(&mut chunk).map_err(failed)? {
            0 => break,
            n => answer.extend_from_slice(&chunk[..n]),
        }
    }
    let line = String::from_utf8_lossy(&answer).trim_end().to_owned();
    if line.starts_with('{') {
        Ok(line)
    } else {
        Err(Error::Client(format!("{name} is served by another program than ipop-fast, which has no such counters")))
    }
}

fn show(line: &str, json: bool) -> Result<String, Error> {
    if json {
        return Ok(format!("{line}\n"));
    }
    let r: Received =
        serde_json::from_str(line).map_err(|e| Error::Client(format!("an answer that is not understood: {e}")))?;
    let text = |key: &str| r.capabilities.get(key).and_then(Value::as_str).unwrap_or("?");
    let shards = r.capabilities.get("shards").and_then(Value::as_u64).unwrap_or(0);
    let mut out = format!(
        "interface {} (ipop-fast {}): {}, cipher {}, shards {shards}\n",
        r.interface,
        r.version,
        text("io"),
        text("aead")
    );
    let mut rows = |title: &str, map: &Map<String, Value>, zeros: bool| {
        let _ = writeln!(out, "  {title}");
        let mut none = true;
        for (name, value) in map {
            let n = value.as_u64().unwrap_or(0);
            if n > 0 || zeros {
                none = false;
                let _ = writeln!(out, "    {name:<24}{n:>20}");
            }
        }
        if none {
            out.push_str("    none\n");
        }
    };
    rows("traffic", &r.traffic, true);
    rows("drops", &r.drops, false);
    rows("sessions", &r.sessions, false);
    if !r.kernel_drops.is_empty() {
        rows("dropped by kernel programs", &r.kernel_drops, false);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane::stats::{Counters, Drop, add};

    #[test]
    fn an_answer_is_one_line_and_becomes_a_table_without_idle_drop_reasons() {
        let c = Counters::default();
        add(&c.udp_in, 12);
        c.count_drop(Drop::Forged, 3);
        let chosen = Capabilities {
            io: "mmsg",
            io_note: None,
            aead: "aws-lc",
            aes: true,
            shards: 2,
            pinned: false,
            tun_vnet: true,
            tun_tso: true,
            tun_uso: true,
            udp_gso: true,
            udp_gro: true,
            ebpf: true,
            ebpf_note: None,
            receive_buffer: 1,
            send_buffer: 1,
        };
        let mut stats = Stats::sum([&c]);
        stats.kernel_drops = vec![("socket_unknown_receiver", 5), ("socket_unknown_datagram", 0)];
        let sessions = [(Cipher::ChaCha20Poly1305, 0), (Cipher::Aes256Gcm, 2)];
        let line = to_json("wg0", &chosen, &stats, sessions);
        assert!(!line.contains('\n'));
        let table = show(&line, false).expect("understood");
        let has = |name: &str, n: &str| table.lines().any(|l| l.split_whitespace().eq([name, n]));
        assert!(has("udp_datagrams_in", "12") && has("udp_datagrams_out", "0") && has("forged", "3"), "{table}");
        assert!(has("aes256gcm", "2") && !table.contains("chacha20poly1305"), "{table}");
        assert!(has("socket_unknown_receiver", "5") && !table.contains("socket_unknown_datagram"), "{table}");
        assert!(!table.contains("replayed"));
        assert_eq!(show(&line, true).expect("json"), line + "\n");
    }
}
