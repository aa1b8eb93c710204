//! What two journals come to: which of them counts, what is ours, and which contents only the journal has. Pure.
//!
//! ```text
//!   written on this boot       every record counts: the page cache outlived the process. Contents are in the data,
//!                              but for a redo that no touch completed
//!   else, or distrusted        touches count as far as the last commit says that they are firm; zeroes and stores count
//!                              wherever they verify, and contents that came after that commit are taken from the journal
//! ```
//! An untouched block whose touch does not count reads from the base again, whatever lies in the data: the old content, as a
//! disk may show of a write that was not flushed. What was flushed is before the commit, or in a store.
//!
//! Not here: media. What holds: damage to what was durable is `Corrupt` where the journal can tell, and it tells of all but its
//! last flush: the newest journal must be whole, end where records may end, and not be contradicted by a later commit. A torn end is no
//! damage.

use super::BootId;
use super::block_map::{BlockMap, Masks, REGION};
use super::journal::{MARGIN, Tail};
use super::record::{BLOCK, Chain, Entry, Header, Records};
use crate::{Error, Kind, Result};
use coffer_repo::crypto::Key32;
use std::collections::BTreeMap;
use std::ops::Range;

/// What was found.
pub(super) struct Found<'a> {
    pub(super) map: BlockMap,
    /// Sealed blocks to be written to the data, by number.
    pub(super) contents: BTreeMap<u64, &'a [u8]>,
    /// The journal that counts.
    pub(super) tail: Tail,
}

/// What a first look at a journal tells.
struct Survey {
    header: Header,
    start: Chain,
    chain: Chain,
    end: u64,
    firm: u64,
    is_whole: bool,
    is_distrusted: bool,
    is_retired: bool,
    is_damaged: bool,
}

/// Reads the journals of a disk of `size` bytes, on this boot.
pub(super) fn replay<'a>(key: &Key32, journals: [&'a [u8]; 2], size: u64, boot: BootId) -> Result<Found<'a>> {
    let mut newest: Option<(usize, Survey)> = None;
    for (index, journal) in journals.iter().enumerate() {
        let survey = match survey(key, journal) {
            Err(e) if e.kind() == Kind::Corrupt => continue,
            other => other?,
        };
        let is_newer = newest.as_ref().is_none_or(|(_, n)| n.header.generation < survey.header.generation);
        if survey.is_whole && is_newer {
            newest = Some((index, survey));
        }
    }
    let damaged = |why: &str| {
        let way_out = "restore the fork's folder from a copy, or drop the fork";
        Error::corrupt(format!("the fork's journal is damaged: {why}; {way_out}"))
    };
    let (active, survey) = newest.ok_or_else(|| damaged("neither of its files is whole"))?;
    let journal = journals[active];
    let len = journal.len() as u64;
    if survey.is_retired {
        return Err(damaged("its newer file is not whole"));
    }
    if survey.is_damaged {
        return Err(damaged("it breaks off before a part that it knows was written"));
    }
    if survey.end + MARGIN > len {
        return Err(damaged("its file was cut off"));
    }
    if survey.header.size != size {
        return Err(damaged(&format!("it is that of a disk of {} bytes", survey.header.size)));
    }
    let believed = survey.header.boot == boot && !survey.is_distrusted;
    let blocks = size.div_ceil(BLOCK as u64);
    let mut state = Replay { map: BlockMap::new(blocks), contents: BTreeMap::new() };
    for (offset, entry) in Records::new(journal, survey.start) {
        let is_in_data = believed || offset < survey.firm;
        state.apply(entry, is_in_data).ok_or_else(|| damaged("it speaks of blocks that the disk does not have"))?;
    }
    let Survey { header, chain, end, firm, .. } = survey;
    // Whatever is appended to it is worth little: a new generation comes first.
    let tail = Tail { active, header, chain, end, len, durable: 0, firm, said: end, limit: end, buffer: Vec::new() };
    Ok(Found { map: state.map, contents: state.contents, tail })
}

fn survey(key: &Key32, journal: &[u8]) -> Result<Survey> {
    let (header, start) = Header::decode(key, journal)?;
    let mut records = Records::new(journal, start.clone());
    let (mut firm, mut is_whole, mut is_distrusted, mut is_retired) = (0, false, false, false);
    for (offset, entry) in records.by_ref() {
        match entry {
            Entry::Begun => {
                is_whole = true;
                firm = offset;
            }
            Entry::Commit { firm: said, .. } => firm = said.max(firm),
            Entry::Distrust => is_distrusted = true,
            Entry::Retired => is_retired = true,
            _ => {}
        }
    }
    let (end, is_damaged) = (records.offset(), records.is_damaged());
    let chain = records.into_chain();
    Ok(Survey { header, start, chain, end, firm, is_whole, is_distrusted, is_retired, is_damaged })
}

struct Replay<'a> {
    map: BlockMap,
    contents: BTreeMap<u64, &'a [u8]>,
}

impl<'a> Replay<'a> {
    /// `is_in_data`: what the record calls ours lies in the data. `None` when it makes no sense.
    fn apply(&mut self, entry: Entry<'a>, is_in_data: bool) -> Option<()> {
        match entry {
            Entry::Touch(blocks) => {
                self.check(&blocks)?;
                if is_in_data {
                    self.forget(&blocks);
                    self.map.own(blocks);
                }
            }
            Entry::Zero(blocks) => {
                self.check(&blocks)?;
                self.forget(&blocks);
                self.map.zero(blocks);
            }
            Entry::Store { first, sealed } => {
                let blocks = self.stored(first, sealed)?;
                match is_in_data {
                    true => self.forget(&blocks),
                    false => self.remember(first, sealed),
                }
                self.map.own(blocks);
            }
            Entry::Redo { first, sealed } => {
                let blocks = self.stored(first, sealed)?;
                self.remember(first, sealed);
                self.map.own(blocks);
            }
            Entry::Map { region, masks } => {
                let (pairs, rest) = masks.as_chunks::<16>();
                if !rest.is_empty() {
                    return None;
                }
                for (region, pair) in (region..).zip(pairs) {
                    let (ours, zeroed) = pair.split_first_chunk::<8>()?;
                    let (ours, zeroed) = (u64::from_le_bytes(*ours), u64::from_le_bytes(zeroed.try_into().ok()?));
                    let end =
                        region.checked_mul(REGION)?.checked_add(REGION - u64::from((ours | zeroed).leading_zeros()))?;
                    self.check(&(0..end))?;
                    self.map.set(region, Masks { ours, zeroed: zeroed & !ours, allocated: ours, fresh: 0 });
                }
            }
            Entry::Commit { .. } | Entry::Begun | Entry::Distrust | Entry::Retired => {}
        }
        Some(())
    }

    fn check(&self, blocks: &Range<u64>) -> Option<()> {
        (blocks.start <= blocks.end && blocks.end <= self.map.blocks()).then_some(())
    }

    fn stored(&self, first: u64, sealed: &[u8]) -> Option<Range<u64>> {
        let blocks = first..first.checked_add((sealed.len() / BLOCK) as u64)?;
        self.check(&blocks).filter(|()| sealed.len().is_multiple_of(BLOCK))?;
        Some(blocks)
    }

    fn remember(&mut self, first: u64, sealed: &'a [u8]) {
        self.contents.extend((first..).zip(sealed.chunks_exact(BLOCK)));
    }

    fn forget(&mut self, blocks: &Range<u64>) {
        while let Some((block, _)) = self.contents.range(blocks.clone()).next() {
            let block = *block;
            self.contents.remove(&block);
        }
    }
}
