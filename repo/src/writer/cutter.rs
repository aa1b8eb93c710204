//! One worker of a backup: windows in, chunks and drafts of leaves out.
//!
//! ```text
//!   source.next -> chunker -> chunk id -> parent's leaf? pending? index? -> (new) compress -> packer
//! ```
//!
//! Not here: sealing, placing and uploading, which the packer does for all workers. What holds: a worker owns one window buffer
//! and one compressed chunk; everything it says about a window comes through one channel in order, chunks first. Of a window that
//! was read nothing is taken over from packs that were found damaged, nor from a leaf that cannot be read.

use super::Progress;
use super::packer::Pending;
use crate::cancel::Cancel;
use crate::chunker::{DiskChunker, Piece};
use crate::crypto::{Codec, IdKey};
use crate::disk_map::{BLOCK, Hint, Leaf, LeafContent, LeafEntry, Node};
use crate::error::{Error, Kind, Result};
use crate::id::{ChunkId, PackUid};
use crate::index::{Index, Trust};
use crate::location::{Location, Stored};
use crate::nodes::{Nodes, Root};
use crate::seal::Compressor;
use crate::tree::Placed;
use crate::window::{Filled, Window, WindowSource};
use crossbeam_channel::Sender;
use std::collections::HashSet;
use std::sync::atomic::Ordering::Relaxed;

/// What a worker tells the packer.
pub(super) enum Message {
    /// A chunk that nobody seems to have, compressed. The k-th of its window fills the k-th [`DraftContent::New`].
    Chunk { window: u64, id: ChunkId, raw_len: u32, codec: Codec, bytes: Vec<u8> },
    /// All chunks of a window were sent.
    Window { window: u64, outcome: Outcome },
}

/// What became of a window.
pub(super) enum Outcome {
    /// It reads as zeroes.
    Zero,
    /// It is the parent's, node and all; so many of its bytes are unreadable there.
    Parent { leaf: Placed, raw: Vec<u8>, unreadable: u64 },
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
    /// It was sent to the packer.
    New(ChunkId),
    /// The source could not be read here.
    Unreadable,
}

/// Everything a worker needs; shared parts are borrowed.
pub(super) struct Cutter<'a> {
    pub(super) chunker: &'a DiskChunker,
    pub(super) id_key: &'a IdKey,
    pub(super) index: &'a Index,
    pub(super) trust: &'a Trust,
    /// Packs that are not to be relied on anew.
    pub(super) shunned: &'a HashSet<PackUid>,
    pub(super) pending: &'a Pending,
    pub(super) nodes: &'a Nodes,
    pub(super) parent: &'a Root,
    pub(super) progress: &'a Progress,
    pub(super) compressor: Compressor,
    pub(super) out: Sender<Message>,
}

impl Cutter<'_> {
    /// Works until the source ends, an error, or a request to stop.
    pub(super) fn run(&mut self, source: &dyn WindowSource, window_len: usize, stop: &[&Cancel]) -> Result<()> {
        let mut window = Window { bytes: Vec::with_capacity(window_len), unreadable: Vec::new() };
        loop {
            for cancel in stop {
                cancel.check()?;
            }
            window.unreadable.clear();
            let (index, outcome) = match source.next(&mut window)? {
                Filled::End => return Ok(()),
                Filled::Zero(index) => (index, Outcome::Zero),
                Filled::Unchanged(index) => (index, self.unchanged(index)?),
                Filled::Bytes(index) => (index, self.cut(index, &mut window)?),
            };
            self.send(Message::Window { window: index, outcome })?;
        }
    }

    /// Takes a window over from the parent, whose subtree need not even be read.
    fn unchanged(&self, window: u64) -> Result<Outcome> {
        let found = self.nodes.leaf(self.parent, window).map_err(|e| {
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

    fn cut(&mut self, window: u64, buffer: &mut Window) -> Result<Outcome> {
        let len = buffer.bytes.len();
        self.progress.read.fetch_add(len as u64, Relaxed);
        buffer.bytes.resize(len.next_multiple_of(BLOCK as usize), 0);
        // No chunk may cover what was not read: whatever a source left there is nobody's content.
        for range in &buffer.unreadable {
            let unread =
                buffer.bytes.get_mut(range.start as usize..(range.end as usize).next_multiple_of(BLOCK as usize));
            unread.ok_or_else(|| Error::internal("a source could not read bytes outside of its window"))?.fill(0);
        }
        let parent = match self.nodes.leaf(self.parent, window) {
            Err(e) if e.kind() == Kind::Corrupt => None,
            found => found?,
        };
        let parent_leaf = parent.as_ref().map(|f| f.leaf()).transpose()?;
        let (mut drafts, mut covered) = (Vec::new(), 0);
        let chunker = self.chunker;
        // Each chunk is cut, named and compressed while the processor's cache still has it.
        for piece in chunker.window(&buffer.bytes)? {
            let Piece::Chunk(range) = piece else { continue };
            let bytes =
                buffer.bytes.get(range.clone()).ok_or_else(|| Error::internal("the chunker cut outside its window"))?;
            covered += bytes.len();
            let id = self.id_key.chunk_id(bytes);
            let content = self.place(window, id, range.start, bytes, parent_leaf)?;
            drafts.push(Draft { start: block(range.start)?, blocks: block(range.len())?, content });
        }
        self.progress.zero.fetch_add(buffer.bytes.len().saturating_sub(covered) as u64, Relaxed);
        for range in &buffer.unreadable {
            let (start, len) = (range.start as usize, (range.end - range.start) as usize);
            self.progress.unreadable.fetch_add(len as u64, Relaxed);
            let blocks = block(len.next_multiple_of(BLOCK as usize))?;
            drafts.push(Draft { start: block(start)?, blocks, content: DraftContent::Unreadable });
        }
        drafts.sort_by_key(|d| d.start);
        if drafts.is_empty() {
            return Ok(Outcome::Zero);
        }
        if let (Some(found), Some(leaf)) = (&parent, parent_leaf)
            && let Some(stored) = found.stored
            && same_content(&drafts, leaf, self.shunned)
        {
            return parents(window, stored, &found.node, leaf);
        }
        Ok(Outcome::Draft(drafts))
    }

    /// Finds where a chunk lies already, or compresses it and sends it off.
    fn place(
        &mut self,
        window: u64,
        id: ChunkId,
        start: usize,
        bytes: &[u8],
        parent: Option<&Leaf>,
    ) -> Result<DraftContent> {
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
        let bytes = compressed.to_vec();
        self.send(Message::Chunk { window, id, raw_len, codec, bytes })?;
        Ok(DraftContent::New(id))
    }

    fn send(&self, message: Message) -> Result<()> {
        self.out.send(message).map_err(|_| super::stopped())
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
    Ok(Outcome::Parent { leaf: placed, raw, unreadable })
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

fn block(bytes: usize) -> Result<u16> {
    u16::try_from(bytes / BLOCK as usize).map_err(|_| Error::internal("a window with more than 65,535 blocks"))
}
