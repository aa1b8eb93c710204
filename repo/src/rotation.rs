//! CONDUCTOR of key rotation: how a data-key epoch begins, and what is still sealed to older ones.
//!
//! ```text
//!   rotate    slot      a new key slot for this session's credential: its bundle and the next epoch's data key
//!             publish   PUT epochs/<n>, if absent: the moment at which the epoch begins
//!             tidy      DELETE the credential's older slots
//!   status    slots     which of them are behind
//!             census    the header of every data pack: which epoch its key is sealed to
//! ```
//!
//! Not here: sealing old packs anew ([`crate::collector`], `rotate`), reading `epochs/` and slots ([`crate::keyring`]). What holds:
//! a data key is published only once a slot holds its private half; of two rotations at once one fails and leaves no slot; a
//! rotation that was stopped anywhere is finished by the next one, which then begins no other. Old private keys stay in full
//! bundles: a writer that has not heard of the rotation may store packs sealed to the old key at any time, and no clock says
//! when the last one did. What rotation does not replace are the id key, the structure key and the authority's: whoever has an old
//! full bundle reads no new content, but still reads maps and can still sign.

use crate::backend::{Listed, Put};
use crate::cancel::Cancel;
use crate::census::{self, SealedPack};
use crate::collector::PackSum;
use crate::crew::Crew;
use crate::crypto::DataPublic;
use crate::epoch::{self, Epoch};
use crate::error::{Error, Kind, Result};
use crate::id::{PackUid, SlotId};
use crate::key_slot::{self, PassphraseCost, SlotKind, SlotOptions, SlotSummary};
use crate::keyring::{Published, published};
use crate::keys::Keys;
use crate::location::PackKind;
use crate::pack;
use crate::repository::Repository;
use crate::sealed::ObjectKind;
use crate::time::Timestamp;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a rotation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The epoch that new data packs are sealed to now.
    pub epoch: u32,
    /// Whether an interrupted rotation was finished, and no other epoch begun than its own.
    pub finished: bool,
    /// The key slot that this session's credential opens now.
    pub slot: SlotId,
    /// The slots that it opened before.
    pub removed: Vec<SlotId>,
}

/// A data-key epoch and what is sealed to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStatus {
    /// Its number.
    pub epoch: u32,
    /// When it began; `None` for the repository's first, and for one that nobody published.
    pub began: Option<Timestamp>,
    /// Data packs.
    pub sealed: PackSum,
}

/// The state of a repository's keys.
#[derive(Debug)]
pub struct KeyStatus {
    /// By number; the last that was published is the one for new packs.
    pub epochs: Vec<EpochStatus>,
    /// The epoch of new packs.
    pub newest: u32,
    /// Data packs of older epochs: what `gc --rotate` has left to do.
    pub left: PackSum,
    /// Slots that do not read what is written now.
    pub behind: Vec<SlotSummary>,
    /// What a rotation by this session's credential left behind when it was interrupted, in words; `rotate` finishes it.
    pub unfinished: Option<String>,
    /// Packs whose header could not be read; in no sum.
    pub damaged: Vec<(PackUid, Error)>,
}

/// Begins a data-key epoch, or finishes an interrupted rotation. `now` is when. `WrongKey` unless the session's key is a full one
/// that reads what is written now; `Locked` when another rotation was faster.
pub fn rotate(repo: &Repository, now: Timestamp) -> Result<Rotation> {
    repo.check_full("rotate keys")?;
    repo.check_writable()?;
    repo.check_register("rotate keys")?;
    let own = repo.own_slots()?;
    let found = published(repo.backend(), repo.keys())?;
    repo.keys().learn(&found.epochs)?;
    match own.iter().find_map(|(slot, keys)| Some((*slot, keys, pending(keys, &found)?))) {
        Some((slot, keys, (number, public))) => {
            if publish(repo, &Epoch { number, public, time: now })? {
                settle(repo, slot, keys, &own, true)
            } else {
                Err(overtaken(number))
            }
        }
        None => match own.iter().find(|(_, keys)| keys.reads_newest()) {
            Some((slot, keys)) if own.iter().any(|(_, keys)| !keys.reads_newest()) => {
                settle(repo, *slot, keys, &own, true)
            }
            Some((slot, keys)) => begin(repo, *slot, keys, &own, &found, now),
            None => repo.keys().check_newest("rotate keys").and(Err(Error::not_found(
                "the key slot by which the repository was opened was removed meanwhile; use another key",
            ))),
        },
    }
}

/// The key that a slot holds of an epoch that is still free to begin.
fn pending(keys: &Keys, found: &Published) -> Option<(u32, DataPublic)> {
    let data = keys.data_keys();
    let key = data.unpublished().filter(|key| !found.taken.contains(&key.epoch) && keys.reads_newest())?;
    Some((key.epoch, key.public))
}

