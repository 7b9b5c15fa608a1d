//! A name server for a scene: a real dnsmasq that knows the scene's names and nothing else.
//!
//! Namespaces ask it after [`crate::ns::Namespace::set_resolver`].

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Server;
use crate::process::{Process, state_file, wait_for};
use crate::require::Need;

const PORT: u16 = 53;
const START_LIMIT: Duration = Duration::from_secs(10);
/// Always there, so that one can see whether it answers.
const ALIVE: &str = "alive.dns.test";

/// What a name server knows. Every other name does not exist (NXDOMAIN).
#[derive(Clone, Debug, Default)]
pub struct Zone {
    lines: String,
}

impl Zone {
    /// Nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A and AAAA records of a name.
    #[must_use]
    pub fn host(mut self, name: &str, addresses: &[IpAddr]) -> Self {
        for a in addresses {
            let _ = writeln!(self.lines, "host-record={name},{a}");
        }
        self
    }

    /// An SRV record (RFC 2782): `service` is such as `_xmpp-client._tcp`; `rank` is priority and weight.
    #[must_use]
    pub fn service(mut self, service: &str, domain: &str, target: (&str, u16), rank: (u16, u16)) -> Self {
        let ((host, port), (priority, weight)) = (target, rank);
        let _ = writeln!(self.lines, "srv-host={service}.{domain},{host},{port},{priority},{weight}");
        self
    }

    /// An SRV record that says that the domain does not have that service (target `.`).
    #[must_use]
    pub fn without_service(mut self, service: &str, domain: &str) -> Self {
        let _ = writeln!(self.lines, "srv-host={service}.{domain}");
        self
    }

    /// The usual records of an XMPP domain whose server is another machine, `xmpp.DOMAIN`, on the usual ports.
    #[must_use]
    pub fn xmpp(self, domain: &str, address: IpAddr) -> Self {
        let host = format!("xmpp.{domain}");
        self.host(&host, &[address])
            .service("_xmpp-client._tcp", domain, (&host, crate::servers::PORT), (5, 0))
            .service("_xmpps-client._tcp", domain, (&host, crate::servers::DIRECT_TLS_PORT), (10, 0))
            .service("_xmpp-server._tcp", domain, (&host, crate::servers::SERVER_PORT), (5, 0))
    }
}

/// A running name server. Ended when dropped.
#[derive(Debug)]
pub struct Dns {
    namespace: String,
    address: IpAddr,
    configuration: PathBuf,
    process: Process,
}

impl Dns {
    /// Starts one on a server of the internet and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up; the message has its log.
    pub fn start(server: &Server, zone: &Zone) -> Result<Self> {
        let (namespace, address) = (server.ns.name().to_owned(), server.address.into());
        let configuration = state_file("dnsmasq.conf")?;
        write(&configuration, address, zone)?;
        let process = spawn(&namespace, address, &configuration)?;
        Ok(Self { namespace, address, configuration, process })
    }

    /// Whom to ask.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Knows other names from now on.
    ///
    /// # Errors
    /// When it does not come up again.
    pub fn change(&mut self, zone: &Zone) -> Result<()> {
        write(&self.configuration, self.address, zone)?;
        self.start_again()
    }

    /// Kills it: questions meet a closed port.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again, ending it before if it runs.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_again(&mut self) -> Result<()> {
        if self.process.running() {
            self.process.kill()?;
        }
        self.process = spawn(&self.namespace, self.address, &self.configuration)?;
        Ok(())
    }

    /// Everything it was asked and has answered.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.configuration);
    }
}

fn write(configuration: &Path, address: IpAddr, zone: &Zone) -> Result<()> {
    // Nothing of this machine: no hosts file, no upstream servers; unknown names do not exist. Answers may be kept for
    // no time at all, so that a change is seen at once.
    let text = format!(
        "bind-interfaces\nlisten-address={address}\nno-hosts\nno-resolv\naddress=/#/\nlocal-ttl=0\nlog-queries\n\
         host-record={ALIVE},{address}\n{}",
        zone.lines
    );
    std::fs::write(configuration, text).with_context(|| format!("writing {}", configuration.display()))
}

fn spawn(namespace: &str, address: IpAddr, configuration: &Path) -> Result<Process> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, "dnsmasq", "--keep-in-foreground", "--log-facility=-", "--pid-file="]);
    // It would give up root for a user that cannot read our files.
    command.args(["--user=root", "--group=root", &format!("--conf-file={}", configuration.display())]);
    let mut process = Process::start(&format!("dnsmasq in {namespace}"), &mut command)?;
    let done = wait_for("the name server to answer", START_LIMIT, || {
        if !process.running() {
            return Ok(true);
        }
        crate::ns::run_in(namespace, || answers(SocketAddr::new(address, PORT)))
    });
    done.with_context(|| format!("its log ends:\n{}", process.tail()))?;
    ensure!(process.running(), "the name server has ended; its log ends:\n{}", process.tail());
    Ok(process)
}

/// Whether a server has an address for [`ALIVE`] (RFC 1035, section 4).
fn answers(server: SocketAddr) -> Result<bool> {
    let id = [0x1b, 0xf7];
    let header = [&id[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    let name =
        ALIVE.split('.').flat_map(|label| [&[u8::try_from(label.len()).unwrap_or(0)], label.as_bytes()].concat());
    let question = header.into_iter().chain(name).chain([0, 0, 1, 0, 1]).collect::<Vec<u8>>();
    let socket = UdpSocket::bind((if server.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    socket.connect(server)?;
    socket.send(&question)?;
    let mut answer = [0; 512];
    let n = socket.recv(&mut answer)?;
    // The same id, an answer, no error, one record.
    Ok(n > 12 && answer[..2] == id && answer[2] & 0x80 != 0 && answer[3] & 0xf == 0 && answer[6..8] == [0, 1])
}

/// What a scene with a name server needs of the machine.
#[must_use]
pub fn dns_needs() -> Vec<Need> {
    vec![Need::Root, Need::Program("ip"), Need::Program("dnsmasq")]
}
