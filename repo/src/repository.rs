//! An open repository: where it is, its keys, its parameters; and how records and packs are read and written with them.
//!
//! Not here: what the records mean ([`crate::catalog`]), backups ([`crate::writer`]), reads ([`crate::reader`]). What holds: a
//! `Repository` is only made after the descriptor was authenticated by the key bundle and every feature is known; a descriptor
//! is written last, so that a half-made repository is none.

use crate::backend::{Backend, Put, list_sorted};
use crate::certificate::Certificates;
use crate::chunker::{DiskChunker, DiskParams, StreamChunker, StreamParams};
use crate::crypto::Aead;
use crate::descriptor::{self, Descriptor};
use crate::disk_map::Geometry;
use crate::entropy::{Entropy, fresh};
use crate::error::{Error, Kind, Result};
use crate::features::{self, Access};
use crate::id::{PackUid, RepoId, SignerId, SlotId, SnapshotId};
use crate::key_slot::{self, Credential, SlotOptions, SlotSummary};
use crate::keys::Keys;
use crate::location::PackKind;
use crate::pack::{OpenPack, PackHeader};
use crate::sealed::{self, ObjectKind, Record, Unverified};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// How a new repository is made.
pub struct InitOptions {
    /// Opens the first key slot.
    pub credential: Credential,
    /// Label, time and cost of the first key slot; the time is also the repository's.
    pub slot: SlotOptions,
    /// How disks are cut, for the repository's whole life.
    pub disk: DiskParams,
    /// How streams are cut.
    pub stream: StreamParams,
    /// Cipher of new objects.
    pub aead: Aead,
}

/// An open repository. Shared by everything that uses it.
pub struct Repository {
    backend: Arc<dyn Backend>,
    entropy: Arc<dyn Entropy>,
    keys: Keys,
    descriptor: Descriptor,
    access: Access,
    certificates: RwLock<Arc<Certificates>>,
    /// Forgets that were read and found genuine.
    forgets: RwLock<BTreeSet<SnapshotId>>,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Repository({} at {})", self.keys.repo(), self.backend.location())
    }
}

impl Repository {
    /// Makes a repository. `Invalid` when there is one already.
    pub fn init(backend: Arc<dyn Backend>, options: InitOptions, entropy: Arc<dyn Entropy>) -> Result<Self> {
        let exists = || Error::invalid(format!("{} holds a repository already", backend.location()));
        if backend.size(descriptor::OBJECT_NAME)?.is_some() {
            return Err(exists());
        }
        let keys = Keys::generate(RepoId(fresh(&*entropy)?), &*entropy)?;
        let InitOptions { credential, slot, disk, stream, aead } = options;
        let descriptor = Descriptor { created: slot.created, aead, disk, stream };
        let object = descriptor.encode(&keys)?;
        let repo = Self::with(Arc::clone(&backend), entropy, keys, descriptor, Access::ReadWrite);
        repo.put_slot(&repo.keys, &credential, &slot)?;
        match backend.put(descriptor::OBJECT_NAME, &[&object])? {
            Put::Created => Ok(repo),
            Put::Exists => Err(exists()),
        }
    }

    /// Opens a repository. `NotFound` when there is none, `WrongKey` when no key slot opens, `Unsupported` when it uses what
    /// this version does not know.
    pub fn open(backend: Arc<dyn Backend>, credential: &Credential, entropy: Arc<dyn Entropy>) -> Result<Self> {
        let location = backend.location();
        let bytes = backend.get(descriptor::OBJECT_NAME).map_err(|e| match e.kind() {
            Kind::NotFound => Error::not_found(format!(
                "{location} is not a Coffer repository (it has no object '{}'); make one with 'coffer init'",
                descriptor::OBJECT_NAME
            )),
            _ => e,
        })?;
        Descriptor::check_format(&bytes)?;
        let (keys, (descriptor, mut access)) =
            open_slots(&*backend, credential, |keys| Descriptor::decode(keys, &bytes))?;
        for feature in list_sorted(&*backend, "features/")? {
            access = access.and(features::access_with(&feature.name)?);
        }
        Ok(Self::with(backend, entropy, keys, descriptor, access))
    }

