//! What is done with a stretch of a disk that is brought to a target: it is copied, or compared.
//!
//! ```text
//!   copy     read as the fork has it -> (make durable what of it the fork could lose) -> write, zeroes as zeroes
//!   verify   out of the target's cache -> read from both -> equal, or changed meanwhile, or an error
//! ```
//! Not here: which stretch, and when ([`super::transfer`]). What holds: one thread at a time has a region; what stands in the logbook as
//! copied is overwritten only with what the fork has durably, so that a power cut, after which a touch of a layer may not have
//! been, finds nothing of it on the target; a difference is an error unless the region is marked once all writers passed the gate.
//!
//! Memory: two pieces of 1 MiB for each thread.

use super::super::stack::Stack;
use super::bitmap::Bitmap;
use super::progress::HydrationProgress;
use super::tracker::Tracker;
use crate::device::{BlockDevice, Content, Durability, Extent, Zeroing};
use crate::{Error, Result};
use std::fmt::Write;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

/// What is read and written at once, in bytes.
pub(super) const PIECE: u64 = 1 << 20;
/// A hole shorter than this is written as zeroes: a request of its own costs more than its bytes.
const SHORTEST_HOLE: u64 = 64 << 10;
/// Extents that are asked for at once.
const BATCH: usize = 256;
/// Ranges that an error names.
const NAMED: usize = 8;

const ZERO: Zeroing = Zeroing { may_unmap: true, fast_only: false, durability: Durability::Cached };

pub(super) struct Site<'a> {
    pub(super) stack: &'a Stack,
    pub(super) target: Arc<dyn BlockDevice>,
    pub(super) tracker: Arc<Tracker>,
    /// Regions that were copied while no layer had touched them. Whatever the logbook says is among them.
    pub(super) copied: Bitmap,
    /// Regions to be compared.
    pub(super) unverified: Bitmap,
    pub(super) progress: Arc<HydrationProgress>,
    /// Bring zeroes for what cannot be read.
    pub(super) keep_going: bool,
    /// What could not be read, as comparing meets it: in bytes, in no order, and perhaps twice.
    pub(super) unreadable: Mutex<Vec<Range<u64>>>,
}

/// Whether writers are held off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    Open,
    Closed,
}

