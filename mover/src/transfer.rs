//! The copying of a restore: from a device to a target, on several threads.
//!
//! ```text
//!   pieces (64 MiB; for a stream: slices) -- crew of workers --> slices (4 MiB) -> runs and gaps -> write, zero
//!                                                     \-- pieces done --> sync -> checkpoint
//! ```
//!
//! Not here: opening, verifying. What holds: memory is a slice a worker; a piece enters the checkpoint only after a sync that
//! began when it was written; a stream gets its slices in order; what the snapshot could not read is never written as if it
//! were zeroes unless the caller keeps going, and is listed then.

use crate::checkpoint::{Checkpoint, PIECE};
use crate::range_list::RangeList;
use crate::restore::{RestoreOptions, RestoreProgress};
use crate::target::{DiskTarget, Order};
use crate::{Error, Kind, Result, crew, runs};
use coffer_gateway::device::{BlockDevice, Content};
use coffer_repo::cancel::Cancel;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What one worker reads and writes at a time, in bytes.
pub(crate) const SLICE: u64 = 4 << 20;

/// How many pieces are done before a sync is worth its wait: what a restore that was killed does again at most, 1 GiB.
const PIECES_PER_SYNC: usize = 16;

/// How many extents are asked for at a time.
pub(crate) const BATCH: usize = 1024;

/// What is copied, and how.
pub(crate) struct Transfer<'a> {
    pub(crate) device: &'a dyn BlockDevice,
    pub(crate) target: &'a dyn DiskTarget,
    pub(crate) options: &'a RestoreOptions,
    pub(crate) progress: &'a RestoreProgress,
    pub(crate) cancel: &'a Cancel,
}

impl Transfer<'_> {
    /// Copies everything that `checkpoint` does not say is done. Gives what could not be read when the backup was made, and
    /// the checkpoint.
    pub(crate) fn run(&self, checkpoint: Option<Checkpoint>) -> Result<(RangeList, Option<Checkpoint>)> {
        let size = self.device.size();
        let (piece_size, turn) = match self.target.order() {
            Order::Any => (PIECE, None),
            Order::Ascending => (SLICE, Some(Turn::default())),
        };
        let done = |piece| checkpoint.as_ref().is_some_and(|c| c.is_done(piece));
        let pieces = size.div_ceil(piece_size);
        let done: Vec<u64> = (0..pieces).filter(|&piece| done(piece)).collect();
        let ledger = Ledger::new(checkpoint);
        let unreadable = Mutex::new(RangeList::default());
        crew::work(self.options.workers, pieces, |piece, buffer| {
            // Whatever ends this task, those who wait for its turn must not wait for ever.
            let _ending = turn.as_ref().map(|turn| Ending { turn, piece });
            let range = piece * piece_size..((piece + 1) * piece_size).min(size);
            if done.binary_search(&piece).is_ok() {
                return self.skip(&range, &unreadable);
            }
            for slice in cut(range, SLICE) {
                self.cancel.check()?;
                match &turn {
                    None => self.copy(&slice, buffer, &unreadable)?,
                    Some(turn) => {
                        let bytes = crew::room(buffer, length(&slice)?);
                        let runs = self.runs(&slice, &unreadable)?;
                        read_runs(self.device, &runs, &slice, bytes).map_err(|e| self.way_out(e))?;
                        if !turn.wait(piece) {
                            return Ok(());
                        }
                        self.target.write_at(slice.start, bytes)?;
                        self.progress.written.fetch_add(slice.end - slice.start, Ordering::Relaxed);
                        turn.pass();
                    }
                }
            }
            ledger.completed(piece, self.target)
        })?;
        let unreadable = unreadable.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok((unreadable, ledger.into_checkpoint()))
    }

    /// Accounts for a piece that an earlier run completed.
    fn skip(&self, range: &Range<u64>, unreadable: &Mutex<RangeList>) -> Result<()> {
        self.runs(range, unreadable)?;
        self.progress.resumed.fetch_add(range.end - range.start, Ordering::Relaxed);
        Ok(())
    }

    /// Copies a slice to a target that takes any order: its runs are written, the gaps between them zeroed.
    fn copy(&self, slice: &Range<u64>, buffer: &mut Vec<u8>, unreadable: &Mutex<RangeList>) -> Result<()> {
        let runs = self.runs(slice, unreadable)?;
        for run in &runs {
            let bytes = crew::room(buffer, length(run)?);
            self.device.read_at(run.start, bytes).map_err(|e| self.way_out(e))?;
            self.target.write_at(run.start, bytes)?;
            self.progress.written.fetch_add(run.end - run.start, Ordering::Relaxed);
        }
        for gap in runs::gaps(&runs, slice) {
            self.progress.zero.fetch_add(gap.end - gap.start, Ordering::Relaxed);
            self.target.zero(gap)?;
        }
        Ok(())
    }

    /// What has to be read of a range. What cannot be is listed, or fails.
    fn runs(&self, range: &Range<u64>, unreadable: &Mutex<RangeList>) -> Result<Vec<Range<u64>>> {
        let extents = |rest| self.device.extents(rest, BATCH).map_err(|e| self.way_out(e));
        let found = runs::cover(range, extents, |extent| &extent.range)?;
        for lost in found.iter().filter(|extent| extent.content == Content::Unreadable) {
            if !self.options.keep_going {
                return Err(Error::new(
                    Kind::Unavailable,
                    format!(
                        "bytes {} to {} could not be read when the backup was made; \
                         say --keep-going to restore them as zeroes and have them listed",
                        lost.range.start, lost.range.end
                    ),
                ));
            }
            unreadable.lock().unwrap_or_else(PoisonError::into_inner).add(lost.range.clone());
        }
        Ok(split_at_unreadable(found, range))
    }

    /// Says with damage how to get what is left.
    fn way_out(&self, e: Error) -> Error {
        match e.kind() {
            Kind::Corrupt if !self.options.keep_going => {
                e.within("the snapshot is damaged; say --keep-going to restore what is left and have the rest listed")
            }
            _ => e,
        }
    }
}

