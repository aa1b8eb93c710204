//! What is offered, as a person writes it: exports of points and of forks, who may use them, how fast, and what they are compared with.
//!
//! Not here: doors. What holds: every name in an option has to be one of an export, so that a slip of the pen opens nothing to
//! everybody; each point that is read or compared with is pinned once.

use crate::budgets::parse_size;
use crate::context::{Context, choose, choose_disk};
use crate::exit::{Result, wrong_use};
use crate::fork;
use coffer_gateway::fork::ForkName;
use coffer_gateway::{Access, Changes, Export, Exports, Limits, Permit, SnapshotChanges, SnapshotDevice};
use coffer_repo::Error;
use coffer_repo::catalog::Pin;
use coffer_repo::diff::Comparer;
use coffer_repo::id::SnapshotId;
use coffer_repo::point::PointName;
use coffer_repo::reader::ReaderOptions;
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::{Disk, Snapshot};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::sync::Arc;

/// An export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExportSpec {
    pub(super) name: String,
    what: Exported,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Exported {
    Point(PointName),
    Fork(ForkName),
}

/// `EXPORT=PERMIT,..`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AllowSpec {
    export: String,
    permits: Vec<Permit>,
}

/// `EXPORT=REQUESTS/BYTES`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LimitSpec {
    export: String,
    limits: Limits,
}

/// `[EXPORT=]POINT` or `[EXPORT=]all`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChangedSpec {
    export: Option<String>,
    /// As it was written, which is how a client names it; `None` for all.
    point: Option<(String, PointName)>,
}

/// All of it.
pub(super) struct Offer<'a> {
    pub(super) exports: &'a [ExportSpec],
    pub(super) allow: &'a [AllowSpec],
    pub(super) limit: &'a [LimitSpec],
    pub(super) changed_since: &'a [ChangedSpec],
}

/// Points that are held, each once.
struct Pins<'a> {
    context: &'a Context,
    repo: &'a Arc<Repository>,
    held: HashMap<SnapshotId, Arc<Pin>>,
}

impl Pins<'_> {
    fn hold(&mut self, snapshot: &Snapshot) -> Result<Arc<Pin>> {
        match self.held.entry(snapshot.id()) {
            Entry::Occupied(pin) => Ok(Arc::clone(pin.get())),
            Entry::Vacant(place) => Ok(Arc::clone(place.insert(self.context.pin(self.repo, snapshot, "export")?))),
        }
    }
}

