//! Copies what is needed and lies nowhere else out of a batch of packs, and proves the copies.
//!
//! ```text
//!   tables of contents -> held mentions -> (needed, and in no other pack) -> read, open, expand, check id -> new packs
//!   -> durable -> index delta -> read back, check id
//! ```
//!
//! A node is copied as it is, from wherever a map leads to it: its hints are outside its id, and another copy's may lead elsewhere.
//!
//! Not here: condemning and judging. What holds: nothing that cannot be read and checked is copied, and a pack in which
//! something needed cannot be is left out of the batch; compressed bytes are kept as they are; the new packs' uids tell the
//! session, so that another collector leaves them alone while this one runs.

use super::mention::{self, Mention};
use super::stock::{Item, Stock};
use super::survey::Survey;
use super::{CollectOptions, CollectProgress, CollectReport};
use crate::cancel::Cancel;
use crate::crew::Crew;
use crate::error::{Error, Kind, Result};
use crate::frames::Frames;
use crate::id::{ChunkId, NodeId, PackUid};
use crate::index_delta::{IndexDelta, PackEntries};
use crate::location::{IndexKey, Location, PackKind, Stored};
use crate::pack::{self, PackBuilder, PackOptions};
use crate::parity;
use crate::repository::Repository;
use crate::session::SessionTag;
use crate::spool::{self, Spool};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

/// Stored bytes that are read at a time.
const RUN: u64 = 1 << 20;
/// Length at which a new tree pack is closed, in bytes.
const TREE_PACK: usize = 8 << 20;

/// A batch of packs without which everything needed can be read, once the copies are followed.
pub(super) struct Evacuation<'a> {
    /// The packs that may be condemned.
    pub(super) packs: Vec<Item>,
    /// What they hold.
    pub(super) held: Spool<'a>,
    /// Copies that were read back.
    pub(super) copies: Copies,
}

/// A frame that was copied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moving {
    pub(super) from: Location,
    pub(super) to: Location,
}

/// Copies, by key: of a chunk one at most, of a node one for each place it was copied from.
pub(super) struct Copies(Vec<(IndexKey, Moving)>);

impl Copies {
    fn new(mut copies: Vec<(IndexKey, Moving)>) -> Self {
        copies.sort_unstable_by_key(|(key, moving)| (*key, mention::place_of(&moving.to)));
        Copies(copies)
    }

    /// Those of one frame.
    pub(super) fn of(&self, key: IndexKey) -> impl Iterator<Item = &Moving> {
        let first = self.0.partition_point(|(of, _)| *of < key);
        self.0.iter().skip(first).take_while(move |(of, _)| *of == key).map(|(_, moving)| moving)
    }
}

/// Where a batch comes from.
#[derive(Clone, Copy)]
pub(super) struct Batch<'a, 's> {
    pub(super) repo: &'a Repository,
    pub(super) options: &'a CollectOptions,
    pub(super) session: SessionTag,
    pub(super) survey: &'s Survey<'a>,
    pub(super) stock: &'s Stock,
    /// Packs that visible records condemned before.
    pub(super) condemned: &'s HashSet<PackUid>,
}

/// What copying shares.
struct Copier<'a> {
    repo: &'a Repository,
    options: &'a CollectOptions,
    session: SessionTag,
    frames: Frames<'a>,
    open: BTreeMap<PackKind, PackBuilder>,
    /// What lies in the open tree pack: it takes one copy of a node, since moved records tell places by pack and id alone.
    nodes: HashSet<IndexKey>,
    /// Durable, not yet published.
    done: Vec<PackEntries>,
}

impl<'a> Evacuation<'a> {
    /// Copies what has to be copied out of `packs`.
    pub(super) fn run(
        batch: Batch<'a, '_>,
        mut packs: Vec<Item>,
        progress: &CollectProgress,
        cancel: &Cancel,
        report: &mut CollectReport,
    ) -> Result<Self> {
        let Batch { repo, options, session, survey, stock, condemned } = batch;
        let held = read_tables(repo, options, cancel, &mut packs, report)?;
        let Wanted { mut wanted, tied } = wanted(survey, &held, stock, condemned, &packs)?;
        packs.retain(|item| {
            let is_tied = tied.contains(&item.uid);
            if is_tied {
                report.cold.add(item.bytes);
            }
            !is_tied
        });
        wanted.retain(|(at, _)| !tied.contains(&at.pack));
        wanted.sort_unstable_by_key(|(at, _)| (at.pack, at.offset));
        let (frames, open, nodes, done) = (Frames::new(repo)?, BTreeMap::new(), HashSet::new(), Vec::new());
        let mut copier = Copier { repo, options, session, frames, open, nodes, done };
        let kinds = kinds_of(&packs);
        let mut places = Vec::with_capacity(wanted.len());
        for one in wanted.chunk_by(|(a, _), (b, _)| a.pack == b.pack) {
            let Some((Location { pack, .. }, _)) = one.first() else { continue };
            let kind = *kinds.get(pack).ok_or_else(|| Error::internal("a pack of no batch"))?;
            match copier.copy(kind, one, &mut places, progress, cancel) {
                // A pack that its writer sealed to somebody else must not keep others from being collected.
                Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::NotFound | Kind::WrongKey) => {
                    packs.retain(|item| item.uid != *pack);
                    // Gone: another collector was faster.
                    report.damaged.extend(Some((*pack, e)).filter(|(_, e)| e.kind() != Kind::NotFound));
                }
                Err(e) if e.kind() == Kind::Frozen => {
                    packs.extract_if(.., |item| item.uid == *pack).for_each(|item| report.frozen.add(item.bytes));
                }
                other => other?,
            }
        }
        copier.finish(report)?;
        let copies = prove(&mut copier.frames, places, cancel)?;
        Ok(Evacuation { packs, held, copies })
    }
}

