//! The handshake on the wire: greeting, options and their replies (fixed newstyle).
//!
//! ```text
//! greeting        "NBDMAGIC"  "IHAVEOPT"  u16 handshake flags          server, then u32 client flags from the client
//! option          "IHAVEOPT"  u32 option  u32 length  [payload]        client
//! option reply    u64 0003e889045565a9  u32 option  u32 type  u32 length  [payload]     server
//! ```
//! Not here: which option is answered how. What holds: see the parent module.

use super::{Fields, len32, text};
use crate::{Error, Result};

/// Begins a greeting.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Follows it in newstyle handshakes, and begins an option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Follows it in oldstyle handshakes, which nobody should offer any more.
const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Handshake flag of both sides: fixed newstyle.
pub const FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag of both sides: no 124 zeroes after EXPORT_NAME.
pub const NO_ZEROES: u16 = 1 << 1;

/// Option numbers.
pub mod option {
    /// Take this export, without any reply but the export's size. Ends the handshake.
    pub const EXPORT_NAME: u32 = 1;
    /// Good-bye.
    pub const ABORT: u32 = 2;
    /// Which exports are there?
    pub const LIST: u32 = 3;
    /// Encrypt from here on.
    pub const STARTTLS: u32 = 5;
    /// What is this export?
    pub const INFO: u32 = 6;
    /// Take this export. Ends the handshake.
    pub const GO: u32 = 7;
    /// Structured replies, please.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Which of these metadata contexts are there?
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Turn these metadata contexts on.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Extended headers, please.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of option replies.
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One piece of information.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// All errors have this bit.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// The option is unknown.
    pub const ERR_UNSUP: u32 = ERROR_BIT | 1;
    /// Forbidden here.
    pub const ERR_POLICY: u32 = ERROR_BIT | 2;
    /// Wrong payload, or at the wrong time.
    pub const ERR_INVALID: u32 = ERROR_BIT | 3;
    /// TLS first.
    pub const ERR_TLS_REQD: u32 = ERROR_BIT | 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
    /// The server is going down.
    pub const ERR_SHUTDOWN: u32 = ERROR_BIT | 7;
    /// More than the server wants to answer at once.
    pub const ERR_TOO_BIG: u32 = ERROR_BIT | 9;
    /// What was asked contradicts extended headers.
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR_BIT | 10;
}

/// Kinds of information about an export.
pub mod info {
    /// Size and flags.
    pub const EXPORT: u16 = 0;
    /// Its canonical name.
    pub const NAME: u16 = 1;
    /// A text for people.
    pub const DESCRIPTION: u16 = 2;
    /// Block sizes.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Bytes of a greeting.
pub const GREETING_LEN: usize = 18;

/// A server's greeting.
#[must_use]
pub fn encode_greeting(flags: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(GREETING_LEN);
    out.extend(GREETING_MAGIC.to_be_bytes());
    out.extend(OPTION_MAGIC.to_be_bytes());
    out.extend(flags.to_be_bytes());
    out
}

/// Reads a greeting: the handshake flags. Oldstyle servers are `Unsupported`, anything else `Invalid`.
pub fn decode_greeting(bytes: &[u8; GREETING_LEN]) -> Result<u16> {
    let mut f = Fields::new(bytes);
    match (f.u64(), f.u64(), f.u16()) {
        (Some(GREETING_MAGIC), Some(OPTION_MAGIC), Some(flags)) => Ok(flags),
        (Some(GREETING_MAGIC), Some(OLDSTYLE_MAGIC), _) => {
            Err(Error::new(crate::Kind::Unsupported, "the server speaks the oldstyle handshake only"))
        }
        _ => Err(Error::invalid("the server's greeting is not NBD")),
    }
}

/// Bytes of an option's header.
pub const OPTION_HEADER_LEN: usize = 16;

/// An option with its payload.
#[must_use]
pub fn encode_option(option: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(OPTION_HEADER_LEN + payload.len());
    out.extend(OPTION_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(len32(payload.len()).to_be_bytes());
    out.extend(payload);
    out
}

/// Reads an option's header: its number and the length of its payload.
pub fn decode_option_header(bytes: &[u8; OPTION_HEADER_LEN]) -> Result<(u32, u32)> {
    let mut f = Fields::new(bytes);
    match (f.u64(), f.u32(), f.u32()) {
        (Some(OPTION_MAGIC), Some(option), Some(len)) => Ok((option, len)),
        _ => Err(Error::invalid("an option does not begin with IHAVEOPT")),
    }
}

/// Bytes of an option reply's header.
pub const OPTION_REPLY_HEADER_LEN: usize = 20;

/// Appends an option reply with its payload.
pub fn encode_option_reply(option: u32, kind: u32, payload: &[u8], out: &mut Vec<u8>) {
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(len32(payload.len()).to_be_bytes());
    out.extend(payload);
}

/// Reads an option reply's header: the option, the reply's type and the length of its payload.
pub fn decode_option_reply_header(bytes: &[u8; OPTION_REPLY_HEADER_LEN]) -> Result<(u32, u32, u32)> {
    let mut f = Fields::new(bytes);
    match (f.u64(), f.u32(), f.u32(), f.u32()) {
        (Some(OPTION_REPLY_MAGIC), Some(option), Some(kind), Some(len)) => Ok((option, kind, len)),
        _ => Err(Error::invalid("a reply to an option does not begin with the reply magic")),
    }
}

/// Payload of GO and INFO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Go {
    /// Of the export; empty for the default one.
    pub name: String,
    /// Which [`info`] is wanted beside [`info::EXPORT`].
    pub infos: Vec<u16>,
}

impl Go {
    /// The payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_string(&self.name, &mut out);
        out.extend(u16::try_from(self.infos.len()).unwrap_or(0).to_be_bytes());
        self.infos.iter().for_each(|i| out.extend(i.to_be_bytes()));
        out
    }

