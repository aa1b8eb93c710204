//! The NBD protocol on the wire: numbers, and the encoding of every message, both directions, without any I/O.
//!
//! Not here: sockets, who may do what, what a request means for a device. What holds: everything is big-endian; a decoder
//! never panics and never allocates more than the bytes it was given; it answers `None` (or asks for more) when the
//! message is not whole yet and [`Kind::Invalid`](crate::Kind::Invalid) when no further byte could make it right.
//!
//! ```text
//!   handshake      greeting, client flags, options and their replies
//!   transmission   requests, simple replies, structured and extended reply chunks, and what chunks carry
//! ```

pub mod handshake;
pub mod transmission;

use crate::{Error, Result};

/// The largest string of the protocol in bytes: export names, context names, error messages.
pub const MAX_STRING: usize = 4096;

/// The payload that any server takes and any client may expect: 32 MiB.
pub const MAX_PAYLOAD: u32 = 32 << 20;

/// Transmission flags: what an export can do.
pub mod export_flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is understood.
    pub const FLUSH: u16 = 1 << 2;
    /// FUA is understood.
    pub const FUA: u16 = 1 << 3;
    /// TRIM is understood.
    pub const TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES is understood.
    pub const WRITE_ZEROES: u16 = 1 << 6;
    /// DF is understood.
    pub const DF: u16 = 1 << 7;
    /// A flush on one connection covers the finished writes of all.
    pub const MULTI_CONN: u16 = 1 << 8;
    /// CACHE is understood.
    pub const CACHE: u16 = 1 << 10;
    /// FAST_ZERO is understood.
    pub const FAST_ZERO: u16 = 1 << 11;
    /// BLOCK_STATUS may say which contexts are wanted.
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Errors as they travel: the numbers are the protocol's own, equal to Linux's by intent.
pub mod errno {
    /// The export is read-only.
    pub const EPERM: u32 = 1;
    /// The device failed.
    pub const EIO: u32 = 5;
    /// No memory.
    pub const ENOMEM: u32 = 12;
    /// The request is wrong.
    pub const EINVAL: u32 = 22;
    /// No space, or a write beyond the end.
    pub const ENOSPC: u32 = 28;
    /// Too much at once.
    pub const EOVERFLOW: u32 = 75;
    /// Not possible as asked (fast zeroes).
    pub const ENOTSUP: u32 = 95;
    /// The server is going down.
    pub const ESHUTDOWN: u32 = 108;
}

/// How requests and replies are laid out, as negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// Extended requests and replies: 64-bit lengths.
    Extended,
}

/// A cursor over received bytes; every read may find that bytes are missing.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Fields(bytes)
    }

    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string preceded by its 32-bit length.
    pub(crate) fn string(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.u32()?).ok()?;
        self.take(len)
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A protocol string as text: UTF-8, no NUL, at most [`MAX_STRING`] bytes.
pub(crate) fn text(bytes: &[u8], what: &str) -> Result<String> {
    match std::str::from_utf8(bytes) {
        Ok(s) if s.len() <= MAX_STRING && !s.contains('\0') => Ok(s.to_owned()),
        _ => Err(Error::invalid(format!("{what} is not UTF-8 text of at most {MAX_STRING} bytes without NUL"))),
    }
}

/// The length of something that was bounded when it was made, as the protocol's 32 bits.
pub(crate) fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
