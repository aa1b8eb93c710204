//! A simulated store: several actors use one store in memory, one operation at a time, in an order that a seed decides.
//!
//! ```text
//!   actor 0   Backend ──┐
//!   actor 1   Backend ──┼── each operation waits until every actor waits or has ended; then the dice pick whose goes on,
//!   actor 2   Backend ──┘   and what becomes of it
//! ```
//!
//! Not here: what the actors do. What holds: while one actor goes on, from the moment its operation is picked until it begins the
//! next one, all others stand still; as long as no actor begins two operations at a time, everything follows from the seed,
//! which [`Simulation::trace`] lets one check; an actor that crashed does nothing any more.

// A harness speaks by failing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::dice::Dice;
use coffer_repo::backend::memory::Memory;
use coffer_repo::backend::{Backend, Listed, Put, list_sorted};
use coffer_repo::{Error, Kind, Result};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::Thread;

/// What goes wrong, and how often, in ten-thousandths of the operations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// `Unavailable`, and nothing was done: an upload that ended half-way is one of these, since nobody sees it.
    pub lost: u16,
    /// `Unavailable`, though all was done.
    pub unacknowledged: u16,
    /// Done twice; the second answer counts, so that a put finds its own object.
    pub twice: u16,
    /// The actor dies, before or after the operation was done.
    pub crash: u16,
    /// How often the actor whose turn it was goes on: long stretches of one actor find other faults than short ones.
    pub sticky: u16,
    /// For at most how many operations after its put an object is missing from listings. Not zero: a store of the weak class.
    pub listing_delay: u64,
    /// Puts replace what is there, and say that they created it: a store without put-if-absent.
    pub overwriting: bool,
}

/// How an actor sees the store: other than clear only to show that what depends on it is noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lens {
    /// As it is.
    #[default]
    Clear,
    /// Condemned records are never listed.
    NothingCondemned,
    /// Claims are listed as they were when they were listed the time before.
    OldClaims,
    /// A decision replaces the one that was there.
    PlainDecisions,
}

/// The store and whose turn it is.
pub struct Simulation {
    memory: Arc<Memory>,
    weather: Weather,
    state: Mutex<State>,
}

struct State {
    dice: Dice,
    actors: Vec<Actor>,
    /// Whose turn it was.
    last: usize,
    /// The operation that was picked and is not done yet.
    picked: Option<(u64, Fate)>,
    tickets: u64,
    trace: Vec<Line>,
    /// Until which operation an object is missing from listings.
    unlisted: HashMap<String, usize>,
}

#[derive(Default)]
struct Actor {
    title: String,
    phase: Phase,
    crashed: bool,
    waiting: VecDeque<Ticket>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// What it does is not scheduled yet.
    #[default]
    Preparing,
    Live,
    Ended,
}

struct Ticket {
    number: u64,
    thread: Thread,
    doing: &'static str,
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Done,
    Lost,
    Unacknowledged,
    Twice,
    CrashBefore,
    CrashAfter,
}

struct Line {
    actor: usize,
    doing: &'static str,
    name: String,
    fate: Fate,
}

impl Simulation {
    /// Over `memory`, after `seed`.
    #[must_use]
    pub fn new(memory: Arc<Memory>, seed: u64, weather: Weather) -> Arc<Self> {
        let state = State {
            dice: Dice::new(seed),
            actors: Vec::new(),
            last: 0,
            picked: None,
            tickets: 0,
            trace: Vec::new(),
            unlisted: HashMap::new(),
        };
        Arc::new(Simulation { memory, weather, state: Mutex::new(state) })
    }

    /// Another actor's store. Until [`Simulation::begin`] its operations are done at once.
    pub fn actor(self: &Arc<Self>, title: &str, lens: Lens) -> Arc<ActorStore> {
        let mut state = self.state();
        state.actors.push(Actor { title: title.to_owned(), ..Actor::default() });
        let actor = state.actors.len() - 1;
        Arc::new(ActorStore {
            simulation: Arc::clone(self),
            actor,
            lens,
            claims: Mutex::default(),
            failed: AtomicBool::default(),
        })
    }

    /// From now on every actor's operations wait for their turn.
    pub fn begin(&self) {
        for actor in &mut self.state().actors {
            actor.phase = Phase::Live;
        }
    }

    /// What was done, a line for each operation.
    #[must_use]
    pub fn trace(&self) -> String {
        let state = self.state();
        let mut text = String::new();
        for (step, Line { actor, doing, name, fate }) in state.trace.iter().enumerate() {
            let title = &state.actors[*actor].title;
            let fate = if *fate == Fate::Done { String::new() } else { format!(" ({fate:?})") };
            text += &format!("{step:5} {title:12} {doing:6} {name}{fate}\n");
        }
        text
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no actor panics with the state in its hands")
    }

