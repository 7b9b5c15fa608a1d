//! Real XMPP servers in a namespace, each with a certificate of a private authority, its own data and its own log.
//!
//! [`Prosody`] is small and there at once; [`Ejabberd`] also has STUN, TURN and shared roster groups that change live.
//! Both offer STARTTLS on 5222, TLS from the first byte on 5223, PEP and members-only rooms on `conference.DOMAIN`.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::{Process, wait_for};
use crate::require::Need;

mod ca;
mod ejabberd;
mod federation;
mod prosody;

pub use ca::Ca;
pub use ejabberd::Ejabberd;
pub use federation::{Federation, Kind, Member, federation_needs};
pub use prosody::Prosody;

/// STARTTLS.
pub const PORT: u16 = 5222;
/// TLS from the first byte.
pub const DIRECT_TLS_PORT: u16 = 5223;
/// Other servers, of a federated one.
pub const SERVER_PORT: u16 = 5269;
/// STUN and TURN over UDP.
pub const STUN_PORT: u16 = 3478;
/// An Erlang VM on a busy machine takes its time.
const READY_LIMIT: Duration = Duration::from_secs(40);

/// What a server is to have from its start.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The XMPP domain; rooms are on `conference.DOMAIN`.
    pub domain: String,
    /// Where it listens; must be an address inside the namespace.
    pub address: IpAddr,
    /// Local part and password.
    pub users: Vec<(String, String)>,
    /// Shared roster groups: name, and local parts of the members.
    pub groups: Vec<(String, Vec<String>)>,
    /// Members-only, persistent rooms: local part, and local parts of the members' accounts.
    pub rooms: Vec<(String, Vec<String>)>,
    /// Port for STARTTLS; [`PORT`] unless told otherwise.
    pub port: u16,
    /// Whether it talks to other domains' servers: those that DNS names, with TLS, both sides' certificates signed by its
    /// own authority, and nothing less.
    pub federated: bool,
}

impl Setup {
    /// A domain at an address, with nobody in it.
    #[must_use]
    pub fn new(domain: &str, address: IpAddr) -> Self {
        Self {
            domain: domain.to_owned(),
            address,
            users: Vec::new(),
            groups: Vec::new(),
            rooms: Vec::new(),
            port: PORT,
            federated: false,
        }
    }

    /// With STARTTLS on another port.
    #[must_use]
    pub const fn on_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// With federation.
    #[must_use]
    pub const fn federated(mut self) -> Self {
        self.federated = true;
        self
    }

    /// Where it has to let itself be connected to before it is ready.
    fn listens(&self) -> Vec<SocketAddr> {
        let ports = [self.port, DIRECT_TLS_PORT].into_iter().chain(self.federated.then_some(SERVER_PORT));
        ports.map(|p| SocketAddr::new(self.address, p)).collect()
    }

    /// Adds accounts.
    #[must_use]
    pub fn users(mut self, users: &[(&str, &str)]) -> Self {
        self.users.extend(users.iter().map(|(u, p)| ((*u).to_owned(), (*p).to_owned())));
        self
    }

    /// Adds a shared roster group.
    #[must_use]
    pub fn group(mut self, name: &str, members: &[&str]) -> Self {
        self.groups.push((name.to_owned(), members.iter().map(|m| (*m).to_owned()).collect()));
        self
    }

    /// Adds a room.
    #[must_use]
    pub fn room(mut self, name: &str, members: &[&str]) -> Self {
        self.rooms.push((name.to_owned(), members.iter().map(|m| (*m).to_owned()).collect()));
        self
    }

    fn note_group_member(&mut self, group: &str, user: &str, member: bool) -> Result<()> {
        note(&mut self.groups, group, user, member)
    }

    fn note_room_member(&mut self, room: &str, user: &str, member: bool) -> Result<()> {
        note(&mut self.rooms, room, user, member)
    }

    /// The names that its certificate is for.
    fn names(&self) -> Vec<String> {
        vec![self.domain.clone(), format!("conference.{}", self.domain)]
    }
}

fn note(lists: &mut [(String, Vec<String>)], list: &str, user: &str, member: bool) -> Result<()> {
    let Some((_, members)) = lists.iter_mut().find(|(name, _)| name == list) else {
        bail!("{list} is not in the server's setup")
    };
    members.retain(|m| m != user);
    if member {
        members.push(user.to_owned());
    }
    Ok(())
}

/// What tests do with a server, whichever it is.
pub trait Server: std::fmt::Debug {
    /// What it was set up with.
    fn setup(&self) -> &Setup;

    /// Its process.
    fn process(&mut self) -> &mut Process;

    /// Starts it anew with the data that it had, ending it before if it still runs, and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up.
    fn restart(&mut self) -> Result<()>;

    /// Puts an account into a shared roster group. Ejabberd tells its sessions at once, prosody after a restart.
    ///
    /// # Errors
    /// When the server says no.
    fn add_to_group(&mut self, group: &str, user: &str) -> Result<()>;

    /// Takes an account out of a shared roster group, see [`Self::add_to_group`].
    ///
    /// # Errors
    /// When the server says no.
    fn remove_from_group(&mut self, group: &str, user: &str) -> Result<()>;

    /// Makes an account a member of a room or takes its membership away, live.
    ///
    /// # Errors
    /// When the server says no.
    fn set_room_member(&mut self, room: &str, user: &str, member: bool) -> Result<()>;

    /// Where clients connect, STARTTLS.
    fn address(&self) -> SocketAddr {
        SocketAddr::new(self.setup().address, self.setup().port)
    }

    /// Where clients connect, TLS from the first byte.
    fn direct_tls_address(&self) -> SocketAddr {
        SocketAddr::new(self.setup().address, DIRECT_TLS_PORT)
    }

    /// Bare JID of an account.
    fn jid(&self, user: &str) -> String {
        format!("{user}@{}", self.setup().domain)
    }

    /// JID of a room.
    fn room(&self, name: &str) -> String {
        format!("{name}@conference.{}", self.setup().domain)
    }

    /// Kills it without warning (SIGKILL).
    ///
    /// # Errors
    /// When it had ended before.
    fn kill(&mut self) -> Result<()> {
        self.process().kill()
    }
}

/// What a test with prosody needs of the machine.
#[must_use]
pub fn prosody_needs() -> Vec<Need> {
    vec![Need::Root, Need::Program("ip"), Need::Program("openssl"), Need::Program("prosody")]
}

/// What a test with ejabberd needs of the machine.
#[must_use]
pub fn ejabberd_needs() -> Vec<Need> {
    vec![Need::Root, Need::Program("ip"), Need::Program("openssl"), Need::Program("erl"), Need::Program("ejabberdctl")]
}

/// Waits until a started server lets itself be connected to.
fn wait_ready(process: &mut Process, namespace: &str, addresses: &[SocketAddr]) -> Result<()> {
    let done = wait_for("the XMPP server to listen", READY_LIMIT, || {
        if !process.running() {
            return Ok(true);
        }
        crate::ns::run_in(namespace, || {
            for a in addresses {
                TcpStream::connect_timeout(a, Duration::from_secs(1)).with_context(|| a.to_string())?;
            }
            Ok(true)
        })
    });
    if done.is_err() || !process.running() {
        bail!("the XMPP server does not answer; its log ends:\n{}", process.tail());
    }
    Ok(())
}

fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    let path = dir.join(name);
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}
