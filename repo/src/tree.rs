//! Builds a disk's tree from its windows, in order, holding one open node a level.
//!
//! Not here: where a node is stored; the conductor hands in a closure that stores raw bytes and says where. What holds: memory
//! is one inner node a level, whatever the disk's size; the finished tree depends on the leaves only, not on who made them.

use crate::disk_map::{Child, Geometry, Inner, Node};
use crate::error::{Error, Result};
use crate::id::NodeId;
use crate::location::Location;

/// A node as the level above refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) id: NodeId,
    pub(crate) at: Location,
}

/// Stores a node's raw bytes, or finds them stored, and says where.
pub(crate) type Store<'a> = dyn FnMut(&[u8]) -> Result<Placed> + 'a;

/// The tree under construction.
#[derive(Debug)]
pub(crate) struct TreeBuilder {
    geometry: Geometry,
    /// Open nodes: element 0 has level 1.
    open: Vec<Open>,
    next_window: u64,
    /// Raw bytes of window 0's leaf: the root, if the disk turns out to have one window only.
    first_leaf: Vec<u8>,
}

#[derive(Debug, Default)]
struct Open {
    index: u64,
    children: Vec<Child>,
}

impl TreeBuilder {
    pub(crate) fn new(geometry: Geometry) -> Self {
        TreeBuilder { geometry, open: Vec::new(), next_window: 0, first_leaf: Vec::new() }
    }

    /// Adds the leaf of `window`; windows left out are zero. Windows come in rising order. `raw` is the leaf's raw bytes.
    pub(crate) fn push(&mut self, window: u64, leaf: Placed, raw: &[u8], store: &mut Store<'_>) -> Result<()> {
        if window < self.next_window {
            return Err(Error::internal(format!("window {window} came after window {}", self.next_window)));
        }
        self.next_window = window + 1;
        if window == 0 {
            self.first_leaf = raw.to_vec();
        }
        self.add(1, window, leaf, store)
    }

    /// Ends the tree of a disk of `size` bytes: stores what is open below the root and returns the root's raw bytes, empty for
    /// an all-zero disk.
    pub(crate) fn finish(mut self, size: u64, store: &mut Store<'_>) -> Result<Vec<u8>> {
        if self.next_window > self.geometry.windows(size) {
            return Err(Error::internal(format!("window {} lies beyond a disk of {size} bytes", self.next_window - 1)));
        }
        let root_level = self.geometry.root_level(size);
        if root_level == 0 {
            return Ok(self.first_leaf);
        }
        for level in 1..root_level {
            self.close(level, store)?;
        }
        // Closing a level opens the one above, so that the last open node is the root, unless every window was zero.
        match self.open.pop() {
            Some(root) => Node::Inner(Inner { level: root_level, children: root.children }).encode(),
            None => Ok(Vec::new()),
        }
    }

    /// Puts `child`, the `index`-th node of `level - 1`, into the open node of `level`.
    fn add(&mut self, level: u8, index: u64, child: Placed, store: &mut Store<'_>) -> Result<()> {
        let depth = usize::from(level - 1);
        let parent = index >> 8;
        match self.open.get(depth) {
            None => self.open.push(Open { index: parent, children: Vec::new() }),
            Some(open) if open.index != parent => {
                self.close(level, store)?;
                if let Some(open) = self.open.get_mut(depth) {
                    open.index = parent;
                }
            }
            Some(_) => {}
        }
        let slot = self.geometry.slot(index, 1);
        match self.open.get_mut(depth) {
            Some(open) => open.children.push(Child { slot, id: child.id, hint: child.at }),
            None => return Err(Error::internal("a level of the tree was skipped")),
        }
        Ok(())
    }

    /// Stores the open node of `level`, if it has children, and adds it to the level above.
    fn close(&mut self, level: u8, store: &mut Store<'_>) -> Result<()> {
        let Some(open) = self.open.get_mut(usize::from(level - 1)) else { return Ok(()) };
        if open.children.is_empty() {
            return Ok(());
        }
        let (index, children) = (open.index, std::mem::take(&mut open.children));
        let stored = store(&Node::Inner(Inner { level, children }).encode()?)?;
        self.add(level + 1, index, stored, store)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::PackUid;
    use std::collections::BTreeMap;

    const GEOMETRY: Geometry = Geometry { window: 1 << 20 };

    /// Builds a tree over `windows`, then walks it and returns the windows found.
    fn build_and_walk(windows: &[u64], size: u64) -> Vec<u64> {
        let mut nodes: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        let mut store = |raw: &[u8]| {
            let offset = u32::try_from(nodes.len()).unwrap() + 1_000_000;
            nodes.insert(offset, raw.to_vec());
            let at = Location { pack: PackUid::default(), offset, stored_len: 20, raw_len: 10 };
            Ok(Placed { id: NodeId(*blake3::hash(raw).as_bytes()), at })
        };
        let mut tree = TreeBuilder::new(GEOMETRY);
        for w in windows {
            let offset = u32::try_from(*w).unwrap_or(u32::MAX);
            let leaf = Placed {
                id: NodeId([1; 32]),
                at: Location { pack: PackUid::default(), offset, stored_len: 9, raw_len: 9 },
            };
            tree.push(*w, leaf, &w.to_le_bytes(), &mut store).unwrap();
        }
        let root = tree.finish(size, &mut store).unwrap();
        fn walk(raw: &[u8], base: u64, nodes: &BTreeMap<u32, Vec<u8>>, found: &mut Vec<u64>) {
            let Node::Inner(inner) = Node::decode(raw, 1 << 20).unwrap() else { panic!("not an inner node") };
            for c in &inner.children {
                let at = base + (u64::from(c.slot) << (8 * (u32::from(inner.level) - 1)));
                if inner.level == 1 { found.push(at) } else { walk(&nodes[&c.hint.offset], at, nodes, found) }
            }
        }
        let mut found = Vec::new();
        if root.is_empty() {
        } else if GEOMETRY.root_level(size) == 0 {
            found.push(u64::from_le_bytes(root.try_into().unwrap()));
        } else {
            assert_eq!(Node::decode(&root, 1 << 20).unwrap().level(), GEOMETRY.root_level(size));
            walk(&root, 0, &nodes, &mut found);
        }
        found
    }

    #[test]
    fn every_window_is_found_again_at_every_height() {
        let mib = |n: u64| n << 20;
        for (windows, size) in [
            (vec![], mib(3)),
            (vec![], 0),
            (vec![0], mib(1)),
            (vec![0], mib(1000)),
            (vec![0, 1, 255], mib(256)),
            (vec![255, 256], mib(257)),
            (vec![3], mib(65_537)),
            (vec![65_535, 65_536], mib(65_537)),
            (vec![0, 300, 65_536, 16_777_215], mib(16_777_216)),
            ((0..1000).collect(), mib(1000)),
        ] {
            assert_eq!(build_and_walk(&windows, size), windows, "{size}");
        }
    }

    #[test]
    fn disorder_is_refused() {
        let mut tree = TreeBuilder::new(GEOMETRY);
        let leaf = Placed {
            id: NodeId::default(),
            at: Location { pack: PackUid::default(), offset: 0, stored_len: 0, raw_len: 0 },
        };
        let mut store = |_: &[u8]| Ok(leaf);
        tree.push(5, leaf, &[], &mut store).unwrap();
        assert!(tree.push(5, leaf, &[], &mut store).is_err());
        assert!(tree.finish(1 << 20, &mut store).is_err());
    }
}
