//! What is stored and what is not: UNMAP, WRITE SAME, GET LBA STATUS.
//!
//! Not here: bytes that differ. What holds: what was unmapped reads as zeroes (LBPRZ), whatever grain the device has; a list of
//! ranges is checked whole before any of it is done.

use super::cdb::Blocks;
use super::field::{be16, be32, be64, count32};
use super::lun::Lun;
use super::medium::{Medium, STEP, check_stop};
use super::sense::{Code, Sense};
use super::transfer::{durability, to_the_end};
use coffer_gateway::Zeroing;
use std::sync::atomic::AtomicBool;

/// Ranges of one UNMAP at most.
pub(super) const MAX_RANGES: usize = 256;
/// Stretches of one GET LBA STATUS at most, and questions to the device that it may take.
const MAX_STRETCHES: usize = 1024;
const MAX_QUESTIONS: usize = 4096;

pub(super) fn unmap(lun: &Lun, list: &[u8], stop: &AtomicBool) -> Result<(), Sense> {
    if list.is_empty() {
        return Ok(());
    }
    if list.len() < 8 {
        return Err(Sense::illegal(Code::PARAMETER_LIST_LENGTH_ERROR));
    }
    let len = usize::from(be16(list, 2));
    let Some(ranges) = list.get(8..len.saturating_add(8)) else {
        return Err(Sense::illegal(Code::PARAMETER_LIST_LENGTH_ERROR));
    };
    // An incomplete last one does not count.
    let ranges = ranges.chunks_exact(16).map(|d| Blocks { lba: be64(d, 0), count: be32(d, 8).into() });
    if ranges.len() > MAX_RANGES {
        return Err(Sense::parameter(2, None));
    }
    for blocks in ranges.clone() {
        lun.medium.check(blocks)?;
    }
    let how = Zeroing { may_unmap: true, fast_only: false, durability: durability(lun, false) };
    for blocks in ranges {
        lun.medium.zero(lun.medium.range(blocks), how, stop)?;
    }
    Ok(())
}

/// Writes one block again and again; no data are zeroes. Who wants blocks unmapped gets that, whatever else the data say: initiators
/// send zeroes, and rely on reading them.
pub(super) fn write_same(
    lun: &Lun,
    blocks: Blocks,
    may_unmap: bool,
    data: &[u8],
    stop: &AtomicBool,
) -> Result<(), Sense> {
    let medium = &lun.medium;
    let size = usize::try_from(medium.block_size()).unwrap_or(usize::MAX);
    if !data.is_empty() && data.len() != size {
        return Err(Sense::field(1, None));
    }
    let range = medium.range(to_the_end(medium, blocks));
    let durability = durability(lun, false);
    if may_unmap || data.iter().all(|byte| *byte == 0) {
        let how = Zeroing { may_unmap, fast_only: false, durability };
        return medium.zero(range, how, stop);
    }
    let wanted = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    let pattern = data.repeat((STEP / size).min(wanted / size).max(1));
    let mut at = range.start;
    while at < range.end {
        check_stop(stop)?;
        let len = pattern.len().min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
        medium.write(at, pattern.get(..len).unwrap_or_default(), durability)?;
        at += len as u64;
    }
    Ok(())
}

/// Which blocks are mapped, from `lba` on, as far as there is room to say it.
pub(super) fn lba_status(
    medium: &Medium,
    lba: u64,
    room: u32,
    out: &mut Vec<u8>,
    stop: &AtomicBool,
) -> Result<(), Sense> {
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    let max = (room.saturating_sub(8) / 16).clamp(1, MAX_STRETCHES);
    let size = u64::from(medium.block_size());
    let end = medium.bytes(medium.count());
    let mut stretches: Vec<(Blocks, bool)> = Vec::new();
    let mut lba = lba;
    for _ in 0..MAX_QUESTIONS {
        if lba >= medium.count() {
            break;
        }
        check_stop(stop)?;
        let (range, is_zero) = medium.content(lba * size, end)?;
        // A block that is not zero as a whole is mapped; so is the one that two stretches meet in.
        let (is_zero, next) = match is_zero {
            true if range.end - range.start >= size => (true, range.end / size),
            _ => (false, range.end.div_ceil(size)),
        };
        let count = next - lba;
        let is_full = stretches.len() == max;
        match stretches.last_mut() {
            Some((last, of)) if *of == is_zero => last.count += count,
            _ if is_full => break,
            _ => stretches.push((Blocks { lba, count }, is_zero)),
        }
        lba = next;
    }
    let mut reply = Vec::new();
    for (blocks, is_zero) in stretches {
        // A count has four bytes; what is beyond can be asked for.
        let count = u32::try_from(blocks.count);
        reply.extend(blocks.lba.to_be_bytes());
        reply.extend(count.unwrap_or(u32::MAX).to_be_bytes());
        reply.extend([u8::from(is_zero), 0, 0, 0]);
        if count.is_err() {
            break;
        }
    }
    let reply = [&count32(reply.len().saturating_add(4))[..], &[0; 4], &reply].concat();
    out.extend(reply.into_iter().take(room));
    Ok(())
}
