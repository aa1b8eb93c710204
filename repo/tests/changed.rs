//! Backups from a source that knows which blocks changed: the map is that of a full backup, and little is read.
//!
//! Not here: where such a source gets it from (forks, in the gateway's tests), and the cutting itself (`chunker/changed.rs`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "seeds are told, so that a failure can be repeated")]

mod bench;

use bench::{Bench, at, back_up, leaves, pass, read_all};
use coffer_repo::backend::{Backend, Put, list_sorted};
use coffer_repo::cancel::Cancel;
use coffer_repo::disk_map::{LeafContent, identity};
use coffer_repo::entropy::{Entropy, Seeded};
use coffer_repo::index::Index;
use coffer_repo::location::PackKind;
use coffer_repo::pack;
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::{Disk, Identity, Snapshot};
use coffer_repo::verify::{DataCheck, VerifyOptions, VerifyProgress, verify};
use coffer_repo::window::{Filled, Window, WindowSource};
use coffer_repo::writer::{DiskSpec, Writer, WriterOptions};
use coffer_repo::zero::is_zero;
use coffer_repo::{Kind, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const BLOCK: usize = 4096;
const WINDOW: usize = 1 << 20;

/// A disk, and which of its blocks cannot be read.
#[derive(Clone, Default)]
struct Content {
    bytes: Vec<u8>,
    lost: Vec<bool>,
}

impl Content {
    fn blocks(&self) -> usize {
        self.bytes.len().div_ceil(BLOCK)
    }

    fn is_lost(&self, block: usize) -> bool {
        self.lost.get(block) == Some(&true)
    }

    /// A block as a map has it: padded, `None` where it cannot be read, zero beyond the end.
    fn block(&self, block: usize) -> Option<Vec<u8>> {
        let from = (block * BLOCK).min(self.bytes.len());
        let mut bytes = self.bytes[from..(from + BLOCK).min(self.bytes.len())].to_vec();
        bytes.resize(BLOCK, 0);
        (!self.is_lost(block)).then_some(bytes)
    }
}

/// What a source says of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Say {
    Bytes,
    Changed,
    Unchanged,
    Zero,
}

struct Source<'a> {
    content: &'a Content,
    /// By window.
    says: Vec<Say>,
    /// By block of the disk.
    changed: Vec<bool>,
    next: AtomicU64,
    read: Mutex<Vec<Range<usize>>>,
}

impl<'a> Source<'a> {
    fn new(content: &'a Content, says: Vec<Say>, changed: Vec<bool>) -> Self {
        Source { content, says, changed, next: AtomicU64::new(0), read: Mutex::default() }
    }

    /// Reads everything.
    fn full(content: &'a Content) -> Self {
        Source::new(content, vec![Say::Bytes; content.bytes.len().div_ceil(WINDOW)], Vec::new())
    }

    /// Knows that blocks `changed` and nothing else may have.
    fn aware(content: &'a Content, changed: &[Range<usize>]) -> Self {
        let mut map = vec![false; content.blocks()];
        changed.iter().for_each(|range| map[range.clone()].fill(true));
        Source::new(content, vec![Say::Changed; content.bytes.len().div_ceil(WINDOW)], map)
    }
}

fn runs(flags: &[bool]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for at in (0..flags.len()).filter(|at| flags[*at]) {
        match runs.last_mut().filter(|last| last.end == at) {
            Some(last) => last.end += 1,
            None => runs.push(at..at + 1),
        }
    }
    runs
}