/// Reads the packs' tables of contents, but for cold ones, which would have to be thawed. What is gone leaves the batch, and so does
/// what is damaged or frozen.
fn read_tables<'a>(
    repo: &'a Repository,
    options: &'a CollectOptions,
    cancel: &Cancel,
    packs: &mut Vec<Item>,
    report: &mut CollectReport,
) -> Result<Spool<'a>> {
    let held = Mutex::new(Spool::new(&options.scratch, repo.entropy(), options.memory / 8));
    let lost: Mutex<HashMap<PackUid, Error>> = Mutex::default();
    let died = || Error::internal("a thread died while reading tables of contents");
    let read = |item: Item, (): &mut ()| {
        match pack::read_contents(repo.backend(), repo.keys(), item.kind, item.uid) {
            Ok((entries, _)) => {
                let mut held = held.lock().map_err(|_| died())?;
                for entry in entries {
                    held.push(&Mention::Held { key: entry.stored.key(), at: entry.location })?;
                }
            }
            Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Corrupt | Kind::Frozen) => {
                lost.lock().map_err(|_| died())?.insert(item.uid, e);
            }
            Err(e) => return Err(e),
        }
        Ok(())
    };
    let crew = Crew { threads: options.threads, cancel };
    let mut warm = packs.iter().filter(|item| !item.is_cold());
    crew.run(|| Ok(()), read, |hand| warm.try_for_each(|item| hand(*item)))?;
    let lost = lost.into_inner().map_err(|_| died())?;
    packs.retain(|item| {
        let why = lost.get(&item.uid).map(Error::kind);
        if why == Some(Kind::Frozen) {
            report.frozen.add(item.bytes);
        }
        why.is_none()
    });
    report.damaged.extend(lost.into_iter().filter(|(_, e)| !matches!(e.kind(), Kind::NotFound | Kind::Frozen)));
    held.into_inner().map_err(|_| died())
}

/// The kinds of a batch's packs.
pub(super) fn kinds_of(packs: &[Item]) -> HashMap<PackUid, PackKind> {
    packs.iter().map(|item| (item.uid, item.kind)).collect()
}

/// What is to be copied out of a batch.
#[derive(Default)]
struct Wanted {
    wanted: Vec<(Location, IndexKey)>,
    /// Packs that hold something needed of which only cold packs have another copy: nobody can prove that one now, and copying
    /// would make a third, and a fourth the next time.
    tied: HashSet<PackUid>,
}

/// What is needed and cannot be found but in these packs: of a chunk one place, of a node every one that a map leads to.
fn wanted(
    survey: &Survey<'_>,
    held: &Spool<'_>,
    stock: &Stock,
    condemned: &HashSet<PackUid>,
    packs: &[Item],
) -> Result<Wanted> {
    let kinds = kinds_of(packs);
    let exists = |uid: PackUid| stock.has(uid);
    let stays = |uid: PackUid| stock.has(uid) && !condemned.contains(&uid) && !kinds.contains_key(&uid);
    let is_cold = |uid: PackUid| stock.get(uid).is_some_and(Item::is_cold);
    let Wanted { mut wanted, mut tied } = Wanted::default();
    spool::settle(survey.mentions().chain([held]), &mut |group: &[Mention]| {
        let needed = mention::needed(group);
        let is_lead = |at: &Location| {
            let mut leads = needed.iter().filter_map(|place| mention::lead(group, *place, &exists));
            leads.any(|lead| mention::place_of(&lead) == mention::place_of(at))
        };
        let elsewhere =
            |is: &dyn Fn(PackUid) -> bool| needed.iter().any(|p| !mention::follow(group, *p, is).is_empty());
        let mut is_found = elsewhere(&|uid| stays(uid) && !is_cold(uid));
        let is_tied = !is_found && elsewhere(&stays);
        for mention in group.iter().filter(|_| !needed.is_empty()) {
            let Mention::Held { key, at } = mention else { continue };
            // What was condemned before is emptied all the same, so that nobody waits for it for good.
            if is_tied && kinds.contains_key(&at.pack) && !condemned.contains(&at.pack) {
                tied.insert(at.pack);
                continue;
            }
            let is_wanted = match kinds.get(&at.pack) {
                None => false,
                Some(PackKind::Data) => !std::mem::replace(&mut is_found, true),
                Some(PackKind::Tree) => is_lead(at),
            };
            if is_wanted {
                wanted.push((*at, *key));
            }
        }
        Ok(())
    })?;
    Ok(Wanted { wanted, tied })
}

