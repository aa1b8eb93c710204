//! Decides about condemned packs: each goes, or is spared.
//!
//! ```text
//!   LIST moved, forgets, claims, condemned, packs     after the record that condemns them was put
//!   a frame that is needed and that lies in a condemned pack of the batch has to have a proven copy in a pack that exists and
//!   that no visible record condemns; else every pack of the batch that holds it is spared
//! ```
//!
//! A node is another one with other hints, though its id is the same: of it the very copy that is led to has to be copied.
//!
//! Not here: copying. What holds: the listings begin after the batch is condemned; a copy is proven when this collector has read
//! it and checked its id; where the copies lie is written down, durably, before a pack goes.

use super::evacuation::{Copies, Evacuation, Moving, kinds_of};
use super::mention::{self, Mention};
use super::removal::{remove, remove_pack};
use super::roots::Roots;
use super::stock::{Item, Stock};
use super::survey::Survey;
use super::{CollectProgress, CollectReport};
use crate::backend::Put;
use crate::disk_map::Hint;
use crate::entropy::fresh;
use crate::error::{Error, Kind, Result};
use crate::frames::Frames;
use crate::id::{PackUid, RecordId};
use crate::location::{IndexKey, Location, PackKind};
use crate::moved::Relocated;
use crate::parity;
use crate::repository::Repository;
use crate::sealed::ObjectKind;
use crate::snapshot::Condemned;
use crate::spool::{self, Spooled};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::Ordering::Relaxed;

/// More moved records about one pack are merged into one: each run that moves what was in it adds one, and who searches tries 32
/// places at most.
const FEW_RECORDS: usize = 8;
/// Packs whose records one batch merges, at most, those with most records first: 700 KiB of memory each.
const MERGED_PACKS: usize = 16;

/// What becomes of a batch.
pub(super) struct Judgement {
    /// The packs as they were listed after the batch was condemned.
    pub(super) stock: Stock,
    going: Vec<Item>,
    spared: Vec<Item>,
    /// Where frames lie that are looked for in packs that go, or are gone.
    moved: BTreeMap<PackUid, Vec<Relocated>>,
    tidying: Tidying,
}

/// What becomes of moved records about packs that are gone.
#[derive(Default)]
struct Tidying {
    /// Names of those that nobody is sent by.
    unused: Vec<String>,
    /// Names of many about one pack, all of which a new one makes needless.
    merged: BTreeMap<PackUid, Vec<String>>,
}

