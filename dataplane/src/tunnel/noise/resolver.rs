//! The primitives that `snow` computes a handshake with: curve and cipher wipe their keys, the curve refuses
//! degenerate points, and randomness comes from outside.

use super::{Entropy, PublicKey};
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Tag};
use snow::Error;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

pub(super) struct Primitives {
    own_public: PublicKey,
    entropy: Entropy,
}

impl Primitives {
    /// `own_public` belongs to the private key that the handshake will be built with: it is not computed
    /// again each time.
    pub(super) const fn new(own_public: PublicKey, entropy: Entropy) -> Self {
        Self { own_public, entropy }
    }
}

impl CryptoResolver for Primitives {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Once(Some(self.entropy.clone()))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        match choice {
            DHChoice::Curve25519 => {
                Some(Box::new(X25519 { secret: StaticSecret::from([0; 32]), public: self.own_public.0 }))
            }
            _ => None,
        }
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        match choice {
            CipherChoice::ChaChaPoly => Some(Box::new(ChaChaPoly::default())),
            _ => None,
        }
    }
}

/// Entropy for one ephemeral key. A second draw is an error rather than the same bytes again.
struct Once(Option<Entropy>);

impl Random for Once {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
        match self.0.take() {
            Some(entropy) if entropy.len() == dest.len() => {
                dest.copy_from_slice(&*entropy);
                Ok(())
            }
            _ => Err(Error::Rng),
        }
    }
}

struct X25519 {
    secret: StaticSecret,
    public: [u8; 32],
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    /// Only ever called with our static key, whose public key is there already.
    fn set(&mut self, private: &[u8]) {
        if let Ok(bytes) = <[u8; 32]>::try_from(private) {
            self.secret = StaticSecret::from(bytes);
        }
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.try_fill_bytes(&mut *bytes)?;
        self.secret = StaticSecret::from(*bytes);
        self.public = x25519_dalek::PublicKey::from(&self.secret).to_bytes();
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        self.secret.as_bytes()
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let public = public.first_chunk::<32>().ok_or(Error::Dh)?;
        let shared = self.secret.diffie_hellman(&x25519_dalek::PublicKey::from(*public));
        if !shared.was_contributory() {
            return Err(Error::Dh);
        }
        out.first_chunk_mut::<32>().ok_or(Error::Dh)?.copy_from_slice(shared.as_bytes());
        Ok(())
    }
}

#[derive(Default)]
struct ChaChaPoly {
    key: Zeroizing<[u8; 32]>,
}

impl ChaChaPoly {
    fn cipher(&self) -> ChaCha20Poly1305 {
        ChaCha20Poly1305::new((&*self.key).into())
    }
}

fn nonce(n: u64) -> chacha20poly1305::Nonce {
    let mut out = [0; 12];
    out[4..].copy_from_slice(&n.to_le_bytes());
    out.into()
}

impl Cipher for ChaChaPoly {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.key = Zeroizing::new(*key);
    }

    fn encrypt(&self, n: u64, ad: &[u8], text: &[u8], out: &mut [u8]) -> usize {
        let Some((body, rest)) = out.split_at_mut_checked(text.len()) else { return 0 };
        body.copy_from_slice(text);
        let (Ok(tag), Some(place)) =
            (self.cipher().encrypt_inout_detached(&nonce(n), ad, body.into()), rest.first_chunk_mut::<16>())
        else {
            return 0;
        };
        place.copy_from_slice(&tag);
        text.len() + 16
    }

    fn decrypt(&self, n: u64, ad: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let (body, tag) = sealed.split_last_chunk::<16>().ok_or(Error::Decrypt)?;
        let out = out.get_mut(..body.len()).ok_or(Error::Decrypt)?;
        out.copy_from_slice(body);
        let opened = self.cipher().decrypt_inout_detached(&nonce(n), ad, (&mut *out).into(), &Tag::from(*tag));
        opened.map_err(|_| Error::Decrypt)?;
        Ok(body.len())
    }
}
