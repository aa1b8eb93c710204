//! One worker of a backup: windows in, chunks and drafts of leaves out.
//!
//! ```text
//!   source.next -> Bytes    chunker -----------------------> chunk id -> parent's leaf? pending? index? -> (new) compress -> packer
//!                  Changed  rechunk <- source.read_blocks --/
//!                           (kept: the parent's entry)
//! ```
//!
//! Not here: sealing, placing and uploading, which the packer does for all workers. What holds: a worker owns one window buffer
//! and that window's new chunks, compressed; it says all of a window at once, so that its chunks come to lie side by side in a pack,
//! however many workers there are: whoever reads the disk in order reads the pack in order. Of a window that was read, in whole or in
//! part, nothing is taken over from packs that were found damaged, nor from a leaf that cannot be read; what the parent could not read
//! is asked for again. However a window came, one content gives one leaf.

use super::Progress;
use super::packer::Pending;
use crate::cancel::Cancel;
use crate::chunker::{DiskChunker, OldWindow, Piece, Recut, rechunk};
use crate::crypto::{Codec, IdKey};
use crate::disk_map::{BLOCK, Hint, Leaf, LeafContent, LeafEntry, Node};
use crate::error::{Error, Kind, Result};
use crate::id::{ChunkId, PackUid};
use crate::index::{Index, Trust};
use crate::location::{Location, Stored};
use crate::nodes::{Found, Nodes, Root};
use crate::seal::Compressor;
use crate::tree::Placed;
use crate::window::{Filled, Window, WindowSource};
use crossbeam_channel::Sender;
use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

const BLOCK_LEN: usize = BLOCK as usize;

/// A window that a worker is through with.
pub(super) struct Done {
    pub(super) window: u64,
    pub(super) outcome: Outcome,
}

/// What became of a window.
pub(super) enum Outcome {
    /// It reads as zeroes.
    Zero,
    /// It is the parent's, node and all; so many of its bytes are unreadable there, and the others lie in these packs.
    Parent { leaf: Placed, raw: Vec<u8>, unreadable: u64, packs: BTreeSet<PackUid> },
    /// A leaf, still without the places of its new chunks.
    Draft(Vec<Draft>),
}

/// An entry of a leaf in the making.
pub(super) struct Draft {
    pub(super) start: u16,
    pub(super) blocks: u16,
    pub(super) content: DraftContent,
}

/// What is known of an entry.
pub(super) enum DraftContent {
    /// The parent's leaf has this chunk: the parent's own check covers it.
    Parent(ChunkId, Hint),
    /// The index, or this run, has it.
    Known(ChunkId, Location),
    /// Nobody seems to have it: here it is, compressed.
    New { id: ChunkId, raw_len: u32, codec: Codec, bytes: Vec<u8> },
    /// The source could not be read here.
    Unreadable,
}

/// The disk as the parent snapshot has it.
pub(super) struct Before {
    pub(super) root: Root,
    /// In bytes.
    pub(super) size: u64,
}

/// Everything a worker needs; shared parts are borrowed.
pub(super) struct Cutter<'a> {
    /// Bytes of a window.
    pub(super) window_len: usize,
    pub(super) chunker: &'a DiskChunker,
    pub(super) id_key: &'a IdKey,
    pub(super) index: &'a Index,
    pub(super) trust: &'a Trust,
    /// Packs that are not to be relied on anew.
    pub(super) shunned: &'a HashSet<PackUid>,
    pub(super) pending: &'a Pending,
    pub(super) nodes: &'a Nodes,
    /// `None`: the parent does not have this disk, or there is none.
    pub(super) parent: Option<&'a Before>,
    pub(super) progress: &'a Progress,
    pub(super) compressor: Compressor,
    pub(super) out: Sender<Done>,
}

