//! The verdicts in plain Rust, on whole slices and by the data plane's own [`classify`].

use ipop_ebpf::{CHANNEL_HEADER_LEN, COOKIE_REPLY_LEN, INITIATION_LEN, Kind, RESPONSE_LEN, Reason, RelayKey, classify};

use crate::{KNOWN, PORT};

/// TURN servers in every table.
pub(crate) fn relays() -> [RelayKey; 2] {
    [RelayKey::v4([192, 0, 2, 7], 3478_u16.to_be_bytes()), RelayKey::v6(V6_RELAY, 3478_u16.to_be_bytes())]
}

pub(crate) const V6_RELAY: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];

/// Why a datagram is dropped, but for the limit of initiations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Junk {
    Datagram,
    Receiver,
}

/// Whether a shard would have a use for `datagram` from `source`.
pub(crate) fn datagram(datagram: &[u8], source: RelayKey) -> Option<Junk> {
    match classify(datagram) {
        Kind::Data => receiver(datagram),
        Kind::Initiation | Kind::Response | Kind::CookieReply | Kind::Stun => None,
        Kind::ChannelData if relays().contains(&source) => {
            let inner = usize::from(u16::from_be_bytes([datagram[2], datagram[3]]));
            let inner = datagram.get(CHANNEL_HEADER_LEN..CHANNEL_HEADER_LEN + inner);
            inner.filter(|i| classify(i) == Kind::Data).and_then(receiver)
        }
        // Programs do not see the end of a datagram inside of a run.
        Kind::Unknown if longer_handshake(datagram) => None,
        Kind::ChannelData | Kind::Unknown => Some(Junk::Datagram),
    }
}

fn receiver(data: &[u8]) -> Option<Junk> {
    let index = u32::from_le_bytes([data[4], data[5], data[6], data[7]]);
    (!KNOWN.contains(&index)).then_some(Junk::Receiver)
}

fn longer_handshake(datagram: &[u8]) -> bool {
    match datagram {
        [1, 0, 0, 0, ..] => datagram.len() >= INITIATION_LEN,
        [2, 0, 0, 0, ..] => datagram.len() >= RESPONSE_LEN,
        [3, 0, 0, 0, ..] => datagram.len() >= COOKIE_REPLY_LEN,
        _ => false,
    }
}

/// What the guard does with a frame that is for this machine.
pub(crate) fn frame(frame: &[u8]) -> Option<Reason> {
    let (mut rest, mut protocol) = (frame.get(14..)?, word(frame, 12)?);
    for _ in 0..2 {
        if protocol == 0x8100 || protocol == 0x88a8 {
            protocol = word(rest, 2)?;
            rest = rest.get(4..)?;
        }
    }
    let (udp, source) = match protocol {
        0x0800 => ipv4(rest)?,
        0x86dd => ipv6(rest)?,
        _ => return None,
    };
    if word(udp, 2)? != PORT {
        return None;
    }
    let len = usize::from(word(udp, 4)?).checked_sub(8)?;
    let port = [udp[0], udp[1]];
    let source = RelayKey { port, ..source };
    // Of a datagram whose end is not there, only its beginning is looked at, and that has to be there.
    let there = udp.get(8..).unwrap_or_default();
    if there.len() < len.min(if len < 12 { 4 } else { 12 }) && len >= 4 {
        return None;
    }
    let mut whole = there[..there.len().min(len)].to_vec();
    whole.resize(len, 0);
    datagram(&whole, source).map(|j| match j {
        Junk::Datagram => Reason::XdpUnknownDatagram,
        Junk::Receiver => Reason::XdpUnknownReceiver,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn ipv4(packet: &[u8]) -> Option<(&[u8], RelayKey)> {
    let header = packet.get(..20)?;
    let (version, words) = (header[0] >> 4, usize::from(header[0] & 15));
    let (fragment, protocol) = (word(header, 6)? & 0x3fff, header[9]);
    let source = RelayKey::v4([header[12], header[13], header[14], header[15]], [0; 2]);
    (version == 4 && words >= 5 && fragment == 0 && protocol == 17).then_some(())?;
    Some((packet.get(words * 4..)?, source))
}

fn ipv6(packet: &[u8]) -> Option<(&[u8], RelayKey)> {
    let header = packet.get(..40)?;
    (header[0] >> 4 == 6).then_some(())?;
    let source = RelayKey::v6(header[8..24].try_into().ok()?, [0; 2]);
    let (mut next, mut rest) = (header[6], &packet[40..]);
    for _ in 0..4 {
        if [0, 43, 60].contains(&next) {
            next = *rest.first()?;
            let units = usize::from(*rest.get(1)?) + 1;
            rest = rest.get(units * 8..)?;
        }
    }
    (next == 17).then_some((rest, source))
}
