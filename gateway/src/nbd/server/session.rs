//! One client and one export: which requests are right, and what they do to the device. Synchronous, without sockets.
//!
//! Not here: queues and framing. What holds: [`Session::check`] refuses before anything is done or allocated; everything
//! that may wait runs in [`Session::execute`], on a storage thread; errors of the device are reported where they end.

use super::super::errno as edge;
use super::super::proto::transmission::{Request, Status, StatusQuery, command, command_flag};
use super::super::proto::{Framing, MAX_PAYLOAD, errno, export_flag};
use super::context::Context;
use super::reply;
use crate::device::{Durability, Zeroing, check_range};
use crate::export::{Deed, Export, Taken};
use crate::serving::{Buffer, Report, SWIFT};
use crate::{Error, Kind, Result};
use std::ops::Range;

/// Extents of one block status; the client asks again for more.
const MAX_EXTENTS: usize = 2048;
/// What a reply without data may take: a block status of one context with extended headers.
const SMALL_REPLY: usize = 64 + 16 * MAX_EXTENTS;

/// What was agreed with a client.
pub(super) struct Session {
    pub(super) export: Taken,
    pub(super) framing: Framing,
    /// What the client turned on.
    pub(super) contexts: Vec<Context>,
    pub(super) report: Option<Report>,
}

