//! CONDUCTOR of verification: records, maps, packs, data; then what the damage hurts.
//!
//! ```text
//!   records   every claim, decision, forget, delta, certificate, note ... opens and is signed by one who may
//!   walk      every distinct node of every point's maps is read; every chunk a leaf names is in its pack's table of contents
//!   sweep     the packs that no map leads to, and the tables of tree packs
//!   data      the frames of needed data packs: decrypted, expanded, id-checked; all packs or a sample
//!   harm      only when something is wrong: which bytes of which disks of which points cannot be read
//! ```
//!
//! Not here: repairing. What holds: nothing is written, so verification needs no pin and runs beside everything; a point that is
//! forgotten meanwhile is left out of the report (tombstones are read again before it), and so is a pack that went and that no
//! point needs. Memory: the claims of all points; 16 bytes per distinct node, that is per window (16 MiB) of distinct content,
//! and 17 per pack, both twice or so with the room that hash tables keep (4 GB for 1 PiB); tables of contents up to
//! `packs::TABLES`; per thread 5 MiB and a node, or a record (at most 64 MiB) while it is opened; and what grows with the
//! damage: a name and a text per damaged object, 4 bytes per damaged frame, 16 per damaged leaf, 16 per damaged range of a disk.

mod findings;
mod harm;
mod packs;
mod records;

use crate::cancel::Cancel;
use crate::crew::Crew;
use crate::disk_map::{Child, Inner, Node};
use crate::error::{Error, Kind, Result};
use crate::id::{PackUid, SnapshotId};
use crate::location::PackKind;
use crate::nodes::{Nodes, Root};
use crate::pack;
use crate::repository::Repository;
use crate::snapshot::{Disk, Snapshot};
use crate::time::Timestamp;
use findings::Findings;
use harm::Blame;
use packs::{Held, Packs, Scratch};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// Which data packs are read whole. What else is verified does not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataCheck {
    /// None: structure only, which a writer's key can do too.
    None,
    /// Every pack that a point needs.
    All,
    /// So many of a hundred packs that points need, 1 to 100, rounded up, drawn anew each time.
    Percent(u8),
}

/// How to verify.
#[derive(Clone, Copy, Debug)]
pub struct VerifyOptions {
    /// Which data is read.
    pub data: DataCheck,
    /// Threads that read and check.
    pub threads: usize,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, 16);
        VerifyOptions { data: DataCheck::None, threads }
    }
}

/// How far a verification is; sampled by whoever shows it.
#[derive(Debug, Default)]
pub struct VerifyProgress {
    /// Records looked at: claims, decisions, deltas and the like.
    pub records: AtomicU64,
    /// Points whose maps were walked.
    pub points: AtomicU64,
    /// Distinct nodes read, but for the roots, which lie in claims.
    pub nodes: AtomicU64,
    /// Chunks that distinct leaves name, looked up in their packs' tables of contents.
    pub chunks: AtomicU64,
    /// Packs whose header and table of contents were looked at.
    pub packs: AtomicU64,
    /// Data packs to be read whole; known once the maps are walked.
    pub data_packs_due: AtomicU64,
    /// Data packs read whole.
    pub data_packs: AtomicU64,
    /// Bytes of records, nodes, tables of contents and frames that were read.
    pub bytes: AtomicU64,
}

/// A stretch of content that cannot be read, or, for whoever cannot look, not be shown to be readable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Harm {
    /// The point.
    pub snapshot: SnapshotId,
    /// Its workload.
    pub workload: String,
    /// When its backup began.
    pub time: Timestamp,
    /// The disk.
    pub disk: String,
    /// Bytes of the disk: sorted, merged.
    pub ranges: Vec<Range<u64>>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The object.
    pub object: String,
    /// The kind of the first thing that is wrong with it: `Unavailable`, where it could not be read at all, may pass.
    pub kind: Kind,
    /// What is wrong, for people.
    pub what: String,
    /// What can no longer be restored because of it, by point and disk. Nothing for a pack that no point needs. For a record that is
    /// a claim or decision, it is the whole point, which `object` names, and this is empty.
    pub hurts: Vec<Harm>,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// As in [`VerifyProgress`].
    pub records: u64,
    /// Points whose maps were walked.
    pub points: u64,
    /// Distinct nodes read.
    pub nodes: u64,
    /// Chunks looked up.
    pub chunks: u64,
    /// Packs looked at.
    pub packs: u64,
    /// Data packs read whole.
    pub data_packs: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is wrong, by object; nothing in a sound repository.
    pub problems: Vec<Problem>,
}

