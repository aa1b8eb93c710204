//! The disk map: one disk's ordered content as a tree of nodes with a fixed fan-out, and the bytes of its nodes.
//!
//! ```text
//!   root (in the claim)          level L covers window * 256^L bytes
//!     |-- inner -- inner -- leaf one window: chunks in order, with hints where they lie
//!     |-- (no entry: an all-zero subtree)
//! ```
//!
//! Not here: I/O and encryption; [`crate::reader`] fetches nodes, [`crate::writer`] stores them. What holds: one content has
//! one node id, whatever its hints say; a decoded node is canonical (sorted, no overlap, within its window, not empty), so
//! nobody else needs to check. FORMAT.md section 6.

use crate::error::{Error, Kind, Result};
use crate::id::{ChunkId, NodeId, PackUid};
use crate::location::Location;
use std::collections::HashMap;

/// Bytes of a block: where chunks begin and end.
pub const BLOCK: u32 = 4096;
/// Children of an inner node.
pub const FANOUT: u64 = 256;
/// Largest raw node accepted, in bytes. A leaf of a 64 MiB window with a chunk a block stays below it.
pub const NODE_MAX: u32 = 1 << 20;

const HEADER: usize = 8;
const LEAF: u8 = 1;
const INNER: u8 = 2;
const VERSION: u8 = 1;
const CHUNK: u8 = 1;
const UNREADABLE: u8 = 2;
const LEAF_IDENTITY: usize = 37;
const INNER_IDENTITY: usize = 33;
const LEAF_HINT: usize = 10;
const INNER_HINT: usize = 28;

/// Where a chunk was when its leaf was written. A hint: gc may have moved it since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The data pack.
    pub pack: PackUid,
    /// Byte offset of the frame in the pack.
    pub offset: u32,
    /// Bytes of the frame, tag included.
    pub stored_len: u32,
}

/// What an entry of a leaf holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeafContent {
    /// A stored chunk.
    Chunk {
        /// Its id.
        id: ChunkId,
        /// Where it was.
        hint: Hint,
    },
    /// The source could not be read here.
    Unreadable,
}

/// A run of blocks in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafEntry {
    /// First block, counted from the window's start.
    pub start: u16,
    /// Number of blocks, at least one.
    pub blocks: u16,
    /// What they hold.
    pub content: LeafContent,
}

impl LeafEntry {
    /// Byte offset of the first byte after the entry, from the window's start.
    #[must_use]
    pub fn end_bytes(&self) -> u64 {
        (u64::from(self.start) + u64::from(self.blocks)) * u64::from(BLOCK)
    }

    /// Byte offset of the entry from the window's start.
    #[must_use]
    pub fn start_bytes(&self) -> u64 {
        u64::from(self.start) * u64::from(BLOCK)
    }

    /// Length in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u32 {
        u32::from(self.blocks) * BLOCK
    }
}

/// One window: entries in order; blocks between them are zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Sorted, without overlap.
    pub entries: Vec<LeafEntry>,
}

/// A child of an inner node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// Which part of the parent it covers.
    pub slot: u8,
    /// Its id.
    pub id: NodeId,
    /// Where it was: a tree pack.
    pub hint: Location,
}

/// A node above the leaves; slots without a child are zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inner {
    /// 1 and more.
    pub level: u8,
    /// Sorted by slot.
    pub children: Vec<Child>,
}

/// A node of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// Level 0.
    Leaf(Leaf),
    /// Level 1 and more.
    Inner(Inner),
}

impl Inner {
    /// The child at `slot`.
    #[must_use]
    pub fn child(&self, slot: u8) -> Option<&Child> {
        self.children.binary_search_by_key(&slot, |c| c.slot).ok().and_then(|i| self.children.get(i))
    }
}

impl Leaf {
    /// Index of the first entry that ends after `byte` of the window.
    #[must_use]
    pub fn first_after(&self, byte: u64) -> usize {
        self.entries.partition_point(|e| e.end_bytes() <= byte)
    }
}

impl Node {
    /// 0 for a leaf.
    #[must_use]
    pub fn level(&self) -> u8 {
        match self {
            Node::Leaf(_) => 0,
            Node::Inner(inner) => inner.level,
        }
    }

    /// Bytes this node takes in a cache, about.
    #[must_use]
    pub fn weight(&self) -> u64 {
        let (count, each) = match self {
            Node::Leaf(leaf) => (leaf.entries.len(), size_of::<LeafEntry>()),
            Node::Inner(inner) => (inner.children.len(), size_of::<Child>()),
        };
        (count * each + size_of::<Node>()) as u64
    }

