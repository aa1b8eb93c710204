//! Which ranges differ between two disks, found by their maps alone: no chunk is read, and no subtree whose id is the same.
//! [`diff`] compares all of them; [`DiskChanges`] answers for one range at a time and reads only nodes of that range.
//!
//! Not here: what differs within a range, which takes reading both. What holds: outside of the reported ranges the disks are
//! equal; a range is made of whole entries of leaves, so that equal bytes are reported as changed where the leaves cut
//! them differently (another position, another chunking around a change: a changed block reports its whole chunk); bytes
//! that only one disk has count as zeroes in the other; ranges rise, do not touch, and end at the longer disk's end. Memory: a
//! node a level of each disk, and the cache of nodes.

use crate::cancel::Cancel;
use crate::disk_map::{Child, Geometry, LeafContent, LeafEntry, Node, identity};
use crate::error::{Error, Kind, Result};
use crate::id::NodeId;
use crate::nodes::{Nodes, Root};
use crate::repository::Repository;
use crate::snapshot::Disk;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// Bytes of decoded nodes kept.
const NODE_CACHE: u64 = 4 << 20;

/// What a comparison came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiffTotals {
    /// Size of the old disk in bytes.
    pub old_size: u64,
    /// Size of the new disk in bytes.
    pub new_size: u64,
    /// Bytes of all ranges.
    pub changed: u64,
    /// Number of ranges.
    pub ranges: u64,
}

/// Calls `each` for every range, in bytes, in which the disks may differ. An error of `each` ends the comparison and is passed on.
pub fn diff(
    repo: &Arc<Repository>,
    old: &Disk,
    new: &Disk,
    cancel: &Cancel,
    each: &mut dyn FnMut(Range<u64>) -> Result<()>,
) -> Result<DiffTotals> {
    let geometry = repo.geometry();
    let nodes = Nodes::new(Arc::clone(repo), NODE_CACHE)?;
    let top = geometry.root_level(old.size).max(geometry.root_level(new.size));
    let mut comparison = Comparison {
        nodes: &nodes,
        geometry,
        within: 0..u64::MAX,
        cancel,
        each: &mut |range| each(range).map(ControlFlow::Continue),
        is_enough: false,
        open: None,
        totals: DiffTotals { old_size: old.size, new_size: new.size, ..DiffTotals::default() },
    };
    comparison.pair(root(repo, old)?, root(repo, new)?, top, 0)?;
    comparison.emit()?;
    Ok(comparison.totals)
}

/// What compares disks of one repository range by range.
pub struct Comparer {
    repo: Arc<Repository>,
    /// Shared by all comparisons.
    nodes: Arc<Nodes>,
}

impl Comparer {
    /// One for disks of `repo`.
    pub fn new(repo: &Arc<Repository>) -> Result<Self> {
        Ok(Comparer { repo: Arc::clone(repo), nodes: Arc::new(Nodes::new(Arc::clone(repo), NODE_CACHE)?) })
    }

    /// The comparison of `new` with `old`.
    pub fn compare(&self, old: &Disk, new: &Disk) -> Result<DiskChanges> {
        Ok(DiskChanges {
            nodes: Arc::clone(&self.nodes),
            geometry: self.repo.geometry(),
            old: root(&self.repo, old)?,
            new: root(&self.repo, new)?,
            sizes: (old.size, new.size),
        })
    }
}

/// Where a disk differs from another one, to be asked range by range.
pub struct DiskChanges {
    nodes: Arc<Nodes>,
    geometry: Geometry,
    old: Option<Side>,
    new: Option<Side>,
    /// Old and new, in bytes.
    sizes: (u64, u64),
}

