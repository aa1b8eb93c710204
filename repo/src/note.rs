//! Notes: remarks on a snapshot, as bytes and names. What they are for so far is protection against removal.
//!
//! ```text
//!   notes/<record>     { snapshot, time, protect: true, reason }     protects the snapshot
//!   notes/<record>     { snapshot, time, ends: [<record>, ..] }      ends the protection by those notes
//! ```
//!
//! Not here: reading and writing them, and what follows ([`crate::protection`]). What holds: a note says one of the two, or
//! neither, when it is a remark that this version knows nothing of; its time is for people and decides nothing.

use crate::cbor::{Map, Value};
use crate::error::{Error, Result};
use crate::id::{RecordId, SnapshotId};
use crate::time::Timestamp;

/// A remark on a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// On which one.
    pub snapshot: SnapshotId,
    /// When it was made, if that was written down.
    pub time: Option<Timestamp>,
    /// What it says.
    pub remark: Remark,
}

/// What a note says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remark {
    /// The snapshot stays, until another note ends this one.
    Protect {
        /// Why, for people.
        reason: Option<String>,
    },
    /// These notes protect no longer.
    Unprotect {
        /// Their names.
        ends: Vec<RecordId>,
    },
    /// Something that this version does not know.
    Other,
}

impl Note {
    /// Prefix of all notes.
    pub const PREFIX: &'static str = "notes/";

    /// Name of the object that holds the note `record`.
    #[must_use]
    pub fn name(record: RecordId) -> String {
        format!("{}{record}", Self::PREFIX)
    }

    /// The note that an object's name is the name of.
    #[must_use]
    pub fn parse(name: &str) -> Option<RecordId> {
        name.strip_prefix(Self::PREFIX)?.parse().ok()
    }

    /// Body of the record.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut map = Map::new().with("snapshot", &self.snapshot.0);
        if let Some(time) = self.time {
            map.insert("time", time.seconds());
        }
        match &self.remark {
            Remark::Protect { reason } => {
                map.insert("protect", true);
                if let Some(reason) = reason {
                    map.insert("reason", reason.as_str());
                }
            }
            Remark::Unprotect { ends } => {
                map.insert("ends", ends.iter().map(|record| Value::from(&record.0)).collect::<Vec<_>>());
            }
            Remark::Other => {}
        }
        map.encode()
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let map = Map::decode(body)?;
        let remark = match (map.get("protect"), map.opt_list("ends")?) {
            (Some(Value::Bool(true)), None) => Remark::Protect { reason: map.opt_text("reason")?.map(str::to_owned) },
            (None, Some(ends)) => {
                let record = |value: &Value| match value {
                    Value::Bytes(bytes) => RecordId::from_slice(bytes),
                    _ => Err(Error::corrupt("a note ends another one by something else than bytes")),
                };
                Remark::Unprotect { ends: ends.iter().map(record).collect::<Result<_>>()? }
            }
            (None, None) => Remark::Other,
            _ => return Err(Error::corrupt("a note's 'protect' is not true, or stands beside 'ends'")),
        };
        Ok(Note {
            snapshot: SnapshotId(map.array_of("snapshot")?),
            time: map.opt_uint("time")?.map(Timestamp::from_seconds).transpose()?,
            remark,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn note(time: Option<u64>, remark: Remark) -> Note {
        Note { snapshot: SnapshotId([7; 16]), time: time.map(|t| Timestamp::from_seconds(t).unwrap()), remark }
    }

    #[test]
    fn notes_round_trip() {
        for note in [
            note(Some(1), Remark::Protect { reason: Some("the last good one".into()) }),
            note(None, Remark::Protect { reason: None }),
            note(Some(2), Remark::Unprotect { ends: vec![RecordId([1; 16]), RecordId([2; 16])] }),
            note(Some(3), Remark::Unprotect { ends: Vec::new() }),
            note(None, Remark::Other),
        ] {
            assert_eq!(Note::decode(&note.encode().unwrap()).unwrap(), note);
        }
    }

    #[test]
    fn the_keys_are_those_of_the_format() {
        let protect = note(Some(9), Remark::Protect { reason: Some("why".into()) });
        let map = Map::decode(&protect.encode().unwrap()).unwrap();
        let expected =
            Map::new().with("snapshot", &[7; 16]).with("time", 9u64).with("protect", true).with("reason", "why");
        assert_eq!(map, expected);
        let ends = note(Some(9), Remark::Unprotect { ends: vec![RecordId([1; 16])] });
        let map = Map::decode(&ends.encode().unwrap()).unwrap();
        let ends = vec![Value::from(&[1; 16])];
        assert_eq!(map, Map::new().with("snapshot", &[7; 16]).with("time", 9u64).with("ends", ends));
    }

    #[test]
    fn other_remarks_are_left_alone_and_contradictions_refused() {
        let about = || Map::new().with("snapshot", &[7; 16]);
        let other = about().with("tags", vec![Value::from("keep")]).with("reason", 7u64);
        assert_eq!(Note::decode(&other.encode().unwrap()).unwrap(), note(None, Remark::Other));
        for bad in [
            Map::new().with("protect", true),
            about().with("protect", false),
            about().with("protect", 1u64),
            about().with("protect", true).with("ends", Vec::<Value>::new()),
            about().with("protect", true).with("reason", 7u64),
            about().with("ends", true),
            about().with("ends", vec![Value::from(&[1; 15])]),
            about().with("ends", vec![Value::Null]),
            about().with("time", u64::MAX),
            Map::new().with("snapshot", &[7; 15]),
        ] {
            assert_eq!(Note::decode(&bad.encode().unwrap()).unwrap_err().kind(), Kind::Corrupt, "{bad:?}");
        }
    }

    #[test]
    fn names_round_trip() {
        let record = RecordId([0xab; 16]);
        assert_eq!(Note::parse(&Note::name(record)), Some(record));
        for other in ["notes/", "notes/AB", "forgets/abababababababababababababababab"] {
            assert_eq!(Note::parse(other), None, "{other}");
        }
    }
}
