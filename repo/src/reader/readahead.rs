//! Notices sequential readers and says what to fetch ahead of them, under one budget.
//!
//! Not here: fetching. What holds: bytes on their way ahead never exceed the budget of the process, however many disks and
//! readers there are; a random reader costs one short lock and fetches nothing ahead.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// What one job fetches, in bytes of the disk, aligned.
pub(super) const PIECE: u64 = 1 << 20;
/// First window of a stream that turned out sequential.
const FIRST: u64 = 1 << 20;
/// How far a read may lie from where its stream ended, either way: kernels and parallel clients reorder.
const TOLERANCE: u64 = 1 << 20;
/// Streams that one disk is watched for.
const STREAMS: usize = 16;

/// Bytes that may be on their way, for all disks of a reader.
pub(super) struct Budget {
    most: u64,
    /// Largest window of a stream.
    window: u64,
    taken: Arc<AtomicU64>,
}

/// A part of the budget; given back when dropped.
pub(super) struct Ticket {
    bytes: u64,
    taken: Arc<AtomicU64>,
}

impl Budget {
    /// `cache` is what keeps what came until it is read.
    pub(super) fn new(most: u64, cache: u64) -> Self {
        // So that one reader never leaves nothing to the others, and what came is not evicted before it is read: half of the cache is
        // for what is new.
        let window = (most / 2).min(cache / 8 * 3).max(FIRST);
        Budget { most, window, taken: Arc::default() }
    }

    /// Largest window of a stream.
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    pub(super) fn take(&self, bytes: u64) -> Option<Ticket> {
        let fits = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= self.most);
        self.taken.fetch_update(Relaxed, Relaxed, fits).ok()?;
        Some(Ticket { bytes, taken: Arc::clone(&self.taken) })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes, Relaxed);
    }
}

/// A read, as far as it tells what comes next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    /// In bytes of the disk.
    pub(super) offset: u64,
    /// In bytes.
    pub(super) len: u64,
    /// Whether something had to be fetched for it: then not enough was fetched ahead.
    pub(super) has_waited: bool,
}

/// The readers of one disk, as far as they can be told apart.
#[derive(Default)]
pub(super) struct Streams(Mutex<Vec<Stream>>);

#[derive(Clone, Copy)]
struct Stream {
    /// End of the last read.
    next: u64,
    /// How far to fetch ahead; 0 for a reader that was seen once.
    window: u64,
    /// End of what was handed out.
    ahead: u64,
}

impl Streams {
    /// Takes note of a read of a disk of `size` bytes; the range to fetch ahead of it, if any. A stream's window grows fourfold, up to
    /// `most`, whenever its reader had to wait: so it comes to hold what the reader reads while a fetch takes its time, whether
    /// the store is far away or the reader fast.
    pub(super) fn advance(&self, read: Read, size: u64, most: u64) -> Option<Range<u64>> {
        let Read { offset, len, has_waited } = read;
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let end = offset.saturating_add(len);
        let near = |s: &Stream| match s.window {
            0 => s.next == offset,
            _ => s.next.saturating_sub(TOLERANCE) <= offset && offset <= s.next.saturating_add(TOLERANCE),
        };
        // Most recently used first.
        let Some(i) = streams.iter().position(near) else {
            streams.truncate(STREAMS - 1);
            streams.insert(0, Stream { next: end, window: 0, ahead: end });
            return None;
        };
        streams.get_mut(..=i)?.rotate_right(1);
        let stream = streams.first_mut()?;
        stream.next = stream.next.max(end);
        let is_new = stream.window == 0;
        if is_new || has_waited {
            stream.window = (stream.window * 4).clamp(FIRST, most.max(FIRST));
        }
        // Piece by piece, so that what is on its way stays a whole window: asked for by halves of it, the next would come when the
        // last of the half before does, and leave the line idle in between.
        let target = stream.next.saturating_add(stream.window);
        let start = stream.ahead.max(end);
        if !is_new && start.saturating_add(PIECE.min(stream.window / 2)) > target {
            return None;
        }
        let whole = target - target % PIECE;
        let target = if whole > start { whole } else { target }.min(size);
        (start < target).then_some(start..target)
    }

