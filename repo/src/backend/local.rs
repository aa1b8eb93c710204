//! A repository in a directory of this host: each object is a file whose path is the object's name.
//!
//! Not here: what may be in the directory (whoever creates a repository looks first), retries, quotas.
//!
//! What holds:
//! - **Atomic, create-only, durable.** An object is written as a draft, synced, and given its name in one step that never
//!   replaces anything; then its directory and every directory above it are synced, since another process may have made one of
//!   them and not synced it yet. A put that answers `Exists` syncs them too: what it saw outlives a power cut. (A mere
//!   reader may see an object an instant before it is durable.)
//! - **Nothing leads out.** Names are checked, and every path is resolved by the kernel beneath the repository's directory
//!   and without following a symbolic link (`openat2`, Linux 5.6). The repository's own path may be a link.
//! - Objects are regular files. A directory in an object's place is no object; anything else there is `Corrupt`.
//! - Directories that become empty go with their last object; a put that loses its directory that way makes it again.
//! - [`Backend::get_range`] reads through a bounded number of kept open files. An object that *another* process deletes may
//!   therefore be read a while longer, through `get_range` only; one deleted through this value may not.
//! - `tmp/` holds drafts on file systems without `O_TMPFILE`; [`Local::sweep_temporaries`] clears what killed writers left.
//!
//! Network file systems count as weak: attribute caches delay what another host lists and sees, and locks may be local to a
//! host. One host at a time is safe there, as far as the server keeps what it was told to sync.

mod direct;
mod draft;
mod file_system;
mod handles;

use super::{Backend, Listed, Put, RESERVED_PART, check_name, check_prefix};
use crate::error::{Error, Kind, Result};
use crate::store_class::StoreClass;
use draft::Draft;
use handles::{Handles, Object};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, retry_on_intr};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

/// How often a put makes its directory again when others keep removing it.
const ATTEMPTS: usize = 16;
const DIRECTORY_MODE: Mode = Mode::RWXU;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// A directory of objects. The contract is the [module's](super).
pub struct Local {
    root: OwnedFd,
    path: PathBuf,
    handles: Handles,
}

/// The directory an object goes into and those above it, the repository's own first.
struct Chain {
    above: Vec<OwnedFd>,
    directory: OwnedFd,
}

impl Local {
    /// Opens the directory `path`, creating it (only for its owner) if it does not exist. The directory above it must exist,
    /// so that a mistyped or unmounted place is not silently filled.
    pub fn create(path: &Path) -> Result<Local> {
        let failed = |e| Error::io(format!("creating the directory {}", path.display()), e);
        match std::fs::DirBuilder::new().mode(DIRECTORY_MODE.bits()).create(path) {
            Ok(()) => {
                let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let above = File::open(above).map_err(failed)?;
                sync_directory(&above).map_err(|e| failed(e.into()))?;
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed(e)),
        }
        Local::open(path)
    }

    /// Opens the directory `path`; nothing is written. `NotFound`: it does not exist. `Invalid`: it is no directory.
    pub fn open(path: &Path) -> Result<Local> {
        match rustix::fs::open(path, DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(root) => Ok(Local { root, path: path.to_owned(), handles: Handles::default() }),
            Err(Errno::NOTDIR) => Err(Error::invalid(format!("{} is not a directory", path.display()))),
            Err(e) => Err(Error::io(format!("opening the directory {}", path.display()), e.into())),
        }
    }

    /// Removes the unfinished files that dead writers left and returns their number. Those of living writers stay. Where the
    /// file system has no locks it fails and removes nothing.
    pub fn sweep_temporaries(&self) -> Result<u64> {
        match self.open_directory(RESERVED_PART) {
            Ok(temporaries) => draft::sweep(&temporaries).map_err(|e| self.error("sweeping", RESERVED_PART, e)),
            Err(Errno::NOENT) => Ok(0),
            Err(e) => Err(self.error("sweeping", RESERVED_PART, e)),
        }
    }