impl Offer<'_> {
    /// Opens everything that is offered.
    pub(super) fn open(&self, context: &Context, options: ReaderOptions) -> Result<Arc<Exports>> {
        self.check_names()?;
        let repo = context.open()?;
        let points = context.points(&repo)?;
        let reader = context.reader(&repo, options)?;
        let comparer = Comparer::new(&repo)?;
        let mut pins = Pins { context, repo: &repo, held: HashMap::new() };
        let mut is_used = vec![false; self.changed_since.len()];
        let exports = Exports::new();
        for spec in self.exports {
            let point = match &spec.what {
                Exported::Point(point) => point,
                Exported::Fork(name) => {
                    let fork = fork::open(context, &repo, &reader, name)?;
                    exports.add(self.guarded(fork::export(&spec.name, name, fork)))?;
                    continue;
                }
            };
            let snapshot = choose(point, &points)?;
            let disk = choose_disk(point, snapshot)?;
            let mut changes = Vec::new();
            for (since, is_used) in self.changed_since.iter().zip(&mut is_used) {
                for (name, other, other_disk) in since.meant(spec, snapshot, disk, &points)? {
                    *is_used = true;
                    let source = SnapshotChanges::new(comparer.compare(other_disk, disk)?, Some(pins.hold(other)?));
                    changes.push(Changes { since: name, source: Arc::new(source) });
                }
            }
            changes.sort_by(|a, b| a.since.cmp(&b.since));
            changes.dedup_by(|a, b| a.since == b.since);
            let device = SnapshotDevice::new(reader.disk(snapshot, &disk.name)?, Some(pins.hold(snapshot)?));
            let mut export = Export::new(spec.name.clone(), Arc::new(device));
            export.description = format!("{}@{}:{}", snapshot.workload, snapshot.time(), disk.name);
            export.read_only = true;
            export.changes = changes;
            exports.add(self.guarded(export))?;
        }
        let unused = is_used.iter().zip(self.changed_since).find(|(is_used, _)| !**is_used);
        if let Some((_, ChangedSpec { point: Some((text, _)), .. })) = unused {
            return Err(Error::invalid(format!("--changed-since {text}: no export is a disk of that machine")).into());
        }
        Ok(Arc::new(exports))
    }

    /// The export with its access list and limits.
    fn guarded(&self, export: Export) -> Export {
        let permits = self.allow.iter().filter(|a| a.export == export.name).flat_map(|a| a.permits.clone());
        let limits = self.limit.iter().rfind(|l| l.export == export.name).map_or_else(Limits::default, |l| l.limits);
        Export { access: Access::only(permits), limits, ..export }
    }

    /// Whether all names in options are names of exports.
    fn check_names(&self) -> Result<()> {
        let allow = self.allow.iter().map(|a| ("--allow", &a.export));
        let limit = self.limit.iter().map(|l| ("--limit", &l.export));
        let changed = self.changed_since.iter().filter_map(|c| c.export.as_ref()).map(|e| ("--changed-since", e));
        for (option, name) in allow.chain(limit).chain(changed) {
            if self.exports.iter().all(|e| e.name != *name) {
                let names: Vec<_> = self.exports.iter().map(|e| e.name.as_str()).collect();
                return Err(wrong_use(format!(
                    "{option} {name}=: there is no such export; there are: {}",
                    names.join(", ")
                )));
            }
        }
        Ok(())
    }
}

impl AllowSpec {
    /// Whether clients are told apart by their certificates.
    pub(super) fn names_certificate(&self) -> bool {
        self.permits.iter().any(|permit| matches!(permit, Permit::Certificate(_)))
    }
}

impl ChangedSpec {
    /// What an export of `disk` of `snapshot` is compared with: as clients name it, the point, and its disk.
    fn meant<'a>(
        &self,
        spec: &ExportSpec,
        snapshot: &Snapshot,
        disk: &Disk,
        points: &'a [Snapshot],
    ) -> Result<Vec<(String, &'a Snapshot, &'a Disk)>> {
        if self.export.as_ref().is_some_and(|name| *name != spec.name) {
            return Ok(Vec::new());
        }
        let Some((text, point)) = &self.point else {
            let others = points.iter().filter(|p| p.workload == snapshot.workload && p.id() != snapshot.id());
            let with_disk = others.filter_map(|p| Some((p, p.disks.iter().find(|d| d.name == disk.name)?)));
            return Ok(with_disk.map(|(p, d)| (format!("{}@{}", p.workload, p.time()), p, d)).collect());
        };
        let other = choose(point, points)?;
        let name = point.disk.as_ref().unwrap_or(&disk.name);
        let is_meant = self.export.is_some() || (other.workload == snapshot.workload && *name == disk.name);
        match is_meant {
            true => Ok(vec![(text.clone(), other, other.disk(name)?)]),
            false => Ok(Vec::new()),
        }
    }
}

impl FromStr for ExportSpec {
    type Err = Error;

    fn from_str(text: &str) -> std::result::Result<Self, Error> {
        let (name, point) = text.split_once('=').unwrap_or((text, text));
        let what = match point.strip_prefix("fork:") {
            Some(fork) => Exported::Fork(fork.parse()?),
            None => Exported::Point(PointName::parse(point)?),
        };
        Ok(ExportSpec { name: name.to_owned(), what })
    }
}

impl FromStr for AllowSpec {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (export, permits) = text.split_once('=').ok_or("it lacks EXPORT=")?;
        let permits = permits.split(',').map(|p| p.parse::<Permit>().map_err(|e| e.to_string()));
        Ok(AllowSpec { export: export.to_owned(), permits: permits.collect::<std::result::Result<_, _>>()? })
    }
}

