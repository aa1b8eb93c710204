//! Who acts in a storm: writers, collectors, a forgetter, a janitor, a reader with a pin, and an auditor who looks on.
//!
//! Not here: whose turn it is. What holds: an actor begins one operation at a time and draws from dice of its own, so that all it
//! does follows from the seed and the order; what went wrong because of the weather is no failure of the product.

use coffer_repo::cancel::Cancel;
use coffer_repo::collector::{CollectOptions, CollectReport};
use coffer_repo::index::Index;
use coffer_repo::reader::{Reader, ReaderOptions};
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::{ClaimKind, Decision, Identity, Snapshot};
use coffer_repo::window::{Filled, Window, WindowSource};
use coffer_repo::writer::{DiskSpec, Progress, Writer, WriterOptions};
use coffer_repo::{Error, Kind, Result};
use coffer_tests::audit::{Audit, Failure, LATE, holds};
use coffer_tests::dice::Dice;
use coffer_tests::disk::DiskSource;
use coffer_tests::rig::{WINDOW, at, collect, collecting, learn};
use coffer_tests::simulation::ActorStore;
use coffer_tests::stage::{HALVES, Kinds, WORKLOADS, content};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// While everything happens.
const NOW: u64 = 10_000;

/// What every actor has.
pub(crate) struct Actor<'a> {
    pub(crate) store: Arc<ActorStore>,
    pub(crate) repo: Arc<Repository>,
    pub(crate) dice: Dice,
    pub(crate) audit: &'a Audit<'a>,
    /// A directory for scratch.
    pub(crate) dir: &'a Path,
    /// Its number.
    pub(crate) number: u64,
}

/// Whether an error comes from the weather: nothing was lost because of it, and trying again helps.
fn is_weather(e: &Error) -> bool {
    e.kind() == Kind::Unavailable || e.context().contains("although its name is random")
}

