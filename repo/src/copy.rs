//! CONDUCTOR of copies: points of one repository become points of another one, with other keys, cut otherwise, in another store.
//!
//! ```text
//!   Copier::begin      two repositories that are not one and the same; by their origins, which points both have
//!   Copier::due        of the points that are wanted those that the destination lacks, oldest first
//!   PointCopy::begin   pin -> claim of the original -> base: the nearest point that both have -> Writer, with the base's copy as parent
//!   PointCopy::run     per disk: where it differs from the base, by their maps -> content read there -> Writer::disk;  Writer::commit
//!   Copier::compare    both are read, and compared
//!   Copier::protect    what is protected here is protected there
//! ```
//!
//! Not here: which points are wanted, who tries again what was overtaken, how it is shown. What holds: a copy has all that its original
//! has, its time and its names included, and what could not be read of that cannot be read of it; a chunk that is damaged is an error
//! and makes no copy, or, for whoever keeps going, cannot be read of the copy and is named; of one point no two copies come to count
//! ([`crate::writer`]), whoever copies; nothing is ever forgotten at the destination. Copying a point reads where it differs from its
//! base and what cutting there takes, and all of it without a base. Stopped at any moment it leaves whole points, and packs that the
//! next run finds by their index deltas. Memory: the writer's, 4 MiB a worker, the reader's caches, and the claims of both sides.

mod comparison;
mod content;
mod windows;

use crate::cancel::Cancel;
use crate::catalog::Pin;
use crate::diff::{Comparer, DiskChanges};
use crate::error::{Error, Kind, Result};
use crate::id::SnapshotId;
use crate::index::Index;
use crate::pace::Pace;
use crate::protection::{Protected, Protection};
use crate::reader::{Reader, ReaderOptions};
use crate::repository::Repository;
use crate::snapshot::{Claim, ClaimName, ClaimPart, Disk, Identity, Origin, Snapshot};
use crate::time::Timestamp;
use crate::writer::{DiskSpec, Progress, Writer, WriterOptions};
use comparison::Comparison;
use content::Content;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use windows::CopyWindows;

/// How points are copied.
#[derive(Clone, Debug)]
pub struct CopyOptions {
    /// Copy what is left of a damaged point, rather than nothing of it.
    pub keep_going: bool,
    /// Whether copies are going to be compared ([`Copier::compare`]), which takes a full key of the destination.
    pub verify: bool,
    /// Bytes of content read from the source in a second, at most.
    pub max_rate: Option<u64>,
    /// How the destination is written. Not dry.
    pub writer: WriterOptions,
    /// Who copies: for sessions and pins. The copies name who made their originals.
    pub identity: Identity,
    /// When it began.
    pub now: Timestamp,
}

/// Two repositories, and which points both of them have.
pub struct Copier {
    source: Arc<Repository>,
    destination: Arc<Repository>,
    reader: Arc<Reader>,
    comparer: Comparer,
    /// The destination's points by where they were made first: usually one each.
    there: BTreeMap<Origin, Vec<Snapshot>>,
    pace: Pace,
    options: CopyOptions,
}

/// What came of copying a point.
#[derive(Debug)]
pub enum Outcome {
    /// A copy.
    Made(Box<Made>),
    /// No copy, since the original is damaged: this is what could not be read.
    Damaged(Error),
}

/// A copy that counts.
#[derive(Debug)]
pub struct Made {
    /// The copy.
    pub snapshot: Snapshot,
    /// The source's point whose copy it builds on.
    pub base: Option<SnapshotId>,
    /// By disk, the bytes that are damaged in the source and cannot be read of the copy: in order, none touching another.
    pub lost: BTreeMap<String, Vec<Range<u64>>>,
}

/// A point that is being copied.
pub struct PointCopy<'a> {
    copier: &'a Copier,
    point: &'a Snapshot,
    claim: Claim,
    base: Option<&'a Snapshot>,
    writer: Writer,
    pin: Pin,
}

impl Copier {
    /// Looks at both sides; `reader` reads `source`, and `points` are all that `destination` has. `Invalid` when they are one repository,
    /// `WrongKey` when the source's key does not read, or the destination's does not and is to.
    pub fn begin(
        source: &Arc<Repository>,
        reader: Arc<Reader>,
        destination: &Arc<Repository>,
        points: Vec<Snapshot>,
        options: CopyOptions,
    ) -> Result<Self> {
        let (from, to) = (source, destination);
        if from.keys().repo() == to.keys().repo() {
            return Err(Error::invalid(format!(
                "{} and {} are one repository, or copies of its objects: points are copied to another one",
                from.backend().location(),
                to.backend().location()
            )));
        }
        let within = |e: Error, repo: &Repository| e.within(repo.backend().location());
        from.check_full("read what is to be copied").map_err(|e| within(e, from))?;
        to.check_writable().map_err(|e| within(e, to))?;
        if options.verify {
            to.check_full("read back what was copied").map_err(|e| within(e, to))?;
        }
        if options.writer.dry_run {
            return Err(Error::invalid("a copy stores what it makes"));
        }
        let mut copier = Copier {
            comparer: Comparer::new(from)?,
            pace: Pace::new(options.max_rate),
            source: Arc::clone(from),
            destination: Arc::clone(to),
            there: BTreeMap::new(),
            reader,
            options,
        };
        points.into_iter().for_each(|point| copier.add(point));
        Ok(copier)
    }

