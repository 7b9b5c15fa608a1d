//! The ciphers of `aws-lc-rs`: a back end of ChaCha20-Poly1305, and AES-256-GCM, which it has for every CPU. AWS-LC wipes
//! its key schedule when the key is dropped.

use aws_lc_rs::aead::{AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

pub(super) struct Key(LessSafeKey);

impl Key {
    pub(super) fn chacha20poly1305(key: &[u8; 32]) -> Self {
        Self::new(&CHACHA20_POLY1305, key)
    }

    pub(super) fn aes256gcm(key: &[u8; 32]) -> Self {
        Self::new(&AES_256_GCM, key)
    }

    fn new(algorithm: &'static Algorithm, key: &[u8; 32]) -> Self {
        // Fails only on a wrong key length, which the type rules out: both take 32 bytes.
        let unbound = UnboundKey::new(algorithm, key).expect("a 32-byte key");
        Self(LessSafeKey::new(unbound))
    }

    pub(super) fn seal(&self, nonce: [u8; 12], aad: &[u8], text: &mut [u8]) -> [u8; 16] {
        let nonce = Nonce::assume_unique_for_key(nonce);
        // Fails only above the cipher's limit of 64 GiB or more.
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(aad), text).expect("a packet");
        let mut out = [0; 16];
        out.copy_from_slice(tag.as_ref());
        out
    }

    pub(super) fn open(&self, nonce: [u8; 12], aad: &[u8], buf: &mut [u8]) -> bool {
        self.0.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(aad), buf).is_ok()
    }
}
