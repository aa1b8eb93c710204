//! CONDUCTOR of reads: a range of a disk -> its leaf -> its chunks -> cache, or pack -> frame -> decompress -> check -> bytes.
//!
//! ```text
//!   DiskReader::read_at
//!     nodes     which chunks (leaf of each window; hints say where)
//!     cache     plaintext chunks, byte budget, one flight per missing chunk
//!     fetch     neighbours in one pack by one GET; open frame, decompress, check id       (caller's thread and the pool)
//!     detour    what does not lie where its leaf says: from where it lies now, or by parity
//!     readahead sequential streams fetch ahead, under one budget for the process
//!     straight  long reads of a crowd expand in place, past the cache
//! ```
//!
//! Not here: the index, which reading does not need. What holds: a frame is authenticated and a chunk's id checked before its
//! bytes are used for the first time; damage is an error that names object, offset, disk and range, and never zeroes; memory is
//! the cache budget plus the readahead budget plus what callers hold, and a run of frames for each thread (1 MiB at most). No lock is held over I/O.

mod fetch;
mod pool;
mod readahead;
mod straight;

pub use crate::detour::Remedy;
use crate::disk_map::{Geometry, Leaf, LeafContent, LeafEntry};
use crate::error::{Error, Kind, Result};
use crate::id::PackUid;
use crate::nodes::{Nodes, Root};
use crate::repository::Repository;
use crate::snapshot::Snapshot;
pub(crate) use fetch::Want;
use fetch::{Chunk, Fetcher};
use readahead::{Read, Streams};
use std::ops::Range;
use std::sync::Arc;

/// Budgets of a [`Reader`].
#[derive(Clone, Copy, Debug)]
pub struct ReaderOptions {
    /// Bytes of plaintext chunks kept.
    pub cache_bytes: u64,
    /// Bytes that may be on their way ahead of sequential readers, for all of them together: half of it for one, and three eighths of
    /// `cache_bytes` at most.
    pub readahead_bytes: u64,
    /// Threads that fetch ahead and help with long reads. While they mostly wait for the store there are more: as many as the
    /// readahead has pieces of a MiB, or eight times as many. One stays alone.
    pub threads: usize,
}

/// Packs of a window that are opened before its chunks are fetched.
const PREPARED: usize = 4;
/// Threads that wait for a store, for each one that works, at most.
const WAITING: usize = 8;
/// Threads of a reader, however large its budgets are.
const MOST_THREADS: usize = 256;

impl Default for ReaderOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, 16);
        ReaderOptions { cache_bytes: 64 << 20, readahead_bytes: 48 << 20, threads }
    }
}

/// How many threads fetch.
fn pool_size(options: &ReaderOptions) -> pool::Size {
    let ahead = usize::try_from(options.readahead_bytes / readahead::PIECE).unwrap_or(usize::MAX);
    let most = match options.threads {
        0 | 1 => 1,
        least => least.saturating_mul(WAITING).max(ahead).min(MOST_THREADS),
    };
    pool::Size { least: options.threads, most }
}

/// Bytes of decoded nodes kept beside the chunks.
const NODE_CACHE: u64 = 16 << 20;

/// Reads disks of one repository; all its disks share caches, threads and budgets.
pub struct Reader {
    nodes: Nodes,
    fetcher: Fetcher,
    pool: pool::Pool,
    readahead: readahead::Budget,
    geometry: Geometry,
    crowd: straight::Crowd,
}

/// What a stretch of a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapContent {
    /// Stored chunks.
    Data,
    /// Reads as zeroes.
    Zero,
    /// The source could not be read here.
    Unreadable,
}

/// A stretch of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapExtent {
    /// In bytes.
    pub range: Range<u64>,
    /// What it is.
    pub content: MapContent,
}

/// One disk of one snapshot.
pub struct DiskReader {
    reader: Arc<Reader>,
    map: Arc<Map>,
    streams: Streams,
}

