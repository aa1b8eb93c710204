//! The inode table: which names there are, which number stands for what, and what the kernel still remembers.
//!
//! Not here: I/O, open files, refreshing. What holds:
//! - a number stands for one thing during a mount and is never given to another;
//! - a node lives as long as it is listed or the kernel has looked it up more often than it has forgotten it, so memory
//!   is bounded by the listing and the kernel's own cache;
//! - names are a function of the listing alone: every mount of a repository shows the same ones.

use crate::catalog::Point;
use crate::file_name::file_name;
use crate::{Error, Result};
use coffer_repo::id::SnapshotId;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The name of the link to a workload's newest point. No time is spelt like it.
pub(crate) const LATEST: &str = "latest";

/// What a disk's name ends in.
const DISK_SUFFIX: &str = ".raw";

/// Length of the id that tells apart two points of one second.
const SHORT_ID: usize = 8;

/// The number of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Inode(pub(crate) u64);

impl Inode {
    /// The directory of workloads.
    pub(crate) const ROOT: Inode = Inode(1);
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeKind {
    Directory,
    Disk,
    Link,
}

/// What `stat` shows of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) inode: Inode,
    pub(crate) kind: NodeKind,
    /// Size in bytes; 0 for a directory.
    pub(crate) size: u64,
    /// Names and, for a directory, subdirectories that link to it.
    pub(crate) links: u32,
    /// Seconds since 1970: the point's time, for a directory of points the newest one's.
    pub(crate) seconds: u64,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: Box<str>,
    pub(crate) inode: Inode,
    pub(crate) kind: NodeKind,
}

/// A directory as it was when it was opened.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    pub(crate) inode: Inode,
    pub(crate) parent: Inode,
    /// Sorted by name.
    pub(crate) entries: Arc<[Entry]>,
}

/// Which disk of which point a node shows.
#[derive(Clone, Debug)]
pub(crate) struct DiskPlace {
    pub(crate) point: Arc<Point>,
    pub(crate) disk: usize,
}

/// What makes a node the same one in the next listing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Identity {
    Workload(String),
    Latest(String),
    Point(SnapshotId),
    Disk(SnapshotId, usize),
}

enum Content {
    /// Sorted by name, so that a name is found by bisection.
    Directory(Arc<[Entry]>),
    Disk(DiskPlace),
    Link(Box<str>),
}

struct Node {
    parent: Inode,
    attributes: Attributes,
    content: Content,
    /// How often the kernel looked it up and has not forgotten it.
    lookups: u64,
    is_listed: bool,
}

/// The table.
pub(crate) struct Tree {
    /// The listing the nodes were made from, sorted by workload, time and id.
    points: Vec<Arc<Point>>,
    nodes: HashMap<Inode, Node>,
    /// The numbers of what is listed.
    numbers: HashMap<Identity, Inode>,
    next: u64,
}

impl Tree {
    /// The tree of a repository without points.
    pub(crate) fn new() -> Self {
        let mut tree =
            Tree { points: Vec::new(), nodes: HashMap::new(), numbers: HashMap::new(), next: Inode::ROOT.0 + 1 };
        tree.put_directory(Inode::ROOT, Inode::ROOT, Vec::new(), 0);
        tree
    }

    /// Takes in a new listing. What is in both listings keeps its number.
    pub(crate) fn update(&mut self, mut points: Vec<Point>) {
        points.sort_unstable_by(|a, b| (&a.workload, a.time, a.id).cmp(&(&b.workload, b.time, b.id)));
        if points.iter().eq(self.points.iter().map(Arc::as_ref)) {
            return;
        }
        self.points = points.into_iter().map(Arc::new).collect();
        for node in self.nodes.values_mut() {
            node.is_listed = false;
        }
        let points = self.points.clone();
        let mut workloads = Vec::new();
        let mut newest = 0;
        for points in points.chunk_by(|a, b| a.workload == b.workload) {
            workloads.push(self.list_workload(points));
            newest = newest.max(points.last().map_or(0, |p| p.time.seconds()));
        }
        self.put_directory(Inode::ROOT, Inode::ROOT, workloads, newest);
        self.sweep();
    }

    /// Finds `name` in the directory `parent` and counts one lookup.
    pub(crate) fn lookup(&mut self, parent: Inode, name: &str) -> Result<Option<Attributes>> {
        let entries = self.entries(parent)?;
        let found = entries.binary_search_by(|e| e.name.as_ref().cmp(name)).ok().and_then(|i| entries.get(i));
        Ok(found.map(|e| e.inode).and_then(|inode| self.remember(inode)))
    }

