//! The error of the repository room: a closed kind for decisions, a context for people, a source for the curious.
//!
//! Not here: how an error is shown or turned into an exit code, an NBD errno or a FUSE errno; each edge converts in one
//! file of its own. What holds: [`Kind::Corrupt`] never becomes [`Kind::NotFound`] or zeroes; no key material is ever
//! put into a context.

use std::error::Error as StdError;
use std::fmt;

/// What went wrong, as far as a program may branch on it. Closed on purpose: a new kind breaks every edge that converts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The named thing does not exist.
    NotFound,
    /// Stored bytes are not what was written: truncated, flipped, forged or missing under a committed snapshot.
    Corrupt,
    /// No key slot opens with this passphrase or key file, or the bundle lacks the key that is needed.
    WrongKey,
    /// Somebody else holds it: a lock, a name, a state directory.
    Locked,
    /// A retention rule, pin or protection forbids it.
    Retained,
    /// No space, or a quota is reached.
    Full,
    /// It may work later: an I/O error, a timeout, a store that does not answer.
    Unavailable,
    /// It lies in a cold tier, and has to be thawed before it can be read.
    Frozen,
    /// What the work relied on went meanwhile, as a collector or janitor may have it; begun again, it does not rely on that.
    Overtaken,
    /// The caller asked to stop.
    Cancelled,
    /// This version cannot do it, by name of what it lacks.
    Unsupported,
    /// The caller's input is wrong.
    Invalid,
    /// A bug in Coffer.
    Internal,
}

impl Kind {
    /// Whether the same call may succeed later without anybody changing anything. The only retry decision there is.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self, Kind::Unavailable)
    }
}

/// The result of everything in this room.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error: kind, context (object, offset, operation) and source.
pub struct Error {
    kind: Kind,
    context: String,
    source: Option<Box<dyn StdError + Send + Sync + 'static>>,
}

impl Error {
    /// An error of `kind`; `context` says what was attempted on which object, and the way out where there is one.
    pub fn new(kind: Kind, context: impl Into<String>) -> Self {
        Error { kind, context: context.into(), source: None }
    }

    /// The same with the error that caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Puts `context` before what is there already, keeping kind and source: "reading disk 0: object x is truncated".
    #[must_use]
    pub fn within(mut self, context: impl fmt::Display) -> Self {
        self.context = format!("{context}: {}", self.context);
        self
    }

    /// The same error under another kind, for the one who knows better what it means.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// What a program may branch on.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What was attempted, without the source.
    #[must_use]
    pub fn context(&self) -> &str {
        &self.context
    }

    /// Stored bytes are wrong.
    pub fn corrupt(context: impl Into<String>) -> Self {
        Error::new(Kind::Corrupt, context)
    }

    /// The caller's input is wrong.
    pub fn invalid(context: impl Into<String>) -> Self {
        Error::new(Kind::Invalid, context)
    }

    /// The named thing does not exist.
    pub fn not_found(context: impl Into<String>) -> Self {
        Error::new(Kind::NotFound, context)
    }

    /// A bug in Coffer.
    pub fn internal(context: impl Into<String>) -> Self {
        Error::new(Kind::Internal, context)
    }

    /// An operating-system error while doing `context`.
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        use std::io::ErrorKind as E;
        let kind = match source.kind() {
            E::NotFound => Kind::NotFound,
            E::StorageFull | E::QuotaExceeded | E::FileTooLarge => Kind::Full,
            E::PermissionDenied | E::ReadOnlyFilesystem | E::InvalidInput | E::InvalidFilename => Kind::Invalid,
            E::Unsupported => Kind::Unsupported,
            _ => Kind::Unavailable,
        };
        Error::new(kind, context).with_source(source)
    }

    /// A copy that can be handed to every waiter of one failed fetch; the source is kept as its text.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Error {
            kind: self.kind,
            context: self.context.clone(),
            source: self.source.as_ref().map(|s| s.to_string().into()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.context)?;
        let mut next = self.source();
        while let Some(e) = next {
            write!(f, ": {e}")?;
            next = e.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}
