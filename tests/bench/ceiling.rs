//! `coffer-ceiling IMAGE`: how fast this machine cuts, compresses and expands the chunks of a disk image when nothing
//! else is done, for the benchmarks to compare backup and restore with.
//!
//! Prints lines `step<TAB>bytes<TAB>seconds<TAB>CPU seconds`, with all cores at work:
//! - `cut`: all bytes but zeroes and holes, read, cut into chunks and named by their ids;
//! - `compress`: the distinct chunks among them, by zstd at level 1 and nothing else;
//! - `expand`: the same chunks back again; its bytes are those it begins with.
//!
//! Not here: any part of a repository but the chunker and the ids. What holds: seconds are what the threads spent
//! within the step, divided by their number; only `cut` reads within them; memory is a window or a batch of chunks
//! for every thread, and the list of chunks.
#![allow(clippy::print_stdout, reason = "printing is what this program is for")]

use anyhow::{Context, Result};
use coffer_repo::chunker::{DiskChunker, DiskParams, Piece};
use coffer_repo::crypto::{IdKey, Key32};
use coffer_repo::id::ChunkId;
use rustix::fs::SeekFrom;
use std::collections::HashMap;
use std::fs::File;
use std::ops::{AddAssign, Range};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Chunks that a thread compresses and expands at a time.
const BATCH: usize = 256;

/// The compression level that a repository uses unless told otherwise.
const LEVEL: i32 = 1;

/// What a step cost one thread or all of them together.
#[derive(Clone, Copy, Default)]
struct Cost {
    bytes: u64,
    wall: Duration,
    cpu: Duration,
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.bytes += other.bytes;
        self.wall += other.wall;
        self.cpu += other.cpu;
    }
}

/// A clock that a thread reads when a piece of work is done.
struct Clock {
    wall: Instant,
    cpu: Duration,
}

impl Clock {
    fn start() -> Result<Clock> {
        Ok(Clock { wall: Instant::now(), cpu: cpu_time()? })
    }

    fn cost(&self, bytes: usize) -> Result<Cost> {
        Ok(Cost { bytes: bytes as u64, wall: self.wall.elapsed(), cpu: cpu_time()?.saturating_sub(self.cpu) })
    }
}

/// The CPU time this thread has had.
fn cpu_time() -> Result<Duration> {
    let line = std::fs::read_to_string("/proc/thread-self/schedstat").context("asking for a thread's CPU time")?;
    let nanos = line.split_whitespace().next().context("an empty schedstat")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}

/// Runs `work` on every core and returns what each made.
fn on_all_cores<T: Send>(work: impl Fn() -> Result<T> + Sync) -> Result<Vec<T>> {
    let cores = thread::available_parallelism()?.get();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(&work)).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?).collect()
    })
}

/// The windows of the image that are not holes.
fn windows(image: &File, window: u64) -> Result<Vec<Range<u64>>> {
    let size = image.metadata()?.len();
    let mut windows = Vec::new();
    let mut at = 0;
    while at < size {
        match rustix::fs::seek(image, SeekFrom::Data(at)) {
            Ok(data) => {
                let start = data / window * window;
                at = (start + window).min(size);
                windows.push(start..at);
            }
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error).context("looking for data in the image"),
        }
    }
    Ok(windows)
}

/// Cuts the image; returns its distinct chunks by their place, and the cost.
fn cut(image: &File) -> Result<(Vec<Range<u64>>, Cost)> {
    let id_key = IdKey::new(Key32::new([7; 32]));
    let params = DiskParams::default();
    let chunker = DiskChunker::new(params, id_key.chunker_seed())?;
    let windows = windows(image, params.window)?;
    let next = AtomicUsize::new(0);
    let found = on_all_cores(|| {
        let (mut chunks, mut cost, mut bytes) = (HashMap::<ChunkId, Range<u64>>::new(), Cost::default(), Vec::new());
        while let Some(window) = windows.get(next.fetch_add(1, Ordering::Relaxed)) {
            let clock = Clock::start()?;
            let mut data = 0;
            bytes.resize(usize::try_from(window.end - window.start)?, 0);
            image.read_exact_at(&mut bytes, window.start)?;
            bytes.resize(bytes.len().next_multiple_of(usize::try_from(params.block)?), 0);
            for piece in chunker.window(&bytes)? {
                let Piece::Chunk(range) = piece else { continue };
                data += range.len();
                let place = window.start + range.start as u64..window.start + range.end as u64;
                chunks.insert(id_key.chunk_id(bytes.get(range).context("a chunk beyond its window")?), place);
            }
            cost += clock.cost(data)?;
        }
        Ok((chunks, cost))
    })?;
    let (mut all, mut cost) = (HashMap::new(), Cost::default());
    for (chunks, of_thread) in found {
        all.extend(chunks);
        cost += of_thread;
    }
    let mut places: Vec<_> = all.into_values().collect();
    places.sort_unstable_by_key(|place| place.start);
    Ok((places, cost))
}

/// Compresses the chunks and expands them again; returns what either cost.
fn squeeze(image: &File, places: &[Range<u64>]) -> Result<(Cost, Cost)> {
    let next = AtomicUsize::new(0);
    let costs = on_all_cores(|| {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        let mut expander = zstd::bulk::Decompressor::new()?;
        let (mut compress, mut expand) = (Cost::default(), Cost::default());
        while let Some(batch) = places.chunks(BATCH).nth(next.fetch_add(1, Ordering::Relaxed)) {
            let chunks = batch.iter().map(|place| read(image, place)).collect::<Result<Vec<_>>>()?;
            let clock = Clock::start()?;
            let frames = chunks.iter().map(|chunk| compressor.compress(chunk)).collect::<Result<Vec<_>, _>>()?;
            compress += clock.cost(chunks.iter().map(Vec::len).sum())?;
            let mut out = Vec::with_capacity(usize::try_from(DiskParams::default().max)?);
            let clock = Clock::start()?;
            for frame in &frames {
                expander.decompress_to_buffer(frame, &mut out)?;
            }
            expand += clock.cost(frames.iter().map(Vec::len).sum())?;
        }
        Ok((compress, expand))
    })?;
    Ok(costs.into_iter().fold(Default::default(), |(mut compress, mut expand), costs| {
        compress += costs.0;
        expand += costs.1;
        (compress, expand)
    }))
}

/// A chunk's bytes; the image's last block may be a partial one, padded with zeroes.
fn read(image: &File, place: &Range<u64>) -> Result<Vec<u8>> {
    let end = place.end.min(image.metadata()?.len());
    let mut bytes = vec![0; usize::try_from(end - place.start)?];
    image.read_exact_at(&mut bytes, place.start)?;
    bytes.resize(usize::try_from(place.end - place.start)?, 0);
    Ok(bytes)
}

fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).context("usage: coffer-ceiling IMAGE")?;
    let image = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    let cores = thread::available_parallelism()?.get() as f64;
    let (places, cut) = cut(&image)?;
    let (compress, expand) = squeeze(&image, &places)?;
    for (step, Cost { bytes, wall, cpu }) in [("cut", cut), ("compress", compress), ("expand", expand)] {
        println!("{step}\t{bytes}\t{:.3}\t{:.3}", wall.as_secs_f64() / cores, cpu.as_secs_f64());
    }
    Ok(())
}
