//! A repository in an object store: nine kinds of them, through OpenDAL.
//!
//! ```text
//!   any thread ─ Backend (synchronous) ─┐
//!     put: share of memory, copy, parts │        ┌─ service: what kind of store, credentials, root
//!     get, list, ...                    ├─ call ─┤
//!     errors, repeated calls            │        └─ transport: permits, pace, hedge, retries ─ client ─> the store
//!                                runtime (private)
//! ```
//! Not here: what locations mean ([`super::address`]), which secrets there are ([`super::secrets`]), what becomes of errors
//! ([`failure`]), when something is tried again ([`retry`]), locks against removal and cold tiers, which OpenDAL does not know
//! ([`object_lock`], [`archive`]).
//!
//! What holds:
//! - **A put is create-only as far as the store can.** Up to a part's size it is one conditional PUT. Above that it is a multipart
//!   upload whose completion carries the condition (S3, Azure, OSS, COS; GCS binds it to the session). Where a store ignores
//!   the condition the class of the store is weak, which a probe finds out; nothing here pretends otherwise. Names of packs,
//!   the only objects of that size, are random. A put by SFTP is a draft that is renamed when it is whole: atomic, and weak.
//! - **A put whose answer was lost and that then finds its name taken reads the object back**: equal bytes are its own, so it
//!   answers `Created`. (Two callers that put equal bytes under one name may so both be told `Created`; what is put under a name
//!   that others may choose too is told apart by random bytes in it.)
//! - A get is exact: a length that does not agree with what the store announced is tried again, then an error.
//! - A missing bucket is an error, never a missing object: the first 404 to a question without a body makes the store list.
//! - Listings are streamed page by page; uploads hold at most the memory budget, and one copy of what is being sent.
//! - Every call ends: attempts, pauses and standstills are bounded by [`retry`] and [`body`].

mod archive;
mod body;
mod budget;
mod client;
mod failure;
mod hedge;
mod listing;
mod object_lock;
mod retry;
mod runtime;
mod service;
mod signed;
mod swift;
mod throttle;
mod transport;
mod upload;
mod versions;
mod witness;
mod xml;

use super::address::{ObjectAddress, Scheme};
use super::archive::Archive;
use super::lock::ObjectLock;
use super::{Backend, Given, Listed, Put, check_name, check_prefix};
use crate::error::{Error, Kind, Result};
use crate::location::PackKind;
use budget::Budget;
use failure::of_opendal;
use futures_util::StreamExt;
use hedge::Hedge;
use object_lock::Lockable;
use opendal::options::{ListOptions, ReaderOptions};
use opendal::{Buffer, BytesRange, Capability, EntryMode, HttpTransporter, OperationContext, Operator};
use runtime::Runtime;
use signed::Notary;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};
use throttle::Throttle;
use tokio::sync::Semaphore;
use transport::{Counts, Transport, Wires};
use witness::{Purpose, Witness};

/// What is put in one request unless said otherwise, and the size of the parts of what is larger.
const PART: u64 = 16 << 20;
/// Entries of a listing that wait for their caller.
const LISTED_AHEAD: usize = 1000;
/// Requests at once unless said otherwise.
const CONNECTIONS: u64 = 32;
/// Memory for uploads unless said otherwise.
const MEMORY: u64 = 256 << 20;

/// An object store. The contract is the [trait's module's](super).
pub struct ObjectStore {
    address: ObjectAddress,
    operator: Operator,
    /// What writes packs, if they are put with a class that freezes them.
    freezer: Option<Operator>,
    capability: Capability,
    wires: Arc<Wires>,
    swift: Option<Arc<swift::Account>>,
    memory: Arc<Budget>,
    /// Bytes.
    part: usize,
    patience: Duration,
    /// Whether the bucket is known to be there.
    has_bucket: AtomicBool,
    notary: Option<Notary>,
    lockable: OnceLock<Lockable>,
    /// Whether a rule of the bucket freezes objects.
    freezing: OnceLock<bool>,
    runtime: Runtime,
}

/// What one call is about: words for its errors, and how its requests are treated.
struct Call<'a> {
    doing: &'a str,
    name: &'a str,
    purpose: Purpose,
}

