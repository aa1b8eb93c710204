//! Places chunks and nodes into packs, uploads the packs, and publishes index deltas: the one thread that all workers feed.
//!
//! ```text
//!   chunk, node -> seal into the open pack -> (full) upload threads -> durable -> (1/4 GiB or 30 s) index delta -> index
//! ```
//!
//! Not here: cutting and compressing; when to commit. What holds: a place handed out is remembered in [`Pending`] until the
//! index has it, so that one run never stores a chunk twice; an index delta names durable packs only; in memory are at
//! most an open pack, one that waits, [`WriterOptions::uploads`] under way with a sixteenth of each as parity, and one of nodes;
//! every pack that is relied on is in [`Packer::relied_on`].

use super::{Progress, WriterOptions};
use crate::crypto::Codec;
use crate::disk_map::{Child, Node, identity};
use crate::error::{Error, Kind, Result};
use crate::id::{ChunkId, NodeId, PackUid};
use crate::index::{Index, Trust};
use crate::index_delta::{IndexDelta, PackEntries};
use crate::location::{IndexKey, Location, PackKind, Stored};
use crate::nodes::Nodes;
use crate::pack::{FinishedPack, PackBuilder, PackOptions};
use crate::repository::Repository;
use crate::seal::Compressor;
use crate::session::SessionTag;
use crate::tree::Placed;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Stored bytes after which a delta is due, so that a killed run does not upload them again.
const DELTA_BYTES: u64 = 256 << 20;
/// Most entries of a delta that is not one pack's alone: 7 MiB, since a collector holds two of them in memory, expanded. Chunks
/// that compress to a few dozen bytes reach it long before [`DELTA_BYTES`].
const DELTA_ENTRIES: usize = 256 << 10;
/// Time after which a delta is due, if there is anything to say.
const DELTA_AGE: Duration = Duration::from_secs(30);
/// Node packs are small: a few nodes a gigabyte.
const TREE_PACK: usize = 8 << 20;

/// Chunks that this run has placed and that the index does not know yet.
#[derive(Default)]
pub(super) struct Pending(RwLock<HashMap<IndexKey, Location>>);

impl Pending {
    pub(super) fn get(&self, id: &ChunkId) -> Result<Option<Location>> {
        Ok(self.0.read().map_err(|_| died())?.get(&IndexKey::of(&id.0)).copied())
    }
}

pub(super) struct Packer {
    repo: Arc<Repository>,
    index: Arc<Index>,
    trust: Trust,
    options: WriterOptions,
    session: SessionTag,
    progress: Arc<Progress>,
    pending: Arc<Pending>,
    data: Option<PackBuilder>,
    tree: Option<PackBuilder>,
    /// Nodes placed by this run and not yet in the index.
    nodes: HashMap<IndexKey, Location>,
    /// Nodes as they are stored.
    stored_nodes: Arc<Nodes>,
    compressor: Compressor,
    uploads: Option<Sender<FinishedPack>>,
    done: Receiver<Result<(PackEntries, Vec<u8>)>>,
    /// Finished packs' buffers, to be filled again.
    buffers: Vec<Vec<u8>>,
    in_flight: usize,
    uploaders: Vec<JoinHandle<()>>,
    /// Durable, not yet in a delta.
    durable: Vec<PackEntries>,
    durable_bytes: u64,
    last_delta: Instant,
    relied_on: BTreeSet<(PackKind, PackUid)>,
    /// Packs that the snapshot needs through what it took over from its parent, if somebody will ask.
    inherited: BTreeSet<(PackKind, PackUid)>,
}

