//! CONDUCTOR of a probe: finds out by trying what a store can be relied on for.
//!
//! ```text
//!   each round, under names of its own, from all connections at once:
//!     look     nobody has the name: so that a store which remembers absence shows it
//!     race     many PUT one name with different bytes: one is told that it created it, and its bytes are there
//!     see      whoever's put returned sees the object through another connection at once: by size, by reading, in a listing
//!     retry    a later PUT changes nothing and says so
//!     delete   deleted through one connection it is gone for the others at once: by size, by reading, in a listing
//!   -> a class (store_class.rs), with a count of breaches and an example of each
//! ```
//! A store that breaks a promise once in n times is found out with the probability 1-(1-1/n)^rounds: a probe proves weakness, never
//! strength. What is known to be weak otherwise is asked of the backend ([`Backend::weakness`]).
//!
//! Not here: saying what was found to others ([`StoreClass::record`]). What holds: nothing outside `probe/` is touched; what it
//! puts it removes, and what it could not remove a collector does, a day later ([`left_over`]); it begins no round after
//! [`ProbeOptions::limit`], and ends with an error when it could not make [`FEWEST`] by then; operations that fail for the moment
//! are no breaches. Memory: a few hundred bytes a racer.

use crate::backend::{Backend, Put, list_sorted};
use crate::cancel::Cancel;
use crate::entropy::{Entropy, fresh};
use crate::error::{Error, Kind, Result};
use crate::id::RecordId;
use crate::store_class::StoreClass;
use crate::time::Timestamp;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

/// Prefix of what probes put.
pub const PREFIX: &str = "probe/";
/// Rounds without which nothing was found out.
pub const FEWEST: u32 = 3;
/// Age in seconds at which what a probe put is taken for left over.
const OLD: u64 = 86_400;

/// How a store is probed.
#[derive(Clone, Copy, Debug)]
pub struct ProbeOptions {
    /// Threads that put one name at the same time.
    pub racers: usize,
    /// Rounds, at most.
    pub rounds: u32,
    /// When no further round is begun.
    pub limit: Duration,
    /// For the name of what it puts.
    pub now: Timestamp,
}

/// What a store promises, and a probe tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// Of several puts of a name one counts, and the others are told.
    PutIfAbsent,
    /// What was put can be read at once.
    ReadAfterPut,
    /// What was put is listed at once.
    ListAfterPut,
    /// What was deleted cannot be read any more.
    GoneAfterDelete,
    /// What was deleted is not listed any more.
    ListAfterDelete,
}

impl Promise {
    /// All of them.
    pub const ALL: [Promise; 5] = [
        Promise::PutIfAbsent,
        Promise::ReadAfterPut,
        Promise::ListAfterPut,
        Promise::GoneAfterDelete,
        Promise::ListAfterDelete,
    ];

    /// What a store is that breaks it.
    #[must_use]
    pub fn without(self) -> StoreClass {
        match self {
            Promise::PutIfAbsent => StoreClass::Overwriting,
            _ => StoreClass::Lagging,
        }
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Promise::PutIfAbsent => "put-if-absent",
            Promise::ReadAfterPut => "read after put",
            Promise::ListAfterPut => "list after put",
            Promise::GoneAfterDelete => "gone after delete",
            Promise::ListAfterDelete => "list after delete",
        })
    }
}

/// How a promise was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// In how many rounds.
    pub rounds: u32,
    /// What was seen the first time.
    pub example: String,
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeReport {
    /// The weakest that follows.
    pub class: StoreClass,
    /// Rounds that were made.
    pub rounds: u32,
    /// Of those, such in which an operation failed for the moment.
    pub troubled: u32,
    /// The promises that were broken.
    pub breaches: BTreeMap<Promise, Breach>,
    /// What is known of the store anyway: the class it has at best, and why.
    pub known: Option<(StoreClass, String)>,
}

