//! A medium in memory that loses what a disk may lose: of what was written since the last sync each sector, by itself and in any
//! order, when the power goes.
//!
//! What holds: a synced sector is never lost; an unsynced one holds, after a cut, what it held at the last sync or anything that was
//! written to it since; a length is that of the last sync or the newest; punching and cutting off are writes like others. All media
//! of one fork share space and power. With the power off, every call fails and changes nothing.

use crate::chance::Chance;
use coffer_gateway::fork::Medium;
use coffer_gateway::{Error, Kind, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const SECTOR: usize = 512;
const PAGE: u64 = 4096;

/// What the media of a fork share.
pub(crate) struct Plant {
    /// Calls until the power goes.
    left: AtomicI64,
    /// Pages that can still be taken.
    space: AtomicI64,
    fails_sync: AtomicBool,
    syncs: AtomicU64,
    after_sync: Mutex<Option<(u64, Hook)>>,
}

/// Something that happens beside a flush.
type Hook = Box<dyn FnOnce() + Send>;

#[derive(Clone, Default)]
struct Platter {
    /// What reads show.
    now: Vec<u8>,
    /// What the last sync made durable.
    synced: Vec<u8>,
    /// By sector, what was written since.
    since: BTreeMap<usize, Vec<[u8; SECTOR]>>,
    taken: BTreeSet<u64>,
}

pub(crate) struct Lossy {
    plant: Arc<Plant>,
    platter: Mutex<Platter>,
}

impl Plant {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Plant {
            left: AtomicI64::new(i64::MAX),
            space: AtomicI64::new(i64::MAX),
            fails_sync: AtomicBool::new(false),
            syncs: AtomicU64::new(0),
            after_sync: Mutex::default(),
        })
    }

    /// The power goes after so many calls.
    pub(crate) fn cut_after(&self, calls: usize) {
        self.left.store(calls as i64, Ordering::SeqCst);
    }

    pub(crate) fn restore(&self) {
        self.left.store(i64::MAX, Ordering::SeqCst);
    }

    pub(crate) fn is_out(&self) -> bool {
        self.left.load(Ordering::SeqCst) < 0
    }

    /// So many bytes can still be taken.
    pub(crate) fn limit_space(&self, bytes: i64) {
        self.space.store(bytes / PAGE as i64, Ordering::SeqCst);
    }

    pub(crate) fn fail_syncs(&self, fails: bool) {
        self.fails_sync.store(fails, Ordering::SeqCst);
    }

    /// How many syncs there were.
    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::SeqCst)
    }

    /// Has `hook` run at the end of the sync that comes after `others` others, before it returns.
    pub(crate) fn after_sync(&self, others: u64, hook: impl FnOnce() + Send + 'static) {
        *self.after_sync.lock().unwrap() = Some((self.syncs() + others + 1, Box::new(hook)));
    }

    fn call(&self) -> Result<()> {
        match self.left.fetch_sub(1, Ordering::SeqCst) {
            left if left > 0 => Ok(()),
            _ => Err(Error::new(Kind::Unavailable, "the power is off")),
        }
    }
}

impl Lossy {
    pub(crate) fn new(plant: &Arc<Plant>) -> Arc<Self> {
        Arc::new(Lossy { plant: Arc::clone(plant), platter: Mutex::default() })
    }

    /// What is there when the power comes back.
    pub(crate) fn after_cut(&self, chance: &Chance) -> Arc<Self> {
        let mut platter = self.platter.lock().unwrap().clone();
        let len = if chance.below(2) == 0 { platter.synced.len() } else { platter.now.len() };
        let mut found = std::mem::take(&mut platter.synced);
        found.resize(len, 0);
        // How much was lost differs from cut to cut.
        let mercy = chance.below(5);
        for (sector, versions) in std::mem::take(&mut platter.since) {
            let keep = match mercy {
                0 => 0,
                1 => versions.len(),
                _ => chance.below(versions.len() + 1),
            };
            let start = sector * SECTOR;
            if keep > 0 && start < len {
                let end = (start + SECTOR).min(len);
                found[start..end].copy_from_slice(&versions[keep - 1][..end - start]);
            }
        }
        let platter = Platter { now: found.clone(), synced: found, ..platter };
        Arc::new(Lossy { plant: Arc::clone(&self.plant), platter: Mutex::new(platter) })
    }

