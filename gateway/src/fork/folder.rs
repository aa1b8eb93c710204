//! Forks in a folder: made, listed, opened, dropped.
//!
//! ```text
//!   <folder>/<NAME>/fork               what it is (super::header); fork.new while another takes its place
//!                   lock               held by the one process that has it open
//!                   control            that one's socket, where it takes errands
//!                   hydration          how far it was copied to where it is to be handed over to (super::hydration)
//!                   1/data journal-a journal-b     its layer; commits stack further ones for as long as they run
//!   <folder>/.<NAME>.<random>          one that is being made or dropped, or that a crash left so: cleared away by the next
//! ```
//! Not here: blocks, and forks that are open ([`super::opened`]). What holds: a fork's pin is noted in a hidden folder, then put, then the
//! folder appears, and it ends after that disappeared: so a fork that is seen is held, and no pin is left that nobody knows of; folders appear and disappear by one rename, durably; the pin of a fork
//! ends by dropping it or by a commit that has put another. What lies in its folder counts only if its file `fork` names it.

use super::BootId;
use super::header::ForkHeader;
use super::layer::{Layer, Media};
use super::medium::FileMedium;
use super::opened::{Fork, Ledger};
use super::stack::Stack;
use crate::device::BlockDevice;
use crate::target::Place;
use crate::{Error, Kind, Result, SnapshotDevice};
use coffer_repo::entropy::{Entropy, fresh};
use coffer_repo::fork_key::ForkKey;
use coffer_repo::id::RecordId;
use coffer_repo::reader::Reader;
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::{Disk, Identity, Snapshot};
use coffer_repo::time::Timestamp;
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const HEADER: &str = "fork";
const NEW_HEADER: &str = "fork.new";
const LOCK: &str = "lock";
/// The longest name, in bytes.
const MAX_NAME: usize = 64;

/// The name of a fork: 1 to 64 of `A-Z a-z 0-9 . _ -`, and no dot in front.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForkName(String);

impl FromStr for ForkName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let is_fine = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
        if (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(is_fine) && !text.starts_with('.') {
            return Ok(ForkName(text.to_owned()));
        }
        let rule = "a name has 1 to 64 of the characters A-Z a-z 0-9 . _ - and begins with no dot";
        Err(Error::invalid(format!("'{text}' cannot be the name of a fork: {rule}")))
    }
}

impl fmt::Display for ForkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The forks of one repository on this machine.
#[derive(Clone, Debug)]
pub struct Forks {
    folder: PathBuf,
}

/// A fork in a list.
#[derive(Debug)]
pub struct ListedFork {
    /// Its name.
    pub name: ForkName,
    /// What it is, or why that cannot be told.
    pub header: Result<ForkHeader>,
    /// Bytes that it takes on the disk, its journals included.
    pub taken: u64,
    /// Whether a process has it open.
    pub is_open: bool,
}

