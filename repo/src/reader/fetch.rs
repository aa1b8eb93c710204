//! Fetches chunks: one GET for neighbours in one pack, then open, decompress, check, and keep.
//!
//! Not here: which chunks a range of a disk needs, and where else a chunk may lie ([`crate::detour`]). What holds: a chunk
//! enters the cache only after its frame was authenticated and its id checked; a chunk that several callers miss at once is
//! fetched into the cache by one of them; a failure fails the chunks it struck and no others, and is not remembered.

use crate::cache::Weighed;
use crate::detour::Detours;
use crate::disk_map::{Hint, LeafContent, LeafEntry};
use crate::error::{Error, Kind, Result};
use crate::id::{ChunkId, PackUid};
use crate::location::{Location, PackKind, Stored};
use crate::nodes::missing_is_corrupt;
use crate::pack::OpenPack;
use crate::repository::Repository;
use crate::seal::Decompressor;
use quick_cache::sync::{Cache, GuardResult, PlaceholderGuard};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many data packs' keys are kept: unwrapping one costs a GET and about 100 microseconds.
const OPEN_PACKS: usize = 4096;
/// How long a thread waits for another one that opens the pack which it needs, too.
const TOGETHER: Duration = Duration::from_secs(1);
/// Stored bytes of one GET, at most: long enough to amortise it, short enough that a long read is shared among threads.
pub(super) const RUN: u64 = 256 << 10;
/// The same for what is fetched ahead from a store that is far away.
pub(super) const LONG_RUN: u64 = 1 << 20;
/// Of a pack that is not open yet so much is read from its beginning on, header and frames in one GET: less time than two take.
const HEAD: u64 = 256 << 10;

/// A chunk that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Want {
    pub(crate) id: ChunkId,
    pub(crate) at: Location,
}

impl Want {
    /// The chunk of a leaf's entry; `None` where the source was unreadable.
    pub(crate) fn of(entry: &LeafEntry) -> Option<Want> {
        match entry.content {
            LeafContent::Chunk { id, hint: Hint { pack, offset, stored_len } } => {
                Some(Want { id, at: Location { pack, offset, stored_len, raw_len: entry.len_bytes() } })
            }
            LeafContent::Unreadable => None,
        }
    }
}

/// Splits wants into runs that lie end to end in one pack and have `longest` bytes at most, or are one frame.
pub(super) fn runs(wants: &[Want], longest: u64) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let (mut bytes, mut next) = (0, None);
    for (i, want) in wants.iter().enumerate() {
        let len = u64::from(want.at.stored_len);
        match runs.last_mut() {
            Some(run) if next == Some((want.at.pack, u64::from(want.at.offset))) && bytes + len <= longest => {
                run.end = i + 1;
                bytes += len;
            }
            _ => {
                runs.push(i..i + 1);
                bytes = len;
            }
        }
        next = Some((want.at.pack, want.at.end()));
    }
    runs
}

/// What a thread that fetches keeps for itself.
pub(crate) struct Scratch {
    sealed: Vec<u8>,
    decompressor: Decompressor,
    /// How long it waited for the store.
    waited: Duration,
}

impl Scratch {
    pub(crate) fn new() -> Result<Self> {
        Ok(Scratch { sealed: Vec::new(), decompressor: Decompressor::new()?, waited: Duration::ZERO })
    }

    /// What `wait`, which waits for the store, gives.
    pub(super) fn waiting<T>(&mut self, wait: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let got = wait();
        self.waited += begun.elapsed();
        got
    }

    /// How long it waited for the store since it was asked last.
    pub(super) fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }
}

/// A chunk's bytes, shared by the cache and those who read them. A `Vec`, since bytes are expanded into it in place; an
/// `Arc<[u8]>` would take a copy.
pub(crate) type Chunk = Arc<Vec<u8>>;

type Chunks = Cache<ChunkId, Chunk, Weighed>;
type Guard<'a> = PlaceholderGuard<
    'a,
    ChunkId,
    Chunk,
    Weighed,
    quick_cache::DefaultHashBuilder,
    quick_cache::sync::DefaultLifecycle<ChunkId, Chunk>,