impl Judgement {
    /// Judges a batch that was condemned. `None`: a root turned up that cannot be walked, and nothing may go.
    pub(super) fn pass(repo: &Repository, survey: &mut Survey<'_>, evacuation: Evacuation<'_>) -> Result<Option<Self>> {
        let roots = survey.look()?;
        let condemned = repo.condemned()?;
        let stock = Stock::list(repo)?;
        survey.look_for_moved()?;
        if survey.is_incomplete() {
            return Ok(None);
        }
        let Evacuation { packs, held, copies } = evacuation;
        let kinds = kinds_of(&packs);
        let unread: HashSet<PackUid> = packs.iter().filter(|item| item.is_cold()).map(|item| item.uid).collect();
        let exists = |uid: PackUid| stock.has(uid);
        let stays = |uid: PackUid| stock.has(uid) && !condemned.contains(&uid) && !kinds.contains_key(&uid);
        let mut proof = Proof { frames: Frames::new(repo)?, stock: &stock, copies };
        let mut spared: HashSet<PackUid> = HashSet::new();
        let mut moved: BTreeMap<PackUid, Vec<Relocated>> = BTreeMap::new();
        spool::settle(survey.mentions().chain([&held]), &mut |group: &[Mention]| {
            let needed = mention::needed(group);
            let Some(key) = group.first().map(Spooled::key).filter(|_| !needed.is_empty()) else { return Ok(()) };
            let held = group.iter().filter_map(|m| match m {
                Mention::Held { at, .. } => Some(at),
                _ => None,
            });
            // Of cold packs no table was read: what somebody may be sent to is known by the records that send him.
            let cold = group.iter().filter_map(|m| match m {
                Mention::Moved { to, offset, stored_len, .. } if unread.contains(to) => {
                    Some(Location { pack: *to, offset: *offset, stored_len: *stored_len, raw_len: 0 })
                }
                _ => None,
            });
            let of_batch = |at: Location| Some((at, *kinds.get(&at.pack).filter(|_| stock.has(at.pack))?));
            let mut here: Vec<(Location, PackKind)> =
                held.chain(&needed).copied().chain(cold).filter_map(of_batch).collect();
            here.sort_unstable_by_key(|(at, _)| mention::place_of(at));
            here.dedup_by_key(|(at, _)| mention::place_of(at));
            for (at, kind) in here {
                let is_here = |place: &Location| mention::place_of(place) == mention::place_of(&at);
                let reaches = |from: &&Location| mention::follow(group, **from, &exists).iter().any(is_here);
                let (led, astray): (Vec<&Location>, Vec<&Location>) = needed
                    .iter()
                    .filter(reaches)
                    .partition(|from| mention::lead(group, **from, &exists).as_ref().is_some_and(is_here));
                let mut elsewhere = needed.iter().flat_map(|from| mention::follow(group, *from, &stays));
                let found = match kind {
                    PackKind::Data => proof.find(key, &mut elsewhere, &stays)?.map(Some),
                    // Whose map leads here wants the very bytes that lie here, hints and all; whose map may lead here as well wants
                    // them to be where it leads. Moved lines say nothing of hints, so that nobody is sent to another copy.
                    PackKind::Tree if led.is_empty() && astray.is_empty() => {
                        proof.find(key, &mut elsewhere, &stays)?.map(|_| None)
                    }
                    PackKind::Tree => {
                        let mut is_safe = true;
                        for lead in astray.iter().filter_map(|from| mention::lead(group, **from, &exists)) {
                            is_safe &=
                                kinds.contains_key(&lead.pack) || (stays(lead.pack) && proof.holds(kind, lead, key)?);
                        }
                        match led.is_empty() {
                            true => is_safe.then_some(None),
                            false => proof.copy_of(key, at, &stays).filter(|_| is_safe).map(Some),
                        }
                    }
                };
                let Some(found) = found else {
                    spared.insert(at.pack);
                    continue;
                };
                let gone = led.iter().map(|from| from.pack).filter(|uid| !stock.has(*uid));
                for (from, to) in std::iter::once(at.pack).chain(gone).zip(std::iter::repeat(found)) {
                    moved.entry(from).or_default().extend(to.map(|to| Relocated { key, to }));
                }
            }
            Ok(())
        })?;
        let (spared, going): (Vec<Item>, Vec<Item>) = packs.into_iter().partition(|item| spared.contains(&item.uid));
        let is_going: HashSet<PackUid> = going.iter().map(|item| item.uid).collect();
        // Nobody is sent away from a pack that stays.
        moved.retain(|from, _| is_going.contains(from) || !stock.has(*from));
        // While a condemned pack of ours exists no other collector sweeps claims, so that the listing of roots is of one moment.
        let tidying = match kinds.keys().any(|uid| stock.has(*uid)) {
            true => Tidying::of(&roots, survey, &stock, &condemned, &mut moved)?,
            false => Tidying::default(),
        };
        Ok(Some(Judgement { stock, going, spared, moved, tidying }))
    }

