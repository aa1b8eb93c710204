//! SIGINT and SIGTERM: the first asks for an orderly end, the second ends the program at once.
//!
//! Not here: what an orderly end is. What holds: the end is asked for before it is announced.

use crate::terminal::Terminal;
use coffer_repo::cancel::Cancel;
use coffer_repo::{Error, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

/// A flag that the first signal sets.
pub(crate) fn cancel(terminal: &Arc<Terminal>) -> Result<Cancel> {
    let cancel = Cancel::default();
    let flag = cancel.clone();
    on_first(terminal, move || flag.cancel())?;
    Ok(cancel)
}

/// What receives once the first signal came.
pub(crate) fn stopped(terminal: &Arc<Terminal>) -> Result<Receiver<()>> {
    let (stop, stopped) = channel();
    on_first(terminal, move || {
        // Whoever does not receive any more is ending anyway.
        let _ = stop.send(());
    })?;
    Ok(stopped)
}

/// Calls `end`, which returns at once, at the first signal.
fn on_first(terminal: &Arc<Terminal>, end: impl FnOnce() + Send + 'static) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(|e| Error::io("listening for signals", e))?;
    let terminal = Arc::clone(terminal);
    let mut end = Some(end);
    let listen = move || {
        for signal in signals.forever() {
            match end.take() {
                Some(end) => {
                    end();
                    terminal.notice("stopping; a second signal ends at once");
                }
                None => {
                    // Does not return, unless the signal has no default: these have.
                    let _ = emulate_default_handler(signal);
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(listen)
        .map_err(|e| Error::io("starting the thread that listens for signals", e))?;
    Ok(())
}
