//! CONDUCTOR of backups: windows -> chunks -> packs -> disk map -> claim -> check -> decision.
//!
//! ```text
//!   Writer::begin     session; index delta numbers; the parent's maps
//!   Writer::disk      N cutters: source.next -> chunker (all of a window, or where it changed) -> id -> parent/pending/index -> compress
//!                     this thread: packer (seal, place, upload, publish) -> leaf -> tree builder
//!   Writer::commit    packs durable -> PUT claim -> check -> lock -> put-if-absent decision        (the one commit point)
//! ```
//!
//! Not here: where bytes come from ([`crate::window::WindowSource`]) and what a token means. What holds: nothing counts before
//! the decision, and the decision is written only after everything that the claim relies on was durable and was seen to exist
//! after the claim was written; a crash or an error before leaves garbage that the next run reuses. Memory: a window per
//! worker, as read and compressed, one compressed on its way, three packs and one an upload, whatever the disk's size.

mod commit;
mod cutter;
mod lock;
mod packer;

use crate::cancel::Cancel;
use crate::cbor::Map;
use crate::crew;
use crate::disk_map::{Geometry, Hint, Leaf, LeafContent, LeafEntry, Node};
use crate::entropy::fresh;
use crate::error::{Error, Kind, Result};
use crate::id::PackUid;
use crate::index::{Index, Trust};
use crate::location::{Location, PackKind};
use crate::lock_for::LockFor;
use crate::nodes::{Nodes, Root};
use crate::repository::Repository;
use crate::seal::Compressor;
use crate::session::{Session, SessionTag};
use crate::snapshot::{Claim, Copied, Disk, Identity, Origin, Snapshot};
use crate::time::Timestamp;
use crate::tree::TreeBuilder;
use crate::window::WindowSource;
use crossbeam_channel::{Receiver, bounded};
use cutter::{Before, Cutter, Done, Draft, DraftContent, Outcome};
use packer::Packer;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Windows that may be on their way to the packer.
const CHANNEL: usize = 1;
/// Decoded nodes of the parent's maps, in bytes.
const NODE_CACHE: u64 = 8 << 20;

/// How a backup is made.
#[derive(Clone, Copy, Debug)]
pub struct WriterOptions {
    /// Threads that read, cut, hash and compress. Each owns a window's buffer.
    pub workers: usize,
    /// Packs that are made durable at the same time: while one waits for the disk another's parity is computed.
    pub uploads: usize,
    /// zstd level.
    pub compression_level: i32,
    /// Length at which a data pack is closed, in bytes.
    pub pack_bytes: usize,
    /// Whether packs of every certified writer are relied on, not only this writer's and those of full keys.
    pub trust_everyone: bool,
    /// Do everything but store anything. The index then has to be one of its own, since it learns what would be stored.
    pub dry_run: bool,
    /// Lock everything that the snapshot needs for so long, before it counts.
    pub lock_for: Option<LockFor>,
}

impl Default for WriterOptions {
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(1, 8);
        WriterOptions {
            workers,
            uploads: 2,
            compression_level: 1,
            pack_bytes: 32 << 20,
            trust_everyone: false,
            dry_run: false,
            lock_for: None,
        }
    }
}

/// What a running backup has done, in bytes but for the count of chunks; sampled by whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Read from sources.
    pub read: AtomicU64,
    /// Of those, all-zero.
    pub zero: AtomicU64,
    /// Of those, stored already.
    pub reused: AtomicU64,
    /// Number of new chunks.
    pub new_chunks: AtomicU64,
    /// Their bytes before compression.
    pub new_raw: AtomicU64,
    /// Their bytes as stored.
    pub new_stored: AtomicU64,
    /// Unreadable at the source.
    pub unreadable: AtomicU64,
    /// How much of the disks is done, holes and unchanged stretches included.
    pub done: AtomicU64,
}

/// What a disk is called.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    /// Name, unique in the snapshot.
    pub name: String,
    /// Logical block size in bytes.
    pub block_size: u32,
    /// What the platform needs to build the machine again.
    pub platform: Option<Map>,
}

/// A backup under way.
pub struct Writer {
    repo: Arc<Repository>,
    index: Arc<Index>,
    options: WriterOptions,
    identity: Identity,
    workload: String,
    parent: Option<Snapshot>,
    trust: Trust,
    /// Packs that were condemned when this began.
    shunned: HashSet<PackUid>,
    nodes: Arc<Nodes>,
    packer: Packer,
    progress: Arc<Progress>,
    disks: Vec<Disk>,
    /// Of a copy.
    copied: Option<Copied>,
    /// Keys of the claim that this version does not know: those of a copy's original.
    extra: Map,
    /// Kept running for as long as the writer lives.
    _session: Option<Arc<Session>>,
    time: Timestamp,
}

