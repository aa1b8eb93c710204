//! What is said over the socket of a fork that is open: one line of JSON that asks for long work, lines that tell how it goes,
//! and a last one.
//!
//! ```text
//!   {"version":1,"errand":"commit","tags":["tried"]}
//!   {"version":1,"title":"committing","unit":"bytes","done":1048576,"total":8589934592,"note":"1 MiB new"}
//!   {"version":1,"notice":"..."}   {"version":1,"warning":"..."}
//!   {"version":1,"result":{...},"text":"made web@2026-11-21T02-00-00Z\n"}   {"version":1,"error":"...","kind":"locked"}
//! ```
//! Not here: sockets ([`super::fork_socket`]). What holds: as for [`super::message`]: lines are bounded, another version and unknown
//! errands are refused by name, unknown keys are left alone.

use super::message::{VERSION, decode, failure, failure_in, flag, misshapen, number, text, texts};
use crate::{Error, Kind, Result};
use serde_json::{Map, Value, json};
use std::fmt;

/// The longest line, in bytes.
pub(super) const MAX_LINE: usize = 1 << 20;

/// Long work for whoever has a fork open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Make a point of what it is now.
    Commit {
        /// Remarks on the point.
        tags: Vec<String>,
    },
    /// Bring it to another place and hand it over.
    Hydrate(HydrationWish),
}

/// How a fork is to be hydrated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HydrationWish {
    /// Where to, as a person writes it, from the root.
    pub to: String,
    /// Bytes a second.
    pub rate: Option<u64>,
    /// Whether what the target holds is overwritten.
    pub force: bool,
    /// Begin anew.
    pub restart: bool,
    /// Have zeroes for what cannot be read.
    pub keep_going: bool,
}

/// A line of whoever does it.
#[derive(Debug)]
pub enum Word {
    /// How far it has come.
    Stride(Stride),
    /// Worth knowing.
    Notice(String),
    /// Something was skipped, or could not be had.
    Warning(String),
    /// It is done.
    Done(Outcome),
    /// It was not done.
    Failed(Error),
}

/// How far a stretch of work has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stride {
    /// What is being done.
    pub title: String,
    /// Whether it is counted in bytes; else in things.
    pub is_in_bytes: bool,
    /// Done so far.
    pub done: u64,
    /// Of so much; `None` where nobody knows yet.
    pub total: Option<u64>,
    /// A few more words.
    pub note: String,
}

/// What came of an errand: for programs, and for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// An object.
    pub object: Value,
    /// Lines.
    pub text: String,
}

impl fmt::Display for Errand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Errand::Commit { .. } => "commit",
            Errand::Hydrate(_) => "hydrate",
        })
    }
}

impl Errand {
    /// As a line, without its end.
    #[must_use]
    pub fn encode(&self) -> String {
        let object = match self {
            Errand::Commit { tags } => json!({ "version": VERSION, "errand": "commit", "tags": tags }),
            Errand::Hydrate(HydrationWish { to, rate, force, restart, keep_going }) => json!({
                "version": VERSION, "errand": "hydrate", "to": to, "rate": rate, "force": force, "restart": restart,
                "keep_going": keep_going,
            }),
        };
        object.to_string()
    }

    /// The errand in a line.
    pub fn decode(line: &[u8]) -> Result<Self> {
        let object = decode(line)?;
        match text(&object, "errand")?.as_str() {
            "commit" => Ok(Errand::Commit { tags: texts(&object, "tags")? }),
            "hydrate" => Ok(Errand::Hydrate(HydrationWish {
                to: text(&object, "to")?,
                rate: number_if_any(&object, "rate")?,
                force: flag(&object, "force")?,
                restart: flag(&object, "restart")?,
                keep_going: flag(&object, "keep_going")?,
            })),
            other => Err(Error::new(Kind::Unsupported, format!("the process that has the fork cannot '{other}'"))),
        }
    }
}

impl Word {
    /// As a line, without its end.
    #[must_use]
    pub fn encode(&self) -> String {
        let object = match self {
            Word::Stride(Stride { title, is_in_bytes, done, total, note }) => {
                let unit = if *is_in_bytes { "bytes" } else { "count" };
                json!({ "version": VERSION, "title": title, "unit": unit, "done": done, "total": total, "note": note })
            }
            Word::Notice(text) => json!({ "version": VERSION, "notice": text }),
            Word::Warning(text) => json!({ "version": VERSION, "warning": text }),
            Word::Done(Outcome { object, text }) => json!({ "version": VERSION, "result": object, "text": text }),
            Word::Failed(error) => failure(error),
        };
        object.to_string()
    }

