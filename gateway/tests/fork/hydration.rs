//! A stack that is brought to a target while a guest uses it, against the same array as in [`crate::model`]: the guest's requests, a
//! target that fails, kills and power cuts at any moment of it all, and what is there afterwards, here or on the target.

use crate::chance::{Chance, seeds};
use crate::lossy::{Lossy, Plant};
use crate::model::{Model, Step, run, step};
use crate::rig::{Rig, contents};
use coffer_gateway::device::check_range;
use coffer_gateway::fork::{HandOver, Medium, Phase, Stack, Transfer, TransferPlan, Transferred};
use coffer_gateway::{
    BlockDevice, Content, Durability, Error, Extent, Faults, FaultyDevice, Kind, MemoryDevice, Result, Zeroing,
};
use coffer_repo::cancel::Cancel;
use std::num::NonZeroU64;
use std::ops::Range;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::scope;

const SEEDS: u64 = 120;
const REGION: usize = 256 << 10;

/// A disk on a medium that loses what disks lose.
struct LossyDevice(Arc<Lossy>, u64);

impl BlockDevice for LossyDevice {
    fn size(&self) -> u64 {
        self.1
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, out)
    }

    fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        self.0.try_read_at(offset, out)
    }

    fn extents(&self, range: Range<u64>, _max: usize) -> Result<Vec<Extent>> {
        Ok(vec![Extent { range, content: Content::Bytes }])
    }

    fn write_at(&self, offset: u64, bytes: &[u8], durability: Durability) -> Result<()> {
        check_range(self.1, offset, bytes.len() as u64)?;
        self.0.write_at(offset, bytes)?;
        if durability == Durability::Forced { self.0.sync() } else { Ok(()) }
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        check_range(self.1, range.start, range.end - range.start)?;
        self.0.punch(range)?;
        if how.durability == Durability::Forced { self.0.sync() } else { Ok(()) }
    }

    fn trim(&self, range: Range<u64>) -> Result<()> {
        let end = if range.end == self.1 { range.end } else { range.end / 4096 * 4096 };
        let start = range.start.next_multiple_of(4096);
        if start < end { self.0.punch(start..end) } else { Ok(()) }
    }

    fn flush(&self) -> Result<()> {
        self.0.sync()
    }
}

/// A target that does something of its own when it is written to.
struct Hooked<F>(Arc<dyn BlockDevice>, F);

impl<F: Fn(u64, &[u8]) -> Result<bool> + Send + Sync> BlockDevice for Hooked<F> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn block_size(&self) -> u32 {
        self.0.block_size()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, out)
    }

    fn try_read_at(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        self.0.try_read_at(offset, out)
    }

    fn extents(&self, range: Range<u64>, max: usize) -> Result<Vec<Extent>> {
        self.0.extents(range, max)
    }

    fn write_at(&self, offset: u64, bytes: &[u8], durability: Durability) -> Result<()> {
        if (self.1)(offset, bytes)? { self.0.write_at(offset, bytes, durability) } else { Ok(()) }
    }

    fn zero(&self, range: Range<u64>, how: Zeroing) -> Result<()> {
        self.0.zero(range, how)
    }

    fn flush(&self) -> Result<()> {
        self.0.flush()
    }
}

fn plan(base: usize) -> TransferPlan {
    TransferPlan { target: "there".into(), base: base.to_string(), rate: None, workers: 3, keep_going: false }
}

/// Brings a stack to a target; nothing of the hand-over can fail.
fn transfer(stack: &Stack, target: Arc<dyn BlockDevice>, logbook: &Arc<Lossy>) -> Result<Transferred> {
    Transfer::begin(stack, target, logbook.clone(), plan(0))?.run(&Cancel::default(), || HandOver::Done)
}

/// Everything that a power cut strikes.
struct Site {
    rig: Rig,
    target: Arc<Lossy>,
    logbook: Arc<Lossy>,
    /// One byte: whether it was handed over.
    header: Arc<Lossy>,
    bases: usize,
}

