//! Many threads, one connection: each sends its request and waits for its own reply, whatever the order of replies.
//!
//! There is no reader thread. Whoever waits and finds the receiving half free takes it, reads the next header and, if the
//! reply is its own, the bytes straight into its own buffer; a header for another thread is handed to that one together
//! with the receiving half. A lone caller therefore never waits for another thread, and nothing is copied twice.
//!
//! ```text
//!   receiver: Free(half) -> Taken -> Free(half)                 the reply was mine
//!                                 -> For(cookie, header, half)  the reply is theirs: that thread is woken
//! ```
//! Not here: what requests mean. What holds: the state's lock is never held over I/O; `sending` is, since it is nothing but
//! the turn to write one whole request; requests in flight are as many as threads that call; the first failure of the
//! connection fails every request, present and future, with the same error.

use super::super::errno;
use super::super::proto::transmission::{self as wire, Reply, Request, Status, chunk, command, command_flag};
use super::super::proto::{Framing, MAX_STRING};
use super::socket::Socket;
use crate::{Error, Kind, Result};
use std::collections::HashMap;
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What an error chunk may carry: number, length, message, offset.
const MAX_ERROR_PAYLOAD: u64 = 14 + MAX_STRING as u64;
/// What a block status chunk may carry; servers send a few thousand extents at most.
const MAX_STATUS_PAYLOAD: u64 = 4 << 20;
/// More pieces of one reply than this is an attack.
const MAX_CHUNKS: usize = 1 << 14;
/// One receive brings a small reply's header and data together; larger data bypass the buffer.
const RECEIVE_BUFFER: usize = 8 << 10;

/// A connection in its transmission phase.
pub(super) struct Connection {
    socket: Arc<Socket>,
    framing: Framing,
    sending: Mutex<()>,
    state: Mutex<State>,
}

struct State {
    next_cookie: u64,
    waiting: HashMap<u64, Waiter>,
    receiver: Receiver,
    failure: Option<Error>,
}

struct Waiter {
    wake: Arc<Condvar>,
    is_asleep: bool,
}

enum Receiver {
    Free(Half),
    Taken,
    For(u64, Reply, Half),
}

/// The receiving half of the socket.
struct Half(BufReader<SharedSocket>);

struct SharedSocket(Arc<Socket>);

impl Read for SharedSocket {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        (&mut &*self.0).read(out)
    }
}

/// What a request wants back.
pub(super) enum Wanted<'a> {
    /// Nothing but success.
    Nothing,
    /// The bytes of the request's range.
    Bytes(&'a mut [u8]),
    /// The extents of one context, by its id.
    Extents(u32, &'a mut Vec<Status>),
}

/// A request as its caller knows it.
pub(super) struct Call<'a> {
    pub(super) command: u16,
    pub(super) flags: u16,
    pub(super) offset: u64,
    pub(super) length: u64,
    /// Of a write, or of a status that names contexts.
    pub(super) payload: &'a [u8],
}

impl Connection {
    pub(super) fn new(socket: Socket, framing: Framing) -> Self {
        let socket = Arc::new(socket);
        let half = Half(BufReader::with_capacity(RECEIVE_BUFFER, SharedSocket(Arc::clone(&socket))));
        let state = State { next_cookie: 1, waiting: HashMap::new(), receiver: Receiver::Free(half), failure: None };
        Connection { socket, framing, sending: Mutex::new(()), state: Mutex::new(state) }
    }

    /// Sends `call` and waits until its reply is whole.
    pub(super) fn exchange(&self, call: &Call<'_>, wanted: Wanted<'_>) -> Result<()> {
        let (cookie, wake) = self.register()?;
        let mut answer = Answer::new(call, wanted);
        let outcome = self.send(cookie, call).and_then(|()| {
            while !answer.is_whole {
                let (reply, mut half) = self.await_reply(cookie, &wake)?;
                answer.take(self.framing, reply, &mut half)?;
                self.lock().receiver = Receiver::Free(half);
            }
            Ok(())
        });
        let outcome = outcome.map_err(|e| self.fail(e));
        self.unregister(cookie);
        outcome?;
        answer.finish()
    }

