//! What is said over a gateway's control socket: one line of JSON as the question, one as the answer, then the socket is closed.
//!
//! ```text
//!   {"version":1,"command":"add","export":"vda=web@latest","allow":["uid:0"],"limit":"2000/100M"}
//!   {"version":1,"command":"list"}                            also "targets", "sessions"
//!   {"version":1,"command":"remove","name":"vda","disconnect":true}
//!   {"version":1,"done":"..."}   {"version":1,"exports":[...]}   {"version":1,"objects":[...]}
//!   {"version":1,"error":"...","kind":"locked"}
//! ```
//! Not here: sockets. What holds: lines are bounded; another version is refused by its number; unknown keys are left alone, unknown
//! commands are not; what a person wrote travels as it was written, and is understood by the gateway.

use crate::export::ActivityTotals;
use crate::{Error, Kind, Result};
use serde_json::{Map, Value, json};

/// The one version there is.
pub(super) const VERSION: u64 = 1;
/// The longest question, in bytes.
pub const MAX_QUESTION: usize = 64 << 10;
/// The longest answer, in bytes: of 10,000 exports and more.
pub const MAX_ANSWER: usize = 16 << 20;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Offer one more.
    Add(Addition),
    /// What is offered?
    List,
    /// What iSCSI targets are there, and what are their disks?
    Targets,
    /// Which iSCSI sessions are there?
    Sessions,
    /// Offer one no more.
    Remove {
        /// Its name.
        name: String,
        /// Also end the connections of clients that have it.
        disconnect: bool,
    },
}

/// An export that is to be offered, as a person writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addition {
    /// `[NAME=]POINT[:DISK]` or `[NAME=]fork:NAME`.
    pub export: String,
    /// Who may use it, one permit each; everybody when there is none.
    pub allow: Vec<String>,
    /// `REQUESTS/BYTES`.
    pub limit: Option<String>,
}

/// An answer.
#[derive(Debug)]
pub enum Answer {
    /// It was done: in words.
    Done(String),
    /// What is offered.
    Exports(Vec<ExportReport>),
    /// One object for each thing that was asked for.
    Objects(Vec<Value>),
    /// It was not done.
    Failed(Error),
}

/// An export and what it is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportReport {
    /// Its name.
    pub name: String,
    /// What it is, for people.
    pub description: String,
    /// Where it comes from: `configuration` or `command`.
    pub origin: String,
    /// Size in bytes.
    pub size: u64,
    /// Whether writes are refused.
    pub is_read_only: bool,
    /// It is not offered any more, and there are still clients that have it.
    pub is_leaving: bool,
    /// Clients that have it now.
    pub clients: u64,
    /// What was done with it.
    pub activity: ActivityTotals,
}

impl Question {
    /// As a line, without its end.
    #[must_use]
    pub fn encode(&self) -> String {
        let object = match self {
            Question::Add(addition) => {
                let mut object = addition.to_object();
                object["version"] = VERSION.into();
                object["command"] = "add".into();
                object
            }
            Question::List => json!({ "version": VERSION, "command": "list" }),
            Question::Targets => json!({ "version": VERSION, "command": "targets" }),
            Question::Sessions => json!({ "version": VERSION, "command": "sessions" }),
            Question::Remove { name, disconnect } => {
                json!({ "version": VERSION, "command": "remove", "name": name, "disconnect": disconnect })
            }
        };
        object.to_string()
    }

    /// The question in a line.
    pub fn decode(line: &[u8]) -> Result<Self> {
        let object = decode(line)?;
        match text(&object, "command")?.as_str() {
            "add" => Ok(Question::Add(Addition::from_object(&object)?)),
            "list" => Ok(Question::List),
            "targets" => Ok(Question::Targets),
            "sessions" => Ok(Question::Sessions),
            "remove" => Ok(Question::Remove { name: text(&object, "name")?, disconnect: flag(&object, "disconnect")? }),
            other => Err(Error::new(Kind::Unsupported, format!("the gateway has no command '{other}'"))),
        }
    }
}

impl Addition {
    /// As an object, to be sent or kept.
    #[must_use]
    pub fn to_object(&self) -> Value {
        json!({ "export": self.export, "allow": self.allow, "limit": self.limit })
    }

    /// The one in an object.
    pub fn from_object(object: &Map<String, Value>) -> Result<Self> {
        let allow = texts(object, "allow")?;
        let limit = match object.get("limit") {
            None | Some(Value::Null) => None,
            Some(Value::String(limit)) => Some(limit.clone()),
            Some(_) => return Err(misshapen("limit")),
        };
        Ok(Addition { export: text(object, "export")?, allow, limit })
    }
}

