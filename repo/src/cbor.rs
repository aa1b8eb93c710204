//! Canonical CBOR (FORMAT.md section 9): the tree of values that records, slots and the descriptor are written in.
//!
//! Not here: what the keys of a map mean. What holds: [`Value::decode`] accepts exactly what [`Value::encode`] makes, so
//! a value has one spelling, and a signature over it has one meaning; both refuse more than [`MAX_DEPTH`] nested arrays
//! and maps and more than [`MAX_ITEMS`] values, and nothing is allocated for a length before the bytes were seen.

use crate::error::{Error, Result};
use minicbor::data::{Int, Type};
use minicbor::{Decoder, Encoder};
use zeroize::Zeroize;

/// The most arrays and maps within one another.
pub const MAX_DEPTH: usize = 16;
/// The most values in one document, keys of maps not counted: bounds the memory that a hostile document costs.
pub const MAX_ITEMS: usize = 1 << 20;

/// A CBOR value of the kinds that the format uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// An integer from 0 on.
    Uint(u64),
    /// The integer -1 - n.
    Negative(u64),
    /// A byte string.
    Bytes(Vec<u8>),
    /// A text.
    Text(String),
    /// Values in order.
    Array(Vec<Value>),
    /// Values by name.
    Map(Map),
    /// True or false.
    Bool(bool),
    /// Nothing.
    Null,
}

impl Value {
    /// The one encoding of the value; `Invalid` when it nests or counts more than the format allows.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut writer = Writer::new();
        writer.value(self, 0)?;
        Ok(writer.out.into_writer())
    }

    /// The value of which `bytes` is the encoding, whole; anything else is `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Value> {
        let mut reader = Reader { input: Decoder::new(bytes), items: 0 };
        let value = reader.value(0)?;
        if reader.input.position() != bytes.len() {
            return Err(reader.refused(reader.input.position(), "more bytes follow the value"));
        }
        Ok(value)
    }

    fn noun(&self) -> &'static str {
        match self {
            Value::Uint(_) => "an integer",
            Value::Negative(_) => "a negative integer",
            Value::Bytes(_) => "bytes",
            Value::Text(_) => "text",
            Value::Array(_) => "an array",
            Value::Map(_) => "a map",
            Value::Bool(_) => "a truth value",
            Value::Null => "null",
        }
    }
}

impl From<u64> for Value {
    fn from(n: u64) -> Self {
        Value::Uint(n)
    }
}

impl From<u32> for Value {
    fn from(n: u32) -> Self {
        Value::Uint(u64::from(n))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Text(text)
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        Value::Bytes(bytes.to_owned())
    }
}

impl<const N: usize> From<&[u8; N]> for Value {
    fn from(bytes: &[u8; N]) -> Self {
        Value::Bytes(bytes.to_vec())
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Value::Bytes(bytes)
    }
}

impl From<Vec<Value>> for Value {
    fn from(values: Vec<Value>) -> Self {
        Value::Array(values)
    }
}

impl From<Map> for Value {
    fn from(map: Map) -> Self {
        Value::Map(map)
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Value::Bool(truth)
    }
}

/// Wipes what may be a secret: the bytes and texts.
impl Zeroize for Value {
    fn zeroize(&mut self) {
        match self {
            Value::Bytes(bytes) => bytes.zeroize(),
            Value::Text(text) => text.zeroize(),
            Value::Array(values) => values.iter_mut().for_each(Zeroize::zeroize),
            Value::Map(map) => map.zeroize(),
            Value::Uint(_) | Value::Negative(_) | Value::Bool(_) | Value::Null => {}
        }
    }
}

/// A map with text keys, in the order of their encodings: shorter keys first, then byte by byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map(Vec<(String, Value)>);

impl Map {
    /// A map without keys.
    #[must_use]
    pub fn new() -> Self {
        Map::default()
    }

