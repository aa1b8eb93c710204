//! A moment as an argument: a time, or how long ago it was.
//!
//! Not here: the clock, and what is looked at since then.

use coffer_repo::retention::Stretch;
use coffer_repo::time::Timestamp;
use std::str::FromStr;

/// What `--since` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// That moment.
    Time(Timestamp),
    /// So long before now.
    Ago(Stretch),
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let time = text.parse().map(Since::Time);
        time.or_else(|_| text.parse().map(Since::Ago))
            .map_err(|_| "neither a time like 2026-11-21T02-00-00Z nor a length of time like 7d".to_owned())
    }
}

impl Since {
    /// The moment, given what time it is.
    pub(crate) fn before(self, now: Timestamp) -> Timestamp {
        match self {
            Since::Time(time) => time,
            Since::Ago(stretch) => stretch.back_from(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_time_or_a_length_of_it() {
        let now: Timestamp = "2026-11-21T02-00-00Z".parse().unwrap();
        let before = |text: &str| text.parse::<Since>().map(|since| since.before(now).to_string());
        assert_eq!(before("2026-01-01T00-00-00Z").unwrap(), "2026-01-01T00-00-00Z");
        assert_eq!(before("1m7d2h").unwrap(), "2026-10-14T00-00-00Z");
        assert_eq!(before("9999y").unwrap(), "1970-01-01T00-00-00Z");
        for bad in ["", "yesterday", "7", "2026-01-01"] {
            assert!(before(bad).is_err(), "{bad}");
        }
    }
}
