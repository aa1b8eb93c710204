//! Standard output: what a command found, as text for people or as one JSON object for programs.
//!
//! Keys of the JSON are part of the interface: they stay. Sizes are numbers of bytes; times come twice, as text (`time`, as POINT
//! spells it) and as seconds since 1970 (`time_seconds`); warnings are in `warnings`.
//!
//! Not here: what the commands say. What holds: a command that failed printed no JSON that parses, but for `verify`, whose
//! findings are its result.

use crate::exit::{Failure, Result};
use coffer_mover::range_list::RangeList;
use coffer_repo::Error;
use coffer_repo::lock_for::LockFor;
use coffer_repo::protection::{Protected, Protection};
use coffer_repo::snapshot::{Copied, Snapshot};
use coffer_repo::time::Timestamp;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};
use std::io::{self, Write};

/// Digits of an id that are shown in tables: enough to be unique among thousands.
const SHORT_ID: usize = 12;

/// Standard output in the form that was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// JSON, not text.
    pub(crate) is_json: bool,
}

impl Output {
    /// Prints a result: `object` with the warnings so far, or `text`.
    pub(crate) fn print(self, mut object: Value, warnings: Vec<String>, text: &str) -> Result<()> {
        if !self.is_json {
            return write(text.as_bytes());
        }
        object["warnings"] = warnings.into();
        write(format!("{object}\n").as_bytes())
    }
}

/// Writes bytes to standard output.
pub(crate) fn write(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(failed)
}

/// What became of standard output.
pub(crate) fn failed(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::ReaderGone,
        _ => Error::io("writing to standard output", error).into(),
    }
}

/// A table without lines; columns from `right_from` on hold numbers.
pub(crate) fn table(header: &[&str], right_from: usize, rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec()).add_rows(rows);
    for column in table.column_iter_mut().skip(right_from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// The beginning of an id, which names it as well.
pub(crate) fn short(id: impl ToString) -> String {
    let mut id = id.to_string();
    id.truncate(SHORT_ID);
    id
}

/// Byte ranges for people.
pub(crate) fn ranges(list: &RangeList) -> String {
    let named: Vec<String> = list.ranges().iter().map(|r| format!("{} to {}", r.start, r.end)).collect();
    let more = if list.is_cut_short() { " and more" } else { "" };
    format!("{} bytes ({}{more})", list.bytes(), named.join(", "))
}

/// Byte ranges for programs.
pub(crate) fn ranges_object(list: &RangeList) -> Value {
    let pairs: Vec<[u64; 2]> = list.ranges().iter().map(|r| [r.start, r.end]).collect();
    json!({ "bytes": list.bytes(), "ranges": pairs, "is_cut_short": list.is_cut_short() })
}

/// A snapshot with everything that is known of it.
pub(crate) fn snapshot(snapshot: &Snapshot) -> Value {
    let disks: Vec<Value> = snapshot
        .disks
        .iter()
        .map(|disk| {
            json!({
                "name": disk.name,
                "size": disk.size,
                "block_size": disk.block_size,
                "unreadable": disk.unreadable,
                "token": disk.token,
            })
        })
        .collect();
    json!({
        "id": snapshot.id().to_string(),
        "workload": snapshot.workload,
        "time": snapshot.time().to_string(),
        "time_seconds": snapshot.time().seconds(),
        "tags": snapshot.tags,
        "host": snapshot.identity.host,
        "user": snapshot.identity.user,
        "program": snapshot.identity.program,
        "parents": snapshot.parents.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "origin": snapshot.copied.map(origin),
        "size": snapshot.logical_bytes(),
        "read": snapshot.stats.read,
        "new_chunks": snapshot.stats.new_chunks,
        "new_bytes": snapshot.stats.new_raw,
        "stored_bytes": snapshot.stats.new_stored,
        "lock_for_seconds": snapshot.lock_for.map(LockFor::seconds),
        "disks": disks,
    })
}

/// Of what a copy is one.
fn origin(copied: Copied) -> Value {
    json!({
        "repository": copied.origin.repo.to_string(),
        "snapshot": copied.origin.snapshot.to_string(),
        "copied": copied.begun.to_string(),
        "copied_seconds": copied.begun.seconds(),
    })
}

/// The same with what protects it from being forgotten.
pub(crate) fn point(snapshot: &Snapshot, protected: &Protected) -> Value {
    let notes = protected.of(snapshot.id());
    let mut object = self::snapshot(snapshot);
    object["protected"] = (!notes.is_empty()).into();
    let note = |note: &Protection| {
        json!({
            "note": note.record.to_string(),
            "reason": note.reason,
            "time": note.time.map(|time| time.to_string()),
            "time_seconds": note.time.map(Timestamp::seconds),
        })
    };
    object["protections"] = notes.iter().map(note).collect();
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_no_lines_and_numbers_stand_right() {
        let text = table(&["name", "size"], 1, [vec!["a".into(), "10".into()], vec!["bcdef".into(), "2".into()]]);
        assert_eq!(text, "name   size\na        10\nbcdef     2\n");
    }

    #[test]
    fn an_id_is_cut_and_a_size_has_a_unit() {
        assert_eq!(short("0123456789abcdef"), "0123456789ab");
        assert_eq!(size(3 << 19), "1.50 MiB");
    }

    #[test]
    fn only_a_reader_that_left_is_no_failure() {
        assert!(matches!(failed(io::ErrorKind::BrokenPipe.into()), Failure::ReaderGone));
        assert!(matches!(failed(io::ErrorKind::StorageFull.into()), Failure::Failed(_)));
    }
}
