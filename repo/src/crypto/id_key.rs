//! The id key: names for content that only holders of the key can compute (FORMAT.md sections 3 and 6.1).
//!
//! Not here: node identity bytes, chunking. What holds: every use has a domain byte of its own, so that no two uses can
//! give the same hash for different things.

use super::Key32;
use crate::id::{ChunkId, NodeId, WorkloadTag};

const CHUNK: u8 = 0x01;
const NODE: u8 = 0x02;
const WORKLOAD: u8 = 0x03;
const CHUNKER: u8 = 0x04;

/// What is hashed in one go with the domain byte before it: the width of the widest SIMD code, 16 times 1 KiB.
const HEAD: usize = 16 << 10;

/// Keyed BLAKE3 under a repository's id key.
#[derive(Clone)]
pub struct IdKey(Key32);

impl IdKey {
    /// The id key with these bytes.
    #[must_use]
    pub fn new(key: Key32) -> Self {
        IdKey(key)
    }

    /// The id of a chunk, from its plaintext.
    #[must_use]
    pub fn chunk_id(&self, plaintext: &[u8]) -> ChunkId {
        ChunkId(*self.hasher(CHUNK, plaintext).finalize().as_bytes())
    }

    /// The id of a disk-map node, from its identity bytes.
    #[must_use]
    pub fn node_id(&self, identity: &[u8]) -> NodeId {
        NodeId(*self.hasher(NODE, identity).finalize().as_bytes())
    }

    /// The folder of a workload's claims, from the workload's name.
    #[must_use]
    pub fn workload_tag(&self, name: &str) -> WorkloadTag {
        let mut tag = [0; WorkloadTag::LEN];
        self.hasher(WORKLOAD, name.as_bytes()).finalize_xof().fill(&mut tag);
        WorkloadTag(tag)
    }

    /// The seed of the disk chunker, `aligned-cdc-1`.
    #[must_use]
    pub fn chunker_seed(&self) -> u64 {
        let mut seed = [0; 8];
        self.hasher(CHUNKER, b"aligned-cdc-1").finalize_xof().fill(&mut seed);
        u64::from_le_bytes(seed)
    }

    /// The gear table of the stream chunker, `fastcdc-2020`.
    #[must_use]
    pub fn gear_table(&self) -> [u64; 256] {
        let mut stream = self.hasher(CHUNKER, b"fastcdc-2020").finalize_xof();
        std::array::from_fn(|_| {
            let mut entry = [0; 8];
            stream.fill(&mut entry);
            u64::from_le_bytes(entry)
        })
    }

    /// The bytes, for the key bundle.
    pub(crate) fn secret(&self) -> &Key32 {
        &self.0
    }

    /// Of the domain byte and the content. BLAKE3 hashes side by side only what lies together: the byte on its own would leave the
    /// content's first 16 KiB to narrow code, which took more time than all the rest of a chunk.
    fn hasher(&self, domain: u8, content: &[u8]) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new_keyed(self.0.expose());
        match content.split_at_checked(HEAD - 1) {
            None => hasher.update(&[domain]).update(content),
            Some((first, rest)) => {
                let mut head = [domain; HEAD];
                if let Some(into) = head.get_mut(1..) {
                    into.copy_from_slice(first);
                }
                hasher.update(&head).update(rest)
            }
        };
        hasher
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_domain_byte_comes_first_at_any_length() {
        let key = Key32::new([7; 32]);
        let content: Vec<u8> = (0..70_000u32).map(|n| n.to_le_bytes()[1]).collect();
        for len in [0, 1, 1023, 1024, HEAD - 2, HEAD - 1, HEAD, HEAD + 1, 65_536, 70_000] {
            let due = blake3::keyed_hash(&[7; 32], &[&[CHUNK], &content[..len]].concat());
            assert_eq!(&IdKey::new(key.clone()).chunk_id(&content[..len]).0, due.as_bytes(), "{len}");
        }
    }
}
