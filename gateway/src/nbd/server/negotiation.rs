//! The server's side of the handshake: which option is answered how, and the conversation around it.
//!
//! ```text
//!   greet        magic numbers and flags, once
//!   negotiate    options until the client takes an export, or wants TLS: then once more, within it, as if nothing had been said
//! ```
//! Not here: time (the caller bounds the whole handshake), encryption itself. What holds: options are bounded in number and
//! length, and so is the memory of a handshake; unknown options are answered and do no harm; nothing is read beyond the
//! option that asks for TLS, and nothing that was said before it counts; where TLS is required nothing is told or granted
//! without; [`Negotiation`] itself does no I/O.

use super::super::proto::handshake::{self as wire, Go, Info, MetaQuery, info, option, reply};
use super::super::proto::{Framing, MAX_PAYLOAD, text};
use super::context::{Context, MAX_CONTEXTS};
use super::session::Session;
use crate::export::{Export, Exports, Peer, Taken};
use crate::serving::Report;
use crate::{Error, Kind, Result};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A client that has not made up its mind after so many options is sent away.
const MAX_OPTIONS: usize = 128;
/// No option needs more.
const MAX_OPTION_LEN: u32 = 64 << 10;
/// What clients do best to keep to. Every byte can be addressed, but blocks of this size are what devices work in.
const PREFERRED_BLOCK: u32 = 4096;

/// How a connection stands to TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encryption {
    /// The server has none.
    Absent,
    /// The client may ask for it.
    Allowed,
    /// The client has to ask for it first.
    Required,
    /// It is on.
    On,
}

/// What a conversation goes by.
pub(super) struct Terms<'a> {
    pub(super) exports: &'a Exports,
    pub(super) peer: &'a Peer,
    pub(super) encryption: Encryption,
    /// As [`greet`] said.
    pub(super) has_zeroes: bool,
    pub(super) report: Option<Report>,
}

/// What a conversation came to.
pub(super) enum Outcome {
    /// The client took an export.
    Agreed(Session),
    /// The client wants TLS from here on.
    Encrypt,
    /// It left, or broke the protocol.
    Left,
}

/// Greets a fresh client: whether it wants zeroes after EXPORT_NAME; `None` when it does not speak as it should.
pub(super) async fn greet<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<Option<bool>> {
    let ours = wire::FIXED_NEWSTYLE | wire::NO_ZEROES;
    stream.write_all(&wire::encode_greeting(ours)).await?;
    let flags = stream.read_u32().await?;
    Ok((flags & !u32::from(ours) == 0).then_some(flags & u32::from(wire::NO_ZEROES) == 0))
}

/// Talks with a client that was greeted.
pub(super) async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    terms: Terms<'_>,
) -> io::Result<Outcome> {
    let mut negotiation = Negotiation { terms, framing: Framing::Simple, contexts: None };
    for _ in 0..MAX_OPTIONS {
        let mut header = [0; wire::OPTION_HEADER_LEN];
        stream.read_exact(&mut header).await?;
        let Ok((option, len @ ..=MAX_OPTION_LEN)) = wire::decode_option_header(&header) else {
            return Ok(Outcome::Left);
        };
        let mut payload = vec![0; len as usize];
        stream.read_exact(&mut payload).await?;
        let mut answer = Vec::new();
        let next = negotiation.answer(option, &payload, &mut answer);
        stream.write_all(&answer).await?;
        stream.flush().await?;
        match next {
            Next::Option => {}
            Next::Encryption => return Ok(Outcome::Encrypt),
            Next::Transmission(export) => return Ok(Outcome::Agreed(negotiation.session(export))),
            Next::End => return Ok(Outcome::Left),
        }
    }
    Ok(Outcome::Left)
}

/// What follows an option.
enum Next {
    Option,
    Encryption,
    /// The export is taken.
    Transmission(Arc<Export>),
    End,
}

/// What was said so far.
struct Negotiation<'a> {
    terms: Terms<'a>,
    framing: Framing,
    /// Contexts that were turned on, and the export they were turned on for.
    contexts: Option<(String, Vec<Context>)>,
}

