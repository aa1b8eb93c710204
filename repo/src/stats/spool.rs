//! References to chunks, put aside until all of those to one chunk can be seen together.
//!
//! Not here: what a reference means. What holds: 256 buckets by the first byte of the key, which is uniform; a bucket's memory is
//! one block of [`BLOCK`] bytes, and full blocks go to a file that is made when the first one is full and that has no name:
//! it vanishes with the process. The file is nobody's truth: bytes that do not read back are an error.

use super::Owner;
use crate::entropy::{Entropy, fresh};
use crate::error::{Error, Result};
use crate::id::RecordId;
use crate::location::IndexKey;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of a spooled reference: key, kind of owner, ordinal of owner, raw length, stored length.
const RECORD: usize = 29;
/// Bytes of a block.
const BLOCK: usize = RECORD * 2048;
const BUCKETS: usize = 256;

/// A leaf's mention of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) key: IndexKey,
    pub(super) owner: Owner,
    pub(super) raw_len: u32,
    pub(super) stored_len: u32,
}

/// One thread's references.
pub(super) struct Spool<'a> {
    dir: &'a Path,
    entropy: &'a dyn Entropy,
    file: Option<File>,
    /// Bytes in the file.
    len: u64,
    buckets: Vec<Bucket>,
}

#[derive(Default)]
struct Bucket {
    /// The block that is being filled.
    block: Vec<u8>,
    /// Where full blocks lie in the file.
    full: Vec<u64>,
}

impl<'a> Spool<'a> {
    /// An empty one that will use the directory `dir` when it has to.
    pub(super) fn new(dir: &'a Path, entropy: &'a dyn Entropy) -> Self {
        let buckets = (0..BUCKETS).map(|_| Bucket::default()).collect();
        Spool { dir, entropy, file: None, len: 0, buckets }
    }

    pub(super) fn push(&mut self, reference: &Reference) -> Result<()> {
        let [bucket, ..] = reference.key.0;
        let missing = || Error::internal("a spool without its buckets");
        let block = &mut self.buckets.get_mut(usize::from(bucket)).ok_or_else(missing)?.block;
        reference.encode(block);
        if block.len() < BLOCK {
            return Ok(());
        }
        let mut block = std::mem::take(block);
        let at = self.write(&block)?;
        block.clear();
        let bucket = self.buckets.get_mut(usize::from(bucket)).ok_or_else(missing)?;
        bucket.full.push(at);
        bucket.block = block;
        Ok(())
    }

    /// Appends a block to the file; where it lies.
    fn write(&mut self, block: &[u8]) -> Result<u64> {
        let file = match self.file.take() {
            Some(file) => file,
            None => nameless(self.dir, self.entropy)?,
        };
        let at = self.len;
        file.write_all_at(block, at).map_err(|e| {
            Error::io(format!("writing {} bytes of statistics below {}", block.len(), self.dir.display()), e)
        })?;
        self.len += block.len() as u64;
        self.file = Some(file);
        Ok(at)
    }

    /// Moves one bucket's references to `out`.
    fn drain(&mut self, bucket: usize, out: &mut Vec<Reference>) -> Result<()> {
        let Bucket { block, full } = self.buckets.get_mut(bucket).map(std::mem::take).unwrap_or_default();
        decode_all(&block, out)?;
        let mut block = vec![0; BLOCK];
        for at in full {
            let file = self.file.as_ref().ok_or_else(|| Error::internal("a spooled block without a file"))?;
            file.read_exact_at(&mut block, at)
                .map_err(|e| Error::io(format!("reading statistics back from {}", self.dir.display()), e))?;
            decode_all(&block, out)?;
        }
        Ok(())
    }
}

/// Calls `each` with the references to each chunk, of all spools together.
pub(super) fn settle(mut spools: Vec<Spool<'_>>, each: &mut dyn FnMut(&[Reference]) -> Result<()>) -> Result<()> {
    let mut bucket = Vec::new();
    for i in 0..BUCKETS {
        bucket.clear();
        for spool in &mut spools {
            spool.drain(i, &mut bucket)?;
        }
        bucket.sort_unstable_by_key(|r| r.key);
        bucket.chunk_by(|a, b| a.key == b.key).try_for_each(&mut *each)?;
    }
    Ok(())
}

