//! A frozen disk as the repository's writer reads it: window by window, and only those in which something was written.
//!
//! Not here: who froze it. What holds: a window is called unchanged only where no layer above the parent has a block of it; what the
//! parent could not read is recorded as such again, and never read as zeroes.

use super::layer::Layer;
use crate::device::{BlockDevice, Content};
use crate::{Error, Result};
use coffer_repo::window::{Filled, Window, WindowSource};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Extents that are asked for at once.
const BATCH: usize = 256;

pub(super) struct FrozenWindows<'a> {
    device: &'a dyn BlockDevice,
    /// Where it differs from the parent; `None` when there is none.
    layers: Option<&'a [Arc<Layer>]>,
    /// Bytes of a window.
    window: u64,
    next: AtomicU64,
}

impl<'a> FrozenWindows<'a> {
    pub(super) fn new(device: &'a dyn BlockDevice, layers: Option<&'a [Arc<Layer>]>, window: u64) -> Self {
        FrozenWindows { device, layers, window, next: AtomicU64::new(0) }
    }

    /// Reads a window; whether anything but zeroes may be in it.
    fn read(&self, range: Range<u64>, window: &mut Window) -> Result<bool> {
        let mut has_more = false;
        let out = window.make_room(length(range.end - range.start)?);
        let mut unreadable = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let extents = self.device.extents(at..range.end, BATCH)?;
            for extent in &extents {
                let (from, to) = (length(extent.range.start - range.start)?, length(extent.range.end - range.start)?);
                let part = out.get_mut(from..to).ok_or_else(|| Error::internal("an extent beyond its window"))?;
                has_more |= extent.content != Content::Zero;
                match extent.content {
                    Content::Bytes => self.device.read_at(extent.range.start, part)?,
                    Content::Zero => part.fill(0),
                    Content::Unreadable => {
                        part.fill(0);
                        unreadable.push(small(from)?..small(to)?);
                    }
                }
            }
            at = extents
                .last()
                .map(|last| last.range.end)
                .filter(|end| *end > at)
                .ok_or_else(|| Error::internal("a device has no extents"))?;
        }
        window.unreadable = unreadable;
        Ok(has_more)
    }
}

impl WindowSource for FrozenWindows<'_> {
    fn next(&self, window: &mut Window) -> Result<Filled> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        let size = self.device.size();
        let start = index.saturating_mul(self.window);
        if start >= size {
            return Ok(Filled::End);
        }
        let range = start..size.min(start.saturating_add(self.window));
        if self.layers.is_some_and(|layers| !layers.iter().any(|layer| layer.touches(&range))) {
            return Ok(Filled::Unchanged(index));
        }
        Ok(if self.read(range, window)? { Filled::Bytes(index) } else { Filled::Zero(index) })
    }

    fn size(&self) -> Result<u64> {
        Ok(self.device.size())
    }
}

fn length(bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| Error::internal("a window beyond memory"))
}

fn small(bytes: usize) -> Result<u32> {
    u32::try_from(bytes).map_err(|_| Error::internal("a window of 4 GiB"))
}
