//! A request on its way through the storage threads, and what comes back.
//!
//! Not here: the threads ([`Pool`](crate::serving::Pool)), what a request does. What holds: every job comes back, a device that panics
//! included: its client gets an error.

use super::super::proto::errno;
use super::super::proto::transmission::Request;
use super::reply;
use super::session::Session;
use crate::serving::{self, Buffer, Returns};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A request to be executed.
pub(super) struct Job {
    pub(super) session: Arc<Session>,
    pub(super) request: Request,
    /// The payload of a write; becomes the reply.
    pub(super) buffer: Buffer,
    /// Where the reply goes.
    pub(super) returns: Arc<Returns<Done>>,
    /// Whether it most likely waits for nothing.
    pub(super) is_swift: bool,
    /// When the request was whole.
    pub(super) since: Instant,
    /// Whether it went well.
    pub(super) is_well: bool,
}

/// An executed request.
pub(super) struct Done {
    pub(super) request: Request,
    pub(super) reply: Buffer,
    /// Whether it went well.
    pub(super) is_well: bool,
    /// From when the request was whole.
    pub(super) latency: Duration,
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
        self.is_well = self.session.execute(&self.request, &mut self.buffer);
    }

    fn finish(mut self, has_panicked: bool) -> Done {
        if has_panicked {
            self.buffer.truncate(0);
            reply::error(self.session.framing, &self.request, errno::EIO, "the server failed", &mut self.buffer);
        }
        let latency = self.since.elapsed();
        Done { request: self.request, reply: self.buffer, is_well: self.is_well, latency }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Result;
    use crate::device::{BlockDevice, Extent};
    use crate::export::{Export, Taken};
    use crate::nbd::proto::Framing;
    use crate::nbd::proto::transmission::{Reply, command};
    use crate::serving::Pool;
    use std::ops::Range;
    use std::task::{Context, Waker};

    /// A device with a bug.
    struct Buggy;

    impl BlockDevice for Buggy {
        fn size(&self) -> u64 {
            512
        }

        fn block_size(&self) -> u32 {
            512
        }

        fn is_read_only(&self) -> bool {
            true
        }

        fn read_at(&self, offset: u64, _out: &mut [u8]) -> Result<()> {
            panic!("a bug at {offset}, on purpose")
        }

        fn try_read_at(&self, _offset: u64, _out: &mut [u8]) -> Result<bool> {
            Ok(false)
        }

        fn extents(&self, _range: Range<u64>, _max: usize) -> Result<Vec<Extent>> {
            Ok(Vec::new())
        }
    }

    fn job(cookie: u64, returns: &Arc<Returns<Done>>) -> Job {
        let device = Arc::new(Buggy);
        let export = Taken::new(Arc::new(Export::new("x", device)));
        let session = Session { export, framing: Framing::Simple, contexts: Vec::new(), report: None };
        Job {
            session: Arc::new(session),
            request: Request { flags: 0, command: command::READ, cookie, offset: 0, length: 1 },
            buffer: Buffer::default(),
            returns: Arc::clone(returns),
            is_swift: false,
            since: Instant::now(),
            is_well: false,
        }
    }

    #[test]
    fn a_device_that_panics_fails_its_request_and_no_thread() {
        let pool = Pool::start("nbd", 1).unwrap();
        let (returns, mut replies) = (Arc::default(), Vec::new());
        for cookie in 0..3 {
            pool.submit(cookie, [job(cookie, &returns)]);
        }
        drop(pool);
        assert!(returns.fetch(&mut Context::from_waker(Waker::noop()), &mut replies).is_ready());
        for (cookie, Done { request, reply, is_well, .. }) in (0..).zip(&replies) {
            assert_eq!((request.cookie, *is_well), (cookie, false));
            assert_eq!(reply.filled(), Reply::encode_simple(errno::EIO, cookie));
        }
        assert_eq!(replies.len(), 3);
    }
}