    /// The map with one more key, for building one in an expression; a key that was there is replaced.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.insert(key, value);
        self
    }

    /// Puts `value` under `key`, in place of what was there.
    pub fn insert(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        match self.find(key) {
            Ok(at) => {
                if let Some(entry) = self.0.get_mut(at) {
                    entry.1 = value;
                }
            }
            Err(at) => self.0.insert(at, (key.to_owned(), value)),
        }
    }

    /// Takes `key` out.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let at = self.find(key).ok()?;
        Some(self.0.remove(at).1)
    }

    /// What lies under `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        let at = self.find(key).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    /// Keys and values in canonical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The one encoding of the map; `Invalid` when it nests or counts more than the format allows.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut writer = Writer::new();
        writer.count(1)?;
        writer.map(self, 0)?;
        Ok(writer.out.into_writer())
    }

    /// The map of which `bytes` is the encoding, whole; anything else is `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Map> {
        match Value::decode(bytes)? {
            Value::Map(map) => Ok(map),
            other => Err(Error::corrupt(format!("{} where a CBOR map is due", other.noun()))),
        }
    }

    /// The integer under `key`.
    pub fn uint(&self, key: &str) -> Result<u64> {
        self.opt_uint(key)?.ok_or_else(|| missing(key))
    }

    /// The integer under `key`, if there is one.
    pub fn opt_uint(&self, key: &str) -> Result<Option<u64>> {
        self.opt(key, "an integer", |v| if let Value::Uint(n) = v { Some(*n) } else { None })
    }

    /// The integer under `key`, which has to fit in 32 bits.
    pub fn u32(&self, key: &str) -> Result<u32> {
        let n = self.uint(key)?;
        u32::try_from(n).map_err(|_| Error::corrupt(format!("key '{key}' holds {n}, which does not fit in 32 bits")))
    }

    /// The bytes under `key`.
    pub fn bytes(&self, key: &str) -> Result<&[u8]> {
        self.opt_bytes(key)?.ok_or_else(|| missing(key))
    }

    /// The bytes under `key`, if there are any.
    pub fn opt_bytes(&self, key: &str) -> Result<Option<&[u8]>> {
        self.opt(key, "bytes", |v| if let Value::Bytes(b) = v { Some(b.as_slice()) } else { None })
    }

    /// The bytes under `key`, exactly `N` of them.
    pub fn array_of<const N: usize>(&self, key: &str) -> Result<[u8; N]> {
        let bytes = self.bytes(key)?;
        <[u8; N]>::try_from(bytes)
            .map_err(|_| Error::corrupt(format!("key '{key}' holds {} bytes where {N} are due", bytes.len())))
    }

    /// The text under `key`.
    pub fn text(&self, key: &str) -> Result<&str> {
        self.opt_text(key)?.ok_or_else(|| missing(key))
    }

    /// The text under `key`, if there is one.
    pub fn opt_text(&self, key: &str) -> Result<Option<&str>> {
        self.opt(key, "text", |v| if let Value::Text(t) = v { Some(t.as_str()) } else { None })
    }

    /// The array under `key`.
    pub fn list(&self, key: &str) -> Result<&[Value]> {
        self.opt_list(key)?.ok_or_else(|| missing(key))
    }

    /// The array under `key`, if there is one.
    pub fn opt_list(&self, key: &str) -> Result<Option<&[Value]>> {
        self.opt(key, "an array", |v| if let Value::Array(a) = v { Some(a.as_slice()) } else { None })
    }

    /// The map under `key`.
    pub fn map(&self, key: &str) -> Result<&Map> {
        self.opt_map(key)?.ok_or_else(|| missing(key))
    }

    /// The map under `key`, if there is one.
    pub fn opt_map(&self, key: &str) -> Result<Option<&Map>> {
        self.opt(key, "a map", |v| if let Value::Map(m) = v { Some(m) } else { None })
    }

    fn opt<'a, T>(&'a self, key: &str, due: &str, take: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => take(value)
                .map(Some)
                .ok_or_else(|| Error::corrupt(format!("key '{key}' holds {} where {due} is due", value.noun()))),
        }
    }

    /// Where `key` is, or where it belongs.
    fn find(&self, key: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(k, _)| order(k).cmp(&order(key)))
    }
}

impl Zeroize for Map {
    fn zeroize(&mut self) {
        self.0.iter_mut().for_each(|(_, value)| value.zeroize());
    }
}

/// The canonical order of text keys: that of their encodings, which begin with the length.
fn order(key: &str) -> (usize, &str) {
    (key.len(), key)
}

fn missing(key: &str) -> Error {
    Error::corrupt(format!("key '{key}' is missing"))
}

fn over_limit() -> Error {
    Error::invalid(format!("a record of more than {MAX_ITEMS} values or {MAX_DEPTH} nested arrays and maps"))
}

/// A document being written.
struct Writer {
    out: Encoder<Vec<u8>>,
    items: usize,
}

impl Writer {
    fn new() -> Self {
        // Room for any key bundle, so that growing the buffer leaves no copies of secrets behind.
        Writer { out: Encoder::new(Vec::with_capacity(4096)), items: 0 }
    }