impl Site<'_> {
    /// Copies `regions`, whose bits were cleared by the caller.
    pub(super) fn copy(&self, regions: &Range<u64>, buffer: &mut Vec<u8>) -> Result<()> {
        let range = self.tracker.bytes(regions);
        let mut at = range.start;
        while at < range.end {
            let extents = self.look(&(at..range.end))?;
            if let Some(hole) = long_hole(&extents) {
                self.firm(&hole)?;
                self.target.zero(hole.clone(), ZERO)?;
                self.progress.zero.fetch_add(hole.end - hole.start, Ordering::Relaxed);
                at = hole.end;
                continue;
            }
            let piece = piece_of(&extents)?;
            let bytes = room(buffer, piece.end - piece.start)?;
            self.read(&extents, &piece, bytes)?;
            self.firm(&piece)?;
            for (part, is_hole) in parts(&extents, &piece) {
                let counter = if is_hole { &self.progress.zero } else { &self.progress.copied };
                match is_hole {
                    true => self.target.zero(part.clone(), ZERO)?,
                    false => self.target.write_at(part.start, slice(bytes, &piece, &part)?, Durability::Cached)?,
                }
                counter.fetch_add(part.end - part.start, Ordering::Relaxed);
            }
            at = piece.end;
        }
        self.unverified.set(regions.clone());
        for region in regions.clone().filter(|region| !self.stack.touches(&self.tracker.bytes(&(*region..region + 1))))
        {
            self.copied.set(region..region + 1);
        }
        self.tracker.note_progress();
        Ok(())
    }

    /// Compares `regions`, whose bits were cleared by the caller. Those that were changed meanwhile will be copied, and compared, again.
    pub(super) fn verify(&self, regions: &Range<u64>, gate: Gate, buffer: &mut Vec<u8>) -> Result<()> {
        let range = self.tracker.bytes(regions);
        let mut at = range.start;
        while at < range.end {
            let extents = self.look(&(at..range.end))?;
            self.unreadable.lock().unwrap_or_else(PoisonError::into_inner).extend(lost(&extents));
            // What is a hole on both sides needs no reading: a thin disk is mostly that.
            if let Some(hole) = long_hole(&extents) {
                let found = self.target.extents(hole.clone(), BATCH)?;
                if let Some(same) = found.first().filter(|e| e.content == Content::Zero && e.range.start == hole.start)
                {
                    at = same.range.end.min(hole.end);
                    self.progress.verified.fetch_add(at - hole.start, Ordering::Relaxed);
                    continue;
                }
            }
            let piece = piece_of(&extents)?;
            let length = piece.end - piece.start;
            let (wanted, found) = room(buffer, 2 * length)?.split_at_mut(usize::try_from(length).unwrap_or_default());
            self.read(&extents, &piece, wanted)?;
            self.target.evict(piece.clone());
            self.target.read_at(piece.start, found)?;
            if wanted != found {
                self.judge(&piece, wanted, found, gate)?;
            }
            self.progress.verified.fetch_add(length, Ordering::Relaxed);
            at = piece.end;
        }
        Ok(())
    }

    /// Sees that each region in which `piece` differs was changed since it was copied.
    fn judge(&self, piece: &Range<u64>, wanted: &[u8], found: &[u8], gate: Gate) -> Result<()> {
        if gate == Gate::Open {
            // Whoever changed what was read has marked it by then.
            drop(self.stack.barrier());
        }
        for region in self.tracker.regions(piece) {
            let of = self.tracker.bytes(&(region..region + 1));
            let part = of.start.max(piece.start)..of.end.min(piece.end);
            let (wanted, found) = (slice(wanted, piece, &part)?, slice(found, piece, &part)?);
            let differs = wanted.iter().zip(found).position(|(a, b)| a != b);
            if let Some(differs) = differs.filter(|_| !self.tracker.dirty().any(region..region + 1)) {
                let offset = part.start + differs as u64;
                let why = "it was changed by somebody else, or does not keep what is written; nothing was handed over, and the fork \
                           goes on. See to the target, then say --restart to copy everything again";
                return Err(Error::corrupt(format!("the target differs from the fork at byte {offset}: {why}")));
            }
        }
        Ok(())
    }

    /// Makes durable in the fork what is about to take the place of something that the logbook may count as copied.
    fn firm(&self, range: &Range<u64>) -> Result<()> {
        match self.copied.any(self.tracker.regions(range)) && self.stack.touches(range) {
            true => self.stack.flush(),
            false => Ok(()),
        }
    }

    /// Stretches from the start of `range` on. What cannot be read is an error, unless it goes on.
    pub(super) fn look(&self, range: &Range<u64>) -> Result<Vec<Extent>> {
        let extents = self.stack.extents(range.clone(), BATCH)?;
        let mut at = range.start;
        for extent in &extents {
            if extent.range.start != at || extent.range.end <= at || extent.range.end > range.end {
                return Err(Error::internal("a fork's extents have gaps"));
            }
            at = extent.range.end;
        }
        let lost: Vec<_> = lost(&extents).collect();
        match self.keep_going || lost.is_empty() {
            true => Ok(extents),
            false => Err(Error::corrupt(named(&lost))),
        }
    }

    /// Reads a piece of which these are the extents.
    fn read(&self, extents: &[Extent], piece: &Range<u64>, bytes: &mut [u8]) -> Result<()> {
        // Past the stack: a copier's reads are no guest's.
        let top = self.stack.top()?;
        for extent in extents.iter().filter(|extent| extent.range.start < piece.end) {
            let part = extent.range.start..extent.range.end.min(piece.end);
            let place = usize_of(part.start - piece.start)?..usize_of(part.end - piece.start)?;
            let place = bytes.get_mut(place).ok_or_else(|| Error::internal("an extent beyond its piece"))?;
            match extent.content {
                Content::Bytes => top.read_at(part.start, place).map_err(|e| {
                    let Range { start, end } = part;
                    e.within(format_args!("reading bytes {start} to {end} of the fork"))
                })?,
                Content::Zero | Content::Unreadable => place.fill(0),
            }
        }
        Ok(())
    }
}

/// What of these stretches cannot be read.
fn lost(extents: &[Extent]) -> impl Iterator<Item = Range<u64>> {
    extents.iter().filter(|extent| extent.content == Content::Unreadable).map(|extent| extent.range.clone())
}

/// The same in words.
fn named(lost: &[Range<u64>]) -> String {
    let mut text = String::from("the fork cannot be read at bytes");
    for range in lost.iter().take(NAMED) {
        // Into memory: it does not fail.
        let _ = write!(text, " {} to {},", range.start, range.end);
    }
    if lost.len() > NAMED {
        let _ = write!(text, " and in {} more places,", lost.len() - NAMED);
    }
    text + " which could not be read when the backup was made; say --keep-going to have zeroes there"
}