impl Answer {
    /// As a line, without its end.
    #[must_use]
    pub fn encode(&self) -> String {
        let object = match self {
            Answer::Done(text) => json!({ "version": VERSION, "done": text }),
            Answer::Exports(exports) => {
                let exports: Vec<Value> = exports.iter().map(ExportReport::to_object).collect();
                json!({ "version": VERSION, "exports": exports })
            }
            Answer::Objects(objects) => json!({ "version": VERSION, "objects": objects }),
            Answer::Failed(error) => failure(error),
        };
        object.to_string()
    }

    /// The answer in a line.
    pub fn decode(line: &[u8]) -> Result<Self> {
        let object = decode(line)?;
        if let Some(error) = failure_in(&object)? {
            return Ok(Answer::Failed(error));
        }
        if let Some(objects) = object.get("objects") {
            return Ok(Answer::Objects(objects.as_array().ok_or_else(|| misshapen("objects"))?.clone()));
        }
        match object.get("exports") {
            None => Ok(Answer::Done(text(&object, "done")?)),
            Some(Value::Array(exports)) => {
                let exports = exports
                    .iter()
                    .map(|export| ExportReport::from_object(export.as_object().ok_or_else(|| misshapen("exports"))?));
                Ok(Answer::Exports(exports.collect::<Result<_>>()?))
            }
            Some(_) => Err(misshapen("exports")),
        }
    }
}

impl ExportReport {
    /// As an object: also what `coffer --json export list` prints.
    #[must_use]
    pub fn to_object(&self) -> Value {
        let ActivityTotals {
            reads,
            bytes_read,
            writes,
            bytes_written,
            others,
            failures,
            delays,
            latencies,
            latency_nanos,
        } = self.activity;
        json!({
            "name": self.name,
            "description": self.description,
            "origin": self.origin,
            "size": self.size,
            "is_read_only": self.is_read_only,
            "is_leaving": self.is_leaving,
            "clients": self.clients,
            "reads": reads,
            "bytes_read": bytes_read,
            "writes": writes,
            "bytes_written": bytes_written,
            "others": others,
            "failures": failures,
            "delays": delays,
            "latencies": latencies,
            "latency_nanos": latency_nanos,
        })
    }

    fn from_object(object: &Map<String, Value>) -> Result<Self> {
        let mut latencies = [0; crate::LATENCY_BOUNDS.len() + 1];
        let classes = object.get("latencies").and_then(Value::as_array).ok_or_else(|| misshapen("latencies"))?;
        if classes.len() != latencies.len() {
            return Err(misshapen("latencies"));
        }
        for (place, class) in latencies.iter_mut().zip(classes) {
            *place = class.as_u64().ok_or_else(|| misshapen("latencies"))?;
        }
        Ok(ExportReport {
            name: text(object, "name")?,
            description: text(object, "description")?,
            origin: text(object, "origin")?,
            size: number(object, "size")?,
            is_read_only: flag(object, "is_read_only")?,
            is_leaving: flag(object, "is_leaving")?,
            clients: number(object, "clients")?,
            activity: ActivityTotals {
                reads: number(object, "reads")?,
                bytes_read: number(object, "bytes_read")?,
                writes: number(object, "writes")?,
                bytes_written: number(object, "bytes_written")?,
                others: number(object, "others")?,
                failures: number(object, "failures")?,
                delays: number(object, "delays")?,
                latencies,
                latency_nanos: number(object, "latency_nanos")?,
            },
        })
    }
}

/// An error and all its sources as an object.
pub(super) fn failure(error: &Error) -> Value {
    let mut line = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(next) = source {
        line = format!("{line}: {next}");
        source = next.source();
    }
    json!({ "version": VERSION, "error": line, "kind": kind_name(error.kind()) })
}

/// The error that an object is, if it is one.
pub(super) fn failure_in(object: &Map<String, Value>) -> Result<Option<Error>> {
    if !object.contains_key("error") {
        return Ok(None);
    }
    Ok(Some(Error::new(kind_of(&text(object, "kind")?), text(object, "error")?)))
}

/// The strings of a list; none when it is missing.
pub(super) fn texts(object: &Map<String, Value>, key: &str) -> Result<Vec<String>> {
    match object.get(key) {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => {
            list.iter().map(|text| text.as_str().map(str::to_owned).ok_or_else(|| misshapen(key))).collect()
        }
        Some(_) => Err(misshapen(key)),
    }
}

/// The object in a line, if it is of our version.
pub(super) fn decode(line: &[u8]) -> Result<Map<String, Value>> {
    let value =
        serde_json::from_slice(line).map_err(|e| Error::invalid("this is not a line of JSON").with_source(e))?;
    let Value::Object(object) = value else { return Err(Error::invalid("this is not a JSON object")) };
    match number(&object, "version")? {
        VERSION => Ok(object),
        other => {
            let text =
                format!("this program speaks version {VERSION} to gateways, and was spoken to in version {other}");
            Err(Error::new(Kind::Unsupported, text))
        }
    }
}

