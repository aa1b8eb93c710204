//! CONDUCTOR of verification: records, maps, packs, data; then what the damage hurts.
//!
//! ```text
//!   records   every claim, decision, forget, delta, certificate, note ... opens and is signed by one who may
//!   walk      every distinct node of every point's maps is read; every chunk a leaf names is in its pack's table of contents
//!   sweep     the packs that no map leads to, and the tables of tree packs
//!   data      the frames of needed data packs: decrypted, expanded, id-checked; all packs, or a share of them
//!   harm      only when something is wrong: which bytes of which disks of which points cannot be read
//!   ledger    if asked to: what was found sound is kept, so that the next one knows what to read
//! ```
//!
//! What is damaged and can be read all the same ([`crate::detour`]) hurts nobody: the report says so, and what helped.
//!
//! Not here: repairing ([`crate::heal`]). What holds: nothing but what it keeps, and what of it is damaged, is written, so that
//! verification needs no pin and runs beside everything; a point that is forgotten meanwhile is left out of the report (tombstones are read again before it), and so is a pack that went and that no
//! point needs. Memory: the claims of all points; 16 bytes per distinct node, that is per window (16 MiB) of distinct content,
//! and 17 per pack (33 where packs get parity), all twice or so with the room that hash tables keep (4 GB for 1 PiB); tables of
//! contents up to `packs::TABLES`; per thread 5 MiB and a node, or a record (at most 64 MiB) while it is opened; and what grows
//! with the damage: a name and a text per damaged object, 4 bytes per damaged frame, 16 per damaged leaf, 16 per damaged range of
//! a disk, and what [`crate::detour`] keeps; what was kept before and what is kept take 48 bytes per data pack, twice or so.

mod findings;
mod harm;
mod ledger;
mod packs;
mod records;
mod wounds;

use crate::cancel::Cancel;
use crate::crew::Crew;
pub use crate::detour::Remedy;
use crate::disk_map::{Child, Inner, Node};
use crate::error::{Error, Kind, Result};
use crate::id::{PackUid, SnapshotId};
use crate::location::PackKind;
use crate::nodes::{Nodes, Root};
use crate::pace::Pace;
use crate::pack;
use crate::repository::Repository;
use crate::snapshot::{Disk, Snapshot};
use crate::time::Timestamp;
use findings::Findings;
use harm::Blame;
pub use ledger::Ledger;
use ledger::{Outcome, Recorder};
use packs::{Held, Packs, Scratch, Sound};
use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use wounds::Wounds;
pub(crate) use wounds::{Place, PlaceDisk, Scene};

/// Which data packs are read whole. What else is verified does not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataCheck {
    /// None: structure only, which a writer's key can do too.
    None,
    /// Every pack that a point needs.
    All,
    /// So many of a hundred packs that points need, 1 to 100, rounded up, drawn anew each time.
    Percent(u8),
    /// So many of a hundred packs that points need, 1 to 100, rounded up: those that were not read for longest, as far as that was
    /// kept.
    Oldest(u8),
}

/// How to verify.
#[derive(Clone, Copy, Debug)]
pub struct VerifyOptions {
    /// Which data is read.
    pub data: DataCheck,
    /// Of that, only what was not read at or after this time, as far as that was kept.
    pub unread_since: Option<Timestamp>,
    /// Bytes of packs read in a second, at most.
    pub max_rate: Option<u64>,
    /// Keep what is found sound, as of this time, and have no backup rely on data packs that are found damaged. `None`: write nothing.
    pub keep: Option<Timestamp>,
    /// Threads that read and check.
    pub threads: usize,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, 16);
        VerifyOptions { data: DataCheck::None, unread_since: None, max_rate: None, keep: None, threads }
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
    /// What a pack that hurts nobody is read with, as far as points need it. `None` for one that no point needs.
    pub remedy: Option<Remedy>,
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
    /// Packs that are damaged and hurt nobody, since everything that points need of them lies elsewhere as well. A collector
    /// removes them.
    pub healed: Vec<Problem>,
    /// Why what was found sound could not be kept, if it was to be.
    pub not_kept: Option<String>,
    /// How many packs have no parity in a repository whose packs get it.
    pub without_parity: u64,
}

/// Verifies a repository. Damage is reported and not an error; an error means that the verification did not come to an end.
/// `WrongKey` when data is to be read, or what is found kept, and the key is a writer's; `Invalid` for a share outside of 1 to 100
/// percent.
pub fn verify(
    repo: &Arc<Repository>,
    options: VerifyOptions,
    progress: &VerifyProgress,
    cancel: &Cancel,
) -> Result<Report> {
    examine(repo, options, progress, cancel, None)
}

/// What is done about the wounds that an examination found. Whether something was healed: then it is looked again, for what was
/// healed and for what lay hidden below it.
pub(crate) type Treat<'a> = dyn FnMut(&Scene<'_>) -> Result<bool> + 'a;

