//! The body of `tiers/<name>` (FORMAT.md section 8): another store in which data packs of the repository lie, and its mark there.
//!
//! ```text
//!   home:  tiers/cold                   { url, options, added }        sealed, and signed by the authority
//!   there: tier/<repository>/cold       no bytes: this store is that repository's tier of that name
//! ```
//!
//! Not here: adding and removing tiers ([`crate::tiers`]), what the URL means ([`crate::backend::address`]), secrets, which are never in it.
//! Pure: bytes in, values out. What holds: names have one spelling; decoding never panics.

use crate::cbor::{Map, Value};
use crate::error::{Error, Result};
use crate::id::RepoId;
use crate::time::Timestamp;
use std::fmt;
use std::str::FromStr;

/// Prefix of all records.
pub const PREFIX: &str = "tiers/";
/// Prefix of all marks, in the stores that are tiers.
pub const MARKS: &str = "tier/";
/// Longest name, in bytes.
pub const MAX_NAME: usize = 64;

/// The name of a tier: 1 to [`MAX_NAME`] of `a-z0-9_-`, the first of them a letter or a digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TierName(String);

/// A tier's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Where it is: an absolute path, or a URL without secrets.
    pub url: String,
    /// What is said about the store, as NAME and VALUE.
    pub options: Vec<(String, String)>,
    /// When it was added.
    pub added: Timestamp,
}

impl TierName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Name of the record, at home.
    #[must_use]
    pub fn object(&self) -> String {
        format!("{PREFIX}{self}")
    }

    /// The tier whose record has this name; `None` when it is not spelt as [`TierName::object`] spells it.
    #[must_use]
    pub fn of_object(object: &str) -> Option<TierName> {
        object.strip_prefix(PREFIX)?.parse().ok()
    }

    /// Name of the mark, in the tier's store.
    #[must_use]
    pub fn mark(&self, repo: RepoId) -> String {
        format!("{MARKS}{repo}/{self}")
    }

    /// Repository and tier whose mark has this name.
    #[must_use]
    pub fn of_mark(object: &str) -> Option<(RepoId, TierName)> {
        let (repo, name) = object.strip_prefix(MARKS)?.split_once('/')?;
        Some((repo.parse().ok()?, name.parse().ok()?))
    }
}

impl FromStr for TierName {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let is_allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"_-".contains(&c);
        let begins = text.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric());
        if begins && text.len() <= MAX_NAME && text.bytes().all(is_allowed) {
            return Ok(TierName(text.to_owned()));
        }
        let shown: String = text.chars().take(MAX_NAME).collect();
        Err(Error::invalid(format!(
            "{shown:?} cannot be the name of a cold tier: that is 1 to {MAX_NAME} of a-z, 0-9, '-' and '_', and begins with a \
             letter or a digit"
        )))
    }
}

impl fmt::Display for TierName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Tier {
    /// Body of the record.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let option = |(name, value): &(String, String)| Value::Array(vec![name.as_str().into(), value.as_str().into()]);
        Map::new()
            .with("url", self.url.as_str())
            .with("options", self.options.iter().map(option).collect::<Vec<Value>>())
            .with("added", self.added.seconds())
            .encode()
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let map = Map::decode(body)?;
        let option = |option: &Value| match option {
            Value::Array(pair) => match pair.as_slice() {
                [Value::Text(name), Value::Text(value)] => Ok((name.clone(), value.clone())),
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        };
        Ok(Tier {
            url: map.text("url")?.to_owned(),
            options: map.list("options")?.iter().map(option).collect::<Result<_>>()?,
            added: Timestamp::from_seconds(map.uint("added")?)?,
        })
    }
}

fn wrong() -> Error {
    Error::corrupt("a tier's record has an option that is not [name, value]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn tier() -> Tier {
        let options = vec![("storage-class".to_owned(), "GLACIER".to_owned()), ("region".to_owned(), "eu".to_owned())];
        Tier { url: "s3://bucket/cold".into(), options, added: Timestamp::from_seconds(7).unwrap() }
    }

    #[test]
    fn records_round_trip_under_the_keys_of_the_format() {
        for tier in [tier(), Tier { options: Vec::new(), url: "/srv/cold".into(), ..tier() }] {
            assert_eq!(Tier::decode(&tier.encode().unwrap()).unwrap(), tier);
        }
        let pair = |name: &str, value: &str| Value::Array(vec![name.into(), value.into()]);
        let options = vec![pair("storage-class", "GLACIER"), pair("region", "eu")];
        let expected = Map::new().with("url", "s3://bucket/cold").with("options", options).with("added", 7u64);
        assert_eq!(Map::decode(&tier().encode().unwrap()).unwrap(), expected);
    }

    #[test]
    fn records_of_another_shape_are_refused() {
        let sound = || Map::new().with("url", "/x").with("added", 7u64);
        for bad in [
            sound(),
            sound().with("options", vec![Value::from("a=b")]),
            sound().with("options", vec![Value::Array(vec!["a".into()])]),
            sound().with("options", vec![Value::Array(vec!["a".into(), 1u64.into()])]),
            Map::new().with("url", "/x").with("options", Vec::<Value>::new()).with("added", u64::MAX),
            Map::new().with("url", 1u64).with("options", Vec::<Value>::new()).with("added", 7u64),
        ] {
            assert_eq!(Tier::decode(&bad.encode().unwrap()).unwrap_err().kind(), Kind::Corrupt, "{bad:?}");
        }
    }

    #[test]
    fn names_have_one_spelling() {
        let repo = RepoId([0xab; 16]);
        for good in ["cold", "0", "deep-archive_2", &"x".repeat(MAX_NAME)] {
            let name: TierName = good.parse().unwrap();
            assert_eq!(TierName::of_object(&name.object()), Some(name.clone()));
            assert_eq!(TierName::of_mark(&name.mark(repo)), Some((repo, name)));
        }
        for bad in ["", "-x", "_x", "Cold", "a/b", "a.b", "a b", "\u{e4}", &"x".repeat(MAX_NAME + 1)] {
            assert_eq!(bad.parse::<TierName>().unwrap_err().kind(), Kind::Invalid, "{bad}");
            assert_eq!(TierName::of_object(&format!("{PREFIX}{bad}")), None);
        }
        assert_eq!(TierName::of_mark("tier/xx/cold"), None);
    }
}