impl Packer {
    pub(super) fn start(
        repo: &Arc<Repository>,
        index: &Arc<Index>,
        trust: Trust,
        options: WriterOptions,
        session: SessionTag,
        progress: &Arc<Progress>,
        stored_nodes: &Arc<Nodes>,
    ) -> Result<Self> {
        // One pack waits while others are uploaded; more would only take memory.
        let (uploads, queue) = bounded::<FinishedPack>(1);
        let (finished, done) = unbounded();
        let uploaders = (0..options.uploads.max(1))
            .map(|_| {
                let (queue, finished) = (queue.clone(), finished.clone());
                let (store, dry_run) = (Arc::clone(repo), options.dry_run);
                let upload = move |pack: FinishedPack| -> Result<(PackEntries, Vec<u8>)> {
                    if !dry_run {
                        store.put_pack(&pack)?;
                    }
                    let len = pack.bytes.len() as u64;
                    Ok((PackEntries::new(pack.uid, pack.kind, len, pack.signer, &pack.entries), pack.bytes))
                };
                let work = move || {
                    for pack in queue {
                        if finished.send(upload(pack)).is_err() {
                            break;
                        }
                    }
                };
                let thread = std::thread::Builder::new().name("upload".into()).spawn(work);
                thread.map_err(|e| Error::new(Kind::Unavailable, "starting a thread").with_source(e))
            })
            .collect::<Result<_>>()?;
        Ok(Packer {
            repo: Arc::clone(repo),
            index: Arc::clone(index),
            trust,
            compressor: Compressor::new(options.compression_level)?,
            options,
            session,
            progress: Arc::clone(progress),
            pending: Arc::default(),
            data: None,
            tree: None,
            nodes: HashMap::new(),
            stored_nodes: Arc::clone(stored_nodes),
            uploads: Some(uploads),
            done,
            buffers: Vec::new(),
            in_flight: 0,
            uploaders,
            durable: Vec::new(),
            durable_bytes: 0,
            last_delta: Instant::now(),
            relied_on: BTreeSet::new(),
            inherited: BTreeSet::new(),
        })
    }

    pub(super) fn pending(&self) -> Arc<Pending> {
        Arc::clone(&self.pending)
    }

    /// Places a compressed chunk, unless another worker was faster.
    pub(super) fn chunk(&mut self, id: ChunkId, codec: Codec, raw_len: u32, bytes: &[u8]) -> Result<Location> {
        if let Some(at) = self.pending.get(&id)? {
            return Ok(at);
        }
        let at = self.append(Stored::Chunk(id), codec, raw_len, bytes)?;
        self.pending.0.write().map_err(|_| died())?.insert(IndexKey::of(&id.0), at);
        self.progress.new_chunks.fetch_add(1, Relaxed);
        self.progress.new_raw.fetch_add(u64::from(raw_len), Relaxed);
        self.progress.new_stored.fetch_add(u64::from(at.stored_len), Relaxed);
        self.collect_uploads(false)?;
        Ok(at)
    }

    /// Stores a node's raw bytes, or finds the node stored with the same hints: under one id may lie a node whose hints lead into
    /// packs that are gone, and those packs this snapshot does not rely on.
    pub(super) fn node(&mut self, raw: &[u8]) -> Result<Placed> {
        let id = self.repo.keys().id_key().node_id(identity(raw)?);
        let stored = Stored::Node(id);
        let known = match self.nodes.get(&stored.key()) {
            Some(at) => Some(*at),
            None => match self.index.lookup(&stored, &self.trust)? {
                Some(at) if self.is_stored(raw, id, at)? => Some(at),
                _ => None,
            },
        };
        if let Some(at) = known {
            self.rely_on(PackKind::Tree, at.pack);
            return Ok(Placed { id, at });
        }
        let raw_len = u32::try_from(raw.len()).map_err(|_| Error::internal("a node of 4 GiB"))?;
        let (codec, bytes) = self.compressor.compress(raw)?;
        let bytes = bytes.to_vec();
        let at = self.append(stored, codec, raw_len, &bytes)?;
        self.nodes.insert(stored.key(), at);
        Ok(Placed { id, at })
    }

