//! The data keys that a session knows: those of its bundle, and those of the epochs that were published since it was made.
//!
//! ```text
//!   bundle of a key slot    1 (both halves)   2 (both halves)             the first counts, the others once they are published
//!   epochs/                                   2 (public)      3 (public)
//!   known                   1                 2               3, of which this slot lacks the private half: it is behind
//! ```
//!
//! Not here: the rest of the bundle ([`crate::keys`]), reading `epochs/` ([`crate::keyring`]). What holds: never empty, epochs
//! rising; new packs are sealed to the newest key that counts, and one that nobody published never counts unless it is the
//! bundle's first, since whoever else rotates has another one; what does not count is still tried for reading.

use crate::cbor::{Map, Value};
use crate::crypto::{DataPrivate, DataPublic, Secret};
use crate::epoch::{self, Epoch};
use crate::error::{Error, Result};
use crate::id::RecipientId;

/// A data key.
#[derive(Clone)]
pub(crate) struct DataKey {
    pub(crate) epoch: u32,
    pub(crate) public: DataPublic,
    /// `None` in a writer's bundle, and of epochs that began after the slot was made.
    pub(crate) private: Option<DataPrivate>,
    counts: bool,
}

/// Data keys, epochs rising.
#[derive(Clone)]
pub(crate) struct DataKeys {
    keys: Vec<DataKey>,
    newest: (u32, DataPublic),
}

impl DataKey {
    pub(crate) fn new(epoch: u32, private: DataPrivate) -> Result<Self> {
        Ok(DataKey { epoch, public: private.public()?, private: Some(private), counts: false })
    }

    fn of(epoch: &Epoch) -> Self {
        DataKey { epoch: epoch.number, public: epoch.public, private: None, counts: true }
    }

    /// The key as an element of a bundle, with its private half if there is one.
    pub(crate) fn encode(&self) -> Value {
        let map = Map::new().with("epoch", self.epoch).with("public", self.public.as_bytes());
        Value::Map(match &self.private {
            Some(private) => map.with("private", private.secret().expose()),
            None => map,
        })
    }

    /// The element of a bundle; in a full one it has a private half.
    pub(crate) fn decode(value: &Value, full: bool) -> Result<Self> {
        let Value::Map(map) = value else {
            return Err(Error::corrupt("a key bundle with a data key that is no map"));
        };
        let public = DataPublic::new(map.array_of("public")?);
        let secret = || Secret::from_slice(map.bytes("private")?).map_err(|e| e.within("a key bundle's data key"));
        let private = if full { Some(DataPrivate::new(secret()?)) } else { None };
        if let Some(private) = &private
            && private.public()? != public
        {
            return Err(Error::corrupt("a key bundle with a data key whose halves do not belong together"));
        }
        Ok(DataKey { epoch: map.u32("epoch")?, public, private, counts: false })
    }
}

impl DataKeys {
    /// The keys of a bundle, of which the first counts. `Corrupt` when there is none or epochs do not rise.
    pub(crate) fn new(mut keys: Vec<DataKey>) -> Result<Self> {
        let rising = keys.iter().zip(keys.iter().skip(1)).all(|(older, newer)| older.epoch < newer.epoch);
        match keys.first_mut() {
            Some(first) if rising && first.epoch >= epoch::FIRST => {
                first.counts = true;
                let newest = (first.epoch, first.public);
                Ok(DataKeys { keys, newest })
            }
            _ => Err(Error::corrupt("a key bundle without data keys in rising epochs")),
        }
    }

    /// Takes in what was published. `Corrupt` when that contradicts a key that counts.
    pub(crate) fn learn(&mut self, published: &[Epoch]) -> Result<()> {
        for epoch in published {
            match self.keys.iter_mut().find(|key| key.epoch == epoch.number) {
                Some(key) if key.public == epoch.public => key.counts = true,
                Some(key) if key.counts => {
                    let name = Epoch::name(epoch.number);
                    return Err(Error::corrupt(format!("{name} tells of another key than this key bundle has")));
                }
                // A rotation that was interrupted and that another one overtook: nothing was sealed to its key.
                Some(key) => *key = DataKey::of(epoch),
                None => self.keys.push(DataKey::of(epoch)),
            }
        }
        self.keys.sort_unstable_by_key(|key| key.epoch);
        if let Some(newest) = self.keys.iter().rfind(|key| key.counts) {
            self.newest = (newest.epoch, newest.public);
        }
        Ok(())
    }

