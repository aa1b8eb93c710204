//! What is on its way from the store to the disk: being fetched, or fetched and not written yet.
//!
//! ```text
//!   register -> coming -> here -> written (or given up) -> left
//!                    \--> failed                               whoever waits asks the store itself
//! ```
//! Not here: fetching and writing. What holds: a piece is fetched by one reader of this process at a time, and the others wait for
//! it; whoever waits holds no fetch of his own that is not over, so that nobody waits in a circle; a fetch leaves only after it was
//! written, so that who does not find it here finds it on the disk; no lock is held while anything is fetched or copied.

use super::shelf::PIECE;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Pieces of one object, from the first one's first byte to the last one's last byte or to the object's end.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) bytes: Vec<u8>,
    /// Whether the object is known to end where the bytes do.
    pub(super) is_end: bool,
}

enum State {
    Coming,
    Here(Arc<Fetched>),
    /// The store failed, or what it gave is not to be used.
    Failed,
}

/// Pieces of one object on their way.
pub(super) struct Fetch {
    name: Box<str>,
    pieces: Range<u64>,
    state: Mutex<State>,
    is_over: Condvar,
}

impl Fetch {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn pieces(&self) -> &Range<u64> {
        &self.pieces
    }

    /// What was fetched, if it was and is to be used.
    pub(super) fn fetched(&self) -> Option<Arc<Fetched>> {
        match &*lock(&self.state) {
            State::Here(fetched) => Some(Arc::clone(fetched)),
            State::Coming | State::Failed => None,
        }
    }

    /// Waits for the bytes and copies those that belong into `out`, which begins at `offset` of the object. `false`: they did not
    /// come, or the object ends before.
    pub(super) fn copy(&self, offset: u64, out: &mut [u8]) -> bool {
        let mut state = lock(&self.state);
        while matches!(*state, State::Coming) {
            state = self.is_over.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        let Some(fetched) = self.fetched() else { return false };
        let begin = self.pieces.start * PIECE;
        let (from, to) = (begin.max(offset), (self.pieces.end * PIECE).min(offset + out.len() as u64));
        let within = |base: u64| {
            let index = |at: u64| at.checked_sub(base).and_then(|at| usize::try_from(at).ok());
            Some(index(from)?..index(to)?).filter(|range| range.start <= range.end)
        };
        let parts = within(begin).zip(within(offset));
        let Some((bytes, part)) = parts.and_then(|(b, p)| fetched.bytes.get(b).zip(out.get_mut(p))) else {
            return false;
        };
        part.copy_from_slice(bytes);
        true
    }

    /// Ends it, unless it was voided; whoever waits goes on.
    fn end(&self, with: State) {
        let mut state = lock(&self.state);
        if matches!(*state, State::Coming) {
            *state = with;
        }
        drop(state);
        self.is_over.notify_all();
    }
}

/// Everything on its way, by object.
#[derive(Default)]
pub(super) struct Inflow(Mutex<HashMap<Box<str>, Vec<Arc<Fetch>>>>);

/// A fetch that is to be made; given up when dropped.
pub(super) struct Ours<'a> {
    inflow: &'a Inflow,
    fetch: Arc<Fetch>,
    is_here: bool,
}

impl Inflow {
    /// What is on its way of these pieces.
    pub(super) fn find(&self, name: &str, pieces: &Range<u64>) -> Vec<Arc<Fetch>> {
        let table = lock(&self.0);
        let meets = |fetch: &&Arc<Fetch>| fetch.pieces.start < pieces.end && pieces.start < fetch.pieces.end;
        table.get(name).into_iter().flatten().filter(meets).cloned().collect()
    }

    /// Takes on those of the pieces, which are in order, that nobody fetches: neighbours as one fetch. The other fetches.
    pub(super) fn register(&self, name: &str, missing: &[u64]) -> (Vec<Ours<'_>>, Vec<Arc<Fetch>>) {
        let mut table = lock(&self.0);
        let fetches = table.entry(name.into()).or_default();
        let (mut others, mut runs): (Vec<Arc<Fetch>>, Vec<Range<u64>>) = (Vec::new(), Vec::new());
        for piece in missing {
            match fetches.iter().find(|fetch| fetch.pieces.contains(piece)) {
                Some(fetch) if others.iter().any(|other| Arc::ptr_eq(other, fetch)) => {}
                Some(fetch) => others.push(Arc::clone(fetch)),
                None => match runs.last_mut() {
                    Some(run) if run.end == *piece => run.end += 1,
                    _ => runs.push(*piece..piece + 1),
                },
            }
        }
        let mut take = |pieces: Range<u64>| {
            let (state, is_over) = (Mutex::new(State::Coming), Condvar::new());
            let fetch = Arc::new(Fetch { name: name.into(), pieces, state, is_over });
            fetches.push(Arc::clone(&fetch));
            Ours { inflow: self, fetch, is_here: false }
        };
        (runs.into_iter().map(&mut take).collect(), others)
    }

    /// What is on its way of these pieces is not to be used, and not to be written unless it is being written now; whether there
    /// was any.
    pub(super) fn void(&self, name: &str, pieces: &Range<u64>) -> bool {
        let found = self.find(name, pieces);
        for fetch in &found {
            *lock(&fetch.state) = State::Failed;
            fetch.is_over.notify_all();
            self.leave(fetch);
        }
        !found.is_empty()
    }

    /// Takes a fetch out of the table, if it is there.
    pub(super) fn leave(&self, fetch: &Arc<Fetch>) {
        let mut table = lock(&self.0);
        if let Some(fetches) = table.get_mut(&fetch.name) {
            fetches.retain(|other| !Arc::ptr_eq(other, fetch));
            if fetches.is_empty() {
                table.remove(&fetch.name);
            }
        }
    }
}

impl Ours<'_> {
    pub(super) fn name(&self) -> &str {
        &self.fetch.name
    }

    pub(super) fn pieces(&self) -> &Range<u64> {
        &self.fetch.pieces
    }

    /// Hands the bytes to whoever waits.
    pub(super) fn here(mut self, fetched: Fetched) -> Arc<Fetch> {
        self.fetch.end(State::Here(Arc::new(fetched)));
        self.is_here = true;
        Arc::clone(&self.fetch)
    }
}

impl Drop for Ours<'_> {
    fn drop(&mut self) {
        if !self.is_here {
            self.fetch.end(State::Failed);
            self.inflow.leave(&self.fetch);
        }
    }
}

// Whoever died with a lock in his hands left whole what it guards: each change is one assignment or one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
