//! Batched ChaCha20-Poly1305 (RFC 8439): one interface, several back ends, chosen once at start. Sessions between
//! nodes that agreed on it have AES-256-GCM behind the same interface ([`Cipher`]).
//!
//! Callers hand over whole batches ([`seal`], [`open`]) because the pipeline always has one: the segments
//! of a super-packet or the datagrams of a GRO buffer. `lanes` works on all packets of a batch at once, in the
//! CPU's vectors; the libraries do one packet after the other.

#[cfg(test)]
mod aes_tests;
mod batch;
mod cipher;
mod lanes;
mod portable;
mod system;
#[cfg(test)]
mod tests;

pub use cipher::{Cipher, Speeds, aes_key, has_aes};

use batch::Task;
use lanes::Lanes;
use std::fmt;
use std::str::FromStr;
use zeroize::{Zeroize, Zeroizing};

/// Length in bytes of the tag behind every ciphertext.
pub const TAG_LEN: usize = 16;

/// An implementation of ChaCha20-Poly1305. All produce the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Our own, sixteen lanes: AVX-512 with IFMA and VBMI2.
    Avx512,
    /// Our own, eight lanes.
    Avx2,
    /// `aws-lc-rs`: assembly for the CPU at hand.
    AwsLc,
    /// The `chacha20poly1305` crate: portable Rust.
    Portable,
}

impl Backend {
    /// Every back end, best first.
    pub const ALL: [Self; 4] = [Self::Avx512, Self::Avx2, Self::AwsLc, Self::Portable];

    /// The best back end for this CPU. AWS-LC picks its own assembly by CPU feature at run time, down to
    /// SSSE3 on x86-64 and NEON on aarch64; without those its generic C is slower than portable Rust.
    #[must_use]
    pub fn detect() -> Self {
        Self::available().next().unwrap_or(Self::Portable)
    }