impl Cutter<'_> {
    /// Works until the source ends, an error, or a request to stop.
    pub(super) fn run(&mut self, source: &dyn WindowSource, stop: &[&Cancel]) -> Result<()> {
        let mut window = Window { bytes: Vec::with_capacity(self.window_len), ..Window::default() };
        loop {
            for cancel in stop {
                cancel.check()?;
            }
            window.unreadable.clear();
            window.changed.clear();
            let (index, outcome) = match source.next(&mut window)? {
                Filled::End => return Ok(()),
                Filled::Zero(index) => (index, Outcome::Zero),
                Filled::Unchanged(index) => (index, self.unchanged(index)?),
                Filled::Bytes(index) => (index, self.cut(index, &mut window)?),
                Filled::Changed { index, len } => (index, self.recut(index, len, &window.changed, source)?),
            };
            self.out.send(Done { window: index, outcome }).map_err(|_| super::stopped())?;
        }
    }

    /// What the parent has, of which a source may call something unchanged.
    fn before(&self) -> Result<&Before> {
        self.parent.ok_or_else(|| Error::internal("a source calls unchanged what the backup before does not have"))
    }

    /// Takes a window over from the parent, whose subtree need not even be read.
    fn unchanged(&self, window: u64) -> Result<Outcome> {
        let found = self.nodes.leaf(&self.before()?.root, window).map_err(|e| {
            e.within("what the source calls unchanged cannot be read of the backup before; 'coffer heal' may help")
        })?;
        let Some(found) = found else { return Ok(Outcome::Zero) };
        let leaf = found.leaf()?;
        let bytes = leaf.entries.iter().map(|e| u64::from(e.len_bytes())).sum();
        self.progress.reused.fetch_add(bytes, Relaxed);
        match found.stored {
            Some(placed) => parents(window, placed, &found.node, leaf),
            None => Ok(Outcome::Draft(drafts_of_parent(leaf))),
        }
    }

    /// Cuts a window that was read.
    fn cut(&mut self, window: u64, buffer: &mut Window) -> Result<Outcome> {
        let len = buffer.bytes.len();
        self.progress.read.fetch_add(len as u64, Relaxed);
        buffer.bytes.resize(len.next_multiple_of(BLOCK as usize), 0);
        let lost = buffer.unreadable.iter().map(|r| r.start as usize / BLOCK_LEN..(r.end as usize).div_ceil(BLOCK_LEN));
        let lost: Vec<_> = lost.collect();
        blank(&mut buffer.bytes, 0, &lost)?;
        let parent = match self.parent.map(|before| self.nodes.leaf(&before.root, window)) {
            Some(Err(e)) if e.kind() == Kind::Corrupt => None,
            found => found.transpose()?.flatten(),
        };
        let leaf = parent.as_ref().map(Found::leaf).transpose()?;
        let (mut drafts, mut covered) = (Vec::new(), 0);
        let chunker = self.chunker;
        // Each chunk is cut, named and compressed while the processor's cache still has it.
        for piece in chunker.window(&buffer.bytes)? {
            let Piece::Chunk(range) = piece else { continue };
            let bytes =
                buffer.bytes.get(range.clone()).ok_or_else(|| Error::internal("the chunker cut outside its window"))?;
            covered += bytes.len();
            drafts.push(self.draft(range.start / BLOCK_LEN, bytes, leaf)?);
        }
        self.progress.zero.fetch_add(buffer.bytes.len().saturating_sub(covered) as u64, Relaxed);
        self.leaf(window, len, drafts, lost, parent.as_ref())
    }

    /// Cuts a window where it may have changed, reading what that takes; elsewhere it is the parent's, unread.
    fn recut(&mut self, window: u64, len: usize, named: &[Range<usize>], source: &dyn WindowSource) -> Result<Outcome> {
        let before = self.before()?;
        let blocks = len.div_ceil(BLOCK_LEN);
        let mut changed = named.to_vec();
        changed.extend(self.resized(before, window, len));
        let parent = match self.nodes.leaf(&before.root, window) {
            Err(e) if e.kind() == Kind::Corrupt => {
                changed.push(0..blocks);
                None
            }
            found => found?,
        };
        let leaf = parent.as_ref().map(Found::leaf).transpose()?;
        let mut old = Vec::new();
        for entry in leaf.map_or(&[][..], |leaf| &leaf.entries) {
            let range = usize::from(entry.start)..usize::from(entry.start) + usize::from(entry.blocks);
            match entry.content {
                LeafContent::Chunk { id, hint } if !self.shunned.contains(&hint.pack) => old.push((range, id, hint)),
                _ => changed.push(range),
            }
        }
        let chunks: Vec<_> = old.iter().map(|(range, ..)| range.clone()).collect();
        let changed = joined(changed);
        let (mut drafts, mut lost, mut read, mut covered) = (Vec::new(), Vec::new(), 0, 0);
        let (chunker, progress) = (self.chunker, self.progress);
        rechunk(
            chunker,
            OldWindow { blocks, chunks: &chunks, changed: &changed },
            &mut |blocks, out| {
                let (first, end, known) = (blocks.start, (blocks.end * BLOCK_LEN).min(len), lost.len());
                progress.read.fetch_add((end - first * BLOCK_LEN) as u64, Relaxed);
                read += out.len();
                source.read_blocks(window, blocks, out, &mut lost)?;
                blank(out, first, lost.get(known..).unwrap_or_default())
            },
            &mut |chunk| {
                drafts.push(match chunk {
                    Recut::Kept(index) => {
                        let (range, id, hint) = old.get(index).ok_or_else(|| Error::internal("no such chunk"))?;
                        progress.reused.fetch_add((range.len() * BLOCK_LEN) as u64, Relaxed);
                        let content = DraftContent::Parent(*id, *hint);
                        Draft { start: small(range.start)?, blocks: small(range.len())?, content }
                    }
                    Recut::Fresh { blocks, bytes } => {
                        covered += bytes.len();
                        self.draft(blocks.start, bytes, leaf)?
                    }
                });
                Ok(())
            },
        )?;
        progress.zero.fetch_add(read.saturating_sub(covered) as u64, Relaxed);
        self.leaf(window, len, drafts, lost, parent.as_ref())
    }

    /// What changed of a window by the disk's having another size than before, whatever the source says. The last block of either may
    /// have been padded with zeroes.
    fn resized(&self, before: &Before, window: u64, len: usize) -> Option<Range<usize>> {
        let start = window.saturating_mul(self.window_len as u64);
        let old = before.size.saturating_sub(start).min(self.window_len as u64);
        let old = usize::try_from(old).unwrap_or(self.window_len);
        (old != len).then(|| old.min(len) / BLOCK_LEN..len.div_ceil(BLOCK_LEN)).filter(|range| !range.is_empty())
    }

    /// A chunk as it will stand in its leaf.
    fn draft(&mut self, start: usize, bytes: &[u8], parent: Option<&Leaf>) -> Result<Draft> {
        let id = self.id_key.chunk_id(bytes);
        let content = self.place(id, start * BLOCK_LEN, bytes, parent)?;
        Ok(Draft { start: small(start)?, blocks: small(bytes.len() / BLOCK_LEN)?, content })
    }

    /// What a window of `len` bytes comes to: these chunks and what was `lost`, or the parent's leaf if that is the same.
    fn leaf(
        &self,
        window: u64,
        len: usize,
        mut drafts: Vec<Draft>,
        lost: Vec<Range<usize>>,
        parent: Option<&Found>,
    ) -> Result<Outcome> {
        for range in joined(lost) {
            let bytes = (range.end * BLOCK_LEN).min(len).saturating_sub(range.start * BLOCK_LEN);
            self.progress.unreadable.fetch_add(bytes as u64, Relaxed);
            let (start, blocks) = (small(range.start)?, small(range.len())?);
            drafts.push(Draft { start, blocks, content: DraftContent::Unreadable });
        }
        drafts.sort_by_key(|d| d.start);
        if drafts.is_empty() {
            return Ok(Outcome::Zero);
        }
        if let Some(found) = parent
            && let Some(stored) = found.stored
            && same_content(&drafts, found.leaf()?, self.shunned)
        {
            return parents(window, stored, &found.node, found.leaf()?);
        }
        Ok(Outcome::Draft(drafts))
    }

    /// Finds where a chunk lies already, or compresses it.
    fn place(&mut self, id: ChunkId, start: usize, bytes: &[u8], parent: Option<&Leaf>) -> Result<DraftContent> {
        let raw_len = u32::try_from(bytes.len()).map_err(|_| Error::internal("a chunk of 4 GiB"))?;
        let hint = parent.and_then(|leaf| hint_at(leaf, start, &id));
        if let Some(hint) = hint.filter(|hint| !self.shunned.contains(&hint.pack)) {
            self.progress.reused.fetch_add(u64::from(raw_len), Relaxed);
            return Ok(DraftContent::Parent(id, hint));
        }
        let known = match self.pending.get(&id)? {
            Some(at) => Some(at),
            None => self.index.lookup(&Stored::Chunk(id), self.trust)?,
        };
        if let Some(at) = known {
            self.progress.reused.fetch_add(u64::from(raw_len), Relaxed);
            return Ok(DraftContent::Known(id, at));
        }
        let (codec, compressed) = self.compressor.compress(bytes)?;
        Ok(DraftContent::New { id, raw_len, codec, bytes: compressed.to_vec() })
    }
}

