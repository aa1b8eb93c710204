//! The stage of verification that finds which bytes of which disks the damage hurts.
//!
//! Not here: finding the damage. What holds: it runs only when there is some; nodes are read as a reader would read them, so that
//! the harm is what a reader would meet; a subtree without harm is walked once for all points that share it, and a leaf is
//! read only if the walk before found it damaged.

use super::packs::{Held, Scratch};
use super::{Harm, Key, Run, VerifyProgress, key_of};
use crate::disk_map::{Leaf, Node};
use crate::error::{Kind, Result};
use crate::location::PackKind;
use crate::pack;
use crate::reader::Want;
use crate::snapshot::Snapshot;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

/// Harm by the object that is to blame for it.
type Harms = BTreeMap<String, Vec<Harm>>;

pub(super) struct Blame<'a> {
    run: &'a Run<'a>,
    damaged_leaves: &'a HashSet<Key>,
    /// Inner nodes under which nothing is wrong.
    sound: HashSet<Key>,
    harms: Harms,
}

/// One disk under examination.
struct Examined<'a> {
    size: u64,
    ranges: BTreeMap<String, Vec<Range<u64>>>,
    scratch: &'a mut Scratch,
}

impl<'a> Blame<'a> {
    pub(super) fn new(run: &'a Run<'a>, damaged_leaves: &'a HashSet<Key>) -> Self {
        Blame { run, damaged_leaves, sound: HashSet::new(), harms: Harms::new() }
    }

    /// What was found.
    pub(super) fn finish(self) -> Harms {
        self.harms
    }

    /// Finds what cannot be read of one point.
    pub(super) fn point(&mut self, point: &Snapshot) -> Result<()> {
        let mut scratch = Scratch::new()?;
        for disk in &point.disks {
            let mut examined = Examined { size: disk.size, ranges: BTreeMap::new(), scratch: &mut scratch };
            match self.run.root(point, disk) {
                Ok(root) => {
                    if let Some(node) = root.node() {
                        self.node(node, 0, &mut examined)?;
                    }
                }
                Err(_) => examined.hurt(point.name.claim(), 0..u64::MAX),
            }
            for (object, ranges) in examined.ranges {
                let (workload, disk) = (point.workload.clone(), disk.name.clone());
                let harm = Harm { snapshot: point.id(), workload, time: point.time(), disk, ranges };
                self.harms.entry(object).or_default().push(harm);
            }
        }
        Ok(())
    }

    /// `base` is the first window that `node` covers. Whether nothing is wrong in it and below.
    fn node(&mut self, node: &Node, base: u64, disk: &mut Examined<'_>) -> Result<bool> {
        let inner = match node {
            Node::Leaf(leaf) => return self.leaf(leaf, base, disk),
            Node::Inner(inner) => inner,
        };
        let geometry = self.run.repo.geometry();
        let level = inner.level - 1;
        let windows = geometry.windows_of_level(level);
        let mut all_sound = true;
        for child in &inner.children {
            self.run.crew.cancel.check()?;
            let key = key_of(child, level);
            let known_sound = if level == 0 { !self.damaged_leaves.contains(&key) } else { self.sound.contains(&key) };
            if known_sound {
                continue;
            }
            let first = base.saturating_add(u64::from(child.slot).saturating_mul(windows));
            let sound = match self.run.nodes.read(child, level) {
                Ok(node) => self.node(&node, first, disk)?,
                Err(e) if matches!(e.kind(), Kind::Cancelled | Kind::Internal) => return Err(e),
                Err(_) => {
                    let start = first.saturating_mul(geometry.window);
                    let end = first.saturating_add(windows).saturating_mul(geometry.window);
                    disk.hurt(pack::name(PackKind::Tree, child.hint.pack), start..end);
                    false
                }
            };
            if sound && level > 0 {
                self.sound.insert(key);
            }
            all_sound &= sound;
        }
        Ok(all_sound)
    }

    fn leaf(&self, leaf: &Leaf, window: u64, disk: &mut Examined<'_>) -> Result<bool> {
        let base = window.saturating_mul(self.run.repo.geometry().window);
        let mut sound = true;
        for (entry, want) in leaf.entries.iter().filter_map(|e| Some((e, Want::of(e)?))) {
            let held = self.run.packs.holds(&want, &self.run.findings, disk.scratch, &VerifyProgress::default())?;
            if !matches!(held, Held::Yes | Held::ByParity) {
                let range = base.saturating_add(entry.start_bytes())..base.saturating_add(entry.end_bytes());
                disk.hurt(pack::name(PackKind::Data, want.at.pack), range);
                sound = false;
            }
        }
        Ok(sound)
    }
}

impl Examined<'_> {
    /// Notes that `range` cannot be read because of `object`. Ranges come in rising order.
    fn hurt(&mut self, object: String, range: Range<u64>) {
        let range = range.start..range.end.min(self.size);
        if range.is_empty() {
            return;
        }
        let ranges = self.ranges.entry(object).or_default();
        match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range),
        }
    }
}
