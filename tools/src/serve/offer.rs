//! What is offered, as a person writes it: exports of points and of forks, who may use them, how fast, and what they are compared with.
//!
//! Not here: doors. What holds: every name in an option has to be one of an export, so that a slip of the pen opens nothing to
//! everybody; each point that is read or compared with is pinned once, for as long as an export needs it; a fork is opened once,
//! under however many names it is offered.

use crate::budgets::parse_size;
use crate::context::{Context, choose, choose_disk};
use crate::exit::{Result, describe, wrong_use};
use crate::fork;
use crate::terminal::Terminal;
use coffer_gateway::control::fork_socket::ForkSocket;
use coffer_gateway::fork::{Fork, ForkName};
use coffer_gateway::{Access, Changes, Export, Exports, Limits, Permit, SnapshotChanges, SnapshotDevice};
use coffer_repo::Error;
use coffer_repo::backend::cached::Intake;
use coffer_repo::catalog::Pin;
use coffer_repo::diff::Comparer;
use coffer_repo::id::SnapshotId;
use coffer_repo::point::PointName;
use coffer_repo::reader::{Reader, ReaderOptions};
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::{Disk, Snapshot};
use std::collections::HashMap;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Weak};

/// An export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExportSpec {
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

/// One export with all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) spec: ExportSpec,
    pub(super) permits: Vec<Permit>,
    pub(super) limits: Limits,
    pub(super) changed_since: Vec<ChangedSpec>,
}

/// What makes exports out of offers.
pub(super) struct Opener<'a> {
    context: &'a Context,
    repo: Arc<Repository>,
    reader: Arc<Reader>,
    comparer: Comparer,
    /// All points, once something takes all of them.
    points: Option<Vec<Snapshot>>,
    pins: HashMap<SnapshotId, Weak<Pin>>,
    forks: HashMap<String, Weak<ServedFork>>,
}

/// An export that is open.
pub(super) struct Opened {
    pub(super) export: Export,
    pub(super) fork: Option<OpenFork>,
    /// The same as it was meant at this moment: the point by its id.
    pub(super) meant: String,
    /// What the disk is, whoever offers it and whenever.
    pub(super) identity: String,
    /// Which of the offer's comparisons are of this export.
    pub(super) is_compared: Vec<bool>,
}

/// A fork that is served; shared by all exports of it.
pub(super) struct OpenFork {
    name: ForkName,
    served: Arc<ServedFork>,
}

/// A fork, and the socket by which other commands reach it.
struct ServedFork {
    fork: Arc<Fork>,
    socket: ForkSocket,
}

impl OpenFork {
    /// Flushes it for the last time and closes it, unless another export needs it still. A failure is warned of.
    pub(super) fn close(self, terminal: &Terminal) {
        let Some(ServedFork { fork, socket }) = Arc::into_inner(self.served) else { return };
        // Errands under way end first.
        drop(socket);
        if let Err(e) = fork.close() {
            terminal.warn(format_args!("fork '{}' could not be flushed: {}", self.name, describe(&e)));
        }
    }
}

/// The offers that options of a command line make.
pub(super) fn offers(
    exports: &[ExportSpec],
    allow: &[AllowSpec],
    limit: &[LimitSpec],
    changed_since: &[ChangedSpec],
) -> Result<Vec<Offer>> {
    let named = allow.iter().map(|a| ("--allow", &a.export)).chain(limit.iter().map(|l| ("--limit", &l.export)));
    let changed = changed_since.iter().filter_map(|c| c.export.as_ref()).map(|e| ("--changed-since", e));
    for (option, name) in named.chain(changed) {
        if exports.iter().all(|e| e.name != *name) {
            let names: Vec<_> = exports.iter().map(|e| e.name.as_str()).collect();
            return Err(wrong_use(format!(
                "{option} {name}=: there is no such export; there are: {}",
                names.join(", ")
            )));
        }
    }
    let offer = |spec: &ExportSpec| Offer {
        spec: spec.clone(),
        permits: allow.iter().filter(|a| a.export == spec.name).flat_map(|a| a.permits.clone()).collect(),
        limits: limit.iter().rfind(|l| l.export == spec.name).map_or_else(Limits::default, |l| l.limits),
        changed_since: changed_since.to_vec(),
    };
    Ok(exports.iter().map(offer).collect())
}

impl<'a> Opener<'a> {
    pub(super) fn new(context: &'a Context, options: ReaderOptions) -> Result<Self> {
        let repo = context.open_cached(Intake::Keep)?;
        let reader = context.reader(&repo, options)?;
        let comparer = Comparer::new(&repo)?;
        Ok(Opener { context, repo, reader, comparer, points: None, pins: HashMap::new(), forks: HashMap::new() })
    }

