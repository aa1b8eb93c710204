//! A mount from beginning to end.
//!
//! Not here: what the tree shows, signals and printing (the program's). What holds: [`Session::mount`] returns once the
//! tree can be used; the session ends when it is unmounted by anybody and the last open file is closed; all pins are
//! let go of before [`Session::wait`] returns.

use crate::catalog::{Catalog, Report};
use crate::filesystem::SnapshotFilesystem;
use crate::fuse::{Adaptor, Ownership};
pub use crate::mount_point::Detached;
use crate::mount_point::MountPoint;
use crate::{Error, Result};
use rustix::io::Errno;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How far the kernel may read ahead: several of its largest reads, so that a sequential reader has them under way at once
/// (128 KiB: 46 MB/s over a device that answers after 5 ms; 1 MiB: 256). A random fault in a mapped file reads as much, which
/// disk images rarely are.
const READ_AHEAD_KIB: u32 = 4096;

/// How to mount.
#[derive(Clone, Copy, Debug)]
pub struct MountOptions {
    /// Other users may read, too. For users other than root `/etc/fuse.conf` has to permit it.
    pub allow_other: bool,
    /// Calls that are served at the same time; at least 1. Reads wait for storage in these threads, so this bounds how many
    /// wait at once; each may keep a buffer of 1 MiB.
    pub threads: usize,
    /// How old a listing may get before it is read again.
    pub refresh: Duration,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions { allow_other: false, threads: 16, refresh: Duration::from_secs(2) }
    }
}

/// A mount. Dropping it unmounts it; files that are open go on working as long as the process lives.
pub struct Session {
    mount_point: MountPoint,
    outcome: Arc<Outcome>,
}

/// How the threads that serve the kernel ended, once they have.
#[derive(Default)]
struct Outcome {
    result: Mutex<Option<Result<()>>>,
    ended: Condvar,
}

impl Session {
    /// Mounts all snapshots of `catalog` on `directory`, for the user that runs the process. Fails when the catalog cannot
    /// be listed, and as follows for the directory: `NotFound` when it is missing, `Invalid` when it is none or the system
    /// does not permit it, `Locked` when something is mounted there already.
    pub fn mount(
        directory: &Path,
        catalog: Arc<dyn Catalog>,
        options: MountOptions,
        report: Report,
    ) -> Result<Session> {
        if options.threads == 0 {
            return Err(Error::invalid("a mount needs at least one thread"));
        }
        let filesystem = SnapshotFilesystem::new(catalog, options.refresh, report)?;
        let ownership = Ownership {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            is_shared: options.allow_other,
        };
        let adaptor = Adaptor::new(filesystem, ownership, options.refresh);
        let mut config = fuser::Config::default();
        config.n_threads = Some(options.threads);
        config.clone_fd = true;

        let (connection, mount_point) = MountPoint::attach(directory, options.allow_other)?;
        let session = Session { mount_point, outcome: Arc::default() };
        // Who may call is the kernel's decision, by the mount's options. fuser's own check looks at every call, and would
        // fail a program that drops its privileges with a file open.
        let serving = fuser::Session::from_fd(adaptor, connection, fuser::SessionACL::All, config)
            .map_err(|e| Error::io("greeting the kernel's FUSE", e))?;
        // Only now: while greeting, the kernel sets its own.
        session.mount_point.set_read_ahead(READ_AHEAD_KIB);
        let (outcome, mount_point) = (Arc::clone(&session.outcome), session.mount_point.clone());
        std::thread::Builder::new()
            .name("coffer-mount".to_owned())
            .spawn(move || outcome.set(how_it_ended(serving.run(), &mount_point)))
            .map_err(|e| Error::io("starting the mount's thread", e))?;
        Ok(session)
    }

    /// Unmounts. With [`Detached::InUse`] the session goes on until what is open is closed. A second call does nothing.
    pub fn stop(&self) -> Result<Detached> {
        self.mount_point.detach()
    }

    /// Waits until the session has ended and says how; any number of threads may wait.
    pub fn wait(&self) -> Result<()> {
        let mut result = self.outcome.result();
        loop {
            match &*result {
                Some(Ok(())) => return Ok(()),
                Some(Err(error)) => return Err(error.duplicate()),
                None => result = self.outcome.ended.wait(result).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// What the end of the threads means. A call that is under way while the mount goes away ends as aborted, which is no failure
/// then; it is one when the connection was aborted beneath a directory that is still mounted.
fn how_it_ended(result: io::Result<()>, mount_point: &MountPoint) -> Result<()> {
    let is_aborted = |e: &io::Error| e.raw_os_error() == Some(Errno::CONNABORTED.raw_os_error());
    match result {
        Err(e) if is_aborted(&e) && !mount_point.is_attached().unwrap_or(true) => Ok(()),
        other => other.map_err(|e| Error::io("serving the kernel's FUSE", e)),
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Whoever wants to hear about it calls stop.
        let _ = self.stop();
    }
}

impl Outcome {
    fn set(&self, result: Result<()>) {
        *self.result() = Some(result);
        self.ended.notify_all();
    }

    fn result(&self) -> MutexGuard<'_, Option<Result<()>>> {
        self.result.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
