//! The key of one generation of a fork, and how the fork's header keeps it: sealed to the repository's data key.
//!
//! ```text
//!   ForkKey, 32 random bytes --HKDF--> AES-256-XTS of the blocks, MAC of the journal
//!      '- sealed with HPKE to the newest data key, bound to the header it lies in -> WrappedForkKey
//! ```
//!
//! Not here: the fork, which the gateway has; the primitives ([`crate::crypto`]). What holds: who reads the repository's
//! content opens a fork, a writer does not; a wrapped key opens under the header that it was made for only, so that no
//! field of it can be exchanged.

use crate::cbor::Map;
use crate::crypto::{Key32, Secret, XtsKey, hkdf, open_with, seal_to};
use crate::entropy::Entropy;
use crate::error::{Error, Kind, Result};
use crate::id::RecipientId;
use crate::repository::Repository;

const INFO: &[u8] = b"coffer v1 fork key";
const BLOCKS: &[u8] = b"coffer v1 fork blocks";
const TWEAKS: &[u8] = b"coffer v1 fork tweaks";
const JOURNAL: &[u8] = b"coffer v1 fork journal";

/// The secret of one generation of a fork.
pub struct ForkKey(Key32);

impl ForkKey {
    /// A fresh one.
    pub fn generate(entropy: &dyn Entropy) -> Result<Self> {
        Secret::random(entropy).map(ForkKey)
    }

    /// What the blocks are encrypted with.
    pub fn blocks(&self) -> Result<XtsKey> {
        let mut key = XtsKey::new([0; 64]);
        let (blocks, tweaks) = key.expose_mut().split_at_mut(32);
        blocks.copy_from_slice(hkdf(&[], &self.0, &[BLOCKS])?.expose());
        tweaks.copy_from_slice(hkdf(&[], &self.0, &[TWEAKS])?.expose());
        Ok(key)
    }

    /// What the journal's records are authenticated with.
    pub fn journal(&self) -> Result<Key32> {
        hkdf(&[], &self.0, &[JOURNAL])
    }
}

/// A [`ForkKey`] as a header keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedForkKey {
    /// Name of the data key that it is sealed to.
    pub recipient: RecipientId,
    /// The sealed key.
    pub sealed: Vec<u8>,
}

impl WrappedForkKey {
    /// As an element of a header.
    #[must_use]
    pub fn to_map(&self) -> Map {
        Map::new().with("recipient", &self.recipient.0).with("sealed", self.sealed.as_slice())
    }

    /// From an element of a header.
    pub fn from_map(map: &Map) -> Result<Self> {
        Ok(WrappedForkKey { recipient: RecipientId(map.array_of("recipient")?), sealed: map.bytes("sealed")?.to_vec() })
    }
}

impl Repository {
    /// Seals a fork's key to the newest data key, bound to `header`. `WrongKey` unless this session could open it again.
    pub fn wrap_fork_key(&self, key: &ForkKey, header: &[u8]) -> Result<WrappedForkKey> {
        self.check_full("make forks, whose content it could not read")?;
        self.keys().check_newest("make forks")?;
        let (_, public) = self.keys().data_key();
        let sealed = seal_to(&public, INFO, header, key.0.expose(), self.entropy())?;
        Ok(WrappedForkKey { recipient: public.recipient_id(), sealed })
    }

    /// Opens a fork's key, looking for a newer slot of this session's credential when its data key is not known here. `Corrupt`
    /// when it was not sealed for this `header`, `WrongKey` when this session lacks the data key.
    pub fn open_fork_key(&self, wrapped: &WrappedForkKey, header: &[u8]) -> Result<ForkKey> {
        self.check_full("open forks")?;
        let private = match self.keys().data_private(wrapped.recipient) {
            None if self.catch_up(&[wrapped.recipient])? => self.keys().data_private(wrapped.recipient),
            found => found,
        };
        let private = private.ok_or_else(|| {
            let why = "the fork is sealed to a data key that this key lacks; open the repository with the key that made \
                       it, or with one that was added since";
            Error::new(Kind::WrongKey, why)
        })?;
        let opened = open_with(&private, INFO, header, &wrapped.sealed)?;
        Ok(ForkKey(Secret::from_slice(&opened)?))
    }
}
