//! The conductor of a backup: open, spot-check, read, finish, commit.
//!
//! ```text
//!   Backup::begin     sources opened (all of them: their disks should be of one moment), writer begun
//!   Backup::run       per source: disks -> WindowFeed -> Writer::disk;  finish -> tokens     then Writer::commit
//! ```
//!
//! Not here: what a source is ([`crate::source`]), what is stored ([`coffer_repo::writer`]), and how a run is shown. What
//! holds: whatever fails, every source is ended, since dropping one aborts it; nothing is committed unless every source
//! finished well.

use crate::range_list::RangeList;
use crate::sample;
use crate::source::{self, Access, DiskSource, FeedOptions, SourceDisk, SourceOptions, WindowFeed};
use crate::{Error, Kind, Result};
use coffer_repo::cancel::Cancel;
use coffer_repo::index::Index;
use coffer_repo::reader::{Reader, ReaderOptions};
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::{Identity, Snapshot};
use coffer_repo::time::Timestamp;
use coffer_repo::writer::{DiskSpec, Progress, Writer, WriterOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What is backed up, and how.
#[derive(Clone, Debug)]
pub struct BackupPlan {
    /// What the snapshot is filed under.
    pub workload: String,
    /// The disks: `[DISK=]LOCATION` each, see [`crate::location`].
    pub sources: Vec<String>,
    /// The snapshot this one follows. Its tokens are offered to the sources; those of [`BackupPlan::source`] come first.
    pub parent: Option<Snapshot>,
    /// Remarks on the snapshot.
    pub tags: Vec<String>,
    /// Who makes it.
    pub identity: Identity,
    /// How sources are opened.
    pub source: SourceOptions,
    /// Record what cannot be read and go on, rather than fail.
    pub keep_going: bool,
    /// At how many random places the claim of a source that something is unchanged is checked.
    pub sampled_places: usize,
    /// How the repository is written; also whether it is at all.
    pub writer: WriterOptions,
}

/// What a backup did.
#[derive(Clone, Debug)]
pub struct BackupReport {
    /// The snapshot, committed unless it was a dry run.
    pub snapshot: Snapshot,
    /// By name of the disk, what could not be read.
    pub unreadable: BTreeMap<String, RangeList>,
    /// What the user ought to know although the backup was made.
    pub warnings: Vec<String>,
}

/// A backup under way.
pub struct Backup {
    writer: Writer,
    sources: Vec<Box<dyn DiskSource>>,
    feed: FeedOptions,
    tags: Vec<String>,
    report: Findings,
}

/// What is found on the way.
#[derive(Default)]
struct Findings {
    unreadable: BTreeMap<String, RangeList>,
    warnings: Vec<String>,
}

impl Backup {
    /// Opens the sources and begins to write. Nothing is stored yet that counts.
    pub fn begin(
        repo: &Arc<Repository>,
        index: &Arc<Index>,
        plan: BackupPlan,
        now: Timestamp,
        cancel: &Cancel,
    ) -> Result<Self> {
        let mut report = Findings::default();
        let mut options = plan.source;
        for disk in plan.parent.iter().flat_map(|parent| &parent.disks) {
            if let Some(token) = &disk.token {
                options.tokens.entry(disk.name.clone()).or_insert_with(|| token.clone());
            }
        }
        let mut sources = Vec::new();
        for spec in &plan.sources {
            let mut source = source::open(spec, &options)?;
            if let Some(parent) = plan.parent.as_ref().filter(|_| !options.tokens.is_empty())
                && let Some(warning) = distrust(repo, parent, &*source, plan.sampled_places, cancel)?
            {
                report.warnings.push(warning);
                drop(source);
                source = source::open(spec, &SourceOptions { tokens: BTreeMap::new(), ..options.clone() })?;
            }
            report.warnings.extend(source.warnings().iter().map(|warning| format!("{spec}: {warning}")));
            sources.push(source);
        }
        check_names(&sources)?;
        let window_size = u32::try_from(repo.geometry().window).map_err(|_| Error::internal("a window of 4 GiB"))?;
        Ok(Backup {
            writer: Writer::begin(repo, index, &plan.workload, plan.parent, plan.identity, plan.writer, now)?,
            sources,
            feed: FeedOptions { window_size, keep_going: plan.keep_going },
            tags: plan.tags,
            report,
        })
    }

    /// Counters that go on while it runs.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        self.writer.progress()
    }

    /// Bytes of all disks together; `None` when one is a stream, which knows its length only at its end.
    pub fn size(&self) -> Result<Option<u64>> {
        let mut size = 0u64;
        for disk in self.sources.iter().flat_map(|source| source.disks()) {
            match &disk.access {
                Access::Random(random) => size = size.saturating_add(random.size()?),
                Access::Sequential(_) => return Ok(None),
            }
        }
        Ok(Some(size))
    }

    /// Reads everything and commits it.
    pub fn run(self, cancel: &Cancel) -> Result<BackupReport> {
        let Backup { mut writer, sources, feed, tags, mut report } = self;
        for source in sources {
            let mut names = Vec::new();
            for disk in source.disks() {
                copy(&mut writer, disk, feed, &mut report, cancel)?;
                names.push(disk.name.clone());
            }
            for (name, token) in names.iter().zip(source.finish()?) {
                if let Some(token) = token {
                    writer.set_token(name, token);
                }
            }
        }
        // An interrupt also ends the program that fills a pipe: the end of a stream then is none.
        cancel.check()?;
        let snapshot = writer.commit(tags)?;
        Ok(BackupReport { snapshot, unreadable: report.unreadable, warnings: report.warnings })
    }
}

