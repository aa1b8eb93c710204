//! Private writes above a disk that never changes: copy on write in blocks of 4 KiB.
//!
//! ```text
//!   read   block untouched -> base      zeroed -> zeroes      ours -> data, decrypted
//!   write  data (sealed), then a record in the journal if the block was not ours, then the map: then it is acknowledged
//!   flush  a few blocks changed: their contents into the journal, one sync.   Many: sync the data, commit, sync the journal.
//!          A handful that was ours before: sync the data
//! ```
//! Files: [`read`] and [`write`] are the data path, [`flush`] what makes it durable; [`super::block_map`] says what is whose,
//! [`super::journal`] remembers it, [`super::replay`] is how it is remembered.
//!
//! | after | what is there |
//! |---|---|
//! | the process was killed | everything that was acknowledged |
//! | a power cut | everything that was flushed or forced; of what was written since, each sector of 512 bytes is as it was before or as some write since left it; compare-and-write is whole or not at all |
//! | a failed sync | reads go on; writes and flushes fail for good; the next opening believes what was flushed only |
//! | a full disk | `Full` on the write that needed space, never on a flush |
//!
//! Not here: keys and folders ([`super::Fork`]). What holds: a record says that a block is ours only after its contents are in the
//! data (the one exception, a redo, carries them); space in the data is taken before a block is written first; a hole is punched
//! only after the record that zeroes it is durable, and not where something was written meanwhile. No lock is common to all
//! requests on blocks that are ours; first touches meet at the journal's end.
//!
//! Memory: four bits for a block that was touched, in grains of 16 MiB; lanes; one record. Journals are read whole when a layer is
//! opened: 16 MiB and what the map takes.

mod flush;
mod read;
mod write;

use super::BootId;
use super::block_map::{BlockMap, REGION, State, runs};
use super::journal::Journal;
use super::lanes::Lanes;
use super::medium::Medium;
use super::range_locks::RangeLocks;
use super::record::{BLOCK, Entry, Header};
use super::replay::replay;
use super::rounds::{Rounds, Verdict};
use crate::device::{BlockDevice, Content, Durability, Extent, Zeroing, check_range};
use crate::{Error, Kind, Result};
use coffer_repo::entropy::{Entropy, fresh};
use coffer_repo::fork_key::ForkKey;
use flush::{Dirty, Habit, Holes};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use write::Exchange;

const BLOCK_U64: u64 = BLOCK as u64;

/// What a layer lies on.
#[derive(Clone)]
pub struct Media {
    /// The blocks, each at its place on the disk.
    pub data: Arc<dyn Medium>,
    /// The journal's two halves.
    pub journals: [Arc<dyn Medium>; 2],
}

/// A writable layer.
pub struct Layer {
    /// Locked for as long as it takes to copy or exchange what is in it.
    base: RwLock<Arc<dyn BlockDevice>>,
    size: u64,
    block_size: u32,
    data: Arc<dyn Medium>,
    journal: Journal,
    map: BlockMap,
    locks: RangeLocks,
    lanes: Lanes,
    /// How many compare-and-writes keep their locks for the length of a sync.
    exchanges: AtomicUsize,
    dirty: Dirty,
    holes: Holes,
    habit: Habit,
    rounds: Rounds,
    verdict: Verdict,
    boot: BootId,
    entropy: Arc<dyn Entropy>,
}

impl Layer {
    /// Makes an empty layer for a disk of `size` bytes on empty media, and makes that durable.
    pub fn create(media: &Media, key: &ForkKey, size: u64, boot: BootId, entropy: &dyn Entropy) -> Result<()> {
        let blocks = size.div_ceil(BLOCK_U64);
        media.data.set_len(blocks * BLOCK_U64)?;
        media.data.sync()?;
        let header = Header { generation: 1, size, boot, salt: fresh(entropy)? };
        Journal::create(media.journals.clone(), &key.journal()?, header, &BlockMap::new(blocks))
    }