    /// The word in a line.
    pub fn decode(line: &[u8]) -> Result<Self> {
        let object = decode(line)?;
        if let Some(error) = failure_in(&object)? {
            return Ok(Word::Failed(error));
        }
        if let Some(result) = object.get("result") {
            return Ok(Word::Done(Outcome { object: result.clone(), text: text(&object, "text")? }));
        }
        if object.contains_key("notice") {
            return Ok(Word::Notice(text(&object, "notice")?));
        }
        if object.contains_key("warning") {
            return Ok(Word::Warning(text(&object, "warning")?));
        }
        Stride::from_object(&object).map(Word::Stride)
    }
}

impl Stride {
    fn from_object(object: &Map<String, Value>) -> Result<Self> {
        let is_in_bytes = match text(object, "unit")?.as_str() {
            "bytes" => true,
            "count" => false,
            _ => return Err(misshapen("unit")),
        };
        let total = number_if_any(object, "total")?;
        let (title, note) = (text(object, "title")?, text(object, "note")?);
        Ok(Stride { title, is_in_bytes, done: number(object, "done")?, total, note })
    }
}

fn number_if_any(object: &Map<String, Value>, key: &str) -> Result<Option<u64>> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(number) => number.as_u64().map(Some).ok_or_else(|| misshapen(key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errands_and_words_come_back_as_they_were() {
        let wish = HydrationWish { to: "/dev/x\n".into(), rate: Some(7), keep_going: true, ..HydrationWish::default() };
        for errand in [
            Errand::Commit { tags: vec!["a\nb".into(), String::new()] },
            Errand::Commit { tags: vec![] },
            Errand::Hydrate(wish.clone()),
            Errand::Hydrate(HydrationWish { rate: None, force: true, restart: true, ..wish }),
        ] {
            let line = errand.encode();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(Errand::decode(line.as_bytes()).unwrap(), errand);
        }
        let stride =
            Stride { title: "x".into(), is_in_bytes: true, done: 3, total: Some(u64::MAX), note: "n\n".into() };
        let unknown = Stride { total: None, is_in_bytes: false, ..stride.clone() };
        let outcome = Outcome { object: json!({ "error": 1, "a": [2] }), text: "made\n".into() };
        for word in [
            Word::Stride(stride),
            Word::Stride(unknown),
            Word::Notice("n".into()),
            Word::Warning("w".into()),
            Word::Done(outcome),
            Word::Failed(Error::new(Kind::Locked, "why")),
        ] {
            let line = word.encode();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(Word::decode(line.as_bytes()).unwrap().encode(), line);
        }
        let Word::Failed(back) = Word::decode(Word::Failed(Error::new(Kind::Full, "why")).encode().as_bytes()).unwrap()
        else {
            panic!("not failed")
        };
        assert_eq!((back.kind(), back.to_string().as_str()), (Kind::Full, "why"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (line, word) in [
            (r#"{"version":1}"#, "errand"),
            (r#"{"version":1,"errand":"dance"}"#, "dance"),
            (r#"{"version":3,"errand":"commit"}"#, "version 3"),
            (r#"{"version":1,"errand":"commit","tags":[1]}"#, "tags"),
            (r#"{"version":1,"errand":"hydrate","to":"x","rate":-1}"#, "rate"),
            (r#"{"version":1,"errand":"hydrate","to":"x"}"#, "force"),
        ] {
            let why = Errand::decode(line.as_bytes()).unwrap_err().to_string();
            assert!(why.contains(word), "{line}: {why}");
        }
        for (line, word) in [
            (r#"{"version":1}"#, "unit"),
            (r#"{"version":1,"title":"x","unit":"miles","done":1,"note":""}"#, "unit"),
            (r#"{"version":1,"title":"x","unit":"bytes","done":1,"total":-1,"note":""}"#, "total"),
            (r#"{"version":1,"result":{}}"#, "text"),
        ] {
            let why = Word::decode(line.as_bytes()).unwrap_err().to_string();
            assert!(why.contains(word), "{line}: {why}");
        }
    }
}
