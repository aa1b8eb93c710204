//! Records about chunks and nodes, put aside until all of those about one of them can be seen together.
//!
//! Not here: what a record says. What holds: [`BUCKETS`] buckets by the first byte of the key, which is uniform; a spool's memory
//! is one block a bucket, and full blocks go to a file that is made when the first one is full and that has no name: it
//! vanishes with the process. Spooled records can be gone through several times. The file is nobody's truth: bytes that do not
//! read back are an error.

use crate::cursor::Cursor;
use crate::entropy::{Entropy, fresh};
use crate::error::{Error, Kind, Result};
use crate::id::RecordId;
use crate::location::IndexKey;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const BUCKETS: usize = 256;

/// What a spool keeps.
pub(crate) trait Spooled: Sized {
    /// What it is about.
    fn key(&self) -> IndexKey;

    /// Appends its bytes. They tell where they end.
    fn encode(&self, out: &mut Vec<u8>);

    /// Reads one back.
    fn decode(at: &mut Cursor<'_>) -> Result<Self>;
}

/// One thread's records.
pub(crate) struct Spool<'a> {
    dir: &'a Path,
    entropy: &'a dyn Entropy,
    /// Bytes of a block that is full; a record may reach a little beyond.
    block_len: usize,
    file: Option<File>,
    /// Bytes in the file.
    len: u64,
    buckets: Vec<Bucket>,
}

#[derive(Default)]
struct Bucket {
    /// The block that is being filled.
    block: Vec<u8>,
    /// Where full blocks lie in the file, and how long they are.
    full: Vec<(u64, usize)>,
}

impl<'a> Spool<'a> {
    /// An empty one that takes about `memory` bytes and will use the directory `dir` when it has to.
    pub(crate) fn new(dir: &'a Path, entropy: &'a dyn Entropy, memory: usize) -> Self {
        let buckets = (0..BUCKETS).map(|_| Bucket::default()).collect();
        Spool { dir, entropy, block_len: (memory / BUCKETS).max(256), file: None, len: 0, buckets }
    }

    pub(crate) fn push(&mut self, record: &impl Spooled) -> Result<()> {
        let [bucket, ..] = record.key().0;
        let missing = || Error::internal("a spool without its buckets");
        let block = &mut self.buckets.get_mut(usize::from(bucket)).ok_or_else(missing)?.block;
        record.encode(block);
        if block.len() < self.block_len {
            return Ok(());
        }
        let mut block = std::mem::take(block);
        let at = self.write(&block)?;
        let bucket = self.buckets.get_mut(usize::from(bucket)).ok_or_else(missing)?;
        bucket.full.push((at, block.len()));
        block.clear();
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
            Error::io(format!("writing {} bytes of scratch below {}", block.len(), self.dir.display()), e)
        })?;
        self.len += block.len() as u64;
        self.file = Some(file);
        Ok(at)
    }

    /// Appends one bucket's records to `out`.
    fn read<R: Spooled>(&self, bucket: usize, out: &mut Vec<R>) -> Result<()> {
        let Some(Bucket { block, full }) = self.buckets.get(bucket) else { return Ok(()) };
        decode_all(block, out)?;
        let mut block = Vec::new();
        for (at, len) in full {
            let file = self.file.as_ref().ok_or_else(|| Error::internal("a spooled block without a file"))?;
            block.resize(*len, 0);
            file.read_exact_at(&mut block, *at)
                .map_err(|e| Error::io(format!("reading scratch back from {}", self.dir.display()), e))?;
            decode_all(&block, out)?;
        }
        Ok(())
    }
}

/// Calls `each` with the records about each chunk or node, of all spools together.
pub(crate) fn settle<'s, 'd: 's, R: Spooled>(
    spools: impl IntoIterator<Item = &'s Spool<'d>> + Clone,
    each: &mut dyn FnMut(&[R]) -> Result<()>,
) -> Result<()> {
    let mut bucket = Vec::new();
    for i in 0..BUCKETS {
        bucket.clear();
        spools.clone().into_iter().try_for_each(|spool| spool.read(i, &mut bucket))?;
        bucket.sort_unstable_by_key(R::key);
        bucket.chunk_by(|a, b| a.key() == b.key()).try_for_each(&mut *each)?;
    }
    Ok(())
}