    /// Only up to `to` was handed out of the range that began at `start`.
    pub(super) fn fetched_to(&self, start: u64, to: u64) {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) =
            streams.iter_mut().find(|s| s.ahead.max(s.next) >= start && s.next.saturating_sub(s.window) <= start)
        {
            stream.ahead = stream.ahead.max(to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 30;
    const MOST: u64 = 8 << 20;

    /// Reads, and waits for it.
    fn read(streams: &Streams, offset: u64, len: u64) -> Option<Range<u64>> {
        streams.advance(Read { offset, len, has_waited: true }, SIZE, MOST)
    }

    #[test]
    fn a_sequential_reader_is_kept_ahead_of() {
        let streams = Streams::default();
        let mut ahead = 0;
        for i in 0..2000u64 {
            let offset = i * 65_536;
            if i > 64 {
                assert!(ahead > offset, "read {i} was not fetched ahead");
            }
            if let Some(range) = read(&streams, offset, 65_536) {
                assert!(range.start >= ahead && range.end <= SIZE && range.end - range.start <= MOST, "{range:?}");
                ahead = range.end;
                streams.fetched_to(range.start, range.end);
            }
        }
    }

    #[test]
    fn random_readers_fetch_nothing_ahead() {
        let streams = Streams::default();
        let (mut at, mut asked) = (1u64, 0);
        for _ in 0..10_000 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let offset = (at >> 34) << 12;
            asked += read(&streams, offset % SIZE, 4096).map_or(0, |range| range.end - range.start);
        }
        assert!(streams.0.lock().unwrap().len() <= STREAMS);
        // Reads next to each other by chance may look like a stream now and then: 40 MiB were read.
        assert!(asked < 40 << 20, "{asked} bytes fetched ahead of random reads");
    }

    #[test]
    fn several_sequential_readers_are_told_apart() {
        let streams = Streams::default();
        let mut asked = [0u64; 8];
        for i in 0..200u64 {
            for (k, asked) in asked.iter_mut().enumerate() {
                let base = k as u64 * (100 << 20);
                if let Some(range) = read(&streams, base + i * 4096, 4096) {
                    streams.fetched_to(range.start, range.end);
                    *asked += range.end - range.start;
                }
            }
        }
        assert!(asked.iter().all(|a| *a >= FIRST), "{asked:?}");
    }

    #[test]
    fn the_budget_is_kept_and_given_back() {
        let budget = Budget::new(3 * PIECE, MOST);
        let tickets: Vec<_> = (0..5).filter_map(|_| budget.take(PIECE)).collect();
        assert_eq!(tickets.len(), 3);
        drop(tickets);
        assert!(budget.take(3 * PIECE).is_some());
    }

    #[test]
    fn the_window_grows_while_the_reader_waits_and_no_longer() {
        let streams = Streams::default();
        let mut ahead = 0;
        let mut window = |i: u64, has_waited: bool| {
            let read = Read { offset: i * PIECE, len: PIECE, has_waited };
            if let Some(range) = streams.advance(read, SIZE, MOST) {
                streams.fetched_to(range.start, range.end);
                ahead = range.end;
            }
            ahead.saturating_sub((i + 1) * PIECE)
        };
        let waiting: Vec<u64> = (0..6).map(|i| window(i, true)).collect();
        assert_eq!(waiting, [0, FIRST, 4 * FIRST, MOST, MOST, MOST]);
        assert!((6..100).all(|i| window(i, false) == MOST));
        let calm = Streams::default();
        let far =
            (0..100).filter_map(|i| calm.advance(Read { offset: i * 4096, len: 4096, has_waited: false }, SIZE, MOST));
        assert!(far.map(|range| range.end - range.start).max() <= Some(FIRST));
    }

    #[test]
    fn the_end_of_a_disk_is_fetched_ahead_too() {
        let streams = Streams::default();
        let size = 10 * PIECE + 5000;
        let mut ahead = 0;
        for i in 0..10 {
            if let Some(range) = streams.advance(Read { offset: i * PIECE, len: PIECE, has_waited: true }, size, MOST) {
                streams.fetched_to(range.start, range.end);
                ahead = range.end;
            }
        }
        assert_eq!(ahead, size);
    }
}
