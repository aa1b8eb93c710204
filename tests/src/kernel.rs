//! What only the kernel of this machine can make: loop devices and mounts, until the test ends. Needs root.
//!
//! Not here: FUSE mounts, which `coffer` makes itself. What holds: nothing stays behind, whatever the test does.

// A harness speaks by failing.
#![allow(clippy::unwrap_used)]

use crate::program::{attempt, outside, run};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// A block device over a file.
#[derive(Debug)]
pub struct LoopDevice(PathBuf);

impl LoopDevice {
    /// Attaches `file`.
    #[must_use]
    pub fn attach(file: &Path) -> LoopDevice {
        LoopDevice(PathBuf::from(run(outside("losetup").args(["--find", "--show"]).arg(file)).trim()))
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        attempt(outside("losetup").arg("--detach").arg(&self.0));
    }
}

/// A file system at a directory.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    /// Makes the directory `point` and mounts `source` of type `kind` there.
    #[must_use]
    pub fn mount(source: impl AsRef<OsStr>, kind: &str, options: &str, point: &Path) -> Mounted {
        std::fs::create_dir(point).unwrap();
        run(outside("mount").args(["-t", kind, "-o", options]).arg(source).arg(point));
        Mounted(point.to_owned())
    }

    /// Changes its options.
    pub fn remount(&self, options: &str) {
        run(outside("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        attempt(outside("umount").arg("--lazy").arg(&self.0));
    }
}
