//! An XMPP client that says whatever it likes: XML by hand over `openssl s_client`.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::ns::Namespace;

/// For whatever should happen at once, on a machine that does other things too.
pub const SOON: Duration = Duration::from_secs(15);
/// The PEP node that a client with [`Raw::interested`] wants to hear of.
pub const NOTE: &str = "urn:ipop-test:note";
/// The hash of what [`DISCO`] says (XEP-0115, section 5.1).
const VER: &str = "aYgjAb2nrJqAnOa19vbcB5qO/mc=";
const DISCO: &str = "<identity category='client' type='bot' name='t'/>\
    <feature var='http://jabber.org/protocol/disco#info'/><feature var='urn:ipop-test:note+notify'/>";

/// A client that is logged in and present. Its connection ends when it is dropped.
#[derive(Debug)]
pub struct Raw {
    child: Child,
    heard: mpsc::Receiver<Vec<u8>>,
    text: String,
}

impl Raw {
    /// Logs in with resource `ipop-x` over TLS from the first byte, from the namespace of this thread.
    ///
    /// # Errors
    /// When the server says no, or nothing.
    pub fn login(address: SocketAddr, domain: &str, user: &str, password: &str) -> Result<Self> {
        Self::over(Command::new("openssl"), address, domain, user, password)
    }

    /// [`Self::login`] from another namespace.
    ///
    /// # Errors
    /// When the server says no, or nothing.
    pub fn login_from(ns: &Namespace, address: SocketAddr, domain: &str, user: &str, password: &str) -> Result<Self> {
        Self::over(ns.command("openssl"), address, domain, user, password)
    }

    fn over(mut openssl: Command, address: SocketAddr, domain: &str, user: &str, password: &str) -> Result<Self> {
        let mut child = openssl
            .args(["s_client", "-quiet", "-no_ign_eof", "-connect", &address.to_string(), "-servername", domain])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("openssl s_client")?;
        let mut out = child.stdout.take().context("stdout")?;
        let (tx, heard) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut buffer) {
                if tx.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        let mut raw = Self { child, heard, text: String::new() };
        let open = format!(
            "<stream:stream to='{domain}' xmlns='jabber:client' version='1.0' xmlns:stream='http://etherx.jabber.org/streams'>"
        );
        raw.say(&open)?;
        raw.hear("</stream:features>")?;
        let plain = base64(format!("\0{user}\0{password}").as_bytes());
        raw.say(&format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{plain}</auth>"))?;
        raw.hear("<success")?;
        raw.say(&open)?;
        raw.hear("</stream:features>")?;
        raw.say("<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>ipop-x</resource></bind></iq>")?;
        raw.hear("</bind>")?;
        raw.hear("</iq>")?;
        raw.say("<presence/>")?;
        Ok(raw)
    }

    /// Says something.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn say(&mut self, xml: &str) -> Result<()> {
        // Not in one line: s_client takes lines that begin with Q or R as commands.
        self.child.stdin.as_mut().context("stdin")?.write_all(format!("{xml}\n").as_bytes()).context("saying")
    }

    /// Waits for a piece of text, and gives and forgets what came up to it. All quotes are single ones.
    ///
    /// # Errors
    /// When it does not come within [`SOON`].
    pub fn hear(&mut self, what: &str) -> Result<String> {
        let start = Instant::now();
        loop {
            if let Some(at) = self.text.find(what) {
                let rest = self.text.split_off(at + what.len());
                return Ok(std::mem::replace(&mut self.text, rest));
            }
            self.listen(SOON.saturating_sub(start.elapsed())).with_context(|| format!("waiting for {what}"))?;
        }
    }

