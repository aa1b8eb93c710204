//! The server's side of the handshake: which option is answered how, and the conversation around it.
//!
//! Not here: time (the caller bounds the whole handshake). What holds: options are bounded in number and length, and so is
//! the memory of a handshake; unknown options are answered and do no harm; [`Negotiation`] itself does no I/O.

use super::super::proto::handshake::{self as wire, Go, Info, MetaQuery, info, option, reply};
use super::super::proto::{Framing, MAX_PAYLOAD, text};
use super::Report;
use super::session::{ALLOCATION, Session};
use crate::Result;
use crate::export::{Export, Exports};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A client that has not made up its mind after so many options is sent away.
const MAX_OPTIONS: usize = 128;
/// No option needs more.
const MAX_OPTION_LEN: u32 = 64 << 10;
/// What clients do best to keep to. Every byte can be addressed, but blocks of this size are what devices work in.
const PREFERRED_BLOCK: u32 = 4096;

/// Talks with a fresh client until it takes an export; `None` when it leaves or breaks the protocol.
pub(super) async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    exports: &Exports,
    report: Option<Report>,
) -> io::Result<Option<Session>> {
    let ours = wire::FIXED_NEWSTYLE | wire::NO_ZEROES;
    stream.write_all(&wire::encode_greeting(ours)).await?;
    let flags = stream.read_u32().await?;
    if flags & !u32::from(ours) != 0 {
        return Ok(None);
    }
    let mut negotiation = Negotiation {
        exports,
        has_zeroes: flags & u32::from(wire::NO_ZEROES) == 0,
        framing: Framing::Simple,
        allocation_for: None,
    };
    for _ in 0..MAX_OPTIONS {
        let mut header = [0; wire::OPTION_HEADER_LEN];
        stream.read_exact(&mut header).await?;
        let Ok((option, len @ ..=MAX_OPTION_LEN)) = wire::decode_option_header(&header) else { return Ok(None) };
        let mut payload = vec![0; len as usize];
        stream.read_exact(&mut payload).await?;
        let mut answer = Vec::new();
        let next = negotiation.answer(option, &payload, &mut answer);
        stream.write_all(&answer).await?;
        match next {
            Next::Option => {}
            Next::Transmission(export, has_allocation) => {
                return Ok(Some(Session { export, framing: negotiation.framing, has_allocation, report }));
            }
            Next::End => return Ok(None),
        }
    }
    Ok(None)
}

/// What follows an option.
enum Next {
    Option,
    /// The export is taken; whether `base:allocation` is on.
    Transmission(Arc<Export>, bool),
    End,
}

/// What was said so far.
struct Negotiation<'a> {
    exports: &'a Exports,
    /// Whether EXPORT_NAME is followed by zeroes.
    has_zeroes: bool,
    framing: Framing,
    /// The export that `base:allocation` was turned on for.
    allocation_for: Option<String>,
}