impl DiskChanges {
    /// Stretches that cover `range` of the new disk from its start on, in order and without gaps, no two neighbours alike: whether
    /// each may differ from the old disk. At most `max` of them, at least one for a range that is not empty, so perhaps
    /// less than the whole range. What lies beyond the old disk's end differs. `Invalid` beyond the new disk's end.
    pub fn within(&self, range: Range<u64>, max: usize) -> Result<Vec<(Range<u64>, bool)>> {
        let (old_size, new_size) = self.sizes;
        if range.start > range.end || range.end > new_size {
            let text = format!("bytes {} to {} lie beyond the disk's {new_size} bytes", range.start, range.end);
            return Err(Error::new(Kind::Invalid, text));
        }
        let mut stretches = Stretches { found: Vec::new(), at: range.start, end: range.end, max };
        let compared = range.start..range.end.min(old_size);
        if !compared.is_empty() && max > 0 {
            let never = Cancel::default();
            let mut comparison = Comparison {
                nodes: &self.nodes,
                geometry: self.geometry,
                within: compared.clone(),
                cancel: &never,
                each: &mut |changed| {
                    Ok(stretches.change(changed.start.max(compared.start)..changed.end.min(compared.end)))
                },
                is_enough: false,
                open: None,
                totals: DiffTotals { old_size, new_size, ..DiffTotals::default() },
            };
            let top = self.geometry.root_level(old_size).max(self.geometry.root_level(new_size));
            comparison.pair(self.old.clone(), self.new.clone(), top, 0)?;
            if !comparison.is_enough {
                comparison.emit()?;
            }
        }
        if range.end > old_size {
            let _ = stretches.change(range.start.max(old_size)..range.end);
        }
        Ok(stretches.ended())
    }
}

/// Stretches as they are found.
struct Stretches {
    found: Vec<(Range<u64>, bool)>,
    /// Where the last one ends.
    at: u64,
    end: u64,
    max: usize,
}

impl Stretches {
    /// Adds a changed range, and what lies before it; says when there is room for no more.
    fn change(&mut self, range: Range<u64>) -> ControlFlow<()> {
        if range.is_empty() {
            return ControlFlow::Continue(());
        }
        self.add(range.start, false);
        self.add(range.end, true);
        if self.found.len() >= self.max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Adds what lies between the last end and `end`, as long as there is room.
    fn add(&mut self, end: u64, has_changed: bool) {
        let is_full = self.found.len() >= self.max;
        match self.found.last_mut() {
            // Beyond what there was no room for nothing is known.
            Some((last, _)) if last.end != self.at => {}
            _ if end <= self.at => {}
            Some((last, same)) if *same == has_changed => last.end = end,
            _ if !is_full => self.found.push((self.at..end, has_changed)),
            _ => {}
        }
        self.at = self.at.max(end);
    }

    /// With the rest, which did not change.
    fn ended(mut self) -> Vec<(Range<u64>, bool)> {
        self.add(self.end, false);
        self.found
    }
}

/// The root of a disk.
fn root(repo: &Repository, disk: &Disk) -> Result<Option<Side>> {
    match Root::of(disk, repo.geometry())?.node() {
        Some(node) => {
            let id = repo.keys().id_key().node_id(identity(&disk.root)?);
            Ok(Some(Side::Read(id, Arc::clone(node))))
        }
        None => Ok(None),
    }
}

/// One disk's subtree; `None` is all zero.
#[derive(Clone)]
enum Side {
    /// A root: it may lie lower than the level that is looked at, as the first of many subtrees there.
    Read(NodeId, Arc<Node>),
    Named(Child),
}

impl Side {
    fn id(&self) -> NodeId {
        match self {
            Side::Read(id, _) => *id,
            Side::Named(child) => child.id,
        }
    }
}

struct Comparison<'a> {
    nodes: &'a Nodes,
    geometry: Geometry,
    /// Subtrees that lie elsewhere are not looked at; ranges may reach out of it.
    within: Range<u64>,
    cancel: &'a Cancel,
    each: &'a mut dyn FnMut(Range<u64>) -> Result<ControlFlow<()>>,
    /// `each` wants no more.
    is_enough: bool,
    /// The last range, which may go on.
    open: Option<Range<u64>>,
    totals: DiffTotals,
}

