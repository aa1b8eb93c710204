//! A fork that this process has open: a device that can be written, and its generations.
//!
//! ```text
//!   freeze   layer n+1 made, durable -> header names it, durable -> flush -> barrier: n is frozen     (a crash: n+1 is empty or not there)
//!   adopt    pin of the new point, noted as one to end until it is needed -> header: that point, and the top's layer alone, durable
//!            -> base exchanged -> old pin, old layers end
//!   hand over, by a hydration        header: what to, durable -> requests go there     (opened after that, it is what is there)
//! ```
//! Not here: what becomes of what is frozen ([`super::commit`]), or of all of it ([`super::hydration`], [`super::erasure`]). What holds: the header names every layer that may hold a write, before
//! it does; whatever of two headers a crash leaves, the layers that it names are there, and come to the same disk.
//!
//! [`Fork::ledger`] is held over I/O, against the rule: it is nobody's but that of the one who commits or hydrates; others are told so, and requests
//! do not ask for it.

use super::BootId;
use super::folder::{draft_header, layer_folder, make_layer, place_header, sync_folder};
use super::header::ForkHeader;
use super::layer::Layer;
use super::stack::Stack;
use crate::device::{BlockDevice, Durability, Extent, Zeroing};
use crate::{Error, Kind, Result, SnapshotDevice};
use coffer_repo::entropy::Entropy;
use coffer_repo::fork_key::ForkKey;
use coffer_repo::reader::Reader;
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::{Identity, Snapshot};
use coffer_repo::time::Timestamp;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// Failed commits leave at most so many layers: each costs reads a look, and open files.
const MOST_FROZEN: usize = 8;

/// An open fork.
pub struct Fork {
    pub(super) folder: PathBuf,
    pub(super) repo: Arc<Repository>,
    pub(super) reader: Arc<Reader>,
    pub(super) boot: BootId,
    pub(super) entropy: Arc<dyn Entropy>,
    pub(super) stack: Stack,
    /// Locked to be copied or exchanged only.
    pub(super) header: Mutex<ForkHeader>,
    /// `None` when it had been handed over before it was opened.
    pub(super) ledger: Option<Mutex<Ledger>>,
    pub(super) _lock: File,
}

/// Keys of layers by number; the last is the top's.
pub(super) type Keys = BTreeMap<u64, Arc<ForkKey>>;

/// What only commits and hydrations need.
pub(super) struct Ledger {
    pub(super) keys: Keys,
    /// The number of the next layer: none twice, since a header that failed to be written may yet be the one that counts.
    pub(super) next: u64,
    /// The fork's point.
    pub(super) snapshot: Snapshot,
    /// Its disk.
    pub(super) base: Arc<SnapshotDevice>,
}

/// A moment of a fork.
pub(super) struct Frozen {
    pub(super) device: Arc<dyn BlockDevice>,
    /// What differs from the fork's point lies in these.
    pub(super) layers: Vec<Arc<Layer>>,
    /// It is an earlier moment, of which no point was made yet: what was written since is not in it.
    pub(super) is_behind: bool,
}

impl Fork {
    /// What it is now.
    #[must_use]
    pub fn header(&self) -> ForkHeader {
        self.header.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many layers it has: one, and one more for each commit that runs or has failed; none once it was handed over.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.stack.top().map_or(0, |_| self.stack.frozen().len() + 1)
    }

    /// Flushes it for the last time, and says whether that worked.
    pub fn close(&self) -> Result<()> {
        self.stack.close()
    }

