//! How the program ends: what failed, how it is said, and the exit code. The one place where errors become either.
//!
//! | code | means |
//! |---|---|
//! | 0 | done |
//! | 1 | failed, and the one line on standard error says why |
//! | 2 | wrong use: nothing was tried |
//! | 3 | done with warnings: something was skipped or could not be read, and each was named |
//!
//! Not here: who prints warnings ([`crate::terminal`]). What holds: a reader of standard output that went away early (`head`) is
//! neither an error nor worth a word.

use coffer_repo::{Error, Kind};
use std::error::Error as _;
use std::io::{self, Write};
use std::process::ExitCode;

const FAILED: u8 = 1;
const WRONG_USE: u8 = 2;
const WARNED: u8 = 3;

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line, the environment or the configuration file asks for something that cannot be meant.
    WrongUse(String),
    /// It was tried and failed.
    Failed(Error),
    /// Standard output was closed by whoever read it.
    ReaderGone,
}

/// The result of every command.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Failed(error)
    }
}

impl Failure {
    /// As an error, for somebody else who asked for it.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Failure::Failed(error) => error,
            Failure::WrongUse(text) => Error::invalid(text),
            Failure::ReaderGone => Error::internal("there is no reader here"),
        }
    }
}

/// Wrong use, in words that say the right one.
pub(crate) fn wrong_use(text: impl Into<String>) -> Failure {
    Failure::WrongUse(text.into())
}

/// Says why a command failed, if it did; the code to exit with.
pub(crate) fn conclude(result: Result<()>, has_warned: bool) -> ExitCode {
    let (line, code) = match result {
        Ok(()) => return ExitCode::from(if has_warned { WARNED } else { 0 }),
        Err(Failure::ReaderGone) => return ExitCode::SUCCESS,
        Err(Failure::WrongUse(text)) => (format!("{text}\n(see 'coffer --help')"), WRONG_USE),
        Err(Failure::Failed(error)) => (describe(&error), FAILED),
    };
    // Nobody is left to tell when standard error is gone too.
    let _ = writeln!(io::stderr(), "coffer: {line}");
    ExitCode::from(code)
}

/// An error in one line: its context, its sources, and what to do where its kind alone tells that.
pub(crate) fn describe(error: &Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        line = format!("{line}: {source}");
        next = source.source();
    }
    match error.kind() {
        Kind::Internal => format!("{line} (this is a bug in coffer: please report it)"),
        // Their contexts name the way out themselves: only they know the object.
        Kind::NotFound
        | Kind::Corrupt
        | Kind::WrongKey
        | Kind::Locked
        | Kind::Retained
        | Kind::Full
        | Kind::Unavailable
        | Kind::Frozen
        | Kind::Overtaken
        | Kind::Cancelled
        | Kind::Unsupported
        | Kind::Invalid => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_with_all_its_sources() {
        let inner = Error::io("opening x", io::Error::from(io::ErrorKind::PermissionDenied));
        let outer = Error::invalid("backing up").with_source(inner);
        assert_eq!(describe(&outer), "backing up: opening x: permission denied");
        assert!(describe(&Error::internal("odd")).ends_with("please report it)"));
    }
}
