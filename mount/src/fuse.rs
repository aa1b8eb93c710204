//! The adaptor between the kernel and [`SnapshotFilesystem`]: it translates calls, attributes and errors, nothing else.
//!
//! What holds: every call is answered exactly once; every error is reported and becomes an errno in `errno.rs`; content
//! never changes, so the kernel may keep what it has read. Directories are cached no longer than a listing may be old.

use crate::Error;
use crate::errno::errno;
use crate::filesystem::{Goal, SnapshotFilesystem};
use crate::handle::Handle;
use crate::tree::{Attributes, Inode, NodeKind};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, Request,
};
use std::ffi::OsStr;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

/// Largest read the kernel may ask for in one call, in bytes.
const MAX_READ: u32 = 1 << 20;

/// Reads ahead the kernel may have under way. More than one per thread, so that a thread never waits for the kernel.
const MAX_BACKGROUND: u16 = 64;

/// How long the kernel may keep attributes of what never changes.
const FOREVER: Duration = Duration::from_secs(24 * 3600);

/// Size of a block in `st_blocks`, whatever the file's own block size is.
const STAT_BLOCK: u64 = 512;

/// What `st_blksize` and `statfs` call a block.
const BLOCK_SIZE: u32 = 4096;

/// Longest name in bytes.
const NAME_MAX: u32 = 255;

/// Every name has one inode for good, so there is one generation.
const GENERATION: Generation = Generation(0);

/// Whom the files belong to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ownership {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Everybody may read, not only the owner.
    pub(crate) is_shared: bool,
}

