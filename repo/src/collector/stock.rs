//! The packs of a store, as listed once.
//!
//! Not here: what lies in them. What holds: a pack that lies somewhere all the while is in it, whoever moves it between tiers meanwhile. Memory: 100 bytes a pack or so.

use crate::backend::Listed;
use crate::backend::tiered::Place;
use crate::error::Result;
use crate::id::PackUid;
use crate::location::PackKind;
use crate::pack;
use crate::parity;
use crate::repository::Repository;
use std::collections::HashMap;

/// Where a pack lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lies {
    /// In the repository's own store.
    Home,
    /// In a cold tier, and not at home.
    Cold,
    /// In both, on the way from one to the other.
    Both,
}

/// A pack of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) uid: PackUid,
    pub(super) kind: PackKind,
    /// Bytes of its object.
    pub(super) bytes: u64,
    /// Bytes of its parity, 0 when it has none.
    pub(super) parity: u64,
    pub(super) lies: Lies,
}

impl Item {
    /// Whether it would have to be thawed, perhaps, to be read.
    pub(super) fn is_cold(&self) -> bool {
        self.lies == Lies::Cold
    }
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
            match repo.backend().tiers().filter(|_| kind == PackKind::Data) {
                Some(tiered) => tiered.list_places(kind.prefix(), &mut |object, place| {
                    stock.note(&object, place);
                    Ok(())
                })?,
                None => repo.backend().list(kind.prefix(), &mut |object| {
                    stock.note(&object, Place::Home);
                    Ok(())
                })?,
            }
        }
        for (uid, object) in parity {
            match stock.packs.get_mut(&uid) {
                Some(item) => item.parity = object.size,
                None => stock.orphaned_parity.push(object.name),
            }
        }
        Ok(stock)
    }

    fn note(&mut self, object: &Listed, place: Place<'_>) {
        let Some((kind, uid)) = pack::parse_name(&object.name) else { return };
        let here = if place == Place::Home { Lies::Home } else { Lies::Cold };
        let item = self.packs.entry(uid).or_insert(Item { uid, kind, bytes: object.size, parity: 0, lies: here });
        if item.lies != here {
            item.lies = Lies::Both;
        }
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
