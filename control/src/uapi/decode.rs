//! Bytes to requests, without I/O. Memory is bounded by [`MAX_LINE`] and [`MAX_REQUEST`].

use super::{Error, MAX_LINE, MAX_REQUEST, errno};
use dataplane::table::Prefix;
use dataplane::tunnel::{PresharedKey, PrivateKey, PublicKey};
use dataplane::{Path, PeerUpdate, Update};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;
use zeroize::Zeroizing;

/// One request.
#[derive(Debug)]
pub enum Request {
    /// `get=1`: report the state; refused if lines follow.
    Get(Result<(), Error>),
    /// `set=1`: apply the update, or answer with the first error found in it.
    Set(Result<Update, Error>),
    /// `stats=1`, an extension of ipop-fast: counters and capabilities as JSON.
    Stats,
}

/// The connection cannot go on: where the next request starts is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// The first line of a request is none that is known.
    #[error("a request that is none of get=1, set=1 and stats=1")]
    UnknownOperation,
    /// The request is longer than [`MAX_REQUEST`].
    #[error("a request longer than {MAX_REQUEST} bytes")]
    TooLong,
}

/// Turns the name of a network interface into its index.
pub type ScopeResolver = fn(&str) -> Option<u32>;

/// Splits a stream into requests. Its buffer is zeroized when dropped: lines hold private keys.
pub struct Decoder {
    /// The line so far; never grows beyond its first allocation, so that no copy of a key stays behind.
    line: Zeroizing<Vec<u8>>,
    overlong: bool,
    taken: usize,
    body: Option<Body>,
    scope: ScopeResolver,
}

enum Body {
    Get(Result<(), Error>),
    Set(Result<Box<SetBuilder>, Error>),
    Stats,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("taken", &self.taken).finish_non_exhaustive()
    }
}

impl Decoder {
    /// A decoder at the start of a connection; `scope` resolves the zone of link-local endpoints.
    #[must_use]
    pub fn new(scope: ScopeResolver) -> Self {
        let line = Zeroizing::new(Vec::with_capacity(MAX_LINE));
        Self { line, overlong: false, taken: 0, body: None, scope }
    }

    /// Whether it is between two requests.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.body.is_none() && self.line.is_empty() && !self.overlong
    }

    /// Takes bytes from the front of `input` until a request is complete or `input` is empty.
    ///
    /// # Errors
    /// [`Fatal`]: close the connection.
    pub fn advance(&mut self, input: &mut &[u8]) -> Result<Option<Request>, Fatal> {
        while !input.is_empty() {
            let end = input.iter().position(|b| *b == b'\n');
            let (part, rest) = input.split_at(end.unwrap_or(input.len()));
            let eaten = part.len() + usize::from(end.is_some());
            self.taken = self.taken.saturating_add(eaten);
            if self.taken > MAX_REQUEST {
                return Err(Fatal::TooLong);
            }
            let room = MAX_LINE - self.line.len();
            self.overlong |= part.len() > room;
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            *input = rest.get(1..).unwrap_or_default();
            if end.is_some()
                && let Some(done) = self.end_of_line()?
            {
                return Ok(Some(done));
            }
        }
        Ok(None)
    }

    fn end_of_line(&mut self) -> Result<Option<Request>, Fatal> {
        let overlong = std::mem::take(&mut self.overlong);
        let line = self.line.as_slice();
        let done = match &mut self.body {
            None => {
                self.body = Some(match line {
                    b"get=1" if !overlong => Body::Get(Ok(())),
                    b"set=1" if !overlong => Body::Set(Ok(Box::default())),
                    b"stats=1" if !overlong => Body::Stats,
                    _ => return Err(Fatal::UnknownOperation),
                });
                None
            }
            Some(_) if line.is_empty() && !overlong => self.body.take(),
            Some(Body::Get(result)) => {
                *result = Err(Error::invalid("get=1 takes no further lines"));
                None
            }
            Some(Body::Set(result)) => {
                if let Ok(builder) = result {
                    let taken = if overlong {
                        Err(Error::new(errno::EPROTO, format!("a line longer than {MAX_LINE} bytes")))
                    } else {
                        builder.line(line, self.scope)
                    };
                    if let Err(e) = taken {
                        *result = Err(e);
                    }
                }
                None
            }
            Some(Body::Stats) => return Err(Fatal::UnknownOperation),
        };
        zeroize_line(&mut self.line);
        Ok(done.map(|body| {
            self.taken = 0;
            match body {
                Body::Get(result) => Request::Get(result),
                Body::Set(result) => Request::Set(result.map(|b| b.update)),
                Body::Stats => Request::Stats,
            }
        }))
    }
}

/// Overwrites and empties the line, and keeps its allocation.
fn zeroize_line(line: &mut Vec<u8>) {
    use zeroize::Zeroize;
    line.as_mut_slice().zeroize();
    line.clear();
}

/// All requests in `bytes`, with numeric scopes only. For tests and fuzzing; a server uses [`Decoder`].
///
/// # Errors
/// [`Fatal`], as on a connection.
pub fn parse(mut bytes: &[u8]) -> Result<Vec<Request>, Fatal> {
    let mut decoder = Decoder::new(|_| None);
    let mut requests = Vec::new();
    while let Some(r) = decoder.advance(&mut bytes)? {
        requests.push(r);
    }
    Ok(requests)
}

