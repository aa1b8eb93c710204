//! An opened key bundle: every key that a session holds, and what each may be used for (FORMAT.md section 3).
//!
//! ```text
//!                         id key   structure key   data public   data private   signs as
//!   full bundle              x           x              x              x        the authority
//!   writer bundle            x           x              x                       itself, with a certificate
//! ```
//!
//! Not here: how a bundle is kept in a repository ([`crate::key_slot`]), whose signature counts where ([`crate::sealed`]), which
//! data key new packs are sealed to ([`crate::data_key`]). What holds: a full bundle has the private half of each of its own data
//! keys, and lacks it of epochs that began after its slot was made, until [`Keys::adopt`]; the structure key leaves this file
//! only as a key derived for one purpose.

use crate::cbor::Map;
use crate::certificate::Certificate;
use crate::crypto::hkdf;
use crate::crypto::{
    Aead, DataPrivate, DataPublic, FrameKey, IdKey, Key32, KeySlot, PackKey, PublicKey, Secret, Signer,
};
use crate::data_key::{DataKey, DataKeys};
use crate::entropy::Entropy;
use crate::epoch::{self, Epoch};
use crate::error::{Error, Kind, Result};
use crate::id::{PackUid, RecipientId, RepoId};
use crate::time::Timestamp;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use zeroize::Zeroizing;

const OBJECT_KEY: &[u8] = b"coffer v1 object";
const TREE_PACK_KEY: &[u8] = b"coffer v1 tree pack";
const CONTENTS_KEY: &[u8] = b"coffer v1 pack contents";

/// The keys of one repository, as far as this session has them.
pub struct Keys {
    repo: RepoId,
    id_key: IdKey,
    structure: Key32,
    authority: PublicKey,
    signer: Signer,
    /// Behind a lock: whoever reads for weeks takes in the epochs that begin meanwhile.
    data: RwLock<Arc<DataKeys>>,
}

impl Keys {
    /// The full bundle of a new repository.
    pub fn generate(repo: RepoId, entropy: &dyn Entropy) -> Result<Self> {
        let id_key = IdKey::new(Secret::random(entropy)?);
        let structure = Secret::random(entropy)?;
        let signer = Signer::from_seed(Secret::random(entropy)?)?;
        let first = DataKey::new(epoch::FIRST, DataPrivate::new(Secret::random(entropy)?))?;
        let data = RwLock::new(Arc::new(DataKeys::new(vec![first])?));
        Ok(Keys { repo, id_key, structure, authority: signer.public(), signer, data })
    }

    /// The bundle of a new writer, and the certificate that the authority has to sign and store for it. `label` says
    /// whose it is, `created` is now. `WrongKey` unless this bundle is a full one.
    pub fn export_writer(&self, label: &str, created: Timestamp, entropy: &dyn Entropy) -> Result<(Keys, Certificate)> {
        if !self.is_full() {
            return Err(Error::new(Kind::WrongKey, "only the holder of a full key bundle can export a writer's"));
        }
        let signer = Signer::from_seed(Secret::random(entropy)?)?;
        let certificate = Certificate { public: signer.public(), label: label.to_owned(), created };
        let data = self.data_keys().bundled(false);
        Ok((self.with(signer, data)?, certificate))
    }

    /// The bundle that a rotation makes: this one and a new data key of the epoch `number`, which counts once it is published.
    pub(crate) fn successor(&self, number: u32, entropy: &dyn Entropy) -> Result<Keys> {
        let mut data = self.data_keys().bundled(true);
        data.push(DataKey::new(number, DataPrivate::new(Secret::random(entropy)?))?);
        self.with(Signer::from_seed(self.signer.seed().clone())?, data)
    }

    /// Another bundle of the same repository.
    fn with(&self, signer: Signer, data: Vec<DataKey>) -> Result<Keys> {
        let (id_key, structure) = (self.id_key.clone(), self.structure.clone());
        let data = RwLock::new(Arc::new(DataKeys::new(data)?));
        Ok(Keys { repo: self.repo, id_key, structure, authority: self.authority, signer, data })
    }

    /// Takes in the data-key epochs that were published. `Corrupt` when one contradicts a key of this bundle that counts.
    pub(crate) fn learn(&self, published: &[Epoch]) -> Result<()> {
        let mut data = self.data.write().unwrap_or_else(PoisonError::into_inner);
        let mut learnt = DataKeys::clone(&data);
        learnt.learn(published)?;
        *data = Arc::new(learnt);
        Ok(())
    }

    /// Takes over what a newer bundle of the same repository can read and this one cannot yet.
    pub(crate) fn adopt(&self, newer: &Keys) {
        let newer = newer.data_keys();
        let mut data = self.data.write().unwrap_or_else(PoisonError::into_inner);
        let mut adopted = DataKeys::clone(&data);
        adopted.adopt(&newer);
        *data = Arc::new(adopted);
    }

