//! Many packets at once: ChaCha20-Poly1305 with a packet, or a part of one, in each lane of the CPU's vectors.
//!
//! Libraries work on one packet at a time: their lanes run dry on short packets and in the last blocks of every
//! packet, and each pays for its one-time key and powers of `r` alone. Here the lanes belong to different
//! packets, each with its own key, nonce and counter, and a batch of small packets is as dense as one of
//! large ones.
//!
//! [`isa`] says what is needed of an instruction set; `avx512` and `avx2` have it. [`chacha`], [`poly`] and
//! [`group`] are the cipher, written once. No branch and no index depends on a secret.

// Indices on purpose: iterators take closures, and vectors are slow in those (see `isa`).
#![allow(clippy::needless_range_loop)]

#[cfg(test)]
mod array;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod chacha;
mod group;
mod isa;
mod poly;
mod scalar;
#[cfg(test)]
pub(super) mod tests;

pub(super) use group::{Batch, PACKETS_MAX, Packet};

use super::Backend;

/// An instruction set that this CPU has.
#[derive(Clone, Copy)]
pub(super) enum Lanes {
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(test)]
    Twin16,
    #[cfg(test)]
    Twin8,
}

impl Lanes {
    /// AVX-512 with 52-bit multiply-add.
    pub(super) fn avx512() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        return avx512::Avx512::detect().map(Self::Avx512);
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    pub(super) fn avx2() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        return avx2::Avx2::detect().map(Self::Avx2);
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// What `--aead` calls it.
    pub(super) const fn backend(self) -> Backend {
        if self.width() == 16 { Backend::Avx512 } else { Backend::Avx2 }
    }

    /// Packets that a group takes.
    pub(super) const fn width(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => 16,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => 8,
            #[cfg(test)]
            Self::Twin16 => 16,
            #[cfg(test)]
            Self::Twin8 => 8,
        }
    }

    /// How many of `n` packets, the longest of which has `len` bytes, make up a group: none if a library is faster
    /// at them one by one. Measured (BENCHMARKS.md, "Small batches").
    pub(super) const fn group_of(self, n: usize, len: usize) -> usize {
        // Lanes have nothing to do if the number is not a power of two: what is a little more is better left for another
        // group. The shorter the texts and the fewer their passes, the less that is.
        let power = 1 << n.ilog2();
        let little = if len <= 128 {
            power / 8
        } else if len <= 256 || power < 8 {
            power / 4
        } else {
            power / 2
        };
        let n = if n <= power + little { power } else { n };
        match self.width() {
            16 if n >= 3 => n,
            8 if n == 8 || (n >= 4 && len <= 512) || (n == 3 && len <= 128) => n,
            _ => 0,
        }
    }

    /// Encrypts a batch's texts and sets the tags.
    pub(super) fn seal(self, batch: &mut Batch<'_>) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(isa) => isa.seal(batch),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(isa) => isa.seal(batch),
            #[cfg(test)]
            Self::Twin16 => array::Array::<16>.seal(batch),
            #[cfg(test)]
            Self::Twin8 => array::Array::<8>.seal(batch),
        }
    }

    /// Decrypts a batch's texts and compares the tags. What a packet's text is whose tag was wrong is not said: the caller
    /// wipes it.
    pub(super) fn open(self, batch: &mut Batch<'_>) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(isa) => isa.open(batch),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(isa) => isa.open(batch),
            #[cfg(test)]
            Self::Twin16 => array::Array::<16>.open(batch),
            #[cfg(test)]
            Self::Twin8 => array::Array::<8>.open(batch),
        }
    }
}
