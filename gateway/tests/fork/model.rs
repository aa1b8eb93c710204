//! A stack of layers against an array: random requests of all kinds, layers that are frozen and settled as commits do it, and
//! everything that can end a process or a machine, at any moment.
//!
//! After a kill everything acknowledged is there. After a power cut each sector holds what was flushed, or something that was
//! written since; the request that was under way is there, or not, sector by sector; but compare-and-write as a whole.

use crate::chance::{Chance, seeds};
use crate::rig::{FORCED, KEEP, Rig, UNMAP, contents};
use coffer_gateway::fork::Stack;
use coffer_gateway::{BlockDevice, Content, Durability, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::scope;

const SECTOR: usize = 512;
const SEEDS: u64 = 240;
const STEPS: usize = 120;
/// More layers than failed commits are likely to leave.
const MAX_LAYERS: usize = 5;

/// What a disk may hold.
pub(crate) struct Model {
    /// What reads must show.
    pub(crate) now: Vec<u8>,
    /// What is durable.
    firm: Vec<u8>,
    /// By sector, what was written since.
    since: BTreeMap<usize, Vec<Vec<u8>>>,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Write(usize, Vec<u8>, Durability),
    Zero(Range<usize>, bool, Durability),
    Trim(Range<usize>),
    Exchange(usize, Vec<u8>, bool),
    Flush,
    Read(Range<usize>),
    Extents(Range<usize>, usize),
}

impl Model {
    pub(crate) fn new(bytes: &[u8]) -> Model {
        Model { now: bytes.to_vec(), firm: bytes.to_vec(), since: BTreeMap::new() }
    }

    fn sectors(&self, range: &Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        let len = self.now.len();
        (range.start / SECTOR..range.end.div_ceil(SECTOR)).map(move |s| (s, s * SECTOR..((s + 1) * SECTOR).min(len)))
    }

    /// What `step` changes.
    fn change(&self, step: &Step) -> Option<(Range<usize>, Vec<u8>)> {
        match step {
            Step::Write(at, bytes, _) => Some((*at..at + bytes.len(), bytes.clone())),
            Step::Exchange(at, bytes, true) => Some((*at..at + bytes.len(), bytes.clone())),
            Step::Zero(range, ..) => Some((range.clone(), vec![0; range.len()])),
            Step::Trim(range) => {
                let end = if range.end == self.now.len() { range.end } else { range.end / 4096 * 4096 };
                let range = range.start.next_multiple_of(4096)..end;
                (!range.is_empty()).then(|| (range.clone(), vec![0; range.len()]))
            }
            _ => None,
        }
    }

    pub(crate) fn apply(&mut self, step: &Step) {
        let Some((range, bytes)) = self.change(step) else {
            if matches!(step, Step::Flush) {
                self.firm = self.now.clone();
                self.since.clear();
            }
            return;
        };
        self.now[range.clone()].copy_from_slice(&bytes);
        let is_forced = match step {
            Step::Write(_, _, durability) | Step::Zero(_, _, durability) => *durability == Durability::Forced,
            Step::Exchange(..) => true,
            _ => false,
        };
        for (sector, place) in self.sectors(&range) {
            if is_forced {
                self.since.remove(&sector);
                self.firm[place.clone()].copy_from_slice(&self.now[place]);
            } else {
                self.since.entry(sector).or_default().push(self.now[place].to_vec());
            }
        }
    }

    /// Sees that `found` is what may be there after a power cut (`is_cut`) or a kill, with `flight` under way; believes it then.
    pub(crate) fn check(&mut self, found: &[u8], flight: Option<&Step>, is_cut: bool) {
        let change = flight.and_then(|step| self.change(step));
        let mut after = self.now.clone();
        // A compare-and-write that is not there as a whole is not there at all.
        let mut may_be_there = true;
        if let Some((range, bytes)) = &change {
            after[range.clone()].copy_from_slice(bytes);
            may_be_there = !matches!(flight, Some(Step::Exchange(..))) || found[range.clone()] == *bytes;
        }
        for (sector, place) in self.sectors(&(0..found.len())) {
            let found = &found[place.clone()];
            let is_struck = change.as_ref().is_some_and(|(r, _)| r.start < place.end && place.start < r.end);
            let is_in_flight = may_be_there && is_struck;
            let fits = match is_cut {
                false => found == &self.now[place.clone()],
                true => {
                    found == &self.firm[place.clone()]
                        || self.since.get(&sector).is_some_and(|versions| versions.iter().any(|v| v == found))
                }
            };
            assert!(fits || is_in_flight && found == &after[place], "sector {sector} holds what it never should");
        }
        *self = Model::new(found);
    }
}

pub(crate) fn step(chance: &Chance, model: &Model) -> Step {
    let len = model.now.len();
    let durability = if chance.below(4) == 0 { Durability::Forced } else { Durability::Cached };
    let range = |longest: usize| {
        let range = chance.range(len, longest);
        // As guests do it mostly, and as they may.
        match chance.below(4) {
            0 => range,
            1 => range.start / 512 * 512..range.end.next_multiple_of(512).min(len),
            _ => range.start / 4096 * 4096..range.end.next_multiple_of(4096).min(len),
        }
    };
    let longest = [600, 9000, 40_000, 300_000, len][chance.below(if len > 4 << 20 { 5 } else { 4 })];
    match chance.below(16) {
        0..=6 => {
            let range = range(longest);
            Step::Write(range.start, chance.bytes(range.len()), durability)
        }
        7 | 8 => Step::Zero(range(longest), chance.below(2) == 0, durability),
        9 => Step::Trim(range(longest)),
        10 | 11 => {
            let range = range(9000);
            Step::Exchange(range.start, chance.bytes(range.len()), chance.below(4) > 0)
        }
        12 => Step::Flush,
        13 => Step::Extents(range(len), 1 + chance.below(9)),
        _ => Step::Read(range(longest)),
    }
}

/// What a database does with its log: a few blocks that are its own, a flush after each or every second write.
fn steady_step(chance: &Chance) -> Step {
    match chance.below(5) {
        0 | 1 => Step::Flush,
        _ => Step::Write(chance.below(16) * 4096, chance.bytes(4096 << chance.below(2)), Durability::Cached),
    }
}

pub(crate) fn run(layer: &Stack, model: &Model, step: &Step) -> Result<()> {
    match step {
        Step::Write(at, bytes, durability) => layer.write_at(*at as u64, bytes, *durability),
        Step::Zero(range, may_unmap, durability) => {
            let how = if *may_unmap { UNMAP } else { KEEP };
            let how = coffer_gateway::Zeroing { durability: *durability, ..how };
            layer.zero(range.start as u64..range.end as u64, how)
        }
        Step::Trim(range) => layer.trim(range.start as u64..range.end as u64),
        Step::Exchange(at, bytes, hits) => {
            let mut expected = model.now[*at..at + bytes.len()].to_vec();
            if !hits {
                *expected.last_mut().unwrap() ^= 1;
            }
            let differs = layer.compare_and_write(*at as u64, &expected, bytes)?;
            assert_eq!(differs, (!hits).then(|| bytes.len() - 1));
            Ok(())
        }
        Step::Flush => layer.flush(),
        Step::Read(range) => {
            let mut bytes = vec![0; range.len()];
            layer.read_at(range.start as u64, &mut bytes)?;
            assert!(bytes == model.now[range.clone()], "a read shows something else");
            if layer.try_read_at(range.start as u64, &mut bytes)? {
                assert!(bytes == model.now[range.clone()], "a read from memory shows something else");
            }
            Ok(())
        }
        Step::Extents(range, max) => {
            let extents = layer.extents(range.start as u64..range.end as u64, *max)?;
            assert!((1..=*max).contains(&extents.len()));
            let mut at = range.start as u64;
            for extent in extents {
                assert_eq!(extent.range.start, at);
                at = extent.range.end;
                let bytes = &model.now[extent.range.start as usize..at as usize];
                assert!(extent.content == Content::Bytes || bytes.iter().all(|b| *b == 0), "data in a hole");
            }
            Ok(())
        }
    }
}

fn play(seed: u64) {
    let chance = Chance::new(seed);
    let len = if seed.is_multiple_of(20) { 33 << 20 } else { 3 << 20 } + [0, 512, 1000, 4095][chance.below(4)];
    let mut base = chance.bytes(len);
    for _ in 0..5 {
        base[chance.range(len, len / 4)].fill(0);
    }
    let is_steady = seed % 3 == 1;
    let mut rig = Rig::new(&base, seed);
    let mut model = Model::new(&base);
    let mut layer = Some(rig.try_open_stack().unwrap());
    for _ in 0..STEPS {
        let step = if is_steady && chance.below(5) > 0 { steady_step(&chance) } else { step(&chance, &model) };
        let is_doomed = chance.below(12) == 0;
        if is_doomed {
            rig.plant.cut_after(chance.below(12));
        }
        let stack = layer.as_ref().unwrap();
        let is_moved = match chance.below(16) {
            0 if rig.layers() < MAX_LAYERS => Some(rig.freeze(stack)),
            1 => Some(rig.settle(stack, is_doomed)),
            _ => None,
        };
        let is_step = is_moved.is_none();
        let result = is_moved.unwrap_or_else(|| run(stack, &model, &step));
        match &result {
            Err(e) => assert!(rig.plant.is_out(), "{step:?}: {e:?}"),
            Ok(()) if is_step => model.apply(&step),
            Ok(()) => {}
        }
        if !is_doomed && chance.below(40) > 0 {
            continue;
        }
        let flight = (is_step && result.is_err()).then_some(&step);
        let mut is_cut = chance.below(2) == 0;
        match chance.below(3) {
            0 if !is_doomed => {
                is_cut = false;
                rig.restart(layer.take().unwrap());
            }
            _ if is_cut => rig.cut(layer.take(), &chance),
            _ => rig.kill(layer.take()),
        }
        // It may go again while the fork is opened.
        while chance.below(3) == 0 {
            rig.plant.cut_after(chance.below(40));
            let opened = rig.try_open_stack();
            assert!(opened.is_ok() || rig.plant.is_out(), "{:?}", opened.err());
            match chance.below(2) {
                0 => rig.kill(opened.ok()),
                _ => {
                    is_cut = true;
                    rig.cut(opened.ok(), &chance);
                }
            }
        }
        let opened = rig.try_open_stack().unwrap();
        // A layer that failed for want of power had itself distrusted, if it could.
        model.check(&contents(&opened), flight, is_cut);
        layer = Some(opened);
    }
    assert!(contents(layer.as_ref().unwrap()) == model.now);
}

#[test]
fn whatever_happens_what_was_flushed_is_there_and_nothing_is_half() {
    let next = AtomicU64::new(0);
    let seeds = seeds(SEEDS);
    scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(seed) = seeds.clone().nth(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    if let Err(panic) = catch_unwind(|| play(seed)) {
                        println!("seed {seed}");
                        resume_unwind(panic);
                    }
                }
            });
        }
    });
}

#[test]
fn forced_zeroes_and_writes_need_no_flush() {
    let mut rig = Rig::new(&[7; 40_000], 1);
    let layer = rig.open();
    layer.write_at(0, &[1; 4096], Durability::Forced).unwrap();
    layer.zero(8192..16384, FORCED).unwrap();
    layer.write_at(20_000, &[2; 10], Durability::Forced).unwrap();
    layer.write_at(4096, &[3; 4096], Durability::Cached).unwrap();
    rig.cut(Some(layer), &Chance::new(1));
    let found = contents(&rig.open());
    assert!(found[..4096] == [1; 4096] && found[8192..16384] == [0; 8192] && found[20_000..20_010] == [2; 10]);
    assert!(found[4096..8192] == [7; 4096], "what was never flushed is as it was in the base");
    assert!(found[16384..20_000].iter().chain(&found[20_010..]).all(|b| *b == 7));
}
