//! A frozen disk as the repository's writer reads it: window by window, and only the blocks in which something was written.
//!
//! ```text
//!   no parent             all of a window is read
//!   no layer changed it   Unchanged: nothing is
//!   few blocks            Changed: which; the writer asks for what cutting there takes
//!   most blocks           all of it is read: in long pieces, which a base that is far away gives sooner
//! ```
//! Not here: who froze it. What holds: what is called unchanged no layer above the parent has a block of; what the parent could not
//! read is recorded as such again, and never read as zeroes.

use super::layer::Layer;
use super::record::BLOCK;
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

    /// Adds the blocks of `range` that any layer changed, counted from its start, once for each layer. How many that are.
    fn note(&self, layers: &[Arc<Layer>], range: &Range<u64>, changed: &mut Vec<Range<usize>>) -> Result<usize> {
        let (first, mut count) = (range.start / BLOCK as u64, 0);
        for run in layers.iter().flat_map(|layer| layer.changed(range)) {
            let run = length(run.start - first)?..length(run.end - first)?;
            count += run.len();
            changed.push(run);
        }
        Ok(count)
    }

    /// Reads `range`, in bytes, and notes by block from its start what cannot be read, which is zero then; whether anything but
    /// zeroes may be in it.
    fn read(&self, range: Range<u64>, out: &mut [u8], lost: &mut Vec<Range<usize>>) -> Result<bool> {
        let mut has_more = false;
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
                        lost.push(from / BLOCK..to.div_ceil(BLOCK));
                    }
                }
            }
            at = extents
                .last()
                .map(|last| last.range.end)
                .filter(|end| *end > at)
                .ok_or_else(|| Error::internal("a device has no extents"))?;
        }
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
        let len = length(range.end - range.start)?;
        if let Some(layers) = self.layers {
            match self.note(layers, &range, &mut window.changed)? {
                0 => return Ok(Filled::Unchanged(index)),
                count if count <= len.div_ceil(BLOCK) / 2 => return Ok(Filled::Changed { index, len }),
                _ => {}
            }
        }
        let mut lost = Vec::new();
        if !self.read(range, window.make_room(len), &mut lost)? {
            return Ok(Filled::Zero(index));
        }
        for blocks in lost {
            window.unreadable.push(small(blocks.start * BLOCK)?..small((blocks.end * BLOCK).min(len))?);
        }
        Ok(Filled::Bytes(index))
    }

    fn read_blocks(
        &self,
        index: u64,
        blocks: Range<usize>,
        out: &mut [u8],
        unreadable: &mut Vec<Range<usize>>,
    ) -> Result<()> {
        let byte = |block: usize| index * self.window + (block * BLOCK) as u64;
        let mut lost = Vec::new();
        self.read(byte(blocks.start)..byte(blocks.end).min(self.device.size()), out, &mut lost)?;
        unreadable.extend(lost.into_iter().map(|lost| blocks.start + lost.start..blocks.start + lost.end));
        Ok(())
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