/// What finding a disk's chunks takes; shared with the jobs that fetch ahead.
struct Map {
    /// "disk 'root' of web@2026-...": for errors.
    title: String,
    root: Root,
    size: u64,
    block_size: u32,
}

/// A chunk, or a part of one, that a read needs.
struct Part {
    want: Want,
    /// Of the chunk's bytes.
    from: usize,
    /// Into the caller's buffer.
    into: Range<usize>,
    /// On the disk, for errors.
    at: u64,
}

impl Reader {
    /// A reader with budgets of its own.
    pub fn new(repo: Arc<Repository>, options: ReaderOptions) -> Result<Arc<Self>> {
        let nodes = Nodes::new(Arc::clone(&repo), NODE_CACHE)?;
        Ok(Arc::new(Reader {
            geometry: repo.geometry(),
            crowd: straight::Crowd::new(options.threads),
            fetcher: Fetcher::new(repo, options.cache_bytes, Arc::clone(nodes.detours()))?,
            nodes,
            pool: pool::Pool::start(pool_size(&options))?,
            readahead: readahead::Budget::new(options.readahead_bytes, options.cache_bytes),
        }))
    }

    /// Has `tell` called, once a damaged pack and remedy and from any thread, with the name of a pack whose content was read all
    /// the same. The first to ask is served.
    pub fn on_damage(&self, tell: impl Fn(&str, Remedy) + Send + Sync + 'static) {
        self.nodes.detours().on_damage(Box::new(tell));
    }

    /// How many chunks and nodes did not lie, or not whole, where the maps say and were read all the same.
    #[must_use]
    pub fn detours(&self) -> u64 {
        self.nodes.detours().taken()
    }

    /// Opens a disk of a snapshot. Fetches nothing: the root lies in the claim.
    pub fn disk(self: &Arc<Self>, snapshot: &Snapshot, name: &str) -> Result<DiskReader> {
        let disk = snapshot.disk(name)?;
        let title = format!("disk '{name}' of {}@{}", snapshot.workload, snapshot.time());
        let root = Root::of(disk, self.geometry).map_err(|e| e.within(&title))?;
        let map = Map { title, root, size: disk.size, block_size: disk.block_size };
        Ok(DiskReader { reader: Arc::clone(self), map: Arc::new(map), streams: Streams::default() })
    }
}

