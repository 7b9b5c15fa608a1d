//! mDNS and SSDP: messages that tell the sender's address in their text.

use super::{Translation, mdns, ssdp};
use crate::packet::checksum::{Change, Sum};
use crate::packet::{UDP_CHECKSUM, UDP_LEN, be16, protocol, put16};

/// mDNS's port (RFC 6762 section 3). Every answer comes from it, those to single askers too (section 6).
const MDNS: u16 = 5353;
/// SSDP's port (UPnP Device Architecture 2.0, section 1.1). What answers M-SEARCH to a single asker comes from it.
const SSDP: u16 = 1900;

impl Translation {
    /// Translates what a UDP datagram that is no fragment tells of the peer's address, if it is mDNS or SSDP, and gives
    /// the packet's new length. The headers in `buf` are translated already; behind `total_len` bytes is room.
    #[inline]
    pub(super) fn translate_discovery(&self, buf: &mut [u8], header_len: usize, total_len: usize) -> usize {
        let ports = [be16(buf, header_len), be16(buf, header_len + 2)];
        if ports.contains(&MDNS) {
            self.rewrite(buf, header_len, total_len, |t, text, len| mdns::rewrite(t, &mut text[..len]).then_some(len))
        } else if ports.contains(&SSDP) {
            self.rewrite(buf, header_len, total_len, ssdp::rewrite)
        } else {
            total_len
        }
    }

    /// Applies `rewrite` to the datagram's text (in a buffer with room, and the length), which gives the new length if
    /// it changed anything; then makes lengths and checksums right.
    fn rewrite(
        &self,
        buf: &mut [u8],
        header_len: usize,
        total_len: usize,
        rewrite: impl FnOnce(&Self, &mut [u8], usize) -> Option<usize>,
    ) -> usize {
        let (ip, udp) = buf.split_at_mut(header_len);
        let len = total_len - header_len;
        if usize::from(be16(udp, 4)) != len {
            return total_len;
        }
        let pseudo = |ip: &[u8], len| Sum::pseudo(&ip[12..20], protocol::UDP, len);
        let has_sum = be16(udp, UDP_CHECKSUM) != 0;
        // The sum is made anew below: a wrong one must not become right.
        if has_sum && !pseudo(ip, len).add_bytes(&udp[..len]).is_valid() {
            return total_len;
        }
        let Some(text) = rewrite(self, &mut udp[UDP_LEN..], len - UDP_LEN) else { return total_len };
        let len = UDP_LEN + text;
        // Texts that grow are far shorter than what the fields hold.
        let new = (header_len + len) as u16;
        let sum = Change::NONE.u16(be16(ip, 2), new).apply([ip[10], ip[11]]);
        ip[10..12].copy_from_slice(&sum);
        put16(ip, 2, new);
        put16(udp, 4, len as u16);
        if has_sum {
            put16(udp, UDP_CHECKSUM, 0);
            let sum = pseudo(ip, len).add_bytes(&udp[..len]).checksum_nonzero();
            udp[UDP_CHECKSUM..UDP_LEN].copy_from_slice(&sum);
        }
        usize::from(new)
    }
}
