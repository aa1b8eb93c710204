//! SIGINT and SIGTERM: the first asks for an orderly end, the second ends the program at once. SIGHUP: for who wants it, a wish to
//! read the configuration again.
//!
//! Not here: what an orderly end is. What holds: the end is asked for before it is announced.

use crate::terminal::Terminal;
use coffer_repo::cancel::Cancel;
use coffer_repo::{Error, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

/// A flag that the first signal sets.
pub(crate) fn cancel(terminal: &Arc<Terminal>) -> Result<Cancel> {
    let cancel = Cancel::default();
    let flag = cancel.clone();
    on_first(terminal, &[], move |_| flag.cancel())?;
    Ok(cancel)
}

/// What receives once the first signal came.
pub(crate) fn stopped(terminal: &Arc<Terminal>) -> Result<Receiver<()>> {
    let (stop, stopped) = channel();
    on_first(terminal, &[], move |_| {
        // Whoever does not receive any more is ending anyway.
        let _ = stop.send(());
    })?;
    Ok(stopped)
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Stop,
    Reload,
}

/// Tells of every SIGHUP, and of the first signal that ends the program; `tell` returns at once.
pub(crate) fn wishes(terminal: &Arc<Terminal>, tell: impl Fn(Wish) + Send + 'static) -> Result<()> {
    on_first(terminal, &[SIGHUP], move |signal| tell(if signal == SIGHUP { Wish::Reload } else { Wish::Stop }))
}

/// Calls `tell`, which returns at once, at the first signal that ends the program, and at each one of `others`.
fn on_first(terminal: &Arc<Terminal>, others: &'static [i32], tell: impl Fn(i32) + Send + 'static) -> Result<()> {
    let all = [SIGINT, SIGTERM].iter().chain(others);
    let mut signals = Signals::new(all).map_err(|e| Error::io("listening for signals", e))?;
    let terminal = Arc::clone(terminal);
    let mut is_ending = false;
    let listen = move || {
        for signal in signals.forever() {
            if others.contains(&signal) {
                tell(signal);
            } else if is_ending {
                // Does not return, unless the signal has no default: these have.
                let _ = emulate_default_handler(signal);
            } else {
                is_ending = true;
                tell(signal);
                terminal.notice("stopping; a second signal ends at once");
            }
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(listen)
        .map_err(|e| Error::io("starting the thread that listens for signals", e))?;
    Ok(())
}
