//! How long a snapshot wants what it needs to be locked against removal: `--lock-for 30d`.
//!
//! ```text
//!   a point of time T with the term L, looked at when it is `now`:
//!     due     max(T + L, now + L/2)     what a lock has to reach; else it is raised
//!     until   max(T + L, now + L)       what it is raised to, rounded up
//! ```
//! So nothing is unlocked before T + L, and as long as the point is kept and somebody raises locks at least every L/2, nothing ever is.
//! Rounding has many backups of a day ask for one date, so that what they share is raised once a day.
//!
//! Not here: locking ([`crate::locks`]). What holds: pure; a point that claims to be of the future counts as one of now, so that it
//! locks nothing for longer than its term.

use crate::error::{Error, Result};
use crate::time::Timestamp;
use std::fmt;
use std::str::FromStr;

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
/// What a number may be followed by, longest first.
const UNITS: [(char, u64); 4] = [('y', 365 * DAY), ('w', 7 * DAY), ('d', DAY), ('h', HOUR)];

/// A term in whole seconds, from 1 second to 100 years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockFor(u64);

/// What a lock has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due {
    /// What it has to reach.
    pub least: Timestamp,
    /// What it is raised to when it does not.
    pub until: Timestamp,
}

impl LockFor {
    /// The longest term, in seconds: what S3 takes.
    pub const LONGEST: u64 = 36_500 * DAY;

    /// `Invalid` for nothing and for more than [`LockFor::LONGEST`].
    pub fn from_seconds(seconds: u64) -> Result<Self> {
        match seconds {
            0 => Err(Error::invalid("a lock for no time at all; name a term such as 30d")),
            1..=Self::LONGEST => Ok(LockFor(seconds)),
            _ => Err(Error::invalid(format!("a lock for {seconds} seconds; 100 years is the longest"))),
        }
    }

    /// In seconds.
    #[must_use]
    pub fn seconds(self) -> u64 {
        self.0
    }

    /// The date that a lock made at `from` is given: the term, rounded up by less than an eighth and less than a day.
    pub fn until(self, from: Timestamp) -> Result<Timestamp> {
        let step = (self.0 / 8).clamp(1, DAY);
        Timestamp::from_seconds(from.seconds().saturating_add(self.0).next_multiple_of(step))
    }

    /// What the locks of a point of `time` have to be when it is `now`.
    pub fn due(self, time: Timestamp, now: Timestamp) -> Result<Due> {
        let first = time.min(now).seconds().saturating_add(self.0);
        let least = Timestamp::from_seconds(first.max(now.seconds().saturating_add(self.0 / 2)))?;
        Ok(Due { least, until: self.until(now)?.max(least) })
    }
}

impl Due {
    /// What the locks of a snapshot have to be that is being made: no less than until then.
    #[must_use]
    pub fn at(until: Timestamp) -> Self {
        Due { least: until, until }
    }
}

impl FromStr for LockFor {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let wrong =
            || Error::invalid(format!("'{text}' is no term: say a number of hours, days, weeks or years, as in 30d"));
        let unit = UNITS.iter().find(|(unit, _)| text.ends_with(*unit)).ok_or_else(wrong)?;
        let digits = text.strip_suffix(unit.0).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        let count: u64 = digits.and_then(|digits| digits.parse().ok()).ok_or_else(wrong)?;
        LockFor::from_seconds(count.saturating_mul(unit.1)).map_err(|e| e.within(format!("'{text}'")))
    }
}

impl fmt::Display for LockFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Years are for typing: 365 of them are not what anybody would say back.
        match UNITS.iter().skip(2).find(|(_, seconds)| self.0.is_multiple_of(*seconds)) {
            Some((unit, seconds)) => write!(f, "{}{unit}", self.0 / seconds),
            None => write!(f, "{} s", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_seconds(seconds).unwrap()
    }

    #[test]
    fn terms_are_read_and_shown() {
        for (text, seconds, shown) in
            [("12h", 12 * HOUR, "12h"), ("30d", 30 * DAY, "30d"), ("2w", 14 * DAY, "14d"), ("1y", 365 * DAY, "365d")]
        {
            let term: LockFor = text.parse().unwrap();
            assert_eq!((term.seconds(), term.to_string().as_str()), (seconds, shown));
        }
        assert_eq!(LockFor::from_seconds(90).unwrap().to_string(), "90 s");
        for bad in ["", "d", "30", "30m", "-1d", "+1d", "0d", "1.5d", "101y", "99999999999999999999d", "3d4h", "d3"] {
            assert_eq!(bad.parse::<LockFor>().unwrap_err().kind(), Kind::Invalid, "{bad}");
        }
    }

    #[test]
    fn a_lock_reaches_its_term_and_not_much_more() {
        for seconds in [1, 7, 90, HOUR, 5 * DAY, 30 * DAY] {
            let term = LockFor::from_seconds(seconds).unwrap();
            for from in [0, 1, 1_795_226_400] {
                let over = term.until(at(from)).unwrap().seconds() - (from + seconds);
                assert!(over < DAY.min(seconds.div_ceil(8).max(1)), "{seconds} from {from}: {over}");
            }
        }
        let month: LockFor = "30d".parse().unwrap();
        assert_eq!(month.until(at(DAY + 1)).unwrap(), month.until(at(2 * DAY)).unwrap());
        assert!(month.until(at(253_402_000_000)).is_err());
    }

    #[test]
    fn locks_are_due_for_the_term_and_then_for_half_of_it() {
        let term = LockFor::from_seconds(1000).unwrap();
        let due = |time, now| term.due(at(time), at(now)).unwrap();
        assert_eq!(due(5000, 5000).least, at(6000));
        assert_eq!(due(5000, 5400).least, at(6000));
        assert_eq!(due(5000, 5501).least, at(6001));
        // A lock that was just raised is not due again before half of the term.
        for now in (5000..9000).step_by(77) {
            let raised = due(5000, now).until;
            assert!(raised >= due(5000, now + 499).least && raised >= at(now + 1000), "{now}");
        }
        // Of the future.
        assert_eq!(due(9_000_000, 5000), due(5000, 5000));
    }
}