impl Writer {
    /// Begins a backup of `workload`. The index should be in step with the store ([`Index::sync`]). `Unsupported` when it is to be
    /// locked and the store has no locks.
    pub fn begin(
        repo: &Arc<Repository>,
        index: &Arc<Index>,
        workload: &str,
        parent: Option<Snapshot>,
        identity: Identity,
        options: WriterOptions,
        now: Timestamp,
    ) -> Result<Self> {
        repo.check_writable()?;
        check_name("workload", workload)?;
        if options.lock_for.is_some() {
            repo.object_lock()?;
        }
        let keys = repo.keys();
        let trust = match options.trust_everyone {
            true => Trust::Anyone,
            false => Trust::Only([keys.signer().id(), keys.authority().signer_id()].into()),
        };
        let progress: Arc<Progress> = Arc::default();
        // A condemned pack never becomes live again: whoever relied on one would not be committed.
        let shunned = repo.shunned()?;
        if !shunned.is_empty() {
            index.drop_packs(&shunned.iter().copied().collect::<Vec<_>>())?;
        }
        let session = if options.dry_run { None } else { Some(repo.session(&identity, now)?) };
        let tag = match &session {
            Some(session) => session.tag(),
            None => SessionTag(fresh(repo.entropy())?),
        };
        let nodes = Arc::new(Nodes::new(Arc::clone(repo), NODE_CACHE)?);
        Ok(Writer {
            packer: Packer::start(repo, index, trust.clone(), options, tag, &progress, &nodes)?,
            nodes,
            shunned,
            repo: Arc::clone(repo),
            index: Arc::clone(index),
            options,
            identity,
            workload: workload.to_owned(),
            parent,
            trust,
            progress,
            disks: Vec::new(),
            copied: None,
            extra: Map::new(),
            _session: session,
            time: now,
        })
    }

    /// Counters that go on while the backup runs.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// The parent's disk of this name: what an incremental may build on.
    #[must_use]
    pub fn parent_disk(&self, name: &str) -> Option<&Disk> {
        self.parent.as_ref()?.disks.iter().find(|d| d.name == name)
    }

    /// Backs up one disk.
    pub fn disk(&mut self, spec: DiskSpec, source: &dyn WindowSource, cancel: &Cancel) -> Result<()> {
        check_name("disk", &spec.name)?;
        if self.disks.iter().any(|d| d.name == spec.name) {
            return Err(Error::invalid(format!("two disks are called '{}'", spec.name)));
        }
        let geometry = self.repo.geometry();
        let parent = match self.parent_disk(&spec.name) {
            Some(disk) => Some(Before { root: Root::of(disk, geometry)?, size: disk.size }),
            None => None,
        };
        let chunker = self.repo.disk_chunker()?;
        let window_len = usize::try_from(geometry.window).map_err(|_| Error::internal("a window of 4 GiB"))?;
        let pending = self.packer.pending();
        let stop = Cancel::default();
        let (to, windows) = bounded(CHANNEL);
        let mut assembly = Assembly::new(TreeBuilder::new(geometry));
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.options.workers.max(1))
                .map(|_| {
                    let mut cutter = Cutter {
                        window_len,
                        chunker: &chunker,
                        id_key: self.repo.keys().id_key(),
                        index: &self.index,
                        trust: &self.trust,
                        shunned: &self.shunned,
                        pending: &pending,
                        nodes: &self.nodes,
                        parent: parent.as_ref(),
                        progress: &self.progress,
                        compressor: Compressor::new(self.options.compression_level)?,
                        out: to.clone(),
                    };
                    let (stop, cancel) = (&stop, cancel);
                    Ok(scope.spawn(move || {
                        let result = cutter.run(source, &[stop, cancel]);
                        if result.is_err() {
                            stop.cancel();
                        }
                        result
                    }))
                })
                .collect::<Result<_>>()?;
            drop(to);
            let assembled = assembly.take_all(windows, &mut self.packer, &self.progress, geometry.window);
            if assembled.is_err() {
                stop.cancel();
            }
            crew::join(workers, assembled)
        })?;
        let size = source.size()?;
        let (root, unreadable) = assembly.finish(size, geometry, &mut self.packer)?;
        let DiskSpec { name, block_size, platform } = spec;
        self.disks.push(Disk { name, size, block_size, root, token: None, platform, unreadable });
        Ok(())
    }

    /// Makes the snapshot a copy of the one that `original` claims: it has that one's time and maker, and what this version does not
    /// understand of it, and names its `origin`. Of one origin there is never more than one copy that counts: who comes later is
    /// `Overtaken`.
    pub fn copy_of(&mut self, original: &Claim, origin: Origin) {
        self.copied = Some(Copied { origin, begun: self.time });
        self.time = original.time;
        self.identity = original.identity.clone();
        self.extra = original.extra.clone();
    }

    /// Notes what the source calls the state that was read from it.
    pub fn set_token(&mut self, disk: &str, token: String) {
        if let Some(disk) = self.disks.iter_mut().find(|d| d.name == disk) {
            disk.token = Some(token);
        }
    }
}