impl Negotiation<'_> {
    /// Answers one option into `out`.
    fn answer(&mut self, option: u32, payload: &[u8], out: &mut Vec<u8>) -> Next {
        let is_locked = self.terms.encryption == Encryption::Required;
        let mut say = |kind: u32, payload: &[u8]| wire::encode_option_reply(option, kind, payload, out);
        match option {
            option::EXPORT_NAME if is_locked => return Next::End,
            option::EXPORT_NAME => return self.export_name(payload, out),
            option::ABORT => {
                say(reply::ACK, &[]);
                return Next::End;
            }
            option::STARTTLS if !payload.is_empty() => say(reply::ERR_INVALID, b"this option has no payload"),
            option::STARTTLS => match self.terms.encryption {
                Encryption::Absent => say(reply::ERR_UNSUP, b"this server has no certificate for TLS"),
                Encryption::On => say(reply::ERR_INVALID, b"TLS is on already"),
                Encryption::Allowed | Encryption::Required => {
                    say(reply::ACK, &[]);
                    return Next::Encryption;
                }
            },
            _ if is_locked => say(reply::ERR_TLS_REQD, b"this server talks over TLS only"),
            option::LIST if payload.is_empty() => {
                for export in self.terms.exports.offered_to(self.terms.peer) {
                    say(reply::SERVER, &wire::encode_server(&export.name, &export.description));
                }
                say(reply::ACK, &[]);
            }
            option::INFO | option::GO => match self.infos(option, payload) {
                Ok((Some(export), infos)) => {
                    infos.iter().for_each(|i| say(reply::INFO, &i.encode()));
                    say(reply::ACK, &[]);
                    if option == option::GO {
                        return Next::Transmission(export);
                    }
                }
                Ok((None, _)) => say(reply::ERR_UNKNOWN, b"there is no such export"),
                Err(e) => say(reply::ERR_INVALID, e.context().as_bytes()),
            },
            option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => {
                let (kind, why) = self.frame(option, payload);
                say(kind, why.as_bytes());
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => match self.contexts(option, payload) {
                Ok(Some(contexts)) if contexts.len() > MAX_CONTEXTS && option == option::SET_META_CONTEXT => {
                    self.contexts = None;
                    say(reply::ERR_TOO_BIG, b"that are too many metadata contexts at once");
                }
                Ok(Some(contexts)) => {
                    for Context { id, name, .. } in &contexts {
                        let id = if option == option::SET_META_CONTEXT { *id } else { 0 };
                        say(reply::META_CONTEXT, &wire::encode_meta_context(id, name));
                    }
                    say(reply::ACK, &[]);
                }
                Ok(None) => say(reply::ERR_UNKNOWN, b"there is no such export"),
                Err(e) => say(reply::ERR_INVALID, e.context().as_bytes()),
            },
            option::LIST => say(reply::ERR_INVALID, b"this option has no payload"),
            _ => say(reply::ERR_UNSUP, b"unknown option"),
        }
        Next::Option
    }

    /// Whether the client's wish for another framing is granted, and why not.
    fn frame(&mut self, option: u32, payload: &[u8]) -> (u32, &'static str) {
        let wanted = if option == option::EXTENDED_HEADERS { Framing::Extended } else { Framing::Structured };
        match self.framing {
            _ if !payload.is_empty() => (reply::ERR_INVALID, "this option has no payload"),
            framing if framing == wanted => (reply::ERR_INVALID, "that was granted already"),
            Framing::Extended => (reply::ERR_EXT_HEADER_REQD, "extended headers are on and imply it"),
            Framing::Simple | Framing::Structured => {
                self.framing = wanted;
                (reply::ACK, "")
            }
        }
    }

    /// The export of that name, as far as this client may know of it.
    fn find(&self, name: &str) -> Option<Arc<Export>> {
        let Terms { exports, peer, report, .. } = &self.terms;
        let found = exports.find(name, peer);
        if let (None, Some(report), true) = (&found, report, exports.has(name)) {
            let text = format!("{peer} asked for the export '{name}', which it may not use");
            report(&Error::new(Kind::Invalid, text));
        }
        found
    }

    /// The one option without a reply: it is granted by the export's size, or refused by hanging up.
    fn export_name(&self, payload: &[u8], out: &mut Vec<u8>) -> Next {
        let export = text(payload, "an export's name").ok().and_then(|name| self.find(&name));
        let Some(export) = export.filter(|_| self.framing != Framing::Extended) else { return Next::End };
        out.extend(export.device.size().to_be_bytes());
        out.extend(Session::flags(&export, self.framing, false).to_be_bytes());
        if self.terms.has_zeroes {
            out.extend([0; 124]);
        }
        Next::Transmission(export)
    }

    /// The export that GO or INFO names, and what is told about it.
    fn infos(&self, option: u32, payload: &[u8]) -> Result<(Option<Arc<Export>>, Vec<Info>)> {
        let go = Go::decode(payload)?;
        let Some(export) = self.find(&go.name) else { return Ok((None, Vec::new())) };
        let has_contexts = option == option::INFO || !self.contexts_of(&export).is_empty();
        let flags = Session::flags(&export, self.framing, has_contexts);
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

    /// The contexts asked for that the export has, each once; `None` when there is no such export. To set some forgets those set
    /// before.
    fn contexts(&mut self, option: u32, payload: &[u8]) -> Result<Option<Vec<Context>>> {
        let MetaQuery { name, queries } = MetaQuery::decode(payload)?;
        if self.framing == Framing::Simple {
            return Err(Error::invalid("metadata contexts need structured replies"));
        }
        let is_setting = option == option::SET_META_CONTEXT;
        if is_setting {
            self.contexts = None;
        }
        let Some(export) = self.find(&name) else { return Ok(None) };
        let is_wanted = |context: &Context| match is_setting {
            true => queries.contains(&context.name),
            false => queries.is_empty() || queries.iter().any(|q| context.is_listed_for(q)),
        };
        let found = Context::all(&export).filter(is_wanted).collect::<Vec<_>>();
        if is_setting {
            self.contexts = Some((export.name.clone(), found.clone()));
        }
        Ok(Some(found))
    }

    /// What was turned on for this export.
    fn contexts_of(&self, export: &Export) -> &[Context] {
        match &self.contexts {
            Some((name, contexts)) if *name == export.name => contexts,
            _ => &[],
        }
    }

    fn session(&self, export: Arc<Export>) -> Session {
        let contexts = self.contexts_of(&export).to_vec();
        let export = Taken::new(export);
        Session { export, framing: self.framing, contexts, report: self.terms.report.clone() }
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
            let export = Export { description: "text".into(), read_only, ..Export::new(name, device) };
            exports.add(export).unwrap();
        }
        exports
    }

    fn talk(exports: &Exports, encryption: Encryption) -> Negotiation<'_> {
        static NOBODY: Peer = Peer { address: None, user: None, certificate: None };
        let terms = Terms { exports, peer: &NOBODY, encryption, has_zeroes: true, report: None };
        Negotiation { terms, framing: Framing::Simple, contexts: None }
    }

    fn fresh(exports: &Exports) -> Negotiation<'_> {
        talk(exports, Encryption::Absent)
    }

    /// Ids of the contexts that a session of `export` would have.
    fn turned_on(n: &Negotiation<'_>, export: &str) -> Vec<u32> {
        let export = n.find(export).unwrap();
        n.session(export).contexts.iter().map(|c| c.id).collect()
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
        assert!(matches!(next, Next::Transmission(export) if export.name == "b"));
        assert!(matches!(ask(&mut n, option::ABORT, &[]).1, Next::End));
    }

    #[test]
    fn contexts_belong_to_the_export_they_were_asked_for() {
        let exports = exports();
        let mut n = fresh(&exports);
        let set = option::SET_META_CONTEXT;
        assert_eq!(kinds(&mut n, set, &query("a", &["base:allocation"])), [reply::ERR_INVALID]);
        assert_eq!(kinds(&mut n, option::STRUCTURED_REPLY, &[]), [reply::ACK]);
        let list = option::LIST_META_CONTEXT;
        assert_eq!(kinds(&mut n, list, &query("a", &[])), [reply::META_CONTEXT, reply::META_CONTEXT, reply::ACK]);
        assert_eq!(kinds(&mut n, list, &query("a", &["base:"])), [reply::META_CONTEXT, reply::ACK]);
        assert_eq!(kinds(&mut n, list, &query("a", &["x:", "qemu:"])), [reply::META_CONTEXT, reply::ACK]);
        assert_eq!(kinds(&mut n, set, &query("a", &["base:", "x-y:z"])), [reply::ACK]);
        assert_eq!(kinds(&mut n, set, &query("c", &["base:allocation"])), [reply::ERR_UNKNOWN]);
        assert_eq!(kinds(&mut n, set, &query("a", &["q", "base:allocation"])), [reply::META_CONTEXT, reply::ACK]);
        assert_eq!(kinds(&mut n, list, &query("b", &["qemu:"])), [reply::META_CONTEXT, reply::ACK]);
        assert_eq!((turned_on(&n, "a"), turned_on(&n, "b")), (vec![1], vec![]));
        let both = query("b", &["qemu:allocation-depth", "base:allocation", "base:allocation"]);
        assert_eq!(kinds(&mut n, set, &both), [reply::META_CONTEXT, reply::META_CONTEXT, reply::ACK]);
        assert_eq!((turned_on(&n, "a"), turned_on(&n, "b")), (vec![], vec![1, 2]));
        assert_eq!(kinds(&mut n, set, &query("b", &[])), [reply::ACK]);
        assert_eq!(turned_on(&n, "b"), [0; 0]);
    }

    #[test]
    fn more_contexts_than_memory_is_for_are_refused() {
        struct Same;
        impl crate::ChangeSource for Same {
            fn changes(&self, range: std::ops::Range<u64>, _: usize) -> Result<Vec<(std::ops::Range<u64>, bool)>> {
                Ok(vec![(range, false)])
            }
        }
        let exports = Exports::new();
        let since = |n: usize| crate::Changes { since: format!("web@-{n}"), source: Arc::new(Same) };
        let device = Arc::new(MemoryDevice::new(4096));
        exports.add(Export { changes: (0..20).map(since).collect(), ..Export::new("a", device) }).unwrap();
        let mut n = fresh(&exports);
        kinds(&mut n, option::EXTENDED_HEADERS, &[]);
        let names = (0..20).map(|n| format!("coffer:changed:web@-{n}")).collect::<Vec<_>>();
        let names = names.iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(kinds(&mut n, option::LIST_META_CONTEXT, &query("a", &["coffer:changed:"])).len(), 21);
        assert_eq!(
            kinds(&mut n, option::SET_META_CONTEXT, &query("a", &names[..MAX_CONTEXTS])).len(),
            MAX_CONTEXTS + 1
        );
        assert_eq!(turned_on(&n, "a").len(), MAX_CONTEXTS);
        assert_eq!(kinds(&mut n, option::SET_META_CONTEXT, &query("a", &names)), [reply::ERR_TOO_BIG]);
        assert_eq!(turned_on(&n, "a"), [0; 0]);
    }

    #[test]
    fn extended_headers_exclude_what_they_replace() {
        let exports = exports();
        let mut n = fresh(&exports);
        assert_eq!(kinds(&mut n, option::STRUCTURED_REPLY, &[]), [reply::ACK]);
        assert_eq!(kinds(&mut n, option::STRUCTURED_REPLY, &[]), [reply::ERR_INVALID]);
        assert_eq!(kinds(&mut n, option::EXTENDED_HEADERS, b"x"), [reply::ERR_INVALID]);
        assert_eq!(kinds(&mut n, option::EXTENDED_HEADERS, &[]), [reply::ACK]);
        assert_eq!(kinds(&mut n, option::EXTENDED_HEADERS, &[]), [reply::ERR_INVALID]);
        assert_eq!(kinds(&mut n, option::STRUCTURED_REPLY, &[]), [reply::ERR_EXT_HEADER_REQD]);
        assert_eq!(n.framing, Framing::Extended);
        let flags = |n: &mut Negotiation<'_>, option| match Info::decode(&ask(n, option, &go("b")).0[0].1).unwrap() {
            Info::Export { flags, .. } => flags & export_flag::BLOCK_STATUS_PAYLOAD,
            other => panic!("{other:?}"),
        };
        assert_ne!(flags(&mut n, option::INFO), 0);
        assert_eq!(flags(&mut n, option::GO), 0);
        kinds(&mut n, option::SET_META_CONTEXT, &query("b", &["base:allocation"]));
        assert_ne!(flags(&mut n, option::GO), 0);
        assert!(matches!(n.answer(option::EXPORT_NAME, b"b", &mut Vec::new()), Next::End));
    }

    #[test]
    fn where_tls_is_required_nothing_else_is_told() {
        let exports = exports();
        let mut n = talk(&exports, Encryption::Required);
        for (option, payload) in [
            (option::LIST, vec![]),
            (option::INFO, go("a")),
            (option::GO, go("a")),
            (option::STRUCTURED_REPLY, vec![]),
            (option::EXTENDED_HEADERS, vec![]),
            (option::LIST_META_CONTEXT, query("a", &[])),
            (option::SET_META_CONTEXT, query("a", &["base:allocation"])),
            (4711, vec![]),
        ] {
            assert_eq!(kinds(&mut n, option, &payload), [reply::ERR_TLS_REQD], "option {option}");
        }
        assert_eq!((n.framing, n.contexts.is_some()), (Framing::Simple, false));
        let mut out = Vec::new();
        assert!(matches!(n.answer(option::EXPORT_NAME, b"a", &mut out), Next::End) && out.is_empty());
        assert_eq!(kinds(&mut n, option::STARTTLS, b"x"), [reply::ERR_INVALID]);
        assert!(matches!(ask(&mut n, option::STARTTLS, &[]).1, Next::Encryption));
        assert!(matches!(ask(&mut n, option::ABORT, &[]).1, Next::End));
        let mut n = talk(&exports, Encryption::Allowed);
        assert_eq!(kinds(&mut n, option::LIST, &[]).len(), 3);
        assert!(matches!(ask(&mut n, option::STARTTLS, &[]).1, Next::Encryption));
        let mut n = talk(&exports, Encryption::On);
        assert_eq!(kinds(&mut n, option::STARTTLS, &[]), [reply::ERR_INVALID]);
        assert_eq!(kinds(&mut n, option::LIST, &[]).len(), 3);
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
