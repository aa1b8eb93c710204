//! What an examination found that can be healed: chunks and nodes that are not, or only by parity, where maps lead to.
//!
//! Not here: healing ([`crate::heal`]). What holds: what is read from where it lies as well is no wound, but healed. Memory: some 400
//! bytes, places included, for each of at most [`MOST`] wounds, 50 for each that was seen to, 16 per leaf that leads to one.

use super::{Key, Problem, Run, key_of};
use crate::disk_map::{Child, Leaf, Node};
use crate::error::{Kind, Result};
use crate::id::{ChunkId, PackUid};
use crate::nodes::Nodes;
use crate::reader::Want;
use crate::snapshot::Snapshot;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most wounds that are gathered at a time: 16 GiB of content, mostly. When they were seen to it is looked again.
const MOST: usize = 1 << 18;
/// Most places that are told of one chunk: one will do, if the disk is as it was there.
const PLACES: usize = 4;

/// Wounds, gathered by many threads.
#[derive(Default)]
pub(super) struct Wounds(Mutex<Gathered>);

#[derive(Default)]
struct Gathered {
    chunks: BTreeMap<(PackUid, u32), Want>,
    nodes: BTreeMap<(PackUid, u32), (Child, u8)>,
    /// Stored leaves that lead to wounded chunks.
    leaves: HashSet<Key>,
    /// Whether there are more wounds.
    more: bool,
    /// Wounds that were gathered before. Whoever can heal one does so at once, so that each is gathered once.
    seen: HashSet<(PackUid, u32)>,
}

impl Gathered {
    fn takes(&mut self, place: (PackUid, u32)) -> bool {
        if self.seen.contains(&place) {
            return false;
        }
        self.more |= self.chunks.len() + self.nodes.len() >= MOST;
        !self.more
    }
}

impl Wounds {
    pub(super) fn add_chunk(&self, want: Want, leaf: Option<Key>) {
        let mut gathered = self.lock();
        let place = (want.at.pack, want.at.offset);
        if gathered.takes(place) {
            gathered.chunks.insert(place, want);
            gathered.leaves.extend(leaf);
        }
    }

    pub(super) fn add_node(&self, child: Child, level: u8) {
        let mut gathered = self.lock();
        let place = (child.hint.pack, child.hint.offset);
        if gathered.takes(place) {
            gathered.nodes.insert(place, (child, level));
        }
    }

    /// Makes room for others.
    pub(super) fn clear(&self) {
        let mut gathered = self.lock();
        let mut seen = std::mem::take(&mut gathered.seen);
        seen.extend(gathered.chunks.keys().chain(gathered.nodes.keys()));
        *gathered = Gathered { seen, ..Gathered::default() };
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which disk of any point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlaceDisk {
    pub(crate) workload: String,
    pub(crate) name: String,
}

/// Where on a disk a chunk lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) disk: Arc<PlaceDisk>,
    /// In bytes.
    pub(crate) offset: u64,
}

/// What an examination has come to when something may be done about it.
pub(crate) struct Scene<'a> {
    pub(super) run: &'a Run<'a>,
    pub(super) points: &'a [Snapshot],
    pub(super) wounds: &'a Wounds,
}