    /// Takes over the private halves that `other` has of keys that are known here.
    pub(crate) fn adopt(&mut self, other: &DataKeys) {
        for key in &mut self.keys {
            if key.private.is_none() {
                key.private = other.private(key.public.recipient_id()).cloned();
            }
        }
    }

    /// Epoch and public half of the key for new packs.
    pub(crate) fn newest(&self) -> (u32, DataPublic) {
        self.newest
    }

    /// The key called `recipient`.
    pub(crate) fn find(&self, recipient: RecipientId) -> Option<&DataKey> {
        self.keys.iter().find(|key| key.public.recipient_id() == recipient)
    }

    /// Its private half, if it is here.
    pub(crate) fn private(&self, recipient: RecipientId) -> Option<&DataPrivate> {
        self.find(recipient)?.private.as_ref()
    }

    /// The key of an epoch that a rotation made and did not come to publish.
    pub(crate) fn unpublished(&self) -> Option<&DataKey> {
        self.keys.last().filter(|key| !key.counts && key.private.is_some())
    }

    /// What a new slot holds of them: for reading all that can read, for a writer the one for new packs.
    pub(crate) fn bundled(&self, full: bool) -> Vec<DataKey> {
        let goes = |key: &&DataKey| if full { key.private.is_some() } else { key.epoch == self.newest.0 };
        self.keys
            .iter()
            .filter(goes)
            .cloned()
            .map(|key| if full { key } else { DataKey { private: None, ..key } })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::time::Timestamp;

    fn key(epoch: u32, secret: u8) -> DataKey {
        DataKey::new(epoch, DataPrivate::new(Secret::new([secret; 32]))).unwrap()
    }

    fn published(key: &DataKey) -> Epoch {
        Epoch { number: key.epoch, public: key.public, time: Timestamp::from_seconds(1).unwrap() }
    }

    #[test]
    fn the_first_counts_and_the_others_once_they_are_published() {
        let mut keys = DataKeys::new(vec![key(1, 1), key(2, 2)]).unwrap();
        assert_eq!(keys.newest(), (1, key(1, 1).public));
        assert_eq!(keys.unpublished().map(|k| k.epoch), Some(2));
        keys.learn(&[published(&key(2, 2))]).unwrap();
        assert_eq!(keys.newest(), (2, key(2, 2).public));
        assert!(keys.unpublished().is_none());
        keys.learn(&[published(&key(5, 5)), published(&key(3, 3))]).unwrap();
        assert_eq!(keys.newest(), (5, key(5, 5).public));
        assert!(keys.private(key(5, 5).public.recipient_id()).is_none());
        assert_eq!(keys.bundled(true).iter().map(|k| k.epoch).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(keys.bundled(false).iter().map(|k| k.epoch).collect::<Vec<_>>(), [5]);
        keys.adopt(&DataKeys::new(vec![key(4, 4), key(5, 5)]).unwrap());
        assert!(keys.private(key(5, 5).public.recipient_id()).is_some());
        assert_eq!(keys.bundled(true).iter().map(|k| k.epoch).collect::<Vec<_>>(), [1, 2, 5]);
        assert!(keys.bundled(false).iter().all(|k| k.private.is_none()));
    }

    #[test]
    fn a_key_that_was_overtaken_is_let_go_and_one_that_counts_is_defended() {
        let mut keys = DataKeys::new(vec![key(1, 1), key(2, 2)]).unwrap();
        keys.learn(&[published(&key(2, 7))]).unwrap();
        assert_eq!(keys.newest(), (2, key(2, 7).public));
        assert!(keys.private(key(2, 2).public.recipient_id()).is_none() && keys.unpublished().is_none());
        assert_eq!(keys.learn(&[published(&key(2, 8))]).unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(keys.learn(&[published(&key(1, 8))]).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn epochs_rise() {
        for bad in [vec![], vec![key(0, 1)], vec![key(2, 1), key(2, 2)], vec![key(3, 1), key(2, 2)]] {
            assert_eq!(DataKeys::new(bad).err().map(|e| e.kind()), Some(Kind::Corrupt));
        }
    }
}
