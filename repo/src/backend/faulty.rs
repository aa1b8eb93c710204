//! Any store, with faults after a seeded plan: for tests of retries, of damage, and of a crash at every step.
//!
//! Not here: what a flow should do about a fault. What holds: every fault follows from the plan's seed and the operation's
//! number alone, so a run on one thread repeats exactly; [`Plan::default`] has no faults and changes nothing; the faults of a
//! *store that breaks the contract* (flips, truncation, delayed listings) are only ever those that the plan asks for.

use super::archive::Archive;
use super::lock::ObjectLock;
use super::{Backend, Listed, Put};
use crate::error::{Error, Kind, Result};
use crate::store_class::StoreClass;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What goes wrong and how often, in thousandths of the operations it can strike.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// What every draw follows from. A test prints it.
    pub seed: u64,
    /// `Unavailable`, and nothing was done.
    pub fail_before: u16,
    /// `Unavailable`, though all was done: a lost acknowledgement.
    pub fail_after: u16,
    /// A put answers `Full`, and nothing was done.
    pub full: u16,
    /// A read returns one wrong bit.
    pub flip: u16,
    /// A read finds the object shorter than it was written.
    pub truncate: u16,
    /// For how many operations after its put an object is missing from listings, as in a store that lists late.
    pub listing_delay: u64,
    /// From when on nothing works any more.
    pub stop: Option<Stop>,
}

/// The moment a machine dies: operation `at` and all that begin after it fail with `Unavailable`.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    /// The number of the fatal operation, counted from 1.
    pub at: u64,
    /// Which operations are counted.
    pub counted: Counted,
    /// What becomes of the fatal operation.
    pub fatal: Fatal,
}

/// Which operations a [`Stop`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// All of them.
    Every,
    /// Puts and deletes.
    Mutating,
}

/// What becomes of the operation at which a machine dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fatal {
    /// It had no effect.
    Lost,
    /// It took effect, which its caller never learns.
    Done,
}

/// A store that fails after a [`Plan`].
#[derive(Debug)]
pub struct Faulty<B> {
    inner: B,
    plan: Plan,
    operations: AtomicU64,
    mutations: AtomicU64,
    /// Operation number of the put of each object that listings may still omit.
    unlisted: Mutex<HashMap<String, u64>>,
}

/// An operation that has begun.
struct Step {
    number: u64,
    fate: Fate,
}

enum Fate {
    Succeed,
    FailBefore,
    FailAfter,
}

/// Kinds of fault: each draws independently of the others.
#[derive(Clone, Copy)]
enum Fault {
    FailBefore,
    FailAfter,
    Full,
    Flip,
    Truncate,
}

impl<B: Backend> Faulty<B> {
    /// `inner` with the faults of `plan`.
    pub fn new(inner: B, plan: Plan) -> Self {
        Faulty {
            inner,
            plan,
            operations: AtomicU64::new(0),
            mutations: AtomicU64::new(0),
            unlisted: Mutex::new(HashMap::new()),
        }
    }

    /// The store below, which works.
    pub fn inner(&self) -> &B {
        &self.inner
    }

    /// How many operations were begun, failed ones included.
    pub fn operations(&self) -> u64 {
        self.operations.load(Ordering::SeqCst)
    }

    /// How many puts and deletes were begun, failed ones included.
    pub fn mutations(&self) -> u64 {
        self.mutations.load(Ordering::SeqCst)
    }

    fn begin(&self, counted: Counted) -> Step {
        let number = self.operations.fetch_add(1, Ordering::SeqCst) + 1;
        let mutation = match counted {
            Counted::Mutating => Some(self.mutations.fetch_add(1, Ordering::SeqCst) + 1),
            Counted::Every => None,
        };
        let fate = if let Some(fate) = self.plan.stop.and_then(|stop| self.fate_by_stop(stop, number, mutation)) {
            fate
        } else if self.draw(number, Fault::FailBefore).is_some() {
            Fate::FailBefore
        } else if self.draw(number, Fault::FailAfter).is_some() {
            Fate::FailAfter
        } else {
            Fate::Succeed
        };
        Step { number, fate }
    }

    /// What `stop` does to operation `number`, which is the `mutation`-th mutating one or none.
    fn fate_by_stop(&self, stop: Stop, number: u64, mutation: Option<u64>) -> Option<Fate> {
        let counted = match stop.counted {
            Counted::Every => Some(number),
            Counted::Mutating => mutation,
        };
        match counted {
            Some(counted) if counted < stop.at => None,
            Some(counted) if counted == stop.at && stop.fatal == Fatal::Done => Some(Fate::FailAfter),
            None if self.mutations() < stop.at => None,
            _ => Some(Fate::FailBefore),
        }
    }

    /// Whether `fault` strikes operation `number`: then a number to choose its place by.
    fn draw(&self, number: u64, fault: Fault) -> Option<u64> {
        let thousandths = match fault {
            Fault::FailBefore => self.plan.fail_before,
            Fault::FailAfter => self.plan.fail_after,
            Fault::Full => self.plan.full,
            Fault::Flip => self.plan.flip,
            Fault::Truncate => self.plan.truncate,
        };
        let drawn = xxh3_64_with_seed(&[number, fault as u64].map(u64::to_le_bytes).concat(), self.plan.seed);
        (drawn % 1000 < u64::from(thousandths)).then_some(drawn / 1000)
    }