/// As [`verify`]; when it was found what is wrong, and before it is reported, `treat` may do something about it.
pub(crate) fn examine(
    repo: &Arc<Repository>,
    options: VerifyOptions,
    progress: &VerifyProgress,
    cancel: &Cancel,
    treat: Option<&mut Treat<'_>>,
) -> Result<Report> {
    check(repo, options)?;
    let findings = Findings::default();
    let crew = Crew { threads: options.threads, cancel };
    records::check_all(repo, crew, &findings, progress)?;
    let points = readable_points(repo, &findings)?;
    let (nodes, pace) = (Nodes::new(Arc::clone(repo), 0)?, Pace::new(options.max_rate));
    let packs = Packs::new(repo, nodes.detours(), &pace, cancel)?;
    let wounds = treat.is_some().then(Wounds::default);
    let run = Run { repo, crew, findings, packs, nodes: &nodes, pace: &pace, wounds: wounds.as_ref() };
    let mut damaged_leaves = run.walk(&points, progress)?;
    run.sweep(progress)?;
    let needed = run.packs.needed(PackKind::Data);
    let recorder = options.keep.map(|time| Recorder::new(repo, time));
    let is_news = run.read_data(run.due(options, &needed)?, recorder.as_ref(), progress);
    if let (Err(_), Some(recorder)) = (&is_news, &recorder) {
        recorder.checkpoint();
    }
    if is_news? {
        // Frames turned out damaged after their leaves were seen. What is counted is counted already.
        damaged_leaves = run.walk(&points, &VerifyProgress::default())?;
    }
    if let (Some(treat), Some(wounds)) = (treat, &wounds) {
        while treat(&Scene { run: &run, points: &points, wounds })? {
            wounds.clear();
            nodes.detours().reconsider();
            damaged_leaves = run.walk(&points, &VerifyProgress::default())?;
        }
    }
    let without_parity = run.without_parity()?.len() as u64;
    let ids: BTreeSet<SnapshotId> = points.iter().map(Snapshot::id).collect();
    let found = run.problems(points, &damaged_leaves)?;
    let (healed, problems): (Vec<_>, Vec<_>) = found.into_iter().partition(|p| p.remedy == Some(Remedy::Copies));
    let hurt = problems.iter().flat_map(|problem| problem.hurts.iter().map(|harm| harm.snapshot)).collect();
    let outcome = Outcome { needed: &needed, points: &ids, hurt: &hurt };
    let not_kept = recorder.and_then(|recorder| {
        let damaged = damaged_data_packs(problems.iter().chain(&healed));
        recorder.close(&outcome).or(repo.shun(&damaged).err()).map(|e| e.to_string())
    });
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
        healed,
        not_kept,
        without_parity,
    })
}

