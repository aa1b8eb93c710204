//! An opened key bundle: every key that a session holds, and what each may be used for (FORMAT.md section 3).
//!
//! ```text
//!                         id key   structure key   data public   data private   signs as
//!   full bundle              x           x              x              x        the authority
//!   writer bundle            x           x              x                       itself, with a certificate
//! ```
//!
//! Not here: how a bundle is kept in a repository ([`crate::key_slot`]), whose signature counts where ([`crate::sealed`]).
//! What holds: a bundle has at least one data key, in rising epochs, of which the last one is for new packs; a full bundle
//! has the private half of each; the structure key leaves this file only as a key derived for one purpose.

use crate::cbor::{Map, Value};
use crate::certificate::Certificate;
use crate::crypto::hkdf;
use crate::crypto::{
    Aead, DataPrivate, DataPublic, FrameKey, IdKey, Key32, KeySlot, PackKey, PublicKey, Secret, Signer,
};
use crate::entropy::Entropy;
use crate::error::{Error, Kind, Result};
use crate::id::{PackUid, RecipientId, RepoId};
use crate::time::Timestamp;
use std::fmt;
use zeroize::Zeroizing;

const OBJECT_KEY: &[u8] = b"coffer v1 object";
const TREE_PACK_KEY: &[u8] = b"coffer v1 tree pack";
const CONTENTS_KEY: &[u8] = b"coffer v1 pack contents";
/// The epoch of a new repository's data key; 0 stands for "none" in the headers of tree packs.
const FIRST_EPOCH: u32 = 1;

/// The keys of one repository, as far as this session has them.
pub struct Keys {
    repo: RepoId,
    id_key: IdKey,
    structure: Key32,
    authority: PublicKey,
    signer: Signer,
    /// Never empty, epochs rising.
    data: Vec<DataKey>,
    /// The last of `data`.
    latest: (u32, DataPublic),
}

struct DataKey {
    epoch: u32,
    public: DataPublic,
    private: Option<DataPrivate>,
}

impl Keys {
    /// The full bundle of a new repository.
    pub fn generate(repo: RepoId, entropy: &dyn Entropy) -> Result<Self> {
        let id_key = IdKey::new(Secret::random(entropy)?);
        let structure = Secret::random(entropy)?;
        let signer = Signer::from_seed(Secret::random(entropy)?)?;
        let private = DataPrivate::new(Secret::random(entropy)?);
        let data = DataKey { epoch: FIRST_EPOCH, public: private.public()?, private: Some(private) };
        Keys::assemble(repo, id_key, structure, signer.public(), signer, vec![data])
    }

    /// The bundle of a new writer, and the certificate that the authority has to sign and store for it. `label` says
    /// whose it is, `created` is now. `WrongKey` unless this bundle is a full one.
    pub fn export_writer(&self, label: &str, created: Timestamp, entropy: &dyn Entropy) -> Result<(Keys, Certificate)> {
        if !self.is_full() {
            return Err(Error::new(Kind::WrongKey, "only the holder of a full key bundle can export a writer's"));
        }
        let signer = Signer::from_seed(Secret::random(entropy)?)?;
        let certificate = Certificate { public: signer.public(), label: label.to_owned(), created };
        let data =
            self.data.iter().map(|key| DataKey { epoch: key.epoch, public: key.public, private: None }).collect();
        let keys =
            Keys::assemble(self.repo, self.id_key.clone(), self.structure.clone(), self.authority, signer, data)?;
        Ok((keys, certificate))
    }