/// Verifies a repository. Damage is reported and not an error; an error means that the verification did not come to an end.
/// `WrongKey` when data is to be read and the key is a writer's; `Invalid` for a share outside of 1 to 100 percent.
pub fn verify(
    repo: &Arc<Repository>,
    options: VerifyOptions,
    progress: &VerifyProgress,
    cancel: &Cancel,
) -> Result<Report> {
    match options.data {
        DataCheck::None => {}
        DataCheck::Percent(share) if !(1..=100).contains(&share) => {
            return Err(Error::invalid(format!("{share}% of the data cannot be verified; use 1 to 100")));
        }
        DataCheck::All | DataCheck::Percent(_) => repo.check_full("verify data (its structure, it can)")?,
    }
    let findings = Findings::default();
    let crew = Crew { threads: options.threads, cancel };
    records::check_all(repo, crew, &findings, progress)?;
    let points = readable_points(repo, &findings)?;
    let run = Run { repo, crew, findings, nodes: Nodes::new(Arc::clone(repo), 0)?, packs: Packs::new(repo) };
    let mut damaged_leaves = run.walk(&points, progress)?;
    run.sweep(progress)?;
    if run.read_data(options.data, progress)? {
        // Frames turned out damaged after their leaves were seen. What is counted is counted already.
        damaged_leaves = run.walk(&points, &VerifyProgress::default())?;
    }
    let problems = run.problems(points, &damaged_leaves)?;
    let count = |n: &AtomicU64| n.load(Relaxed);
    Ok(Report {
        records: count(&progress.records),
        points: count(&progress.points),
        nodes: count(&progress.nodes),
        chunks: count(&progress.chunks),
        packs: count(&progress.packs),
        data_packs: count(&progress.data_packs),
        bytes: count(&progress.bytes),
        problems,
    })
}

/// The committed, unforgotten points. Of the others it is said why they cannot be read, unless their records were named already.
fn readable_points(repo: &Repository, findings: &Findings) -> Result<Vec<Snapshot>> {
    let points = repo.points()?;
    for (name, error) in points.damaged {
        if !findings.has(&name.claim()) && !findings.has(&name.decision()) {
            findings.add(&name.claim(), error)?;
        }
    }
    Ok(points.snapshots)
}

/// What the stages share.
struct Run<'a> {
    repo: &'a Arc<Repository>,
    crew: Crew<'a>,
    findings: Findings,
    /// Without a cache: every copy of a node is read where it lies.
    nodes: Nodes,
    packs: Packs<'a>,
}

/// A reference to a node, shortened: a hash of the id, the place and the level that it names. Two copies of a node are two
/// nodes here, since one may be damaged.
type Key = [u8; 16];

fn key_of(child: &Child, level: u8) -> Key {
    let at = &child.hint;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&child.id.0).update(&at.pack.0);
    for field in [at.offset, at.stored_len, at.raw_len, u32::from(level)] {
        hasher.update(&field.to_le_bytes());
    }
    let mut key = Key::default();
    hasher.finalize_xof().fill(&mut key);
    key
}

/// A leaf to be checked.
enum Task {
    /// In a tree pack.
    Stored(Child, Key),
    /// The root of a small disk.
    Root(Arc<Node>),
}

