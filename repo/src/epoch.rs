//! Data-key epochs as records: `epochs/<epoch>`, the authority's word that new data packs are sealed to another key from now on
//! (FORMAT.md section 3.1).
//!
//! Not here: how an epoch begins ([`crate::rotation`]), which private halves a session has ([`crate::keys`]). Pure: names and
//! bytes. What holds: an epoch is written once, put-if-absent, under its number, so that of two rotations at once one fails.

use crate::cbor::Map;
use crate::crypto::DataPublic;
use crate::error::{Error, Result};
use crate::time::Timestamp;

/// The epoch of a new repository's data key, which is in every bundle and under no name. 0 stands for "none" in the headers of
/// tree packs.
pub const FIRST: u32 = 1;

/// A data key as it was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// Its number: rising, from 2 on.
    pub number: u32,
    /// What new data packs are sealed to.
    pub public: DataPublic,
    /// When it began.
    pub time: Timestamp,
}

impl Epoch {
    /// Prefix of all epochs.
    pub const PREFIX: &'static str = "epochs/";

    /// The object of the epoch `number`.
    #[must_use]
    pub fn name(number: u32) -> String {
        format!("{}{number:08x}", Self::PREFIX)
    }

    /// The number of an object's name, `None` when it is not spelt as [`Epoch::name`] spells it.
    #[must_use]
    pub fn parse_name(object: &str) -> Option<u32> {
        let number = u32::from_str_radix(object.strip_prefix(Self::PREFIX)?, 16).ok()?;
        (number > FIRST && Self::name(number) == object).then_some(number)
    }

    /// The body of the record.
    pub fn encode(&self) -> Result<Vec<u8>> {
        Map::new()
            .with("epoch", self.number)
            .with("public", self.public.as_bytes())
            .with("time", self.time.seconds())
            .encode()
    }

    /// The epoch `number` from its record's body; `Corrupt` when it is another one's.
    pub fn decode(number: u32, body: &[u8]) -> Result<Self> {
        let map = Map::decode(body)?;
        if map.u32("epoch")? != number {
            return Err(Error::corrupt(format!("{} tells of another epoch", Self::name(number))));
        }
        let public = DataPublic::new(map.array_of("public")?);
        Ok(Epoch { number, public, time: Timestamp::from_seconds(map.uint("time")?)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn an_epoch_round_trips_under_its_own_number_only() {
        let time = Timestamp::from_seconds(7).unwrap();
        let epoch = Epoch { number: 2, public: DataPublic::new([9; 32]), time };
        let body = epoch.encode().unwrap();
        assert_eq!(Epoch::decode(2, &body).unwrap(), epoch);
        assert_eq!(Epoch::decode(3, &body).unwrap_err().kind(), Kind::Corrupt);
        for cut in 0..body.len() {
            assert_eq!(Epoch::decode(2, &body[..cut]).unwrap_err().kind(), Kind::Corrupt, "{cut}");
        }
    }

    #[test]
    fn a_name_has_one_spelling() {
        assert_eq!(Epoch::name(0x1f), "epochs/0000001f");
        assert_eq!(Epoch::parse_name("epochs/0000001f"), Some(0x1f));
        for bad in ["epochs/00000001", "epochs/00000000", "epochs/0000001F", "epochs/2", "epochs/+0000002", "epochs/"] {
            assert_eq!(Epoch::parse_name(bad), None, "{bad}");
        }
    }
}
