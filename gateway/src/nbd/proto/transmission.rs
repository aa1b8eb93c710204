//! The transmission phase on the wire: requests, replies, and what reply chunks carry.
//!
//! ```text
//! compact request   u32 25609513  u16 flags  u16 command  u64 cookie              u64 offset  u32 length  [payload]
//! extended request  u32 21e41c71  u16 flags  u16 command  u64 cookie              u64 offset  u64 length  [payload]
//! simple reply      u32 67446698  u32 error               u64 cookie                                      [data]
//! structured chunk  u32 668e33ef  u16 flags  u16 type     u64 cookie                          u32 length  payload
//! extended chunk    u32 6e8a278c  u16 flags  u16 type     u64 cookie              u64 offset  u64 length  payload
//! ```
//! Not here: which reply is right. What holds: see the parent module.

use super::{Fields, Framing, len32};
use crate::{Error, Result};

const REQUEST_MAGIC: u32 = 0x2560_9513;
const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Command numbers.
pub mod command {
    /// Fetch bytes.
    pub const READ: u16 = 0;
    /// Store bytes.
    pub const WRITE: u16 = 1;
    /// Say good-bye; has no reply.
    pub const DISC: u16 = 2;
    /// Make finished writes durable.
    pub const FLUSH: u16 = 3;
    /// The range is not needed any more.
    pub const TRIM: u16 = 4;
    /// The range will be needed soon.
    pub const CACHE: u16 = 5;
    /// Make the range read as zeroes.
    pub const WRITE_ZEROES: u16 = 6;
    /// What is the range?
    pub const BLOCK_STATUS: u16 = 7;

    /// The command's name, for messages.
    #[must_use]
    pub fn name(command: u16) -> &'static str {
        match command {
            READ => "read",
            WRITE => "write",
            DISC => "disconnect",
            FLUSH => "flush",
            TRIM => "trim",
            CACHE => "cache",
            WRITE_ZEROES => "write zeroes",
            BLOCK_STATUS => "block status",
            _ => "unknown command",
        }
    }
}

/// Flags of a request.
pub mod command_flag {
    /// Durable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// Zeroes must stay allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// One content chunk at most.
    pub const DF: u16 = 1 << 2;
    /// One extent per context.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Fail rather than be as slow as writing.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// Extended headers: the length counts a payload that follows.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Types of reply chunks.
pub mod chunk {
    /// The last chunk has this flag.
    pub const FLAG_DONE: u16 = 1 << 0;
    /// Nothing but "done".
    pub const NONE: u16 = 0;
    /// Bytes at an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeroes at an offset.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of one context.
    pub const BLOCK_STATUS: u16 = 5;
    /// The same with 64-bit lengths and flags.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// All types with this bit are errors and begin alike.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// The request failed.
    pub const ERROR: u16 = ERROR_BIT | 1;
}

/// The status bit of a context `coffer:changed:POINT`.
pub mod changed {
    /// May differ from that point.
    pub const CHANGED: u64 = 1 << 0;
}

/// Status bits of the context `base:allocation`.
pub mod allocation {
    /// Takes no space.
    pub const HOLE: u64 = 1 << 0;
    /// Reads as zeroes.
    pub const ZERO: u64 = 1 << 1;
}

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// [`command_flag`]s.
    pub flags: u16,
    /// A [`command`].
    pub command: u16,
    /// The client's name for it; comes back in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Number of bytes; 32 bits unless the headers are extended.
    pub length: u64,
}

impl Request {
    /// Bytes of a request's header.
    #[must_use]
    pub const fn wire_len(framing: Framing) -> usize {
        match framing {
            Framing::Simple | Framing::Structured => 28,
            Framing::Extended => 32,
        }
    }

