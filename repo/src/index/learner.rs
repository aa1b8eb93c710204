//! Keeps an index in step while a backup runs: what other hosts publish meanwhile is not stored again.
//!
//! ```text
//!   start ---> sync after a while, and again every so often, on a thread of its own ---> what came of it is told
//! ```
//! So a backup begins with what the index knows, however much there is to learn: what it does not know yet is stored once more, which
//! costs space and is never wrong, since an index only hints.
//!
//! Not here: learning ([`super::sync`]). What holds: one sync at a time; it lists the deltas, and reads those that are not known; deltas
//! of writers whose certificate is not known wait for the next time that all are read; ended, it stops between two deltas.

use super::{Index, SyncReport};
use crate::cancel::Cancel;
use crate::error::{Error, Kind, Result};
use crate::repository::Repository;
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Time between two looks for what others published: as often as they publish, about.
pub const LEARN_EVERY: Duration = Duration::from_secs(60);

/// When a [`Learner`] learns.
#[derive(Clone, Copy, Debug)]
pub struct LearnerOptions {
    /// How long after it began for the first time: not at all when the index is behind.
    pub first: Duration,
    /// And how long after that again.
    pub every: Duration,
}

/// Learns until it is dropped.
#[derive(Debug)]
pub struct Learner {
    stop: Option<Sender<()>>,
    cancel: Cancel,
    thread: Option<JoinHandle<()>>,
}

impl Learner {
    /// Begins to learn. `tell` hears what came of every sync, but for one that was stopped; after an error it is tried again.
    pub fn start(
        repo: &Arc<Repository>,
        index: &Arc<Index>,
        options: LearnerOptions,
        mut tell: impl FnMut(Result<SyncReport>) + Send + 'static,
    ) -> Result<Self> {
        let (repo, index, cancel) = (Arc::clone(repo), Arc::clone(index), Cancel::default());
        let (stop, stopped) = bounded::<()>(0);
        let is_ended = cancel.clone();
        let learn = move || {
            let mut pause = options.first;
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let (backend, keys, certificates) = (repo.backend(), repo.keys(), repo.certificates());
                let learnt = index.sync(backend, keys, &certificates, &mut |_, _| is_ended.check());
                if !is_ended.is_cancelled() {
                    tell(learnt);
                }
                pause = options.every;
            }
        };
        let thread = std::thread::Builder::new()
            .name("learner".into())
            .spawn(learn)
            .map_err(|e| Error::new(Kind::Unavailable, "starting a thread").with_source(e))?;
        Ok(Learner { stop: Some(stop), cancel, thread: Some(thread) })
    }
}

impl Drop for Learner {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