>;

/// The chunk cache and what fills it.
pub(crate) struct Fetcher {
    repo: Arc<Repository>,
    chunks: Chunks,
    packs: Cache<PackUid, Arc<OpenPack>>,
    detours: Arc<Detours>,
}

impl Fetcher {
    pub(crate) fn new(repo: Arc<Repository>, cache_bytes: u64, detours: Arc<Detours>) -> Result<Self> {
        let chunks = crate::cache::weighed(cache_bytes, 64 << 10)?;
        Ok(Fetcher { repo, chunks, packs: Cache::new(OPEN_PACKS), detours })
    }

    /// A chunk that is in memory.
    pub(crate) fn cached(&self, want: &Want) -> Option<Chunk> {
        self.chunks.get(&want.id).filter(|chunk| chunk.len() == want.at.raw_len as usize)
    }

    /// One answer per want, in order.
    pub(crate) fn fetch(&self, wants: &[Want], scratch: &mut Scratch) -> Vec<Result<Chunk>> {
        let mut answers: HashMap<ChunkId, Result<Chunk>> = HashMap::with_capacity(wants.len());
        let (mut ours, mut elsewhere): (Vec<(Want, Guard<'_>)>, Vec<Want>) = (Vec::new(), Vec::new());
        for want in wants {
            if answers.contains_key(&want.id) || ours.iter().any(|(w, _)| w.id == want.id) {
                continue;
            }
            match self.chunks.get_value_or_guard(&want.id, Some(Duration::ZERO)) {
                GuardResult::Value(chunk) => drop(answers.insert(want.id, Ok(chunk))),
                GuardResult::Guard(guard) => ours.push((*want, guard)),
                GuardResult::Timeout => elsewhere.push(*want),
            }
        }
        let taken: Vec<Want> = ours.iter().map(|(want, _)| self.where_now(want)).collect();
        let mut ours = ours.into_iter();
        // Whoever asks for more than a run of the usual length wants it in one.
        for run in runs(&taken, LONG_RUN) {
            let got = self.read_run(taken.get(run).unwrap_or_default(), scratch);
            for (chunk, (want, guard)) in got.into_iter().zip(&mut ours) {
                let chunk = chunk.or_else(|e| self.read_instead(&want, e, scratch));
                if let Ok(chunk) = &chunk {
                    // The guard may have lost its place to an eviction; the chunk is handed out all the same.
                    let _ = guard.insert(Arc::clone(chunk));
                }
                answers.insert(want.id, chunk);
            }
        }
        // Only now wait for others: whoever waits holds no guard, so nobody waits in a circle.
        for want in elsewhere {
            let chunk = match self.chunks.get_value_or_guard(&want.id, None) {
                GuardResult::Value(chunk) => Ok(chunk),
                GuardResult::Guard(guard) => self.read_anywhere(&want, scratch).inspect(|chunk| {
                    let _ = guard.insert(Arc::clone(chunk));
                }),
                GuardResult::Timeout => self.read_anywhere(&want, scratch),
            };
            answers.insert(want.id, chunk);
        }
        let answer = |want: &Want| match answers.get(&want.id) {
            Some(Ok(chunk)) if chunk.len() == want.at.raw_len as usize => Ok(Arc::clone(chunk)),
            Some(Ok(_)) => Err(Error::corrupt(format!("chunk {} is not {} bytes long", want.id, want.at.raw_len))),
            Some(Err(e)) => Err(e.duplicate()),
            None => Err(Error::internal("a chunk was asked for and forgotten")),
        };
        wants.iter().map(answer).collect()
    }

    /// Expands each chunk into its place, past the cache. One answer per want, in order; the place of one that failed is
    /// undefined, and nothing was tried to get it from elsewhere.
    pub(crate) fn expand(&self, wants: &[Want], places: &mut [&mut [u8]], scratch: &mut Scratch) -> Vec<Result<()>> {
        let taken: Vec<Want> = wants.iter().map(|want| self.where_now(want)).collect();
        let mut places = places.iter_mut();
        let mut done = Vec::with_capacity(wants.len());
        for run in runs(&taken, RUN) {
            let (run, places) = (taken.get(run.clone()).unwrap_or_default(), places.by_ref().take(run.len()));
            match self.read_sealed(run, scratch) {
                Ok(pack) => {
                    let mut places = places;
                    done.extend(open_frames(&pack, run, scratch, |pack, want, frame, decompressor| {
                        let place = places.next().ok_or_else(|| Error::internal("a chunk without a place"))?;
                        let (codec, bytes) = pack.open_frame(&want.at, frame)?;
                        decompressor.decompress_into(codec, bytes, place)?;
                        self.check(want, place)
                    }));
                }
                Err(e) => done.extend(places.map(|_| Err(e.duplicate()))),
            }
        }
        done
    }

    /// The same chunk at the place where reading is likely to find it.
    fn where_now(&self, want: &Want) -> Want {
        Want { id: want.id, at: self.detours.shortcut(&Stored::Chunk(want.id), &want.at) }
    }

    fn read_anywhere(&self, want: &Want, scratch: &mut Scratch) -> Result<Chunk> {
        self.read_one(&self.where_now(want), scratch).or_else(|e| self.read_instead(want, e, scratch))
    }

    /// The chunk from elsewhere, since where it was looked for it failed with `e`: from the store itself, if what failed was a
    /// nearer copy, else from where it lies as well.
    fn read_instead(&self, want: &Want, e: Error, scratch: &mut Scratch) -> Result<Chunk> {
        let here = self.where_now(want);
        let name = crate::pack::name(PackKind::Data, here.at.pack);
        let is_doubted = e.kind() == Kind::Corrupt
            && self.repo.backend().doubt(&name, u64::from(here.at.offset), u64::from(here.at.stored_len));
        if is_doubted && let Ok(chunk) = self.read_one(&here, scratch) {
            return Ok(chunk);
        }
        let open = &mut |pack: &OpenPack, at: &Location, sealed: &mut [u8]| {
            self.open(pack, &Want { id: want.id, at: *at }, sealed, &mut scratch.decompressor)
        };
        self.detours.instead(&Stored::Chunk(want.id), &want.at, e, open).map(|(chunk, _)| chunk)
    }

    /// As [`Fetcher::read_run`] of one.
    fn read_one(&self, want: &Want, scratch: &mut Scratch) -> Result<Chunk> {
        self.read_run(std::slice::from_ref(want), scratch).pop().unwrap_or_else(|| Err(Error::internal("no answer")))
    }

    /// Reads chunks that lie end to end in one pack.
    fn read_run(&self, run: &[Want], scratch: &mut Scratch) -> Vec<Result<Chunk>> {
        match self.read_sealed(run, scratch) {
            Ok(pack) => open_frames(&pack, run, scratch, |pack, want, frame, decompressor| {
                self.open(pack, want, frame, decompressor)
            }),
            // One damaged spot must not take its neighbours along.
            Err(_) if run.len() > 1 => run.iter().map(|want| self.read_one(want, scratch)).collect(),
            Err(e) => run.iter().map(|want| Err(place(missing_is_corrupt(e.duplicate()), want))).collect(),
        }
    }

    /// The chunk in `frame`, which lies where `want` says, if it is the one that is wanted.
    fn open(&self, pack: &OpenPack, want: &Want, frame: &mut [u8], decompressor: &mut Decompressor) -> Result<Chunk> {
        let (codec, bytes) = pack.open_frame(&want.at, frame)?;
        let mut plain = Vec::new();
        decompressor.decompress(codec, bytes, want.at.raw_len, &mut plain).map_err(|e| place(e, want))?;
        self.check(want, &plain)?;
        Ok(Arc::new(plain))
    }

    fn check(&self, want: &Want, plain: &[u8]) -> Result<()> {
        match self.repo.keys().id_key().chunk_id(plain) == want.id {
            true => Ok(()),
            false => Err(place(Error::corrupt(format!("the bytes are not those of chunk {}", want.id)), want)),
        }
    }

    /// Fills the start of the scratch buffer with the run's frames.
    fn read_sealed(&self, run: &[Want], scratch: &mut Scratch) -> Result<Arc<OpenPack>> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Err(Error::internal("an empty run")) };
        let uid = first.at.pack;
        let max = self.repo.chunk_max();
        if run.iter().any(|w| w.at.raw_len > max || w.at.stored_len > max + 16) {
            return Err(Error::corrupt(format!("a chunk longer than {max} bytes")));
        }
        let name = crate::pack::name(PackKind::Data, uid);
        let (start, end) = (u64::from(first.at.offset), last.at.end());
        let len = usize::try_from(end - start).unwrap_or(usize::MAX);
        let begun = Instant::now();
        let mut is_here = false;
        let opened = self.open_once(uid, || {
            if end > HEAD {
                return self.repo.open_pack(PackKind::Data, uid);
            }
            let from = first.at.offset as usize;
            scratch.sealed.resize(scratch.sealed.len().max(from + len), 0);
            let head = scratch.sealed.get_mut(..from + len).unwrap_or_default();
            self.repo.backend().get_range(&name, 0, head)?;
            let pack = self.repo.open_pack_of(PackKind::Data, uid, head)?;
            head.copy_within(from.., 0);
            is_here = true;
            Ok(pack)
        });
        scratch.waited += begun.elapsed();
        let pack = opened?;
        if is_here {
            return Ok(pack);
        }
        // Grown once and kept: what lies beyond the run is old bytes that nobody looks at.
        if scratch.sealed.len() < len {
            scratch.sealed.resize(len, 0);
        }
        let begun = Instant::now();
        let sealed = scratch.sealed.get_mut(..len).unwrap_or_default();
        let got = self.repo.backend().get_range(&name, start, sealed);
        scratch.waited += begun.elapsed();
        got.map(|()| pack)
    }