/// A refusal: number and reason.
pub(super) struct Refusal(pub(super) u32, pub(super) &'static str);

impl Session {
    /// The flags that an export shows; `has_contexts` when block status can be asked for.
    pub(super) fn flags(export: &Export, framing: Framing, has_contexts: bool) -> u16 {
        use export_flag::{
            BLOCK_STATUS_PAYLOAD, CACHE, DF, FAST_ZERO, FLUSH, FUA, HAS_FLAGS, MULTI_CONN, READ_ONLY, TRIM,
            WRITE_ZEROES,
        };
        // MULTI_CONN is honest for every device: all connections call one device, and its flush covers all writes.
        let mut flags = HAS_FLAGS | FLUSH | CACHE | MULTI_CONN;
        flags |= if export.is_read_only() { READ_ONLY } else { FUA | TRIM | WRITE_ZEROES | FAST_ZERO };
        flags |= if framing == Framing::Extended && has_contexts { BLOCK_STATUS_PAYLOAD } else { 0 };
        flags | if framing == Framing::Simple { 0 } else { DF }
    }

    /// Whether `request` may be executed. Its payload, if any, has not been read.
    pub(super) fn check(&self, request: &Request) -> Result<(), Refusal> {
        let Request { flags, command, offset, length, .. } = *request;
        let is_structured = self.framing != Framing::Simple;
        let (allowed, beyond) = match command {
            command::READ => (if is_structured { command_flag::DF } else { 0 }, errno::EINVAL),
            command::WRITE if self.framing == Framing::Extended => (command_flag::PAYLOAD_LEN, errno::ENOSPC),
            command::WRITE => (0, errno::ENOSPC),
            command::WRITE_ZEROES => (command_flag::NO_HOLE | command_flag::FAST_ZERO, errno::ENOSPC),
            command::BLOCK_STATUS if self.framing == Framing::Extended => {
                (command_flag::REQ_ONE | command_flag::PAYLOAD_LEN, errno::EINVAL)
            }
            command::BLOCK_STATUS => (command_flag::REQ_ONE, errno::EINVAL),
            command::TRIM | command::CACHE | command::FLUSH => (0, errno::EINVAL),
            _ => return Err(Refusal(errno::EINVAL, "unknown command")),
        };
        let is_write = matches!(command, command::WRITE | command::WRITE_ZEROES | command::TRIM);
        if is_write && self.export.is_read_only() {
            return Err(Refusal(errno::EPERM, "the export is read-only"));
        }
        // FUA is legal on every command and means nothing to those that write nothing.
        if flags & !(allowed | command_flag::FUA) != 0 {
            return Err(Refusal(errno::EINVAL, "a flag that this command does not have"));
        }
        if command == command::FLUSH {
            return Ok(());
        }
        if command == command::BLOCK_STATUS && self.contexts.is_empty() {
            return Err(Refusal(errno::EINVAL, "no metadata context was negotiated"));
        }
        if command == command::BLOCK_STATUS && flags & command_flag::PAYLOAD_LEN != 0 {
            // The length is the payload's; what it says is checked when it is there.
            let longest = StatusQuery::wire_len(self.contexts.len()) as u64;
            return match length <= longest {
                true => Ok(()),
                false => Err(Refusal(errno::EINVAL, "more contexts than were negotiated")),
            };
        }
        if length == 0 {
            return Err(Refusal(errno::EINVAL, "a request for no bytes"));
        }
        if matches!(command, command::READ | command::WRITE) && length > MAX_PAYLOAD.into() {
            return Err(Refusal(errno::EINVAL, "more than 32 MiB at once"));
        }
        match offset.checked_add(length) {
            Some(end) if end <= self.export.device.size() => Ok(()),
            _ => Err(Refusal(beyond, "beyond the end of the export")),
        }
    }

    /// Bytes of memory that a checked request takes until its reply is sent.
    pub(super) fn cost(&self, request: &Request) -> usize {
        match request.command {
            command::READ | command::WRITE => len(request).saturating_add(SMALL_REPLY),
            command::BLOCK_STATUS => SMALL_REPLY.saturating_mul(self.contexts.len().max(1)),
            _ => SMALL_REPLY,
        }
    }

    /// What a request counts as.
    pub(super) fn deed(request: &Request) -> Deed {
        match request.command {
            command::READ => Deed::Read(request.length),
            command::WRITE => Deed::Write(request.length),
            _ => Deed::Other,
        }
    }

    /// Answers a checked request if that needs no waiting, and says whether it went well; else `None`, and nothing was done.
    pub(super) fn answer_at_once(&self, request: &Request, out: &mut Buffer) -> Option<bool> {
        let device = &self.export.device;
        match request.command {
            command::READ => {
                let fill = |place: &mut [u8]| device.try_read_at(request.offset, place);
                match reply::data(self.framing, request, len(request), out, fill) {
                    Ok(is_done) => is_done.then_some(true),
                    Err(e) => {
                        self.refuse(request, &e, out);
                        Some(false)
                    }
                }
            }
            command::CACHE => {
                device.prefetch(range(request));
                reply::ok(self.framing, request, out);
                Some(true)
            }
            command::FLUSH if self.export.is_read_only() => {
                reply::ok(self.framing, request, out);
                Some(true)
            }
            _ => None,
        }
    }

    /// Whether a checked request most likely waits for nothing on a storage thread.
    pub(super) fn is_swift(&self, request: &Request) -> bool {
        let is_small = request.command == command::WRITE && request.length <= SWIFT;
        is_small && request.flags & command_flag::FUA == 0 && self.export.device.writes_swiftly(range(request))
    }

    /// Executes a checked request, and says whether it went well. `buffer` holds the request's payload and, afterwards, the reply.
    pub(super) fn execute(&self, request: &Request, buffer: &mut Buffer) -> bool {
        let outcome = self.attempt(request, buffer);
        if let Err(e) = &outcome {
            buffer.truncate(0);
            self.refuse(request, e, buffer);
        }
        outcome.is_ok()
    }

    fn attempt(&self, request: &Request, buffer: &mut Buffer) -> Result<()> {
        let device = &self.export.device;
        let durability = if request.flags & command_flag::FUA != 0 { Durability::Forced } else { Durability::Cached };
        match request.command {
            command::READ => {
                let fill = |place: &mut [u8]| device.read_at(request.offset, place).map(|()| true);
                reply::data(self.framing, request, len(request), buffer, fill)?;
                return Ok(());
            }
            command::BLOCK_STATUS => {
                let statuses = self.statuses(request, buffer.filled())?;
                buffer.truncate(0);
                reply::statuses(self.framing, request, &statuses, buffer);
                return Ok(());
            }
            command::WRITE => {
                device.write_at(request.offset, buffer.filled(), durability)?;
                buffer.truncate(0);
            }
            command::WRITE_ZEROES => {
                let may_unmap = request.flags & command_flag::NO_HOLE == 0;
                let fast_only = request.flags & command_flag::FAST_ZERO != 0;
                device.zero(range(request), Zeroing { may_unmap, fast_only, durability })?;
            }
            command::TRIM => {
                device.trim(range(request))?;
                if durability == Durability::Forced {
                    device.flush()?;
                }
            }
            command::FLUSH => device.flush()?,
            other => return Err(Error::internal(format!("command {other} was let through"))),
        }
        reply::ok(self.framing, request, buffer);
        Ok(())
    }

    /// What the contexts that are wanted say.
    fn statuses(&self, request: &Request, payload: &[u8]) -> Result<Vec<(u32, Vec<Status>)>> {
        let max = if request.flags & command_flag::REQ_ONE != 0 { 1 } else { MAX_EXTENTS };
        let query = match request.flags & command_flag::PAYLOAD_LEN {
            0 => None,
            _ => Some(StatusQuery::decode(payload)?),
        };
        let range = match &query {
            None => range(request),
            Some(query) => {
                check_range(self.export.device.size(), request.offset, query.length)?;
                if query.length == 0 || query.contexts.iter().any(|id| self.contexts.iter().all(|c| c.id != *id)) {
                    return Err(Error::invalid("a block status of no bytes, or of a context that was not negotiated"));
                }
                request.offset..request.offset.saturating_add(query.length)
            }
        };
        let is_wanted = |context: &&Context| query.as_ref().is_none_or(|q| q.contexts.contains(&context.id));
        let wanted = self.contexts.iter().filter(is_wanted);
        wanted.map(|c| Ok((c.id, c.status(&self.export, range.clone(), max)?))).collect()
    }

    /// Appends the error that `error` is for a client, and reports it if it is not the client's own affair.
    fn refuse(&self, request: &Request, error: &Error, out: &mut Buffer) {
        let number = match edge::from_kind(error.kind()) {
            // Reserved for zeroes that cannot be had fast: clients take it as leave to write them.
            errno::ENOTSUP if request.flags & command_flag::FAST_ZERO == 0 => errno::EINVAL,
            number => number,
        };
        reply::error(self.framing, request, number, error.context(), out);
        if let Some(report) = &self.report
            && !matches!(error.kind(), Kind::Invalid | Kind::Unsupported)
        {
            let Request { command, offset, length, .. } = request;
            let what = command::name(*command);
            let name = &self.export.name;
            report(&error.duplicate().within(format!("export '{name}': {what} of {length} bytes at offset {offset}")));
        }
    }
}

fn range(request: &Request) -> Range<u64> {
    request.offset..request.offset.saturating_add(request.length)
}

/// The length of a request with data; checked ones have 32 MiB at most.
fn len(request: &Request) -> usize {
    usize::try_from(request.length).unwrap_or(usize::MAX)
}
