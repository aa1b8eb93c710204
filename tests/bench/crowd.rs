//! `coffer-crowd DIR CHUNKS [POINTS]`: makes a repository of very many, very small chunks in DIR, and of so many points, for
//! measuring what the collector and the index take for each.
//!
//! Opened by the passphrase `benchmark`. The workload `gone` has two thirds of the chunks and is forgotten; the workload `kept`
//! has the last third and every fourth chunk of the others, so that packs are dead to three quarters. The workload `often` has
//! the points, each of 64 chunks of which one is new.
//!
//! Not here: measuring; bench.py runs `coffer gc` on it. What holds: chunks are blocks of 4 KiB that differ in their number and
//! compress to almost nothing, so that 20 million of them take minutes and about a gigabyte.
#![allow(clippy::print_stdout, reason = "printing is what this program is for")]

use anyhow::{Context, Result};
use coffer_repo::backend::local::Local;
use coffer_repo::cancel::Cancel;
use coffer_repo::chunker::{DiskParams, StreamParams};
use coffer_repo::crypto::Aead;
use coffer_repo::entropy::System;
use coffer_repo::index::{Index, IndexOptions};
use coffer_repo::key_slot::{Credential, PassphraseCost, SlotOptions};
use coffer_repo::repository::{InitOptions, Repository};
use coffer_repo::snapshot::{Identity, Snapshot};
use coffer_repo::time::Timestamp;
use coffer_repo::window::{Filled, Window, WindowSource};
use coffer_repo::writer::{DiskSpec, Writer, WriterOptions};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const BLOCK: usize = 4096;
const WINDOW: usize = 16 << 20;
/// A thousand frames, as packs of ordinary chunks have.
const PACK: usize = 48 << 10;
const USAGE: &str = "usage: coffer-crowd DIR CHUNKS [POINTS]";
const BLOCKS: u64 = (WINDOW / BLOCK) as u64;
const HOLE: u64 = u64::MAX;

/// A disk whose block `n` holds the number `number(n)`, or nothing where that is `HOLE`.
struct Numbers<F> {
    blocks: u64,
    number: F,
    next: AtomicU64,
}

impl<F: Fn(u64) -> u64 + Sync> WindowSource for Numbers<F> {
    fn next(&self, window: &mut Window) -> coffer_repo::Result<Filled> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        if index * BLOCKS >= self.blocks {
            return Ok(Filled::End);
        }
        for (block, n) in window.make_room(WINDOW).chunks_mut(BLOCK).zip(index * BLOCKS..) {
            block.fill(0);
            let number = (self.number)(n);
            if number != HOLE {
                block.iter_mut().zip(number.to_le_bytes().into_iter().chain([1])).for_each(|(to, from)| *to = from);
            }
        }
        Ok(Filled::Bytes(index))
    }

    fn size(&self) -> coffer_repo::Result<u64> {
        Ok(self.blocks * BLOCK as u64)
    }
}

fn back_up(
    repo: &Arc<Repository>,
    index: &Arc<Index>,
    workload: &str,
    now: u64,
    blocks: u64,
    number: impl Fn(u64) -> u64 + Sync,
) -> Result<Snapshot> {
    let time = Timestamp::from_seconds(now)?;
    let options = WriterOptions { pack_bytes: PACK, ..WriterOptions::default() };
    let mut writer = Writer::begin(repo, index, workload, None, Identity::default(), options, time)?;
    let source = Numbers { blocks: blocks.next_multiple_of(BLOCKS), number, next: AtomicU64::new(0) };
    writer.disk(DiskSpec { name: "d".into(), block_size: 512, platform: None }, &source, &Cancel::default())?;
    Ok(writer.commit(Vec::new())?)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().context(USAGE)?;
    let chunks: u64 = arguments.next().context(USAGE)?.parse()?;
    let points: u64 = arguments.next().map_or(Ok(0), |n| n.parse())?;
    let now = 1_800_000_000;
    let cost = PassphraseCost { memory_kib: 64 << 10, passes: 1, lanes: 1 };
    let options = InitOptions {
        credential: Credential::Passphrase("benchmark".to_owned().into()),
        slot: SlotOptions { label: "benchmark".into(), created: Timestamp::from_seconds(now)?, cost },
        disk: DiskParams { min: 4096, mean: 4096, max: 4096, ..DiskParams::default() },
        stream: StreamParams::default(),
        aead: Aead::preferred(),
        parity: false,
    };
    let store = Local::create(Path::new(&dir))?;
    let repo = Arc::new(Repository::init(Arc::new(store), options, Arc::new(System))?);
    let scratch = tempfile::tempdir()?;
    let index = Arc::new(Index::open(scratch.path(), repo.keys().repo(), IndexOptions::default())?);
    let most = chunks / 3 * 2;
    let gone = back_up(&repo, &index, "gone", now, most, |n| n)?;
    let kept = chunks - most;
    back_up(&repo, &index, "kept", now + 10, kept + most / 4, |n| if n < kept { most + n } else { (n - kept) * 4 })?;
    repo.forget(gone.name, Timestamp::from_seconds(now + 20)?)?;
    for point in 0..points {
        let other = |n| match n {
            0 => chunks + point,
            1..64 => n,
            _ => HOLE,
        };
        back_up(&repo, &index, "often", now + 30 + point, BLOCKS, other)?;
    }
    drop(index);
    let files = std::fs::read_dir(scratch.path().join("db"))?;
    let bytes: u64 = files.map(|file| Ok(file?.metadata()?.len())).sum::<std::io::Result<u64>>()?;
    println!("{chunks} chunks, index {:.1} bytes a chunk", bytes as f64 / chunks as f64);
    Ok(())
}