    /// The ledger, for one at a time. `Locked` when somebody has it, `Invalid` once the fork was handed over.
    pub(super) fn take_ledger(&self) -> Result<MutexGuard<'_, Ledger>> {
        let ledger = match (&self.ledger, self.header().handed_to) {
            (Some(ledger), None) => ledger,
            (_, target) => {
                let target = target.unwrap_or_default();
                let why = "what it was is there now: back that up, and drop the fork when nobody uses it any more";
                return Err(Error::invalid(format!("the fork was handed over to {target}; {why}")));
            }
        };
        match ledger.try_lock() {
            Ok(ledger) => Ok(ledger),
            // Each change of it is one assignment after what it stands for.
            Err(TryLockError::Poisoned(ledger)) => Ok(ledger.into_inner()),
            Err(TryLockError::WouldBlock) => {
                Err(Error::new(Kind::Locked, "the fork is being committed or hydrated already; wait for that to end"))
            }
        }
    }

    /// Freezes the fork as it is at one moment. Writers wait for those under way, and for no I/O of this. What was written goes on
    /// top of what is frozen; when nothing was since the last time, there is nothing new to freeze. Once [`MOST_FROZEN`] layers wait for a
    /// commit that succeeds, they are what it gets.
    pub(super) fn freeze(&self, ledger: &mut Ledger) -> Result<Frozen> {
        let top = self.stack.top()?;
        let is_new = top.changed(&(0..self.size())).next().is_some();
        let is_behind = is_new && self.stack.frozen().len() >= MOST_FROZEN;
        if is_new && !is_behind {
            self.grow(ledger)?;
        }
        let layers = self.stack.frozen();
        let device = match layers.last() {
            Some(layer) => Arc::clone(layer) as Arc<dyn BlockDevice>,
            None => Arc::clone(&ledger.base) as Arc<dyn BlockDevice>,
        };
        Ok(Frozen { device, layers, is_behind })
    }

    /// Puts a new layer on top.
    fn grow(&self, ledger: &mut Ledger) -> Result<()> {
        let (number, key, layer) = self.make(ledger, self.stack.top()?)?;
        let mut keys = ledger.keys.clone();
        keys.insert(number, key);
        // What was to end has ended by now.
        let header = self.draft(&keys, ForkHeader { ending: None, ..self.header() }).inspect_err(|_| {
            // No header names it. As good as can be.
            let _ = fs::remove_dir_all(layer_folder(&self.folder, number));
        })?;
        place_header(&self.folder)?;
        ledger.keys = keys;
        self.set_header(header);
        // So that little is under way when the barrier comes.
        self.flush()?;
        self.stack.push(Arc::new(layer))
    }

    /// Makes an empty layer above `below`, durably; no header names it yet.
    pub(super) fn make(&self, ledger: &mut Ledger, below: Arc<dyn BlockDevice>) -> Result<(u64, Arc<ForkKey>, Layer)> {
        let number = ledger.next;
        ledger.next += 1;
        let folder = layer_folder(&self.folder, number);
        let key = Arc::new(ForkKey::generate(&*self.entropy)?);
        let made = make_layer(&folder, &key, self.size(), self.boot, &*self.entropy).and_then(|media| {
            sync_folder(&self.folder)?;
            Layer::open(below, media, &key, self.boot, Arc::clone(&self.entropy))
        });
        let layer = made.inspect_err(|_| {
            // As good as can be.
            let _ = fs::remove_dir_all(&folder);
        })?;
        Ok((number, key, layer))
    }

    /// Drafts `header` with these keys, sealed for it.
    pub(super) fn draft(&self, keys: &Keys, header: ForkHeader) -> Result<ForkHeader> {
        let mut wrapped = BTreeMap::new();
        for (number, key) in keys {
            wrapped.insert(*number, self.repo.wrap_fork_key(key, &header.binding(*number)?)?);
        }
        let header = ForkHeader { keys: wrapped, ..header };
        draft_header(&self.folder, &header)?;
        Ok(header)
    }

    /// Has `snapshot`, which holds what is below the top, take the place of all that.
    pub(super) fn adopt(
        &self,
        ledger: &mut Ledger,
        snapshot: &Snapshot,
        identity: &Identity,
        now: Timestamp,
    ) -> Result<()> {
        let old = self.header();
        let base = Arc::new(SnapshotDevice::new(self.reader.disk(snapshot, &old.disk)?, None));
        if (base.size(), base.block_size()) != (old.size, old.block_size) {
            return Err(Error::internal("the committed disk is not the fork's"));
        }
        let pin = self.repo.name_pin(snapshot, now)?;
        // What was to end has ended by now. If nothing comes of the new pin, whoever opens or commits the fork next ends it.
        let noted = self.draft(&ledger.keys, ForkHeader { ending: Some(pin), ..old.clone() })?;
        place_header(&self.folder)?;
        self.set_header(noted);
        self.repo.pin_for_fork(pin, snapshot, identity)?;
        let (top, ended) = (ledger.keys.last_key_value().map_or(0, |(number, _)| *number), old.pin);
        let mut gone = ledger.keys.clone();
        let kept = gone.split_off(&top);
        let header = ForkHeader { point: snapshot.name, pin, ending: Some(old.pin), ..old.clone() };
        let header = self.draft(&kept, header)?;
        // From here on the pin may be needed.
        self.set_header(old);
        // After an error either header may count: both points stay pinned, and all layers are kept.
        place_header(&self.folder)?;
        self.stack.settle(Arc::clone(&base) as Arc<dyn BlockDevice>)?;
        self.set_header(header);
        (ledger.keys, ledger.snapshot, ledger.base) = (kept, snapshot.clone(), base);
        // What fails here is done when the fork is opened, or committed, the next time.
        let _ = self.repo.forget(ended, now);
        for number in gone.keys() {
            let _ = fs::remove_dir_all(layer_folder(&self.folder, *number));
        }
        Ok(())
    }

    pub(super) fn set_header(&self, header: ForkHeader) {
        *self.header.lock().unwrap_or_else(PoisonError::into_inner) = header;
    }
}

impl BlockDevice for Fork {
    fn size(&self) -> u64 {
        self.stack.size()
    }

    fn block_size(&self) -> u32 {
        self.stack.block_size()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.stack.read_at(offset, out)
    }

    fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        self.stack.try_read_at(offset, out)
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>> {
        self.stack.extents(range, max)
    }

    fn depths(&self, range: Range<u64>, max: usize) -> Result<Vec<(Range<u64>, u32)>> {
        self.stack.depths(range, max)
    }

    fn prefetch(&self, range: Range<u64>) {
        self.stack.prefetch(range);
    }

    fn writes_swiftly(&self, range: Range<u64>) -> bool {
        self.stack.writes_swiftly(range)
    }

    fn write_at(&self, offset: u64, bytes: &[u8], durability: Durability) -> Result<()> {
        self.stack.write_at(offset, bytes, durability)
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        self.stack.zero(range, how)
    }

    fn trim(&self, range: Range<u64>) -> Result<()> {
        self.stack.trim(range)
    }

    fn flush(&self) -> Result<()> {
        self.stack.flush()
    }

    fn compare_and_write(&self, offset: u64, expected: &[u8], new: &[u8]) -> Result<Option<usize>> {
        self.stack.compare_and_write(offset, expected, new)
    }

    fn erases_by_key(&self) -> bool {
        // What it was handed over to is a disk of somebody else's, without a key of ours.
        self.header().handed_to.is_none()
    }

    fn erase_by_key(&self) -> Result<()> {
        self.erase()
    }
}
