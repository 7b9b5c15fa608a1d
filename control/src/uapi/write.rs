//! The state of an interface as text, in the order of keys that `wireguard-go` uses.

use dataplane::State;
use std::fmt::{self, Write};
use zeroize::Zeroizing;

/// Upper bounds on what the lines of an interface, a peer and an allowed IP take, in bytes.
const INTERFACE_ROOM: usize = 160;
const PEER_ROOM: usize = 640;
const PREFIX_ROOM: usize = 64;

/// The answer to `get=1`, without the closing `errno` line. Allocated once in its final size, because a
/// growing buffer would leave copies of the keys behind; zeroized when dropped.
#[must_use]
pub fn write_state(state: &State) -> Zeroizing<String> {
    let prefixes: usize = state.peers.iter().map(|p| p.allowed_ips.len()).sum();
    let room = INTERFACE_ROOM + state.peers.len() * PEER_ROOM + prefixes * PREFIX_ROOM;
    let mut out = Zeroizing::new(String::with_capacity(room));
    // Writing to a `String` cannot fail.
    let _ = write_lines(state, &mut out);
    debug_assert!(out.len() <= room, "the answer outgrew its buffer");
    out
}

fn write_lines(state: &State, out: &mut String) -> fmt::Result {
    if let Some(key) = &state.private_key {
        hex_line(out, "private_key", key.bytes())?;
    }
    if state.listen_port != 0 {
        writeln!(out, "listen_port={}", state.listen_port)?;
    }
    if state.fwmark != 0 {
        writeln!(out, "fwmark={}", state.fwmark)?;
    }
    for peer in &state.peers {
        hex_line(out, "public_key", &peer.public_key.0)?;
        hex_line(out, "preshared_key", &peer.preshared_key.0)?;
        out.push_str("protocol_version=1\n");
        if let Some(path) = &peer.path {
            writeln!(out, "endpoint={}", path.address())?;
        }
        let handshake = peer.last_handshake.map(|t| t.0).unwrap_or_default();
        writeln!(out, "last_handshake_time_sec={}", handshake.as_secs())?;
        writeln!(out, "last_handshake_time_nsec={}", handshake.subsec_nanos())?;
        writeln!(out, "tx_bytes={}", peer.tx_bytes)?;
        writeln!(out, "rx_bytes={}", peer.rx_bytes)?;
        writeln!(out, "persistent_keepalive_interval={}", peer.persistent_keepalive)?;
        for prefix in &peer.allowed_ips {
            writeln!(out, "allowed_ip={prefix}")?;
        }
    }
    Ok(())
}

fn hex_line(out: &mut String, key: &str, bytes: &[u8; 32]) -> fmt::Result {
    write!(out, "{key}=")?;
    for b in bytes {
        write!(out, "{b:02x}")?;
    }
    out.write_char('\n')
}
