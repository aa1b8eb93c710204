//! What a server has to tell, at a bounded rate: a client that means harm makes errors as fast as it can send, and must not be
//! able to fill a log.
//!
//! Not here: who is told. What holds: at most [`PER_SECOND`] reports of a kind are passed on in a second; what was left out is
//! counted and told, as one report, when the second is over. The lock is held for a few additions.

use crate::{Error, Kind};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Who hears of errors that no caller sees: a device that failed under a request, a connection that could not be accepted.
/// Called on the server's threads: it must return soon. At most 10 of a kind come in a second, and a count of those left out.
pub type Report = Arc<dyn Fn(&Error) + Send + Sync>;

/// Reports of one kind that are passed on within a second.
const PER_SECOND: u32 = 10;

/// What limits the reports of one server.
pub struct Reports {
    server: &'static str,
    report: Report,
    start: Instant,
    windows: Mutex<HashMap<Kind, Window>>,
}

/// What was said of one kind in one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Window {
    second: u64,
    said: u32,
    left_out: u64,
}

impl Window {
    /// Whether one more may be said in `second`, and how many were left out before it that nobody was told of.
    fn admit(&mut self, second: u64) -> (bool, u64) {
        let left_out = self.settle(second);
        let may_be_said = self.said < PER_SECOND;
        if may_be_said {
            self.said += 1;
        } else {
            self.left_out = self.left_out.saturating_add(1);
        }
        (may_be_said, left_out)
    }

    /// How many were left out in a second that is over, to be told once.
    fn settle(&mut self, second: u64) -> u64 {
        if second == self.second {
            return 0;
        }
        let before = std::mem::replace(self, Window { second, said: 0, left_out: 0 });
        before.left_out
    }
}

impl Reports {
    /// For `server`, as people call it.
    #[must_use]
    pub fn new(server: &'static str, report: Report) -> Arc<Self> {
        Arc::new(Reports { server, report, start: Instant::now(), windows: Mutex::default() })
    }

    /// The same as one to call.
    #[must_use]
    pub fn as_report(self: &Arc<Self>) -> Report {
        let reports = Arc::clone(self);
        Arc::new(move |error| reports.tell(error))
    }

    fn tell(&self, error: &Error) {
        let second = self.start.elapsed().as_secs();
        let (may_be_said, left_out) = self.lock().entry(error.kind()).or_default().admit(second);
        self.confess(error.kind(), left_out);
        if may_be_said {
            (self.report)(error);
        }
    }

    /// Tells of what was left out in seconds that are over.
    pub fn settle(&self) {
        let second = self.start.elapsed().as_secs();
        let due: Vec<(Kind, u64)> =
            self.lock().iter_mut().map(|(kind, window)| (*kind, window.settle(second))).collect();
        due.into_iter().for_each(|(kind, left_out)| self.confess(kind, left_out));
    }

    fn confess(&self, kind: Kind, left_out: u64) {
        if left_out > 0 {
            let text = format!("{}: {left_out} more reports of this kind were left out", self.server);
            (self.report)(&Error::new(kind, text));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Kind, Window>> {
        // Nothing that can panic runs under the lock.
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_ten_and_the_rest_is_counted() {
        let mut window = Window::default();
        let said = (0..1000).filter(|_| window.admit(0).0).count();
        assert_eq!(said, 10);
        assert_eq!(window.settle(0), 0, "the second is not over");
        assert_eq!(window.admit(1), (true, 990));
        assert_eq!(window.settle(2), 0, "what was told is not told again");
        assert_eq!(window.admit(2), (true, 0));
    }

    #[test]
    fn a_flood_of_one_kind_hides_no_other() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&heard);
        let reports =
            Reports::new("a server", Arc::new(move |e: &Error| sink.lock().unwrap().push((e.kind(), e.to_string()))));
        let report = reports.as_report();
        for i in 0..5000 {
            report(&Error::new(Kind::Unavailable, format!("flood {i}")));
        }
        report(&Error::corrupt("precious"));
        let floods = heard.lock().unwrap().iter().filter(|(_, text)| text.starts_with("flood")).count();
        assert!((10..5000).contains(&floods), "{floods}");
        assert!(heard.lock().unwrap().iter().any(|(kind, _)| *kind == Kind::Corrupt));
    }
}