impl Forks {
    /// Those below `folder`, which need not exist yet.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Forks { folder }
    }

    /// Makes a fork of a disk of `snapshot`. `Locked` when the name is taken.
    #[allow(clippy::too_many_arguments, reason = "each is a thing of its own kind")]
    pub fn create(
        &self,
        repo: &Arc<Repository>,
        name: &ForkName,
        snapshot: &Snapshot,
        disk: &Disk,
        identity: &Identity,
        now: Timestamp,
        boot: BootId,
    ) -> Result<ForkHeader> {
        repo.check_full("make forks")?;
        if self.folder(name).exists() {
            return Err(taken(name));
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(|e| failed(&self.folder, e))?;
        self.clear(repo, now)?;
        let mut header = ForkHeader {
            repo: repo.keys().repo(),
            point: snapshot.name,
            workload: snapshot.workload.clone(),
            disk: disk.name.clone(),
            size: disk.size,
            block_size: disk.block_size,
            created: now,
            pin: repo.name_pin(snapshot, now)?,
            ending: None,
            handed_to: None,
            keys: BTreeMap::new(),
        };
        let key = ForkKey::generate(repo.entropy())?;
        header.keys.insert(1, repo.wrap_fork_key(&key, &header.binding(1)?)?);
        let draft = self.hidden(name, repo.entropy())?;
        // The lock is held until it has its name, so that nobody clears it away.
        let made = self.build(&draft, &header, &key, boot, repo.entropy()).and_then(|_lock| {
            // Whatever happens to this process: the next one finds the pin's name there.
            sync_folder(&self.folder)?;
            repo.pin_for_fork(header.pin, snapshot, identity)?;
            rename(&draft, &self.folder(name)).map_err(|e| match e {
                Errno::EXIST => taken(name),
                e => failed(&draft, e.into()),
            })?;
            sync_folder(&self.folder)
        });
        if let Err(e) = made {
            // Else what is left is cleared away by the next.
            if draft.exists() && repo.forget(header.pin, now).is_ok() {
                let _ = fs::remove_dir_all(&draft);
            }
            return Err(e);
        }
        Ok(header)
    }

    fn build(
        &self,
        draft: &Path,
        header: &ForkHeader,
        key: &ForkKey,
        boot: BootId,
        entropy: &dyn Entropy,
    ) -> Result<File> {
        DirBuilder::new().mode(0o700).create(draft).map_err(|e| failed(draft, e))?;
        let lock = lock(draft)?.ok_or_else(|| Error::internal("a new fork is locked"))?;
        write_header(&draft.join(HEADER), header)?;
        make_layer(&layer_folder(draft, 1), key, header.size, boot, entropy)?;
        sync_folder(draft)?;
        Ok(lock)
    }

    /// All forks, by name.
    pub fn list(&self) -> Result<Vec<ListedFork>> {
        let mut forks = Vec::new();
        for file in self.entries()? {
            let Ok(name) = file.parse::<ForkName>() else { continue };
            let path = self.folder(&name);
            forks.push(ListedFork {
                header: read_header(&path),
                taken: taken_by(&path),
                is_open: lock(&path).is_ok_and(|lock| lock.is_none()),
                name,
            });
        }
        forks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(forks)
    }

    /// Opens a fork, or what it was handed over to: then its point need not be there any more. `NotFound` when there is none or its pin was ended, `Locked` when another process has it open.
    pub fn open(
        &self,
        repo: &Arc<Repository>,
        reader: &Arc<Reader>,
        name: &ForkName,
        boot: BootId,
        now: Timestamp,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Fork> {
        let within = |e: Error| e.within(format_args!("fork '{name}'"));
        let (lock, header) = self.hold(name)?;
        if header.repo != repo.keys().repo() {
            return Err(within(Error::invalid(format!("it is one of the repository {}", header.repo))));
        }
        if let Some(target) = &header.handed_to {
            let opened = target.parse::<Place>().and_then(|place| place.open(header.size)).map_err(|e| {
                let why = "bring that back, or drop the fork, which does not touch it";
                e.within(format_args!("fork '{name}' was handed over to {target}, which cannot be used; {why}"))
            })?;
            let stack = Stack::handed_over(opened.device(), header.size, header.block_size);
            let (repo, reader, header) = (Arc::clone(repo), Arc::clone(reader), Mutex::new(header));
            let folder = self.folder(name);
            return Ok(Fork { folder, repo, reader, boot, entropy, stack, header, ledger: None, _lock: lock });
        }
        let held = repo.check_pin(header.pin, header.point.id).and_then(|()| repo.read_snapshot(header.point));
        let snapshot = held.and_then(|snapshot| snapshot.ok_or_else(|| Error::not_found("its point is gone")));
        let snapshot = snapshot.map_err(|e| match e.kind() {
            Kind::NotFound => e.within(format_args!(
                "fork '{name}' has lost what it builds on: nobody holds {}@{} for it any more; drop it",
                header.workload, header.point.time
            )),
            _ => within(e),
        })?;
        let base = Arc::new(SnapshotDevice::new(reader.disk(&snapshot, &header.disk)?, None));
        if (base.size(), base.block_size()) != (header.size, header.block_size) {
            return Err(within(Error::corrupt("its disk is not the one that it was made from")));
        }
        let mut layers: Vec<Arc<Layer>> = Vec::new();
        let mut keys = BTreeMap::new();
        let folder = self.folder(name);
        for (number, wrapped) in &header.keys {
            let key = repo.open_fork_key(wrapped, &header.binding(*number)?).map_err(within)?;
            let below: Arc<dyn BlockDevice> = match layers.last() {
                Some(layer) => Arc::clone(layer) as _,
                None => Arc::clone(&base) as _,
            };
            let media = media(&layer_folder(&folder, *number), FileMedium::open).map_err(within)?;
            layers.push(Arc::new(Layer::open(below, media, &key, boot, Arc::clone(&entropy)).map_err(within)?));
            keys.insert(*number, Arc::new(key));
        }
        // Only now: its keys have shown that the header is what was written.
        clear_unnamed(&folder, &header)?;
        if let Some(pin) = header.ending {
            // As good as can be: it stays named until it was.
            let _ = repo.forget(pin, now);
        }
        let top = layers.pop().ok_or_else(|| within(Error::corrupt("it has no layer")))?;
        let next = header.keys.last_key_value().map_or(1, |(last, _)| last + 1);
        let ledger = Ledger { keys, next, snapshot, base };
        let (repo, reader) = (Arc::clone(repo), Arc::clone(reader));
        Ok(Fork {
            folder,
            repo,
            reader,
            boot,
            entropy,
            stack: Stack::new(layers, top),
            header: Mutex::new(header),
            ledger: Some(Mutex::new(ledger)),
            _lock: lock,
        })
    }

    /// Drops a fork: its writes are gone, and its point may go. `Locked` while it is open somewhere.
    pub fn remove(&self, repo: &Repository, name: &ForkName, now: Timestamp) -> Result<()> {
        repo.check_full("drop forks")?;
        let (_lock, header) = self.hold(name)?;
        if header.repo != repo.keys().repo() {
            return Err(Error::invalid(format!("fork '{name}' is one of the repository {}", header.repo)));
        }
        let gone = self.hidden(name, repo.entropy())?;
        rename(&self.folder(name), &gone).map_err(|e| failed(&self.folder(name), e.into()))?;
        sync_folder(&self.folder)?;
        end_pins(repo, &header, now)?;
        fs::remove_dir_all(&gone).map_err(|e| failed(&gone, e))
    }

    /// Ends what a crash left half made or half dropped.
    fn clear(&self, repo: &Repository, now: Timestamp) -> Result<()> {
        for file in self.entries()?.into_iter().filter(|file| file.starts_with('.')) {
            let path = self.folder.join(file);
            // One that somebody else is about to make or to drop is locked.
            let Some(_lock) = lock(&path)? else { continue };
            match read_header(&path) {
                Ok(header) if header.repo == repo.keys().repo() => end_pins(repo, &header, now)?,
                Ok(_) => continue,
                // It never came to have one.
                Err(_) => {}
            }
            fs::remove_dir_all(&path).map_err(|e| failed(&path, e))?;
        }
        Ok(())
    }

    /// Locks a fork and reads what it is.
    fn hold(&self, name: &ForkName) -> Result<(File, ForkHeader)> {
        let path = self.folder(name);
        let lock = match path.exists() {
            true => patiently(&path)?,
            false => {
                let known: Vec<String> = self.list()?.into_iter().map(|fork| fork.name.0).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(Error::not_found(format!("there is no fork '{name}' here; there are: {known}")));
            }
        };
        let lock = lock.ok_or_else(|| {
            let why = "end the 'coffer serve' that serves it, or use it through the doors of that one";
            Error::new(Kind::Locked, format!("fork '{name}' is open in another process; {why}"))
        })?;
        let header = read_header(&path).map_err(|e| e.within(format_args!("fork '{name}'")))?;
        Ok((lock, header))
    }

    fn entries(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|e| failed(&self.folder, e))?,
        };
        let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
        names.collect::<std::io::Result<_>>().map_err(|e| failed(&self.folder, e))
    }

    /// Where a fork lies, if it is there: whoever has it open also has a socket there.
    #[must_use]
    pub fn folder(&self, name: &ForkName) -> PathBuf {
        self.folder.join(&name.0)
    }

    /// A name for one that is not there yet, or no more.
    fn hidden(&self, name: &ForkName, entropy: &dyn Entropy) -> Result<PathBuf> {
        Ok(self.folder.join(format!(".{name}.{}", RecordId(fresh(entropy)?))))
    }
}

