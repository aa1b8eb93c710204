//! Stores what was healed: packs of its own, an index delta, a look at what is there now, and `moved` records.
//!
//! Not here: where the bytes come from. What holds: the order, which is the safety argument: durable, published, read back, and only
//! then told to readers; a node is told from one of the same id with other hints. Every [`SETTLED`] bytes all of that is done, so that
//! whoever is interrupted keeps what was healed before. Memory: a pack of chunks and one of nodes, and 200 bytes for a chunk or node
//! of those [`SETTLED`] bytes.

use super::HealOptions;
use crate::cancel::Cancel;
use crate::disk_map::Hint;
use crate::error::{Error, Result};
use crate::frames::Frames;
use crate::id::PackUid;
use crate::index_delta::{IndexDelta, PackEntries};
use crate::location::{Location, PackKind, Stored};
use crate::moved::Relocated;
use crate::pack::{PackBuilder, PackOptions};
use crate::repository::Repository;
use crate::seal::Compressor;
use crate::session::{Session, SessionTag};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Length at which a pack is closed, in bytes.
const DATA_PACK: usize = 32 << 20;
const TREE_PACK: usize = 8 << 20;
/// Stored bytes after which readers are told of what was healed.
const SETTLED: u64 = 256 << 20;
/// Frames that are read back at a time.
const RUN: usize = 16;
const LEVEL: i32 = 1;

/// What is stored once: a chunk by its id, a node by all its bytes.
type Content = (Stored, [u8; 32]);

/// A round of healing.
pub(super) struct Graft<'a> {
    repo: &'a Repository,
    /// None in a dry run, which stores nothing.
    session: Option<Arc<Session>>,
    cancel: &'a Cancel,
    compressor: Compressor,
    open: BTreeMap<PackKind, PackBuilder>,
    /// What lies in the open tree pack, which takes one node of an id, since moved records tell nodes by pack and id alone.
    open_nodes: HashSet<Stored>,
    /// Durable, not yet published.
    done: Vec<PackEntries>,
    placed: HashMap<Content, Location>,
    /// What readers are to be told: the pack that maps lead to, and what of it lies where now.
    moved: BTreeMap<PackUid, Vec<Content>>,
    settled: u64,
}

impl<'a> Graft<'a> {
    pub(super) fn begin(repo: &'a Arc<Repository>, options: &HealOptions, cancel: &'a Cancel) -> Result<Self> {
        let session = match options.dry_run {
            true => None,
            false => Some(repo.session(&options.identity, options.now)?),
        };
        Ok(Graft {
            repo,
            session,
            cancel,
            compressor: Compressor::new(LEVEL)?,
            open: BTreeMap::new(),
            open_nodes: HashSet::new(),
            done: Vec::new(),
            placed: HashMap::new(),
            moved: BTreeMap::new(),
            settled: 0,
        })
    }

    /// Stores `plain`, which is what should lie at `at`.
    pub(super) fn add(&mut self, stored: Stored, at: Location, plain: &[u8]) -> Result<()> {
        let Some(session) = self.session.as_ref().map(|session| session.tag()) else { return Ok(()) };
        let content = match stored {
            Stored::Chunk(_) => (stored, [0; 32]),
            Stored::Node(_) => (stored, *blake3::hash(plain).as_bytes()),
        };
        if !self.placed.contains_key(&content) {
            let placed = self.store(stored, plain, session)?;
            self.placed.insert(content, placed);
        }
        self.moved.entry(at.pack).or_default().push(content);
        if self.done.iter().map(|pack| pack.object_len).sum::<u64>() >= SETTLED { self.settle() } else { Ok(()) }
    }

    fn store(&mut self, stored: Stored, plain: &[u8], session: SessionTag) -> Result<Location> {
        let kind = stored.pack_kind();
        let target_len = match kind {
            PackKind::Data => DATA_PACK,
            PackKind::Tree => TREE_PACK,
        };
        let is_second = self.open_nodes.contains(&stored);
        if self.open.get(&kind).is_some_and(|builder| is_second || builder.is_full(target_len)) {
            self.close(kind)?;
        }
        let mut builder = match self.open.remove(&kind) {
            Some(builder) => builder,
            None => {
                let aead = self.repo.descriptor().aead;
                let options = PackOptions { kind, aead, target_len, session };
                PackBuilder::new(self.repo.keys(), options, Vec::new(), self.repo.entropy())?
            }
        };
        let raw_len = u32::try_from(plain.len()).map_err(|_| Error::internal("a chunk of 4 GiB"))?;
        let (codec, bytes) = self.compressor.compress(plain)?;
        let at = builder.append(stored, codec, raw_len, bytes)?;
        self.open.insert(kind, builder);
        if kind == PackKind::Tree {
            self.open_nodes.insert(stored);
        }
        Ok(at)
    }

    fn close(&mut self, kind: PackKind) -> Result<()> {
        let Some(builder) = self.open.remove(&kind) else { return Ok(()) };
        if kind == PackKind::Tree {
            self.open_nodes.clear();
        }
        let pack = builder.finish()?;
        self.repo.put_pack(&pack)?;
        let len = pack.bytes.len() as u64;
        self.done.push(PackEntries::new(pack.uid, pack.kind, len, pack.signer, &pack.entries));
        Ok(())
    }

    /// Settles what is left; how many chunks and nodes were healed in all.
    pub(super) fn finish(mut self) -> Result<u64> {
        self.settle()?;
        Ok(self.settled)
    }

    /// Makes what was added durable and known, reads it back, and tells readers.
    fn settle(&mut self) -> Result<()> {
        PackKind::ALL.into_iter().try_for_each(|kind| self.close(kind))?;
        if self.done.is_empty() {
            return Ok(());
        }
        let packs = std::mem::take(&mut self.done);
        self.repo.publish_delta(&IndexDelta { superseded: Vec::new(), packs })?;
        let placed = std::mem::take(&mut self.placed);
        self.read_back(&placed)?;
        for (from, healed) in std::mem::take(&mut self.moved) {
            let line = |content: &Content| {
                let at = placed.get(content)?;
                let to = Hint { pack: at.pack, offset: at.offset, stored_len: at.stored_len };
                Some(Relocated { key: content.0.key(), to })
            };
            self.repo.put_relocated(from, &healed.iter().filter_map(line).collect::<Vec<_>>())?;
            self.settled += healed.len() as u64;
        }
        Ok(())
    }

    fn read_back(&self, placed: &HashMap<Content, Location>) -> Result<()> {
        let mut due: Vec<(Stored, Location)> = placed.iter().map(|((stored, _), at)| (*stored, *at)).collect();
        due.sort_unstable_by_key(|(_, at)| (at.pack, at.offset));
        let mut frames = Frames::new(self.repo)?;
        for whole in due.chunk_by(|(_, a), (_, b)| a.pack == b.pack && a.end() == u64::from(b.offset)) {
            for run in whole.chunks(RUN) {
                self.cancel.check()?;
                let Some((first, _)) = run.first() else { continue };
                let at: Vec<Location> = run.iter().map(|(_, at)| *at).collect();
                frames.read(first.pack_kind(), &at, &mut |index, frame| match run.get(index) {
                    Some((stored, _)) if frame.id == *stored.id() => Ok(()),
                    _ => Err(Error::corrupt(format!("{} does not hold what was just stored there", frame.object))),
                })?;
            }
        }
        Ok(())
    }
}
