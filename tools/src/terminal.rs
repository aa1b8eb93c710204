//! Progress, notices and warnings: to standard error, or to whoever asked for an errand.
//!
//! Not here: results, which go to standard output ([`crate::output`]), and the last line of a failure ([`crate::exit`]). What
//! holds: nothing but this file and that line writes to standard error; on a terminal progress is a bar that moves, elsewhere
//! a line now and then; a warning makes the program end with an exit code of its own.

use coffer_gateway::control::{Stride, Word};
use coffer_repo::Result;
use indicatif::{BinaryBytes, HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Between two looks at the work on a terminal.
const FRAME: Duration = Duration::from_millis(150);
/// Between two lines elsewhere.
const LINE: Duration = Duration::from_secs(5);
/// Between two strides that somebody else is told: also how soon it is noticed that nobody listens.
const STRIDE: Duration = Duration::from_millis(250);

/// What work is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Bytes.
    Bytes,
    /// Things.
    Count,
}

/// How far work has come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    /// Done so far.
    pub(crate) done: u64,
    /// Of so much; `None` where nobody knows yet.
    pub(crate) total: Option<u64>,
    /// A few more words.
    pub(crate) note: String,
}

/// Whoever is told instead of standard error.
type Listener = Box<dyn Fn(Word) + Send + Sync>;

impl Sample {
    fn stride(self, title: &str, unit: Unit) -> Stride {
        let Sample { done, total, note } = self;
        Stride { title: title.to_owned(), is_in_bytes: unit == Unit::Bytes, done, total, note }
    }
}

/// Standard error, and what was said there.
pub(crate) struct Terminal {
    listener: Option<Listener>,
    is_quiet: bool,
    is_terminal: bool,
    /// The bar that stands on the terminal now: other lines go above it.
    bar: Mutex<Option<ProgressBar>>,
    warnings: Mutex<Vec<String>>,
}

impl Terminal {
    /// A quiet one shows no progress.
    pub(crate) fn new(is_quiet: bool) -> Terminal {
        let is_terminal = io::stderr().is_terminal();
        Terminal { listener: None, is_quiet, is_terminal, bar: Mutex::default(), warnings: Mutex::default() }
    }

    /// One that tells somebody else instead of standard error.
    pub(crate) fn told(listener: impl Fn(Word) + Send + Sync + 'static) -> Terminal {
        Terminal { listener: Some(Box::new(listener)), is_terminal: false, ..Terminal::new(false) }
    }

    /// Says something that is worth knowing and needs no action.
    pub(crate) fn notice(&self, text: impl Display) {
        match &self.listener {
            Some(tell) => tell(Word::Notice(text.to_string())),
            None => self.line(&format!("coffer: {text}")),
        }
    }

    /// Says that something was skipped, or could not be had.
    pub(crate) fn warn(&self, text: impl Display) {
        let text = text.to_string();
        match &self.listener {
            Some(tell) => tell(Word::Warning(text.clone())),
            None => self.line(&format!("coffer: warning: {text}")),
        }
        lock(&self.warnings).push(text);
    }

    /// All warnings so far.
    pub(crate) fn warnings(&self) -> Vec<String> {
        lock(&self.warnings).clone()
    }

    /// Whether there was a warning.
    pub(crate) fn has_warned(&self) -> bool {
        !lock(&self.warnings).is_empty()
    }

    /// Does `work`, and meanwhile shows how far it is.
    pub(crate) fn during<T>(
        &self,
        title: &str,
        unit: Unit,
        sample: &(dyn Fn() -> Sample + Sync),
        work: impl FnOnce() -> T,
    ) -> T {
        self.watch(&|| sample().stride(title, unit), work)
    }

    /// Shows what somebody else tells of work that is done there; `work` is handed what takes each word.
    pub(crate) fn relay<T>(&self, title: &str, work: impl FnOnce(&mut dyn FnMut(Word)) -> T) -> T {
        let last = Mutex::new(Stride { title: title.to_owned(), ..Stride::default() });
        self.watch(&|| lock(&last).clone(), || {
            work(&mut |word| match word {
                Word::Stride(stride) => *lock(&last) = stride,
                Word::Notice(text) => self.notice(text),
                Word::Warning(text) => self.warn(text),
                // They are what the work comes to.
                Word::Done(_) | Word::Failed(_) => {}
            })
        })
    }