    /// Waits for this operation's turn; `None` while it is not scheduled.
    fn wait(&self, actor: usize, doing: &'static str, name: &str) -> Result<Option<Fate>> {
        let number = {
            let mut state = self.state();
            let of = &state.actors[actor];
            if of.crashed {
                return Err(Error::new(Kind::Unavailable, format!("{doing} '{name}': {} has crashed", of.title)));
            }
            if of.phase == Phase::Preparing {
                return Ok(None);
            }
            state.tickets += 1;
            let number = state.tickets;
            let thread = std::thread::current();
            state.actors[actor].waiting.push_back(Ticket { number, thread, doing, name: name.to_owned() });
            state.pick(self.weather);
            number
        };
        loop {
            // The lock is let go of before the thread sleeps.
            let picked = self.state().picked;
            match picked {
                Some((picked, fate)) if picked == number => return Ok(Some(fate)),
                _ => std::thread::park(),
            }
        }
    }

    /// The picked operation is done; its actor goes on.
    fn done(&self) {
        let mut state = self.state();
        state.picked = None;
        state.pick(self.weather);
    }
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Simulation({:?}, {:?})", self.memory, self.weather)
    }
}

impl State {
    /// Picks the next operation, if every actor waits.
    fn pick(&mut self, weather: Weather) {
        let is_going_on = |actor: &Actor| actor.phase == Phase::Live && actor.waiting.is_empty();
        if self.picked.is_some() || self.actors.iter().any(is_going_on) {
            return;
        }
        let waiting: Vec<usize> = (0..self.actors.len()).filter(|i| !self.actors[*i].waiting.is_empty()).collect();
        if waiting.is_empty() {
            return;
        }
        let goes_on = self.dice.below(10_000) < u64::from(weather.sticky) && waiting.contains(&self.last);
        self.last = if goes_on { self.last } else { waiting[self.dice.index(waiting.len())] };
        let Ticket { number, thread, doing, name } = self.actors[self.last].waiting.pop_front().unwrap();
        let fate = if doing == "rest" { Fate::Done } else { self.fate(weather) };
        self.actors[self.last].crashed = matches!(fate, Fate::CrashBefore | Fate::CrashAfter);
        self.trace.push(Line { actor: self.last, doing, name, fate });
        self.picked = Some((number, fate));
        thread.unpark();
    }

    fn fate(&mut self, weather: Weather) -> Fate {
        let mut roll = self.dice.below(10_000);
        let half = weather.crash / 2;
        let fates = [
            (Fate::Lost, weather.lost),
            (Fate::Unacknowledged, weather.unacknowledged),
            (Fate::Twice, weather.twice),
            (Fate::CrashBefore, half),
            (Fate::CrashAfter, weather.crash - half),
        ];
        for (fate, share) in fates {
            match roll.checked_sub(u64::from(share)) {
                Some(rest) => roll = rest,
                None => return fate,
            }
        }
        Fate::Done
    }
}

/// The store as one actor has it.
#[derive(Debug)]
pub struct ActorStore {
    simulation: Arc<Simulation>,
    actor: usize,
    lens: Lens,
    /// Of [`Lens::OldClaims`]: the last listing.
    claims: Mutex<Option<Vec<Listed>>>,
    /// Whether an operation failed because of the weather.
    failed: AtomicBool,
}

impl ActorStore {
    /// Waits for a turn and does nothing to the store: until this actor's next operation all others stand still.
    pub fn rest(&self) -> Result<()> {
        self.act("rest", "", || Ok(()))
    }

    /// Whether an operation of this actor failed because of the weather.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// This actor has done all it does. Nothing of it may use the store any more.
    pub fn end(&self) {
        let mut state = self.simulation.state();
        state.actors[self.actor].phase = Phase::Ended;
        state.pick(self.simulation.weather);
    }

    fn act<T>(&self, doing: &'static str, name: &str, act: impl Fn() -> Result<T>) -> Result<T> {
        let Some(fate) = self.simulation.wait(self.actor, doing, name)? else { return act() };
        let failed = || {
            self.failed.store(true, Ordering::SeqCst);
            Error::new(Kind::Unavailable, format!("{doing} '{name}': {fate:?}"))
        };
        let result = match fate {
            Fate::Done => act(),
            Fate::Lost | Fate::CrashBefore => Err(failed()),
            Fate::Unacknowledged | Fate::CrashAfter => act().and(Err(failed())),
            Fate::Twice => act().and(act()),
        };
        self.simulation.done();
        result
    }

    fn memory(&self) -> &Memory {
        &self.simulation.memory
    }

    fn put_now(&self, name: &str, parts: &[&[u8]]) -> Result<Put> {
        if self.lens == Lens::PlainDecisions && name.ends_with("/decision") {
            self.memory().delete(name)?;
        }
        let put = match self.memory().put(name, parts)? {
            Put::Exists if self.simulation.weather.overwriting => {
                self.memory().replace(name, parts)?;
                Put::Created
            }
            put => put,
        };
        if put == Put::Created && self.simulation.weather.listing_delay > 0 {
            let mut state = self.simulation.state();
            let delay = state.dice.below(self.simulation.weather.listing_delay + 1);
            let until = state.trace.len() + usize::try_from(delay).unwrap();
            state.unlisted.insert(name.to_owned(), until);
        }
        Ok(put)
    }