impl Actor<'_> {
    /// Backs up a few times, on a parent or on none, with an index that is often behind.
    pub(crate) fn write(&mut self, index: &Arc<Index>) {
        for run in 0..1 + self.dice.below(2) {
            // Overtaken by a collector; built on a parent that was forgotten and collected meanwhile.
            let done = self.back_up(index, NOW + self.number * 10 + run);
            if let Err(e) = done
                && !is_weather(&e)
                && !matches!(e.kind(), Kind::Overtaken | Kind::Corrupt)
            {
                self.fail(format!("a backup failed: {e:?}"));
            }
        }
    }

    fn back_up(&mut self, index: &Arc<Index>, time: u64) -> Result<()> {
        if self.dice.once_in(3) {
            learn(&self.repo, index)?;
        }
        let workload = WORKLOADS[self.dice.index(WORKLOADS.len())];
        let mut kinds: Kinds = [0; 3].map(|_| self.kind());
        let mut parent = None;
        if self.dice.once_in(2) {
            let points = self.repo.points()?.snapshots;
            parent = points.into_iter().rfind(|s| s.workload == workload);
            if let Some(parent) = &parent {
                kinds = self.audit.kinds_of(parent).ok_or_else(|| Error::internal("a point nobody made"))?;
                kinds[self.dice.index(3)] = self.kind();
            }
        }
        self.audit.expect(workload, time, kinds);
        let options = WriterOptions { workers: 1, uploads: 1, ..WriterOptions::default() };
        let (repo, identity) = (&self.repo, Identity::default());
        let mut writer = Writer::begin(repo, index, workload, parent, identity, options, at(time))?;
        let content = content(kinds);
        let source = Lockstep {
            source: DiskSource::new(&content, WINDOW),
            served: AtomicU64::new(0),
            progress: writer.progress(),
            store: &self.store,
        };
        let spec = DiskSpec { name: "d".to_owned(), block_size: 512, platform: None };
        writer.disk(spec, &source, &Cancel::default())?;
        let snapshot = writer.commit(Vec::new())?;
        self.audit.committed(&snapshot);
        Ok(())
    }

    fn fail(&self, why: String) {
        self.audit.fail(Failure::Other(why));
    }

    fn kind(&mut self) -> u8 {
        u8::try_from(self.dice.below(HALVES * HALVES)).unwrap()
    }

    /// Collects a few times.
    pub(crate) fn collect(&mut self) {
        for _ in 0..1 + self.dice.below(2) {
            let is_late = self.dice.once_in(2);
            let options = CollectOptions {
                repack_below: [30, 60, 100][self.dice.index(3)],
                max_repack: self.dice.once_in(4).then_some(100_000),
                dead_after: if self.dice.once_in(4) { 0 } else { LATE * 2 },
                ..collecting(self.dir, if is_late { LATE } else { NOW })
            };
            match collect(&self.repo, &options) {
                Ok(report) if self.is_damage(&report) => self.fail(format!("a collector saw damage: {report:?}")),
                Ok(_) => {}
                Err(e) if is_weather(&e) => {}
                Err(e) => self.fail(format!("a collector failed: {e:?}")),
            }
        }
    }

    /// Chunks that are missing under a claim whose writer came too late, and has not revoked it yet, are no damage.
    fn is_damage(&self, report: &CollectReport) -> bool {
        let is_any_undecided = || self.audit.repo().folders().unwrap().claims.values().any(|is_decided| !is_decided);
        !report.damaged.is_empty() || !report.unwalkable.is_empty() || (report.lost > 0 && !is_any_undecided())
    }

    /// Forgets points.
    pub(crate) fn forget(&mut self) {
        for _ in 0..1 + self.dice.below(3) {
            let Ok(points) = self.repo.points() else { continue };
            if points.snapshots.is_empty() {
                return;
            }
            let snapshot = &points.snapshots[self.dice.index(points.snapshots.len())];
            self.audit.forgets(snapshot);
            // What it came to shows in the store.
            let _ = self.repo.forget(snapshot.name, at(NOW));
        }
    }

    /// Revokes backups under way, as a janitor without patience does.
    pub(crate) fn revoke(&mut self) {
        for _ in 0..1 + self.dice.below(3) {
            let Ok(folders) = self.repo.folders() else { continue };
            for (name, _) in folders.claims.iter().filter(|(_, decided)| !**decided) {
                let is_snapshot =
                    self.repo.read_claim(*name).is_ok_and(|c| matches!(c.kind, ClaimKind::Snapshot { .. }));
                if is_snapshot && !folders.forgotten.contains(&name.id) {
                    // Who was first shows in the store.
                    let _ = self.repo.decide(*name, Decision::Revoke);
                }
            }
        }
    }

    /// Pins a point and reads it again and again, whatever becomes of it meanwhile.
    pub(crate) fn read(&mut self) {
        let Ok(points) = self.repo.points() else { return };
        if points.snapshots.is_empty() {
            return;
        }
        let snapshot = &points.snapshots[self.dice.index(points.snapshots.len())];
        // A session that beats from far ahead: nobody takes it for dead.
        let pin = match self.repo.pin(snapshot, "test", &Identity::default(), at(LATE)) {
            Ok(pin) if pin.warning().is_none() => pin,
            Ok(_) => return,
            Err(e) if is_weather(&e) || e.kind() == Kind::NotFound => return,
            Err(e) => return self.fail(format!("pinning {}: {e:?}", snapshot.name)),
        };
        // No room for chunks: what is remembered are maps and where things were moved.
        let options = ReaderOptions { cache_bytes: 0, readahead_bytes: 0, threads: 1 };
        let reader = Reader::new(self.audit.repo(), options).unwrap();
        for _ in 0..2 + self.dice.below(6) {
            if self.store.rest().is_err() {
                return;
            }
            if let Err(e) = self.reads(&reader, snapshot) {
                self.audit.fail(Failure::Loss(format!("reading {}, which is pinned: {e}", snapshot.name)));
            }
        }
        drop(pin);
    }

    fn reads(&self, reader: &Arc<Reader>, snapshot: &Snapshot) -> Result<(), String> {
        let kinds = self.audit.kinds_of(snapshot).ok_or("nobody made it")?;
        holds(reader, snapshot, kinds)
    }

    /// Looks at everything now and then.
    pub(crate) fn audit(&mut self) {
        for _ in 0..3 {
            for _ in 0..self.dice.below(12) {
                if self.store.rest().is_err() {
                    return;
                }
            }
            self.audit.look("meanwhile");
        }
    }
}

/// A source whose next window comes when the one before is done with, so that a writer's threads take turns.
struct Lockstep<'a> {
    source: DiskSource<'a>,
    served: AtomicU64,
    progress: Arc<Progress>,
    store: &'a ActorStore,
}

impl WindowSource for Lockstep<'_> {
    fn next(&self, window: &mut Window) -> Result<Filled> {
        let due = self.served.fetch_add(WINDOW, Ordering::SeqCst);
        // After a failure nobody goes on to say that it is done.
        while self.progress.done.load(Ordering::SeqCst) < due && !self.store.has_failed() {
            std::thread::sleep(std::time::Duration::from_micros(20));
        }
        self.source.next(window)
    }

    fn size(&self) -> Result<u64> {
        self.source.size()
    }
}