impl ObjectStore {
    /// Opens a store; nothing is asked of it but, for Swift, a token. `Invalid`: what was said about it is not complete.
    pub fn open(address: &ObjectAddress, given: &Given) -> Result<ObjectStore> {
        let connections = usize::try_from(address.number("connections", CONNECTIONS)).unwrap_or(usize::MAX);
        let wires = Arc::new(Wires {
            client: client::build(address)?,
            permits: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
            upload: Throttle::new(address.rates("upload"), Arc::clone(&given.minute)),
            download: Throttle::new(address.rates("download"), Arc::clone(&given.minute)),
            hedge: Hedge::new(address.is_on("hedge", true)),
            entropy: Arc::clone(&given.entropy),
            has_answered: AtomicBool::new(false),
            counts: Counts::default(),
        });
        let runtime = Runtime::new()?;
        let swift = match address.scheme() {
            Scheme::Swift => {
                Some(Arc::new(swift::Account::open(address, &given.secrets, wires.client.clone(), &runtime)?))
            }
            _ => None,
        };
        // Only packs are put where they freeze: of everything else something is read by every command.
        let class = address.option("storage-class");
        let freezing = class.filter(|class| address.scheme() == Scheme::S3 && archive::freezes(class));
        let build = |class| service::build(address, &given.secrets, swift.as_deref(), class);
        let operator = build(class.filter(|_| freezing.is_none()))?;
        let freezer = freezing.map(|class| build(Some(class))).transpose()?;
        Ok(ObjectStore {
            capability: operator.info().capability(),
            operator,
            freezer,
            wires,
            swift,
            memory: Budget::new(address.number("memory", MEMORY)),
            part: usize::try_from(address.number("part", PART)).unwrap_or(usize::MAX),
            patience: Duration::from_secs(address.number("patience", retry::PATIENCE.as_secs())),
            has_bucket: AtomicBool::new(false),
            notary: Notary::open(address, &given.secrets)?,
            lockable: OnceLock::new(),
            freezing: OnceLock::new(),
            runtime,
            address: address.clone(),
        })
    }

    /// Requests made so far, by method; one that was repeated or hedged counts as often as it was made.
    #[must_use]
    pub fn requests(&self) -> BTreeMap<String, u64> {
        self.wires.counts.all()
    }