    /// Appends the header. A length that does not fit is `Invalid`.
    pub fn encode(&self, framing: Framing, out: &mut Vec<u8>) -> Result<()> {
        let extended = framing == Framing::Extended;
        let magic = if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        let short = u32::try_from(self.length);
        if !extended && short.is_err() {
            return Err(Error::invalid(format!("a request for {} bytes needs extended headers", self.length)));
        }
        out.extend(magic.to_be_bytes());
        out.extend(self.flags.to_be_bytes());
        out.extend(self.command.to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        out.extend(self.offset.to_be_bytes());
        match short {
            Ok(length) if !extended => out.extend(length.to_be_bytes()),
            _ => out.extend(self.length.to_be_bytes()),
        }
        Ok(())
    }

    /// The header at the start of `bytes`, which takes [`Request::wire_len`] of them; `None` when there are fewer.
    pub fn decode(framing: Framing, bytes: &[u8]) -> Result<Option<Request>> {
        let mut f = Fields::new(bytes);
        let extended = framing == Framing::Extended;
        let due = if extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        let Some(magic) = f.u32() else { return Ok(None) };
        if magic != due {
            return Err(Error::invalid(format!("a request begins with {magic:08x} where {due:08x} is due")));
        }
        Ok((|| {
            Some(Request {
                flags: f.u16()?,
                command: f.u16()?,
                cookie: f.u64()?,
                offset: f.u64()?,
                length: if extended { f.u64()? } else { f.u32()?.into() },
            })
        })())
    }
}

/// A reply's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A simple reply; the data of a successful read follow.
    Simple {
        /// An [`errno`](super::errno), 0 for success.
        error: u32,
        /// The request's.
        cookie: u64,
    },
    /// One chunk; `length` bytes follow.
    Chunk {
        /// [`chunk::FLAG_DONE`] or nothing.
        flags: u16,
        /// A [`chunk`] type.
        kind: u16,
        /// The request's.
        cookie: u64,
        /// The request's offset; on the wire with extended headers only, else 0.
        offset: u64,
        /// Bytes of payload.
        length: u64,
    },
}

impl Reply {
    /// Bytes of a simple reply's header.
    pub const SIMPLE_LEN: usize = 16;

    /// Bytes of a chunk's header; with [`Framing::Simple`], of a simple reply's.
    #[must_use]
    pub const fn wire_len(framing: Framing) -> usize {
        match framing {
            Framing::Simple => Self::SIMPLE_LEN,
            Framing::Structured => 20,
            Framing::Extended => 32,
        }
    }

    /// A simple reply.
    #[must_use]
    pub fn encode_simple(error: u32, cookie: u64) -> [u8; Self::SIMPLE_LEN] {
        let mut out = [0; Self::SIMPLE_LEN];
        put(&mut out, &[&SIMPLE_REPLY_MAGIC.to_be_bytes(), &error.to_be_bytes(), &cookie.to_be_bytes()]);
        out
    }

    /// Writes the header of a chunk into `out`, which has [`Reply::wire_len`] bytes. `offset` is the request's.
    pub fn encode_chunk(head: ChunkHead, length: usize, out: &mut [u8]) {
        let ChunkHead { framing, flags, kind, cookie, offset } = head;
        let (flags, kind, cookie) = (flags.to_be_bytes(), kind.to_be_bytes(), cookie.to_be_bytes());
        match framing {
            Framing::Extended => {
                let magic = EXTENDED_REPLY_MAGIC.to_be_bytes();
                let length = (length as u64).to_be_bytes();
                put(out, &[&magic, &flags, &kind, &cookie, &offset.to_be_bytes(), &length]);
            }
            Framing::Simple | Framing::Structured => {
                let magic = STRUCTURED_REPLY_MAGIC.to_be_bytes();
                put(out, &[&magic, &flags, &kind, &cookie, &len32(length).to_be_bytes()]);
            }
        }
    }

    /// The header at the start of `bytes` and its length; `None` when it is not whole. With structured framing a server may
    /// still send simple replies, with extended framing it may not.
    pub fn decode(framing: Framing, bytes: &[u8]) -> Result<Option<(Reply, usize)>> {
        let mut f = Fields::new(bytes);
        let Some(magic) = f.u32() else { return Ok(None) };
        let reply = match (magic, framing) {
            (SIMPLE_REPLY_MAGIC, Framing::Simple | Framing::Structured) => {
                (|| Some((Reply::Simple { error: f.u32()?, cookie: f.u64()? }, Self::SIMPLE_LEN)))()
            }
            (STRUCTURED_REPLY_MAGIC, Framing::Structured) | (EXTENDED_REPLY_MAGIC, Framing::Extended) => (|| {
                let (flags, kind, cookie) = (f.u16()?, f.u16()?, f.u64()?);
                let (offset, length) = match framing {
                    Framing::Extended => (f.u64()?, f.u64()?),
                    Framing::Simple | Framing::Structured => (0, f.u32()?.into()),
                };
                Some((Reply::Chunk { flags, kind, cookie, offset, length }, Self::wire_len(framing)))
            })(
            ),
            _ => {
                return Err(Error::invalid(format!(
                    "a reply begins with {magic:08x}, which is none of the negotiated kind"
                )));
            }
        };
        Ok(reply)
    }
}