/// Runs of bytes that reach over no unreadable stretch: reading that would fail.
fn split_at_unreadable(
    extents: impl IntoIterator<Item = coffer_gateway::device::Extent>,
    range: &Range<u64>,
) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    let mut stretch = Vec::new();
    let mut bounds = range.clone();
    for extent in extents {
        match extent.content {
            Content::Bytes => stretch.push(extent.range),
            Content::Zero => {}
            Content::Unreadable => {
                bounds.end = extent.range.start;
                found.extend(runs::join(stretch.drain(..), &bounds));
                bounds = extent.range.end..range.end;
            }
        }
    }
    found.extend(runs::join(stretch, &bounds));
    found
}

/// The runs of `range` that hold bytes; what is unreadable counts as zero here.
pub(crate) fn device_runs(device: &dyn BlockDevice, range: &Range<u64>) -> Result<Vec<Range<u64>>> {
    let found = runs::cover(range, |rest| device.extents(rest, BATCH), |extent| &extent.range)?;
    Ok(split_at_unreadable(found, range))
}

/// Fills `out` with `slice` of the device: its runs are read, the rest is zero.
pub(crate) fn read_runs(
    device: &dyn BlockDevice,
    runs: &[Range<u64>],
    slice: &Range<u64>,
    out: &mut [u8],
) -> Result<()> {
    let mut part = |range: &Range<u64>, fill: &mut dyn FnMut(&mut [u8]) -> Result<()>| {
        let (from, to) = (length(&(slice.start..range.start))?, length(&(slice.start..range.end))?);
        fill(out.get_mut(from..to).ok_or_else(|| Error::internal("a run beyond its slice"))?)
    };
    for gap in runs::gaps(runs, slice) {
        part(&gap, &mut |out| {
            out.fill(0);
            Ok(())
        })?;
    }
    runs.iter().try_for_each(|run| part(run, &mut |out| device.read_at(run.start, out)))
}

/// `range` in parts of at most `step` bytes.
fn cut(range: Range<u64>, step: u64) -> impl Iterator<Item = Range<u64>> {
    (0..(range.end - range.start).div_ceil(step)).map(move |i| {
        let start = range.start + i * step;
        start..(start + step).min(range.end)
    })
}

pub(crate) fn length(range: &Range<u64>) -> Result<usize> {
    usize::try_from(range.end - range.start).map_err(|_| Error::internal("a slice beyond memory"))
}

/// Which pieces are written, and which of them are durable.
struct Ledger {
    state: Mutex<LedgerState>,
}

struct LedgerState {
    /// Written, not durable.
    written: Vec<u64>,
    /// Absent while a worker syncs (no lock is held over that) and where nothing can be resumed.
    checkpoint: Option<Checkpoint>,
}

impl Ledger {
    fn new(checkpoint: Option<Checkpoint>) -> Self {
        Ledger { state: Mutex::new(LedgerState { written: Vec::new(), checkpoint }) }
    }

