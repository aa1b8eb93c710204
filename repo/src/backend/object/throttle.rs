//! How fast bytes go up or down, by the time of day: a bucket of tokens that all requests of one direction draw from.
//!
//! Not here: bodies ([`super::body`]). What holds: it never sleeps itself; over any stretch of time with one limit no more goes
//! through than the limit allows for it and the burst of [`crate::pace`].

use crate::backend::schedule::{MinuteOfDay, Schedule};
use crate::pace::Bucket;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

pub(super) struct Throttle {
    schedule: Schedule,
    minute: MinuteOfDay,
    bucket: Bucket,
}

impl Throttle {
    pub(super) fn new(schedule: Schedule, minute: MinuteOfDay) -> Arc<Throttle> {
        Arc::new(Throttle { schedule, minute, bucket: Bucket::new(Instant::now()) })
    }

    /// Whether there is no limit at any time.
    pub(super) fn is_unlimited(&self) -> bool {
        self.schedule.is_unlimited()
    }

    /// Takes so many bytes; until when to wait for it, if at all.
    pub(super) fn take(&self, bytes: u64) -> Option<Instant> {
        if self.schedule.is_unlimited() {
            return None;
        }
        let (rate, now) = (self.schedule.rate_at((self.minute)())?, Instant::now());
        Some(self.bucket.turn(bytes, rate, now)).filter(|until| *until > now)
    }
}

impl fmt::Debug for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.schedule.fmt(f)
    }
}
