//! The index's directory on this host: who owns the database, and where everybody else keeps their own.
//!
//! ```text
//! lock              held (flock) by the one process that writes to db/
//! db/               the database
//! damaged           left when db/ turned out to be damaged: the next owner starts anew
//! discarded-<n>/    a database on its way out
//! private-<n>/      a process that found db/ owned: lock (held while it lives), view/, own/
//! ```
//! Not here: what is in the databases. What holds: locks are flocks, so the kernel lets go of them when a process dies; only
//! the owner of `lock` removes anything but its own private directory.

use crate::error::{Error, Kind, Result};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// More private directories or discarded databases than this at once are a fault, not use.
const MOST: u32 = 1000;

/// The directory, as its owner or as a guest.
#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
    role: Role,
    /// Released when dropped.
    _lock: File,
}

#[derive(Debug)]
enum Role {
    Owner,
    Guest(PathBuf),
}

impl Folder {
    /// Takes the directory, creating it if need be: as the owner if there is none, else as a guest. An owner removes what dead
    /// guests and interrupted discards left behind.
    pub(super) fn take(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| io_error("creating", dir, e))?;
        if let Some(lock) = try_lock(&dir.join("lock"))? {
            let folder = Folder { dir: dir.to_owned(), role: Role::Owner, _lock: lock };
            folder.remove_leftovers()?;
            return Ok(folder);
        }
        for n in 0..MOST {
            let private = dir.join(format!("private-{n}"));
            match Self::take_private(&private) {
                Ok(Some(lock)) => return Ok(Folder { dir: dir.to_owned(), role: Role::Guest(private), _lock: lock }),
                Ok(None) => {}
                // Somebody removed it in between: a new owner that was quicker than our lock.
                Err(e) if e.kind() == Kind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Err(Error::new(Kind::Locked, format!("{} has {MOST} guests; is it one index per repository?", dir.display())))
    }

    fn take_private(private: &Path) -> Result<Option<File>> {
        match fs::create_dir(private) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(e) => return Err(io_error("creating", private, e)),
        }
        let Some(lock) = try_lock(&private.join("lock"))? else { return Ok(None) };
        // Fails when the directory was removed before it was locked.
        fs::create_dir(private.join("view")).map_err(|e| io_error("creating", &private.join("view"), e))?;
        Ok(Some(lock))
    }

    /// A guest's private directory; `None` for the owner.
    pub(super) fn private(&self) -> Option<&Path> {
        match &self.role {
            Role::Owner => None,
            Role::Guest(private) => Some(private),
        }
    }

    /// Where the shared database lies.
    pub(super) fn database(&self) -> PathBuf {
        self.dir.join("db")
    }

    /// The file that says that the shared database is damaged.
    pub(super) fn damage_mark(&self) -> PathBuf {
        self.dir.join("damaged")
    }

    /// Moves the database out of the way, crash-safely: it is there as a whole or not at all. Says where it went.
    pub(super) fn set_aside(&self) -> Result<PathBuf> {
        for n in 0..MOST {
            let aside = self.dir.join(format!("discarded-{n}"));
            if !aside.exists() {
                fs::rename(self.database(), &aside).map_err(|e| io_error("renaming", &self.database(), e))?;
                return Ok(aside);
            }
        }
        Err(Error::internal(format!("{} is full of discarded databases", self.dir.display())))
    }

    fn remove_leftovers(&self) -> Result<()> {
        let failed = |e| io_error("listing", &self.dir, e);
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let dead = if name.starts_with("private-") {
                // Held until the directory is gone, so that a guest that comes now takes another number.
                try_lock(&path.join("lock"))?
            } else if name.starts_with("discarded-") {
                None
            } else {
                continue;
            };
            if name.starts_with("discarded-") || dead.is_some() {
                remove_dir(&path)?;
            }
        }
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Role::Guest(private) = &self.role {
            // What cannot be removed now the next owner removes.
            let _ = fs::remove_dir_all(private);
        }
    }
}

/// Removes a directory and all in it.
pub(super) fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("removing", path, e)),
        _ => Ok(()),
    }
}

/// Removes a file if it is there.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("removing", path, e)),
        _ => Ok(()),
    }
}

/// An error of the operating system.
pub(super) fn io_error(operation: &str, path: &Path, error: io::Error) -> Error {
    Error::io(format!("{operation} {}", path.display()), error)
}

fn try_lock(path: &Path) -> Result<Option<File>> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|e| io_error("opening", path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(io_error("locking", path, e)),
    }
}