    /// Looks again which points the destination has.
    pub fn relist(&mut self) -> Result<()> {
        let points = self.destination.points()?.snapshots;
        self.there.clear();
        points.into_iter().for_each(|point| self.add(point));
        Ok(())
    }

    /// Looks whether the destination has a copy of `point` by now: somebody else may be copying, too.
    pub fn look_for(&mut self, point: &Snapshot) -> Result<()> {
        let to = Arc::clone(&self.destination);
        let mut names = Vec::new();
        let folder = format!("snapshots/{}/", to.keys().id_key().workload_tag(&point.workload));
        to.backend().list(&folder, &mut |object| {
            let decision = ClaimName::parse(&object.name).filter(|(_, part)| *part == ClaimPart::Decision);
            names.extend(decision.map(|(name, _)| name).filter(|name| name.time == point.time()));
            Ok(())
        })?;
        for name in names {
            let is_known = self.copies(point).iter().any(|copy| copy.id() == name.id);
            if is_known || to.is_forgotten(name.id)? {
                continue;
            }
            match to.read_snapshot(name) {
                // As with all points: one that is damaged is none.
                Err(e) if e.kind() == Kind::Corrupt => {}
                found => found?
                    .filter(|found| found.origin(to.keys().repo()) == point.origin(self.source.keys().repo()))
                    .into_iter()
                    .for_each(|copy| self.add(copy)),
            }
        }
        Ok(())
    }

    /// Takes note of a point of the destination.
    pub fn add(&mut self, copy: Snapshot) {
        self.there.entry(copy.origin(self.destination.keys().repo())).or_default().push(copy);
    }

    /// What the destination has of a point of the source: its copies, or the point that it is a copy of itself.
    #[must_use]
    pub fn copies(&self, point: &Snapshot) -> &[Snapshot] {
        self.there.get(&point.origin(self.source.keys().repo())).map_or(&[], Vec::as_slice)
    }

    /// Those of `wanted` that the destination lacks, oldest first, each once.
    #[must_use]
    pub fn due<'a>(&self, wanted: &[&'a Snapshot]) -> Vec<&'a Snapshot> {
        let (from, mut seen) = (self.source.keys().repo(), BTreeSet::new());
        let lacks = |point: &&Snapshot| self.copies(point).is_empty() && seen.insert(point.origin(from));
        let mut due: Vec<&Snapshot> = wanted.iter().copied().filter(lacks).collect();
        due.sort_by_key(|point| (point.time(), point.id()));
        due
    }

    /// The one of `points`, with its copy, that differs least from `point`, as far as times tell: the latest before it, or else the first
    /// after it.
    fn base<'a>(&self, point: &Snapshot, points: &'a [Snapshot]) -> Option<(&'a Snapshot, &Snapshot)> {
        let others = points.iter().filter(|other| other.workload == point.workload && other.id() != point.id());
        let both = others.filter_map(|other| {
            let copy = self.copies(other).iter().find(|copy| copy.workload == other.workload)?;
            Some((other, copy))
        });
        both.min_by_key(|(other, _)| {
            (other.time() > point.time(), other.time().seconds().abs_diff(point.time().seconds()))
        })
    }

    /// Reads `copy` back, and compares it with `point`; counts bytes of disks in `compared`. `Corrupt`, with disk and byte, where they
    /// differ. What is damaged in the source by now is compared with nothing, when going on in spite of damage.
    pub fn compare(&self, point: &Snapshot, copy: &Snapshot, compared: &AtomicU64, cancel: &Cancel) -> Result<()> {
        let title = format!("{}@{}", point.workload, point.time());
        let options = ReaderOptions { readahead_bytes: 0, ..ReaderOptions::default() };
        let back = Reader::new(Arc::clone(&self.destination), options)?;
        let (at_will, threads) = (Pace::new(None), self.options.writer.workers);
        for disk in &point.disks {
            let original = Content {
                disk: self.reader.disk(point, &disk.name)?,
                keep_going: self.options.keep_going,
                pace: &self.pace,
                cancel,
            };
            let copied = back.disk(copy, &disk.name)?;
            let copied = Content { disk: copied, keep_going: false, pace: &at_will, cancel };
            let comparison = Comparison { original: &original, copy: &copied, compared, cancel };
            let within = |e: Error| e.within(format!("comparing disk '{}' of {title} with its copy", disk.name));
            comparison.run(threads).map_err(within)?;
        }
        Ok(())
    }

    /// Protects the copies of those of `wanted` that are protected here, by `held`, and not there, by `there`. How many. `WrongKey` with a
    /// writer's key of the destination, if there are any.
    pub fn protect(&self, wanted: &[&Snapshot], held: &Protected, there: &Protected) -> Result<usize> {
        let mut count = 0;
        for (point, notes) in wanted.iter().map(|point| (point, held.of(point.id()))) {
            let Some(Protection { reason, .. }) = notes.first() else { continue };
            for copy in self.copies(point).iter().filter(|copy| there.of(copy.id()).is_empty()) {
                self.destination.protect(copy, reason.as_deref(), self.options.now)?;
                count += 1;
            }
        }
        Ok(count)
    }
}

