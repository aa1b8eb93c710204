//! The proof of a copy: it holds, byte by byte, what the original holds, and where that has nothing it has nothing.
//!
//! Not here: reading ([`super::content`]). What holds: every byte is compared; stretches that both maps call zero are compared as such;
//! what could not be read when the backup was made is unreadable in both; what is damaged in the original by now is compared with nothing.
//! Memory: two slices a thread.

use super::content::{Content, Found, length};
use crate::cancel::Cancel;
use crate::crew::Crew;
use crate::disk_map::BLOCK;
use crate::error::{Error, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// What one thread compares at a time, in bytes: a multiple of a block.
const SLICE: u64 = 4 << 20;

pub(super) struct Comparison<'a> {
    pub(super) original: &'a Content<'a>,
    pub(super) copy: &'a Content<'a>,
    /// Bytes of disks.
    pub(super) compared: &'a AtomicU64,
    pub(super) cancel: &'a Cancel,
}

/// What there is of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Bytes,
    Unreadable,
    Damaged,
}

impl Comparison<'_> {
    /// Compares all of the disk on so many threads. The first difference found is `Corrupt`, with its offset.
    pub(super) fn run(&self, threads: usize) -> Result<()> {
        let (size, copied) = (self.original.disk.size(), self.copy.disk.size());
        if size != copied {
            return Err(differs(&format!("it has {copied} bytes, where the original has {size}")));
        }
        let crew = Crew { threads, cancel: self.cancel };
        let work = |slice: Range<u64>, buffers: &mut (Vec<u8>, Vec<u8>)| self.slice(slice, buffers);
        let slices = (0..size.div_ceil(SLICE)).map(|n| n * SLICE..((n + 1) * SLICE).min(size));
        crew.run(|| Ok(Default::default()), work, |hand| slices.into_iter().try_for_each(hand))?;
        Ok(())
    }

    fn slice(&self, slice: Range<u64>, (wanted, got): &mut (Vec<u8>, Vec<u8>)) -> Result<()> {
        let len = length(slice.end - slice.start)?;
        if !(self.original.is_zero(slice.clone()) && self.copy.is_zero(slice.clone())) {
            wanted.resize(len, 0);
            got.resize(len, 0);
            let due = self.original.read(slice.clone(), wanted)?;
            let found = self.copy.read(slice.clone(), got)?;
            compare(slice.start, (&due, wanted), (&found, got))?;
        }
        self.compared.fetch_add(len as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// Compares what was found from `start` on.
fn compare(start: u64, (due, wanted): (&Found, &[u8]), (found, got): (&Found, &[u8])) -> Result<()> {
    let is_whole = |found: &Found| found.unreadable.is_empty() && found.damaged.is_empty();
    // Equal slices are the rule, and comparing them whole is many times faster than looking for the byte.
    if is_whole(due) && is_whole(found) && wanted == got {
        return Ok(());
    }
    let block_len = BLOCK as usize;
    let (due, found) = (blocks(start, due, wanted.len())?, blocks(start, found, got.len())?);
    let pairs = wanted.chunks(block_len).zip(got.chunks(block_len)).zip(due.iter().zip(&found));
    for (number, ((wanted, got), kinds)) in pairs.enumerate() {
        let at = start + number as u64 * u64::from(BLOCK);
        match kinds {
            (Block::Damaged, _) | (Block::Unreadable, Block::Unreadable) => {}
            (Block::Bytes, Block::Bytes) => {
                if let Some(byte) = wanted.iter().zip(got).position(|(a, b)| a != b) {
                    return Err(differs(&format!("byte {} is another", at + byte as u64)));
                }
            }
            (Block::Unreadable, _) => {
                return Err(differs(&format!("it has bytes at byte {at}, where the original could not be read")));
            }
            (Block::Bytes, _) => return Err(differs(&format!("it cannot be read at byte {at}"))),
        }
    }
    Ok(())
}

fn differs(how: &str) -> Error {
    Error::corrupt(format!("the copy differs: {how}; forget it there, and copy the point again"))
}

fn blocks(start: u64, found: &Found, len: usize) -> Result<Vec<Block>> {
    let mut blocks = vec![Block::Bytes; len.div_ceil(BLOCK as usize)];
    for (ranges, kind) in [(&found.unreadable, Block::Unreadable), (&found.damaged, Block::Damaged)] {
        for range in ranges {
            let part = length((range.start - start) / u64::from(BLOCK))?
                ..length((range.end - start).div_ceil(u64::from(BLOCK)))?;
            blocks.get_mut(part).ok_or_else(|| Error::internal("a range beyond its slice"))?.fill(kind);
        }
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    const BLOCK_LEN: usize = BLOCK as usize;
    const START: u64 = 40 << 20;

    fn found(unreadable: Option<usize>, damaged: Option<usize>) -> Found {
        let range = |block: usize| START + (block * BLOCK_LEN) as u64..START + ((block + 1) * BLOCK_LEN) as u64;
        let list = |block: Option<usize>| block.into_iter().map(range).collect();
        Found { has_more: true, unreadable: list(unreadable), damaged: list(damaged) }
    }

    #[test]
    fn whatever_differs_is_found_and_damage_of_the_original_is_no_difference() {
        let bytes = vec![7; 3 * BLOCK_LEN + 100];
        let mut other = bytes.clone();
        other[2 * BLOCK_LEN + 5] = 8;
        let whole = || found(None, None);
        let compared = |due: Found, due_bytes: &[u8], got: Found, got_bytes: &[u8]| {
            compare(START, (&due, due_bytes), (&got, got_bytes)).map_err(|e| (e.kind(), e.context().to_owned()))
        };
        compared(whole(), &bytes, whole(), &bytes).unwrap();
        let (kind, why) = compared(whole(), &bytes, whole(), &other).unwrap_err();
        let at = START + 2 * u64::from(BLOCK) + 5;
        assert!(kind == Kind::Corrupt && why.contains(&format!("byte {at} is another;")), "{why}");
        // The last block, which is a part of one.
        assert!(compared(whole(), &bytes, whole(), &[&bytes[..3 * BLOCK_LEN], &[6; 100]].concat()).is_err());
        assert!(compared(found(Some(1), None), &bytes, whole(), &other).is_err());
        compared(found(None, Some(2)), &bytes, whole(), &other).unwrap();
        compared(found(None, Some(2)), &bytes, found(Some(2), None), &other).unwrap();
        compared(found(Some(2), None), &bytes, found(Some(2), None), &other).unwrap();
        // Passed off as bytes; lost on the way.
        assert!(compared(found(Some(3), None), &bytes, whole(), &bytes).unwrap_err().1.contains("has bytes"));
        assert!(compared(whole(), &bytes, found(Some(0), None), &bytes).unwrap_err().1.contains("cannot be read"));
    }
}
