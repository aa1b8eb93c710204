//! What every command begins with: the repository that was named, opened with what opens it; its points; its index.
//!
//! Not here: deciding which repository ([`crate::settings`]). What holds: nothing is opened before a command asks for it, so that
//! wrong use is told first.

use crate::credential;
use crate::environment;
use crate::exit::{Failure, Result, describe, wrong_use};
use crate::output::Output;
use crate::settings::{Globals, Opener, Settings};
use crate::store;
use crate::terminal::Terminal;
use coffer_gateway::control::Word;
use coffer_repo::backend::address::Address;
use coffer_repo::backend::cached::{CacheOptions, Cached, Intake};
use coffer_repo::catalog::Pin;
use coffer_repo::descriptor;
use coffer_repo::entropy::{Entropy, System};
use coffer_repo::index::{Index, IndexOptions};
use coffer_repo::point::PointName;
use coffer_repo::protection::Protected;
use coffer_repo::reader::{Reader, ReaderOptions, Remedy};
use coffer_repo::repository::Repository;
use coffer_repo::snapshot::{Disk, Snapshot};
use coffer_repo::{Error, Kind};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The folder of the disk cache, in the cache folder of a repository. Another way of laying out its files would have another name.
pub(crate) const DISK_CACHE: &str = "objects-1";

/// What a command works with.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) terminal: Arc<Terminal>,
    pub(crate) output: Output,
}

impl Context {
    /// From the command line and the environment.
    pub(crate) fn new(globals: &Globals) -> Result<Context> {
        Ok(Context {
            settings: Settings::resolve(globals, environment::Environment::read())?,
            terminal: Arc::new(Terminal::new(globals.quiet)),
            output: Output { is_json: globals.json },
        })
    }

    /// The same for work that is done for somebody else, who is told of it.
    pub(crate) fn told(&self, listener: impl Fn(Word) + Send + Sync + 'static) -> Context {
        Context { terminal: Arc::new(Terminal::told(listener)), ..self.clone() }
    }

    /// Prints a command's result, with the warnings so far in its JSON.
    pub(crate) fn print(&self, object: Value, text: &str) -> Result<()> {
        self.output.print(object, self.terminal.warnings(), text)
    }

    /// Opens the repository.
    pub(crate) fn open(&self) -> Result<Arc<Repository>> {
        self.open_at(&self.address()?, &self.settings.opener)
    }

    /// Where the repository is.
    pub(crate) fn address(&self) -> Result<Address> {
        store::address(self.settings.location()?, &self.settings.options)
    }

    /// Opens the repository for reading what points hold: by way of this machine's disk cache, where one is wanted. Whoever has to
    /// know what is in the store itself does not open it so.
    pub(crate) fn open_cached(&self, intake: Intake) -> Result<Arc<Repository>> {
        let repo = self.open_alone(&self.address()?, &self.settings.opener)?;
        let budget_bytes = self.settings.disk_cache_bytes()?;
        if budget_bytes == 0 {
            return Ok(Arc::new(repo));
        }
        let options = CacheOptions { folder: self.cache_folder(&repo)?.join(DISK_CACHE), budget_bytes, intake };
        let terminal = Arc::clone(&self.terminal);
        let tell = move |e: &Error| terminal.notice(describe(e));
        Ok(Arc::new(repo.behind(|store| Ok(Arc::new(Cached::new(store, options, tell)?)))?))
    }

    /// Opens another repository.
    pub(crate) fn open_at(&self, address: &Address, opener: &Opener) -> Result<Arc<Repository>> {
        Ok(Arc::new(self.open_alone(address, opener)?))
    }

    fn open_alone(&self, address: &Address, opener: &Opener) -> Result<Repository> {
        let backend = store::open_existing(address)?;
        // Before anybody is asked for a passphrase in vain.
        if backend.size(descriptor::OBJECT_NAME)?.is_none() {
            let has_locks = backend.object_lock().is_some_and(|lock| lock.check().is_ok());
            let or =
                if has_locks { ", and if somebody hid this one, 'coffer locks reveal' shows it again" } else { "" };
            let why = format!("{address} is not a Coffer repository; 'coffer init' makes one{or}");
            return Err(Error::not_found(why).into());
        }
        let credential = credential::obtain(opener, &address.to_string())?;
        let repo = Repository::open(backend, &credential, entropy())?;
        Ok(repo.with_tiers(store::tiers(&self.settings))?)
    }

    /// All points, oldest first. Damaged ones are warned of.
    pub(crate) fn points(&self, repo: &Repository) -> Result<Vec<Snapshot>> {
        let points = repo.points()?;
        for (name, error) in &points.damaged {
            self.terminal.warn(format_args!("{name} is damaged and was left out: {}", describe(error)));
        }
        Ok(points.snapshots)
    }

    /// The one point that is meant.
    pub(crate) fn find(&self, repo: &Repository, name: &PointName) -> Result<Snapshot> {
        match repo.find_point(name)? {
            Some(snapshot) => Ok(snapshot),
            None => Ok(choose(name, &self.points(repo)?)?.clone()),
        }
    }

    /// Which points are protected. Damaged notes are warned of.
    pub(crate) fn protected(&self, repo: &Repository) -> Result<Protected> {
        let protected = repo.protected()?;
        for (name, error) in &protected.damaged {
            self.terminal.warn(format_args!("{name} is damaged; it may protect a point: {}", describe(error)));
        }
        Ok(protected)
    }