impl WindowSource for Source<'_> {
    fn next(&self, window: &mut Window) -> Result<Filled> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        let number = usize::try_from(index).unwrap();
        let range = number * WINDOW..((number + 1) * WINDOW).min(self.content.bytes.len());
        let Some(say) = self.says.get(number) else { return Ok(Filled::End) };
        let blocks = range.start / BLOCK..range.end.div_ceil(BLOCK);
        Ok(match say {
            Say::Zero => Filled::Zero(index),
            Say::Unchanged => Filled::Unchanged(index),
            Say::Changed => {
                window.changed = runs(&self.changed[blocks]);
                // In no order.
                window.changed.reverse();
                Filled::Changed { index, len: range.len() }
            }
            Say::Bytes => {
                window.make_room(range.len()).copy_from_slice(&self.content.bytes[range.clone()]);
                for lost in runs(&blocks.map(|block| self.content.is_lost(block)).collect::<Vec<_>>()) {
                    let bytes = lost.start * BLOCK..(lost.end * BLOCK).min(range.len());
                    window.bytes[bytes.clone()].fill(0xee);
                    window.unreadable.push(u32::try_from(bytes.start).unwrap()..u32::try_from(bytes.end).unwrap());
                }
                Filled::Bytes(index)
            }
        })
    }

    fn read_blocks(
        &self,
        index: u64,
        blocks: Range<usize>,
        out: &mut [u8],
        unreadable: &mut Vec<Range<usize>>,
    ) -> Result<()> {
        assert!(out.len() == blocks.len() * BLOCK && is_zero(out), "{blocks:?}");
        let first = usize::try_from(index).unwrap() * WINDOW / BLOCK;
        self.read.lock().unwrap().push(first + blocks.start..first + blocks.end);
        for (block, out) in blocks.zip(out.chunks_mut(BLOCK)) {
            match self.content.block(first + block) {
                Some(bytes) => out.copy_from_slice(&bytes),
                None => {
                    out.fill(0xee);
                    unreadable.push(block..block + 1);
                }
            }
        }
        Ok(())
    }

    fn size(&self) -> Result<u64> {
        Ok(self.content.bytes.len() as u64)
    }
}

fn write(
    repo: &Arc<Repository>,
    index: &Arc<Index>,
    source: &Source<'_>,
    parent: Option<Snapshot>,
    now: u64,
) -> Result<Snapshot> {
    let options = WriterOptions { workers: 2, pack_bytes: 1 << 20, ..WriterOptions::default() };
    let mut writer = Writer::begin(repo, index, "web", parent, Identity::default(), options, at(now))?;
    let spec = DiskSpec { name: "d".into(), block_size: 512, platform: None };
    writer.disk(spec, source, &Cancel::default())?;
    let progress = writer.progress();
    let snapshot = writer.commit(vec![])?;
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    assert!(get(&progress.zero) <= get(&progress.read).next_multiple_of(BLOCK as u64));
    Ok(snapshot)
}

fn map(disk: &Disk) -> Vec<u8> {
    if disk.root.is_empty() { Vec::new() } else { identity(&disk.root).unwrap().to_vec() }
}

struct Chance(Seeded);

impl Chance {
    fn below(&self, n: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes).unwrap();
        usize::try_from(u64::from_le_bytes(bytes) % n as u64).unwrap()
    }

    /// A range of at most `longest` of `len`, not empty unless that is 0.
    fn range(&self, len: usize, longest: usize) -> Range<usize> {
        if len == 0 {
            return 0..0;
        }
        let start =
            [self.below(len), self.below(len) / BLOCK * BLOCK, self.below(len) / WINDOW * WINDOW][self.below(3)];
        start..(start + 1 + self.below(longest)).min(len)
    }

    fn edit(&self, content: &mut Content) {
        for _ in 0..self.below(6) {
            let range = self.range(content.bytes.len(), [4096, 50_000, 400_000][self.below(3)]);
            match self.below(3) {
                0 => content.bytes[range].fill(0),
                _ => self.0.fill(&mut content.bytes[range]).unwrap(),
            }
        }
        content.lost.resize(content.blocks(), false);
        for _ in 0..self.below(3) {
            let range = self.range(content.blocks(), 30);
            let is_lost = self.below(2) == 0;
            content.lost[range].fill(is_lost);
        }
    }
}

