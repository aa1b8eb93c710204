//! The cryptography of the format: what is hashed, sealed and signed, with which primitive, under which label.
//!
//! ```text
//!   Secret, hkdf            bytes that are wiped, keys derived from keys             HKDF-SHA256
//!   FrameKey (frame)        seals and opens the frames of objects                    AES-256-GCM, ChaCha20-Poly1305
//!   IdKey (id_key)          names content: chunk ids, node ids, workload tags        keyed BLAKE3
//!   Signer (signature)      who wrote it                                             Ed25519
//!   PackKey (pack_key)      the key of a data pack, sealed to the data public key    HPKE base mode, X25519
//!   Xts (xts)               blocks of forks, where they lie                          AES-256-XTS
//! ```
//!
//! Not here: which key a session holds ([`crate::keys`]), what is sealed ([`crate::sealed`] and the packs), where randomness
//! comes from ([`crate::entropy`]). What holds: secrets are wiped when dropped, are never shown by `Debug` and never part of
//! an error; a frame's nonce is its offset, so a key never seals two different contents at one offset.

mod frame;
mod id_key;
mod pack_key;
mod signature;
mod xts;

pub use frame::{Aead, Codec, FrameAt, FrameKey, TAG_LEN};
pub use id_key::IdKey;
pub use pack_key::{DataPrivate, DataPublic, KEM_X25519, KeySlot, PackKey, open_with, seal_to};
pub use signature::{PublicKey, SIGNATURE_LEN, Signer};
pub use xts::{XTS_UNIT, Xts, XtsDirection, XtsKey};

use crate::entropy::Entropy;
use crate::error::{Error, Result};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Secret bytes: wiped when dropped, shown by nothing.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret<const N: usize>([u8; N]);

/// A 256-bit key or seed.
pub type Key32 = Secret<32>;

impl<const N: usize> Secret<N> {
    /// Takes charge of `bytes`.
    #[must_use]
    pub fn new(bytes: [u8; N]) -> Self {
        Secret(bytes)
    }

    /// Fresh random bytes.
    pub fn random(entropy: &dyn Entropy) -> Result<Self> {
        let mut secret = Secret([0; N]);
        entropy.fill(&mut secret.0)?;
        Ok(secret)
    }

    /// A copy of `bytes`; a wrong length is `Corrupt`.
    pub fn from_slice(bytes: &[u8]) -> Result<Self> {
        <[u8; N]>::try_from(bytes)
            .map(Secret)
            .map_err(|_| Error::corrupt(format!("a key of {} bytes where {N} are due", bytes.len())))
    }

    /// The bytes, for the primitive that needs them.
    #[must_use]
    pub fn expose(&self) -> &[u8; N] {
        &self.0
    }

    /// The bytes, for the primitive that fills them in.
    pub(crate) fn expose_mut(&mut self) -> &mut [u8; N] {
        &mut self.0
    }
}

/// HKDF-SHA256: 32 bytes from `ikm` under `salt`, bound to the parts of `info` laid end to end.
pub fn hkdf(salt: &[u8], ikm: &Key32, info: &[&[u8]]) -> Result<Key32> {
    let mut out = Secret([0; 32]);
    Salt::new(HKDF_SHA256, salt)
        .extract(ikm.expose())
        .expand(info, HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut out.0))
        .map_err(|_| Error::internal("HKDF-SHA256 failed"))?;
    Ok(out)
}
