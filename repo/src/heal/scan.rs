//! Looks through a disk for chunks, wherever they lie in it.
//!
//! ```text
//!   aligned     cut from end to end, as a backup would: finds what lies at multiples of 4 KiB
//!   shifted     what was found tells by how much everything lies elsewhere: the others are looked for just there, which finds
//!               those that ended with a window of the disk they come from
//!   sectors     when none of that gave anything: the same again, from the second sector of 512 bytes on, the third ... the eighth
//! ```
//!
//! Not here: places where a chunk is known to have been. What holds: it is known by its id what was found; what cannot be read is passed
//! over. Memory: two windows.

use super::graft::Graft;
use super::{DonorDisk, Ward, found};
use crate::chunker::Piece;
use crate::disk_map::BLOCK;
use crate::error::{Error, Result};
use crate::id::ChunkId;
use crate::location::Stored;
use crate::reader::Want;
use crate::verify::Place;
use std::collections::{BTreeMap, HashMap};

/// Least stretch by which bytes are expected to be shifted, and how many make a block.
const SECTOR: u64 = 512;
const SECTORS: u64 = BLOCK as u64 / SECTOR;
/// Shifts that are followed up, those by which most was found.
const SHIFTS: usize = 16;

/// Chunks that are still looked for. One may be missing where several maps lead to.
pub(super) type Missing = HashMap<ChunkId, Vec<Want>>;
type Places = HashMap<ChunkId, Vec<Place>>;

impl Ward<'_> {
    /// Looks through a disk for what is missing.
    pub(super) fn scan(
        &mut self,
        disk: &dyn DonorDisk,
        places: &Places,
        missing: &mut Missing,
        graft: &mut Graft<'_>,
    ) -> Result<()> {
        let mut has_given = self.report.sources.contains_key(&disk.name());
        for sector in 0..SECTORS {
            if missing.is_empty() || (sector > 0 && has_given) {
                break;
            }
            let shifts = self.cut(disk, sector * SECTOR, places, missing, graft)?;
            has_given |= !shifts.is_empty();
            self.follow(disk, shifts, places, missing, graft)?;
        }
        Ok(())
    }

    /// Cuts the disk from `start` on. By how much what was found lies elsewhere than on the disks it comes from, and how often.
    fn cut(
        &mut self,
        disk: &dyn DonorDisk,
        start: u64,
        places: &Places,
        missing: &mut Missing,
        graft: &mut Graft<'_>,
    ) -> Result<BTreeMap<i64, u64>> {
        let window = usize::try_from(self.repo.geometry().window).map_err(|_| Error::internal("a window of 4 GiB"))?;
        let (chunker, size) = (self.repo.disk_chunker()?, disk.size()?);
        let mut shifts = BTreeMap::new();
        let (mut at, mut bytes) = (start, Vec::new());
        while at < size && !missing.is_empty() {
            self.cancel.check()?;
            let len = usize::try_from(size - at).map_or(window, |left| left.min(window));
            bytes.clear();
            bytes.resize(len.next_multiple_of(BLOCK as usize), 0);
            if found(disk.read_at(at, bytes.get_mut(..len).unwrap_or_default()))?.is_none() {
                at += len as u64;
                continue;
            }
            let mut last = 0;
            for piece in chunker.window(&bytes)? {
                let Piece::Chunk(range) = piece else { continue };
                last = range.start;
                let plain = bytes.get(range).ok_or_else(|| Error::internal("the chunker cut outside its window"))?;
                let id = self.repo.keys().id_key().chunk_id(plain);
                for want in missing.remove(&id).unwrap_or_default() {
                    self.healed(graft, Stored::Chunk(id), want.at, &disk.name(), plain)?;
                    for place in places.get(&id).into_iter().flatten() {
                        *shifts.entry(shift(place.offset, at + last as u64)?).or_default() += 1;
                    }
                }
            }
            // The last chunk was cut short by the window, unless the disk ends there, too.
            let is_cut_short = last > 0 && at + (len as u64) < size;
            at += if is_cut_short { last as u64 } else { len as u64 };
        }
        Ok(shifts)
    }

    /// Looks for what is missing where it lies if it was shifted like the rest.
    fn follow(
        &mut self,
        disk: &dyn DonorDisk,
        shifts: BTreeMap<i64, u64>,
        places: &Places,
        missing: &mut Missing,
        graft: &mut Graft<'_>,
    ) -> Result<()> {
        let mut shifts: Vec<(i64, u64)> = shifts.into_iter().collect();
        shifts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        shifts.truncate(SHIFTS);
        let mut bytes = Vec::new();
        let ids: Vec<ChunkId> = if shifts.is_empty() { Vec::new() } else { missing.keys().copied().collect() };
        for id in ids {
            self.cancel.check()?;
            let Some(want) = missing.get(&id).and_then(|wants| wants.first()).copied() else { continue };
            bytes.resize(want.at.raw_len as usize, 0);
            let places = places.get(&id).into_iter().flatten();
            let tries =
                places.flat_map(|place| shifts.iter().map(|(shift, _)| place.offset.checked_add_signed(*shift)));
            for offset in tries.flatten() {
                if self.is_there(&want, disk, offset, &mut bytes)? {
                    for want in missing.remove(&id).unwrap_or_default() {
                        self.healed(graft, Stored::Chunk(id), want.at, &disk.name(), &bytes)?;
                    }
                    break;
                }
            }
        }
        Ok(())
    }
}

fn shift(from: u64, to: u64) -> Result<i64> {
    let signed = |offset| i64::try_from(offset).map_err(|_| Error::internal("a disk of 8 EiB"));
    Ok(signed(to)? - signed(from)?)
}
