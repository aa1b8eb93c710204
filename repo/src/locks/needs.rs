//! Which packs points need, and until when: each node of their maps is read once, for the point that needs it longest.
//!
//! ```text
//!   points, the longest due first -> every map, but for what an earlier one has -> packs of nodes and of chunks -> due
//! ```
//!
//! Not here: where frames lie that are not where maps say ([`super::trail`]); locks ([`super::padlock`]). What holds: a pack is due as
//! long as any of the points needs anything in it; a map that cannot be read to its end is named, and what was read of it counts.
//! Memory: 40 bytes a pack and a thread, 40 a distinct node, that is a window of distinct content.

use crate::collector::copy_of;
use crate::crew::Crew;
use crate::disk_map::{Child, Inner, LeafContent, Node};
use crate::error::{Error, Result};
use crate::id::PackUid;
use crate::location::PackKind;
use crate::lock_for::Due;
use crate::nodes::{Nodes, Root};
use crate::repository::Repository;
use crate::snapshot::{ClaimName, Snapshot};
use crate::unwalkable::Unwalkable;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Bytes of decoded nodes kept.
const NODE_CACHE: u64 = 4 << 20;

/// Packs and until when they are needed.
#[derive(Debug, Default)]
pub(crate) struct Packs(HashMap<PackUid, (PackKind, Due)>);

impl Packs {
    /// Notes that something needs a pack; whether that is news.
    pub(crate) fn need(&mut self, kind: PackKind, uid: PackUid, due: Due) -> bool {
        let known = self.0.entry(uid).or_insert((kind, due));
        let is_news = known.1 < due;
        known.1 = known.1.max(due);
        is_news
    }

    /// Until when a pack is needed.
    pub(crate) fn due(&self, uid: PackUid) -> Option<(PackKind, Due)> {
        self.0.get(&uid).copied()
    }

    /// All of them, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PackKind, PackUid, Due)> {
        self.0.iter().map(|(uid, (kind, due))| (*kind, *uid, *due))
    }
}

/// Walks the maps of `points`, which come with the longest due first.
pub(crate) fn gather(
    repo: &Arc<Repository>,
    points: &[(&Snapshot, Due)],
    crew: Crew<'_>,
) -> Result<(Packs, Unwalkable)> {
    let nodes = Nodes::new(Arc::clone(repo), NODE_CACHE)?;
    let unwalkable = Unwalkable::default();
    let walk = Walk { repo, nodes: &nodes, unwalkable: &unwalkable };
    let mut packs = Packs::default();
    let work = |Leaf { claim, child, due }: Leaf, packs: &mut Packs| {
        let read = nodes.read(&child, 0).map(|node| note_chunks(&node, due, packs));
        unwalkable.tolerate(claim, read)
    };
    let parts = crew.run(
        || Ok(Packs::default()),
        work,
        |hand| {
            let mut feed = Feed { walk, hand, walked: HashSet::new(), packs: &mut packs };
            points.iter().try_for_each(|(point, due)| feed.point(point, *due))
        },
    )?;
    for (kind, uid, due) in parts.iter().flat_map(Packs::iter) {
        packs.need(kind, uid, due);
    }
    Ok((packs, unwalkable))
}

/// A leaf to be read.
struct Leaf {
    claim: ClaimName,
    child: Child,
    due: Due,
}

#[derive(Clone, Copy)]
struct Walk<'a> {
    repo: &'a Repository,
    nodes: &'a Nodes,
    unwalkable: &'a Unwalkable,
}

/// The thread that goes through points and inner nodes, and hands out leaves.
struct Feed<'f, 'h> {
    walk: Walk<'f>,
    hand: &'f mut (dyn FnMut(Leaf) -> Result<()> + 'h),
    walked: HashSet<[u8; 16]>,
    packs: &'f mut Packs,
}

impl Feed<'_, '_> {
    fn point(&mut self, point: &Snapshot, due: Due) -> Result<()> {
        for disk in &point.disks {
            let walked =
                Root::of(disk, self.walk.repo.geometry()).and_then(|root| match root.node().map(|node| &**node) {
                    None => Ok(()),
                    Some(Node::Inner(inner)) => self.below(point.name, inner, due),
                    Some(node) => {
                        note_chunks(node, due, self.packs);
                        Ok(())
                    }
                });
            self.walk.unwalkable.tolerate(point.name, walked)?;
        }
        Ok(())
    }

    fn below(&mut self, claim: ClaimName, inner: &Inner, due: Due) -> Result<()> {
        let level = inner.level - 1;
        for child in &inner.children {
            if !self.walked.insert(copy_of(child, level)) {
                continue;
            }
            self.packs.need(PackKind::Tree, child.hint.pack, due);
            if level == 0 {
                (self.hand)(Leaf { claim, child: *child, due })?;
                continue;
            }
            match self.walk.nodes.read(child, level) {
                Ok(Node::Inner(inner)) => self.below(claim, &inner, due)?,
                Ok(Node::Leaf(_)) => return Err(Error::internal("a leaf turned out to lie among inner nodes")),
                Err(e) => self.walk.unwalkable.tolerate(claim, Err(e))?,
            }
        }
        Ok(())
    }
}

fn note_chunks(node: &Node, due: Due, packs: &mut Packs) {
    let Node::Leaf(leaf) = node else { return };
    for entry in &leaf.entries {
        if let LeafContent::Chunk { hint, .. } = &entry.content {
            packs.need(PackKind::Data, hint.pack, due);
        }
    }
}
