//! How a gateway behaves, seen from a host behind it: what RFC 5780 asks of a NAT, with plain datagrams.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::ns::Namespace;
use crate::traffic::socket;

/// A datagram crosses namespaces in well under a millisecond; this is for a busy machine.
const ARRIVES: Duration = Duration::from_secs(2);
/// What has not arrived by then was dropped.
const DROPPED: Duration = Duration::from_millis(300);

/// On what something depends (RFC 4787, sections 4.1 and 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depends {
    /// On the internal address and port alone.
    OnNothing,
    /// On the destination's address.
    OnAddress,
    /// On the destination's address and port.
    OnAddressAndPort,
}

/// What was found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behaviour {
    /// The external address for the first destination.
    pub mapped: SocketAddr,
    /// On what the mapping depends.
    pub mapping: Depends,
    /// On what it depends who may send back.
    pub filtering: Depends,
}

/// A server with two addresses and two ports at each.
struct Reflector {
    sockets: [UdpSocket; 4],
}

impl Reflector {
    fn new(server: &Namespace, addresses: [Ipv4Addr; 2]) -> Result<Self> {
        let [a, b] = addresses.map(IpAddr::from);
        let open = |address, port| -> Result<UdpSocket> {
            let s = socket(server, SocketAddr::new(address, port))?;
            s.set_read_timeout(Some(ARRIVES))?;
            Ok(s)
        };
        Ok(Self { sockets: [open(a, 3478)?, open(a, 3479)?, open(b, 3478)?, open(b, 3479)?] })
    }

    /// What the `n`-th socket sees when `from` sends to it.
    fn sees(&self, n: usize, from: &UdpSocket) -> Result<SocketAddr> {
        let target = self.sockets[n].local_addr()?;
        from.send_to(b"?", target).with_context(|| format!("sending to {target}"))?;
        let (_, seen) = self.sockets[n].recv_from(&mut [0; 16]).with_context(|| format!("nothing came to {target}"))?;
        Ok(seen)
    }

    fn sends(&self, n: usize, to: SocketAddr, listener: &UdpSocket) -> Result<bool> {
        reaches(&self.sockets[n], to, listener)
    }
}

/// Whether a datagram from one socket to an address arrives at another.
///
/// # Errors
/// When sending or receiving fails for another reason than silence.
pub fn reaches(from: &UdpSocket, to: SocketAddr, listener: &UdpSocket) -> Result<bool> {
    // A firewall's answer to an earlier datagram may be reported here.
    if let Err(e) = from.send_to(b"!", to)
        && !refused(e.kind())
    {
        bail!("sending to {to}: {e}");
    }
    listener.set_read_timeout(Some(DROPPED))?;
    let source = from.local_addr()?.port();
    loop {
        match listener.recv_from(&mut [0; 16]) {
            Ok(_) => return Ok(true),
            Err(e) if refused(e.kind()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(false),
            Err(e) => bail!("waiting for a datagram from port {source}: {e}"),
        }
    }
}

const fn refused(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable)
}

/// Finds out how the gateway in front of `host` behaves, by a server with two addresses.
///
/// # Errors
/// When the server cannot be reached at all.
pub fn probe(host: &Namespace, server: &Namespace, addresses: [Ipv4Addr; 2]) -> Result<Behaviour> {
    let reflector = Reflector::new(server, addresses)?;
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    let inside = socket(host, any)?;
    let mapped = reflector.sees(0, &inside)?;
    let other_port = reflector.sees(1, &inside)?;
    let other_address = reflector.sees(2, &inside)?;
    let mapping = match (mapped == other_port, mapped == other_address) {
        (true, true) => Depends::OnNothing,
        (true, false) => Depends::OnAddress,
        _ => Depends::OnAddressAndPort,
    };
    // A socket of which only the first address and port has heard.
    let fresh = socket(host, any)?;
    let seen = reflector.sees(0, &fresh)?;
    ensure!(reflector.sends(0, seen, &fresh)?, "not even an answer passes");
    let filtering = if reflector.sends(3, seen, &fresh)? {
        Depends::OnNothing
    } else if reflector.sends(1, seen, &fresh)? {
        Depends::OnAddress
    } else {
        Depends::OnAddressAndPort
    };
    Ok(Behaviour { mapped, mapping, filtering })
}
