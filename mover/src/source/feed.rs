//! Windows of a disk that can be read anywhere, for the writer's workers.
//!
//! A window of which the source calls the larger part unchanged is handed out unread, with what may have changed of it: the writer asks
//! for the blocks that it needs. Others are read whole, but for holes.
//!
//! Not here: what a worker does with a window. What holds: windows are handed out in order, each once; no lock is held over
//! I/O: the next window is picked under a lock and read outside it, and one worker at a time looks ahead for extents while
//! those who need its answer wait. Memory: one batch of extents and those of one window, plus the workers' own windows, for a
//! disk of any size.

use super::{Content, RandomDisk, ReadFault, SourceExtent};
use crate::range_list::RangeList;
use crate::runs::{self, BLOCK};
use crate::{Error, Kind, Result};
use coffer_repo::window::{Filled, Window, WindowSource};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard};

/// How many extents are asked for at a time.
const BATCH: usize = 1024;

/// How a disk is fed to the writer.
#[derive(Clone, Copy, Debug)]
pub struct FeedOptions {
    /// The repository's window size in bytes, a multiple of 4096.
    pub window_size: u32,
    /// Record what cannot be read and go on, rather than fail.
    pub keep_going: bool,
}

/// A disk cut into windows.
pub struct WindowFeed<'a> {
    disk: &'a dyn RandomDisk,
    name: &'a str,
    size: u64,
    options: FeedOptions,
    plan: Mutex<Plan>,
    looked: Condvar,
    unreadable: Mutex<RangeList>,
}

/// What is to be handed out next.
#[derive(Default)]
struct Plan {
    /// Where the next window starts.
    at: u64,
    /// Extents from `at` on.
    known: VecDeque<SourceExtent>,
    /// Whether a worker is asking for more of them.
    looking: bool,
}

/// A window, picked.
struct Pick {
    range: Range<u64>,
    extents: Vec<SourceExtent>,
}

impl Plan {
    fn known_to(&self) -> u64 {
        self.known.back().map_or(self.at, |extent| extent.range.end)
    }

    /// Takes the extents up to `end` and goes on there. All of them are known.
    fn take(&mut self, end: u64) -> Pick {
        let range = self.at..end;
        let mut extents = Vec::new();
        while let Some(extent) = self.known.front_mut().filter(|extent| extent.range.start < end) {
            let part = extent.range.start..extent.range.end.min(end);
            extent.range.start = part.end;
            extents.push(SourceExtent { range: part, content: extent.content });
            if extent.range.is_empty() {
                self.known.pop_front();
            }
        }
        self.at = end;
        Pick { range, extents }
    }
}

impl<'a> WindowFeed<'a> {
    /// A feed of `disk`, which messages call `name`.
    pub fn new(disk: &'a dyn RandomDisk, name: &'a str, options: FeedOptions) -> Result<Self> {
        let size = disk.size().map_err(|e| e.within(format!("disk {name}")))?;
        Ok(WindowFeed {
            disk,
            name,
            size,
            options,
            plan: Mutex::default(),
            looked: Condvar::new(),
            unreadable: Mutex::default(),
        })
    }

    /// What could not be read so far, in bytes of the disk.
    pub fn unreadable(&self) -> Result<RangeList> {
        Ok(lock(&self.unreadable)?.clone())
    }

    /// The next window, or `None` after the last.
    fn pick(&self) -> Result<Option<Pick>> {
        let mut plan = lock(&self.plan)?;
        loop {
            if plan.at == self.size {
                return Ok(None);
            }
            let end = plan.at.saturating_add(u64::from(self.options.window_size)).min(self.size);
            let from = plan.known_to();
            if from >= end {
                return Ok(Some(plan.take(end)));
            }
            if plan.looking {
                plan = self.looked.wait(plan).map_err(|_| died())?;
                continue;
            }
            plan.looking = true;
            drop(plan);
            let found = self.look(from);
            plan = lock(&self.plan)?;
            plan.looking = false;
            self.looked.notify_all();
            plan.known.extend(found?);
        }
    }

    fn look(&self, from: u64) -> Result<Vec<SourceExtent>> {
        let range = from..self.size;
        let found = self.disk.extents(range.clone(), BATCH)?;
        runs::check_order(&found, &range, |extent| &extent.range)?;
        Ok(found)
    }

