//! Where a frame lies, what it holds, and the kinds of pack: the words the writer, the index and the reader share.
//!
//! Not here: how a pack is laid out ([`crate::pack`]) and how places are remembered (the index, [`crate::index_delta`]). What
//! holds: a data pack holds chunks only, a tree pack nodes only, so that a pack's kind says what an id in it means; offsets
//! and lengths are bytes; every pack is shorter than 4 GiB.

use crate::error::{Error, Result};
use crate::id::{ChunkId, NodeId, PackUid};
use std::fmt;

/// The two kinds of pack, with their kind bytes of FORMAT.md section 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum PackKind {
    /// Sealed chunks under a random key of the pack's own.
    Data = 1,
    /// Disk-map nodes under the structure key.
    Tree = 2,
}

impl PackKind {
    /// Both kinds, for whoever lists all packs.
    pub const ALL: [PackKind; 2] = [PackKind::Data, PackKind::Tree];

    /// The kind byte in headers, associated data and index deltas.
    #[must_use]
    pub fn byte(self) -> u8 {
        self as u8
    }

    /// The kind a byte stands for; another byte is `Corrupt`.
    pub fn from_byte(byte: u8) -> Result<Self> {
        match byte {
            1 => Ok(PackKind::Data),
            2 => Ok(PackKind::Tree),
            other => Err(Error::corrupt(format!("{other} is not the kind of a pack"))),
        }
    }

    /// The prefix under which packs of this kind are listed, with its final slash.
    #[must_use]
    pub fn prefix(self) -> &'static str {
        match self {
            PackKind::Data => "packs/",
            PackKind::Tree => "trees/",
        }
    }
}

/// What a frame of a pack holds, by its whole id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stored {
    /// A chunk, in a data pack.
    Chunk(ChunkId),
    /// A disk-map node, in a tree pack.
    Node(NodeId),
}

impl Stored {
    /// The kind of pack this belongs into.
    #[must_use]
    pub fn pack_kind(self) -> PackKind {
        match self {
            Stored::Chunk(_) => PackKind::Data,
            Stored::Node(_) => PackKind::Tree,
        }
    }

    /// The 32 bytes of the id.
    #[must_use]
    pub fn id(&self) -> &[u8; 32] {
        match self {
            Stored::Chunk(id) => &id.0,
            Stored::Node(id) => &id.0,
        }
    }

    /// What the index files this under.
    #[must_use]
    pub fn key(&self) -> IndexKey {
        IndexKey::of(self.id())
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stored::Chunk(id) => write!(f, "chunk {id}"),
            Stored::Node(id) => write!(f, "node {id}"),
        }
    }
}

/// The first 16 bytes of an id: enough to find a frame by, while all 32 are checked when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IndexKey(pub [u8; 16]);

impl IndexKey {
    /// The key of a whole id.
    #[must_use]
    pub fn of(id: &[u8; 32]) -> Self {
        let mut key = [0; 16];
        for (to, from) in key.iter_mut().zip(id) {
            *to = *from;
        }
        IndexKey(key)
    }
}

/// Where a frame lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// The pack that holds it.
    pub pack: PackUid,
    /// First byte of the frame in the pack's object.
    pub offset: u32,
    /// Bytes of the frame, tag included.
    pub stored_len: u32,
    /// Bytes of the plaintext before compression.
    pub raw_len: u32,
}

impl Location {
    /// One past the last byte of the frame; a frame that reaches past 4 GiB is possible only in damaged bytes.
    #[must_use]
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.stored_len)
    }
}
