//! The body of `verified/<record>` (FORMAT.md section 8): which packs a verification read whole, and which points it found nothing
//! wrong with.
//!
//! Not here: sealing, storage, and what follows ([`crate::verify`]). Pure: bytes in, values out. What holds: decoding never panics;
//! ids are in rising order, so that a record has one spelling. Times are for people and for choosing what to read next; a proof
//! says what was read, and not that it can still be read.

use crate::cbor::{Map, Value};
use crate::error::{Error, Result};
use crate::id::{PackUid, RecordId, SnapshotId};
use crate::time::Timestamp;

/// Prefix of all such records.
pub const PREFIX: &str = "verified/";
/// Most packs of one record: 16 MiB of the 64 that a record may have.
pub const PACKS_MAX: usize = 1 << 20;

/// How much was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// That all is there, is genuine and fits together.
    Structure,
    /// That, and all content.
    Data,
}

/// What was found sound at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// When the verification began, or the earliest of several.
    pub time: Timestamp,
    /// How much of the points was looked at. Packs are always read whole.
    pub level: Level,
    /// Data packs of which every frame was opened and id-checked, rising.
    pub packs: Vec<PackUid>,
    /// Points that nothing was wrong with, rising.
    pub points: Vec<SnapshotId>,
}

/// A record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// What was found sound, time by time.
    pub proofs: Vec<Proof>,
    /// Records that this one takes the place of.
    pub superseded: Vec<RecordId>,
}

impl Verified {
    /// Body of the record.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let proof = |proof: &Proof| {
            let level = match proof.level {
                Level::Structure => "structure",
                Level::Data => "data",
            };
            let map = Map::new()
                .with("time", proof.time.seconds())
                .with("level", level)
                .with("packs", join(&proof.packs, |pack| &pack.0))
                .with("points", join(&proof.points, |point| &point.0));
            Value::from(map)
        };
        Map::new()
            .with("proofs", self.proofs.iter().map(proof).collect::<Vec<Value>>())
            .with("superseded", join(&self.superseded, |record| &record.0))
            .encode()
    }

    /// Reads a body. A level that this version does not know is `Corrupt`, as are ids out of order.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let map = Map::decode(body)?;
        Ok(Verified {
            proofs: map.list("proofs")?.iter().map(decode_proof).collect::<Result<_>>()?,
            superseded: split(map.bytes("superseded")?, RecordId)?,
        })
    }
}

fn decode_proof(value: &Value) -> Result<Proof> {
    let Value::Map(map) = value else { return Err(Error::corrupt("a proof is not a map")) };
    let level = match map.text("level")? {
        "structure" => Level::Structure,
        "data" => Level::Data,
        other => return Err(Error::corrupt(format!("a proof of level '{other}'"))),
    };
    Ok(Proof {
        time: Timestamp::from_seconds(map.uint("time")?)?,
        level,
        packs: split(map.bytes("packs")?, PackUid)?,
        points: split(map.bytes("points")?, SnapshotId)?,
    })
}

/// Ids laid end to end.
fn join<T>(ids: &[T], bytes: impl Fn(&T) -> &[u8; 16]) -> Vec<u8> {
    ids.iter().flat_map(|id| bytes(id).iter().copied()).collect()
}

fn split<T: Ord>(bytes: &[u8], id: impl Fn([u8; 16]) -> T) -> Result<Vec<T>> {
    let (ids, rest) = bytes.as_chunks::<16>();
    let ids: Vec<T> = ids.iter().map(|bytes| id(*bytes)).collect();
    if !rest.is_empty() || !ids.is_sorted_by(|a, b| a < b) {
        return Err(Error::corrupt("a list of ids that is cut short, or out of order"));
    }
    Ok(ids)
}

/// The name of a record.
#[must_use]
pub fn name(record: RecordId) -> String {
    format!("{PREFIX}{record}")
}

/// The record of an object's name, `None` when it is not spelt as [`name`] spells it.
#[must_use]
pub fn parse_name(object: &str) -> Option<RecordId> {
    object.strip_prefix(PREFIX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn proof(level: Level, n: u8) -> Proof {
        Proof {
            time: Timestamp::from_seconds(u64::from(n)).unwrap(),
            level,
            packs: (0..n).map(|i| PackUid([i; 16])).collect(),
            points: (0..n / 2).map(|i| SnapshotId([i; 16])).collect(),
        }
    }

    #[test]
    fn records_round_trip() {
        let full = Verified {
            proofs: vec![proof(Level::Data, 9), proof(Level::Structure, 0), proof(Level::Data, 1)],
            superseded: vec![RecordId([1; 16]), RecordId([7; 16])],
        };
        for verified in [Verified::default(), full] {
            assert_eq!(Verified::decode(&verified.encode().unwrap()).unwrap(), verified);
        }
    }

    #[test]
    fn the_longest_record_fits() {
        let uid = |n: usize| {
            let mut uid = [0; 16];
            uid[..8].copy_from_slice(&(n as u64).to_be_bytes());
            PackUid(uid)
        };
        let packs: Vec<_> = (0..PACKS_MAX).map(uid).collect();
        let longest = Verified { proofs: vec![Proof { packs, ..proof(Level::Data, 3) }], superseded: Vec::new() };
        assert!(longest.encode().unwrap().len() < crate::sealed::MAX_LEN / 3);
    }

    #[test]
    fn lists_that_are_out_of_order_or_cut_short_are_refused() {
        let ids = |bytes: Vec<u8>| {
            let map = Map::new().with("proofs", Vec::<Value>::new()).with("superseded", bytes);
            Verified::decode(&map.encode().unwrap())
        };
        assert!(ids([[1; 16], [2; 16]].concat()).is_ok());
        for bad in [[[2; 16], [1; 16]].concat(), [[1; 16], [1; 16]].concat(), vec![0; 15], vec![0; 17]] {
            assert_eq!(ids(bad).unwrap_err().kind(), Kind::Corrupt);
        }
    }

    #[test]
    fn names_round_trip_and_foreign_names_are_none() {
        let record = RecordId([3; 16]);
        assert_eq!(parse_name(&name(record)), Some(record));
        for bad in ["verified/", "verified/x", &format!("{}/x", name(record)), "notes/00"] {
            assert_eq!(parse_name(bad), None, "{bad}");
        }
    }
}
