//! Signatures (FORMAT.md section 4): Ed25519 over labelled bytes.
//!
//! Not here: who may sign what ([`crate::sealed`]), whose key is whose ([`crate::certificate`]). What holds: what is
//! signed begins with a label, and no label of the format is the beginning of another, so that a signature made for one
//! purpose never serves another.

use super::Key32;
use crate::error::{Error, Result};
use crate::id::SignerId;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, ParsedPublicKey};
use std::fmt;

/// Length of a signature in bytes.
pub const SIGNATURE_LEN: usize = 64;

/// The public half of a signing key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The key with these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        PublicKey(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The name of the key's holder.
    #[must_use]
    pub fn signer_id(&self) -> SignerId {
        let mut id = [0; SignerId::LEN];
        blake3::Hasher::new().update(&self.0).finalize_xof().fill(&mut id);
        SignerId(id)
    }

    /// Checks that the holder of the key signed `parts` laid end to end, beginning with a label; `Corrupt` if not.
    pub fn verify(&self, parts: &[&[u8]], signature: &[u8]) -> Result<()> {
        ParsedPublicKey::new(&ED25519, self.0)
            .ok()
            .and_then(|key| key.verify_sig(&parts.concat(), signature).ok())
            .ok_or_else(|| Error::corrupt(format!("the signature is not one by {} over these bytes", self.signer_id())))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey of {}", self.signer_id())
    }
}

/// A signing key.
pub struct Signer {
    seed: Key32,
    pair: Ed25519KeyPair,
    public: PublicKey,
    id: SignerId,
}

impl Signer {
    /// The signing key of an Ed25519 seed (RFC 8032).
    pub fn from_seed(seed: Key32) -> Result<Self> {
        let broken = || Error::internal("Ed25519 refused a seed of 32 bytes");
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.expose()).map_err(|_| broken())?;
        let public = <[u8; 32]>::try_from(pair.public_key().as_ref()).map(PublicKey).map_err(|_| broken())?;
        Ok(Signer { seed, pair, public, id: public.signer_id() })
    }

    /// The name that goes with what this key signs.
    #[must_use]
    pub fn id(&self) -> SignerId {
        self.id
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs `parts` laid end to end, beginning with the label of the purpose.
    #[must_use]
    pub fn sign(&self, parts: &[&[u8]]) -> [u8; SIGNATURE_LEN] {
        let mut out = [0; SIGNATURE_LEN];
        let signature = self.pair.sign(&parts.concat());
        out.iter_mut().zip(signature.as_ref()).for_each(|(to, from)| *to = *from);
        out
    }

    /// The seed, for the key bundle.
    pub(crate) fn seed(&self) -> &Key32 {
        &self.seed
    }
}
