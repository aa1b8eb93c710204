//! How people name a point: `WORKLOAD@latest`, `WORKLOAD@-N`, `WORKLOAD@TIME` or the beginning of an id; then perhaps `:DISK` and
//! `/VOLUME/path`.
//!
//! Not here: reading the points, of which one takes little ([`Repository::find_point`]). What holds: workloads and disks cannot contain `@`, `:` or `/`, so the grammar is unambiguous;
//! what is not found is answered with the nearest names.

use crate::error::{Error, Result};
#[cfg(doc)]
use crate::repository::Repository;
use crate::snapshot::{Disk, Snapshot};
use crate::time::Timestamp;

/// Fewest digits that name an id.
const ID_PREFIX: usize = 4;

/// A parsed POINT, not yet looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointName {
    pub(crate) select: Select,
    /// The disk, when one was named.
    pub disk: Option<String>,
    /// The path behind the disk, without its leading slash.
    pub path: Option<String>,
}

/// Which point is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Select {
    /// The Nth before the latest.
    Before(String, usize),
    At(String, Timestamp),
    Id(String),
}

impl PointName {
    /// Parses POINT, POINT:DISK or POINT:DISK/path.
    pub fn parse(text: &str) -> Result<Self> {
        let (point, rest) = match text.split_once(':') {
            Some((point, rest)) => (point, Some(rest)),
            None => (text, None),
        };
        let (disk, path) = match rest.map(|r| r.split_once('/').map_or((r, None), |(disk, path)| (disk, Some(path)))) {
            Some((disk, path)) => ((!disk.is_empty()).then(|| disk.to_owned()), path.map(str::to_owned)),
            None => (None, None),
        };
        let select = match point.split_once('@') {
            Some(("", _)) => return Err(malformed(text)),
            Some((workload, "latest")) => Select::Before(workload.to_owned(), 0),
            Some((workload, back)) if back.starts_with('-') => {
                let n = back.trim_start_matches('-').parse().map_err(|_| malformed(text))?;
                Select::Before(workload.to_owned(), n)
            }
            Some((workload, time)) => Select::At(workload.to_owned(), time.parse().map_err(|_| malformed(text))?),
            None => Select::Id(point.to_ascii_lowercase()),
        };
        Ok(PointName { select, disk, path })
    }

    pub(crate) fn is_id_prefix(text: &str) -> bool {
        text.len() >= ID_PREFIX && text.bytes().all(|b| b.is_ascii_hexdigit())
    }

    /// Finds the point among `points`, which are sorted by time.
    pub fn find<'a>(&self, points: &'a [Snapshot]) -> Result<&'a Snapshot> {
        match &self.select {
            Select::Before(workload, n) => {
                let of: Vec<_> = of_workload(points, workload)?;
                of.len().checked_sub(n + 1).and_then(|i| of.get(i)).copied().ok_or_else(|| {
                    Error::not_found(format!("'{workload}' has {} points, so there is no {workload}@-{n}", of.len()))
                })
            }
            Select::At(workload, time) => {
                let of = of_workload(points, workload)?;
                let at: Vec<_> = of.iter().filter(|s| s.time() == *time).copied().collect();
                one(at, &format!("{workload}@{time}"), || {
                    let mut near = of;
                    near.sort_by_key(|s| s.time().seconds().abs_diff(time.seconds()));
                    let near: Vec<_> = near.iter().take(3).map(|s| format!("{workload}@{}", s.time())).collect();
                    Error::not_found(format!("no point {workload}@{time}; the nearest are: {}", near.join(", ")))
                })
            }
            Select::Id(prefix) => {
                if !Self::is_id_prefix(prefix) {
                    return Err(if points.iter().any(|s| s.workload.eq_ignore_ascii_case(prefix)) {
                        Error::invalid(format!(
                            "'{prefix}' is a workload; say which point of it, for example {prefix}@latest"
                        ))
                    } else {
                        malformed(prefix)
                    });
                }
                let with = points.iter().filter(|s| s.id().to_string().starts_with(prefix.as_str())).collect();
                one(with, prefix, || {
                    let hint = match points.iter().any(|s| s.workload.eq_ignore_ascii_case(prefix)) {
                        true => format!("; for the workload write {prefix}@latest"),
                        false => String::new(),
                    };
                    Error::not_found(format!("no point whose id begins with {prefix}{hint}"))
                })
            }
        }
    }

    /// The disk of `snapshot` that is meant: the named one, or the only one.
    pub fn find_disk<'a>(&self, snapshot: &'a Snapshot) -> Result<&'a Disk> {
        match (&self.disk, snapshot.disks.as_slice()) {
            (Some(name), _) => snapshot.disk(name),
            (None, [only]) => Ok(only),
            (None, disks) => {
                let names: Vec<_> = disks.iter().map(|d| d.name.as_str()).collect();
                Err(Error::invalid(format!(
                    "{}@{} has several disks; say which, as in {}@{}:{} (it has: {})",
                    snapshot.workload,
                    snapshot.time(),
                    snapshot.workload,
                    snapshot.time(),
                    names.first().unwrap_or(&"DISK"),
                    names.join(", ")
                )))
            }
        }
    }
}

