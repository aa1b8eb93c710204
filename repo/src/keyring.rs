//! Who can open the repository, and how far: its key slots, and the data-key epochs that a slot may be older than.
//!
//! Not here: the bytes of a slot ([`crate::key_slot`]), how an epoch begins ([`crate::rotation`]). What holds: of several slots that
//! one credential opens, one that reads what is written now is used; an epoch counts only when the authority signed it; a slot
//! says of itself what it opens, and is believed only once it was opened: nothing is removed on its word alone.

use crate::backend::{Backend, Put, list_sorted};
use crate::certificate::Certificates;
use crate::entropy::fresh;
use crate::epoch::{self, Epoch};
use crate::error::{Error, Kind, Result};
use crate::id::{RecipientId, SlotId};
use crate::key_slot::{self, Credential, SlotOptions, SlotSummary};
use crate::keys::Keys;
use crate::pack::{OpenPack, PackHeader};
use crate::repository::Repository;
use crate::sealed::{self, ObjectKind};
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// How a session came in.
pub(crate) struct Entrance {
    /// For slots that are made while the session lasts.
    pub(crate) credential: Credential,
    /// The slot that it opened: the one that is known to hold what it says.
    slot: Mutex<SlotId>,
    /// Epochs whose private keys were looked for in vain.
    sought: Mutex<BTreeSet<u32>>,
}

impl Entrance {
    /// By the slot `slot`, which `credential` opened.
    pub(crate) fn new(credential: &Credential, slot: SlotId) -> Self {
        Entrance { credential: credential.clone(), slot: Mutex::new(slot), sought: Mutex::default() }
    }

    fn slot(&self) -> SlotId {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the credential opens `slot`.
    pub(crate) fn move_to(&self, slot: SlotId) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = slot;
    }
}

/// What lies under `epochs/`.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// The epochs that the authority signed, by number.
    pub(crate) epochs: Vec<Epoch>,
    /// All numbers that are taken, by whatever.
    pub(crate) taken: BTreeSet<u32>,
}