impl Scene<'_> {
    /// Wounded chunks, in order of pack and offset.
    pub(crate) fn chunks(&self) -> Vec<Want> {
        self.wounds.lock().chunks.values().copied().collect()
    }

    /// Wounded nodes and their levels.
    pub(crate) fn nodes(&self) -> Vec<(Child, u8)> {
        self.wounds.lock().nodes.values().copied().collect()
    }

    /// Whether there are more wounds than were gathered.
    pub(crate) fn has_more(&self) -> bool {
        self.wounds.lock().more
    }

    /// An object that is frozen, if one was met: it may be sound.
    pub(crate) fn frozen(&self) -> Option<Problem> {
        self.run.findings.problems().into_iter().find(|problem| problem.kind == Kind::Frozen)
    }

    /// What reads nodes here, with all its ways around damage.
    pub(crate) fn reader(&self) -> &Nodes {
        self.run.nodes
    }

    /// Where on which disks wounded chunks lie, those of newer points first. Walks the points' maps, but for leaves without
    /// wounds.
    pub(crate) fn places(&self) -> Result<HashMap<ChunkId, Vec<Place>>> {
        let (wanted, leaves) = {
            let gathered = self.wounds.lock();
            let wanted: HashSet<ChunkId> = gathered.chunks.values().map(|want| want.id).collect();
            (wanted, gathered.leaves.clone())
        };
        let mut search = Search { scene: self, wanted, leaves, seen: HashSet::new(), places: HashMap::new() };
        for point in self.points.iter().rev() {
            for disk in &point.disks {
                // A root that is damaged leads nowhere.
                let Ok(root) = self.run.root(point, disk) else { continue };
                if let Some(node) = root.node() {
                    let disk = PlaceDisk { workload: point.workload.clone(), name: disk.name.clone() };
                    search.node(node, 0, &Arc::new(disk))?;
                }
            }
        }
        Ok(search.places)
    }
}

struct Search<'a> {
    scene: &'a Scene<'a>,
    wanted: HashSet<ChunkId>,
    leaves: HashSet<Key>,
    /// Nodes that were walked: once is enough, wherever points share them.
    seen: HashSet<Key>,
    places: HashMap<ChunkId, Vec<Place>>,
}

impl Search<'_> {
    /// `base` is the first window that `node` covers.
    fn node(&mut self, node: &Node, base: u64, disk: &Arc<PlaceDisk>) -> Result<()> {
        let run = self.scene.run;
        let inner = match node {
            Node::Leaf(leaf) => {
                self.leaf(leaf, base.saturating_mul(run.repo.geometry().window), disk);
                return Ok(());
            }
            Node::Inner(inner) => inner,
        };
        let level = inner.level - 1;
        let windows = run.repo.geometry().windows_of_level(level);
        for child in &inner.children {
            run.crew.cancel.check()?;
            let key = key_of(child, level);
            if (level == 0 && !self.leaves.contains(&key)) || !self.seen.insert(key) {
                continue;
            }
            if let Ok(node) = run.nodes.read(child, level) {
                let first = base.saturating_add(u64::from(child.slot).saturating_mul(windows));
                self.node(&node, first, disk)?;
            }
        }
        Ok(())
    }

    fn leaf(&mut self, leaf: &Leaf, base: u64, disk: &Arc<PlaceDisk>) {
        for (entry, want) in leaf.entries.iter().filter_map(|e| Some((e, Want::of(e)?))) {
            if !self.wanted.contains(&want.id) {
                continue;
            }
            let places = self.places.entry(want.id).or_default();
            if places.len() < PLACES {
                let offset = base.saturating_add(entry.start_bytes());
                places.push(Place { disk: Arc::clone(disk), offset });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::location::Location;

    #[test]
    fn so_many_are_gathered_at_a_time_and_each_once() {
        let wounds = Wounds::default();
        let want = |offset: usize| {
            let offset = u32::try_from(offset).unwrap();
            let at = Location { pack: PackUid::default(), offset, stored_len: 20, raw_len: 4096 };
            Want { id: ChunkId::default(), at }
        };
        (0..MOST).for_each(|n| wounds.add_chunk(want(n), None));
        assert!(!wounds.lock().more);
        (0..=MOST).for_each(|n| wounds.add_chunk(want(n), None));
        assert!(wounds.lock().more && wounds.lock().chunks.len() == MOST);
        wounds.clear();
        (0..=MOST).for_each(|n| wounds.add_chunk(want(n), None));
        assert_eq!(wounds.lock().chunks.values().collect::<Vec<_>>(), [&want(MOST)]);
        assert!(!wounds.lock().more);
    }
}