    /// Counts one lookup of `inode`; `None` when it is gone.
    pub(crate) fn remember(&mut self, inode: Inode) -> Option<Attributes> {
        let node = self.nodes.get_mut(&inode)?;
        node.lookups = node.lookups.saturating_add(1);
        Some(node.attributes)
    }

    /// Takes back `count` lookups of `inode`.
    pub(crate) fn forget(&mut self, inode: Inode, count: u64) {
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.lookups = node.lookups.saturating_sub(count);
            if node.lookups == 0 && !node.is_listed {
                self.nodes.remove(&inode);
            }
        }
    }

    pub(crate) fn attributes(&self, inode: Inode) -> Result<Attributes> {
        Ok(self.node(inode)?.attributes)
    }

    pub(crate) fn listing(&self, inode: Inode) -> Result<Listing> {
        Ok(Listing { inode, parent: self.node(inode)?.parent, entries: self.entries(inode)? })
    }

    pub(crate) fn link(&self, inode: Inode) -> Result<Box<str>> {
        match &self.node(inode)?.content {
            Content::Link(target) => Ok(target.clone()),
            Content::Directory(_) | Content::Disk(_) => Err(Error::invalid("only a link can be read as one")),
        }
    }

    pub(crate) fn disk(&self, inode: Inode) -> Result<DiskPlace> {
        match &self.node(inode)?.content {
            Content::Disk(place) => Ok(place.clone()),
            Content::Directory(_) | Content::Link(_) => Err(Error::invalid("only a disk can be opened as a file")),
        }
    }

    /// Number of nodes, and the size of all listed disks in bytes.
    pub(crate) fn totals(&self) -> (u64, u64) {
        let bytes = self.points.iter().flat_map(|p| &p.disks).fold(0u64, |sum, d| sum.saturating_add(d.size));
        (u64::try_from(self.nodes.len()).unwrap_or(u64::MAX), bytes)
    }

    /// Builds a workload's directory from its points, which are sorted by time and id.
    fn list_workload(&mut self, points: &[Arc<Point>]) -> Entry {
        let (workload, newest) = points.last().map_or(("", 0), |p| (p.workload.as_str(), p.time.seconds()));
        let inode = self.number(Identity::Workload(workload.to_owned()));
        let mut entries = Vec::with_capacity(points.len() + 1);
        for points in points.chunk_by(|a, b| a.time == b.time) {
            for (point, name) in points.iter().zip(point_names(points)) {
                entries.push(self.list_point(inode, point, name));
            }
        }
        if let Some(last) = entries.last() {
            let target = last.name.clone();
            let link = self.number(Identity::Latest(workload.to_owned()));
            let attributes = Attributes {
                inode: link,
                kind: NodeKind::Link,
                size: u64::try_from(target.len()).unwrap_or(u64::MAX),
                links: 1,
                seconds: newest,
            };
            self.put(inode, attributes, Content::Link(target));
            entries.push(Entry { name: LATEST.into(), inode: link, kind: NodeKind::Link });
        }
        self.put_directory(inode, Inode::ROOT, entries, newest);
        Entry { name: file_name(workload, "").into(), inode, kind: NodeKind::Directory }
    }

    fn list_point(&mut self, parent: Inode, point: &Arc<Point>, name: String) -> Entry {
        let inode = self.number(Identity::Point(point.id));
        let seconds = point.time.seconds();
        let mut entries = Vec::with_capacity(point.disks.len());
        for (position, disk) in point.disks.iter().enumerate() {
            let file = self.number(Identity::Disk(point.id, position));
            let attributes = Attributes { inode: file, kind: NodeKind::Disk, size: disk.size, links: 1, seconds };
            self.put(inode, attributes, Content::Disk(DiskPlace { point: Arc::clone(point), disk: position }));
            entries.push(Entry { name: file_name(&disk.name, DISK_SUFFIX).into(), inode: file, kind: NodeKind::Disk });
        }
        self.put_directory(inode, parent, entries, seconds);
        Entry { name: name.into(), inode, kind: NodeKind::Directory }
    }

    /// The number of `identity`: the one it had in the listing before, or a fresh one.
    fn number(&mut self, identity: Identity) -> Inode {
        let next = &mut self.next;
        *self.numbers.entry(identity).or_insert_with(|| {
            *next += 1;
            Inode(*next - 1)
        })
    }

    fn put_directory(&mut self, inode: Inode, parent: Inode, mut entries: Vec<Entry>, seconds: u64) {
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let directories = entries.iter().filter(|e| e.kind == NodeKind::Directory).count();
        let links = u32::try_from(directories).unwrap_or(u32::MAX).saturating_add(2);
        let attributes = Attributes { inode, kind: NodeKind::Directory, size: 0, links, seconds };
        self.put(parent, attributes, Content::Directory(entries.into()));
    }

    fn put(&mut self, parent: Inode, attributes: Attributes, content: Content) {
        let lookups = self.nodes.get(&attributes.inode).map_or(0, |n| n.lookups);
        self.nodes.insert(attributes.inode, Node { parent, attributes, content, lookups, is_listed: true });
    }

    /// Drops what is neither listed nor known to the kernel; empties the directories that only the kernel knows.
    fn sweep(&mut self) {
        self.nodes.retain(|_, node| node.is_listed || node.lookups > 0);
        for node in self.nodes.values_mut().filter(|n| !n.is_listed) {
            if let Content::Directory(entries) = &mut node.content {
                *entries = Arc::default();
            }
        }
        let nodes = &self.nodes;
        self.numbers.retain(|_, inode| nodes.get(inode).is_some_and(|n| n.is_listed));
    }

    fn node(&self, inode: Inode) -> Result<&Node> {
        self.nodes.get(&inode).ok_or_else(|| Error::not_found(format!("inode {} is gone", inode.0)))
    }

    fn entries(&self, inode: Inode) -> Result<Arc<[Entry]>> {
        match &self.node(inode)?.content {
            Content::Directory(entries) => Ok(Arc::clone(entries)),
            Content::Disk(_) | Content::Link(_) => Err(Error::invalid("only a directory can be listed")),
        }
    }
}