impl<'a> PointCopy<'a> {
    /// Pins a point of the source, whose points are `points`, and begins to write. `None` when it was forgotten meanwhile. Nothing is stored
    /// yet that counts. The destination's index should be in step with its store.
    pub fn begin(
        copier: &'a Copier,
        index: &Arc<Index>,
        point: &'a Snapshot,
        points: &'a [Snapshot],
    ) -> Result<Option<Self>> {
        let (source, CopyOptions { writer, identity, now, .. }) = (&copier.source, &copier.options);
        let gone_is_none = |e: Error| if e.kind() == Kind::NotFound { Ok(None) } else { Err(e) };
        let pin = match source.pin(point, "copy", identity, *now) {
            Err(e) => return gone_is_none(e),
            Ok(pin) => pin,
        };
        let claim = match source.read_claim(point.name) {
            Err(e) => return gone_is_none(e),
            Ok(claim) => claim,
        };
        let (base, parent) = copier.base(point, points).unzip();
        let (to, workload) = (&copier.destination, &point.workload);
        let mut writer = Writer::begin(to, index, workload, parent.cloned(), identity.clone(), *writer, *now)?;
        writer.copy_of(&claim, point.origin(source.keys().repo()));
        Ok(Some(PointCopy { copier, point, claim, base, writer, pin }))
    }

    /// Counters that go on while it runs.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        self.writer.progress()
    }

    /// What to tell the user when the point could not be pinned.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.pin.warning()
    }

    /// Copies the point, and makes the copy count. `Overtaken` when what it relied on went meanwhile, or another copy was first.
    pub fn run(self, cancel: &Cancel) -> Result<Outcome> {
        let PointCopy { copier, point, claim, base, mut writer, pin } = self;
        let mut lost = BTreeMap::new();
        for disk in &point.disks {
            let spec =
                DiskSpec { name: disk.name.clone(), block_size: disk.block_size, platform: disk.platform.clone() };
            let reader = match copier.reader.disk(point, &disk.name) {
                Err(e) if e.kind() == Kind::Corrupt => return Ok(Outcome::Damaged(e)),
                reader => reader?,
            };
            let CopyOptions { keep_going, .. } = copier.options;
            let content = Content { disk: reader, keep_going, pace: &copier.pace, cancel };
            let changes = base.map(|base| copier.changes(base, disk, &writer)).transpose()?.flatten();
            let windows = CopyWindows::new(content, changes, disk.unreadable > 0, copier.destination.geometry().window);
            if let Err(e) = writer.disk(spec, &windows, cancel) {
                return windows.damage()?.map_or(Err(e), |damage| Ok(Outcome::Damaged(damage)));
            }
            if let Some(token) = &disk.token {
                // It is of the state that the token names.
                writer.set_token(&disk.name, token.clone());
            }
            let ranges = windows.lost()?;
            if !ranges.is_empty() {
                lost.insert(disk.name.clone(), ranges);
            }
        }
        cancel.check()?;
        let snapshot = writer.commit(claim.tags)?;
        drop(pin);
        Ok(Outcome::Made(Box::new(Made { snapshot, base: base.map(Snapshot::id), lost })))
    }
}

impl Copier {
    /// Where `disk` differs from the base's, if there is such a disk, and the parent has it as the base does. A base that is damaged is
    /// none.
    fn changes(&self, base: &Snapshot, disk: &Disk, writer: &Writer) -> Result<Option<DiskChanges>> {
        let of_base = base.disks.iter().find(|other| other.name == disk.name);
        let same_size = |other: &&Disk| writer.parent_disk(&other.name).is_some_and(|copy| copy.size == other.size);
        match of_base.filter(same_size).map(|other| self.comparer.compare(other, disk)) {
            Some(Err(e)) if e.kind() == Kind::Corrupt => Ok(None),
            changes => changes.transpose(),
        }
    }
}