    /// A pack that is open.
    pub(super) fn pack(&self, uid: PackUid) -> Result<Arc<OpenPack>> {
        self.open_once(uid, || self.repo.open_pack(PackKind::Data, uid))
    }

    /// A pack that is open. Several that need it at once open it once, unless that takes so long that they had better try, and
    /// perhaps fail, side by side.
    fn open_once(&self, uid: PackUid, open: impl FnOnce() -> Result<OpenPack>) -> Result<Arc<OpenPack>> {
        match self.packs.get_value_or_guard(&uid, Some(TOGETHER)) {
            GuardResult::Value(pack) => Ok(pack),
            GuardResult::Guard(guard) => open().map(Arc::new).inspect(|pack| {
                // The guard may have lost its place to an eviction; the pack is handed out all the same.
                let _ = guard.insert(Arc::clone(pack));
            }),
            GuardResult::Timeout => open().map(Arc::new),
        }
    }
}

/// Opens each frame of a run that lies at the start of the scratch buffer.
fn open_frames<T>(
    pack: &OpenPack,
    run: &[Want],
    scratch: &mut Scratch,
    mut open: impl FnMut(&OpenPack, &Want, &mut [u8], &mut Decompressor) -> Result<T>,
) -> Vec<Result<T>> {
    let Scratch { sealed, decompressor, .. } = scratch;
    let mut rest = sealed.as_mut_slice();
    let mut next = |want: &Want| {
        let (frame, after) = std::mem::take(&mut rest)
            .split_at_mut_checked(want.at.stored_len as usize)
            .ok_or_else(|| Error::internal("a run shorter than its frames"))?;
        rest = after;
        open(pack, want, frame, decompressor)
    };
    run.iter().map(&mut next).collect()
}

fn place(e: Error, want: &Want) -> Error {
    e.within(format_args!("{} at offset {}", crate::pack::name(PackKind::Data, want.at.pack), want.at.offset))
}