    /// Whether nothing has ended the connection.
    pub(super) fn holds(&self) -> bool {
        self.lock().failure.is_none()
    }

    /// Says good-bye and ends the connection; later calls fail.
    pub(super) fn disconnect(&self) {
        let bye = Call { command: command::DISC, flags: 0, offset: 0, length: 0, payload: &[] };
        if self.lock().failure.is_none() {
            // The server may be gone already; there is nobody to tell.
            let _ = self.send(0, &bye);
        }
        self.fail(Error::new(Kind::Cancelled, "the connection was closed by this side"));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the state sound: every change under the lock is a single step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self) -> Result<(u64, Arc<Condvar>)> {
        let mut state = self.lock();
        if let Some(failure) = &state.failure {
            return Err(failure.duplicate());
        }
        let cookie = state.next_cookie;
        state.next_cookie = cookie.wrapping_add(1);
        let wake = Arc::new(Condvar::new());
        state.waiting.insert(cookie, Waiter { wake: Arc::clone(&wake), is_asleep: false });
        Ok((cookie, wake))
    }

    /// Leaves, and wakes a thread that sleeps to take over a free receiver. One that is still sending will look itself.
    fn unregister(&self, cookie: u64) {
        let mut state = self.lock();
        state.waiting.remove(&cookie);
        if let Receiver::Free(_) = state.receiver
            && let Some(next) = state.waiting.values().find(|w| w.is_asleep)
        {
            next.wake.notify_one();
        }
    }

    fn send(&self, cookie: u64, call: &Call<'_>) -> Result<()> {
        let (mut flags, mut length) = (call.flags, call.length);
        if self.framing == Framing::Extended && !call.payload.is_empty() {
            (flags, length) = (flags | command_flag::PAYLOAD_LEN, call.payload.len() as u64);
        }
        let request = Request { flags, command: call.command, cookie, offset: call.offset, length };
        let mut header = Vec::with_capacity(Request::wire_len(self.framing));
        request.encode(self.framing, &mut header)?;
        let mut parts = [IoSlice::new(&header), IoSlice::new(call.payload)];
        let mut parts = parts.as_mut_slice();
        let lost = |e| Error::io("the connection broke while sending", e).with_kind(Kind::Unavailable);
        let _turn = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let mut socket = &*self.socket;
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match socket.write_vectored(parts) {
                Ok(0) => return Err(lost(io::ErrorKind::WriteZero.into())),
                Ok(n) => IoSlice::advance_slices(&mut parts, n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Error::new(Kind::Unavailable, "the server takes no data for too long"));
                }
                Err(e) => return Err(lost(e)),
            }
        }
        Ok(())
    }

    /// Waits for the next header that belongs to `cookie`; the caller owns the receiving half until it puts it back.
    fn await_reply(&self, cookie: u64, wake: &Condvar) -> Result<(Reply, Half)> {
        let mut state = self.lock();
        loop {
            if let Some(failure) = &state.failure {
                return Err(failure.duplicate());
            }
            match std::mem::replace(&mut state.receiver, Receiver::Taken) {
                Receiver::For(to, reply, half) if to == cookie => return Ok((reply, half)),
                Receiver::Free(mut half) => {
                    drop(state);
                    let reply = half.header(self.framing)?;
                    let (Reply::Simple { cookie: to, .. } | Reply::Chunk { cookie: to, .. }) = reply;
                    if to == cookie {
                        return Ok((reply, half));
                    }
                    state = self.lock();
                    let Some(theirs) = state.waiting.get(&to) else {
                        return Err(Error::invalid(format!("the server answers request {to}, which is not in flight")));
                    };
                    theirs.wake.notify_one();
                    state.receiver = Receiver::For(to, reply, half);
                }
                busy => {
                    state.receiver = busy;
                    set_asleep(&mut state, cookie, true);
                    state = wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                    set_asleep(&mut state, cookie, false);
                }
            }
        }
    }

    /// Makes `error` the fate of the connection unless it has one, and wakes everybody.
    fn fail(&self, error: Error) -> Error {
        let mut state = self.lock();
        if state.failure.is_none() {
            state.failure = Some(error.duplicate());
        }
        state.waiting.values().for_each(|w| w.wake.notify_one());
        drop(state);
        self.socket.shut_down();
        error
    }
}

