//! A few threads that work on what one thread hands out: how verification and statistics walk maps and packs.
//!
//! Not here: what the work is. What holds: the queue is bounded by twice the number of threads; the first failure, or a request
//! to stop, ends everybody, and what is reported is the cause and not its echo. A crew of one is the thread that hands out, so
//! that a run repeats exactly.

use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crossbeam_channel::bounded;
use std::thread::ScopedJoinHandle;

/// How many threads work, and who may stop them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crew<'a> {
    pub(crate) threads: usize,
    pub(crate) cancel: &'a Cancel,
}

impl Crew<'_> {
    /// Runs `feed` in this thread, which hands out tasks through the function it is given, and `work` on each of them in one of
    /// the crew's. Every thread has a state of its own, made by `begin`; the states are returned.
    pub(crate) fn run<T: Send, S: Send>(
        self,
        begin: impl Fn() -> Result<S> + Sync,
        work: impl Fn(T, &mut S) -> Result<()> + Sync,
        feed: impl FnOnce(&mut dyn FnMut(T) -> Result<()>) -> Result<()>,
    ) -> Result<Vec<S>> {
        if self.threads <= 1 {
            let mut state = begin()?;
            feed(&mut |task| self.cancel.check().and_then(|()| work(task, &mut state)))?;
            return Ok(vec![state]);
        }
        let threads = self.threads;
        let (to, tasks) = bounded::<T>(threads * 2);
        let stop = Cancel::default();
        let check = || stop.check().and_then(|()| self.cancel.check());
        std::thread::scope(|scope| {
            let crew: Vec<_> = (0..threads)
                .map(|_| {
                    let tasks = tasks.clone();
                    let (begin, work, check, stop) = (&begin, &work, &check, &stop);
                    scope.spawn(move || {
                        let all = || -> Result<S> {
                            let mut state = begin()?;
                            for task in tasks {
                                check()?;
                                work(task, &mut state)?;
                            }
                            Ok(state)
                        };
                        all().inspect_err(|_| stop.cancel())
                    })
                })
                .collect();
            drop(tasks);
            let fed = feed(&mut |task| {
                check()?;
                to.send(task).map_err(|_| Error::new(Kind::Cancelled, "everybody who could work on it has stopped"))
            });
            if fed.is_err() {
                stop.cancel();
            }
            drop(to);
            join(crew, fed)
        })
    }
}

/// Waits for all; their results, or the error that began it all and not those of who only stopped because of it.
pub(crate) fn join<S>(crew: Vec<ScopedJoinHandle<'_, Result<S>>>, fed: Result<()>) -> Result<Vec<S>> {
    let mut cause = fed.err();
    let mut states = Vec::with_capacity(crew.len());
    for thread in crew {
        match thread.join().unwrap_or_else(|_| Err(Error::internal("a thread died at its work"))) {
            Ok(state) => states.push(state),
            Err(e) if cause.as_ref().is_none_or(|c| c.kind() == Kind::Cancelled && e.kind() != Kind::Cancelled) => {
                cause = Some(e);
            }
            Err(_) => {}
        }
    }
    cause.map_or(Ok(states), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_worked_on_once() {
        let cancel = Cancel::default();
        for threads in [0, 1, 5] {
            let crew = Crew { threads, cancel: &cancel };
            let work = |task: u64, done: &mut Vec<u64>| {
                done.push(task);
                Ok(())
            };
            let done = crew.run(|| Ok(Vec::new()), work, |hand| (0..1000).try_for_each(hand)).unwrap();
            let mut all = done.concat();
            all.sort_unstable();
            assert_eq!(all, (0..1000).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_cause_is_reported_and_not_its_echo() {
        let cancel = Cancel::default();
        let crew = Crew { threads: 3, cancel: &cancel };
        let work = |task: u64, (): &mut ()| match task {
            17 => Err(Error::corrupt("task 17")),
            _ => Ok(()),
        };
        let error = crew.run(|| Ok(()), work, |hand| (0..1_000_000).try_for_each(hand)).unwrap_err();
        assert_eq!(error.context(), "task 17");
        let error = crew.run(|| Ok(()), |_: u64, ()| Ok(()), |_| Err(Error::corrupt("feed"))).unwrap_err();
        assert_eq!(error.context(), "feed");
        let error = crew.run(|| Err(Error::corrupt("begin")), |_: u64, (): &mut ()| Ok(()), |_| Ok(())).unwrap_err();
        assert_eq!(error.context(), "begin");
    }

    #[test]
    fn a_request_to_stop_and_a_death_are_errors() {
        let cancel = Cancel::default();
        let crew = Crew { threads: 2, cancel: &cancel };
        let work = |task: u64, (): &mut ()| {
            assert_ne!(task, 3);
            Ok(())
        };
        let died = crew.run(|| Ok(()), work, |hand| (0..10).try_for_each(hand)).unwrap_err();
        assert_eq!(died.kind(), Kind::Internal);
        cancel.cancel();
        let stopped = crew.run(|| Ok(()), |_, ()| Ok(()), |hand| hand(1)).unwrap_err();
        assert_eq!(stopped.kind(), Kind::Cancelled);
    }
}