impl DiskReader {
    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.map.size
    }

    /// Logical block size in bytes.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.map.block_size
    }

    /// Fills `out` from byte `offset` on. Ranges beyond the disk are `Invalid`.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.check(offset, out.len())?;
        let mut read = Read { offset, len: out.len() as u64, has_waited: false };
        if self.copy_cached(offset, out)? {
            self.read_ahead(read);
            return Ok(());
        }
        let place = self.reader.crowd.enter();
        // From far away fetching ahead gains more than copies cost.
        let is_straight = place.is_straight(out.len()) && !self.reader.pool.is_far();
        if !is_straight {
            read.has_waited = true;
            self.read_ahead(read);
        }
        let mut parts = self.reader.parts(&self.map, offset, out, true)?.unwrap_or_default();
        if is_straight {
            parts = self.reader.expand_straight(parts, out);
        }
        let wants: Vec<Want> = parts.iter().map(|p| p.want).collect();
        let chunks = self.reader.fetch_all(&wants);
        for (part, chunk) in parts.iter().zip(chunks) {
            let chunk = chunk.map_err(|e| self.map.place(e, part.at, part.into.len()))?;
            copy_part(part, &chunk, out)?;
        }
        Ok(())
    }

    /// As [`DiskReader::read_at`] from memory only; `false`: something would have to be fetched, and `out` is undefined.
    pub fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        self.check(offset, out.len())?;
        let done = self.copy_cached(offset, out)?;
        if done {
            self.read_ahead(Read { offset, len: out.len() as u64, has_waited: false });
        }
        Ok(done)
    }

    /// Stretches that cover `range` from its start on, in order, without gaps and merged, at most `max` of them (at least one
    /// for a range that is not empty), so perhaps less than all of it.
    pub fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<MapExtent>> {
        let len = range.end.checked_sub(range.start).unwrap_or(u64::MAX);
        self.check(range.start, usize::try_from(len).unwrap_or(usize::MAX))?;
        let mut extents = Extents { found: Vec::new(), at: range.start, end: range.end, max: max.max(1) };
        let window_len = self.reader.geometry.window;
        while extents.wants_more() {
            let nodes = &self.reader.nodes;
            let window =
                nodes.next_window(&self.map.root, extents.at / window_len).map_err(|e| e.within(&self.map.title))?;
            let Some(window) = window.filter(|w| w.saturating_mul(window_len) < range.end) else {
                extents.push(range.end, MapContent::Zero);
                break;
            };
            let base = window * window_len;
            extents.push(base, MapContent::Zero);
            if let Some(found) = nodes.leaf(&self.map.root, window).map_err(|e| e.within(&self.map.title))? {
                for entry in &found.leaf()?.entries {
                    if !extents.wants_more() {
                        break;
                    }
                    extents.push(base + entry.start_bytes(), MapContent::Zero);
                    let content = match entry.content {
                        LeafContent::Chunk { .. } => MapContent::Data,
                        LeafContent::Unreadable => MapContent::Unreadable,
                    };
                    extents.push(base + entry.end_bytes(), content);
                }
            }
            extents.push(base.saturating_add(window_len), MapContent::Zero);
        }
        Ok(extents.found)
    }

    /// As [`DiskReader::extents`], but everything is read, and what is damaged beyond help counts as `Unreadable`: whole chunks,
    /// and whole windows where the map is damaged. For whoever wants what is left; memory is the chunks of a window.
    pub fn readable_extents(&self, range: Range<u64>, max: usize) -> Result<Vec<MapExtent>> {
        let len = range.end.checked_sub(range.start).unwrap_or(u64::MAX);
        self.check(range.start, usize::try_from(len).unwrap_or(usize::MAX))?;
        let mut extents = Extents { found: Vec::new(), at: range.start, end: range.end, max: max.max(1) };
        let (nodes, window_len) = (&self.reader.nodes, self.reader.geometry.window);
        while extents.wants_more() {
            let here = extents.at / window_len;
            let window = match nodes.next_window(&self.map.root, here) {
                Ok(window) => window.unwrap_or(u64::MAX),
                Err(e) if e.kind() == Kind::Corrupt => here,
                Err(e) => return Err(e.within(&self.map.title)),
            };
            let base = window.saturating_mul(window_len);
            extents.push(base, MapContent::Zero);
            if !extents.wants_more() {
                break;
            }
            let end = base.saturating_add(window_len);
            match nodes.leaf(&self.map.root, window) {
                Ok(Some(found)) => self.read_window(found.leaf()?, base, &mut extents)?,
                Ok(None) => {}
                Err(e) if e.kind() == Kind::Corrupt => extents.push(end, MapContent::Unreadable),
                Err(e) => return Err(e.within(&self.map.title)),
            }
            extents.push(end, MapContent::Zero);
        }
        Ok(extents.found)
    }

    /// Reads the chunks of a window that lie in the range asked for.
    fn read_window(&self, leaf: &Leaf, base: u64, extents: &mut Extents) -> Result<()> {
        let (first, end) = (leaf.first_after(extents.at.saturating_sub(base)), extents.end);
        let entries = leaf.entries.get(first..).unwrap_or_default();
        let count = entries.partition_point(|entry| base + entry.start_bytes() < end);
        let entries = entries.get(..count).unwrap_or_default();
        let wants: Vec<Want> = entries.iter().filter_map(Want::of).collect();
        let mut chunks = self.reader.fetch_all(&wants).into_iter();
        for entry in entries {
            extents.push(base + entry.start_bytes(), MapContent::Zero);
            let content = match entry.content {
                LeafContent::Unreadable => MapContent::Unreadable,
                LeafContent::Chunk { .. } => match chunks.next() {
                    Some(Ok(_)) => MapContent::Data,
                    Some(Err(e)) if e.kind() == Kind::Corrupt => MapContent::Unreadable,
                    Some(Err(e)) => return Err(self.map.place(e, base + entry.start_bytes(), 0)),
                    None => return Err(Error::internal("a chunk was asked for and forgotten")),
                },
            };
            extents.push(base + entry.end_bytes(), content);
        }
        Ok(())
    }

    /// Starts fetching `range` into the cache, as far as the readahead budget allows. Returns at once.
    pub fn prefetch(&self, range: Range<u64>) {
        let end = range.end.min(self.map.size);
        if range.start < end {
            self.reader.fetch_ahead(&self.map, range.start..end);
        }
    }

    fn check(&self, offset: u64, len: usize) -> Result<()> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.map.size => Ok(()),
            _ => Err(Error::invalid(format!(
                "{len} bytes at offset {offset} lie beyond {}, which has {} bytes",
                self.map.title, self.map.size
            ))),
        }
    }

    /// Copies from memory; `false` when a node or chunk is not there.
    fn copy_cached(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        let Some(parts) = self.reader.parts(&self.map, offset, out, false)? else { return Ok(false) };
        for part in &parts {
            let Some(chunk) = self.reader.fetcher.cached(&part.want) else { return Ok(false) };
            copy_part(part, &chunk, out)?;
        }
        Ok(true)
    }

    fn read_ahead(&self, read: Read) {
        if let Some(range) = self.streams.advance(read, self.map.size, self.reader.readahead.window()) {
            let taken = self.reader.fetch_ahead(&self.map, range.clone());
            self.streams.fetched_to(range.start, taken);
        }
    }
}