    /// Whether this bundle reads content and signs as the authority.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.signer.public() == self.authority
    }

    /// The repository that the keys belong to.
    #[must_use]
    pub fn repo(&self) -> RepoId {
        self.repo
    }

    /// Names content.
    #[must_use]
    pub fn id_key(&self) -> &IdKey {
        &self.id_key
    }

    /// Whose signature decides.
    #[must_use]
    pub fn authority(&self) -> PublicKey {
        self.authority
    }

    /// Signs what this session writes.
    #[must_use]
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    /// The epoch of the data key for new packs.
    #[must_use]
    pub fn data_epoch(&self) -> u32 {
        self.latest.0
    }

    /// The data key for new packs.
    #[must_use]
    pub fn data_public(&self) -> DataPublic {
        self.latest.1
    }

    /// The private half of the data key with this name; `None` when this bundle does not have it.
    #[must_use]
    pub fn data_private(&self, recipient: RecipientId) -> Option<&DataPrivate> {
        self.data.iter().find(|key| key.public.recipient_id() == recipient)?.private.as_ref()
    }

    /// The key of the data pack `uid` from the slots in its header, checked against the header's commitment. `WrongKey` when
    /// no slot is for this bundle.
    pub fn open_pack_key(&self, uid: PackUid, slots: &[KeySlot], commitment: &[u8; 16]) -> Result<PackKey> {
        let (slot, private) =
            slots.iter().find_map(|slot| Some((slot, self.data_private(slot.recipient)?))).ok_or_else(|| {
                let why = if self.is_full() {
                    "this key bundle lacks its data key"
                } else {
                    "a writer's keys read no content"
                };
                Error::new(Kind::WrongKey, format!("pack {uid} cannot be read: {why}"))
            })?;
        PackKey::unwrap(slot, private, uid, self.repo, commitment)
    }

    /// The key of the sealed object of this kind with this salt (FORMAT.md section 4).
    pub fn object_key(&self, kind: u8, salt: &[u8; 32], aead: Aead) -> Result<FrameKey> {
        FrameKey::new(aead, &hkdf(salt, &self.structure, &[OBJECT_KEY, &[kind]])?)
    }

    /// The key of the frames of the tree pack `uid` (FORMAT.md section 5).
    pub fn tree_pack_key(&self, uid: PackUid, aead: Aead) -> Result<FrameKey> {
        FrameKey::new(aead, &hkdf(&uid.0, &self.structure, &[TREE_PACK_KEY])?)
    }

    /// The key of the table of contents of the pack `uid`, of either kind (FORMAT.md section 5).
    pub fn contents_key(&self, uid: PackUid, aead: Aead) -> Result<FrameKey> {
        FrameKey::new(aead, &hkdf(&uid.0, &self.structure, &[CONTENTS_KEY])?)
    }

    /// The bundle's bytes, for a key slot.
    pub(crate) fn encode(&self) -> Result<Zeroizing<Vec<u8>>> {
        let data = self.data.iter().map(|key| {
            let map = Map::new().with("epoch", key.epoch).with("public", key.public.as_bytes());
            Value::Map(match &key.private {
                Some(private) => map.with("private", private.secret().expose()),
                None => map,
            })
        });
        let (kind, seed) = if self.is_full() { ("full", "authority_seed") } else { ("writer", "writer_seed") };
        let map = Map::new()
            .with("kind", kind)
            .with("repo", &self.repo.0)
            .with("id_key", self.id_key.secret().expose())
            .with("structure_key", self.structure.expose())
            .with("authority", self.authority.as_bytes())
            .with("data", data.collect::<Vec<_>>())
            .with(seed, self.signer.seed().expose());
        Zeroizing::new(map).encode().map(Zeroizing::new)
    }

    /// The bundle with these bytes. One that contradicts itself is `Corrupt`, one of a kind unknown here `Unsupported`.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let map = Zeroizing::new(Map::decode(bytes)?);
        let full = match map.text("kind")? {
            "full" => true,
            "writer" => false,
            other => {
                let why = format!("a key bundle of kind '{other}', which this version does not know");
                return Err(Error::new(Kind::Unsupported, why));
            }
        };
        let authority = PublicKey::new(map.array_of("authority")?);
        let signer = Signer::from_seed(secret(&map, if full { "authority_seed" } else { "writer_seed" })?)?;
        if full != (signer.public() == authority) {
            return Err(Error::corrupt("a key bundle whose signing key is not the one of its kind"));
        }
        let data = map.list("data")?.iter().map(|value| DataKey::decode(value, full)).collect::<Result<Vec<_>>>()?;
        let id_key = IdKey::new(secret(&map, "id_key")?);
        Keys::assemble(RepoId(map.array_of("repo")?), id_key, secret(&map, "structure_key")?, authority, signer, data)
    }

    fn assemble(
        repo: RepoId,
        id_key: IdKey,
        structure: Key32,
        authority: PublicKey,
        signer: Signer,
        data: Vec<DataKey>,
    ) -> Result<Self> {
        let rising = data.iter().zip(data.iter().skip(1)).all(|(older, newer)| older.epoch < newer.epoch)
            && data.first().is_some_and(|key| key.epoch >= FIRST_EPOCH);
        let latest = data.last().map(|key| (key.epoch, key.public));
        match latest {
            Some(latest) if rising => Ok(Keys { repo, id_key, structure, authority, signer, data, latest }),
            _ => Err(Error::corrupt("a key bundle without data keys in rising epochs")),
        }
    }
}

impl DataKey {
    fn decode(value: &Value, full: bool) -> Result<Self> {
        let Value::Map(map) = value else {
            return Err(Error::corrupt("a key bundle with a data key that is no map"));
        };
        let public = DataPublic::new(map.array_of("public")?);
        let private = if full { Some(DataPrivate::new(secret(map, "private")?)) } else { None };
        if let Some(private) = &private
            && private.public()? != public
        {
            return Err(Error::corrupt("a key bundle with a data key whose halves do not belong together"));
        }
        Ok(DataKey { epoch: map.u32("epoch")?, public, private })
    }
}

fn secret(map: &Map, key: &str) -> Result<Key32> {
    Secret::from_slice(map.bytes(key)?).map_err(|e| e.within(format!("key '{key}' of a key bundle")))
}

