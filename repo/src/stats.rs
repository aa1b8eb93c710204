//! CONDUCTOR of statistics: what each point and each workload takes, and what only it takes.
//!
//! ```text
//!   own      top-down over the maps: who refers to each distinct node: one point, one workload, or several
//!   gather   each distinct leaf once: its chunks, with the leaf's owner, into a spool
//!   settle   chunk by chunk: who owns it, all its leaves together
//! ```
//!
//! Definitions: a chunk's *raw* bytes are its plaintext's, its *stored* bytes those of its frame; copies in several packs count
//! once, with the shortest frame. *Unique* to a point are the distinct chunks that no other point leads to, unique to a workload
//! those that no other workload's points lead to, so that forgetting all of it can free them. Points are the committed,
//! unforgotten ones.
//!
//! Not here: disk-map nodes and headers (below one part in a hundred), chunks that no point leads to. What holds: nothing is
//! decrypted but maps. An owner rises at most twice (point, workload, several), so a subtree is walked at most three times
//! however many points share it, and a leaf is read once. Memory: 24 bytes per distinct node, that is per window (16 MiB)
//! of distinct content, twice that or so with the room a hash table keeps; 15 MiB a thread for the spool; and the chunks of
//! one of its 256 buckets: 112 KiB per million chunks that distinct leaves name. What does not fit the spool's memory goes to a
//! file in the scratch directory that has no name there any more: 29 bytes a chunk. Why a spool and not a table of all
//! chunks: 1e8 chunks would take 5 GB; and not several passes over the leaves: in an object store these cost more than a file.

use crate::cancel::Cancel;
use crate::crew::Crew;
use crate::cursor::Cursor;
use crate::disk_map::{Child, Inner, LeafContent, Node, identity};
use crate::error::{Error, Result};
use crate::id::{NodeId, SnapshotId};
use crate::location::IndexKey;
use crate::nodes::{Nodes, Root};
use crate::repository::Repository;
use crate::snapshot::Snapshot;
use crate::spool::{self, Spool, Spooled};
use crate::time::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes of decoded nodes kept: inner nodes are walked more than once.
const NODE_CACHE: u64 = 16 << 20;
/// Bytes of spooled references that a thread keeps in memory.
const SPOOL_MEMORY: usize = 15 << 20;

/// How statistics are made.
#[derive(Clone, Debug)]
pub struct StatsOptions {
    /// A directory for what does not fit into memory; the files have no names there and vanish with the process.
    pub scratch: PathBuf,
    /// Threads that read leaves.
    pub threads: usize,
}

/// A set of distinct chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// How many.
    pub chunks: u64,
    /// Bytes of their plaintext.
    pub raw: u64,
    /// Bytes of their frames.
    pub stored: u64,
}

/// What a point takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointStats {
    /// The point.
    pub snapshot: SnapshotId,
    /// Its workload.
    pub workload: String,
    /// When its backup began.
    pub time: Timestamp,
    /// Sizes of its disks together.
    pub logical: u64,
    /// Chunks that no other point leads to.
    pub unique: Size,
}

/// What a workload takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadStats {
    /// The workload.
    pub workload: String,
    /// Number of its points.
    pub points: u64,
    /// Sizes of the disks of all its points together.
    pub logical: u64,
    /// Chunks that no other workload's points lead to.
    pub unique: Size,
}

/// What a repository's points take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// By time and id, as [`Repository::points`] has them.
    pub points: Vec<PointStats>,
    /// By name.
    pub workloads: Vec<WorkloadStats>,
    /// Chunks that any point leads to.
    pub total: Size,
    /// Sizes of all disks of all points together.
    pub logical: u64,
}

/// Adds up what `points` take; "no other point" means no other one of these. A map that cannot be read is an error.
pub fn stats(repo: &Arc<Repository>, points: &[Snapshot], options: &StatsOptions, cancel: &Cancel) -> Result<Stats> {
    let mut stats = Stats::of(points);
    let workloads = stats.workloads_of_points()?;
    let survey = Survey { repo, nodes: Nodes::new(Arc::clone(repo), NODE_CACHE)?, points, cancel };
    let mut owners = Owners { owners: HashMap::new(), workloads: &workloads };
    survey.own(&mut owners)?;
    let spools = survey.gather(owners, options)?;
    spool::settle(&spools, &mut |references: &[Reference]| {
        cancel.check()?;
        match references.iter().copied().reduce(|a, b| a.join(b, &workloads)) {
            Some(chunk) => stats.count(chunk, &workloads),
            None => Ok(()),
        }
    })?;
    Ok(stats)
}

/// Who leads to something: ordinals of points and workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Point(u32),
    Workload(u32),
    Several,
}

impl Owner {
    /// The owner of what both lead to. `workloads` has the workload of each point.
    fn join(self, other: Owner, workloads: &[u32]) -> Owner {
        let workload = |owner| match owner {
            Owner::Point(p) => workloads.get(p as usize).copied(),
            Owner::Workload(w) => Some(w),
            Owner::Several => None,
        };
        match (workload(self), workload(other)) {
            _ if self == other => self,
            (Some(a), Some(b)) if a == b => Owner::Workload(a),
            _ => Owner::Several,
        }
    }
}