/// What all chunks of one reply have in common, for [`Reply::encode_chunk`].
#[derive(Clone, Copy, Debug)]
pub struct ChunkHead {
    /// Structured or extended.
    pub framing: Framing,
    /// [`chunk::FLAG_DONE`] or nothing.
    pub flags: u16,
    /// A [`chunk`] type.
    pub kind: u16,
    /// The request's.
    pub cookie: u64,
    /// The request's.
    pub offset: u64,
}

/// Lays `parts` end to end into `out`, as far as it reaches.
fn put(out: &mut [u8], parts: &[&[u8]]) {
    for (to, from) in out.iter_mut().zip(parts.iter().copied().flatten()) {
        *to = *from;
    }
}

/// Bytes before the data of an OFFSET_DATA chunk.
pub const OFFSET_DATA_PREFIX: usize = 8;

/// Payload of an OFFSET_HOLE chunk.
#[must_use]
pub fn encode_hole(offset: u64, length: u32) -> [u8; 12] {
    let mut out = [0; 12];
    put(&mut out, &[&offset.to_be_bytes(), &length.to_be_bytes()]);
    out
}

/// The same read: offset and length.
pub fn decode_hole(payload: &[u8]) -> Result<(u64, u32)> {
    let mut f = Fields::new(payload);
    match (f.u64(), f.u32(), f.is_empty()) {
        (Some(offset), Some(length), true) => Ok((offset, length)),
        _ => Err(Error::invalid(format!("a hole chunk of {} bytes where 12 are due", payload.len()))),
    }
}

/// Payload of an error chunk. The message is cut to what fits.
#[must_use]
pub fn encode_error(error: u32, message: &str) -> Vec<u8> {
    let mut cut = message.len().min(256);
    while !message.is_char_boundary(cut) {
        cut -= 1;
    }
    let message = message.as_bytes().get(..cut).unwrap_or_default();
    let mut out = Vec::with_capacity(6 + message.len());
    out.extend(error.to_be_bytes());
    out.extend(u16::try_from(message.len()).unwrap_or(0).to_be_bytes());
    out.extend(message);
    out
}

/// The same read: the number and the message. What follows the message (an offset) is left alone, as every error type may
/// have more there.
pub fn decode_error(payload: &[u8]) -> Result<(u32, String)> {
    let mut f = Fields::new(payload);
    let found = (|| {
        let (error, len) = (f.u32()?, f.u16()?);
        Some((error, f.take(len.into())?))
    })();
    match found {
        Some((0, _)) => Err(Error::invalid("an error chunk says that nothing is wrong")),
        Some((error, message)) => Ok((error, String::from_utf8_lossy(message).into_owned())),
        None => Err(Error::invalid(format!("an error chunk of {} bytes is shorter than it says", payload.len()))),
    }
}

/// One extent of a context: length in bytes and status bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Bytes, never 0.
    pub length: u64,
    /// What the bits mean is the context's affair, e.g. [`allocation`].
    pub flags: u64,
}

/// Payload of a BLOCK_STATUS request that wants some of the negotiated contexts only (extended headers).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusQuery {
    /// Bytes that are asked about: the request's length counts this payload.
    pub length: u64,
    /// Ids of the contexts that are wanted.
    pub contexts: Vec<u32>,
}

impl StatusQuery {
    /// Bytes of the payload for so many contexts.
    #[must_use]
    pub const fn wire_len(contexts: usize) -> usize {
        8 + 4 * contexts
    }