    /// Opens the directory of that name; empty: the repository's own.
    fn open_directory(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        open_beneath(&self.root, if name.is_empty() { "." } else { name }, DIRECTORY)
    }

    fn open_object(&self, name: &str) -> Result<Object> {
        let opened = open_beneath(&self.root, name, OFlags::RDONLY).map_err(|e| match e {
            Errno::NOTDIR => self.error("opening", name, Errno::NOENT),
            e => self.error("opening", name, e),
        })?;
        let stat = rustix::fs::fstat(&opened).map_err(|e| self.error("opening", name, e))?;
        let len = self.object_len(name, &stat)?.ok_or_else(|| self.error("opening", name, Errno::NOENT))?;
        Ok(Object { file: opened.into(), len })
    }

    /// An object's length by its file's attributes; `None`: it is a directory, so there is no such object.
    fn object_len(&self, name: &str, stat: &rustix::fs::Stat) -> Result<Option<u64>> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => u64::try_from(stat.st_size)
                .map(Some)
                .map_err(|_| Error::internal(format!("'{name}' in {} has a negative length", self.path.display()))),
            FileType::Directory => Ok(None),
            other => Err(Error::corrupt(format!(
                "'{name}' in {} is a {other:?}, which no object ever is: somebody put it there",
                self.path.display()
            ))),
        }
    }

    /// Opens the directories on the way to `parent` (empty: the repository's own), making those that are missing. `NOENT`: one
    /// was removed meanwhile.
    fn make_directories(&self, parent: &str) -> rustix::io::Result<Chain> {
        let mut chain = Chain { above: Vec::new(), directory: self.open_directory("")? };
        for part in parent.split('/').filter(|part| !part.is_empty()) {
            let below = make_directory(&chain.directory, part)?;
            chain.above.push(std::mem::replace(&mut chain.directory, below));
        }
        Ok(chain)
    }

    /// Sees that it is an object that has the name, and not a directory: then no object exists, and none can.
    fn check_taken(&self, chain: &Chain, name: &str, leaf: &str) -> Result<()> {
        match rustix::fs::statat(&chain.directory, leaf, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => match self.object_len(name, &stat)? {
                Some(_) => Ok(()),
                None => Err(Error::invalid(format!("'{name}' in {}: objects below it exist", self.path.display()))),
            },
            Err(Errno::NOENT) => Ok(()), // it did exist, and was deleted since
            Err(e) => Err(self.error("looking at", name, e)),
        }
    }

    /// An operating-system error while `doing` something with `name`.
    fn error(&self, doing: &str, name: &str, e: impl Into<io::Error>) -> Error {
        let e: io::Error = e.into();
        let errno = Errno::from_io_error(&e);
        let error = Error::io(format!("{doing} '{name}' in {}", self.path.display()), e);
        match errno {
            Some(Errno::LOOP) => error.with_kind(Kind::Corrupt).within("a symbolic link lies in a repository"),
            Some(Errno::NOTDIR) => error.with_kind(Kind::Invalid).within("a file lies where a folder is due"),
            _ if error.kind() == Kind::Full => error.within("the store is full, make room there and try again"),
            _ => error,
        }
    }

    fn read_error(&self, name: &str, offset: u64, e: io::Error) -> Error {
        if e.kind() == io::ErrorKind::UnexpectedEof {
            return Error::corrupt(format!("'{name}' in {} ended early, after offset {offset}", self.path.display()));
        }
        let is_worn_out = e.raw_os_error() == Some(Errno::IO.raw_os_error());
        let error = self.error(&format!("reading at offset {offset} of"), name, e);
        if is_worn_out { error.with_kind(Kind::Corrupt).within("the disk beneath cannot read it") } else { error }
    }
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Local({})", self.path.display())
    }
}