fn begin(
    repo: &Repository,
    slot: SlotId,
    keys: &Keys,
    own: &[(SlotId, Keys)],
    found: &Published,
    now: Timestamp,
) -> Result<Rotation> {
    // A number is taken even by what does not count.
    let last = found.taken.last().copied().max(keys.data_keys().unpublished().map(|key| key.epoch));
    let next = last.unwrap_or(epoch::FIRST).max(keys.data_key().0).checked_add(1);
    let number = next.ok_or_else(|| Error::invalid("there are no numbers for data-key epochs left"))?;
    let successor = keys.successor(number, repo.entropy())?;
    let public = successor
        .data_keys()
        .unpublished()
        .map(|key| key.public)
        .ok_or_else(|| Error::internal("a rotation without a new data key"))?;
    let made = repo.put_slot(&successor, &repo.entrance().credential, &options_as(repo, slot, now)?)?;
    // Of a failure nobody knows whether it came through: the slot stays then, and the next rotation finishes this one.
    if publish(repo, &Epoch { number, public, time: now })? {
        return settle(repo, made, &successor, own, false);
    }
    repo.backend().delete(&key_slot::object_name(made))?;
    Err(overtaken(number))
}

/// Publishes an epoch; whether it is this one that has the number now.
fn publish(repo: &Repository, epoch: &Epoch) -> Result<bool> {
    let name = Epoch::name(epoch.number);
    if repo.put_record(ObjectKind::Epoch, &name, &epoch.encode()?)? == Put::Created {
        return Ok(true);
    }
    // A store that was slow to answer may have been asked twice.
    let record = repo.get_record(ObjectKind::Epoch, &name)?;
    Ok(Epoch::decode(epoch.number, &record.body)?.public == epoch.public)
}

fn overtaken(number: u32) -> Error {
    let why = format!(
        "another rotation began data-key epoch {number} at the same time, and this key does not read it; with the other key, add \
         this one anew ('coffer key add')"
    );
    Error::new(Kind::Locked, why)
}

/// Removes the other slots of the session's credential, now that `slot` holds the newest key.
fn settle(repo: &Repository, slot: SlotId, keys: &Keys, own: &[(SlotId, Keys)], finished: bool) -> Result<Rotation> {
    repo.keys().learn(&published(repo.backend(), repo.keys())?.epochs)?;
    repo.keys().adopt(keys);
    repo.entrance().move_to(slot);
    let removed: Vec<SlotId> = own.iter().map(|(id, _)| *id).filter(|id| *id != slot).collect();
    for id in &removed {
        repo.backend().delete(&key_slot::object_name(*id))?;
    }
    let (epoch, _) = repo.keys().data_key();
    Ok(Rotation { epoch, finished, slot, removed })
}

/// What goes with the slot that takes the place of `slot`.
fn options_as(repo: &Repository, slot: SlotId, now: Timestamp) -> Result<SlotOptions> {
    let summary = key_slot::summarise(slot, &repo.backend().get(&key_slot::object_name(slot))?)?;
    let cost = match summary.kind {
        SlotKind::Passphrase(cost) => cost,
        SlotKind::KeyFile | SlotKind::Unknown(_) => PassphraseCost::default(),
    };
    Ok(SlotOptions { label: summary.label, created: now, cost })
}

/// Says what is sealed to which epoch, by the headers of all data packs: one small read each, on `threads` threads. `headers`
/// counts them.
pub fn status(repo: &Repository, threads: usize, headers: &AtomicU64, cancel: &Cancel) -> Result<KeyStatus> {
    let own = repo.own_slots()?;
    let found = published(repo.backend(), repo.keys())?;
    repo.keys().learn(&found.epochs)?;
    let (newest, _) = repo.keys().data_key();
    let census = census::take(repo, Crew { threads, cancel }, |hand| {
        repo.backend().list(PackKind::Data.prefix(), &mut |Listed { name, size }| match pack::parse_name(&name) {
            Some((_, uid)) => {
                headers.fetch_add(1, Relaxed);
                hand((uid, size))
            }
            None => Ok(()),
        })
    })?;
    let mut left = PackSum::default();
    let mut sums = BTreeMap::from([(newest, PackSum::default())]);
    for SealedPack { bytes, epoch, .. } in census.packs {
        sums.entry(epoch).or_default().add(bytes);
        if epoch < newest {
            left.add(bytes);
        }
    }
    let began = |epoch: u32| found.epochs.iter().find(|e| e.number == epoch).map(|e| e.time);
    let epochs = sums.into_iter().map(|(epoch, sealed)| EpochStatus { epoch, began: began(epoch), sealed }).collect();
    let slots = repo.key_slots()?.into_iter().filter_map(|(_, slot)| slot.ok());
    let behind = slots.filter(|slot| repo.is_behind(slot)).collect();
    Ok(KeyStatus { epochs, newest, left, behind, unfinished: unfinished(&own, &found), damaged: census.damaged })
}

fn unfinished(own: &[(SlotId, Keys)], found: &Published) -> Option<String> {
    if let Some((number, _)) = own.iter().find_map(|(_, keys)| pending(keys, found)) {
        return Some(format!("a rotation was interrupted before data-key epoch {number} began"));
    }
    let (newer, older): (Vec<_>, Vec<_>) = own.iter().partition(|(_, keys)| keys.reads_newest());
    match (newer.first(), older.first()) {
        (Some((newer, _)), Some((older, _))) => {
            Some(format!("a rotation was interrupted before the key slot {older} was removed, which {newer} replaces"))
        }
        _ => None,
    }
}
