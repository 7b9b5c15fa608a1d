//! A real coturn in a namespace.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;

use crate::internet::Server;
use crate::process::{Process, run, state_file, wait_for};

/// Where it listens.
pub const PORT: u16 = 3478;
/// The only user.
pub const USER: &str = "u";
/// The user's password.
pub const PASSWORD: &str = "turn secret of the tests";
const START_LIMIT: Duration = Duration::from_secs(10);

/// STUN and TURN over UDP with long-term credentials, [`USER`] and [`PASSWORD`].
#[derive(Debug)]
pub struct TurnServer {
    process: Process,
    command: Vec<String>,
    namespace: String,
}

impl TurnServer {
    /// Starts it on a server of the internet.
    ///
    /// # Errors
    /// When it does not come up; the message has its log.
    pub fn start(server: &Server) -> Result<Self> {
        Self::with(server, &["--lt-cred-mech".into(), format!("--user={USER}:{PASSWORD}")])
    }

    /// The same with credentials that an XMPP server makes of a shared secret (XEP-0215).
    ///
    /// # Errors
    /// When it does not come up; the message has its log.
    pub fn start_with_secret(server: &Server, secret: &str) -> Result<Self> {
        Self::with(server, &["--use-auth-secret".into(), format!("--static-auth-secret={secret}")])
    }

    fn with(server: &Server, credentials: &[String]) -> Result<Self> {
        let address = server.address.to_string();
        let options = [
            // No configuration file: nothing of the machine's own coturn.
            "-n".to_owned(),
            format!("--listening-ip={address}"),
            format!("--relay-ip={address}"),
            format!("--listening-port={PORT}"),
            "--min-port=49152".into(),
            "--max-port=50151".into(),
            "--realm=tests".into(),
            "--no-tls".into(),
            "--no-dtls".into(),
            "--no-cli".into(),
            "--no-multicast-peers".into(),
            "--log-file=stdout".into(),
            "--simple-log".into(),
            format!("--userdb={}", state_file("turndb")?.display()),
            format!("--pidfile={}", state_file("turnpid")?.display()),
        ];
        let command: Vec<String> =
            ["turnserver".to_owned()].into_iter().chain(options).chain(credentials.iter().cloned()).collect();
        let namespace = server.ns.name().to_owned();
        let process = spawn(&namespace, &command)?;
        Ok(Self { process, command, namespace })
    }

    /// Kills it without warning: allocations are gone.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again after [`Self::kill`].
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = spawn(&self.namespace, &self.command)?;
        Ok(())
    }

    /// Everything it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// Where a server's coturn is.
#[must_use]
pub fn address(server: Ipv4Addr) -> SocketAddr {
    SocketAddr::new(server.into(), PORT)
}

fn spawn(namespace: &str, command: &[String]) -> Result<Process> {
    let in_namespace = |program: &[&str]| {
        let mut c = std::process::Command::new("ip");
        c.args(["netns", "exec", namespace]).args(program);
        c
    };
    let line: Vec<&str> = command.iter().map(String::as_str).collect();
    let mut process = Process::start("coturn", &mut in_namespace(&line))?;
    wait_for("coturn to listen", START_LIMIT, || {
        anyhow::ensure!(process.running(), "it has ended and logged:\n{}", process.tail());
        let sockets = run(&mut in_namespace(&["ss", "-lnuH", &format!("sport = :{PORT}")]))?;
        Ok(!sockets.trim().is_empty())
    })?;
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::internet::Internet;
    use crate::require::Need;
    use crate::scene::{Share, play};
    use crate::traffic::socket;

    /// A STUN Binding request (RFC 8489) and its success response.
    fn binds(from: &Server, to: SocketAddr) -> Result<bool> {
        let s = socket(&from.ns, SocketAddr::from(([0, 0, 0, 0], 0)))?;
        s.set_read_timeout(Some(Duration::from_secs(1)))?;
        let request = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat();
        s.send_to(&request, to)?;
        let mut answer = [0; 256];
        Ok(s.recv_from(&mut answer).is_ok_and(|(n, _)| n >= 20 && answer[..2] == [1, 1] && answer[8..20] == [7; 12]))
    }

    #[test]
    fn coturn_answers_dies_and_comes_back() {
        play(
            Share::Shared,
            &[Need::Root, Need::Program("ip"), Need::Program("turnserver"), Need::Program("ss")],
            || {
                let internet = Internet::new()?;
                let (server, client) = (internet.server("turn")?, internet.server("client")?);
                let mut turn = TurnServer::start(&server)?;
                let at = address(server.address);
                anyhow::ensure!(binds(&client, at)?, "no answer:\n{}", turn.log());
                turn.kill()?;
                anyhow::ensure!(!binds(&client, at)?, "it answers from the grave");
                turn.start_again()?;
                anyhow::ensure!(binds(&client, at)?, "no answer:\n{}", turn.log());
                Ok(())
            },
        );
    }
}
