//! The data of one write on their way in: what was sent without being asked for, what was asked for, what is missing.
//!
//! ```text
//!   command with immediate data | unsolicited Data-Out .. F | R2T -> Data-Out .. F | R2T -> ..
//! ```
//! Not here: the bytes. Pure. What holds: bytes go only where they were asked for, or allowed; what was lost or damaged is asked for
//! again at recovery level 1, a bounded number of times; with level 0 anything out of order is an error.

use crate::pdu::{DataOut, NO_TAG};
use std::collections::VecDeque;
use std::ops::Range;

/// How often the data of one command are asked for again.
const MAX_RECOVERIES: u32 = 32;

/// See the file's header.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    /// What comes without being asked for.
    unsolicited: Option<Burst>,
    /// What was asked for.
    asked: Vec<Burst>,
    /// What is to be asked for.
    wanted: VecDeque<Range<u32>>,
    /// Where what comes without being asked for ended.
    given: u32,
    r2t_sn: u32,
    recoveries: u32,
}

/// A sequence of Data-Out PDUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Burst {
    pub(crate) target_tag: u32,
    pub(crate) r2t_sn: u32,
    pub(crate) range: Range<u32>,
    next: u32,
    data_sn: u32,
}

/// What to do with the bytes of a Data-Out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// They belong here.
    At(usize),
    /// They came before, or what asked for them is over.
    Skip,
}

/// A Data-Out that nobody asked for, or out of order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfPlace;

impl Gathering {
    /// After `immediate` bytes with the command; `more` when others follow unasked, up to `limit` together.
    pub(crate) fn new(immediate: u32, more: bool, limit: u32) -> Self {
        let burst = Burst { target_tag: NO_TAG, r2t_sn: 0, range: immediate..limit, next: immediate, data_sn: 0 };
        Gathering { unsolicited: more.then_some(burst), given: immediate, ..Gathering::default() }
    }

    /// Whether data come without being asked for.
    pub(crate) fn is_open(&self) -> bool {
        self.unsolicited.is_some()
    }

    /// Whether everything is there.
    pub(crate) fn is_complete(&self) -> bool {
        self.unsolicited.is_none() && self.asked.is_empty() && self.wanted.is_empty()
    }

    /// Whether it is the initiator's turn to send.
    pub(crate) fn is_due(&self) -> bool {
        self.unsolicited.is_some() || !self.asked.is_empty()
    }

    /// How many requests for data there were.
    pub(crate) fn requests(&self) -> u32 {
        self.r2t_sn
    }

    /// Requests that are not answered, from the number `first` on.
    pub(crate) fn open_requests(&self, first: u32) -> impl Iterator<Item = &Burst> {
        self.asked.iter().filter(move |burst| burst.r2t_sn >= first)
    }

    /// What came unasked is over: `need` bytes are needed in all.
    pub(crate) fn need(&mut self, need: u32) {
        if self.given < need {
            self.wanted.push_back(self.given..need);
            self.given = need;
        }
    }

    /// The next request for data, if one may be made.
    pub(crate) fn ask(&mut self, target_tag: u32, most: usize, max_burst: u32) -> Option<Burst> {
        if self.asked.len() >= most || self.unsolicited.is_some() {
            return None;
        }
        let mut range = self.wanted.pop_front()?;
        if range.end - range.start > max_burst {
            let rest = range.start + max_burst..range.end;
            range.end = rest.start;
            self.wanted.push_front(rest);
        }
        let burst = Burst { target_tag, r2t_sn: self.r2t_sn, next: range.start, range, data_sn: 0 };
        self.r2t_sn += 1;
        self.asked.push(burst.clone());
        Some(burst)
    }

    /// Where the `len` bytes of a Data-Out belong.
    pub(crate) fn place(&self, data: &DataOut, len: u32, may_recover: bool) -> Result<Place, OutOfPlace> {
        let Some(burst) = self.burst(data.target_tag) else {
            // What was asked for again may still be on its way from the first time.
            return if may_recover { Ok(Place::Skip) } else { Err(OutOfPlace) };
        };
        let end = data.offset.checked_add(len).ok_or(OutOfPlace)?;
        if data.offset < burst.range.start || end > burst.range.end {
            return Err(OutOfPlace);
        }
        let is_next = data.data_sn == burst.data_sn && data.offset == burst.next;
        match may_recover {
            _ if is_next => Ok(Place::At(data.offset as usize)),
            true if data.data_sn > burst.data_sn && data.offset > burst.next => Ok(Place::At(data.offset as usize)),
            true if data.data_sn < burst.data_sn => Ok(Place::Skip),
            _ => Err(OutOfPlace),
        }
    }