    /// Removes what may go; what the store keeps stays condemned. Returns the packs that are left.
    pub(super) fn execute(
        mut self,
        repo: &Repository,
        progress: &CollectProgress,
        report: &mut CollectReport,
    ) -> Result<Stock> {
        for (from, lines) in &self.moved {
            repo.put_relocated(*from, lines)?;
        }
        let misled = misled(repo, &self.moved)?;
        for item in self.going {
            progress.done.fetch_add(item.bytes, Relaxed);
            if misled.contains(&item.uid) {
                report.spared.add(item.bytes);
                continue;
            }
            // Another collector may have been faster.
            let Some(listed) = self.stock.get(item.uid).copied() else { continue };
            if !remove_pack(repo, &listed, report)? {
                continue;
            }
            report.removed.add(item.bytes);
            report.freed = report.freed.saturating_add_unsigned(listed.bytes);
            self.stock.remove(item.uid);
            if listed.parity > 0 && remove(repo, &parity::name(item.uid), listed.parity, report)? {
                report.freed = report.freed.saturating_add_unsigned(listed.parity);
            }
        }
        for item in self.spared {
            progress.done.fetch_add(item.bytes, Relaxed);
            report.spared.add(item.bytes);
        }
        let Tidying { unused, merged } = self.tidying;
        let replaced = merged.into_iter().filter(|(from, _)| !misled.contains(from)).flat_map(|(_, names)| names);
        for name in unused.into_iter().chain(replaced) {
            remove(repo, &name, 0, report)?;
        }
        Ok(self.stock)
    }
}

/// The packs from which somebody would be sent to a pack that was condemned or is gone, now that the records which send him can be
/// seen: whoever condemned it since may have found no record that leads there, and dropped those that lead on. Condemned records
/// first, existence second.
fn misled(repo: &Repository, moved: &BTreeMap<PackUid, Vec<Relocated>>) -> Result<HashSet<PackUid>> {
    if moved.is_empty() {
        return Ok(HashSet::new());
    }
    let condemned = repo.condemned()?;
    let stock = Stock::list(repo)?;
    let leads_nowhere = |line: &Relocated| condemned.contains(&line.to.pack) || !stock.has(line.to.pack);
    Ok(moved.iter().filter(|(_, lines)| lines.iter().any(leads_nowhere)).map(|(from, _)| *from).collect())
}

impl Tidying {
    /// Moved records about packs that are gone are unused when none of the packs' frames is needed any more: who is led there need
    /// not be known. Many records about one pack are merged into the one about it that is put next, in `moved`.
    fn of(
        roots: &Roots,
        survey: &Survey<'_>,
        stock: &Stock,
        condemned: &HashSet<PackUid>,
        moved: &mut BTreeMap<PackUid, Vec<Relocated>>,
    ) -> Result<Tidying> {
        let mut records: BTreeMap<PackUid, Vec<String>> = BTreeMap::new();
        for (pack, name) in roots.moved.iter().filter(|(pack, _)| !stock.has(*pack)) {
            records.entry(*pack).or_default().push(name.clone());
        }
        if records.is_empty() {
            return Ok(Tidying::default());
        }
        let mut crowded: Vec<_> = records.iter().filter(|(_, names)| names.len() > FEW_RECORDS).collect();
        crowded.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
        // What they say that still holds; nothing, when a frame of theirs may be about to move on.
        let mut merging: BTreeMap<PackUid, Option<Vec<Relocated>>> =
            crowded.into_iter().take(MERGED_PACKS).map(|(pack, _)| (*pack, Some(Vec::new()))).collect();
        let mut used: HashSet<PackUid> = HashSet::new();
        moved.values_mut().for_each(|lines| lines.sort_unstable_by_key(|line| line.key));
        let exists = |uid: PackUid| stock.has(uid);
        spool::settle(survey.mentions(), &mut |group: &[Mention]| {
            let Some(key) = group.first().map(Spooled::key).filter(|_| !mention::needed(group).is_empty()) else {
                return Ok(());
            };
            let sent: BTreeSet<PackUid> = group
                .iter()
                .filter_map(|mention| match mention {
                    Mention::Moved { from, .. } => Some(*from),
                    _ => None,
                })
                .collect();
            for pack in &sent {
                let Some(merging) = merging.get_mut(pack) else { continue };
                let from = Location { pack: *pack, offset: 0, stored_len: 0, raw_len: 0 };
                let Some(at) = mention::lead(group, from, &exists) else { continue };
                let to = match condemned.contains(&at.pack) {
                    false => Some(hint(at)),
                    true => moved.get(&at.pack).and_then(|lines| {
                        lines.binary_search_by_key(&key, |line| line.key).ok().and_then(|i| lines.get(i)).map(|l| l.to)
                    }),
                };
                match (to, merging.as_mut()) {
                    (Some(to), Some(lines)) => lines.push(Relocated { key, to }),
                    (None, _) => *merging = None,
                    (_, None) => {}
                }
            }
            used.extend(sent);
            Ok(())
        })?;
        let mut tidying = Tidying::default();
        for (pack, names) in records {
            if !used.contains(&pack) {
                tidying.unused.extend(names);
            } else if let Some(lines) = merging.remove(&pack).flatten() {
                moved.insert(pack, lines);
                tidying.merged.insert(pack, names);
            }
        }
        Ok(tidying)
    }
}

