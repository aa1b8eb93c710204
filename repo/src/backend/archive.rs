//! The seam to a store's cold tiers, whose objects have to be thawed before they can be read.
//!
//! ```text
//!   a rule of the bucket, or the class it was put with ──> Frozen ── thaw ──> Thawing ── minutes to days ──> Ready until T ──> Frozen
//! ```
//!
//! Not here: what is to be thawed, and when ([`crate::thaw`]). What holds of every implementation:
//! - A frozen object is listed, has its size and can be deleted; reading it fails as [`Kind::Frozen`](crate::Kind::Frozen).
//! - Thawing makes a copy that can be read for some days; the object stays where it is, and no byte of it changes.
//! - Asking twice is well: what is being thawed goes on, and of what was thawed the copy stays until the later of both dates.

use crate::error::{Error, Kind, Result};
use crate::time::Timestamp;
use std::fmt;
use std::str::FromStr;

/// A store with cold tiers.
pub trait Archive: Send + Sync {
    /// Whether frozen objects may be there, as far as a request or two can tell. `false` is believed only to save a look: an object that
    /// is frozen all the same says so when it is read.
    fn may_freeze(&self) -> Result<bool>;

    /// Calls `each` for every object whose name begins with `prefix` (empty, or ending in `/`), in no particular order.
    fn survey(&self, prefix: &str, each: &mut dyn FnMut(Surveyed) -> Result<()>) -> Result<()>;

    /// Whether `name` can be read now. `NotFound` when there is no such object.
    fn state(&self, name: &str) -> Result<State>;

    /// Asks the store to thaw `name`. `NotFound` when there is no such object; `Invalid` or `Unsupported`, with the way out, when the
    /// store does not do it.
    fn thaw(&self, name: &str, order: Order) -> Result<()>;
}

/// An object, and whether it lies where objects freeze.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surveyed {
    /// Its whole name.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// Its state has to be asked for; of any other object it is [`State::Ready`].
    pub is_cold: bool,
}

/// Whether an object can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Yes.
    Ready {
        /// As long as the thawed copy is there; `None`: for good.
        until: Option<Timestamp>,
    },
    /// No, and nobody has asked for it.
    Frozen,
    /// Not yet.
    Thawing,
}

/// How objects are thawed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// For how many days they can be read then: 1 to [`Order::MOST_DAYS`].
    pub days: u32,
    /// How soon.
    pub speed: Speed,
}

/// How soon an object is thawed; the sooner the dearer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speed {
    /// Amazon: 3 to 5 hours, 12 from the deep archive.
    #[default]
    Standard,
    /// Amazon: 5 to 12 hours, 48 from the deep archive; the cheapest.
    Bulk,
    /// Amazon: minutes; not from the deep archive, and by far the dearest.
    Expedited,
}

impl Order {
    /// The most days that anybody may ask for.
    pub const MOST_DAYS: u32 = 365;
}

impl Default for Order {
    /// Three days: time to begin and to repeat a restore.
    fn default() -> Self {
        Order { days: 3, speed: Speed::Standard }
    }
}

const SPEEDS: [(Speed, &str); 3] =
    [(Speed::Standard, "standard"), (Speed::Bulk, "bulk"), (Speed::Expedited, "expedited")];

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SPEEDS.iter().filter(|(speed, _)| speed == self).try_for_each(|(_, word)| f.write_str(word))
    }
}

impl FromStr for Speed {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let found = SPEEDS.iter().find(|(_, word)| *word == text).map(|(speed, _)| *speed);
        found.ok_or_else(|| Error::new(Kind::Invalid, format!("'{text}' is no speed: say standard, bulk or expedited")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_words() {
        for (speed, word) in SPEEDS {
            assert_eq!((word.parse::<Speed>().unwrap(), speed.to_string().as_str()), (speed, word));
        }
        assert_eq!("fast".parse::<Speed>().unwrap_err().kind(), Kind::Invalid);
    }
}
