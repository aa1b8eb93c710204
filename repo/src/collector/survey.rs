//! Walks every map that counts and spools what it mentions; what was walked once is not walked again.
//!
//! Not here: what the mentions add up to ([`super::plan`], [`super::judgement`]). What holds: roots are all claims that are not
//! revoked, undecided ones included, minus the forgotten, plus what unforgotten pins hold; a claim, once walked, stays needed
//! for the rest of the run, which errs on the safe side; a root that cannot be walked is named, and its mentions so far count.
//! An undecided claim that cannot be walked, mostly since what it relies on has gone, is revoked: its writer's check would fail, and
//! one that died before it would stop every collection until the claim is old. Every copy of a node is walked, since hints are no part of its id.

use super::mention::Mention;
use super::roots::{self, Parts, Roots};
use super::{CollectOptions, CollectProgress};
use crate::cancel::Cancel;
use crate::crew::Crew;
use crate::disk_map::{Child, Inner, LeafContent, Node};
use crate::error::{Error, Kind, Result};
use crate::id::{PackUid, SnapshotId};
use crate::location::{IndexKey, Location};
use crate::moved::Moved;
use crate::nodes::{Nodes, Root};
use crate::repository::Repository;
use crate::sealed::ObjectKind;
use crate::snapshot::{Claim, ClaimKind, ClaimName, Decision, Disk};
use crate::spool::Spool;
use crate::unwalkable::Unwalkable;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of decoded nodes kept.
const NODE_CACHE: u64 = 4 << 20;

/// What has been walked so far.
pub(super) struct Survey<'a> {
    repo: &'a Arc<Repository>,
    progress: &'a CollectProgress,
    crew: Crew<'a>,
    nodes: Nodes,
    /// Needed and moved mentions.
    spools: Vec<Spool<'a>>,
    walked: Walked,
    unwalkable: Unwalkable,
    is_dry: bool,
    /// Undecided claims that this collection revoked; in a dry run, those it would have.
    revoked: Vec<ClaimName>,
    /// Names of moved records that were read.
    moved: HashSet<String>,
}

/// What need not be looked at again.
#[derive(Default)]
struct Walked {
    claims: HashSet<SnapshotId>,
    /// Of those, the revoked ones.
    revoked: HashSet<SnapshotId>,
    /// Hashes of id and place of nodes.
    nodes: HashSet<[u8; 16]>,
    /// Snapshots that pins hold, and those pins.
    pinned: HashMap<SnapshotId, Vec<ClaimName>>,
}

/// A node whose mentions are to be spooled.
struct Task {
    claim: ClaimName,
    leaf: Leaf,
}

enum Leaf {
    Stored(Child),
    /// The root of a small disk.
    Root(Arc<Node>),
}

/// What a claim turned out to be.
enum Found {
    /// Its disks' maps count.
    Root(Vec<Disk>),
    /// It holds this one.
    Pin(Option<SnapshotId>),
    /// A snapshot that never will be.
    Revoked,
    /// Gone.
    Nothing,
}

impl<'a> Survey<'a> {
    /// Begins with the claims that were, or in a dry run would have been, revoked already.
    pub(super) fn begin(
        repo: &'a Arc<Repository>,
        options: &'a CollectOptions,
        progress: &'a CollectProgress,
        cancel: &'a Cancel,
        revoked: Vec<ClaimName>,
    ) -> Result<Self> {
        let crew = Crew { threads: options.threads.max(1), cancel };
        let each = options.memory / 4 / crew.threads;
        let spool = |_| Spool::new(&options.scratch, repo.entropy(), each);
        Ok(Survey {
            repo,
            progress,
            crew,
            nodes: Nodes::new(Arc::clone(repo), NODE_CACHE)?,
            spools: (0..crew.threads).map(spool).collect(),
            walked: Walked::default(),
            unwalkable: Unwalkable::default(),
            is_dry: options.dry_run,
            revoked,
            moved: HashSet::new(),
        })
    }