impl Site {
    fn new(bytes: &[u8], seed: u64) -> Site {
        let rig = Rig::new(bytes, seed);
        let new = |len: u64| {
            let medium = Lossy::new(&rig.plant);
            medium.set_len(len).unwrap();
            medium.sync().unwrap();
            medium
        };
        let (target, logbook, header) = (new(bytes.len() as u64), new(0), new(1));
        Site { rig, target, logbook, header, bases: 0 }
    }

    fn is_handed_over(&self) -> bool {
        self.header.bytes()[0] == 1
    }

    fn device(&self) -> Arc<dyn BlockDevice> {
        Arc::new(LossyDevice(Arc::clone(&self.target), self.target.bytes().len() as u64))
    }

    /// What there is after a start: the fork, or what it was handed over to.
    fn found(&self) -> Vec<u8> {
        match self.is_handed_over() {
            true => contents(&*self.device()),
            false => contents(&self.rig.try_open_stack().unwrap()),
        }
    }

    fn cut(&mut self, stack: Option<Stack>, chance: &Chance) {
        self.rig.cut(stack, chance);
        for medium in [&mut self.target, &mut self.logbook, &mut self.header] {
            *medium = medium.after_cut(chance);
        }
    }
}

/// Has a guest use the stack for as long as a hydration runs. What became of the hydration, and the request that the guest's disk failed.
fn play_round(
    site: &Site,
    stack: &Stack,
    model: &mut Model,
    chance: &Chance,
    faults: Faults,
    is_doomed: bool,
) -> (Result<Transferred>, Option<Step>) {
    let target: Arc<dyn BlockDevice> = Arc::new(FaultyDevice::new(site.device(), faults));
    let (logbook, header, plan) = (Arc::clone(&site.logbook), Arc::clone(&site.header), plan(site.bases));
    let refuses = chance.below(6) == 0;
    let hand_over = move || match refuses {
        true => HandOver::Failed(Error::invalid("not today")),
        false => match header.write_at(0, &[1]).and_then(|()| header.sync()) {
            Ok(()) => HandOver::Done,
            Err(e) => HandOver::Unknown(e),
        },
    };
    scope(|scope| {
        let hydration =
            scope.spawn(move || Transfer::begin(stack, target, logbook, plan)?.run(&Cancel::default(), hand_over));
        // One that is to lose its power is used until then, if that does not take too long.
        let mut left = if is_doomed { 400 } else { chance.below(20) };
        let mut flight = None;
        while flight.is_none() && (left > 0 || !hydration.is_finished()) {
            left = left.saturating_sub(1);
            let step = match step(chance, model) {
                // On a target it is not one thing for a power cut.
                Step::Exchange(at, bytes, true) => Step::Write(at, bytes, Durability::Forced),
                step => step,
            };
            match run(stack, model, &step) {
                Ok(()) => model.apply(&step),
                Err(e) => {
                    let is_targets = format!("{e:?}").contains("injected") && site.is_handed_over();
                    assert!(site.rig.plant.is_out() || stack.check().is_err() || is_targets, "{step:?}: {e:?}");
                    flight = Some(step);
                }
            }
        }
        (hydration.join().unwrap(), flight)
    })
}

/// What came of hydrations, counted.
#[derive(Default)]
struct Tally {
    done: AtomicU64,
    failed: AtomicU64,
    cut: AtomicU64,
    cut_when_done: AtomicU64,
}