    /// Reads what has to be read of a range; the rest is zero. What could not be read, in bytes of the disk.
    fn read(&self, pick: &Pick, bytes: &mut [u8]) -> Result<Vec<Range<u64>>> {
        let to_read = pick.extents.iter().filter(|e| e.content != Content::Zero).map(|e| e.range.clone());
        let to_read = runs::join(to_read, &pick.range);
        for gap in runs::gaps(&to_read, &pick.range) {
            part(bytes, &pick.range, &gap)?.fill(0);
        }
        let mut lost = Vec::new();
        for run in to_read {
            let out = part(bytes, &pick.range, &run)?;
            match self.disk.read_at(run.start, out) {
                Ok(()) => {}
                Err(ReadFault::Bytes(_)) if self.options.keep_going => self.salvage(run, out, &mut lost)?,
                Err(ReadFault::Bytes(error)) => {
                    return Err(error.within(format!(
                        "bytes {} to {} cannot all be read (keeping going would find out which, and record them as lost)",
                        run.start, run.end
                    )));
                }
                Err(ReadFault::Source(error)) => {
                    return Err(error.within(format!("bytes {} to {}", run.start, run.end)));
                }
            }
        }
        if !lost.is_empty() {
            let mut all = lock(&self.unreadable)?;
            lost.iter().for_each(|range| all.add(range.clone()));
        }
        Ok(lost)
    }

    /// Reads what can be read of a run in which something cannot: halves it down to single blocks.
    fn salvage(&self, run: Range<u64>, out: &mut [u8], lost: &mut Vec<Range<u64>>) -> Result<()> {
        let blocks = (run.end - run.start).div_ceil(BLOCK);
        if blocks <= 1 {
            out.fill(0);
            match lost.last_mut().filter(|last| last.end == run.start) {
                Some(last) => last.end = run.end,
                None => lost.push(run),
            }
            return Ok(());
        }
        let middle = run.start + blocks / 2 * BLOCK;
        let (left, right) = out.split_at_mut(length(&(run.start..middle))?);
        for (half, out) in [(run.start..middle, left), (middle..run.end, right)] {
            match self.disk.read_at(half.start, out) {
                Ok(()) => {}
                Err(ReadFault::Bytes(_)) => self.salvage(half, out, lost)?,
                Err(ReadFault::Source(error)) => {
                    return Err(error.within(format!("bytes {} to {}", half.start, half.end)));
                }
            }
        }
        Ok(())
    }

    fn within(&self, error: Error) -> Error {
        error.within(format!("reading disk {}", self.name))
    }
}

impl Pick {
    /// The blocks that may have changed, counted from the range's start, if most of it did not.
    fn changed(&self) -> Result<Option<Vec<Range<usize>>>> {
        let mut changed = Vec::new();
        for extent in self.extents.iter().filter(|extent| extent.content != Content::Unchanged) {
            changed.push(blocks(&self.range, &extent.range)?);
        }
        let count: usize = changed.iter().map(Range::len).sum();
        let is_few = count <= blocks(&self.range, &self.range)?.len() / 2;
        Ok(is_few.then_some(changed))
    }
}

