//! ICMP errors: they quote a packet that we sent, as it was after the peer had translated it.

use super::{FRAGMENT_OFFSET, Refused, Translation, address, checksum_of};
use crate::packet::checksum::Change;
use crate::packet::{IPV4_LEN, be16};
use std::net::Ipv4Addr;

/// Bytes before the quoted packet (RFC 792).
const ICMP_LEN: usize = 8;
/// The ICMP checksum is at this offset.
const ICMP_CHECKSUM: usize = 2;

/// ICMP types that quote a packet (RFC 792).
mod kind {
    pub(super) const UNREACHABLE: u8 = 3;
    pub(super) const SOURCE_QUENCH: u8 = 4;
    pub(super) const REDIRECT: u8 = 5;
    pub(super) const TIME_EXCEEDED: u8 = 11;
    pub(super) const PARAMETER_PROBLEM: u8 = 12;
}

impl Translation {
    /// Translates what an ICMP message quotes, if it is an error. `old` is the message's destination as it came, which is
    /// what the peer calls us, and `new` what it becomes: so did the source of the packet that we sent.
    ///
    /// An error about anything but a packet of ours to the peer is refused: the peer's node is on no other packet's way,
    /// and kernels take errors from anybody, so that a friend could end our connections with others. One that quotes too
    /// little to hold both addresses says nothing, unless they are in a later fragment (`cut`). What a quoted error quotes
    /// itself is left alone: there are no errors about errors (RFC 1122 section 3.2.2).
    pub(super) fn translate_icmp(
        &self,
        icmp: &mut [u8],
        cut: bool,
        old: Ipv4Addr,
        new: Ipv4Addr,
    ) -> Result<(), Refused> {
        match icmp.first() {
            Some(&kind::REDIRECT) => return Err(Refused::Malformed),
            Some(&(kind::UNREACHABLE | kind::SOURCE_QUENCH | kind::TIME_EXCEEDED | kind::PARAMETER_PROBLEM)) => {}
            _ => return Ok(()),
        }
        if icmp.len() < ICMP_LEN + IPV4_LEN {
            return if cut { Err(Refused::Malformed) } else { Ok(()) };
        }
        let (icmp, quote) = icmp.split_at_mut(ICMP_LEN);
        let (source, destination) = (address(quote, 12), address(quote, 16));
        let header_len = usize::from(quote[0] & 0xf) * 4;
        // Such a packet was translated by the peer: from what it calls us, to what it calls itself.
        if quote[0] >> 4 != 4 || header_len < IPV4_LEN || source != old || destination != self.peer {
            return Err(Refused::Malformed);
        }
        let change = Change::NONE.u32(source.to_bits(), new.to_bits()).u32(destination.to_bits(), self.lease.to_bits());
        let sum = [quote[10], quote[11]];
        let adjusted = change.apply(sum);
        quote[10..12].copy_from_slice(&adjusted);
        quote[12..16].copy_from_slice(&new.octets());
        quote[16..20].copy_from_slice(&self.lease.octets());
        let mut outer = change.u16(u16::from_be_bytes(sum), u16::from_be_bytes(adjusted));
        if be16(quote, 6) & FRAGMENT_OFFSET == 0
            && let Some((at, nonzero)) = checksum_of(quote[9])
            // Behind the quoted packet there may be padding and extensions (RFC 4884).
            && header_len + at + 2 <= usize::from(be16(quote, 2))
            && let Some(sum) = quote.get_mut(header_len + at..).and_then(<[u8]>::first_chunk_mut)
        {
            let adjusted = if nonzero { change.apply_nonzero(*sum) } else { change.apply(*sum) };
            outer = outer.u16(u16::from_be_bytes(*sum), u16::from_be_bytes(adjusted));
            *sum = adjusted;
        }
        let sum = outer.apply([icmp[ICMP_CHECKSUM], icmp[ICMP_CHECKSUM + 1]]);
        icmp[ICMP_CHECKSUM..ICMP_CHECKSUM + 2].copy_from_slice(&sum);
        Ok(())
    }
}