    /// The node's raw bytes. Fails with `Internal` when a leaf has more packs or entries than the format counts.
    pub fn encode(&self) -> Result<Vec<u8>> {
        match self {
            Node::Leaf(leaf) => encode_leaf(leaf),
            Node::Inner(inner) => encode_inner(inner),
        }
    }

    /// Reads and checks raw bytes. `window` is the repository's window in bytes.
    pub fn decode(raw: &[u8], window: u64) -> Result<Node> {
        let mut r = Bytes(raw);
        let kind = r.u8()?;
        let version = r.u8()?;
        let level = r.u8()?;
        let reserved = r.u8()?;
        let n = r.u32()?;
        if version != VERSION {
            return Err(Error::new(
                Kind::Unsupported,
                format!("a disk-map node of version {version}; use a newer coffer"),
            ));
        }
        if reserved != 0 || n == 0 {
            return Err(damaged("its header"));
        }
        let node = match kind {
            LEAF if level == 0 => Node::Leaf(decode_leaf(&mut r, n, window)?),
            INNER if level > 0 => Node::Inner(decode_inner(&mut r, n, level)?),
            _ => return Err(damaged("its type")),
        };
        if !r.0.is_empty() {
            return Err(damaged("its length"));
        }
        Ok(node)
    }
}

/// The part of a node's raw bytes that its id hashes: everything but the hints.
pub fn identity(raw: &[u8]) -> Result<&[u8]> {
    let mut r = Bytes(raw);
    let kind = r.u8()?;
    let _ = r.take(3)?;
    let n = r.u32()? as usize;
    let each = if kind == LEAF { LEAF_IDENTITY } else { INNER_IDENTITY };
    let end = n.checked_mul(each).and_then(|l| l.checked_add(HEADER));
    end.and_then(|end| raw.get(..end)).ok_or_else(|| damaged("its length"))
}

/// How windows and levels divide a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a window, a power of two.
    pub window: u64,
}

impl Geometry {
    /// Number of windows of a disk of `size` bytes.
    #[must_use]
    pub fn windows(&self, size: u64) -> u64 {
        size.div_ceil(self.window)
    }

    /// Level of the root of a disk of `size` bytes: the smallest that covers it.
    #[must_use]
    pub fn root_level(&self, size: u64) -> u8 {
        let windows = self.windows(size);
        let mut level = 0u8;
        let mut covered = 1u64;
        while covered < windows {
            covered = covered.saturating_mul(FANOUT);
            level += 1;
        }
        level
    }

    /// Number of windows that a node of `level` covers.
    #[must_use]
    pub fn windows_of_level(&self, level: u8) -> u64 {
        1u64.checked_shl(8 * u32::from(level)).unwrap_or(u64::MAX)
    }

    /// The slot of window `window` in its ancestor of `level` (1 and more).
    #[must_use]
    pub fn slot(&self, window: u64, level: u8) -> u8 {
        let shift = 8 * (u32::from(level) - 1);
        window.checked_shr(shift).unwrap_or(0).to_le_bytes()[0]
    }
}

fn encode_leaf(leaf: &Leaf) -> Result<Vec<u8>> {
    let mut packs: Vec<PackUid> = Vec::new();
    let mut index_of: HashMap<PackUid, u16> = HashMap::new();
    let too_many = || Error::internal("a leaf names more packs than its format can count");
    let mut hints = Vec::with_capacity(leaf.entries.len() * LEAF_HINT);
    for entry in &leaf.entries {
        match &entry.content {
            LeafContent::Chunk { hint, .. } => {
                let index = match index_of.get(&hint.pack) {
                    Some(i) => *i,
                    None => {
                        let i = u16::try_from(packs.len()).map_err(|_| too_many())?;
                        packs.push(hint.pack);
                        index_of.insert(hint.pack, i);
                        i
                    }
                };
                hints.extend_from_slice(&index.to_le_bytes());
                hints.extend_from_slice(&hint.offset.to_le_bytes());
                hints.extend_from_slice(&hint.stored_len.to_le_bytes());
            }
            LeafContent::Unreadable => hints.extend_from_slice(&[0; LEAF_HINT]),
        }
    }
    let mut out = header(LEAF, 0, leaf.entries.len())?;
    for entry in &leaf.entries {
        out.extend_from_slice(&entry.start.to_le_bytes());
        out.extend_from_slice(&entry.blocks.to_le_bytes());
        match &entry.content {
            LeafContent::Chunk { id, .. } => {
                out.push(CHUNK);
                out.extend_from_slice(&id.0);
            }
            LeafContent::Unreadable => {
                out.push(UNREADABLE);
                out.extend_from_slice(&[0; 32]);
            }
        }
    }
    out.extend_from_slice(&u32::try_from(packs.len()).map_err(|_| too_many())?.to_le_bytes());
    for pack in &packs {
        out.extend_from_slice(&pack.0);
    }
    out.extend_from_slice(&hints);
    Ok(out)
}