fn check(repo: &Repository, options: VerifyOptions) -> Result<()> {
    match options.data {
        DataCheck::None => {}
        DataCheck::Percent(share) | DataCheck::Oldest(share) if !(1..=100).contains(&share) => {
            return Err(Error::invalid(format!("{share}% of the data cannot be verified; use 1 to 100")));
        }
        DataCheck::All | DataCheck::Percent(_) | DataCheck::Oldest(_) => {
            repo.check_full("verify data (its structure, it can)")?;
            repo.keys().check_newest("verify data")?;
        }
    }
    match options.keep {
        Some(_) => repo.check_full("keep what a verification found"),
        None => Ok(()),
    }
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
    nodes: &'a Nodes,
    packs: Packs<'a>,
    pace: &'a Pace,
    /// What is not as it should be, when somebody is going to do something about it.
    wounds: Option<&'a Wounds>,
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
            Task::Root(node) => self.check_leaf(&node, None, scratch, progress).map(drop),
            Task::Stored(child, key) => {
                let sound = match self.read_node(&child, 0, progress)? {
                    Some(node) => self.check_leaf(&node, Some(key), scratch, progress)?,
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
        let len = u64::from(child.hint.stored_len);
        progress.bytes.fetch_add(len, Relaxed);
        self.pace.take(len, self.crew.cancel)?;
        let e = match self.nodes.read_there(child, level) {
            Ok(node) => return Ok(Some(node)),
            Err(e) => e,
        };
        let instead = self.nodes.read_instead(child, level, e.duplicate()).ok();
        if instead.is_none() || !self.nodes.detours().is_gone(child.hint.pack) {
            self.findings.add_once(&pack::name(PackKind::Tree, child.hint.pack), e)?;
        }
        if let (None | Some((_, Remedy::Parity)), Some(wounds)) = (&instead, self.wounds) {
            wounds.add_node(*child, level);
        }
        Ok(instead.map(|(node, _)| node))
    }

    /// Whether every chunk of a leaf can be read, as far as was looked. `key` is that of a stored leaf.
    fn check_leaf(
        &self,
        node: &Node,
        key: Option<Key>,
        scratch: &mut Scratch,
        progress: &VerifyProgress,
    ) -> Result<bool> {
        let Node::Leaf(leaf) = node else { return Err(Error::internal("an inner node at the level of leaves")) };
        let mut sound = true;
        for want in leaf.entries.iter().filter_map(crate::reader::Want::of) {
            progress.chunks.fetch_add(1, Relaxed);
            let held = self.packs.holds(&want, &self.findings, scratch, progress)?;
            if let (Held::ByParity | Held::No | Held::Absent(_), Some(wounds)) = (&held, self.wounds) {
                wounds.add_chunk(want, key);
            }
            match held {
                Held::Yes | Held::ByParity => {}
                Held::No => sound = false,
                Held::Absent(e) => {
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

    /// The data packs to be read whole, of those that are needed.
    fn due(&self, options: VerifyOptions, needed: &[PackUid]) -> Result<Vec<PackUid>> {
        let share_of = |packs: usize, share: u8| (packs * usize::from(share)).div_ceil(100);
        let asks_the_ledger = options.unread_since.is_some() || matches!(options.data, DataCheck::Oldest(_));
        let ledger = if asks_the_ledger { self.repo.proven()? } else { Ledger::default() };
        let mut due = needed.to_vec();
        if let Some(since) = options.unread_since {
            due.retain(|pack| ledger.packs.get(pack).is_none_or(|last| *last < since));
        }
        // The order of a hash table is no order that a seed gives again.
        due.sort_unstable();
        match options.data {
            DataCheck::None => due.clear(),
            DataCheck::All => {}
            DataCheck::Percent(share) => draw(&mut due, share_of(needed.len(), share), self.repo)?,
            DataCheck::Oldest(share) => {
                due.sort_by_key(|pack| ledger.packs.get(pack).copied());
                due.truncate(share_of(needed.len(), share));
            }
        }
        Ok(due)
    }

    /// Reads data packs whole; whether that found damage.
    fn read_data(&self, due: Vec<PackUid>, recorder: Option<&Recorder<'_>>, progress: &VerifyProgress) -> Result<bool> {
        progress.data_packs_due.store(due.len() as u64, Relaxed);
        let damaged = AtomicU64::new(0);
        let read = |uid, scratch: &mut Scratch| {
            let sound = self.packs.read_whole(uid, &self.findings, scratch, progress)?;
            progress.data_packs.fetch_add(1, Relaxed);
            damaged.fetch_add(u64::from(sound == Sound::No), Relaxed);
            if let Some(recorder) = recorder {
                recorder.note(uid, sound == Sound::Yes);
            }
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
            if problem.hurts.is_empty() {
                if self.is_gone(&problem.object, &forgotten)? {
                    continue;
                }
                problem.remedy = self.remedy(&problem.object)?;
            }
            problems.push(problem);
        }
        Ok(problems)
    }

    /// What helps against the damage of an object that hurts nobody.
    fn remedy(&self, object: &str) -> Result<Option<Remedy>> {
        let Some((kind, uid)) = pack::parse_name(object) else { return Ok(None) };
        let detours = self.nodes.detours();
        match detours.remedy(kind, uid) {
            Some(remedy) => Ok(Some(remedy)),
            // No frame that a point needs is damaged, but others may be, or the table of contents.
            None => Ok(detours.mended(kind, uid)?.map(|_| Remedy::Parity)),
        }
    }

    /// The packs that lack parity, if packs get it here.
    fn without_parity(&self) -> Result<BTreeSet<(PackKind, PackUid)>> {
        if self.repo.wants_parity() { self.repo.packs_without_parity() } else { Ok(BTreeSet::new()) }
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

/// The data packs that these say are damaged, and not just out of reach or gone.
pub(crate) fn damaged_data_packs<'a>(problems: impl Iterator<Item = &'a Problem>) -> BTreeSet<PackUid> {
    let damaged = problems.filter(|problem| problem.kind == Kind::Corrupt);
    let packs = damaged.filter_map(|problem| pack::parse_name(&problem.object));
    packs.filter(|(kind, _)| *kind == PackKind::Data).map(|(_, uid)| uid).collect()
}

/// Keeps so many packs, or all if there are fewer, drawn at random.
fn draw(packs: &mut Vec<PackUid>, most: usize, repo: &Repository) -> Result<()> {
    let most = most.min(packs.len());
    for i in 0..most {
        let left = (packs.len() - i) as u64;
        // Off by less than one part in 2^40, for as many packs as there can be.
        let draw = u64::from_le_bytes(crate::entropy::fresh(repo.entropy())?) % left;
        let chosen = i + usize::try_from(draw).map_err(|_| Error::internal("a draw beyond memory"))?;
        packs.swap(i, chosen);
    }
    packs.truncate(most);
    Ok(())
}
