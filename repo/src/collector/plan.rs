//! Which packs go, and which are copied out of first.
//!
//! ```text
//!   mentions -> what each pack holds that is needed -> Draft: dead, condemned before, of older epochs, mostly dead
//!            -> less what is locked -> Plan: batches
//! ```
//!
//! Not here: doing it; asking for locks ([`super::removal`]). What holds: nothing is copied out of a cold pack, which goes when nothing in
//! it is needed; packs of running sessions are left alone while nothing needs them, which is an economy and
//! no safety argument; what nobody needs goes first, so that there is space for copies, and with it packs that were condemned
//! before, since nobody relies on them any more: a copy of a node is not given up while the one to keep is condemned and in
//! another batch; batches are small enough that what is copied in one, 400 bytes a frame with everything, stays within half of the memory.

use super::mention::{self, Mention};
use super::stock::{Item, Stock};
use super::survey::Survey;
use super::{CollectOptions, CollectReport};
use crate::backend::lock::Kept;
use crate::error::Result;
use crate::id::PackUid;
use crate::pack::contents::ENTRY_LEN;
use crate::session::{SessionTag, Sessions};
use crate::snapshot::Condemned;
use crate::spool;
use std::collections::{HashMap, HashSet, VecDeque};

/// Bytes of memory for a frame that is copied: its place, its id, its copy, what is said about it.
const FRAME_MEMORY: usize = 400;

/// What of a pack is needed.
#[derive(Clone, Copy, Debug, Default)]
struct Use {
    bytes: u64,
    frames: u32,
}

impl Use {
    /// With what the frames take in a table of contents: of tiny frames that is more than half of a pack.
    fn with_entries(&self) -> u64 {
        self.bytes + u64::from(self.frames) * ENTRY_LEN as u64
    }
}

/// What would be done if nothing were locked.
pub(super) struct Draft {
    dead: Vec<(Item, Use)>,
    forced: Vec<(Item, Use)>,
    aged: Vec<(Item, Use)>,
    poor: Vec<(Item, Use)>,
    condemned: HashSet<PackUid>,
}

/// What is to be done, in batches.
#[derive(Debug)]
pub(super) struct Plan {
    batches: VecDeque<Vec<Item>>,
    /// Packs that visible records condemned before this run.
    pub(super) condemned: HashSet<PackUid>,
}

impl Draft {
    pub(super) fn make(
        options: &CollectOptions,
        survey: &Survey<'_>,
        stock: &Stock,
        sessions: &Sessions,
        condemned: HashSet<PackUid>,
        old: &HashSet<PackUid>,
        report: &mut CollectReport,
    ) -> Result<Self> {
        let mut uses: HashMap<PackUid, Use> = HashMap::new();
        let exists = |uid: PackUid| stock.has(uid);
        spool::settle(survey.mentions(), &mut |group: &[Mention]| {
            let mut counted = Vec::new();
            for place in mention::needed(group) {
                match mention::lead(group, place, &exists) {
                    None => report.lost += 1,
                    Some(at) if counted.contains(&mention::place_of(&at)) => {}
                    Some(mut at) => loop {
                        counted.push(mention::place_of(&at));
                        let used = uses.entry(at.pack).or_default();
                        used.bytes += u64::from(at.stored_len);
                        used.frames = used.frames.saturating_add(1);
                        // Sent on from a pack that exists: it was healed, and perhaps it is nowhere else.
                        match mention::lead(group, at, &|uid| uid != at.pack && exists(uid)) {
                            Some(next) if !counted.contains(&mention::place_of(&next)) => at = next,
                            _ => break,
                        }
                    },
                }
            }
            Ok(())
        })?;
        let (mut dead, mut forced, mut aged, mut poor) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for item in stock.iter() {
            report.found.add(item.bytes);
            let used = uses.get(&item.uid).copied().unwrap_or_default();
            let is_young = sessions.running.contains_key(&SessionTag::of_pack(item.uid));
            if is_young {
                if used.frames == 0 {
                    report.young.add(item.bytes);
                }
            } else if used.frames == 0 {
                report.dead.add(item.bytes);
                dead.push((*item, used));
            } else if item.is_cold() {
                // Copying out of it would mean to thaw it.
                let is_poor = used.with_entries() * 100 <= item.bytes * u64::from(options.repack_below);
                if condemned.contains(&item.uid) {
                    report.cold_condemned.add(item.bytes);
                } else if is_poor {
                    report.cold.add(item.bytes);
                }
            } else if condemned.contains(&item.uid) {
                forced.push((*item, used));
            } else if old.contains(&item.uid) {
                aged.push((*item, used));
            } else if used.with_entries() * 100 <= item.bytes * u64::from(options.repack_below) {
                poor.push((*item, used));
            }
        }
        Ok(Draft { dead, forced, aged, poor, condemned })
    }