/// A leaf's mention of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reference {
    key: IndexKey,
    owner: Owner,
    raw_len: u32,
    stored_len: u32,
}

impl Spooled for Reference {
    fn key(&self) -> IndexKey {
        self.key
    }

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

    fn decode(at: &mut Cursor<'_>) -> Result<Self> {
        let key = IndexKey(at.array()?);
        let [kind] = at.array()?;
        let (ordinal, raw_len, stored_len) = (at.u32()?, at.u32()?, at.u32()?);
        let owner = match kind {
            0 => Owner::Point(ordinal),
            1 => Owner::Workload(ordinal),
            2 => Owner::Several,
            other => return Err(Error::internal(format!("an owner of kind {other}"))),
        };
        Ok(Reference { key, owner, raw_len, stored_len })
    }
}

impl Reference {
    fn join(self, other: Reference, workloads: &[u32]) -> Reference {
        Reference {
            owner: self.owner.join(other.owner, workloads),
            stored_len: self.stored_len.min(other.stored_len),
            ..self
        }
    }
}

impl Stats {
    /// Everything that the claims alone say.
    fn of(points: &[Snapshot]) -> Self {
        let mut stats = Stats::default();
        let mut workloads: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for point in points {
            let logical = point.logical_bytes();
            stats.logical = stats.logical.saturating_add(logical);
            let (count, sum) = workloads.entry(&point.workload).or_default();
            *count += 1;
            *sum = sum.saturating_add(logical);
            stats.points.push(PointStats {
                snapshot: point.id(),
                workload: point.workload.clone(),
                time: point.time(),
                logical,
                unique: Size::default(),
            });
        }
        let row = |(workload, (points, logical)): (&str, (u64, u64))| WorkloadStats {
            workload: workload.to_owned(),
            points,
            logical,
            unique: Size::default(),
        };
        stats.workloads = workloads.into_iter().map(row).collect();
        stats
    }

    /// The workload of each point, as ordinals.
    fn workloads_of_points(&self) -> Result<Vec<u32>> {
        let ordinal = |point: &PointStats| {
            let found = self.workloads.binary_search_by(|w| w.workload.cmp(&point.workload)).ok();
            found.and_then(|w| u32::try_from(w).ok()).ok_or_else(|| Error::internal("a point without a workload"))
        };
        self.points.iter().map(ordinal).collect()
    }

    /// Counts a chunk. `workloads` has the workload of each point.
    fn count(&mut self, chunk: Reference, workloads: &[u32]) -> Result<()> {
        self.total.add(&chunk);
        let workload = match chunk.owner {
            Owner::Point(p) => {
                self.points.get_mut(p as usize).ok_or_else(stranger)?.unique.add(&chunk);
                workloads.get(p as usize).copied().ok_or_else(stranger)?
            }
            Owner::Workload(w) => w,
            Owner::Several => return Ok(()),
        };
        self.workloads.get_mut(workload as usize).ok_or_else(stranger)?.unique.add(&chunk);
        Ok(())
    }
}

impl Size {
    fn add(&mut self, chunk: &Reference) {
        self.chunks += 1;
        self.raw = self.raw.saturating_add(u64::from(chunk.raw_len));
        self.stored = self.stored.saturating_add(u64::from(chunk.stored_len));
    }
}

fn stranger() -> Error {
    Error::internal("a chunk belongs to a point that is none")
}

/// Who leads to each node.
struct Owners<'a> {
    /// By node id; `None` once the node was gathered.
    owners: HashMap<IndexKey, Option<Owner>>,
    /// The workload of each point.
    workloads: &'a [u32],
}

impl Owners<'_> {
    /// Makes `by` another owner of the node; the owner it has now, if that is news.
    fn raise(&mut self, id: NodeId, by: Owner) -> Option<Owner> {
        let entry = self.owners.entry(IndexKey::of(&id.0)).or_default();
        let owner = entry.map_or(by, |owner| owner.join(by, self.workloads));
        (entry.replace(owner) != Some(owner)).then_some(owner)
    }

    /// The owner of a node that was not gathered yet.
    fn take(&mut self, id: NodeId) -> Option<Owner> {
        self.owners.get_mut(&IndexKey::of(&id.0))?.take()
    }
}

/// The maps of the points.
struct Survey<'a> {
    repo: &'a Repository,
    nodes: Nodes,
    points: &'a [Snapshot],
    cancel: &'a Cancel,
}

/// A leaf to be gathered.
enum Task {
    Stored(Child, Owner),
    /// The root of a small disk.
    Root(Arc<Node>, Owner),
}

