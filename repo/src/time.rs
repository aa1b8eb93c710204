//! A point in time as the repository writes it: whole seconds since 1970 in UTC, spelt so that it can be a folder's name.
//!
//! Not here: reading a clock. Libraries take the time as an argument; no safety rests on it.

use crate::error::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// Seconds since 1970-01-01T00:00:00Z. Shown and parsed as `2026-11-21T02-00-00Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

/// The end of the year 9999, but for the last day, which time zones may push over what four digits can say.
const LAST: u64 = 253_402_207_200;

impl Timestamp {
    /// Takes seconds since 1970; later than the year 9999 is `Corrupt`, since it can only have been read from damage.
    pub fn from_seconds(seconds: u64) -> Result<Self> {
        if seconds > LAST {
            return Err(Error::corrupt(format!("a time of {seconds} seconds lies beyond the year 9999")));
        }
        Ok(Timestamp(seconds))
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn seconds(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.0).map_err(|_| fmt::Error)?;
        let at = jiff::Timestamp::from_second(seconds).map_err(|_| fmt::Error)?;
        write!(f, "{}", at.strftime("%Y-%m-%dT%H-%M-%SZ"))
    }
}

impl FromStr for Timestamp {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::invalid(format!("'{text}' is not a time like 2026-11-21T02-00-00Z"));
        let civil = jiff::civil::DateTime::strptime("%Y-%m-%dT%H-%M-%SZ", text).map_err(|_| wrong())?;
        let at = jiff::tz::TimeZone::UTC.to_timestamp(civil).map_err(|_| wrong())?;
        let parsed = Timestamp(u64::try_from(at.as_second()).map_err(|_| wrong())?);
        // One spelling each: "2026-1-2T..." would name another folder.
        if parsed.to_string() == text { Ok(parsed) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spelling_round_trips() {
        for seconds in [0, 1, 951_782_400, 1_795_226_400, LAST] {
            let t = Timestamp::from_seconds(seconds).unwrap();
            assert_eq!(t.to_string().parse::<Timestamp>().unwrap(), t, "{t}");
        }
        assert_eq!(Timestamp(1_795_226_400).to_string(), "2026-11-21T02-00-00Z");
        assert!(Timestamp::from_seconds(LAST + 1).is_err());
        for bad in ["", "2026-11-21", "2026-11-21T02:00:00Z", "2026-1-21T02-00-00Z", "2026-13-21T02-00-00Z", "x"] {
            assert!(bad.parse::<Timestamp>().is_err(), "{bad}");
        }
    }
}
