//! The body of `moved/<uid>/<record>` (FORMAT.md section 8): where chunks or nodes of a pack lie now, or lie as well.
//!
//! Not here: sealing, storage, and following the hints ([`crate::detour`]). Pure: bytes in, values out. What holds: these are
//! hints and no more, since a writer may sign them: whoever follows one authenticates what it finds; decoding never panics and
//! refuses whatever the encoder does not write.

use crate::cbor::{Map, Value};
use crate::disk_map::Hint;
use crate::error::{Error, Result};
use crate::id::{PackUid, RecordId};
use crate::location::IndexKey;

/// Prefix of all moved records.
pub const PREFIX: &str = "moved/";
/// Most lines that are put into one record, which then takes about 3 MiB to decode. A pack of more frames takes several.
pub const MAX_LINES: usize = 10_000;

/// One frame of a pack and another place where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocated {
    /// First half of the chunk's or node's id.
    pub key: IndexKey,
    /// The other place. A chunk's pack is a data pack, a node's a tree pack.
    pub to: Hint,
}

/// A moved record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Its lines, in any order; several may be about one frame.
    pub lines: Vec<Relocated>,
}

impl Moved {
    /// Body of the record. `Invalid` beyond [`MAX_LINES`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        if self.lines.len() > MAX_LINES {
            return Err(Error::invalid(format!("{} lines are too many for a moved record", self.lines.len())));
        }
        let line = |line: &Relocated| {
            let Relocated { key, to: Hint { pack, offset, stored_len } } = line;
            Value::Array(vec![
                Value::from(&key.0),
                Value::from(&pack.0),
                Value::from(u64::from(*offset)),
                Value::from(u64::from(*stored_len)),
            ])
        };
        Map::new().with("chunks", self.lines.iter().map(line).collect::<Vec<Value>>()).encode()
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let map = Map::decode(body)?;
        Ok(Moved { lines: map.list("chunks")?.iter().map(decode_line).collect::<Result<_>>()? })
    }
}

fn decode_line(line: &Value) -> Result<Relocated> {
    let wrong = || Error::corrupt("a moved record has a line that is not [id, pack, offset, stored length]");
    let Value::Array(fields) = line else { return Err(wrong()) };
    let [Value::Bytes(key), Value::Bytes(pack), Value::Uint(offset), Value::Uint(stored_len)] = fields.as_slice()
    else {
        return Err(wrong());
    };
    Ok(Relocated {
        key: IndexKey(key.as_slice().try_into().map_err(|_| wrong())?),
        to: Hint {
            pack: PackUid(pack.as_slice().try_into().map_err(|_| wrong())?),
            offset: u32::try_from(*offset).map_err(|_| wrong())?,
            stored_len: u32::try_from(*stored_len).map_err(|_| wrong())?,
        },
    })
}

/// The prefix of the records about `pack`, with its final slash.
#[must_use]
pub fn prefix(pack: PackUid) -> String {
    format!("{PREFIX}{pack}/")
}

/// The name of a record about `pack`.
#[must_use]
pub fn name(pack: PackUid, record: RecordId) -> String {
    format!("{PREFIX}{pack}/{record}")
}

/// Pack and record of an object's name, `None` when it is not spelt as [`name`] spells it.
#[must_use]
pub fn parse_name(object: &str) -> Option<(PackUid, RecordId)> {
    let (pack, record) = object.strip_prefix(PREFIX)?.split_once('/')?;
    Some((pack.parse().ok()?, record.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn line(n: u8) -> Relocated {
        let to = Hint { pack: PackUid([n; 16]), offset: u32::MAX - u32::from(n), stored_len: 17 + u32::from(n) };
        Relocated { key: IndexKey([n ^ 0xff; 16]), to }
    }

    #[test]
    fn records_round_trip() {
        for n in [0, 1, 100] {
            let moved = Moved { lines: (0..n).map(line).collect() };
            assert_eq!(Moved::decode(&moved.encode().unwrap()).unwrap(), moved);
        }
    }

    #[test]
    fn the_longest_record_fits_and_a_longer_one_is_refused() {
        let most = Moved { lines: vec![line(3); MAX_LINES] };
        assert_eq!(Moved::decode(&most.encode().unwrap()).unwrap().lines.len(), MAX_LINES);
        let more = Moved { lines: vec![line(3); MAX_LINES + 1] };
        assert_eq!(more.encode().unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn lines_of_another_shape_are_refused() {
        let key = Value::from(&[1u8; 16]);
        let far = Value::from(1u64 << 32);
        let short = Value::from(&[1u8; 15]);
        for fields in [
            vec![],
            vec![key.clone(), key.clone(), Value::from(1u64)],
            vec![key.clone(), key.clone(), far, Value::from(1u64)],
            vec![key.clone(), short, Value::from(1u64), Value::from(1u64)],
            vec![key.clone(), key.clone(), Value::from(1u64), Value::from(1u64), Value::from(1u64)],
        ] {
            let body = Map::new().with("chunks", vec![Value::Array(fields)]).encode().unwrap();
            assert_eq!(Moved::decode(&body).unwrap_err().kind(), Kind::Corrupt);
        }
    }

    #[test]
    fn names_round_trip_and_foreign_names_are_none() {
        let (pack, record) = (PackUid([1; 16]), RecordId([2; 16]));
        assert_eq!(parse_name(&name(pack, record)), Some((pack, record)));
        assert!(name(pack, record).starts_with(&prefix(pack)));
        for bad in ["moved/", "moved/x/y", &prefix(pack), &format!("{}/z", name(pack, record)), "packs/00/00"] {
            assert_eq!(parse_name(bad), None, "{bad}");
        }
    }
}