    /// Runs one call: a witness and an operator of its own, errors in our words, and again while that may help.
    fn call<T, F>(&self, call: &Call, work: impl Fn(Operator, Arc<Witness>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = opendal::Result<T>> + Send + 'static,
    {
        let witness = Arc::new(Witness::new(call.purpose, self.patience));
        loop {
            let operator = self.operator_for(&witness);
            let done = self.runtime.call(work(operator, Arc::clone(&witness)))?;
            let error = match done {
                Ok(value) => return Ok(value),
                Err(error) => self.explain(call, &witness, &error),
            };
            match self.pause_after(&witness, &error) {
                Some(pause) => std::thread::sleep(pause),
                None => return Err(error),
            }
        }
    }

    /// OpenDAL's operator, with a way to the network that tells this witness what it sees.
    fn operator_for(&self, witness: &Arc<Witness>) -> Operator {
        self.over_wires(&self.operator, witness)
    }

    /// The same for what puts an object of that name.
    fn writer_of(&self, name: &str, witness: &Arc<Witness>) -> Operator {
        let freezer = self.freezer.as_ref().filter(|_| name.starts_with(PackKind::Data.prefix()));
        self.over_wires(freezer.unwrap_or(&self.operator), witness)
    }

    fn over_wires(&self, operator: &Operator, witness: &Arc<Witness>) -> Operator {
        let transport =
            Transport { wires: Arc::clone(&self.wires), witness: Arc::clone(witness), swift: self.swift.clone() };
        let context = OperationContext::from_parts(HttpTransporter::new(transport), self.runtime.executor());
        operator.clone().with_context(context)
    }

    /// A failed call's error: by its last failed request, or else by what OpenDAL says.
    fn explain(&self, call: &Call, witness: &Witness, error: &opendal::Error) -> Error {
        let what = match call.name {
            "" => format!("{} {}", call.doing, self.address),
            name => format!("{} '{name}' in {}", call.doing, self.address),
        };
        let seen = witness.seen();
        let mut explained = match &seen.failure {
            Some(failure) => failure.to_error(&what),
            None => of_opendal(error, &what),
        };
        if seen.attempts.made() > 0 {
            explained = explained.within(format!("after {} more attempts", seen.attempts.made()));
        }
        explained
    }

    /// How long to wait before a failed call is made again; `None`: not at all.
    fn pause_after(&self, witness: &Witness, error: &Error) -> Option<Duration> {
        if !error.kind().is_transient() {
            return None;
        }
        let has_answered = self.wires.has_answered.load(Ordering::Relaxed);
        let mut seen = witness.seen();
        let retry_after = seen.failure.as_ref().and_then(failure::Failure::retry_after);
        seen.attempts.pause(self.wires.draw(), retry_after, has_answered, Instant::now())
    }

    /// Bytes of an object and its whole length. A range is as asked, or ends where the object does.
    fn read(&self, name: &str, range: BytesRange) -> Result<(Buffer, u64)> {
        let call = Call { doing: "reading", name, purpose: Purpose { is_read: true, ..Purpose::default() } };
        let path = name.to_owned();
        let read = self.call(&call, |operator, witness| {
            let path = path.clone();
            async move {
                witness.seen().length = None;
                let reader = operator.reader_options(&path, ReaderOptions::default()).await?;
                let bytes = match reader.read(range).await {
                    Ok(bytes) => bytes,
                    // What the store has of such a range is all there will ever be.
                    Err(_) if witness.seen().length.is_some_and(|length| ends_beyond(range, length)) => {
                        return Err(opendal::Error::new(
                            opendal::ErrorKind::RangeNotSatisfied,
                            "the range ends beyond it",
                        ));
                    }
                    Err(e) => return Err(e),
                };
                let told = witness.seen().length.or_else(|| Some(reader.metadata()?.content_length()));
                let length = match told {
                    Some(length) => length,
                    None => operator.stat(&path).await?.content_length(),
                };
                Ok((bytes, length))
            }
        });
        match read {
            Err(e) if e.kind() == Kind::NotFound => Err(self.missing(name, e)),
            other => other,
        }
    }

    /// An object that is not there, or rather its bucket.
    fn missing(&self, name: &str, error: Error) -> Error {
        match self.see_bucket() {
            Ok(()) => Error::not_found(format!("'{name}' does not exist in {}", self.address)).with_source(error),
            Err(e) => e,
        }
    }

    /// Sees once that the bucket is there: an answer of 404 to a HEAD request has no body that could tell.
    fn see_bucket(&self) -> Result<()> {
        if self.has_bucket.load(Ordering::Relaxed) { Ok(()) } else { self.look_into_bucket() }
    }

    /// Asks for the first line of a listing, whose answer has a body also when it is an error.
    fn look_into_bucket(&self) -> Result<()> {
        let call = Call { doing: "looking into", name: "", purpose: Purpose::default() };
        let looked = self.call(&call, |operator, _| async move {
            let options = ListOptions { limit: Some(1), recursive: true, ..ListOptions::default() };
            operator.lister_options("", options).await?.next().await.transpose().map(|_| ())
        });
        match looked {
            // A folder that is not there yet is one that nobody put anything into.
            Err(e) if e.kind() == Kind::NotFound && matches!(self.address.scheme(), Scheme::Webdav | Scheme::Sftp) => {}
            Err(e) if e.kind() == Kind::NotFound => {
                return Err(e.with_kind(Kind::Invalid).within("there is no such bucket"));
            }
            Err(e) => return Err(e),
            Ok(()) => {}
        }
        self.has_bucket.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Backend for ObjectStore {
    fn location(&self) -> String {
        self.address.to_string()
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<Put> {
        check_name(name)?;
        self.upload(name, parts)
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        check_name(name)?;
        let (bytes, length) = self.read(name, BytesRange::from(..))?;
        match bytes.len() as u64 == length {
            true => Ok(bytes.to_vec()),
            false => Err(self.short(name, bytes.len() as u64, length)),
        }
    }

    fn get_range(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        check_name(name)?;
        let wanted = out.len() as u64;
        let beyond = || Error::corrupt(format!("'{name}' in {} has no {wanted} bytes at {offset}", self.address));
        let end = offset.checked_add(wanted);
        if out.is_empty() || end.is_none() {
            let length = self.size(name)?.ok_or_else(|| self.not_there(name))?;
            return if end.is_some_and(|end| end <= length) { Ok(()) } else { Err(beyond()) };
        }
        let read = self.read(name, BytesRange::new(offset, Some(wanted)));
        let (bytes, length) = match read {
            Ok(read) => read,
            Err(e) if e.kind() == Kind::Corrupt => return Err(beyond().with_source(e)),
            Err(e) if e.kind() == Kind::Unavailable => {
                // A store may send what it has of a range that ends beyond the object.
                return match self.size(name) {
                    Ok(Some(length)) if end.is_some_and(|end| end > length) => Err(beyond()),
                    _ => Err(e),
                };
            }
            Err(e) => return Err(e),
        };
        if end.is_some_and(|end| end > length) {
            return Err(beyond());
        }
        if bytes.len() != out.len() {
            return Err(self.short(name, bytes.len() as u64, wanted));
        }
        let mut rest = out;
        for piece in bytes {
            let (to, left) = std::mem::take(&mut rest).split_at_mut_checked(piece.len()).ok_or_else(beyond)?;
            to.copy_from_slice(&piece);
            rest = left;
        }
        Ok(())
    }

    fn get_suffix(&self, name: &str, max: usize) -> Result<(Vec<u8>, u64)> {
        check_name(name)?;
        if max > 0 && self.capability.read_with_suffix {
            match self.read(name, BytesRange::suffix(max as u64)) {
                Ok((bytes, length)) if bytes.len() as u64 == length.min(max as u64) => {
                    return Ok((bytes.to_vec(), length));
                }
                Ok((bytes, length)) => return Err(self.short(name, bytes.len() as u64, length.min(max as u64))),
                // Of an empty object there is no last byte.
                Err(e) if e.kind() == Kind::Corrupt => {}
                Err(e) => return Err(e),
            }
        }
        let length = self.size(name)?.ok_or_else(|| self.not_there(name))?;
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX).min(max)];
        if !bytes.is_empty() {
            self.get_range(name, length - bytes.len() as u64, &mut bytes)?;
        }
        Ok((bytes, length))
    }

    fn get_up_to(&self, name: &str, offset: u64, max: usize) -> Result<(Vec<u8>, u64)> {
        check_name(name)?;
        let wanted = BytesRange::new(offset, Some((max as u64).min(u64::MAX - offset)));
        let left_of = |length: u64| {
            let why = || Error::corrupt(format!("'{name}' in {} ends before byte {offset}", self.address));
            length.checked_sub(offset).ok_or_else(why)
        };
        match self.read(name, wanted) {
            Ok((bytes, length)) => {
                let due = left_of(length)?.min(max as u64);
                match bytes.len() as u64 == due {
                    true => Ok((bytes.to_vec(), length)),
                    false => Err(self.short(name, bytes.len() as u64, due)),
                }
            }
            // Of an object that ends within the range it has to be asked how long it is.
            Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::Unavailable) => {
                let length = self.size(name)?.ok_or_else(|| self.not_there(name))?;
                if !ends_beyond(wanted, length) {
                    return Err(e);
                }
                let mut bytes = vec![0; usize::try_from(left_of(length)?).unwrap_or(usize::MAX).min(max)];
                self.get_range(name, offset, &mut bytes)?;
                Ok((bytes, length))
            }
            Err(e) => Err(e),
        }
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        check_name(name)?;
        let path = name.to_owned();
        let call = Call { doing: "looking for", name, purpose: Purpose::default() };
        let looked = self.call(&call, |operator, _| {
            let path = path.clone();
            async move { operator.stat(&path).await }
        });
        match looked {
            Ok(metadata) if metadata.mode() == EntryMode::DIR => Ok(None),
            Ok(metadata) => Ok(Some(metadata.content_length())),
            Err(e) if e.kind() == Kind::NotFound => self.see_bucket().map(|()| None),
            // What refuses a HEAD request cannot say why.
            Err(e) if e.kind() == Kind::Invalid => self.look_into_bucket().and(Err(e)),
            Err(e) => Err(e),
        }
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        check_prefix(prefix)?;
        let call = Call { doing: "listing", name: prefix, purpose: Purpose::default() };
        let witness = Arc::new(Witness::new(call.purpose, self.patience));
        let (operator, path) = (self.operator_for(&witness), prefix.to_owned());
        let (sender, listed) = mpsc::sync_channel(1);
        let (more, mut wanted) = tokio::sync::mpsc::channel::<()>(1);
        self.runtime.spawn(async move {
            let options = ListOptions { recursive: true, ..ListOptions::default() };
            let mut lister = match operator.lister_options(&path, options).await {
                Ok(lister) => lister,
                Err(e) => return drop(sender.send(Err(e))),
            };
            // A batch is gathered when the last one was taken, so that no thread of the runtime waits for a caller.
            while wanted.recv().await.is_some() {
                let mut batch = Vec::new();
                while batch.len() < LISTED_AHEAD {
                    match lister.next().await {
                        Some(Ok(entry)) => batch.push(entry),
                        Some(Err(e)) => return drop(sender.send(Err(e))),
                        None => return drop(sender.send(Ok((batch, false)))),
                    }
                }
                if sender.send(Ok((batch, true))).is_err() {
                    return;
                }
            }
        });
        loop {
            // When it ended, the last thing it said is still there.
            let _ = more.try_send(());
            let batch = listed.recv().map_err(|_| Error::internal("a listing of the object store died"))?;
            let (batch, has_more) = match batch {
                Ok(batch) => batch,
                Err(e) => match self.explain(&call, &witness, &e) {
                    e if e.kind() == Kind::NotFound => return self.see_bucket(),
                    e => return Err(e),
                },
            };
            for entry in batch {
                let (name, metadata) = (entry.path(), entry.metadata());
                if metadata.mode() == EntryMode::FILE && name.starts_with(prefix) && check_name(name).is_ok() {
                    each(Listed { name: name.to_owned(), size: metadata.content_length() })?;
                }
            }
            if !has_more {
                self.has_bucket.store(true, Ordering::Relaxed);
                return Ok(());
            }
        }
    }

    fn delete(&self, name: &str) -> Result<()> {
        check_name(name)?;
        if self.delete_versions(name)?.is_some() {
            return Ok(());
        }
        let path = name.to_owned();
        let call = Call { doing: "deleting", name, purpose: Purpose::default() };
        let deleted = self.call(&call, |operator, _| {
            let path = path.clone();
            async move { operator.delete(&path).await }
        });
        match deleted {
            Err(e) if e.kind() == Kind::NotFound => self.see_bucket(),
            other => other,
        }
    }

    fn object_lock(&self) -> Option<&dyn ObjectLock> {
        self.notary.as_ref().map(|_| self as &dyn ObjectLock)
    }

    fn archive(&self) -> Option<&dyn Archive> {
        self.notary.as_ref().map(|_| self as &dyn Archive)
    }
}

impl ObjectStore {
    fn not_there(&self, name: &str) -> Error {
        Error::not_found(format!("'{name}' does not exist in {}", self.address))
    }

    fn short(&self, name: &str, got: u64, wanted: u64) -> Error {
        Error::corrupt(format!("'{name}' in {}: the store sent {got} bytes of {wanted}", self.address))
    }
}

/// Whether a range that says where it ends does so beyond an object of that length.
fn ends_beyond(range: BytesRange, length: u64) -> bool {
    !range.is_suffix() && range.size().is_some_and(|size| range.offset().saturating_add(size) > length)
}

impl fmt::Debug for ObjectStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ObjectStore").field(&self.address.to_string()).finish()
    }
}