    /// Where this machine keeps what is nowhere else, for this repository.
    pub(super) fn state_folder(&self) -> Result<PathBuf> {
        Ok(self.context.settings.state()?.join(self.repo.keys().repo().to_string()))
    }

    /// Learns of points that came and went since.
    pub(super) fn refresh(&mut self) -> Result<()> {
        self.points = Some(self.context.points(&self.repo)?);
        self.pins.retain(|_, pin| pin.strong_count() > 0);
        self.forks.retain(|_, fork| fork.strong_count() > 0);
        Ok(())
    }

    /// All points.
    fn points(&mut self) -> Result<&[Snapshot]> {
        if self.points.is_none() {
            self.refresh()?;
        }
        Ok(self.points.as_deref().unwrap_or_default())
    }

    /// Opens what is offered.
    pub(super) fn open(&mut self, offer: &Offer) -> Result<Opened> {
        let spec = &offer.spec;
        let mut is_compared = vec![false; offer.changed_since.len()];
        let (export, fork, meant, identity) = match &spec.what {
            Exported::Fork(name) => {
                let served = self.fork(name)?;
                let export = fork::export(&spec.name, name, Arc::clone(&served.fork));
                let identity = format!("fork {name} of {}", served.fork.header().created.seconds());
                (export, Some(OpenFork { name: name.clone(), served }), format!("{}=fork:{name}", spec.name), identity)
            }
            Exported::Point(point) => {
                // Nothing is compared: then one point is found without reading the others.
                let snapshot = match offer.changed_since.is_empty() && self.points.is_none() {
                    true => self.context.find(&self.repo, point)?,
                    false => choose(point, self.points()?)?.clone(),
                };
                let disk = choose_disk(point, &snapshot)?;
                let mut changes = Vec::new();
                for (since, is_compared) in offer.changed_since.iter().zip(&mut is_compared) {
                    let meant: Vec<(String, Snapshot, Disk)> = since
                        .meant(spec, &snapshot, disk, self.points()?)?
                        .into_iter()
                        .map(|(name, other, other_disk)| (name, other.clone(), other_disk.clone()))
                        .collect();
                    for (name, other, other_disk) in meant {
                        *is_compared = true;
                        let compared = self.comparer.compare(&other_disk, disk)?;
                        let source = SnapshotChanges::new(compared, Some(self.hold(&other)?));
                        changes.push(Changes { since: name, source: Arc::new(source) });
                    }
                }
                changes.sort_by(|a, b| a.since.cmp(&b.since));
                changes.dedup_by(|a, b| a.since == b.since);
                let device = SnapshotDevice::new(self.reader.disk(&snapshot, &disk.name)?, Some(self.hold(&snapshot)?));
                let mut export = Export::new(spec.name.clone(), Arc::new(device));
                export.description = format!("{}@{}:{}", snapshot.workload, snapshot.time(), disk.name);
                export.read_only = true;
                export.changes = changes;
                let identity = format!("disk {} of {}", disk.name, snapshot.id());
                (export, None, format!("{}={}:{}", spec.name, snapshot.id(), disk.name), identity)
            }
        };
        let export = Export { access: Access::only(offer.permits.clone()), limits: offer.limits, ..export };
        let identity = format!("{}: {identity}", self.repo.keys().repo());
        Ok(Opened { export, fork, meant, identity, is_compared })
    }

    /// Holds a point, once.
    fn hold(&mut self, snapshot: &Snapshot) -> Result<Arc<Pin>> {
        if let Some(pin) = self.pins.get(&snapshot.id()).and_then(Weak::upgrade) {
            return Ok(pin);
        }
        let pin = self.context.pin(&self.repo, snapshot, "export")?;
        self.pins.insert(snapshot.id(), Arc::downgrade(&pin));
        Ok(pin)
    }

    /// Opens a fork, once.
    fn fork(&mut self, name: &ForkName) -> Result<Arc<ServedFork>> {
        let key = name.to_string();
        if let Some(fork) = self.forks.get(&key).and_then(Weak::upgrade) {
            return Ok(fork);
        }
        let fork = Arc::new(fork::open(self.context, &self.repo, &self.reader, name)?);
        let socket = fork::open_socket(self.context, &self.repo, name, &fork)?;
        let served = Arc::new(ServedFork { fork, socket });
        self.forks.insert(key, Arc::downgrade(&served));
        Ok(served)
    }
}

