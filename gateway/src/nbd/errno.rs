//! The edge between the error kinds of Coffer and the error numbers of NBD, both ways, in this one file.
//!
//! Not here: what an error is for an operating system or a SCSI initiator. What holds: damage is EIO and never anything
//! milder; a number that the protocol does not know is treated as EINVAL, as the protocol asks.

use super::proto::errno;
use crate::Kind;

/// What a server sends for an error of `kind`.
pub(crate) fn from_kind(kind: Kind) -> u32 {
    match kind {
        Kind::Corrupt
        | Kind::NotFound
        | Kind::WrongKey
        | Kind::Unavailable
        | Kind::Frozen
        | Kind::Overtaken
        | Kind::Locked
        | Kind::Internal => errno::EIO,
        Kind::Retained => errno::EPERM,
        Kind::Full => errno::ENOSPC,
        Kind::Cancelled => errno::ESHUTDOWN,
        Kind::Unsupported => errno::ENOTSUP,
        Kind::Invalid => errno::EINVAL,
    }
}

/// What a client makes of a server's error.
pub(crate) fn to_kind(error: u32) -> Kind {
    match error {
        errno::EIO | errno::ENOMEM | errno::ESHUTDOWN => Kind::Unavailable,
        errno::ENOSPC => Kind::Full,
        errno::EPERM | errno::ENOTSUP => Kind::Unsupported,
        _ => Kind::Invalid,
    }
}

/// The number's name, for messages.
pub(crate) fn name(error: u32) -> &'static str {
    match error {
        errno::EPERM => "EPERM (read-only)",
        errno::EIO => "EIO (input/output error)",
        errno::ENOMEM => "ENOMEM (no memory)",
        errno::EINVAL => "EINVAL (invalid request)",
        errno::ENOSPC => "ENOSPC (no space)",
        errno::EOVERFLOW => "EOVERFLOW (too large)",
        errno::ENOTSUP => "ENOTSUP (not supported)",
        errno::ESHUTDOWN => "ESHUTDOWN (the server is shutting down)",
        _ => "an unknown error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_an_input_output_error() {
        for kind in [Kind::Corrupt, Kind::NotFound, Kind::WrongKey] {
            assert_eq!(from_kind(kind), errno::EIO);
        }
    }

    #[test]
    fn what_a_client_may_branch_on_survives_the_wire() {
        for kind in [Kind::Full, Kind::Unsupported, Kind::Invalid, Kind::Unavailable] {
            assert_eq!(to_kind(from_kind(kind)), kind);
        }
    }
}