impl<'a> Survey<'a> {
    /// The roots of a point's disks, but for those of all-zero disks.
    fn roots(&self, point: &Snapshot) -> Result<Vec<(NodeId, Arc<Node>)>> {
        let mut roots = Vec::new();
        for disk in &point.disks {
            if let Some(node) = Root::of(disk, self.repo.geometry())?.node() {
                roots.push((self.repo.keys().id_key().node_id(identity(&disk.root)?), Arc::clone(node)));
            }
        }
        Ok(roots)
    }

    /// Finds the owner of every node, without reading leaves.
    fn own(&self, owners: &mut Owners<'_>) -> Result<()> {
        for (point, ordinal) in self.points.iter().zip(0u32..) {
            for (id, node) in self.roots(point)? {
                if let Some(owner) = owners.raise(id, Owner::Point(ordinal))
                    && let Node::Inner(inner) = &*node
                {
                    self.own_below(inner, owner, owners)?;
                }
            }
        }
        Ok(())
    }

    fn own_below(&self, inner: &Inner, owner: Owner, owners: &mut Owners<'_>) -> Result<()> {
        let level = inner.level - 1;
        for child in &inner.children {
            self.cancel.check()?;
            if let Some(owner) = owners.raise(child.id, owner)
                && level > 0
                && let Node::Inner(inner) = &*self.nodes.node(child, level)?
            {
                self.own_below(inner, owner, owners)?;
            }
        }
        Ok(())
    }

    /// Reads every leaf once and spools its chunks.
    fn gather(&self, mut owners: Owners<'_>, options: &'a StatsOptions) -> Result<Vec<Spool<'a>>> {
        let work = |task, spool: &mut Spool<'a>| {
            let (node, owner) = match task {
                Task::Stored(child, owner) => (Arc::new(self.nodes.read(&child, 0)?), owner),
                Task::Root(node, owner) => (node, owner),
            };
            let Node::Leaf(leaf) = &*node else { return Err(Error::internal("an inner node among the leaves")) };
            for entry in &leaf.entries {
                if let LeafContent::Chunk { id, hint } = &entry.content {
                    let (key, raw_len) = (IndexKey::of(&id.0), entry.len_bytes());
                    spool.push(&Reference { key, owner, raw_len, stored_len: hint.stored_len })?;
                }
            }
            Ok(())
        };
        let crew = Crew { threads: options.threads, cancel: self.cancel };
        crew.run(
            || Ok(Spool::new(&options.scratch, self.repo.entropy(), SPOOL_MEMORY)),
            work,
            |hand| {
                for point in self.points {
                    for (id, node) in self.roots(point)? {
                        let Some(owner) = owners.take(id) else { continue };
                        match &*node {
                            Node::Leaf(_) => hand(Task::Root(node, owner))?,
                            Node::Inner(inner) => self.gather_below(inner, &mut owners, hand)?,
                        }
                    }
                }
                Ok(())
            },
        )
    }

    fn gather_below(
        &self,
        inner: &Inner,
        owners: &mut Owners<'_>,
        hand: &mut dyn FnMut(Task) -> Result<()>,
    ) -> Result<()> {
        let level = inner.level - 1;
        for child in &inner.children {
            let Some(owner) = owners.take(child.id) else { continue };
            if level == 0 {
                hand(Task::Stored(*child, owner))?;
            } else if let Node::Inner(inner) = &*self.nodes.node(child, level)? {
                self.gather_below(inner, owners, hand)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_rise_in_any_order_to_the_same() {
        use Owner::{Point, Several, Workload};
        // Points 0 and 1 belong to workload 0, point 2 to workload 1.
        let workloads = [0, 0, 1];
        let all = [Point(0), Point(1), Point(2), Workload(0), Workload(1), Several];
        for a in all {
            assert_eq!(a.join(a, &workloads), a);
            for b in all {
                assert_eq!(a.join(b, &workloads), b.join(a, &workloads), "{a:?} {b:?}");
                for c in all {
                    let left = a.join(b, &workloads).join(c, &workloads);
                    assert_eq!(left, a.join(b.join(c, &workloads), &workloads), "{a:?} {b:?} {c:?}");
                }
            }
        }
        assert_eq!(Point(0).join(Point(1), &workloads), Workload(0));
        assert_eq!(Point(0).join(Workload(0), &workloads), Workload(0));
        assert_eq!(Point(0).join(Point(2), &workloads), Several);
        assert_eq!(Workload(0).join(Workload(1), &workloads), Several);
    }

    #[test]
    fn an_owner_is_news_at_most_three_times() {
        let workloads = [0, 0, 0, 1];
        let mut owners = Owners { owners: HashMap::new(), workloads: &workloads };
        let news = [0, 0, 1, 2, 3, 0].map(|p| owners.raise(NodeId::default(), Owner::Point(p)).is_some());
        assert_eq!(news, [true, false, true, false, true, false]);
        assert_eq!(owners.take(NodeId::default()), Some(Owner::Several));
        assert_eq!(owners.take(NodeId::default()), None);
        assert_eq!(owners.take(NodeId([1; 32])), None);
    }
}
