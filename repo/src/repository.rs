//! An open repository: where it is, its keys, its parameters; and how records and packs are read and written with them.
//!
//! Not here: what the records mean ([`crate::catalog`]), who can open it ([`crate::keyring`]), backups ([`crate::writer`]), reads
//! ([`crate::reader`]). What holds: a
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
use crate::index_delta::{self, IndexDelta};
use crate::key_slot::{Credential, SlotOptions};
use crate::keyring::{self, Entrance};
use crate::keys::Keys;
use crate::location::PackKind;
use crate::pack::{self, FinishedPack, OpenPack, PackHeader};
use crate::parity;
use crate::sealed::{self, ObjectKind, Record, Unverified};
use crate::session::Session;
use crate::snapshot::Identity;
use crate::store_class::StoreClass;
use crate::time::Timestamp;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

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
    /// Whether new packs get parity, which takes 6 % more space and makes up for small damage.
    pub parity: bool,
}

/// An open repository. Shared by everything that uses it.
pub struct Repository {
    backend: Arc<dyn Backend>,
    entropy: Arc<dyn Entropy>,
    keys: Arc<Keys>,
    entrance: Entrance,
    descriptor: Descriptor,
    access: Access,
    parity: bool,
    /// What a probe found the store to be, at any time.
    store_class: RwLock<Option<StoreClass>>,
    certificates: RwLock<Arc<Certificates>>,
    /// Forgets that were read and found genuine.
    forgets: RwLock<BTreeSet<SnapshotId>>,
    /// The process's session, while somebody needs it.
    session: Mutex<Weak<Session>>,
    /// Number of the next index delta to publish, once the published ones were listed.
    next_delta: Mutex<Option<u64>>,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Repository({} at {})", self.keys.repo(), self.backend.location())
    }
}

impl Repository {
    /// Makes a repository. `Invalid` when there is one already. What the store was found to be ([`StoreClass::record`]) is taken in.
    pub fn init(backend: Arc<dyn Backend>, options: InitOptions, entropy: Arc<dyn Entropy>) -> Result<Self> {
        let exists = || Error::invalid(format!("{} holds a repository already", backend.location()));
        if backend.size(descriptor::OBJECT_NAME)?.is_some() {
            return Err(exists());
        }
        let keys = Keys::generate(RepoId(fresh(&*entropy)?), &*entropy)?;
        let InitOptions { credential, slot, disk, stream, aead, parity } = options;
        let descriptor = Descriptor { created: slot.created, aead, disk, stream };
        let object = descriptor.encode(&keys)?;
        let id = SlotId(fresh(&*entropy)?);
        let entrance = Entrance::new(&credential, id);
        let mut repo = Self::with(Arc::clone(&backend), entropy, (keys, entrance), descriptor, Access::ReadWrite);
        repo.parity = parity;
        repo.store_class = RwLock::new(StoreClass::recorded(&*backend)?);
        repo.put_slot_as(id, &repo.keys, &credential, &slot)?;
        if parity {
            // One that a crash left behind says the same.
            repo.turn_parity_on()?;
        }
        match backend.put(descriptor::OBJECT_NAME, &[&object])? {
            // Two that make one at once both come here, where nobody is told.
            Put::Created
                if repo.store_class() == Some(StoreClass::Overwriting)
                    && backend.get(descriptor::OBJECT_NAME)? != object =>
            {
                Err(exists())
            }
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
        let (entrance, keys, (descriptor, mut access)) =
            keyring::enter(&*backend, credential, |keys| Descriptor::decode(keys, &bytes))?;
        let (mut parity, mut class) = (false, None);
        for feature in list_sorted(&*backend, "features/")? {
            access = access.and(features::access_with(&feature.name)?);
            parity |= feature.name == features::PARITY;
            class = class.max(StoreClass::of_feature(&feature.name));
        }
        let store_class = RwLock::new(class);
        Ok(Repository { parity, store_class, ..Self::with(backend, entropy, (keys, entrance), descriptor, access) })
    }

    fn with(
        backend: Arc<dyn Backend>,
        entropy: Arc<dyn Entropy>,
        (keys, entrance): (Keys, Entrance),
        descriptor: Descriptor,
        access: Access,
    ) -> Self {
        let certificates = RwLock::new(Arc::new(Certificates::new(&keys)));
        Repository {
            backend,
            entropy,
            keys: Arc::new(keys),
            entrance,
            descriptor,
            access,
            parity: false,
            store_class: RwLock::default(),
            certificates,
            forgets: RwLock::default(),
            session: Mutex::default(),
            next_delta: Mutex::default(),
        }
    }

    /// The same repository behind what `wrap` puts before its store.
    pub fn behind(self, wrap: impl FnOnce(Arc<dyn Backend>) -> Result<Arc<dyn Backend>>) -> Result<Self> {
        Ok(Repository { backend: wrap(Arc::clone(&self.backend))?, ..self })
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

    /// The key bundle, for what outlives a borrow.
    pub(crate) fn shared_keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys)
    }