/// Shows whose keys these are, and nothing of them.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_full() { "full" } else { "writer" };
        write!(f, "Keys of repository {}, {kind} bundle, signing as {}", self.repo, self.signer.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::Seeded;

    fn now() -> Timestamp {
        Timestamp::from_seconds(1_795_226_400).unwrap()
    }

    fn full() -> Keys {
        Keys::generate(RepoId([3; 16]), &Seeded::new(1)).unwrap()
    }

    fn map(keys: &Keys) -> Map {
        Map::decode(&keys.encode().unwrap()).unwrap()
    }

    #[test]
    fn a_writer_bundle_holds_no_private_key_of_the_full_one() {
        let full = full();
        let (writer, certificate) = full.export_writer("mover 1", now(), &Seeded::new(2)).unwrap();
        assert!(full.is_full() && !writer.is_full());
        assert_eq!(certificate.public, writer.signer().public());
        assert_eq!((certificate.label.as_str(), certificate.created), ("mover 1", now()));
        assert_eq!((writer.repo(), writer.authority()), (full.repo(), full.authority()));
        assert_eq!((writer.data_epoch(), writer.data_public()), (full.data_epoch(), full.data_public()));
        assert_eq!(writer.id_key().chunk_id(b"x"), full.id_key().chunk_id(b"x"));
        let encoded = writer.encode().unwrap();
        let private = full.data_private(full.data_public().recipient_id()).unwrap().secret().expose();
        for secret in [private, full.signer().seed().expose()] {
            assert!(!encoded.windows(32).any(|window| window == secret));
        }
        assert_eq!(writer.export_writer("more", now(), &Seeded::new(3)).unwrap_err().kind(), Kind::WrongKey);
    }

    #[test]
    fn a_writer_wraps_pack_keys_that_only_the_full_bundle_opens() {
        let full = full();
        let (writer, _) = full.export_writer("w", now(), &Seeded::new(2)).unwrap();
        let uid = PackUid([5; 16]);
        let key = PackKey::generate(&Seeded::new(4)).unwrap();
        let ours = key.wrap(&writer.data_public(), uid, writer.repo(), &Seeded::new(5)).unwrap();
        let strange = KeySlot { recipient: RecipientId([0; 16]), ..ours.clone() };
        let opened = full.open_pack_key(uid, &[strange.clone(), ours.clone()], &key.commitment()).unwrap();
        assert_eq!(opened.secret().expose(), key.secret().expose());
        for (keys, slots, why) in [(&writer, [ours], "a writer's keys"), (&full, [strange], "lacks its data key")] {
            let error = keys.open_pack_key(uid, &slots, &key.commitment()).err().unwrap();
            assert_eq!(error.kind(), Kind::WrongKey);
            assert!(error.context().contains(why), "{error}");
        }
    }

    #[test]
    fn a_bundle_that_contradicts_itself_is_refused() {
        let full = full();
        let (writer, _) = full.export_writer("w", now(), &Seeded::new(2)).unwrap();
        assert_eq!(Keys::decode(&map(&full).encode().unwrap()).unwrap().encode().unwrap(), full.encode().unwrap());
        let epoch = |epoch: u32, public: &[u8; 32], private: &[u8; 32]| {
            Value::Map(Map::new().with("epoch", epoch).with("public", public).with("private", private))
        };
        let public = full.data_public();
        let private = full.data_private(public.recipient_id()).unwrap().secret().expose();
        let twice = vec![epoch(1, public.as_bytes(), private), epoch(1, public.as_bytes(), private)];
        for (changed, kind) in [
            (map(&full).with("kind", "partial"), Kind::Unsupported),
            (map(&full).with("kind", "writer").with("writer_seed", &[7; 32]).with("repo", &[1; 15]), Kind::Corrupt),
            (map(&full).with("authority_seed", &[7; 32]), Kind::Corrupt),
            (map(&full).with("authority", &[7; 32]), Kind::Corrupt),
            (map(&full).with("id_key", &[7; 31]), Kind::Corrupt),
            (map(&full).with("data", Vec::<Value>::new()), Kind::Corrupt),
            (map(&full).with("data", vec![Value::Null]), Kind::Corrupt),
            (map(&full).with("data", vec![epoch(0, public.as_bytes(), private)]), Kind::Corrupt),
            (map(&full).with("data", twice), Kind::Corrupt),
            (map(&full).with("data", vec![epoch(1, public.as_bytes(), &[7; 32])]), Kind::Corrupt),
            (map(&full).with("data", vec![epoch(1, &[7; 32], private)]), Kind::Corrupt),
            (map(&writer).with("writer_seed", full.signer().seed().expose()), Kind::Corrupt),
            (map(&writer).with("kind", "full"), Kind::Corrupt),
        ] {
            assert_eq!(Keys::decode(&changed.encode().unwrap()).unwrap_err().kind(), kind, "{changed:?}");
        }
        let bytes = full.encode().unwrap();
        for cut in 0..bytes.len() {
            assert_eq!(Keys::decode(&bytes[..cut]).unwrap_err().kind(), Kind::Corrupt, "{cut}");
        }
    }

    #[test]
    fn nothing_secret_is_shown() {
        let shown = format!("{:?}", full());
        assert_eq!(
            shown,
            format!("Keys of repository {}, full bundle, signing as {}", full().repo(), full().signer().id())
        );
    }
}