/// Puts the workers' windows together: chunks get places, leaves come into order.
struct Assembly {
    tree: TreeBuilder,
    /// Complete windows that wait for an earlier one that is slow to read: about 100 bytes each.
    waiting: BTreeMap<u64, Option<(crate::tree::Placed, Vec<u8>)>>,
    next: u64,
    unreadable: u64,
}

impl Assembly {
    fn new(tree: TreeBuilder) -> Self {
        Assembly { tree, waiting: BTreeMap::new(), next: 0, unreadable: 0 }
    }

    fn take_all(
        &mut self,
        windows: Receiver<Done>,
        packer: &mut Packer,
        progress: &Progress,
        window_len: u64,
    ) -> Result<()> {
        for Done { window, outcome } in windows {
            let leaf = self.leaf(window, outcome, packer)?;
            self.waiting.insert(window, leaf);
            while let Some(leaf) = self.waiting.remove(&self.next) {
                if let Some((placed, raw)) = leaf {
                    self.tree.push(self.next, placed, &raw, &mut |raw| packer.node(raw))?;
                }
                self.next += 1;
            }
            progress.done.fetch_add(window_len, std::sync::atomic::Ordering::Relaxed);
        }
        Ok(())
    }

    fn leaf(
        &mut self,
        window: u64,
        outcome: Outcome,
        packer: &mut Packer,
    ) -> Result<Option<(crate::tree::Placed, Vec<u8>)>> {
        match outcome {
            Outcome::Zero => Ok(None),
            Outcome::Parent { leaf, raw, unreadable, packs } => {
                self.unreadable += unreadable;
                packer.inherit(PackKind::Tree, leaf.at.pack);
                packs.into_iter().for_each(|pack| packer.inherit(PackKind::Data, pack));
                Ok(Some((leaf, raw)))
            }
            Outcome::Draft(drafts) => {
                let entries = drafts.into_iter().map(|draft| self.entry(draft, packer)).collect::<Result<_>>()?;
                let raw = Node::Leaf(Leaf { entries }).encode()?;
                let placed = packer.node(&raw)?;
                Ok(Some((placed, if window == 0 { raw } else { Vec::new() })))
            }
        }
    }

    fn entry(&mut self, draft: Draft, packer: &mut Packer) -> Result<LeafEntry> {
        let hint = |at: &Location| Hint { pack: at.pack, offset: at.offset, stored_len: at.stored_len };
        let content = match draft.content {
            DraftContent::Parent(id, hint) => {
                packer.inherit(PackKind::Data, hint.pack);
                LeafContent::Chunk { id, hint }
            }
            DraftContent::Known(id, at) => {
                packer.rely_on(PackKind::Data, at.pack);
                LeafContent::Chunk { id, hint: hint(&at) }
            }
            DraftContent::New { id, raw_len, codec, bytes } => {
                let at = packer.chunk(id, codec, raw_len, &bytes)?;
                packer.rely_on(PackKind::Data, at.pack);
                LeafContent::Chunk { id, hint: hint(&at) }
            }
            DraftContent::Unreadable => {
                self.unreadable += u64::from(draft.blocks) * u64::from(crate::disk_map::BLOCK);
                LeafContent::Unreadable
            }
        };
        Ok(LeafEntry { start: draft.start, blocks: draft.blocks, content })
    }

    /// The root's raw bytes and how much was unreadable.
    fn finish(self, size: u64, geometry: Geometry, packer: &mut Packer) -> Result<(Vec<u8>, u64)> {
        let due = geometry.windows(size);
        if !self.waiting.is_empty() || self.next != due {
            return Err(Error::internal(format!(
                "the source did not hand out window {} of the {due} that a disk of {size} bytes has",
                self.next
            )));
        }
        Ok((self.tree.finish(size, &mut |raw| packer.node(raw))?, self.unreadable))
    }
}

/// What workloads and disks may be called: they appear in POINT, as `WORKLOAD@TIME:DISK`, and as names of files.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let fits = !name.is_empty()
        && name.len() <= 200
        && !name.starts_with(['-', '.'])
        && !name.chars().any(|c| c.is_control() || matches!(c, '@' | ':' | '/' | '\\'));
    if fits {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "'{}' cannot name a {what}: use 1 to 200 bytes without '@', ':', '/', '\\' and control characters, not beginning \
         with '-' or '.'",
        name.escape_debug()
    )))
}

fn stopped() -> Error {
    Error::new(Kind::Cancelled, "the backup is being stopped")
}
