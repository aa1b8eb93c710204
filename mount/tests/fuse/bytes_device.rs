//! A block device over bytes in memory with holes and unreadable ranges, and a small seeded generator: for this room's tests.

use coffer_gateway::{BlockDevice, Content, Error, Extent, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// The bytes, what of them is listed as a hole, what cannot be read, and how many reads there were.
#[derive(Default)]
pub(crate) struct BytesDevice {
    pub(crate) bytes: Vec<u8>,
    /// Sorted; the bytes there have to be zero.
    pub(crate) holes: Vec<Range<u64>>,
    /// Sorted, apart from the holes.
    pub(crate) unreadable: Vec<Range<u64>>,
    pub(crate) reads: AtomicU64,
}

impl BytesDevice {
    /// `size` random bytes with `holes` in them.
    pub(crate) fn random(seed: u64, size: usize, holes: &[Range<u64>]) -> Self {
        let mut random = Random(seed);
        let mut bytes: Vec<u8> = std::iter::repeat_with(|| random.next().to_le_bytes()).flatten().take(size).collect();
        for hole in holes {
            bytes[usize::try_from(hole.start).unwrap()..usize::try_from(hole.end).unwrap()].fill(0);
        }
        BytesDevice { bytes, holes: holes.to_vec(), ..BytesDevice::default() }
    }
}

impl BlockDevice for BytesDevice {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let end = offset + out.len() as u64;
        coffer_gateway::device::check_range(self.size(), offset, out.len() as u64)?;
        if let Some(bad) = self.unreadable.iter().find(|r| r.start < end && offset < r.end) {
            return Err(Error::corrupt(format!("the chunk at offset {} is damaged", bad.start)));
        }
        let offset = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.bytes[offset..offset + out.len()]);
        Ok(())
    }

    fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        self.read_at(offset, out).map(|()| true)
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>> {
        let holes = self.holes.iter().map(|r| (r.clone(), Content::Zero));
        let mut special: Vec<_> =
            holes.chain(self.unreadable.iter().map(|r| (r.clone(), Content::Unreadable))).collect();
        special.sort_by_key(|(r, _)| r.start);
        let mut extents = Vec::new();
        let mut at = range.start;
        while at < range.end && extents.len() < max {
            let (end, content) = match special.iter().find(|(r, _)| r.end > at) {
                Some((r, content)) if r.start <= at => (r.end, *content),
                Some((r, _)) => (r.start, Content::Bytes),
                None => (range.end, Content::Bytes),
            };
            let end = end.min(range.end);
            extents.push(Extent { range: at..end, content });
            at = end;
        }
        Ok(extents)
    }
}

/// xorshift64*: repeatable numbers from a seed that is not 0.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }
}