impl Backend for Local {
    fn location(&self) -> String {
        self.path.display().to_string()
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<Put> {
        check_name(name)?;
        let (parent, leaf) = split(name);
        let temporaries =
            make_directory(&self.root, RESERVED_PART).map_err(|e| self.error("opening", RESERVED_PART, e))?;
        let mut draft = Draft::new(temporaries).map_err(|e| self.error("creating", name, e))?;
        draft.write(parts).map_err(|e| self.error("writing", name, e))?;
        for _ in 0..ATTEMPTS {
            let published =
                self.make_directories(parent).and_then(|chain| Ok((draft.publish(&chain.directory, leaf)?, chain)));
            let (put, chain) = match published {
                Ok(published) => published,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(self.error("naming", name, e)),
            };
            if put == Put::Exists {
                self.check_taken(&chain, name, leaf)?;
            }
            chain.sync().map_err(|e| self.error("syncing the directory of", name, e))?;
            return Ok(put);
        }
        Err(self.error("naming", name, Errno::AGAIN).within("the directory keeps being removed"))
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        check_name(name)?;
        let object = self.open_object(name)?;
        let expected = usize::try_from(object.len).map_err(|e| self.error("reading", name, io::Error::other(e)))?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(expected).map_err(|e| self.error("reading", name, io::Error::other(e)))?;
        object.file.take(object.len).read_to_end(&mut bytes).map_err(|e| self.read_error(name, 0, e))?;
        if bytes.len() == expected {
            Ok(bytes)
        } else {
            Err(self.read_error(name, 0, io::ErrorKind::UnexpectedEof.into()))
        }
    }

    fn get_range(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        check_name(name)?;
        let object = self.handles.get_or_open(name, || self.open_object(name))?;
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > object.len) {
            return Err(Error::corrupt(format!(
                "'{name}' in {} has {} bytes; {} at offset {offset} are due",
                self.path.display(),
                object.len,
                out.len()
            )));
        }
        object.file.read_exact_at(out, offset).map_err(|e| {
            // The next attempt opens it anew: a network file system may have lost track of this file.
            self.handles.forget(name);
            self.read_error(name, offset, e)
        })
    }

    fn get_suffix(&self, name: &str, max: usize) -> Result<(Vec<u8>, u64)> {
        check_name(name)?;
        let object = self.open_object(name)?;
        let mut bytes = vec![0; usize::try_from(object.len).map_or(max, |len| len.min(max))];
        let offset = object.len - bytes.len() as u64;
        object.file.read_exact_at(&mut bytes, offset).map_err(|e| self.read_error(name, offset, e))?;
        Ok((bytes, object.len))
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        check_name(name)?;
        let (parent, leaf) = split(name);
        let stat = self.open_directory(parent).and_then(|at| rustix::fs::statat(at, leaf, AtFlags::SYMLINK_NOFOLLOW));
        match stat {
            Ok(stat) => self.object_len(name, &stat),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(self.error("looking at", name, e)),
        }
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        check_prefix(prefix)?;
        let failed = |name: &str, e: Errno| self.error("listing", name, e);
        let top = match self.open_directory(prefix.strip_suffix('/').unwrap_or_default()) {
            Ok(top) => top,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(e) => return Err(failed(prefix, e)),
        };
        // Depth first, so that what is kept open is bounded by the depth of names and not by their number.
        let mut walk = vec![(prefix.to_owned(), Dir::new(top).map_err(|e| failed(prefix, e))?)];
        while let Some((at, directory)) = walk.last_mut() {
            let Some(entry) = directory.read() else {
                walk.pop();
                continue;
            };
            let entry = entry.map_err(|e| failed(at, e))?;
            let Ok(leaf) = entry.file_name().to_str() else { continue };
            let name = format!("{at}{leaf}");
            if check_name(&name).is_err() {
                continue; // `.`, `..`, `tmp` and what is not ours
            }
            let directory = directory.fd().map_err(|e| failed(at, e))?;
            let stat = match rustix::fs::statat(directory, leaf, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue, // deleted meanwhile
                Err(e) => return Err(failed(&name, e)),
            };
            if let Some(size) = self.object_len(&name, &stat)? {
                each(Listed { name, size })?;
                continue;
            }
            match open_beneath(directory, leaf, DIRECTORY).and_then(Dir::new) {
                Ok(below) => walk.push((name + "/", below)),
                Err(Errno::NOENT) => {} // removed meanwhile, so empty
                Err(e) => return Err(failed(&name, e)),
            }
        }
        Ok(())
    }