/// The parent's hint for `id`, if its leaf has that chunk at byte `start`: most chunks of a changed window lie where they
/// were, the others are found through the index.
fn hint_at(leaf: &Leaf, start: usize, id: &ChunkId) -> Option<Hint> {
    let at = leaf.first_after(start as u64);
    match leaf.entries.get(at)?.content {
        LeafContent::Chunk { id: theirs, hint } if theirs == *id => Some(hint),
        _ => None,
    }
}

/// The parent's leaf as it is. Window 0's may turn out to be the root, which lies in the claim: its bytes go along.
fn parents(window: u64, placed: Placed, node: &Node, leaf: &Leaf) -> Result<Outcome> {
    let lost = leaf.entries.iter().filter(|e| e.content == LeafContent::Unreadable);
    let unreadable = lost.map(|e| u64::from(e.len_bytes())).sum();
    let raw = if window == 0 { node.encode()? } else { Vec::new() };
    let packs = leaf.entries.iter().filter_map(|entry| match &entry.content {
        LeafContent::Chunk { hint, .. } => Some(hint.pack),
        LeafContent::Unreadable => None,
    });
    Ok(Outcome::Parent { leaf: placed, raw, unreadable, packs: packs.collect() })
}

fn drafts_of_parent(leaf: &Leaf) -> Vec<Draft> {
    let draft = |e: &LeafEntry| {
        let content = match e.content {
            LeafContent::Chunk { id, hint } => DraftContent::Parent(id, hint),
            LeafContent::Unreadable => DraftContent::Unreadable,
        };
        Draft { start: e.start, blocks: e.blocks, content }
    };
    leaf.entries.iter().map(draft).collect()
}

