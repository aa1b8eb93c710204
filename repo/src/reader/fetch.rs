//! Fetches chunks: one GET for neighbours in one pack, then open, decompress, check, and keep.
//!
//! Not here: which chunks a range of a disk needs. What holds: a chunk enters the cache only after its frame was authenticated
//! and its id checked; a chunk that several callers miss at once is fetched by one of them; a failure fails the chunks it
//! struck and no others, and is not remembered.

use crate::cache::Weighed;
use crate::disk_map::{Hint, LeafContent, LeafEntry};
use crate::error::{Error, Result};
use crate::id::{ChunkId, PackUid};
use crate::location::{Location, PackKind};
use crate::nodes::missing_is_corrupt;
use crate::pack::OpenPack;
use crate::repository::Repository;
use crate::seal::Decompressor;
use quick_cache::sync::{Cache, GuardResult, PlaceholderGuard};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// How many data packs' keys are kept: unwrapping one costs a GET and about 100 microseconds.
const OPEN_PACKS: usize = 4096;
/// Stored bytes of one GET, at most: long enough to amortise it, short enough that a long read is shared among threads.
const RUN: u64 = 256 << 10;

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

/// Splits wants into runs that lie end to end in one pack.
pub(crate) fn runs(wants: &[Want]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let (mut bytes, mut next) = (0, None);
    for (i, want) in wants.iter().enumerate() {
        let len = u64::from(want.at.stored_len);
        match runs.last_mut() {
            Some(run) if next == Some((want.at.pack, u64::from(want.at.offset))) && bytes + len <= RUN => {
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
    plain: Vec<u8>,
    decompressor: Decompressor,
}

impl Scratch {
    pub(crate) fn new() -> Result<Self> {
        Ok(Scratch { sealed: Vec::new(), plain: Vec::new(), decompressor: Decompressor::new()? })
    }
}

type Chunks = Cache<ChunkId, Arc<[u8]>, Weighed>;
type Guard<'a> = PlaceholderGuard<
    'a,
    ChunkId,
    Arc<[u8]>,
    Weighed,
    quick_cache::DefaultHashBuilder,
    quick_cache::sync::DefaultLifecycle<ChunkId, Arc<[u8]>>,
>;

/// The chunk cache and what fills it.
pub(crate) struct Fetcher {
    repo: Arc<Repository>,
    chunks: Chunks,
    packs: Cache<PackUid, Arc<OpenPack>>,
}

impl Fetcher {
    pub(crate) fn new(repo: Arc<Repository>, cache_bytes: u64) -> Self {
        Fetcher { repo, chunks: crate::cache::weighed(cache_bytes, 64 << 10), packs: Cache::new(OPEN_PACKS) }
    }

    /// A chunk that is in memory.
    pub(crate) fn cached(&self, want: &Want) -> Option<Arc<[u8]>> {
        self.chunks.get(&want.id).filter(|chunk| chunk.len() == want.at.raw_len as usize)
    }

    /// One answer per want, in order.
    pub(crate) fn fetch(&self, wants: &[Want], scratch: &mut Scratch) -> Vec<Result<Arc<[u8]>>> {
        let mut answers: HashMap<ChunkId, Result<Arc<[u8]>>> = HashMap::with_capacity(wants.len());
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
        let taken: Vec<Want> = ours.iter().map(|(w, _)| *w).collect();
        let mut guards = ours.into_iter().map(|(_, guard)| guard);
        for run in runs(&taken) {
            let run = taken.get(run).unwrap_or_default();
            let got = self.read_run(run, scratch);
            for ((want, chunk), guard) in run.iter().zip(got).zip(&mut guards) {
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
                GuardResult::Guard(guard) => self.read_one(&want, scratch).inspect(|chunk| {
                    let _ = guard.insert(Arc::clone(chunk));
                }),
                GuardResult::Timeout => self.read_one(&want, scratch),
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

    fn read_one(&self, want: &Want, scratch: &mut Scratch) -> Result<Arc<[u8]>> {
        self.read_run(std::slice::from_ref(want), scratch).pop().unwrap_or_else(|| Err(Error::internal("no answer")))
    }

    /// Reads chunks that lie end to end in one pack.
    fn read_run(&self, run: &[Want], scratch: &mut Scratch) -> Vec<Result<Arc<[u8]>>> {
        match self.read_sealed(run, scratch) {
            Ok(pack) => {
                let Scratch { sealed, plain, decompressor } = scratch;
                let mut rest = sealed.as_mut_slice();
                let mut open = |want: &Want| -> Result<Arc<[u8]>> {
                    let (frame, after) = std::mem::take(&mut rest)
                        .split_at_mut_checked(want.at.stored_len as usize)
                        .ok_or_else(|| Error::internal("a run shorter than its frames"))?;
                    rest = after;
                    let (codec, bytes) = pack.open_frame(&want.at, frame)?;
                    decompressor.decompress(codec, bytes, want.at.raw_len, plain).map_err(|e| place(e, want))?;
                    if self.repo.keys().id_key().chunk_id(plain) != want.id {
                        return Err(place(
                            Error::corrupt(format!("the bytes are not those of chunk {}", want.id)),
                            want,
                        ));
                    }
                    Ok(Arc::from(plain.as_slice()))
                };
                run.iter().map(&mut open).collect()
            }
            // One damaged spot must not take its neighbours along.
            Err(_) if run.len() > 1 => run.iter().map(|want| self.read_one(want, scratch)).collect(),
            Err(e) => run.iter().map(|want| Err(place(missing_is_corrupt(e.duplicate()), want))).collect(),
        }
    }

    /// Fills the scratch buffer with the run's frames.
    fn read_sealed(&self, run: &[Want], scratch: &mut Scratch) -> Result<Arc<OpenPack>> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Err(Error::internal("an empty run")) };
        let uid = first.at.pack;
        let max = self.repo.chunk_max();
        if run.iter().any(|w| w.at.raw_len > max || w.at.stored_len > max + 16) {
            return Err(Error::corrupt(format!("a chunk longer than {max} bytes")));
        }
        let pack = match self.packs.get(&uid) {
            Some(pack) => pack,
            None => {
                let pack = Arc::new(self.repo.open_pack(PackKind::Data, uid)?);
                self.packs.insert(uid, Arc::clone(&pack));
                pack
            }
        };
        let len = usize::try_from(last.at.end() - u64::from(first.at.offset)).unwrap_or(usize::MAX);
        scratch.sealed.resize(len, 0);
        let name = crate::pack::name(PackKind::Data, uid);
        self.repo.backend().get_range(&name, u64::from(first.at.offset), &mut scratch.sealed)?;
        Ok(pack)
    }
}

fn place(e: Error, want: &Want) -> Error {
    e.within(format_args!("{} at offset {}", crate::pack::name(PackKind::Data, want.at.pack), want.at.offset))
}
