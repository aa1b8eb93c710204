//! A file that is being written and is not yet an object.
//!
//! Not here: directories and their syncing. What holds: a draft becomes an object in one step, complete and synced, and never
//! replaces anything; one that is dropped before leaves nothing. Where the file system has `O_TMPFILE` a draft has no name
//! until then, so that not even a killed process leaves anything; elsewhere it has a random name in the temporaries'
//! directory and its writer holds a `flock` on it, so that [`sweep`] can tell what a dead writer left.
//!
//! Safety does not rest on the lock: a sweeper that wrongly removes a living draft makes its publishing fail, no more.

use super::direct;
use crate::backend::Put;
use crate::entropy::{self, System};
use crate::error::Error;
use rustix::fs::{AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// See the file's header.
pub(super) struct Draft {
    file: File,
    temporaries: OwnedFd,
    /// The name in `temporaries`; `None`: it has none.
    name: Option<String>,
}

impl Draft {
    /// An empty draft on the file system of the directory `temporaries`.
    pub(super) fn new(temporaries: OwnedFd) -> io::Result<Draft> {
        // Read-only for everybody: objects never change.
        let mode = Mode::RUSR;
        match rustix::fs::openat(&temporaries, ".", OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, mode) {
            Ok(file) if rustix::fs::stat(descriptor_path(&file)).is_ok() => {
                Ok(Draft { file: file.into(), temporaries, name: None })
            }
            // No /proc, through which alone an unprivileged process gives such a file a name; or no O_TMPFILE.
            Ok(_) | Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Draft::named(temporaries),
            Err(e) => Err(e.into()),
        }
    }

    /// As [`Draft::new`] on a file system without `O_TMPFILE`.
    fn named(temporaries: OwnedFd) -> io::Result<Draft> {
        loop {
            let random = u64::from_le_bytes(entropy::fresh(&System).map_err(|e: Error| io::Error::other(e))?);
            let name = format!("{}-{random:016x}", std::process::id());
            // Writable, since NFS grants its owner's sweeper an exclusive lock only on a file opened for writing.
            let mode = Mode::RUSR | Mode::WUSR;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = match rustix::fs::openat(&temporaries, name.as_str(), flags, mode) {
                Ok(file) => File::from(file),
                Err(Errno::EXIST) => continue,
                Err(e) => return Err(e.into()),
            };
            // Where locks do not work the sweeper has none either, and leaves the file alone.
            let _ = rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive));
            // A sweeper may have had the lock first.
            if rustix::fs::fstat(&file)?.st_nlink > 0 {
                return Ok(Draft { file, temporaries, name: Some(name) });
            }
        }
    }

    /// Writes `parts` end to end and syncs them.
    pub(super) fn write(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        if parts.iter().map(|part| part.len()).sum::<usize>() >= direct::DIRECT_FROM {
            direct::write(&self.file, parts)?;
            return self.file.sync_all();
        }
        let mut left: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut left = left.as_mut_slice();
        IoSlice::advance_slices(&mut left, 0); // leaves out empty parts at the front
        while !left.is_empty() {
            match self.file.write_vectored(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut left, written),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.file.sync_all()
    }

    /// Gives the draft the name `leaf` in `dir` unless that is taken. Does not sync `dir`. `NOENT` means that `dir` itself was
    /// removed meanwhile (or a named draft was swept).
    pub(super) fn publish(&self, dir: &OwnedFd, leaf: &str) -> rustix::io::Result<Put> {
        let published = match &self.name {
            None => rustix::fs::linkat(CWD, descriptor_path(&self.file), dir, leaf, AtFlags::SYMLINK_FOLLOW),
            Some(name) => match rustix::fs::linkat(&self.temporaries, name.as_str(), dir, leaf, AtFlags::empty()) {
                // NFS may send again what was done already; the second name of the draft tells.
                Err(Errno::EXIST) if rustix::fs::fstat(&self.file)?.st_nlink > 1 => Ok(()),
                // A file system without hard links.
                Err(Errno::PERM | Errno::OPNOTSUPP) => self.rename(name, dir, leaf),
                other => other,
            },
        };
        match published {
            Ok(()) => Ok(Put::Created),
            Err(Errno::EXIST) => Ok(Put::Exists),
            Err(e) => Err(e),
        }
    }

    fn rename(&self, name: &str, dir: &OwnedFd, leaf: &str) -> rustix::io::Result<()> {
        rustix::fs::renameat_with(&self.temporaries, name, dir, leaf, RenameFlags::NOREPLACE)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // Best effort, and after a rename there is nothing: the sweeper takes what stays.
            let _ = rustix::fs::unlinkat(&self.temporaries, name.as_str(), AtFlags::empty());
        }
    }
}