/// Opens all that a command line offers, into a table.
pub(super) fn open_all(opener: &mut Opener<'_>, offers: &[Offer]) -> Result<(Arc<Exports>, Vec<OpenFork>)> {
    let (exports, mut forks) = (Exports::new(), Vec::new());
    let mut is_compared = vec![false; offers.first().map_or(0, |offer| offer.changed_since.len())];
    for offer in offers {
        let opened = opener.open(offer)?;
        is_compared.iter_mut().zip(opened.is_compared).for_each(|(all, one)| *all |= one);
        exports.add(opened.export)?;
        forks.extend(opened.fork);
    }
    let changed_since = offers.first().map_or(&[][..], |offer| &offer.changed_since);
    refuse_unused(changed_since, &is_compared, "no export is a disk of that machine")?;
    Ok((Arc::new(exports), forks))
}

/// A comparison that was asked for by name and is of no export is a slip of the pen.
pub(super) fn refuse_unused(changed_since: &[ChangedSpec], is_compared: &[bool], why: &str) -> Result<()> {
    let unused = is_compared.iter().zip(changed_since).find(|(is_compared, _)| !**is_compared);
    match unused {
        Some((_, ChangedSpec { point: Some((text, _)), .. })) => {
            Err(Error::invalid(format!("--changed-since {text}: {why}")).into())
        }
        _ => Ok(()),
    }
}

impl Offer {
    /// One whose options are parts of their own, as in a configuration file or in an addition by command.
    pub(super) fn of(
        spec: ExportSpec,
        allow: &[String],
        limit: Option<&str>,
        changed_since: &[String],
    ) -> std::result::Result<Offer, String> {
        let permits = allow.iter().map(|permit| permit.parse::<Permit>().map_err(|e| e.to_string()));
        let changed_since = changed_since.iter().map(|point| ChangedSpec::of(Some(spec.name.clone()), point));
        Ok(Offer {
            permits: permits.collect::<std::result::Result<_, _>>()?,
            limits: limit.map_or(Ok(Limits::default()), parse_limits)?,
            changed_since: changed_since.collect::<std::result::Result<_, Error>>().map_err(|e| e.to_string())?,
            spec,
        })
    }

    /// Whether clients are told apart by their certificates.
    pub(super) fn names_certificate(&self) -> bool {
        self.permits.iter().any(|permit| matches!(permit, Permit::Certificate(_)))
    }
}

impl ExportSpec {
    /// An export of a point or a disk of it.
    pub(super) fn of_point(name: &str, point: &str) -> std::result::Result<Self, Error> {
        Ok(ExportSpec { name: name.to_owned(), what: Exported::Point(PointName::parse(point)?) })
    }

    /// An export of a fork.
    pub(super) fn of_fork(name: &str, fork: &str) -> std::result::Result<Self, Error> {
        Ok(ExportSpec { name: name.to_owned(), what: Exported::Fork(fork.parse()?) })
    }
}

impl ChangedSpec {
    fn of(export: Option<String>, point: &str) -> std::result::Result<Self, Error> {
        let point = match point {
            "all" => None,
            point => Some((point.to_owned(), PointName::parse(point)?)),
        };
        Ok(ChangedSpec { export, point })
    }

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
        match point.strip_prefix("fork:") {
            Some(fork) => ExportSpec::of_fork(name, fork),
            None => ExportSpec::of_point(name, point),
        }
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
        Ok(LimitSpec { export: export.to_owned(), limits: parse_limits(limits)? })
    }
}

/// Parses `REQUESTS/BYTES`, of which either may be left out.
pub(crate) fn parse_limits(limits: &str) -> std::result::Result<Limits, String> {
    let (operations, bytes) = limits.split_once('/').ok_or("not REQUESTS/BYTES, as in 2000/100M, 2000/ or /100M")?;
    let number = |text: &str, parse: fn(&str) -> std::result::Result<u64, String>| match text {
        "" => Ok(None),
        text => NonZeroU64::new(parse(text)?).map(Some).ok_or_else(|| "a limit of 0 lets nothing through".to_owned()),
    };
    let requests = |text: &str| text.parse().map_err(|_| format!("'{text}' is not a number of requests"));
    let limits = Limits { operations: number(operations, requests)?, bytes: number(bytes, parse_size)? };
    match limits == Limits::default() {
        true => Err("it limits nothing".to_owned()),
        false => Ok(limits),
    }
}

impl FromStr for ChangedSpec {
    type Err = Error;

    fn from_str(text: &str) -> std::result::Result<Self, Error> {
        let (export, point) = match text.split_once('=') {
            Some((export, point)) => (Some(export.to_owned()), point),
            None => (None, text),
        };
        ChangedSpec::of(export, point)
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
        assert_eq!((spec.export.as_str(), spec.permits.len()), ("vda", 3));
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
