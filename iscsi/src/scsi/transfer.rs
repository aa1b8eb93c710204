//! Bytes from and to the medium: READ, WRITE, VERIFY, and what is written only whole or only after a look.
//!
//! Not here: zeroes and what is stored at all ([`super::provisioning`]). What holds: blocks were checked; of data that end early whole
//! blocks are written and the rest is not; what compares and writes does so atomically against every other write, by the
//! device's compare-and-write, which is also durable.

use super::cdb::{Blocks, Comparison};
use super::lun::Lun;
use super::medium::{Medium, STEP, check_stop};
use super::sense::{Code, Key, Sense};
use coffer_gateway::Durability;
use std::sync::atomic::AtomicBool;

/// Blocks up to the end where none are counted.
pub(super) fn to_the_end(medium: &Medium, blocks: Blocks) -> Blocks {
    match blocks.count {
        0 => Blocks { count: medium.count().saturating_sub(blocks.lba), ..blocks },
        _ => blocks,
    }
}

/// Makes room for `blocks` at the end of `out`, and has `fill` fill it; takes it away again if that did nothing.
fn append(
    medium: &Medium,
    blocks: Blocks,
    out: &mut Vec<u8>,
    fill: impl FnOnce(u64, &mut [u8]) -> Result<bool, Sense>,
) -> Result<bool, Sense> {
    let range = medium.range(blocks);
    let len = usize::try_from(range.end - range.start).map_err(|_| Sense::field(10, None))?;
    if len == 0 {
        return Ok(true);
    }
    let start = out.len();
    out.resize(start.saturating_add(len), 0);
    let filled = fill(range.start, out.get_mut(start..).unwrap_or_default());
    if !matches!(filled, Ok(true)) {
        out.truncate(start);
    }
    filled
}

/// Reads if that needs no waiting.
pub(super) fn try_read(medium: &Medium, blocks: Blocks, out: &mut Vec<u8>) -> Result<bool, Sense> {
    append(medium, blocks, out, |offset, place| medium.try_read(offset, place))
}

pub(super) fn read(medium: &Medium, blocks: Blocks, out: &mut Vec<u8>) -> Result<(), Sense> {
    append(medium, blocks, out, |offset, place| medium.read(offset, place).map(|()| true)).map(|_| ())
}

/// The whole blocks of `data`, as many as `blocks` has.
fn whole<'a>(medium: &Medium, blocks: Blocks, data: &'a [u8]) -> &'a [u8] {
    let size = usize::try_from(medium.block_size()).unwrap_or(usize::MAX);
    let wanted = usize::try_from(medium.bytes(blocks.count)).unwrap_or(usize::MAX);
    let len = (data.len() / size).saturating_mul(size).min(wanted);
    data.get(..len).unwrap_or_default()
}

/// What a write has to be when the cache is on or off.
pub(super) fn durability(lun: &Lun, is_forced: bool) -> Durability {
    if is_forced || !lun.modes().has_write_cache { Durability::Forced } else { Durability::Cached }
}

/// Whether a write most likely goes into memory only.
pub(super) fn writes_swiftly(lun: &Lun, blocks: Blocks, is_forced: bool) -> bool {
    durability(lun, is_forced) == Durability::Cached && lun.medium.writes_swiftly(blocks)
}

pub(super) fn write(lun: &Lun, blocks: Blocks, is_forced: bool, data: &[u8]) -> Result<(), Sense> {
    let data = whole(&lun.medium, blocks, data);
    if data.is_empty() {
        return Ok(());
    }
    lun.medium.write(lun.medium.range(blocks).start, data, durability(lun, is_forced))
}

/// Writes through every cache, and reads it again.
pub(super) fn write_verify(
    lun: &Lun,
    blocks: Blocks,
    is_compared: bool,
    data: &[u8],
    stop: &AtomicBool,
) -> Result<(), Sense> {
    let data = whole(&lun.medium, blocks, data);
    write(lun, blocks, true, data)?;
    let count = data.len() as u64 / u64::from(lun.medium.block_size());
    let comparison = if is_compared { Comparison::All } else { Comparison::None };
    verify(&lun.medium, Blocks { count, ..blocks }, comparison, data, stop)
}