impl Run<'_> {
    /// Reads every distinct node once and looks its chunks up; the keys of leaves that cannot be read or name a chunk that
    /// cannot be read are returned.
    fn walk(&self, points: &[Snapshot], progress: &VerifyProgress) -> Result<HashSet<Key>> {
        let damaged = Mutex::new(HashSet::new());
        let check = |task, scratch: &mut Scratch| match task {
            Task::Root(node) => self.check_leaf(&node, scratch, progress).map(drop),
            Task::Stored(child, key) => {
                let sound = match self.read_node(&child, 0, progress)? {
                    Some(node) => self.check_leaf(&node, scratch, progress)?,
                    None => false,
                };
                if !sound {
                    damaged.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
                }
                Ok(())
            }
        };
        self.crew.run(Scratch::new, check, |hand| {
            let mut seen = HashSet::new();
            for point in points {
                for disk in &point.disks {
                    let root = match self.root(point, disk) {
                        Ok(root) => root,
                        Err(e) => {
                            self.findings.add_once(&point.name.claim(), e)?;
                            continue;
                        }
                    };
                    match root.node().map(|node| (node, &**node)) {
                        Some((node, Node::Leaf(_))) => hand(Task::Root(Arc::clone(node)))?,
                        Some((_, Node::Inner(inner))) => self.descend(inner, &mut seen, progress, hand)?,
                        None => {}
                    }
                }
                progress.points.fetch_add(1, Relaxed);
            }
            Ok(())
        })?;
        Ok(damaged.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn root(&self, point: &Snapshot, disk: &Disk) -> Result<Root> {
        Root::of(disk, self.repo.geometry()).map_err(|e| e.within(format_args!("{}@{}", point.workload, point.time())))
    }

    fn descend(
        &self,
        inner: &Inner,
        seen: &mut HashSet<Key>,
        progress: &VerifyProgress,
        hand: &mut dyn FnMut(Task) -> Result<()>,
    ) -> Result<()> {
        let level = inner.level - 1;
        for child in &inner.children {
            self.crew.cancel.check()?;
            let key = key_of(child, level);
            if !seen.insert(key) {
                continue;
            }
            if level == 0 {
                hand(Task::Stored(*child, key))?;
            } else if let Some(Node::Inner(inner)) = self.read_node(child, level, progress)? {
                self.descend(&inner, seen, progress, hand)?;
            }
        }
        Ok(())
    }

    /// The node, or `None` after its damage was filed.
    fn read_node(&self, child: &Child, level: u8, progress: &VerifyProgress) -> Result<Option<Node>> {
        self.packs.need(PackKind::Tree, child.hint.pack);
        progress.nodes.fetch_add(1, Relaxed);
        progress.bytes.fetch_add(u64::from(child.hint.stored_len), Relaxed);
        match self.nodes.read(child, level) {
            Ok(node) => Ok(Some(node)),
            Err(e) => {
                self.findings.add_once(&pack::name(PackKind::Tree, child.hint.pack), e)?;
                Ok(None)
            }
        }
    }

    /// Whether every chunk of a leaf lies where the leaf says, as far as was looked.
    fn check_leaf(&self, node: &Node, scratch: &mut Scratch, progress: &VerifyProgress) -> Result<bool> {
        let Node::Leaf(leaf) = node else { return Err(Error::internal("an inner node at the level of leaves")) };
        let mut sound = true;
        for want in leaf.entries.iter().filter_map(crate::reader::Want::of) {
            progress.chunks.fetch_add(1, Relaxed);
            match self.packs.holds(&want, &self.findings, scratch, progress)? {
                Held::Yes => {}
                Held::No => sound = false,
                Held::Unlisted(e) => {
                    self.findings.add_once(&pack::name(PackKind::Data, want.at.pack), e)?;
                    sound = false;
                }
            }
        }
        Ok(sound)
    }

    /// Looks at the headers and tables of contents of all packs in the store that the walk did not look at.
    fn sweep(&self, progress: &VerifyProgress) -> Result<()> {
        let check = |(kind, uid), _: &mut ()| self.packs.check_unneeded(kind, uid, &self.findings, progress);
        self.crew.run(
            || Ok(()),
            check,
            |hand| {
                for kind in PackKind::ALL {
                    self.repo.backend().list(kind.prefix(), &mut |object| match pack::parse_name(&object.name) {
                        // The walk read the nodes of a tree pack it needs, and not the table.
                        Some((PackKind::Data, uid)) if self.packs.is_needed(PackKind::Data, uid) => Ok(()),
                        Some(pack) => hand(pack),
                        None => self.findings.add(&object.name, findings::foreign(&object.name)),
                    })?;
                }
                Ok(())
            },
        )?;
        Ok(())
    }

    /// Reads data packs whole; whether that found damage.
    fn read_data(&self, data: DataCheck, progress: &VerifyProgress) -> Result<bool> {
        let due = match data {
            DataCheck::None => return Ok(false),
            DataCheck::All => self.packs.needed(PackKind::Data),
            DataCheck::Percent(share) => sample(self.packs.needed(PackKind::Data), share, self.repo)?,
        };
        progress.data_packs_due.store(due.len() as u64, Relaxed);
        let damaged = AtomicU64::new(0);
        let read = |uid, scratch: &mut Scratch| {
            let sound = self.packs.read_whole(uid, &self.findings, scratch, self.crew.cancel, progress)?;
            progress.data_packs.fetch_add(1, Relaxed);
            damaged.fetch_add(u64::from(!sound), Relaxed);
            Ok(())
        };
        self.crew.run(Scratch::new, read, |hand| due.into_iter().try_for_each(hand))?;
        Ok(damaged.into_inner() > 0)
    }

    /// What was found, with what it hurts of the points that still count.
    fn problems(&self, mut points: Vec<Snapshot>, damaged_leaves: &HashSet<Key>) -> Result<Vec<Problem>> {
        if self.findings.is_empty() {
            return Ok(Vec::new());
        }
        let forgotten = self.repo.forgotten()?;
        points.retain(|p| !forgotten.contains(&p.id()));
        let mut blame = Blame::new(self, damaged_leaves);
        for point in &points {
            blame.point(point)?;
        }
        let mut harms = blame.finish();
        // What went while the harm was looked for went after its tombstone was written.
        let forgotten = self.repo.forgotten()?;
        harms.values_mut().for_each(|harms| harms.retain(|h| !forgotten.contains(&h.snapshot)));
        let mut problems = Vec::new();
        for mut problem in self.findings.problems() {
            problem.hurts = harms.remove(&problem.object).unwrap_or_default();
            if problem.hurts.is_empty() && self.is_gone(&problem.object, &forgotten)? {
                continue;
            }
            problems.push(problem);
        }
        Ok(problems)
    }

    /// Whether an object that hurts nobody may be missing, or be damaged, because it is on its way out.
    fn is_gone(&self, object: &str, forgotten: &std::collections::BTreeSet<SnapshotId>) -> Result<bool> {
        if let Some((claim, _)) = crate::snapshot::ClaimName::parse(object) {
            return Ok(forgotten.contains(&claim.id));
        }
        match pack::parse_name(object) {
            Some(_) => Ok(self.repo.backend().size(object)?.is_none()),
            None => Ok(false),
        }
    }
}

/// So many of a hundred packs, rounded up.
fn sample(mut packs: Vec<PackUid>, share: u8, repo: &Repository) -> Result<Vec<PackUid>> {
    let most = (packs.len() * usize::from(share)).div_ceil(100);
    // The order of a hash table is no order that a seed gives again.
    packs.sort_unstable();
    for i in 0..most {
        let left = (packs.len() - i) as u64;
        // Off by less than one part in 2^40, for as many packs as there can be.
        let draw = u64::from_le_bytes(crate::entropy::fresh(repo.entropy())?) % left;
        let chosen = i + usize::try_from(draw).map_err(|_| Error::internal("a draw beyond memory"))?;
        packs.swap(i, chosen);
    }
    packs.truncate(most);
    Ok(packs)
}
