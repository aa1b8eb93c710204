//! The proof of a restore: the target, read back, holds what the device holds.
//!
//! Not here: making what was written durable, and getting it out of caches; the target does that. What holds: every byte
//! is compared; holes on both sides are compared as holes.

use crate::restore::{RestoreOptions, RestoreProgress};
use crate::source::{Content, RandomDisk};
use crate::transfer::{BATCH, SLICE, device_runs, length, read_runs};
use crate::{Error, Result, crew, runs};
use coffer_gateway::device::BlockDevice;
use coffer_repo::cancel::Cancel;
use std::sync::atomic::Ordering;

/// Compares `target` with all of `device`. The first difference found is `Corrupt`, with its offset.
pub(crate) fn compare(
    device: &dyn BlockDevice,
    target: &dyn RandomDisk,
    options: &RestoreOptions,
    progress: &RestoreProgress,
    cancel: &Cancel,
) -> Result<()> {
    let size = device.size();
    crew::work(options.workers, size.div_ceil(SLICE), |number, buffer| {
        cancel.check()?;
        let slice = number * SLICE..((number + 1) * SLICE).min(size);
        let runs = device_runs(device, &slice)?;
        let found = runs::cover(&slice, |rest| target.extents(rest, BATCH), |extent| &extent.range)?;
        let is_hole = runs.is_empty() && found.iter().all(|extent| extent.content == Content::Zero);
        if !is_hole {
            let len = length(&slice)?;
            let (wanted, got) = crew::room(buffer, 2 * len).split_at_mut(len);
            read_runs(device, &runs, &slice, wanted)?;
            target.read_at(slice.start, got)?;
            // Equal slices are the rule, and comparing them whole is many times faster than looking for the byte.
            if wanted != got
                && let Some(at) = wanted.iter().zip(&*got).position(|(a, b)| a != b)
            {
                let offset = slice.start + at as u64;
                return Err(Error::corrupt(format!("the target differs from the snapshot at byte {offset}")));
            }
        }
        progress.verified.fetch_add(slice.end - slice.start, Ordering::Relaxed);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::FileDisk;
    use coffer_gateway::{Durability, MemoryDevice};
    use std::os::unix::fs::FileExt;

    #[test]
    fn one_wrong_byte_anywhere_is_found() {
        let size = 3 * SLICE + 77;
        let device = MemoryDevice::new(size);
        device.write_at(SLICE + 10, &[5; 100_000], Durability::Cached).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(&[5; 100_000], SLICE + 10).unwrap();
        let compare = || {
            let progress = RestoreProgress::default();
            let target = FileDisk::new(file.try_clone().unwrap());
            let options = RestoreOptions::default();
            compare(&device, &target, &options, &progress, &Cancel::default())?;
            Ok::<u64, Error>(progress.verified.load(Ordering::Relaxed))
        };
        assert_eq!(compare().unwrap(), size);
        // Where the device has bytes, where it has a hole, and at the very end.
        for at in [SLICE + 5000, 2 * SLICE + 1, size - 1] {
            let mut right = [0];
            file.read_exact_at(&mut right, at).unwrap();
            file.write_all_at(&[right[0] ^ 0x10], at).unwrap();
            let error = compare().unwrap_err();
            assert_eq!(error.kind(), crate::Kind::Corrupt);
            assert!(error.to_string().ends_with(&format!("at byte {at}")), "{error}");
            file.write_all_at(&right, at).unwrap();
        }
    }
}