    fn listed_now(&self, prefix: &str) -> Result<Vec<Listed>> {
        let mut listed = list_sorted(self.memory(), prefix)?;
        let state = self.simulation.state();
        listed.retain(|o| state.unlisted.get(&o.name).is_none_or(|until| *until < state.trace.len()));
        drop(state);
        match self.lens {
            Lens::NothingCondemned => listed.retain(|o| !o.name.starts_with("condemned/")),
            Lens::OldClaims if prefix == "snapshots/" => {
                let mut last = self.claims.lock().expect("nobody panics with a listing in his hands");
                let now = listed.clone();
                listed = last.replace(now).unwrap_or(listed);
            }
            _ => {}
        }
        Ok(listed)
    }
}

impl Backend for ActorStore {
    fn location(&self) -> String {
        "simulation".to_owned()
    }

    fn put(&self, name: &str, parts: &[&[u8]]) -> Result<Put> {
        self.act("put", name, || self.put_now(name, parts))
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.act("get", name, || self.memory().get(name))
    }

    fn get_range(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        let bytes = self.act("range", name, || {
            let mut bytes = vec![0; out.len()];
            self.memory().get_range(name, offset, &mut bytes).map(|()| bytes)
        })?;
        out.copy_from_slice(&bytes);
        Ok(())
    }

    fn get_suffix(&self, name: &str, max: usize) -> Result<(Vec<u8>, u64)> {
        self.act("suffix", name, || self.memory().get_suffix(name, max))
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        self.act("size", name, || self.memory().size(name))
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        self.act("list", prefix, || self.listed_now(prefix))?.into_iter().try_for_each(each)
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.act("delete", name, || self.memory().delete(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two actors put and list by turns.
    fn run(seed: u64, weather: Weather) -> (String, usize) {
        let simulation = Simulation::new(Arc::default(), seed, weather);
        let stores: Vec<_> = ["a", "b"].map(|title| simulation.actor(title, Lens::Clear)).into();
        simulation.begin();
        let failed = std::thread::scope(|scope| {
            let actors: Vec<_> = stores
                .iter()
                .map(|store| {
                    scope.spawn(move || {
                        let mut failed = 0;
                        for n in 0..50 {
                            let name = format!("{}/{n}", store.actor);
                            failed += usize::from(!matches!(store.put(&name, &[b"x"]), Ok(Put::Created)));
                            failed += usize::from(list_sorted(&**store, "").is_err());
                        }
                        store.end();
                        failed
                    })
                })
                .collect();
            actors.into_iter().map(|actor| actor.join().unwrap()).sum()
        });
        (simulation.trace(), failed)
    }

    #[test]
    fn a_seed_repeats_and_another_one_differs() {
        let weather = Weather { lost: 300, unacknowledged: 300, twice: 300, sticky: 5000, ..Weather::default() };
        let (trace, failed) = run(1, weather);
        assert_eq!((trace.lines().count(), failed > 0), (200, true));
        assert_eq!(run(1, weather), (trace.clone(), failed));
        assert_ne!(run(2, weather).0, trace);
        assert_eq!(run(1, Weather::default()).1, 0);
    }

    #[test]
    fn who_crashed_does_nothing_any_more() {
        let (trace, failed) = run(3, Weather { crash: 10_000, ..Weather::default() });
        assert_eq!((trace.lines().count(), failed), (2, 200), "{trace}");
    }

    #[test]
    fn a_weak_store_lists_late_and_a_lens_lists_wrong() {
        let weather = Weather { listing_delay: 50, ..Weather::default() };
        let simulation = Simulation::new(Arc::default(), 5, weather);
        let store = simulation.actor("a", Lens::Clear);
        simulation.begin();
        let lengths: Vec<usize> = (0..100)
            .map(|n| {
                let _ = store.put(&format!("x/{n}"), &[]).unwrap();
                list_sorted(&*store, "x/").unwrap().len()
            })
            .collect();
        assert!(lengths.iter().enumerate().any(|(n, len)| *len <= n), "{lengths:?}");
        let simulation = Simulation::new(Arc::default(), 5, Weather::default());
        let (clear, blind, late) = (
            simulation.actor("a", Lens::Clear),
            simulation.actor("b", Lens::NothingCondemned),
            simulation.actor("c", Lens::OldClaims),
        );
        for name in ["condemned/1", "snapshots/1/decision"] {
            let _ = clear.put(name, &[]).unwrap();
        }
        assert!(list_sorted(&*blind, "condemned/").unwrap().is_empty());
        assert_eq!(list_sorted(&*late, "snapshots/").unwrap().len(), 1);
        let _ = clear.put("snapshots/2/decision", &[]).unwrap();
        assert_eq!(list_sorted(&*late, "snapshots/").unwrap().len(), 1);
        assert_eq!(list_sorted(&*late, "snapshots/").unwrap().len(), 2);
    }
}