fn play(seed: u64, tally: &Tally) {
    let chance = Chance::new(seed);
    let len = if seed.is_multiple_of(10) { 33 << 20 } else { 3 << 20 } + [0, 512, 1000, 4095][chance.below(4)];
    let mut base = chance.bytes(len);
    for _ in 0..5 {
        base[chance.range(len, len / 4)].fill(0);
    }
    let mut site = Site::new(&base, seed);
    let mut model = Model::new(&base);
    let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
    for round in 0.. {
        let stack = site.rig.try_open_stack().unwrap();
        assert!(contents(&stack) == model.now, "round {round}");
        // As commits do it, that fail and that do not, while nobody hydrates.
        if chance.below(4) == 0 && site.rig.layers() < 4 {
            site.rig.freeze(&stack).unwrap();
        }
        if chance.below(6) == 0 && site.rig.layers() > 1 {
            site.rig.settle(&stack, false).unwrap();
            site.bases += 1;
        }
        let is_last = round > 8;
        let is_doomed = !is_last && chance.below(3) > 0;
        if is_doomed {
            site.rig.plant.cut_after(chance.below([300, 1500, 5000][chance.below(3)]));
        }
        let one_in = if !is_last && chance.below(4) == 0 { NonZeroU64::new(20) } else { None };
        let faults = Faults { seed, one_in, ..Faults::default() };
        let is_sound = one_in.is_none();
        let (result, flight) = play_round(&site, &stack, &mut model, &chance, faults, is_doomed);
        count(if result.is_ok() { &tally.done } else { &tally.failed });
        if site.rig.plant.is_out() {
            let is_cut = chance.below(3) > 0;
            match is_cut {
                true => site.cut(Some(stack), &chance),
                false => site.rig.kill(Some(stack)),
            }
            count(if site.is_handed_over() { &tally.cut_when_done } else { &tally.cut });
            model.check(&site.found(), flight.as_ref(), is_cut);
        } else {
            site.rig.plant.restore();
            if let Some(flight) = &flight {
                // A target that fails on purpose had become the disk.
                assert!(!is_sound && site.is_handed_over());
                model.check(&site.found(), Some(flight), false);
            } else {
                assert!(contents(&*site.device()) == model.now || !site.is_handed_over());
                assert!(!is_sound || contents(&stack) == model.now);
            }
            if let Err(e) = &result {
                let is_meant = ["injected", "not today"].iter().any(|text| format!("{e:?}").contains(text));
                assert!(is_meant && !site.is_handed_over(), "{e:?}");
            }
        }
        if site.is_handed_over() {
            return;
        }
        assert!(!is_last || result.is_err_and(|e| format!("{e:?}").contains("not today")), "the last is undisturbed");
    }
}

#[test]
fn whatever_happens_the_disk_is_in_one_place_and_whole() {
    let (next, tally) = (AtomicU64::new(0), Tally::default());
    let seeds = seeds(SEEDS);
    let is_usual = seeds == (1..1 + SEEDS);
    scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(seed) = seeds.clone().nth(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    if let Err(panic) = catch_unwind(|| play(seed, &tally)) {
                        println!("seed {seed}");
                        resume_unwind(panic);
                    }
                }
            });
        }
    });
    let Tally { done, failed, cut, cut_when_done } = tally;
    let [done, failed, cut, cut_when_done] = [done, failed, cut, cut_when_done].map(AtomicU64::into_inner);
    println!(
        "{done} hydrations done, {failed} failed; power or process ended {cut} times before a hand-over, {cut_when_done} after"
    );
    assert!(!is_usual || done > 20 && failed > 20 && cut > 20 && cut_when_done > 2, "the test tries little");
}