    /// Those that this CPU can do, best first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|b| b.is_available())
    }

    /// Whether this CPU can do it (and, of the libraries, is meant to).
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Avx512 => Lanes::avx512().is_some(),
            Self::Avx2 => Lanes::avx2().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::AwsLc => std::arch::is_x86_feature_detected!("ssse3"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::AwsLc => cfg!(target_arch = "aarch64"),
            Self::Portable => true,
        }
    }

    /// Its name, as `--aead` takes it and `doctor` shows it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::AwsLc => "aws-lc",
            Self::Portable => "portable",
        }
    }

    /// Expands `key` for this back end; for AWS-LC, where this CPU cannot do it.
    #[must_use]
    pub fn key(self, key: &[u8; 32]) -> Key {
        let lanes = |lanes: Option<Lanes>| match lanes {
            Some(lanes) => Expanded::Lanes(Box::new(LanesKey::new(lanes, key))),
            None => Expanded::System(system::Key::chacha20poly1305(key)),
        };
        Key(match self {
            Self::Avx512 => lanes(Lanes::avx512()),
            Self::Avx2 => lanes(Lanes::avx2()),
            Self::AwsLc => Expanded::System(system::Key::chacha20poly1305(key)),
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
        match Self::ALL.into_iter().find(|b| b.name() == s) {
            Some(b) if b.is_available() => Ok(b),
            Some(_) => Err(format!("this CPU has not what the cipher back end \"{s}\" needs: leave the choice to us")),
            None => {
                let names = Self::available().map(Self::name).collect::<Vec<_>>().join(", ");
                Err(format!("no cipher back end is called \"{s}\": here there are {names}"))
            }
        }
    }
}

/// An expanded key, bound to a back end. Zeroized when dropped; its `Debug` shows nothing of it.
pub struct Key(Expanded);

enum Expanded {
    Lanes(Box<LanesKey>),
    System(system::Key),
    Portable(Box<portable::Key>),
    Aes(system::Key),
}

/// A key for lanes, and for the library that does what is too little for them.
struct LanesKey {
    lanes: Lanes,
    words: [u32; 8],
    library: system::Key,
}

impl LanesKey {
    fn new(lanes: Lanes, key: &[u8; 32]) -> Self {
        let mut words = [0; 8];
        for (word, bytes) in words.iter_mut().zip(key.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        Self { lanes, words, library: system::Key::chacha20poly1305(key) }
    }
}

impl Drop for LanesKey {
    fn drop(&mut self) {
        self.words.zeroize();
    }
}

impl Key {
    /// Expands `key` for AES-256-GCM.
    #[must_use]
    pub fn aes256gcm(key: &[u8; 32]) -> Self {
        Self(Expanded::Aes(system::Key::aes256gcm(key)))
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
        match &self.0 {
            Expanded::Lanes(k) => k.lanes.backend(),
            Expanded::System(_) | Expanded::Aes(_) => Backend::AwsLc,
            Expanded::Portable(_) => Backend::Portable,
        }
    }

    /// With associated data, which the tunnel never has and test vectors do.
    #[inline]
    fn seal(&self, nonce: [u8; 12], aad: &[u8], text: &mut [u8]) -> [u8; TAG_LEN] {
        match &self.0 {
            Expanded::Lanes(k) => k.library.seal(nonce, aad, text),
            Expanded::System(k) | Expanded::Aes(k) => k.seal(nonce, aad, text),
            Expanded::Portable(k) => k.seal(nonce, aad, text),
        }
    }

    /// `buf` is text and tag.
    #[inline]
    fn open(&self, nonce: [u8; 12], aad: &[u8], buf: &mut [u8]) -> bool {
        match &self.0 {
            Expanded::Lanes(k) => k.library.open(nonce, aad, buf),
            Expanded::System(k) | Expanded::Aes(k) => k.open(nonce, aad, buf),
            Expanded::Portable(k) => k.open(nonce, aad, buf),
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

/// One packet to seal or open, without associated data.
#[derive(Debug)]
pub struct Job<'a> {
    /// The key of the packet's session and direction.
    pub key: &'a Key,
    /// The nonce is four zero bytes and this in little endian (WireGuard paper, section 5.4.6). The caller
    /// never uses a counter twice under one key.
    pub counter: u64,
    /// Text and, in the last [`TAG_LEN`] bytes, the tag. At least [`TAG_LEN`] bytes.
    pub buf: &'a mut [u8],
    /// Where a part of the text is read from instead, and its position in the text: see [`Job::sealing`].
    from: Option<(usize, &'a [u8])>,
    /// Set by [`open`]: the tag was right. A job that is not `ok` has an all-zero `buf`.
    pub ok: bool,
}

impl<'a> Job<'a> {
    /// A job in place on `buf` (text and tag) under `key` with nonce `counter`.
    #[must_use]
    pub const fn new(key: &'a Key, counter: u64, buf: &'a mut [u8]) -> Self {
        Self { key, counter, buf, from: None, ok: false }
    }

    /// A job that seals out of place: the text is what `buf` has, but from `head` on `body`, which need not be
    /// copied first. What `body` does not cover (headers before it, padding behind it) is in `buf`.
    ///
    /// # Panics
    /// If `buf` has not room for all that.
    #[must_use]
    pub const fn sealing(key: &'a Key, counter: u64, buf: &'a mut [u8], head: usize, body: &'a [u8]) -> Self {
        assert!(head + body.len() + TAG_LEN <= buf.len(), "the body is within the text");
        Self { key, counter, buf, from: Some((head, body)), ok: false }
    }
}

fn nonce(counter: u64) -> [u8; 12] {
    let mut n = [0; 12];
    n[4..].copy_from_slice(&counter.to_le_bytes());
    n
}

/// Encrypts every job's text and puts its tag behind it. Always sets `ok`.
///
/// # Panics
/// If a `buf` is shorter than [`TAG_LEN`].
pub fn seal(jobs: &mut [Job<'_>]) {
    batch::run(Task::Seal, jobs);
}

/// Checks every job's tag and decrypts its text in place; sets `ok` where the tag was right and wipes `buf`
/// where it was not. A job that fails does not disturb the others. Too short a `buf` is not `ok`.
pub fn open(jobs: &mut [Job<'_>]) {
    batch::run(Task::Open, jobs);
}