fn set_asleep(state: &mut State, cookie: u64, is_asleep: bool) {
    if let Some(me) = state.waiting.get_mut(&cookie) {
        me.is_asleep = is_asleep;
    }
}

impl Half {
    fn fill(&mut self, out: &mut [u8]) -> Result<()> {
        self.0.read_exact(out).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Error::new(Kind::Unavailable, "the server closed the connection"),
            io::ErrorKind::WouldBlock => Error::new(Kind::Unavailable, "the server does not answer in time"),
            _ => Error::io("the connection broke while receiving", e).with_kind(Kind::Unavailable),
        })
    }

    /// The next header; how long it is shows in its first 16 bytes.
    fn header(&mut self, framing: Framing) -> Result<Reply> {
        let mut bytes = [0; 32];
        let (first, rest) = bytes.split_at_mut(Reply::SIMPLE_LEN);
        self.fill(first)?;
        if let Some((reply, _)) = Reply::decode(framing, first)? {
            return Ok(reply);
        }
        let more = Reply::wire_len(framing) - Reply::SIMPLE_LEN;
        self.fill(rest.get_mut(..more).unwrap_or_default())?;
        match Reply::decode(framing, &bytes)? {
            Some((reply, _)) => Ok(reply),
            None => Err(Error::internal("an NBD reply header is longer than its kind")),
        }
    }
}

/// A reply as it comes in.
struct Answer<'a> {
    command: u16,
    range: Range<u64>,
    wanted: Wanted<'a>,
    /// Where bytes have come in so far; usually one range.
    covered: Vec<Range<u64>>,
    chunks: usize,
    error: Option<(u32, String)>,
    is_whole: bool,
}

impl<'a> Answer<'a> {
    fn new(call: &Call<'_>, wanted: Wanted<'a>) -> Self {
        Answer {
            command: call.command,
            range: call.offset..call.offset.saturating_add(call.length),
            wanted,
            covered: Vec::new(),
            chunks: 0,
            error: None,
            is_whole: false,
        }
    }

    /// Takes in one header and what follows it. An error is the connection's, not the request's.
    fn take(&mut self, framing: Framing, reply: Reply, half: &mut Half) -> Result<()> {
        self.chunks += 1;
        if self.chunks > MAX_CHUNKS {
            return Err(self.broken("in too many pieces"));
        }
        match reply {
            Reply::Simple { error: 0, .. } => {
                self.is_whole = true;
                match &mut self.wanted {
                    Wanted::Nothing => Ok(()),
                    Wanted::Bytes(out) if framing == Framing::Simple => {
                        half.fill(out)?;
                        self.covered.push(self.range.clone());
                        Ok(())
                    }
                    Wanted::Bytes(_) | Wanted::Extents(..) => Err(self.broken("with a simple reply")),
                }
            }
            Reply::Simple { error, .. } => {
                self.is_whole = true;
                self.error = Some((error, String::new()));
                Ok(())
            }
            Reply::Chunk { flags, kind, length, .. } => {
                self.is_whole = flags & chunk::FLAG_DONE != 0;
                self.take_chunk(kind, length, half)
            }
        }
    }