/// Writers of which each puts the next number into the next of its slots, all over the disk, and only after the one before was
/// acknowledged: more than is good for the end, so that they have to wait.
#[test]
fn writers_that_never_stop_are_all_taken_along() {
    const SLOTS: u64 = 160;
    const WRITERS: u64 = 4;
    let rig = Rig::new(&Chance::new(1).bytes(40 << 20), 1);
    let stack = rig.try_open_stack().unwrap();
    let target = Arc::new(MemoryDevice::new(stack.size()));
    let logbook = Lossy::new(&rig.plant);
    let place = |writer: u64, number: u64| number % SLOTS * REGION as u64 + writer * 4096;
    let (stop, is_moved) = (AtomicBool::new(false), AtomicBool::new(false));
    let last = scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (stack, stop, is_moved) = (&stack, &stop, &is_moved);
                scope.spawn(move || {
                    let mut after = 0;
                    for number in 1u64.. {
                        if stop.load(Ordering::SeqCst) && after > 2 * SLOTS {
                            return number - 1;
                        }
                        let how = if number.is_multiple_of(64) { Durability::Forced } else { Durability::Cached };
                        stack.write_at(place(writer, number), &number.to_le_bytes().repeat(64), how).unwrap();
                        after += u64::from(is_moved.load(Ordering::SeqCst));
                    }
                    unreachable!()
                })
            })
            .collect();
        // Before the first waits.
        let done = transfer(&stack, target.clone(), &logbook);
        is_moved.store(true, Ordering::SeqCst);
        stop.store(true, Ordering::SeqCst);
        let last: Vec<u64> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        println!("writers were held off for {:?}", done.unwrap().pause);
        last
    });
    // They went on for a while on the target, and all of it is there: what was written before, and since.
    let (here, there) = (contents(&stack), contents(&*target));
    assert!(here == there);
    for (writer, newest) in (0..WRITERS).zip(last) {
        for number in newest + 1 - SLOTS..=newest {
            let at = place(writer, number) as usize;
            assert!(there[at..at + 512] == number.to_le_bytes().repeat(64), "writer {writer}: {number} of {newest}");
        }
    }
}

#[test]
fn a_target_that_does_not_keep_what_it_took_is_found_out() {
    let base = Chance::new(3).bytes(5 << 20);
    let rig = Rig::new(&base, 3);
    let stack = rig.try_open_stack().unwrap();
    // The first four regions, which are copied at once.
    for region in 0..4 {
        stack.write_at(region * REGION as u64 + 7000, b"touched", Durability::Cached).unwrap();
    }
    let expected = contents(&stack);
    for lies_about in [3 << 20, 0u64] {
        let logbook = Lossy::new(&rig.plant);
        let memory = Arc::new(MemoryDevice::new(stack.size()));
        let liar = Hooked(memory.clone(), move |at, _: &[u8]| Ok(at != lies_about));
        let error = transfer(&stack, Arc::new(liar), &logbook).err().unwrap();
        assert_eq!(error.kind(), Kind::Corrupt);
        let text = error.to_string();
        assert!(text.contains(&format!("at byte {lies_about}")) && text.contains("--restart"), "{text}");
        assert!(contents(&stack) == expected && stack.top().is_ok());
        // It is sound now, and still what was copied there before is not what it should be: that is said again, until it is
        // begun anew. What a layer touched is copied by every run.
        let again = transfer(&stack, memory.clone(), &logbook);
        assert_eq!(again.is_ok(), lies_about == 0);
        assert!(again.is_err() || contents(&*memory) == expected && stack.top().is_err());
    }
}

#[test]
fn a_target_that_vanishes_at_any_moment_takes_nothing_along() {
    let mut expected = Chance::new(11).bytes(3 << 20);
    expected[1 << 20..][..300_000].fill(0);
    let rig = Rig::new(&expected, 11);
    let stack = rig.try_open_stack().unwrap();
    let (plant, logbook) = (Plant::new(), Lossy::new(&rig.plant));
    let target = Lossy::new(&plant);
    target.set_len(expected.len() as u64).unwrap();
    for calls in 0.. {
        plant.cut_after(calls);
        let result = transfer(&stack, Arc::new(LossyDevice(Arc::clone(&target), expected.len() as u64)), &logbook);
        plant.restore();
        let at = calls * 70_000 % (expected.len() - 9);
        stack.write_at(at as u64, b"goes on.", Durability::Cached).unwrap();
        expected[at..at + 8].copy_from_slice(b"goes on.");
        assert!(contents(&stack) == expected, "{calls}");
        match result {
            Err(e) => assert!(e.to_string().contains("power is off") && stack.top().is_ok(), "{e:?}"),
            Ok(_) => {
                assert!(target.bytes() == expected && stack.top().is_err());
                return assert!(calls > 5, "{calls} calls are all it took");
            }
        }
    }
}