/// Reads all of `blocks`, and compares them as asked. A miscompare names its block.
pub(super) fn verify(
    medium: &Medium,
    blocks: Blocks,
    comparison: Comparison,
    data: &[u8],
    stop: &AtomicBool,
) -> Result<(), Sense> {
    let range = medium.range(blocks);
    let size = usize::try_from(medium.block_size()).unwrap_or(usize::MAX);
    let mut found = vec![0; STEP.min(usize::try_from(range.end - range.start).unwrap_or(STEP))];
    let mut at = range.start;
    while at < range.end {
        check_stop(stop)?;
        let len = found.len().min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
        let found = found.get_mut(..len).unwrap_or_default();
        medium.read(at, found)?;
        let done = usize::try_from(at - range.start).unwrap_or(usize::MAX);
        let differs = match comparison {
            Comparison::None => None,
            Comparison::All => {
                // Data that end early are not compared beyond their end.
                let expected = data.get(done..).unwrap_or_default();
                found.iter().zip(expected).position(|(a, b)| a != b)
            }
            Comparison::One => {
                let expected = data.get(..size).unwrap_or_default();
                found.chunks(size).position(|block| block != expected).map(|i| i * size)
            }
        };
        if let Some(differs) = differs {
            let block = (at + differs as u64) / u64::from(medium.block_size());
            return Err(Sense::new(Key::Miscompare, Code::MISCOMPARE_DURING_VERIFY).at(block));
        }
        at += len as u64;
    }
    Ok(())
}

/// Puts in place of `offset`'s bytes what `change` makes of them, atomically.
fn exchange(
    medium: &Medium,
    offset: u64,
    len: usize,
    stop: &AtomicBool,
    change: impl Fn(&mut [u8]),
) -> Result<(), Sense> {
    let (mut old, mut new) = (vec![0; len], vec![0; len]);
    loop {
        // Whoever comes in between has got something done: this ends, or is stopped.
        check_stop(stop)?;
        medium.read(offset, &mut old)?;
        new.copy_from_slice(&old);
        change(&mut new);
        if medium.exchange(offset, &old, &new)?.is_none() {
            return Ok(());
        }
    }
}

/// ORs the data into the medium, atomic for each stretch that a compare-and-write takes.
pub(super) fn or_write(medium: &Medium, blocks: Blocks, data: &[u8], stop: &AtomicBool) -> Result<(), Sense> {
    let data = whole(medium, blocks, data);
    let step = usize::try_from(medium.bytes(medium.max_atomic())).unwrap_or(STEP);
    let mut at = medium.range(blocks).start;
    for part in data.chunks(step) {
        let or = |bytes: &mut [u8]| bytes.iter_mut().zip(part).for_each(|(byte, bits)| *byte |= bits);
        exchange(medium, at, part.len(), stop, or)?;
        at = at.saturating_add(part.len() as u64);
    }
    Ok(())
}

/// Writes all of it or, if the power fails, nothing; and nobody sees half of it.
pub(super) fn write_atomic(medium: &Medium, blocks: Blocks, data: &[u8], stop: &AtomicBool) -> Result<(), Sense> {
    let data = whole(medium, blocks, data);
    if data.is_empty() {
        return Ok(());
    }
    exchange(medium, medium.range(blocks).start, data.len(), stop, |bytes| bytes.copy_from_slice(data))
}

/// Data are what has to be there and what is written then. A miscompare names the byte.
pub(super) fn compare_and_write(medium: &Medium, blocks: Blocks, data: &[u8]) -> Result<(), Sense> {
    let (expected, new) = data.split_at(data.len() / 2);
    if data.is_empty() {
        return Ok(());
    }
    if expected.len() as u64 != medium.bytes(blocks.count) || expected.len() != new.len() {
        return Err(Sense::field(13, None));
    }
    match medium.exchange(medium.range(blocks).start, expected, new)? {
        None => Ok(()),
        Some(at) => Err(Sense::new(Key::Miscompare, Code::MISCOMPARE_DURING_VERIFY).at(at as u64)),
    }
}