/// Read buffers that wait to be used again: at most one for each thread that serves the kernel.
#[derive(Default)]
struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn give(&self, buffer: Vec<u8>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

/// What the kernel talks to.
pub(crate) struct Adaptor {
    filesystem: SnapshotFilesystem,
    ownership: Ownership,
    /// How long the kernel may keep names and directories.
    listing_ttl: Duration,
    buffers: Buffers,
}

impl Adaptor {
    pub(crate) fn new(filesystem: SnapshotFilesystem, ownership: Ownership, listing_ttl: Duration) -> Self {
        Adaptor { filesystem, ownership, listing_ttl, buffers: Buffers::default() }
    }

    /// Reports `error` and says what to tell the kernel.
    fn refuse(&self, error: &Error) -> Errno {
        self.filesystem.report(error);
        errno(error.kind())
    }

    fn file_attr(&self, attributes: &Attributes) -> FileAttr {
        let time = UNIX_EPOCH + Duration::from_secs(attributes.seconds);
        let (kind, mode, blocks) = match attributes.kind {
            NodeKind::Directory => (FileType::Directory, 0o555, 0),
            NodeKind::Link => (FileType::Symlink, 0o777, 0),
            // One block less than full: how much is allocated would take a walk over the disk map, and cp and tar look
            // for holes only where a file takes less space than its size.
            NodeKind::Disk => (FileType::RegularFile, 0o444, (attributes.size / STAT_BLOCK).saturating_sub(1)),
        };
        let is_private = !self.ownership.is_shared && attributes.kind != NodeKind::Link;
        FileAttr {
            ino: INodeNo(attributes.inode.0),
            size: attributes.size,
            blocks,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: if is_private { mode & 0o700 } else { mode },
            nlink: attributes.links,
            uid: self.ownership.uid,
            gid: self.ownership.gid,
            rdev: 0,
            blksize: BLOCK_SIZE,
            flags: 0,
        }
    }

    fn attributes_ttl(&self, kind: NodeKind) -> Duration {
        match kind {
            NodeKind::Directory | NodeKind::Link => self.listing_ttl,
            NodeKind::Disk => FOREVER,
        }
    }
}

impl fuser::Filesystem for Adaptor {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What an older kernel lacks only makes it slower.
        for wish in [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
        ] {
            let _ = config.add_capabilities(wish);
        }
        // Also bounds reads: the kernel derives the pages of one call from it.
        let refused = |nearest| io::Error::other(format!("this kernel's FUSE only takes {nearest}"));
        config.set_max_write(MAX_READ).map_err(refused)?;
        config.set_max_background(MAX_BACKGROUND).map_err(|nearest| refused(nearest.into()))?;
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        // All names of ours are UTF-8.
        let Some(name) = name.to_str() else { return reply.error(Errno::ENOENT) };
        match self.filesystem.lookup(Inode(parent.0), name) {
            Ok(Some(found)) => {
                let ttl = self.attributes_ttl(found.kind);
                reply.entry_with_ttls(&ttl, &self.listing_ttl, &self.file_attr(&found), GENERATION);
            }
            Ok(None) => reply.error(Errno::ENOENT),
            Err(e) => reply.error(self.refuse(&e)),
        }
    }

    fn forget(&self, _: &Request, inode: INodeNo, count: u64) {
        self.filesystem.forget(Inode(inode.0), count);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.filesystem.attributes(Inode(inode.0)) {
            Ok(found) => reply.attr(&self.attributes_ttl(found.kind), &self.file_attr(&found)),
            Err(e) => reply.error(self.refuse(&e)),
        }
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        match self.filesystem.read_link(Inode(inode.0)) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(e) => reply.error(self.refuse(&e)),
        }
    }

    fn open(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.filesystem.open(Inode(inode.0)) {
            Ok(handle) => {
                reply.opened(FileHandle(handle.0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
            }
            Err(e) => reply.error(self.refuse(&e)),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buffer = self.buffers.take();
        // Grown once and kept: what is beyond the read is old bytes that are never sent.
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        let (out, _) = buffer.split_at_mut(size);
        match self.filesystem.read(Handle(handle.0), offset, out) {
            Ok(length) => reply.data(out.get(..length).unwrap_or_default()),
            Err(e) => reply.error(self.refuse(&e)),
        }
        self.buffers.give(buffer);
    }

    fn lseek(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        // The kernel asks for these two and does the others itself; the numbers are part of its interface.
        let goal = match whence {
            3 => Goal::Data,
            4 => Goal::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        match self.filesystem.seek(Handle(handle.0), offset, goal) {
            Ok(Some(found)) => match i64::try_from(found) {
                Ok(found) => reply.offset(found),
                Err(_) => reply.error(Errno::EOVERFLOW),
            },
            Ok(None) => reply.error(Errno::ENXIO),
            Err(e) => reply.error(self.refuse(&e)),
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.filesystem.close(Handle(handle.0));
        reply.ok();
    }

    fn opendir(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.filesystem.open_directory(Inode(inode.0)) {
            Ok(handle) => reply.opened(FileHandle(handle.0), FopenFlags::empty()),
            Err(e) => reply.error(self.refuse(&e)),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listing = match self.filesystem.directory(Handle(handle.0)) {
            Ok(listing) => listing,
            Err(e) => return reply.error(self.refuse(&e)),
        };
        let dots =
            [(".", listing.inode), ("..", listing.parent)].map(|(name, inode)| (name, inode, NodeKind::Directory));
        let entries = listing.entries.iter().map(|e| (e.name.as_ref(), e.inode, e.kind));
        let rest = dots.into_iter().chain(entries).zip(1u64..).filter(|(_, next)| *next > offset);
        for ((name, inode, kind), next) in rest {
            if reply.add(INodeNo(inode.0), next, file_type(kind), name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let listing = match self.filesystem.directory(Handle(handle.0)) {
            Ok(listing) => listing,
            Err(e) => return reply.error(self.refuse(&e)),
        };
        let dots = [(".", listing.inode), ("..", listing.parent)];
        let rest = dots.into_iter().zip(1u64..).filter(|(_, next)| *next > offset);
        for ((name, inode), next) in rest {
            // The kernel does not count these two as lookups.
            let Ok(attributes) = self.filesystem.attributes(inode) else { continue };
            let attr = self.file_attr(&attributes);
            if reply.add(attr.ino, next, name, &self.listing_ttl, &attr, GENERATION) {
                return reply.ok();
            }
        }
        let rest = listing.entries.iter().zip(3u64..).filter(|(_, next)| *next > offset);
        for (entry, next) in rest {
            // Gone since the directory was opened, and not known to the kernel: nothing to show.
            let Some(attributes) = self.filesystem.remember(entry.inode) else { continue };
            let attr = self.file_attr(&attributes);
            if reply.add(attr.ino, next, entry.name.as_ref(), &self.listing_ttl, &attr, GENERATION) {
                self.filesystem.forget(entry.inode, 1);
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.filesystem.close_directory(Handle(handle.0));
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let totals = self.filesystem.totals();
        let blocks = totals.bytes.div_ceil(u64::from(BLOCK_SIZE));
        reply.statfs(blocks, 0, 0, totals.nodes, 0, BLOCK_SIZE, NAME_MAX, BLOCK_SIZE);
    }
}

fn file_type(kind: NodeKind) -> FileType {
    match kind {
        NodeKind::Directory => FileType::Directory,
        NodeKind::Disk => FileType::RegularFile,
        NodeKind::Link => FileType::Symlink,
    }
}