impl Negotiation<'_> {
    /// Answers one option into `out`.
    fn answer(&mut self, option: u32, payload: &[u8], out: &mut Vec<u8>) -> Next {
        let mut say = |kind: u32, payload: &[u8]| wire::encode_option_reply(option, kind, payload, out);
        match option {
            option::EXPORT_NAME => return self.export_name(payload, out),
            option::ABORT => {
                say(reply::ACK, &[]);
                return Next::End;
            }
            option::LIST if payload.is_empty() => {
                for export in self.exports.all() {
                    say(reply::SERVER, &wire::encode_server(&export.name, &export.description));
                }
                say(reply::ACK, &[]);
            }
            option::INFO | option::GO => match self.infos(payload) {
                Ok((Some(export), infos)) => {
                    infos.iter().for_each(|i| say(reply::INFO, &i.encode()));
                    say(reply::ACK, &[]);
                    if option == option::GO {
                        let has_allocation = self.allocation_for.as_ref() == Some(&export.name);
                        return Next::Transmission(export, has_allocation);
                    }
                }
                Ok((None, _)) => say(reply::ERR_UNKNOWN, b"there is no such export"),
                Err(e) => say(reply::ERR_INVALID, e.context().as_bytes()),
            },
            option::STRUCTURED_REPLY if payload.is_empty() => {
                if self.framing == Framing::Simple {
                    self.framing = Framing::Structured;
                }
                say(reply::ACK, &[]);
            }
            option::EXTENDED_HEADERS if payload.is_empty() => {
                self.framing = Framing::Extended;
                say(reply::ACK, &[]);
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => match self.contexts(option, payload) {
                Ok(Some(has_allocation)) => {
                    if has_allocation {
                        let id = if option == option::SET_META_CONTEXT { ALLOCATION.0 } else { 0 };
                        say(reply::META_CONTEXT, &wire::encode_meta_context(id, ALLOCATION.1));
                    }
                    say(reply::ACK, &[]);
                }
                Ok(None) => say(reply::ERR_UNKNOWN, b"there is no such export"),
                Err(e) => say(reply::ERR_INVALID, e.context().as_bytes()),
            },
            option::STARTTLS => say(reply::ERR_UNSUP, b"this server does not speak TLS"),
            option::LIST | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => {
                say(reply::ERR_INVALID, b"this option has no payload");
            }
            _ => say(reply::ERR_UNSUP, b"unknown option"),
        }
        Next::Option
    }

    /// The one option without a reply: it is granted by the export's size, or refused by hanging up.
    fn export_name(&self, payload: &[u8], out: &mut Vec<u8>) -> Next {
        let export = text(payload, "an export's name").ok().and_then(|name| self.exports.find(&name));
        let Some(export) = export.filter(|_| self.framing != Framing::Extended) else { return Next::End };
        out.extend(export.device.size().to_be_bytes());
        out.extend(Session::flags(&export, self.framing).to_be_bytes());
        if self.has_zeroes {
            out.extend([0; 124]);
        }
        let has_allocation = self.allocation_for.as_ref() == Some(&export.name);
        Next::Transmission(export, has_allocation)
    }

    /// The export that GO or INFO names, and what is told about it.
    fn infos(&self, payload: &[u8]) -> Result<(Option<Arc<Export>>, Vec<Info>)> {
        let go = Go::decode(payload)?;
        let Some(export) = self.exports.find(&go.name) else { return Ok((None, Vec::new())) };
        let flags = Session::flags(&export, self.framing);
        let mut infos = vec![Info::Export { size: export.device.size(), flags }];
        // Of what is wanted twice, or unknown, nothing is said.
        if go.infos.contains(&info::NAME) {
            infos.push(Info::Name(export.name.clone()));
        }
        if go.infos.contains(&info::DESCRIPTION) && !export.description.is_empty() {
            infos.push(Info::Description(export.description.clone()));
        }
        if go.infos.contains(&info::BLOCK_SIZE) {
            infos.push(Info::BlockSize { minimum: 1, preferred: PREFERRED_BLOCK, maximum: MAX_PAYLOAD });
        }
        Ok((Some(export), infos))
    }

    /// Whether `base:allocation` is among the contexts asked for; `None` when there is no such export.
    fn contexts(&mut self, option: u32, payload: &[u8]) -> Result<Option<bool>> {
        let MetaQuery { name, queries } = MetaQuery::decode(payload)?;
        if self.framing == Framing::Simple {
            return Err(crate::Error::invalid("metadata contexts need structured replies"));
        }
        self.allocation_for = None;
        let Some(export) = self.exports.find(&name) else { return Ok(None) };
        let is_listing = option == option::LIST_META_CONTEXT;
        let has_allocation = queries.iter().any(|q| q == ALLOCATION.1 || (is_listing && q == "base:"));
        if !is_listing && has_allocation {
            self.allocation_for = Some(export.name.clone());
        }
        Ok(Some(has_allocation || (is_listing && queries.is_empty())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryDevice;
    use crate::nbd::proto::export_flag;
    use proptest::prelude::*;

    fn exports() -> Exports {
        let exports = Exports::new();
        for (name, read_only) in [("a", true), ("b", false)] {
            let device = Arc::new(MemoryDevice::new(4096));
            exports.add(Export { name: name.into(), device, description: "text".into(), read_only }).unwrap();
        }
        exports
    }

    fn fresh(exports: &Exports) -> Negotiation<'_> {
        Negotiation { exports, has_zeroes: true, framing: Framing::Simple, allocation_for: None }
    }

    /// Types and payloads of the replies to an option.
    fn ask(n: &mut Negotiation<'_>, option: u32, payload: &[u8]) -> (Vec<(u32, Vec<u8>)>, Next) {
        let mut out = Vec::new();
        let next = n.answer(option, payload, &mut out);
        let mut replies = Vec::new();
        let mut rest = &out[..];
        while let Some((header, more)) = rest.split_first_chunk() {
            let (to, kind, len) = wire::decode_option_reply_header(header).unwrap();
            assert_eq!(to, option);
            let (payload, more) = more.split_at(len as usize);
            replies.push((kind, payload.to_vec()));
            rest = more;
        }
        (replies, next)
    }

    fn kinds(n: &mut Negotiation<'_>, option: u32, payload: &[u8]) -> Vec<u32> {
        ask(n, option, payload).0.into_iter().map(|(kind, _)| kind).collect()
    }

    fn query(name: &str, queries: &[&str]) -> Vec<u8> {
        MetaQuery { name: name.into(), queries: queries.iter().map(|q| (*q).into()).collect() }.encode()
    }

    fn go(name: &str) -> Vec<u8> {
        Go { name: name.into(), infos: vec![info::BLOCK_SIZE, info::NAME, info::DESCRIPTION, 99, info::NAME] }.encode()
    }

    #[test]
    fn an_export_is_listed_described_and_taken() {
        let exports = exports();
        let mut n = fresh(&exports);
        assert_eq!(kinds(&mut n, option::LIST, &[]), [reply::SERVER, reply::SERVER, reply::ACK]);
        let (replies, next) = ask(&mut n, option::INFO, &go("a"));
        assert!(matches!(next, Next::Option));
        let infos = replies.iter().filter(|(k, _)| *k == reply::INFO).map(|(_, p)| Info::decode(p).unwrap());
        let flags = export_flag::HAS_FLAGS
            | export_flag::READ_ONLY
            | export_flag::FLUSH
            | export_flag::CACHE
            | export_flag::MULTI_CONN;
        let due = [
            Info::Export { size: 4096, flags },
            Info::Name("a".into()),
            Info::Description("text".into()),
            Info::BlockSize { minimum: 1, preferred: 4096, maximum: MAX_PAYLOAD },
        ];
        assert_eq!(infos.collect::<Vec<_>>(), due);
        let (_, next) = ask(&mut n, option::GO, &go("b"));
        assert!(matches!(next, Next::Transmission(export, false) if export.name == "b"));
        assert!(matches!(ask(&mut n, option::ABORT, &[]).1, Next::End));
    }

    #[test]
    fn contexts_belong_to_the_export_they_were_asked_for() {
        let exports = exports();
        let mut n = fresh(&exports);
        let set = option::SET_META_CONTEXT;
        assert_eq!(kinds(&mut n, set, &query("a", &["base:allocation"])), [reply::ERR_INVALID]);
        assert_eq!(kinds(&mut n, option::STRUCTURED_REPLY, &[]), [reply::ACK]);
        assert_eq!(kinds(&mut n, option::LIST_META_CONTEXT, &query("a", &[])), [reply::META_CONTEXT, reply::ACK]);
        assert_eq!(
            kinds(&mut n, option::LIST_META_CONTEXT, &query("a", &["base:"])),
            [reply::META_CONTEXT, reply::ACK]
        );
        assert_eq!(kinds(&mut n, set, &query("a", &["base:", "x-y:z"])), [reply::ACK]);
        assert_eq!(kinds(&mut n, set, &query("c", &["base:allocation"])), [reply::ERR_UNKNOWN]);
        assert_eq!(kinds(&mut n, set, &query("a", &["q", "base:allocation"])), [reply::META_CONTEXT, reply::ACK]);
        assert!(matches!(ask(&mut n, option::GO, &go("b")).1, Next::Transmission(_, false)));
        assert!(matches!(ask(&mut n, option::GO, &go("a")).1, Next::Transmission(_, true)));
    }

    #[test]
    fn what_is_wrong_is_answered_and_forgotten() {
        let exports = exports();
        let mut n = fresh(&exports);
        assert_eq!(kinds(&mut n, 4711, b"x"), [reply::ERR_UNSUP]);
        assert_eq!(kinds(&mut n, option::STARTTLS, &[]), [reply::ERR_UNSUP]);
        assert_eq!(kinds(&mut n, option::LIST, b"x"), [reply::ERR_INVALID]);
        assert_eq!(kinds(&mut n, option::STRUCTURED_REPLY, b"x"), [reply::ERR_INVALID]);
        assert_eq!(n.framing, Framing::Simple);
        assert_eq!(kinds(&mut n, option::GO, &go("c")), [reply::ERR_UNKNOWN]);
        assert_eq!(kinds(&mut n, option::GO, b"x"), [reply::ERR_INVALID]);
        assert!(matches!(n.answer(option::EXPORT_NAME, b"c", &mut Vec::new()), Next::End));
        let mut out = Vec::new();
        assert!(matches!(n.answer(option::EXPORT_NAME, b"b", &mut out), Next::Transmission(..)));
        assert_eq!(out.len(), 8 + 2 + 124);
    }

    proptest! {
        #[test]
        fn no_payload_makes_it_panic(options in prop::collection::vec((0u32..16, any::<Vec<u8>>()), 0..20)) {
            let exports = exports();
            let mut n = fresh(&exports);
            for (option, payload) in options {
                let _ = ask_raw(&mut n, option, &payload);
            }
        }
    }

    fn ask_raw(n: &mut Negotiation<'_>, option: u32, payload: &[u8]) -> Next {
        n.answer(option, payload, &mut Vec::new())
    }
}