    /// Opens a layer above `base`, which must be what it was made for. Whatever its last owner left is made durable first. `Corrupt`
    /// when the media are not what was written, `Full` when there is no space to open it.
    pub fn open(
        base: Arc<dyn BlockDevice>,
        media: Media,
        key: &ForkKey,
        boot: BootId,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self> {
        let (size, block_size) = (base.size(), base.block_size());
        let Media { data, journals } = media;
        let len = size.div_ceil(BLOCK_U64) * BLOCK_U64;
        if data.len()? != len {
            return Err(Error::corrupt(format!("the fork's data has {} bytes where {len} are due", data.len()?)));
        }
        let read = |medium: &dyn Medium| -> Result<Vec<u8>> {
            let mut bytes = vec![0; usize::try_from(medium.len()?).unwrap_or(usize::MAX)];
            medium.read_at(0, &mut bytes)?;
            Ok(bytes)
        };
        let bytes = [read(&*journals[0])?, read(&*journals[1])?];
        let found = replay(&key.journal()?, [&bytes[0], &bytes[1]], size, boot)?;
        for (block, sealed) in found.contents {
            data.allocate(block * BLOCK_U64..(block + 1) * BLOCK_U64)?;
            data.write_at(block * BLOCK_U64, sealed)?;
        }
        let layer = Layer {
            base: RwLock::new(base),
            size,
            block_size,
            data,
            journal: Journal::found(journals, &key.journal()?, found.tail),
            map: found.map,
            locks: RangeLocks::new(),
            lanes: Lanes::new(&key.blocks()?)?,
            exchanges: AtomicUsize::new(0),
            dirty: Dirty::default(),
            holes: Holes::default(),
            habit: Habit::default(),
            rounds: Rounds::default(),
            verdict: Verdict::default(),
            boot,
            entropy,
        };
        layer.settle()?;
        Ok(layer)
    }

    /// Makes durable what was found, begins a new journal, and gives back space that the last owner had no time to.
    fn settle(&self) -> Result<()> {
        self.data.sync().inspect_err(|_| self.distrust())?;
        self.journal.rotate(&self.map, self.boot, fresh(&*self.entropy)?)?;
        let mut hole: Option<Range<u64>> = None;
        let mut next = self.map.next(0);
        while let Some(region) = next {
            for run in runs(self.map.look(region).zeroed) {
                let blocks = region * REGION + run.start..region * REGION + run.end;
                hole = match hole {
                    Some(hole) if hole.end == blocks.start => Some(hole.start..blocks.end),
                    old => {
                        self.punch(old)?;
                        Some(blocks)
                    }
                };
            }
            next = self.map.next(region + 1);
        }
        self.punch(hole)
    }

    fn punch(&self, blocks: Option<Range<u64>>) -> Result<()> {
        let Some(blocks) = blocks else { return Ok(()) };
        self.data.punch(blocks.start * BLOCK_U64..blocks.end.min(self.map.blocks()) * BLOCK_U64)
    }

    /// Exchanges what is below for another device that holds the same, byte for byte. May be done while the layer is in use.
    pub fn rebase(&self, base: Arc<dyn BlockDevice>) -> Result<()> {
        if (base.size(), base.block_size()) != (self.size, self.block_size) {
            return Err(Error::internal("a layer was to be put on a disk of another shape"));
        }
        let mut below = self.base.write().unwrap_or_else(PoisonError::into_inner);
        // What was below ends without the lock: that may take I/O.
        let old = std::mem::replace(&mut *below, base);
        drop(below);
        drop(old);
        Ok(())
    }

    fn base(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.base.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs of blocks within `range`, in bytes, that are not as they are below: by number, in order.
    pub(super) fn changed(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<'_> {
        let end = range.end.div_ceil(BLOCK_U64).min(self.map.blocks());
        let mut at = range.start / BLOCK_U64;
        std::iter::from_fn(move || {
            while at < end {
                let (start, (state, next)) = (at, self.state_from(at));
                at = next;
                if state != State::Untouched {
                    return Some(start..next.min(end));
                }
            }
            None
        })
    }

    /// An error once the layer has failed.
    pub(super) fn check(&self) -> Result<()> {
        self.verdict.check()
    }

    /// Flushes, and says in the journal that this was the end: whatever is damaged from now on is found out.
    pub fn close(&self) -> Result<()> {
        self.flush()?;
        self.journal.commit(None).and_then(|()| self.journal.sync()).inspect_err(|e| self.fail(e))
    }

    /// Bytes that the layer keeps of its own, without what it zeroed.
    #[must_use]
    pub fn own_bytes(&self) -> u64 {
        let (mut bytes, mut next) = (0, self.map.next(0));
        while let Some(region) = next {
            bytes += u64::from(self.map.look(region).ours.count_ones()) * BLOCK_U64;
            next = self.map.next(region + 1);
        }
        bytes
    }

    /// Fails the layer for good.
    fn fail(&self, error: &Error) {
        if self.verdict.fail(error) {
            self.distrust();
        }
    }

    /// Has the next opening on this boot believe what is firm only. In memory at least: on another boot it goes without saying.
    fn distrust(&self) {
        let _ = self.journal.append_kept(&Entry::Distrust);
    }

    /// Makes room when it was the journal that a request lacked space in; whether it did, and the request may be tried again.
    pub(super) fn make_room(&self, error: &Error) -> Result<bool> {
        let is_short = error.kind() == Kind::Full && self.journal.is_short();
        if is_short {
            self.round(true)?;
        }
        Ok(is_short)
    }

    fn with_room<T>(&self, op: impl Fn() -> Result<T>) -> Result<T> {
        match op() {
            Err(e) if self.make_room(&e)? => op(),
            other => other,
        }
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<()> {
        check_range(self.size, offset, len)?;
        self.verdict.check()
    }
}

impl BlockDevice for Layer {
    fn size(&self) -> u64 {
        self.size
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        check_range(self.size, offset, out.len() as u64)?;
        self.read(offset, out)
    }

    fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        check_range(self.size, offset, out.len() as u64)?;
        self.try_read(offset, out)
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>> {
        let own = |state| if state == State::Ours { Content::Bytes } else { Content::Zero };
        let found = self.stretches(range, max, own, |part, max| {
            Ok(self.base().extents(part, max)?.into_iter().map(|extent| (extent.range, extent.content)).collect())
        })?;
        Ok(found.into_iter().map(|(range, content)| Extent { range, content }).collect())
    }

    /// What the layer zeroed it holds by itself, as QEMU has it of its own images.
    fn depths(&self, range: Range<u64>, max: usize) -> Result<Vec<(Range<u64>, u32)>> {
        self.stretches(
            range,
            max,
            |_| 1,
            |part, max| {
                let deeper = |depth| if depth == 0 { 0 } else { depth + 1 };
                Ok(self.base().depths(part, max)?.into_iter().map(|(range, depth)| (range, deeper(depth))).collect())
            },
        )
    }

    fn prefetch(&self, range: Range<u64>) {
        let untouched = range.start < range.end && self.state_from(range.start / BLOCK_U64).0 == State::Untouched;
        if untouched {
            self.base().prefetch(range);
        }
    }

    /// Unless it has to read a part of a block from below.
    fn writes_swiftly(&self, range: Range<u64>) -> bool {
        let is_own =
            |at: u64| self.map.look(at / BLOCK_U64 / REGION).state(at / BLOCK_U64 % REGION) != State::Untouched;
        let (first, end) = (range.start, range.end);
        (first < end && end <= self.size)
            && (first.is_multiple_of(BLOCK_U64) || is_own(first))
            && (end.is_multiple_of(BLOCK_U64) || is_own(end))
    }

    fn write_at(&self, offset: u64, bytes: &[u8], durability: Durability) -> Result<()> {
        self.settle_debt(self.with_room(|| self.write_owing(offset, bytes, durability))?)
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        self.settle_debt(self.with_room(|| self.zero_owing(range.clone(), how))?)
    }

    fn trim(&self, range: Range<u64>) -> Result<()> {
        self.settle_debt(self.with_room(|| self.trim_owing(range.clone()))?)
    }

    fn flush(&self) -> Result<()> {
        self.verdict.check()?;
        self.round(true)
    }

    fn compare_and_write(&self, offset: u64, expected: &[u8], new: &[u8]) -> Result<Option<usize>> {
        self.finish(self.with_room(|| self.compare_owing(offset, expected, new))?)
    }
}

/// What a request waits for once its contents are in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Debt {
    Nothing,
    Journal,
    Data,
}

/// Requests in two parts: what the barrier of a stack waits for, and the syncs, which it does not. The first part fails for want of
/// space where [`Layer::make_room`] may find some.
impl Layer {
    /// As [`BlockDevice::write_at`], but for syncs.
    pub(super) fn write_owing(&self, offset: u64, bytes: &[u8], durability: Durability) -> Result<Debt> {
        self.check_write(offset, bytes.len() as u64)?;
        self.write(offset, bytes, durability)
    }

    /// As [`BlockDevice::zero`], likewise.
    pub(super) fn zero_owing(&self, range: Range<u64>, how: Zeroing) -> Result<Debt> {
        self.check_write(range.start, range.end.saturating_sub(range.start))?;
        self.zero_range(range, how)
    }

    /// As [`BlockDevice::trim`], likewise.
    pub(super) fn trim_owing(&self, range: Range<u64>) -> Result<Debt> {
        self.check_write(range.start, range.end.saturating_sub(range.start))?;
        self.trim_range(range)
    }

    /// As [`BlockDevice::compare_and_write`], likewise: what it comes to is decided, and [`Layer::finish`] brings it about.
    pub(super) fn compare_owing(&self, offset: u64, expected: &[u8], new: &[u8]) -> Result<Exchange<'_>> {
        if expected.len() != new.len() {
            return Err(Error::invalid("compare-and-write with two lengths"));
        }
        self.check_write(offset, new.len() as u64)?;
        self.exchange(offset, expected, new)
    }

    /// Waits for what a request still owes, and has the journal begin anew when it is time.
    pub(super) fn settle_debt(&self, debt: Debt) -> Result<()> {
        match debt {
            Debt::Nothing => {}
            Debt::Journal => self.round(false)?,
            Debt::Data => self.round(true)?,
        }
        // A journal that is short as well could not begin anew a moment ago: the next round tries again.
        if self.journal.is_due() && !self.journal.is_short() { self.round(true) } else { Ok(()) }
    }

    /// Waits for compare-and-writes under way where `range`, in bytes, is. Others may begin at once: it saves waiting for them later
    /// only.
    pub(super) fn give_way(&self, range: &Range<u64>) {
        if self.exchanges.load(Ordering::Relaxed) > 0 {
            self.locks.pass(range.start / BLOCK_U64 / REGION..range.end.div_ceil(BLOCK_U64 * REGION));
        }
    }

    /// Waits for all compare-and-writes under way. For a layer that takes no new requests: it holds still then.
    pub(super) fn come_to_rest(&self) {
        self.locks.pass(0..self.map.blocks().div_ceil(REGION));
    }

    /// Has the base bring into memory what a write to `range`, in bytes, will read of it: untouched blocks that it covers in part,
    /// or all of them for a comparison.
    pub(super) fn warm(&self, range: &Range<u64>, is_compared: bool) -> Result<()> {
        check_range(self.size, range.start, range.end.saturating_sub(range.start))?;
        for segment in segments(range.start, small(range.end - range.start)) {
            let blocks = match segment {
                Segment::Part { block, .. } => block..block + 1,
                Segment::Whole { region, blocks } if is_compared => {
                    region * REGION + blocks.start..region * REGION + blocks.end
                }
                Segment::Whole { .. } => continue,
            };
            for block in blocks {
                if self.map.look(block / REGION).state(block % REGION) == State::Untouched {
                    self.read_base(block, &mut [0; BLOCK])?;
                }
            }
        }
        Ok(())
    }

    /// Stretches of `range` that are alike, at most `max`: by their state where the layer has one, else as those below are.
    fn stretches<T: Copy + PartialEq>(
        &self,
        range: Range<u64>,
        max: usize,
        own: impl Fn(State) -> T,
        below: impl Fn(Range<u64>, usize) -> Result<Vec<(Range<u64>, T)>>,
    ) -> Result<Vec<(Range<u64>, T)>> {
        check_range(self.size, range.start, range.end.saturating_sub(range.start))?;
        let mut found: Vec<(Range<u64>, T)> = Vec::new();
        let mut at = range.start;
        while at < range.end && found.len() <= max {
            let (state, end) = self.state_from(at / BLOCK_U64);
            let part = at..range.end.min(end.saturating_mul(BLOCK_U64));
            let parts = match state {
                State::Untouched => below(part, max)?,
                state => vec![(part, own(state))],
            };
            let Some((last, _)) = parts.last() else { break };
            at = last.end;
            for (part, what) in parts {
                match found.last_mut() {
                    Some((last, of)) if *of == what => last.end = part.end,
                    _ => found.push((part, what)),
                }
            }
        }
        // One more than asked for says where the last that counts ends.
        found.truncate(max.max(1));
        Ok(found)
    }

    /// What a block is, and up to which one its followers are known to be the same.
    fn state_from(&self, block: u64) -> (State, u64) {
        let region = block / REGION;
        let next = self.map.next(region).unwrap_or_else(|| self.map.blocks().div_ceil(REGION));
        if next > region {
            return (State::Untouched, next * REGION);
        }
        let masks = {
            let _lock = self.locks.read(region);
            self.map.look(region)
        };
        let (state, len) = masks.run(block % REGION, REGION);
        (state, block + len)
    }
}

impl Drop for Layer {
    /// As good as can be: on this boot what was acknowledged is there anyway; this keeps it over an orderly restart of the machine.
    fn drop(&mut self) {
        if self.verdict.check().is_ok() {
            let _ = self.close();
        }
    }
}

/// A part of a range of bytes that is handled at once: part of one block, or whole blocks of one region.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Part { block: u64, within: Range<usize> },
    Whole { region: u64, blocks: Range<u64> },
}