    /// Damages the bytes themselves, or cuts them off, durably.
    pub(crate) fn harm(&self, harm: impl FnOnce(&mut Vec<u8>)) {
        let mut platter = self.platter.lock().unwrap();
        harm(&mut platter.now);
        platter.synced = platter.now.clone();
        platter.since.clear();
    }

    /// A copy with everything it holds.
    pub(crate) fn copy(&self) -> Arc<Self> {
        Arc::new(Lossy { plant: Plant::new(), platter: Mutex::new(self.platter.lock().unwrap().clone()) })
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.platter.lock().unwrap().now.clone()
    }

    /// Bytes that it takes.
    pub(crate) fn taken(&self) -> u64 {
        self.platter.lock().unwrap().taken.len() as u64 * PAGE
    }

    fn take(&self, platter: &mut Platter, range: &Range<u64>) -> Result<()> {
        for page in range.start / PAGE..range.end.div_ceil(PAGE) {
            if platter.taken.contains(&page) {
                continue;
            }
            if self.plant.space.fetch_sub(1, Ordering::SeqCst) <= 0 {
                self.plant.space.fetch_add(1, Ordering::SeqCst);
                return Err(Error::new(Kind::Full, "the test's medium is full"));
            }
            platter.taken.insert(page);
        }
        if platter.now.len() < range.end as usize {
            platter.now.resize(range.end as usize, 0);
        }
        Ok(())
    }
}

impl Platter {
    /// Notes what the sectors of `range` hold now.
    fn note(&mut self, range: Range<usize>) {
        for sector in range.start / SECTOR..range.end.div_ceil(SECTOR) {
            let start = sector * SECTOR;
            let end = (start + SECTOR).min(self.now.len());
            let mut version = [0; SECTOR];
            version[..end - start].copy_from_slice(&self.now[start..end]);
            self.since.entry(sector).or_default().push(version);
        }
    }
}

impl Medium for Lossy {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.plant.call()?;
        let platter = self.platter.lock().unwrap();
        let bytes = platter.now.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(bytes.ok_or_else(|| Error::corrupt("the test's medium was cut off"))?);
        Ok(())
    }

    fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        // As a page cache that holds every second region.
        if offset >> 18 & 1 == 1 {
            return Ok(false);
        }
        self.read_at(offset, out).map(|()| true)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.plant.call()?;
        let mut platter = self.platter.lock().unwrap();
        let end = offset + bytes.len() as u64;
        self.take(&mut platter, &(offset..end))?;
        platter.now[offset as usize..end as usize].copy_from_slice(bytes);
        platter.note(offset as usize..end as usize);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.plant.call()?;
        let number = self.plant.syncs.fetch_add(1, Ordering::SeqCst) + 1;
        let mut platter = self.platter.lock().unwrap();
        if self.plant.fails_sync.load(Ordering::SeqCst) {
            // As kernels do: what could not be written counts as clean, and is gone with the cache.
            platter.since.clear();
            return Err(Error::new(Kind::Unavailable, "the test's medium fails to sync"));
        }
        platter.synced = platter.now.clone();
        platter.since.clear();
        drop(platter);
        let hook = self.plant.after_sync.lock().unwrap().take_if(|(at, _)| *at == number);
        if let Some((_, hook)) = hook {
            hook();
        }
        Ok(())
    }

    fn allocate(&self, range: Range<u64>) -> Result<()> {
        self.plant.call()?;
        let mut platter = self.platter.lock().unwrap();
        self.take(&mut platter, &range)
    }

    fn punch(&self, range: Range<u64>) -> Result<()> {
        self.plant.call()?;
        let mut platter = self.platter.lock().unwrap();
        let end = (range.end as usize).min(platter.now.len());
        platter.now[range.start as usize..end].fill(0);
        platter.note(range.start as usize..end);
        for page in range.start / PAGE..range.end / PAGE {
            if platter.taken.remove(&page) {
                self.plant.space.fetch_add(1, Ordering::SeqCst);
            }
        }
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        self.plant.call()?;
        Ok(self.platter.lock().unwrap().now.len() as u64)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.plant.call()?;
        self.platter.lock().unwrap().now.resize(len as usize, 0);
        Ok(())
    }
}