impl WindowSource for WindowFeed<'_> {
    fn next(&self, window: &mut Window) -> Result<Filled> {
        let Some(pick) = self.pick().map_err(|e| self.within(e))? else { return Ok(Filled::End) };
        let index = pick.range.start / u64::from(self.options.window_size);
        let is_all = |content| pick.extents.iter().all(|extent| extent.content == content);
        if is_all(Content::Zero) {
            return Ok(Filled::Zero(index));
        }
        if is_all(Content::Unchanged) {
            return Ok(Filled::Unchanged(index));
        }
        let len = length(&pick.range)?;
        if let Some(changed) = pick.changed()? {
            window.changed = changed;
            return Ok(Filled::Changed { index, len });
        }
        let lost = self.read(&pick, window.make_room(len)).map_err(|e| self.within(e))?;
        let place =
            |at: u64| u32::try_from(at - pick.range.start).map_err(|_| Error::internal("a window beyond 4 GiB"));
        window.unreadable.clear();
        for range in lost {
            window.unreadable.push(place(range.start)?..place(range.end)?);
        }
        Ok(Filled::Bytes(index))
    }

    fn read_blocks(
        &self,
        index: u64,
        wanted: Range<usize>,
        out: &mut [u8],
        unreadable: &mut Vec<Range<usize>>,
    ) -> Result<()> {
        let window = index * u64::from(self.options.window_size);
        let byte = |block: usize| self.size.min(window + block as u64 * BLOCK);
        let range = byte(wanted.start)..byte(wanted.end);
        let extents = runs::cover(&range, |rest| self.disk.extents(rest, BATCH), |extent| &extent.range);
        let pick = Pick { extents: extents.map_err(|e| self.within(e))?, range };
        for lost in self.read(&pick, out).map_err(|e| self.within(e))? {
            let lost = blocks(&pick.range, &lost)?;
            unreadable.push(wanted.start + lost.start..wanted.start + lost.end);
        }
        Ok(())
    }

    fn size(&self) -> Result<u64> {
        let now = self.disk.size()?;
        if now == self.size {
            return Ok(now);
        }
        Err(Error::new(
            Kind::Unavailable,
            format!(
                "disk {} changed its size from {} to {now} bytes while it was read; run the backup again",
                self.name, self.size
            ),
        ))
    }
}

/// The part of a window's bytes that `range` of the disk is.
fn part<'b>(bytes: &'b mut [u8], window: &Range<u64>, range: &Range<u64>) -> Result<&'b mut [u8]> {
    let (from, to) = (length(&(window.start..range.start))?, length(&(window.start..range.end))?);
    bytes.get_mut(from..to).ok_or_else(|| Error::internal("a run beyond its window"))
}

/// The blocks of `within` that `range` touches, counted from its start.
fn blocks(within: &Range<u64>, range: &Range<u64>) -> Result<Range<usize>> {
    let (from, to) = (range.start - within.start, range.end - within.start);
    Ok(length(&(0..from / BLOCK))?..length(&(0..to.div_ceil(BLOCK)))?)
}

fn length(range: &Range<u64>) -> Result<usize> {
    usize::try_from(range.end - range.start).map_err(|_| Error::internal("a window beyond memory"))
}

fn lock<T>(mutex: &Mutex<T>) -> Result<MutexGuard<'_, T>> {
    mutex.lock().map_err(|_| died())
}