impl Segment {
    fn len(&self) -> usize {
        match self {
            Segment::Part { within, .. } => within.len(),
            Segment::Whole { blocks, .. } => bytes_of(blocks),
        }
    }
}

/// The segments of the `len` bytes at `offset`.
fn segments(offset: u64, len: usize) -> impl Iterator<Item = Segment> {
    let (mut at, end) = (offset, offset + len as u64);
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (block, start) = (at / BLOCK_U64, at % BLOCK_U64);
        if start != 0 || end - at < BLOCK_U64 {
            let within = small(start)..small((end - block * BLOCK_U64).min(BLOCK_U64));
            at += within.len() as u64;
            return Some(Segment::Part { block, within });
        }
        let (region, first) = (block / REGION, block % REGION);
        let blocks = first..(first + (end - at) / BLOCK_U64).min(REGION);
        at += bytes_of(&blocks) as u64;
        Some(Segment::Whole { region, blocks })
    })
}

/// Bytes of the blocks of one region.
fn bytes_of(blocks: &Range<u64>) -> usize {
    small((blocks.end - blocks.start) * BLOCK_U64)
}

/// For numbers that are known to be small.
fn small(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_parts_of_blocks_and_whole_blocks_of_a_region() {
        let part = |block, within| Segment::Part { block, within };
        let whole = |region, blocks| Segment::Whole { region, blocks };
        let of = |offset, len| segments(offset, len).collect::<Vec<_>>();
        assert_eq!(of(0, 0), []);
        assert_eq!(of(512, 512), [part(0, 512..1024)]);
        assert_eq!(of(4000, 200), [part(0, 4000..4096), part(1, 0..104)]);
        assert_eq!(of(0, 4096), [whole(0, 0..1)]);
        assert_eq!(of(62 * 4096, 4 * 4096 + 1), [whole(0, 62..64), whole(1, 0..2), part(66, 0..1)]);
        for (offset, len) in [(1, 999_999), (4095, 2), (262_143, 262_146)] {
            assert_eq!(segments(offset, len).map(|s| s.len()).sum::<usize>(), len);
        }
    }
}