impl Reader {
    /// A chunk, wherever it lies now.
    pub(crate) fn chunk(&self, want: &Want) -> Result<Vec<u8>> {
        let chunk = self.pool.here(1, |scratch| self.fetcher.fetch(std::slice::from_ref(want), scratch)).pop();
        chunk.unwrap_or_else(|| Err(Error::internal("a chunk was asked for and forgotten"))).map(|chunk| chunk.to_vec())
    }

    /// The chunks that `out`, at `offset` of the disk, is made of. Fills the zero ranges of `out` on the way. `Ok(None)`: a node
    /// would have to be fetched and `fetch` is false.
    fn parts(&self, map: &Map, offset: u64, out: &mut [u8], fetch: bool) -> Result<Option<Vec<Part>>> {
        let mut parts = Vec::new();
        let end = offset + out.len() as u64;
        let mut at = offset;
        while at < end {
            let window = at / self.geometry.window;
            let base = window * self.geometry.window;
            let window_end = base.saturating_add(self.geometry.window).min(end);
            let found = if fetch {
                self.pool.waiting(|| self.nodes.leaf(&map.root, window)).map_err(|e| map.place(e, at, 0))?
            } else {
                match self.nodes.cached_leaf(&map.root, window)? {
                    Some(found) => found,
                    None => return Ok(None),
                }
            };
            if let Some(found) = &found {
                let leaf = found.leaf()?;
                for entry in leaf.entries.get(leaf.first_after(at - base)..).unwrap_or_default() {
                    let start = base + entry.start_bytes();
                    if start >= window_end {
                        break;
                    }
                    zero(out, offset, at..start);
                    let from = start.max(at);
                    at = (base + entry.end_bytes()).min(window_end);
                    parts.push(map.part(entry, start, from..at, offset)?);
                }
            }
            zero(out, offset, at..window_end);
            at = window_end;
        }
        Ok(Some(parts))
    }

