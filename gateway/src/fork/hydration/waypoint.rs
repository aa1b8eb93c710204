//! How far a hydration has come, as it is written down. Pure: bytes in, values out.
//!
//! ```text
//!   length of the record (8, little endian) | record: canonical CBOR | BLAKE3 of the record (32)
//! ```
//! Not here: where it lies ([`super::logbook`]). What holds: decoding never panics, and accepts nothing that is not whole. The hash is
//! against torn writes and worn disks, and keeps nobody out who can write to the fork's folder: whatever is believed here is read back
//! and compared before a fork is handed over.

use crate::{Error, Kind, Result};
use coffer_repo::cbor::Map;

const VERSION: u64 = 1;
const HASH: usize = 32;

/// A durable note of how far a hydration has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waypoint {
    /// Of two the higher is the newer one.
    pub sequence: u64,
    /// Where the disk is brought to.
    pub target: String,
    /// What the fork builds on: what was copied of another base does not count.
    pub base: String,
    /// The disk's size in bytes.
    pub size: u64,
    /// What a bit stands for, in bytes.
    pub region: u64,
    /// A bit for each region, the lowest of the first byte first: it was copied when no layer had touched it, and is durable.
    pub copied: Vec<u8>,
}

impl Waypoint {
    /// The bytes that are written.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let record = Map::new()
            .with("v", VERSION)
            .with("sequence", self.sequence)
            .with("target", self.target.as_str())
            .with("base", self.base.as_str())
            .with("size", self.size)
            .with("region", self.region)
            .with("copied", self.copied.as_slice())
            .encode()?;
        let mut bytes = (record.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(&record);
        bytes.extend_from_slice(blake3::hash(&record).as_bytes());
        Ok(bytes)
    }

    /// Reads the bytes; what follows them does not matter. `Corrupt` when they are not whole.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let torn = || Error::corrupt("a note of a hydration is not whole");
        let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(torn)?;
        let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| torn())?;
        let (record, rest) = rest.split_at_checked(length).ok_or_else(torn)?;
        if rest.first_chunk::<HASH>() != Some(blake3::hash(record).as_bytes()) {
            return Err(torn());
        }
        let map = Map::decode(record)?;
        let version = map.uint("v")?;
        if version != VERSION {
            let why = format!("a hydration of version {version}, which this version does not know");
            return Err(Error::new(Kind::Unsupported, why));
        }
        let (size, region, copied) = (map.uint("size")?, map.uint("region")?, map.bytes("copied")?.to_vec());
        if !region.is_power_of_two() || copied.len() as u64 != size.div_ceil(region).div_ceil(8) {
            return Err(Error::corrupt("a note of a hydration whose bits do not fit its disk"));
        }
        let text = |key: &str| map.text(key).map(str::to_owned);
        let (sequence, target, base) = (map.uint("sequence")?, text("target")?, text("base")?);
        Ok(Waypoint { sequence, target, base, size, region, copied })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Waypoint {
        Waypoint {
            sequence: 9,
            target: "/dev/vg/web".into(),
            base: "a point".into(),
            size: (19 << 18) + 1,
            region: 1 << 18,
            copied: vec![1, 2, 3],
        }
    }

    #[test]
    fn notes_round_trip_and_no_cut_or_flip_of_one_is_one() {
        let bytes = sample().encode().unwrap();
        assert_eq!(Waypoint::decode(&bytes).unwrap(), sample());
        let longer = [&bytes[..], &[0; 99]].concat();
        assert_eq!(Waypoint::decode(&longer).unwrap(), sample());
        for at in 0..bytes.len() {
            assert!(Waypoint::decode(&bytes[..at]).is_err(), "{at}");
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(Waypoint::decode(&flipped).is_err(), "{at}");
        }
        for wrong in [Waypoint { region: 3, ..sample() }, Waypoint { size: 1, ..sample() }] {
            assert!(Waypoint::decode(&wrong.encode().unwrap()).is_err());
        }
    }
}
