//! The conductor of a restore: copy, make durable, prove, finish.
//!
//! Not here: choosing the snapshot, holding it by a pin, opening the target ([`target::open`](crate::target::open)), and
//! how a run is shown. What holds: a restore that returned is durable; one that was killed goes on when it is started
//! again with the same target, if that is a file.

use crate::comparison::compare;
use crate::range_list::RangeList;
use crate::target::{Order, Target};
use crate::transfer::Transfer;
use crate::{Error, Kind, Result};
use coffer_gateway::device::BlockDevice;
use coffer_repo::cancel::Cancel;
use std::sync::atomic::{AtomicU64, Ordering};

/// How a disk is restored.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// How many threads copy.
    pub workers: usize,
    /// Restore as zeroes, and list, what the device says cannot be read, rather than fail.
    pub keep_going: bool,
    /// Read the target back and compare it.
    pub verify: bool,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        RestoreOptions { workers: 4, keep_going: false, verify: false }
    }
}

/// How far a restore has come, in bytes of the disk; sampled by whoever shows it.
#[derive(Debug, Default)]
pub struct RestoreProgress {
    /// Written as bytes.
    pub written: AtomicU64,
    /// Known to be zero.
    pub zero: AtomicU64,
    /// Found done by an earlier run.
    pub resumed: AtomicU64,
    /// Read back and found right.
    pub verified: AtomicU64,
}

/// What a restore did.
#[derive(Clone, Debug)]
pub struct RestoreReport {
    /// Bytes written.
    pub written: u64,
    /// Bytes known to be zero.
    pub zero: u64,
    /// Bytes that an earlier run had restored.
    pub resumed: u64,
    /// What the device said cannot be read, restored as zeroes.
    pub unreadable: RangeList,
    /// Whether everything was read back and found right.
    pub is_verified: bool,
    /// What the user ought to know.
    pub warnings: Vec<String>,
}

/// Restores all of `device` to `target`, which was opened for it.
pub fn restore(
    device: &dyn BlockDevice,
    target: Target,
    options: &RestoreOptions,
    progress: &RestoreProgress,
    cancel: &Cancel,
) -> Result<RestoreReport> {
    if device.size() != target.size {
        let context = format!("a device of {} bytes for a target opened for {}", device.size(), target.size);
        return Err(Error::internal(context));
    }
    if options.verify && target.disk.order() == Order::Ascending {
        return Err(Error::new(Kind::Unsupported, "a stream cannot be read back, so it cannot be verified"));
    }
    let warnings = target.warnings().to_vec();
    let Target { disk, checkpoint, .. } = target;
    let transfer = Transfer { device, target: &*disk, options, progress, cancel };
    let (unreadable, checkpoint) = transfer.run(checkpoint)?;
    disk.sync()?;
    if options.verify {
        compare(device, &*disk.read_back()?, options, progress, cancel)?;
    }
    disk.finish()?;
    if let Some(checkpoint) = checkpoint {
        checkpoint.remove()?;
    }
    Ok(RestoreReport {
        written: progress.written.load(Ordering::Relaxed),
        zero: progress.zero.load(Ordering::Relaxed),
        resumed: progress.resumed.load(Ordering::Relaxed),
        unreadable,
        is_verified: options.verify,
        warnings,
    })
}
