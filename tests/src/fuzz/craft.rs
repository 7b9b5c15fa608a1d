//! Checksums by the definition, and packets that get past the first checks.

/// The RFC 1071 checksum, word by word.
pub(super) fn naive(pieces: &[&[u8]]) -> [u8; 2] {
    let bytes: Vec<u8> = pieces.concat();
    let mut sum: u32 = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!sum as u16).to_be_bytes()
}

/// The checksum of TCP or UDP in `packet`, whose IP header has `transport` bytes.
pub(super) fn transport_sum(packet: &[u8], transport: usize, protocol: u8) -> [u8; 2] {
    let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
    let len = (packet.len() - transport) as u32;
    naive(&[addresses, &[0, protocol], &len.to_be_bytes(), &packet[transport..]])
}

/// Makes lengths and checksums right, so that a fuzzer gets past them.
pub(super) fn mend(p: &mut [u8]) {
    if p.len() < 28 || p.len() > 0xffff {
        return;
    }
    let len = p.len();
    let (transport, protocol) = if p[0] & 0x10 == 0 {
        p[0] = 0x45;
        p[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        p[10..12].fill(0);
        let sum = naive(&[&p[..20]]);
        p[10..12].copy_from_slice(&sum);
        (20, p[9])
    } else if len >= 48 {
        p[0] = 0x60 | p[0] & 0xf;
        p[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        (40, p[6])
    } else {
        return;
    };
    let at = match protocol {
        6 if len >= transport + 20 => transport + 16,
        17 => {
            p[transport + 4..transport + 6].copy_from_slice(&((len - transport) as u16).to_be_bytes());
            transport + 6
        }
        _ => return,
    };
    p[at..at + 2].fill(0);
    let sum = transport_sum(p, transport, protocol);
    p[at..at + 2].copy_from_slice(&sum);
}

/// Changes `message` as `edits` (pairs of a place and what it is XORed with) say.
pub(super) fn edit(message: &mut [u8], edits: &[u8]) {
    for pair in edits.chunks_exact(2) {
        if let Some(b) = message.get_mut(usize::from(pair[0])) {
            *b ^= pair[1];
        }
    }
}
