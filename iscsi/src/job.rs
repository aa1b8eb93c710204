//! A task on its way through the storage threads, and what comes back.
//!
//! Not here: the threads ([`Pool`](coffer_gateway::serving::Pool)), what a task does. What holds: every job comes back, with an outcome, a
//! device that panics included.

use crate::desk::Cost;
use crate::scsi::{Code, Fate, Key, Outcome, Sense, Status, Task};
use crate::session::Ticket;
use coffer_gateway::serving::{self, Buffer, Returns};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// A task to be run.
pub(crate) struct Job {
    pub(crate) ticket: Ticket,
    pub(crate) task: Task,
    /// What the initiator sent, and how much of it counts.
    pub(crate) data_out: Buffer,
    pub(crate) given: usize,
    /// Room for a header, and then what the task gives.
    pub(crate) data_in: Buffer,
    /// Set when nobody wants it any more.
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) cost: Cost,
    /// When it was whole.
    pub(crate) since: Instant,
    pub(crate) outcome: Outcome,
    /// Whether it most likely waits for nothing.
    pub(crate) is_swift: bool,
    /// Where it comes back to.
    pub(crate) returns: Arc<Returns<Done>>,
}

/// A task that ran.
pub(crate) struct Done {
    pub(crate) ticket: Ticket,
    pub(crate) task: Task,
    pub(crate) data_out: Buffer,
    pub(crate) data_in: Buffer,
    pub(crate) outcome: Outcome,
    pub(crate) cost: Cost,
    pub(crate) latency: Duration,
}

impl serving::Job for Job {
    type Done = Done;

    fn is_swift(&self) -> bool {
        self.is_swift
    }

    fn returns(&self) -> &Arc<Returns<Done>> {
        &self.returns
    }

    fn run(&mut self) {
        // What was aborted while it waited for a thread does not begin.
        if self.task.fate() != Fate::Free || self.stop.load(std::sync::atomic::Ordering::Acquire) {
            self.outcome = Outcome { status: Status::TaskAborted, sense: None };
            return;
        }
        let Job { task, data_out, given, data_in, stop, .. } = self;
        let data_out = data_out.filled().get(..*given).unwrap_or_default();
        self.outcome = data_in.lend(|place| task.run(data_out, place, stop));
    }

    fn finish(mut self, has_panicked: bool) -> Done {
        if has_panicked {
            self.outcome = Outcome::check(Sense::new(Key::HardwareError, Code::INTERNAL_FAILURE));
        }
        let Job { ticket, task, data_out, data_in, outcome, cost, .. } = self;
        Done { ticket, task, data_out, data_in, outcome, cost, latency: self.since.elapsed() }
    }
}
