//! The client's side of the handshake: from a fresh socket to an agreement.
//!
//! Not here: what the export is used for. What holds: it ends within the time given; replies are bounded in size and
//! number; the best framing that both sides speak is taken; an agreement makes sense (see [`Agreed`]).

use super::super::proto::handshake::{self as wire, Go, Info, MetaQuery, info, option, reply};
use super::super::proto::{Framing, MAX_PAYLOAD};
use super::super::tls;
use super::socket::{Deadline, Socket};
use crate::{Error, Kind, Result};
use std::io::{Read, Write};
use std::time::Duration;

/// No option reply is longer.
const MAX_REPLY: u32 = 64 << 10;
/// No option has more replies.
const MAX_REPLIES: usize = 256;
/// What a server that says nothing about block sizes is known to take.
const SILENT_MINIMUM: u32 = 1;

/// What the handshake came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) framing: Framing,
    /// Bytes.
    pub(super) size: u64,
    /// `export_flag`s.
    pub(super) flags: u16,
    /// A power of two up to 64 KiB: every request's offset and length are multiples of it.
    pub(super) minimum: u32,
    /// A power of two, at least `minimum`: what the server handles best.
    pub(super) preferred: u32,
    /// A multiple of `minimum`, at most 32 MiB: the largest payload.
    pub(super) maximum: u32,
    /// Metadata contexts that the server has, by id.
    pub(super) contexts: Vec<(u32, String)>,
}

/// Exchanges greetings with the server on the other end of `socket`, within `time`.
pub(super) fn greet(socket: &Socket, time: Duration) -> Result<()> {
    let mut talk = Talk { receive: Deadline::after(socket, time), send: socket };
    let flags = wire::decode_greeting(&talk.array()?)?;
    if flags & wire::FIXED_NEWSTYLE == 0 {
        return Err(Error::new(Kind::Unsupported, "the server does not speak the fixed newstyle handshake"));
    }
    let flags = u32::from(flags & (wire::FIXED_NEWSTYLE | wire::NO_ZEROES));
    talk.send(&flags.to_be_bytes())
}

/// Asks for TLS, which is to begin right after.
pub(super) fn ask_for_tls(socket: &Socket, time: Duration) -> Result<()> {
    let mut talk = Talk { receive: Deadline::after(socket, time), send: socket };
    match talk.is_granted(option::STARTTLS)? {
        true => Ok(()),
        false => Err(Error::new(Kind::Unsupported, "the server does not speak TLS; nbd:// does without")),
    }
}

/// Agrees with a server that was greeted about `export`, within `time`.
pub(super) fn negotiate(socket: &Socket, export: &str, contexts: &[String], time: Duration) -> Result<Agreed> {
    let mut talk = Talk { receive: Deadline::after(socket, time), send: socket };
    let framing = if talk.is_granted(option::EXTENDED_HEADERS)? {
        Framing::Extended
    } else if talk.is_granted(option::STRUCTURED_REPLY)? {
        Framing::Structured
    } else {
        Framing::Simple
    };
    let mut agreed = Agreed {
        framing,
        size: 0,
        flags: 0,
        minimum: SILENT_MINIMUM,
        preferred: 4096,
        maximum: MAX_PAYLOAD,
        contexts: Vec::new(),
    };
    if framing != Framing::Simple {
        agreed.contexts = talk.contexts(export, contexts)?;
    }
    talk.go(export, &mut agreed)?;
    Ok(agreed)
}

/// An option's final reply that is not an acknowledgement.
enum Refusal {
    /// The server does not know or allow the option: one can do without.
    Without,
    /// One cannot.
    Fatal(Error),
}

struct Talk<'a> {
    receive: Deadline<'a>,
    send: &'a Socket,
}

