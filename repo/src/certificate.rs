//! Whose signature counts: the authority, and the writers that it certified (FORMAT.md section 4).
//!
//! Not here: reading `writers/` from a store, which kinds of object a writer may sign ([`crate::sealed`]). What holds: a
//! writer is in [`Certificates`] only by an object that the authority signed, under the name of the key it certifies.

use crate::cbor::Map;
use crate::crypto::PublicKey;
use crate::error::{Error, Result};
use crate::id::SignerId;
use crate::keys::Keys;
use crate::sealed::{self, ObjectKind};
use crate::time::Timestamp;
use std::collections::HashMap;

/// The authority's word that a writer's key belongs to this repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The writer's public key.
    pub public: PublicKey,
    /// Whose it is, for people.
    pub label: String,
    /// When it was made.
    pub created: Timestamp,
}

impl Certificate {
    /// The name of the object that holds the certificate.
    #[must_use]
    pub fn object_name(&self) -> String {
        format!("writers/{}", self.public.signer_id())
    }

    /// The body of that object.
    pub fn encode(&self) -> Result<Vec<u8>> {
        Map::new()
            .with("public", self.public.as_bytes())
            .with("label", self.label.as_str())
            .with("created", self.created.seconds())
            .encode()
    }

    /// The certificate with this body.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let map = Map::decode(body)?;
        Ok(Certificate {
            public: PublicKey::new(map.array_of("public")?),
            label: map.text("label")?.to_owned(),
            created: Timestamp::from_seconds(map.uint("created")?)?,
        })
    }
}

/// The authority and the writers whose certificates were seen.
#[derive(Clone, Debug)]
pub struct Certificates {
    authority: PublicKey,
    authority_id: SignerId,
    writers: HashMap<SignerId, Certificate>,
}

impl Certificates {
    /// No writer yet: only the authority of `keys`.
    #[must_use]
    pub fn new(keys: &Keys) -> Self {
        let authority = keys.authority();
        Certificates { authority, authority_id: authority.signer_id(), writers: HashMap::new() }
    }

    /// Takes in the object `name` with these `bytes`, which is a certificate that the authority signed, or is refused.
    pub fn admit(&mut self, keys: &Keys, name: &str, bytes: &[u8]) -> Result<()> {
        let record = sealed::open(keys, self, ObjectKind::Certificate, name, bytes)?;
        let certificate = Certificate::decode(&record.body).map_err(|e| e.within(name))?;
        if certificate.object_name() != name {
            return Err(Error::corrupt(format!("{name} certifies the key of {}", certificate.public.signer_id())));
        }
        self.writers.insert(certificate.public.signer_id(), certificate);
        Ok(())
    }

    /// Whether `signer` is the authority.
    #[must_use]
    pub fn is_authority(&self, signer: SignerId) -> bool {
        signer == self.authority_id
    }

    /// The key that checks `signer`'s signatures; `None` when no certificate of that name was admitted.
    #[must_use]
    pub fn public(&self, signer: SignerId) -> Option<PublicKey> {
        if self.is_authority(signer) { Some(self.authority) } else { self.writers.get(&signer).map(|c| c.public) }
    }

    /// The certified writers, in no particular order.
    pub fn writers(&self) -> impl Iterator<Item = &Certificate> {
        self.writers.values()
    }
}
