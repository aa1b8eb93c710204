//! Making it durable, in rounds that all who flush at one time share.
//!
//! ```text
//!   holes taken, dirty taken
//!   few are dirty    their contents -> journal                              commit, sync journal
//!   many are         where the journal ends now; sync data                  commit: firm up to there, sync journal
//!   a handful is, and all that the journal says is firm: sync data          that is all
//!   then             holes punched; a long journal begins anew
//! ```
//! Not here: who waits for whom ([`super::super::rounds`]). What holds: a block that a write changed is marked dirty after its
//! contents are in the data and before the write returns; so a round either finds the mark, or syncs the data after. A record
//! of contents is appended under the lock that they were read under, so that none that is older follows a newer one.

use super::super::block_map::{CHUNK, Masks, REGION, bits, runs, split};
use super::super::record::{Entry, STORE_MAX};
use super::{BLOCK_U64, Layer, bytes_of};
use crate::{Kind, Result};
use coffer_repo::entropy::fresh;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// So many blocks are synced in the data in about the time that one record in the journal takes.
const HANDFUL: usize = 8;
/// After so many rounds in a row that had a handful of blocks and nothing for the journal there is one that makes the journal firm, for
/// two syncs: so that a client that changes new blocks every now and then does not pay for that every time.
const PATIENCE: u32 = 4;

/// More holes than this do not wait for a flush that somebody asks for.
const HOLES: usize = 4096;

/// Blocks whose contents may be in volatile memory only: which, as long as they are few. Once they are many, writers pass by.
#[derive(Default)]
pub(super) struct Dirty {
    is_many: AtomicBool,
    few: Mutex<Vec<(u64, u64)>>,
}

/// What was dirty.
enum Amount {
    None,
    /// Bits by region.
    Few(Vec<(u64, u64)>),
    Many,
}

impl Dirty {
    /// Whether they are a handful all together.
    pub(super) fn add(&self, region: u64, bits: u64) -> bool {
        // In one order with `take` and the system calls around both: whoever sees the old value wrote before the sync.
        if bits == 0 || self.is_many.load(Ordering::SeqCst) {
            return false;
        }
        let mut few = self.lock();
        match few.iter_mut().find(|(of, _)| *of == region) {
            Some((_, known)) => *known |= bits,
            None => few.push((region, bits)),
        }
        let blocks = count(&few);
        if blocks > STORE_MAX {
            few.clear();
            self.is_many.store(true, Ordering::SeqCst);
        }
        blocks <= HANDFUL
    }

