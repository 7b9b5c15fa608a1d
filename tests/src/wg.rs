//! The real `wg`: keys, configuration, and its dump read back.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::process::{run, state_file};

/// A Curve25519 key pair in base64.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Private key.
    pub private: String,
    /// Public key.
    pub public: String,
}

impl Keys {
    /// A new pair.
    ///
    /// # Errors
    /// When `wg` cannot run.
    pub fn generate() -> Result<Self> {
        let private = run(Command::new("wg").arg("genkey"))?.trim().to_owned();
        let public = with_input(Command::new("wg").arg("pubkey"), &private)?.trim().to_owned();
        Ok(Self { private, public })
    }
}

/// A new preshared key in base64.
///
/// # Errors
/// When `wg` cannot run.
pub fn preshared_key() -> Result<String> {
    Ok(run(Command::new("wg").arg("genpsk"))?.trim().to_owned())
}

fn with_input(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let out = child.wait_with_output()?;
    if !out.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// `wg` with arguments separated by blanks.
///
/// # Errors
/// When `wg` says no.
pub fn wg(args: &str) -> Result<String> {
    run(Command::new("wg").args(args.split_whitespace()))
}

/// `wg` with a secret or a configuration handed over as a file: `{}` in `args` stands for its path.
///
/// # Errors
/// When `wg` says no.
pub fn wg_with_file(args: &str, content: &str) -> Result<String> {
    let path = state_file("wg")?;
    std::fs::write(&path, content)?;
    let result = wg(&args.replace("{}", &path.to_string_lossy()));
    std::fs::remove_file(&path)?;
    result
}

/// `wg setconf`.
///
/// # Errors
/// When `wg` says no.
pub fn setconf(interface: &str, config: &str) -> Result<()> {
    wg_with_file(&format!("setconf {interface} {{}}"), config).map(drop)
}

/// What `wg show INTERFACE dump` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    /// Public key of the interface.
    pub public_key: String,
    /// UDP port.
    pub listen_port: u16,
    /// Mark of outgoing datagrams; 0 is off.
    pub fwmark: u32,
    /// Peers in the daemon's order.
    pub peers: Vec<Peer>,
}

/// One peer of a [`Dump`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its public key.
    pub public_key: String,
    /// Whether a preshared key is set, and which.
    pub preshared_key: Option<String>,
    /// Where its datagrams go.
    pub endpoint: Option<SocketAddr>,
    /// Prefixes, as printed.
    pub allowed_ips: Vec<String>,
    /// Time of the last handshake.
    pub latest_handshake: Option<SystemTime>,
    /// Bytes received.
    pub rx: u64,
    /// Bytes sent.
    pub tx: u64,
    /// Persistent keepalive in seconds.
    pub keepalive: Option<u16>,
}

impl Dump {
    /// Reads an interface.
    ///
    /// # Errors
    /// When `wg` says no or prints something else than its manual says.
    pub fn read(interface: &str) -> Result<Self> {
        Self::parse(&wg(&format!("show {interface} dump"))?)
    }

    /// The peer of that public key.
    ///
    /// # Errors
    /// When there is none.
    pub fn peer(&self, public_key: &str) -> Result<&Peer> {
        self.peers.iter().find(|p| p.public_key == public_key).with_context(|| format!("no peer {public_key}"))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let head: Vec<&str> = lines.next().context("empty dump")?.split('\t').collect();
        let [_, public_key, port, mark] = head[..] else { bail!("first line of the dump: {head:?}") };
        let fwmark = match mark {
            "off" => 0,
            m => u32::from_str_radix(m.trim_start_matches("0x"), 16)?,
        };
        let peers = lines.map(Peer::parse).collect::<Result<_>>()?;
        Ok(Self { public_key: public_key.to_owned(), listen_port: port.parse()?, fwmark, peers })
    }
}

impl Peer {
    fn parse(line: &str) -> Result<Self> {
        let f: Vec<&str> = line.split('\t').collect();
        let [key, psk, endpoint, allowed, handshake, rx, tx, keepalive] = f[..] else { bail!("dump line {line:?}") };
        let some = |v: &str, none: &str| (v != none).then(|| v.to_owned());
        let seconds: u64 = handshake.parse()?;
        Ok(Self {
            public_key: key.to_owned(),
            preshared_key: some(psk, "(none)"),
            endpoint: some(endpoint, "(none)").map(|e| e.parse()).transpose()?,
            allowed_ips: some(allowed, "(none)").map_or_else(Vec::new, |a| a.split(',').map(str::to_owned).collect()),
            latest_handshake: (seconds > 0).then(|| UNIX_EPOCH + Duration::from_secs(seconds)),
            rx: rx.parse()?,
            tx: tx.parse()?,
            keepalive: some(keepalive, "off").map(|k| k.parse()).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_as_the_manual_describes_it_is_read() {
        let text = "cHJpdg==\tcHVi\t51820\t0x2a\n\
            a2V5\t(none)\t[fd00::2]:4242\t10.0.0.2/32,fd10::2/128\t1700000000\t12\t34\t25\n\
            a2V6\tcHNr\t(none)\t(none)\t0\t0\t0\toff\n";
        let d = Dump::parse(text).unwrap();
        assert_eq!((d.listen_port, d.fwmark, d.peers.len()), (51820, 42, 2));
        let p = d.peer("a2V5").unwrap();
        assert_eq!(p.endpoint, Some("[fd00::2]:4242".parse().unwrap()));
        assert_eq!((p.allowed_ips.len(), p.rx, p.tx, p.keepalive), (2, 12, 34, Some(25)));
        let q = d.peer("a2V6").unwrap();
        assert_eq!((q.latest_handshake, q.preshared_key.as_deref(), q.keepalive), (None, Some("cHNr"), None));
        assert!(Dump::parse("a\tb").is_err() && Dump::parse("").is_err());
    }
}