    fn delete(&self, name: &str) -> Result<()> {
        check_name(name)?;
        let failed = |e: Errno| self.error("deleting", name, e);
        let (mut directory, leaf) = split(name);
        match self.open_directory(directory).and_then(|at| rustix::fs::unlinkat(at, leaf, AtFlags::empty())) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::ISDIR) => {}
            Err(e) => return Err(failed(e)),
        }
        self.handles.forget(name);
        // Upwards past the directories that are empty now, or gone (another may have removed them and not synced it), to the
        // lowest that stays: syncing it makes the whole removal durable.
        loop {
            let (above, part) = split(directory);
            if !directory.is_empty() {
                let removed =
                    self.open_directory(above).and_then(|at| rustix::fs::unlinkat(at, part, AtFlags::REMOVEDIR));
                if matches!(removed, Ok(()) | Err(Errno::NOENT | Errno::NOTDIR)) {
                    directory = above;
                    continue;
                }
            }
            match self.open_directory(directory).and_then(sync_directory) {
                Err(Errno::NOENT) if !directory.is_empty() => directory = above,
                synced => return synced.map_err(failed),
            }
        }
    }

    fn weakness(&self) -> Option<(StoreClass, String)> {
        // Who cannot be asked is no worse for that: a probe goes on trying.
        let kind = file_system::network(&rustix::fs::fstatfs(&self.root).ok()?)?;
        let why = format!(
            "{} lies on {kind}, a network file system: what another host put, deleted or locked may show late",
            self.path.display()
        );
        Some((StoreClass::Lagging, why))
    }
}

impl Chain {
    /// Makes the names in all of its directories durable, the lowest first.
    fn sync(&self) -> rustix::io::Result<()> {
        std::iter::once(&self.directory).chain(self.above.iter().rev()).try_for_each(sync_directory)
    }
}

/// The part before the last `/`, empty if there is none, and the part after it.
fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('/').unwrap_or(("", name))
}

/// Opens `name` without leaving `directory`; a symbolic link on the way or at its end is `LOOP` (with `O_NOFOLLOW` too, one at
/// the end would pass for `NOTDIR`, and so for nothing). Never waits for the other end of a pipe.
fn open_beneath(directory: impl AsFd, name: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
    retry_on_intr(|| rustix::fs::openat2(&directory, name, flags, Mode::empty(), resolve))
}

/// Opens the directory `part` of `directory`, making it if it is missing.
fn make_directory(directory: &OwnedFd, part: &str) -> rustix::io::Result<OwnedFd> {
    match open_beneath(directory, part, DIRECTORY) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    match rustix::fs::mkdirat(directory, part, DIRECTORY_MODE) {
        Ok(()) | Err(Errno::EXIST) => open_beneath(directory, part, DIRECTORY),
        Err(e) => Err(e),
    }
}