    /// Fetches chunks: the first run of neighbours in the caller's thread, the others in the pool meanwhile.
    fn fetch_all(self: &Arc<Self>, wants: &[Want]) -> Vec<Result<Chunk>> {
        let runs = fetch::runs(wants, fetch::RUN);
        let (first, others) = match runs.split_first() {
            Some((first, others)) => (first, others),
            None => return Vec::new(),
        };
        let waiting: Vec<_> = others
            .iter()
            .map(|run| {
                let (reader, taken) = (Arc::clone(self), wants.get(run.clone()).unwrap_or_default().to_vec());
                (run.len(), self.pool.ask(move |scratch| reader.fetcher.fetch(&taken, scratch)))
            })
            .collect();
        let taken = wants.get(first.clone()).unwrap_or_default();
        let mut chunks = self.pool.here(first.len(), |scratch| self.fetcher.fetch(taken, scratch));
        for (due, answer) in waiting {
            chunks.extend(answer.wait(due));
        }
        chunks
    }

    /// Hands stretches of `range` to the pool while the budget lasts; returns the end of what was handed out.
    fn fetch_ahead(self: &Arc<Self>, map: &Arc<Map>, range: Range<u64>) -> u64 {
        let (first, last) = (range.start / self.geometry.window, range.end.saturating_sub(1) / self.geometry.window);
        if self.pool.is_far() && (first < last || range.start.is_multiple_of(self.geometry.window)) {
            let (reader, map) = (Arc::clone(self), Arc::clone(map));
            self.pool.tell(move |scratch| drop(reader.prepare(&map, last + 1, scratch)));
        }
        let mut at = range.start;
        while at < range.end {
            let end = (at - at % readahead::PIECE + readahead::PIECE).min(range.end);
            let Some(ticket) = self.readahead.take(end - at) else { break };
            let (reader, map, piece, ticket) = (Arc::clone(self), Arc::clone(map), at..end, Arc::new(ticket));
            let handed = self.pool.tell(move |scratch| {
                // Advice: what fails here fails again, loudly, for the one who reads it.
                let _ = reader.fetch_piece(&map, piece, &ticket, scratch);
            });
            if !handed {
                break;
            }
            at = end;
        }
        at
    }

    /// Fetches what it takes before the chunks of a window can be: its leaf, and the keys of the packs it begins with. From far away
    /// each of them would stop a stream that fetches it when it gets there.
    fn prepare(&self, map: &Map, window: u64, scratch: &mut fetch::Scratch) -> Result<()> {
        let Some(found) = scratch.waiting(|| self.nodes.leaf(&map.root, window))? else { return Ok(()) };
        let mut packs: Vec<PackUid> =
            found.leaf()?.entries.iter().filter_map(Want::of).map(|want| want.at.pack).collect();
        packs.dedup();
        packs.into_iter().take(PREPARED).try_for_each(|pack| scratch.waiting(|| self.fetcher.pack(pack)).map(drop))
    }

    /// Fetches a piece, here or, from far away, as many runs of it as find room in the pool side by side: one after the other each would
    /// wait for the store.
    fn fetch_piece(
        self: &Arc<Self>,
        map: &Map,
        piece: Range<u64>,
        ticket: &Arc<readahead::Ticket>,
        scratch: &mut fetch::Scratch,
    ) -> Result<()> {
        let is_far = self.pool.is_far();
        let longest = if is_far { fetch::LONG_RUN } else { fetch::RUN };
        let mut at = piece.start;
        while at < piece.end {
            let window = at / self.geometry.window;
            let base = window * self.geometry.window;
            let window_end = base.saturating_add(self.geometry.window).min(piece.end);
            if let Some(found) = scratch.waiting(|| self.nodes.leaf(&map.root, window))? {
                let leaf = found.leaf()?;
                let entries = leaf.entries.get(leaf.first_after(at - base)..).unwrap_or_default();
                let within = entries.iter().take_while(|e| base + e.start_bytes() < window_end);
                let wants: Vec<Want> =
                    within.filter_map(Want::of).filter(|w| self.fetcher.cached(w).is_none()).collect();
                let mut here = Vec::new();
                for run in fetch::runs(&wants, longest) {
                    let run = wants.get(run).unwrap_or_default();
                    if here.is_empty() || !is_far || !self.fetch_aside(run, ticket) {
                        here.push(run);
                    }
                }
                for run in here {
                    for chunk in self.fetcher.fetch(run, scratch) {
                        chunk?;
                    }
                }
            }
            at = window_end;
        }
        Ok(())
    }