    /// Does `act` as the fate of `step` wills.
    fn act<T>(&self, step: &Step, doing: &str, name: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let failed = |when| {
            Error::new(
                Kind::Unavailable,
                format!("{doing} '{name}': the plan's fault at operation {} {when}", step.number),
            )
        };
        match step.fate {
            Fate::Succeed => act(),
            Fate::FailBefore => Err(failed("before it was done")),
            Fate::FailAfter => act().and(Err(failed("after it was done"))),
        }
    }

    fn flip(&self, step: &Step, bytes: &mut [u8]) {
        if let Some(place) = self.draw(step.number, Fault::Flip)
            && let Some(byte) = remainder(place / 8, bytes.len()).and_then(|i| bytes.get_mut(i))
        {
            *byte ^= 1 << (place % 8);
        }
    }

    /// The length that operation `step` finds an object of `len` bytes to have.
    fn len_found(&self, step: &Step, len: usize) -> usize {
        self.draw(step.number, Fault::Truncate).and_then(|place| remainder(place, len)).unwrap_or(len)
    }

    fn unlisted(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.unlisted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_listed(&self, name: &str, now: u64) -> bool {
        self.unlisted().get(name).is_none_or(|born| now.saturating_sub(*born) > self.plan.listing_delay)
    }
}

impl<B: Backend> Backend for Faulty<B> {
    fn location(&self) -> String {
        format!("{} (faulty)", self.inner.location())
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<Put> {
        let step = self.begin(Counted::Mutating);
        self.act(&step, "putting", name, || {
            if self.draw(step.number, Fault::Full).is_some() {
                return Err(Error::new(
                    Kind::Full,
                    format!("putting '{name}': the plan's fault at operation {}", step.number),
                ));
            }
            let put = self.inner.put(name, parts)?;
            if put == Put::Created && self.plan.listing_delay > 0 {
                let mut unlisted = self.unlisted();
                unlisted.retain(|_, born| step.number.saturating_sub(*born) <= self.plan.listing_delay);
                unlisted.insert(name.to_owned(), step.number);
            }
            Ok(put)
        })
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        let step = self.begin(Counted::Every);
        self.act(&step, "getting", name, || {
            let mut bytes = self.inner.get(name)?;
            bytes.truncate(self.len_found(&step, bytes.len()));
            self.flip(&step, &mut bytes);
            Ok(bytes)
        })
    }

    fn get_range(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        let step = self.begin(Counted::Every);
        self.act(&step, "getting a range of", name, || {
            self.inner.get_range(name, offset, out)?;
            if self.len_found(&step, out.len()) < out.len() {
                return Err(Error::corrupt(format!(
                    "'{name}' ends early: the plan's fault at operation {}",
                    step.number
                )));
            }
            self.flip(&step, out);
            Ok(())
        })
    }

    fn get_suffix(&self, name: &str, max: usize) -> Result<(Vec<u8>, u64)> {
        let step = self.begin(Counted::Every);
        self.act(&step, "getting the end of", name, || {
            let (bytes, whole) = self.inner.get_suffix(name, max)?;
            let whole_found = self.draw(step.number, Fault::Truncate).and_then(|place| place.checked_rem(whole));
            let (mut bytes, whole) = match whole_found {
                None => (bytes, whole),
                Some(shorter) => {
                    let mut found = vec![0; usize::try_from(shorter).map_or(max, |len| len.min(max))];
                    self.inner.get_range(name, shorter - found.len() as u64, &mut found)?;
                    (found, shorter)
                }
            };
            self.flip(&step, &mut bytes);
            Ok((bytes, whole))
        })
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        let step = self.begin(Counted::Every);
        self.act(&step, "looking at", name, || self.inner.size(name))
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        let step = self.begin(Counted::Every);
        self.act(&step, "listing", prefix, || {
            self.inner.list(prefix, &mut |object| {
                if self.is_listed(&object.name, step.number) { each(object) } else { Ok(()) }
            })
        })
    }

    fn delete(&self, name: &str) -> Result<()> {
        let step = self.begin(Counted::Mutating);
        self.act(&step, "deleting", name, || {
            self.inner.delete(name)?;
            self.unlisted().remove(name);
            Ok(())
        })
    }

    fn weakness(&self) -> Option<(StoreClass, String)> {
        self.inner.weakness()
    }

    /// Without faults, as the archive below: both are asked for besides the operations that a plan counts.
    fn object_lock(&self) -> Option<&dyn ObjectLock> {
        self.inner.object_lock()
    }

    fn archive(&self) -> Option<&dyn Archive> {
        self.inner.archive()
    }
}

/// `place` brought below `len`; `None` if `len` is zero.
fn remainder(place: u64, len: usize) -> Option<usize> {
    usize::try_from(place.checked_rem(len as u64)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::list_sorted;
    use crate::backend::memory::Memory;

    const ALWAYS: u16 = 1000;
    const SEED: u64 = 0x5eed;

    fn holding(content: &[u8], plan: Plan) -> Faulty<Memory> {
        let memory = Memory::default();
        assert_eq!(memory.put("a", &[content]).unwrap(), Put::Created);
        Faulty::new(memory, Plan { seed: SEED, ..plan })
    }

    #[test]
    fn errors_come_before_or_after_the_deed() {
        let before = holding(b"", Plan { fail_before: ALWAYS, ..Plan::default() });
        assert_eq!(before.put("b", &[]).unwrap_err().kind(), Kind::Unavailable);
        assert_eq!(before.inner().size("b").unwrap(), None);
        let after = holding(b"", Plan { fail_after: ALWAYS, ..Plan::default() });
        assert_eq!(after.put("b", &[]).unwrap_err().kind(), Kind::Unavailable);
        assert_eq!(after.inner().size("b").unwrap(), Some(0));
        assert_eq!(after.delete("b").unwrap_err().kind(), Kind::Unavailable);
        assert_eq!(after.inner().size("b").unwrap(), None);
        let full = holding(b"", Plan { full: ALWAYS, ..Plan::default() });
        assert_eq!(full.put("b", &[]).unwrap_err().kind(), Kind::Full);
        assert_eq!(full.inner().size("b").unwrap(), None);
    }

    #[test]
    fn a_flip_changes_one_bit_of_every_kind_of_read() {
        let store = holding(&[0; 100], Plan { flip: ALWAYS, ..Plan::default() });
        let mut range = [0; 10];
        store.get_range("a", 90, &mut range).unwrap();
        for bytes in [store.get("a").unwrap(), range.to_vec(), store.get_suffix("a", 20).unwrap().0] {
            assert_eq!(bytes.iter().map(|b| b.count_ones()).sum::<u32>(), 1, "{bytes:?}, seed {SEED:#x}");
        }
    }

    #[test]
    fn a_truncated_object_is_shorter_in_every_kind_of_read() {
        let content: Vec<u8> = (0..100).collect();
        let store = holding(&content, Plan { truncate: ALWAYS, ..Plan::default() });
        let bytes = store.get("a").unwrap();
        assert!(bytes.len() < 100 && content.starts_with(&bytes), "seed {SEED:#x}");
        let (tail, whole) = store.get_suffix("a", 5).unwrap();
        let whole = usize::try_from(whole).unwrap();
        assert!(whole < 100, "seed {SEED:#x}");
        assert_eq!(tail, content[whole.saturating_sub(5)..whole], "seed {SEED:#x}");
        assert_eq!(store.get_range("a", 0, &mut [0; 100]).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn draws_repeat_and_come_about_as_often_as_planned() {
        let plan = Plan { seed: SEED, fail_before: 100, flip: 100, ..Plan::default() };
        let outcomes = |plan: &Plan| {
            let store = holding(&[0; 8], plan.clone());
            (0..1000).map(|_| store.get("a").ok()).collect::<Vec<_>>()
        };
        let first = outcomes(&plan);
        assert_eq!(first, outcomes(&plan));
        let failed = first.iter().filter(|o| o.is_none()).count();
        let flipped = first.iter().flatten().filter(|bytes| **bytes != [0; 8]).count();
        assert!((50..200).contains(&failed) && (50..200).contains(&flipped), "{failed}, {flipped}, seed {SEED:#x}");
    }

    #[test]
    fn a_late_listing_shows_an_object_in_the_end() {
        let store = holding(b"", Plan { listing_delay: 2, ..Plan::default() });
        assert_eq!(store.put("b", &[]).unwrap(), Put::Created);
        let shown = || list_sorted(&store, "").unwrap().len();
        assert_eq!([shown(), shown(), shown()], [1, 1, 2]);
        assert_eq!(store.size("b").unwrap(), Some(0));
    }

    #[test]
    fn after_the_stop_nothing_works_and_the_fatal_put_is_done_or_lost() {
        for (counted, at) in [(Counted::Every, 3), (Counted::Mutating, 2)] {
            for (fatal, size) in [(Fatal::Lost, None), (Fatal::Done, Some(1))] {
                let store = holding(b"", Plan { stop: Some(Stop { at, counted, fatal }), ..Plan::default() });
                assert_eq!(store.put("b", &[b"1"]).unwrap(), Put::Created);
                store.get("b").unwrap();
                assert_eq!(store.put("c", &[b"2"]).unwrap_err().kind(), Kind::Unavailable);
                assert_eq!(store.inner().size("c").unwrap(), size, "{counted:?} {fatal:?}");
                assert_eq!(store.get("b").unwrap_err().kind(), Kind::Unavailable);
                assert_eq!(store.delete("b").unwrap_err().kind(), Kind::Unavailable);
                assert_eq!(store.inner().size("b").unwrap(), Some(1));
                assert_eq!((store.operations(), store.mutations()), (5, 3));
            }
        }
    }
}
