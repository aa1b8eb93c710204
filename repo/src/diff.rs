//! Which ranges differ between two disks, found by their maps alone: no chunk is read, and no subtree whose id is the same.
//!
//! Not here: what differs within a range, which takes reading both. What holds: outside of the reported ranges the disks are
//! equal; a range is made of whole entries of leaves, so that equal bytes are reported as changed where the leaves cut
//! them differently (another position, another chunking around a change: a changed block reports its whole chunk); bytes
//! that only one disk has count as zeroes in the other; ranges rise, do not touch, and end at the longer disk's end. Memory: a
//! node a level of each disk, and the cache of nodes.

use crate::cancel::Cancel;
use crate::disk_map::{Child, Geometry, LeafContent, LeafEntry, Node, identity};
use crate::error::{Error, Result};
use crate::id::NodeId;
use crate::nodes::{Nodes, Root};
use crate::repository::Repository;
use crate::snapshot::Disk;
use std::ops::Range;
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
    let of = |disk: &Disk| -> Result<Option<Side>> {
        match Root::of(disk, geometry)?.node() {
            Some(node) => {
                let id = repo.keys().id_key().node_id(identity(&disk.root)?);
                Ok(Some(Side::Read(id, Arc::clone(node))))
            }
            None => Ok(None),
        }
    };
    let top = geometry.root_level(old.size).max(geometry.root_level(new.size));
    let mut comparison = Comparison {
        nodes: Nodes::new(Arc::clone(repo), NODE_CACHE)?,
        geometry,
        cancel,
        each,
        open: None,
        totals: DiffTotals { old_size: old.size, new_size: new.size, ..DiffTotals::default() },
    };
    comparison.pair(of(old)?, of(new)?, top, 0)?;
    comparison.emit()?;
    Ok(comparison.totals)
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
    nodes: Nodes,
    geometry: Geometry,
    cancel: &'a Cancel,
    each: &'a mut dyn FnMut(Range<u64>) -> Result<()>,
    /// The last range, which may go on.
    open: Option<Range<u64>>,
    totals: DiffTotals,
}

impl Comparison<'_> {
    /// Compares two subtrees of `level` whose first window is `base`.
    fn pair(&mut self, old: Option<Side>, new: Option<Side>, level: u8, base: u64) -> Result<()> {
        self.cancel.check()?;
        // A node's id tells its level, too.
        if old.as_ref().map(Side::id) == new.as_ref().map(Side::id) {
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
        (self.each)(range)
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