fn play(repo: &Arc<Repository>, index: &Arc<Index>, seed: u64) {
    let chance = Chance(Seeded::new(seed));
    let size = |chance: &Chance| [0, 1, WINDOW, 3 * WINDOW, chance.below(3 * WINDOW)][chance.below(5)];
    let mut old = Content { bytes: vec![0; size(&chance) | (chance.below(2) * 700)], lost: Vec::new() };
    chance.0.fill(&mut old.bytes).unwrap();
    chance.edit(&mut old);
    let parent = write(repo, index, &Source::full(&old), None, 10).unwrap();
    let mut new = old.clone();
    if chance.below(3) == 0 {
        let by = 1 + chance.below(9000);
        new.bytes.resize(if chance.below(2) == 0 { size(&chance) } else { old.bytes.len() + by }, 0);
        new.lost.truncate(new.blocks());
        let grown = old.bytes.len().min(new.bytes.len())..;
        chance.0.fill(&mut new.bytes[grown]).unwrap();
    }
    chance.edit(&mut new);
    let differs: Vec<bool> = (0..new.blocks()).map(|block| old.block(block) != new.block(block)).collect();
    // The writer knows by itself what another size changed, and what could not be read before.
    let same_size = old.bytes.len().min(new.bytes.len()) / BLOCK;
    let mut changed: Vec<bool> = (0..new.blocks())
        .map(|block| differs[block] && !old.is_lost(block) && (block < same_size || old.bytes.len() == new.bytes.len()))
        .collect();
    changed.chunks_mut([1, 16][chance.below(2)]).for_each(|blocks| {
        let any = blocks.contains(&true) || chance.below(20) == 0;
        blocks.fill(any);
    });
    let windows = new.bytes.len().div_ceil(WINDOW);
    let says = (0..windows).map(|window| {
        let end = ((window + 1) * WINDOW).min(new.bytes.len());
        let blocks = window * WINDOW / BLOCK..end.div_ceil(BLOCK);
        let is_same = !differs[blocks.clone()].contains(&true) && old.bytes.len() == new.bytes.len();
        let is_zero = blocks.clone().all(|block| new.block(block).is_some_and(|bytes| is_zero(&bytes)));
        match chance.below(6) {
            0 => Say::Bytes,
            1 | 2 if is_zero => Say::Zero,
            1 if is_same => Say::Unchanged,
            _ => Say::Changed,
        }
    });
    let source = Source::new(&new, says.collect(), changed);
    let made = write(repo, index, &source, Some(parent), 20).unwrap();
    let full = write(repo, index, &Source::full(&new), None, 30).unwrap();
    assert!(map(&made.disks[0]) == map(&full.disks[0]), "the maps differ: {:?}", source.says);
    assert_eq!(made.disks[0].unreadable, full.disks[0].unreadable);
    if !new.lost.contains(&true) {
        assert!(read_all(repo, &made, "d").unwrap() == new.bytes);
    }
    let mut read = source.read.into_inner().unwrap();
    read.sort_by_key(|range| range.start);
    assert!(read.windows(2).all(|pair| pair[0].end <= pair[1].start), "a block is read twice: {read:?}");
    let whole = source.says.iter().enumerate().filter(|(_, say)| **say == Say::Bytes);
    let whole: usize = whole.map(|(w, _)| ((w + 1) * WINDOW).min(new.bytes.len()) - w * WINDOW).sum();
    let parts: usize = read.iter().map(|r| (r.end * BLOCK).min(new.bytes.len()) - r.start * BLOCK).sum();
    assert_eq!(made.stats.read, (whole + parts) as u64);
}

#[test]
fn the_map_is_that_of_a_full_backup_whatever_a_source_knows() {
    let (bench, repo) = Bench::fine();
    let index = bench.index(&repo);
    for seed in 0..150 {
        println!("seed {seed}");
        play(&repo, &index, seed);
    }
}

fn noise(len: usize) -> Content {
    let mut bytes = vec![0; len];
    Seeded::new(1).fill(&mut bytes).unwrap();
    Content { bytes, lost: Vec::new() }
}