/// The hole that these stretches begin with, if it is worth a request of its own, or all there is.
pub(super) fn long_hole(extents: &[Extent]) -> Option<Range<u64>> {
    let holes = extents.iter().take_while(|extent| extent.content != Content::Bytes);
    let hole = extents.first()?.range.start..holes.last()?.range.end;
    let is_all = extents.last().is_some_and(|last| last.range.end == hole.end);
    (is_all || hole.end - hole.start >= PIECE).then_some(hole)
}

/// As much of these stretches as is worked on at once.
fn piece_of(extents: &[Extent]) -> Result<Range<u64>> {
    let (Some(first), Some(last)) = (extents.first(), extents.last()) else {
        return Err(Error::internal("a fork has no extents"));
    };
    let start = first.range.start;
    Ok(start..last.range.end.min(start + PIECE))
}

/// The parts of a piece that are written as bytes, and those that are holes and long enough for that.
fn parts(extents: &[Extent], piece: &Range<u64>) -> Vec<(Range<u64>, bool)> {
    let mut parts: Vec<(Range<u64>, bool)> = Vec::new();
    let mut add = |range: Range<u64>, is_hole: bool| match parts.last_mut() {
        Some((last, same)) if *same == is_hole => last.end = range.end,
        _ => parts.push((range, is_hole)),
    };
    let mut hole: Option<Range<u64>> = None;
    for extent in extents.iter().filter(|extent| extent.range.start < piece.end) {
        let range = extent.range.start..extent.range.end.min(piece.end);
        if extent.content != Content::Bytes {
            hole = Some(hole.map_or(range.start, |hole| hole.start)..range.end);
            continue;
        }
        if let Some(hole) = hole.take() {
            let is_long = hole.end - hole.start >= SHORTEST_HOLE;
            add(hole, is_long);
        }
        add(range, false);
    }
    if let Some(hole) = hole {
        let is_long = hole.end - hole.start >= SHORTEST_HOLE;
        add(hole, is_long);
    }
    parts
}

/// Room for `len` bytes.
fn room(buffer: &mut Vec<u8>, len: u64) -> Result<&mut [u8]> {
    let len = usize_of(len)?;
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    buffer.get_mut(..len).ok_or_else(|| Error::internal("a buffer that is too short"))
}

/// The bytes of `part`, which lies in `piece`.
fn slice<'b>(bytes: &'b [u8], piece: &Range<u64>, part: &Range<u64>) -> Result<&'b [u8]> {
    let place = usize_of(part.start - piece.start)?..usize_of(part.end - piece.start)?;
    bytes.get(place).ok_or_else(|| Error::internal("a part beyond its piece"))
}

fn usize_of(len: u64) -> Result<usize> {
    usize::try_from(len).map_err(|_| Error::internal("a piece beyond memory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u64 = 1024;

    fn extents(of: &[(u64, Content)]) -> Vec<Extent> {
        let mut at = 0;
        let mut extent = |(len, content): &(u64, Content)| {
            at += len;
            Extent { range: at - len..at, content: *content }
        };
        of.iter().map(&mut extent).collect()
    }

    #[test]
    fn long_holes_stay_holes_and_short_ones_are_bytes() {
        use Content::{Bytes, Unreadable, Zero};
        let found =
            extents(&[(4 * K, Bytes), (8 * K, Zero), (4 * K, Bytes), (64 * K, Zero), (4 * K, Unreadable), (9, Bytes)]);
        let end = 84 * K + 9;
        assert_eq!(piece_of(&found).unwrap(), 0..end);
        assert_eq!(parts(&found, &(0..end)), [(0..16 * K, false), (16 * K..84 * K, true), (84 * K..end, false)]);
        assert_eq!(long_hole(&found), None);
        assert_eq!(long_hole(&found[3..5]), Some(16 * K..84 * K), "it is all there is");
        let long = extents(&[(700 * K, Zero), (700 * K, Unreadable), (1, Bytes)]);
        assert_eq!(long_hole(&long), Some(0..1400 * K));
        assert_eq!(parts(&found, &(0..8 * K)), [(0..8 * K, false)]);
    }

    #[test]
    fn what_is_lost_is_named_and_so_is_the_way_out() {
        let text = named(&(0..10).map(|n| n * 10..n * 10 + 5).collect::<Vec<_>>());
        assert!(text.contains("bytes 0 to 5, 10 to 15,") && text.contains("2 more") && text.contains("--keep-going"));
    }
}