/// Probes a store through several connections to it, at least two, each with a view of its own.
pub fn probe(
    connections: &[Arc<dyn Backend>],
    options: &ProbeOptions,
    entropy: &dyn Entropy,
    cancel: &Cancel,
) -> Result<ProbeReport> {
    let [first, _, ..] = connections else {
        return Err(Error::invalid("a probe takes two connections at least"));
    };
    if options.racers < 2 {
        return Err(Error::invalid("a probe takes two racers at least"));
    }
    let prefix = format!("{PREFIX}{}-{}", options.now, RecordId(fresh(entropy)?));
    let run = Run { first: &**first, connections, racers: options.racers, prefix };
    let known = connections.iter().find_map(|connection| connection.weakness());
    let mut report = ProbeReport {
        class: known.as_ref().map_or(StoreClass::Strong, |(class, _)| *class),
        rounds: 0,
        troubled: 0,
        breaches: BTreeMap::new(),
        known,
    };
    let begun = Instant::now();
    let probed = (0..options.rounds).try_for_each(|round| {
        if begun.elapsed() >= options.limit {
            return Ok(());
        }
        cancel.check()?;
        let found = run.round(round)?;
        report.rounds += 1;
        report.troubled += u32::from(found.trouble.is_some());
        for (promise, example) in found.breaches {
            report.class = report.class.max(promise.without());
            report
                .breaches
                .entry(promise)
                .and_modify(|breach| breach.rounds += 1)
                .or_insert(Breach { rounds: 1, example });
        }
        // A store that answers to nothing says nothing about itself.
        match found.trouble {
            Some(e) if report.rounds - report.troubled < FEWEST && report.troubled > FEWEST => Err(e),
            _ => Ok(()),
        }
    });
    let cleared = run.clear();
    probed?;
    cleared?;
    if report.rounds - report.troubled < FEWEST.min(options.rounds) {
        return Err(Error::new(
            Kind::Unavailable,
            format!(
                "{} is too slow or too busy to be probed: {} rounds in {:?}, {} of them disturbed; give it more time",
                run.first.location(),
                report.rounds,
                options.limit,
                report.troubled
            ),
        ));
    }
    Ok(report)
}

/// Names of what probes put that have ended or died by `now`.
pub fn left_over(backend: &dyn Backend, now: Timestamp) -> Result<Vec<String>> {
    let mut names = list_sorted(backend, PREFIX)?;
    names.retain(|object| {
        let begun = object.name.strip_prefix(PREFIX).and_then(|name| name.split('/').next()?.rsplit_once('-'));
        let begun = begun.and_then(|(time, _)| time.parse::<Timestamp>().ok());
        begun.is_none_or(|begun| begun.seconds().saturating_add(OLD) <= now.seconds())
    });
    Ok(names.into_iter().map(|object| object.name).collect())
}

/// A probe under way.
struct Run<'a> {
    first: &'a dyn Backend,
    connections: &'a [Arc<dyn Backend>],
    racers: usize,
    prefix: String,
}

/// What a round came to.
#[derive(Default)]
struct Found {
    /// By promise, what was seen first.
    breaches: BTreeMap<Promise, String>,
    /// The last operation that failed for the moment.
    trouble: Option<Error>,
}

impl Found {
    fn broken(&mut self, promise: Promise, example: impl FnOnce() -> String) {
        self.breaches.entry(promise).or_insert_with(example);
    }

    fn join(&mut self, other: Found) {
        other.breaches.into_iter().for_each(|(promise, example)| self.broken(promise, || example));
        self.trouble = other.trouble.or(self.trouble.take());
    }

