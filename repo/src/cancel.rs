//! The explicit request to stop, handed down to everything that takes long and checked once per chunk or window.

use crate::error::{Error, Kind, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a sleep goes on before it is looked whether to stop.
const NAP: Duration = Duration::from_millis(50);

/// A flag that many share; once set it stays set.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks everybody who holds a copy to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sleeps until then. Fails with [`Kind::Cancelled`] once somebody asked, soon after that.
    pub(crate) fn sleep_until(&self, when: Instant) -> Result<()> {
        while let Some(left) = when.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.check()?;
            std::thread::sleep(left.min(NAP));
        }
        self.check()
    }

    /// Fails with [`Kind::Cancelled`] once somebody asked.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::new(Kind::Cancelled, "stopped on request")) } else { Ok(()) }
    }
}