#[test]
fn a_region_that_is_dropped_from_the_target_later_is_found_out_and_begun_anew() {
    let base = Chance::new(4).bytes(3 << 20);
    let rig = Rig::new(&base, 4);
    let stack = rig.try_open_stack().unwrap();
    let memory = Arc::new(MemoryDevice::new(stack.size()));
    let logbook = Lossy::new(&rig.plant);
    let refuse = || HandOver::Failed(Error::invalid("not yet"));
    let begun = Transfer::begin(&stack, memory.clone(), logbook.clone(), plan(0)).unwrap();
    assert!(begun.run(&Cancel::default(), refuse).is_err());
    memory.write_at(2 << 20, &[0; 512], Durability::Cached).unwrap();
    let again = transfer(&stack, memory.clone(), &logbook).err().unwrap();
    assert!(again.to_string().contains(&format!("at byte {}", 2 << 20)), "{again}");
    // Of another base nothing counts.
    let begun = Transfer::begin(&stack, memory.clone(), logbook, plan(1)).unwrap();
    assert_eq!(begun.progress().resumed(), 0);
    begun.run(&Cancel::default(), || HandOver::Done).unwrap();
    assert!(contents(&*memory) == base);
}

#[test]
fn who_goes_on_copies_what_is_left_and_what_was_touched_again() {
    const REGIONS: u64 = 80;
    let base = Chance::new(5).bytes(REGIONS as usize * REGION);
    let rig = Rig::new(&base, 5);
    let stack = rig.try_open_stack().unwrap();
    stack.write_at(0, b"first", Durability::Cached).unwrap();
    let (memory, logbook, cancel) =
        (Arc::new(MemoryDevice::new(stack.size())), Lossy::new(&rig.plant), Cancel::default());
    let writes = Arc::new(AtomicU64::new(0));
    let hooked = {
        let (cancel, writes) = (cancel.clone(), writes.clone());
        Hooked(memory.clone(), move |_, _: &[u8]| {
            if writes.fetch_add(1, Ordering::SeqCst) == 10 {
                cancel.cancel();
            }
            Ok(true)
        })
    };
    let begun = Transfer::begin(&stack, Arc::new(hooked), logbook.clone(), plan(0)).unwrap();
    assert_eq!(begun.run(&cancel, || HandOver::Done).err().unwrap().kind(), Kind::Cancelled);
    let copied = writes.load(Ordering::SeqCst) * 4;
    assert!((40..REGIONS).contains(&copied), "{copied} of {REGIONS} regions");
    // One that was copied, one that was not.
    for at in [5, REGIONS - 1] {
        stack.write_at(at * REGION as u64, b"touched since", Durability::Cached).unwrap();
    }
    let begun = Transfer::begin(&stack, memory.clone(), logbook, plan(0)).unwrap();
    let progress = begun.progress();
    assert_eq!(progress.resumed(), (copied - 1) * REGION as u64, "all but the one that had been touched");
    assert_eq!(progress.remaining(), (REGIONS - copied + 2) * REGION as u64);
    begun.run(&Cancel::default(), || HandOver::Done).unwrap();
    assert_eq!(progress.copied() + progress.zero(), (REGIONS - copied + 2) * REGION as u64);
    assert_eq!((progress.verified(), progress.phase(), progress.remaining()), (stack.size(), Phase::Done, 0));
    assert!(contents(&*memory) == contents(&stack));
}

