//! Staying awake a moment for what a client that sends one request at a time is about to send, or to get.
//!
//! Such a client sends its next request some ten microseconds after it has its answer. A thread that goes to sleep in between has
//! to be woken, and perhaps the core with it, which takes longer than the request itself. So the event loop goes round a while
//! instead, as long as that pays: who waited in vain leaves out twice as many waits as the last time. Waiting for storage is
//! another vigil than waiting for the client, so that a slow disk does not spoil what is known of the client.
//!
//! Not here: the waiting itself; the loop keeps serving everybody else meanwhile. What holds: one wait is over after its limit;
//! of a client that never answers in time, fewer than 1 of 500 waits are tried.

use std::time::{Duration, Instant};

/// How long the next request of a client is waited for.
const FOR_CLIENT: Duration = Duration::from_micros(60);
/// How long storage is waited for: a sync of a fast disk takes 100 to 200 us.
const FOR_STORAGE: Duration = Duration::from_micros(300);
/// After so many failures in a row the waits that are left out do not become more.
const MOST_FAILURES: u32 = 9;

/// What a connection is waiting for.
pub struct Vigil {
    client: Patience,
    storage: Patience,
}

impl Default for Vigil {
    fn default() -> Self {
        Vigil { client: Patience::for_client(), storage: Patience { limit: FOR_STORAGE, ..Patience::for_client() } }
    }
}

impl Vigil {
    /// Something moved.
    pub fn end(&mut self) {
        self.client.end();
        self.storage.end();
    }

    /// Nothing moves: whether to look again at once. Of the jobs `in_hand` of the storage threads `own` are the connection's. While
    /// they work for others the processor has better to do.
    pub fn is_on(&mut self, own: usize, in_hand: u64) -> bool {
        match (own, in_hand) {
            (0, 0) => self.client.is_on(Instant::now),
            // Perhaps it was done this moment.
            (1, 0 | 1) => self.storage.is_on(Instant::now),
            _ => false,
        }
    }
}

/// How long one thing is waited for, and whether at all.
pub(super) struct Patience {
    limit: Duration,
    state: State,
    failures: u32,
    /// Waits to leave out.
    left_out: u32,
}

#[derive(Default)]
enum State {
    /// Something moved.
    #[default]
    Busy,
    Watching(Instant),
    /// It waits as everybody does.
    Asleep,
}

impl Patience {
    /// For the next request of a client.
    pub(super) fn for_client() -> Self {
        Patience { limit: FOR_CLIENT, state: State::Busy, failures: 0, left_out: 0 }
    }

    /// It came.
    pub(super) fn end(&mut self) {
        if let State::Watching(_) = std::mem::take(&mut self.state) {
            self.failures = 0;
        }
    }

    /// It did not come yet: whether to look again at once.
    pub(super) fn is_on(&mut self, now: impl FnOnce() -> Instant) -> bool {
        match self.state {
            State::Busy if self.left_out == 0 => {
                self.state = State::Watching(now());
                return true;
            }
            State::Busy => self.left_out -= 1,
            State::Watching(since) if now().saturating_duration_since(since) < self.limit => return true,
            State::Watching(_) => {
                self.failures = MOST_FAILURES.min(self.failures + 1);
                self.left_out = 1 << self.failures;
            }
            State::Asleep => return false,
        }
        self.state = State::Asleep;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answers_in_time_is_waited_for_every_time() {
        let (mut vigil, start) = (Patience::for_client(), Instant::now());
        for _ in 0..100 {
            assert!(vigil.is_on(|| start) && vigil.is_on(|| start + FOR_CLIENT / 2));
            vigil.end();
        }
    }

    #[test]
    fn who_never_does_is_hardly_waited_for() {
        let (mut vigil, start) = (Patience::for_client(), Instant::now());
        let mut watched = 0;
        for _ in 0..10_000 {
            if vigil.is_on(|| start) {
                watched += 1;
                assert!(!vigil.is_on(|| start + FOR_CLIENT));
            }
            assert!(!vigil.is_on(|| start + 2 * FOR_CLIENT), "once asleep it sleeps");
            vigil.end();
        }
        assert!((2..30).contains(&watched), "{watched}");
        // One success, and it is trusted again.
        while !vigil.is_on(|| start) {
            vigil.end();
        }
        vigil.end();
        assert!(vigil.is_on(|| start));
    }
}
