//! Fetches disk-map nodes from tree packs, and keeps the decoded ones.
//!
//! Not here: chunks, building maps, and where else a node may lie ([`crate::detour`]). What holds: a node is decrypted, id-checked
//! and decoded before anybody sees it; a node of the wrong level is `Corrupt`; the cache has a byte budget. No lock is held while a node is fetched, so that two threads
//! may fetch one node at the same time: nodes are small and few.

use crate::cache::Weighed;
use crate::detour::{Detours, Remedy};
use crate::disk_map::{Child, Geometry, Leaf, NODE_MAX, Node, identity};
use crate::error::{Error, Kind, Result};
use crate::id::{NodeId, PackUid};
use crate::location::{Location, PackKind, Stored};
use crate::pack::OpenPack;
use crate::repository::Repository;
use crate::seal::Decompressor;
use crate::snapshot::Disk;
use crate::tree::Placed;
use quick_cache::sync::Cache;
use std::sync::{Arc, Mutex};

/// How many tree packs' keys are kept, of packs that are not sealed with the repository's cipher.
const OPEN_PACKS: usize = 256;

/// Where nodes come from.
pub(crate) struct Nodes {
    repo: Arc<Repository>,
    /// By id and place: hints are outside the id, and what is built on a copy relies on that copy's.
    cache: Cache<Copied, Arc<Node>, Weighed>,
    /// Those whose header was read.
    packs: Cache<PackUid, Arc<OpenPack>>,
    decompressor: Mutex<Decompressor>,
    detours: Arc<Detours>,
}

/// A copy of a node: its id, its pack, its offset there.
type Copied = (NodeId, PackUid, u32);

fn copied(child: &Child) -> Copied {
    (child.id, child.hint.pack, child.hint.offset)
}

/// The root of a disk, decoded.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    geometry: Geometry,
    node: Option<Arc<Node>>,
}

/// Gets the node that a child names and that has this level, or says that it may not fetch it.
type Get<'a> = dyn Fn(&Child, u8) -> Result<Option<Arc<Node>>> + 'a;

/// A leaf that was looked up.
pub(crate) struct Found {
    pub(crate) node: Arc<Node>,
    /// Where its bytes lie; `None` for a leaf that is the root and lies in the claim.
    pub(crate) stored: Option<Placed>,
}

impl Found {
    pub(crate) fn leaf(&self) -> Result<&Leaf> {
        match &*self.node {
            Node::Leaf(leaf) => Ok(leaf),
            Node::Inner(_) => Err(Error::internal("a leaf turned out to be an inner node")),
        }
    }
}

impl Root {
    /// The root of nothing: every window is zero.
    pub(crate) fn zero(geometry: Geometry) -> Self {
        Root { geometry, node: None }
    }

    /// The node; `None` when every window is zero.
    pub(crate) fn node(&self) -> Option<&Arc<Node>> {
        self.node.as_ref()
    }

    /// Decodes the root in a claim.
    pub(crate) fn of(disk: &Disk, geometry: Geometry) -> Result<Self> {
        if disk.root.is_empty() {
            return Ok(Root::zero(geometry));
        }
        let node = Node::decode(&disk.root, geometry.window)?;
        if node.level() != geometry.root_level(disk.size) {
            return Err(Error::corrupt(format!(
                "the root of disk '{}' has level {}, but {} bytes need level {}",
                disk.name,
                node.level(),
                disk.size,
                geometry.root_level(disk.size)
            )));
        }
        Ok(Root { geometry, node: Some(Arc::new(node)) })
    }
}

impl Nodes {
    /// Keeps at most about `cache_bytes` of decoded nodes.
    pub(crate) fn new(repo: Arc<Repository>, cache_bytes: u64) -> Result<Self> {
        Ok(Nodes {
            detours: Arc::new(Detours::new(Arc::clone(&repo))?),
            repo,
            cache: crate::cache::weighed(cache_bytes, 4096)?,
            packs: Cache::new(OPEN_PACKS),
            decompressor: Mutex::new(Decompressor::new()?),
        })
    }

    /// The leaf of `window`, `None` when it is zero.
    pub(crate) fn leaf(&self, root: &Root, window: u64) -> Result<Option<Found>> {
        self.walk(root, window, &|child, level| self.node(child, level).map(Some))
    }

    /// As [`Nodes::leaf`] from memory only. `Ok(None)`: a node on the way would have to be fetched.
    pub(crate) fn cached_leaf(&self, root: &Root, window: u64) -> Result<Option<Option<Found>>> {
        let missed = std::cell::Cell::new(false);
        let found = self.walk(root, window, &|child, _| {
            let node = self.cache.get(&copied(child));
            missed.set(node.is_none());
            Ok(node)
        })?;
        Ok((!missed.get()).then_some(found))
    }

    fn walk(&self, root: &Root, window: u64, get: &Get<'_>) -> Result<Option<Found>> {
        let Some(mut node) = root.node.clone() else { return Ok(None) };
        if root.geometry.windows_of_level(node.level()) <= window {
            return Ok(None);
        }
        let mut stored = None;
        loop {
            let child = match &*node {
                Node::Leaf(_) => return Ok(Some(Found { node, stored })),
                Node::Inner(inner) => match inner.child(root.geometry.slot(window, inner.level)) {
                    Some(child) => *child,
                    None => return Ok(None),
                },
            };
            let Some(next) = get(&child, node.level() - 1)? else { return Ok(None) };
            stored = Some(Placed { id: child.id, at: child.hint });
            node = next;
        }
    }

    /// The first window at or after `from` that is not zero, looking at no more nodes than lie on the way.
    pub(crate) fn next_window(&self, root: &Root, from: u64) -> Result<Option<u64>> {
        match &root.node {
            Some(node) => self.next_in(root.geometry, node, 0, from),
            None => Ok(None),
        }
    }