/// Reads one disk into the repository.
fn copy(
    writer: &mut Writer,
    disk: &SourceDisk,
    feed: FeedOptions,
    report: &mut Findings,
    cancel: &Cancel,
) -> Result<()> {
    let spec = DiskSpec { name: disk.name.clone(), block_size: disk.block_size, platform: None };
    match &disk.access {
        Access::Sequential(stream) => writer.disk(spec, &stream.windows(&disk.name, feed.window_size), cancel),
        Access::Random(random) => {
            let feed = WindowFeed::new(&**random, &disk.name, feed)?;
            writer.disk(spec, &feed, cancel)?;
            let unreadable = feed.unreadable()?;
            if !unreadable.is_empty() {
                report.unreadable.insert(disk.name.clone(), unreadable);
            }
            Ok(())
        }
    }
}

/// Spot-checks what a source calls unchanged. A difference is a warning, and reason to read all of it.
fn distrust(
    repo: &Arc<Repository>,
    parent: &Snapshot,
    source: &dyn DiskSource,
    places: usize,
    cancel: &Cancel,
) -> Result<Option<String>> {
    let reader = Reader::new(Arc::clone(repo), ReaderOptions::default())?;
    for disk in source.disks() {
        let known = parent.disks.iter().any(|d| d.name == disk.name && d.token.is_some());
        let Access::Random(random) = &disk.access else { continue };
        if !known {
            continue;
        }
        let before = reader.disk(parent, &disk.name)?;
        let sampled = match sample::first_difference(&**random, &before, places, repo.entropy(), cancel) {
            Err(e) if e.kind() == Kind::Corrupt => {
                return Ok(Some(format!(
                    "disk {} of the backup before is damaged; everything is read: {e}",
                    disk.name
                )));
            }
            sampled => sampled?,
        };
        if let Some(range) = sampled {
            return Ok(Some(format!(
                "disk {}: the source called bytes {} to {} unchanged, but they differ from snapshot {}; everything is read",
                disk.name,
                range.start,
                range.end,
                parent.id()
            )));
        }
    }
    Ok(None)
}

fn check_names(sources: &[Box<dyn DiskSource>]) -> Result<()> {
    let mut names = BTreeSet::new();
    for disk in sources.iter().flat_map(|source| source.disks()) {
        if !names.insert(&disk.name) {
            return Err(Error::invalid(format!("two disks are called '{}'; name them: DISK=SOURCE", disk.name)));
        }
    }
    Ok(())
}
