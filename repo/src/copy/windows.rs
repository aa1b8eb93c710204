//! A disk of a point as the writer of another repository reads it: window by window, and where it differs from a base that is there already.
//!
//! ```text
//!   no base               all of a window is read
//!   few blocks changed    Changed: which; the writer asks for what cutting there takes, also where its parent has nothing to go by
//!   most blocks           all of it is read
//! ```
//! Not here: reading ([`super::content`]) and comparing ([`crate::diff`]). What holds: what is not called changed is, in both maps of the
//! source, the same chunks, so that the base's copy has it; what the map calls unreadable is called changed, since the base's copy may
//! have been made of more; the windows are those of the destination, and need not be the source's. A base whose map is damaged is of no
//! use, and of no harm.

use super::content::{Content, Found, length};
use crate::diff::DiskChanges;
use crate::disk_map::BLOCK;
use crate::error::{Error, Kind, Result};
use crate::reader::{DiskReader, MapContent};
use crate::window::{Filled, Window, WindowSource};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

const BLOCK_LEN: u64 = BLOCK as u64;
/// Stretches that are asked for at once.
const BATCH: usize = 1024;

pub(super) struct CopyWindows<'a> {
    content: Content<'a>,
    /// Since the base; `None`: there is none.
    changes: Option<DiskChanges>,
    /// The map has unreadable entries.
    has_unreadable: bool,
    /// Bytes of a window.
    window: u64,
    next: AtomicU64,
    damage: Mutex<Damage>,
}

/// What is damaged in the source.
#[derive(Default)]
struct Damage {
    /// What was read around, in bytes of the disk, in the order in which it was found.
    lost: Vec<Range<u64>>,
    /// What ended reading.
    error: Option<Error>,
}

impl<'a> CopyWindows<'a> {
    pub(super) fn new(content: Content<'a>, changes: Option<DiskChanges>, has_unreadable: bool, window: u64) -> Self {
        CopyWindows { content, changes, has_unreadable, window, next: AtomicU64::new(0), damage: Mutex::default() }
    }

    /// What was damaged and read around: in order, none touching another.
    pub(super) fn lost(&self) -> Result<Vec<Range<u64>>> {
        let mut found = std::mem::take(&mut self.lock()?.lost);
        found.sort_unstable_by_key(|range| range.start);
        let mut lost: Vec<Range<u64>> = Vec::with_capacity(found.len());
        for range in found {
            match lost.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => lost.push(range),
            }
        }
        Ok(lost)
    }

    /// The damage that ended reading, if that was it.
    pub(super) fn damage(&self) -> Result<Option<Error>> {
        Ok(self.lock()?.error.take())
    }

    fn lock(&self) -> Result<MutexGuard<'_, Damage>> {
        self.damage.lock().map_err(|_| Error::internal("a thread died while it noted damage"))
    }

    /// Reads `range`, and notes what is damaged.
    fn read(&self, range: Range<u64>, out: &mut [u8]) -> Result<Found> {
        match self.content.read(range, out) {
            Ok(found) => {
                if !found.damaged.is_empty() {
                    self.lock()?.lost.extend_from_slice(&found.damaged);
                }
                Ok(found)
            }
            Err(e) => {
                if e.kind() == Kind::Corrupt {
                    self.lock()?.error.get_or_insert_with(|| e.duplicate());
                }
                Err(e)
            }
        }
    }

    /// The blocks of `range` that may have changed since the base, counted from its start; `None` when that is most of them or not known.
    fn changed(&self, range: &Range<u64>) -> Result<Option<Vec<Range<usize>>>> {
        let Some(changes) = &self.changes else { return Ok(None) };
        let (mut changed, mut count) = (Vec::new(), 0);
        let mut note = |part: &Range<u64>| -> Result<()> {
            let (from, to) = (part.start - range.start, part.end - range.start);
            let blocks = length(from / BLOCK_LEN)?..length(to.div_ceil(BLOCK_LEN))?;
            count += blocks.len();
            changed.push(blocks);
            Ok(())
        };
        let mut look = || -> Result<()> {
            let mut at = range.start;
            while at < range.end {
                let stretches = changes.within(at..range.end, BATCH)?;
                for (stretch, _) in stretches.iter().filter(|(_, has_changed)| *has_changed) {
                    note(stretch)?;
                }
                let end = stretches.last().map(|(last, _)| last.end).filter(|end| *end > at);
                at = end.ok_or_else(|| Error::internal("a comparison that gets nowhere"))?;
            }
            if self.has_unreadable {
                self.content.each_extent(DiskReader::extents, range.clone(), &mut |extent| {
                    if extent.content == MapContent::Unreadable { note(&extent.range) } else { Ok(()) }
                })?;
            }
            Ok(())
        };
        match look() {
            // Of the base, or of the disk itself, which reading it will tell.
            Err(e) if e.kind() == Kind::Corrupt => return Ok(None),
            looked => looked?,
        }
        let is_few = count <= length((range.end - range.start).div_ceil(BLOCK_LEN))? / 2;
        Ok(is_few.then_some(changed))
    }
}

impl WindowSource for CopyWindows<'_> {
    fn next(&self, window: &mut Window) -> Result<Filled> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        let (size, start) = (self.content.disk.size(), index.saturating_mul(self.window));
        if start >= size {
            return Ok(Filled::End);
        }
        let range = start..size.min(start.saturating_add(self.window));
        let len = length(range.end - range.start)?;
        if let Some(changed) = self.changed(&range)? {
            window.changed = changed;
            return Ok(Filled::Changed { index, len });
        }
        if self.content.is_zero(range.clone()) {
            return Ok(Filled::Zero(index));
        }
        let found = self.read(range, window.make_room(len))?;
        if !found.has_more {
            return Ok(Filled::Zero(index));
        }
        for lost in found.unreadable.iter().chain(&found.damaged) {
            let small = |at: u64| u32::try_from(at - start).map_err(|_| Error::internal("a window of 4 GiB"));
            window.unreadable.push(small(lost.start)?..small(lost.end)?);
        }
        window.unreadable.sort_unstable_by_key(|range| range.start);
        Ok(Filled::Bytes(index))
    }

    fn read_blocks(
        &self,
        index: u64,
        blocks: Range<usize>,
        out: &mut [u8],
        unreadable: &mut Vec<Range<usize>>,
    ) -> Result<()> {
        let byte = |block: usize| index * self.window + block as u64 * BLOCK_LEN;
        let range = byte(blocks.start)..byte(blocks.end).min(self.content.disk.size());
        let len = length(range.end - range.start)?;
        let out = out.get_mut(..len).ok_or_else(|| Error::internal("fewer bytes than blocks"))?;
        let found = self.read(range.clone(), out)?;
        for lost in found.unreadable.iter().chain(&found.damaged) {
            let block = |at: u64| length(at / BLOCK_LEN).map(|block| blocks.start + block);
            unreadable
                .push(block(lost.start - range.start)?..block((lost.end - range.start).next_multiple_of(BLOCK_LEN))?);
        }
        Ok(())
    }

    fn size(&self) -> Result<u64> {
        Ok(self.content.disk.size())
    }
}
