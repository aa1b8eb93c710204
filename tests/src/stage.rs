//! A repository with a past, and disks made of few kinds of windows, so that much lies in it twice: where tests of collections begin.
//!
//! Not here: who acts on it. What holds: it is the same every time.

// A harness speaks by failing.
#![allow(clippy::unwrap_used)]

use crate::dice::Dice;
use crate::disk::DiskContent;
use crate::rig::{Job, WINDOW, at, collect, collecting, init_fine, learn, open, open_index};
use coffer_repo::backend::list_sorted;
use coffer_repo::backend::memory::Memory;
use coffer_repo::id::{RecordId, SnapshotId};
use coffer_repo::location::PackKind;
use coffer_repo::pack;
use coffer_repo::sealed::ObjectKind;
use coffer_repo::snapshot::{Condemned, Identity, Snapshot};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// What the windows of a disk are. The two halves of a window come in [`HALVES`] kinds each.
pub type Kinds = [u8; 3];
/// Kinds of half a window.
pub const HALVES: u64 = 5;
/// Bytes in half a window that are not zero: three chunks or so.
const NOISE: usize = 24 << 10;
/// Of whom there are points.
pub const WORKLOADS: [&str; 3] = ["web", "db", "mail"];

/// What points hold, by workload and time in seconds.
pub type Contents = BTreeMap<(String, u64), Kinds>;

/// The past.
pub struct Stage {
    /// The store that holds it.
    pub store: Memory,
    /// What its points hold, and what was never committed or was forgotten.
    pub contents: Contents,
    /// The points there are.
    pub points: Vec<SnapshotId>,
}

/// A disk.
#[must_use]
pub fn content(kinds: Kinds) -> DiskContent {
    let half = |index: usize, kind: u64| {
        let mut bytes = vec![0; NOISE];
        Dice::new(kind).noise(&mut bytes);
        (index as u64 * WINDOW / 2, bytes)
    };
    let halves = kinds.iter().flat_map(|kind| [u64::from(*kind) / HALVES, u64::from(*kind) % HALVES]);
    let stretches = halves.enumerate().map(|(index, kind)| half(index, kind)).collect();
    DiskContent { size: kinds.len() as u64 * WINDOW, stretches, unreadable: Vec::new() }
}

impl Stage {
    /// Points of two workloads by two hosts that knew nothing of each other, a forgotten point, packs that were moved, a condemned
    /// pack that was spared, a claim nobody decided about, and a pin nobody ended. `dir` is for scratch.
    #[must_use]
    pub fn build(dir: &Path) -> Stage {
        let store = Arc::new(Memory::default());
        let repo = init_fine(store.clone(), 1).unwrap();
        let indexes = ["one", "other"].map(|name| open_index(&repo, &dir.join(name)).unwrap());
        let mut contents = Contents::new();
        let mut back_up = |workload: &str, time, kinds, host: usize, parent| {
            contents.insert((workload.to_owned(), time), kinds);
            let content = content(kinds);
            if time > 30 {
                learn(&repo, &indexes[host]).unwrap();
            }
            Job::new(workload, time, vec![("d", &content)]).on(parent).run(&repo, &indexes[host]).unwrap()
        };
        let first = back_up("web", 10, [0, 1, 2], 0, None);
        let second = back_up("web", 20, [0, 1, 8], 0, Some(first.clone()));
        back_up("db", 30, [0, 1, 7], 1, None);
        repo.forget(first.name, at(31)).unwrap();
        let options = collecting(dir, 1_000_000);
        let report = collect(&repo, &coffer_repo::collector::CollectOptions { repack_below: 100, ..options }).unwrap();
        assert!(report.removed.packs > 0 && report.copied > 0, "{report:?}");
        let gone = back_up("mail", 40, [12, 13, 14], 0, None);
        let undecided = back_up("mail", 50, [18, 19, 0], 1, None);
        repo.forget(gone.name, at(41)).unwrap();
        coffer_repo::backend::Backend::delete(&*store, &undecided.name.decision()).unwrap();
        let packs = list_sorted(&*store, PackKind::Data.prefix()).unwrap();
        let first = packs.iter().take(1).map(|o| pack::parse_name(&o.name).unwrap().1).collect();
        let condemned = Condemned { packs: first, damaged: false };
        let name = format!("{}{}", Condemned::PREFIX, RecordId([7; 16]));
        let _ = repo.put_record(ObjectKind::Condemned, &name, &condemned.encode().unwrap()).unwrap();
        let repo = open(store.clone(), 2).unwrap();
        std::mem::forget(repo.pin(&second, "mount", &Identity::default(), at(60)).unwrap());
        let points = repo.points().unwrap().snapshots.iter().map(Snapshot::id).collect();
        Stage { store: store.clone_state(), contents, points }
    }
}
