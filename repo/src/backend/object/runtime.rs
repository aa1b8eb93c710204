//! The private runtime: sockets live here, and threads that know nothing of it hand it their calls.
//!
//! ```text
//!   any thread ── call(future) ──> two threads of ours ──> sockets
//!       └───────── blocks on a channel for the result <──────┘
//! ```
//! Not here: what is called. What holds: no caller's thread ever runs a future, so that a caller may itself be a thread of
//! somebody's runtime; nobody waits for the runtime's end.

use crate::error::{Error, Result};
use opendal::raw::BoxedStaticFuture;
use opendal::{Execute, Executor};
use std::fmt;
use std::sync::mpsc;
use tokio::runtime::{Builder, Handle};

/// Threads that move bytes between sockets and memory, and encrypt them for TLS.
const THREADS: usize = 2;

pub(super) struct Runtime(Option<tokio::runtime::Runtime>, Handle);

impl Runtime {
    pub(super) fn new() -> Result<Runtime> {
        let built =
            Builder::new_multi_thread().worker_threads(THREADS).thread_name("coffer-store").enable_all().build();
        let runtime = built.map_err(|e| Error::io("starting threads for the object store", e))?;
        let handle = runtime.handle().clone();
        Ok(Runtime(Some(runtime), handle))
    }

    /// Runs `work` on the runtime while this thread waits. `Internal`: it died.
    pub(super) fn call<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.1.spawn(async move {
            // Whoever asked waits for it; nobody is left to tell when that thread died.
            let _ = sender.send(work.await);
        });
        receiver.recv().map_err(|_| Error::internal("a call of the object store died"))
    }

    /// Begins `work`, which tells its result in its own way.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.1.spawn(work);
    }

    /// What OpenDAL runs its own tasks on.
    pub(super) fn executor(&self) -> Executor {
        Executor::with(Spawner(self.1.clone()))
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Runtime")
    }
}

struct Spawner(Handle);

impl Execute for Spawner {
    fn execute(&self, work: BoxedStaticFuture<()>) {
        self.0.spawn(work);
    }
}