/// Finds copies that can be relied on.
struct Proof<'a> {
    frames: Frames<'a>,
    stock: &'a Stock,
    /// Made and read by this run.
    copies: Copies,
}

impl Proof<'_> {
    /// A proven copy in a pack that stays: one of this run's, or one of `elsewhere`, which is read now.
    fn find(
        &mut self,
        key: IndexKey,
        elsewhere: &mut dyn Iterator<Item = Location>,
        stays: &dyn Fn(PackUid) -> bool,
    ) -> Result<Option<Hint>> {
        if let Some(Moving { to, .. }) = self.copies.of(key).find(|moving| stays(moving.to.pack)) {
            return Ok(Some(hint(*to)));
        }
        for at in elsewhere {
            // A cold pack is not read, as it might have to be thawed, and what a hint says of it proves nothing.
            let Some(Item { kind, .. }) = self.stock.get(at.pack).filter(|item| !item.is_cold()) else { continue };
            if self.holds(*kind, at, key)? {
                return Ok(Some(hint(at)));
            }
        }
        Ok(None)
    }

    /// This run's copy of the frame at `from`, in a pack that stays.
    fn copy_of(&self, key: IndexKey, from: Location, stays: &dyn Fn(PackUid) -> bool) -> Option<Hint> {
        let is_of =
            |moving: &&Moving| mention::place_of(&moving.from) == mention::place_of(&from) && stays(moving.to.pack);
        self.copies.of(key).find(is_of).map(|moving| hint(moving.to))
    }

    fn holds(&mut self, kind: PackKind, at: Location, key: IndexKey) -> Result<bool> {
        let mut holds = false;
        let read = self.frames.read(kind, &[at], &mut |_, frame| {
            holds = IndexKey::of(&frame.id) == key;
            Ok(())
        });
        match read {
            Ok(()) => Ok(holds),
            Err(e) if matches!(e.kind(), Kind::Corrupt | Kind::NotFound) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

fn hint(at: Location) -> Hint {
    Hint { pack: at.pack, offset: at.offset, stored_len: at.stored_len }
}

/// Puts the record that condemns a batch: from now on no commit relies on its packs.
pub(super) fn condemn(repo: &Repository, packs: &[Item]) -> Result<()> {
    let record = Condemned { packs: packs.iter().map(|item| item.uid).collect(), damaged: false };
    let name = format!("{}{}", Condemned::PREFIX, RecordId(fresh(repo.entropy())?));
    match repo.put_record(ObjectKind::Condemned, &name, &record.encode()?)? {
        Put::Created => Ok(()),
        Put::Exists => Err(Error::internal(format!("{name} exists although its name is random"))),
    }
}