    /// The payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::wire_len(self.contexts.len()));
        out.extend(self.length.to_be_bytes());
        self.contexts.iter().for_each(|id| out.extend(id.to_be_bytes()));
        out
    }

    /// The same read: at least one context, none twice.
    pub fn decode(payload: &[u8]) -> Result<StatusQuery> {
        let malformed = || Error::invalid("the payload of a block status request is malformed");
        let mut f = Fields::new(payload);
        let length = f.u64().ok_or_else(malformed)?;
        let mut contexts = Vec::new();
        while !f.is_empty() {
            let id = f.u32().ok_or_else(malformed)?;
            contexts.push(id);
        }
        let mut sorted = contexts.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if contexts.is_empty() || sorted.len() != contexts.len() {
            return Err(malformed());
        }
        Ok(StatusQuery { length, contexts })
    }
}

/// The chunk type and payload that carry `extents` of the context `id`. Compact extents have 32-bit fields; a caller keeps
/// lengths within what was asked for, so they fit.
#[must_use]
pub fn encode_status(framing: Framing, id: u32, extents: &[Status]) -> (u16, Vec<u8>) {
    let mut out = Vec::with_capacity(8 + extents.len() * 16);
    out.extend(id.to_be_bytes());
    if framing == Framing::Extended {
        out.extend(len32(extents.len()).to_be_bytes());
        for e in extents {
            out.extend(e.length.to_be_bytes());
            out.extend(e.flags.to_be_bytes());
        }
        return (chunk::BLOCK_STATUS_EXT, out);
    }
    for e in extents {
        out.extend(u32::try_from(e.length).unwrap_or(u32::MAX).to_be_bytes());
        out.extend(u32::try_from(e.flags).unwrap_or(u32::MAX).to_be_bytes());
    }
    (chunk::BLOCK_STATUS, out)
}