    /// The packs that it names.
    pub(super) fn packs(&self) -> impl Iterator<Item = &Item> {
        self.dead.iter().chain(&self.forced).chain(&self.aged).chain(&self.poor).map(|(item, _)| item)
    }

    /// Leaves out what is locked, and makes batches of the rest.
    pub(super) fn plan(
        self,
        options: &CollectOptions,
        kept: &HashMap<PackUid, Kept>,
        report: &mut CollectReport,
    ) -> Plan {
        let Draft { mut dead, mut forced, mut aged, mut poor, condemned } = self;
        for packs in [&mut dead, &mut forced, &mut aged, &mut poor] {
            packs.retain(|(item, used)| match kept.get(&item.uid) {
                None => true,
                Some(kept) => {
                    report.waiting.add(item.bytes.saturating_sub(used.bytes), kept.until);
                    false
                }
            });
        }
        // The rest in any order, but always in the same one.
        dead.sort_by_key(|(item, _)| item.uid);
        forced.sort_by_key(|(item, _)| item.uid);
        // What frees most for a byte that is copied comes first.
        let cost = |(item, used): &(Item, Use)| (used.bytes * 1000 / item.bytes.max(1), item.uid);
        aged.sort_by_key(cost);
        poor.sort_by_key(cost);
        let limit = options.max_repack.unwrap_or(u64::MAX);
        let is_aged: HashSet<PackUid> = aged.iter().map(|(item, _)| item.uid).collect();
        let chosen = forced.into_iter().chain(aged).chain(poor).filter(|(item, used)| {
            let fits = report.copied.saturating_add(used.bytes) <= limit;
            if fits {
                report.copied += used.bytes;
                let sum = if is_aged.contains(&item.uid) { &mut report.rotated } else { &mut report.repacked };
                sum.add(item.bytes);
            }
            fits
        });
        let mut plan = Plan { batches: VecDeque::new(), condemned };
        let (mut batch, mut frames, mut is_copying) = (Vec::new(), 0, false);
        let most = (options.memory / 2 / FRAME_MEMORY).max(1);
        for (item, used) in dead.into_iter().chain(chosen) {
            let more = usize::try_from(used.frames).unwrap_or(usize::MAX);
            let begins_copying = !is_copying && more > 0 && !plan.condemned.contains(&item.uid);
            is_copying |= begins_copying;
            if !batch.is_empty() && (begins_copying || frames + more > most || batch.len() >= Condemned::MOST) {
                plan.batches.push_back(std::mem::take(&mut batch));
                frames = 0;
            }
            frames += more;
            batch.push(item);
        }
        if !batch.is_empty() {
            plan.batches.push_back(batch);
        }
        plan
    }
}

impl Plan {
    /// Bytes of the packs that are to go.
    pub(super) fn bytes(&self) -> u64 {
        self.batches.iter().flatten().map(|item| item.bytes).sum()
    }

    pub(super) fn next_batch(&mut self) -> Option<Vec<Item>> {
        self.batches.pop_front()
    }
}