/// A power cut may take back that a layer touched a region, which then counts as copied again: so the target must not have got more of it.
#[test]
fn what_the_fork_could_still_lose_takes_no_place_of_what_counts_as_copied() {
    const TOUCHED: u64 = 5 * REGION as u64 + 8192;
    for seed in 0..10 {
        let chance = Chance::new(seed);
        let mut rig = Rig::new(&chance.bytes(8 * REGION), seed);
        let stack = rig.try_open_stack().unwrap();
        let (memory, logbook) = (Arc::new(MemoryDevice::new(stack.size())), Lossy::new(&rig.plant));
        let begun = Transfer::begin(&stack, memory.clone(), logbook.clone(), plan(0)).unwrap();
        begun.run(&Cancel::default(), || HandOver::Failed(Error::invalid("not yet"))).err().unwrap();
        let (plant, inner) = (Arc::clone(&rig.plant), memory.clone());
        let cuts = move |at: u64, bytes: &[u8]| {
            inner.write_at(at, bytes, Durability::Forced)?;
            plant.cut_after(0);
            Ok(false)
        };
        let begun = Transfer::begin(&stack, Arc::new(Hooked(memory.clone(), cuts)), logbook.clone(), plan(0)).unwrap();
        stack.write_at(TOUCHED, &[7; 4096], Durability::Cached).unwrap();
        assert!(begun.run(&Cancel::default(), || HandOver::Done).is_err() && rig.plant.is_out());
        rig.cut(Some(stack), &chance);
        let stack = rig.try_open_stack().unwrap();
        let begun = Transfer::begin(&stack, memory.clone(), logbook.after_cut(&chance), plan(0)).unwrap();
        assert_eq!(begun.progress().resumed(), 8 * REGION as u64);
        begun
            .run(&Cancel::default(), || HandOver::Failed(Error::invalid("not yet")))
            .err()
            .filter(|e| e.kind() == Kind::Invalid)
            .unwrap();
        assert!(contents(&*memory) == contents(&stack), "seed {seed}");
    }
}

#[test]
fn what_is_noted_as_copied_survives_a_power_cut_at_once() {
    for seed in 0..10 {
        let chance = Chance::new(seed);
        let base = chance.bytes(8 * REGION);
        let mut rig = Rig::new(&base, seed);
        let stack = rig.try_open_stack().unwrap();
        let target = Lossy::new(&rig.plant);
        target.set_len(base.len() as u64).unwrap();
        target.sync().unwrap();
        let of = |target: &Arc<Lossy>| Arc::new(LossyDevice(Arc::clone(target), base.len() as u64));
        let (notes, plant) = (Plant::new(), Arc::clone(&rig.plant));
        let logbook = Lossy::new(&notes);
        let begun = Transfer::begin(&stack, of(&target), logbook.clone(), plan(0)).unwrap();
        notes.after_sync(0, move || plant.cut_after(0));
        assert!(begun.run(&Cancel::default(), || HandOver::Done).is_err() && rig.plant.is_out());
        rig.cut(Some(stack), &chance);
        let target = target.after_cut(&chance);
        let stack = rig.try_open_stack().unwrap();
        let begun = Transfer::begin(&stack, of(&target), logbook, plan(0)).unwrap();
        assert_eq!(begun.progress().resumed(), base.len() as u64);
        begun.run(&Cancel::default(), || HandOver::Done).unwrap();
        assert!(target.bytes() == base, "seed {seed}");
    }
}

#[test]
fn what_a_guest_misses_is_copied_next() {
    let base = Chance::new(6).bytes(100 * REGION);
    let rig = Rig::new(&base, 6);
    let stack = Arc::new(rig.try_open_stack().unwrap());
    let (memory, logbook) = (Arc::new(MemoryDevice::new(stack.size())), Lossy::new(&rig.plant));
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let hooked = {
        let (order, stack) = (order.clone(), stack.clone());
        Hooked(memory, move |at, _: &[u8]| {
            let mut order = order.lock().unwrap();
            if order.is_empty() {
                stack.read_at(90 * REGION as u64, &mut [0; 512])?;
            }
            order.push(at / REGION as u64);
            Ok(true)
        })
    };
    let plan = TransferPlan { workers: 1, ..plan(0) };
    let begun = Transfer::begin(&stack, Arc::new(hooked), logbook, plan).unwrap();
    begun.run(&Cancel::default(), || HandOver::Done).unwrap();
    let order = order.lock().unwrap();
    let hot = order.iter().position(|at| *at == 89).unwrap();
    assert!(hot <= 4, "{order:?}");
}