/// The folder names of the points of one workload and second: the time and, if there are several, a piece of the id that
/// tells them apart. All of them carry it, so that no name changes its meaning when another point appears.
fn point_names(points: &[Arc<Point>]) -> Vec<String> {
    let ids: Vec<String> = points.iter().map(|p| p.id.to_string()).collect();
    let short = |id: &String| id.get(..SHORT_ID).map(str::to_owned);
    let shortened: HashSet<Option<String>> = ids.iter().map(short).collect();
    let is_short_enough = shortened.len() == ids.len();
    let named = |(point, id): (&Arc<Point>, &String)| match (points.len(), short(id)) {
        (1, _) => point.time.to_string(),
        (_, Some(short)) if is_short_enough => format!("{}-{short}", point.time),
        _ => format!("{}-{id}", point.time),
    };
    points.iter().zip(&ids).map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::PointDisk;
    use coffer_repo::time::Timestamp;

    fn point(id: u8, workload: &str, seconds: u64, disks: &[&str]) -> Point {
        let disks = disks.iter().map(|name| PointDisk { name: (*name).to_owned(), size: 4096 }).collect();
        let time = Timestamp::from_seconds(seconds).unwrap();
        Point { id: SnapshotId([id; 16]), workload: workload.to_owned(), time, disks }
    }

    fn names(tree: &Tree, inode: Inode) -> Vec<String> {
        tree.listing(inode).unwrap().entries.iter().map(|e| e.name.to_string()).collect()
    }

    /// Walks without leaving a lookup behind.
    fn walk(tree: &mut Tree, path: &[&str]) -> Option<Inode> {
        path.iter().try_fold(Inode::ROOT, |at, name| {
            let found = tree.lookup(at, name).unwrap()?.inode;
            tree.forget(found, 1);
            Some(found)
        })
    }

    #[test]
    fn shows_workloads_times_and_disks() {
        let mut tree = Tree::new();
        tree.update(vec![
            point(2, "web", 1_795_226_400, &["sda", "sdb"]),
            point(1, "web", 1_795_226_300, &["sda"]),
            point(3, "a/b", 5, &["x/y"]),
        ]);
        assert_eq!(names(&tree, Inode::ROOT), ["a%2Fb", "web"]);
        let web = walk(&mut tree, &["web"]).unwrap();
        assert_eq!(names(&tree, web), ["2026-11-21T01-58-20Z", "2026-11-21T02-00-00Z", "latest"]);
        let latest = walk(&mut tree, &["web", "latest"]).unwrap();
        assert_eq!(tree.link(latest).unwrap().as_ref(), "2026-11-21T02-00-00Z");
        assert_eq!(tree.attributes(latest).unwrap().size, 20);
        let newest = walk(&mut tree, &["web", "2026-11-21T02-00-00Z"]).unwrap();
        assert_eq!(names(&tree, newest), ["sda.raw", "sdb.raw"]);
        assert_eq!(tree.attributes(web).unwrap().links, 4);
        assert_eq!(tree.attributes(web).unwrap().seconds, 1_795_226_400);
        let disk = walk(&mut tree, &["a%2Fb", "1970-01-01T00-00-05Z", "x%2Fy.raw"]).unwrap();
        let attributes = tree.attributes(disk).unwrap();
        assert_eq!((attributes.kind, attributes.size, attributes.seconds), (NodeKind::Disk, 4096, 5));
        assert!(walk(&mut tree, &["web", "nothing"]).is_none());
    }

    #[test]
    fn points_of_one_second_carry_their_ids() {
        let mut tree = Tree::new();
        let mut twin = point(7, "w", 9, &[]);
        tree.update(vec![point(8, "w", 9, &[]), twin.clone(), point(1, "w", 10, &[])]);
        let w = walk(&mut tree, &["w"]).unwrap();
        let expected =
            ["1970-01-01T00-00-09Z-07070707", "1970-01-01T00-00-09Z-08080808", "1970-01-01T00-00-10Z", "latest"];
        assert_eq!(names(&tree, w), expected);

        twin.id.0 = [8; 16];
        twin.id.0[15] = 9;
        tree.update(vec![point(8, "w", 9, &[]), twin]);
        let long = ["0808080808080808080808080808", "0808"].concat();
        assert_eq!(names(&tree, w)[0], format!("1970-01-01T00-00-09Z-{long}"));
        let latest = walk(&mut tree, &["w", "latest"]).unwrap();
        assert!(tree.link(latest).unwrap().ends_with("09"), "the larger id is the newer one");
    }

    #[test]
    fn numbers_stay_and_are_never_used_again() {
        let mut tree = Tree::new();
        let (old, new) = (point(1, "w", 1, &["d"]), point(2, "w", 2, &["d"]));
        tree.update(vec![old.clone()]);
        let path = ["w", "1970-01-01T00-00-01Z", "d.raw"];
        let before: Vec<Inode> = (1..=3).map(|n| walk(&mut tree, &path[..n]).unwrap()).collect();
        tree.update(vec![new.clone(), old.clone()]);
        let after: Vec<Inode> = (1..=3).map(|n| walk(&mut tree, &path[..n]).unwrap()).collect();
        assert_eq!(before, after);
        tree.update(vec![new.clone()]);
        assert!(walk(&mut tree, &path).is_none());
        tree.update(vec![new, old]);
        assert!(!before.contains(&walk(&mut tree, &path).unwrap()), "a number was given out twice");
    }

    #[test]
    fn what_the_kernel_knows_outlives_the_listing() {
        let mut tree = Tree::new();
        tree.update(vec![point(1, "w", 1, &["d"])]);
        let folder = walk(&mut tree, &["w", "1970-01-01T00-00-01Z"]).unwrap();
        tree.remember(folder).unwrap();
        let disk = tree.lookup(folder, "d.raw").unwrap().unwrap().inode;
        tree.update(vec![]);
        assert_eq!(tree.attributes(disk).unwrap().size, 4096);
        assert_eq!(tree.disk(disk).unwrap().point.id, SnapshotId([1; 16]));
        assert!(names(&tree, folder).is_empty(), "a forgotten point is empty");
        tree.forget(disk, 1);
        tree.forget(folder, 1);
        assert!(tree.attributes(disk).is_err() && tree.attributes(folder).is_err());
        assert_eq!(tree.totals(), (1, 0), "only the root is left");
    }

    #[test]
    fn memory_is_bounded_by_the_listing() {
        let mut tree = Tree::new();
        for round in 0..50 {
            tree.update((0..20).map(|n| point(n, "w", round * 100 + u64::from(n), &["d"])).collect());
        }
        // Root, workload, latest, and 20 points with a disk each.
        assert_eq!(tree.totals(), (43, 20 * 4096));
        assert_eq!(tree.numbers.len(), 42);
    }
}
