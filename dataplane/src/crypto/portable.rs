//! The portable back end: the `chacha20poly1305` crate, which wipes its key when dropped.

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Tag};

pub(super) struct Key(ChaCha20Poly1305);

impl Key {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(ChaCha20Poly1305::new(key.into()))
    }

    pub(super) fn seal(&self, nonce: [u8; 12], aad: &[u8], text: &mut [u8]) -> [u8; 16] {
        // Fails only above the cipher's limit of 256 GiB.
        self.0.encrypt_inout_detached(&nonce.into(), aad, text.into()).expect("a packet").into()
    }

    pub(super) fn open(&self, nonce: [u8; 12], aad: &[u8], buf: &mut [u8]) -> bool {
        let Some((text, tag)) = buf.split_last_chunk_mut::<16>() else { return false };
        let tag = Tag::from(*tag);
        self.0.decrypt_inout_detached(&nonce.into(), aad, text.into(), &tag).is_ok()
    }
}