    fn take_chunk(&mut self, kind: u16, length: u64, half: &mut Half) -> Result<()> {
        match kind {
            chunk::NONE if length == 0 && self.is_whole => Ok(()),
            chunk::OFFSET_DATA => {
                let mut at = [0; wire::OFFSET_DATA_PREFIX];
                let data = length.checked_sub(at.len() as u64).filter(|n| *n > 0);
                let len = data.ok_or_else(|| self.broken("with an empty data chunk"))?;
                half.fill(&mut at)?;
                let out = self.piece(u64::from_be_bytes(at), len)?;
                half.fill(out)
            }
            chunk::OFFSET_HOLE => {
                let payload = bounded(length, 12, half).map_err(|e| e.within("a hole chunk"))?;
                let (at, len) = wire::decode_hole(&payload)?;
                self.piece(at, len.into())?.fill(0);
                Ok(())
            }
            chunk::BLOCK_STATUS | chunk::BLOCK_STATUS_EXT => {
                let (id, extents) = wire::decode_status(kind, &bounded(length, MAX_STATUS_PAYLOAD, half)?)?;
                match &mut self.wanted {
                    Wanted::Extents(mine, out) => {
                        if id == *mine {
                            out.extend(extents);
                        }
                        Ok(())
                    }
                    Wanted::Nothing | Wanted::Bytes(_) => Err(self.broken("with a block status")),
                }
            }
            kind if kind & chunk::ERROR_BIT != 0 => {
                let error = wire::decode_error(&bounded(length, MAX_ERROR_PAYLOAD, half)?)?;
                self.error.get_or_insert(error);
                Ok(())
            }
            kind => Err(self.broken(&format!("with a chunk of type {kind} and {length} bytes"))),
        }
    }

    /// The place for `len` bytes at `offset` of the device.
    fn piece(&mut self, offset: u64, len: u64) -> Result<&mut [u8]> {
        let start = offset.checked_sub(self.range.start);
        let end = offset.checked_add(len).filter(|end| len > 0 && *end <= self.range.end);
        let (Some(start), Some(end)) = (start, end) else {
            return Err(self.broken("with bytes that were not asked for"));
        };
        if self.covered.iter().any(|c| c.start < end && offset < c.end) {
            return Err(self.broken("with the same bytes twice"));
        }
        match self.covered.last_mut() {
            Some(last) if last.end == offset => last.end = end,
            _ => self.covered.push(offset..end),
        }
        let place = usize::try_from(start).ok().zip(usize::try_from(start + len).ok());
        match (&mut self.wanted, place) {
            (Wanted::Bytes(out), Some((start, end))) => out.get_mut(start..end),
            _ => None,
        }
        .ok_or_else(|| Error::invalid("the server breaks the protocol: it sends bytes where none were asked for"))
    }

    fn broken(&self, how: &str) -> Error {
        Error::invalid(format!("the server breaks the protocol: it answers {} {how}", self.what()))
    }

    fn what(&self) -> String {
        let Range { start, end } = self.range;
        format!("a {} of {} bytes at offset {start}", command::name(self.command), end - start)
    }

    /// The request's own outcome, once the reply is whole.
    fn finish(self) -> Result<()> {
        if let Some((error, message)) = &self.error {
            let mut text = format!("the server refuses {}: {}", self.what(), errno::name(*error));
            if !message.is_empty() {
                text.push_str(&format!(": {}", message.escape_debug()));
            }
            return Err(Error::new(errno::to_kind(*error), text));
        }
        // Pieces neither overlap nor leave the range, so their sum tells whether anything is missing.
        let covered: u64 = self.covered.iter().map(|c| c.end - c.start).sum();
        match &self.wanted {
            Wanted::Bytes(_) if covered != self.range.end - self.range.start => Err(self.broken("with too few bytes")),
            Wanted::Extents(_, extents) if extents.is_empty() => Err(self.broken("without the context asked for")),
            Wanted::Nothing | Wanted::Bytes(_) | Wanted::Extents(..) => Ok(()),
        }
    }
}

/// A payload of `length` bytes, of which there may be `max`.
fn bounded(length: u64, max: u64, half: &mut Half) -> Result<Vec<u8>> {
    match usize::try_from(length) {
        Ok(len) if length <= max => {
            let mut payload = vec![0; len];
            half.fill(&mut payload)?;
            Ok(payload)
        }
        _ => Err(Error::invalid(format!("the server sends a chunk of {length} bytes where {max} are the most"))),
    }
}