    /// What was mentioned so far.
    pub(super) fn mentions(&self) -> impl Iterator<Item = &Spool<'a>> + Clone {
        self.spools.iter()
    }

    /// Whether there is a root that cannot be walked.
    pub(super) fn is_incomplete(&self) -> bool {
        !self.unwalkable.is_empty()
    }

    /// Whether a claim that was looked at turned out to be a revoked snapshot.
    pub(super) fn is_revoked(&self, id: SnapshotId) -> bool {
        self.walked.revoked.contains(&id)
    }

    /// Whether a pin that was looked at holds a snapshot.
    pub(super) fn is_pinned(&self, id: SnapshotId) -> bool {
        self.walked.pinned.contains_key(&id)
    }

    /// The roots that cannot be walked, and the claims that were revoked.
    pub(super) fn end(self) -> (Vec<(ClaimName, Error)>, Vec<ClaimName>) {
        (self.unwalkable.into_list(), self.revoked)
    }

    /// Lists what may be a root, and walks what was not walked before.
    pub(super) fn look(&mut self) -> Result<Roots> {
        loop {
            let roots = Roots::list(self.repo)?;
            self.walk(&roots)?;
            if !self.end_dead()? {
                return Ok(roots);
            }
            // What a root of this listing needed was removed, and that root counts no more. The nodes that could not be read may
            // belong to other maps, too, and what was built on that root may not have been listed.
            self.walked = Walked::default();
            self.unwalkable = Unwalkable::default();
        }
    }

    /// Revokes what is undecided and cannot be walked. Whether a root of the listing is none any more, by this or by others.
    fn end_dead(&mut self) -> Result<bool> {
        for name in self.unwalkable.names() {
            let mut is_dead = self.is_dead(name)?;
            for pin in self.walked.pinned.get(&name.id).into_iter().flatten() {
                is_dead = is_dead && self.is_dead(*pin)?;
            }
            if is_dead || self.revoke(name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Ends a claim that cannot be walked, unless it was committed, which is damage, or may be a pin, which nobody revokes.
    fn revoke(&mut self, name: ClaimName) -> Result<bool> {
        let is_undecided = self.repo.backend().size(&name.decision())?.is_none()
            && self.repo.read_claim(name).is_ok_and(|claim| matches!(claim.kind, ClaimKind::Snapshot { .. }));
        let is_revoked =
            is_undecided && (self.is_dry || self.repo.decide(name, Decision::Revoke)? == Some(Decision::Revoke));
        self.revoked.extend(is_revoked.then_some(name));
        Ok(is_revoked)
    }

    fn walk(&mut self, roots: &Roots) -> Result<()> {
        // Who walks reads what was moved for himself; [`Survey::look_for_moved`] completes what is spooled.
        self.read_moved(&roots.moved)?;
        let spare = Mutex::new(std::mem::take(&mut self.spools));
        let mut walked = std::mem::take(&mut self.walked);
        let begin = || {
            let spool = spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
            spool.ok_or_else(|| Error::internal("more threads than spools"))
        };
        let work = |task: Task, spool: &mut Spool<'a>| {
            let Task { claim, leaf } = task;
            self.unwalkable.tolerate(claim, self.spool_leaf(leaf, spool))
        };
        let spools = self.crew.run(begin, work, |hand| {
            let mut feed = Feed { survey: self, hand, walked: &mut walked };
            roots.claims.iter().try_for_each(|(name, parts)| feed.claim(*name, *parts, roots))
        })?;
        // The feeding thread mentions inner nodes through tasks of their own, so that one spool has one thread.
        (self.spools, self.walked) = (spools, walked);
        Ok(())
    }

    /// Learns where things were moved meanwhile. To be asked after packs were listed: what another collector removed before that
    /// is known to lie elsewhere then, and not taken for lost.
    pub(super) fn look_for_moved(&mut self) -> Result<()> {
        // A record that is gone again may have been merged into one that was put after the listing.
        while !self.read_moved(&roots::list_moved(self.repo)?)? {}
        Ok(())
    }

    /// Spools the moved records that were not read yet. A damaged one sends nobody anywhere. Whether none of them was gone.
    fn read_moved(&mut self, moved: &[(PackUid, String)]) -> Result<bool> {
        let mut is_whole = true;
        for (from, name) in moved {
            if !self.moved.insert(name.clone()) {
                continue;
            }
            let lines = match self.repo.get_record(ObjectKind::Moved, name).and_then(|r| Moved::decode(&r.body)) {
                Ok(moved) => moved.lines,
                Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Corrupt) => {
                    is_whole &= e.kind() != Kind::NotFound;
                    continue;
                }
                Err(e) => return Err(e),
            };
            let spool = self.spools.first_mut().ok_or_else(|| Error::internal("no spool"))?;
            for line in lines {
                let (key, to) = (line.key, line.to);
                let (pack, offset, stored_len) = (to.pack, to.offset, to.stored_len);
                spool.push(&Mention::Moved { key, from: *from, to: pack, offset, stored_len })?;
            }
        }
        Ok(is_whole)
    }

    fn spool_leaf(&self, leaf: Leaf, spool: &mut Spool<'a>) -> Result<()> {
        let node = match leaf {
            Leaf::Stored(child) => Arc::new(self.nodes.read(&child, 0)?),
            Leaf::Root(node) => node,
        };
        self.progress.nodes.fetch_add(1, Relaxed);
        match &*node {
            Node::Leaf(leaf) => leaf.entries.iter().try_for_each(|entry| match &entry.content {
                LeafContent::Chunk { id, hint } => {
                    let at = Location {
                        pack: hint.pack,
                        offset: hint.offset,
                        stored_len: hint.stored_len,
                        raw_len: entry.len_bytes(),
                    };
                    spool.push(&Mention::Needed { key: IndexKey::of(&id.0), at })
                }
                LeafContent::Unreadable => Ok(()),
            }),
            Node::Inner(inner) => inner
                .children
                .iter()
                .try_for_each(|c| spool.push(&Mention::Needed { key: IndexKey::of(&c.id.0), at: c.hint })),
        }
    }

    /// Reads a claim that may be a root.
    fn read(&self, name: ClaimName, parts: Parts) -> Result<Found> {
        let revoked = parts.decision
            && match self.repo.get_record(ObjectKind::Decision, &name.decision()) {
                Ok(record) => {
                    Decision::decode(&record.body).map_err(|e| e.within(name.decision()))? == Decision::Revoke
                }
                Err(e) if e.kind() == Kind::NotFound => false,
                Err(e) => return Err(e),
            };
        if revoked && !parts.claim {
            return Ok(Found::Revoked);
        }
        match self.repo.read_claim(name) {
            Ok(Claim { kind: ClaimKind::Pin { .. }, parents, .. }) => Ok(Found::Pin(parents.first().copied())),
            Ok(Claim { kind: ClaimKind::Snapshot { .. }, .. }) if revoked => Ok(Found::Revoked),
            Ok(Claim { kind: ClaimKind::Snapshot { disks, .. }, .. }) => Ok(Found::Root(disks)),
            // Another collector sweeps.
            Err(e) if e.kind() == Kind::NotFound && self.is_dead(name)? => Ok(Found::Nothing),
            Err(e) => Err(e),
        }
    }

    /// Whether a claim that was listed counts no more. Of what is swept the forget goes last: when neither it nor a decision is
    /// there, nor the claim, then it was swept as a whole.
    fn is_dead(&self, name: ClaimName) -> Result<bool> {
        if self.repo.is_forgotten(name.id)? {
            return Ok(true);
        }
        match self.repo.get_record(ObjectKind::Decision, &name.decision()) {
            Ok(record) => Ok(Decision::decode(&record.body)? == Decision::Revoke),
            Err(e) if e.kind() == Kind::NotFound => Ok(self.repo.backend().size(&name.claim())?.is_none()),
            Err(e) if e.kind() == Kind::Corrupt => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// The thread that goes through claims and inner nodes and hands out what is to be spooled.
struct Feed<'f, 'h, 'a> {
    survey: &'f Survey<'a>,
    hand: &'f mut (dyn FnMut(Task) -> Result<()> + 'h),
    walked: &'f mut Walked,
}

impl Feed<'_, '_, '_> {
    fn claim(&mut self, name: ClaimName, parts: Parts, roots: &Roots) -> Result<()> {
        let survey = self.survey;
        if self.walked.claims.contains(&name.id) || roots.is_forgotten(survey.repo, name.id)? {
            return Ok(());
        }
        self.walked.claims.insert(name.id);
        survey.progress.claims.fetch_add(1, Relaxed);
        let found = match survey.read(name, parts) {
            // In a dry run the store does not say so.
            Ok(Found::Root(_)) if survey.revoked.contains(&name) => Found::Revoked,
            Ok(found) => found,
            Err(e) => return survey.unwalkable.tolerate(name, Err(e)),
        };
        match found {
            Found::Nothing | Found::Pin(None) => Ok(()),
            Found::Revoked => {
                self.walked.revoked.insert(name.id);
                Ok(())
            }
            Found::Root(disks) => self.disks(name, &disks),
            Found::Pin(Some(held)) => {
                self.walked.pinned.entry(held).or_default().push(name);
                match roots.find(held) {
                    Some(of) if self.walked.claims.insert(held) => match survey.repo.read_claim(of) {
                        Ok(Claim { kind: ClaimKind::Snapshot { disks, .. }, .. }) => self.disks(of, &disks),
                        Ok(_) => Ok(()),
                        Err(e) => survey.unwalkable.tolerate(of, Err(e)),
                    },
                    // Walked as a root of its own, or swept before the pin was put, which its maker found out.
                    _ => Ok(()),
                }
            }
        }
    }

    fn disks(&mut self, claim: ClaimName, disks: &[Disk]) -> Result<()> {
        for disk in disks {
            let walked = Root::of(disk, self.survey.repo.geometry()).and_then(|root| match root.node() {
                None => Ok(()),
                Some(node) => {
                    (self.hand)(Task { claim, leaf: Leaf::Root(Arc::clone(node)) })?;
                    match &**node {
                        Node::Inner(inner) => self.below(claim, inner),
                        Node::Leaf(_) => Ok(()),
                    }
                }
            });
            self.survey.unwalkable.tolerate(claim, walked)?;
        }
        Ok(())
    }

    fn below(&mut self, claim: ClaimName, inner: &Inner) -> Result<()> {
        let level = inner.level - 1;
        for child in &inner.children {
            if !self.walked.nodes.insert(copy_of(child, level)) {
                continue;
            }
            if level == 0 {
                (self.hand)(Task { claim, leaf: Leaf::Stored(*child) })?;
                continue;
            }
            let node = match self.survey.nodes.read(child, level) {
                Ok(node) => Arc::new(node),
                Err(e) => {
                    self.survey.unwalkable.tolerate(claim, Err(e))?;
                    continue;
                }
            };
            (self.hand)(Task { claim, leaf: Leaf::Root(Arc::clone(&node)) })?;
            if let Node::Inner(inner) = &*node {
                self.below(claim, inner)?;
            }
        }
        Ok(())
    }
}

/// A copy of a node, shortened: a hash of its id, place and level.
pub(crate) fn copy_of(child: &Child, level: u8) -> [u8; 16] {
    let at = &child.hint;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&child.id.0).update(&at.pack.0);
    for field in [at.offset, at.stored_len, at.raw_len, u32::from(level)] {
        hasher.update(&field.to_le_bytes());
    }
    let mut copy = [0; 16];
    hasher.finalize_xof().fill(&mut copy);
    copy
}