    /// Holds a point against removal while it is read.
    pub(crate) fn pin(&self, repo: &Arc<Repository>, snapshot: &Snapshot, purpose: &str) -> Result<Arc<Pin>> {
        let pin = repo.pin(snapshot, purpose, &environment::identity(), environment::now()?)?;
        if let Some(warning) = pin.warning() {
            self.terminal.notice(warning);
        }
        Ok(Arc::new(pin))
    }

    /// What reads disks, and warns of each pack that it can only read by its parity. What was healed is worth no word.
    pub(crate) fn reader(&self, repo: &Arc<Repository>, options: ReaderOptions) -> Result<Arc<Reader>> {
        let reader = Reader::new(Arc::clone(repo), options)?;
        let terminal = Arc::clone(&self.terminal);
        reader.on_damage(move |pack, remedy| {
            if remedy == Remedy::Parity {
                terminal.warn(format_args!("{pack} is damaged and was read by its parity; 'coffer heal' replaces it"));
            }
        });
        Ok(reader)
    }

    /// This machine's index of the repository, in step with it.
    pub(crate) fn index(&self, repo: &Repository) -> Result<Arc<Index>> {
        self.index_within(repo, None).map(|(index, _)| index)
    }

    /// As [`Context::index`], but after `patience` it is handed out as far as it came; whether it is in step.
    pub(crate) fn index_within(&self, repo: &Repository, patience: Option<Duration>) -> Result<(Arc<Index>, bool)> {
        let open = || -> Result<Index> {
            let folder = self.cache_folder(repo)?.join("index");
            let index = Index::open(&folder, repo.keys().repo(), IndexOptions::default())?;
            if let Some(why) = index.discarded() {
                self.terminal.notice(format_args!("the index was unusable and is made again: {}", describe(why)));
            }
            Ok(index)
        };
        let mut index = open()?;
        let is_in_step = match self.learn_within(repo, &index, patience) {
            Err(_) if index.is_damaged() => {
                drop(index);
                index = open()?;
                self.learn_within(repo, &index, patience)?
            }
            learnt => learnt?,
        };
        Ok((Arc::new(index), is_in_step))
    }

    /// Brings an index in step with the repository.
    pub(crate) fn learn(&self, repo: &Repository, index: &Index) -> Result<()> {
        self.learn_within(repo, index, None).map(drop)
    }

    fn learn_within(&self, repo: &Repository, index: &Index, patience: Option<Duration>) -> Result<bool> {
        let (backend, keys, certificates) = (repo.backend(), repo.keys(), repo.all_certificates()?);
        let begun = Instant::now();
        let report = self.terminal.counting("reading index deltas", |progress| {
            index.sync(backend, keys, &certificates, &mut |done, total| {
                progress(done, total)?;
                match patience.is_some_and(|patience| done < total && begun.elapsed() >= patience) {
                    true => Err(Error::new(Kind::Cancelled, "the rest is learnt later")),
                    false => Ok(()),
                }
            })
        });
        let report = match report {
            Err(e) if e.kind() == Kind::Cancelled && patience.is_some() => return Ok(false),
            report => report?,
        };
        if report.left_out.is_empty() {
            return Ok(true);
        }
        for (name, error) in &report.left_out {
            self.terminal.warn(format_args!("{name} was left out of the index: {}", describe(error)));
        }
        let report = self.terminal.counting("reading the packs' own lists instead", |progress| {
            index.sync_packs(backend, keys, &certificates, progress)
        })?;
        for (name, error) in &report.left_out {
            self.terminal.warn(format_args!("{name} was left out of the index: {}", describe(error)));
        }
        Ok(true)
    }

    /// Where this machine keeps what it can make again of this repository.
    pub(crate) fn cache_folder(&self, repo: &Repository) -> Result<PathBuf> {
        Ok(self.settings.caches()?.join(repo.keys().repo().to_string()))
    }
}

/// The one of these points that is meant. A name that could not mean one is wrong use.
pub(crate) fn choose<'a>(name: &PointName, points: &'a [Snapshot]) -> Result<&'a Snapshot> {
    name.find(points).map_err(misnamed)
}

/// The disk of a point that is meant.
pub(crate) fn choose_disk<'a>(name: &PointName, snapshot: &'a Snapshot) -> Result<&'a Disk> {
    name.find_disk(snapshot).map_err(misnamed)
}

/// Names of points where no disk can be meant.
pub(crate) fn whole_points(names: &[String]) -> Result<Vec<PointName>> {
    let points = names.iter().map(|name| PointName::parse(name)).collect::<coffer_repo::Result<Vec<_>>>();
    let points = points.map_err(misnamed)?;
    match points.iter().any(|point| point.disk.is_some() || point.path.is_some()) {
        true => Err(wrong_use("this is done to whole points: name them without :DISK")),
        false => Ok(points),
    }
}

/// Those of these points that are meant, each once.
pub(crate) fn choose_all<'a>(names: &[PointName], points: &'a [Snapshot]) -> Result<Vec<&'a Snapshot>> {
    let mut chosen: Vec<&Snapshot> = Vec::new();
    for name in names {
        let found = choose(name, points)?;
        if !chosen.iter().any(|other| other.id() == found.id()) {
            chosen.push(found);
        }
    }
    Ok(chosen)
}

fn misnamed(error: Error) -> Failure {
    match error.kind() {
        Kind::Invalid => wrong_use(error.to_string()),
        _ => error.into(),
    }
}

/// Where random bytes come from in this program.
pub(crate) fn entropy() -> Arc<dyn Entropy> {
    Arc::new(System)
}
