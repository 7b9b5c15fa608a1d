//! Handshake messages as bytes (WireGuard paper, sections 5.4.2, 5.4.3, 5.4.7).

use ipop_ebpf::{DATA_HEADER_LEN, INITIATION_LEN};

/// A message of the tunnel itself, on its way to a socket: handshake message, cookie reply or keepalive. At
/// most [`INITIATION_LEN`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    bytes: [u8; INITIATION_LEN],
    len: u8,
}

impl Message {
    /// A copy of `bytes`, of which there are at most [`INITIATION_LEN`].
    pub(super) fn new(bytes: &[u8]) -> Self {
        let len = bytes.len().min(INITIATION_LEN);
        let mut m = Self { bytes: [0; INITIATION_LEN], len: u8::try_from(len).unwrap_or(0) };
        m.bytes[..len].copy_from_slice(&bytes[..len]);
        m
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// The header of a transport message: type, receiver index, counter (section 5.4.6).
#[must_use]
pub fn data_header(receiver: u32, counter: u64) -> [u8; DATA_HEADER_LEN] {
    let mut h = [0; DATA_HEADER_LEN];
    h[0] = 4;
    h[4..8].copy_from_slice(&receiver.to_le_bytes());
    h[8..].copy_from_slice(&counter.to_le_bytes());
    h
}

/// The little-endian number at `at`, if `message` is long enough.
pub(super) fn index_at(message: &[u8], at: usize) -> Option<u32> {
    message.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}