    /// How this session came in.
    pub(crate) fn entrance(&self) -> &Entrance {
        &self.entrance
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

    /// What the store was found to be; `None` when nobody looked.
    #[must_use]
    pub fn store_class(&self) -> Option<StoreClass> {
        *self.store_class.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what the store was found to be, to whoever opens the repository after this. What counts from then on is returned: of all
    /// that was ever found the weakest.
    pub fn record_store_class(&self, class: StoreClass) -> Result<StoreClass> {
        self.check_writable()?;
        class.record(self.backend())?;
        let weakest = StoreClass::recorded(self.backend())?.max(Some(class)).unwrap_or(class);
        *self.store_class.write().unwrap_or_else(PoisonError::into_inner) = Some(weakest);
        Ok(weakest)
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

    /// Publishes an index delta under the next number of this signer's that is free; its name.
    pub fn publish_delta(&self, delta: &IndexDelta) -> Result<String> {
        let (signer, body) = (self.keys.signer().id(), delta.encode()?);
        let known = *self.next_delta.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = match known {
            Some(next) => next,
            None => match self.store_class() {
                None | Some(StoreClass::Strong) => self.next_delta_listed(signer)?,
                // Nobody would be told that a name is taken. So many numbers from a random one on are as good as free.
                Some(_) => u64::from_le_bytes(fresh(self.entropy())?) >> 1,
            },
        };
        loop {
            let name = index_delta::name(signer, next);
            next += 1;
            // Another process with the same key may be publishing: its name is taken, the next one may be free.
            if self.put_record(ObjectKind::IndexDelta, &name, &body)? == Put::Created {
                *self.next_delta.lock().unwrap_or_else(PoisonError::into_inner) = Some(next);
                return Ok(name);
            }
        }
    }

    /// The first number that no listed delta of this signer has.
    fn next_delta_listed(&self, signer: SignerId) -> Result<u64> {
        let mut next = 0;
        self.backend.list(index_delta::PREFIX, &mut |object| {
            if let Some((of, number)) = index_delta::parse_name(&object.name)
                && of == signer
            {
                next = next.max(number.saturating_add(1));
            }
            Ok(())
        })?;
        Ok(next)
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
        self.open_header(&self.pack_header(kind, uid)?)
    }

    /// Reads and verifies a pack's header.
    pub fn pack_header(&self, kind: PackKind, uid: PackUid) -> Result<PackHeader> {
        self.believing(&pack::name(kind, uid), 0, pack::header::MAX_LEN as u64, || {
            self.trusting(|certificates| PackHeader::fetch(self.backend(), &self.keys, certificates, kind, uid))
        })
    }

    /// As [`Repository::open_pack`] of a pack that begins with `bytes`.
    pub(crate) fn open_pack_of(&self, kind: PackKind, uid: PackUid, bytes: &[u8]) -> Result<OpenPack> {
        self.open_header(&self.trusting(|certificates| PackHeader::verify(&self.keys, certificates, kind, uid, bytes))?)
    }

    /// What `read` makes of `len` bytes of an object from `offset` on. When they are not what was put, and the store lets go of a
    /// nearer copy of them, it is read once more.
    pub(crate) fn believing<T>(
        &self,
        name: &str,
        offset: u64,
        len: u64,
        mut read: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        read().or_else(|e| match e.kind() == Kind::Corrupt && self.backend.doubt(name, offset, len) {
            true => read(),
            false => Err(e),
        })
    }

    /// What `read` reads with the certificates known so far or, failing that, with all there are.
    fn trusting<T>(&self, read: impl Fn(&Certificates) -> Result<T>) -> Result<T> {
        let known = self.certificates();
        let e = match read(&known) {
            // Signed by a writer whose certificate was not needed so far, or damaged: the second look tells.
            Err(e) if e.kind() == Kind::Corrupt => e,
            other => return other,
        };
        let more = || Some(self.certificates()).filter(|now| now.writers().count() > known.writers().count());
        // Another thread may have fetched it since.
        if more().is_none() {
            self.load_certificates()?;
        }
        more().map_or(Err(e), |certificates| read(&certificates))
    }

    /// Whether packs get parity.
    #[must_use]
    pub fn wants_parity(&self) -> bool {
        self.parity
    }

    /// Stores a finished pack and then, where packs get it, its parity. It counts for as long as it is durable alone: parity may
    /// be missing.
    pub fn put_pack(&self, pack: &FinishedPack) -> Result<()> {
        if self.backend.put(&pack.name, &[&pack.bytes])? == Put::Exists {
            return Err(Error::internal(format!("{} exists although its name is random", pack.name)));
        }
        if self.parity { self.put_parity(pack.kind, pack.uid, &pack.bytes) } else { Ok(()) }
    }

    /// The packs that could have parity and have none. Parity of a pack that is being written follows it, and is listed later.
    pub fn packs_without_parity(&self) -> Result<BTreeSet<(PackKind, PackUid)>> {
        let mut without = BTreeSet::new();
        for kind in PackKind::ALL {
            self.backend.list(kind.prefix(), &mut |object| {
                if object.size <= parity::PACK_MAX as u64 {
                    without.extend(pack::parse_name(&object.name));
                }
                Ok(())
            })?;
        }
        self.backend.list(parity::PREFIX, &mut |object| {
            if let Some(uid) = parity::parse_name(&object.name) {
                without.remove(&(PackKind::Data, uid));
                without.remove(&(PackKind::Tree, uid));
            }
            Ok(())
        })?;
        Ok(without)
    }

    /// Says that packs get parity from now on, from whoever opens the repository after this.
    pub fn turn_parity_on(&self) -> Result<()> {
        self.check_writable()?;
        let (Put::Created | Put::Exists) = self.backend.put(features::PARITY, &[])?;
        Ok(())
    }

    /// Stores the parity of the whole pack `bytes`, unless there is some or the pack is too long for it.
    pub fn put_parity(&self, kind: PackKind, uid: PackUid, bytes: &[u8]) -> Result<()> {
        if bytes.len() <= parity::PACK_MAX {
            let (Put::Created | Put::Exists) =
                self.backend.put(&parity::name(uid), &[&parity::encode(kind, uid, bytes)?])?;
        }
        Ok(())
    }

    /// This process's session: begun by whoever needs it first, ended when nobody does any more.
    pub(crate) fn session(self: &Arc<Self>, identity: &Identity, now: Timestamp) -> Result<Arc<Session>> {
        // Beginning writes one small object under the lock: two sessions of one process would beat twice as often.
        let mut running = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = running.upgrade() {
            return Ok(session);
        }
        let session = Arc::new(Session::begin(self, identity, now)?);
        *running = Arc::downgrade(&session);
        Ok(session)
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
            self.load_certificate(signer)?;
        }
        Ok(self.certificates())
    }

    /// Reads one certificate. What is not there, or damaged, certifies nobody.
    fn load_certificate(&self, signer: SignerId) -> Result<()> {
        let name = format!("writers/{signer}");
        let bytes = match self.backend.get(&name) {
            Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::NotFound) => return Ok(()),
            read => read?,
        };
        let mut known = self.certificates.write().unwrap_or_else(PoisonError::into_inner);
        match Arc::make_mut(&mut *known).admit(&self.keys, &name, &bytes) {
            Err(e) if !matches!(e.kind(), Kind::Corrupt | Kind::Unsupported) => Err(e),
            _ => Ok(()),
        }
    }

    /// All certificates there are now: for whoever goes through what many writers wrote.
    pub fn all_certificates(&self) -> Result<Arc<Certificates>> {
        self.load_certificates()?;
        Ok(self.certificates())
    }

    /// Reads all certificates. A damaged one is left out, so that it takes down what its own
    /// writer signed and nothing else; [`crate::verify`] names it.
    fn load_certificates(&self) -> Result<()> {
        let mut certificates = Certificates::new(&self.keys);
        for object in list_sorted(self.backend(), "writers/")? {
            let admitted =
                self.backend.get(&object.name).and_then(|bytes| certificates.admit(&self.keys, &object.name, &bytes));
            match admitted {
                Err(e) if !matches!(e.kind(), Kind::Corrupt | Kind::NotFound | Kind::Unsupported) => return Err(e),
                _ => {}
            }
        }
        *self.certificates.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certificates);
        Ok(())
    }
}