    /// Hands a run that is fetched ahead to another thread; `false` when there is no room.
    fn fetch_aside(self: &Arc<Self>, run: &[Want], ticket: &Arc<readahead::Ticket>) -> bool {
        let (reader, run, ticket) = (Arc::clone(self), run.to_vec(), Arc::clone(ticket));
        self.pool.tell(move |scratch| {
            drop(reader.fetcher.fetch(&run, scratch));
            drop(ticket);
        })
    }
}

impl Map {
    /// The part of `entry`, which begins at byte `start` of the disk, that covers `range` of it.
    fn part(&self, entry: &LeafEntry, start: u64, range: Range<u64>, offset: u64) -> Result<Part> {
        let want = Want::of(entry).ok_or_else(|| {
            let e = Error::corrupt("its source could not be read here when it was backed up");
            self.place(e, range.start, 0)
        })?;
        let index = |n: u64| usize::try_from(n).map_err(|_| Error::internal("a read longer than memory"));
        let into = index(range.start - offset)?..index(range.end - offset)?;
        Ok(Part { want, from: index(range.start - start)?, into, at: range.start })
    }

    /// Says where on which disk an error struck.
    fn place(&self, e: Error, at: u64, len: usize) -> Error {
        match len {
            0 => e.within(format_args!("{} at byte {at}", self.title)),
            len => e.within(format_args!("{} bytes {at} to {}", self.title, at + len as u64)),
        }
    }
}

impl Part {
    /// Whether it is the whole of its chunk.
    fn is_whole(&self) -> bool {
        self.from == 0 && self.into.len() == self.want.at.raw_len as usize
    }
}

fn copy_part(part: &Part, chunk: &[u8], out: &mut [u8]) -> Result<()> {
    let into = out.get_mut(part.into.clone());
    let from = chunk.get(part.from..part.from + part.into.len());
    match (into, from) {
        (Some(into), Some(from)) => into.copy_from_slice(from),
        _ => return Err(Error::internal("a chunk shorter than its entry")),
    }
    Ok(())
}

/// Zeroes the bytes of `out`, which begins at `offset`, that lie in `range`; nothing when the range is empty.
fn zero(out: &mut [u8], offset: u64, range: Range<u64>) {
    let index = |n: u64| usize::try_from(n.saturating_sub(offset)).unwrap_or(usize::MAX);
    if range.start < range.end
        && let Some(part) = out.get_mut(index(range.start)..index(range.end))
    {
        part.fill(0);
    }
}

/// Collects extents, merging neighbours.
struct Extents {
    found: Vec<MapExtent>,
    at: u64,
    end: u64,
    max: usize,
}

impl Extents {
    /// Whether part of the range is not covered yet. When `max` extents are complete, the range is cut short where the next
    /// one would begin.
    fn wants_more(&self) -> bool {
        self.at < self.end
    }

    /// Everything up to `to` that was not reported yet is `content`.
    fn push(&mut self, to: u64, content: MapContent) {
        let to = to.min(self.end);
        if to <= self.at {
            return;
        }
        let full = self.found.len() == self.max;
        match self.found.last_mut() {
            Some(last) if last.content == content => last.range.end = to,
            _ if full => {
                self.end = self.at;
                return;
            }
            _ => self.found.push(MapExtent { range: self.at..to, content }),
        }
        self.at = to;
    }
}