    /// The same read.
    pub fn decode(payload: &[u8]) -> Result<Go> {
        let malformed = || Error::invalid("the payload of GO or INFO is malformed");
        let mut f = Fields::new(payload);
        let name = text(f.string().ok_or_else(malformed)?, "an export's name")?;
        let count = f.u16().ok_or_else(malformed)?;
        let infos = (0..count).map_while(|_| f.u16()).collect::<Vec<_>>();
        if infos.len() != usize::from(count) || !f.is_empty() {
            return Err(malformed());
        }
        Ok(Go { name, infos })
    }
}

/// Payload of SET_META_CONTEXT and LIST_META_CONTEXT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaQuery {
    /// Of the export.
    pub name: String,
    /// Contexts asked for, such as `base:allocation`.
    pub queries: Vec<String>,
}

impl MetaQuery {
    /// The payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_string(&self.name, &mut out);
        out.extend(len32(self.queries.len()).to_be_bytes());
        self.queries.iter().for_each(|q| put_string(q, &mut out));
        out
    }

    /// The same read.
    pub fn decode(payload: &[u8]) -> Result<MetaQuery> {
        let malformed = || Error::invalid("the payload of a metadata context option is malformed");
        let mut f = Fields::new(payload);
        let name = text(f.string().ok_or_else(malformed)?, "an export's name")?;
        let count = f.u32().ok_or_else(malformed)?;
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(text(f.string().ok_or_else(malformed)?, "a metadata context's name")?);
        }
        if !f.is_empty() {
            return Err(malformed());
        }
        Ok(MetaQuery { name, queries })
    }
}

/// Payload of a META_CONTEXT reply.
#[must_use]
pub fn encode_meta_context(id: u32, name: &str) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend(name.as_bytes());
    out
}

/// The same read: the context's id and name.
pub fn decode_meta_context(payload: &[u8]) -> Result<(u32, String)> {
    let mut f = Fields::new(payload);
    let id = f.u32().ok_or_else(|| Error::invalid("a metadata context's reply is malformed"))?;
    Ok((id, text(f.rest(), "a metadata context's name")?))
}

/// Payload of a SERVER reply: one line of a list of exports.
#[must_use]
pub fn encode_server(name: &str, description: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_string(name, &mut out);
    out.extend(description.as_bytes());
    out
}

/// One piece of information about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Info {
    /// [`info::EXPORT`].
    Export {
        /// Bytes.
        size: u64,
        /// [`export_flag`](super::export_flag)s.
        flags: u16,
    },
    /// [`info::NAME`].
    Name(String),
    /// [`info::DESCRIPTION`].
    Description(String),
    /// [`info::BLOCK_SIZE`], in bytes.
    BlockSize {
        /// Offsets and lengths are multiples of this power of two.
        minimum: u32,
        /// What is handled best.
        preferred: u32,
        /// The largest payload.
        maximum: u32,
    },
    /// A kind that this side does not know.
    Other(u16),
}