    fn value(&mut self, value: &Value, depth: usize) -> Result<()> {
        self.count(1)?;
        let written = match value {
            Value::Uint(n) => self.out.u64(*n).map(drop),
            Value::Negative(n) => {
                let int = Int::try_from(-1 - i128::from(*n)).map_err(|_| Error::internal("an integer outside CBOR"))?;
                self.out.int(int).map(drop)
            }
            Value::Bytes(bytes) => self.out.bytes(bytes).map(drop),
            Value::Text(text) => self.out.str(text).map(drop),
            Value::Bool(truth) => self.out.bool(*truth).map(drop),
            Value::Null => self.out.null().map(drop),
            Value::Array(values) => return self.array(values, depth),
            Value::Map(map) => return self.map(map, depth),
        };
        written.map_err(unwritable)
    }

    fn array(&mut self, values: &[Value], depth: usize) -> Result<()> {
        let depth = deeper(depth).ok_or_else(over_limit)?;
        self.out.array(values.len() as u64).map_err(unwritable)?;
        values.iter().try_for_each(|value| self.value(value, depth))
    }

    fn map(&mut self, map: &Map, depth: usize) -> Result<()> {
        let depth = deeper(depth).ok_or_else(over_limit)?;
        self.out.map(map.0.len() as u64).map_err(unwritable)?;
        map.0.iter().try_for_each(|(key, value)| {
            self.out.str(key).map_err(unwritable)?;
            self.value(value, depth)
        })
    }

    fn count(&mut self, n: usize) -> Result<()> {
        self.items += n;
        if self.items > MAX_ITEMS { Err(over_limit()) } else { Ok(()) }
    }
}

fn unwritable<E>(_: E) -> Error {
    Error::internal("CBOR could not be written to memory")
}

fn deeper(depth: usize) -> Option<usize> {
    (depth < MAX_DEPTH).then_some(depth + 1)
}

/// A document being read.
struct Reader<'b> {
    input: Decoder<'b>,
    items: usize,
}

