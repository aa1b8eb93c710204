//! Where a hydration writes down how far it has come: two places in one file, of which the newer that is whole counts.
//!
//! ```text
//!   0 | waypoint 2, 4, 6 ..            half | waypoint 1, 3, 5 ..            both start at multiples of 4 KiB
//! ```
//! Not here: what a waypoint says. What holds: a waypoint is written where the older one is, and synced before it counts; so a crash at
//! any moment leaves the one before. A file in which none is whole says nothing, as one that was never written: then everything is
//! copied again, and nothing is lost.

use super::super::medium::Medium;
use super::waypoint::Waypoint;
use crate::{Error, Result};
use std::sync::Arc;

const PAGE: u64 = 4096;

/// The file.
pub(super) struct Logbook {
    medium: Arc<dyn Medium>,
    /// Of the newest waypoint in it.
    sequence: u64,
}

impl Logbook {
    /// Reads what is there, and gives the newest waypoint.
    pub(super) fn open(medium: Arc<dyn Medium>) -> Result<(Self, Option<Waypoint>)> {
        let len = medium.len()?;
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| Error::corrupt("a logbook beyond memory"))?];
        medium.read_at(0, &mut bytes)?;
        let (first, second) = bytes.split_at(bytes.len() / 2);
        let whole = [first, second].into_iter().filter_map(|half| Waypoint::decode(half).ok());
        let newest = whole.max_by_key(|waypoint| waypoint.sequence);
        let sequence = newest.as_ref().map_or(0, |waypoint| waypoint.sequence);
        Ok((Logbook { medium, sequence }, newest))
    }

    /// Forgets everything, so that another hydration can begin.
    pub(super) fn clear(&mut self) -> Result<()> {
        self.medium.set_len(0)?;
        self.medium.sync()?;
        self.sequence = 0;
        Ok(())
    }

    /// Writes a waypoint, durably. Its sequence is given to it here.
    pub(super) fn save(&mut self, waypoint: Waypoint) -> Result<()> {
        let bytes = Waypoint { sequence: self.sequence + 1, ..waypoint }.encode()?;
        let len = bytes.len() as u64;
        if self.medium.is_empty()? {
            // The number in it grows.
            self.medium.set_len(2 * (len.next_multiple_of(PAGE) + PAGE))?;
        }
        let half = self.medium.len()? / 2;
        if len > half {
            return Err(Error::internal("a waypoint that outgrew its place"));
        }
        self.medium.write_at((self.sequence + 1) % 2 * half, &bytes)?;
        self.medium.sync()?;
        self.sequence += 1;
        Ok(())
    }
}