    fn with(
        backend: Arc<dyn Backend>,
        entropy: Arc<dyn Entropy>,
        keys: Keys,
        descriptor: Descriptor,
        access: Access,
    ) -> Self {
        let certificates = RwLock::new(Arc::new(Certificates::new(&keys)));
        Repository { backend, entropy, keys, descriptor, access, certificates, forgets: RwLock::default() }
    }

    /// The store.
    #[must_use]
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// The store, for a thread of its own.
    #[must_use]
    pub fn shared_backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.backend)
    }

    /// The key bundle.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The descriptor.
    #[must_use]
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Where random bytes come from.
    #[must_use]
    pub fn entropy(&self) -> &dyn Entropy {
        &*self.entropy
    }

    /// How windows divide a disk.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        Geometry { window: self.descriptor.disk.window }
    }

    /// The longest chunk, in bytes.
    #[must_use]
    pub fn chunk_max(&self) -> u32 {
        self.descriptor.disk.max.max(self.descriptor.stream.max)
    }

    /// What cuts disks.
    pub fn disk_chunker(&self) -> Result<DiskChunker> {
        DiskChunker::new(self.descriptor.disk, self.keys.id_key().chunker_seed())
    }

    /// What cuts streams.
    pub fn stream_chunker(&self) -> Result<StreamChunker> {
        StreamChunker::new(self.descriptor.stream, self.keys.id_key().gear_table())
    }

    /// Fails when the repository uses a feature that this version can only read beside.
    pub fn check_writable(&self) -> Result<()> {
        match &self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly(why) => Err(Error::new(Kind::Unsupported, why.clone())),
        }
    }

    /// Fails unless the key bundle is a full one.
    pub fn check_full(&self, purpose: &str) -> Result<()> {
        if self.keys.is_full() {
            return Ok(());
        }
        Err(Error::new(
            Kind::WrongKey,
            format!(
                "this key is a writer's: it can add backups but not {purpose}; use a passphrase or key file of a full key"
            ),
        ))
    }

    /// Seals, signs and stores a record under `name`.
    pub fn put_record(&self, kind: ObjectKind, name: &str, body: &[u8]) -> Result<Put> {
        self.check_writable()?;
        let object = sealed::seal(&self.keys, kind, name, body, self.descriptor.aead, &*self.entropy)?;
        self.backend.put(name, &[&object])
    }

    /// Reads, decrypts and verifies the record `name`.
    pub fn get_record(&self, kind: ObjectKind, name: &str) -> Result<Record> {
        let bytes = self.backend.get(name)?;
        let record = Unverified::open(&self.keys, kind, name, &bytes)?;
        let signer = record.signer();
        record.verify(&self.keys, &*self.certificates_for(signer)?)
    }

    /// Reads and verifies a pack's header and unwraps its key.
    pub fn open_pack(&self, kind: PackKind, uid: PackUid) -> Result<OpenPack> {
        self.pack_header(kind, uid)?.open(&self.keys)
    }

    /// Reads and verifies a pack's header.
    pub fn pack_header(&self, kind: PackKind, uid: PackUid) -> Result<PackHeader> {
        let read = || PackHeader::fetch(self.backend(), &self.keys, &self.certificates(), kind, uid);
        match read() {
            // Signed by a writer whose certificate was not needed so far, or damaged: the second look tells.
            Err(e) if e.kind() == Kind::Corrupt && self.load_certificates()? => read(),
            other => other,
        }
    }

    pub(crate) fn knows_forget(&self, id: SnapshotId) -> bool {
        self.forgets.read().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }

    pub(crate) fn note_forget(&self, id: SnapshotId) {
        self.forgets.write().unwrap_or_else(PoisonError::into_inner).insert(id);
    }

    /// The certificates known so far.
    #[must_use]
    pub fn certificates(&self) -> Arc<Certificates> {
        Arc::clone(&self.certificates.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The certificates with that of `signer`, if there is one: fetched when first needed.
    pub fn certificates_for(&self, signer: SignerId) -> Result<Arc<Certificates>> {
        if self.certificates().public(signer).is_none() {
            self.load_certificates()?;
        }
        Ok(self.certificates())
    }

    /// All certificates there are now: for whoever goes through what many writers wrote.
    pub fn all_certificates(&self) -> Result<Arc<Certificates>> {
        self.load_certificates()?;
        Ok(self.certificates())
    }

    /// Reads all certificates; whether there was a new one. A damaged one is left out, so that it takes down what its own
    /// writer signed and nothing else; [`crate::verify`] names it.
    fn load_certificates(&self) -> Result<bool> {
        let mut certificates = Certificates::new(&self.keys);
        for object in list_sorted(self.backend(), "writers/")? {
            let admitted =
                self.backend.get(&object.name).and_then(|bytes| certificates.admit(&self.keys, &object.name, &bytes));
            match admitted {
                Err(e) if !matches!(e.kind(), Kind::Corrupt | Kind::NotFound | Kind::Unsupported) => return Err(e),
                _ => {}
            }
        }
        let certificates = Arc::new(certificates);
        let mut known = self.certificates.write().unwrap_or_else(PoisonError::into_inner);
        let news = certificates.writers().count() > known.writers().count();
        *known = certificates;
        Ok(news)
    }

    /// Adds a key slot that opens the full bundle.
    pub fn add_key(&self, credential: &Credential, options: &SlotOptions) -> Result<SlotId> {
        self.check_full("add keys")?;
        self.put_slot(&self.keys, credential, options)
    }

    /// Adds a key slot that opens a writer's bundle, and publishes the writer's certificate.
    pub fn export_writer(&self, credential: &Credential, options: &SlotOptions) -> Result<SlotId> {
        self.check_full("export keys")?;
        let (writer, certificate) = self.keys.export_writer(&options.label, options.created, &*self.entropy)?;
        let name = certificate.object_name();
        if self.put_record(ObjectKind::Certificate, &name, &certificate.encode()?)? == Put::Exists {
            return Err(Error::internal(format!("{name} exists although its key is new")));
        }
        self.put_slot(&writer, credential, options)
    }

    /// The key slots, without their secrets; damaged ones as errors with their names.
    pub fn key_slots(&self) -> Result<Vec<(SlotId, Result<SlotSummary>)>> {
        let slots = list_slots(self.backend())?;
        let read = |id| self.backend.get(&key_slot::object_name(id)).and_then(|bytes| key_slot::summarise(id, &bytes));
        Ok(slots.into_iter().map(|id| (id, read(id))).collect())
    }

    /// Removes a key slot. The last one that opens everything is kept: without it nothing can be read again.
    pub fn remove_key(&self, id: SlotId) -> Result<()> {
        self.check_full("remove keys")?;
        let slots = self.key_slots()?;
        if !slots.iter().any(|(other, _)| *other == id) {
            return Err(Error::not_found(format!("no key slot {id}; see 'coffer key list'")));
        }
        if !slots.iter().any(|(other, summary)| *other != id && summary.as_ref().is_ok_and(|s| s.full)) {
            return Err(Error::new(
                Kind::Retained,
                format!("{id} is the last key slot that opens everything; add another one first with 'coffer key add'"),
            ));
        }
        self.backend.delete(&key_slot::object_name(id))
    }

    fn put_slot(&self, keys: &Keys, credential: &Credential, options: &SlotOptions) -> Result<SlotId> {
        self.check_writable()?;
        let id = SlotId(fresh(&*self.entropy)?);
        let bytes = key_slot::seal_slot(keys, credential, id, options, &*self.entropy)?;
        match self.backend.put(&key_slot::object_name(id), &[&bytes])? {
            Put::Created => Ok(id),
            Put::Exists => Err(Error::internal(format!("key slot {id} exists although its name is random"))),
        }
    }
}

fn list_slots(backend: &dyn Backend) -> Result<Vec<SlotId>> {
    let objects = list_sorted(backend, key_slot::PREFIX)?;
    Ok(objects.iter().filter_map(|o| o.name.strip_prefix(key_slot::PREFIX)?.parse().ok()).collect())
}

/// Tries the slots of the credential's kind until one opens with keys that `accept` accepts: a slot that a crash left behind
/// while the repository was made opens, too, and its keys are another repository's.
fn open_slots<T>(
    backend: &dyn Backend,
    credential: &Credential,
    accept: impl Fn(&Keys) -> Result<T>,
) -> Result<(Keys, T)> {
    let mut refused = None;
    for id in list_slots(backend)? {
        let opened =
            backend.get(&key_slot::object_name(id)).and_then(|bytes| key_slot::open_slot(id, &bytes, credential));
        match opened.and_then(|keys| accept(&keys).map(|accepted| (keys, accepted))) {
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