#[derive(Default)]
struct SetBuilder {
    update: Update,
}

impl SetBuilder {
    fn line(&mut self, line: &[u8], scope: ScopeResolver) -> Result<(), Error> {
        let line = std::str::from_utf8(line).map_err(|_| Error::new(errno::EPROTO, "a line that is not UTF-8"))?;
        let (key, value) =
            line.split_once('=').ok_or_else(|| Error::new(errno::EPROTO, "a line that is not key=value"))?;
        if key == "public_key" {
            self.update.peers.push(PeerUpdate::new(PublicKey(*hex_key(key, value)?)));
            return Ok(());
        }
        match self.update.peers.last_mut() {
            None => interface_line(&mut self.update, key, value),
            Some(peer) => peer_line(peer, key, value, scope),
        }
    }
}

fn interface_line(update: &mut Update, key: &str, value: &str) -> Result<(), Error> {
    match key {
        "private_key" => {
            let bytes = hex_key(key, value)?;
            let none = bytes.iter().all(|b| *b == 0);
            update.private_key = Some((!none).then(|| PrivateKey::new(*bytes)));
        }
        "listen_port" => update.listen_port = Some(decimal(key, value)?),
        "fwmark" => update.fwmark = Some(decimal(key, value)?),
        "replace_peers" => update.replace_peers = only_true(key, value)?,
        _ => return Err(unknown_key(key, "the interface")),
    }
    Ok(())
}

fn peer_line(peer: &mut PeerUpdate, key: &str, value: &str, scope: ScopeResolver) -> Result<(), Error> {
    match key {
        "remove" => peer.remove = only_true(key, value)?,
        "update_only" => peer.update_only = only_true(key, value)?,
        "preshared_key" => peer.preshared_key = Some(PresharedKey(*hex_key(key, value)?)),
        "endpoint" => peer.path = Some(Path::from(endpoint(value, scope)?)),
        "persistent_keepalive_interval" => peer.persistent_keepalive = Some(decimal(key, value)?),
        "replace_allowed_ips" => peer.replace_allowed_ips = only_true(key, value)?,
        "allowed_ip" => peer.allowed_ips.push(allowed_ip(value)?),
        "protocol_version" if value == "1" => {}
        "protocol_version" => return Err(Error::invalid("protocol_version: only 1 exists")),
        _ => return Err(unknown_key(key, "a peer")),
    }
    Ok(())
}

fn unknown_key(key: &str, of: &str) -> Error {
    let key: String = key.chars().take(40).flat_map(char::escape_debug).collect();
    Error::invalid(format!("{of} has no setting \"{key}\""))
}

fn only_true(key: &str, value: &str) -> Result<bool, Error> {
    if value == "true" { Ok(true) } else { Err(Error::invalid(format!("{key}: only \"true\" is allowed"))) }
}

/// Digits only: `FromStr` of integers would also take a sign.
fn decimal<T: FromStr>(key: &str, value: &str) -> Result<T, Error> {
    let number = value.bytes().all(|b| b.is_ascii_digit()).then(|| value.parse().ok()).flatten();
    number.ok_or_else(|| Error::invalid(format!("{key}: not a decimal number in range")))
}

fn hex_key(key: &str, value: &str) -> Result<Zeroizing<[u8; 32]>, Error> {
    let bad = || Error::invalid(format!("{key}: a key is 64 hexadecimal digits"));
    let text = value.as_bytes();
    if text.len() != 64 {
        return Err(bad());
    }
    let mut out = Zeroizing::new([0; 32]);
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        *byte = digit(pair[0]).zip(digit(pair[1])).map(|(h, l)| h << 4 | l).ok_or_else(bad)?;
    }
    Ok(out)
}

fn endpoint(value: &str, scope: ScopeResolver) -> Result<SocketAddr, Error> {
    let bad = || Error::invalid("endpoint: write it as 192.0.2.1:51820 or [2001:db8::1]:51820");
    // `SocketAddr` parses numeric zones only; `wg` sends the interface's name.
    let Some((address, zone_and_port)) = value.strip_prefix('[').and_then(|v| v.split_once('%')) else {
        return value.parse().map_err(|_| bad());
    };
    let (zone, port) = zone_and_port.rsplit_once("]:").ok_or_else(bad)?;
    let ip: Ipv6Addr = address.parse().map_err(|_| bad())?;
    let id = if zone.bytes().all(|b| b.is_ascii_digit()) { zone.parse().ok() } else { scope(zone) };
    let id = id.ok_or_else(|| Error::invalid("endpoint: its zone is no interface of this machine"))?;
    Ok(SocketAddrV6::new(ip, decimal("endpoint", port)?, 0, id).into())
}

/// `10.0.0.0/8` adds, `-10.0.0.0/8` removes.
fn allowed_ip(value: &str) -> Result<(Prefix, bool), Error> {
    let bad = || Error::invalid("allowed_ip: write it as 192.0.2.0/24 or 2001:db8::/32");
    let (text, add) = value.strip_prefix('-').map_or((value, true), |v| (v, false));
    let (address, len) = text.split_once('/').ok_or_else(bad)?;
    let len = decimal("allowed_ip", len)?;
    let prefix = Prefix::new(address.parse().map_err(|_| bad())?, len).ok_or_else(bad)?;
    Ok((prefix, add))
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