impl Reader<'_> {
    fn value(&mut self, depth: usize) -> Result<Value> {
        let start = self.input.position();
        self.items += 1;
        if self.items > MAX_ITEMS {
            return Err(self.refused(start, "too many values"));
        }
        match self.input.datatype().map_err(|e| self.broken(start, e))? {
            Type::U8 | Type::U16 | Type::U32 | Type::U64 => {
                let n = self.input.u64().map_err(|e| self.broken(start, e))?;
                self.shortest(start, n, 0)?;
                Ok(Value::Uint(n))
            }
            Type::I8 | Type::I16 | Type::I32 | Type::I64 | Type::Int => {
                let int = self.input.int().map_err(|e| self.broken(start, e))?;
                let n = u64::try_from(-1 - i128::from(int)).map_err(|_| self.refused(start, "not an integer"))?;
                self.shortest(start, n, 0)?;
                Ok(Value::Negative(n))
            }
            Type::Bytes => {
                let bytes = self.input.bytes().map_err(|e| self.broken(start, e))?;
                self.shortest(start, bytes.len() as u64, bytes.len())?;
                Ok(Value::Bytes(bytes.to_owned()))
            }
            Type::String => self.text().map(Value::Text),
            Type::Array => {
                let n = self.input.array().map_err(|e| self.broken(start, e))?;
                let (n, depth) = self.container(start, n, depth)?;
                let mut values = Vec::new();
                for _ in 0..n {
                    values.push(self.value(depth)?);
                }
                Ok(Value::Array(values))
            }
            Type::Map => {
                let n = self.input.map().map_err(|e| self.broken(start, e))?;
                let (n, depth) = self.container(start, n, depth)?;
                let mut entries: Vec<(String, Value)> = Vec::new();
                for _ in 0..n {
                    let at = self.input.position();
                    let key = self.text()?;
                    if entries.last().is_some_and(|(last, _)| order(last) >= order(&key)) {
                        return Err(self.refused(at, "keys out of order, or one twice"));
                    }
                    entries.push((key, self.value(depth)?));
                }
                Ok(Value::Map(Map(entries)))
            }
            Type::Bool => self.input.bool().map(Value::Bool).map_err(|e| self.broken(start, e)),
            Type::Null => self.input.null().map(|()| Value::Null).map_err(|e| self.broken(start, e)),
            other => Err(self.refused(start, &format!("{other} has no place in this format"))),
        }
    }

    fn text(&mut self) -> Result<String> {
        let start = self.input.position();
        let text = self.input.str().map_err(|e| self.broken(start, e))?;
        self.shortest(start, text.len() as u64, text.len())?;
        Ok(text.to_owned())
    }

    /// Checks the head of an array or map, and gives its length and the depth of what is in it.
    fn container(&self, start: usize, n: Option<u64>, depth: usize) -> Result<(u64, usize)> {
        let n = n.ok_or_else(|| self.refused(start, "an indefinite length"))?;
        self.shortest(start, n, 0)?;
        let depth = deeper(depth).ok_or_else(|| self.refused(start, "nested too deeply"))?;
        Ok((n, depth))
    }

    /// Whether the item from `start` to here, `payload` bytes of content included, spells its number `n` in the shortest
    /// way.
    fn shortest(&self, start: usize, n: u64, payload: usize) -> Result<()> {
        let due = match n {
            0..=23 => 1,
            24..=0xff => 2,
            0x100..=0xffff => 3,
            0x1_0000..=0xffff_ffff => 5,
            _ => 9,
        };
        if self.input.position() - start == due + payload {
            Ok(())
        } else {
            Err(self.refused(start, "a number that is not in its shortest form"))
        }
    }

    fn refused(&self, at: usize, why: &str) -> Error {
        Error::corrupt(format!("CBOR at byte {at} of {}: {why}", self.input.input().len()))
    }

    fn broken(&self, at: usize, source: minicbor::decode::Error) -> Error {
        self.refused(at, "not well-formed").with_source(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<u64>().prop_map(Value::Uint),
            (0u64..70_000).prop_map(Value::Uint),
            any::<u64>().prop_map(Value::Negative),
            (0u64..300).prop_map(Value::Negative),
            vec(any::<u8>(), 0..300).prop_map(Value::Bytes),
            ".{0,30}".prop_map(Value::Text),
            any::<bool>().prop_map(Value::Bool),
            Just(Value::Null),
        ];
        leaf.prop_recursive(6, 64, 8, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..30).prop_map(Value::Array),
                vec((".{0,26}", inner), 0..30).prop_map(|entries| {
                    Value::Map(entries.into_iter().fold(Map::new(), |map, (key, value)| map.with(&key, value)))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_was_encoded_decodes(value in any_value()) {
            prop_assert_eq!(Value::decode(&value.encode().unwrap()).unwrap(), value);
        }

        #[test]
        fn what_is_accepted_has_no_other_spelling(value in any_value(), at: prop::sample::Index, byte: u8) {
            let mut bytes = value.encode().unwrap();
            *at.get_mut(&mut bytes) = byte;
            if let Ok(value) = Value::decode(&bytes) {
                prop_assert_eq!(value.encode().unwrap(), bytes);
            }
        }

        #[test]
        fn noise_is_refused_or_canonical(bytes in vec(any::<u8>(), 0..40)) {
            if let Ok(value) = Value::decode(&bytes) {
                prop_assert_eq!(value.encode().unwrap(), bytes);
            }
        }

        #[test]
        fn every_truncation_is_refused(value in any_value(), cut: prop::sample::Index) {
            let bytes = value.encode().unwrap();
            prop_assert_eq!(Value::decode(&bytes[..cut.index(bytes.len())]).unwrap_err().kind(), Kind::Corrupt);
        }
    }

    #[test]
    fn known_encodings() {
        let map = Map::new().with("bb", 1u64).with("a", vec![Value::Null, Value::Bool(true)]).with("c", &[7u8; 2]);
        // {"a": [null, true], "c": h'0707', "bb": 1}: the shorter keys come first.
        let bytes = [0xa3, 0x61, 0x61, 0x82, 0xf6, 0xf5, 0x61, 0x63, 0x42, 7, 7, 0x62, 0x62, 0x62, 1];
        assert_eq!(map.encode().unwrap(), bytes);
        assert_eq!(Map::decode(&bytes).unwrap(), map);
        assert_eq!(Value::Negative(u64::MAX).encode().unwrap(), [0x3b, 255, 255, 255, 255, 255, 255, 255, 255]);
        assert_eq!(Value::Negative(0).encode().unwrap(), [0x20]);
    }

    #[test]
    fn other_spellings_and_types_are_refused() {
        for (bytes, what) in [
            (&[][..], "nothing"),
            (&[0x18, 23], "23 in two bytes"),
            (&[0x19, 0, 255], "255 in three bytes"),
            (&[0x1a, 0, 0, 255, 255], "65535 in five bytes"),
            (&[0x1b, 0, 0, 0, 0, 255, 255, 255, 255], "a u32 in nine bytes"),
            (&[0x38, 0], "-1 in two bytes"),
            (&[0x58, 1, 0], "a long length of bytes"),
            (&[0x78, 1, 0x61], "a long length of text"),
            (&[0x98, 1, 0], "a long length of an array"),
            (&[0xb8, 1, 0x61, 0x61, 0], "a long length of a map"),
            (&[0xb8, 1, 0x78, 1, 0x61, 0], "a long length of a key"),
            (&[0x5f, 0x41, 0, 0xff], "indefinite bytes"),
            (&[0x7f, 0x61, 0x61, 0xff], "indefinite text"),
            (&[0x9f, 0, 0xff], "an indefinite array"),
            (&[0xbf, 0xff], "an indefinite map"),
            (&[0xa2, 0x61, 0x62, 0, 0x61, 0x61, 0], "keys out of order"),
            (&[0xa2, 0x61, 0x61, 0, 0x61, 0x61, 0], "a key twice"),
            (&[0xa1, 0x01, 0x02], "a key that is no text"),
            (&[0xf9, 0x3c, 0], "a float"),
            (&[0xfb, 0, 0, 0, 0, 0, 0, 0, 0], "a double"),
            (&[0xc0, 0x60], "a tag"),
            (&[0xf7], "undefined"),
            (&[0xe0], "a simple value"),
            (&[0xf8, 0x20], "a simple value in two bytes"),
            (&[0x61, 0xff], "text that is not UTF-8"),
            (&[0x00, 0x00], "two values"),
            (&[0xff], "a break"),
        ] {
            assert_eq!(Value::decode(bytes).expect_err(what).kind(), Kind::Corrupt, "{what}");
        }
    }

    #[test]
    fn limits_hold_on_both_sides() {
        let nested = |n: usize| (0..n).fold(Value::Null, |inner, _| Value::Array(vec![inner]));
        let deepest = nested(MAX_DEPTH);
        assert_eq!(Value::decode(&deepest.encode().unwrap()).unwrap(), deepest);
        assert_eq!(nested(MAX_DEPTH + 1).encode().unwrap_err().kind(), Kind::Invalid);
        let mut too_deep = vec![0x81; MAX_DEPTH + 1];
        too_deep.push(0xf6);
        assert_eq!(Value::decode(&too_deep).unwrap_err().kind(), Kind::Corrupt);

        let widest = Value::Array(vec![Value::Null; MAX_ITEMS - 1]);
        let mut bytes = widest.encode().unwrap();
        assert_eq!(Value::decode(&bytes).unwrap(), widest);
        assert_eq!(Value::Array(vec![Value::Null; MAX_ITEMS]).encode().unwrap_err().kind(), Kind::Invalid);
        // A declared length is believed only as far as bytes follow: 2^64 - 1 elements cost nothing.
        assert_eq!(Value::decode(&[0x9b, 255, 255, 255, 255, 255, 255, 255, 255]).unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(Value::decode(&[0x5b, 255, 255, 255, 255, 255, 255, 255, 255]).unwrap_err().kind(), Kind::Corrupt);
        bytes[1..5].copy_from_slice(&u32::try_from(MAX_ITEMS).unwrap().to_be_bytes());
        bytes.push(0xf6);
        assert_eq!(Value::decode(&bytes).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn getters_name_the_key_and_what_is_wrong() {
        let map = Map::new().with("n", 1u64 << 40).with("b", &[1u8, 2]).with("t", "x").with("m", Map::new());
        assert_eq!(map.uint("n").unwrap(), 1 << 40);
        assert_eq!(map.array_of::<2>("b").unwrap(), [1, 2]);
        assert_eq!(map.text("t").unwrap(), "x");
        assert_eq!(map.map("m").unwrap(), &Map::new());
        assert_eq!(map.opt_text("none").unwrap(), None);
        for (error, due) in [
            (map.uint("none").unwrap_err(), "key 'none' is missing"),
            (map.u32("n").unwrap_err(), "key 'n' holds 1099511627776, which does not fit in 32 bits"),
            (map.array_of::<3>("b").unwrap_err(), "key 'b' holds 2 bytes where 3 are due"),
            (map.opt_list("t").unwrap_err(), "key 't' holds text where an array is due"),
            (map.bytes("m").unwrap_err(), "key 'm' holds a map where bytes is due"),
        ] {
            assert_eq!((error.kind(), error.context()), (Kind::Corrupt, due));
        }
    }
}