    /// `base` is the first window that `node` covers.
    fn next_in(&self, geometry: Geometry, node: &Node, base: u64, from: u64) -> Result<Option<u64>> {
        let inner = match node {
            Node::Leaf(_) => return Ok((from <= base).then_some(base)),
            Node::Inner(inner) => inner,
        };
        let each = geometry.windows_of_level(inner.level - 1);
        for child in &inner.children {
            let start = base.saturating_add(u64::from(child.slot).saturating_mul(each));
            if start.saturating_add(each) <= from {
                continue;
            }
            // A node is never empty, so that one which lies wholly at or after `from` answers; only the first may not.
            if inner.level == 1 {
                return Ok(Some(start));
            }
            let node = self.node(child, inner.level - 1)?;
            if let Some(found) = self.next_in(geometry, &node, start, from)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Where else nodes and chunks may lie, to be shared with whoever reads the chunks.
    pub(crate) fn detours(&self) -> &Arc<Detours> {
        &self.detours
    }

    /// The node that `child` names, which must have `level`: from memory, from where `child` says it lies, or from where it lies
    /// as well.
    pub(crate) fn node(&self, child: &Child, level: u8) -> Result<Arc<Node>> {
        self.cached(child, || self.read(child, level))
    }

    /// As [`Nodes::node`] from memory or from where `child` says it lies and nowhere else: for whoever is going to rely on that
    /// place.
    pub(crate) fn node_there(&self, child: &Child, level: u8) -> Result<Arc<Node>> {
        self.cached(child, || self.read_there(child, level))
    }

    fn cached(&self, child: &Child, read: impl FnOnce() -> Result<Node>) -> Result<Arc<Node>> {
        if let Some(node) = self.cache.get(&copied(child)) {
            return Ok(node);
        }
        let node = Arc::new(read()?);
        self.cache.insert(copied(child), Arc::clone(&node));
        Ok(node)
    }

    /// As [`Nodes::node`], never from memory.
    pub(crate) fn read(&self, child: &Child, level: u8) -> Result<Node> {
        self.read_there(child, level).or_else(|e| self.read_instead(child, level, e).map(|(node, _)| node))
    }

    /// The node from elsewhere, since where `child` says it lies it failed with `e`, and what helped.
    pub(crate) fn read_instead(&self, child: &Child, level: u8, e: Error) -> Result<(Node, Remedy)> {
        let open = &mut |pack: &OpenPack, at: &Location, sealed: &mut [u8]| self.open(pack, at, sealed, child, level);
        self.detours.instead(&Stored::Node(child.id), &child.hint, e, open)
    }

    /// As [`Nodes::read`], from where `child` says the node lies and nowhere else.
    pub(crate) fn read_there(&self, child: &Child, level: u8) -> Result<Node> {
        let at = &child.hint;
        let name = crate::pack::name(PackKind::Tree, at.pack);
        let read = || -> Result<Node> {
            if at.raw_len > NODE_MAX || at.stored_len > NODE_MAX + 16 {
                return Err(Error::corrupt(format!("a node of {} bytes", at.raw_len)));
            }
            let fetch = || -> Result<Vec<u8>> {
                let mut sealed = vec![0; at.stored_len as usize];
                self.repo.backend().get_range(&name, u64::from(at.offset), &mut sealed)?;
                Ok(sealed)
            };
            let aead = self.repo.descriptor().aead;
            if let Some(pack) = self.packs.get(&at.pack) {
                return self.open(&pack, at, &mut fetch()?, child, level);
            }
            // Without a look at the header: the node's id, which its parent or the signed claim has, vouches for it.
            let unseen = OpenPack::unseen_tree(self.repo.keys(), at.pack, aead)?;
            let e = match self.open(&unseen, at, &mut fetch()?, child, level) {
                Ok(node) => return Ok(node),
                Err(e) => e,
            };
            // Sealed with another cipher, perhaps, which the header would say.
            let header = self.repo.pack_header(PackKind::Tree, at.pack)?;
            if header.aead == aead {
                return Err(e);
            }
            let pack = Arc::new(header.open(self.repo.keys())?);
            self.packs.insert(at.pack, Arc::clone(&pack));
            self.open(&pack, at, &mut fetch()?, child, level)
        };
        let believed = self.repo.believing(&name, u64::from(at.offset), u64::from(at.stored_len), read);
        believed.map_err(|e| missing_is_corrupt(e).within(format_args!("{name} at offset {}", at.offset)))
    }

    /// The node in the frame `sealed`, which lies at `at`, if it is the one that `child` names.
    fn open(&self, pack: &OpenPack, at: &Location, sealed: &mut [u8], child: &Child, level: u8) -> Result<Node> {
        let (codec, bytes) = pack.open_frame(at, sealed)?;
        let mut raw = Vec::new();
        self.decompressor
            .lock()
            .map_err(|_| Error::internal("a thread died while decompressing a node"))?
            .decompress(codec, bytes, at.raw_len, &mut raw)?;
        if self.repo.keys().id_key().node_id(identity(&raw)?) != child.id {
            return Err(Error::corrupt(format!("the bytes are not those of node {}", child.id)));
        }
        let node = Node::decode(&raw, self.repo.geometry().window)?;
        if node.level() != level {
            return Err(Error::corrupt(format!("node {} has level {} where {level} is due", child.id, node.level())));
        }
        Ok(node)
    }
}

/// An object that a committed snapshot needs and that is not there is damage, not a question answered with no.
pub(crate) fn missing_is_corrupt(e: Error) -> Error {
    if e.kind() == Kind::NotFound { e.with_kind(Kind::Corrupt) } else { e }
}
