//! The one place where an error becomes a FUSE errno.

use crate::Kind;
use fuser::Errno;

/// The errno the kernel hands to the program that called. `EAGAIN` is never used: file readers do not expect it.
pub(crate) fn errno(kind: Kind) -> Errno {
    match kind {
        Kind::NotFound => Errno::ENOENT,
        Kind::Corrupt | Kind::Unavailable | Kind::Frozen | Kind::Overtaken | Kind::Internal => Errno::EIO,
        Kind::WrongKey => Errno::EACCES,
        Kind::Locked => Errno::EBUSY,
        Kind::Retained => Errno::EPERM,
        Kind::Full => Errno::ENOSPC,
        Kind::Cancelled => Errno::EINTR,
        Kind::Unsupported => Errno::EOPNOTSUPP,
        Kind::Invalid => Errno::EINVAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_an_io_error_and_never_a_missing_file() {
        assert_eq!(errno(Kind::Corrupt).code(), Errno::EIO.code());
        assert_ne!(errno(Kind::Unavailable).code(), Errno::ENOENT.code());
    }
}