/// A new file that no directory names.
fn nameless(dir: &Path, entropy: &dyn Entropy) -> Result<File> {
    let path = dir.join(format!("coffer-scratch-{}", RecordId(fresh(entropy)?)));
    let failed = |e| Error::io(format!("making a scratch file {}", path.display()), e);
    let file = File::options().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
    std::fs::remove_file(&path).map_err(failed)?;
    Ok(file)
}

fn decode_all<R: Spooled>(bytes: &[u8], out: &mut Vec<R>) -> Result<()> {
    let mut at = Cursor::new(bytes, "a spooled record");
    while !at.is_at_end() {
        let record = R::decode(&mut at).map_err(|e| {
            let context = "scratch does not read back from its file; try another directory";
            Error::new(Kind::Unavailable, context).with_source(e)
        })?;
        out.push(record);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::Seeded;
    use std::collections::BTreeMap;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Mention(u32, IndexKey);

    impl Spooled for Mention {
        fn key(&self) -> IndexKey {
            self.1
        }

        fn encode(&self, out: &mut Vec<u8>) {
            out.extend_from_slice(&self.1.0);
            out.extend_from_slice(&self.0.to_le_bytes());
        }

        fn decode(at: &mut Cursor<'_>) -> Result<Self> {
            let key = IndexKey(at.array()?);
            Ok(Mention(at.u32()?, key))
        }
    }

    fn mention(n: u32) -> Mention {
        let mut key = [0; 16];
        key.copy_from_slice(&blake3::hash(&n.to_le_bytes()).as_bytes()[..16]);
        Mention(n, IndexKey(key))
    }

    /// Few records stay in memory, many go through the file; both come back grouped, from all spools, each once, and again.
    #[test]
    fn all_records_about_one_thing_come_together() {
        let dir = tempfile::tempdir().unwrap();
        let entropy = Seeded::new(1);
        for (distinct, is_in_file) in [(1000u32, false), (100_000, true)] {
            let mut spools: Vec<_> = (0..2).map(|_| Spool::new(dir.path(), &entropy, 1 << 20)).collect();
            for n in 0..distinct {
                spools[0].push(&mention(n)).unwrap();
                if n % 3 == 0 {
                    spools[1].push(&mention(n)).unwrap();
                }
            }
            assert_eq!(spools[0].file.is_some(), is_in_file);
            for _ in 0..2 {
                let mut found: BTreeMap<u32, usize> = BTreeMap::new();
                settle(&spools, &mut |group: &[Mention]| {
                    assert!(group.iter().all(|m| *m == group[0]));
                    assert_eq!(found.insert(group[0].0, group.len()), None);
                    Ok(())
                })
                .unwrap();
                assert_eq!(found.len(), distinct as usize);
                assert!(found.iter().all(|(n, count)| *count == 1 + usize::from(n % 3 == 0)));
            }
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_does_not_read_back_is_an_error() {
        let mut bytes = Vec::new();
        mention(9).encode(&mut bytes);
        let mut back: Vec<Mention> = Vec::new();
        decode_all(&bytes, &mut back).unwrap();
        assert_eq!(back, [mention(9)]);
        assert_eq!(decode_all(&bytes[1..], &mut back).unwrap_err().kind(), Kind::Unavailable);
    }

    #[test]
    fn a_directory_that_is_none_is_an_error_that_names_it() {
        let entropy = Seeded::new(1);
        let mut spool = Spool::new(Path::new("/nonexistent/scratch"), &entropy, 1 << 20);
        let error = (0..100_000).find_map(|n| spool.push(&mention(n)).err()).unwrap();
        assert!(error.context().contains("/nonexistent/scratch"), "{error}");
    }
}
