//! `coffer diff`: where two points differ.

use crate::context::{Context, choose, choose_disk};
use crate::exit::{Failure, Result};
use crate::output::{self, size};
use crate::signal;
use coffer_repo::backend::cached::Intake;
use coffer_repo::cancel::Cancel;
use coffer_repo::diff::{DiffTotals, diff};
use coffer_repo::point::PointName;
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::{Disk, Snapshot};
use coffer_repo::{Error, Kind};
use serde_json::{Value, json};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::sync::Arc;

/// Show which bytes differ between two points, as ranges that may be a little too wide
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The older one; with a disk only that disk is compared
    #[arg(value_name = "POINT[:DISK]", value_parser = PointName::parse)]
    old: PointName,

    /// The newer one
    #[arg(value_name = "POINT[:DISK]", value_parser = PointName::parse)]
    new: PointName,
}

/// Two disks to compare; either may be missing from its point.
struct Pair<'a> {
    name: &'a str,
    old: Option<&'a Disk>,
    new: Option<&'a Disk>,
}

impl Arguments {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let repo = context.open_cached(Intake::Keep)?;
        let points = context.points(&repo)?;
        let (old, new) = (choose(&self.old, &points)?, choose(&self.new, &points)?);
        let pairs = self.pairs(old, new)?;
        let cancel = signal::cancel(&context.terminal)?;
        let mut listing = Listing { out: BufWriter::new(io::stdout().lock()), is_json: context.output.is_json };
        listing.begin().map_err(output::failed)?;
        let mut changed = 0u64;
        for (i, pair) in pairs.iter().enumerate() {
            changed = changed.saturating_add(listing.disk(&repo, pair, i == 0, &cancel)?.changed);
        }
        let object = json!({
            "old": output::snapshot(old),
            "new": output::snapshot(new),
            "changed": changed,
            "warnings": context.terminal.warnings(),
        });
        listing.end(&object).map_err(output::failed)
    }

    /// The disks that are named, or all of both points, by name.
    fn pairs<'a>(&self, old: &'a Snapshot, new: &'a Snapshot) -> Result<Vec<Pair<'a>>> {
        if self.old.disk.is_some() || self.new.disk.is_some() {
            let (old, new) = (choose_disk(&self.old, old)?, choose_disk(&self.new, new)?);
            return Ok(vec![Pair { name: &new.name, old: Some(old), new: Some(new) }]);
        }
        let of = |snapshot: &'a Snapshot, name: &str| snapshot.disks.iter().find(|disk| disk.name == name);
        let mut names: Vec<&str> = old.disks.iter().chain(&new.disks).map(|disk| disk.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        Ok(names.into_iter().map(|name| Pair { name, old: of(old, name), new: of(new, name) }).collect())
    }
}

/// Writes what is found as it is found: a comparison may find more ranges than memory should hold.
struct Listing<W> {
    out: W,
    is_json: bool,
}

impl<W: Write> Listing<W> {
    fn begin(&mut self) -> io::Result<()> {
        if self.is_json { self.out.write_all(b"{\"disks\":[") } else { Ok(()) }
    }

    fn disk(&mut self, repo: &Arc<Repository>, pair: &Pair<'_>, is_first: bool, cancel: &Cancel) -> Result<DiffTotals> {
        if self.is_json {
            let comma = if is_first { "" } else { "," };
            write!(self.out, "{comma}{{\"ranges\":[").map_err(output::failed)?;
        }
        let totals = match (pair.old, pair.new) {
            (Some(old), Some(new)) => self.ranges(repo, pair.name, old, new, cancel)?,
            _ => DiffTotals::default(),
        };
        let ended = if self.is_json { self.end_of_json(pair, totals) } else { self.end_of_text(pair, totals) };
        ended.map_err(output::failed)?;
        Ok(totals)
    }

    fn ranges(
        &mut self,
        repo: &Arc<Repository>,
        name: &str,
        old: &Disk,
        new: &Disk,
        cancel: &Cancel,
    ) -> Result<DiffTotals> {
        let mut broken = None;
        let mut is_first = true;
        let totals = diff(repo, old, new, cancel, &mut |range| {
            let written = self.range(name, &range, is_first);
            is_first = false;
            written.map_err(|e| {
                broken = Some(e);
                Error::new(Kind::Cancelled, "nobody reads on")
            })
        });
        match broken {
            Some(e) => Err(output::failed(e)),
            None => totals.map_err(Failure::from),
        }
    }

    fn range(&mut self, name: &str, range: &Range<u64>, is_first: bool) -> io::Result<()> {
        let Range { start, end } = range;
        if self.is_json {
            let comma = if is_first { "" } else { "," };
            return write!(self.out, "{comma}[{start},{end}]");
        }
        writeln!(self.out, "{name}  {start} to {end}  {}", size(end - start))
    }

    fn end_of_json(&mut self, pair: &Pair<'_>, totals: DiffTotals) -> io::Result<()> {
        let facts = json!({
            "name": pair.name,
            "old_size": pair.old.map(|disk| disk.size),
            "new_size": pair.new.map(|disk| disk.size),
            "changed": totals.changed,
        });
        write!(self.out, "],{}", members(&facts))
    }

    fn end_of_text(&mut self, pair: &Pair<'_>, totals: DiffTotals) -> io::Result<()> {
        let name = pair.name;
        match (pair.old, pair.new) {
            (Some(old), Some(new)) => {
                let (changed, of) = (size(totals.changed), size(new.size));
                writeln!(self.out, "{name}: {changed} of {of} changed, in {} ranges", totals.ranges)?;
                if old.size != new.size {
                    writeln!(self.out, "{name}: was {} bytes, is {} bytes", old.size, new.size)?;
                }
                Ok(())
            }
            (Some(_), None) => writeln!(self.out, "{name}: only in the older point"),
            (None, _) => writeln!(self.out, "{name}: only in the newer point"),
        }
    }

    fn end(mut self, object: &Value) -> io::Result<()> {
        if self.is_json {
            writeln!(self.out, "],{}", members(object))?;
        }
        self.out.flush()
    }
}

/// The members of an object that was begun by hand, with its closing brace.
fn members(object: &Value) -> String {
    object.to_string().split_off(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_may_be_begun_by_hand() {
        assert_eq!(members(&json!({ "a": 1 })), "\"a\":1}");
    }
}
