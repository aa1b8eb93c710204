//! The packs of a store, as listed once.
//!
//! Not here: what lies in them. Memory: 100 bytes a pack or so.

use crate::error::Result;
use crate::id::PackUid;
use crate::location::PackKind;
use crate::pack;
use crate::parity;
use crate::repository::Repository;
use std::collections::HashMap;

/// A pack of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) uid: PackUid,
    pub(super) kind: PackKind,
    /// Bytes of its object.
    pub(super) bytes: u64,
    /// Bytes of its parity, 0 when it has none.
    pub(super) parity: u64,
}

/// All packs of a store.
#[derive(Debug, Default)]
pub(super) struct Stock {
    packs: HashMap<PackUid, Item>,
    /// Parity of packs that are gone: names.
    pub(super) orphaned_parity: Vec<String>,
}

impl Stock {
    pub(super) fn list(repo: &Repository) -> Result<Self> {
        let mut stock = Stock::default();
        let mut parity = Vec::new();
        // Parity first: it is written after its pack and removed after it.
        repo.backend().list(parity::PREFIX, &mut |object| {
            if let Some(uid) = parity::parse_name(&object.name) {
                parity.push((uid, object));
            }
            Ok(())
        })?;
        for kind in PackKind::ALL {
            repo.backend().list(kind.prefix(), &mut |object| {
                if let Some((kind, uid)) = pack::parse_name(&object.name) {
                    stock.packs.insert(uid, Item { uid, kind, bytes: object.size, parity: 0 });
                }
                Ok(())
            })?;
        }
        for (uid, object) in parity {
            match stock.packs.get_mut(&uid) {
                Some(item) => item.parity = object.size,
                None => stock.orphaned_parity.push(object.name),
            }
        }
        Ok(stock)
    }

    pub(super) fn get(&self, uid: PackUid) -> Option<&Item> {
        self.packs.get(&uid)
    }

    pub(super) fn has(&self, uid: PackUid) -> bool {
        self.packs.contains_key(&uid)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Item> {
        self.packs.values()
    }

    pub(super) fn remove(&mut self, uid: PackUid) {
        self.packs.remove(&uid);
    }
}