/// Removes the drafts in `temporaries` whose writers are dead, and says how many.
pub(super) fn sweep(temporaries: &OwnedFd) -> rustix::io::Result<u64> {
    let mut removed = 0;
    for entry in Dir::read_from(temporaries)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(temporaries, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => continue, // its writer lives
            Err(e) => return Err(e),
        }
        match rustix::fs::unlinkat(temporaries, name, AtFlags::empty()) {
            Ok(()) => removed += 1,
            Err(Errno::NOENT) => {} // its writer finished meanwhile
            Err(e) => return Err(e),
        }
    }
    Ok(removed)
}

/// The path by which a process names one of its open files.
fn descriptor_path(file: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn directory(path: &Path) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    fn names(path: &Path) -> Vec<String> {
        path.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    type Make = fn(OwnedFd) -> io::Result<Draft>;
    const KINDS: [(&str, Make); 2] = [("nameless", Draft::new), ("named", Draft::named)];

    #[test]
    fn a_draft_becomes_an_object_once_and_replaces_nothing() {
        for (kind, make) in KINDS {
            let (tmp, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let to = directory(dir.path());
            for (content, expected) in [(&[&b""[..], b"on", b"", b"e"][..], Put::Created), (&[b"two"], Put::Exists)] {
                let mut draft = make(directory(tmp.path())).unwrap();
                draft.write(content).unwrap();
                assert_eq!(draft.publish(&to, "x").unwrap(), expected, "{kind}");
            }
            assert_eq!(std::fs::read(dir.path().join("x")).unwrap(), b"one", "{kind}");
            assert!(names(tmp.path()).is_empty(), "{kind}");
        }
    }

    #[test]
    fn this_file_system_gives_drafts_no_name() {
        let tmp = tempfile::tempdir().unwrap();
        let draft = Draft::new(directory(tmp.path())).unwrap();
        assert!(
            draft.name.is_none(),
            "the temporary folder's file system lacks O_TMPFILE: the better path goes untested"
        );
    }

    #[test]
    fn renaming_stands_in_for_linking_and_replaces_nothing() {
        let (tmp, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let to = directory(dir.path());
        for (content, expected) in [("one", Ok(())), ("two", Err(Errno::EXIST))] {
            let mut draft = Draft::named(directory(tmp.path())).unwrap();
            draft.write(&[content.as_bytes()]).unwrap();
            assert_eq!(draft.rename(draft.name.as_ref().unwrap(), &to, "x"), expected);
        }
        assert_eq!(std::fs::read(dir.path().join("x")).unwrap(), b"one");
        assert!(names(tmp.path()).is_empty());
    }

    #[test]
    fn more_parts_than_one_call_takes_are_written_whole() {
        let (tmp, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
        let parts: Vec<&[u8]> = bytes.chunks(1).collect();
        let mut draft = Draft::new(directory(tmp.path())).unwrap();
        draft.write(&parts).unwrap();
        assert_eq!(draft.publish(&directory(dir.path()), "x").unwrap(), Put::Created);
        assert_eq!(std::fs::read(dir.path().join("x")).unwrap(), bytes);
    }

    #[test]
    fn the_sweeper_takes_what_the_dead_left_and_nothing_of_the_living() {
        let tmp = tempfile::tempdir().unwrap();
        let living = Draft::named(directory(tmp.path())).unwrap();
        std::fs::write(tmp.path().join("1-00000000000000aa"), "left behind").unwrap();
        assert_eq!(sweep(&directory(tmp.path())).unwrap(), 1);
        assert_eq!(names(tmp.path()), [living.name.clone().unwrap()]);
        drop(living);
        assert!(names(tmp.path()).is_empty());
        assert_eq!(sweep(&directory(tmp.path())).unwrap(), 0);
    }
}