/// Ends what holds a fork's points.
fn end_pins(repo: &Repository, header: &ForkHeader, now: Timestamp) -> Result<()> {
    header.ending.iter().chain([&header.pin]).try_for_each(|pin| repo.forget(*pin, now))
}

/// Where the layer of this number lies.
pub(super) fn layer_folder(fork: &Path, number: u64) -> PathBuf {
    fork.join(number.to_string())
}

/// Makes an empty layer in a new folder, durably but for the folder's own name.
pub(super) fn make_layer(
    folder: &Path,
    key: &ForkKey,
    size: u64,
    boot: BootId,
    entropy: &dyn Entropy,
) -> Result<Media> {
    DirBuilder::new().mode(0o700).create(folder).map_err(|e| failed(folder, e))?;
    let media = media(folder, FileMedium::create)?;
    Layer::create(&media, key, size, boot, entropy)?;
    sync_folder(folder)?;
    Ok(media)
}

/// Writes a header to be, durably but for its name. What is in the way was left by a crash.
pub(super) fn draft_header(fork: &Path, header: &ForkHeader) -> Result<()> {
    let path = fork.join(NEW_HEADER);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(&path, e)),
        _ => write_header(&path, header),
    }
}

/// Has the header that was drafted take the place of the one before. After an error either may be the one that counts.
pub(super) fn place_header(fork: &Path) -> Result<()> {
    let path = fork.join(HEADER);
    fs::rename(fork.join(NEW_HEADER), &path).map_err(|e| failed(&path, e))?;
    sync_folder(fork)
}