/// A new file that no directory names.
fn nameless(dir: &Path, entropy: &dyn Entropy) -> Result<File> {
    let path = dir.join(format!("coffer-stats-{}", RecordId(fresh(entropy)?)));
    let failed = |e| Error::io(format!("making a scratch file {}", path.display()), e);
    let file = File::options().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
    std::fs::remove_file(&path).map_err(failed)?;
    Ok(file)
}

impl Reference {
    fn encode(&self, out: &mut Vec<u8>) {
        let (kind, ordinal) = match self.owner {
            Owner::Point(n) => (0, n),
            Owner::Workload(n) => (1, n),
            Owner::Several => (2, 0),
        };
        out.extend_from_slice(&self.key.0);
        out.push(kind);
        for field in [ordinal, self.raw_len, self.stored_len] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }

    fn decode(record: &[u8; RECORD]) -> Option<Self> {
        let (key, rest) = record.split_first_chunk::<16>()?;
        let (kind, rest) = rest.split_first()?;
        let mut fields = rest.chunks_exact(4).filter_map(|f| Some(u32::from_le_bytes(f.try_into().ok()?)));
        let (ordinal, raw_len, stored_len) = (fields.next()?, fields.next()?, fields.next()?);
        let owner = match kind {
            0 => Owner::Point(ordinal),
            1 => Owner::Workload(ordinal),
            2 => Owner::Several,
            _ => return None,
        };
        Some(Reference { key: IndexKey(*key), owner, raw_len, stored_len })
    }
}

fn decode_all(bytes: &[u8], out: &mut Vec<Reference>) -> Result<()> {
    let (records, rest) = bytes.as_chunks::<RECORD>();
    out.reserve(records.len());
    for record in records {
        out.push(Reference::decode(record).ok_or_else(unreadable)?);
    }
    if rest.is_empty() { Ok(()) } else { Err(unreadable()) }
}

fn unreadable() -> Error {
    Error::new(
        crate::error::Kind::Unavailable,
        "statistics do not read back from their scratch file; try another directory",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::Seeded;
    use std::collections::BTreeMap;

    fn reference(n: u32, owner: Owner) -> Reference {
        let mut key = [0; 16];
        key.copy_from_slice(&blake3::hash(&n.to_le_bytes()).as_bytes()[..16]);
        Reference { key: IndexKey(key), owner, raw_len: n, stored_len: n / 2 }
    }

    #[test]
    fn references_round_trip() {
        for owner in [Owner::Point(7), Owner::Workload(u32::MAX), Owner::Several] {
            let mut bytes = Vec::new();
            reference(9, owner).encode(&mut bytes);
            let mut back = Vec::new();
            decode_all(&bytes, &mut back).unwrap();
            assert_eq!(back, [reference(9, owner)]);
            bytes[16] = 3;
            assert!(decode_all(&bytes, &mut back).is_err());
            assert!(decode_all(&bytes[1..], &mut back).is_err());
        }
    }

    /// Few references stay in memory, many go through the file; both come back grouped, from all spools, each once.
    #[test]
    fn all_references_to_a_chunk_come_together() {
        let dir = tempfile::tempdir().unwrap();
        let entropy = Seeded::new(1);
        for (distinct, spooled) in [(1000u32, false), (700_000, true)] {
            let mut spools: Vec<_> = (0..2).map(|_| Spool::new(dir.path(), &entropy)).collect();
            for n in 0..distinct {
                spools[0].push(&reference(n, Owner::Point(1))).unwrap();
                if n % 3 == 0 {
                    spools[1].push(&reference(n, Owner::Several)).unwrap();
                }
            }
            assert_eq!(spools[0].file.is_some(), spooled);
            let mut found: BTreeMap<u32, usize> = BTreeMap::new();
            settle(spools, &mut |group| {
                assert!(group.iter().all(|r| r.key == group[0].key));
                assert_eq!(found.insert(group[0].raw_len, group.len()), None);
                Ok(())
            })
            .unwrap();
            assert_eq!(found.len(), distinct as usize);
            assert!(found.iter().all(|(n, count)| *count == 1 + usize::from(n % 3 == 0)));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_is_none_is_an_error_that_names_it() {
        let entropy = Seeded::new(1);
        let mut spool = Spool::new(Path::new("/nonexistent/scratch"), &entropy);
        let error = (0..700_000).find_map(|n| spool.push(&reference(n, Owner::Several)).err()).unwrap();
        assert!(error.context().contains("/nonexistent/scratch"), "{error}");
    }
}