/// The points of `workload`, or the nearest workloads in the error.
pub fn of_workload<'a>(points: &'a [Snapshot], workload: &str) -> Result<Vec<&'a Snapshot>> {
    let of: Vec<_> = points.iter().filter(|s| s.workload == workload).collect();
    if !of.is_empty() {
        return Ok(of);
    }
    let mut names: Vec<&str> = points.iter().map(|s| s.workload.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names.sort_by_cached_key(|name| strsim::damerau_levenshtein(&name.to_lowercase(), &workload.to_lowercase()));
    names.truncate(3);
    Err(Error::not_found(match names.is_empty() {
        true => format!("no points of '{workload}': the repository has no snapshots yet"),
        false => format!("no points of '{workload}'; the nearest workloads are: {}", names.join(", ")),
    }))
}

fn one<'a>(found: Vec<&'a Snapshot>, name: &str, none: impl FnOnce() -> Error) -> Result<&'a Snapshot> {
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(none()),
        several => {
            let ids: Vec<_> = several.iter().map(|s| s.id().to_string()).collect();
            Err(Error::invalid(format!("{name} is not one point; use one of the ids {}", ids.join(", "))))
        }
    }
}

fn malformed(text: &str) -> Error {
    Error::invalid(format!(
        "'{text}' names no point: write WORKLOAD@latest, WORKLOAD@-1, WORKLOAD@2026-11-21T02-00-00Z, or at least {ID_PREFIX} \
         digits of an id"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{SnapshotId, WorkloadTag};
    use crate::snapshot::{ClaimName, ClaimStats, Identity};

    fn point(workload: &str, seconds: u64, id: u8) -> Snapshot {
        let disk = |name: &str| Disk {
            name: name.into(),
            size: 1,
            block_size: 512,
            root: vec![],
            token: None,
            platform: None,
            unreadable: 0,
        };
        Snapshot {
            name: ClaimName {
                tag: WorkloadTag::default(),
                time: Timestamp::from_seconds(seconds).unwrap(),
                id: SnapshotId([id; 16]),
            },
            workload: workload.into(),
            tags: vec![],
            identity: Identity::default(),
            parents: vec![],
            copied: None,
            disks: if id == 1 { vec![disk("a")] } else { vec![disk("a"), disk("b")] },
            stats: ClaimStats::default(),
            lock_for: None,
        }
    }

    fn find(text: &str) -> Result<u8> {
        let points =
            [point("web", 10, 1), point("web", 20, 2), point("db", 20, 3), point("web", 30, 4), point("web", 30, 5)];
        PointName::parse(text)?.find(&points).map(|s| s.id().0[0])
    }

    #[test]
    fn every_spelling_finds_its_point() {
        for (text, id) in [
            ("db@latest", 3),
            ("web@-2", 2),
            ("web@-3", 1),
            ("web@1970-01-01T00-00-10Z", 1),
            ("01010101", 1),
            ("0404", 4),
            ("db@latest:a/1/etc/passwd", 3),
        ] {
            assert_eq!(find(text).unwrap(), id, "{text}");
        }
        let name = PointName::parse("db@latest:a/1/etc/passwd").unwrap();
        assert_eq!((name.disk.as_deref(), name.path.as_deref()), (Some("a"), Some("1/etc/passwd")));
    }

    #[test]
    fn what_is_not_found_names_the_nearest() {
        for (text, says) in [
            ("wbe@latest", "web"),
            ("web@-9", "4 points"),
            ("web@1970-01-01T00-00-11Z", "web@1970-01-01T00-00-10Z"),
            ("web@1970-01-01T00-00-30Z", "0505"),
            ("ffff", "no point"),
            ("web", "web@latest"),
            ("db", "db@latest"),
            ("web@yesterday", "WORKLOAD@latest"),
            ("@latest", "WORKLOAD@latest"),
            ("", "WORKLOAD@latest"),
        ] {
            let e = find(text).unwrap_err();
            assert!(e.to_string().contains(says), "{text}: {e}");
        }
    }

    #[test]
    fn a_disk_may_be_left_out_only_when_there_is_one() {
        let name = PointName::parse("web@latest").unwrap();
        assert_eq!(name.find_disk(&point("web", 1, 1)).unwrap().name, "a");
        assert!(name.find_disk(&point("web", 1, 2)).unwrap_err().to_string().contains("a, b"));
        let named = PointName::parse("web@latest:c").unwrap();
        assert!(named.find_disk(&point("web", 1, 2)).unwrap_err().to_string().contains("a, b"));
    }
}