#[test]
fn a_limit_of_bytes_is_kept_and_holes_cost_nothing() {
    let rig = Rig::new(&vec![0; 64 << 20], 7);
    let stack = rig.try_open_stack().unwrap();
    for at in [1 << 20, 32 << 20] {
        stack.write_at(at, &[1; 4096], Durability::Cached).unwrap();
    }
    let (memory, logbook) = (Arc::new(MemoryDevice::new(stack.size())), Lossy::new(&rig.plant));
    // A minute for a MiB.
    let plan = TransferPlan { rate: NonZeroU64::new(16 << 10), ..plan(0) };
    let begun = Transfer::begin(&stack, memory.clone(), logbook, plan).unwrap();
    let (progress, cancel) = (begun.progress(), Cancel::default());
    scope(|scope| {
        let run = scope.spawn(|| begun.run(&cancel, || HandOver::Done));
        while progress.zero() < 31 << 20 && !run.is_finished() {
            std::thread::yield_now();
        }
        // It came to the second MiB with bytes, and waits: until it is to stop, at once.
        cancel.cancel();
        assert_eq!(run.join().unwrap().err().unwrap().kind(), Kind::Cancelled);
    });
    assert_eq!(progress.copied(), 4096);
}

#[test]
fn a_hand_over_of_which_nobody_knows_stops_all_writes_and_no_reads() {
    let base = Chance::new(8).bytes(1 << 20);
    let rig = Rig::new(&base, 8);
    let stack = rig.try_open_stack().unwrap();
    stack.write_at(0, b"written", Durability::Cached).unwrap();
    let expected = contents(&stack);
    let (memory, logbook) = (Arc::new(MemoryDevice::new(stack.size())), Lossy::new(&rig.plant));
    let begun = Transfer::begin(&stack, memory.clone(), logbook, plan(0)).unwrap();
    let error = begun.run(&Cancel::default(), || HandOver::Unknown(Error::invalid("odd"))).err().unwrap();
    assert!(error.to_string().contains("takes no more writes"), "{error}");
    for result in [stack.write_at(0, &[1; 9], Durability::Cached), stack.flush(), stack.trim(0..8192), stack.check()] {
        assert!(result.unwrap_err().to_string().contains("takes no more writes"));
    }
    assert!(contents(&stack) == expected && contents(&*memory) == expected);
    assert!(contents(&rig.try_open_stack().unwrap()) == expected);
}

#[test]
fn what_cannot_be_read_is_named_or_zeroes() {
    let base = Chance::new(9).bytes(2 << 20);
    let mut rig = Rig::new(&base, 9);
    let faults = Faults { unreadable: vec![8192..16384, 1 << 20..(1 << 20) + 4096], ..Faults::default() };
    rig.base = Arc::new(FaultyDevice::new(Arc::clone(&rig.base), faults));
    let stack = rig.try_open_stack().unwrap();
    stack.write_at(12288, &[5; 4096], Durability::Cached).unwrap();
    let (memory, logbook) = (Arc::new(MemoryDevice::new(stack.size())), Lossy::new(&rig.plant));
    let error = transfer(&stack, memory.clone(), &logbook).err().unwrap();
    assert!(error.kind() == Kind::Corrupt && error.to_string().contains("8192 to 12288"), "{error}");
    let plan = TransferPlan { keep_going: true, ..plan(0) };
    let begun = Transfer::begin(&stack, memory.clone(), logbook, plan).unwrap();
    let done = begun.run(&Cancel::default(), || HandOver::Done).unwrap();
    assert_eq!(done.unreadable, [8192..12288, 1 << 20..(1 << 20) + 4096]);
    let mut expected = base;
    expected[12288..16384].fill(5);
    for lost in done.unreadable {
        expected[lost.start as usize..lost.end as usize].fill(0);
    }
    assert!(contents(&*memory) == expected && contents(&stack) == expected);
}