    /// Whether the node at `at` is this one, hints and all. One that cannot be read any more is not.
    fn is_stored(&self, raw: &[u8], id: NodeId, at: Location) -> Result<bool> {
        let node = Node::decode(raw, self.repo.geometry().window)?;
        match self.stored_nodes.node_there(&Child { slot: 0, id, hint: at }, node.level()) {
            Ok(stored) => Ok(*stored == node),
            Err(e) if e.kind() == Kind::Corrupt => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Notes that the snapshot needs this pack, so that the commit checks it.
    pub(super) fn rely_on(&mut self, kind: PackKind, pack: PackUid) {
        self.relied_on.insert((kind, pack));
    }

    /// Notes that the snapshot needs this pack as its parent did: the parent's check covers it, and its locks may end sooner.
    pub(super) fn inherit(&mut self, kind: PackKind, pack: PackUid) {
        if self.options.lock_for.is_some() {
            self.inherited.insert((kind, pack));
        }
    }

    /// What the snapshot needs of its parent's, if it is to be locked.
    pub(super) fn inherited(&self) -> &BTreeSet<(PackKind, PackUid)> {
        &self.inherited
    }

    /// Everything the snapshot relies on, but for subtrees of its parents.
    pub(super) fn relied_on(&self) -> &BTreeSet<(PackKind, PackUid)> {
        &self.relied_on
    }

    /// Closes and uploads the open packs, waits for all, and publishes them.
    pub(super) fn finish(&mut self) -> Result<()> {
        for kind in PackKind::ALL {
            self.close(kind)?;
        }
        self.collect_uploads(true)?;
        self.publish()
    }

    fn slot(&mut self, kind: PackKind) -> &mut Option<PackBuilder> {
        match kind {
            PackKind::Data => &mut self.data,
            PackKind::Tree => &mut self.tree,
        }
    }

    fn append(&mut self, stored: Stored, codec: Codec, raw_len: u32, bytes: &[u8]) -> Result<Location> {
        let kind = stored.pack_kind();
        let target = match kind {
            PackKind::Data => self.options.pack_bytes,
            PackKind::Tree => TREE_PACK,
        };
        if self.slot(kind).is_none() {
            // Room for the chunk that fills it, and for the table of contents.
            let target_len = target + target / 16 + bytes.len();
            let options = PackOptions { kind, aead: self.repo.descriptor().aead, target_len, session: self.session };
            let buffer = if kind == PackKind::Data { self.buffers.pop() } else { None };
            let builder = PackBuilder::new(self.repo.keys(), options, buffer.unwrap_or_default(), self.repo.entropy())?;
            self.rely_on(kind, builder.uid());
            *self.slot(kind) = Some(builder);
        }
        let builder = self.slot(kind).as_mut().ok_or_else(|| Error::internal("no open pack"))?;
        let at = builder.append(stored, codec, raw_len, bytes)?;
        if builder.is_full(target) {
            self.close(kind)?;
        }
        Ok(at)
    }

    fn close(&mut self, kind: PackKind) -> Result<()> {
        let Some(builder) = self.slot(kind).take() else { return Ok(()) };
        let pack = builder.finish()?;
        let uploads = self.uploads.as_ref().ok_or_else(|| Error::internal("uploading after the end"))?;
        uploads.send(pack).map_err(|_| died())?;
        self.in_flight += 1;
        Ok(())
    }

    /// Takes note of finished uploads, of all of them when `wait` is set, and publishes a delta when one is due.
    fn collect_uploads(&mut self, wait: bool) -> Result<()> {
        while self.in_flight > 0 {
            let answer = if wait { self.done.recv().ok() } else { self.done.try_recv().ok() };
            let Some(answer) = answer else {
                if wait {
                    return Err(died());
                }
                break;
            };
            self.in_flight -= 1;
            let (entries, mut buffer) = answer?;
            let waiting: usize = self.durable.iter().map(|pack| pack.entries.len()).sum();
            if waiting + entries.entries.len() > DELTA_ENTRIES {
                self.publish()?;
            }
            self.durable_bytes += entries.object_len;
            self.durable.push(entries);
            if self.buffers.is_empty() {
                buffer.clear();
                self.buffers.push(buffer);
            }
        }
        let due = self.durable_bytes >= DELTA_BYTES || self.last_delta.elapsed() >= DELTA_AGE;
        if due && !self.durable.is_empty() { self.publish() } else { Ok(()) }
    }

    /// Writes an index delta over the durable packs and tells the index.
    fn publish(&mut self) -> Result<()> {
        if self.durable.is_empty() {
            return Ok(());
        }
        let delta = IndexDelta { superseded: Vec::new(), packs: std::mem::take(&mut self.durable) };
        self.durable_bytes = 0;
        self.last_delta = Instant::now();
        if self.options.dry_run {
            self.index.record(&delta.packs)?;
        } else {
            let name = self.repo.publish_delta(&delta)?;
            self.index.published(&name, &delta)?;
        }
        let mut pending = self.pending.0.write().unwrap_or_else(PoisonError::into_inner);
        for entry in delta.packs.iter().flat_map(|p| &p.entries) {
            pending.remove(&entry.key);
            self.nodes.remove(&entry.key);
        }
        Ok(())
    }
}

impl Drop for Packer {
    /// Waits for the uploads that are under way: nothing goes on behind the caller's back.
    fn drop(&mut self) {
        self.uploads = None;
        for uploader in self.uploaders.drain(..) {
            let _ = uploader.join();
        }
    }
}

fn died() -> Error {
    Error::internal("a thread of the backup died")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::memory::Memory;
    use crate::chunker::{DiskParams, StreamParams};
    use crate::crypto::Aead;
    use crate::entropy::Seeded;
    use crate::index::IndexOptions;
    use crate::key_slot::{Credential, PassphraseCost, SlotOptions};
    use crate::repository::InitOptions;
    use crate::sealed::ObjectKind;
    use crate::time::Timestamp;

    /// More tiny chunks than one delta may list: what would be one record too long is several.
    #[test]
    fn deltas_stay_within_the_length_of_a_record() {
        let cost = PassphraseCost { memory_kib: 64, passes: 1, lanes: 1 };
        let options = InitOptions {
            credential: Credential::Passphrase("x".to_owned().into()),
            slot: SlotOptions { label: "test".into(), created: Timestamp::from_seconds(1).unwrap(), cost },
            disk: DiskParams::default(),
            stream: StreamParams::default(),
            aead: Aead::preferred(),
            parity: false,
        };
        let repo = Arc::new(Repository::init(Arc::new(Memory::default()), options, Arc::new(Seeded::new(1))).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let index = Arc::new(Index::open(dir.path(), repo.keys().repo(), IndexOptions::default()).unwrap());
        let options = WriterOptions { pack_bytes: 8 << 20, ..WriterOptions::default() };
        let nodes = Arc::new(Nodes::new(Arc::clone(&repo), 0).unwrap());
        let mut packer =
            Packer::start(&repo, &index, Trust::Anyone, options, SessionTag::default(), &Arc::default(), &nodes)
                .unwrap();
        let chunks = DELTA_ENTRIES as u64 + 1000;
        for n in 0..chunks {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            packer.chunk(ChunkId(id), Codec::Raw, 4, &[1, 2, 3, 4]).unwrap();
        }
        packer.finish().unwrap();
        let mut listed = 0;
        for object in crate::backend::list_sorted(repo.backend(), "index/").unwrap() {
            let record = repo.get_record(ObjectKind::IndexDelta, &object.name).unwrap();
            let delta = IndexDelta::counting(&object.name, &record, &repo.certificates()).unwrap();
            let entries: usize = delta.packs.iter().map(|p| p.entries.len()).sum();
            assert!(entries <= DELTA_ENTRIES, "{entries}");
            listed += entries as u64;
        }
        assert_eq!(listed, chunks);
    }
}