impl Info {
    /// The payload of an INFO reply. [`Info::Other`] has none but its number.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut kind = |k: u16| out.extend(k.to_be_bytes());
        match self {
            Info::Export { size, flags } => {
                kind(info::EXPORT);
                out.extend(size.to_be_bytes());
                out.extend(flags.to_be_bytes());
            }
            Info::Name(name) => {
                kind(info::NAME);
                out.extend(name.as_bytes());
            }
            Info::Description(text) => {
                kind(info::DESCRIPTION);
                out.extend(text.as_bytes());
            }
            Info::BlockSize { minimum, preferred, maximum } => {
                kind(info::BLOCK_SIZE);
                [minimum, preferred, maximum].iter().for_each(|n| out.extend(n.to_be_bytes()));
            }
            Info::Other(number) => kind(*number),
        }
        out
    }

    /// The same read.
    pub fn decode(payload: &[u8]) -> Result<Info> {
        let malformed = || Error::invalid("information about an export is malformed");
        let mut f = Fields::new(payload);
        let info = match f.u16().ok_or_else(malformed)? {
            info::EXPORT => (|| Some(Info::Export { size: f.u64()?, flags: f.u16()? }))().ok_or_else(malformed)?,
            info::BLOCK_SIZE => {
                (|| Some(Info::BlockSize { minimum: f.u32()?, preferred: f.u32()?, maximum: f.u32()? }))()
                    .ok_or_else(malformed)?
            }
            info::NAME => return Ok(Info::Name(text(f.rest(), "an export's name")?)),
            info::DESCRIPTION => return Ok(Info::Description(text(f.rest(), "an export's description")?)),
            other => return Ok(Info::Other(other)),
        };
        if !f.is_empty() {
            return Err(malformed());
        }
        Ok(info)
    }
}

fn put_string(s: &str, out: &mut Vec<u8>) {
    out.extend(len32(s.len()).to_be_bytes());
    out.extend(s.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_greeting_has_the_golden_layout() {
        let bytes = encode_greeting(FIXED_NEWSTYLE | NO_ZEROES);
        assert_eq!(bytes, b"NBDMAGICIHAVEOPT\0\x03");
        assert_eq!(decode_greeting(&bytes.try_into().unwrap()).unwrap(), 3);
        let oldstyle = b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\0\0";
        assert_eq!(decode_greeting(oldstyle).unwrap_err().kind(), crate::Kind::Unsupported);
        assert_eq!(decode_greeting(b"SSH-2.0-OpenSSH_9.").unwrap_err().kind(), crate::Kind::Invalid);
    }

    #[test]
    fn options_and_replies_have_the_golden_layout() {
        let go = Go { name: "a".into(), infos: vec![info::BLOCK_SIZE] };
        let bytes = encode_option(option::GO, &go.encode());
        assert_eq!(bytes, b"IHAVEOPT\0\0\0\x07\0\0\0\x09\0\0\0\x01a\0\x01\0\x03");
        let mut reply = Vec::new();
        let size = Info::Export { size: 0x0102, flags: 1 }.encode();
        encode_option_reply(option::GO, reply::INFO, &size, &mut reply);
        assert_eq!(
            reply,
            b"\x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x03\0\0\0\x0c\0\0\0\0\0\0\0\0\x01\x02\0\x01"
        );
        let query = MetaQuery { name: "a".into(), queries: vec!["b:c".into()] };
        assert_eq!(query.encode(), b"\0\0\0\x01a\0\0\0\x01\0\0\0\x03b:c");
        assert_eq!(encode_server("n", "d"), b"\0\0\0\x01nd");
        assert_eq!(encode_meta_context(1, "b:c"), b"\0\0\0\x01b:c");
    }

    #[test]
    fn a_count_that_promises_more_than_there_is_costs_nothing() {
        assert!(MetaQuery::decode(b"\0\0\0\0\xff\xff\xff\xff").is_err());
        assert!(Go::decode(b"\0\0\0\0\xff\xff").is_err());
        assert!(Go::decode(b"\xff\xff\xff\xffa").is_err());
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(name in "[^\0]{0,40}", queries: Vec<u16>, size: u64, id: u32, flags: u16) {
            let go = Go { name: name.clone(), infos: queries.clone() };
            prop_assert_eq!(Go::decode(&go.encode()).unwrap(), go);
            let meta = MetaQuery { name: name.clone(), queries: queries.iter().map(|q| format!("base:{q}")).collect() };
            prop_assert_eq!(MetaQuery::decode(&meta.encode()).unwrap(), meta);
            prop_assert_eq!(decode_meta_context(&encode_meta_context(id, &name)).unwrap(), (id, name.clone()));
            let block = Info::BlockSize { minimum: id, preferred: 1, maximum: 2 };
            for i in [Info::Export { size, flags }, Info::Name(name.clone()), Info::Description(name), block] {
                prop_assert_eq!(Info::decode(&i.encode()).unwrap(), i);
            }
            let option = encode_option(id, &[0; 5]);
            prop_assert_eq!(decode_option_header(option.first_chunk().unwrap()).unwrap(), (id, 5));
            let mut reply = Vec::new();
            encode_option_reply(id, 9, &[0; 5], &mut reply);
            prop_assert_eq!(decode_option_reply_header(reply.first_chunk().unwrap()).unwrap(), (id, 9, 5));
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(bytes: Vec<u8>) {
            let _ = (Go::decode(&bytes), MetaQuery::decode(&bytes), Info::decode(&bytes), decode_meta_context(&bytes));
        }
    }
}
