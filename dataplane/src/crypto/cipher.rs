//! Which cipher a session has: WireGuard's own, or AES-256-GCM (NIST SP 800-38D) with the same nonces.

use super::{Backend, Job, Key, RawKey, TAG_LEN, seal};
use crate::Time;
use aws_lc_rs::aead::AES_256_GCM;
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use zeroize::Zeroizing;

/// The label that AES keys are derived with: nothing else is derived from transport keys.
const AES_LABEL: &[u8] = b"ipop-fast AES-256-GCM v1";

/// Packets of a measured batch, as a super-packet has them.
const BATCH: usize = 32;
/// Bytes of each: what a link with an MTU of 1,420 carries.
const PACKET: usize = 1420;
/// The best of so many batches counts: what interrupts one does not interrupt all. Both ciphers take about a
/// millisecond together.
const ROUNDS: u64 = 10;

/// A cipher for packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// ChaCha20-Poly1305 (RFC 8439), as WireGuard has it.
    ChaCha20Poly1305,
    /// AES-256-GCM, only between nodes that agreed on it.
    Aes256Gcm,
}

impl Cipher {
    /// Both.
    pub const ALL: [Self; 2] = [Self::ChaCha20Poly1305, Self::Aes256Gcm];

    /// Its name in settings, descriptors and status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ChaCha20Poly1305 => "chacha20poly1305",
            Self::Aes256Gcm => "aes256gcm",
        }
    }

    /// Expands a transport key of WireGuard's for this cipher, ChaCha20-Poly1305 by `backend`. AES-256-GCM gets a key
    /// that is derived from it ([`aes_key`]).
    #[must_use]
    pub fn key(self, backend: Backend, transport: &RawKey) -> Key {
        match self {
            Self::ChaCha20Poly1305 => backend.key(transport),
            Self::Aes256Gcm => Key::aes256gcm(&aes_key(transport)),
        }
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Cipher {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|c| c.name() == s);
        found.ok_or_else(|| format!("no cipher is called \"{s}\": use one of chacha20poly1305, aes256gcm"))
    }
}

/// The AES key that belongs to a transport key: HKDF-SHA256 (RFC 5869) without salt, `AES_LABEL` as `info`. So no key
/// serves two ciphers, and one says nothing about the other.
#[must_use]
pub fn aes_key(transport: &RawKey) -> RawKey {
    let mut out = Zeroizing::new([0; 32]);
    // Intermediate keys are wiped when they are dropped.
    let extracted = Salt::none(HKDF_SHA256).extract(&**transport);
    let info = [AES_LABEL];
    // They fail on more than 255 blocks, and on another length than that of the key.
    let expanded = extracted.expand(&info, &AES_256_GCM).expect("one block");
    expanded.fill(&mut *out).expect("32 bytes");
    out
}

/// Whether the CPU has instructions for AES and for GCM's multiplication. AES-256-GCM works without, but slowly.
#[must_use]
pub fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// How fast one core seals packets of 1,420 bytes, in bytes a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speeds {
    /// ChaCha20-Poly1305 by the chosen back end.
    pub chacha20poly1305: f64,
    /// AES-256-GCM.
    pub aes256gcm: f64,
    /// The CPU has instructions for AES ([`has_aes`]).
    pub has_aes: bool,
}

impl Speeds {
    /// Measures both, a millisecond or two, by the clock `now`.
    pub fn measure(backend: Backend, mut now: impl FnMut() -> Time) -> Self {
        Self {
            chacha20poly1305: speed(&backend.key(&[0x5a; 32]), &mut now),
            aes256gcm: speed(&Key::aes256gcm(&[0xa5; 32]), &mut now),
            has_aes: has_aes(),
        }
    }

    /// AES-256-GCM is the faster one, and not by chance: the CPU is made for it.
    #[must_use]
    pub fn prefers_aes(&self) -> bool {
        self.has_aes && self.aes256gcm > self.chacha20poly1305
    }
}

impl fmt::Display for Speeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (chacha, aes) = (self.chacha20poly1305 / 1e9, self.aes256gcm / 1e9);
        let without = if self.has_aes { "" } else { " without instructions for it" };
        write!(f, "ChaCha20-Poly1305 {chacha:.1} GB/s, AES-256-GCM{without} {aes:.1} GB/s")
    }
}

fn speed(key: &Key, now: &mut impl FnMut() -> Time) -> f64 {
    let mut packets = vec![[0u8; PACKET + TAG_LEN]; BATCH];
    let mut best = Duration::MAX;
    for round in 0..ROUNDS {
        let counters = round * BATCH as u64..;
        let mut jobs: Vec<Job<'_>> = packets.iter_mut().zip(counters).map(|(p, n)| Job::new(key, n, p)).collect();
        let start = now();
        seal(&mut jobs);
        best = best.min(now().since(start));
    }
    (BATCH * PACKET) as f64 / best.as_secs_f64().max(1e-9)
}