fn died() -> Error {
    Error::internal("a thread died while it picked a window")
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    const WINDOW: u32 = 1 << 20;
    const W: u64 = WINDOW as u64;
    const BLOCK_LEN: usize = 4096;

    /// A disk in which byte `i` is a function of `i`, with extents, bad sectors and counters.
    #[derive(Default)]
    struct TestDisk {
        size: u64,
        extents: Vec<(Range<u64>, Content)>,
        bad: Vec<Range<u64>>,
        gone: bool,
        grown: AtomicU64,
        read: AtomicU64,
        asked: AtomicU64,
    }

    fn byte(at: u64) -> u8 {
        u8::try_from((at / 7 + at / 4096) % 251 + 1).unwrap()
    }

    impl RandomDisk for TestDisk {
        fn size(&self) -> Result<u64> {
            Ok(self.size + self.grown.load(Ordering::Relaxed))
        }

        fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), ReadFault> {
            let end = offset + out.len() as u64;
            assert!(end <= self.size && offset.is_multiple_of(BLOCK), "{offset}..{end}");
            self.read.fetch_add(out.len() as u64, Ordering::Relaxed);
            if self.bad.iter().any(|bad| bad.start < end && offset < bad.end) {
                let error = Error::new(Kind::Unavailable, "bad sector");
                return Err(if self.gone { ReadFault::Source(error) } else { ReadFault::Bytes(error) });
            }
            for (at, out) in (offset..).zip(out) {
                let zero = self.extents.iter().any(|(range, content)| *content == Content::Zero && range.contains(&at));
                *out = if zero { 0 } else { byte(at) };
            }
            Ok(())
        }

        fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<SourceExtent>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let mut found = Vec::new();
            let mut at = range.start;
            while at < range.end && found.len() < max {
                let here = self.extents.iter().find(|(r, _)| r.contains(&at));
                let next = self.extents.iter().map(|(r, _)| r.start).filter(|s| *s > at).min().unwrap_or(range.end);
                let (end, content) = here.map_or((next, Content::Bytes), |(r, content)| (r.end, *content));
                found.push(SourceExtent { range: at..end.min(range.end), content });
                at = end;
            }
            Ok(found)
        }
    }

    fn options(keep_going: bool) -> FeedOptions {
        FeedOptions { window_size: WINDOW, keep_going }
    }

    /// Pulls all windows on several threads: what was handed out, by index.
    fn pull(feed: &WindowFeed<'_>) -> Vec<(Filled, Vec<u8>, Vec<Range<u32>>)> {
        let all = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut window = Window { bytes: vec![0xee; 5], ..Window::default() };
                    loop {
                        let filled = feed.next(&mut window).unwrap();
                        let index = match filled {
                            Filled::Bytes(index) | Filled::Zero(index) | Filled::Unchanged(index) => index,
                            Filled::Changed { index, .. } => index,
                            Filled::End => return,
                        };
                        all.lock().unwrap().push((index, (filled, window.bytes.clone(), window.unreadable.clone())));
                    }
                });
            }
        });
        let mut all = all.into_inner().unwrap();
        all.sort_by_key(|(index, _)| *index);
        assert!((0..).zip(&all).all(|(i, (index, _))| i == *index), "each window once");
        all.into_iter().map(|(_, rest)| rest).collect()
    }

    #[test]
    fn zero_and_unchanged_windows_are_not_read_and_mixed_ones_only_where_needed() {
        let hole = 2 * W + 200_000..3 * W - 200_001;
        let disk = TestDisk {
            size: 6 * W + 100,
            extents: vec![
                (W..2 * W, Content::Zero),
                (hole.clone(), Content::Zero),
                (4 * W..5 * W, Content::Unchanged),
                (5 * W..5 * W + 4096, Content::Unchanged),
            ],
            ..TestDisk::default()
        };
        let feed = WindowFeed::new(&disk, "vda", options(false)).unwrap();
        let windows = pull(&feed);
        let kinds: Vec<Filled> = windows.iter().map(|(filled, ..)| *filled).collect();
        use Filled::{Bytes, Unchanged, Zero};
        assert_eq!(kinds, [Bytes(0), Zero(1), Bytes(2), Bytes(3), Unchanged(4), Bytes(5), Bytes(6)]);
        for (filled, bytes, unreadable) in &windows {
            let Bytes(index) = filled else { continue };
            assert_eq!(bytes.len() as u64, W.min(disk.size - index * W));
            assert!(unreadable.is_empty());
            for (at, got) in (index * W..).zip(bytes) {
                assert_eq!(*got, if hole.contains(&at) { 0 } else { byte(at) }, "byte {at}");
            }
        }
        let holes = W + W + hole.end / BLOCK * BLOCK - hole.start.next_multiple_of(BLOCK);
        assert_eq!(disk.read.load(Ordering::Relaxed), disk.size - holes, "holes were read");
        assert_eq!(feed.size().unwrap(), disk.size);
    }

    #[test]
    fn of_a_window_that_changed_here_and_there_only_what_is_asked_for_is_read() {
        let disk = TestDisk {
            size: 2 * W + 5000,
            extents: vec![
                (0..W / 2, Content::Unchanged),
                (W..W + 8192, Content::Zero),
                (W + 8192..2 * W - 512, Content::Unchanged),
                (2 * W..2 * W + 600, Content::Unchanged),
            ],
            bad: vec![W + 20_480..W + 20_481; 1],
            ..TestDisk::default()
        };
        let feed = WindowFeed::new(&disk, "vda", options(true)).unwrap();
        let mut window = Window::default();
        let mut next = || (feed.next(&mut window).unwrap(), std::mem::take(&mut window.changed));
        let last = WINDOW as usize / BLOCK_LEN;
        let (half, len) = (last / 2, WINDOW as usize);
        assert_eq!(next(), (Filled::Changed { index: 0, len }, vec![half..last]));
        assert_eq!(next(), (Filled::Changed { index: 1, len }, vec![0..2, last - 1..last]));
        assert_eq!(disk.read.load(Ordering::Relaxed), 0);
        assert_eq!(next(), (Filled::Bytes(2), vec![]), "all of its blocks may have changed");
        let before = disk.read.load(Ordering::Relaxed);
        let (mut out, mut lost) = (vec![0; 6 * BLOCK_LEN], vec![7..8]);
        feed.read_blocks(1, 1..7, &mut out, &mut lost).unwrap();
        assert_eq!(lost, [7..8, 5..6]);
        for (at, got) in (W + BLOCK..).zip(&out) {
            let is_zero = at < W + 8192 || (W + 20_480..W + 24_576).contains(&at);
            assert_eq!(*got, if is_zero { 0 } else { byte(at) }, "byte {at}");
        }
        assert!(disk.read.load(Ordering::Relaxed) > before);
        assert_eq!(feed.unreadable().unwrap().ranges(), [W + 20_480..W + 24_576]);
        // The disk's end within a block: the rest of it stays zero.
        let mut out = vec![0; BLOCK_LEN];
        feed.read_blocks(2, 1..2, &mut out, &mut lost).unwrap();
        assert!(out[..5000 - 4096].iter().zip(2 * W + 4096..).all(|(got, at)| *got == byte(at)));
        assert!(out[5000 - 4096..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_huge_empty_disk_is_asked_about_once() {
        let size = 64 << 40;
        let disk = TestDisk { size, extents: vec![(0..size, Content::Zero)], ..TestDisk::default() };
        let feed = WindowFeed::new(&disk, "vda", FeedOptions { window_size: 1 << 30, keep_going: false }).unwrap();
        assert_eq!(pull(&feed).len(), 64 << 10);
        assert_eq!(disk.asked.load(Ordering::Relaxed), 1);
        assert_eq!(disk.read.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn unreadable_blocks_are_found_exactly_when_told_to_keep_going() {
        let bad = vec![10_000..10_001, W - 512..W + 1, 2 * W + 8192..2 * W + 16384, 3 * W + 50..3 * W + 60];
        let disk = TestDisk { size: 3 * W + 100, bad, ..TestDisk::default() };
        let feed = WindowFeed::new(&disk, "vda", options(true)).unwrap();
        let windows = pull(&feed);
        let lost: Vec<_> = windows.iter().map(|(_, _, unreadable)| unreadable.clone()).collect();
        let last = WINDOW - 4096;
        assert_eq!(lost, [vec![8192..12288, last..WINDOW], vec![0..4096], vec![8192..16384], vec![0..100]]);
        let want = [8192..12288, W - 4096..W + 4096, 2 * W + 8192..2 * W + 16384, 3 * W..3 * W + 100];
        assert_eq!(feed.unreadable().unwrap().ranges(), want);
        for (window, (_, bytes, _)) in (0..).zip(&windows) {
            for (at, got) in (window * W..).zip(bytes) {
                assert_eq!(*got, if want.iter().any(|r| r.contains(&at)) { 0 } else { byte(at) }, "byte {at}");
            }
        }
    }

    #[test]
    fn a_failed_read_names_disk_and_bytes_and_a_lost_source_is_never_salvaged() {
        for (gone, keep_going) in [(false, false), (true, false), (true, true)] {
            let disk = TestDisk { size: 2 * W, bad: vec![W + 5..W + 6; 1], gone, ..TestDisk::default() };
            let feed = WindowFeed::new(&disk, "vda", options(keep_going)).unwrap();
            let mut window = Window::default();
            assert_eq!(feed.next(&mut window).unwrap(), Filled::Bytes(0));
            let error = feed.next(&mut window).unwrap_err().to_string();
            assert!(error.starts_with("reading disk vda: bytes 1048576 to 2097152"), "{error}");
        }
    }

    #[test]
    fn a_changed_size_fails_the_run() {
        let disk = TestDisk { size: W, ..TestDisk::default() };
        let feed = WindowFeed::new(&disk, "vda", options(false)).unwrap();
        assert_eq!(feed.size().unwrap(), W);
        disk.grown.store(512, Ordering::Relaxed);
        let error = feed.size().unwrap_err().to_string();
        assert!(error.contains("vda") && error.contains("1049088"), "{error}");
    }
}