impl FromStr for LimitSpec {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (export, limits) = text.split_once('=').ok_or("it lacks EXPORT=")?;
        let (operations, bytes) =
            limits.split_once('/').ok_or("not REQUESTS/BYTES, as in 2000/100M, 2000/ or /100M")?;
        let number = |text: &str, parse: fn(&str) -> std::result::Result<u64, String>| match text {
            "" => Ok(None),
            text => {
                NonZeroU64::new(parse(text)?).map(Some).ok_or_else(|| "a limit of 0 lets nothing through".to_owned())
            }
        };
        let requests = |text: &str| text.parse().map_err(|_| format!("'{text}' is not a number of requests"));
        let limits = Limits { operations: number(operations, requests)?, bytes: number(bytes, parse_size)? };
        match limits == Limits::default() {
            true => Err("it limits nothing".to_owned()),
            false => Ok(LimitSpec { export: export.to_owned(), limits }),
        }
    }
}

impl FromStr for ChangedSpec {
    type Err = Error;

    fn from_str(text: &str) -> std::result::Result<Self, Error> {
        let (export, point) = match text.split_once('=') {
            Some((export, point)) => (Some(export.to_owned()), point),
            None => (None, text),
        };
        let point = match point {
            "all" => None,
            point => Some((point.to_owned(), PointName::parse(point)?)),
        };
        Ok(ChangedSpec { export, point })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_has_the_name_it_is_given_or_its_points() {
        let point = |text| Exported::Point(PointName::parse(text).unwrap());
        let spec: ExportSpec = "root=web@latest:vda".parse().unwrap();
        assert_eq!((spec.name.as_str(), spec.what), ("root", point("web@latest:vda")));
        let spec: ExportSpec = "web@-1".parse().unwrap();
        assert_eq!((spec.name.as_str(), spec.what), ("web@-1", point("web@-1")));
        let spec: ExportSpec = "x=fork:lab".parse().unwrap();
        assert_eq!((spec.name.as_str(), spec.what), ("x", Exported::Fork("lab".parse().unwrap())));
        assert!("fork:../x".parse::<ExportSpec>().is_err());
        assert!("x=web@noon".parse::<ExportSpec>().is_err());
    }

    #[test]
    fn permits_and_limits_belong_to_an_export() {
        let spec: AllowSpec = "vda=10.0.0.0/8,cert:web,uid:0".parse().unwrap();
        assert_eq!((spec.export.as_str(), spec.permits.len(), spec.names_certificate()), ("vda", 3, true));
        for bad in ["vda", "vda=", "vda=x", "vda=10.0.0.0/8,"] {
            assert!(bad.parse::<AllowSpec>().is_err(), "{bad}");
        }
        let limits = |text: &str| text.parse::<LimitSpec>().map(|l| (l.limits.operations, l.limits.bytes));
        assert_eq!(limits("vda=2000/100M"), Ok((NonZeroU64::new(2000), NonZeroU64::new(100 << 20))));
        assert_eq!(limits("vda=7/"), Ok((NonZeroU64::new(7), None)));
        assert_eq!(limits("vda=/1k"), Ok((None, NonZeroU64::new(1024))));
        for bad in ["vda", "vda=", "vda=/", "vda=0/1M", "vda=1/0", "vda=1k/", "vda=7", "vda=1/1x"] {
            assert!(bad.parse::<LimitSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_comparison_is_of_one_export_or_of_all() {
        let spec = |text: &str| text.parse::<ChangedSpec>().map(|c| (c.export, c.point.map(|(text, _)| text))).ok();
        assert_eq!(spec("web@-1"), Some((None, Some("web@-1".into()))));
        assert_eq!(spec("vda=all"), Some((Some("vda".into()), None)));
        assert_eq!(spec("all"), Some((None, None)));
        assert_eq!(spec("web@noon"), None);
    }
}