fn encode_inner(inner: &Inner) -> Result<Vec<u8>> {
    let mut out = header(INNER, inner.level, inner.children.len())?;
    for child in &inner.children {
        out.push(child.slot);
        out.extend_from_slice(&child.id.0);
    }
    for child in &inner.children {
        out.extend_from_slice(&child.hint.pack.0);
        out.extend_from_slice(&child.hint.offset.to_le_bytes());
        out.extend_from_slice(&child.hint.stored_len.to_le_bytes());
        out.extend_from_slice(&child.hint.raw_len.to_le_bytes());
    }
    Ok(out)
}

fn header(kind: u8, level: u8, n: usize) -> Result<Vec<u8>> {
    let n = u32::try_from(n).map_err(|_| Error::internal("a disk-map node with more than 2^32 entries"))?;
    let mut out = vec![kind, VERSION, level, 0];
    out.extend_from_slice(&n.to_le_bytes());
    Ok(out)
}

fn decode_leaf(r: &mut Bytes<'_>, n: u32, window: u64) -> Result<Leaf> {
    let identities = r.array(n, LEAF_IDENTITY)?;
    let packs = r.u32()?;
    let table = r.array(packs, PackUid::LEN)?;
    let hints = r.array(n, LEAF_HINT)?;
    let window_blocks = window / u64::from(BLOCK);
    let mut entries = Vec::with_capacity(n as usize);
    let mut free_from = 0u64;
    for (identity, hint) in identities.chunks_exact(LEAF_IDENTITY).zip(hints.chunks_exact(LEAF_HINT)) {
        let (mut i, mut h) = (Bytes(identity), Bytes(hint));
        let (start, blocks, kind, id) = (i.u16()?, i.u16()?, i.u8()?, ChunkId::from_slice(i.take(32)?)?);
        let (pack, offset, stored_len) = (h.u16()?, h.u32()?, h.u32()?);
        let end = u64::from(start) + u64::from(blocks);
        if u64::from(start) < free_from || blocks == 0 || end > window_blocks {
            return Err(damaged("its order"));
        }
        free_from = end;
        let content = match kind {
            CHUNK => {
                let at = usize::from(pack) * PackUid::LEN;
                let uid = table.get(at..at + PackUid::LEN).ok_or_else(|| damaged("its pack table"))?;
                LeafContent::Chunk { id, hint: Hint { pack: PackUid::from_slice(uid)?, offset, stored_len } }
            }
            UNREADABLE if id == ChunkId::default() && (pack, offset, stored_len) == (0, 0, 0) => {
                LeafContent::Unreadable
            }
            _ => return Err(damaged("an entry's type")),
        };
        entries.push(LeafEntry { start, blocks, content });
    }
    Ok(Leaf { entries })
}

fn decode_inner(r: &mut Bytes<'_>, n: u32, level: u8) -> Result<Inner> {
    let identities = r.array(n, INNER_IDENTITY)?;
    let hints = r.array(n, INNER_HINT)?;
    let mut children: Vec<Child> = Vec::with_capacity(n.min(256) as usize);
    for (identity, hint) in identities.chunks_exact(INNER_IDENTITY).zip(hints.chunks_exact(INNER_HINT)) {
        let (mut i, mut h) = (Bytes(identity), Bytes(hint));
        let (slot, id) = (i.u8()?, NodeId::from_slice(i.take(32)?)?);
        if children.last().is_some_and(|last| last.slot >= slot) {
            return Err(damaged("its order"));
        }
        let pack = PackUid::from_slice(h.take(16)?)?;
        let hint = Location { pack, offset: h.u32()?, stored_len: h.u32()?, raw_len: h.u32()? };
        if hint.raw_len > NODE_MAX || hint.stored_len > NODE_MAX + 16 {
            return Err(damaged("a child's length"));
        }
        children.push(Child { slot, id, hint });
    }
    Ok(Inner { level, children })
}