/// Reads `epochs/`. One that is damaged or that anybody else signed does not count; [`crate::verify`] names it.
pub(crate) fn published(backend: &dyn Backend, keys: &Keys) -> Result<Published> {
    let authority = Certificates::new(keys);
    let mut published = Published::default();
    for object in list_sorted(backend, Epoch::PREFIX)? {
        let Some(number) = Epoch::parse_name(&object.name) else { continue };
        published.taken.insert(number);
        let record = backend
            .get(&object.name)
            .and_then(|bytes| sealed::open(keys, &authority, ObjectKind::Epoch, &object.name, &bytes));
        match record.and_then(|record| Epoch::decode(number, &record.body)) {
            Ok(epoch) => published.epochs.push(epoch),
            Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::NotFound | Kind::Unsupported) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(published)
}

/// Opens a slot with keys that `accept` accepts, and takes in the epochs that were published.
pub(crate) fn enter<T>(
    backend: &dyn Backend,
    credential: &Credential,
    accept: impl Fn(&Keys) -> Result<T>,
) -> Result<(Entrance, Keys, T)> {
    let (mut slot, mut keys, mut accepted) = open_slots(backend, credential, &accept)?;
    let epochs = published(backend, &keys)?.epochs;
    keys.learn(&epochs)?;
    if keys.is_full() && !keys.reads_newest() {
        // A rotation that was interrupted may have left the older slot of this credential beside the newer one.
        let newer = open_slots(backend, credential, |keys| {
            let accepted = accept(keys)?;
            keys.learn(&epochs)?;
            keys.check_newest("read what is new").map(|()| accepted)
        });
        match newer {
            Ok(newer) => (slot, keys, accepted) = newer,
            Err(e) if matches!(e.kind(), Kind::WrongKey | Kind::Corrupt | Kind::Unsupported) => {}
            Err(e) => return Err(e),
        }
    }
    Ok((Entrance::new(credential, slot), keys, accepted))
}

/// Tries the slots of the credential's kind until one opens with keys that `accept` accepts: a slot that a crash left behind
/// while the repository was made opens, too, and its keys are another repository's.
fn open_slots<T>(
    backend: &dyn Backend,
    credential: &Credential,
    accept: impl Fn(&Keys) -> Result<T>,
) -> Result<(SlotId, Keys, T)> {
    let mut refused = None;
    for id in list_slots(backend)? {
        let opened =
            backend.get(&key_slot::object_name(id)).and_then(|bytes| key_slot::open_slot(id, &bytes, credential));
        match opened.and_then(|keys| accept(&keys).map(|accepted| (id, keys, accepted))) {
            Ok(found) => return Ok(found),
            Err(e) if e.kind() == Kind::WrongKey => {}
            Err(e) => refused = Some(e),
        }
    }
    // A damaged slot may be the one this credential opens: that is worth more than "wrong passphrase".
    Err(refused.unwrap_or_else(|| {
        let what = credential.noun();
        Error::new(Kind::WrongKey, format!("this {what} opens no key slot of {}", backend.location()))
    }))
}

fn list_slots(backend: &dyn Backend) -> Result<Vec<SlotId>> {
    let objects = list_sorted(backend, key_slot::PREFIX)?;
    Ok(objects.iter().filter_map(|o| o.name.strip_prefix(key_slot::PREFIX)?.parse().ok()).collect())
}

impl Repository {
    /// Adds a key slot that opens the full bundle. `WrongKey` when this session's own does not read what is written now.
    pub fn add_key(&self, credential: &Credential, options: &SlotOptions) -> Result<SlotId> {
        self.check_full("add keys")?;
        self.keys().check_newest("add keys")?;
        self.put_slot(self.keys(), credential, options)
    }

    /// Adds a key slot that opens a writer's bundle, and publishes the writer's certificate.
    pub fn export_writer(&self, credential: &Credential, options: &SlotOptions) -> Result<SlotId> {
        self.check_full("export keys")?;
        let (writer, certificate) = self.keys().export_writer(&options.label, options.created, self.entropy())?;
        let name = certificate.object_name();
        if self.put_record(ObjectKind::Certificate, &name, &certificate.encode()?)? == Put::Exists {
            return Err(Error::internal(format!("{name} exists although its key is new")));
        }
        self.put_slot(&writer, credential, options)
    }

    /// The key slots, without their secrets; damaged ones as errors with their names.
    pub fn key_slots(&self) -> Result<Vec<(SlotId, Result<SlotSummary>)>> {
        let slots = list_slots(self.backend())?;
        let read =
            |id| self.backend().get(&key_slot::object_name(id)).and_then(|bytes| key_slot::summarise(id, &bytes));
        Ok(slots.into_iter().map(|id| (id, read(id))).collect())
    }

    /// The newest data-key epoch of a slot, as far as it tells without being opened; `None` for a key that nobody published, which
    /// an interrupted rotation leaves.
    #[must_use]
    pub fn epoch_of(&self, slot: &SlotSummary) -> Option<u32> {
        let published = |recipient: RecipientId| self.keys().epoch_of(recipient);
        slot.recipient.map_or(Some(epoch::FIRST), published)
    }

    /// Whether a slot opens a full bundle that does not read what is written now. Writers learn new epochs by themselves.
    #[must_use]
    pub fn is_behind(&self, slot: &SlotSummary) -> bool {
        slot.full && self.epoch_of(slot) != Some(self.keys().data_key().0)
    }

    /// Removes a key slot. The one that this session came in by is kept: of the others nobody can tell whether they open what they
    /// say, so that whoever wants it gone opens the repository with another one that does.
    pub fn remove_key(&self, id: SlotId) -> Result<()> {
        self.check_full("remove keys")?;
        self.keys().check_newest("remove keys")?;
        let own = self.entrance().slot();
        let slots = list_slots(self.backend())?;
        if !slots.contains(&id) {
            return Err(Error::not_found(format!("no key slot {id}; see 'coffer key list'")));
        }
        if id == own {
            let why = format!(
                "{id} is the key slot that this passphrase or key file opens, and the only one that is known to open everything; \
                 to remove it, use another key that does ('coffer key add' adds one)"
            );
            return Err(Error::new(Kind::Retained, why));
        }
        if !slots.contains(&own) {
            let why = format!("{own}, by which the repository was opened, was removed meanwhile; {id} is kept");
            return Err(Error::new(Kind::Retained, why));
        }
        self.backend().delete(&key_slot::object_name(id))
    }

    pub(crate) fn put_slot(&self, keys: &Keys, credential: &Credential, options: &SlotOptions) -> Result<SlotId> {
        self.check_writable()?;
        let id = SlotId(fresh(self.entropy())?);
        self.put_slot_as(id, keys, credential, options).map(|()| id)
    }

    /// Puts the slot of this name, which has to be a fresh one.
    pub(crate) fn put_slot_as(
        &self,
        id: SlotId,
        keys: &Keys,
        credential: &Credential,
        options: &SlotOptions,
    ) -> Result<()> {
        let bytes = key_slot::seal_slot(keys, credential, id, options, self.entropy())?;
        match self.backend().put(&key_slot::object_name(id), &[&bytes])? {
            Put::Created => Ok(()),
            Put::Exists => Err(Error::internal(format!("key slot {id} exists although its name is random"))),
        }
    }

    /// The slots that this session's credential opens and that hold a full bundle of this repository, with what is in them.
    pub(crate) fn own_slots(&self) -> Result<Vec<(SlotId, Keys)>> {
        let epochs = published(self.backend(), self.keys())?.epochs;
        let mut own = Vec::new();
        for id in list_slots(self.backend())? {
            let bytes = match self.backend().get(&key_slot::object_name(id)) {
                Err(e) if e.kind() == Kind::NotFound => continue,
                other => other?,
            };
            match key_slot::open_slot(id, &bytes, &self.entrance().credential) {
                Ok(keys) if keys.is_full() && self.is_own(&keys) => {
                    keys.learn(&epochs)?;
                    own.push((id, keys));
                }
                Ok(_) => {}
                // Somebody else's, or damaged: not known to be of this credential.
                Err(e) if matches!(e.kind(), Kind::WrongKey | Kind::Corrupt | Kind::Unsupported) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(own)
    }

    fn is_own(&self, keys: &Keys) -> bool {
        (keys.repo(), keys.authority()) == (self.keys().repo(), self.keys().authority())
    }

    /// Opens a pack whose header was verified. A data pack of an epoch that began after this session did is opened as well, when
    /// the session's credential got a newer slot meanwhile.
    pub(crate) fn open_header(&self, header: &PackHeader) -> Result<OpenPack> {
        match header.open(self.keys()) {
            Err(e) if e.kind() == Kind::WrongKey && self.keys().is_full() && self.catch_up(&recipients(header))? => {
                header.open(self.keys())
            }
            // What was learnt on the way tells more of the cause.
            Err(e) if e.kind() == Kind::WrongKey => header.open(self.keys()),
            other => other,
        }
    }

    /// Looks for a newer slot that opens what is sealed to these data keys; whether there was one.
    pub(crate) fn catch_up(&self, recipients: &[RecipientId]) -> Result<bool> {
        // Held while slots are read: each try takes the memory of a passphrase, and nobody else waits for this.
        let mut sought = self.entrance().sought.lock().unwrap_or_else(PoisonError::into_inner);
        let opens = |keys: &Keys| recipients.iter().any(|recipient| keys.data_private(*recipient).is_some());
        let epoch = || recipients.iter().find_map(|recipient| self.keys().epoch_of(*recipient));
        if opens(self.keys()) {
            return Ok(true);
        }
        if epoch().is_some_and(|epoch| sought.contains(&epoch)) {
            return Ok(false);
        }
        self.keys().learn(&published(self.backend(), self.keys())?.epochs)?;
        let Some(epoch) = epoch() else { return Ok(false) };
        let newer = self.own_slots()?.into_iter().find(|(_, keys)| opens(keys));
        match &newer {
            Some((_, keys)) => self.keys().adopt(keys),
            None => drop(sought.insert(epoch)),
        }
        Ok(newer.is_some())
    }
}

/// The data keys that a pack is sealed to.
fn recipients(header: &PackHeader) -> Vec<RecipientId> {
    header.slots.iter().map(|slot| slot.recipient).collect()
}
