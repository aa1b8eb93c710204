//! How fast bytes may go at which time of day: `20M`, or `08:00-18:00=20M,*=0`.
//!
//! ```text
//!   RULE[,RULE ..]     RULE: RATE, or FROM-TO=RATE, or *=RATE       FROM, TO: hh:mm; TO may lie on the next day
//!                      RATE: bytes a second with K, M, G; 0: no limit. The first rule that covers a time counts.
//! ```
//! Not here: clocks (the program tells the minute of the day, by whatever time its user lives in), buckets of tokens
//! ([`crate::pace`]). What holds: it is pure; a time that no rule covers has no limit.

use super::address::parse_size;
use crate::error::{Error, Result};
use std::sync::Arc;

/// Tells the minute of the day where the program's user lives.
pub type MinuteOfDay = Arc<dyn Fn() -> u16 + Send + Sync>;

/// Minutes in a day.
const DAY: u16 = 24 * 60;

/// Limits by the time of day; the default is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule(Vec<Rule>);

/// From one minute of the day to before another, on the next day when it is not later; equal: the whole day.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    from: u16,
    to: u16,
    rate: Option<u64>,
}

impl Schedule {
    /// Reads rules; `Invalid` names the one that is none.
    pub fn parse(text: &str) -> Result<Schedule> {
        text.split(',').map(|rule| Rule::parse(rule.trim())).collect::<Result<_>>().map(Schedule)
    }

    /// Bytes a second at this minute of the day; `None`: no limit.
    #[must_use]
    pub fn rate_at(&self, minute: u16) -> Option<u64> {
        self.0.iter().find(|rule| rule.covers(minute % DAY)).and_then(|rule| rule.rate)
    }

    /// Whether no time has a limit.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.0.iter().all(|rule| rule.rate.is_none())
    }
}

impl Rule {
    fn parse(text: &str) -> Result<Rule> {
        let (from, to, rate) = match text.split_once('=') {
            None => (0, 0, text),
            Some(("*", rate)) => (0, 0, rate),
            Some((times, rate)) => {
                let (from, to) = times.split_once('-').ok_or_else(|| refused(text))?;
                (parse_minute(from).ok_or_else(|| refused(text))?, parse_minute(to).ok_or_else(|| refused(text))?, rate)
            }
        };
        let rate = Some(parse_size(rate)?).filter(|rate| *rate > 0);
        Ok(Rule { from, to, rate })
    }

    fn covers(&self, minute: u16) -> bool {
        match self.from.cmp(&self.to) {
            std::cmp::Ordering::Less => (self.from..self.to).contains(&minute),
            std::cmp::Ordering::Equal => true,
            std::cmp::Ordering::Greater => minute >= self.from || minute < self.to,
        }
    }
}

fn refused(rule: &str) -> Error {
    let rule: String = rule.chars().take(40).collect();
    Error::invalid(format!("'{rule}' is no rule: write RATE, hh:mm-hh:mm=RATE or *=RATE, as in 08:00-18:00=20M,*=0"))
}

/// A time of day in minutes; 24:00 is the next day's beginning.
fn parse_minute(text: &str) -> Option<u16> {
    let (hours, minutes) = text.trim().split_once(':')?;
    if hours.len() != 2 || minutes.len() != 2 {
        return None;
    }
    let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
    let minute = hours * 60 + minutes;
    (minutes < 60 && minute <= DAY).then_some(minute % DAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(schedule: &str, time: &str) -> Option<u64> {
        Schedule::parse(schedule).unwrap().rate_at(parse_minute(time).unwrap())
    }

    #[test]
    fn the_first_rule_that_covers_a_time_counts() {
        const DAYTIME: &str = "08:00-18:00=20M, *=0";
        for (time, rate) in [("07:59", None), ("08:00", Some(20 << 20)), ("17:59", Some(20 << 20)), ("18:00", None)] {
            assert_eq!(at(DAYTIME, time), rate, "{time}");
        }
        const NIGHT: &str = "22:30-06:00=0,*=512K";
        for (time, rate) in
            [("22:29", Some(512 << 10)), ("22:30", None), ("00:00", None), ("05:59", None), ("06:00", Some(512 << 10))]
        {
            assert_eq!(at(NIGHT, time), rate, "{time}");
        }
        assert_eq!((at("1M", "00:00"), at("1M", "23:59")), (Some(1 << 20), Some(1 << 20)));
        assert_eq!((at("20:00-24:00=1K", "23:59"), at("20:00-24:00=1K", "00:00")), (Some(1024), None));
    }

    #[test]
    fn nothing_said_is_no_limit() {
        assert!(Schedule::default().is_unlimited() && Schedule::parse("*=0").unwrap().is_unlimited());
        assert!(!Schedule::parse("00:00-00:01=1,*=0").unwrap().is_unlimited());
        assert_eq!(Schedule::default().rate_at(5), None);
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for bad in [
            "",
            "fast",
            "8:00-18:00=1M",
            "08:00=1M",
            "08:00-18:00",
            "08:60-09:00=1M",
            "25:00-26:00=1M",
            "*=",
            "1M,",
            "-=1",
        ] {
            assert!(Schedule::parse(bad).is_err(), "{bad:?}");
        }
    }
}