fn damaged(what: &str) -> Error {
    Error::corrupt(format!("a disk-map node is damaged: {what}"))
}

/// A cursor over untrusted bytes.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n).ok_or_else(|| damaged("it is truncated"))?;
        self.0 = rest;
        Ok(head)
    }

    fn array(&mut self, n: u32, each: usize) -> Result<&'a [u8]> {
        self.take((n as usize).checked_mul(each).ok_or_else(|| damaged("its length"))?)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| damaged("it is truncated"))
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.fixed()?))
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.fixed()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.fixed()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: u64 = 16 << 20;

    fn leaf_strategy() -> impl Strategy<Value = Leaf> {
        proptest::collection::vec((0u16..40, 1u16..64, any::<[u8; 32]>(), 0u8..5, any::<u32>(), any::<u32>()), 1..60)
            .prop_map(|runs| {
                let mut at = 0u16;
                let mut entries = Vec::new();
                for (gap, blocks, id, pack, offset, stored_len) in runs {
                    let start = at + gap;
                    if start + blocks > 4096 {
                        break;
                    }
                    at = start + blocks;
                    let content = if pack == 4 {
                        LeafContent::Unreadable
                    } else {
                        LeafContent::Chunk {
                            id: ChunkId(id),
                            hint: Hint { pack: PackUid([pack; 16]), offset, stored_len },
                        }
                    };
                    entries.push(LeafEntry { start, blocks, content });
                }
                if entries.is_empty() {
                    entries.push(LeafEntry { start: 0, blocks: 1, content: LeafContent::Unreadable });
                }
                Leaf { entries }
            })
    }

    fn inner_strategy() -> impl Strategy<Value = Inner> {
        (
            1u8..8,
            proptest::collection::btree_map(any::<u8>(), (any::<[u8; 32]>(), any::<[u8; 16]>(), any::<u32>()), 1..256),
        )
            .prop_map(|(level, slots)| {
                let child = |(slot, (id, pack, offset))| Child {
                    slot,
                    id: NodeId(id),
                    hint: Location { pack: PackUid(pack), offset, stored_len: 100, raw_len: 300 },
                };
                Inner { level, children: slots.into_iter().map(child).collect() }
            })
    }

    proptest! {
        #[test]
        fn nodes_round_trip(leaf in leaf_strategy(), inner in inner_strategy()) {
            for node in [Node::Leaf(leaf), Node::Inner(inner)] {
                let raw = node.encode().unwrap();
                prop_assert_eq!(Node::decode(&raw, WINDOW).unwrap(), node);
            }
        }

        #[test]
        fn ids_ignore_hints(leaf in leaf_strategy()) {
            let mut moved = leaf.clone();
            for e in &mut moved.entries {
                if let LeafContent::Chunk { hint, .. } = &mut e.content {
                    *hint = Hint { pack: PackUid([9; 16]), offset: 1, stored_len: 2 };
                }
            }
            let (a, b) = (Node::Leaf(leaf).encode().unwrap(), Node::Leaf(moved).encode().unwrap());
            prop_assert_eq!(identity(&a).unwrap(), identity(&b).unwrap());
        }

        #[test]
        fn decoding_never_panics_and_accepts_only_canonical_bytes(leaf in leaf_strategy(), at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>()) {
            let mut raw = Node::Leaf(leaf).encode().unwrap();
            let at = at.index(raw.len());
            if cut { raw.truncate(at) } else { raw[at] ^= 1 << bit }
            if let Ok(node) = Node::decode(&raw, WINDOW) {
                // Another node was read (ids guard its content): it must be one that we could have written, but for unused
                // or repeated rows of the pack table.
                prop_assert_eq!(Node::decode(&node.encode().unwrap(), WINDOW).unwrap(), node);
            }
        }
    }

    #[test]
    fn geometry_finds_levels_and_slots() {
        let g = Geometry { window: WINDOW };
        assert_eq!(
            [0, 1, WINDOW, WINDOW + 1, 256 * WINDOW, 256 * WINDOW + 1].map(|s| g.root_level(s)),
            [0, 0, 0, 1, 1, 2]
        );
        assert_eq!(g.root_level(64 << 40), 3);
        assert_eq!(g.root_level(u64::MAX), 5);
        let window = 0x01_02_03_04;
        assert_eq!([1, 2, 3, 4, 5].map(|l| g.slot(window, l)), [4, 3, 2, 1, 0]);
    }
}