impl Comparison<'_> {
    /// Compares two subtrees of `level` whose first window is `base`.
    fn pair(&mut self, old: Option<Side>, new: Option<Side>, level: u8, base: u64) -> Result<()> {
        self.cancel.check()?;
        // A node's id tells its level, too.
        if self.is_enough || old.as_ref().map(Side::id) == new.as_ref().map(Side::id) {
            return Ok(());
        }
        let start = base.saturating_mul(self.geometry.window);
        let end = base.saturating_add(self.geometry.windows_of_level(level)).saturating_mul(self.geometry.window);
        if end <= self.within.start || start >= self.within.end {
            return Ok(());
        }
        if level == 0 {
            let (old, new) = (self.entries(old)?, self.entries(new)?);
            return self.leaves(&old, &new, base);
        }
        let (old, new) = (self.children(old, level)?, self.children(new, level)?);
        let windows = self.geometry.windows_of_level(level - 1);
        let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
        while let Some(slot) = [old.peek(), new.peek()].into_iter().flatten().map(|(slot, _)| *slot).min() {
            let old = old.next_if(|(s, _)| *s == slot).map(|(_, side)| side);
            let new = new.next_if(|(s, _)| *s == slot).map(|(_, side)| side);
            let first = base.saturating_add(u64::from(slot).saturating_mul(windows));
            self.pair(old, new, level - 1, first)?;
        }
        Ok(())
    }

    /// The subtrees of a subtree of `level`, by slot.
    fn children(&self, side: Option<Side>, level: u8) -> Result<Vec<(u8, Side)>> {
        let node = match side {
            None => return Ok(Vec::new()),
            Some(Side::Read(id, node)) if node.level() < level => return Ok(vec![(0, Side::Read(id, node))]),
            Some(Side::Read(_, node)) => node,
            Some(Side::Named(child)) => self.nodes.node(&child, level)?,
        };
        match &*node {
            Node::Inner(inner) => Ok(inner.children.iter().map(|c| (c.slot, Side::Named(*c))).collect()),
            Node::Leaf(_) => Err(Error::internal("a leaf above the leaves")),
        }
    }

    fn entries(&self, side: Option<Side>) -> Result<Vec<LeafEntry>> {
        let node = match side {
            None => return Ok(Vec::new()),
            Some(Side::Read(_, node)) => node,
            Some(Side::Named(child)) => self.nodes.node(&child, 0)?,
        };
        match &*node {
            Node::Leaf(leaf) => Ok(leaf.entries.clone()),
            Node::Inner(_) => Err(Error::internal("an inner node among the leaves")),
        }
    }

    /// Reports the entries of either leaf that the other one does not have.
    fn leaves(&mut self, old: &[LeafEntry], new: &[LeafEntry], window: u64) -> Result<()> {
        let base = window.saturating_mul(self.geometry.window);
        let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
        while let Some(start) = [old.peek(), new.peek()].into_iter().flatten().map(|e| e.start).min() {
            if self.is_enough {
                break;
            }
            let (a, b) = (old.next_if(|e| e.start == start), new.next_if(|e| e.start == start));
            if a.zip(b).is_some_and(|(a, b)| same(a, b)) {
                continue;
            }
            for entry in [a, b].into_iter().flatten() {
                let range = base.saturating_add(entry.start_bytes())..base.saturating_add(entry.end_bytes());
                self.changed(range)?;
            }
        }
        Ok(())
    }

    /// Adds a range that begins nowhere before the last one.
    fn changed(&mut self, range: Range<u64>) -> Result<()> {
        let end = range.end.min(self.totals.old_size.max(self.totals.new_size));
        match &mut self.open {
            Some(open) if range.start <= open.end => open.end = open.end.max(end),
            _ if range.start >= end => {}
            _ => {
                self.emit()?;
                self.open = Some(range.start..end);
            }
        }
        Ok(())
    }

    /// Hands out the last range.
    fn emit(&mut self) -> Result<()> {
        let Some(range) = self.open.take() else { return Ok(()) };
        self.totals.changed += range.end - range.start;
        self.totals.ranges += 1;
        self.is_enough |= (self.each)(range)?.is_break();
        Ok(())
    }
}

/// Whether two entries cover the same blocks with the same bytes, or with none that could be read.
fn same(a: &LeafEntry, b: &LeafEntry) -> bool {
    let content = match (&a.content, &b.content) {
        (LeafContent::Chunk { id: a, .. }, LeafContent::Chunk { id: b, .. }) => a == b,
        (LeafContent::Unreadable, LeafContent::Unreadable) => true,
        (LeafContent::Chunk { .. }, LeafContent::Unreadable) | (LeafContent::Unreadable, LeafContent::Chunk { .. }) => {
            false
        }
    };
    content && (a.start, a.blocks) == (b.start, b.blocks)
}