    /// What an operation answered; `None` when it failed for the moment. Any other failure ends the probe.
    fn take<T>(&mut self, answer: Result<T>) -> Result<Option<T>> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(e) if e.kind().is_transient() => {
                self.trouble = Some(e);
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

/// What one racer put: bytes that tell whose they are.
fn bytes_of(racer: usize) -> Vec<u8> {
    format!("racer {racer} {}", "=".repeat(racer)).into_bytes()
}

impl Run<'_> {
    /// The connection of a racer, or one further on.
    fn connection(&self, number: usize) -> &dyn Backend {
        self.connections.get(number % self.connections.len()).map_or(self.first, |connection| &**connection)
    }

    fn round(&self, round: u32) -> Result<Found> {
        let prefix = format!("{}/{round:06}/", self.prefix);
        let name = format!("{prefix}object");
        let mut found = Found::default();
        for connection in self.connections {
            let (size, read) = (connection.size(&name), connection.get(&name));
            found.take(size)?;
            self.read(read, &mut found)?;
        }
        let puts = self.race(&prefix, &name, &mut found)?;
        self.judge(&name, &puts, &mut found)?;
        self.delete(&prefix, &name, &mut found)?;
        Ok(found)
    }

    /// All put at once, and look at once for what they put. What each put answered.
    fn race(&self, prefix: &str, name: &str, found: &mut Found) -> Result<Vec<Option<Put>>> {
        let start = Barrier::new(self.racers);
        let race = |racer: usize| -> Result<(Option<Put>, Found)> {
            let mut found = Found::default();
            let bytes = bytes_of(racer);
            start.wait();
            let put = self.connection(racer).put(name, &[&bytes]);
            let put = found.take(put)?;
            if put.is_some() {
                self.see(self.connection(racer + 1), prefix, name, &mut found)?;
            }
            Ok((put, found))
        };
        let raced = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..self.racers).map(|racer| scope.spawn(move || race(racer))).collect();
            let joined = racers.into_iter().map(|racer| racer.join());
            joined
                .map(|ended| ended.unwrap_or_else(|_| Err(Error::internal("a racer died"))))
                .collect::<Result<Vec<_>>>()
        })?;
        let mut puts = Vec::with_capacity(raced.len());
        for (put, seen) in raced {
            puts.push(put);
            found.join(seen);
        }
        Ok(puts)
    }

    /// Sees that the object is there: whoever's put returned did so while it was.
    fn see(&self, through: &dyn Backend, prefix: &str, name: &str, found: &mut Found) -> Result<()> {
        let listed = list_sorted(through, prefix);
        if let Some(listed) = found.take(listed)?
            && !listed.iter().any(|object| object.name == name)
        {
            found.broken(Promise::ListAfterPut, || format!("{name} was put and not listed right after"));
        }
        let size = through.size(name);
        if let Some(None) = found.take(size)? {
            found.broken(Promise::ReadAfterPut, || format!("{name} was put, and right after it had no size"));
        }
        match through.get(name) {
            Err(e) if e.kind() == Kind::NotFound => {
                found.broken(Promise::ReadAfterPut, || format!("{name} was put, and right after it could not be read"));
            }
            read => {
                if let Some(bytes) = found.take(read)?
                    && !(0..self.racers).any(|racer| bytes == bytes_of(racer))
                {
                    found.broken(Promise::ReadAfterPut, || format!("{name} held what nobody put"));
                }
            }
        }
        Ok(())
    }

    /// Sees that one put counts, and goes on to.
    fn judge(&self, name: &str, puts: &[Option<Put>], found: &mut Found) -> Result<()> {
        let created = |put: &&Option<Put>| **put == Some(Put::Created);
        let winners = puts.iter().filter(created).count();
        let winner = puts.iter().position(|put| *put == Some(Put::Created)).map(bytes_of);
        // Whoever was not answered may be the one.
        let is_complete = puts.iter().all(Option::is_some);
        if winners > 1 || (winners == 0 && is_complete) {
            found.broken(Promise::PutIfAbsent, || {
                format!("of {} puts of {name} at once {winners} created it", puts.len())
            });
        }
        for (late, connection) in (self.racers..).zip(self.connections) {
            let read = connection.get(name);
            let Some(before) = self.read(read, found)? else { continue };
            if is_complete && winners == 1 && Some(&before) != winner.as_ref() {
                found
                    .broken(Promise::PutIfAbsent, || format!("{name} holds the bytes of a put that did not create it"));
            }
            let put = connection.put(name, &[&bytes_of(late)]);
            if found.take(put)? == Some(Put::Created) {
                found.broken(Promise::PutIfAbsent, || format!("{name} was there, and a put created it once more"));
            }
            let read = connection.get(name);
            let Some(after) = self.read(read, found)? else { continue };
            if after != before {
                found.broken(Promise::PutIfAbsent, || format!("{name} was replaced by a later put"));
            }
        }
        Ok(())
    }

    /// The bytes that are read; that there are none was told by whoever looked first.
    fn read(&self, read: Result<Vec<u8>>, found: &mut Found) -> Result<Option<Vec<u8>>> {
        match read {
            Err(e) if e.kind() == Kind::NotFound => Ok(None),
            read => found.take(read),
        }
    }

    fn delete(&self, prefix: &str, name: &str, found: &mut Found) -> Result<()> {
        let deleted = self.first.delete(name);
        if found.take(deleted)?.is_none() {
            return Ok(());
        }
        for connection in self.connections.iter().rev() {
            let size = connection.size(name);
            if let Some(Some(_)) = found.take(size)? {
                found.broken(Promise::GoneAfterDelete, || format!("{name} was deleted, and right after it had a size"));
            }
            let read = connection.get(name);
            if self.read(read, found)?.is_some() {
                found.broken(Promise::GoneAfterDelete, || format!("{name} was deleted, and right after it was read"));
            }
            let listed = list_sorted(&**connection, prefix);
            if found.take(listed)?.is_some_and(|listed| !listed.is_empty()) {
                found.broken(Promise::ListAfterDelete, || format!("{name} was deleted and listed right after"));
            }
        }
        Ok(())
    }

    /// Removes what is left of the probe.
    fn clear(&self) -> Result<()> {
        for object in list_sorted(self.first, &format!("{}/", self.prefix))? {
            self.first.delete(&object.name)?;
        }
        Ok(())
    }
}