/// The same read: the context's id and its extents, at least one, none empty.
pub fn decode_status(kind: u16, payload: &[u8]) -> Result<(u32, Vec<Status>)> {
    let wide = kind == chunk::BLOCK_STATUS_EXT;
    let mut f = Fields::new(payload);
    let malformed = || Error::invalid(format!("a block status chunk of {} bytes is malformed", payload.len()));
    let id = f.u32().ok_or_else(malformed)?;
    let count = if wide { f.u32().ok_or_else(malformed)? } else { 0 };
    let mut extents = Vec::new();
    while !f.is_empty() {
        let (length, flags) = match wide {
            true => (f.u64(), f.u64()),
            false => (f.u32().map(u64::from), f.u32().map(u64::from)),
        };
        match (length, flags) {
            (Some(length), Some(flags)) if length > 0 => extents.push(Status { length, flags }),
            _ => return Err(malformed()),
        }
    }
    if extents.is_empty() || (count != 0 && count as usize != extents.len()) {
        return Err(malformed());
    }
    Ok((id, extents))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRAMINGS: [Framing; 3] = [Framing::Simple, Framing::Structured, Framing::Extended];

    fn request() -> Request {
        Request {
            flags: command_flag::FUA,
            command: command::WRITE,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1000,
            length: 0x200,
        }
    }

    #[test]
    fn requests_have_the_golden_layout() {
        let mut compact = Vec::new();
        request().encode(Framing::Structured, &mut compact).unwrap();
        let golden = b"\x25\x60\x95\x13\x00\x01\x00\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\x10\0\0\0\x02\0";
        assert_eq!(compact, golden);
        let mut extended = Vec::new();
        request().encode(Framing::Extended, &mut extended).unwrap();
        let golden =
            b"\x21\xe4\x1c\x71\x00\x01\x00\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x02\0";
        assert_eq!(extended, golden);
    }

    #[test]
    fn replies_have_the_golden_layout() {
        assert_eq!(Reply::encode_simple(5, 9), *b"\x67\x44\x66\x98\0\0\0\x05\0\0\0\0\0\0\0\x09");
        let head =
            |framing| ChunkHead { framing, flags: chunk::FLAG_DONE, kind: chunk::OFFSET_DATA, cookie: 9, offset: 0x77 };
        let mut out = [0; 20];
        Reply::encode_chunk(head(Framing::Structured), 0x108, &mut out);
        assert_eq!(out, *b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0\0\x09\0\0\x01\x08");
        let mut out = [0; 32];
        Reply::encode_chunk(head(Framing::Extended), 0x108, &mut out);
        assert_eq!(out, *b"\x6e\x8a\x27\x8c\0\x01\0\x01\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\x77\0\0\0\0\0\0\x01\x08");
        assert_eq!(encode_error(22, "no"), b"\0\0\0\x16\0\x02no");
        assert_eq!(encode_hole(1, 2), *b"\0\0\0\0\0\0\0\x01\0\0\0\x02");
        let extents = [Status { length: 0x1000, flags: 3 }];
        assert_eq!(
            encode_status(Framing::Structured, 7, &extents),
            (chunk::BLOCK_STATUS, b"\0\0\0\x07\0\0\x10\0\0\0\0\x03".to_vec())
        );
        assert_eq!(
            encode_status(Framing::Extended, 7, &extents),
            (chunk::BLOCK_STATUS_EXT, b"\0\0\0\x07\0\0\0\x01\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\x03".to_vec())
        );
    }

    #[test]
    fn a_status_query_names_contexts_once() {
        let query = StatusQuery { length: 1 << 40, contexts: vec![1, 3] };
        assert_eq!(query.encode(), b"\0\0\x01\0\0\0\0\0\0\0\0\x01\0\0\0\x03");
        assert_eq!(query.encode().len(), StatusQuery::wire_len(2));
        assert_eq!(StatusQuery::decode(&query.encode()).unwrap(), query);
        for contexts in [vec![], vec![3, 1, 3]] {
            assert!(StatusQuery::decode(&StatusQuery { contexts, ..query.clone() }.encode()).is_err());
        }
        assert!(StatusQuery::decode(&query.encode()[..15]).is_err() && StatusQuery::decode(&[0; 7]).is_err());
    }

    #[test]
    fn a_compact_request_refuses_a_long_length() {
        let long = Request { length: 1 << 32, ..request() };
        assert!(long.encode(Framing::Simple, &mut Vec::new()).is_err());
        assert!(long.encode(Framing::Extended, &mut Vec::new()).is_ok());
    }

    #[test]
    fn long_error_messages_are_cut_at_a_character() {
        let payload = encode_error(5, &"ä".repeat(300));
        let (error, message) = decode_error(&payload).unwrap();
        assert_eq!((error, message.as_str()), (5, "ä".repeat(128).as_str()));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(flags: u16, command: u16, cookie: u64, offset: u64, length: u32, cut in 0usize..32) {
            for framing in FRAMINGS {
                let r = Request { flags, command, cookie, offset, length: length.into() };
                let mut bytes = Vec::new();
                r.encode(framing, &mut bytes).unwrap();
                prop_assert_eq!(bytes.len(), Request::wire_len(framing));
                prop_assert_eq!(Request::decode(framing, &bytes).unwrap(), Some(r));
                if cut < bytes.len() {
                    prop_assert_eq!(Request::decode(framing, &bytes[..cut]).unwrap(), None);
                }
                if framing != Framing::Simple {
                    let mut bytes = vec![0; Reply::wire_len(framing)];
                    let head = ChunkHead { framing, flags, kind: command, cookie, offset };
                    Reply::encode_chunk(head, length as usize, &mut bytes);
                    let offset = if framing == Framing::Extended { offset } else { 0 };
                    let due = Reply::Chunk { flags, kind: command, cookie, offset, length: length.into() };
                    prop_assert_eq!(Reply::decode(framing, &bytes).unwrap(), Some((due, bytes.len())));
                }
            }
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(bytes: Vec<u8>, kind: u16, at in 0usize..5) {
            for framing in FRAMINGS {
                let _ = Request::decode(framing, &bytes);
                let _ = Reply::decode(framing, &bytes);
                let magics = [REQUEST_MAGIC, EXTENDED_REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, EXTENDED_REPLY_MAGIC];
                let mut near = magics[at].to_be_bytes().to_vec();
                near.extend(&bytes);
                let _ = Request::decode(framing, &near);
                let _ = Reply::decode(framing, &near);
            }
            let _ = (decode_hole(&bytes), decode_error(&bytes), decode_status(kind, &bytes), StatusQuery::decode(&bytes));
            if let Ok((_, extents)) = decode_status(chunk::BLOCK_STATUS, &bytes) {
                prop_assert!(extents.len() * 8 < bytes.len());
            }
        }
    }
}
