//! CONDUCTOR of commits: a fork, in use or not, becomes a point, and goes on above it.
//!
//! ```text
//!   Commit::begin   one at a time -> writer begun: the repository answers -> freeze: one moment of the disk, everything acknowledged
//!                   before is in it
//!   Commit::run     flush what is frozen -> blocks that it changed, the rest is the parent's -> the other disks, as they were
//!                   -> Writer::commit -> adopt: the fork's base is the new point, what was frozen goes
//! ```
//! Not here: freezing and adopting ([`super::opened`]), what a window is made of ([`super::windows`]). What holds: the point is one
//! moment of the disk, and takes over the parent's other disks whole; the fork holds the same at every moment, whatever fails and
//! wherever a crash comes; what fails before the point counts leaves the frozen layers where they are, and the next commit takes them too;
//! what fails after leaves a point that the fork does not build on yet. A fork of which a layer failed is not committed: what it
//! shows may not be what was written. When so many commits failed that no layer is added any more, the moment of the last of them becomes
//! a point first, and what the fork is now another, a second later.
//!
//! A point that was forgotten is held for its fork, but its subtrees cannot be taken over unread: then everything is read, and what is
//! stored already found through the index.

use super::opened::{Fork, Frozen, Ledger};
use super::windows::FrozenWindows;
use crate::device::BlockDevice;
use crate::{Error, Result, SnapshotDevice};
use coffer_repo::cancel::Cancel;
use coffer_repo::index::Index;
use coffer_repo::snapshot::{Identity, Snapshot};
use coffer_repo::time::Timestamp;
use coffer_repo::writer::{DiskSpec, Progress, Writer, WriterOptions};
use std::sync::{Arc, MutexGuard};

/// How a fork is committed.
#[derive(Clone, Debug)]
pub struct CommitPlan {
    /// Remarks on the point.
    pub tags: Vec<String>,
    /// Who makes it.
    pub identity: Identity,
    /// The point's time, after that of the fork's point now.
    pub time: Timestamp,
    /// How the repository is written. Not dry.
    pub writer: WriterOptions,
}

/// A commit under way.
pub struct Commit<'a> {
    fork: &'a Fork,
    ledger: MutexGuard<'a, Ledger>,
    frozen: Frozen,
    has_parent: bool,
    writer: Writer,
    index: Arc<Index>,
    plan: CommitPlan,
}

impl<'a> Commit<'a> {
    /// Freezes the fork, and begins to write. Nothing is stored yet that counts. `Locked` when it is being committed.
    pub fn begin(fork: &'a Fork, index: &Arc<Index>, plan: CommitPlan) -> Result<Self> {
        fork.repo.check_full("commit forks")?;
        let mut ledger = fork.take_ledger()?;
        let header = fork.header();
        if plan.time <= header.point.time || plan.writer.dry_run {
            return Err(Error::invalid("a commit is dated after the fork's point, and stores what it makes"));
        }
        if let Some(pin) = header.ending {
            fork.repo.forget(pin, plan.time)?;
        }
        fork.stack.check()?;
        let has_parent = !fork.repo.is_forgotten(header.point.id)?;
        let parent = has_parent.then(|| ledger.snapshot.clone());
        let (repo, identity) = (&fork.repo, plan.identity.clone());
        let writer = Writer::begin(repo, index, &header.workload, parent, identity, plan.writer, plan.time)?;
        let frozen = fork.freeze(&mut ledger)?;
        Ok(Commit { fork, ledger, frozen, has_parent, writer, index: Arc::clone(index), plan })
    }

    /// Counters that go on while it runs.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        self.writer.progress()
    }

    /// Bytes of all disks of the point together.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.ledger.snapshot.logical_bytes()
    }

    /// Makes the point, and has the fork go on above it.
    pub fn run(self, cancel: &Cancel) -> Result<Snapshot> {
        let Commit { fork, mut ledger, frozen, has_parent, mut writer, index, plan } = self;
        frozen.layers.iter().try_for_each(|layer| layer.flush())?;
        let (window, name) = (fork.repo.geometry().window, fork.header().disk);
        for disk in &ledger.snapshot.disks {
            let spec =
                DiskSpec { name: disk.name.clone(), block_size: disk.block_size, platform: disk.platform.clone() };
            if disk.name == name {
                let layers = has_parent.then_some(frozen.layers.as_slice());
                writer.disk(spec, &FrozenWindows::new(&*frozen.device, layers, window), cancel)?;
                continue;
            }
            let other = SnapshotDevice::new(fork.reader.disk(&ledger.snapshot, &disk.name)?, None);
            writer.disk(spec, &FrozenWindows::new(&other, has_parent.then_some(&[]), window), cancel)?;
            if let Some(token) = &disk.token {
                // It is still of the state that the token names.
                writer.set_token(&disk.name, token.clone());
            }
        }
        cancel.check()?;
        fork.stack.check()?;
        let snapshot = writer.commit(plan.tags.clone())?;
        fork.adopt(&mut ledger, &snapshot, &plan.identity, plan.time).map_err(|e| {
            let (workload, time) = (&snapshot.workload, snapshot.time());
            e.within(format_args!("{workload}@{time} was made, but the fork still builds on the point before"))
        })?;
        if !frozen.is_behind {
            return Ok(snapshot);
        }
        drop(ledger);
        let time = Timestamp::from_seconds(plan.time.seconds().saturating_add(1))?;
        Commit::begin(fork, &index, CommitPlan { time, ..plan })?.run(cancel)
    }
}
