//! Batched ChaCha20-Poly1305 (RFC 8439): one interface, several back ends, chosen once at start. Sessions between
//! nodes that agreed on it have AES-256-GCM behind the same interface ([`Cipher`]).
//!
//! Callers hand over whole batches ([`seal`], [`open`]) because the pipeline always has one: the segments
//! of a super-packet or the datagrams of a GRO buffer. A back end is free to interleave the jobs of a batch.

mod aes;
#[cfg(test)]
mod aes_tests;
mod cipher;
mod portable;
mod system;
#[cfg(test)]
mod tests;

pub use cipher::{Cipher, Speeds, aes_key, has_aes};

use std::fmt;
use std::str::FromStr;
use zeroize::Zeroizing;

/// Length in bytes of the tag behind every ciphertext.
pub const TAG_LEN: usize = 16;

/// An implementation of the cipher. All produce the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// `aws-lc-rs`: assembly for the CPU at hand.
    AwsLc,
    /// The `chacha20poly1305` crate: portable Rust.
    Portable,
}

impl Backend {
    /// Every back end, best first.
    pub const ALL: [Self; 2] = [Self::AwsLc, Self::Portable];

    /// The best back end for this CPU. AWS-LC picks its own assembly by CPU feature at run time, down to
    /// SSSE3 on x86-64 and NEON on aarch64; without those its generic C is slower than portable Rust.
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        let vectors = std::arch::is_x86_feature_detected!("ssse3");
        #[cfg(not(target_arch = "x86_64"))]
        let vectors = cfg!(target_arch = "aarch64");
        if vectors { Self::AwsLc } else { Self::Portable }
    }

    /// Its name, as `--aead` takes it and `doctor` shows it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AwsLc => "aws-lc",
            Self::Portable => "portable",
        }
    }

    /// Expands `key` for this back end.
    #[must_use]
    pub fn key(self, key: &[u8; 32]) -> Key {
        Key(match self {
            Self::AwsLc => Expanded::System(system::Key::new(key)),
            Self::Portable => Expanded::Portable(Box::new(portable::Key::new(key))),
        })
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Backend {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|b| b.name() == s)
            .ok_or_else(|| format!("no cipher back end is called \"{s}\": use one of aws-lc, portable"))
    }
}

/// An expanded key, bound to a back end. Zeroized when dropped; its `Debug` shows nothing of it.
pub struct Key(Expanded);

enum Expanded {
    System(system::Key),
    Portable(Box<portable::Key>),
    Aes(aes::Key),
}

impl Key {
    /// Expands `key` for AES-256-GCM.
    #[must_use]
    pub fn aes256gcm(key: &[u8; 32]) -> Self {
        Self(Expanded::Aes(aes::Key::new(key)))
    }

    /// The cipher that this key is for.
    #[must_use]
    pub const fn cipher(&self) -> Cipher {
        match self.0 {
            Expanded::Aes(_) => Cipher::Aes256Gcm,
            _ => Cipher::ChaCha20Poly1305,
        }
    }

    /// The back end that this key was expanded for.
    #[must_use]
    pub const fn backend(&self) -> Backend {
        match self.0 {
            Expanded::System(_) | Expanded::Aes(_) => Backend::AwsLc,
            Expanded::Portable(_) => Backend::Portable,
        }
    }

    /// With associated data, which the tunnel never has and test vectors do.
    #[inline]
    fn seal(&self, nonce: [u8; 12], aad: &[u8], text: &mut [u8]) -> [u8; TAG_LEN] {
        match &self.0 {
            Expanded::System(k) => k.seal(nonce, aad, text),
            Expanded::Portable(k) => k.seal(nonce, aad, text),
            Expanded::Aes(k) => k.seal(nonce, aad, text),
        }
    }

    /// `buf` is text and tag.
    #[inline]
    fn open(&self, nonce: [u8; 12], aad: &[u8], buf: &mut [u8]) -> bool {
        match &self.0 {
            Expanded::System(k) => k.open(nonce, aad, buf),
            Expanded::Portable(k) => k.open(nonce, aad, buf),
            Expanded::Aes(k) => k.open(nonce, aad, buf),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cipher() {
            Cipher::ChaCha20Poly1305 => write!(f, "Key({})", self.backend()),
            Cipher::Aes256Gcm => write!(f, "Key({})", Cipher::Aes256Gcm),
        }
    }
}

/// Raw key bytes on their way to [`Backend::key`]; zeroized when dropped.
pub type RawKey = Zeroizing<[u8; 32]>;

/// One packet to seal or open in place, without associated data.
#[derive(Debug)]
pub struct Job<'a> {
    /// The key of the packet's session and direction.
    pub key: &'a Key,
    /// The nonce is four zero bytes and this in little endian (WireGuard paper, section 5.4.6). The caller
    /// never uses a counter twice under one key.
    pub counter: u64,
    /// Text and, in the last [`TAG_LEN`] bytes, the tag. At least [`TAG_LEN`] bytes.
    pub buf: &'a mut [u8],
    /// Set by [`open`]: the tag was right. A job that is not `ok` has an all-zero `buf`.
    pub ok: bool,
}

impl<'a> Job<'a> {
    /// A job on `buf` (text and tag) under `key` with nonce `counter`.
    #[must_use]
    pub const fn new(key: &'a Key, counter: u64, buf: &'a mut [u8]) -> Self {
        Self { key, counter, buf, ok: false }
    }
}

fn nonce(counter: u64) -> [u8; 12] {
    let mut n = [0; 12];
    n[4..].copy_from_slice(&counter.to_le_bytes());
    n
}

/// Encrypts every job's text in place and puts its tag behind it. Always sets `ok`.
///
/// # Panics
/// If a `buf` is shorter than [`TAG_LEN`].
pub fn seal(jobs: &mut [Job<'_>]) {
    for job in jobs {
        let (text, tag) = job.buf.split_at_mut(job.buf.len() - TAG_LEN);
        let made = job.key.seal(nonce(job.counter), &[], text);
        tag.copy_from_slice(&made);
        job.ok = true;
    }
}

/// Checks every job's tag and decrypts its text in place; sets `ok` where the tag was right and wipes `buf`
/// where it was not. A job that fails does not disturb the others. Too short a `buf` is not `ok`.
pub fn open(jobs: &mut [Job<'_>]) {
    for job in jobs {
        job.ok = job.buf.len() >= TAG_LEN && job.key.open(nonce(job.counter), &[], job.buf);
        if !job.ok {
            job.buf.fill(0);
        }
    }
}