fn same_content(drafts: &[Draft], leaf: &Leaf, shunned: &HashSet<PackUid>) -> bool {
    drafts.len() == leaf.entries.len()
        && drafts.iter().zip(&leaf.entries).all(|(d, e)| {
            let same = match (&d.content, &e.content) {
                (DraftContent::Unreadable, LeafContent::Unreadable) => true,
                (DraftContent::Parent(a, _) | DraftContent::Known(a, _), LeafContent::Chunk { id, hint }) => {
                    a == id && !shunned.contains(&hint.pack)
                }
                _ => false,
            };
            same && d.start == e.start && d.blocks == e.blocks
        })
}

/// No chunk may cover what was not read: whatever a source left there is nobody's content. `first` is the number of the first block
/// of `bytes`.
fn blank(bytes: &mut [u8], first: usize, lost: &[Range<usize>]) -> Result<()> {
    for range in lost {
        let from = range.start.checked_sub(first).map(|from| from * BLOCK_LEN);
        let part = from.and_then(|from| bytes.get_mut(from..range.end.saturating_sub(first) * BLOCK_LEN));
        part.ok_or_else(|| Error::internal("a source could not read bytes that it was not asked for"))?.fill(0);
    }
    Ok(())
}

/// The same blocks, in order, ranges that meet as one.
fn joined(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges.into_iter().filter(|range| !range.is_empty()) {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

fn small(blocks: usize) -> Result<u16> {
    u16::try_from(blocks).map_err(|_| Error::internal("a window with more than 65,535 blocks"))
}