fn write_header(path: &Path, header: &ForkHeader) -> Result<()> {
    let bytes = header.encode()?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all())).map_err(|e| failed(path, e))
}

/// Removes layers that the header does not name: a crash left them half made, or not yet removed.
fn clear_unnamed(fork: &Path, header: &ForkHeader) -> Result<()> {
    for entry in fs::read_dir(fork).map_err(|e| failed(fork, e))? {
        let entry = entry.map_err(|e| failed(fork, e))?;
        let number = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
        if number.is_some_and(|number| !header.keys.contains_key(&number)) {
            fs::remove_dir_all(entry.path()).map_err(|e| failed(&entry.path(), e))?;
        }
    }
    Ok(())
}

fn media(folder: &Path, open: impl Fn(&Path) -> Result<FileMedium>) -> Result<Media> {
    let medium = |name: &str| open(&folder.join(name)).map(Arc::new);
    Ok(Media { data: medium("data")?, journals: [medium("journal-a")?, medium("journal-b")?] })
}

/// The lock of a fork's folder; `None` when somebody has it.
fn lock(folder: &Path) -> Result<Option<File>> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(|e| failed(&path, e))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(failed(&path, e.into())),
    }
}

/// As [`lock`], with patience for somebody who lists the forks and has it for a moment.
fn patiently(folder: &Path) -> Result<Option<File>> {
    for _ in 0..20 {
        if let Some(file) = lock(folder)? {
            return Ok(Some(file));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(None)
}

fn read_header(folder: &Path) -> Result<ForkHeader> {
    let path = folder.join(HEADER);
    let bytes = fs::read(&path).map_err(|e| failed(&path, e))?;
    ForkHeader::decode(&bytes).map_err(|e| e.within(path.display()))
}

/// Bytes that the files of a folder take.
fn taken_by(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(of) if of.is_dir() => taken_by(&entry.path()),
        Ok(of) => of.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

fn rename(from: &Path, to: &Path) -> rustix::io::Result<()> {
    renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
}

pub(super) fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(|e| failed(path, e))
}

fn taken(name: &ForkName) -> Error {
    Error::new(Kind::Locked, format!("there is a fork '{name}' already; choose another name, or drop it"))
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::io(path.display().to_string(), error)
}