    /// Is present as one that wants to hear of [`NOTE`] (XEP-0163, section 4): [`Self::stanza`] tells who asks.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn interested(&mut self) -> Result<()> {
        self.say(&format!(
            "<presence><c xmlns='http://jabber.org/protocol/caps' hash='sha-1' node='urn:ipop-test' ver='{VER}'/></presence>"
        ))
    }

    /// Waits for a stanza with all of these pieces in it, forgets those before it, and answers on the way who asks what
    /// this client can do.
    ///
    /// # Errors
    /// When it does not come within [`SOON`].
    pub fn stanza(&mut self, pieces: &[&str]) -> Result<String> {
        self.stanza_within(SOON, pieces)
    }

    /// [`Self::stanza`] with another limit.
    ///
    /// # Errors
    /// When it does not come in time.
    pub fn stanza_within(&mut self, limit: Duration, pieces: &[&str]) -> Result<String> {
        let (start, mut passed) = (Instant::now(), Vec::new());
        loop {
            while let Some(end) = stanza_end(&self.text) {
                let rest = self.text.split_off(end);
                let stanza = std::mem::replace(&mut self.text, rest).trim().to_owned();
                if pieces.iter().all(|p| stanza.contains(p)) {
                    return Ok(stanza);
                }
                self.answer_disco(&stanza)?;
                passed.push(stanza);
            }
            let left = limit.saturating_sub(start.elapsed());
            self.listen(left).with_context(|| format!("waiting for {pieces:?}, after {passed:?}"))?;
        }
    }

    fn answer_disco(&mut self, stanza: &str) -> Result<()> {
        if !stanza.starts_with("<iq") || !stanza.contains("type='get'") || !stanza.contains("disco#info") {
            return Ok(());
        }
        let node = attribute(stanza, "node").map_or_else(String::new, |n| format!(" node='{n}'"));
        let (from, id) = (attribute(stanza, "from").context("from")?, attribute(stanza, "id").context("id")?);
        self.say(&format!(
            "<iq type='result' to='{from}' id='{id}'><query xmlns='http://jabber.org/protocol/disco#info'{node}>{DISCO}</query></iq>"
        ))
    }

    /// Fails if a stanza with this in it has come, or comes before the server answers a ping: servers answer in order.
    ///
    /// # Errors
    /// With what came.
    pub fn nothing(&mut self, what: &str, domain: &str) -> Result<()> {
        self.say(&format!("<iq type='get' id='fence' to='{domain}'><ping xmlns='urn:xmpp:ping'/></iq>"))?;
        let heard = self.hear("fence")?;
        ensure!(!heard.contains(what), "it heard {heard}");
        Ok(())
    }

    fn listen(&mut self, limit: Duration) -> Result<()> {
        match self.heard.recv_timeout(limit) {
            // Servers differ in their quotes.
            Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes).replace('"', "'")),
            Err(e) => bail!("{e}; heard {}", self.text),
        }
        Ok(())
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The value of the first attribute of that name.
#[must_use]
pub fn attribute(stanza: &str, name: &str) -> Option<String> {
    Some(stanza.split_once(&format!(" {name}='"))?.1.split_once('\'')?.0.to_owned())
}

/// Where the first stanza of a stream ends. Good for what servers write: no comments, no CDATA, no bare `>`.
fn stanza_end(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    loop {
        let open = at + text[at..].find('<')?;
        let close = open + text[open..].find('>')?;
        at = close + 1;
        match &text[open..at] {
            tag if tag.starts_with("</") => depth = depth.saturating_sub(1),
            tag if tag.ends_with("/>") => {}
            _ => depth += 1,
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let n = chunk.iter().fold(0_u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = (n >> (18 - 6 * i)) & 63;
            text.push(if i > chunk.len() { '=' } else { DIGITS[digit as usize].into() });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanzas_are_told_apart() {
        let text = "\n<iq id='1'><a/><b><c/></b></iq><presence/> <message";
        let end = stanza_end(text).unwrap();
        assert_eq!(text[..end].trim(), "<iq id='1'><a/><b><c/></b></iq>");
        assert_eq!(stanza_end(&text[end..]), Some("<presence/>".len()));
        assert_eq!(stanza_end(" <message"), None);
        assert_eq!(attribute("<iq type='get' id='1'/>", "id").as_deref(), Some("1"));
    }

    #[test]
    fn base64_pads() {
        assert_eq!([&b"a"[..], b"ab", b"abc"].map(base64), ["YQ==", "YWI=", "YWJj"]);
    }
}