impl Copier<'_> {
    /// Copies frames of one pack, all or none of which may be relied on.
    fn copy(
        &mut self,
        kind: PackKind,
        wanted: &[(Location, IndexKey)],
        places: &mut Vec<(PackKind, IndexKey, Moving)>,
        progress: &CollectProgress,
        cancel: &Cancel,
    ) -> Result<()> {
        let mut bytes = 0;
        let together = |(a, _): &(Location, IndexKey), (b, _): &(Location, IndexKey)| {
            bytes += u64::from(a.stored_len);
            let goes_on = a.end() == u64::from(b.offset) && bytes < RUN;
            if !goes_on {
                bytes = 0;
            }
            goes_on
        };
        for run in wanted.chunk_by(together) {
            cancel.check()?;
            let at: Vec<Location> = run.iter().map(|(at, _)| *at).collect();
            let mut copied = Vec::with_capacity(run.len());
            let Copier { repo, options, session, frames, open, nodes, done } = self;
            frames.read(kind, &at, &mut |index, frame| {
                let Some((from, key)) = run.get(index) else { return Err(Error::internal("a frame of no run")) };
                if IndexKey::of(&frame.id) != *key {
                    return Err(Error::corrupt(format!("{} holds another frame than it lists", frame.object)));
                }
                let stored = match kind {
                    PackKind::Data => Stored::Chunk(ChunkId(frame.id)),
                    PackKind::Tree => Stored::Node(NodeId(frame.id)),
                };
                let target_len = match kind {
                    PackKind::Data => options.pack_bytes,
                    PackKind::Tree => TREE_PACK,
                };
                let is_second = kind == PackKind::Tree && !nodes.insert(*key);
                if open.get(&kind).is_some_and(|builder| is_second || builder.is_full(target_len))
                    && let Some(full) = open.remove(&kind)
                {
                    done.push(upload(repo, full)?);
                    if kind == PackKind::Tree {
                        *nodes = HashSet::from([*key]);
                    }
                }
                let builder = match open.remove(&kind) {
                    Some(builder) => builder,
                    None => {
                        let aead = repo.descriptor().aead;
                        let options = PackOptions { kind, aead, target_len, session: *session };
                        PackBuilder::new(repo.keys(), options, Vec::new(), repo.entropy())?
                    }
                };
                let builder = open.entry(kind).or_insert(builder);
                let to = builder.append(stored, frame.codec, frame.raw_len, frame.sealed)?;
                copied.push((kind, *key, Moving { from: *from, to }));
                progress.copied.fetch_add(frame.sealed.len() as u64, Relaxed);
                Ok(())
            })?;
            places.append(&mut copied);
        }
        Ok(())
    }

    /// Uploads what is open and publishes everything.
    fn finish(&mut self, report: &mut CollectReport) -> Result<()> {
        for builder in std::mem::take(&mut self.open).into_values() {
            self.done.push(upload(self.repo, builder)?);
        }
        if self.done.is_empty() {
            return Ok(());
        }
        let packs = std::mem::take(&mut self.done);
        let mut written: u64 = packs.iter().map(|pack| pack.object_len).sum();
        let mut also = Vec::new();
        if self.repo.wants_parity() {
            also.extend(packs.iter().map(|pack| parity::name(pack.uid)));
        }
        also.push(self.repo.publish_delta(&IndexDelta { superseded: Vec::new(), packs })?);
        for name in also {
            written += self.repo.backend().size(&name)?.unwrap_or(0);
        }
        report.freed = report.freed.saturating_sub_unsigned(written);
        Ok(())
    }
}

fn upload(repo: &Repository, builder: PackBuilder) -> Result<PackEntries> {
    let pack = builder.finish()?;
    repo.put_pack(&pack)?;
    Ok(PackEntries::new(pack.uid, pack.kind, pack.bytes.len() as u64, pack.signer, &pack.entries))
}

/// Reads the copies back. One that cannot be read is no copy, and its pack is spared.
fn prove(frames: &mut Frames<'_>, mut places: Vec<(PackKind, IndexKey, Moving)>, cancel: &Cancel) -> Result<Copies> {
    places.sort_unstable_by_key(|(_, _, moving)| mention::place_of(&moving.to));
    let mut copies = Vec::with_capacity(places.len());
    for run in places.chunk_by(|(_, _, a), (_, _, b)| a.to.pack == b.to.pack && a.to.end() == u64::from(b.to.offset)) {
        for run in run.chunks(16) {
            cancel.check()?;
            let Some((kind, _, _)) = run.first() else { continue };
            let at: Vec<Location> = run.iter().map(|(_, _, moving)| moving.to).collect();
            let read = frames.read(*kind, &at, &mut |index, frame| {
                if let Some((_, key, moving)) = run.get(index)
                    && IndexKey::of(&frame.id) == *key
                {
                    copies.push((*key, *moving));
                }
                Ok(())
            });
            match read {
                Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::NotFound) => {}
                other => other?,
            }
        }
    }
    Ok(Copies::new(copies))
}