#[test]
fn a_block_that_changed_in_a_large_disk_costs_less_than_a_mib() {
    let (bench, repo) = Bench::new();
    let index = bench.index(&repo);
    let old = noise(24 * WINDOW);
    let parent = write(&repo, &index, &Source::full(&old), None, 10).unwrap();
    let mut new = old.clone();
    new.bytes[13 * WINDOW + 300_000] ^= 1;
    let block = (13 * WINDOW + 300_000) / BLOCK;
    let made = write(&repo, &index, &Source::aware(&new, &[block..block + 1]), Some(parent.clone()), 20).unwrap();
    assert!((4096..1 << 20).contains(&made.stats.read), "{:?}", made.stats);
    assert!(made.stats.new_raw <= made.stats.read, "{:?}", made.stats);
    assert!(read_all(&repo, &made, "d").unwrap() == new.bytes);
    // What was called changed and was not is the parent's, leaf and all.
    let same = write(&repo, &index, &Source::aware(&old, &[block..block + 1]), Some(parent.clone()), 21).unwrap();
    assert_eq!((&same.disks[0].root, same.stats.new_raw), (&parent.disks[0].root, 0));
    // Of a disk that the parent does not have nothing can be unchanged.
    let none = write(&repo, &index, &Source::aware(&new, &[block..block + 1]), None, 22);
    assert_eq!(none.unwrap_err().kind(), Kind::Internal);
}

#[test]
fn nothing_is_kept_from_a_pack_that_was_found_damaged_where_a_window_is_read() {
    let (bench, repo) = Bench::new();
    let index = bench.index(&repo);
    let old = noise(4 * WINDOW);
    let parent = write(&repo, &index, &Source::full(&old), None, 10).unwrap();
    let hints = |snapshot: &Snapshot| {
        let leaves = leaves(&repo, &snapshot.disks[0]);
        let entries = leaves.into_iter().flat_map(|(window, leaf)| leaf.entries.into_iter().map(move |e| (window, e)));
        let packs = entries.map(|(window, entry)| match entry.content {
            LeafContent::Chunk { hint, .. } => (window, hint.pack),
            LeafContent::Unreadable => panic!("all of it can be read"),
        });
        packs.collect::<Vec<_>>()
    };
    let hurt = hints(&parent).into_iter().find(|(window, _)| *window == 2).unwrap().1;
    let name = pack::name(PackKind::Data, hurt);
    let mut bytes = bench.memory.get(&name).unwrap();
    bytes[5000] ^= 1;
    bench.memory.delete(&name).unwrap();
    assert_eq!(bench.memory.put(&name, &[&bytes]).unwrap(), Put::Created);
    let keeping = VerifyOptions { data: DataCheck::All, keep: Some(at(15)), ..VerifyOptions::default() };
    verify(&repo, keeping, &VerifyProgress::default(), &Cancel::default()).unwrap();
    assert_eq!(repo.shunned().unwrap(), [hurt].into());

    let mut new = old.clone();
    let changed: Vec<_> = (0..4).map(|window| window * WINDOW / BLOCK + 77).collect();
    changed.iter().for_each(|block| new.bytes[block * BLOCK] ^= 1);
    let changed: Vec<_> = changed.into_iter().map(|block| block..block + 1).collect();
    let made = write(&repo, &index, &Source::aware(&new, &changed), Some(parent), 20).unwrap();
    assert!(hints(&made).iter().all(|(_, pack)| *pack != hurt));
    assert!(read_all(&repo, &made, "d").unwrap() == new.bytes);
}

#[test]
fn a_window_whose_leaf_is_lost_is_read_whole() {
    let (bench, repo) = Bench::new();
    let old = noise(3 * WINDOW + 5000);
    let parent = back_up(&repo, &bench.index(&repo), &[("d", &old.bytes)], None, 10);
    for object in list_sorted(&*bench.memory, "trees/").unwrap() {
        bench.memory.delete(&object.name).unwrap();
    }
    let repo = bench.open(&pass("secret")).unwrap();
    let mut new = old.clone();
    new.bytes[WINDOW] ^= 1;
    let block = WINDOW / BLOCK;
    let source = Source::aware(&new, &[block..block + 1]);
    let made = write(&repo, &bench.index(&repo), &source, Some(parent), 20).unwrap();
    assert_eq!(made.stats.read, new.bytes.len() as u64);
    assert!(read_all(&repo, &made, "d").unwrap() == new.bytes);
}