fn sync_directory(directory: impl AsFd) -> rustix::io::Result<()> {
    match retry_on_intr(|| rustix::fs::fsync(&directory)) {
        // A file system that has nothing to sync for a directory (CIFS, some in user space) says so in this way.
        Err(Errno::INVAL) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::list_sorted;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;
    use tempfile::TempDir;

    fn store() -> (TempDir, Local) {
        let folder = tempfile::tempdir().unwrap();
        let local = Local::create(&folder.path().join("repository")).unwrap();
        (folder, local)
    }

    fn create(local: &Local, name: &str, content: &[u8]) {
        assert_eq!(local.put(name, &[content]).unwrap(), Put::Created);
    }

    fn listed(local: &Local) -> Vec<String> {
        list_sorted(local, "").unwrap().into_iter().map(|o| o.name).collect()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    /// A file system of one mebibyte, mounted for as long as this lives.
    struct SmallDisk(TempDir);

    impl SmallDisk {
        fn mount() -> SmallDisk {
            let disk = SmallDisk(tempfile::tempdir().unwrap());
            let mounted =
                Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(disk.0.path()).output();
            let mounted = mounted.expect("this test needs the command mount");
            let why = String::from_utf8_lossy(&mounted.stderr);
            assert!(mounted.status.success(), "this test mounts a tmpfs, so it needs root: {why}");
            disk
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            let unmounted = Command::new("umount").arg(self.0.path()).status();
            assert!(
                unmounted.is_ok_and(|status| status.success()) || std::thread::panicking(),
                "unmounting the small disk"
            );
        }
    }

    #[test]
    fn a_full_disk_is_said_to_be_full_and_holds_no_part_of_the_object() {
        let disk = SmallDisk::mount();
        let local = Local::create(&disk.0.path().join("repository")).unwrap();
        create(&local, "packs/00/before", &[1; 1000]);
        let error = local.put("packs/00/large", &[&[2; 600 << 10], &[3; 600 << 10]]).unwrap_err();
        assert_eq!(error.kind(), Kind::Full);
        assert!(error.context().contains(&local.location()), "{error}");
        assert_eq!(local.size("packs/00/large").unwrap(), None);
        assert_eq!(listed(&local), ["packs/00/before"]);
        create(&local, "packs/00/large", &[4; 600 << 10]); // the space was given back
    }

    #[test]
    fn temporaries_and_foreign_files_are_never_listed_or_read() {
        let (_folder, local) = store();
        create(&local, "packs/ab/one", b"1");
        for foreign in ["tmp/1-2", "packs/not an object", "packs/ab/#half"] {
            fs::write(local.path.join(foreign), "foreign").unwrap();
        }
        assert_eq!(listed(&local), ["packs/ab/one"]);
        assert_eq!(local.get("tmp/1-2").unwrap_err().kind(), Kind::Invalid);
        assert_eq!(local.sweep_temporaries().unwrap(), 1);
        assert!(!local.path.join("tmp/1-2").exists());
    }

    #[test]
    fn a_repository_without_temporaries_is_swept_in_vain() {
        let (_folder, local) = store();
        assert_eq!(local.sweep_temporaries().unwrap(), 0);
    }

    #[test]
    fn only_the_owner_may_look_and_nobody_may_write() {
        let (_folder, local) = store();
        create(&local, "packs/ab/one", b"1");
        for directory in ["", "tmp", "packs", "packs/ab"] {
            assert_eq!(mode(&local.path.join(directory)), 0o700, "{directory}");
        }
        assert_eq!(mode(&local.path.join("packs/ab/one")), 0o400);
    }

    #[test]
    fn no_symbolic_link_is_followed() {
        let (folder, local) = store();
        let outside = folder.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        symlink(&outside, local.path.join("packs")).unwrap();
        symlink(outside.join("secret"), local.path.join("repo")).unwrap();
        for name in ["packs/secret", "repo"] {
            assert_eq!(local.get(name).unwrap_err().kind(), Kind::Corrupt, "{name}");
            assert_eq!(local.get_range(name, 0, &mut [0]).unwrap_err().kind(), Kind::Corrupt, "{name}");
            assert_eq!(local.get_suffix(name, 1).unwrap_err().kind(), Kind::Corrupt, "{name}");
            assert_eq!(local.size(name).unwrap_err().kind(), Kind::Corrupt, "{name}");
            assert_eq!(local.put(name, &[b"x"]).unwrap_err().kind(), Kind::Corrupt, "{name}");
        }
        assert_eq!(local.put("packs/new", &[b"x"]).unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(local.delete("packs/secret").unwrap_err().kind(), Kind::Corrupt);
        for prefix in ["", "packs/"] {
            assert_eq!(list_sorted(&local, prefix).unwrap_err().kind(), Kind::Corrupt, "{prefix}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
    }

    #[test]
    fn a_pipe_in_an_objects_place_is_refused_without_waiting_for_it() {
        let (_folder, local) = store();
        rustix::fs::mknodat(&local.root, "repo", FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert_eq!(local.get("repo").unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(local.size("repo").unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn an_object_and_a_folder_do_not_share_a_name() {
        let (_folder, local) = store();
        create(&local, "a/b", b"1");
        create(&local, "c", b"2");
        assert_eq!(local.put("a", &[b"x"]).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(local.put("c/d", &[b"x"]).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(local.get("a").unwrap_err().kind(), Kind::NotFound);
        assert_eq!(local.get("c/d").unwrap_err().kind(), Kind::NotFound);
        assert_eq!((local.size("a").unwrap(), local.size("c/d").unwrap()), (None, None));
        local.delete("a").unwrap();
        local.delete("c/d").unwrap();
        assert_eq!(listed(&local), ["a/b", "c"]);
    }

    #[test]
    fn an_object_cut_short_behind_our_back_is_corrupt() {
        let (_folder, local) = store();
        create(&local, "a", &[7; 100]);
        let mut out = [0; 10];
        local.get_range("a", 90, &mut out).unwrap();
        let path = local.path.join("a");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(95).unwrap();
        for _ in 0..2 {
            assert_eq!(local.get_range("a", 90, &mut out).unwrap_err().kind(), Kind::Corrupt);
        }
        local.get_range("a", 85, &mut out).unwrap();
    }

    #[test]
    fn a_sector_that_the_disk_gave_up_on_is_damage_and_other_troubles_may_pass() {
        let (_folder, local) = store();
        let kind = |errno: Errno| local.read_error("a", 90, errno.into()).kind();
        assert_eq!((kind(Errno::IO), kind(Errno::NFILE)), (Kind::Corrupt, Kind::Unavailable));
    }

    #[test]
    fn a_deleted_object_is_not_read_through_a_kept_file() {
        let (_folder, local) = store();
        create(&local, "a", b"old");
        let mut out = [0; 3];
        local.get_range("a", 0, &mut out).unwrap();
        local.delete("a").unwrap();
        assert_eq!(local.get_range("a", 0, &mut out).unwrap_err().kind(), Kind::NotFound);
        create(&local, "a", b"new");
        local.get_range("a", 0, &mut out).unwrap();
        assert_eq!(&out, b"new");
    }

    #[test]
    fn empty_folders_go_with_their_last_object() {
        let (_folder, local) = store();
        create(&local, "snapshots/t/1/claim", b"1");
        create(&local, "snapshots/t/2/claim", b"2");
        local.delete("snapshots/t/1/claim").unwrap();
        assert!(!local.path.join("snapshots/t/1").exists());
        local.delete("snapshots/t/2/claim").unwrap();
        assert!(!local.path.join("snapshots").exists());
    }

    #[test]
    fn a_put_survives_that_its_folder_is_removed_under_it() {
        let (_folder, local) = store();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let local = &local;
                scope.spawn(move || {
                    for _ in 0..200 {
                        let name = format!("moved/u/{thread}");
                        create(local, &name, b"x");
                        assert_eq!(local.get(&name).unwrap(), b"x");
                        local.delete(&name).unwrap();
                    }
                });
            }
        });
        assert!(listed(&local).is_empty());
    }

    #[test]
    fn the_directory_is_made_only_where_its_place_exists() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        assert_eq!(Local::open(&missing).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(Local::create(&missing.join("repository")).unwrap_err().kind(), Kind::NotFound);
        assert!(!missing.exists());
        fs::write(&missing, "a file").unwrap();
        for opened in [Local::open(&missing), Local::create(&missing)] {
            assert_eq!(opened.unwrap_err().kind(), Kind::Invalid);
        }
        create(&Local::create(folder.path()).unwrap(), "a", b"1");
        assert_eq!(Local::open(folder.path()).unwrap().get("a").unwrap(), b"1");
    }
}