pub(super) fn text(object: &Map<String, Value>, key: &str) -> Result<String> {
    object.get(key).and_then(Value::as_str).map(str::to_owned).ok_or_else(|| misshapen(key))
}

pub(super) fn number(object: &Map<String, Value>, key: &str) -> Result<u64> {
    object.get(key).and_then(Value::as_u64).ok_or_else(|| misshapen(key))
}

pub(super) fn flag(object: &Map<String, Value>, key: &str) -> Result<bool> {
    object.get(key).and_then(Value::as_bool).ok_or_else(|| misshapen(key))
}

pub(super) fn misshapen(key: &str) -> Error {
    Error::invalid(format!("'{key}' is missing, or not what it should be"))
}

/// Kinds by name; one that is unknown came from a newer program, and is nothing that this one could act on.
const KINDS: [(Kind, &str); 13] = [
    (Kind::NotFound, "not-found"),
    (Kind::Corrupt, "corrupt"),
    (Kind::WrongKey, "wrong-key"),
    (Kind::Locked, "locked"),
    (Kind::Retained, "retained"),
    (Kind::Full, "full"),
    (Kind::Unavailable, "unavailable"),
    (Kind::Frozen, "frozen"),
    (Kind::Overtaken, "overtaken"),
    (Kind::Cancelled, "cancelled"),
    (Kind::Unsupported, "unsupported"),
    (Kind::Invalid, "invalid"),
    (Kind::Internal, "internal"),
];

fn kind_name(kind: Kind) -> &'static str {
    KINDS.iter().find(|(known, _)| *known == kind).map_or("unavailable", |(_, name)| name)
}

fn kind_of(name: &str) -> Kind {
    KINDS.iter().find(|(_, known)| *known == name).map_or(Kind::Unavailable, |(kind, _)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_come_back_as_they_were() {
        let addition = Addition {
            export: "a b=web@latest:vda".into(),
            allow: vec!["uid:0".into(), "cert:\"x\"\n".into()],
            limit: Some("7/".into()),
        };
        for question in [
            Question::Add(addition),
            Question::Add(Addition { export: "fork:lab".into(), ..Addition::default() }),
            Question::List,
            Question::Targets,
            Question::Sessions,
            Question::Remove { name: "\u{0}\u{2028}".into(), disconnect: true },
        ] {
            let line = question.encode();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(Question::decode(line.as_bytes()).unwrap(), question);
        }
    }

    #[test]
    fn answers_come_back_as_they_were() {
        let activity =
            ActivityTotals { reads: 1, latencies: [1, 2, 3, 4, 5, 6, u64::MAX], ..ActivityTotals::default() };
        let report = ExportReport { name: "x".into(), size: 9, is_leaving: true, activity, ..ExportReport::default() };
        let Answer::Exports(back) = Answer::decode(Answer::Exports(vec![report.clone()]).encode().as_bytes()).unwrap()
        else {
            panic!("not exports")
        };
        assert_eq!(back, [report]);
        let Answer::Done(text) = Answer::decode(Answer::Done("so".into()).encode().as_bytes()).unwrap() else {
            panic!("not done")
        };
        assert_eq!(text, "so");
        let objects = vec![json!({ "name": "x" }), json!([1])];
        let Answer::Objects(back) = Answer::decode(Answer::Objects(objects.clone()).encode().as_bytes()).unwrap()
        else {
            panic!("not objects")
        };
        assert_eq!(back, objects);
        for (kind, _) in KINDS {
            let failed = Answer::Failed(Error::new(kind, "why").with_source(Error::invalid("inner")));
            let Answer::Failed(back) = Answer::decode(failed.encode().as_bytes()).unwrap() else {
                panic!("not failed")
            };
            assert_eq!((back.kind(), back.to_string().as_str()), (kind, "why: inner"));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (line, word) in [
            ("", "JSON"),
            ("[]", "object"),
            ("{}", "version"),
            (r#"{"version":2,"command":"list"}"#, "version 2"),
            (r#"{"version":1}"#, "command"),
            (r#"{"version":1,"command":"dance"}"#, "dance"),
            (r#"{"version":1,"command":"add"}"#, "export"),
            (r#"{"version":1,"command":"add","export":"x","allow":"y"}"#, "allow"),
            (r#"{"version":1,"command":"add","export":"x","allow":[1]}"#, "allow"),
            (r#"{"version":1,"command":"add","export":"x","limit":1}"#, "limit"),
            (r#"{"version":1,"command":"remove","name":"x"}"#, "disconnect"),
        ] {
            let why = Question::decode(line.as_bytes()).unwrap_err().to_string();
            assert!(why.contains(word), "{line}: {why}");
        }
        let deep = "[".repeat(100_000);
        assert!(Question::decode(deep.as_bytes()).is_err());
    }
}
