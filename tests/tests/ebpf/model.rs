//! The verdicts in plain Rust, on whole slices and by the data plane's own [`classify`].

use dataplane::tunnel::{MacVerifier, PublicKey};
use ipop_ebpf::{CHANNEL_HEADER_LEN, COOKIE_REPLY_LEN, Endpoint, INITIATION_LEN, Kind, RESPONSE_LEN, Reason, classify};

use crate::{Bucket, KNOWN, PORT};

/// TURN servers in every table.
pub(crate) fn relays() -> [Endpoint; 2] {
    [Endpoint::v4([192, 0, 2, 7], 3478_u16.to_be_bytes()), Endpoint::v6(V6_RELAY, 3478_u16.to_be_bytes())]
}

pub(crate) const V6_RELAY: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];

/// Where the peers of [`KNOWN`] were heard last: the relays, and what is taken for the source of data for the third.
pub(crate) fn homes() -> [Endpoint; 3] {
    let [v4, v6] = relays();
    [v4, v6, Endpoint::v4([255; 4], 3478_u16.to_be_bytes())]
}

/// Whom handshakes are for.
pub(crate) fn us() -> MacVerifier {
    MacVerifier::new(&PublicKey([0x5a; 32]))
}

/// Why a datagram is dropped, but for the limit of initiations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Junk {
    Datagram,
    Receiver,
    Elsewhere,
    BadMac,
}

/// Whether a shard would have a use for `datagram` from `source`, of which so much is `there`. With a full bucket data may
/// come from anywhere.
pub(crate) fn datagram(datagram: &[u8], there: usize, source: Endpoint, bucket: Bucket) -> Option<Junk> {
    let index_at = |at: usize| datagram.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let unknown = |at| (!index_at(at).is_some_and(|i| KNOWN.contains(&i))).then_some(Junk::Receiver);
    let stranger = |len: usize| (there >= len - 16 && !us().verify_mac1(&datagram[..len])).then_some(Junk::BadMac);
    // Programs do not see the end of a datagram inside of a run: longer ones count as well.
    match (datagram, datagram.len()) {
        ([1, 0, 0, 0, ..], INITIATION_LEN..) => return stranger(INITIATION_LEN),
        ([2, 0, 0, 0, ..], RESPONSE_LEN..) => return unknown(8).or_else(|| stranger(RESPONSE_LEN)),
        ([3, 0, 0, 0, ..], COOKIE_REPLY_LEN..) => return unknown(4),
        _ => {}
    }
    match classify(datagram) {
        Kind::Data => unknown(4).or_else(|| {
            let home = KNOWN.iter().position(|i| Some(*i) == index_at(4)).map(|i| homes()[i]);
            (home != Some(source) && bucket == Bucket::Empty).then_some(Junk::Elsewhere)
        }),
        Kind::ChannelData if relays().contains(&source) => {
            let inner = usize::from(u16::from_be_bytes([datagram[2], datagram[3]]));
            let inner = datagram.get(CHANNEL_HEADER_LEN..CHANNEL_HEADER_LEN + inner);
            inner.filter(|i| classify(i) == Kind::Data).and_then(|_| unknown(CHANNEL_HEADER_LEN + 4))
        }
        Kind::Stun => None,
        _ => Some(Junk::Datagram),
    }
}

/// What the guard does with a frame that is for this machine.
pub(crate) fn frame(frame: &[u8], bucket: Bucket) -> Option<Reason> {
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
    let port = u16::from_ne_bytes([udp[0], udp[1]]);
    let source = Endpoint { port, ..source };
    // Of a datagram whose end is not there, only its beginning is looked at, and that has to be there.
    let there = udp.get(8..).unwrap_or_default();
    if there.len() < len.min(if len < 12 { 4 } else { 12 }) && len >= 4 {
        return None;
    }
    let mut whole = there[..there.len().min(len)].to_vec();
    whole.resize(len, 0);
    // The program looks at bytes of the frame, where the datagram's own length does not say how much is read.
    datagram(&whole, there.len(), source, bucket).map(|j| match j {
        Junk::Datagram => Reason::XdpUnknownDatagram,
        Junk::Receiver => Reason::XdpUnknownReceiver,
        Junk::Elsewhere => Reason::XdpElsewhere,
        Junk::BadMac => Reason::XdpBadMac,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn ipv4(packet: &[u8]) -> Option<(&[u8], Endpoint)> {
    let header = packet.get(..20)?;
    let (version, words) = (header[0] >> 4, usize::from(header[0] & 15));
    let (fragment, protocol) = (word(header, 6)? & 0x3fff, header[9]);
    let source = Endpoint::v4([header[12], header[13], header[14], header[15]], [0; 2]);
    (version == 4 && words >= 5 && fragment == 0 && protocol == 17).then_some(())?;
    Some((packet.get(words * 4..)?, source))
}

fn ipv6(packet: &[u8]) -> Option<(&[u8], Endpoint)> {
    let header = packet.get(..40)?;
    (header[0] >> 4 == 6).then_some(())?;
    let source = Endpoint::v6(header[8..24].try_into().ok()?, [0; 2]);
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