    fn take(&self) -> Amount {
        let mut few = self.lock();
        let few = std::mem::take(&mut *few);
        match self.is_many.swap(false, Ordering::SeqCst) {
            true => Amount::Many,
            false if few.is_empty() => Amount::None,
            false => Amount::Few(few),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(u64, u64)>> {
        self.few.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether those who flush do so after every few writes to blocks that are ours. Counters of rounds, which come one after the other.
#[derive(Default)]
pub(super) struct Habit {
    /// Rounds in a row that synced the data alone.
    in_data: AtomicU32,
    /// Rounds since one that did, which might have but for a journal that is not firm.
    in_vain: AtomicU32,
}

impl Habit {
    /// Whether it is likely that what was written is flushed next.
    pub(super) fn is_to_flush(&self) -> bool {
        self.in_data.load(Ordering::Relaxed) >= PATIENCE
    }

    fn broken(&self) {
        self.in_data.store(0, Ordering::Relaxed);
        self.in_vain.store(0, Ordering::Relaxed);
    }

    /// A round for a handful: whether to have it sync the data.
    fn kept(&self, is_firm: bool) -> bool {
        let in_vain = if is_firm { 0 } else { self.in_vain.load(Ordering::Relaxed) + 1 };
        let is_in_data = is_firm || in_vain > PATIENCE;
        self.in_vain.store(if is_in_data { 0 } else { in_vain }, Ordering::Relaxed);
        self.in_data.store(
            if is_in_data { self.in_data.load(Ordering::Relaxed).saturating_add(1) } else { 0 },
            Ordering::Relaxed,
        );
        is_in_data
    }
}

fn count(blocks: &[(u64, u64)]) -> usize {
    blocks.iter().map(|(_, bits)| bits.count_ones() as usize).sum()
}

/// Blocks that were zeroed and whose space is to be given back.
#[derive(Default)]
pub(super) struct Holes(Mutex<Vec<Range<u64>>>);

impl Holes {
    pub(super) fn add(&self, blocks: Range<u64>) {
        let mut holes = self.lock();
        match holes.last_mut() {
            Some(last) if last.end == blocks.start => last.end = blocks.end,
            _ => holes.push(blocks),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.lock().len() >= HOLES
    }

    fn take(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Layer {
    /// Joins a round. `wants_data`: all that was written is durable then; else what the journal says.
    pub(super) fn round(&self, wants_data: bool) -> Result<()> {
        let lead = |wants_data| self.lead(wants_data).inspect_err(|e| self.fail(e));
        self.rounds.join(&self.verdict, wants_data, lead)
    }

    fn lead(&self, wants_data: bool) -> Result<()> {
        let holes = self.holes.take();
        for blocks in &holes {
            self.each_part(blocks.clone(), |region, bits| {
                let _lock = self.locks.write(region);
                let masks = self.map.look(region);
                if masks.fresh & bits != 0 {
                    self.map.set(region, Masks { fresh: masks.fresh & !bits, ..masks });
                }
                Ok(())
            })?;
        }
        let mut firm = None;
        if wants_data {
            let needs_sync = match self.dirty.take() {
                Amount::None => false,
                Amount::Few(few) => self.is_quicker_in_data(&few) || !self.store(&few)?,
                Amount::Many => {
                    self.habit.broken();
                    true
                }
            };
            if needs_sync {
                let end = self.journal.end();
                firm = Some(end).filter(|_| !self.journal.is_firm());
                self.data.sync()?;
            }
        }
        if firm.is_some() || !self.journal.is_durable() {
            self.journal.commit(firm)?;
            self.journal.sync()?;
        }
        for blocks in holes {
            self.each_part(blocks, |region, bits| self.punch_part(region, bits))?;
        }
        if self.journal.is_due() { self.begin_anew() } else { Ok(()) }
    }

    /// The regions of a range that may have bits, and which of theirs are meant.
    fn each_part(&self, blocks: Range<u64>, mut each: impl FnMut(u64, u64) -> Result<()>) -> Result<()> {
        let mut rest = blocks;
        while let Some(next) = self.map.next(rest.start / REGION) {
            rest.start = rest.start.max(next * REGION);
            // By chunks: of what has no bits nothing is looked at.
            let part = rest.start..rest.end.min((next / CHUNK + 1) * CHUNK * REGION);
            if part.is_empty() {
                break;
            }
            rest.start = part.end;
            for (region, part) in split(part) {
                each(region, bits(part))?;
            }
        }
        Ok(())
    }

    /// Gives back the space of those of these blocks that are zeroed for good. Failing to is no harm.
    fn punch_part(&self, region: u64, bits: u64) -> Result<()> {
        let _lock = self.locks.write(region);
        let masks = self.map.look(region);
        let gone = masks.zeroed & masks.allocated & !masks.fresh & bits;
        if gone == 0 {
            return Ok(());
        }
        for run in runs(gone) {
            let start = region * REGION;
            self.data.punch((start + run.start) * BLOCK_U64..(start + run.end) * BLOCK_U64)?;
        }
        self.map.set(region, Masks { allocated: masks.allocated & !gone, ..masks });
        Ok(())
    }

    /// Whether one sync of the data makes these blocks durable, and the journal needs none.
    fn is_quicker_in_data(&self, few: &[(u64, u64)]) -> bool {
        if count(few) > HANDFUL || !self.journal.is_durable() {
            self.habit.broken();
            return false;
        }
        self.habit.kept(self.journal.is_firm())
    }

    /// Appends the contents of these blocks to the journal; `false` when there is no space for that.
    fn store(&self, few: &[(u64, u64)]) -> Result<bool> {
        let mut sealed = Vec::new();
        for (region, bits) in few {
            let _lock = self.locks.read(*region);
            for run in runs(self.map.look(*region).ours & bits) {
                let first = region * REGION + run.start;
                sealed.resize(bytes_of(&run), 0);
                self.data.read_at(first * BLOCK_U64, &mut sealed)?;
                match self.journal.append(&Entry::Store { first, sealed: &sealed }) {
                    Err(e) if e.kind() == Kind::Full => return Ok(false),
                    other => other?,
                }
            }
        }
        Ok(true)
    }

    /// Has the journal begin anew, with nobody writing meanwhile. Where there is no space for that, the old one goes on.
    fn begin_anew(&self) -> Result<()> {
        // Most of the work, while others still may write.
        self.data.sync()?;
        let _all = self.locks.write_all();
        self.data.sync()?;
        self.dirty.take();
        match self.journal.rotate(&self.map, self.boot, fresh(&*self.entropy)?) {
            Err(e) if e.kind() == Kind::Full => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_blocks_are_known_by_name_and_many_are_not() {
        let dirty = Dirty::default();
        assert!(matches!(dirty.take(), Amount::None));
        dirty.add(3, 0b11);
        dirty.add(4, 1);
        dirty.add(3, 0b110);
        assert!(matches!(dirty.take(), Amount::Few(few) if few == [(3, 0b111), (4, 1)]));
        dirty.add(0, u64::MAX);
        assert!(matches!(dirty.take(), Amount::Few(few) if few == [(0, u64::MAX)]));
        dirty.add(0, u64::MAX);
        dirty.add(1, 1);
        dirty.add(2, 1);
        assert!(matches!(dirty.take(), Amount::Many));
        assert!(matches!(dirty.take(), Amount::None));
    }
}
