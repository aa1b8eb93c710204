//! What a disk of a point holds, range by range: its bytes, and where there are none.
//!
//! ```text
//!   bytes        read, at no more than the pace
//!   unreadable   so says the map: it could not be read when the backup was made
//!   damaged      it was, and cannot be now: an error, or, for whoever keeps going, told apart from the rest; whole chunks, and whole
//!                windows where the map is damaged
//! ```
//! Not here: what becomes of it. What holds: what is neither bytes nor zero is zeroed in the buffer, and named. Memory: what the caller
//! brings, and the chunks of one piece; of one window, where something is damaged.

use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::pace::Pace;
use crate::reader::{DiskReader, MapContent, MapExtent};
use std::ops::Range;

/// Extents that are asked for at once.
const BATCH: usize = 1024;
/// What is read at once, in bytes.
const PIECE: usize = 4 << 20;

pub(super) struct Content<'a> {
    pub(super) disk: DiskReader,
    /// Tell damage apart instead of failing.
    pub(super) keep_going: bool,
    /// For bytes.
    pub(super) pace: &'a Pace,
    pub(super) cancel: &'a Cancel,
}

/// What a range turned out to be.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Not all of it is zero.
    pub(super) has_more: bool,
    /// In bytes of the disk, in order.
    pub(super) unreadable: Vec<Range<u64>>,
    /// In bytes of the disk, in order.
    pub(super) damaged: Vec<Range<u64>>,
}

/// How extents are asked for: [`DiskReader::extents`] or [`DiskReader::readable_extents`].
type Look = fn(&DiskReader, Range<u64>, usize) -> Result<Vec<MapExtent>>;

impl Content<'_> {
    /// Reads `range`, which `out` is as long as.
    pub(super) fn read(&self, range: Range<u64>, out: &mut [u8]) -> Result<Found> {
        match self.read_as(DiskReader::extents, range.clone(), out) {
            Err(e) if e.kind() == Kind::Corrupt && self.keep_going => self.salvage(range, out),
            found => found,
        }
    }

    /// Whether the map says that all of `range` is zero.
    pub(super) fn is_zero(&self, range: Range<u64>) -> bool {
        let first = self.disk.extents(range.clone(), 1);
        first.is_ok_and(|extents| extents.first().is_some_and(|e| e.content == MapContent::Zero && e.range == range))
    }

    /// Calls `each` for the extents of `range`, in order.
    pub(super) fn each_extent(
        &self,
        look: Look,
        range: Range<u64>,
        each: &mut dyn FnMut(MapExtent) -> Result<()>,
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            self.cancel.check()?;
            let extents = look(&self.disk, at..range.end, BATCH)?;
            let end = extents.last().map(|last| last.range.end).filter(|end| *end > at);
            at = end.ok_or_else(|| Error::internal("a disk has no extents"))?;
            extents.into_iter().try_for_each(&mut *each)?;
        }
        Ok(())
    }

    fn read_as(&self, look: Look, range: Range<u64>, out: &mut [u8]) -> Result<Found> {
        let mut found = Found::default();
        self.each_extent(look, range.clone(), &mut |extent| {
            let (from, to) = (extent.range.start - range.start, extent.range.end - range.start);
            let part = length(from)?..length(to)?;
            let part = out.get_mut(part).ok_or_else(|| Error::internal("an extent beyond its range"))?;
            found.has_more |= extent.content != MapContent::Zero;
            match extent.content {
                MapContent::Data => return self.read_bytes(extent.range.start, part),
                MapContent::Unreadable => found.unreadable.push(extent.range),
                MapContent::Zero => {}
            }
            part.fill(0);
            Ok(())
        })?;
        Ok(found)
    }

    fn read_bytes(&self, start: u64, out: &mut [u8]) -> Result<()> {
        let mut at = start;
        for piece in out.chunks_mut(PIECE) {
            self.pace.take(piece.len() as u64, self.cancel)?;
            self.disk.read_at(at, piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Reads what can be read of a range in which something is damaged.
    fn salvage(&self, range: Range<u64>, out: &mut [u8]) -> Result<Found> {
        let mut found = self.read_as(DiskReader::readable_extents, range, out)?;
        for lost in std::mem::take(&mut found.unreadable) {
            let mut of_map = (Vec::new(), Vec::new());
            let told = self.each_extent(DiskReader::extents, lost.clone(), &mut |extent| {
                match extent.content {
                    MapContent::Unreadable => of_map.0.push(extent.range),
                    MapContent::Data | MapContent::Zero => of_map.1.push(extent.range),
                }
                Ok(())
            });
            match told {
                Ok(()) => {
                    found.unreadable.append(&mut of_map.0);
                    found.damaged.append(&mut of_map.1);
                }
                Err(e) if e.kind() == Kind::Corrupt => found.damaged.push(lost),
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }
}

pub(super) fn length(bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| Error::internal("a window beyond memory"))
}