impl Talk<'_> {
    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.send.write_all(bytes).map_err(|e| Error::io("sending the handshake", e).with_kind(Kind::Unavailable))
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<()> {
        // A server that wants another certificate, or any, says so here.
        self.receive.read_exact(out).map_err(|e| tls::failed("waiting for the server's part of the handshake", e))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }

    /// Sends an option and hands every reply before the final one to `each`.
    fn ask(
        &mut self,
        number: u32,
        payload: &[u8],
        mut each: impl FnMut(u32, &[u8]) -> Result<()>,
    ) -> Result<Result<(), Refusal>> {
        self.send(&wire::encode_option(number, payload))?;
        for _ in 0..MAX_REPLIES {
            let (to, kind, len) = wire::decode_option_reply_header(&self.array()?)?;
            if to != number {
                return Err(Error::invalid(format!("the server answers option {to} where {number} was asked")));
            }
            if len > MAX_REPLY {
                return Err(Error::invalid(format!("the server answers option {number} with {len} bytes")));
            }
            let mut payload = vec![0; len as usize];
            self.fill(&mut payload)?;
            match kind {
                reply::ACK => return Ok(Ok(())),
                reply::ERR_UNSUP | reply::ERR_POLICY | reply::ERR_INVALID if number != option::GO => {
                    return Ok(Err(Refusal::Without));
                }
                kind if kind & reply::ERROR_BIT != 0 => {
                    return Ok(Err(Refusal::Fatal(refused(kind, &String::from_utf8_lossy(&payload)))));
                }
                kind => each(kind, &payload)?,
            }
        }
        Err(Error::invalid(format!("the server answers option {number} without an end")))
    }

    fn is_granted(&mut self, number: u32) -> Result<bool> {
        match self.ask(number, &[], |_, _| Ok(()))? {
            Ok(()) => Ok(true),
            Err(Refusal::Without) => Ok(false),
            Err(Refusal::Fatal(e)) => Err(e),
        }
    }

    fn contexts(&mut self, export: &str, queries: &[String]) -> Result<Vec<(u32, String)>> {
        let query = MetaQuery { name: export.to_owned(), queries: queries.to_vec() };
        let mut found = Vec::new();
        let answer = self.ask(option::SET_META_CONTEXT, &query.encode(), |kind, payload| {
            if kind == reply::META_CONTEXT {
                found.push(wire::decode_meta_context(payload)?);
            }
            Ok(())
        })?;
        match answer {
            Ok(()) => Ok(found),
            Err(Refusal::Without) => Ok(Vec::new()),
            Err(Refusal::Fatal(e)) => Err(e),
        }
    }

    fn go(&mut self, export: &str, agreed: &mut Agreed) -> Result<()> {
        let go = Go { name: export.to_owned(), infos: vec![info::BLOCK_SIZE] };
        let mut has_size = false;
        let answer = self.ask(option::GO, &go.encode(), |kind, payload| {
            if kind != reply::INFO {
                return Ok(());
            }
            match Info::decode(payload)? {
                Info::Export { size, flags } => {
                    (agreed.size, agreed.flags, has_size) = (size, flags, true);
                }
                Info::BlockSize { minimum, preferred, maximum } => {
                    let sizes = (minimum, preferred, maximum);
                    (agreed.minimum, agreed.preferred, agreed.maximum) = sensible(sizes)?;
                }
                Info::Name(_) | Info::Description(_) | Info::Other(_) => {}
            }
            Ok(())
        })?;
        match answer {
            Ok(()) if has_size => Ok(()),
            Ok(()) => Err(Error::invalid("the server does not say how large the export is")),
            Err(Refusal::Fatal(e)) => Err(e),
            Err(Refusal::Without) => Err(Error::new(Kind::Unsupported, "the server does not know the option GO")),
        }
    }
}

/// Block sizes as the protocol allows them, the maximum cut to what this client sends.
fn sensible((minimum, preferred, maximum): (u32, u32, u32)) -> Result<(u32, u32, u32)> {
    let is_sound = minimum.is_power_of_two()
        && minimum <= 64 << 10
        && preferred.is_power_of_two()
        && preferred >= minimum
        && maximum >= minimum;
    if !is_sound {
        let text = format!("the server's block sizes {minimum}, {preferred} and {maximum} make no sense");
        return Err(Error::invalid(text));
    }
    let maximum = maximum.min(MAX_PAYLOAD);
    Ok((minimum, preferred, maximum - maximum % minimum))
}

fn refused(kind: u32, text: &str) -> Error {
    let (kind, why) = match kind {
        reply::ERR_UNKNOWN => (Kind::NotFound, "the server has no such export"),
        reply::ERR_TLS_REQD => (Kind::Unsupported, "the server wants TLS: write nbds:// or nbds+unix://"),
        reply::ERR_SHUTDOWN => (Kind::Unavailable, "the server is shutting down"),
        reply::ERR_POLICY => (Kind::Invalid, "the server's policy forbids it"),
        reply::ERR_UNSUP => (Kind::Unsupported, "the server does not know what is asked"),
        _ => (Kind::Invalid, "the server refuses"),
    };
    match text {
        "" => Error::new(kind, why),
        text => Error::new(kind, format!("{why}: {}", text.escape_debug())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_checked_and_cut() {
        assert_eq!(sensible((1, 4096, u32::MAX)).unwrap(), (1, 4096, MAX_PAYLOAD));
        assert_eq!(sensible((512, 512, 1000)).unwrap(), (512, 512, 512));
        for bad in [(0, 1, 1), (3, 4, 8), (1 << 17, 1 << 17, 1 << 20), (512, 256, 1024), (512, 512, 0), (1, 3, 4)] {
            assert_eq!(sensible(bad).unwrap_err().kind(), Kind::Invalid, "{bad:?}");
        }
    }
}