    /// Notes a Data-Out that [`Gathering::place`] gave a place; `is_sound` unless it was damaged on the way. `Err` when that happened
    /// too often.
    pub(crate) fn arrived(&mut self, data: &DataOut, len: u32, is_sound: bool) -> Result<(), OutOfPlace> {
        let end = data.offset.saturating_add(len);
        let Some(burst) = self.burst_mut(data.target_tag) else { return Ok(()) };
        let mut holes = Vec::new();
        // What lies between was lost.
        if burst.next < data.offset {
            holes.push(burst.next..data.offset);
        }
        if !is_sound && len > 0 {
            holes.push(data.offset..end);
        }
        burst.next = end;
        burst.data_sn = data.data_sn.wrapping_add(1);
        if data.is_final {
            let range = burst.range.clone();
            let is_unsolicited = data.target_tag == NO_TAG;
            if is_unsolicited {
                self.unsolicited = None;
                self.given = end;
            } else {
                if end < range.end {
                    holes.push(end..range.end);
                }
                self.asked.retain(|burst| burst.target_tag != data.target_tag);
            }
        }
        for hole in holes.into_iter().rev() {
            self.recoveries += 1;
            self.wanted.push_front(hole);
        }
        if self.recoveries > MAX_RECOVERIES { Err(OutOfPlace) } else { Ok(()) }
    }

    /// Nothing more is wanted, and what comes all the same is skipped.
    pub(crate) fn give_up(&mut self) {
        self.unsolicited = None;
        self.asked.clear();
        self.wanted.clear();
    }

    fn burst(&self, target_tag: u32) -> Option<&Burst> {
        match target_tag {
            NO_TAG => self.unsolicited.as_ref(),
            tag => self.asked.iter().find(|burst| burst.target_tag == tag),
        }
    }

    fn burst_mut(&mut self, target_tag: u32) -> Option<&mut Burst> {
        match target_tag {
            NO_TAG => self.unsolicited.as_mut(),
            tag => self.asked.iter_mut().find(|burst| burst.target_tag == tag),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(target_tag: u32, data_sn: u32, offset: u32, is_final: bool) -> DataOut {
        DataOut { tag: 1, target_tag, is_final, data_sn, offset }
    }

    #[test]
    fn data_come_unasked_and_asked_for_until_all_are_there() {
        let mut gathering = Gathering::new(100, true, 300);
        assert!(gathering.is_open() && gathering.ask(1, 8, 512).is_none());
        assert_eq!(gathering.place(&data(NO_TAG, 0, 100, false), 100, false), Ok(Place::At(100)));
        gathering.arrived(&data(NO_TAG, 0, 100, false), 100, true).unwrap();
        for wrong in
            [data(NO_TAG, 0, 200, true), data(NO_TAG, 1, 100, true), data(NO_TAG, 2, 200, true), data(5, 1, 200, true)]
        {
            assert_eq!(gathering.place(&wrong, 50, false), Err(OutOfPlace), "{wrong:?}");
        }
        let last = data(NO_TAG, 1, 200, true);
        assert_eq!(gathering.place(&last, 101, false), Err(OutOfPlace), "beyond the first burst");
        gathering.arrived(&last, 50, true).unwrap();
        assert!(!gathering.is_open() && gathering.is_complete());
        gathering.need(1000);
        assert!(!gathering.is_due(), "nothing was asked for yet");
        assert_eq!(gathering.ask(7, 2, 512).unwrap().range, 250..762);
        assert_eq!(gathering.ask(8, 2, 512).unwrap().range, 762..1000);
        assert!(gathering.ask(9, 2, 512).is_none() && gathering.requests() == 2 && gathering.is_due());
        assert_eq!(gathering.place(&data(8, 0, 762, true), 238, false), Ok(Place::At(762)));
        assert_eq!(gathering.place(&data(8, 0, u32::MAX, true), 238, true), Err(OutOfPlace));
        gathering.arrived(&data(8, 0, 762, true), 238, true).unwrap();
        gathering.arrived(&data(7, 0, 250, true), 512, true).unwrap();
        assert!(gathering.is_complete());
    }

    #[test]
    fn what_is_lost_or_damaged_is_asked_for_again() {
        let mut gathering = Gathering::new(0, false, 0);
        gathering.need(400);
        gathering.ask(1, 1, 400).unwrap();
        gathering.arrived(&data(1, 0, 0, false), 100, false).unwrap();
        assert_eq!(gathering.place(&data(1, 0, 0, false), 100, true), Ok(Place::Skip), "it came before");
        assert_eq!(gathering.place(&data(1, 2, 200, false), 100, true), Ok(Place::At(200)));
        assert_eq!(gathering.place(&data(1, 2, 200, false), 100, false), Err(OutOfPlace));
        gathering.arrived(&data(1, 2, 200, true), 100, true).unwrap();
        let again: Vec<_> = (2..5).map(|tag| gathering.ask(tag, 8, 400).unwrap().range).collect();
        assert_eq!(again, [100..200, 300..400, 0..100]);
        assert_eq!(gathering.open_requests(2).count(), 2);
        for round in 0..MAX_RECOVERIES * 2 {
            let tag = 10 + round;
            if gathering.arrived(&data(tag - 6, 0, 0, true), 100, false).is_err() {
                return;
            }
            let burst = gathering.asked.iter().find(|b| b.range == (0..100)).map(|b| b.target_tag);
            let tag = burst.unwrap_or_else(|| gathering.ask(tag, 8, 400).unwrap().target_tag);
            if gathering.arrived(&data(tag, 0, 0, true), 100, false).is_err() {
                return;
            }
        }
        panic!("it was asked for again for ever");
    }
}