    /// The data keys as they are known now.
    pub(crate) fn data_keys(&self) -> Arc<DataKeys> {
        Arc::clone(&self.data.read().unwrap_or_else(PoisonError::into_inner))
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

    /// The data key for new packs: its epoch and its public half.
    #[must_use]
    pub fn data_key(&self) -> (u32, DataPublic) {
        self.data_keys().newest()
    }

    /// The private half of the data key with this name; `None` when this bundle does not have it.
    #[must_use]
    pub fn data_private(&self, recipient: RecipientId) -> Option<DataPrivate> {
        self.data_keys().private(recipient).cloned()
    }

    /// Whether this bundle reads what is written now: it is a full one, and its slot is not older than the newest epoch.
    #[must_use]
    pub fn reads_newest(&self) -> bool {
        let data = self.data_keys();
        let (_, public) = data.newest();
        data.private(public.recipient_id()).is_some()
    }

    /// The epoch of the data key with this name; `None` when it is unknown.
    #[must_use]
    pub fn epoch_of(&self, recipient: RecipientId) -> Option<u32> {
        self.data_keys().find(recipient).map(|key| key.epoch)
    }

    /// The key of the data pack `uid` from the slots in its header, checked against the header's commitment. `WrongKey` when
    /// no slot is for this bundle.
    pub fn open_pack_key(&self, uid: PackUid, slots: &[KeySlot], commitment: &[u8; 16]) -> Result<PackKey> {
        let data = self.data_keys();
        let opened = slots.iter().find_map(|slot| Some((slot, data.private(slot.recipient)?)));
        let (slot, private) = opened.ok_or_else(|| {
            let epoch = slots.iter().find_map(|slot| data.find(slot.recipient)).map(|key| key.epoch);
            let why = match epoch {
                _ if !self.is_full() => "a writer's keys read no content".to_owned(),
                Some(epoch) => behind(epoch),
                None => "this key bundle lacks its data key".to_owned(),
            };
            Error::new(Kind::WrongKey, format!("pack {uid} cannot be read: {why}"))
        })?;
        PackKey::unwrap(slot, private, uid, self.repo, commitment)
    }

    /// Fails with `WrongKey` unless this bundle reads what is written now; `purpose` is what that is needed for.
    pub fn check_newest(&self, purpose: &str) -> Result<()> {
        if self.reads_newest() {
            return Ok(());
        }
        let (epoch, _) = self.data_key();
        Err(Error::new(Kind::WrongKey, format!("this key cannot {purpose}: {}", behind(epoch))))
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

    /// The data keys that go into a slot for this bundle.
    fn bundled(&self) -> Vec<DataKey> {
        self.data_keys().bundled(self.is_full())
    }

    /// The name of the newest data key that goes into a slot for this bundle; `None` for a repository's first.
    pub(crate) fn newest_recipient(&self) -> Option<RecipientId> {
        self.bundled().last().filter(|key| key.epoch > epoch::FIRST).map(|key| key.public.recipient_id())
    }

    /// The bundle's bytes, for a key slot.
    pub(crate) fn encode(&self) -> Result<Zeroizing<Vec<u8>>> {
        let (kind, seed) = if self.is_full() { ("full", "authority_seed") } else { ("writer", "writer_seed") };
        let map = Map::new()
            .with("kind", kind)
            .with("repo", &self.repo.0)
            .with("id_key", self.id_key.secret().expose())
            .with("structure_key", self.structure.expose())
            .with("authority", self.authority.as_bytes())
            .with("data", self.bundled().iter().map(DataKey::encode).collect::<Vec<_>>())
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
        let (repo, id_key) = (RepoId(map.array_of("repo")?), IdKey::new(secret(&map, "id_key")?));
        let data = RwLock::new(Arc::new(DataKeys::new(data)?));
        Ok(Keys { repo, id_key, structure: secret(&map, "structure_key")?, authority, signer, data })
    }
}

/// Why a key slot of before the epoch `epoch` does not do, and what to do.
fn behind(epoch: u32) -> String {
    format!(
        "this key slot was made before data-key epoch {epoch}; with a newer key, add it anew ('coffer key add') and remove this \
         one ('coffer key remove'); 'coffer key status' shows which are behind"
    )
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
    use crate::cbor::Value;
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
        assert_eq!(writer.data_key(), full.data_key());
        assert_eq!(writer.id_key().chunk_id(b"x"), full.id_key().chunk_id(b"x"));
        let encoded = writer.encode().unwrap();
        let private = full.data_private(full.data_key().1.recipient_id()).unwrap();
        for secret in [private.secret().expose(), full.signer().seed().expose()] {
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
        let ours = key.wrap(&writer.data_key().1, uid, writer.repo(), &Seeded::new(5)).unwrap();
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
        let (_, public) = full.data_key();
        let private = full.data_private(public.recipient_id()).unwrap();
        let private = private.secret().expose();
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