    /// Does `work`, and meanwhile shows the stride that it is in.
    fn watch<T>(&self, stride: &(dyn Fn() -> Stride + Sync), work: impl FnOnce() -> T) -> T {
        if self.is_quiet {
            return work();
        }
        let meter = Meter::new(self.is_terminal);
        if self.is_terminal {
            *lock(&self.bar) = Some(meter.bar.clone());
        }
        let result = std::thread::scope(|scope| {
            let (alive, ended) = channel::<()>();
            scope.spawn(|| {
                let ended = ended;
                let pause = match &self.listener {
                    Some(_) => STRIDE,
                    None if self.is_terminal => FRAME,
                    None => LINE,
                };
                while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                    let stride = stride();
                    if let Some(tell) = &self.listener {
                        tell(Word::Stride(stride));
                        continue;
                    }
                    meter.update(&stride);
                    if !self.is_terminal {
                        self.line(&meter.line(&stride));
                    }
                }
            });
            let result = work();
            drop(alive);
            result
        });
        lock(&self.bar).take();
        meter.bar.finish_and_clear();
        result
    }

    /// As [`Terminal::during`] for work that says itself how many of how many it has done.
    pub(crate) fn counting<T>(&self, title: &str, work: impl FnOnce(&mut dyn FnMut(u64, u64) -> Result<()>) -> T) -> T {
        let (done, total) = (AtomicU64::new(0), AtomicU64::new(0));
        let sample = || Sample {
            done: done.load(Ordering::Relaxed),
            total: Some(total.load(Ordering::Relaxed)),
            note: String::new(),
        };
        self.during(title, Unit::Count, &sample, || {
            work(&mut |now_done, now_total| {
                done.store(now_done, Ordering::Relaxed);
                total.store(now_total, Ordering::Relaxed);
                Ok(())
            })
        })
    }

    /// Writes a line; above the bar where there is one.
    fn line(&self, text: &str) {
        // When standard error is closed there is nobody to tell.
        let write = || drop(writeln!(io::stderr(), "{text}"));
        match &*lock(&self.bar) {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

/// Work on show. The bar also measures the rate where it is not drawn.
struct Meter {
    bar: ProgressBar,
}

impl Meter {
    fn new(is_drawn: bool) -> Self {
        let target = if is_drawn { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Meter { bar: ProgressBar::with_draw_target(None, target) }
    }

    fn update(&self, stride: &Stride) {
        let template = match (stride.is_in_bytes, stride.total) {
            (true, Some(_)) => {
                "{prefix} [{bar:24}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left{msg}"
            }
            (true, None) => "{prefix} {spinner} {binary_bytes}, {binary_bytes_per_sec}{msg}",
            (false, Some(_)) => "{prefix} [{bar:24}] {human_pos} of {human_len}, {eta} left{msg}",
            (false, None) => "{prefix} {spinner} {human_pos}{msg}",
        };
        // The templates are constants; one that does not parse leaves the bar as it was.
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("=> "));
        }
        match stride.total {
            Some(total) => self.bar.set_length(total),
            None => self.bar.unset_length(),
        }
        self.bar.set_prefix(stride.title.clone());
        self.bar.set_message(if stride.note.is_empty() { String::new() } else { format!("; {}", stride.note) });
        self.bar.set_position(stride.done);
    }

    /// The same for a log.
    fn line(&self, stride: &Stride) -> String {
        let amount = |n: u64| match stride.is_in_bytes {
            true => BinaryBytes(n).to_string(),
            false => HumanCount(n).to_string(),
        };
        let mut line = format!("{}: {}", stride.title, amount(stride.done));
        if let Some(total) = stride.total.filter(|total| *total > 0) {
            let percent = stride.done.min(total).saturating_mul(100) / total;
            line += &format!(" of {} ({percent}%)", amount(total));
        }
        if stride.is_in_bytes {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate for people")]
            let rate = self.bar.per_sec().max(0.0) as u64;
            line += &format!(", {}/s", BinaryBytes(rate));
        }
        if stride.total.is_some() && stride.done > 0 {
            line += &format!(", {} left", HumanDuration(self.bar.eta()));
        }
        if stride.note.is_empty() { line } else { format!("{line}; {}", stride.note) }
    }
}

/// What is guarded is whole at any time, so that a thread that died is no reason to be silent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_kept_in_order() {
        let terminal = Terminal::new(true);
        terminal.warn("first");
        terminal.notice("no warning");
        terminal.warn("second");
        assert_eq!(terminal.warnings(), ["first", "second"]);
    }

    #[test]
    fn a_line_of_progress_says_how_much_of_how_much() {
        let meter = Meter::new(false);
        let sample = Sample { done: 512 << 20, total: Some(2 << 30), note: "1 unreadable".into() };
        let stride = sample.stride("reading", Unit::Bytes);
        meter.update(&stride);
        let line = meter.line(&stride);
        assert!(line.starts_with("reading: 512.00 MiB of 2.00 GiB (25%)"), "{line}");
        assert!(line.ends_with("; 1 unreadable"), "{line}");

        let unknown = Sample { done: 3, total: None, note: String::new() };
        assert_eq!(Meter::new(false).line(&unknown.stride("learning", Unit::Count)), "learning: 3");
    }

    #[test]
    fn what_is_told_to_somebody_else_is_relayed_there() {
        let (words, told) = channel();
        let away = Terminal::told(move |word| drop(words.send(word)));
        away.warn("torn");
        away.notice("begun");
        let sample = || Sample { done: 1, total: None, note: String::new() };
        let told = away.during("committing", Unit::Bytes, &sample, || {
            told.recv().into_iter().chain(told.recv()).chain(told.recv()).collect::<Vec<_>>()
        });
        assert!(matches!(&told[2], Word::Stride(stride) if stride.title == "committing" && stride.is_in_bytes));
        let here = Terminal::new(true);
        here.relay("waiting", |tell| told.into_iter().for_each(tell));
        assert_eq!((here.warnings(), away.warnings()), (vec!["torn".to_owned()], vec!["torn".to_owned()]));
    }

    #[test]
    fn work_that_counts_returns_its_result() {
        let terminal = Terminal::new(false);
        let result = terminal.counting("counting", |progress| progress(1, 2).map(|()| 7));
        assert_eq!(result.unwrap(), 7);
    }
}