    fn lock(&self) -> MutexGuard<'_, LedgerState> {
        // Each change is a single step, so a panic elsewhere leaves the state sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that `piece` is written. Once in a while the worker that says so makes what is written durable.
    fn completed(&self, piece: u64, target: &dyn DiskTarget) -> Result<()> {
        let mut state = self.lock();
        state.written.push(piece);
        if state.written.len() < PIECES_PER_SYNC {
            return Ok(());
        }
        let Some(mut checkpoint) = state.checkpoint.take() else { return Ok(()) };
        let written = std::mem::take(&mut state.written);
        drop(state);
        target.sync()?;
        written.into_iter().for_each(|piece| checkpoint.mark(piece));
        checkpoint.save()?;
        self.lock().checkpoint = Some(checkpoint);
        Ok(())
    }

    fn into_checkpoint(self) -> Option<Checkpoint> {
        self.state.into_inner().unwrap_or_else(PoisonError::into_inner).checkpoint
    }
}

/// Whose turn it is to write to a stream.
#[derive(Default)]
struct Turn {
    state: Mutex<TurnState>,
    passed: Condvar,
}

#[derive(Default)]
struct TurnState {
    piece: u64,
    is_over: bool,
}

impl Turn {
    /// Waits until it is the turn of `piece`; `false` if it will never be.
    fn wait(&self, piece: u64) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self
            .passed
            .wait_while(state, |state| !state.is_over && state.piece != piece)
            .unwrap_or_else(PoisonError::into_inner);
        !state.is_over
    }

    fn pass(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).piece += 1;
        self.passed.notify_all();
    }
}

/// Ends all waiting when a piece ends without having had its turn.
struct Ending<'a> {
    turn: &'a Turn,
    piece: u64,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let mut state = self.turn.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.piece <= self.piece {
            state.is_over = true;
            self.turn.passed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::RandomDisk;
    use coffer_gateway::{Durability, MemoryDevice};

    const SIZE: u64 = 20 * SLICE + 1000;

    /// Keeps what it is given in order, and fails or cancels at a byte.
    struct Pipe {
        kept: Mutex<Vec<u8>>,
        breaks_at: u64,
        cancel: Option<Cancel>,
    }

    impl DiskTarget for Pipe {
        fn order(&self) -> Order {
            Order::Ascending
        }

        fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
            let mut kept = self.kept.lock().unwrap();
            assert_eq!(kept.len() as u64, offset, "out of order");
            kept.extend_from_slice(bytes);
            if kept.len() as u64 > self.breaks_at {
                let Some(cancel) = &self.cancel else { return Err(Error::new(Kind::Full, "the pipe broke")) };
                cancel.cancel();
            }
            Ok(())
        }

        fn zero(&self, _range: Range<u64>) -> Result<()> {
            Err(Error::internal("a stream is given bytes"))
        }

        fn sync(&self) -> Result<()> {
            Ok(())
        }

        fn read_back(&self) -> Result<Box<dyn RandomDisk + '_>> {
            Err(Error::internal("not read"))
        }

        fn finish(self: Box<Self>) -> Result<()> {
            Ok(())
        }
    }

    fn device() -> (MemoryDevice, Vec<u8>) {
        let device = MemoryDevice::new(SIZE);
        let mut want = vec![0; usize::try_from(SIZE).unwrap()];
        for (at, length) in [(100, 50_000), (3 * SLICE - 10, 20), (7 * SLICE, 2 * SLICE), (SIZE - 1, 1)] {
            let bytes: Vec<u8> = (0..length).map(|i| u8::try_from(i % 250 + 1).unwrap()).collect();
            device.write_at(at, &bytes, Durability::Cached).unwrap();
            let at = usize::try_from(at).unwrap();
            want[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        (device, want)
    }

    fn run(pipe: &Pipe, cancel: &Cancel) -> Result<()> {
        let (device, _) = device();
        let options = RestoreOptions { workers: 5, ..RestoreOptions::default() };
        let progress = RestoreProgress::default();
        Transfer { device: &device, target: pipe, options: &options, progress: &progress, cancel }.run(None).map(|_| ())
    }

    #[test]
    fn a_stream_gets_every_byte_in_order_from_several_threads() {
        let pipe = Pipe { kept: Mutex::default(), breaks_at: u64::MAX, cancel: None };
        run(&pipe, &Cancel::default()).unwrap();
        assert!(*pipe.kept.lock().unwrap() == device().1, "the stream differs");
    }

    #[test]
    fn a_broken_or_cancelled_stream_ends_all_workers() {
        let broken = Pipe { kept: Mutex::default(), breaks_at: 9 * SLICE, cancel: None };
        assert_eq!(run(&broken, &Cancel::default()).unwrap_err().context(), "the pipe broke");

        let cancel = Cancel::default();
        let pipe = Pipe { kept: Mutex::default(), breaks_at: 2 * SLICE, cancel: Some(cancel.clone()) };
        assert_eq!(run(&pipe, &cancel).unwrap_err().kind(), Kind::Cancelled);
    }
}
